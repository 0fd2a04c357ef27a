//! The caches that are reported, and their counts at the last collection.

use std::{
    collections::HashMap,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use cache_core::Stats;

use crate::{
    backlog::Backlog,
    series::{Named, Series},
    totals::Totals,
};

/// Counts by series.
pub(crate) type Reading = Arc<Vec<(Arc<Named>, Totals)>>;

/// A reading is never handed out when it is older than this.
const READING_MAX_AGE: Duration = Duration::from_secs(1);

/// How long counts are reported after their telemetry is gone, from the first collection after that on: by then all readers
/// of the provider have collected. Not for ever, as telemetries that come and go would pile up behind the provider.
const LAST_WORD: Duration = Duration::from_secs(120);

/// The collector as callbacks have it. They live as long as the meter provider.
#[derive(Clone)]
pub(crate) struct Source(Arc<Mutex<Option<Arc<Collector>>>>);

impl Source {
    pub(crate) fn new(collector: &Arc<Collector>) -> Self {
        Self(Arc::new(Mutex::new(Some(Arc::clone(collector)))))
    }

    /// For as long as it has something to say.
    pub(crate) fn collector(&self) -> Option<Arc<Collector>> {
        let mut held = lock(&self.0);
        if held.as_ref().is_some_and(|collector| collector.is_silent()) {
            *held = None;
        }
        held.clone()
    }
}

/// Sums the counters of all attached caches by name.
pub(crate) struct Collector {
    pub(crate) series: Series,
    /// What threads have yet to record.
    pub(crate) backlog: Arc<Backlog>,
    /// Attached since the last collection. Apart from the rest, so that building a cache never waits for a collection.
    inbox: Mutex<Vec<Tracked>>,
    view: Mutex<View>,
    /// The telemetry is gone, and so are its caches, which held it.
    over: AtomicBool,
    /// The first collection since.
    last_word: OnceLock<Instant>,
}

#[derive(Default)]
struct View {
    tracked: Vec<Tracked>,
    sweep_at: usize,
    /// Final counts of caches that are gone. Counters must not go backwards under a name that lives on or comes back:
    /// the SDK subtracts, and Prometheus would see a restart.
    retired: HashMap<Option<Arc<str>>, (Arc<Named>, Totals)>,
    reading: Reading,
    taken: Option<Instant>,
    /// Instruments that have had this reading.
    seen: u64,
}

/// Kept until its last counts have been taken, also if its cache is gone before anybody collects.
struct Tracked {
    stats: Arc<Stats>,
    series: Arc<Named>,
    last: Totals,
}

impl Tracked {
    /// Whether its cache is gone. Others may hold the counters as well: another telemetry, a test's recorder.
    fn is_over(&self) -> bool {
        self.stats.is_over()
    }
}

impl Collector {
    pub(crate) fn new(limit: usize) -> Self {
        Self {
            series: Series::new(limit),
            backlog: Arc::default(),
            inbox: Mutex::default(),
            view: Mutex::default(),
            over: AtomicBool::new(false),
            last_word: OnceLock::new(),
        }
    }

    /// Its telemetry is gone. Of the caches only counts are kept: nobody may ever collect.
    pub(crate) fn end(&self) {
        self.over.store(true, Ordering::Release);
        // If somebody is reading at this moment, the next reading lets go of the rest.
        if let Ok(mut view) = self.view.try_lock() {
            view.take_in(std::mem::take(&mut *lock(&self.inbox)));
            view.retire();
        }
    }

    fn is_silent(&self) -> bool {
        self.over.load(Ordering::Acquire) && self.last_word.get_or_init(Instant::now).elapsed() >= LAST_WORD
    }

    pub(crate) fn attach(&self, stats: &Arc<Stats>) {
        let series = self.series.of(stats.info());
        let tracked = Tracked { stats: Arc::clone(stats), series, last: Totals::default() };
        let waiting = {
            let mut inbox = lock(&self.inbox);
            inbox.push(tracked);
            inbox.len()
        };
        // Caches may come and go with nobody collecting. While somebody does, there is no need.
        if waiting >= 64
            && let Ok(mut view) = self.view.try_lock()
        {
            view.take_in(std::mem::take(&mut *lock(&self.inbox)));
            if view.tracked.len() > view.sweep_at {
                view.retire();
                view.sweep_at = (view.tracked.len() * 2).max(64);
            }
        }
    }

    /// The counts for one instrument. All instruments of one collection get the same reading, so that they agree: the
    /// SDK has no callback for several instruments, so a new collection is known by an instrument asking again.
    pub(crate) fn read(&self, instrument: u32) -> Reading {
        let mut view = lock(&self.view);
        let bit = 1u64 << (instrument % u64::BITS);
        let fresh = view.taken.is_some_and(|at| at.elapsed() < READING_MAX_AGE);
        if !fresh || view.seen & bit != 0 {
            self.refresh(&mut view);
            view.seen = 0;
        }
        view.seen |= bit;
        Arc::clone(&view.reading)
    }

    /// The counts as they are now, for whoever wants to know. Collections do not notice.
    pub(crate) fn now(&self) -> Reading {
        self.backlog.clear();
        let mut view = lock(&self.view);
        view.take_in(std::mem::take(&mut *lock(&self.inbox)));
        view.sums()
    }

    fn refresh(&self, view: &mut View) {
        self.backlog.clear();
        view.take_in(std::mem::take(&mut *lock(&self.inbox)));
        view.reading = view.sums();
        view.taken = Some(Instant::now());
    }
}

impl View {
    fn take_in(&mut self, new: Vec<Tracked>) {
        self.tracked.extend(new);
    }

    /// Takes the last counts of caches that are gone.
    fn retire(&mut self) {
        let retired = &mut self.retired;
        self.tracked.retain_mut(|cache| {
            if !cache.is_over() {
                return true;
            }
            let last = totals(&cache.stats).unwrap_or_else(|| std::mem::take(&mut cache.last)).counts_only();
            let name = cache.series.name.clone();
            retired
                .entry(name)
                .or_insert_with(|| (Arc::clone(&cache.series), Totals::default()))
                .1
                .add(&last);
            false
        });
    }

    fn sums(&mut self) -> Reading {
        self.retire();
        let mut sums: HashMap<Option<Arc<str>>, (Arc<Named>, Totals)> = HashMap::new();
        for cache in &mut self.tracked {
            if let Some(now) = totals(&cache.stats) {
                cache.last = now;
            }
            let name = cache.series.name.clone();
            sums.entry(name)
                .or_insert_with(|| (Arc::clone(&cache.series), Totals::default()))
                .1
                .add(&cache.last);
        }
        for (name, (series, last)) in &self.retired {
            match sums.get_mut(name) {
                Some((_, sum)) => sum.add(last),
                // The overflow is never over, and what has been reported once stays exact.
                None => {
                    sums.insert(name.clone(), (Arc::clone(series), last.clone()));
                }
            }
        }
        Arc::new(sums.into_values().collect())
    }
}

/// A panic in a callback would end the SDK's reader for good, and a store is somebody else's code.
fn totals(stats: &Stats) -> Option<Totals> {
    let positions = stats.info().levels().iter().map(|level| (Arc::clone(&level.position), level.in_process));
    catch_unwind(AssertUnwindSafe(|| Totals::of(&stats.snapshot(), positions))).ok()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_over_is_reported_for_a_while_and_then_let_go() {
        let collector = Arc::new(Collector::new(100));
        let (source, held) = (Source::new(&collector), Arc::downgrade(&collector));
        drop(collector);
        assert!(source.collector().is_some());
        held.upgrade().unwrap().end();
        assert!(source.collector().is_some_and(|collector| collector.last_word.get().is_some()));

        let collector = Arc::new(Collector::new(100));
        let (source, held) = (Source::new(&collector), Arc::downgrade(&collector));
        collector.last_word.set(Instant::now().checked_sub(LAST_WORD).unwrap()).unwrap();
        collector.end();
        drop(collector);
        assert!(source.collector().is_none() && held.upgrade().is_none());
    }
}
