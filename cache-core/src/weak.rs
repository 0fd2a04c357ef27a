//! A handle that does not keep its cache.

use std::{fmt, sync::Weak};

use crate::{Access, TracedCache, inner::Inner};

/// A cache for as long as others have it: for who observes it, and would keep it for ever otherwise. Made by
/// [`TracedCache::downgrade`].
pub struct WeakCache<T> {
    pub(crate) inner: Weak<Inner<T>>,
    pub(crate) access: Access,
}

impl<T> WeakCache<T> {
    /// The cache, unless its last handle is gone.
    pub fn upgrade(&self) -> Option<TracedCache<T>> {
        Some(TracedCache { inner: self.inner.upgrade()?, access: self.access })
    }
}

impl<T> Clone for WeakCache<T> {
    fn clone(&self) -> Self {
        Self { inner: Weak::clone(&self.inner), access: self.access }
    }
}

impl<T> fmt::Debug for WeakCache<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WeakCache").field("access", &self.access).finish_non_exhaustive()
    }
}
