//! What servers say of themselves.

use std::time::Duration;

use crate::figures::share;

/// A server behind a provider, by its own word. `None`: it did not say.
#[non_exhaustive]
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServerStatus {
    /// Where it listens: `host:port`, or the path of its socket.
    pub address: String,
    /// Its release.
    pub version: Option<String>,
    /// Time since its start.
    pub uptime: Option<Duration>,
    /// Bytes that its items take.
    pub memory_used: Option<u64>,
    /// Most bytes that they may take; 0: no limit.
    pub memory_max: Option<u64>,
    /// What it does once they take that: of Redis `noeviction`, `allkeys-lru`, ...
    pub memory_policy: Option<String>,
    /// Items that it holds, of whoever uses it.
    pub items: Option<u64>,
    /// Look-ups of what it held, of all its clients.
    pub hits: Option<u64>,
    /// Look-ups of what it did not hold.
    pub misses: Option<u64>,
    /// Items that it let go for want of memory.
    pub evicted: Option<u64>,
    /// Connections.
    pub connections: Option<u64>,
}

impl ServerStatus {
    /// A server that has said nothing yet.
    pub fn at(address: impl Into<String>) -> Self {
        Self { address: address.into(), ..Self::default() }
    }

    /// Hits over look-ups, 0 to 1; `None` before the first look-up, and where it does not say.
    pub fn hit_rate(&self) -> Option<f64> {
        let (hits, misses) = (self.hits?, self.misses?);
        share(hits, hits.checked_add(misses)?)
    }
}
