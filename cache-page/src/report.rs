//! What is said of caches, as JSON has it and the page is made of. Names are those of `cache.*` metrics where there are such.

use std::{collections::BTreeMap, time::Duration};

use cache_core::{
    LevelInfo, LevelOutcome, LevelSnapshot, Outcome, Snapshot,
    figures::{mean, share},
};
use serde::Serialize;

use crate::{
    Page,
    estimate::FACTORS,
    history::{Point, STEP},
    watched::{Watched, lock},
};

/// Counts by a word; those that are zero are left out.
pub(crate) type Counts = BTreeMap<&'static str, u64>;

/// Points of a chart.
const CHART: usize = 180;
/// Steps that make up what is said of now.
const NOW: usize = 5;

/// All caches.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    pub(crate) title: String,
    /// How long they have been watched.
    pub(crate) watched_s: u64,
    pub(crate) caches: Vec<Cache>,
}

/// One cache. Counts are since it was built.
#[derive(Debug, Serialize)]
pub(crate) struct Cache {
    pub(crate) name: String,
    pub(crate) lookups: u64,
    pub(crate) hits: u64,
    pub(crate) stale: u64,
    pub(crate) negative: u64,
    pub(crate) coalesced: u64,
    pub(crate) misses: u64,
    pub(crate) hit_rate: Option<f64>,
    pub(crate) miss_reasons: Counts,
    pub(crate) operations: Counts,
    pub(crate) errors: u64,
    pub(crate) errors_by_kind: Counts,
    pub(crate) loads: u64,
    pub(crate) load_errors: u64,
    pub(crate) load_mean_us: Option<f64>,
    pub(crate) loads_active: u64,
    pub(crate) fills_overtaken: u64,
    pub(crate) time_saved_s: f64,
    pub(crate) invalidations: Counts,
    pub(crate) journal: Journal,
    pub(crate) backplane: Option<Backplane>,
    /// Of the last ten seconds.
    pub(crate) now: Now,
    /// Who served look-ups.
    pub(crate) served: Vec<Served>,
    /// Of the last one to two minutes.
    pub(crate) latency: Vec<Latency>,
    pub(crate) levels: Vec<Level>,
    pub(crate) history: History,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) details: Option<Details>,
}

/// What is said only of a cache that is looked at alone.
#[derive(Debug, Serialize)]
pub(crate) struct Details {
    /// What it runs under; nothing where the page was not shown the cache.
    pub(crate) policy: Vec<Setting>,
    pub(crate) hot_keys: Vec<HotKey>,
    pub(crate) estimate: Option<Estimate>,
}

#[derive(Debug, Serialize)]
pub(crate) struct Setting {
    pub(crate) name: &'static str,
    pub(crate) value: String,
}

/// What levels have not acknowledged.
#[derive(Debug, Serialize)]
pub(crate) struct Journal {
    pub(crate) pending: u64,
    pub(crate) values_stored: u64,
    pub(crate) values_lost: u64,
}

#[derive(Debug, Serialize)]
pub(crate) struct Backplane {
    pub(crate) sent: u64,
    pub(crate) received: u64,
    pub(crate) noise: u64,
    pub(crate) gaps: u64,
}

#[derive(Debug, Serialize)]
pub(crate) struct Now {
    pub(crate) seconds: u64,
    pub(crate) lookups_per_s: f64,
    pub(crate) loads_per_s: f64,
    pub(crate) errors: u64,
    pub(crate) hit_rate: Option<f64>,
}

#[derive(Debug, Serialize)]
pub(crate) struct Served {
    /// `l1`, `l2`, ..., `coalesced` for another call's load, `miss` for a load of its own, or nothing.
    pub(crate) by: String,
    pub(crate) lookups: u64,
    /// Of all look-ups, 0 to 1.
    pub(crate) share: f64,
}

#[derive(Debug, Serialize)]
pub(crate) struct Latency {
    pub(crate) outcome: &'static str,
    pub(crate) level: Option<String>,
    /// Hits in memory are timed 1 in 256, and counted as 256.
    pub(crate) count: u64,
    pub(crate) mean_us: f64,
    pub(crate) p50_us: f64,
    pub(crate) p95_us: f64,
    pub(crate) p99_us: f64,
}

#[derive(Debug, Serialize)]
pub(crate) struct Level {
    pub(crate) level: String,
    pub(crate) system: &'static str,
    pub(crate) address: Option<String>,
    pub(crate) in_process: bool,
    pub(crate) asked: u64,
    pub(crate) outcomes: Counts,
    pub(crate) hit_rate: Option<f64>,
    pub(crate) faults: Counts,
    pub(crate) unreadable: Counts,
    pub(crate) unsent: u64,
    /// Nothing where it is not in process: that evicts unseen.
    pub(crate) evictions: Option<Evictions>,
    /// Of all caches in its store.
    pub(crate) entries: Option<u64>,
    pub(crate) bytes: Option<u64>,
    /// Bytes where there are `bytes`, else entries.
    pub(crate) capacity: Option<u64>,
    /// Nothing where it is in process.
    pub(crate) breaker: Option<&'static str>,
    pub(crate) breaker_openings: u64,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) settings: Vec<Setting>,
}

#[derive(Debug, Serialize)]
pub(crate) struct Evictions {
    pub(crate) size: u64,
    pub(crate) expired: u64,
}

#[derive(Debug, Serialize)]
pub(crate) struct History {
    /// What a point sums up.
    pub(crate) step_s: u64,
    /// Oldest first.
    pub(crate) points: Vec<Point>,
}

#[derive(Debug, Serialize)]
pub(crate) struct HotKey {
    /// What may be shown of it; else it is only told from others by `id`.
    pub(crate) key: Option<String>,
    pub(crate) id: String,
    /// Of all look-ups of late, 0 to 1.
    pub(crate) share: f64,
}

/// What memory would serve if there were more or less of it.
#[derive(Debug, Serialize)]
pub(crate) struct Estimate {
    /// The share of keys that it is taken from, 0 to 1.
    pub(crate) keys: f64,
    pub(crate) lookups: u64,
    pub(crate) sizes: Vec<Size>,
}

#[derive(Debug, Serialize)]
pub(crate) struct Size {
    pub(crate) factor: f64,
    pub(crate) hit_rate: f64,
}

pub(crate) fn micros(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e7).round() / 10.0
}

fn counts<W>(counts: &[(W, u64)], word: impl Fn(&W) -> &'static str) -> Counts {
    counts.iter().filter(|(_, count)| *count > 0).map(|(what, count)| (word(what), *count)).collect()
}

fn size(count: usize) -> u64 {
    u64::try_from(count).unwrap_or(u64::MAX)
}

impl Page {
    pub(crate) fn report(&self) -> Report {
        Report {
            title: self.0.options.title.clone(),
            watched_s: self.0.started.elapsed().as_secs(),
            caches: self.all().iter().filter_map(|watched| Cache::of(watched, false)).collect(),
        }
    }
}

impl Cache {
    /// `None`: it is gone.
    pub(crate) fn of(watched: &Watched, details: bool) -> Option<Self> {
        let stats = watched.stats.upgrade()?;
        let snapshot = stats.snapshot();
        let infos = stats.info().levels();
        let settings = watched.shown().filter(|_| details).map(|shown| shown.settings());
        let lookups = snapshot.lookups();
        let mut levels: Vec<_> =
            snapshot.levels.iter().zip(infos).map(|(level, info)| Level::of(level, info)).collect();
        let policy = settings.map_or_else(Vec::new, |settings| {
            for (level, runs) in levels.iter_mut().zip(settings.levels) {
                // It may have moved since.
                level.address = runs.provider.place();
                level.settings = named(runs.settings);
            }
            named(settings.policy)
        });
        Some(Self {
            name: watched.name.to_string(),
            lookups,
            hits: snapshot.hits(),
            stale: snapshot.outcome(Outcome::Stale),
            negative: snapshot.outcome(Outcome::Absent),
            coalesced: snapshot.coalesced(),
            misses: snapshot.misses(),
            hit_rate: snapshot.hit_rate(),
            miss_reasons: counts(&snapshot.miss_reasons, |reason| reason.as_str()),
            operations: counts(&snapshot.operations, |verb| verb.as_str()),
            errors: snapshot.errors.iter().map(|(_, count)| count).sum(),
            errors_by_kind: counts(&snapshot.errors, |kind| kind.as_str()),
            loads: snapshot.loads,
            load_errors: snapshot.load_errors,
            load_mean_us: mean(snapshot.load_time, snapshot.loads).map(micros),
            loads_active: size(snapshot.flights),
            fills_overtaken: snapshot.overtaken,
            time_saved_s: snapshot.time_saved.as_secs_f64(),
            invalidations: counts(&snapshot.invalidations, |scope| scope.as_str()),
            journal: Journal {
                pending: size(snapshot.pending),
                values_stored: snapshot.stored_late,
                values_lost: snapshot.values_lost,
            },
            backplane: snapshot.backplane.map(|seen| Backplane {
                sent: seen.sent,
                received: seen.received,
                noise: seen.noise,
                gaps: seen.gaps,
            }),
            now: now(watched),
            served: served(&snapshot, infos),
            latency: latency(watched, infos),
            levels,
            history: history(watched),
            details: details.then(|| Details {
                policy,
                hot_keys: hot_keys(watched),
                estimate: estimate(watched),
            }),
        })
    }
}

fn named(settings: Vec<(&'static str, String)>) -> Vec<Setting> {
    settings.into_iter().map(|(name, value)| Setting { name, value }).collect()
}

fn now(watched: &Watched) -> Now {
    let (sum, took) = lock(&watched.history).recent(NOW);
    #[allow(clippy::cast_precision_loss, reason = "a ratio for people")]
    let per_s = |count: u64| count as f64 / took.as_secs_f64().max(STEP.as_secs_f64());
    Now {
        seconds: took.as_secs(),
        lookups_per_s: per_s(sum.lookups),
        loads_per_s: per_s(sum.loads),
        errors: sum.errors,
        hit_rate: sum.hit_rate(),
    }
}

fn history(watched: &Watched) -> History {
    let (points, step) = lock(&watched.history).points(CHART);
    History { step_s: step.as_secs(), points }
}

fn served(snapshot: &Snapshot, levels: &[LevelInfo]) -> Vec<Served> {
    let all = snapshot.lookups();
    let at = |level: usize| -> u64 {
        snapshot.served.iter().filter(|s| s.level == Some(level)).map(|s| s.count).sum()
    };
    let by_levels =
        levels.iter().enumerate().map(|(at_level, level)| (level.position.to_string(), at(at_level)));
    let others = [("coalesced", snapshot.coalesced()), ("miss", snapshot.misses())];
    by_levels
        .chain(others.map(|(by, count)| (by.to_owned(), count)))
        .map(|(by, lookups)| Served { by, lookups, share: share(lookups, all).unwrap_or_default() })
        .collect()
}

fn latency(watched: &Watched, levels: &[LevelInfo]) -> Vec<Latency> {
    let position = |level: u8| levels.get(usize::from(level)).map(|level| level.position.to_string());
    let rows = watched.latencies.read().into_iter();
    rows.map(|(what, times)| Latency {
        outcome: what.word,
        level: what.level.and_then(position),
        count: times.count,
        mean_us: micros(times.mean),
        p50_us: micros(times.p50),
        p95_us: micros(times.p95),
        p99_us: micros(times.p99),
    })
    .collect()
}

fn hot_keys(watched: &Watched) -> Vec<HotKey> {
    let top = lock(&watched.hot).top().into_iter();
    top.map(|hot| HotKey {
        key: hot.name.map(String::from),
        id: format!("{:08x}", hot.hash >> 32),
        share: hot.share,
    })
    .collect()
}

fn estimate(watched: &Watched) -> Option<Estimate> {
    let store = watched.store.as_ref().filter(|store| store.is_known())?;
    let tally = *lock(&watched.tally);
    let rates = tally.rates()?;
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a count")]
    let lookups = tally.followed() as u64;
    let sizes = FACTORS.into_iter().zip(rates).map(|(factor, hit_rate)| Size { factor, hit_rate });
    Some(Estimate { keys: lock(&store.estimator).share(), lookups, sizes: sizes.collect() })
}

impl Level {
    fn of(level: &LevelSnapshot, info: &LevelInfo) -> Self {
        let asked = level.lookups();
        Self {
            level: info.position.to_string(),
            system: info.provider.system,
            address: info.provider.place(),
            in_process: info.in_process,
            asked,
            outcomes: counts(&level.outcomes, |outcome| outcome.as_str()),
            hit_rate: share(level.outcome(LevelOutcome::Hit), asked),
            faults: counts(&level.faults, |fault| fault.as_str()),
            unreadable: counts(&level.unreadable, |reason| reason.as_str()),
            unsent: level.too_large + level.not_encoded,
            evictions: info
                .in_process
                .then_some(Evictions { size: level.evicted_size, expired: level.evicted_expired }),
            entries: level.entries,
            bytes: level.weight,
            capacity: level.capacity,
            breaker: (!info.in_process).then(|| level.breaker.as_str()),
            breaker_openings: level.breaker_opened,
            settings: Vec::new(),
        }
    }
}
