//! What this node has written and invalidated at a level lately, to say it again where the store may have lost it: after a
//! failover a new master may lack the last writes, and one that was cut off goes on taking some that nobody else sees.

use std::{
    collections::VecDeque,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use crate::{Moment, mark::Reach, tier::Place};

/// For how long a store may lack what it has acknowledged, and the most that is remembered of it. What does not fit becomes
/// a clear of the cache. Documented in docs/semantics.md.
const WINDOW: Duration = Duration::from_secs(60);
const MOST: usize = 10_000;

#[derive(Default)]
pub(crate) struct Recent {
    state: Mutex<State>,
    /// How often something had to be said again.
    again: AtomicU64,
}

#[derive(Default)]
struct State {
    effects: VecDeque<(Moment, Effect)>,
    /// Where the first of them was done.
    place: Place,
    /// There have been more: when the last one of those was.
    overflow: Option<Moment>,
}

/// What was done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Effect {
    Key(Box<str>),
    Tag(Box<str>, Reach),
    /// Everything.
    Clear,
}

impl State {
    fn forget(&mut self, now: Moment) {
        let over = |at: Moment| now.since(at) > WINDOW;
        while self.effects.front().is_some_and(|(at, _)| over(*at)) {
            self.effects.pop_front();
        }
        self.overflow = self.overflow.filter(|at| !over(*at));
    }
}

impl Recent {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn note(&self, now: Moment, place: Place, effects: impl Iterator<Item = Effect>) {
        let mut state = self.lock();
        state.forget(now);
        if state.effects.is_empty() {
            state.place = place;
        }
        for effect in effects {
            if state.effects.len() >= MOST
                && let Some((at, _)) = state.effects.pop_front()
            {
                state.overflow = Some(at);
            }
            state.effects.push_back((now, effect));
        }
    }

    /// Says all of it again, which is forgotten by that. Whoever comes meanwhile waits, and finds it said.
    pub(crate) fn say_again(&self, now: Moment, mut say: impl FnMut(Effect)) {
        let mut state = self.lock();
        state.forget(now);
        let State { effects, overflow, .. } = std::mem::take(&mut *state);
        if effects.is_empty() && overflow.is_none() {
            return;
        }
        match overflow {
            Some(_) => say(Effect::Clear),
            None => effects.into_iter().for_each(|(_, effect)| say(effect)),
        }
        self.again.fetch_add(1, Ordering::Release);
    }

    /// Whether there is something that was done in another place than this.
    pub(crate) fn is_from_elsewhere(&self, place: Place) -> bool {
        let state = self.lock();
        !state.effects.is_empty() && state.place != place
    }

    /// Another number once something has been said again.
    pub(crate) fn again(&self) -> u64 {
        self.again.load(Ordering::Acquire)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Moment {
        Moment::ORIGIN.after(Duration::from_secs(seconds))
    }

    fn key(n: usize) -> Effect {
        Effect::Key(n.to_string().into())
    }

    fn said(recent: &Recent, now: Moment) -> Vec<Effect> {
        let (mut all, before) = (Vec::new(), recent.again());
        recent.say_again(now, |effect| all.push(effect));
        assert_eq!(recent.again() - before, u64::from(!all.is_empty()));
        all
    }

    #[test]
    fn a_minute_is_remembered_and_said_once() {
        let recent = Recent::default();
        for second in 0..100 {
            recent.note(at(second), Place::default(), [key(0)].into_iter());
        }
        assert_eq!(said(&recent, at(100)).len(), 60);
        assert_eq!(said(&recent, at(100)), []);
    }

    #[test]
    fn more_than_fits_is_everything_until_it_is_over() {
        let recent = Recent::default();
        recent.note(at(0), Place::default(), (0..=MOST).map(key));
        assert_eq!(said(&recent, at(1)), [Effect::Clear]);
        recent.note(at(0), Place::default(), (0..=MOST).map(key));
        recent.note(at(61), Place::default(), [key(1)].into_iter());
        assert_eq!(said(&recent, at(61)), [key(1)]);
    }
}
