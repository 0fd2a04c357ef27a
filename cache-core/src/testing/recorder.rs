//! An observer that remembers.

use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::sync::watch;

use crate::{
    BreakerState, CacheInfo, ErrorKind, Event, EvictionCause, LevelFault, LevelOp, LoadEnd, Observer,
    Outcome, Stats, Unreadable, Verb,
};

/// An [`Event`] that outlives its call. Durations are left out but where they are the point: no test should compare them.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
#[allow(missing_docs, reason = "the fields are those of `Event`")]
pub enum Recorded {
    /// [`Event::Operation`].
    Operation {
        verb: Verb,
        outcome: Option<Outcome>,
        level: Option<u8>,
        keys: usize,
        weight: u32,
        error: Option<ErrorKind>,
    },
    /// [`Event::Level`].
    Level { level: u8, op: LevelOp, keys: usize, fault: Option<LevelFault>, error: Option<String> },
    /// [`Event::Load`].
    Load { end: LoadEnd, background: bool, keys: usize },
    /// [`Event::Coalesced`].
    Coalesced { waited: Duration },
    /// [`Event::Unreadable`].
    Unreadable { level: u8, reason: Unreadable },
    /// [`Event::TooLarge`].
    TooLarge { level: u8, size: usize, limit: usize },
    /// [`Event::NotEncoded`].
    NotEncoded { level: u8 },
    /// [`Event::Items`].
    Items { level: u8, op: LevelOp, bytes: Vec<usize> },
    /// [`Event::Overtaken`].
    Overtaken,
    /// [`Event::Evicted`].
    Evicted { level: u8, cause: EvictionCause },
    /// [`Event::Breaker`].
    Breaker { level: u8, state: BreakerState },
    /// [`Event::BackplaneSent`].
    BackplaneSent,
    /// [`Event::BackplaneReceived`].
    BackplaneReceived,
    /// [`Event::BackplaneNoise`].
    BackplaneNoise,
    /// [`Event::BackplaneGap`].
    BackplaneGap,
    /// [`Event::BackplaneDown`].
    BackplaneDown(String),
    /// [`Event::BackplaneUp`].
    BackplaneUp,
    /// [`Event::Advice`].
    Advice(String),
}

impl From<&Event<'_>> for Recorded {
    fn from(event: &Event<'_>) -> Self {
        match *event {
            Event::Operation { verb, outcome, level, keys, weight, error, .. } => {
                Self::Operation { verb, outcome, level, keys, weight, error }
            }
            Event::Level { level, op, keys, fault, error, .. } => {
                Self::Level { level, op, keys, fault, error: error.map(ToString::to_string) }
            }
            Event::Load { end, background, keys, .. } => Self::Load { end, background, keys },
            Event::Coalesced { waited } => Self::Coalesced { waited },
            Event::Unreadable { level, reason } => Self::Unreadable { level, reason },
            Event::TooLarge { level, size, limit } => Self::TooLarge { level, size, limit },
            Event::NotEncoded { level } => Self::NotEncoded { level },
            Event::Items { level, op, bytes } => Self::Items { level, op, bytes: bytes.to_vec() },
            Event::Overtaken => Self::Overtaken,
            Event::Evicted { level, cause } => Self::Evicted { level, cause },
            Event::Breaker { level, state } => Self::Breaker { level, state },
            Event::BackplaneSent => Self::BackplaneSent,
            Event::BackplaneReceived { .. } => Self::BackplaneReceived,
            Event::BackplaneNoise => Self::BackplaneNoise,
            Event::BackplaneGap => Self::BackplaneGap,
            Event::BackplaneDown { error } => Self::BackplaneDown(error.to_string()),
            Event::BackplaneUp => Self::BackplaneUp,
            Event::Advice(text) => Self::Advice(text.to_owned()),
        }
    }
}

/// Remembers every event of every cache that it observes, in order. Cloning is cheap; clones share one memory.
#[derive(Clone)]
pub struct Recorder(Arc<Inner>);

struct Inner {
    events: Mutex<Vec<(String, Recorded)>>,
    stats: Mutex<Vec<Arc<Stats>>>,
    /// How many events there have been, for those who wait.
    seen: watch::Sender<usize>,
}

impl Recorder {
    /// Remembers nothing yet.
    pub fn new() -> Self {
        Self(Arc::new(Inner {
            events: Mutex::default(),
            stats: Mutex::default(),
            seen: watch::Sender::new(0),
        }))
    }

    /// All events so far.
    pub fn events(&self) -> Vec<Recorded> {
        self.lock().iter().map(|(_, event)| event.clone()).collect()
    }

    /// The events of one cache.
    pub fn events_of(&self, cache: &str) -> Vec<Recorded> {
        self.lock().iter().filter(|(name, _)| name == cache).map(|(_, event)| event.clone()).collect()
    }

    /// How many events are such: `recorder.count(|e| matches!(e, Recorded::Overtaken))`.
    pub fn count(&self, such: impl Fn(&Recorded) -> bool) -> usize {
        self.lock().iter().filter(|(_, event)| such(event)).count()
    }

    /// Calls (not keys) that a level was asked with this operation: round trips.
    pub fn round_trips(&self, level: u8, op: LevelOp) -> usize {
        self.count(
            |event| matches!(event, Recorded::Level { level: l, op: o, .. } if (*l, *o) == (level, op)),
        )
    }

    /// The statistics of the caches that were built with it, which it keeps alive.
    pub fn stats(&self) -> Vec<Arc<Stats>> {
        self.0.stats.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits until at least `count` events are such. Cancel-safe.
    pub async fn until(&self, count: usize, such: impl Fn(&Recorded) -> bool) {
        let mut seen = self.0.seen.subscribe();
        while self.count(&such) < count {
            // The sender lives as long as `self`.
            let _ = seen.changed().await;
        }
    }

    /// Forgets all events.
    pub fn clear(&self) {
        self.lock().clear();
    }

    fn lock(&self) -> MutexGuard<'_, Vec<(String, Recorded)>> {
        self.0.events.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for Recorder {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Recorder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Recorder").field("events", &self.lock().len()).finish_non_exhaustive()
    }
}

impl Observer for Recorder {
    fn attach(&self, stats: &Arc<Stats>) {
        self.0.stats.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::clone(stats));
    }

    fn event(&self, cache: &CacheInfo, event: &Event<'_>) {
        self.lock().push((cache.name().to_owned(), event.into()));
        self.0.seen.send_modify(|seen| *seen += 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(name: &str) -> CacheInfo {
        CacheInfo { name: name.into(), levels: Arc::new([]) }
    }

    #[tokio::test]
    async fn remembers_in_order_and_by_cache() {
        let recorder = Recorder::new();
        let evicted = Event::Evicted { level: 0, cause: EvictionCause::Size };
        recorder.event(&info("a"), &Event::Overtaken);
        recorder.event(&info("b"), &evicted);
        recorder.event(&info("a"), &Event::Advice("look"));
        assert_eq!(recorder.events_of("a"), [Recorded::Overtaken, Recorded::Advice("look".to_owned())]);
        assert_eq!(recorder.events()[1], Recorded::Evicted { level: 0, cause: EvictionCause::Size });
        let error = std::io::Error::other("down");
        let failed = Event::Level {
            level: 1,
            op: LevelOp::Get,
            command: "GET",
            keys: 3,
            elapsed: Duration::ZERO,
            fault: Some(LevelFault::Error),
            error: Some(&error),
        };
        recorder.event(&info("a"), &failed);
        assert_eq!((recorder.round_trips(1, LevelOp::Get), recorder.round_trips(1, LevelOp::Put)), (1, 0));
        assert_eq!(recorder.count(|e| matches!(e, Recorded::Level { error: Some(e), .. } if e == "down")), 1);
        recorder.clear();
        assert!(recorder.events().is_empty());
    }

    #[tokio::test]
    async fn wakes_who_waits() {
        let recorder = Recorder::new();
        let waiter = tokio::spawn({
            let recorder = recorder.clone();
            async move { recorder.until(2, |event| *event == Recorded::Overtaken).await }
        });
        for _ in 0..2 {
            tokio::task::yield_now().await;
            recorder.event(&info("a"), &Event::Overtaken);
        }
        waiter.await.unwrap();
    }
}
