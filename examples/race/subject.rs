//! What is raced: this crate's cache, or one written by hand.

use std::{
    panic::resume_unwind,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use traced_cache::{
    BoxError, Delivery, Early, Error, ErrorKind, Level, Loaded, Memory, Outcome, Policy, Sourced, Stance,
    TracedCache,
};

use crate::{
    naive::Naive,
    options::{Kind, Levels, Settings},
    remote::Remote,
    source::{KEYS, NODES, Source},
    through::Through,
};

/// Where memory is not told of changes, it keeps entries this long.
const CAP: Duration = Duration::from_secs(1);
/// When a silent backplane is noticed: heartbeat and timeout, 1 s each.
const SILENCE: Duration = Duration::from_secs(2);
/// What one operation at the second level may take, as [`Remote::level`] sets it.
const BUDGET: Duration = Duration::from_secs(1);
/// After a fault: the breaker asks again, the connection is made again, and what the level has not heard is told, 1 s each.
pub(crate) const RECOVERY: Duration = Duration::from_secs(3);

/// How long a load takes that hangs.
const HANG: Duration = Duration::from_millis(300);

/// How long memory of one process may be behind a change that the other one has made.
pub(crate) fn bound(kind: Kind, levels: Levels, remote: &Remote) -> Duration {
    let hears = (0..NODES).any(|node| levels.hears(node));
    let told = kind == Kind::Traced && hears && matches!(remote, Remote::Redis(_));
    // What an entry was made from is older than the entry by one operation at most.
    BUDGET + if told { SILENCE } else { CAP }
}

/// The node that writes a key.
pub(crate) fn owner(key: usize) -> usize {
    key % NODES
}

/// The keys that a node writes.
pub(crate) fn keys_of(node: usize) -> impl Iterator<Item = usize> {
    (0..KEYS).filter(move |key| owner(*key) == node)
}

fn with_tag(value: Loaded<u64>, key: usize, tags: bool) -> Loaded<u64> {
    if tags { value.tag(tag(owner(key))) } else { value }
}

pub(crate) fn tag(node: usize) -> String {
    format!("node-{node}")
}

/// Entries live so long that only changes end them; or, where callers are hasty, so short that stale values stand in, and
/// nobody waits for long.
fn policy(settings: &Settings, near: bool) -> Policy {
    if !settings.hasty {
        return Policy::ttl(Duration::from_secs(60));
    }
    let ms = Duration::from_millis;
    let policy = Policy::ttl(ms(20)).throttle(ms(20));
    if !near {
        // Who has to wait here waits: a lease that nobody gives back shows by that. Bare values have no grace.
        let bare = settings.levels == Levels::Plain;
        return if bare { policy } else { policy.grace(Duration::from_secs(60)) };
    }
    policy
        .grace(Duration::from_secs(60))
        .early(Early::Fraction(0.5))
        .revalidate(ms(5))
        .soft_limit(ms(5))
        .wait(ms(30))
        .hard_limit(Some(HANG / 3))
        .loads(8)
        .complete_in_background(settings.node == 0)
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
    /// A stale value, which stands in for a load that is slow or has failed.
    Stale,
    /// Any of these: neither a batch nor a refresh says.
    Unsaid,
}

/// Loads slowly, and counts.
#[derive(Clone)]
pub(crate) struct Loader {
    pub(crate) source: Source,
    pub(crate) loads: Arc<AtomicU64>,
    /// Some loads fail, panic or take too long, and some answers are not to be kept.
    pub(crate) moody: Arc<AtomicBool>,
    /// Whether the cache knows tags.
    pub(crate) tags: bool,
}

impl Loader {
    async fn load(self, key: usize) -> Result<u64, BoxError> {
        self.loads.fetch_add(1, Ordering::Relaxed);
        let version = self.source.get(key).await?;
        tokio::time::sleep(Duration::from_micros(fastrand::u64(1_000..20_000))).await;
        if self.moody.load(Ordering::Relaxed) {
            match fastrand::u8(..32) {
                0 => return Err("on purpose".into()),
                // Nothing of it is printed.
                1 => resume_unwind(Box::new("on purpose")),
                2 => tokio::time::sleep(HANG).await,
                _ => {}
            }
        }
        Ok(version)
    }

    pub(crate) async fn load_tagged(self, id: u64) -> Result<Loaded<u64>, BoxError> {
        let key = usize::try_from(id)?;
        let (tags, moody) = (self.tags, Arc::clone(&self.moody));
        let version = self.load(key).await?;
        let value = Loaded::value(version);
        let value = match fastrand::u8(..16) {
            0 if moody.load(Ordering::Relaxed) => value.ttl(Duration::ZERO),
            1 if moody.load(Ordering::Relaxed) => Loaded::do_not_store(Some(version)),
            _ => value,
        };
        Ok(with_tag(value, key, tags))
    }

    async fn load_many(self, ids: Vec<u64>) -> Result<Vec<(u64, Loaded<u64>)>, BoxError> {
        let mut loaded = Vec::new();
        for id in ids {
            loaded.push((id, self.clone().load_tagged(id).await?));
        }
        Ok(loaded)
    }
}

/// Whether a call may end like this where loads fail: nobody but the loader is to blame.
pub(crate) fn is_of_a_load(error: &BoxError) -> bool {
    error.downcast_ref::<Error>().is_some_and(|error| {
        matches!(error.kind(), ErrorKind::Load | ErrorKind::LoadPanicked | ErrorKind::LoadTimeout)
    })
}

/// Whether a call may end like this where errors of a level come out.
pub(crate) fn is_of_a_level(error: &BoxError) -> bool {
    error.downcast_ref::<Error>().is_some_and(|error| error.kind() == ErrorKind::Level)
}

/// What an error of a level means that comes out of a write: this process holds to it, as to what is pending.
fn surfaced(written: Result<Delivery, Error>) -> Result<Delivery, BoxError> {
    match written {
        Err(error) if error.kind() == ErrorKind::Level => Ok(Delivery::Pending),
        written => Ok(written?),
    }
}

pub(crate) enum Subject {
    Traced { cache: TracedCache<u64>, through: Sourced<u64, u64, Through>, near: bool, tags: bool },
    Naive(Naive),
}

impl Subject {
    /// One with memory, or one without.
    pub(crate) fn new(
        settings: &Settings,
        remote: &Remote,
        deeper: Option<&Remote>,
        loader: &Loader,
        near: bool,
    ) -> Result<Self, BoxError> {
        let Settings { kind, levels, node, .. } = settings;
        if *kind == Kind::Naive {
            return Ok(Self::Naive(Naive::new(near.then_some(CAP), remote.provider())));
        }
        let mut cache = TracedCache::builder("race").policy(policy(settings, near));
        if near {
            let memory = Level::new(Memory::entries(1_000));
            cache = match remote {
                // The one without memory has nothing to be told: what the second level promises, it promises alone.
                Remote::Redis(redis) if levels.hears(*node) => {
                    cache.level(memory).backplane(redis.backplane())
                }
                _ => cache.level(memory.ttl_cap(CAP)),
            };
        }
        if deeper.is_some() {
            cache = cache.level(remote.level());
        }
        let remote = deeper.unwrap_or(remote);
        let level = match levels {
            Levels::Behind => remote.level().background(true),
            Levels::Plain => remote.level().plain(),
            Levels::Surface => remote.level().stance(Stance::Surface),
            Levels::Told | Levels::Mixed | Levels::Untold => remote.level(),
        };
        let cache = cache.level(level).build()?;
        let through = cache.with_source(Through(loader.clone()));
        Ok(Self::Traced { cache, through, near, tags: loader.tags })
    }

    pub(crate) async fn read(&self, key: usize, loader: &Loader) -> Result<(u64, Seen), BoxError> {
        match self {
            Self::Naive(cache) => cache.read(key, loader.clone().load(key)).await,
            Self::Traced { cache, near, .. } => {
                let id = u64::try_from(key)?;
                let found = cache.look_or_set_with(id, loader, Loader::load_tagged).await?;
                let seen = match (found.level(), found.outcome()) {
                    (_, Outcome::Stale) => Seen::Stale,
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
            Self::Traced { cache, tags, .. } => surfaced(
                cache.set_loaded(u64::try_from(key)?, with_tag(Loaded::value(version), key, *tags)).await,
            ),
        }
    }

    /// Writes the version that comes next, or another one in its place, through the cache.
    pub(crate) async fn write_through(
        &self,
        key: usize,
        version: u64,
        loader: &Loader,
    ) -> Result<Delivery, BoxError> {
        match self {
            Self::Naive(cache) => Ok(cache.set(key, loader.source.change(key).await?).await),
            Self::Traced { through, .. } if version.is_multiple_of(4) => {
                Ok(through.delete(u64::try_from(key)?).await?)
            }
            Self::Traced { through, .. } => Ok(through.save(u64::try_from(key)?, version).await?),
        }
    }

    /// Without the second level nobody can update: who has changed the source invalidates then. It goes on when its caller
    /// leaves, and so asks the source what is to be there by then.
    pub(crate) async fn update(
        &self,
        key: usize,
        version: u64,
        loader: &Loader,
    ) -> Result<Delivery, BoxError> {
        match self {
            Self::Naive(cache) => Ok(cache.set(key, version).await),
            Self::Traced { cache, tags, .. } => {
                let tags = *tags;
                let change = move |source: Source, id: u64, _| async move {
                    let key = usize::try_from(id)?;
                    Ok::<_, BoxError>(with_tag(Loaded::value(source.get(key).await?), key, tags))
                };
                match cache.update(u64::try_from(key)?, &loader.source, change).await {
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
            Self::Traced { cache, .. } => surfaced(cache.invalidate(u64::try_from(key)?).await),
        }
    }

    /// What is there is no longer fresh, and may stand in.
    pub(crate) async fn expire(&self, key: usize) -> Result<Delivery, BoxError> {
        match self {
            Self::Naive(cache) => Ok(cache.invalidate(key).await),
            Self::Traced { cache, .. } => surfaced(cache.expire(u64::try_from(key)?).await),
        }
    }

    /// All keys of a node, by their tag.
    pub(crate) async fn invalidate_all_of(&self, node: usize) -> Result<Delivery, BoxError> {
        match self {
            Self::Naive(cache) => Ok(cache.invalidate_all(keys_of(node)).await),
            Self::Traced { cache, tags: true, .. } => surfaced(cache.invalidate_tag(tag(node)).await),
            Self::Traced { cache, .. } => {
                surfaced(cache.invalidate_many(keys_of(node).map(|key| key as u64)).await)
            }
        }
    }

    /// The same, but what is there may stand in.
    pub(crate) async fn expire_all_of(&self, node: usize) -> Result<Delivery, BoxError> {
        match self {
            Self::Traced { cache, tags: true, .. } => surfaced(cache.expire_tag(tag(node)).await),
            _ => self.invalidate_all_of(node).await,
        }
    }

    /// The same of every key of the cache.
    pub(crate) async fn expire_all(&self) -> Result<Delivery, BoxError> {
        match self {
            Self::Traced { cache, tags: true, .. } => surfaced(cache.expire_all().await),
            _ => self.clear().await,
        }
    }

    pub(crate) async fn clear(&self) -> Result<Delivery, BoxError> {
        match self {
            Self::Naive(cache) => Ok(cache.invalidate_all(0..KEYS).await),
            Self::Traced { cache, tags: true, .. } => surfaced(cache.clear().await),
            Self::Traced { cache, .. } => {
                surfaced(cache.invalidate_many((0..KEYS).map(|key| key as u64)).await)
            }
        }
    }
}
