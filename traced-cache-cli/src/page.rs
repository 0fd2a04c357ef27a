//! Reads the JSON of `cache-page`'s page, for services without metrics for Prometheus.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::counts::{Caches, Counts, Level, Times};

#[derive(Deserialize)]
struct Report {
    caches: Vec<Cache>,
}

#[derive(Deserialize)]
struct Cache {
    name: String,
    hits: f64,
    stale: f64,
    negative: f64,
    coalesced: f64,
    misses: f64,
    errors: f64,
    loads: f64,
    load_errors: f64,
    load_mean_us: Option<f64>,
    time_saved_s: f64,
    invalidations: BTreeMap<String, f64>,
    journal: Journal,
    levels: Vec<PageLevel>,
}

#[derive(Deserialize)]
struct Journal {
    pending: f64,
    #[serde(default)]
    values_stored: f64,
    #[serde(default)]
    values_lost: f64,
}

#[derive(Deserialize)]
struct PageLevel {
    level: String,
    outcomes: BTreeMap<String, f64>,
    faults: BTreeMap<String, f64>,
    #[serde(default)]
    unsent: f64,
    evictions: Option<Evictions>,
    entries: Option<f64>,
    bytes: Option<f64>,
    breaker: Option<String>,
}

#[derive(Deserialize)]
struct Evictions {
    size: f64,
    expired: f64,
}

/// All caches of the page, or the one that it is about; `None` if this is not such a page.
pub(crate) fn read(text: &str) -> Option<Caches> {
    let caches = match serde_json::from_str::<Report>(text) {
        Ok(report) => report.caches,
        Err(_) => vec![serde_json::from_str::<Cache>(text).ok()?],
    };
    Some(caches.into_iter().map(Cache::into_counts).collect())
}

impl Cache {
    fn into_counts(self) -> (String, Counts) {
        let served = [
            ("hit", self.hits),
            ("stale", self.stale),
            ("negative", self.negative),
            ("coalesced", self.coalesced),
            ("miss", self.misses),
        ];
        let hits_at = self.levels.iter().map(|level| {
            let hits = level.outcomes.get("hit").copied().unwrap_or_default();
            (level.level.clone(), hits)
        });
        let counts = Counts {
            served: served.map(|(result, count)| (result.to_owned(), count)).into(),
            hits_at: hits_at.collect(),
            errors: self.errors,
            loads: self.loads,
            load_errors: self.load_errors,
            invalidations: self.invalidations.values().sum(),
            saved: self.time_saved_s,
            pending: self.journal.pending,
            stored_late: self.journal.values_stored,
            lost: self.journal.values_lost,
            // The page's histograms cover the last minute or two, so the difference of two readings means nothing.
            lookup_times: Times::default(),
            load_times: Times::of_mean(self.load_mean_us.unwrap_or_default() / 1e6, self.loads),
            levels: self.levels.into_iter().map(PageLevel::into_level).collect(),
        };
        (self.name, counts)
    }
}

impl PageLevel {
    fn into_level(self) -> (String, Level) {
        let level = Level {
            answers: self.outcomes,
            errors: self.faults.values().sum(),
            unsent: self.unsent,
            evicted: self.evictions.map_or(0.0, |evicted| evicted.size + evicted.expired),
            entries: self.entries,
            bytes: self.bytes,
            breaker: self.breaker,
        };
        (self.level, level)
    }
}
