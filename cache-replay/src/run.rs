//! The replay itself: one thread reads the trace, callers take turns at pieces of it.

use std::{
    collections::HashSet,
    fmt,
    time::{Duration, Instant},
};

use cache_core::{BoxError, CacheKey, TracedCache, ok};
use tokio::{sync::mpsc, task::JoinSet};
use xxhash_rust::xxh3::xxh3_64;

use crate::trace::{Keys, Trace};

/// Pieces that wait for a caller. Reading ahead is bounded, and so is memory.
const AHEAD: usize = 4;

/// What was asked.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Asked {
    /// Requests in all.
    pub requests: u64,
    /// Different keys; texts are told apart by 64 bits of hash.
    pub distinct: u64,
    /// How long it took.
    pub elapsed: Duration,
}

/// Asks the cache for every key of the trace, with a loader that takes `load_time`. `progress` hears how many keys have been
/// read so far.
///
/// Caller number n of `callers` gets every piece whose number leaves the remainder n, and asks for its keys in order; one
/// caller replays in the exact order of the trace. Dropping the future ends it: no key is asked for after that, and reading
/// ends with the piece that is being read.
///
/// # Errors
/// The first one of the trace or of the cache, or that there is no caller. [`WrongValue`]: the cache has answered with what
/// belongs to another key.
pub async fn replay(
    cache: &TracedCache<u64>,
    trace: Trace,
    callers: usize,
    load_time: Duration,
    progress: impl Fn(u64) + Send + 'static,
) -> Result<Asked, BoxError> {
    if callers == 0 {
        return Err("callers = 0: nobody would ask for a key; give at least 1".into());
    }
    let started = Instant::now();
    // Dropped, it takes the callers along; without them the reader ends.
    let mut tasks = JoinSet::new();
    let pieces: Vec<_> = (0..callers)
        .map(|_| {
            let (piece, pieces) = mpsc::channel(AHEAD);
            tasks.spawn(caller(cache.clone(), pieces, load_time));
            piece
        })
        .collect();
    let reading = tokio::task::spawn_blocking(move || deal(trace, &pieces, progress));
    let mut requests = 0;
    let mut failed = None;
    while let Some(task) = tasks.join_next().await {
        match task? {
            Ok(asked) => requests += asked,
            Err(error) => failed = failed.or(Some(error)),
        }
    }
    let elapsed = started.elapsed();
    let distinct = reading.await??;
    // A caller that fails stops the reader, which is then no error of its own.
    failed.map_or(Ok(Asked { requests, distinct, elapsed }), Err)
}

/// Reads the trace and deals it out; counts different keys.
fn deal(mut trace: Trace, to: &[mpsc::Sender<Keys>], progress: impl Fn(u64)) -> Result<u64, BoxError> {
    let mut distinct = HashSet::new();
    let mut read = 0u64;
    let mut turns = to.iter().cycle();
    while let Some(keys) = trace.next()? {
        read += keys.len() as u64;
        progress(read);
        match &keys {
            Keys::Integers(all) => distinct.extend(all.iter().map(|key| u64::from(*key))),
            Keys::Lines(all) => distinct.extend(all.iter().map(fingerprint)),
        }
        if turns.next().is_none_or(|caller| caller.blocking_send(keys).is_err()) {
            break;
        }
    }
    Ok(distinct.len() as u64)
}

fn fingerprint(key: &str) -> u64 {
    xxh3_64(key.as_bytes())
}

async fn caller(
    cache: TracedCache<u64>,
    mut pieces: mpsc::Receiver<Keys>,
    load_time: Duration,
) -> Result<u64, BoxError> {
    let mut asked = 0;
    while let Some(keys) = pieces.recv().await {
        asked += keys.len() as u64;
        match &keys {
            Keys::Integers(all) => {
                for key in all {
                    ask(&cache, *key, u64::from(*key), load_time).await?;
                }
            }
            Keys::Lines(all) => {
                for key in all.iter() {
                    ask(&cache, key, fingerprint(key), load_time).await?;
                }
            }
        }
    }
    Ok(asked)
}

/// One request. The value tells the key, so that an answer meant for another key is noticed.
async fn ask(
    cache: &TracedCache<u64>,
    key: impl CacheKey,
    value: u64,
    load_time: Duration,
) -> Result<(), BoxError> {
    let load = |(value, takes): (u64, Duration), _| async move {
        if !takes.is_zero() {
            tokio::time::sleep(takes).await;
        }
        ok(value)
    };
    let found = cache.get_or_set_with(key, &(value, load_time), load).await?;
    if *found == value { Ok(()) } else { Err(WrongValue.into()) }
}

/// The cache answered with the value of another key.
#[derive(Debug)]
#[non_exhaustive]
pub struct WrongValue;

impl fmt::Display for WrongValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the cache answered with the value of another key: please report this")
    }
}

impl std::error::Error for WrongValue {}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "helpers of tests fail their test")]

    use std::sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    };

    use cache_memory::Memory;

    use super::*;

    #[tokio::test]
    async fn nobody_asks_for_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let keys = folder.path().join("keys");
        std::fs::write(&keys, "1\n").unwrap();
        let cache: TracedCache<u64> =
            TracedCache::builder("users").level(Memory::entries(10)).build().unwrap();
        let trace = Trace::open(&keys, None).unwrap();
        let error = replay(&cache, trace, 0, Duration::ZERO, |_| {}).await.unwrap_err();
        assert!(error.to_string().starts_with("callers = 0"), "{error}");
    }

    #[tokio::test]
    async fn dropping_it_ends_it() {
        let folder = tempfile::tempdir().unwrap();
        let keys = folder.path().join("keys");
        std::fs::write(&keys, (0..200_000).map(|n| format!("{n}\n")).collect::<String>()).unwrap();
        let cache: TracedCache<u64> =
            TracedCache::builder("users").level(Memory::entries(1000)).build().unwrap();
        let read = Arc::new(AtomicU64::new(0));
        let (told, held) = (Arc::clone(&read), Arc::downgrade(&read));
        let progress = move |keys| told.store(keys, Ordering::Relaxed);
        let load = Duration::from_millis(1);
        let mut replay = Box::pin(replay(&cache, Trace::open(&keys, None).unwrap(), 4, load, progress));
        while cache.stats().lookups() < 8 {
            assert!(tokio::time::timeout(load, &mut replay).await.is_err(), "it was over before");
        }
        drop((replay, read));
        // The reader ends when its callers have: then nobody holds what it reports to.
        let end = Instant::now() + Duration::from_secs(10);
        while held.strong_count() > 0 {
            assert!(Instant::now() < end, "it goes on without its caller");
            tokio::time::sleep(load).await;
        }
        assert!(cache.stats().lookups() < 10_000, "{} keys were asked for", cache.stats().lookups());
    }
}
