//! Levels: a provider in the stack, and what concerns only it.

use std::{fmt, sync::Arc, time::Duration};

use crate::{Breaker, CacheProvider, Codec, Error, Policy, Result};

/// What a level's failure means to callers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Stance {
    /// A failed read is a miss; a failed write is pending. Nobody sees an error that a loader could have answered.
    Absorb,
    /// `get` and writes answer with the level's error. `get_or_set` still loads.
    Surface,
}

/// A provider in the stack plus what concerns only it. Any provider converts into a level with the defaults:
///
/// | setting | default |
/// | --- | --- |
/// | `ttl_cap` | none |
/// | `budget` | 250 ms per operation for a remote provider |
/// | `breaker` | [`Breaker::default`] for a remote provider |
/// | `codec` | JSON |
/// | `stance` | absorb; surface where it is the only level and remote |
/// | `background` | off |
pub struct Level {
    pub(crate) provider: Arc<dyn CacheProvider>,
    pub(crate) ttl_cap: Option<Duration>,
    pub(crate) budget: Duration,
    pub(crate) breaker: Option<Breaker>,
    pub(crate) codec: Codec,
    pub(crate) stance: Option<Stance>,
    pub(crate) background: bool,
}

impl Level {
    /// A level with the defaults.
    pub fn new(provider: impl CacheProvider) -> Self {
        Self {
            provider: Arc::new(provider),
            ttl_cap: None,
            budget: Duration::from_millis(250),
            breaker: Some(Breaker::default()),
            codec: Codec::default(),
            stance: None,
            background: false,
        }
    }

    /// Keeps entries at this level no longer than `cap` from their arrival.
    #[must_use]
    pub fn ttl_cap(mut self, cap: Duration) -> Self {
        self.ttl_cap = Some(cap);
        self
    }

    /// The most that one operation at this level may cost a caller. Remote levels only.
    #[must_use]
    pub fn budget(mut self, budget: Duration) -> Self {
        self.budget = budget;
        self
    }

    /// When the level stops being asked; `None`: never. Remote levels only.
    #[must_use]
    pub fn breaker(mut self, breaker: Option<Breaker>) -> Self {
        self.breaker = breaker;
        self
    }

    /// How values are written. Remote levels only.
    #[must_use]
    pub fn codec(mut self, codec: Codec) -> Self {
        self.codec = codec;
        self
    }

    /// What a failure of this level means to callers.
    #[must_use]
    pub fn stance(mut self, stance: Stance) -> Self {
        self.stance = Some(stance);
        self
    }

    /// Values are written after the caller has been answered, in order per key, and before `close` ends. Invalidations
    /// never are.
    #[must_use]
    pub fn background(mut self, yes: bool) -> Self {
        self.background = yes;
        self
    }

    /// Checks the level at `position`, 1 being the nearest.
    pub(crate) fn check(&self, position: usize, policy: &Policy) -> Result<()> {
        self.provider.check()?;
        let system = self.provider.describe().system;
        let field = |name: &str| format!("level {position} ({system}) {name}");
        if let Some(cap) = self.ttl_cap {
            if cap.is_zero() {
                return Err(Error::config(
                    &field("ttl_cap"),
                    "0s",
                    "it could keep nothing; leave the level out",
                ));
            }
            if cap > policy.max_age() {
                return Err(Error::config(
                    &field("ttl_cap"),
                    format_args!("{cap:?}"),
                    format_args!(
                        "above all that the policy lets live (ttl {:?}, grace {:?}), so it caps nothing; lower it or leave it out",
                        policy.ttl, policy.grace
                    ),
                ));
            }
        }
        if self.budget.is_zero() {
            return Err(Error::config(
                &field("budget"),
                "0s",
                "no operation could end; give a time above zero",
            ));
        }
        if let Some(breaker) = &self.breaker {
            breaker.check()?;
        }
        Ok(())
    }
}

impl<P: CacheProvider> From<P> for Level {
    fn from(provider: P) -> Self {
        Self::new(provider)
    }
}

impl fmt::Debug for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Level")
            .field("provider", &self.provider.describe())
            .field("ttl_cap", &self.ttl_cap)
            .field("budget", &self.budget)
            .field("breaker", &self.breaker)
            .field("codec", &self.codec)
            .field("stance", &self.stance)
            .field("background", &self.background)
            .finish()
    }
}
