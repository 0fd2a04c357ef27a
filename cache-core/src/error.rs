//! The one error of this crate.

use std::{
    error::Error as StdError,
    fmt,
    sync::{Arc, OnceLock},
};

/// Any error, boxed: what loaders, sources and providers may fail with.
pub type BoxError = Box<dyn StdError + Send + Sync + 'static>;

/// `Result` with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong, for callers that decide by it. A miss is never an error.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// A setting is malformed or contradicts another. The message names field, value and fix.
    Config,
    /// The key cannot be used: it is empty.
    Key,
    /// A tag cannot be used: it is empty or too long, there are too many, or the cache was built without tags.
    Tag,
    /// The loader (or source) returned an error; [`Error::load_error`] gives it back.
    Load,
    /// The loader ran into the policy's hard limit, and nothing stale could stand in.
    LoadTimeout,
    /// The loader panicked. The key is free again.
    LoadPanicked,
    /// The load was aborted before it ended: its runtime shut down, and so did that of who loaded in its place, or the cache was
    /// closed.
    LoadAborted,
    /// A loader asked, directly or through other loaders, for the key that it is loading.
    Cycle,
    /// There is no value, and the loader promised a plain one: the source is known not to have this key, or it was not asked
    /// ([`Access::CacheOnly`](crate::Access::CacheOnly)). Where the difference matters, have the loader answer an `Option`
    /// through [`look_or_set_with`](crate::TracedCache::look_or_set_with).
    Absent,
    /// A level failed and its stance is to surface failures.
    Level,
    /// The value could not be encoded.
    Encode,
    /// This cache cannot do that with the levels that it has. The message says why.
    Unsupported,
    /// The cache has been closed.
    Closed,
    /// No tokio runtime is running on this thread.
    NoRuntime,
}

impl ErrorKind {
    /// All kinds.
    pub const ALL: [Self; 14] = [
        Self::Config,
        Self::Key,
        Self::Tag,
        Self::Load,
        Self::LoadTimeout,
        Self::LoadPanicked,
        Self::LoadAborted,
        Self::Cycle,
        Self::Absent,
        Self::Level,
        Self::Encode,
        Self::Unsupported,
        Self::Closed,
        Self::NoRuntime,
    ];

    /// A low-cardinality word for telemetry (`error.type`).
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Config => "config",
            Self::Key => "key",
            Self::Tag => "tag",
            Self::Load => "load",
            Self::LoadTimeout => "load_timeout",
            Self::LoadPanicked => "load_panicked",
            Self::LoadAborted => "load_aborted",
            Self::Cycle => "cycle",
            Self::Absent => "absent",
            Self::Level => "level",
            Self::Encode => "encode",
            Self::Unsupported => "unsupported",
            Self::Closed => "closed",
            Self::NoRuntime => "no_runtime",
        }
    }
}

/// A cheap, cloneable error: all waiters of one failed load share it, cause included.
///
/// No variant carries a cached value, a key or a credential.
#[derive(Clone)]
pub struct Error(Arc<Inner>);

struct Inner {
    kind: ErrorKind,
    message: String,
    source: Option<BoxError>,
    /// Of a bad setting: field, value, fix.
    setting: Option<[String; 3]>,
    /// Whose it is: known once a call of that cache ends with it.
    cache: OnceLock<Arc<str>>,
}

/// One cause after the other: of loaders that ask one another, as many may have failed by one another as the stack cannot hold.
impl Drop for Inner {
    fn drop(&mut self) {
        let mut source = self.source.take();
        while let Some(cause) = source.and_then(|cause| cause.downcast::<Error>().ok()) {
            source = Arc::into_inner(cause.0).and_then(|mut inner| inner.source.take());
        }
    }
}

impl Error {
    /// An error of `kind` with a message for people.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self::made(kind, message.into(), None, None)
    }

    /// The same, keeping the cause in the source chain.
    pub fn with_source(kind: ErrorKind, message: impl Into<String>, source: impl Into<BoxError>) -> Self {
        Self::made(kind, message.into(), Some(source.into()), None)
    }

    /// A bad setting: which field, the value it has, and what to do about it.
    pub fn config(field: &str, value: impl fmt::Display, fix: impl fmt::Display) -> Self {
        let setting = [field.to_owned(), value.to_string(), fix.to_string()];
        let message = format!("{field} = {}: {}", setting[1], setting[2]);
        Self::made(ErrorKind::Config, message, None, Some(setting))
    }

    fn made(
        kind: ErrorKind,
        message: String,
        source: Option<BoxError>,
        setting: Option<[String; 3]>,
    ) -> Self {
        Self(Arc::new(Inner { kind, message, source, setting, cache: OnceLock::new() }))
    }

    /// Says that it is an error of this cache, unless it is one of another: what a cache's loader hands on of a cycle is.
    pub(crate) fn belongs_to(&self, cache: &Arc<str>) {
        self.0.cache.get_or_init(|| Arc::clone(cache));
    }

    /// Field, value and fix of a bad setting, for errors made by [`config`](Self::config).
    pub fn setting(&self) -> Option<[&str; 3]> {
        self.0.setting.as_ref().map(|parts| parts.each_ref().map(String::as_str))
    }

    /// The name of the cache whose call (or `build`) ended with this. The message begins with it.
    pub fn cache(&self) -> Option<&str> {
        self.0.cache.get().map(|name| &**name)
    }

    /// Without the name of the cache.
    pub(crate) fn message(&self) -> &str {
        &self.0.message
    }

    /// What went wrong.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// The loader's own error, when this is a [`ErrorKind::Load`] of that type.
    ///
    /// Of an `anyhow::Error` the type is lost as it becomes a box (seen with 1.0.105), unless the loader makes that box itself:
    /// `.map_err(|e| e.reallocate_into_boxed_dyn_error_without_backtrace())`, before any `context`.
    pub fn load_error<E: StdError + 'static>(&self) -> Option<&E> {
        self.0.source.as_deref().and_then(|e| e.downcast_ref())
    }

    /// Whether the same call may succeed later without any change.
    pub fn is_retryable(&self) -> bool {
        matches!(
            self.0.kind,
            ErrorKind::Load
                | ErrorKind::LoadTimeout
                | ErrorKind::LoadPanicked
                | ErrorKind::LoadAborted
                | ErrorKind::Level
        )
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut d = f.debug_struct("Error");
        d.field("kind", &self.0.kind);
        if let Some(cache) = self.cache() {
            d.field("cache", &cache);
        }
        d.field("message", &self.0.message);
        if let Some(source) = &self.0.source {
            d.field("source", source);
        }
        d.finish()
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(cache) = self.cache() {
            write!(f, "cache `{cache}`: ")?;
        }
        f.write_str(&self.0.message)
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.0.source.as_deref().map(|e| e as _)
    }
}

/// An error in one line, with those of its causes that say something new: for a log, or for people.
pub fn with_causes(error: &(dyn StdError + 'static)) -> String {
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(next) = cause {
        let text = next.to_string();
        if !line.contains(&text) {
            line.push_str(": ");
            line.push_str(&text);
        }
        cause = next.source();
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_and_counters_are_in_the_order_of_the_kinds() {
        for (at, kind) in ErrorKind::ALL.into_iter().enumerate() {
            assert_eq!(kind as usize, at, "{kind:?}");
        }
        assert_eq!(ErrorKind::NoRuntime as usize + 1, ErrorKind::ALL.len(), "none is left out");
        for (at, reason) in crate::Unreadable::ALL.into_iter().enumerate() {
            assert_eq!(reason as usize, at, "{reason:?}");
        }
        assert_eq!(crate::Unreadable::NotAuthentic as usize + 1, crate::Unreadable::ALL.len());
    }

    #[test]
    fn shared_error_gives_the_cause_back() {
        let io = std::io::Error::other("down");
        let shared = Error::with_source(ErrorKind::Load, "load failed", io);
        let other = shared.clone();
        drop(shared);
        assert_eq!(other.load_error::<std::io::Error>().map(ToString::to_string).as_deref(), Some("down"));
        assert!(other.source().is_some());
        assert_eq!(std::mem::size_of::<Error>(), std::mem::size_of::<usize>());
    }
}
