//! What a run came to, beside what the service counted meanwhile.

use std::{collections::BTreeMap, fmt};

use serde::Serialize;
use serde_json::Value;

use crate::run::Done;

#[derive(Serialize)]
pub(crate) struct Report {
    seconds: f64,
    requests: u64,
    per_second: f64,
    unanswered: u64,
    statuses: BTreeMap<u16, u64>,
    latency_us: Latency,
    cache: Cache,
}

#[derive(Serialize)]
struct Latency {
    p50: u64,
    p95: u64,
    p99: u64,
    max: u64,
}

/// Of the cache of airports, during the run.
#[derive(Serialize)]
struct Cache {
    lookups: u64,
    hits: u64,
    stale: u64,
    negative: u64,
    coalesced: u64,
    misses: u64,
    loads: u64,
    hit_rate: Option<f64>,
    time_saved_s: f64,
}

impl Report {
    pub(crate) fn new(done: &Done, before: &Value, after: &Value) -> Self {
        let at = |quantile| done.latencies.value_at_quantile(quantile);
        let answered: u64 = done.statuses.values().sum();
        let count = |name: &str| {
            let of = |all: &Value| all[name].as_u64().unwrap_or_default();
            // A service that was started anew in between counts from zero.
            of(after).saturating_sub(of(before))
        };
        let time = |all: &Value| all["time_saved_s"].as_f64().unwrap_or_default();
        let (lookups, hits) = (count("lookups"), count("hits"));
        #[allow(clippy::cast_precision_loss, reason = "for people")]
        let (hit_rate, per_second) = (
            (lookups > 0).then(|| hits as f64 / lookups as f64),
            answered as f64 / done.took.as_secs_f64().max(f64::EPSILON),
        );
        Self {
            seconds: done.took.as_secs_f64(),
            requests: answered + done.unanswered,
            per_second,
            unanswered: done.unanswered,
            statuses: done.statuses.clone(),
            latency_us: Latency { p50: at(0.5), p95: at(0.95), p99: at(0.99), max: done.latencies.max() },
            cache: Cache {
                lookups,
                hits,
                stale: count("stale"),
                negative: count("negative"),
                coalesced: count("coalesced"),
                misses: count("misses"),
                loads: count("loads"),
                hit_rate,
                time_saved_s: (time(after) - time(before)).max(0.0),
            },
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { seconds, requests, per_second, unanswered, statuses, latency_us, cache } = self;
        let Latency { p50, p95, p99, max } = latency_us;
        writeln!(f, "{requests} requests in {seconds:.1} s, {per_second:.0} answers a second")?;
        for (status, count) in statuses {
            writeln!(f, "  {count} answered {status}")?;
        }
        if *unanswered > 0 {
            writeln!(f, "  {unanswered} had no answer")?;
        }
        writeln!(f, "latency  p50 {p50} µs, p95 {p95} µs, p99 {p99} µs, longest {max} µs")?;
        let Cache { lookups, hits, stale, negative, coalesced, misses, loads, hit_rate, time_saved_s } =
            cache;
        let percent = hit_rate.map_or_else(|| "-".to_owned(), |rate| format!("{:.1} %", rate * 100.0));
        writeln!(
            f,
            "cache    {lookups} look-ups: {hits} hits ({percent}), {stale} stale, {negative} absent, {coalesced} waited, \
             {misses} misses; {loads} loads, {time_saved_s:.1} s of loads saved"
        )
    }
}
