//! Refreshes before the end.

use std::time::Duration;

use crate::{Early, Entry, Moment, Timeline, Value, inner::Inner};

/// Vattani et al.: refresh if now - beta * cost * ln(draw) reaches the end, the draw being uniform in 0..1. The chance of
/// that is exp(-remaining / (beta * cost)).
fn xfetch(beta: f64, cost: Duration, remaining: Duration, draw: f64) -> bool {
    -draw.ln() * beta * cost.as_secs_f64() >= remaining.as_secs_f64()
}

/// How long before the end the chance is below 1e-7 per hit: exp(-16).
fn unlikely(beta: f64, cost: Duration) -> Duration {
    Duration::try_from_secs_f64(cost.as_secs_f64() * beta * 16.0).unwrap_or(Duration::MAX)
}

impl<T: Value> Inner<T> {
    /// Up to this moment a hit needs no second thought: no early refresh, not stale.
    pub(crate) fn quiet_until(&self, timeline: &Timeline, cost: Duration) -> Moment {
        let early = match self.policy().early {
            Early::Off => Moment::NEVER,
            Early::Fraction(share) => {
                let fresh_for = timeline.fresh_until.since(timeline.born);
                if fresh_for == Duration::MAX {
                    Moment::NEVER
                } else {
                    timeline.born.after(fresh_for.mul_f64(share))
                }
            }
            Early::XFetch { beta } => timeline.fresh_until.before(unlikely(beta, cost)),
        };
        early.min(timeline.fresh_until)
    }

    /// Whether a hit inside its quiet time's end and its freshness's end should start a refresh.
    pub(crate) fn wants_early(&self, entry: &Entry<T>, now: Moment) -> bool {
        if entry.value.is_none() || entry.retry_at().is_some_and(|at| now < at) {
            return false;
        }
        let quiet_until = entry.quiet_until.unwrap_or_else(|| self.quiet_until(&entry.timeline, entry.cost));
        if now < quiet_until {
            return false;
        }
        match self.policy().early {
            Early::Off => false,
            Early::Fraction(_) => true,
            Early::XFetch { beta } => {
                // Of a capped one this is where its own freshness ends.
                let own = entry.quiet_until.map(|quiet| quiet.after(unlikely(beta, entry.cost)));
                let fresh_until =
                    own.map_or(entry.timeline.fresh_until, |own| own.max(entry.timeline.fresh_until));
                xfetch(beta, entry.cost, fresh_until.since(now), fastrand::f64())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn e8_xfetch_has_its_distribution() {
        const DRAWS: u32 = 100_000;
        let share = |beta: f64, remaining: u64| {
            let mut dice = fastrand::Rng::with_seed(8);
            let (cost, remaining) = (Duration::from_secs(1), Duration::from_secs(remaining));
            let refreshed = (0..DRAWS).filter(|_| xfetch(beta, cost, remaining, dice.f64())).count();
            f64::from(u32::try_from(refreshed).unwrap()) / f64::from(DRAWS)
        };
        for (beta, remaining, expected, within) in
            [(1.0, 1, 0.368, 0.01), (1.0, 5, 0.0067, 0.002), (2.0, 1, 0.607, 0.01), (0.0, 1, 0.0, 0.0)]
        {
            let share = share(beta, remaining);
            assert!((share - expected).abs() <= within, "beta {beta}, {remaining} s left: {share}");
        }
        assert!(!xfetch(0.0, Duration::from_secs(1), Duration::from_secs(1), 0.0), "0 * infinity");
    }
}
