//! What each look-up takes a counted reference to. It lies in several places, each with a count of its own, and a thread
//! keeps to one of them, so that CPUs do not fight over one count.

use std::{
    array,
    cell::Cell,
    ops::Deref,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use arc_swap::ArcSwapOption;
use crossbeam_utils::CachePadded;

const PLACES: usize = 4;

thread_local! {
    static PLACE: Cell<usize> = const { Cell::new(PLACES) };
}

fn place() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    if PLACE.get() == PLACES {
        PLACE.set(NEXT.fetch_add(1, Ordering::Relaxed) % PLACES);
    }
    PLACE.get()
}

/// As it lies in one place.
pub(crate) struct Placed<T>(Arc<T>);

impl<T> Deref for Placed<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

pub(crate) struct AtHand<T>([CachePadded<ArcSwapOption<Placed<T>>>; PLACES]);

impl<T> Default for AtHand<T> {
    fn default() -> Self {
        Self(array::from_fn(|_| CachePadded::default()))
    }
}

impl<T> AtHand<T> {
    pub(crate) fn get(&self) -> Option<Arc<Placed<T>>> {
        self.0[place()].load_full()
    }

    /// Replaces it at every place. Calls that have begun keep what was there before.
    pub(crate) fn put(&self, next: Option<&Arc<T>>) {
        for place in &self.0 {
            place.store(next.map(|next| Arc::new(Placed(Arc::clone(next)))));
        }
    }
}
