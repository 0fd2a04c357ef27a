//! What is kept of one cache, and of the stores that caches are in.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    time::Duration,
};

use cache_core::{ObjectStore, RawKey, Stats, Traffic};

use crate::{
    estimate::{Estimator, Life, Tally, place},
    history::History,
    hot::Hot,
    latency::Latencies,
    page::ShowKey,
    shown::Shown,
};

/// Look-ups of followed keys that wait for the next round, at most.
const FOLLOWED: usize = 4096;
/// One look-up in so many is taken for the hottest keys.
const SAMPLE: u8 = 16;
/// Sampled look-ups that wait for the next round, at most.
const SAMPLED: usize = 1024;

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A key's hash, and what may be shown of it.
type Sampled = (u64, Option<Box<str>>);

/// Takes note of keys, on the hot path: two numbers are compared, and what is of interest goes into a queue without waiting.
pub(crate) struct Notes {
    cache: u32,
    /// Of the nearest level's store: places up to this are followed.
    threshold: Arc<AtomicU64>,
    followed: SyncSender<u64>,
    /// The queue was full.
    is_late: AtomicBool,
    sampled: SyncSender<Sampled>,
    show_key: Option<Arc<ShowKey>>,
}

impl Traffic for Notes {
    fn asked(&self, key: &RawKey<'_>) {
        let place = place(self.cache, key.hash);
        if place <= self.threshold.load(Ordering::Relaxed) && self.followed.try_send(place).is_err() {
            self.is_late.store(true, Ordering::Relaxed);
        }
        if fastrand::u8(..).is_multiple_of(SAMPLE) {
            let show = |show: &Arc<ShowKey>| catch_unwind(AssertUnwindSafe(|| show(key.id))).ok().flatten();
            let name = self.show_key.as_ref().and_then(show);
            // Too many are as good as any.
            let _ = self.sampled.try_send((key.hash, name.map(String::into_boxed_str)));
        }
    }
}

/// A store in this process, and how it would do if it had another size.
pub(crate) struct Store {
    pub(crate) store: Weak<dyn ObjectStore>,
    pub(crate) estimator: Mutex<Estimator>,
    threshold: Arc<AtomicU64>,
}

/// How many entries a store has room for; while it is empty and counts bytes, that is not known.
fn room(store: &dyn ObjectStore) -> Option<u64> {
    let capacity = store.capacity()?;
    match (store.weighs(), store.len(), store.weight()) {
        (false, ..) => Some(capacity),
        (true, 0, _) | (true, _, 0) => None,
        (true, entries, weight) => {
            u64::try_from(u128::from(capacity) * u128::from(entries) / u128::from(weight)).ok()
        }
    }
}

impl Store {
    pub(crate) fn new(store: &Arc<dyn ObjectStore>) -> Self {
        // An entry of a kilobyte, until there are some.
        let capacity = store.capacity().map(|bytes| if store.weighs() { bytes / 1024 } else { bytes });
        let estimator = Estimator::new(room(&**store).or(capacity).unwrap_or(1));
        let follows = if capacity.is_some() { estimator.threshold() } else { 0 };
        Self {
            store: Arc::downgrade(store),
            estimator: Mutex::new(estimator),
            threshold: Arc::new(AtomicU64::new(follows)),
        }
    }

    /// Whether it says how large it is.
    pub(crate) fn is_known(&self) -> bool {
        self.threshold.load(Ordering::Relaxed) > 0
    }

    fn sized(&self, estimator: &mut Estimator) {
        if let Some(room) = self.store.upgrade().and_then(|store| room(&*store)) {
            estimator.capacity_is(room);
        }
    }
}

pub(crate) type FindShown = dyn Fn() -> Option<Arc<dyn Shown>> + Send + Sync;

/// One cache.
pub(crate) struct Watched {
    pub(crate) name: Arc<str>,
    pub(crate) stats: Weak<Stats>,
    pub(crate) latencies: Latencies,
    pub(crate) history: Mutex<History>,
    pub(crate) hot: Mutex<Hot>,
    pub(crate) tally: Mutex<Tally>,
    pub(crate) store: Option<Arc<Store>>,
    pub(crate) notes: Arc<Notes>,
    /// Look-ups that the tally expects so far.
    seen: AtomicU64,
    queues: Mutex<(Receiver<u64>, Receiver<Sampled>)>,
    /// Given by whoever shows the cache, which it finds for as long as others keep that: the cache keeps this.
    pub(crate) shown: Mutex<Option<Box<FindShown>>>,
}

impl Watched {
    pub(crate) fn new(
        stats: &Arc<Stats>,
        cache: u32,
        store: Option<Arc<Store>>,
        show_key: Option<Arc<ShowKey>>,
    ) -> Self {
        let (followed, follow) = sync_channel(FOLLOWED);
        let (sampled, sample) = sync_channel(SAMPLED);
        let threshold = store.as_ref().map(|store| Arc::clone(&store.threshold)).unwrap_or_default();
        let is_late = AtomicBool::new(false);
        Self {
            name: Arc::clone(stats.info().shared_name()),
            stats: Arc::downgrade(stats),
            latencies: Latencies::new(stats.info().levels().len()),
            history: Mutex::default(),
            hot: Mutex::default(),
            tally: Mutex::default(),
            store,
            notes: Arc::new(Notes { cache, threshold, followed, is_late, sampled, show_key }),
            seen: AtomicU64::new(0),
            queues: Mutex::new((follow, sample)),
            shown: Mutex::default(),
        }
    }

    pub(crate) fn shown(&self) -> Option<Arc<dyn Shown>> {
        lock(&self.shown).as_ref().and_then(|find| find())
    }

    /// Works off what has been noted since the last round.
    pub(crate) fn round(&self, at: Duration) {
        let Some(stats) = self.stats.upgrade() else { return };
        let queues = lock(&self.queues);
        let mut hot = lock(&self.hot);
        for (hash, name) in queues.1.try_iter().take(SAMPLED) {
            hot.add(hash, name);
        }
        drop(hot);
        let Some(store) = &self.store else { return };
        let mut estimator = lock(&store.estimator);
        let life = self.shown().map_or(Life::UNLIMITED, |shown| {
            let settings = shown.settings();
            Life { fresh_for: settings.fresh_for, refreshed_from: settings.refreshed_from }
        });
        let mut tally = lock(&self.tally);
        let lookups = stats.snapshot().lookups();
        let new = lookups.saturating_sub(self.seen.swap(lookups, Ordering::Relaxed));
        tally.expect(new, estimator.share());
        for place in queues.0.try_iter().take(FOLLOWED) {
            if let Some(hits) = estimator.asked(place, at, life) {
                tally.add(hits);
            }
        }
        if self.notes.is_late.swap(false, Ordering::Relaxed) {
            // What was not noted cannot be told from keys that nobody asks for.
            estimator.thin();
            *tally = Tally::default();
        }
        store.sized(&mut estimator);
        if store.is_known() {
            store.threshold.store(estimator.threshold(), Ordering::Relaxed);
        }
    }
}
