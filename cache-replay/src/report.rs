//! What a replay found, for people and for programs.

use std::{collections::BTreeMap, fmt, time::Duration};

use cache_core::{LevelOutcome, LevelSnapshot, Snapshot};
use comfy_table::{CellAlignment, Table, presets::UTF8_FULL_CONDENSED};
use serde::Serialize;

use crate::{Asked, Latencies, Quantiles};

/// All numbers of a replay. `hits + misses = requests`; waiting for another's load is a miss, too.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct Report {
    /// Look-ups in all.
    pub requests: u64,
    /// Different keys.
    pub distinct: u64,
    /// Those served fresh by a level.
    pub hits: u64,
    /// All others.
    pub misses: u64,
    /// Misses that waited for another's load.
    pub coalesced: u64,
    /// Hits over look-ups, 0 to 1.
    pub hit_rate: f64,
    /// Hits by level, nearest first.
    pub hits_by_level: Vec<u64>,
    /// Loads that ended.
    pub loads: u64,
    /// Look-ups without a load of their own.
    pub loads_avoided: u64,
    /// How long it took.
    pub seconds: f64,
    /// Throughput.
    pub requests_per_second: f64,
    /// The levels, nearest first.
    pub levels: Vec<LevelReport>,
    /// By outcome.
    pub latency_micros: BTreeMap<String, LatencyReport>,
}

/// What one level did.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct LevelReport {
    /// What it stands on: `memory`, `redis`, ...
    pub system: &'static str,
    /// Keys that it had fresh.
    pub hits: u64,
    /// Keys that it did not have.
    pub misses: u64,
    /// Keys that it failed to answer for.
    pub errors: u64,
    /// Keys that it was not asked for, after failures.
    pub skipped: u64,
    /// Entries that it let go.
    pub evicted: u64,
    /// Entries held at the end, where it is in process.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub entries: Option<u64>,
}

/// How long look-ups that ended in one way took.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct LatencyReport {
    /// How many were timed.
    pub timed: u64,
    /// Half of them took no longer, in microseconds.
    pub p50: f64,
    /// 99 of 100.
    pub p99: f64,
    /// 999 of 1,000.
    pub p99_9: f64,
}

/// The cache's counts and the requests that were made do not agree, which must never be.
#[derive(Debug)]
pub struct Disagree {
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
    /// Of what was asked and what the cache has counted. `systems`: what its levels stand on, nearest first.
    ///
    /// # Errors
    /// The two do not agree.
    pub fn new(
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
            latency_micros: latencies.quantiles().iter().map(|(row, q)| (row.name(), (*q).into())).collect(),
        })
    }

    /// Tables for people.
    pub fn tables(&self) -> String {
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

#[allow(clippy::cast_precision_loss, reason = "shares for people; counts stay far below 2^53")]
fn float(n: u64) -> f64 {
    n as f64
}

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a rate, never negative")]
fn grouped_float(x: f64) -> String {
    grouped(x.round() as u64)
}

/// With a comma between each three digits.
fn grouped(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::with_capacity(digits.len() * 4 / 3);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// An empty table; its columns but the first hold numbers.
fn table(head: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(UTF8_FULL_CONDENSED).set_header(head.iter().copied());
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}
