//! The caches that are reported, and their counts at the last collection.

use std::{
    collections::{HashMap, HashSet},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::{Duration, Instant},
};

use cache_core::Stats;

use crate::totals::Totals;

/// Counts by cache name.
pub(crate) type Reading = Arc<Vec<(Arc<str>, Totals)>>;

/// Names whose counts are kept although no cache has them at present.
const RETIRED_MAX: usize = 1024;
/// A reading is never handed out when it is older than this.
const READING_MAX_AGE: Duration = Duration::from_secs(1);

/// Sums the counters of all attached caches by name.
#[derive(Default)]
pub(crate) struct Collector {
    /// Attached since the last collection. Apart from the rest, so that building a cache never waits for a collection.
    inbox: Mutex<Inbox>,
    view: Mutex<View>,
}

#[derive(Default)]
struct Inbox {
    caches: Vec<Weak<Stats>>,
    sweep_at: usize,
}

#[derive(Default)]
struct View {
    tracked: Vec<Tracked>,
    /// Final counts of caches that are gone. Counters must not go backwards under a name that lives on or comes back:
    /// the SDK subtracts, and Prometheus would see a restart.
    retired: HashMap<Arc<str>, Totals>,
    reading: Reading,
    taken: Option<Instant>,
    /// Instruments that have had this reading.
    seen: u32,
}

struct Tracked {
    stats: Weak<Stats>,
    name: Arc<str>,
    last: Totals,
}

impl Collector {
    pub(crate) fn attach(&self, stats: &Arc<Stats>) {
        let mut inbox = lock(&self.inbox);
        inbox.caches.push(Arc::downgrade(stats));
        // Caches may come and go with nobody collecting.
        if inbox.caches.len() > inbox.sweep_at {
            inbox.caches.retain(|cache| cache.strong_count() > 0);
            inbox.sweep_at = (inbox.caches.len() * 2).max(64);
        }
    }

    /// The counts for one instrument. All instruments of one collection get the same reading, so that they agree: the
    /// SDK has no callback for several instruments, so a new collection is known by an instrument asking again.
    pub(crate) fn read(&self, instrument: u32) -> Reading {
        let mut view = lock(&self.view);
        let bit = 1u32 << (instrument % u32::BITS);
        let fresh = view.taken.is_some_and(|at| at.elapsed() < READING_MAX_AGE);
        if !fresh || view.seen & bit != 0 {
            view.refresh(std::mem::take(&mut lock(&self.inbox).caches));
            view.seen = 0;
            view.taken = Some(Instant::now());
        }
        view.seen |= bit;
        Arc::clone(&view.reading)
    }
}

impl View {
    fn refresh(&mut self, new: Vec<Weak<Stats>>) {
        for stats in new {
            if let Some(live) = stats.upgrade() {
                let name = Arc::clone(live.info().shared_name());
                self.tracked.push(Tracked { stats, name, last: Totals::default() });
            }
        }
        let mut sums: HashMap<Arc<str>, Totals> = HashMap::new();
        let retired = &mut self.retired;
        self.tracked.retain_mut(|cache| {
            if let Some(stats) = cache.stats.upgrade() {
                cache.last = totals(&stats).unwrap_or_else(|| cache.last.clone());
                sums.entry(Arc::clone(&cache.name)).or_default().add(&cache.last);
                return true;
            }
            let last = std::mem::take(&mut cache.last).counts_only();
            retired.entry(Arc::clone(&cache.name)).or_default().add(&last);
            false
        });
        if retired.len() > RETIRED_MAX {
            let live: HashSet<&Arc<str>> = sums.keys().collect();
            retired.retain(|name, _| live.contains(name));
        }
        for (name, sum) in &mut sums {
            if let Some(retired) = retired.get(name) {
                sum.add(retired);
            }
        }
        self.reading = Arc::new(sums.into_iter().collect());
    }
}

/// A panic in a callback would end the SDK's reader for good, and a store is somebody else's code.
fn totals(stats: &Stats) -> Option<Totals> {
    let positions = stats.info().levels().iter().map(|level| Arc::clone(&level.position));
    catch_unwind(AssertUnwindSafe(|| Totals::of(&stats.snapshot(), positions))).ok()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
