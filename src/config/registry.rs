//! `Caches`: the caches of a file, by name and type.

use std::{
    any::{Any, type_name},
    collections::{BTreeMap, HashMap},
    fmt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
};

use cache_core::{
    BoxError, Builder, CacheProvider, Error, ErrorKind, Observer, Result, Schema, TracedCache, Value,
};
use serde::de::DeserializeOwned;

use super::{
    backend::Backends,
    build::Parts,
    environment::Environment,
    explain::Explanation,
    fault::{Fault, chain, unknown},
    load::{Lacks, Loaded},
    node::at,
    parse::Format,
    resolve::Plan,
};

/// The caches of a file. Cheap to clone; clones are one registry.
///
/// A cache is built when it is first asked for, on providers that are there already and shared by all caches that name
/// them. Asked for again under its name, it is the same cache.
#[derive(Clone)]
pub struct Caches(Arc<Inner>);

/// For functions that have no other way to their cache.
static INSTALLED: OnceLock<Caches> = OnceLock::new();

/// What a `#[cached]` function that answers no `Result` does about a mistake in the program.
///
/// # Panics
/// If there is one.
#[doc(hidden)]
#[allow(clippy::panic, reason = "a mistake in the program, where there is no error to answer with")]
pub fn expect_cache<T: Value>(cache: Result<TracedCache<T>>) -> TracedCache<T> {
    cache.unwrap_or_else(|error| panic!("{error}"))
}

struct Inner {
    /// As errors name it.
    file: String,
    setup: CachesBuilder,
    loaded: Loaded,
    built: Mutex<HashMap<String, Entry>>,
}

/// A cache that somebody has asked for.
struct Entry {
    type_name: &'static str,
    cache: Box<dyn Any + Send + Sync>,
}

/// What a registry is made with, beside its file.
#[derive(Clone)]
#[must_use]
pub struct CachesBuilder {
    backends: Backends,
    observers: Vec<Arc<dyn Observer>>,
    prefix: Option<String>,
    /// `None`: this process's.
    variables: Option<BTreeMap<String, String>>,
    taken: Option<String>,
}

impl Caches {
    /// Reads `path` (`.toml`, `.json`, `.yaml`) with the settings of [`builder`](Self::builder) as they are.
    ///
    /// # Errors
    /// As [`CachesBuilder::from_file`].
    pub async fn from_file(path: impl AsRef<Path>) -> Result<Self> {
        Self::builder().from_file(path).await
    }

    /// Begins a registry: backends of your own, observers.
    pub fn builder() -> CachesBuilder {
        CachesBuilder {
            backends: Backends::of_this_crate(),
            observers: Vec::new(),
            prefix: Some(CachesBuilder::PREFIX.to_owned()),
            variables: None,
            taken: None,
        }
    }

    /// The cache of this name. The first call builds it; later ones get the same.
    ///
    /// # Errors
    /// [`ErrorKind::Config`]: the file has no such cache, or it has been asked for with another type.
    pub fn cache<T: Value>(&self, name: &str) -> Result<TracedCache<T>> {
        self.cache_with(name, |builder| builder)
    }

    /// [`cache`](Self::cache) for a type that names its schema id. A cache whose file names one as well is refused.
    ///
    /// # Errors
    /// As `cache`.
    pub fn versioned<T: Value + Schema>(&self, name: &str) -> Result<TracedCache<T>> {
        if let Some(id) = self.0.loaded.resolved.caches.get(name).and_then(|plan| plan.schema) {
            let path = at!["caches", name, "schema"];
            let node = self.0.loaded.tree.at(&path);
            let fix = format!("the type names its schema id, {}; leave it out here", T::ID);
            let fault =
                Fault { place: node.map(|node| node.place.clone()), path, value: Some(id.to_string()), fix };
            return Err(fault.into_error(&self.0.file));
        }
        self.cache_with(name, Builder::versioned)
    }

    /// [`cache`](Self::cache) with what only code can say: `|builder| builder.weigher(...)`. Counts for the call that builds
    /// the cache; later ones get it as it is.
    ///
    /// # Errors
    /// As `cache`, and what [`Builder::build`] says.
    pub fn cache_with<T: Value>(
        &self,
        name: &str,
        more: impl FnOnce(Builder<T>) -> Builder<T>,
    ) -> Result<TracedCache<T>> {
        let mut built = self.0.built();
        if let Some(entry) = built.get(name) {
            return entry.cache.downcast_ref::<TracedCache<T>>().cloned().ok_or_else(|| {
                Error::config(
                    &format!("caches.{name}"),
                    type_name::<T>(),
                    format_args!(
                        "it has been asked for as {}; use one type for a name, or two caches",
                        entry.type_name
                    ),
                )
            });
        }
        let plan = self.0.plan(name)?;
        let builder = self.0.parts().builder(name, plan).map_err(|fault| fault.into_error(&self.0.file))?;
        let cache = more(builder).build()?;
        built.insert(name.to_owned(), Entry::of(&cache));
        Ok(cache)
    }

    /// Adds a cache that was built by hand, so that it is found by its name like those of the file.
    ///
    /// # Errors
    /// [`ErrorKind::Config`]: the name is taken, by the file or by an earlier call.
    pub fn register<T: Value>(&self, cache: &TracedCache<T>) -> Result<()> {
        let name = cache.name();
        let mut built = self.0.built();
        if built.contains_key(name) || self.0.loaded.resolved.caches.contains_key(name) {
            return Err(Error::config(
                "name",
                format_args!("{name:?}"),
                "there is a cache of this name already; give this one another",
            ));
        }
        built.insert(name.to_owned(), Entry::of(cache));
        Ok(())
    }

    /// Makes this the registry of the process: the one that `#[cached]` functions use.
    ///
    /// # Errors
    /// [`ErrorKind::Config`]: there is one already.
    pub fn install(&self) -> Result<()> {
        INSTALLED.set(self.clone()).map_err(|_second| {
            Error::config("registry", &self.0.file, "one is installed already; a process has one, for good")
        })
    }

    /// The registry of the process.
    ///
    /// # Errors
    /// [`ErrorKind::Config`]: none is installed.
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
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.loaded.resolved.caches.keys().map(String::as_str)
    }

    /// Names of the providers of the file, in order.
    pub fn provider_names(&self) -> impl Iterator<Item = &str> {
        self.0.loaded.providers.keys().map(String::as_str)
    }

    /// A provider by its name.
    pub fn provider(&self, name: &str) -> Option<Arc<dyn CacheProvider>> {
        self.0.loaded.providers.get(name).cloned()
    }

    /// What the file comes to: each setting of each cache with its origin, and advice.
    pub fn explain(&self) -> Explanation {
        Explanation::of(&self.0.file, &self.0.loaded, Vec::new())
    }

    /// Asks every provider for a sign of life, one after the other. Answers with names and what was wrong.
    pub async fn ping(&self) -> Vec<(String, Result<(), BoxError>)> {
        let mut all = Vec::new();
        for (name, provider) in &self.0.loaded.providers {
            all.push((name.clone(), provider.ping().await));
        }
        all
    }
}

impl Inner {
    fn built(&self) -> MutexGuard<'_, HashMap<String, Entry>> {
        self.built.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn plan(&self, name: &str) -> Result<&Plan> {
        let caches = &self.loaded.resolved.caches;
        caches.get(name).ok_or_else(|| {
            let fix = format!(
                "{} has no such cache; {}",
                self.file,
                unknown(name, caches.keys().map(String::as_str))
            );
            Error::config("name", format_args!("{name:?}"), fix)
        })
    }

    fn parts(&self) -> Parts<'_> {
        self.loaded.parts(&self.setup.observers)
    }
}

impl Entry {
    fn of<T: Value>(cache: &TracedCache<T>) -> Self {
        Self { type_name: type_name::<T>(), cache: Box::new(cache.clone()) }
    }
}

impl CachesBuilder {
    /// The prefix of variables that override the file: `TRACED_CACHE__CACHES__USERS__POLICY__TTL=30s`.
    pub const PREFIX: &'static str = "TRACED_CACHE";

    /// Adds a backend: what `backend = "name"` in a provider stands for. Its fields are read into `S` (derive serde's
    /// `Deserialize` with `deny_unknown_fields`) and handed to `build`, which does no I/O. An error that begins with
    /// `field = value: ` is reported at that field's line. See `docs/writing-a-backend.md`.
    pub fn backend<S, P, E>(
        mut self,
        name: &str,
        build: impl Fn(S) -> Result<P, E> + Send + Sync + 'static,
    ) -> Self
    where
        S: DeserializeOwned,
        P: CacheProvider,
        E: Into<BoxError>,
    {
        if !self.backends.add(name, build) {
            self.taken.get_or_insert_with(|| name.to_owned());
        }
        self
    }

    /// Adds an observer to every cache.
    pub fn observer(mut self, observer: impl Observer) -> Self {
        self.observers.push(Arc::new(observer));
        self
    }

    /// Another prefix than [`PREFIX`](Self::PREFIX) for variables that override the file; `None`: none does.
    pub fn env_prefix(mut self, prefix: Option<&str>) -> Self {
        self.prefix = prefix.map(str::to_owned);
        self
    }

    /// These variables instead of this process's.
    pub fn variables<N: Into<String>, V: Into<String>>(
        mut self,
        all: impl IntoIterator<Item = (N, V)>,
    ) -> Self {
        self.variables = Some(all.into_iter().map(|(name, value)| (name.into(), value.into())).collect());
        self
    }

    /// Reads a file, checks all of it, and builds its providers. Connects to none, but to those that are `required`.
    ///
    /// # Errors
    /// [`ErrorKind::Config`]: the first mistake, with file, line, field, value and fix; [`ErrorKind::Level`] for a required
    /// provider that does not answer.
    pub async fn from_file(self, path: impl AsRef<Path>) -> Result<Caches> {
        let (file, format, text, base) = open(path.as_ref())?;
        self.load(format, &text, file, base).await
    }

    /// The same for a text. Relative paths in it begin at the working directory.
    ///
    /// # Errors
    /// As [`from_file`](Self::from_file).
    pub async fn from_text(self, format: Format, text: &str) -> Result<Caches> {
        self.load(format, text, "(text)".to_owned(), PathBuf::new()).await
    }

    async fn load(self, format: Format, text: &str, file: String, base: PathBuf) -> Result<Caches> {
        self.check()?;
        let source = (format, text, base.as_path());
        let loaded = Loaded::read(&self.backends, &self.environment(), source, Lacks::Refused);
        let (loaded, _) = loaded.map_err(|fault| fault.into_error(&file))?;
        for (name, provider) in &loaded.providers {
            let required =
                loaded.resolved.providers.get(name).is_some_and(|provided| provided.common.required);
            if required && let Err(error) = provider.ping().await {
                // Where it says where the server is; that value is a secret.
                let said = ["url", "servers"].map(|field| loaded.tree.at(&at!["providers", name, field]));
                let node =
                    said.into_iter().flatten().next().or_else(|| loaded.tree.at(&at!["providers", name]));
                let place = node.map(|node| node.place.clone());
                let fix = format!("it is required and does not answer: {}", chain(&*error));
                let fault = Fault { path: at!["providers", name], place, value: None, fix };
                return Err(Error::with_source(ErrorKind::Level, fault.into_error(&file).to_string(), error));
            }
        }
        Ok(Caches(Arc::new(Inner { file, setup: self, loaded, built: Mutex::default() })))
    }

    /// For [`explain`](Self::explain).
    pub(super) fn read_leniently(&self, path: &Path) -> Result<(String, Loaded, Vec<Fault>)> {
        self.check()?;
        let (file, format, text, base) = open(path)?;
        let source = (format, text.as_str(), base.as_path());
        let loaded = Loaded::read(&self.backends, &self.environment(), source, Lacks::Noted);
        let (loaded, noted) = loaded.map_err(|fault| fault.into_error(&file))?;
        Ok((file, loaded, noted))
    }

    fn check(&self) -> Result<()> {
        match &self.taken {
            Some(name) => Err(Error::config(
                "backend",
                name,
                "there is a backend of this name already; give it another",
            )),
            None => Ok(()),
        }
    }

    fn environment(&self) -> Environment {
        match &self.variables {
            Some(variables) => Environment { prefix: self.prefix.clone(), variables: variables.clone() },
            None => Environment::of_process(self.prefix.clone()),
        }
    }
}

/// A file's name for errors, its language, its text, and its folder.
fn open(path: &Path) -> Result<(String, Format, String, PathBuf)> {
    let file = path.display().to_string();
    let Some(format) = Format::of(path) else {
        return Err(Error::config("file", &file, "name it `.toml`, `.json`, `.yaml` or `.yml`"));
    };
    let text = std::fs::read_to_string(path).map_err(|error| {
        let fix = format!("cannot be read ({}); check the path and who may read it", error.kind());
        Error::config("file", &file, fix)
    })?;
    let base = path.parent().map_or_else(PathBuf::new, Path::to_owned);
    Ok((file, format, text, base))
}

/// Neither settings nor variables: they may be secrets.
impl fmt::Debug for CachesBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CachesBuilder").field("prefix", &self.prefix).finish_non_exhaustive()
    }
}

impl fmt::Debug for Caches {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Caches")
            .field("file", &self.0.file)
            .field("caches", &self.names().collect::<Vec<_>>())
            .field("providers", &self.provider_names().collect::<Vec<_>>())
            .finish_non_exhaustive()
    }
}
