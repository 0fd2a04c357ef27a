//! `bench`: what each level of a cache takes, from this machine.

use std::{
    fmt::Write,
    ops::Range,
    sync::Arc,
    time::{Duration, Instant},
};

use futures::future::join_all;
use hdrhistogram::Histogram;
use serde::Serialize;
use serde_json::{Value, json};
use tokio::task::JoinSet;
use traced_cache::{Delivery, Error, MissReason, Snapshot, TracedCache, config::CachesBuilder, ok};

use super::left::{self, PATIENCE};
use crate::{
    end::{Exit, Failure},
    options::BenchOptions,
    output::Output,
    session::{LevelAt, Session, own_name},
    time::FOREVER,
    view,
};

/// Keys per batch call.
const BATCH: u64 = 100;
/// Most bytes of all batches under way at once.
const AT_ONCE_MAX: u64 = 1 << 30;
/// Most keys, and most bytes of their values, in one call that stores or removes them before and after the measurement.
const CHUNK: usize = 500;
const CHUNK_BYTES: usize = 2 << 20;
/// How many different values there are, if they are small.
const VALUES: usize = 16;
/// Calls that a caller makes before it looks at the shared clock, and lets others run.
const TURN: u64 = 64;
/// The longest time that the histogram can tell from longer ones, in nanoseconds.
const SLOWEST: u64 = 60_000_000_000;

/// What a caller has counted. `None`: it keeps no histogram.
type Made = Option<Calls>;

struct Calls {
    made: u64,
    /// Calls that ended with an error, and writes that some level has not acknowledged.
    unheard: u64,
    times: Histogram<u64>,
}

/// What is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Call {
    Get,
    GetNothing,
    GetMany,
    Set,
    GetOrSet,
    Invalidate,
}

impl Call {
    /// What is measured on one level. Invalidations come last: they leave nothing to read.
    const OF_LEVEL: [Self; 5] = [Self::Get, Self::GetNothing, Self::GetMany, Self::Set, Self::Invalidate];

    const fn as_str(self) -> &'static str {
        match self {
            Self::Get => "get",
            Self::GetNothing => "get_nothing",
            Self::GetMany => "get_many_100",
            Self::Set => "set",
            Self::GetOrSet => "get_or_set",
            Self::Invalidate => "invalidate",
        }
    }

    /// Makes one call. A read counts as confirmed: what levels failed to answer, the cache counts itself.
    async fn make(self, cache: &TracedCache<String>, load: &Arc<Load>) -> Result<Delivery, Error> {
        let key = fastrand::u64(..load.keys);
        let read = match self {
            Self::Set => return cache.set(key, load.value(key)).await,
            Self::Invalidate => return cache.invalidate(key).await,
            Self::Get => cache.get(key).await.map(drop),
            Self::GetNothing => cache.get(load.keys + key).await.map(drop),
            Self::GetMany => cache.get_many((0..BATCH).map(|_| fastrand::u64(..load.keys))).await.map(drop),
            Self::GetOrSet => {
                let make = |load: Arc<Load>, key: u64| async move { ok(load.value(key)) };
                cache.get_or_set_with(key, load, make).await.map(drop)
            }
        };
        read.map(|()| Delivery::Confirmed)
    }

    /// Keys per call.
    const fn keys(self) -> u64 {
        if matches!(self, Self::GetMany) { BATCH } else { 1 }
    }
}

/// What calls are made with.
#[derive(Debug)]
struct Load {
    keys: u64,
    values: Vec<Arc<String>>,
    callers: u16,
    each: Duration,
}

impl Load {
    fn new(options: &BenchOptions) -> Self {
        let bytes = usize::try_from(options.value_bytes).unwrap_or(usize::MAX);
        let different = (CHUNK_BYTES / bytes).clamp(1, VALUES);
        let values = (0..different).map(|_| Arc::new(words(bytes))).collect();
        Self { keys: options.keys, values, callers: options.callers, each: options.each }
    }

    fn value(&self, key: u64) -> Arc<String> {
        let at = usize::try_from(key).unwrap_or_default() % self.values.len();
        Arc::clone(&self.values[at])
    }

    /// All keys, in chunks for one call each.
    fn chunks(&self) -> impl Iterator<Item = Range<u64>> {
        let bytes = self.values.first().map_or(1, |value| value.len()).max(1);
        let size = (CHUNK_BYTES / bytes).clamp(1, CHUNK);
        (0..self.keys).step_by(size).map(move |start| start..(start + size as u64).min(self.keys))
    }
}

/// A text that compresses about as well as records do.
fn words(bytes: usize) -> String {
    let mut text = String::with_capacity(bytes + 16);
    while text.len() < bytes {
        let length = fastrand::usize(2..9);
        text.extend((0..length).map(|_| fastrand::lowercase()));
        text.push(' ');
        // Words come again, as they do in records.
        if fastrand::bool() {
            text.push_str("identifier ");
        }
    }
    text.truncate(bytes);
    text
}

/// What was measured.
#[derive(Debug, Serialize)]
struct Row {
    /// `null`: all of them, as the cache uses them.
    level: Option<usize>,
    provider: Option<String>,
    call: &'static str,
    calls: u64,
    calls_per_second: f64,
    /// Calls that failed, or that the breaker of a level refused.
    failed: u64,
    /// Keys found over keys asked for.
    found: Option<f64>,
    p50_micros: f64,
    p99_micros: f64,
    p99_9_micros: f64,
    #[serde(skip)]
    place: String,
}

pub(crate) async fn run(builder: CachesBuilder, out: Output, options: BenchOptions) -> Result<Exit, Failure> {
    check(&options)?;
    let name = &options.cache;
    let session = Session::open(builder, &options.file).await?;
    session.cache::<traced_cache::Opaque>(name)?;
    let levels = session.measured_levels(name, options.remote).await?;
    let load = Arc::new(Load::new(&options));
    let own = own_name("bench");
    let mut subjects = Vec::new();
    for level in &levels {
        let cache = session.like::<String>(name, &own, &[level])?.build()?;
        subjects.push((Some(level), cache, &Call::OF_LEVEL[..]));
    }
    if levels.len() > 1 {
        let all: Vec<_> = levels.iter().collect();
        subjects.push((None, session.like::<String>(name, &own, &all)?.build()?, &[Call::GetOrSet]));
    }
    let calls: u64 = subjects.iter().map(|(_, _, calls)| calls.len() as u64).sum();
    let bar = out.bar(calls, "kinds of calls");
    let mut rows = Vec::new();
    let mut sizes = Vec::new();
    let mut callers = JoinSet::new();
    let measuring = async {
        for (level, cache, calls) in &subjects {
            fill(cache, &load).await?;
            if let Some(level) = level.filter(|level| level.is_remote()) {
                let found = cache.inspect(0u64).await?;
                let entry = found.levels.into_iter().next().and_then(|at| at.entry);
                sizes.push((level, entry.and_then(|entry| entry.bytes)));
            }
            let background = level.and_then(|level| session.level_setting(name, level, "background"));
            for call in *calls {
                // A level that is written in the background may have nothing yet when the call returns.
                let later = *call == Call::Set && background == Some("true");
                rows.push(measure(*level, cache, *call, later, &load, &mut callers).await?);
                bar.inc(1);
            }
        }
        Ok::<_, Failure>(())
    };
    let (measured, interrupted) = tokio::select! {
        measured = measuring => (measured, false),
        _ = tokio::signal::ctrl_c() => (Ok(()), true),
    };
    bar.finish_and_clear();
    // What callers write after the removal would stay.
    callers.shutdown().await;
    let is_clean = clean(subjects.into_iter().map(|(_, cache, _)| cache).collect(), &load).await
        && left::unmarked(&levels, &own).await;
    let left = (!is_clean).then_some(own);
    let note = left.as_deref().map(left::note);
    if let Err(failure) = measured {
        return Err(left::noted(failure, note.as_deref()));
    }
    let sizes: Vec<_> =
        sizes.into_iter().map(|(level, bytes)| (level.number, level.place(), bytes)).collect();
    let answer = json!({
        "cache": name,
        "keys": load.keys,
        "value_bytes": options.value_bytes,
        "callers": load.callers,
        "complete": !interrupted,
        "left": left,
        "stored_bytes": sizes
            .iter()
            .map(|(level, _, bytes)| json!({ "level": level, "bytes": bytes }))
            .collect::<Vec<Value>>(),
        "rows": rows,
    });
    let mut text = table(&rows);
    for (_, place, bytes) in sizes {
        if let Some(bytes) = bytes {
            let _ = write!(text, "\n{place}: a value of {} bytes takes {bytes} there", options.value_bytes);
        }
    }
    if let Some(note) = note {
        let _ = write!(text, "\n{note}");
    }
    out.answer(&answer, text)?;
    let failed = interrupted || left.is_some() || rows.iter().any(|row| row.failed > 0);
    Ok(if failed { Exit::Failed } else { Exit::Done })
}

fn check(options: &BenchOptions) -> Result<(), Failure> {
    if options.each.is_zero() {
        return Err(Failure::wrong("--each", "0s", "give it some time"));
    }
    // The server holds the answers of all batches under way.
    let at_once = u64::from(options.value_bytes) * BATCH * u64::from(options.callers);
    if options.remote && at_once > AT_ONCE_MAX {
        let fix = format!(
            "the {} callers' batches of {BATCH} would have a server hold {} at once; lower it, or --callers",
            options.callers,
            indicatif::HumanBytes(at_once)
        );
        return Err(Failure::wrong("--value-bytes", options.value_bytes, fix));
    }
    Ok(())
}

async fn fill(cache: &TracedCache<String>, load: &Load) -> Result<(), Failure> {
    for keys in load.chunks() {
        let _ = cache.set_many(keys.map(|key| (key, load.value(key)))).await?;
    }
    Ok(())
}

/// Removes what was stored, and closes the caches. `true` if nothing is left.
async fn clean(mut caches: Vec<TracedCache<String>>, load: &Load) -> bool {
    // The last one is at all levels.
    let Some(cache) = caches.pop() else { return true };
    // They may still have writes for a level, which would come after the removal.
    join_all(caches.iter().map(|cache| cache.close(PATIENCE))).await;
    let mut left = remove(&cache, load.chunks()).await;
    if !left.is_empty() {
        left::delivered(&cache, PATIENCE).await;
        left = remove(&cache, left.into_iter()).await;
    }
    left::ends_clean(&cache).await && left.is_empty()
}

/// Returns the chunks that some level has not acknowledged, or not in time.
async fn remove(cache: &TracedCache<String>, chunks: impl Iterator<Item = Range<u64>>) -> Vec<Range<u64>> {
    let mut left = Vec::new();
    for keys in chunks {
        if !cache.invalidate_many(keys.clone()).await.is_ok_and(Delivery::is_confirmed) {
            left.push(keys);
        }
    }
    left
}

async fn measure(
    level: Option<&LevelAt>,
    cache: &TracedCache<String>,
    call: Call,
    later: bool,
    load: &Arc<Load>,
    callers: &mut JoinSet<Made>,
) -> Result<Row, Failure> {
    let before = cache.stats();
    let in_memory = level.is_some_and(|level| !level.is_remote());
    // Around a single call in memory, reading the clock would take longer than the call.
    let timed_every = if in_memory { TURN } else { 1 };
    let started = Instant::now();
    let until = started + load.each.min(FOREVER);
    for _ in 0..load.callers {
        let (cache, load) = (cache.clone(), Arc::clone(load));
        callers.spawn(async move {
            let mut calls = Calls { made: 0, unheard: 0, times: times()? };
            loop {
                let timed = calls.made.is_multiple_of(timed_every).then(Instant::now);
                // At least one call, however short the time: no result at all would help nobody.
                if calls.made > 0 && timed.is_some_and(|begun| begun >= until) {
                    return Some(calls);
                }
                let ended = call.make(&cache, &load).await;
                if let (Some(begun), Ok(_)) = (timed, &ended) {
                    let took = u64::try_from(begun.elapsed().as_nanos()).unwrap_or(SLOWEST);
                    calls.times.saturating_record(took.max(1));
                }
                calls.unheard += u64::from(!ended.is_ok_and(|heard| later || heard.is_confirmed()));
                calls.made += 1;
                if calls.made.is_multiple_of(TURN) {
                    tokio::task::yield_now().await;
                }
            }
        });
    }
    let mut all =
        Calls { made: 0, unheard: 0, times: times().ok_or_else(|| Failure::failed("no histogram"))? };
    while let Some(caller) = callers.join_next().await {
        let calls = caller
            .ok()
            .flatten()
            .ok_or_else(|| Failure::failed("a caller ended before its time: please report this"))?;
        all.made += calls.made;
        all.unheard += calls.unheard;
        let _ = all.times.add(calls.times);
    }
    let Calls { made: calls, unheard, times } = all;
    let took = started.elapsed();
    let after = cache.stats();
    let micros = |q: f64| Duration::from_nanos(times.value_at_quantile(q)).as_secs_f64() * 1e6;
    let lookups = after.lookups() - before.lookups();
    // A look-up is a miss where the level does not answer or is not asked; in a batch, this is mostly true of all keys.
    let not_heard = |stats: &Snapshot| stats.missed(MissReason::Error);
    let unread = (not_heard(&after) - not_heard(&before)).div_ceil(call.keys());
    #[allow(clippy::cast_precision_loss, reason = "for people")]
    let share = |part: u64, of: u64| part as f64 / of as f64;
    Ok(Row {
        level: level.map(|level| level.number),
        provider: level.map(|level| level.name.clone()),
        call: call.as_str(),
        calls,
        calls_per_second: share(calls, 1) / took.as_secs_f64().max(f64::MIN_POSITIVE),
        failed: unheard.max(unread).max(faults(&after) - faults(&before)),
        found: (lookups > 0).then(|| share(after.hits() - before.hits(), lookups)),
        p50_micros: micros(0.5),
        p99_micros: micros(0.99),
        p99_9_micros: micros(0.999),
        place: level.map_or_else(|| "all levels".to_owned(), LevelAt::place),
    })
}

fn times() -> Option<Histogram<u64>> {
    Histogram::new_with_bounds(1, SLOWEST, 3).ok()
}

fn faults(stats: &Snapshot) -> u64 {
    stats.levels.iter().flat_map(|level| &level.faults).map(|(_, count)| count).sum()
}

fn table(rows: &[Row]) -> String {
    let head = ["", "call", "calls/s", "found", "failed", "p50", "p99", "p99.9"];
    let mut table = view::table(&head.map(str::to_owned));
    for row in rows {
        let time = |micros: f64| view::time(Some(micros / 1e6));
        table.add_row([
            row.place.clone(),
            row.call.to_owned(),
            view::number_of(row.calls_per_second),
            view::percent(row.found),
            view::number_of(view::float(row.failed)),
            time(row.p50_micros),
            time(row.p99_micros),
            time(row.p99_9_micros),
        ]);
    }
    table.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_is_in_exactly_one_chunk() {
        for (keys, bytes) in [(1, 1), (499, 1), (1_001, 1_000), (10, 64 << 20)] {
            let values = vec![Arc::new("x".repeat(bytes))];
            let load = Load { keys, values, callers: 1, each: Duration::ZERO };
            let all: Vec<_> = load.chunks().flatten().collect();
            assert_eq!(all, (0..keys).collect::<Vec<_>>());
        }
    }

    #[test]
    fn values_have_the_size_that_was_asked_for() {
        for bytes in [1, 10, 1_000] {
            assert_eq!(words(bytes).len(), bytes);
        }
    }
}
