//! How far a server's wall clock is ahead of this machine's: by that the ages of entries are counted.

use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicI64, Ordering},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use redis::Value;

use crate::wire::text;

/// What was measured is believed for so long: clocks drift, and the server's may be set.
const GOOD_FOR: Duration = Duration::from_secs(60);
/// Where this machine's two clocks have moved apart by more, the wall clock was set, or the machine was asleep.
const APART_MS: u64 = 100;

/// What this machine's clocks say at one time.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Now {
    pub(crate) wall_ms: i64,
    pub(crate) steady: Instant,
}

impl Now {
    pub(crate) fn read() -> Self {
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self { wall_ms: i64::try_from(wall.as_millis()).unwrap_or(i64::MAX / 4), steady: Instant::now() }
    }
}

/// A server's clock, as it was read between two looks at ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Measured {
    /// How far it is ahead.
    pub(crate) ahead_ms: i64,
    /// By how much that may be wrong: half of the round trip.
    pub(crate) give_ms: i64,
}

impl Measured {
    /// `None`: the server did not tell the time.
    pub(crate) fn of(reply: &Value, before: Now, after: Now) -> Option<Self> {
        // A wall clock that is set meanwhile has no part in it.
        let took = after.steady.saturating_duration_since(before.steady);
        let give_ms = i64::try_from(took.as_millis() / 2).unwrap_or(i64::MAX);
        Some(Self {
            ahead_ms: time_ms(reply)?.saturating_sub(after.wall_ms.saturating_sub(give_ms)),
            give_ms,
        })
    }
}

/// How far the server's clock is ahead, as last measured.
#[derive(Debug, Default)]
pub(crate) struct Ahead {
    ms: AtomicI64,
    as_of: Mutex<Option<Now>>,
}

impl Ahead {
    pub(crate) fn ms(&self) -> i64 {
        self.ms.load(Ordering::Relaxed)
    }

    /// Takes what was measured on a new connection, perhaps to another server.
    pub(crate) fn begin(&self, measured: Measured, now: Now) {
        self.ms.store(measured.ahead_ms, Ordering::Relaxed);
        *self.as_of.lock().unwrap_or_else(PoisonError::into_inner) = Some(now);
    }

    /// Takes what was measured again, if it differs by more than it may be wrong: a slow answer tells little.
    pub(crate) fn correct(&self, measured: Measured, now: Now) {
        let apart = measured.ahead_ms.saturating_sub(self.ms()).saturating_abs();
        if apart > measured.give_ms {
            self.ms.store(measured.ahead_ms, Ordering::Relaxed);
        }
        *self.as_of.lock().unwrap_or_else(PoisonError::into_inner) = Some(now);
    }

    /// Whether it is to be measured again: after a while, and once this machine's wall clock has been set. Never, where the
    /// server has not told the time so far.
    pub(crate) fn is_doubtful(&self, now: Now) -> bool {
        let Some(then) = *self.as_of.lock().unwrap_or_else(PoisonError::into_inner) else { return false };
        let steady = now.steady.saturating_duration_since(then.steady);
        let wall_ms = now.wall_ms.saturating_sub(then.wall_ms);
        let apart_ms = wall_ms.saturating_sub(i64::try_from(steady.as_millis()).unwrap_or(i64::MAX));
        steady >= GOOD_FOR || apart_ms.unsigned_abs() > APART_MS
    }
}

/// Milliseconds since the epoch out of a reply to `TIME`; anything beyond a few thousand years is nonsense.
fn time_ms(reply: &Value) -> Option<i64> {
    let Value::Array(parts) = reply else { return None };
    let [seconds, micros] = parts.as_slice() else { return None };
    let seconds: u32 = text(seconds)?.parse().ok()?;
    let micros: u32 = text(micros)?.parse().ok()?;
    Some(i64::from(seconds) * 1000 + i64::from(micros / 1000))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR_MS: i64 = 3_600_000;

    fn later(now: Now, steady: Duration, wall_ms: i64) -> Now {
        Now { wall_ms: now.wall_ms + wall_ms, steady: now.steady + steady }
    }

    fn bulk(text: &str) -> Value {
        Value::BulkString(text.into())
    }

    fn told(ms: i64) -> Value {
        Value::Array([ms / 1000, ms % 1000 * 1000].map(|part| bulk(&part.to_string())).into())
    }

    #[test]
    fn time_is_read_or_not_at_all() {
        assert_eq!(time_ms(&Value::Array(vec![bulk("1700000000"), bulk("123456")])), Some(1_700_000_000_123));
        assert_eq!(time_ms(&Value::Array(vec![bulk("99999999999999999999"), bulk("0")])), None);
        assert_eq!(time_ms(&Value::Array(vec![bulk("1")])), None);
        assert_eq!(time_ms(&Value::Nil), None);
    }

    #[test]
    fn a_wall_clock_that_was_set_is_noticed() {
        let (ahead, now) = (Ahead::default(), Now::read());
        assert!(!ahead.is_doubtful(later(now, GOOD_FOR, HOUR_MS)), "the server tells no time");
        ahead.begin(Measured { ahead_ms: 5, give_ms: 0 }, now);
        let (second, minute) = (Duration::from_secs(1), GOOD_FOR);
        assert!(!ahead.is_doubtful(later(now, second, 1_000)));
        assert!(!ahead.is_doubtful(later(now, second, 950)), "as it is slewed");
        assert!(ahead.is_doubtful(later(now, second, HOUR_MS)), "put on, or an hour asleep");
        assert!(ahead.is_doubtful(later(now, second, -HOUR_MS)), "put back");
        assert!(ahead.is_doubtful(later(now, minute, 60_000)), "the server's may have been set");
        ahead.correct(Measured { ahead_ms: 5, give_ms: 0 }, later(now, minute, 60_000));
        assert!(!ahead.is_doubtful(later(now, minute + second, 61_000)));
    }

    #[test]
    fn a_slow_answer_takes_nothing_from_a_quick_one() {
        let (ahead, before) = (Ahead::default(), Now::read());
        let after = later(before, Duration::from_secs(2), 2_000);
        let at = |ms| Measured::of(&told(before.wall_ms + ms), before, after).unwrap();
        // Somewhere within the two seconds.
        assert_eq!(at(1_000), Measured { ahead_ms: 0, give_ms: 1_000 });
        ahead.begin(Measured { ahead_ms: 3, give_ms: 0 }, before);
        for ms in [100, 1_900] {
            ahead.correct(at(ms), after);
            assert_eq!(ahead.ms(), 3);
        }
        ahead.correct(at(HOUR_MS), after);
        assert_eq!(ahead.ms(), HOUR_MS - 1_000);
        // Put back by an hour between question and answer.
        let set = later(before, Duration::from_millis(2), -HOUR_MS);
        let measured = Measured::of(&told(before.wall_ms + 1), before, set).unwrap();
        assert_eq!(measured, Measured { ahead_ms: HOUR_MS + 2, give_ms: 1 });
        assert_eq!(Measured::of(&Value::Nil, before, after), None);
    }
}
