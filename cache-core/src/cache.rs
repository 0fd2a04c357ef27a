//! `TracedCache`: the face.

use std::{collections::HashMap, fmt, sync::Arc, time::Duration};

use futures::{FutureExt, future::BoxFuture};

use crate::{
    Access, Answer, Backplane, BoxError, Builder, CacheKey, CacheProvider, Delivery, Error, Found, Held,
    KeyBuf, Loaded, Policy, RawKey, Result, SerdeValue, Snapshot, Value, ValueCodec, Verb, WeakCache,
    close::Closed, flight::Loader, ids::Ids, inner::Inner, load::ManyLoader, mark::Reach, observers::Spans,
    operation::Glimpse, value::Coding,
};

/// A named, typed cache over an ordered list of levels, the nearest first.
///
/// Cloning is cheap and gives the same cache. Values come as `Arc<T>`: a hit at an in-process level neither copies nor
/// decodes. Dropping any returned future is safe: loads belong to the runtime, not to callers.
///
/// It runs on tokio. A runtime that is built by hand needs `enable_all`: what has to wait for time panics without timers.
pub struct TracedCache<T> {
    pub(crate) inner: Arc<Inner<T>>,
    pub(crate) access: Access,
}

/// What a call with a loader comes to at the nearest level: its end, or the rest of it.
enum HotOrCold<'a, T> {
    Hot(Arc<T>),
    Cold(BoxFuture<'a, Result<Found<T>>>),
}

impl<T> Clone for TracedCache<T> {
    fn clone(&self) -> Self {
        Self { inner: Arc::clone(&self.inner), access: self.access }
    }
}

impl<T: SerdeValue> TracedCache<T> {
    /// Starts a cache. The name is part of remote keys and of every metric: letters, digits, `.`, `_`, `-`, `/`.
    pub fn builder(name: impl Into<String>) -> Builder<T> {
        Builder::new(name.into(), Coding::serde())
    }
}

impl<T: Value> TracedCache<T> {
    /// Starts a cache whose values have no form as bytes: compiled patterns, templates, handles, keys that are to be
    /// nowhere else. Its levels are all in process, and one that is bounded by bytes wants a [`weigher`](Builder::weigher);
    /// everything else is as with any cache.
    ///
    /// ```
    /// # use cache_core::{TracedCache, ok, testing::Shelf};
    /// # #[tokio::main]
    /// # async fn main() -> Result<(), cache_core::Error> {
    /// type Rule = Box<dyn Fn(u32) -> bool + Send + Sync>;
    ///
    /// let rules: TracedCache<Rule> = TracedCache::in_memory("rules").level(Shelf::default()).build()?;
    /// let rule = rules.get_or_set("even", || async { ok(Box::new(|n: u32| n % 2 == 0) as Rule) }).await?;
    /// assert!(rule(4));
    /// # Ok(())
    /// # }
    /// ```
    pub fn in_memory(name: impl Into<String>) -> Builder<T> {
        Builder::new(name.into(), Coding::None)
    }

    /// Starts a cache whose values have a codec of the application's own, at whatever level.
    ///
    /// ```
    /// # use cache_core::{BoxError, TracedCache, ValueCodec, testing::MapProvider};
    /// /// Text as it is, for a web server that sends what it finds.
    /// struct Bare;
    ///
    /// impl ValueCodec<String> for Bare {
    ///     fn encode(&self, page: &String, out: &mut Vec<u8>) -> Result<(), BoxError> {
    ///         out.extend_from_slice(page.as_bytes());
    ///         Ok(())
    ///     }
    ///
    ///     fn decode(&self, bytes: &[u8]) -> Result<String, BoxError> {
    ///         Ok(std::str::from_utf8(bytes)?.to_owned())
    ///     }
    /// }
    ///
    /// # #[tokio::main]
    /// # async fn main() -> Result<(), cache_core::Error> {
    /// let pages: TracedCache<String> = TracedCache::coded("pages", Bare).level(MapProvider::new()).build()?;
    /// assert!(pages.set("/", "<h1>Home</h1>".to_owned()).await?.is_confirmed());
    /// assert_eq!(pages.get("/").await?.unwrap().as_str(), "<h1>Home</h1>");
    /// # Ok(())
    /// # }
    /// ```
    pub fn coded(name: impl Into<String>, codec: impl ValueCodec<T>) -> Builder<T> {
        Builder::new(name.into(), Coding::Own(Box::new(codec)))
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.inner.around.name
    }

    /// Its policy now.
    pub fn policy(&self) -> Policy {
        self.inner.policy()
    }

    /// Gives the cache another policy. Nothing that it holds is lost, and entries keep the life that they were given: the new
    /// policy is that of whatever is stored from now on, by loads under way as well. Those end by the hard limit under which
    /// they began, and loads that wait for their turn wait under the old policy.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Config`], naming field, value and fix: what [`Builder::build`] would find wrong. Then nothing
    /// changes.
    pub fn set_policy(&self, policy: Policy) -> Result<()> {
        self.inner.check_policy(&policy)?;
        self.inner.rules.rcu(|rules| rules.under(policy));
        Ok(())
    }

    /// Whether [`set_policy`](Self::set_policy) would take it.
    ///
    /// # Errors
    /// As `set_policy`.
    pub fn check_policy(&self, policy: &Policy) -> Result<()> {
        self.inner.check_policy(policy)
    }

    /// Has a remote level (0 being the nearest) go on with another provider of the same kind: another address, other
    /// credentials, another store. Nothing is copied; the old provider is let go of once the calls under way have ended.
    ///
    /// In-process levels keep what they hold, but for entries with tags, unless the new store says that the cache has been
    /// cleared there. Nodes that have moved and those that have not do not hear of each other's invalidations of keys: move
    /// all of them in short order, or bound with a `ttl_cap` how long memory may go on with what another node has changed in
    /// between.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Config`], and nothing changes: there is no such level, it or the provider is in process, the
    /// provider's own settings are wrong, or it has other capabilities than the one before.
    pub fn move_level(&self, level: usize, to: Arc<dyn CacheProvider>) -> Result<()> {
        let inner = &self.inner;
        let tier = inner.tiers.get(level).ok_or_else(|| {
            Error::config(
                "level",
                level,
                format_args!("the cache has {} of them, counted from 0", inner.tiers.len()),
            )
        })?;
        tier.move_to(to)?;
        tier.provider().advise(Arc::downgrade(inner) as _);
        Ok(())
    }

    /// Has the cache hear and tell of invalidations over another channel. The one before is listened to until that has come
    /// up, so that nothing said there is missed; if it has had a gap since it came up itself, the move is one, too.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Config`]: the cache was built without a backplane.
    pub fn move_backplane(&self, to: Arc<dyn Backplane>) -> Result<()> {
        let plane = self.inner.plane.as_ref().ok_or_else(|| {
            Error::config("backplane", "none", "the cache was built without one: build it anew")
        })?;
        plane.move_to(to);
        self.inner.listen();
        Ok(())
    }

    /// The same cache, for calls with another access mode: `users.access(Access::CacheOnly).get(42)`. Look-ups go by it, with a
    /// loader or without; [`refresh`](Self::refresh), [`update`](Self::update), writes and invalidations do not.
    #[must_use]
    pub fn access(&self, access: Access) -> Self {
        Self { inner: Arc::clone(&self.inner), access }
    }

    /// A handle that does not keep the cache: for what the cache itself keeps, such as an observer.
    #[must_use]
    pub fn downgrade(&self) -> WeakCache<T> {
        WeakCache { inner: Arc::downgrade(&self.inner), access: self.access }
    }

    /// The counts of this cache so far.
    pub fn stats(&self) -> Snapshot {
        self.inner.stats().snapshot()
    }

    /// The value, if a level has it fresh.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Key`] for an empty key; [`crate::ErrorKind::Level`] where a level surfaces its failures;
    /// [`crate::ErrorKind::Closed`].
    pub async fn get(&self, key: impl CacheKey) -> Result<Option<Arc<T>>> {
        let cold = {
            let mut buf = KeyBuf::new();
            let id = self.inner.id(key.render(&mut buf))?;
            let key = self.inner.named(id);
            let glimpse = self.inner.hot(&key, Verb::Get, self.access);
            if let Glimpse::Hit(value) = glimpse {
                return Ok(Some(value));
            }
            self.look_cold(key, matches!(glimpse, Glimpse::Nothing))
        };
        Ok(cold.await?.into_value())
    }

    /// The whole answer: value, outcome, level, age. Costs an exact clock read more than [`get`](Self::get).
    ///
    /// # Errors
    /// As [`get`](Self::get).
    pub async fn look(&self, key: impl CacheKey) -> Result<Found<T>> {
        let cold = {
            let mut buf = KeyBuf::new();
            let key = self.inner.key(key.render(&mut buf))?;
            self.look_cold(key, false)
        };
        cold.await
    }

    /// `bare`: the nearest level has just been seen to have nothing.
    fn look_cold<'a>(&'a self, key: RawKey<'_>, bare: bool) -> BoxFuture<'a, Result<Found<T>>> {
        let Self { inner, access } = self;
        // In place, an allocation less. Calls with a loader may be many that wait long, and keep theirs small.
        let mut id = KeyBuf::new();
        id.push_str(key.id);
        let hash = key.hash;
        async move {
            let key = inner.rekey(id.as_str(), hash);
            let work = async |spans: &Spans| inner.look(&key, Verb::Get, *access, bare, spans).await;
            inner.operation(Verb::Get, Some(key.id), 1, work, Found::brief).await
        }
        .boxed()
    }

    /// Stores a value at every level under the policy, and beats every load of the key that began before.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Key`]; [`crate::ErrorKind::Level`] where a level surfaces its failures, a value that it has no form
    /// or no room for among them (the other levels have been written); [`crate::ErrorKind::Closed`]. On an error, or when the
    /// future is dropped midway, no in-process level holds the key, and a remote level that may still hold an older value is
    /// not read for it until it has been told.
    pub async fn set(&self, key: impl CacheKey, value: impl Into<Arc<T>>) -> Result<Delivery> {
        self.set_loaded(key, Loaded::value(value)).await
    }

    /// Stores a value with its own ttl, tags or validator, or an absence. A ttl of zero removes the key.
    ///
    /// # Errors
    /// As [`set`](Self::set); [`crate::ErrorKind::Config`] for an answer that only a loader may give, and `Tag`: then nothing has
    /// been touched.
    pub async fn set_loaded(&self, key: impl CacheKey, value: Loaded<T>) -> Result<Delivery> {
        let id = self.render(&key)?;
        let inner = &self.inner;
        // In a `Vec` first: inside the call's future it would be copied whenever that is moved.
        let items = vec![(inner.named(&id), value)];
        let work = async |spans: &Spans| inner.set_all(items, spans).await;
        inner.operation(Verb::Set, Some(&id), 1, work, |_| None).boxed().await
    }

    /// Stores many values in one round trip per level, or per 1,000 keys. Of a key given twice the last value counts.
    ///
    /// # Errors
    /// As [`set`](Self::set).
    pub async fn set_many<K: CacheKey, V: Into<Arc<T>>>(
        &self,
        items: impl IntoIterator<Item = (K, V)>,
    ) -> Result<Delivery> {
        let mut values: HashMap<Arc<str>, Loaded<T>> = HashMap::new();
        for (key, value) in items {
            values.insert(self.render(&key)?, Loaded::value(value));
        }
        let inner = &self.inner;
        let (ids, values): (Vec<_>, Vec<_>) = values.into_iter().unzip();
        let work = async |spans: &Spans| {
            let keys = inner.keys(&ids)?;
            inner.set_all(keys.into_iter().zip(values).collect(), spans).await
        };
        if ids.is_empty() {
            return Ok(Delivery::Confirmed);
        }
        inner.operation(Verb::SetMany, None, ids.len(), work, |_| None).boxed().await
    }

    /// The value, loaded on a miss. However many callers ask at once, the loader runs once; the others wait for it and
    /// are counted as coalesced.
    ///
    /// The loader runs as a task of its own: it goes on when its caller leaves. Where it needs state, prefer
    /// [`get_or_set_with`](Self::get_or_set_with), which clones nothing on a hit.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Load`] with the loader's own error ([`Error::load_error`] gives it back), `LoadTimeout`,
    /// `LoadPanicked`, `LoadAborted`, `Cycle`, `Absent`, `Key`, `Tag` (of the loader's answer), `Closed`, `NoRuntime`. A failing
    /// level is never an error here.
    pub async fn get_or_set<A, E, F, Fut>(&self, key: impl CacheKey, load: F) -> Result<A::Out>
    where
        A: Answer<T>,
        E: Into<BoxError>,
        F: FnOnce() -> Fut + Send + 'static,
        Fut: Future<Output = Result<A, E>> + Send + 'static,
    {
        let cold = match self.hot_or_cold(&key, || loader(move |_| load()))? {
            HotOrCold::Hot(value) => return A::out(Some(value)),
            HotOrCold::Cold(cold) => cold,
        };
        self.answer::<A>(cold.await?.into_value())
    }

    /// The same with a loader that is made on a miss only: for one that needs clones of what its caller has borrowed.
    /// `names.get_or_set_lazily(id, || { let db = db.clone(); move || async move { db.name(id).await } })`.
    ///
    /// # Errors
    /// As [`get_or_set`](Self::get_or_set).
    pub async fn get_or_set_lazily<A, E, M, F, Fut>(&self, key: impl CacheKey, make: M) -> Result<A::Out>
    where
        A: Answer<T>,
        E: Into<BoxError>,
        M: FnOnce() -> F,
        F: FnOnce() -> Fut + Send + 'static,
        Fut: Future<Output = Result<A, E>> + Send + 'static,
    {
        let made = || {
            let load = make();
            loader(move |_| load())
        };
        let cold = match self.hot_or_cold(&key, made)? {
            HotOrCold::Hot(value) => return A::out(Some(value)),
            HotOrCold::Cold(cold) => cold,
        };
        self.answer::<A>(cold.await?.into_value())
    }

    /// The same with state for the loader, cloned on a miss only, and the key in its owned form:
    /// `users.get_or_set_with(42, &db, |db, id| async move { db.user(id).await })`.
    ///
    /// # Errors
    /// As [`get_or_set`](Self::get_or_set).
    pub async fn get_or_set_with<K, S, A, E, F, Fut>(&self, key: K, state: &S, load: F) -> Result<A::Out>
    where
        K: CacheKey,
        S: Clone + Send + 'static,
        A: Answer<T>,
        E: Into<BoxError>,
        F: FnOnce(S, K::Owned) -> Fut + Send + 'static,
        Fut: Future<Output = Result<A, E>> + Send + 'static,
    {
        let made = || {
            let (state, owned) = (state.clone(), key.to_owned_key());
            loader(move |_| load(state, owned))
        };
        let cold = match self.hot_or_cold(&key, made)? {
            HotOrCold::Hot(value) => return A::out(Some(value)),
            HotOrCold::Cold(cold) => cold,
        };
        self.answer::<A>(cold.await?.into_value())
    }

    /// The same, and the loader sees the stale value and its validator, if one is held: for conditional requests. It may
    /// answer [`Loaded::unchanged`].
    ///
    /// # Errors
    /// As [`get_or_set`](Self::get_or_set).
    pub async fn get_or_set_if_changed<K, S, A, E, F, Fut>(
        &self,
        key: K,
        state: &S,
        load: F,
    ) -> Result<A::Out>
    where
        K: CacheKey,
        S: Clone + Send + 'static,
        A: Answer<T>,
        E: Into<BoxError>,
        F: FnOnce(S, K::Owned, Option<Held<T>>) -> Fut + Send + 'static,
        Fut: Future<Output = Result<A, E>> + Send + 'static,
    {
        let made = || {
            let (state, owned) = (state.clone(), key.to_owned_key());
            loader(move |held| load(state, owned, held))
        };
        let cold = match self.hot_or_cold(&key, made)? {
            HotOrCold::Hot(value) => return A::out(Some(value)),
            HotOrCold::Cold(cold) => cold,
        };
        self.answer::<A>(cold.await?.into_value())
    }

    /// [`get_or_set_with`](Self::get_or_set_with), with the whole answer.
    ///
    /// # Errors
    /// As [`get_or_set`](Self::get_or_set), but an absence is an outcome, not an error.
    pub async fn look_or_set_with<K, S, A, E, F, Fut>(&self, key: K, state: &S, load: F) -> Result<Found<T>>
    where
        K: CacheKey,
        S: Clone + Send + 'static,
        A: Answer<T>,
        E: Into<BoxError>,
        F: FnOnce(S, K::Owned) -> Fut + Send + 'static,
        Fut: Future<Output = Result<A, E>> + Send + 'static,
    {
        let cold = {
            let mut buf = KeyBuf::new();
            let raw = self.inner.key(key.render(&mut buf))?;
            let (state, owned) = (state.clone(), key.to_owned_key());
            self.fetch_cold(raw, loader(move |_| load(state, owned)))
        };
        cold.await
    }

    /// Loads the value anew and stores it, whatever levels hold, and whatever the [`Access`]. Joins a load of the key that is
    /// under way. Nothing stale stands in for one that fails.
    ///
    /// # Errors
    /// As [`get_or_set`](Self::get_or_set).
    pub async fn refresh<K, S, A, E, F, Fut>(&self, key: K, state: &S, load: F) -> Result<A::Out>
    where
        K: CacheKey,
        S: Clone + Send + 'static,
        A: Answer<T>,
        E: Into<BoxError>,
        F: FnOnce(S, K::Owned) -> Fut + Send + 'static,
        Fut: Future<Output = Result<A, E>> + Send + 'static,
    {
        let id = self.render(&key)?;
        let (state, owned) = (state.clone(), key.to_owned_key());
        let loader = loader(move |_| load(state, owned));
        let inner = &self.inner;
        let work = async |spans: &Spans| {
            inner.fetch(inner.key(&id)?, Verb::Refresh, Access::Reload, loader, spans).await
        };
        let found = inner.operation(Verb::Refresh, Some(&id), 1, work, Found::brief).boxed().await?;
        self.answer::<A>(found.into_value())
    }

    /// The value, if the nearest level has it as a plain hit; or else what is left to do, for which a loader is made.
    #[inline]
    fn hot_or_cold<'a>(
        &'a self,
        key: &impl CacheKey,
        make: impl FnOnce() -> Loader<T>,
    ) -> Result<HotOrCold<'a, T>> {
        let mut buf = KeyBuf::new();
        let id = self.inner.id(key.render(&mut buf))?;
        let key = self.inner.named(id);
        Ok(match self.inner.hot(&key, Verb::GetOrSet, self.access) {
            Glimpse::Hit(value) => HotOrCold::Hot(value),
            Glimpse::Nothing | Glimpse::Unclear => HotOrCold::Cold(self.fetch_cold(key, make())),
        })
    }

    fn fetch_cold<'a>(&'a self, key: RawKey<'_>, loader: Loader<T>) -> BoxFuture<'a, Result<Found<T>>> {
        let Self { inner, access } = self;
        let id: Arc<str> = key.id.into();
        let hash = key.hash;
        async move {
            let key = inner.rekey(&id, hash);
            let work = async |spans: &Spans| inner.fetch(key, Verb::GetOrSet, *access, loader, spans).await;
            inner.operation(Verb::GetOrSet, Some(&id), 1, work, Found::brief).await
        }
        .boxed()
    }

    /// Looks up many keys, one round trip per level, or per 1,000 keys; answers in their order.
    ///
    /// # Errors
    /// As [`get`](Self::get); the first failure among the keys, and then nothing of the others.
    pub async fn get_many<K: CacheKey>(
        &self,
        keys: impl IntoIterator<Item = K>,
    ) -> Result<Vec<Option<Arc<T>>>> {
        let Self { inner, access } = self;
        let mut ids = Ids::default();
        for key in keys {
            ids.push(inner.id(key.render(&mut KeyBuf::new()))?);
        }
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        let keys: Vec<_> = ids.iter().map(|id| inner.named(id)).collect();
        let work = async |spans: &Spans| inner.look_many(&keys, *access, spans).await;
        let found = inner.operation(Verb::GetMany, None, ids.len(), work, |_| None).boxed().await?;
        Ok(found.into_iter().map(Found::into_value).collect())
    }

    /// Looks up many keys and loads those missing with one call of the loader (further ones for ids that other processes
    /// were loading and gave up, as soon as they do), which gets their ids, and those of entries that are due for a refresh, and
    /// answers with pairs in any order.
    /// Ids that it leaves out are absent; ids that nobody asked for are ignored. A key that is being loaded already, alone or
    /// in another batch, is waited for, not loaded again. Answers in the asked order.
    ///
    /// # Errors
    /// As [`get_or_set`](Self::get_or_set); the first failure among the keys, after all have ended. What did load is
    /// stored.
    pub async fn get_or_set_many<K, S, A, I, E, F, Fut>(
        &self,
        keys: impl IntoIterator<Item = K>,
        state: &S,
        load: F,
    ) -> Result<Vec<Option<Arc<T>>>>
    where
        K: CacheKey,
        S: Clone + Send + Sync + 'static,
        A: Answer<T>,
        I: IntoIterator<Item = (K::Owned, A)> + Send,
        E: Into<BoxError>,
        F: Fn(S, Vec<K::Owned>) -> Fut + Clone + Send + Sync + 'static,
        Fut: Future<Output = Result<I, E>> + Send + 'static,
    {
        let mut ids = Vec::new();
        let mut owned = Vec::new();
        for key in keys {
            ids.push(self.render(&key)?);
            owned.push(key.to_owned_key());
        }
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        let state = state.clone();
        let owned: Arc<[K::Owned]> = owned.into();
        let loader: ManyLoader<T> = Arc::new(move |wanted: Vec<usize>| {
            let ids: Vec<K::Owned> = wanted.iter().map(|at| owned[*at].clone()).collect();
            let (state, load) = (state.clone(), load.clone());
            async move {
                let answers = load(state, ids.clone()).await.map_err(Into::into)?;
                let mut by_id: HashMap<K::Owned, Loaded<T>> =
                    answers.into_iter().map(|(id, answer)| (id, answer.into_loaded())).collect();
                Ok(ids.iter().map(|id| by_id.remove(id)).collect())
            }
            .boxed()
        });
        let Self { inner, access } = self;
        let work = async |spans: &Spans| inner.fetch_many(&inner.keys(&ids)?, *access, loader, spans).await;
        let found = inner.operation(Verb::GetOrSetMany, None, ids.len(), work, |_| None).boxed().await?;
        Ok(found.into_iter().map(Found::into_value).collect())
    }

    /// Makes a key gone: once this has answered, no read on this node that starts later returns a value whose load began
    /// before, however late that load ends; once it has answered [`Delivery::Confirmed`], no level holds one either.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Key`]; [`crate::ErrorKind::Level`] where a level surfaces its failures: the key is then gone
    /// from this node, and the level hears of it when it is back; [`crate::ErrorKind::Closed`].
    pub async fn invalidate(&self, key: impl CacheKey) -> Result<Delivery> {
        let id = self.render(&key)?;
        let inner = &self.inner;
        let work = async |_: &Spans| inner.invalidate_all(vec![inner.key(&id)?]).await;
        inner.operation(Verb::Invalidate, Some(&id), 1, work, |_| None).boxed().await
    }

    /// Ends the freshness of a key at every level: the next `get_or_set` loads, and what levels hold stays as a fallback
    /// (within its life) should that load fail; under [`Policy::revalidate`] it is answered while the load runs. Beats every
    /// load that began before. At a remote level it is a read and a write: a value that another node stores in between may
    /// be replaced by the older one, as a fallback only.
    ///
    /// # Errors
    /// As [`invalidate`](Self::invalidate). A level that could not be reached hears an invalidation when it is back.
    pub async fn expire(&self, key: impl CacheKey) -> Result<Delivery> {
        let id = self.render(&key)?;
        let inner = &self.inner;
        let work = async |_: &Spans| inner.expire_keys(vec![inner.key(&id)?]).await;
        inner.operation(Verb::Expire, Some(&id), 1, work, |_| None).boxed().await
    }

    /// [`invalidate`](Self::invalidate) for many keys, one round trip per level, or per 1,000 keys.
    ///
    /// # Errors
    /// As [`invalidate`](Self::invalidate).
    pub async fn invalidate_many<K: CacheKey>(&self, keys: impl IntoIterator<Item = K>) -> Result<Delivery> {
        let mut ids = keys.into_iter().map(|k| self.render(&k)).collect::<Result<Vec<_>>>()?;
        ids.sort_unstable();
        ids.dedup();
        if ids.is_empty() {
            return Ok(Delivery::Confirmed);
        }
        let inner = &self.inner;
        let work = async |_: &Spans| inner.invalidate_all(inner.keys(&ids)?).await;
        inner.operation(Verb::InvalidateMany, None, ids.len(), work, |_| None).boxed().await
    }

    /// Makes every entry of this cache gone, as [`invalidate`](Self::invalidate) does for a key. Logical: nothing is
    /// flushed, and other caches on the same servers keep theirs. One round trip per remote level.
    ///
    /// Other nodes learn of it by the backplane, else within a second of their last look at the cache's marker.
    ///
    /// # Errors
    /// As [`invalidate`](Self::invalidate); [`crate::ErrorKind::Unsupported`] where a level is [plain](crate::Level::plain).
    pub async fn clear(&self) -> Result<Delivery> {
        let inner = &self.inner;
        let work = async |_: &Spans| inner.clear_all().await;
        inner.operation(Verb::Clear, None, 0, work, |_| None).boxed().await
    }

    /// Makes every entry with this tag gone, as [`invalidate`](Self::invalidate) does for a key: at every level, on every
    /// node, also those whose load is under way. Nothing is looked for: one round trip per remote level on Redis, three on
    /// memcached. At a level that cannot swap marks ([`CacheProvider::marks`](crate::CacheProvider::marks)) it widens to
    /// the whole cache.
    ///
    /// Other nodes learn of it by the backplane, else within a second (docs/semantics.md).
    ///
    /// # Errors
    /// As [`invalidate`](Self::invalidate); [`crate::ErrorKind::Tag`] for a tag that is empty or too long, or where the
    /// cache has none; [`crate::ErrorKind::Unsupported`] where a level is [plain](crate::Level::plain).
    pub async fn invalidate_tag(&self, tag: impl Into<Box<str>>) -> Result<Delivery> {
        self.invalidate_tags([tag]).await
    }

    /// [`invalidate_tag`](Self::invalidate_tag) for several: whatever has any of them.
    ///
    /// # Errors
    /// As [`invalidate_tag`](Self::invalidate_tag).
    pub async fn invalidate_tags<S: Into<Box<str>>>(
        &self,
        tags: impl IntoIterator<Item = S>,
    ) -> Result<Delivery> {
        self.reach_tags(tags, Reach::Purge, Verb::InvalidateTag).await
    }

    /// Ends the freshness of every entry with this tag: the next `get_or_set` loads, and what is held stays as a fallback,
    /// as with [`expire`](Self::expire).
    ///
    /// # Errors
    /// As [`invalidate_tag`](Self::invalidate_tag).
    pub async fn expire_tag(&self, tag: impl Into<Box<str>>) -> Result<Delivery> {
        self.expire_tags([tag]).await
    }

    /// [`expire_tag`](Self::expire_tag) for several: whatever has any of them.
    ///
    /// # Errors
    /// As [`invalidate_tag`](Self::invalidate_tag).
    pub async fn expire_tags<S: Into<Box<str>>>(
        &self,
        tags: impl IntoIterator<Item = S>,
    ) -> Result<Delivery> {
        self.reach_tags(tags, Reach::Expire, Verb::ExpireTag).await
    }

    async fn reach_tags<S: Into<Box<str>>>(
        &self,
        tags: impl IntoIterator<Item = S>,
        reach: Reach,
        verb: Verb,
    ) -> Result<Delivery> {
        let tags: Vec<Box<str>> = tags.into_iter().map(Into::into).collect();
        if tags.is_empty() {
            return Ok(Delivery::Confirmed);
        }
        let (inner, count) = (&self.inner, tags.len());
        let work = async |_: &Spans| inner.reach_tags(tags, reach).await;
        inner.operation(verb, None, count, work, |_| None).boxed().await
    }

    /// Ends the freshness of every entry of this cache, as [`expire`](Self::expire) does for a key. At a level that cannot
    /// swap marks it is a [`clear`](Self::clear).
    ///
    /// # Errors
    /// As [`clear`](Self::clear).
    pub async fn expire_all(&self) -> Result<Delivery> {
        let inner = &self.inner;
        let work = async |_: &Spans| inner.expire_everything().await;
        inner.operation(Verb::ExpireAll, None, 0, work, |_| None).boxed().await
    }

    /// Ends the cache: refuses new calls, waits up to `limit` for loads and background work under way, then aborts them.
    /// Nothing is stored after it returns. Providers may be shared and stay open. Takes a second more at most, where work is
    /// left on a runtime that nobody drives.
    ///
    /// A cache whose last handle is dropped without it goes on telling levels what they have not heard, with its tasks and
    /// observers, until they have.
    pub async fn close(&self, limit: Duration) -> Closed {
        self.inner.close_within(limit).boxed().await
    }

    /// What a caller gets whose loader answers an `A`.
    pub(crate) fn answer<A: Answer<T>>(&self, found: Option<Arc<T>>) -> Result<A::Out> {
        A::out(found).map_err(|error| self.inner.failed(error))
    }

    pub(crate) fn render(&self, key: &impl CacheKey) -> Result<Arc<str>> {
        let mut buf = KeyBuf::new();
        Ok(self.inner.id(key.render(&mut buf))?.into())
    }
}

pub(crate) fn loader<T, A, E, F, Fut>(load: F) -> Loader<T>
where
    T: Value,
    A: Answer<T>,
    E: Into<BoxError>,
    F: FnOnce(Option<Held<T>>) -> Fut + Send + 'static,
    Fut: Future<Output = Result<A, E>> + Send + 'static,
{
    Box::new(move |held| async move { load(held).await.map(Answer::into_loaded).map_err(Into::into) }.boxed())
}

impl<T> fmt::Debug for TracedCache<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TracedCache")
            .field("name", &self.inner.around.name)
            .field("access", &self.access)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{read::Asked, testing::MapProvider, write::Written};

    /// What a thread of glibc's malloc keeps for itself. What is larger is got and given back under a lock, for which the
    /// threads that read would wait: half of what a read took with 64 in flight.
    const LARGEST: usize = 1032;

    /// They are made on the stack and moved into a box: what they weigh is copied at every call.
    #[tokio::test]
    async fn futures_below_memory_are_not_large() {
        let cache: TracedCache<String> =
            TracedCache::builder("sizes").level(MapProvider::new()).build().unwrap();
        let inner = &cache.inner;
        let key = inner.named("k");
        let loader = loader(|_| async { crate::ok("v".to_owned()) });
        let mut asked = [Asked::new(key)];
        let (begun, order, mut written) = (inner.begin(), Arc::default(), Written::new());
        let set = async |spans: &Spans| inner.set_all(Vec::new(), spans).await;
        let sizes = [
            ("look_cold", size_of_val(&*cache.look_cold(key, true))),
            ("fetch_cold", size_of_val(&*cache.fetch_cold(key, loader))),
            ("read_levels", size_of_val(&inner.read_levels(&mut asked, Access::Normal))),
            ("set", size_of_val(&inner.operation(Verb::Set, Some("k"), 1, set, |_| None))),
            ("write_below", size_of_val(&inner.write_below(&mut [], &begun, &order, &mut written))),
        ];
        for (name, size) in sizes {
            assert!(size <= LARGEST, "`{name}` has {size} bytes: {sizes:?}");
        }
    }
}
