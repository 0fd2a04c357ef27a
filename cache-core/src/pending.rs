//! Invalidations that a level has not acknowledged. Until it has, this node treats the level as empty for them.

use std::{
    collections::HashMap,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

/// Most keys remembered per level; one more widens the record to the whole cache. Documented in docs/semantics.md.
pub(crate) const MAX_PENDING: usize = 10_000;

/// What one level still has to hear.
#[derive(Default)]
pub(crate) struct Pending {
    /// Entries in `state`, to answer the usual question without the lock.
    count: AtomicUsize,
    state: Mutex<State>,
    replaying: AtomicBool,
}

#[derive(Default)]
struct State {
    /// Each key with the number of its latest record, so that an acknowledgement does not cover a later one.
    keys: HashMap<Box<str>, u64>,
    clear: Option<u64>,
    next: u64,
}

/// A piece of work for the replay.
pub(crate) enum Due {
    Keys(Vec<(Box<str>, u64)>),
    Clear(u64),
}

impl Pending {
    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn recount(&self, state: &State) {
        self.count.store(state.keys.len() + usize::from(state.clear.is_some()), Ordering::Release);
    }

    pub(crate) fn len(&self) -> usize {
        self.count.load(Ordering::Acquire)
    }

    /// Whether the level must be treated as not having this key.
    pub(crate) fn masks(&self, id: &str) -> bool {
        if self.len() == 0 {
            return false;
        }
        let state = self.lock();
        state.clear.is_some() || state.keys.contains_key(id)
    }

    pub(crate) fn add(&self, id: &str) {
        let mut state = self.lock();
        state.next += 1;
        let number = state.next;
        if let Some(known) = state.keys.get_mut(id) {
            *known = number;
        } else if state.clear.is_some() || state.keys.len() >= MAX_PENDING {
            // Never dropped for space: widened.
            state.keys.clear();
            state.clear = Some(number);
        } else {
            state.keys.insert(id.into(), number);
        }
        self.recount(&state);
    }

    pub(crate) fn add_clear(&self) {
        let mut state = self.lock();
        state.next += 1;
        state.clear = Some(state.next);
        state.keys.clear();
        self.recount(&state);
    }

    pub(crate) fn due(&self, most: usize) -> Option<Due> {
        let state = self.lock();
        if let Some(number) = state.clear {
            return Some(Due::Clear(number));
        }
        let keys: Vec<_> = state.keys.iter().take(most).map(|(id, n)| (id.clone(), *n)).collect();
        (!keys.is_empty()).then_some(Due::Keys(keys))
    }

    pub(crate) fn delivered(&self, id: &str, number: u64) {
        let mut state = self.lock();
        if state.keys.get(id) == Some(&number) {
            state.keys.remove(id);
        }
        self.recount(&state);
    }

    pub(crate) fn delivered_clear(&self, number: u64) {
        let mut state = self.lock();
        if state.clear == Some(number) {
            state.clear = None;
        }
        self.recount(&state);
    }

    /// Whether the caller should start the replay: nobody else does it.
    pub(crate) fn claim(&self) -> bool {
        self.len() > 0 && !self.replaying.swap(true, Ordering::AcqRel)
    }

    /// The replay ends. `false`: more came in, go on.
    pub(crate) fn release(&self) -> bool {
        self.replaying.store(false, Ordering::Release);
        !self.claim()
    }

    /// What is left, for the report of `close`.
    pub(crate) fn undelivered(&self) -> (Vec<String>, bool) {
        let state = self.lock();
        (state.keys.keys().map(|id| id.to_string()).collect(), state.clear.is_some())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_later_record_is_not_covered_by_an_earlier_acknowledgement() {
        let pending = Pending::default();
        pending.add("a");
        let Some(Due::Keys(first)) = pending.due(10) else { panic!() };
        pending.add("a");
        pending.delivered("a", first[0].1);
        assert!(pending.masks("a"));
        let Some(Due::Keys(second)) = pending.due(10) else { panic!() };
        pending.delivered("a", second[0].1);
        assert!(!pending.masks("a") && pending.len() == 0);
    }

    #[test]
    fn overflow_widens_to_a_clear() {
        let pending = Pending::default();
        for n in 0..=MAX_PENDING {
            pending.add(&n.to_string());
        }
        assert!(pending.masks("never added"));
        let Some(Due::Clear(number)) = pending.due(10) else { panic!() };
        pending.add("later");
        pending.delivered_clear(number);
        assert!(pending.masks("later"), "a clear that has grown is sent again");
    }
}
