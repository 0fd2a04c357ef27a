//! The seam between the provider and whatever moves bytes to one server.

use std::fmt;

use async_trait::async_trait;
use bytes::Bytes;

use crate::{ErrorKind, error::Fault};

/// One command. Keys are wire keys: short enough, but not yet encoded.
#[derive(Clone)]
pub(crate) enum Command {
    Get { key: String },
    Put { key: String, bytes: Bytes, exptime: u32 },
    Remove { key: String },
}

impl Command {
    pub(crate) fn key(&self) -> &str {
        match self {
            Self::Get { key } | Self::Put { key, .. } | Self::Remove { key } => key,
        }
    }

    pub(crate) const fn is_write(&self) -> bool {
        !matches!(self, Self::Get { .. })
    }

    /// About how many bytes the request has.
    pub(crate) fn weight(&self) -> usize {
        // Verb, flags, opaque id, line ends.
        const REST: usize = 32;
        match self {
            Self::Get { key } | Self::Remove { key } => key.len() + REST,
            Self::Put { key, bytes, .. } => key.len() + bytes.len() + REST,
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
#[derive(Debug)]
pub(crate) enum Reply {
    /// To a get: the item, or that there is none.
    Item(Option<Bytes>),
    /// To a write.
    Done,
}

const NO_RESULT: Fault = Fault::new(ErrorKind::Protocol, "a command has no result");

/// Connections to one server.
///
/// - One result per command, in order.
/// - Ends within the timeouts that it was made with.
/// - Dropping the future leaves no half-used connection behind: a reply never reaches another command.
/// - Retries nothing that may have been sent.
#[async_trait]
pub(crate) trait Transport: Send + Sync {
    /// Runs commands, in one round trip where they are small.
    async fn run(&self, commands: Vec<Command>) -> Vec<Result<Reply, Fault>>;

    /// Runs one command, at less cost.
    async fn one(&self, command: Command) -> Result<Reply, Fault> {
        self.run(vec![command]).await.pop().unwrap_or(Err(NO_RESULT))
    }

    /// Asks for a sign of life.
    async fn ping(&self) -> Result<(), Fault>;

    /// Gives up idle connections and what is known of the server's address.
    fn reset(&self);

    /// Gives up all connections for good.
    fn close(&self);
}
