//! What every call writes, divided among threads: one place would go from core to core with each.

use std::{
    array,
    cell::Cell,
    marker::PhantomData,
    sync::atomic::{AtomicU64, AtomicUsize, Ordering},
};

use crossbeam_utils::CachePadded;

/// How many numbers there are for threads.
pub(crate) const THREADS: usize = 16;
/// Numbers from 0 on that no two threads have at a time. The others are dealt round, so that many threads do not share
/// one.
const OWNED: usize = 8;
/// Few, as each is memory of every cache.
const STRIPES: usize = 4;
/// Counters in two lines of a processor's cache.
const PIECE: usize = 16;

const _: () = assert!(STRIPES <= OWNED);

thread_local! {
    static NUMBER: Cell<usize> = const { Cell::new(usize::MAX) };
    static AT_END: AtEnd = const { AtEnd };
}

/// A bit for each owned number that a living thread has.
static TAKEN: AtomicUsize = AtomicUsize::new(0);

/// Gives a thread's number back.
struct AtEnd;

impl Drop for AtEnd {
    fn drop(&mut self) {
        // Destructors that run after this one share.
        let number = NUMBER.replace(OWNED);
        if number < OWNED {
            // The next thread to have it goes on from what this one has counted.
            TAKEN.fetch_and(!(1 << number), Ordering::Release);
        }
    }
}

/// A small number of this thread's: its own, or one that it may share with others.
#[inline]
pub(crate) fn stripe() -> usize {
    match NUMBER.get() {
        number if number < THREADS => number,
        _ => first_stripe(),
    }
}

#[cold]
fn first_stripe() -> usize {
    static SHARED: AtomicUsize = AtomicUsize::new(0);
    let lowest_free = |taken: usize| {
        let free = taken.trailing_ones() as usize;
        (free < OWNED).then_some(taken | 1 << free)
    };
    // Without a destructor to come it would never be given back.
    let taken = AT_END
        .try_with(|_| TAKEN.fetch_update(Ordering::Acquire, Ordering::Relaxed, lowest_free))
        .unwrap_or(Err(0));
    let number = match taken {
        Ok(taken) => taken.trailing_ones() as usize,
        Err(_) => OWNED + SHARED.fetch_add(1, Ordering::Relaxed) % (THREADS - OWNED),
    };
    NUMBER.set(number);
    number
}

/// One thread's of several rows of counters.
#[derive(Clone, Copy)]
pub(crate) struct Row<'a, const N: usize> {
    counters: &'a [AtomicU64; N],
    shared: bool,
    /// It is of no use to another thread.
    here: PhantomData<*const ()>,
}

impl<'a, const N: usize> Row<'a, N> {
    /// Nobody may write to `rows` in any other way.
    #[inline]
    pub(crate) fn mine(rows: &'a [CachePadded<[AtomicU64; N]>; THREADS]) -> Self {
        let number = stripe();
        Self { counters: &rows[number], shared: number >= OWNED, here: PhantomData }
    }

    #[inline]
    pub(crate) fn get(self, at: usize) -> u64 {
        self.counters[at].load(Ordering::Relaxed)
    }

    /// What it was before.
    #[inline]
    pub(crate) fn add(self, at: usize, by: u64) -> u64 {
        add(&self.counters[at], by, self.shared)
    }
}

/// What it was before. Where no other thread writes, that takes no locked instruction: those are a third of a hit.
#[inline]
fn add(counter: &AtomicU64, by: u64, shared: bool) -> u64 {
    if shared {
        return counter.fetch_add(by, Ordering::Relaxed);
    }
    let before = counter.load(Ordering::Relaxed);
    counter.store(before.wrapping_add(by), Ordering::Relaxed);
    before
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

/// Numbered counters of what lies below memory: some stripes for the first threads, one each, as many for the others.
pub(crate) struct Counters([Box<[CachePadded<[AtomicU64; PIECE]>]>; 2 * STRIPES]);

impl Counters {
    pub(crate) fn new(count: usize) -> Self {
        Self(array::from_fn(|_| (0..count.div_ceil(PIECE)).map(|_| CachePadded::default()).collect()))
    }

    pub(crate) fn add(&self, at: usize, by: u64) {
        let number = stripe();
        let shared = number >= STRIPES;
        let mine = if shared { STRIPES + number % STRIPES } else { number };
        add(&self.0[mine][at / PIECE][at % PIECE], by, shared);
    }

    pub(crate) fn sum(&self, at: usize) -> u64 {
        self.0.iter().map(|rows| rows[at / PIECE][at % PIECE].load(Ordering::Relaxed)).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_of_all_threads_add_up() {
        let counters = Counters::new(PIECE + 3);
        std::thread::scope(|scope| {
            for _ in 0..2 * THREADS {
                scope.spawn(|| (0..1000).for_each(|n| counters.add(n % (PIECE + 3), 2)));
            }
        });
        let all: u64 = (0..PIECE + 3).map(|at| counters.sum(at)).sum();
        assert_eq!(all, 2 * 1000 * 2 * THREADS as u64);
    }
    #[test]
    fn rows_of_threads_that_come_and_go_add_up() {
        let rows: [CachePadded<[AtomicU64; 2]>; THREADS] = Default::default();
        let (turns, adds) = (50, 1_000);
        // More at a time than there are numbers, and each number in many hands.
        std::thread::scope(|scope| {
            for _ in 0..2 * THREADS {
                scope.spawn(|| {
                    for _ in 0..turns {
                        std::thread::scope(|scope| {
                            scope.spawn(|| {
                                for _ in 0..adds {
                                    Row::mine(&rows).add(1, 1);
                                }
                            });
                        });
                    }
                });
            }
        });
        let all: u64 = rows.iter().map(|row| row[1].load(Ordering::Relaxed)).sum();
        assert_eq!(all, 2 * THREADS as u64 * turns * adds);
    }
}
