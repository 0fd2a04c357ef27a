//! Names that no other test uses, and calls that must succeed.

use std::{
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use bytes::Bytes;

use crate::{BoxError, CacheId, CacheProvider, Put, RawKey};

/// Above what caches of a process count up to.
static NEXT: AtomicU32 = AtomicU32::new(0xC0FF_0000);

/// A cache's names without the cache.
pub(super) struct Room {
    cache: CacheId,
    pub(super) namespace: String,
}

impl Room {
    pub(super) fn new() -> Self {
        Self::named("")
    }

    /// The namespace ends with `name`.
    pub(super) fn named(name: &str) -> Self {
        Self::beside(&format!("t{:012x}.", fastrand::u64(..1 << 48)), name)
    }

    pub(super) fn beside(prefix: &str, name: &str) -> Self {
        let cache = CacheId(NEXT.fetch_add(1, Ordering::Relaxed));
        Self { cache, namespace: format!("{prefix}{name}") }
    }

    /// One namespace, as two processes that use one store have it.
    pub(super) fn twins() -> (Self, Self) {
        let one = Self::new();
        let other = Self::beside(&one.namespace, "");
        (one, other)
    }

    pub(super) fn key<'a>(&'a self, id: &'a str) -> RawKey<'a> {
        RawKey::new(self.cache, &self.namespace, id)
    }

    pub(super) fn marker(&self) -> RawKey<'_> {
        RawKey::marker(self.cache, &self.namespace)
    }

    pub(super) fn tag<'a>(&'a self, tag: &'a str) -> RawKey<'a> {
        RawKey::tag(self.cache, &self.namespace, tag)
    }

    /// Bytes that tell whose mark they are.
    pub(super) fn own_mark(&self, mark: RawKey<'_>) -> Bytes {
        own(&mark.joined())
    }

    pub(super) fn item<'a>(&'a self, id: &'a str, bytes: impl Into<Bytes>) -> Put<'a> {
        Put { key: self.key(id), bytes: bytes.into(), ttl: Duration::from_secs(600) }
    }

    pub(super) async fn put(&self, provider: &dyn CacheProvider, id: &str, bytes: impl Into<Bytes>) {
        ok(provider.put(self.item(id, bytes)).await);
    }

    pub(super) async fn put_for(&self, provider: &dyn CacheProvider, id: &str, ttl: Duration) {
        ok(provider.put(Put { ttl, ..self.item(id, id.to_owned()) }).await);
    }

    pub(super) async fn get(&self, provider: &dyn CacheProvider, id: &str) -> Option<Bytes> {
        ok(provider.get(self.key(id)).await)
    }

    pub(super) async fn has(&self, provider: &dyn CacheProvider, id: &str) -> bool {
        self.get(provider, id).await.is_some()
    }

    /// `new` is there, or nothing if it was refused. Never what was there before.
    pub(super) async fn expect_replaced(&self, provider: &dyn CacheProvider, id: &str, new: Option<Bytes>) {
        let found = self.get(provider, id).await;
        if found != new {
            let len = |item: &Option<Bytes>| item.as_ref().map(Bytes::len);
            panic!("{id:?} holds {:?} bytes and should hold {:?}", len(&found), len(&new));
        }
    }

    pub(super) async fn remove(&self, provider: &dyn CacheProvider, id: &str) {
        ok(provider.remove(self.key(id)).await);
    }

    /// Each id holds itself.
    pub(super) async fn fill(&self, provider: &dyn CacheProvider, ids: &[impl AsRef<str>]) {
        let items: Vec<_> = ids.iter().map(|id| self.item(id.as_ref(), own(id.as_ref()))).collect();
        all_ok(provider.put_many(&items).await, items.len());
    }

    pub(super) async fn expect_own(&self, provider: &dyn CacheProvider, ids: &[impl AsRef<str>]) {
        let keys: Vec<_> = ids.iter().map(|id| self.key(id.as_ref())).collect();
        let found = all_ok(provider.get_many(&keys).await, keys.len());
        for (id, found) in ids.iter().zip(found) {
            let id = id.as_ref();
            assert!(found == Some(own(id)), "{id:?} does not hold its own value in a batch");
            assert!(self.get(provider, id).await == Some(own(id)), "{id:?} does not hold its own value");
        }
    }
}

/// A value that tells whose it is.
pub(super) fn own(id: &str) -> Bytes {
    format!("value of {id}").into()
}

pub(super) fn ok<T>(result: Result<T, BoxError>) -> T {
    result.unwrap_or_else(|error| panic!("the provider failed: {error}"))
}

pub(super) fn all_ok<T>(results: Vec<Result<T, BoxError>>, count: usize) -> Vec<T> {
    assert_eq!(results.len(), count, "one result per key");
    results.into_iter().map(ok).collect()
}
