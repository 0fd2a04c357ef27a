//! What is raced: this crate's cache, or one written by hand.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use traced_cache::{BoxError, Delivery, ErrorKind, Level, Loaded, Memory, Outcome, Policy, TracedCache};

use crate::{
    naive::Naive,
    options::Kind,
    remote::Remote,
    source::{KEYS, NODES, Source},
};

/// Where memory is not told of changes, it keeps entries this long.
const CAP: Duration = Duration::from_secs(1);
/// When a silent backplane is noticed: heartbeat and timeout, 1 s each.
const SILENCE: Duration = Duration::from_secs(2);
/// What one operation at the second level may take, as [`Remote::level`] sets it.
const BUDGET: Duration = Duration::from_secs(1);
/// After a fault: the breaker asks again, the connection is made again, and what the level has not heard is told, 1 s each.
pub(crate) const RECOVERY: Duration = Duration::from_secs(3);

/// How long memory of one process may be behind a change that the other one has made.
pub(crate) fn bound(kind: Kind, remote: &Remote) -> Duration {
    let told = kind == Kind::Traced && matches!(remote, Remote::Redis(_));
    // What an entry was made from is older than the entry by one operation at most.
    BUDGET + if told { SILENCE } else { CAP }
}

/// The node that writes a key.
pub(crate) fn owner(key: usize) -> usize {
    key % NODES
}

fn tag(node: usize) -> String {
    format!("node-{node}")
}

fn tagged(key: usize, version: u64) -> Loaded<u64> {
    Loaded::value(version).tag(tag(owner(key)))
}

/// Where an answer came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Seen {
    /// Memory.
    Near,
    /// A read of the second level or of the source that began after the call.
    Far,
    /// A load that another call had begun.
    Joined,
    /// Any of these: neither a batch nor a refresh says.
    Unsaid,
}

/// Loads slowly, and counts.
#[derive(Clone)]
pub(crate) struct Loader {
    pub(crate) source: Source,
    pub(crate) loads: Arc<AtomicU64>,
}

impl Loader {
    async fn load(self, key: usize) -> Result<u64, BoxError> {
        self.loads.fetch_add(1, Ordering::Relaxed);
        let version = self.source.get(key).await?;
        tokio::time::sleep(Duration::from_micros(fastrand::u64(1_000..20_000))).await;
        Ok(version)
    }

    async fn load_tagged(self, id: u64) -> Result<Loaded<u64>, BoxError> {
        let key = usize::try_from(id)?;
        Ok(tagged(key, self.load(key).await?))
    }

    async fn load_many(self, ids: Vec<u64>) -> Result<Vec<(u64, Loaded<u64>)>, BoxError> {
        let mut loaded = Vec::new();
        for id in ids {
            loaded.push((id, self.clone().load_tagged(id).await?));
        }
        Ok(loaded)
    }
}

pub(crate) enum Subject {
    Traced { cache: TracedCache<u64>, near: bool },
    Naive(Naive),
}

impl Subject {
    /// One with memory, or one without.
    pub(crate) fn new(kind: Kind, remote: &Remote, near: bool) -> Result<Self, BoxError> {
        if kind == Kind::Naive {
            return Ok(Self::Naive(Naive::new(near.then_some(CAP), remote.provider())));
        }
        let mut cache = TracedCache::builder("race").policy(Policy::ttl(Duration::from_secs(60)));
        if near {
            let memory = Level::new(Memory::entries(1_000));
            cache = match remote {
                // The one without memory has nothing to be told: what the second level promises, it promises alone.
                Remote::Redis(redis) => cache.level(memory).backplane(redis.backplane()),
                Remote::Memcached(_) => cache.level(memory.ttl_cap(CAP)),
            };
        }
        Ok(Self::Traced { cache: cache.level(remote.level()).build()?, near })
    }

    pub(crate) async fn read(&self, key: usize, loader: &Loader) -> Result<(u64, Seen), BoxError> {
        match self {
            Self::Naive(cache) => cache.read(key, loader.clone().load(key)).await,
            Self::Traced { cache, near } => {
                let id = u64::try_from(key)?;
                let found = cache.look_or_set_with(id, loader, Loader::load_tagged).await?;
                let seen = match (found.level(), found.outcome()) {
                    (Some(0), _) if *near => Seen::Near,
                    (None, Outcome::Coalesced) => Seen::Joined,
                    _ => Seen::Far,
                };
                Ok((*found.into_value().ok_or("a read without a value")?, seen))
            }
        }
    }

    pub(crate) async fn set(&self, key: usize, version: u64) -> Result<Delivery, BoxError> {
        match self {
            Self::Naive(cache) => Ok(cache.set(key, version).await),
            Self::Traced { cache, .. } => {
                Ok(cache.set_loaded(u64::try_from(key)?, tagged(key, version)).await?)
            }
        }
    }

    /// Without the second level nobody can update: who has changed the source invalidates then.
    pub(crate) async fn update(&self, key: usize, version: u64) -> Result<Delivery, BoxError> {
        match self {
            Self::Naive(cache) => Ok(cache.set(key, version).await),
            Self::Traced { cache, .. } => {
                let change = |version, id: u64, _| async move {
                    Ok::<_, BoxError>(tagged(usize::try_from(id)?, version))
                };
                match cache.update(u64::try_from(key)?, &version, change).await {
                    Ok(updated) => Ok(updated.delivery),
                    Err(error) if matches!(error.kind(), ErrorKind::Level | ErrorKind::LoadTimeout) => {
                        self.invalidate(key).await
                    }
                    Err(error) => Err(error.into()),
                }
            }
        }
    }

    /// Loads it anew, or joins who does.
    pub(crate) async fn refresh(&self, key: usize, loader: &Loader) -> Result<u64, BoxError> {
        match self {
            Self::Naive(cache) => {
                let version = loader.clone().load(key).await?;
                let _ = cache.set(key, version).await;
                Ok(version)
            }
            Self::Traced { cache, .. } => {
                let version: Option<Arc<u64>> =
                    cache.refresh(u64::try_from(key)?, loader, Loader::load_tagged).await?;
                Ok(*version.ok_or("a load without a value")?)
            }
        }
    }

    pub(crate) async fn read_many(&self, keys: &[usize], loader: &Loader) -> Result<Vec<u64>, BoxError> {
        match self {
            Self::Naive(_) => {
                let mut versions = Vec::new();
                for key in keys {
                    versions.push(self.read(*key, loader).await?.0);
                }
                Ok(versions)
            }
            Self::Traced { cache, .. } => {
                let ids = keys.iter().map(|key| *key as u64);
                let found = cache.get_or_set_many(ids, loader, Loader::load_many).await?;
                found.into_iter().map(|found| Ok(*found.ok_or("a read without a value")?)).collect()
            }
        }
    }

    pub(crate) async fn invalidate(&self, key: usize) -> Result<Delivery, BoxError> {
        match self {
            Self::Naive(cache) => Ok(cache.invalidate(key).await),
            Self::Traced { cache, .. } => Ok(cache.invalidate(u64::try_from(key)?).await?),
        }
    }

    /// All keys of a node, by their tag.
    pub(crate) async fn invalidate_all_of(&self, node: usize) -> Result<Delivery, BoxError> {
        match self {
            Self::Naive(cache) => Ok(cache.invalidate_all((0..KEYS).filter(|key| owner(*key) == node)).await),
            Self::Traced { cache, .. } => Ok(cache.invalidate_tag(tag(node)).await?),
        }
    }

    pub(crate) async fn clear(&self) -> Result<Delivery, BoxError> {
        match self {
            Self::Naive(cache) => Ok(cache.invalidate_all(0..KEYS).await),
            Self::Traced { cache, .. } => Ok(cache.clear().await?),
        }
    }
}
