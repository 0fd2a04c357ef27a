//! `CachesBuilder`: everything that a registry is made of beside its file.

use std::{
    collections::BTreeMap,
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
};

use cache_core::{BoxError, CacheProvider, Clock, Error, ErrorKind, Observer, Result, with_causes};
use serde::de::DeserializeOwned;

use super::{
    Caches, Format,
    backend::{Backends, blamed, whereabouts},
    environment::{self, Environment},
    fault::Fault,
    load::{Lacks, Loaded},
    node::at,
};

/// Builds a registry of caches from a file, with backends, observers and a clock of your own.
#[derive(Clone)]
#[must_use]
pub struct CachesBuilder {
    backends: Backends,
    pub(super) observers: Vec<Arc<dyn Observer>>,
    pub(super) clock: Clock,
    prefix: Option<String>,
    /// `None`: this process's.
    variables: Option<BTreeMap<String, String>>,
    taken: Option<String>,
}

/// A text to read.
pub(super) struct Source {
    /// Its name in errors.
    pub(super) file: String,
    format: Format,
    text: String,
    /// The directory that relative paths start from.
    base: PathBuf,
}

impl CachesBuilder {
    pub(super) fn new() -> Self {
        Self {
            backends: Backends::of_this_crate(),
            observers: Vec::new(),
            clock: Clock::system(),
            prefix: Some(Self::PREFIX.to_owned()),
            variables: None,
            taken: None,
        }
    }

    /// The prefix of variables that override the file: `TRACED_CACHE__CACHES__USERS__POLICY__TTL=30s`.
    pub const PREFIX: &'static str = environment::PREFIX;

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

    /// The clock of every cache, for tests of a file's settings; the system's unless given. Backends of your own have a clock of
    /// their own.
    pub fn clock(mut self, clock: Clock) -> Self {
        self.clock = clock;
        self
    }

    /// Another prefix than [`PREFIX`](Self::PREFIX) for variables that override the file; with `None`, no variable does.
    pub fn env_prefix(mut self, prefix: Option<&str>) -> Self {
        self.prefix = prefix.map(str::to_owned);
        self
    }

    /// Uses these environment variables instead of this process's.
    pub fn variables<N: Into<String>, V: Into<String>>(
        mut self,
        all: impl IntoIterator<Item = (N, V)>,
    ) -> Self {
        self.variables = Some(all.into_iter().map(|(name, value)| (name.into(), value.into())).collect());
        self
    }

    /// Reads a file, checks all of it, and builds its providers. Connects only to those that are `required`.
    ///
    /// # Errors
    /// [`ErrorKind::Config`]: all mistakes (up to 20), a line for each, with file, line, field, value and fix;
    /// [`ErrorKind::Level`] for a required provider that does not answer.
    pub async fn from_file(self, path: impl AsRef<Path>) -> Result<Caches> {
        let path = path.as_ref();
        let source = Source::open(path)?;
        let loaded = self.load(&source).await?;
        Ok(Caches::new(self, source.file, Some(path.to_owned()), loaded))
    }

    /// The same for a text. Relative paths in it start from the working directory. Such a registry cannot be reloaded.
    ///
    /// # Errors
    /// As [`from_file`](Self::from_file).
    pub async fn from_text(self, format: Format, text: &str) -> Result<Caches> {
        let (file, text) = ("(text)".to_owned(), text.to_owned());
        let source = Source { file, format, text, base: PathBuf::new() };
        let loaded = self.load(&source).await?;
        Ok(Caches::new(self, source.file, None, loaded))
    }

    async fn load(&self, source: &Source) -> Result<Loaded> {
        let (loaded, _) = self.read(source, Lacks::Refused)?;
        for (name, provider) in &loaded.providers {
            let provided = loaded.resolved.providers.get(name);
            if provided.is_some_and(|provided| provided.common.required) {
                answers(&source.file, &loaded, name, &**provider, "it is required and").await?;
            }
        }
        Ok(loaded)
    }

    /// Reads and checks the source, and builds its providers. Connects to none.
    pub(super) fn read(&self, source: &Source, lacks: Lacks) -> Result<(Loaded, Vec<Fault>)> {
        self.check()?;
        let Source { file, format, text, base } = source;
        Loaded::read(&self.backends, &self.environment(), (*format, text, base), lacks).map_err(|faults| {
            let lines: Vec<_> = faults.iter().map(|fault| fault.line(file)).collect();
            Error::new(ErrorKind::Config, lines.join("\n"))
        })
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
            Some(variables) => {
                let all = variables.iter().map(|(name, value)| (name.into(), value.into()));
                Environment::of(self.prefix.clone(), all)
            }
            None => Environment::of(self.prefix.clone(), std::env::vars_os()),
        }
    }
}

impl Source {
    pub(super) fn open(path: &Path) -> Result<Self> {
        let file = path.display().to_string();
        let Some(format) = Format::of(path) else {
            return Err(Error::config("file", &file, "name it `.toml`, `.json`, `.yaml` or `.yml`"));
        };
        let text = std::fs::read_to_string(path).map_err(|error| {
            let fix = match error.kind() {
                std::io::ErrorKind::InvalidData => "it is no UTF-8; save it as that".to_owned(),
                kind => format!("cannot be read ({kind}); check the path and who may read it"),
            };
            Error::config("file", &file, fix)
        })?;
        let base = path.parent().map_or_else(PathBuf::new, Path::to_owned);
        Ok(Self { file, format, text, base })
    }
}

/// Fails unless a provider answers; `why` says why it must.
pub(super) async fn answers(
    file: &str,
    loaded: &Loaded,
    name: &str,
    provider: &dyn CacheProvider,
    why: &str,
) -> Result<()> {
    let Err(error) = provider.ping().await else { return Ok(()) };
    let said = with_causes(&*error);
    let path = at!["providers", name];
    let fault = blamed(&said, &loaded.tree, &path).unwrap_or_else(|| {
        let place = loaded.tree.at(&path).map(|settings| whereabouts(settings).clone());
        Fault::without_value(path, place, format_args!("{why} cannot be used: {said}"))
    });
    Err(Error::with_source(ErrorKind::Level, fault.into_error(file).to_string(), error))
}

/// Shows neither settings nor variables: they may be secrets.
impl fmt::Debug for CachesBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CachesBuilder").field("prefix", &self.prefix).finish_non_exhaustive()
    }
}
