//! What most cases use: durations, counted loaders, a recorder of events.

use std::{
    convert::Infallible,
    fmt,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::task::JoinHandle;
use traced_cache::{
    CacheInfo, CacheKey, Closed, ErrorKind, Event, Found, LoadEnd, Observer, Outcome, Result, Time,
    TracedCache, Value, ok,
};

pub(crate) const MS: Duration = Duration::from_millis(1);
pub(crate) const S: Duration = Duration::from_secs(1);

/// Counts how often a loader's body started.
#[derive(Clone, Default)]
pub(crate) struct Loads(Arc<AtomicUsize>);

impl Loads {
    pub(crate) fn add(&self) -> usize {
        self.0.fetch_add(1, Ordering::SeqCst)
    }

    pub(crate) fn count(&self) -> usize {
        self.0.load(Ordering::SeqCst)
    }
}

/// The error of failing loaders.
#[derive(Debug, PartialEq)]
pub(crate) struct Down(pub(crate) u32);

impl fmt::Display for Down {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "source down ({})", self.0)
    }
}

impl std::error::Error for Down {}

/// `get_or_set` with a loader that answers `value`.
pub(crate) async fn load<T: Value + Clone>(
    cache: &TracedCache<T>,
    key: impl CacheKey,
    loads: &Loads,
    value: impl Into<T>,
) -> T {
    let found = look(cache, key, loads, value).await;
    T::clone(found.value().expect("a value"))
}

/// The same with the whole answer.
pub(crate) async fn look<T: Value + Clone>(
    cache: &TracedCache<T>,
    key: impl CacheKey,
    loads: &Loads,
    value: impl Into<T>,
) -> Found<T> {
    let state = (loads.clone(), value.into());
    patient(cache.look_or_set_with(key, &state, |(loads, value): (Loads, T), _| async move {
        loads.add();
        ok(value)
    }))
    .await
    .unwrap()
}

/// With a loader that fails.
pub(crate) async fn fail<T: Value>(
    cache: &TracedCache<T>,
    key: impl CacheKey,
    loads: &Loads,
) -> Result<Found<T>> {
    patient(cache.look_or_set_with(key, loads, |loads: Loads, _| async move {
        loads.add();
        Err::<T, _>(Down(7))
    }))
    .await
}

/// With a loader that says that the source does not have the key.
pub(crate) async fn absent<T: Value>(cache: &TracedCache<T>, key: impl CacheKey, loads: &Loads) -> Found<T> {
    patient(cache.look_or_set_with(key, loads, |loads: Loads, _| async move {
        loads.add();
        Ok::<Option<T>, Infallible>(None)
    }))
    .await
    .unwrap()
}

/// Begins to close a cache, which gives what is at it five seconds.
pub(crate) async fn closing<T: Value>(cache: &TracedCache<T>) -> JoinHandle<Closed> {
    let cache = cache.clone();
    let closing = tokio::spawn(async move { cache.close(5 * S).await });
    settle().await;
    closing
}

/// Closes a cache whose calls do not end in time.
pub(crate) async fn close_under<T: Value>(time: &Time, cache: &TracedCache<T>) -> Closed {
    let closing = closing(cache).await;
    time.advance(5 * S);
    patient(closing).await.unwrap()
}

/// `get`, for values that clone.
pub(crate) async fn get<T: Value + Clone>(cache: &TracedCache<T>, key: impl CacheKey) -> Option<T> {
    patient(cache.get(key)).await.unwrap().map(|value| T::clone(&value))
}

/// What `get` says, and how.
pub(crate) async fn outcome<T: Value>(cache: &TracedCache<T>, key: impl CacheKey) -> Outcome {
    patient(cache.look(key)).await.unwrap().outcome()
}

/// Stores, and demands that every level took it.
pub(crate) async fn set<T: Value>(cache: &TracedCache<T>, key: impl CacheKey, value: impl Into<T>) {
    let value: T = value.into();
    assert!(patient(cache.set(key, value)).await.unwrap().is_confirmed());
}

/// Stores what the only level cannot hold, and demands that it says so.
pub(crate) async fn set_nowhere<T: Value>(cache: &TracedCache<T>, key: impl CacheKey, value: T) {
    let error = patient(cache.set(key, value)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Level);
    assert!(error.to_string().contains("level 1 cannot hold the value"), "{error}");
}

/// Invalidates, and demands that every level heard of it.
pub(crate) async fn invalidate<T: Value>(cache: &TracedCache<T>, key: impl CacheKey) {
    assert!(patient(cache.invalidate(key)).await.unwrap().is_confirmed());
}

/// A test that waits for ever has failed; far longer than any machine needs.
pub(crate) async fn patient<F: Future>(work: F) -> F::Output {
    tokio::time::timeout(Duration::from_secs(60), work).await.expect("stuck")
}

/// The same while time goes on: what waits for a lease of somebody else's looks again after a while.
pub(crate) async fn moving<F: Future>(time: &Time, work: F) -> F::Output {
    let ticking = async {
        loop {
            tokio::time::sleep(MS).await;
            time.advance(MS);
        }
    };
    let (work, ticking) = (std::pin::pin!(patient(work)), std::pin::pin!(ticking));
    match futures::future::select(work, ticking).await {
        futures::future::Either::Left((out, _)) => out,
        futures::future::Either::Right(((), _)) => unreachable!("it ticks for ever"),
    }
}

/// Waits until `condition` holds, letting other tasks run.
pub(crate) async fn until(mut condition: impl FnMut() -> bool) {
    patient(async {
        while !condition() {
            tokio::time::sleep(MS).await;
        }
    })
    .await;
}

/// Lets every task that can run do so for a while, on one thread.
pub(crate) async fn settle() {
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
}

/// Writes events down in short words.
#[derive(Clone, Default)]
pub(crate) struct Recorder(Arc<Mutex<Vec<String>>>);

impl Recorder {
    pub(crate) fn count(&self, word: &str) -> usize {
        self.0.lock().unwrap().iter().filter(|w| *w == word).count()
    }

    pub(crate) fn all(&self) -> Vec<String> {
        self.0.lock().unwrap().clone()
    }
}

impl Observer for Recorder {
    fn event(&self, _: &CacheInfo, event: &Event<'_>) {
        let word = match event {
            Event::Unreadable { level, reason } => format!("unreadable {level} {}", reason.as_str()),
            Event::TooLarge { level, .. } => format!("too_large {level}"),
            Event::NotEncoded { level } => format!("not_encoded {level}"),
            Event::Load { end: LoadEnd::Failed(_), .. } => "load_failed".to_owned(),
            Event::Load { end, .. } => format!("load {}", end.as_str()),
            Event::Level { level, op, fault: Some(fault), .. } => {
                format!("{} {} {level}", op.as_str(), fault.as_str())
            }
            Event::Overtaken => "overtaken".to_owned(),
            _ => return,
        };
        self.0.lock().unwrap().push(word);
    }
}
