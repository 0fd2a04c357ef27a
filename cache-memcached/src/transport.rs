//! The seam between the provider and whatever moves bytes to one server.

use std::{
    fmt,
    time::{Duration, Instant},
};

use bytes::Bytes;
use cache_core::PoolStatus;

use crate::{ErrorKind, error::Fault, item::Item, pipeline::Pipeline};

/// One command. Keys are wire keys: short enough, but not yet encoded.
#[derive(Clone)]
pub(crate) enum Command {
    /// Reads an item. Only with [`Look`] does it change anything, and are the reply's `cas`, `won` and `left` set.
    Get { key: String, look: Option<Look> },
    /// Stores an item.
    Put { key: String, item: Item, exptime: u32, when: When },
    /// Removes an item; with `cas`, only that one.
    Remove { key: String, cas: Option<u64> },
}

/// What a reader wants besides the value.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Look {
    /// Leave an empty item of so many seconds where there is none, and say who was the first to find none.
    pub(crate) vivify: Option<u32>,
    /// Let the item live for so many seconds from now.
    pub(crate) touch: Option<u32>,
}

/// When a put is to store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum When {
    Always,
    /// Only where there is nothing.
    Absent,
    /// Only over this very item.
    Cas(u64),
}

impl Command {
    pub(crate) fn get(key: String) -> Self {
        Self::Get { key, look: None }
    }

    pub(crate) fn key(&self) -> &str {
        match self {
            Self::Get { key, .. } | Self::Put { key, .. } | Self::Remove { key, .. } => key,
        }
    }

    /// Puts the server's life on an entry.
    pub(crate) fn stamp(&mut self, life: u64) {
        if let Self::Put { item: Item::Entry(of, _), .. } = self {
            *of = life;
        }
    }

    pub(crate) const fn is_write(&self) -> bool {
        !matches!(self, Self::Get { .. })
    }

    /// Whether the answer is to carry the item's version: what belongs to a lease may be replaced by its version later.
    pub(crate) const fn wants_version(&self) -> bool {
        matches!(self, Self::Put { item: Item::Tombstone | Item::Placeholder, .. })
    }

    /// About how many bytes the request has.
    pub(crate) fn weight(&self) -> usize {
        // Verb, flags, opaque id, line ends.
        const REST: usize = 64;
        match self {
            Self::Get { key, .. } | Self::Remove { key, .. } => key.len() + REST,
            Self::Put { key, item, .. } => key.len() + item.len() + REST,
        }
    }
}

/// Holds no key or value.
impl fmt::Debug for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Get { .. } => "Get",
            Self::Put { .. } => "Put",
            Self::Remove { .. } => "Remove",
        })
    }
}

/// An answer.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Reply {
    /// To a get: the item, or that there is none.
    Item(Option<Seen>),
    /// To a write; with the item's new version, 0 where the server does not say.
    Done(u64),
    /// To a conditional write: the condition does not hold, and nothing was changed.
    Refused,
}

/// An item as read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Seen {
    /// `None` when it is over the limit, and was not read.
    pub(crate) value: Option<Bytes>,
    /// Its version, unique on this server until it restarts. 0 where it was not asked for.
    pub(crate) cas: u64,
    /// The server says that this reader is to fill it.
    pub(crate) won: bool,
    /// Somebody has marked it stale.
    pub(crate) stale: bool,
    /// Seconds that it still lives, `u32::MAX` without an end. 0 where it was not asked for.
    pub(crate) left: u32,
}

pub(crate) const NO_RUNTIME: Fault = Fault::ours(ErrorKind::NoRuntime, "call it on a tokio runtime");
pub(crate) const NO_RESULT: Fault = Fault::new(ErrorKind::Protocol, "a command has no result");

/// How long a transport may take.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    pub(crate) connect_timeout: Duration,
    pub(crate) response_timeout: Duration,
}

/// Names a connection. None that comes later has the same name.
pub(crate) type Link = u64;

/// Connections to one server.
///
/// - One result per command, in order.
/// - Ends within the timeouts that it was made with.
/// - Dropping the future leaves no half-used connection behind: a reply never reaches another command.
/// - Retries nothing. What failed with [`ErrorKind::Connect`] was a read, or has never been sent.
pub(crate) trait Transport {
    /// Runs commands, in one round trip where they are small; and names the connection. `on`: that connection, or none:
    /// they fail with [`ErrorKind::Connect`] when it is gone.
    fn run(
        &self,
        commands: &[Command],
        on: Option<Link>,
    ) -> impl Future<Output = (Link, Vec<Result<Reply, Fault>>)> + Send;

    /// Runs one command, at less cost. `now` spares it a look at the clock.
    fn one(
        &self,
        command: &Command,
        on: Option<Link>,
        now: Instant,
    ) -> impl Future<Output = (Link, Result<Reply, Fault>)> + Send;

    /// Whether a connection has a name at all. Where it does not, nobody can tell whether the server is still the same.
    fn is_linked(&self) -> bool;

    /// Gives up idle connections and what is known of the server's address.
    fn reset(&self);

    /// Gives up all connections for good.
    fn close(&self);
}

/// The transport that a server has. No `dyn`, which would box every call; the pool's futures are boxed for their size.
pub(crate) enum Wire {
    Pipeline(Pipeline),
    #[cfg(feature = "client")]
    Pool(crate::exp::Pool),
}

impl Wire {
    /// Adds how its connections stand, and says whether they are at rest; `None`: nobody knows.
    pub(crate) fn tell(&self, pool: &mut PoolStatus) -> Option<bool> {
        match self {
            Self::Pipeline(pipeline) => Some(pipeline.tell(pool)),
            // Its client does not say.
            #[cfg(feature = "client")]
            Self::Pool(_) => None,
        }
    }
}

impl Transport for Wire {
    async fn run(&self, commands: &[Command], on: Option<Link>) -> (Link, Vec<Result<Reply, Fault>>) {
        match self {
            Self::Pipeline(pipeline) => pipeline.run(commands, on).await,
            #[cfg(feature = "client")]
            Self::Pool(pool) => Box::pin(pool.run(commands, on)).await,
        }
    }

    #[allow(clippy::manual_async_fn, reason = "an `async fn` would keep each argument twice")]
    fn one(
        &self,
        command: &Command,
        on: Option<Link>,
        now: Instant,
    ) -> impl Future<Output = (Link, Result<Reply, Fault>)> + Send {
        async move {
            match self {
                Self::Pipeline(pipeline) => pipeline.one(command, on, now).await,
                #[cfg(feature = "client")]
                Self::Pool(pool) => Box::pin(pool.one(command, on, now)).await,
            }
        }
    }

    fn is_linked(&self) -> bool {
        match self {
            Self::Pipeline(pipeline) => pipeline.is_linked(),
            #[cfg(feature = "client")]
            Self::Pool(pool) => pool.is_linked(),
        }
    }

    fn reset(&self) {
        match self {
            Self::Pipeline(pipeline) => pipeline.reset(),
            #[cfg(feature = "client")]
            Self::Pool(pool) => pool.reset(),
        }
    }

    fn close(&self) {
        match self {
            Self::Pipeline(pipeline) => pipeline.close(),
            #[cfg(feature = "client")]
            Self::Pool(pool) => pool.close(),
        }
    }
}
