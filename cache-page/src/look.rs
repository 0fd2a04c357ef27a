//! What is said of a key, for those who may know.

use std::time::Duration;

use cache_core::{EntryInfo, Inspected, Inspection, Shown};
use serde::Serialize;

use crate::report::micros;

/// Most bytes of a value that are shown.
const VALUE_MAX: usize = 16 << 10;

/// What levels hold of a key.
#[derive(Debug, Serialize)]
pub(crate) struct Look {
    /// The level that would answer, if one has the key fresh.
    pub(crate) served_by: Option<String>,
    /// Nearest first.
    pub(crate) levels: Vec<At>,
}

/// What one level holds of it.
#[derive(Debug, Serialize)]
pub(crate) struct At {
    pub(crate) level: String,
    pub(crate) system: &'static str,
    /// What a look-up at this level would come to.
    pub(crate) outcome: &'static str,
    pub(crate) unreadable: Option<&'static str>,
    pub(crate) error: Option<String>,
    pub(crate) entry: Option<Entry>,
    /// Where values are shown.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) value: Option<String>,
}

#[derive(Debug, Serialize)]
pub(crate) struct Entry {
    /// Since its load began.
    pub(crate) age_s: Option<f64>,
    /// Nothing where it is not known, or has no end.
    pub(crate) fresh_for_s: Option<f64>,
    pub(crate) usable_for_s: Option<f64>,
    /// It stays until it is evicted or invalidated.
    pub(crate) has_no_end: bool,
    /// These two: nothing where it does not say, as a bare value or what cannot be read.
    pub(crate) load_us: Option<f64>,
    pub(crate) by_set: Option<bool>,
    pub(crate) tags: Vec<String>,
    pub(crate) etag: Option<String>,
    pub(crate) bytes: Option<usize>,
    pub(crate) value_bytes: Option<usize>,
    pub(crate) codec: Option<&'static str>,
    pub(crate) compression: Option<&'static str>,
    pub(crate) encrypted: bool,
    pub(crate) schema: Option<u32>,
}

impl Look {
    pub(crate) fn of(inspection: &Inspection) -> Self {
        Self {
            served_by: inspection.served_by().map(|at| position(at.level)),
            levels: inspection.levels.iter().map(At::of).collect(),
        }
    }
}

fn position(level: usize) -> String {
    format!("l{}", level + 1)
}

impl At {
    fn of(at: &Inspected) -> Self {
        Self {
            level: position(at.level),
            system: at.provider.system,
            outcome: at.outcome.as_str(),
            unreadable: at.unreadable.map(|reason| reason.as_str()),
            error: at.error.clone(),
            entry: at.entry.as_ref().map(Entry::of),
            value: at.value.as_ref().map(text),
        }
    }
}

fn seconds(time: Option<Duration>) -> Option<f64> {
    time.filter(|time| *time != Duration::MAX).map(|time| (time.as_secs_f64() * 1e3).round() / 1e3)
}

impl Entry {
    fn of(entry: &EntryInfo) -> Self {
        Self {
            age_s: seconds(entry.age),
            fresh_for_s: seconds(entry.fresh_for),
            usable_for_s: seconds(entry.usable_for),
            has_no_end: entry.fresh_for == Some(Duration::MAX),
            load_us: entry.id.map(|_| micros(entry.cost)),
            by_set: entry.id.map(|_| entry.by_set),
            tags: entry.tags.iter().map(ToString::to_string).collect(),
            etag: entry.etag.as_ref().map(ToString::to_string),
            bytes: entry.bytes,
            value_bytes: entry.value_bytes,
            codec: entry.codec,
            compression: entry.compression,
            encrypted: entry.encrypted,
            schema: entry.schema,
        }
    }
}

fn text(value: &Shown) -> String {
    let mut text = match value {
        Shown::Json(json) => json.clone(),
        Shown::Bytes(bytes) => {
            // With room for the mark.
            let most = VALUE_MAX / 3 - 1;
            let shown = bytes.iter().take(most).map(|byte| format!("{byte:02x}"));
            let rest = (bytes.len() > most).then(|| "…".to_owned());
            shown.chain(rest).collect::<Vec<_>>().join(" ")
        }
        _ => String::new(),
    };
    if text.len() > VALUE_MAX {
        let end = (0..=VALUE_MAX).rev().find(|at| text.is_char_boundary(*at)).unwrap_or_default();
        text.truncate(end);
        text.push('…');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_that_is_cut_short_does_not_look_whole() {
        for (whole, cut) in [(VALUE_MAX / 3 - 1, false), (VALUE_MAX / 3, true)] {
            let shown = text(&Shown::Bytes(vec![7; whole].into()));
            assert_eq!((shown.ends_with('…'), shown.starts_with("07 07 ")), (cut, true), "{whole}");
        }
        for (whole, cut) in [(VALUE_MAX, false), (VALUE_MAX + 1, true)] {
            let shown = text(&Shown::Json("7".repeat(whole)));
            assert_eq!((shown.ends_with('…'), shown.len() <= VALUE_MAX + 3), (cut, true), "{whole}");
        }
    }
}
