//! What a replay found, for people and for programs.

use std::{collections::BTreeMap, fmt, time::Duration};

use serde::Serialize;
use traced_cache::{LevelOutcome, LevelSnapshot, Snapshot};

use crate::{
    latency::{Latencies, Quantiles, Row},
    options::Options,
    run::Asked,
    table::table,
};

/// All numbers of a replay. `hits + misses = requests`; waiting for another's load is a miss, too.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    requests: u64,
    distinct: u64,
    hits: u64,
    misses: u64,
    coalesced: u64,
    hit_rate: f64,
    hits_by_level: Vec<u64>,
    loads: u64,
    loads_avoided: u64,
    seconds: f64,
    requests_per_second: f64,
    levels: Vec<LevelReport>,
    capacity: u64,
    engine: &'static str,
    threads: usize,
    /// By outcome.
    latency_micros: BTreeMap<String, LatencyReport>,
}

#[derive(Debug, Serialize)]
struct LevelReport {
    system: &'static str,
    hits: u64,
    misses: u64,
    errors: u64,
    skipped: u64,
    evicted: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    entries: Option<u64>,
}

#[derive(Debug, Serialize)]
struct LatencyReport {
    timed: u64,
    p50: f64,
    p99: f64,
    p99_9: f64,
}

/// The cache's counts and the requests that were made do not agree, which must never be.
#[derive(Debug)]
pub(crate) struct Disagree {
    requests: u64,
    counted: u64,
}

impl fmt::Display for Disagree {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { requests, counted } = self;
        write!(f, "{requests} requests were made, but the cache counted {counted}: please report this")
    }
}

impl std::error::Error for Disagree {}

impl Report {
    pub(crate) fn new(
        options: &Options,
        asked: Asked,
        stats: &Snapshot,
        latencies: &Latencies,
        systems: &[&'static str],
    ) -> Result<Self, Disagree> {
        let Asked { requests, distinct, elapsed } = asked;
        if stats.lookups() != requests {
            return Err(Disagree { requests, counted: stats.lookups() });
        }
        let hits = stats.hits();
        let seconds = elapsed.as_secs_f64();
        let systems = systems.iter().zip(&stats.levels);
        Ok(Self {
            requests,
            distinct,
            hits,
            misses: requests - hits,
            coalesced: stats.coalesced(),
            hit_rate: stats.hit_rate().unwrap_or_default(),
            hits_by_level: (0..stats.levels.len()).map(|level| stats.hits_at(level)).collect(),
            loads: stats.loads,
            loads_avoided: requests.saturating_sub(stats.loads),
            seconds,
            requests_per_second: float(requests) / seconds.max(f64::MIN_POSITIVE),
            levels: systems.map(|(system, level)| LevelReport::new(system, level)).collect(),
            capacity: options.capacity,
            engine: options.engine.as_str(),
            threads: options.threads(),
            latency_micros: latencies.quantiles().iter().map(|(row, q)| (row.name(), (*q).into())).collect(),
        })
    }

    /// Tables for people.
    pub(crate) fn tables(&self) -> String {
        let share = |part: u64| format!("{:.2} %", 100.0 * float(part) / float(self.requests.max(1)));
        let mut counts = table(&["", "count", "of requests"]);
        let mut count = |name: &str, n: u64, of: String| {
            counts.add_row([name.to_owned(), grouped(n), of]);
        };
        count("requests", self.requests, String::new());
        count("distinct keys", self.distinct, share(self.distinct));
        for (at, (level, hits)) in self.levels.iter().zip(&self.hits_by_level).enumerate() {
            count(&format!("hits in L{} ({})", at + 1, level.system), *hits, share(*hits));
        }
        count("hits in all", self.hits, share(self.hits));
        count("misses", self.misses, share(self.misses));
        count("... that waited for another's load", self.coalesced, share(self.coalesced));
        count("loads", self.loads, share(self.loads));
        count("loads avoided", self.loads_avoided, share(self.loads_avoided));
        for (at, level) in self.levels.iter().enumerate() {
            if level.errors + level.skipped > 0 {
                let name = format!("L{} ({}) failed or was left alone", at + 1, level.system);
                count(&name, level.errors + level.skipped, share(level.errors + level.skipped));
            }
        }

        let mut times = table(&["outcome", "p50", "p99", "p99.9", "timed"]);
        for (name, row) in &self.latency_micros {
            let time = |micros: f64| format!("{:.1?}", Duration::from_secs_f64(micros / 1e6));
            times.add_row([name.clone(), time(row.p50), time(row.p99), time(row.p99_9), grouped(row.timed)]);
        }
        format!(
            "{counts}\n\nHit rate {:.4}. {:.2} s, {} requests a second.\n\n{times}\n\
             Hits in memory are timed as a sample of one in 256, everything else in full.\n",
            self.hit_rate,
            self.seconds,
            grouped_float(self.requests_per_second),
        )
    }
}

impl LevelReport {
    fn new(system: &'static str, level: &LevelSnapshot) -> Self {
        Self {
            system,
            hits: level.outcome(LevelOutcome::Hit),
            misses: level.outcome(LevelOutcome::Miss),
            errors: level.outcome(LevelOutcome::Error),
            skipped: level.outcome(LevelOutcome::Skipped),
            evicted: level.evicted_size + level.evicted_expired,
            entries: level.entries,
        }
    }
}

impl From<Quantiles> for LatencyReport {
    fn from(quantiles: Quantiles) -> Self {
        let micros = |time: Duration| time.as_secs_f64() * 1e6;
        let Quantiles { timed, p50, p99, p999 } = quantiles;
        Self { timed, p50: micros(p50), p99: micros(p99), p99_9: micros(p999) }
    }
}

impl Row {
    fn name(self) -> String {
        match self {
            Self::Hit(level) => format!("hit_l{}", level + 1),
            Self::Miss => "miss".to_owned(),
            Self::Coalesced => "coalesced".to_owned(),
            Self::Other => "other".to_owned(),
            Self::Load => "load".to_owned(),
        }
    }
}

#[allow(clippy::cast_precision_loss, reason = "shares for people; counts stay far below 2^53")]
fn float(n: u64) -> f64 {
    n as f64
}

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a rate, never negative")]
fn grouped_float(x: f64) -> String {
    grouped(x.round() as u64)
}

fn grouped(n: u64) -> String {
    indicatif::HumanCount(n).to_string()
}
