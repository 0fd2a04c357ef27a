//! What may change while a cache runs: its policy. And what contradicts that.

use std::{sync::Arc, time::Duration};

use tokio::sync::Semaphore;

use crate::{Capabilities, Error, Policy, Result, plain, policy::spell};

/// The policy, and what comes with it.
pub(crate) struct Rules {
    pub(crate) policy: Policy,
    /// Turns of loads, where the policy bounds them.
    pub(crate) permits: Option<Arc<Semaphore>>,
}

impl Rules {
    pub(crate) fn new(policy: Policy) -> Self {
        let turns = |at_once: usize| Arc::new(Semaphore::new(at_once.min(Semaphore::MAX_PERMITS)));
        Self { policy, permits: policy.loads.map(turns) }
    }

    /// The same under another policy. Where the bound on loads has not changed, their turns are the same.
    pub(crate) fn under(&self, policy: Policy) -> Self {
        match policy.loads == self.policy.loads {
            true => Self { policy, permits: self.permits.clone() },
            false => Self::new(policy),
        }
    }
}

/// What of a level matters to a policy.
pub(crate) struct Shape {
    pub(crate) system: &'static str,
    pub(crate) caps: Capabilities,
    pub(crate) ttl_cap: Option<Duration>,
    pub(crate) plain: bool,
}

impl Shape {
    /// How errors call a field of the level at this position.
    pub(crate) fn field(&self, at: usize, name: &str) -> String {
        format!("level {} ({}) {name}", at + 1, self.system)
    }
}

/// Refuses a policy that contradicts itself, or these levels.
pub(crate) fn check(levels: &[Shape], policy: &Policy) -> Result<()> {
    policy.check()?;
    for (at, level) in levels.iter().enumerate() {
        if let Some(cap) = level.ttl_cap.filter(|cap| *cap > policy.max_age()) {
            let Policy { ttl, grace, .. } = policy;
            return Err(Error::config(
                &level.field(at, "ttl_cap"),
                format_args!("{cap:?}"),
                format_args!(
                    "above all that the policy lets live (ttl {}, grace {}), so it caps nothing; lower it or leave it out",
                    spell(*ttl),
                    spell(*grace)
                ),
            ));
        }
    }
    let holds = |level: &Shape| {
        level.ttl_cap.unwrap_or(Duration::MAX).min(policy.ttl) <= level.caps.ttl_max.unwrap_or(Duration::MAX)
    };
    if !levels.iter().any(holds) {
        let longest = levels.iter().filter_map(|level| level.caps.ttl_max).max().unwrap_or_default();
        return Err(Error::config(
            "policy.ttl",
            spell(policy.ttl),
            format_args!("no level can hold it; at most {longest:?} here, or give a level a ttl_cap"),
        ));
    }
    plain::check(levels, policy)
}
