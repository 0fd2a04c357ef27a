//! What every call writes, divided among threads: one place would go from core to core with each.

use std::{
    array,
    cell::Cell,
    sync::atomic::{AtomicU64, AtomicUsize, Ordering},
};

use crossbeam_utils::CachePadded;

/// Threads that have a number of their own.
pub(crate) const THREADS: usize = 16;
/// Few: what lies below memory is counted here, and each is memory of every cache.
const STRIPES: usize = 4;
/// Counters in two lines of a processor's cache.
const ROW: usize = 16;

thread_local! {
    static STRIPE: Cell<usize> = const { Cell::new(usize::MAX) };
}

/// A small number of this thread's own, up to those that they share when there are many.
#[inline]
pub(crate) fn stripe() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    STRIPE.with(|cell| {
        let at = cell.get();
        if at < THREADS {
            return at;
        }
        let at = NEXT.fetch_add(1, Ordering::Relaxed) % THREADS;
        cell.set(at);
        at
    })
}

/// This thread's of several places.
pub(crate) struct Striped<T>([CachePadded<T>; STRIPES]);

impl<T> Striped<T> {
    pub(crate) fn new(make: impl Fn() -> T) -> Self {
        Self(array::from_fn(|_| CachePadded::new(make())))
    }

    pub(crate) fn mine(&self) -> &T {
        &self.0[stripe() % STRIPES]
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &T> {
        self.0.iter().map(|padded| &**padded)
    }
}

/// Numbered counters.
pub(crate) struct Counters(Striped<Box<[CachePadded<[AtomicU64; ROW]>]>>);

impl Counters {
    pub(crate) fn new(count: usize) -> Self {
        Self(Striped::new(|| (0..count.div_ceil(ROW)).map(|_| CachePadded::default()).collect()))
    }

    pub(crate) fn add(&self, at: usize, by: u64) {
        self.0.mine()[at / ROW][at % ROW].fetch_add(by, Ordering::Relaxed);
    }

    pub(crate) fn sum(&self, at: usize) -> u64 {
        self.0.iter().map(|rows| rows[at / ROW][at % ROW].load(Ordering::Relaxed)).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_of_all_threads_add_up() {
        let counters = Counters::new(ROW + 3);
        std::thread::scope(|scope| {
            for _ in 0..2 * STRIPES {
                scope.spawn(|| (0..1000).for_each(|n| counters.add(n % (ROW + 3), 2)));
            }
        });
        let all: u64 = (0..ROW + 3).map(|at| counters.sum(at)).sum();
        assert_eq!(all, 2 * 1000 * 2 * STRIPES as u64);
    }
}
