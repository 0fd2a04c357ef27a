//! Building a cache: every contradiction is found here, before any I/O.

use std::{
    fmt,
    sync::{
        Arc, Mutex, Weak,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    Access, Backplane, CacheId, CacheInfo, Clock, Error, Level, LevelInfo, Observer, Policy, Result, Schema,
    Stats, TracedCache, Value,
    backplane::{Plane, Trust},
    inner::{Inner, Weigher},
    ledger::Tidings,
    nearby::EvictionCounter,
    news::News,
    observers::Observers,
    rules::{self, Rules},
    slots::Slots,
    striped::Striped,
    tier::{Around, Tier},
    value::Coding,
};

/// Puts a cache together; from [`TracedCache::builder`].
pub struct Builder<T> {
    name: String,
    levels: Vec<Level>,
    policy: Policy,
    clock: Clock,
    schema: u32,
    coding: Coding<T>,
    weigher: Option<Weigher<T>>,
    observers: Vec<Arc<dyn Observer>>,
    backplane: Option<Arc<dyn Backplane>>,
    tagging: bool,
}

impl<T: Value> Builder<T> {
    pub(crate) fn new(name: String, coding: Coding<T>) -> Self {
        Self {
            name,
            coding,
            levels: Vec::new(),
            policy: Policy::ttl(Duration::from_secs(60)),
            clock: Clock::system(),
            schema: 0,
            weigher: None,
            observers: Vec::new(),
            backplane: None,
            tagging: true,
        }
    }

    /// Adds the next level, nearest first. Any provider is a level with the defaults of [`Level`].
    #[must_use]
    pub fn level(mut self, level: impl Into<Level>) -> Self {
        self.levels.push(level.into());
        self
    }

    /// How long entries live and how loads are held. A ttl of 60 s when not given.
    #[must_use]
    pub fn policy(mut self, policy: Policy) -> Self {
        self.policy = policy;
        self
    }

    /// The clock; the system's when not given.
    #[must_use]
    pub fn clock(mut self, clock: Clock) -> Self {
        self.clock = clock;
        self
    }

    /// Names the shape of `T` on the wire. Entries with another id are a clean miss: raise it when the type changes in a
    /// way that its codec would misread.
    #[must_use]
    pub fn schema(mut self, id: u32) -> Self {
        self.schema = id;
        self
    }

    /// The schema id that the type itself names: see [`Schema`].
    #[must_use]
    pub fn versioned(self) -> Self
    where
        T: Schema,
    {
        self.schema(T::ID)
    }

    /// Weighs values in bytes, for levels bounded by bytes. The encoded size when not given; that as JSON, or in the cache's
    /// own codec, where nothing else is encoded. What nothing encodes ([`TracedCache::in_memory`]) has none, and needs this.
    #[must_use]
    pub fn weigher(mut self, weigher: impl Fn(&T) -> u32 + Send + Sync + 'static) -> Self {
        self.weigher = Some(Box::new(weigher));
        self
    }

    /// How the other nodes of this cache learn of its invalidations, and this one of theirs.
    #[must_use]
    pub fn backplane(self, backplane: impl Backplane) -> Self {
        self.backplane_shared(Arc::new(backplane))
    }

    /// The same with a backplane that other caches use, too.
    #[must_use]
    pub fn backplane_shared(mut self, backplane: Arc<dyn Backplane>) -> Self {
        self.backplane = Some(backplane);
        self
    }

    /// Whether entries may carry tags (on when not given). Off, a tag is an error of the call or of the load that brings it:
    /// for caches that share a name with processes which know nothing of tags.
    #[must_use]
    pub fn tags(mut self, on: bool) -> Self {
        self.tagging = on;
        self
    }

    /// Adds an observer.
    #[must_use]
    pub fn observer(self, observer: impl Observer) -> Self {
        self.observer_shared(Arc::new(observer))
    }

    /// Adds an observer that other caches have, too.
    #[must_use]
    pub fn observer_shared(mut self, observer: Arc<dyn Observer>) -> Self {
        self.observers.push(observer);
        self
    }

    /// Checks everything that [`build`](Self::build) does.
    ///
    /// # Errors
    /// As `build`.
    pub fn check(&self) -> Result<()> {
        check_name(&self.name)?;
        self.check_levels().inspect_err(|error| error.belongs_to(&Arc::from(&*self.name)))
    }

    fn check_levels(&self) -> Result<()> {
        let Self { levels, policy, .. } = self;
        if levels.is_empty() {
            return Err(Error::config(
                "levels",
                "none",
                "a cache needs at least one level; add one with `level`",
            ));
        }
        if levels.len() > 16 {
            return Err(Error::config("levels", levels.len(), "at most 16 levels"));
        }
        for (at, level) in levels.iter().enumerate() {
            level.check(at + 1)?;
            if matches!(self.coding, Coding::None) {
                self.check_uncoded(at + 1, level)?;
            }
            if let Some(first) = levels[..at].iter().position(|nearer| nearer.is_same_store(level)) {
                return Err(Error::config(
                    &format!("level {} ({}) provider", at + 1, level.provider.describe().system),
                    format_args!("that of level {}", first + 1),
                    "both would use the same keys; leave one of them out",
                ));
            }
        }
        rules::check(&levels.iter().map(Level::shape).collect::<Vec<_>>(), policy)
    }

    /// Refuses a level that would need a form for values which have none.
    fn check_uncoded(&self, number: usize, level: &Level) -> Result<()> {
        let system = level.provider.describe().system;
        let Some(store) = level.provider.in_process() else {
            return Err(Error::config(
                &format!("level {number} ({system}) provider"),
                system,
                "values of this cache stay in memory; leave the level out, or build the cache with `builder`, of what serde \
                 can write, or with `coded`",
            ));
        };
        if store.weighs() && self.weigher.is_none() {
            return Err(Error::config(
                "weigher",
                "none",
                format_args!(
                    "level {number} ({system}) is bounded by bytes, and what serde does not write has no size; say what a \
                     value weighs, or bound the level by entries"
                ),
            ));
        }
        Ok(())
    }

    /// Checks everything and builds the cache. Does no I/O and needs no runtime.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Config`], naming the field, its value and the fix: a bad name, no level, contradictions within
    /// policy or levels, or what a provider finds wrong with its own settings.
    pub fn build(self) -> Result<TracedCache<T>> {
        self.check()?;
        let Self { name, levels, policy, clock, schema, coding, weigher, observers, backplane, tagging } =
            self;
        let name: Arc<str> = name.into();
        let remote = levels.iter().any(|level| level.provider.in_process().is_none());
        let only = levels.len() == 1;
        let mut deeper = Vec::new();
        let tidings = Tidings::default();
        let mut tiers: Box<[Tier]> = levels
            .into_iter()
            .enumerate()
            .rev()
            .map(|(at, level)| {
                let at = u8::try_from(at).unwrap_or(u8::MAX);
                let tier = Tier::new(at, level, only, deeper.clone(), tidings.clone());
                deeper.push(Arc::clone(&tier.pending));
                tier
            })
            .collect();
        tiers.reverse();
        let info = CacheInfo {
            name: Arc::clone(&name),
            levels: tiers
                .iter()
                .map(|tier| LevelInfo {
                    position: format!("l{}", tier.number()).into(),
                    provider: tier.provider().describe(),
                    in_process: tier.store.is_some(),
                })
                .collect(),
        };
        let observers = Observers::new(info.clone(), observers);
        let stats =
            Arc::new(Stats::new(info, tiers.iter().map(|t| t.store.clone()).collect(), backplane.is_some()));
        static NEXT: AtomicU32 = AtomicU32::new(1);
        // 0 is the space of byte providers.
        let cache = CacheId(NEXT.fetch_add(1, Ordering::Relaxed));
        for tier in &tiers {
            if let Some(store) = &tier.store {
                let counter = EvictionCounter {
                    level: tier.index,
                    stats: Arc::clone(&stats),
                    observers: observers.clone(),
                };
                store.attach(cache, Arc::new(counter));
            }
        }
        observers.attach(&stats);
        let observers = observers.hearing(&stats);
        let inner = Arc::new_cyclic(|inner: &Weak<Inner<T>>| Inner {
            near: tiers[0].store.clone(),
            tiers,
            around: Around { cache, name, clock, observers, stats, memory: Weak::clone(inner) as _ },
            rules: ArcSwap::from_pointee(Rules::new(policy)),
            plane: backplane.map(Plane::new),
            trust: Trust::new(),
            schema,
            coding,
            weigher,
            news: News::new(remote),
            watching: AtomicBool::new(false),
            poke: Arc::default(),
            tagging,
            slots: Slots::new(),
            under_way: Mutex::default(),
            returning: Arc::default(),
            tasks: TaskTracker::new(),
            callers: Striped::new(TaskTracker::new),
            ended: AtomicBool::new(false),
            closing: CancellationToken::new(),
        });
        let advised: Weak<Inner<T>> = Arc::downgrade(&inner);
        for tier in inner.remote() {
            tier.provider().advise(Weak::clone(&advised) as _);
        }
        Ok(TracedCache { inner, access: Access::Normal })
    }
}

/// The name is part of every remote key and of every metric.
fn check_name(name: &str) -> Result<()> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-' | '/');
    if name.is_empty() || name.len() > 100 || !name.chars().all(allowed) {
        return Err(Error::config(
            "name",
            format_args!("{name:?}"),
            "1 to 100 ASCII letters, digits, `.`, `_`, `-` or `/`; it is part of remote keys and of metrics",
        ));
    }
    Ok(())
}

impl<T> fmt::Debug for Builder<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Builder")
            .field("name", &self.name)
            .field("levels", &self.levels)
            .field("policy", &self.policy)
            .finish_non_exhaustive()
    }
}
