//! The replay itself: one thread reads the trace, callers take turns at pieces of it.

use std::{
    collections::HashSet,
    fmt,
    time::{Duration, Instant},
};

use cache_core::{BoxError, CacheKey, TracedCache, ok};
use tokio::sync::mpsc;
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
/// caller replays in the exact order of the trace. Dropping the future ends it.
///
/// # Errors
/// The first one of the trace or of the cache. [`WrongValue`]: the cache has answered with what belongs to another key.
pub async fn replay(
    cache: &TracedCache<u64>,
    trace: Trace,
    callers: usize,
    load_time: Duration,
    progress: impl Fn(u64) + Send + 'static,
) -> Result<Asked, BoxError> {
    let started = Instant::now();
    let (pieces, tasks): (Vec<_>, Vec<_>) = (0..callers)
        .map(|_| {
            let (piece, pieces) = mpsc::channel(AHEAD);
            (piece, tokio::spawn(caller(cache.clone(), pieces, load_time)))
        })
        .unzip();
    let reading = tokio::task::spawn_blocking(move || deal(trace, &pieces, progress));
    let mut requests = 0;
    let mut failed = None;
    for task in tasks {
        match task.await? {
            Ok(asked) => requests += asked,
            Err(error) => failed = Some(error),
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
