//! Values on their way into what all threads share: histograms of the SDK, windows of latencies. Each record there costs a
//! wait for lines that another CPU has just written, so a thread keeps what it has seen of each series and hands over many
//! at a time: when it has [`MANY`], when it ends, and before anybody reads. The SDK runs the callbacks of instruments
//! before it reads histograms, so that a collection misses nothing.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

/// Values of one series that a thread keeps at most.
const MANY: usize = 32;

/// Where the values of one series go.
pub(crate) trait Sink<T>: Send + Sync + 'static {
    fn take(&self, values: &[T]);
}

/// One series, as one thread has it.
pub(crate) struct Point<T: Value, S: Sink<T>>(Arc<Held<T, S>>);

pub(crate) trait Value: Copy + Default + Send + 'static {}
impl<T: Copy + Default + Send + 'static> Value for T {}

struct Held<T: Value, S: Sink<T>> {
    values: Mutex<Values<T>>,
    sink: S,
}

struct Values<T> {
    all: [T; MANY],
    count: usize,
}

trait HandOver: Send + Sync {
    fn hand_over(&self);
}

impl<T: Value, S: Sink<T>> Point<T, S> {
    pub(crate) fn record(&self, value: T) {
        let mut values = lock(&self.0.values);
        let count = values.count;
        if let Some(place) = values.all.get_mut(count) {
            *place = value;
            values.count += 1;
        }
        if values.count == MANY {
            values.hand_over(&self.0.sink);
        }
    }
}

impl<T> Values<T> {
    fn hand_over(&mut self, sink: &impl Sink<T>) {
        sink.take(self.all.get(..self.count).unwrap_or_default());
        self.count = 0;
    }
}

impl<T: Value, S: Sink<T>> HandOver for Held<T, S> {
    fn hand_over(&self) {
        lock(&self.values).hand_over(&self.sink);
    }
}

impl<T: Value, S: Sink<T>> Drop for Held<T, S> {
    fn drop(&mut self) {
        self.values.get_mut().unwrap_or_else(PoisonError::into_inner).hand_over(&self.sink);
    }
}

/// What the threads still have.
#[derive(Default)]
pub(crate) struct Backlog(Mutex<Vec<Weak<dyn HandOver>>>);

impl Backlog {
    /// A series for one thread.
    pub(crate) fn point<T: Value, S: Sink<T>>(&self, sink: S) -> Point<T, S> {
        let values = Values { all: [T::default(); MANY], count: 0 };
        let held = Arc::new(Held { values: Mutex::new(values), sink });
        let known: Arc<dyn HandOver> = Arc::clone(&held) as _;
        let mut all = lock(&self.0);
        // Threads and caches may come and go with nobody reading.
        if all.len() == all.capacity() {
            all.retain(|one| one.strong_count() > 0);
        }
        all.push(Arc::downgrade(&known));
        Point(held)
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
    fn threads_that_record_while_others_read_lose_nothing() {
        let (backlog, sum) = (Backlog::default(), Sum::default());
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    let point = backlog.point(sum.clone());
                    (0..1_000).for_each(|value| point.record(value));
                });
            }
            (0..100).for_each(|_| backlog.clear());
        });
        assert_eq!(sum.seen(), 4_000);
    }
}
