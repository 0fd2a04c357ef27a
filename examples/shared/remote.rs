//! The second level that `--l2` names.

use std::{error::Error, fmt, sync::Arc, time::Duration};

use traced_cache::{BoxError, CacheProvider, Error as CacheError, Level, MemcachedProvider, RedisProvider};

/// A Redis or memcached server. Every run has a key prefix of its own, so it finds nothing of an earlier one; what it
/// leaves behind ends with its ttl.
#[derive(Clone, Debug)]
pub(crate) enum Remote {
    Redis(RedisProvider),
    Memcached(MemcachedProvider),
}

impl Remote {
    /// Checks the URL; connects nothing.
    pub(crate) fn new(url: &str, run: &str) -> Result<Self, BoxError> {
        let prefix = format!("{run}:");
        match url.split_once("://").map(|(scheme, _)| scheme) {
            Some("redis" | "rediss" | "valkey" | "valkeys" | "unix" | "redis+sentinel" | "redis+cluster") => {
                Ok(Self::Redis(RedisProvider::builder(url).key_prefix(prefix).build()?))
            }
            Some("memcached") => {
                Ok(Self::Memcached(MemcachedProvider::builder(url).key_prefix(prefix).build()?))
            }
            Some(scheme) => Err(unknown(&format!("{scheme}://..."))),
            // Not shown: what is no URL may be a password.
            None => Err(unknown("(not a URL)")),
        }
    }

    pub(crate) fn level(&self) -> Level {
        let level = match self.clone() {
            Self::Redis(redis) => Level::from(redis),
            Self::Memcached(memcached) => Level::from(memcached),
        };
        // A service would rather load than wait that long; here the waiting is what is measured.
        level.budget(Duration::from_secs(1))
    }

    pub(crate) fn system(&self) -> &'static str {
        self.provider().describe().system
    }

    pub(crate) fn provider(&self) -> Arc<dyn CacheProvider> {
        match self.clone() {
            Self::Redis(redis) => Arc::new(redis),
            Self::Memcached(memcached) => Arc::new(memcached),
        }
    }

    /// Caches connect when they first need a level and do without it when it is down. Somebody who asked for a server
    /// by name wants to be told.
    pub(crate) async fn reach(&self) -> Result<(), Unreachable> {
        let provider = self.provider();
        provider.ping().await.map_err(|cause| {
            let at = provider.describe();
            Unreachable { at: format!("{} at {}", at.system, at.place().unwrap_or_default()), cause }
        })
    }
}

fn unknown(value: &str) -> BoxError {
    CacheError::config("--l2", value, "use redis://host:port or memcached://host:port").into()
}

/// The server did not answer.
#[derive(Debug)]
pub(crate) struct Unreachable {
    at: String,
    cause: BoxError,
}

impl fmt::Display for Unreachable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "--l2: no answer from {}; start the server, or leave --l2 out", self.at)
    }
}

impl Error for Unreachable {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&*self.cause)
    }
}
