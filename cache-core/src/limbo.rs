//! Objects that a store lets go of while a lock of the cache, or of the store's engine, is held. Destructors of values may
//! be anything, and call the cache as well, so they run once the lock has been released.

use std::{
    cell::{Cell, RefCell},
    mem::ManuallyDrop,
};

use crate::Object;

thread_local! {
    /// Locks that this thread holds.
    static LOCKS: Cell<usize> = const { Cell::new(0) };
    /// Whether anything waits for their end.
    static WAITS: Cell<bool> = const { Cell::new(false) };
    /// A call further up is letting go of what has waited.
    static EMPTYING: Cell<bool> = const { Cell::new(false) };
    static LIMBO: RefCell<Vec<Object>> = const { RefCell::new(Vec::new()) };
    /// The same in a thread that ends, where destructors still run when that is gone.
    static LATE: ManuallyDrop<RefCell<Vec<Object>>> = const { ManuallyDrop::new(RefCell::new(Vec::new())) };
}

/// While it lives, objects wait. To be dropped after the lock.
pub(crate) struct Hold(());

impl Hold {
    #[inline]
    pub(crate) fn begin() -> Self {
        LOCKS.set(LOCKS.get() + 1);
        Self(())
    }
}

impl Drop for Hold {
    #[inline]
    fn drop(&mut self) {
        LOCKS.set(LOCKS.get() - 1);
        if WAITS.get() && LOCKS.get() == 0 {
            empty();
        }
    }
}

#[cold]
fn empty() {
    // What a destructor lets go of in turn waits for that one's end: no recursion, however many there are.
    if EMPTYING.get() {
        return;
    }
    let _emptying = Emptying::begin();
    // One by one: nothing is borrowed when a destructor runs, and the room is kept.
    while let Some(gone) = next() {
        drop(gone);
    }
    WAITS.set(false);
}

fn next() -> Option<Object> {
    LIMBO.try_with(|limbo| limbo.borrow_mut().pop()).unwrap_or_else(|_ends| {
        let next = LATE.with(|late| late.borrow_mut().pop());
        if next.is_none() {
            // Nobody else frees its room.
            LATE.with(|late| drop(late.take()));
        }
        next
    })
}

/// Ends as well where a destructor panics; what still waits then goes with the next lock.
struct Emptying(());

impl Emptying {
    fn begin() -> Self {
        EMPTYING.set(true);
        Self(())
    }
}

impl Drop for Emptying {
    fn drop(&mut self) {
        EMPTYING.set(false);
    }
}

impl Object {
    /// For whoever is about to drop an object: where the cache holds a lock in this thread, the value stays until that
    /// is over. A value's destructor may use the cache. To be called with no lock of the store held.
    #[inline]
    pub fn outlive_locks(&self) {
        if LOCKS.get() > 0 {
            self.wait();
        }
    }

    /// For a store: makes a call of an engine that may drop what it held in the midst of it, with a lock of its own held.
    /// Objects that [outlive locks](Self::outlive_locks) wait for its end. Costs two thread-local counts.
    #[inline]
    pub fn hold_during<R>(call: impl FnOnce() -> R) -> R {
        let _hold = Hold::begin();
        call()
    }

    fn wait(&self) {
        let wait = |limbo: &RefCell<Vec<Self>>| limbo.borrow_mut().push(self.clone());
        LIMBO.try_with(wait).unwrap_or_else(|_ends| LATE.with(|late| wait(late)));
        WAITS.set(true);
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::{
        sync::{
            Arc,
            atomic::{AtomicUsize, Ordering},
        },
        time::Duration,
    };

    use super::*;
    use crate::{Moment, Timeline};

    /// Counts its end, and lets go of what it has.
    struct Bell(Arc<AtomicUsize>, Option<Object>);

    impl Drop for Bell {
        fn drop(&mut self) {
            let _lock = Hold::begin();
            self.1.take().iter().for_each(Object::outlive_locks);
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn objects_wait_for_the_last_lock() {
        let rung = Arc::new(AtomicUsize::new(0));
        let timeline = Timeline::new(Moment::ORIGIN, Duration::MAX, Duration::MAX);
        let bell = |inner| Object::for_tests(Arc::new(Bell(Arc::clone(&rung), inner)), timeline, 0);
        let is_rung = |times| rung.load(Ordering::Relaxed) == times;
        bell(None).outlive_locks();
        assert!(is_rung(1), "no lock is held");

        let outer = Hold::begin();
        let inner = Hold::begin();
        // One that comes from a destructor waits for that one's locks.
        bell(Some(bell(None))).outlive_locks();
        drop(inner);
        assert!(is_rung(1));
        drop(outer);
        assert!(is_rung(3));
    }

    /// Lets go of the next one under a lock, as a store does in a destructor's call.
    struct Chain(usize, Arc<AtomicUsize>);

    impl Drop for Chain {
        fn drop(&mut self) {
            self.1.fetch_add(1, Ordering::Relaxed);
            if self.0 > 0 {
                let next = chain(self.0 - 1, &self.1);
                Object::hold_during(|| next.outlive_locks());
            }
        }
    }

    fn chain(length: usize, ended: &Arc<AtomicUsize>) -> Object {
        let timeline = Timeline::new(Moment::ORIGIN, Duration::MAX, Duration::MAX);
        Object::for_tests(Arc::new(Chain(length, Arc::clone(ended))), timeline, 0)
    }

    #[test]
    fn a_long_chain_of_destructors_does_not_nest() {
        const LENGTH: usize = 200_000;
        let ended = Arc::new(AtomicUsize::new(0));
        Object::hold_during(|| chain(LENGTH, &ended).outlive_locks());
        assert_eq!(ended.load(Ordering::Relaxed), LENGTH + 1);
    }

    /// Lets go of the last of a value whose destructor panics.
    pub(crate) fn let_go_of_one_that_panics() {
        struct Panics;
        impl Drop for Panics {
            fn drop(&mut self) {
                std::panic::resume_unwind(Box::new("on purpose"));
            }
        }
        let timeline = Timeline::new(Moment::ORIGIN, Duration::MAX, Duration::MAX);
        Object::for_tests(Arc::new(Panics), timeline, 0).outlive_locks();
    }

    #[test]
    fn after_a_destructor_that_panics_the_others_go_with_the_next_lock() {
        let ended = Arc::new(AtomicUsize::new(0));
        let panicked = std::panic::catch_unwind(|| {
            Object::hold_during(|| {
                chain(0, &ended).outlive_locks();
                let_go_of_one_that_panics();
            });
        });
        assert!(panicked.is_err());
        assert_eq!(ended.load(Ordering::Relaxed), 0);
        Object::hold_during(|| ());
        assert_eq!(ended.load(Ordering::Relaxed), 1);
    }

    /// What a thread has of its own may use a cache when it goes, with what is here gone before.
    #[test]
    fn objects_wait_also_where_a_thread_ends() {
        struct Last(Arc<AtomicUsize>);
        impl Drop for Last {
            fn drop(&mut self) {
                let rung = Arc::new(AtomicUsize::new(0));
                let lock = Hold::begin();
                for _ in 0..3 {
                    chain(0, &rung).outlive_locks();
                }
                let early = rung.load(Ordering::Relaxed);
                drop(lock);
                self.0.store(100 * early + rung.load(Ordering::Relaxed), Ordering::Relaxed);
            }
        }
        thread_local! {
            static LAST: RefCell<Option<Last>> = const { RefCell::new(None) };
        }
        let seen = Arc::new(AtomicUsize::new(usize::MAX));
        let last = Last(Arc::clone(&seen));
        let thread = std::thread::spawn(move || {
            LAST.set(Some(last));
            Object::hold_during(|| chain(0, &Arc::default()).outlive_locks());
        });
        thread.join().unwrap();
        assert_eq!(seen.load(Ordering::Relaxed), 3);
    }
}
