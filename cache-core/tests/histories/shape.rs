//! What kind of nodes a history is about.

use std::time::Duration;

use cache_core::{Early, Policy};
use fastrand::Rng;

use crate::model::{KEYS, Life};

const MS: Duration = Duration::from_millis(1);

/// What a history is made of. Everything is drawn from its seed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    pub(crate) nodes: usize,
    /// Of few, more calls meet.
    pub(crate) keys: usize,
    /// How far tasks overtake each other.
    pub(crate) restless: usize,
    pub(crate) memory: bool,
    /// Remote ones.
    pub(crate) levels: usize,
    pub(crate) leases: bool,
    pub(crate) marks: bool,
    pub(crate) surface: bool,
    /// Writes to the levels come after the answer.
    pub(crate) behind: bool,
    pub(crate) breaker: bool,
    pub(crate) backplane: bool,
    /// The nearest store tells of writes itself.
    pub(crate) tracks: bool,
    /// Messages arrive some time after they were sent.
    pub(crate) lag: bool,
    /// Links break, with or without anybody's notice.
    pub(crate) cuts: bool,
    pub(crate) faults: bool,
    /// Levels are slow, too late, or hang.
    pub(crate) delays: bool,
    /// Callers leave.
    pub(crate) leave: bool,
    /// Nodes are closed, or end without, and others join.
    pub(crate) churn: bool,
    /// A store loses keys, or goes back to what it was.
    pub(crate) loss: bool,
    pub(crate) jumps: bool,
    pub(crate) tags: bool,
    pub(crate) long: bool,
    pub(crate) grace: bool,
    pub(crate) early: bool,
    pub(crate) wait: bool,
    pub(crate) hard: bool,
    pub(crate) few_loads: bool,
    /// Levels move to other stores.
    pub(crate) moves: bool,
    /// Loaders ask for other keys.
    pub(crate) nested: bool,
    /// Answers have times of their own.
    pub(crate) own_times: bool,
    /// Nodes get other policies.
    pub(crate) rules: bool,
}

impl Shape {
    pub(crate) fn of(seed: u64) -> Self {
        let mut dice = Rng::with_seed(seed ^ 0x5eed);
        let mut one_in = |n: usize| dice.usize(..n) == 0;
        let mut shape = Self {
            nodes: if one_in(3) { 1 } else { 2 + usize::from(one_in(3)) },
            keys: if one_in(3) { 1 } else { KEYS },
            restless: if one_in(4) { 20 } else { 6 },
            memory: !one_in(4),
            levels: if one_in(8) { 0 } else { 1 + usize::from(one_in(3)) },
            leases: !one_in(4),
            marks: !one_in(4),
            surface: one_in(6),
            behind: one_in(8),
            breaker: one_in(2),
            backplane: !one_in(5),
            lag: one_in(2),
            cuts: one_in(2),
            faults: one_in(2),
            delays: one_in(2),
            leave: one_in(2),
            churn: one_in(3),
            loss: one_in(3),
            jumps: one_in(5),
            tags: one_in(2),
            long: one_in(2),
            grace: one_in(2),
            early: one_in(3),
            wait: one_in(5),
            hard: one_in(6),
            few_loads: one_in(6),
            nested: one_in(5),
            tracks: one_in(3),
            moves: one_in(3),
            own_times: one_in(3),
            rules: one_in(3),
        };
        shape.memory |= shape.levels == 0;
        shape.behind &= shape.levels > 0;
        shape.tracks &= shape.levels == 1 && shape.backplane;
        // Nodes that have moved and others do not hear of each other.
        shape.moves &= shape.levels > 0 && shape.nodes == 1 && !shape.churn && !shape.tracks;
        // Without leases, and where values are written later, an older one of another node may come in between (docs/semantics.md).
        if (!shape.leases && shape.levels > 0) || shape.behind {
            shape.nodes = 1;
            shape.churn = false;
        }
        shape
    }

    pub(crate) fn ttl(&self) -> Duration {
        MS * if self.long { 60_000 } else { 2_000 }
    }

    fn max_age(&self) -> Duration {
        if self.grace { 5 * self.ttl() } else { self.ttl() }
    }

    /// How long a policy lets things live.
    pub(crate) fn life(&self, policy: usize) -> Life {
        let (ttl, absent) = (self.ttl(), 500 * MS);
        match policy {
            0 => Life { ttl, max_age: self.max_age(), absent },
            1 => Life { ttl: 3 * ttl, max_age: 3 * ttl, absent: 2_000 * MS },
            2 => Life { ttl: ttl / 4, max_age: 2 * ttl, absent: Duration::ZERO },
            _ => Life { ttl: ttl / 4, max_age: ttl / 4, absent },
        }
    }

    /// One that takes the place of the first.
    pub(crate) fn another(&self, policy: usize) -> Policy {
        let Life { ttl, max_age, absent } = self.life(policy);
        let another = Policy::ttl(ttl).absent_ttl(absent).throttle(100 * MS);
        match policy {
            0 => self.policy(),
            1 => another.loads(1),
            2 => another.grace(max_age).soft_limit(50 * MS).early(Early::Fraction(0.5)),
            _ => another.hard_limit(Some(250 * MS)).loads(3),
        }
    }

    pub(crate) fn policy(&self) -> Policy {
        let mut policy = Policy::ttl(self.ttl()).absent_ttl(500 * MS).throttle(100 * MS);
        if self.grace {
            policy = policy.grace(self.max_age()).soft_limit(50 * MS);
            if self.early {
                policy = policy.revalidate(500 * MS);
            }
        }
        if self.early {
            policy = policy.early(Early::Fraction(0.5));
        }
        if self.wait {
            policy = policy.wait(100 * MS);
        }
        if self.hard {
            policy = policy.hard_limit(Some(250 * MS));
        }
        if self.few_loads {
            policy = policy.loads(2);
        }
        policy
    }

    /// Nothing here lets a second load of a key begin: promise 1 can be asked for.
    pub(crate) fn is_orderly(&self) -> bool {
        let upset = self.faults
            || self.delays
            || self.cuts
            || self.lag
            || self.churn
            || self.loss
            || self.jumps
            || self.moves
            || self.rules;
        let shared = self.nodes == 1 || (self.levels > 0 && self.leases);
        !upset && !self.wait && !self.hard && !self.nested && !self.grace && self.levels <= 1 && shared
    }

    /// A value is at most as old as its own clock says.
    pub(crate) fn clocks_agree(&self) -> bool {
        !self.jumps
    }

    /// Turns of tasks within which a node reads its marks, if nothing keeps it from that.
    pub(crate) fn learns_within(&self) -> Option<usize> {
        (self.levels > 0 && !self.faults).then(|| self.levels * (20 + 4 * self.restless))
    }
}
