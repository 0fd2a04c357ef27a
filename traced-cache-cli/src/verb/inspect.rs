//! `inspect`: what each level holds of a key.

use std::fmt::Write;

use serde_json::{Value, json};
use traced_cache::{
    EntryInfo, Inspected, Inspection, LevelOutcome, Opaque, Rendered, Shown, TracedCache, Unreadable,
    config::CachesBuilder,
};

use crate::{
    end::{Exit, Failure},
    options::InspectOptions,
    output::{Output, word},
    session::{LevelAt, Session},
    time::{seconds, short},
};

pub(crate) async fn run(
    builder: CachesBuilder,
    out: Output,
    options: InspectOptions,
) -> Result<Exit, Failure> {
    let InspectOptions { file, cache: name, key, show_value } = options;
    let session = Session::open(builder, &file).await?;
    let cache = session.cache::<Opaque>(&name)?;
    let levels = session.levels(&name);
    // The call itself says what cannot be used.
    let _ = Session::reach(&levels).await;
    let says = schema(&session, &name);
    let inspection = look(&cache, &key, says, show_value).await?;
    let rows: Vec<_> = levels.iter().zip(&inspection.levels).map(|(at, found)| Row { at, found }).collect();
    let answer = json!({
        "cache": name,
        "key": key,
        "served_by": served_by(&inspection).map(|served| served.level + 1),
        "levels": rows.iter().map(Row::json).collect::<Vec<_>>(),
    });
    let mut text = format!("{name} {}", word(&key));
    for row in &rows {
        row.text(&mut text);
    }
    let of_another = |row: &Row<'_>| {
        let is_it = row.found.unreadable == Some(Unreadable::Schema);
        row.found.entry.as_ref().filter(|_| is_it)?.schema
    };
    if let (Some(has), Some(id)) = (rows.iter().find_map(of_another), says) {
        let _ = write!(
            text,
            "\nnote: the file says schema {id}: the application does not read an entry of schema {has}, and loads"
        );
    }
    if !levels.iter().any(LevelAt::is_remote) {
        let _ = write!(text, "\nno level is seen from here: ask the application, or add a remote level");
    }
    out.answer(&answer, text)?;
    Ok(exit(&inspection))
}

/// The schema id of a cache's type, where the file says it: types are not known here.
pub(crate) fn schema(session: &Session, cache: &str) -> Option<u32> {
    session.setting(cache, "schema").and_then(|id| id.parse().ok())
}

/// `schema`: that of the application, which cannot read a value of another one.
pub(crate) async fn look(
    cache: &TracedCache<Opaque>,
    key: &str,
    schema: Option<u32>,
    show_value: bool,
) -> Result<Inspection, Failure> {
    let key = Rendered(key.to_owned());
    let mut inspection = match show_value {
        true => cache.inspect_with_value(key).await?,
        false => cache.inspect(key).await?,
    };
    for found in &mut inspection.levels {
        let has = found.entry.as_ref().filter(|entry| entry.codec.is_some()).and_then(|entry| entry.schema);
        let differs = has.is_some() && schema.is_some() && has != schema;
        if differs && matches!(found.outcome, LevelOutcome::Hit | LevelOutcome::Stale) {
            (found.outcome, found.unreadable) = (LevelOutcome::Unreadable, Some(Unreadable::Schema));
        }
    }
    Ok(inspection)
}

/// The remote level that would answer. The memory level of this process is empty, and says nothing about the application's.
pub(crate) fn served_by(inspection: &Inspection) -> Option<&Inspected> {
    inspection.served_by().filter(|served| !served.in_process)
}

/// What a look at a level has found.
pub(crate) fn exit(inspection: &Inspection) -> Exit {
    let any = |outcome| inspection.levels.iter().any(|at| !at.in_process && at.outcome == outcome);
    if served_by(inspection).is_some() {
        Exit::Done
    } else if any(LevelOutcome::Error) || any(LevelOutcome::Skipped) {
        Exit::Failed
    } else if any(LevelOutcome::Unreadable) {
        Exit::Unreadable
    } else {
        Exit::Missing
    }
}

/// A level and what it holds.
pub(crate) struct Row<'a> {
    pub(crate) at: &'a LevelAt,
    pub(crate) found: &'a Inspected,
}

impl Row<'_> {
    pub(crate) fn json(&self) -> Value {
        let Self { at, found } = self;
        let mut json = json!({
            "level": at.number,
            "provider": at.name,
            "backend": at.backend,
            "address": at.address,
            "state": self.state(),
        });
        let mut add = |name: &str, value: Value| {
            if let (Value::Object(fields), false) = (&mut json, value.is_null()) {
                fields.insert(name.to_owned(), value);
            }
        };
        add("unreadable", json!(found.unreadable.map(Unreadable::as_str)));
        add("error", json!(found.error));
        add("entry", json!(found.entry.as_ref().map(entry)));
        match &found.value {
            Some(Shown::Json(text)) => add("value", value(text)),
            Some(Shown::Bytes(bytes)) => add("value_hex", hex(bytes).into()),
            _ => {}
        }
        json
    }

    /// A word for scripts.
    pub(crate) fn state(&self) -> &'static str {
        match self.found.outcome {
            _ if self.found.in_process => "elsewhere",
            LevelOutcome::Hit => "fresh",
            LevelOutcome::Negative => "absent",
            LevelOutcome::Miss => "nothing",
            LevelOutcome::Skipped => "not_asked",
            other => other.as_str(),
        }
    }

    /// In words.
    fn says(&self) -> String {
        let Self { found, .. } = self;
        match (found.outcome, found.unreadable) {
            _ if found.in_process => "in the memory of each process, which is not seen from here".to_owned(),
            (LevelOutcome::Hit, _) => "fresh".to_owned(),
            (LevelOutcome::Stale, _) => "stale: a fallback, should a load fail".to_owned(),
            (LevelOutcome::Negative, _) => "a remembered absence".to_owned(),
            (LevelOutcome::Miss, _) => "nothing".to_owned(),
            (LevelOutcome::Expired, _) => "its time is over".to_owned(),
            (LevelOutcome::Invalidated, _) => "invalidated: by a tag, or with its cache".to_owned(),
            (LevelOutcome::Unreadable, Some(reason)) => format!("unreadable: {}", why(reason)),
            (outcome, _) => match &found.error {
                Some(error) => format!("no answer: {error}"),
                None => outcome.as_str().to_owned(),
            },
        }
    }

    fn text(&self, out: &mut String) {
        // Writing to a string cannot fail.
        let _ = write!(out, "\n{}: {}", self.at.place(), self.says());
        if let Some(entry) = &self.found.entry {
            for line in described(entry) {
                let _ = write!(out, "\n  {line}");
            }
        }
        match &self.found.value {
            Some(Shown::Json(text)) => {
                let _ = write!(out, "\n  value {text}");
            }
            Some(Shown::Bytes(bytes)) => {
                let _ = write!(out, "\n  value, {} bytes in hexadecimal digits: {}", bytes.len(), hex(bytes));
            }
            _ => {}
        }
    }
}

/// What an entry is, a line for each side of it.
fn described(entry: &EntryInfo) -> Vec<String> {
    let mut times = Vec::new();
    times.extend(entry.age.map(|age| format!("age {}", short(age))));
    times.extend(entry.fresh_for.map(|left| format!("fresh for {}", short(left))));
    times.extend(entry.usable_for.map(|left| format!("usable for {}", short(left))));
    let mut size = Vec::new();
    size.extend(entry.bytes.map(|bytes| format!("{bytes} bytes")));
    if let Some(bytes) = entry.value_bytes {
        size.push(format!(
            "value {bytes} bytes{}",
            entry.codec.map(|c| format!(" of {c}")).unwrap_or_default()
        ));
    } else {
        size.extend(entry.codec.map(str::to_owned));
    }
    size.extend(entry.compression.map(str::to_owned));
    size.extend(entry.encrypted.then(|| "encrypted".to_owned()));
    size.extend(entry.schema.map(|schema| format!("schema {schema}")));
    let mut origin = Vec::new();
    if let Some(id) = entry.id {
        origin.push(format!("id {:016x}", id.0));
        origin.push(match entry.by_set {
            true => "made by a set".to_owned(),
            false => format!("made by a load of {}", short(entry.cost)),
        });
    }
    origin
        .extend(entry.stamp.map(|stamp| format!("epoch {:016x}, sequence {}", stamp.epoch, stamp.sequence)));
    origin.extend(entry.etag.as_ref().map(|etag| format!("etag {}", word(etag))));
    let mut lines: Vec<String> =
        [times, size, origin].into_iter().filter(|l| !l.is_empty()).map(|l| l.join(", ")).collect();
    if !entry.tags.is_empty() {
        let tags: Vec<_> = entry.tags.iter().map(|tag| word(tag)).collect();
        lines.push(format!("tags {}", tags.join(", ")));
    }
    lines
}

pub(crate) fn entry(entry: &EntryInfo) -> Value {
    json!({
        "age_seconds": entry.age.and_then(seconds),
        "fresh_for_seconds": entry.fresh_for.and_then(seconds),
        "usable_for_seconds": entry.usable_for.and_then(seconds),
        // An entry without a name of its own cannot say where it is from.
        "load_seconds": entry.id.map(|_| entry.cost.as_secs_f64()),
        "made_by": entry.id.map(|_| if entry.by_set { "set" } else { "load" }),
        "tags": entry.tags,
        "etag": entry.etag,
        "bytes": entry.bytes,
        "value_bytes": entry.value_bytes,
        "codec": entry.codec,
        "compression": entry.compression,
        "encrypted": entry.encrypted,
        "schema": entry.schema,
        "id": entry.id.map(|id| format!("{:016x}", id.0)),
        "epoch": entry.stamp.map(|stamp| format!("{:016x}", stamp.epoch)),
        "sequence": entry.stamp.map(|stamp| stamp.sequence),
    })
}

fn why(reason: Unreadable) -> &'static str {
    match reason {
        Unreadable::Foreign => "written by another program",
        Unreadable::Version => "written by a release with another wire format",
        Unreadable::Corrupt => "damaged, cut short, or copied from another key",
        Unreadable::Codec => "its codec or compression is not compiled in here",
        Unreadable::Schema => "of another schema id",
        Unreadable::Payload => "the value does not decode",
        Unreadable::TooLarge => "larger than the level's limit",
        Unreadable::NoKey => "encrypted, and its key is not in the file",
        Unreadable::NotAuthentic => {
            "changed since it was encrypted, moved here, or in the clear where values are encrypted"
        }
        other => other.as_str(),
    }
}

/// Parses what is known to be valid JSON.
pub(crate) fn value(json: &str) -> Value {
    serde_json::from_str(json).unwrap_or(Value::Null)
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut out, byte| {
        let _ = write!(out, "{byte:02x}");
        out
    })
}
