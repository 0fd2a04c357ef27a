//! What a loader may answer.

use std::{fmt, sync::Arc, time::Duration};

use crate::{BoxError, Error, ErrorKind, Extra, Result};

/// A loader's full answer. A plain `Ok(value)`, `Ok(Some(value))` or `Ok(None)` converts into it, so most loaders never
/// name this type.
///
/// ```
/// use std::time::Duration;
/// use cache_core::Loaded;
/// let page = Loaded::value("<html>".to_owned()).ttl(Duration::from_secs(5)).tag("home").etag("v17");
/// # let _: Loaded<String> = page;
/// ```
pub struct Loaded<T> {
    pub(crate) answer: Answered<T>,
    pub(crate) ttl: Option<Duration>,
    pub(crate) grace: Option<Duration>,
    pub(crate) extra: Extra,
    pub(crate) surface: bool,
}

pub(crate) enum Answered<T> {
    Value(Arc<T>),
    Absent,
    Unchanged,
    DoNotStore(Option<Arc<T>>),
    Failed(BoxError),
}

impl<T> Loaded<T> {
    fn of(answer: Answered<T>) -> Self {
        Self { answer, ttl: None, grace: None, extra: Extra::default(), surface: false }
    }

    /// The value; stored.
    pub fn value(value: impl Into<Arc<T>>) -> Self {
        Self::of(Answered::Value(value.into()))
    }

    /// The source does not have this key. Remembered for the policy's `absent_ttl`, or [`Loaded::ttl`] of this answer.
    pub fn absent() -> Self {
        Self::of(Answered::Absent)
    }

    /// The held value is still right (an HTTP 304): it begins a new life. Without a held value this is a failure.
    pub fn unchanged() -> Self {
        Self::of(Answered::Unchanged)
    }

    /// Answers the callers of this load and stores nothing.
    pub fn do_not_store(value: Option<impl Into<Arc<T>>>) -> Self {
        Self::of(Answered::DoNotStore(value.map(Into::into)))
    }

    /// The load failed; for loaders without an error type. A stale value may stand in.
    pub fn failed(error: impl Into<BoxError>) -> Self {
        Self::of(Answered::Failed(error.into()))
    }

    /// This entry's own ttl, in place of the policy's. Zero: answer, but do not store.
    #[must_use]
    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.ttl = Some(ttl);
        self
    }

    /// This entry's own maximum age as a fallback, in place of the policy's; below the ttl it counts as the ttl.
    #[must_use]
    pub fn grace(mut self, max_age: Duration) -> Self {
        self.grace = Some(max_age);
        self
    }

    /// Adds a tag.
    #[must_use]
    pub fn tag(mut self, tag: impl Into<Box<str>>) -> Self {
        self.extra.tags.push(tag.into());
        self
    }

    /// Adds tags.
    #[must_use]
    pub fn tags<S: Into<Box<str>>>(mut self, tags: impl IntoIterator<Item = S>) -> Self {
        self.extra.tags.extend(tags.into_iter().map(Into::into));
        self
    }

    /// The source's validator, given back to the next load of this key.
    #[must_use]
    pub fn etag(mut self, etag: impl Into<Box<str>>) -> Self {
        self.extra.etag = Some(etag.into());
        self
    }

    /// Do not let a stale value hide this failure.
    #[must_use]
    pub fn surface(mut self) -> Self {
        self.surface = true;
        self
    }
}

impl<T> From<Option<T>> for Loaded<T> {
    fn from(found: Option<T>) -> Self {
        found.map_or_else(Self::absent, Self::value)
    }
}

/// Values stay out of `Debug` output.
impl<T> fmt::Debug for Loaded<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let answer = match self.answer {
            Answered::Value(_) => "value",
            Answered::Absent => "absent",
            Answered::Unchanged => "unchanged",
            Answered::DoNotStore(_) => "do_not_store",
            Answered::Failed(_) => "failed",
        };
        f.debug_struct("Loaded").field("answer", &answer).field("ttl", &self.ttl).finish_non_exhaustive()
    }
}

/// What a look-up held before its load began: for conditional refresh.
pub struct Held<T> {
    pub(crate) value: Arc<T>,
    pub(crate) etag: Option<Box<str>>,
    pub(crate) age: Duration,
}

impl<T> Held<T> {
    /// The stale value.
    pub fn value(&self) -> &Arc<T> {
        &self.value
    }

    /// The validator that came with it.
    pub fn etag(&self) -> Option<&str> {
        self.etag.as_deref()
    }

    /// Time since its load started.
    pub fn age(&self) -> Duration {
        self.age
    }
}

impl<T> fmt::Debug for Held<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Held").field("age", &self.age).finish_non_exhaustive()
    }
}

/// What a loader may return in `Ok`; `Out` is what its callers get.
///
/// | loader returns | callers get |
/// | --- | --- |
/// | `T`, `Arc<T>` | `Arc<T>` |
/// | `Option<T>`, [`Loaded<T>`] | `Option<Arc<T>>` |
#[diagnostic::on_unimplemented(
    message = "a loader of a `TracedCache<{T}>` cannot answer `{Self}`",
    note = "return the value, `Arc` of it, `Option` of it, or `Loaded` of it"
)]
pub trait Answer<T>: Send + 'static {
    /// What the caller of `get_or_set` gets.
    type Out;
    /// The answer in full.
    fn into_loaded(self) -> Loaded<T>;
    /// From the cache's answer.
    fn out(found: Option<Arc<T>>) -> Result<Self::Out>;
}

fn present<T>(found: Option<Arc<T>>) -> Result<Arc<T>> {
    found.ok_or_else(|| {
        Error::new(
            ErrorKind::Absent,
            "there is no value: the source does not have this key, or was not asked; let the loader return an Option to see that",
        )
    })
}

impl<T: Send + Sync + 'static> Answer<T> for T {
    type Out = Arc<T>;
    fn into_loaded(self) -> Loaded<T> {
        Loaded::value(self)
    }
    fn out(found: Option<Arc<T>>) -> Result<Arc<T>> {
        present(found)
    }
}

impl<T: Send + Sync + 'static> Answer<T> for Arc<T> {
    type Out = Self;
    fn into_loaded(self) -> Loaded<T> {
        Loaded::value(self)
    }
    fn out(found: Option<Self>) -> Result<Self> {
        present(found)
    }
}

impl<T: Send + Sync + 'static> Answer<T> for Option<T> {
    type Out = Option<Arc<T>>;
    fn into_loaded(self) -> Loaded<T> {
        self.map_or_else(Loaded::absent, Loaded::value)
    }
    fn out(found: Option<Arc<T>>) -> Result<Option<Arc<T>>> {
        Ok(found)
    }
}

impl<T: Send + Sync + 'static> Answer<T> for Loaded<T> {
    type Out = Option<Arc<T>>;
    fn into_loaded(self) -> Self {
        self
    }
    fn out(found: Option<Arc<T>>) -> Result<Option<Arc<T>>> {
        Ok(found)
    }
}

/// Wraps a value for a loader that cannot fail: `|| async { ok(value) }`.
///
/// # Errors
/// Never.
pub fn ok<T>(value: T) -> Result<T, std::convert::Infallible> {
    Ok(value)
}
