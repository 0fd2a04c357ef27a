//! Objects that a store lets go of while a lock of the cache is held. Destructors of values may be anything, and call the
//! cache as well, so they run once the lock has been released.

use std::cell::{Cell, RefCell};

use crate::Object;

thread_local! {
    /// Locks that this thread holds.
    static LOCKS: Cell<usize> = const { Cell::new(0) };
    /// Whether anything waits for their end.
    static WAITS: Cell<bool> = const { Cell::new(false) };
    static LIMBO: RefCell<Vec<Object>> = const { RefCell::new(Vec::new()) };
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
    WAITS.set(false);
    // One by one: nothing is borrowed when a destructor runs, and the room is kept.
    while let Ok(Some(gone)) = LIMBO.try_with(|limbo| limbo.borrow_mut().pop()) {
        drop(gone);
    }
}

impl Object {
    /// Drops an object that a store has let go of; where the cache that called the store holds a lock, after that. A value's
    /// destructor may use the cache. To be called with no lock of the store held.
    pub fn let_go(self) {
        if LOCKS.get() == 0 {
            return;
        }
        // Fails in a thread that is about to end: then it is dropped here.
        let _ = LIMBO.try_with(|limbo| {
            limbo.borrow_mut().push(self);
            WAITS.set(true);
        });
    }
}

#[cfg(test)]
mod tests {
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
            self.1.take().into_iter().for_each(Object::let_go);
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn objects_wait_for_the_last_lock() {
        let rung = Arc::new(AtomicUsize::new(0));
        let timeline = Timeline::new(Moment::ORIGIN, Duration::MAX, Duration::MAX);
        let bell = |inner| Object::for_tests(Arc::new(Bell(Arc::clone(&rung), inner)), timeline, 0);
        let is_rung = |times| rung.load(Ordering::Relaxed) == times;
        bell(None).let_go();
        assert!(is_rung(1), "no lock is held");

        let outer = Hold::begin();
        let inner = Hold::begin();
        // One that comes from a destructor waits for that one's locks.
        bell(Some(bell(None))).let_go();
        drop(inner);
        assert!(is_rung(1));
        drop(outer);
        assert!(is_rung(3));
    }
}
