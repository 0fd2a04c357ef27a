//! Policy: how long entries live, and how loads are held.

use std::time::Duration;

use crate::{Error, Result};

/// When a hit refreshes an entry ahead of its end.
#[derive(Clone, Copy, Debug, PartialEq, Default)]
#[non_exhaustive]
pub enum Early {
    /// Never.
    #[default]
    Off,
    /// From this fraction of the ttl on, `0 < f < 1`: the first hit after it starts a refresh in the background.
    Fraction(f64),
    /// With a probability that grows towards the end and with the measured load cost:
    /// `exp(-remaining / (beta * cost))`. Vattani, Chierichetti, Lowenstein: Optimal Probabilistic Cache Stampede
    /// Prevention, VLDB 2015. `beta` is 1 unless measured otherwise.
    XFetch {
        /// Above 1 refreshes earlier, below 1 later.
        beta: f64,
    },
}

/// How long entries of a cache live and how its loads are held. Plain data; the builder checks it.
///
/// ```
/// use std::time::Duration;
/// use cache_core::Policy;
/// let policy = Policy::ttl(Duration::from_secs(60)).grace(Duration::from_secs(3600)).jitter(Duration::from_secs(5));
/// # let _ = policy;
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Policy {
    pub(crate) ttl: Duration,
    pub(crate) grace: Duration,
    pub(crate) revalidate: Duration,
    pub(crate) throttle: Duration,
    pub(crate) early: Early,
    pub(crate) jitter: Duration,
    pub(crate) absent_ttl: Duration,
    pub(crate) soft: Option<Duration>,
    pub(crate) hard: Option<Duration>,
    pub(crate) complete: bool,
    pub(crate) wait: Option<Duration>,
    pub(crate) loads: Option<usize>,
}

impl Policy {
    /// Entries are fresh for `ttl` from the start of their load. `Duration::MAX`: until evicted or invalidated, for
    /// which remote levels take whatever is beyond 8.9 years (2^48 us).
    ///
    /// Everything else starts off, but for a throttle of 1 s after a failed refresh (it takes effect with `grace`) and
    /// a hard limit of 30 s on loads.
    pub const fn ttl(ttl: Duration) -> Self {
        Self {
            ttl,
            grace: Duration::ZERO,
            revalidate: Duration::ZERO,
            throttle: Duration::from_secs(1),
            early: Early::Off,
            jitter: Duration::ZERO,
            absent_ttl: Duration::ZERO,
            soft: None,
            hard: Some(Duration::from_secs(30)),
            complete: true,
            wait: None,
            loads: None,
        }
    }

    /// The maximum age, from birth, up to which an entry may stand in when its load fails or is late (stale if error).
    /// At least the ttl; zero for never.
    #[must_use]
    pub const fn grace(mut self, max_age: Duration) -> Self {
        self.grace = max_age;
        self
    }

    /// For this long after the end of freshness a stale entry is answered at once while one load refreshes it (stale
    /// while revalidating, RFC 5861). Lies within `grace`. What [`expire_tag`](crate::TracedCache::expire_tag),
    /// [`expire_all`](crate::TracedCache::expire_all) or, but for what this node has in memory, [`expire`](crate::TracedCache::expire)
    /// has ended counts as never fresh, as the moment is not stored: its window is over this long after its birth.
    #[must_use]
    pub const fn revalidate(mut self, window: Duration) -> Self {
        self.revalidate = window;
        self
    }

    /// After a failed refresh, serve the stale entry without a further load for this long. Never extends `grace`.
    #[must_use]
    pub const fn throttle(mut self, pause: Duration) -> Self {
        self.throttle = pause;
        self
    }

    /// Refresh ahead of the end.
    #[must_use]
    pub const fn early(mut self, early: Early) -> Self {
        self.early = early;
        self
    }

    /// Adds up to this much, drawn per entry, to the ttl, so that entries loaded together do not end together.
    #[must_use]
    pub const fn jitter(mut self, up_to: Duration) -> Self {
        self.jitter = up_to;
        self
    }

    /// Remember for this long that the source does not have a key (negative caching). Zero: not at all.
    #[must_use]
    pub const fn absent_ttl(mut self, ttl: Duration) -> Self {
        self.absent_ttl = ttl;
        self
    }

    /// With a stale value at hand, wait at most this long for a load, then answer stale.
    #[must_use]
    pub const fn soft_limit(mut self, limit: Duration) -> Self {
        self.soft = Some(limit);
        self
    }

    /// A load is ended after this long. `None` trusts loaders never to hang.
    #[must_use]
    pub const fn hard_limit(mut self, limit: Option<Duration>) -> Self {
        self.hard = limit;
        self
    }

    /// Whether a load that ran into the soft limit goes on in the background (the default) or is cancelled. A load that a
    /// batch waits for always goes on.
    #[must_use]
    pub const fn complete_in_background(mut self, yes: bool) -> Self {
        self.complete = yes;
        self
    }

    /// How long a caller waits for another caller's load. After it: the stale value if there is one, else a load of its
    /// own whose value stays out of remote levels. Unset: as long as the load takes. Batches wait for loads of their own process
    /// for as long as those take, and for another process's no longer than this.
    #[must_use]
    pub const fn wait(mut self, budget: Duration) -> Self {
        self.wait = Some(budget);
        self
    }

    /// At most this many loads of this cache run at once; more queue, and the hard limit of each counts from its turn. A cold
    /// start cannot flatten the source. A load that another load waits for does not queue: it would wait for itself. That is
    /// known of loads in one task only: a loader that spawns a task which asks for another key, and waits for that task, may
    /// wait for itself until the hard limit.
    #[must_use]
    pub const fn loads(mut self, at_once: usize) -> Self {
        self.loads = Some(at_once);
        self
    }

    /// The longest an entry under this policy lives, jitter aside.
    pub(crate) fn max_age(&self) -> Duration {
        self.ttl.max(self.grace)
    }

    pub(crate) fn check(&self) -> Result<()> {
        let Self { ttl, grace, revalidate, early, soft, hard, .. } = *self;
        if ttl.is_zero() {
            return Err(Error::config("policy.ttl", "0s", "no level can hold it; give a time above zero"));
        }
        if !grace.is_zero() && grace < ttl {
            return Err(Error::config(
                "policy.grace",
                spell(grace),
                format_args!(
                    "below policy.ttl = {}, although it is the maximum age counted from birth; raise it above the ttl, or leave it out",
                    spell(ttl)
                ),
            ));
        }
        if !revalidate.is_zero() && ttl.saturating_add(revalidate) > grace {
            return Err(Error::config(
                "policy.revalidate",
                spell(revalidate),
                format_args!(
                    "reaches past policy.grace = {}; raise grace to at least ttl + revalidate = {}",
                    spell(grace),
                    spell(ttl.saturating_add(revalidate))
                ),
            ));
        }
        match early {
            Early::Off => {}
            Early::Fraction(f) if f > 0.0 && f < 1.0 => {}
            Early::Fraction(f) => {
                return Err(Error::config("policy.early", f, "a fraction of the ttl, above 0 and below 1"));
            }
            Early::XFetch { beta } if beta >= 0.0 && beta.is_finite() => {}
            Early::XFetch { beta } => {
                return Err(Error::config(
                    "policy.early.beta",
                    beta,
                    "a finite number, 0 or above; 1 is usual",
                ));
            }
        }
        if let (Some(soft), Some(hard)) = (soft, hard)
            && soft > hard
        {
            return Err(Error::config(
                "policy.soft_limit",
                spell(soft),
                format_args!("above policy.hard_limit = {}, so it never applies; lower it", spell(hard)),
            ));
        }
        if let Some(soft) = soft
            && grace.is_zero()
        {
            return Err(Error::config(
                "policy.soft_limit",
                spell(soft),
                "there is never a stale value to answer with; set policy.grace, or leave it out",
            ));
        }
        if hard.is_some_and(|h| h.is_zero()) {
            return Err(Error::config(
                "policy.hard_limit",
                "0s",
                "no load could end; give a time above zero",
            ));
        }
        if self.loads == Some(0) {
            return Err(Error::config("policy.loads", 0, "no load could ever run; give at least 1"));
        }
        Ok(())
    }
}

/// A time as files of configuration write it.
pub(crate) fn spell(time: Duration) -> String {
    match time {
        Duration::ZERO => "0s".to_owned(),
        Duration::MAX => "forever".to_owned(),
        time => format!("{time:?}"),
    }
}

/// Which parts of the cache one call may use. Look-ups go by it, and calls with a loader; `refresh`, `update`, writes and
/// invalidations do the same under each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum Access {
    /// Fresh entries from every level; loaders run on a miss.
    #[default]
    Normal,
    /// A stale entry within grace answers where no level has a fresh one; no load for it.
    AllowStale,
    /// Loaders of look-ups never run: what no level has is a miss, and [`ErrorKind::Absent`](crate::ErrorKind::Absent) to a
    /// loader of plain values.
    CacheOnly,
    /// Entries are not read; the loader runs and its value is stored.
    Reload,
    /// Neither read nor stored: the loader runs as if there were no cache, still at most once per key at a time.
    Bypass,
}

impl Access {
    /// Whether levels are asked.
    pub(crate) fn reads(self) -> bool {
        !matches!(self, Self::Reload | Self::Bypass)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    const S: Duration = Duration::from_secs(1);

    #[test]
    fn contradictions_name_field_and_fix() {
        for (policy, field) in [
            (Policy::ttl(Duration::ZERO), "policy.ttl"),
            (Policy::ttl(5 * S).grace(S), "policy.grace"),
            (Policy::ttl(S).grace(2 * S).revalidate(5 * S), "policy.revalidate"),
            (Policy::ttl(S).early(Early::Fraction(0.0)), "policy.early"),
            (Policy::ttl(S).early(Early::Fraction(1.0)), "policy.early"),
            (Policy::ttl(S).early(Early::Fraction(-0.5)), "policy.early"),
            (Policy::ttl(S).early(Early::Fraction(f64::NAN)), "policy.early"),
            (Policy::ttl(S).early(Early::XFetch { beta: -1.0 }), "policy.early.beta"),
            (Policy::ttl(S).grace(9 * S).soft_limit(60 * S), "policy.soft_limit"),
            (Policy::ttl(S).soft_limit(S), "policy.soft_limit"),
            (Policy::ttl(S).hard_limit(Some(Duration::ZERO)), "policy.hard_limit"),
            (Policy::ttl(S).loads(0), "policy.loads"),
        ] {
            let error = policy.check().expect_err(field);
            assert_eq!(error.kind(), crate::ErrorKind::Config);
            assert!(error.to_string().starts_with(field), "{error}");
        }
        Policy::ttl(S).grace(9 * S).revalidate(S).soft_limit(S).check().unwrap();
        Policy::ttl(Duration::MAX).jitter(600 * S).check().unwrap();
    }
}
