//! One breaker per server: a server that fails several times in a row is left alone for a while.

use std::{
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

/// Counts failures in a row. Time is passed in, so tests need no clock.
#[derive(Debug)]
pub(crate) struct Breaker {
    failures: u32,
    cool_down: Duration,
    state: Mutex<State>,
    /// Nothing has failed since the last answer: so it is nearly always, and then nobody takes the lock.
    quiet: AtomicBool,
}

#[derive(Debug)]
enum State {
    /// So many failures in a row.
    Closed(u32),
    /// Since then.
    Open(Instant),
    /// One request is on its way to find out, since then.
    Probing(Instant),
}

/// What a request learned about the server. Of what parts of one learned, the least counts: where a part was answered, it
/// lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Verdict {
    /// It answered.
    Well,
    /// It did not.
    Sick,
    /// The request ended before it could tell.
    Unknown,
}

impl Breaker {
    pub(crate) fn new(failures: u32, cool_down: Duration) -> Self {
        Self { failures, cool_down, state: Mutex::new(State::Closed(0)), quiet: AtomicBool::new(true) }
    }

    /// Whether a request may be sent. Each `true` must be followed by one [`Breaker::learn`].
    pub(crate) fn admit(&self, now: Instant) -> bool {
        if self.is_quiet() {
            return true;
        }
        let mut state = self.lock();
        match *state {
            State::Closed(_) => true,
            State::Open(since) | State::Probing(since) if now.duration_since(since) >= self.cool_down => {
                // A probe that never reported back (its future was leaked) is replaced like this, too.
                *state = State::Probing(now);
                true
            }
            State::Open(_) | State::Probing(_) => false,
        }
    }

    /// Whether an answer is no news.
    pub(crate) fn is_quiet(&self) -> bool {
        self.quiet.load(Ordering::Relaxed)
    }

    /// Says how a request ended; `true` when that opened the breaker, or kept it open.
    pub(crate) fn learn(&self, verdict: Verdict, now: Instant) -> bool {
        let mut state = self.lock();
        let opened = self.apply(&mut state, verdict, now);
        self.quiet.store(matches!(*state, State::Closed(0)), Ordering::Relaxed);
        opened
    }

    fn apply(&self, state: &mut State, verdict: Verdict, now: Instant) -> bool {
        match (&*state, verdict) {
            (State::Closed(0), Verdict::Well) | (State::Closed(_), Verdict::Unknown) => return false,
            (_, Verdict::Well) => *state = State::Closed(0),
            (State::Closed(before), Verdict::Sick) if before + 1 < self.failures => {
                *state = State::Closed(before + 1);
            }
            // Requests sent before it opened end late: they do not lengthen the cool-down.
            (State::Open(_), _) => return false,
            (State::Closed(_) | State::Probing(_), _) => {
                *state = State::Open(now);
                return true;
            }
        }
        false
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const COOL: Duration = Duration::from_secs(1);

    fn open(now: Instant) -> Breaker {
        let breaker = Breaker::new(3, COOL);
        for last in [false, false, true] {
            assert!(breaker.admit(now));
            assert_eq!(breaker.learn(Verdict::Sick, now), last);
        }
        breaker
    }

    #[test]
    fn opens_after_failures_in_a_row_only() {
        let (breaker, now) = (Breaker::new(3, COOL), Instant::now());
        for _ in 0..10 {
            breaker.learn(Verdict::Sick, now);
            breaker.learn(Verdict::Sick, now);
            breaker.learn(Verdict::Well, now);
        }
        assert!(breaker.admit(now));
        assert!(!open(now).admit(now));
    }

    #[test]
    fn one_probe_at_a_time() {
        let start = Instant::now();
        let breaker = open(start);
        assert!(!breaker.admit(start + COOL / 2));
        let later = start + COOL;
        assert!(breaker.admit(later));
        assert!(!breaker.admit(later));
        assert!(breaker.learn(Verdict::Sick, later));
        assert!(!breaker.admit(later + COOL / 2));
        assert!(breaker.admit(later + COOL));
        breaker.learn(Verdict::Well, later + COOL);
        assert!(breaker.admit(later + COOL) && breaker.admit(later + COOL));
    }

    #[test]
    fn a_dropped_probe_does_not_block_the_next() {
        let start = Instant::now();
        let breaker = open(start);
        assert!(breaker.admit(start + COOL));
        breaker.learn(Verdict::Unknown, start + COOL);
        assert!(breaker.admit(start + COOL * 2));
        // Not even one whose future was leaked.
        assert!(breaker.admit(start + COOL * 3));
    }

    #[test]
    fn late_failures_do_not_lengthen_the_cool_down() {
        let start = Instant::now();
        let breaker = open(start);
        breaker.learn(Verdict::Sick, start + COOL / 2);
        assert!(breaker.admit(start + COOL));
    }
}
