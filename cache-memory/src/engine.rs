//! The choice of an engine, and what both have in common.

use std::{fmt, str::FromStr, sync::Arc, time::Duration};

use bytes::Bytes;
use cache_core::{Error, ObjectStore};

use crate::{moka::Moka, quick::Quick};

/// What keeps the entries of a [`Memory`](crate::Memory). The [crate docs](crate) compare the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Engine {
    /// [quick_cache](https://docs.rs/quick_cache): hits cost a fifth of moka's, writes less still.
    #[default]
    Quick,
    /// [moka](https://docs.rs/moka): strictly what was used longest ago leaves, and the dead leave by a timer.
    Moka,
}

impl Engine {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Quick, Self::Moka];

    /// Its name in configuration: `quick` or `moka`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Quick => "quick",
            Self::Moka => "moka",
        }
    }

    /// What an entry costs besides its value and its key, in bytes: the engine's nodes and this crate's. Part of the
    /// weight of each entry under [`Memory::bytes`](crate::Memory::bytes). A round number from measurement; the
    /// allocator's own rounding is not in it.
    pub const fn entry_overhead(self) -> u32 {
        match self {
            Self::Quick => crate::quick::ENTRY_OVERHEAD,
            Self::Moka => crate::moka::ENTRY_OVERHEAD,
        }
    }
}

impl fmt::Display for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Engine {
    type Err = Error;

    /// # Errors
    /// [`cache_core::ErrorKind::Config`] for any other word.
    fn from_str(name: &str) -> Result<Self, Error> {
        Self::ALL
            .into_iter()
            .find(|engine| engine.as_str() == name)
            .ok_or_else(|| Error::config("engine", format_args!("{name:?}"), "use \"quick\" or \"moka\""))
    }
}

/// How a store is set up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Settings {
    pub(crate) engine: Engine,
    pub(crate) capacity: u64,
    pub(crate) weighs: bool,
    pub(crate) engine_expiry: bool,
}

impl Settings {
    pub(crate) fn store(self) -> Arc<dyn Store> {
        match self.engine {
            Engine::Quick => Arc::new(Quick::new(self)),
            Engine::Moka => Arc::new(Moka::new(self)),
        }
    }

    /// Weight of the heaviest entry that stays, where entries are weighed.
    pub(crate) fn most(self) -> u64 {
        match self.engine {
            Engine::Quick => crate::quick::heaviest(self),
            Engine::Moka => self.capacity,
        }
    }

    /// Most bytes of a value and its key together; none where entries are not weighed.
    pub(crate) fn heaviest(self) -> Option<u64> {
        self.weighs.then(|| self.most().saturating_sub(self.engine.entry_overhead().into()))
    }
}

/// A store of objects that also keeps bytes, under joined texts.
pub(crate) trait Store: ObjectStore {
    /// Does what has been put off.
    fn maintain(&self);
    fn get_bytes(&self, joined: &str) -> Option<Bytes>;
    fn put_bytes(&self, joined: &str, bytes: Bytes, ttl: Duration);
    fn remove_bytes(&self, joined: &str);
}
