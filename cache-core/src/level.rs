//! Levels: a provider in the stack, and what concerns only it.

use std::{fmt, sync::Arc, time::Duration};

use crate::{
    Breaker, CacheProvider, Codec, Compression, Encryption, Error, Result, payload::Packing, rules::Shape,
};

/// What a level's failure means to callers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Stance {
    /// A failed read is a miss; a failed write is pending. Nobody sees an error that a loader could have answered.
    Absorb,
    /// `get` and writes answer with the level's error. `get_or_set` still loads. What the level has yet to hear an invalidation
    /// of is a miss, not an error: it is not asked.
    Surface,
}

/// What becomes of a level's entries when its store turns out to be another one, or to have been restarted: a master of a
/// later failover, say, which may lack the last writes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Failover {
    /// The cache starts anew: nothing that the store had before is believed.
    #[default]
    Clear,
    /// They stay. Each node says again what it has written and invalidated within the last 60 seconds, at most 10,000 items,
    /// else the cache is cleared. Until it has, or for good if it has died since, what the store has lost of that shows as
    /// what it was before. Only for stores that replicate: what a restart from an old dump has lost is older than that.
    Keep,
}

/// A provider in the stack plus what concerns only it. Any provider converts into a level with the defaults:
///
/// | setting | default |
/// | --- | --- |
/// | `ttl_cap` | none |
/// | `budget` | 250 ms per call to a remote provider |
/// | `breaker` | [`Breaker::default`] for a remote provider |
/// | `codec` | JSON |
/// | `compression`, `encryption` | none |
/// | `plain` | off |
/// | `stance` | absorb; surface where it is the only level and remote |
/// | `on_failover` | clear |
/// | `background` | off |
pub struct Level {
    pub(crate) provider: Arc<dyn CacheProvider>,
    pub(crate) ttl_cap: Option<Duration>,
    pub(crate) budget: Duration,
    pub(crate) breaker: Option<Breaker>,
    pub(crate) packing: Packing,
    pub(crate) stance: Option<Stance>,
    pub(crate) failover: Failover,
    pub(crate) background: bool,
}

impl Level {
    /// A level with the defaults.
    pub fn new(provider: impl CacheProvider) -> Self {
        Self::shared(Arc::new(provider))
    }

    /// The same on a provider whose type is not known here.
    pub fn shared(provider: Arc<dyn CacheProvider>) -> Self {
        Self {
            provider,
            ttl_cap: None,
            budget: Duration::from_millis(250),
            breaker: Some(Breaker::default()),
            packing: Packing::default(),
            stance: None,
            failover: Failover::default(),
            background: false,
        }
    }

    /// Keeps entries at this level no longer than `cap` from their arrival, as stale ones neither.
    #[must_use]
    pub fn ttl_cap(mut self, cap: Duration) -> Self {
        self.ttl_cap = Some(cap);
        self
    }

    /// The most that one call to this level may cost a caller, who makes up to three for a miss of `get_or_set`: the look-up,
    /// the wish for a lease and the value's storing. Where it finds what has been invalidated by a tag or with the cache, it
    /// asks about the tags and wishes twice: five. Of a batch over several servers each is asked in a call of its own, all at
    /// once; and of one of more than 1,000 keys, or 4 MiB, each such piece, one after the other up to the first that fails.
    /// Remote levels only. Calls are ended by a timer that they share, in steps: up to a seventeenth early.
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

    /// What becomes of entries when the store is found to be another one, or to have been restarted. Remote levels only.
    #[must_use]
    pub fn on_failover(mut self, failover: Failover) -> Self {
        self.failover = failover;
        self
    }

    /// How values are written. Remote levels only. A codec of the cache's own
    /// ([`TracedCache::coded`](crate::TracedCache::coded)) goes before it.
    #[must_use]
    pub fn codec(mut self, codec: Codec) -> Self {
        self.packing.codec = codec;
        self
    }

    /// Makes large values smaller. Remote levels only.
    #[must_use]
    pub fn compression(mut self, compression: Compression) -> Self {
        self.packing.compression = Some(compression);
        self
    }

    /// Encrypts values, and reads none that is not encrypted. Remote levels only.
    #[must_use]
    pub fn encryption(mut self, encryption: Encryption) -> Self {
        self.packing.encryption = Some(encryption);
        self
    }

    /// Stores values bare: the codec's bytes and nothing else, under the backend's own ttl, so that programs in other
    /// languages read and write the same keys. Remote levels whose provider can do so
    /// ([`CacheProvider::plain`]).
    ///
    /// A bare value has no place for anything beside it. So at such a level there is
    ///
    /// | what is missing | and what comes of it |
    /// | --- | --- |
    /// | how long it has left | levels nearer must have a `ttl_cap`; [`Found::age`](crate::Found::age) counts from when it was read |
    /// | a time after its freshness | nothing stale: it lives for its ttl, and `grace` is other levels' matter |
    /// | an absence | it is not remembered here |
    /// | tags and an epoch | `clear` is refused for the whole cache |
    /// | a lease | two processes may load one key at once, and a load that another process overtakes may still be stored |
    /// | a checksum, a schema id | what the codec can read is believed |
    /// | the state of the store | after a restart from an old dump, what that holds is believed |
    ///
    /// `expire` removes the key here. What other programs write is heard of by nobody.
    #[must_use]
    pub fn plain(mut self) -> Self {
        self.packing.plain = true;
        self
    }

    /// What a failure of this level means to callers.
    #[must_use]
    pub fn stance(mut self, stance: Stance) -> Self {
        self.stance = Some(stance);
        self
    }

    /// Values are written after the caller has been answered, in order per key, and before `close` ends; until they are
    /// there, this node treats the level as not having their keys. A `set` answers
    /// [`Delivery::Pending`](crate::Delivery::Pending) for that reason alone. Invalidations are never put off.
    #[must_use]
    pub fn background(mut self, yes: bool) -> Self {
        self.background = yes;
        self
    }

    /// Whether both surely are on one store: clones of a provider, where they tell.
    pub(crate) fn is_same_store(&self, other: &Self) -> bool {
        let (ours, theirs) = (&self.provider, &other.provider);
        // What shares a provider is a provider of its own: the store inside it tells.
        let objects = ours.in_process().zip(theirs.in_process());
        Arc::ptr_eq(ours, theirs)
            || objects.is_some_and(|(ours, theirs)| Arc::ptr_eq(&ours, &theirs))
            || (ours.store_id() != 0 && ours.store_id() == theirs.store_id())
    }

    /// What of it matters to a policy.
    pub(crate) fn shape(&self) -> Shape {
        let (system, caps) = (self.provider.describe().system, self.provider.capabilities());
        Shape { system, caps, ttl_cap: self.ttl_cap, plain: self.packing.plain }
    }

    /// Checks the level at `position`, 1 being the nearest.
    pub(crate) fn check(&self, position: usize) -> Result<()> {
        self.provider.check()?;
        let system = self.provider.describe().system;
        let field = |name: &str| format!("level {position} ({system}) {name}");
        if self.ttl_cap.is_some_and(|cap| cap.is_zero()) {
            return Err(Error::config(&field("ttl_cap"), "0s", "it could keep nothing; leave the level out"));
        }
        if self.budget.is_zero() {
            return Err(Error::config(
                &field("budget"),
                "0s",
                "no operation could end; give a time above zero",
            ));
        }
        if let Some(breaker) = &self.breaker {
            breaker.check(field)?;
        }
        self.check_packing(&field)
    }

    fn check_packing(&self, field: &impl Fn(&str) -> String) -> Result<()> {
        let Packing { compression, encryption, plain, .. } = &self.packing;
        let set = [("compression", compression.is_some()), ("encryption", encryption.is_some())];
        for (name, _) in set.iter().filter(|(_, is_set)| *is_set) {
            if self.provider.in_process().is_some() {
                return Err(Error::config(
                    &field(name),
                    "set",
                    "this level keeps objects, not bytes; leave it out",
                ));
            }
            if *plain {
                let fix = "a bare value has no place to say so; leave it out, or leave out plain";
                return Err(Error::config(&field(name), "set", fix));
            }
        }
        if let Some(compression) = compression {
            compression.check(&field("compression"))?;
        }
        if let Some(encryption) = encryption {
            encryption.check(&field("encryption"))?;
        }
        if *plain && (self.provider.in_process().is_some() || self.provider.plain().is_none()) {
            let fix = "this provider has no bare form of values to share with other programs; leave it out";
            return Err(Error::config(&field("plain"), true, fix));
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
            .field("packing", &self.packing)
            .field("stance", &self.stance)
            .field("failover", &self.failover)
            .field("background", &self.background)
            .finish()
    }
}
