//! How long to wait before the next attempt to connect.

use std::time::Duration;

const FIRST: Duration = Duration::from_millis(5);
const CAP: Duration = Duration::from_secs(1);
/// The server was there a moment ago and callers wait: only a tight loop must be avoided.
const LOSS_CAP: Duration = Duration::from_millis(40);

/// Doubles from 5 ms to 1 s, less up to half at random, so that many nodes do not come back in step.
#[derive(Debug)]
pub(crate) struct Backoff {
    failures: u32,
    losses: u32,
}

impl Backoff {
    pub(crate) const fn new() -> Self {
        Self { failures: 0, losses: 0 }
    }

    pub(crate) fn reset(&mut self) {
        *self = Self::new();
    }

    /// After an attempt that failed.
    pub(crate) fn after_failure(&mut self) -> Duration {
        self.failures = self.failures.saturating_add(1);
        delay(self.failures, CAP)
    }

    /// After a connection that was made and broke soon. The first such loss is answered at once; a server that keeps
    /// sending us away is not asked in a tight loop.
    pub(crate) fn after_loss(&mut self) -> Duration {
        self.failures = 0;
        self.losses = self.losses.saturating_add(1);
        if self.losses == 1 { Duration::ZERO } else { delay(self.losses - 1, LOSS_CAP) }
    }
}

fn delay(step: u32, cap: Duration) -> Duration {
    let full = FIRST.saturating_mul(1 << (step - 1).min(16)).min(cap);
    full.mul_f64(0.5 + fastrand::f64() / 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grows_from_5_ms_to_1_s_with_jitter() {
        let mut backoff = Backoff::new();
        let first = backoff.after_failure();
        assert!(first <= FIRST && first >= FIRST / 2, "{first:?}");
        let mut last = first;
        for _ in 0..100 {
            last = backoff.after_failure();
        }
        assert!(last <= CAP && last >= CAP / 2, "{last:?}");
        backoff.reset();
        assert!(backoff.after_failure() <= FIRST);
    }

    #[test]
    fn a_loss_is_answered_at_once_and_a_series_of_them_soon() {
        let mut backoff = Backoff::new();
        assert_eq!(backoff.after_loss(), Duration::ZERO);
        for _ in 0..100 {
            let delay = backoff.after_loss();
            assert!(delay > Duration::ZERO && delay <= LOSS_CAP, "{delay:?}");
        }
    }
}
