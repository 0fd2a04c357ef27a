//! Values on their way into what all threads share: histograms of the SDK, windows of latencies. Each record there costs a
//! wait for lines that another CPU has just written, so a thread keeps what it has seen of each series and hands over many
//! at a time: when it has [`MANY`], when it ends, and before anybody reads. The SDK runs the callbacks of instruments
//! before it reads histograms, so that a collection misses nothing.

use std::{
    cell::Cell,
    marker::PhantomData,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering},
    },
};

use crate::status::Timed;

/// Values of one series that a thread keeps at most.
const MANY: usize = 32;

/// Where the values of one series go.
pub(crate) trait Sink<T>: Send + Sync + 'static {
    fn take(&self, values: &[T]);
}

/// What can be left in a place that another thread reads.
pub(crate) trait Value: Copy + Default + 'static {
    type Place: Default + Send + Sync;
    fn put(self, place: &Self::Place);
    fn of(place: &Self::Place) -> Self;
}

impl Value for u64 {
    type Place = AtomicU64;

    fn put(self, place: &AtomicU64) {
        place.store(self, Ordering::Relaxed);
    }

    fn of(place: &AtomicU64) -> Self {
        place.load(Ordering::Relaxed)
    }
}

impl Value for f64 {
    type Place = AtomicU64;

    fn put(self, place: &AtomicU64) {
        self.to_bits().put(place);
    }

    fn of(place: &AtomicU64) -> Self {
        Self::from_bits(Value::of(place))
    }
}

impl Value for Timed {
    type Place = (AtomicU64, AtomicU32);

    fn put(self, (nanos, weight): &Self::Place) {
        self.nanos.put(nanos);
        weight.store(self.weight, Ordering::Relaxed);
    }

    fn of((nanos, weight): &Self::Place) -> Self {
        Self { nanos: Value::of(nanos), weight: weight.load(Ordering::Relaxed) }
    }
}

/// One series, as one thread has it: the only one that writes.
pub(crate) struct Point<T: Value, S: Sink<T>>(Arc<Held<T, S>>, PhantomData<Cell<()>>);

/// A ring with one writer, who takes no lock, and any number of readers, who do.
struct Held<T: Value, S: Sink<T>> {
    /// Values so far; the last [`MANY`] have their places.
    written: AtomicUsize,
    /// How many of them have been handed over.
    taken: AtomicUsize,
    places: [T::Place; MANY],
    handing_over: Mutex<()>,
    sink: S,
}

trait HandOver: Send + Sync {
    fn hand_over(&self);
}

impl<T: Value, S: Sink<T>> Point<T, S> {
    pub(crate) fn record(&self, value: T) {
        let held = &*self.0;
        let written = held.written.load(Ordering::Relaxed);
        value.put(&held.places[written % MANY]);
        let written = written.wrapping_add(1);
        held.written.store(written, Ordering::Release);
        // A place is written again only once what was in it has been read.
        if written.wrapping_sub(held.taken.load(Ordering::Acquire)) >= MANY {
            held.hand_over();
        }
    }
}

impl<T: Value, S: Sink<T>> HandOver for Held<T, S> {
    fn hand_over(&self) {
        let _alone = lock(&self.handing_over);
        let (taken, written) = (self.taken.load(Ordering::Relaxed), self.written.load(Ordering::Acquire));
        let count = written.wrapping_sub(taken).min(MANY);
        if count == 0 {
            return;
        }
        let mut values = [T::default(); MANY];
        for (at, value) in values.iter_mut().enumerate().take(count) {
            *value = T::of(&self.places[taken.wrapping_add(at) % MANY]);
        }
        self.taken.store(written, Ordering::Release);
        self.sink.take(values.get(..count).unwrap_or_default());
    }
}

impl<T: Value, S: Sink<T>> Drop for Held<T, S> {
    fn drop(&mut self) {
        self.hand_over();
    }
}

/// What the threads still have.
#[derive(Default)]
pub(crate) struct Backlog(Mutex<Vec<Weak<dyn HandOver>>>);

impl Backlog {
    /// A series for one thread.
    pub(crate) fn point<T: Value, S: Sink<T>>(&self, sink: S) -> Point<T, S> {
        let held = Arc::new(Held {
            written: AtomicUsize::new(0),
            taken: AtomicUsize::new(0),
            places: Default::default(),
            handing_over: Mutex::new(()),
            sink,
        });
        let known: Arc<dyn HandOver> = Arc::clone(&held) as _;
        let mut all = lock(&self.0);
        // Threads and caches may come and go with nobody reading.
        if all.len() == all.capacity() {
            all.retain(|one| one.strong_count() > 0);
        }
        all.push(Arc::downgrade(&known));
        Point(held, PhantomData)
    }

    /// Hands over everything.
    pub(crate) fn clear(&self) {
        let all: Vec<_> = {
            let mut all = lock(&self.0);
            all.retain(|one| one.strong_count() > 0);
            all.iter().filter_map(Weak::upgrade).collect()
        };
        all.iter().for_each(|one| one.hand_over());
    }
}

fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[derive(Clone, Default)]
    struct Sum(Arc<Mutex<Vec<u64>>>);

    impl Sink<u64> for Sum {
        fn take(&self, values: &[u64]) {
            lock(&self.0).extend(values);
        }
    }

    impl Sum {
        fn seen(&self) -> usize {
            lock(&self.0).len()
        }
    }

    #[test]
    fn values_are_handed_over_in_their_order_when_there_are_many_and_when_somebody_reads() {
        let (backlog, sum) = (Backlog::default(), Sum::default());
        let point = backlog.point(sum.clone());
        let last = u64::try_from(MANY).unwrap();
        (1..last).for_each(|value| point.record(value));
        assert_eq!(sum.seen(), 0);
        point.record(last);
        assert_eq!(sum.seen(), MANY);
        point.record(last + 1);
        backlog.clear();
        backlog.clear();
        assert_eq!(*lock(&sum.0), (1..=last + 1).collect::<Vec<_>>());
    }

    #[test]
    fn what_a_thread_leaves_behind_is_not_lost_and_not_kept() {
        let (backlog, sum) = (Backlog::default(), Sum::default());
        thread::scope(|scope| {
            scope.spawn(|| backlog.point(sum.clone()).record(1)).join().unwrap();
        });
        assert_eq!(sum.seen(), 1);
        for _ in 0..10_000 {
            backlog.point(sum.clone()).record(1);
        }
        assert!(lock(&backlog.0).len() < 100);
        assert_eq!(sum.seen(), 10_001);
    }

    #[test]
    fn threads_that_record_while_others_read_lose_nothing_and_repeat_nothing() {
        let (backlog, sum) = (Backlog::default(), Sum::default());
        // Each holds it while it records.
        let running = Arc::new(());
        thread::scope(|scope| {
            for _ in 0..4 {
                let (running, backlog, sum) = (Arc::clone(&running), &backlog, &sum);
                scope.spawn(move || {
                    let _running = running;
                    let point = backlog.point(sum.clone());
                    (0..10_000).for_each(|value| point.record(value));
                });
            }
            for _ in 0..2 {
                scope.spawn(|| {
                    while Arc::strong_count(&running) > 1 {
                        backlog.clear();
                    }
                });
            }
        });
        let mut seen = lock(&sum.0).clone();
        seen.sort_unstable();
        assert!(seen.iter().eq((0..10_000).flat_map(|value| [value; 4]).collect::<Vec<_>>().iter()));
    }
}
