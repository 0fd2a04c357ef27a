//! The journal: what a level has not acknowledged. Until it has, this node treats the level as empty for it.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use crate::{
    Moment, Scope,
    mark::Reach,
    tags::TAGS_MAX,
    unsaved::{Unsaved, Values},
};

/// Most keys and tags remembered per level; one more widens the record to the whole cache. Documented in docs/semantics.md.
const MAX_PENDING: usize = 10_000;

/// What one level still has to hear.
#[derive(Default)]
pub(crate) struct Pending {
    /// Entries in `state`, to answer the usual question without the lock.
    count: AtomicUsize,
    /// Keys in `behind`, for the same.
    behind: AtomicUsize,
    state: Mutex<State>,
    /// Values given up.
    lost: AtomicUsize,
    replaying: AtomicBool,
    /// Held while the level is told: what is on its way there must have ended before an update of the key begins.
    pub(crate) telling: tokio::sync::Mutex<()>,
}

#[derive(Default)]
struct State {
    /// Each key with the number of its latest record, so that an acknowledgement does not cover a later one.
    keys: HashMap<Box<str>, u64>,
    /// Values that were to be stored under some of them.
    values: Values,
    /// Keys whose values are on their way, after their writers have been answered: how many of each.
    behind: HashMap<Box<str>, usize>,
    tags: HashMap<Box<str>, (u64, Reach)>,
    clear: Option<u64>,
    next: u64,
}

/// A piece of work for the replay.
pub(crate) enum Due {
    Keys(Vec<(Box<str>, u64)>),
    /// All of one reach.
    Tags(Reach, Vec<(Box<str>, u64)>),
    Clear(u64),
    /// Keys whose values may still be stored, once nothing else is due: each with its value.
    Values(Vec<(Box<str>, u64, Arc<Unsaved>)>),
}

impl Pending {
    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn recount(&self, state: &State) {
        let count = state.keys.len() + state.tags.len() + usize::from(state.clear.is_some());
        self.count.store(count, Ordering::Release);
    }

    pub(crate) fn len(&self) -> usize {
        self.count.load(Ordering::Acquire)
    }

    /// Whether the level must be treated as not having this key.
    pub(crate) fn masks(&self, id: &str) -> bool {
        self.has(id) || self.behind.load(Ordering::Acquire) > 0 && self.lock().behind.contains_key(id)
    }

    /// Whether the level has yet to hear of this key.
    pub(crate) fn has(&self, id: &str) -> bool {
        if self.len() == 0 {
            return false;
        }
        let state = self.lock();
        state.clear.is_some() || state.keys.contains_key(id)
    }

    /// A value is on its way: what the level has until then is older.
    pub(crate) fn set_out(&self, id: &str) {
        let mut state = self.lock();
        match state.behind.get_mut(id) {
            Some(values) => *values += 1,
            None => drop(state.behind.insert(id.into(), 1)),
        }
        self.behind.store(state.behind.len(), Ordering::Release);
    }

    /// It is there, or has been noted otherwise.
    pub(crate) fn arrived(&self, id: &str) {
        let mut state = self.lock();
        if let Some(values) = state.behind.get_mut(id) {
            *values -= 1;
            if *values == 0 {
                state.behind.remove(id);
            }
        }
        self.behind.store(state.behind.len(), Ordering::Release);
    }

    /// How far the level must be treated as not having entries with these tags.
    pub(crate) fn reaches(&self, tags: &[Box<str>]) -> Option<Reach> {
        if tags.is_empty() || self.len() == 0 {
            return None;
        }
        let state = self.lock();
        let reaches = || tags.iter().filter_map(|tag| state.tags.get(tag).map(|(_, reach)| *reach));
        if reaches().any(|reach| reach == Reach::Purge) { Some(Reach::Purge) } else { reaches().next() }
    }

    pub(crate) fn add(&self, id: &str) {
        let mut state = self.lock();
        let lost = state.add(id) + usize::from(state.values.take(id).is_some());
        self.lose(lost);
        self.recount(&state);
    }

    /// Notes that a level may or may not have taken a value of a key. One that waits to be stored there goes on waiting,
    /// until its writer says what it has come to.
    pub(crate) fn doubt(&self, id: &str) {
        let mut state = self.lock();
        let lost = state.add(id);
        self.lose(lost);
        self.recount(&state);
    }

    /// Notes that a level has not taken a value, and may hold the one before it.
    pub(crate) fn add_value(&self, id: &str, value: Unsaved, now: Moment) {
        let mut state = self.lock();
        let lost = state.add(id);
        self.lose(lost);
        let lost = if state.keys.contains_key(id) { state.values.put(id, value, now) } else { 1 };
        self.lose(lost);
        self.recount(&state);
    }

    fn lose(&self, values: usize) {
        self.lost.fetch_add(values, Ordering::Relaxed);
    }

    /// Values that were given up so far: their keys are only invalidated.
    pub(crate) fn lost(&self) -> usize {
        self.lost.load(Ordering::Relaxed)
    }

    /// Notes that a value may not be stored any more, unless there is a later record.
    pub(crate) fn give_up(&self, id: &str, number: u64) {
        let mut state = self.lock();
        if state.keys.get(id) == Some(&number) && state.values.take(id).is_some() {
            self.lose(1);
        }
    }

    pub(crate) fn add_tags(&self, tags: &[Box<str>], reach: Reach) {
        let mut state = self.lock();
        let mut lost = 0;
        for tag in tags {
            let number = state.number();
            if let Some((known, reached)) = state.tags.get_mut(tag) {
                *known = number;
                if reach == Reach::Purge {
                    *reached = reach;
                }
            } else if state.is_full() {
                lost += state.widen(number);
            } else {
                state.tags.insert(tag.clone(), (number, reach));
            }
        }
        self.lose(lost);
        self.recount(&state);
    }

    pub(crate) fn add_clear(&self) {
        let mut state = self.lock();
        let number = state.number();
        let lost = state.widen(number);
        self.lose(lost);
        self.recount(&state);
    }

    pub(crate) fn due(&self, most: usize) -> Option<Due> {
        let state = self.lock();
        if let Some(number) = state.clear {
            return Some(Due::Clear(number));
        }
        if state.keys.len() > state.values.len() {
            let keys = some(&state.keys).filter(|(id, _)| state.values.get(id).is_none());
            return Some(Due::Keys(keys.take(most).map(|(id, n)| (id.clone(), *n)).collect()));
        }
        state.due_tags(most).or_else(|| state.due_values(most))
    }

    /// What is due besides keys that cannot be told now.
    pub(crate) fn due_besides(&self, most: usize) -> [Option<Due>; 2] {
        let state = self.lock();
        match state.clear {
            Some(_) => [None, None],
            None => [state.due_tags(most), state.due_values(most)],
        }
    }

    /// What is due and reaches this key, or may: told after an update of it, it would take that away.
    pub(crate) fn due_before(&self, id: &str) -> Option<Due> {
        if self.len() == 0 {
            return None;
        }
        let state = self.lock();
        if let Some(number) = state.clear {
            return Some(Due::Clear(number));
        }
        match state.keys.get(id) {
            Some(number) => Some(match state.values.get(id) {
                Some(value) => Due::Values(vec![(id.into(), *number, value)]),
                None => Due::Keys(vec![(id.into(), *number)]),
            }),
            None => state.due_tags(usize::MAX),
        }
    }

    pub(crate) fn delivered(&self, id: &str, number: u64) {
        let mut state = self.lock();
        if state.keys.get(id) == Some(&number) {
            state.keys.remove(id);
            state.values.take(id);
        }
        self.recount(&state);
    }

    pub(crate) fn delivered_tag(&self, tag: &str, number: u64) {
        let mut state = self.lock();
        if state.tags.get(tag).is_some_and(|(known, _)| *known == number) {
            state.tags.remove(tag);
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
        self.unclaim();
        !self.claim()
    }

    /// The replay has been ended, whatever is left.
    pub(crate) fn unclaim(&self) {
        self.replaying.store(false, Ordering::Release);
    }

    /// What is left, for the report of `close`.
    pub(crate) fn undelivered(&self) -> Vec<(Scope, Option<String>)> {
        let state = self.lock();
        let named = |scope, name: &str| (scope, Some(name.to_owned()));
        // And what is on its way still: with a task of a runtime that nobody drives.
        let behind = state.behind.keys().filter(|id| state.clear.is_none() && !state.keys.contains_key(*id));
        let keys = state.keys.keys().chain(behind).map(|id| named(Scope::Key, id));
        let tags = state.tags.keys().map(|tag| named(Scope::Tag, tag));
        keys.chain(tags).chain(state.clear.map(|_| (Scope::Cache, None))).collect()
    }
}

/// All of them, from a random one on: keys that cannot be told, as their server is away, must not hold up others for ever.
fn some(keys: &HashMap<Box<str>, u64>) -> impl Iterator<Item = (&Box<str>, &u64)> {
    let from = fastrand::usize(..keys.len().max(1));
    keys.iter().skip(from).chain(keys.iter().take(from))
}

impl State {
    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    fn due_tags(&self, most: usize) -> Option<Due> {
        let (_, reach) = self.tags.values().next()?;
        let of = self.tags.iter().filter(|(_, (_, of))| of == reach).take(most.min(TAGS_MAX));
        Some(Due::Tags(*reach, of.map(|(tag, (n, _))| (tag.clone(), *n)).collect()))
    }

    fn due_values(&self, most: usize) -> Option<Due> {
        let values = some(&self.keys).filter_map(|(id, n)| Some((id.clone(), *n, self.values.get(id)?)));
        let values: Vec<_> = values.take(most).collect();
        (!values.is_empty()).then_some(Due::Values(values))
    }

    fn is_full(&self) -> bool {
        self.clear.is_some() || self.keys.len() + self.tags.len() >= MAX_PENDING
    }

    fn add(&mut self, id: &str) -> usize {
        let number = self.number();
        if let Some(known) = self.keys.get_mut(id) {
            *known = number;
        } else if self.is_full() {
            return self.widen(number);
        } else {
            self.keys.insert(id.into(), number);
        }
        0
    }

    /// Never dropped for space: widened. Says how many values go.
    fn widen(&mut self, number: u64) -> usize {
        self.keys.clear();
        self.tags.clear();
        self.clear = Some(number);
        self.values.clear()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::unsaved::tests::value;

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
    fn tags_are_masked_as_far_as_they_are_reached() {
        let pending = Pending::default();
        let tags = |tags: &[&str]| tags.iter().map(|tag| Box::from(*tag)).collect::<Vec<Box<str>>>();
        pending.add_tags(&tags(&["a"]), Reach::Expire);
        assert_eq!(pending.reaches(&tags(&["b", "a"])), Some(Reach::Expire));
        pending.add_tags(&tags(&["a"]), Reach::Purge);
        pending.add_tags(&tags(&["a"]), Reach::Expire);
        assert_eq!(pending.reaches(&tags(&["a"])), Some(Reach::Purge), "a purge is not taken back");
        assert_eq!((pending.reaches(&tags(&["b"])), pending.masks("a")), (None, false));
        let Some(Due::Tags(Reach::Purge, due)) = pending.due(10) else { panic!() };
        pending.add_tags(&tags(&["a"]), Reach::Purge);
        pending.delivered_tag("a", due[0].1);
        assert_eq!(pending.len(), 1, "a later record is not covered");
    }

    #[test]
    fn values_that_go_when_keys_become_too_many_are_counted() {
        let pending = Pending::default();
        for id in ["a", "b"] {
            pending.add_value(id, value(1, 60, 1), Moment::ORIGIN);
        }
        for n in 2..MAX_PENDING {
            pending.add(&n.to_string());
        }
        assert_eq!(pending.lost(), 0);
        pending.add("one more");
        assert_eq!(pending.lost(), 2);
    }

    #[test]
    fn what_cannot_be_told_holds_up_nothing_else_forever() {
        let pending = Pending::default();
        for n in 0..1000 {
            pending.add(&format!("away {n}"));
        }
        pending.add("here");
        pending.add_tags(&["tag".into()], Reach::Purge);
        assert!(matches!(pending.due_besides(10), [Some(Due::Tags(..)), None]));
        let is_due = || match pending.due(100) {
            Some(Due::Keys(due)) => due.iter().any(|(id, _)| &**id == "here"),
            _ => panic!(),
        };
        assert!((0..1000).any(|_| is_due()));
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
