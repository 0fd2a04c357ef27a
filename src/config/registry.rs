//! `Caches`: the caches of a file, by name and type.

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    path::{Path, PathBuf},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use cache_core::{
    BoxError, Builder, CacheProvider, Closed, Error, Result, Schema, SerdeValue, TracedCache, Value,
    ValueCodec,
};
use futures::{FutureExt, future::join_all};
use parking_lot::{ReentrantMutex, ReentrantMutexGuard};

use super::{
    CachesBuilder,
    explain::Explanation,
    fault::{Fault, unknown},
    load::Loaded,
    node::{Path as Steps, at},
    resolve::Plan,
    running::{Function, Running},
};

/// The caches of a file. Cheap to clone; clones are one registry.
///
/// A cache is built when it is first asked for; later calls with its name get the same cache. Providers are built with the
/// registry, and shared by all caches that name them.
#[derive(Clone)]
pub struct Caches(pub(super) Arc<Inner>);

/// For `#[cached]` functions, which nobody hands a registry.
static INSTALLED: OnceLock<Caches> = OnceLock::new();

/// The cache of a `#[cached]` function that does not return a `Result`.
///
/// # Panics
/// Where there is no such cache: a mistake in the program.
#[doc(hidden)]
#[allow(clippy::panic, reason = "a mistake in the program, where there is no error to answer with")]
pub fn expect_cache<T: Value>(cache: Result<TracedCache<T>>) -> TracedCache<T> {
    cache.unwrap_or_else(|error| panic!("{error}"))
}

pub(super) struct Inner {
    /// The file's name in errors.
    pub(super) file: String,
    /// What a reload reads; `None` for a text.
    pub(super) path: Option<PathBuf>,
    pub(super) setup: CachesBuilder,
    pub(super) loaded: ArcSwap<Loaded>,
    /// Read at each call of a `#[cached]` function.
    built: ArcSwap<HashMap<String, Arc<Running>>>,
    /// Held while a cache is added, or the plans of running caches change. Reentrant: the caller's closure for a cache, and its
    /// observers, may ask for other caches.
    changing: ReentrantMutex<()>,
    /// Caches that are asked for from now on are closed ones.
    closed: AtomicBool,
    /// One reload at a time.
    pub(super) reloading: tokio::sync::Mutex<()>,
}

impl Caches {
    /// Reads `path` (`.toml`, `.json`, `.yaml`) with the default settings of [`builder`](Self::builder).
    ///
    /// # Errors
    /// As [`CachesBuilder::from_file`].
    pub async fn from_file(path: impl AsRef<Path>) -> Result<Self> {
        Self::builder().from_file(path).await
    }

    /// Begins a registry that is more than its file: with backends of your own, or observers.
    pub fn builder() -> CachesBuilder {
        CachesBuilder::new()
    }

    pub(super) fn new(setup: CachesBuilder, file: String, path: Option<PathBuf>, loaded: Loaded) -> Self {
        Self(Arc::new(Inner {
            file,
            path,
            setup,
            loaded: ArcSwap::from_pointee(loaded),
            built: ArcSwap::default(),
            changing: ReentrantMutex::default(),
            closed: AtomicBool::new(false),
            reloading: tokio::sync::Mutex::default(),
        }))
    }

    /// The cache of this name. The first call builds it; later ones get the same.
    ///
    /// # Errors
    /// [`ErrorKind::Config`](cache_core::ErrorKind::Config): the file has no such cache, or it has been asked for with another type.
    pub fn cache<T: SerdeValue>(&self, name: &str) -> Result<TracedCache<T>> {
        self.cache_with(name, |builder| builder)
    }

    /// [`cache`](Self::cache) for values that stay in memory, of any type: see [`TracedCache::in_memory`].
    ///
    /// # Errors
    /// As `cache`, and where the file gives the cache a level that is not in process, or one that is bounded by bytes:
    /// [`in_memory_with`](Self::in_memory_with) can say what a value weighs.
    pub fn in_memory<T: Value>(&self, name: &str) -> Result<TracedCache<T>> {
        self.in_memory_with(name, |builder| builder)
    }

    /// [`cache`](Self::cache) for a type that names its schema id. A cache whose file names one as well is refused.
    ///
    /// # Errors
    /// As `cache`.
    pub fn versioned<T: SerdeValue + Schema>(&self, name: &str) -> Result<TracedCache<T>> {
        let loaded = self.0.loaded.load();
        if let Some(id) = loaded.resolved.caches.get(name).and_then(|plan| plan.schema) {
            let path = at!["caches", name, "schema"];
            let node = loaded.tree.at(&path);
            let fix = format!("the type names its schema id, {}; leave it out here", T::ID);
            let fault =
                Fault { place: node.map(|node| node.place.clone()), path, value: Some(id.to_string()), fix };
            return Err(fault.into_error(&self.0.file));
        }
        self.cache_with(name, Builder::versioned)
    }

    /// [`cache`](Self::cache) with settings that only code can give: `|builder| builder.weigher(...)`. Only the call that builds
    /// the cache uses `more`; later ones get the cache as it is.
    ///
    /// # Errors
    /// As `cache`, and what [`Builder::build`] says.
    pub fn cache_with<T: SerdeValue>(
        &self,
        name: &str,
        more: impl FnOnce(Builder<T>) -> Builder<T>,
    ) -> Result<TracedCache<T>> {
        self.begun(name, TracedCache::builder, more)
    }

    /// [`in_memory`](Self::in_memory) with settings that only code can give, as [`cache_with`](Self::cache_with) has them.
    ///
    /// # Errors
    /// As `in_memory`, and what [`Builder::build`] says.
    pub fn in_memory_with<T: Value>(
        &self,
        name: &str,
        more: impl FnOnce(Builder<T>) -> Builder<T>,
    ) -> Result<TracedCache<T>> {
        self.begun(name, TracedCache::in_memory, more)
    }

    /// [`cache`](Self::cache) for values with a codec of the application's own: see [`TracedCache::coded`]. `more` as that of
    /// [`cache_with`](Self::cache_with).
    ///
    /// # Errors
    /// As `cache_with`.
    pub fn coded_with<T: Value>(
        &self,
        name: &str,
        codec: impl ValueCodec<T>,
        more: impl FnOnce(Builder<T>) -> Builder<T>,
    ) -> Result<TracedCache<T>> {
        self.begun(name, |name| TracedCache::coded(name, codec), more)
    }

    fn begun<T: Value>(
        &self,
        name: &str,
        begin: impl FnOnce(String) -> Builder<T>,
        more: impl FnOnce(Builder<T>) -> Builder<T>,
    ) -> Result<TracedCache<T>> {
        if let Some(running) = self.0.built.load().get(name) {
            return running.cache(name);
        }
        let _changing = self.0.change();
        if let Some(running) = self.0.built.load().get(name) {
            return running.cache(name);
        }
        let loaded = self.0.loaded.load();
        let plan = self.0.plan(&loaded, name)?;
        let cache = more(self.0.complete(begin(name.to_owned()), &loaded, name, plan)?).build()?;
        if let Some(running) = self.0.built.load().get(name) {
            // `more` or an observer has asked for this very cache meanwhile.
            return running.cache(name);
        }
        self.0.add(name, Running::new(&cache).by(plan.clone(), loaded.resolved.keyrings.clone()));
        if self.0.is_closed() {
            // Nothing is under way yet: there is nothing to wait for.
            let _nothing_left = cache.close(Duration::ZERO).now_or_never();
        }
        Ok(cache)
    }

    /// [`cache`](Self::cache) for a `#[cached]` function whose keys are its arguments: another such function is refused.
    #[doc(hidden)]
    pub fn cache_of<T: SerdeValue>(&self, name: &str, by: &'static Function) -> Result<TracedCache<T>> {
        self.for_function(name, by, Self::cache)
    }

    /// [`in_memory`](Self::in_memory) for such a function.
    #[doc(hidden)]
    pub fn in_memory_of<T: Value>(&self, name: &str, by: &'static Function) -> Result<TracedCache<T>> {
        self.for_function(name, by, Self::in_memory)
    }

    fn for_function<T: Value>(
        &self,
        name: &str,
        by: &'static Function,
        build: fn(&Self, &str) -> Result<TracedCache<T>>,
    ) -> Result<TracedCache<T>> {
        if let Some(running) = self.0.built.load().get(name) {
            return running.cache_of(name, by);
        }
        build(self, name)?;
        // What has been built stays.
        self.for_function(name, by, build)
    }

    /// Begins a cache like one of the file under a name of its own, for measurements, which must not touch that one's entries.
    /// `keep` is asked for each level, 0 being the nearest. The new cache has no backplane, and [`cache`](Self::cache) does not
    /// find it.
    ///
    /// # Errors
    /// As `cache`.
    pub fn like<T: SerdeValue>(
        &self,
        name: &str,
        own_name: &str,
        keep: impl Fn(usize) -> bool,
    ) -> Result<Builder<T>> {
        let loaded = self.0.loaded.load();
        let plan = self.0.plan(&loaded, name)?;
        let levels = plan.levels.iter().enumerate().filter(|(at, _)| keep(*at));
        let plan = Plan {
            levels: levels.map(|(_, level)| level.clone()).collect(),
            backplane: None,
            ..plan.clone()
        };
        self.0.complete(TracedCache::builder(own_name), &loaded, own_name, &plan)
    }

    /// Adds a cache that was built by hand, so that it is found by its name like those of the file.
    ///
    /// # Errors
    /// [`ErrorKind::Config`](cache_core::ErrorKind::Config): the name is taken, by the file or by an earlier call.
    pub fn register<T: Value>(&self, cache: &TracedCache<T>) -> Result<()> {
        let name = cache.name();
        let _changing = self.0.change();
        if self.0.built.load().contains_key(name) || self.0.loaded.load().resolved.caches.contains_key(name) {
            return Err(Error::config(
                "name",
                format_args!("{name:?}"),
                "there is a cache of this name already; give this one another",
            ));
        }
        self.0.add(name, Running::new(cache));
        Ok(())
    }

    /// Makes this the registry of the process: the one that `#[cached]` functions use.
    ///
    /// # Errors
    /// [`ErrorKind::Config`](cache_core::ErrorKind::Config): there is one already.
    pub fn install(&self) -> Result<()> {
        INSTALLED.set(self.clone()).map_err(|_second| {
            Error::config("registry", &self.0.file, "one is installed already; a process has one, for good")
        })
    }

    /// The registry of the process.
    ///
    /// # Errors
    /// [`ErrorKind::Config`](cache_core::ErrorKind::Config): none is installed.
    pub fn installed() -> Result<&'static Self> {
        INSTALLED.get().ok_or_else(|| {
            Error::config(
                "registry",
                "none",
                "call `install` on the `Caches` of the program before its cached functions",
            )
        })
    }

    /// Names of the caches of the file, in order.
    pub fn names(&self) -> Vec<String> {
        self.0.loaded.load().resolved.caches.keys().cloned().collect()
    }

    /// Names of the providers of the file, in order.
    pub fn provider_names(&self) -> Vec<String> {
        self.0.loaded.load().providers.keys().cloned().collect()
    }

    /// The providers of the file as they are now, by their names: for those who watch the servers behind them
    /// (`Telemetry::watch_servers`).
    pub fn providers(&self) -> Vec<(String, Arc<dyn CacheProvider>)> {
        let loaded = self.0.loaded.load();
        loaded.providers.iter().map(|(name, provider)| (name.clone(), Arc::clone(provider))).collect()
    }

    /// A provider by its name.
    pub fn provider(&self, name: &str) -> Option<Arc<dyn CacheProvider>> {
        self.0.loaded.load().providers.get(name).cloned()
    }

    /// What the file amounts to: each setting of each cache with its origin, and advice.
    pub fn explain(&self) -> Explanation {
        Explanation::of(&self.0.file, &self.0.loaded.load(), Vec::new())
    }

    /// Pings every provider, all at once. Takes as long as the slowest, which its `connect_timeout` and `response_timeout` bound.
    /// Returns the name and the error of each that does not answer.
    pub async fn ping(&self) -> Vec<(String, Result<(), BoxError>)> {
        let loaded = self.0.loaded.load_full();
        let asked =
            loaded.providers.iter().map(async |(name, provider)| (name.clone(), provider.ping().await));
        join_all(asked).await
    }

    /// Closes every cache that has been asked for, all at once, as [`TracedCache::close`] does, and then the providers. Returns
    /// what came of each. A cache that is first asked for later is closed from its start, and `reload` fails.
    pub async fn close(&self, limit: Duration) -> BTreeMap<String, Closed> {
        let built = self.0.end();
        let closing =
            built.iter().map(async |(name, running)| (name.clone(), running.controls.close(limit).await));
        let closed = join_all(closing).await.into_iter().collect();
        let loaded = self.0.loaded.load_full();
        join_all(loaded.providers.values().map(|provider| provider.close())).await;
        closed
    }
}

impl Inner {
    /// While this is held, no other thread adds a cache or changes a plan.
    pub(super) fn change(&self) -> ReentrantMutexGuard<'_, ()> {
        self.changing.lock()
    }

    pub(super) fn built(&self) -> Arc<HashMap<String, Arc<Running>>> {
        self.built.load_full()
    }

    /// Marks the registry as closed. The caches that are running; no other will be.
    fn end(&self) -> Arc<HashMap<String, Arc<Running>>> {
        let _changing = self.change();
        self.closed.store(true, Ordering::Release);
        self.built()
    }

    pub(super) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    fn plan<'a>(&self, loaded: &'a Loaded, name: &str) -> Result<&'a Plan> {
        let caches = &loaded.resolved.caches;
        caches.get(name).ok_or_else(|| {
            let fix = match caches.is_empty() {
                true => {
                    format!("{} has no caches; define it: `[{}]`", self.file, Steps(&at!["caches", name]))
                }
                false => {
                    let known = unknown(name, caches.keys().map(String::as_str));
                    format!("{} has no such cache; {known}", self.file)
                }
            };
            Error::config("name", format_args!("{name:?}"), fix)
        })
    }

    /// A builder for a cache of this registry, with its plan, observers and clock.
    fn complete<T: Value>(
        &self,
        begun: Builder<T>,
        loaded: &Loaded,
        name: &str,
        plan: &Plan,
    ) -> Result<Builder<T>> {
        let builder = loaded.parts(&self.setup.observers).complete(begun, name, plan);
        Ok(builder.map_err(|fault| fault.into_error(&self.file))?.clock(self.setup.clock.clone()))
    }

    fn add(&self, name: &str, running: Running) {
        let mut built = HashMap::clone(&self.built.load());
        built.insert(name.to_owned(), Arc::new(running));
        self.built.store(Arc::new(built));
    }
}

impl fmt::Debug for Caches {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Caches")
            .field("file", &self.0.file)
            .field("caches", &self.names())
            .field("providers", &self.provider_names())
            .finish_non_exhaustive()
    }
}
