//! What a store hands out may be a part of a large buffer: a cache keeps none of it.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use traced_cache::{
    BoxError, CacheProvider, Capabilities, Description, Level, Marks, Memory, Opaque, Policy, Put, RawKey,
    Shown, Swap, Swapped, TracedCache, testing::MapProvider,
};

use crate::world::{confirmed, get, set};

/// Counts what it has handed out and not got back.
#[derive(Clone)]
struct Lender {
    store: Arc<MapProvider>,
    lent: Arc<AtomicUsize>,
}

struct Buffer(Bytes, Arc<AtomicUsize>);

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        self.1.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Lender {
    fn lend(&self, bytes: Bytes) -> Bytes {
        self.lent.fetch_add(1, Ordering::SeqCst);
        Bytes::from_owner(Buffer(bytes, Arc::clone(&self.lent)))
    }
}

#[async_trait]
impl CacheProvider for Lender {
    fn capabilities(&self) -> Capabilities {
        self.store.capabilities()
    }

    fn describe(&self) -> Description {
        self.store.describe()
    }

    async fn get_many(&self, keys: &[RawKey<'_>]) -> Vec<Result<Option<Bytes>, BoxError>> {
        let answers = self.store.get_many(keys).await;
        answers.into_iter().map(|answer| Ok(answer?.map(|bytes| self.lend(bytes)))).collect()
    }

    async fn put_many(&self, items: &[Put<'_>]) -> Vec<Result<(), BoxError>> {
        self.store.put_many(items).await
    }

    async fn remove_many(&self, keys: &[RawKey<'_>]) -> Vec<Result<(), BoxError>> {
        self.store.remove_many(keys).await
    }

    fn marks(&self) -> Option<&dyn Marks> {
        Some(self)
    }

    fn plain(&self) -> Option<Arc<dyn CacheProvider>> {
        Some(Arc::new(self.clone()))
    }
}

#[async_trait]
impl Marks for Lender {
    async fn swap(&self, marks: &[Swap<'_>]) -> Result<Swapped, BoxError> {
        Ok(match self.store.marks().unwrap().swap(marks).await? {
            Swapped::Other { at, now } => Swapped::Other { at, now: now.map(|bytes| self.lend(bytes)) },
            done => done,
        })
    }
}

#[tokio::test]
async fn nothing_that_a_store_hands_out_is_kept() {
    let lent = Arc::new(AtomicUsize::new(0));
    let store = Lender { store: Arc::new(MapProvider::new().marking()), lent: Arc::clone(&lent) };
    let node = || -> TracedCache<String> {
        TracedCache::builder("users")
            .level(Memory::entries(100))
            .level(Level::new(store.clone()))
            .policy(Policy::ttl(Duration::from_secs(60)))
            .build()
            .unwrap()
    };
    let (a, b, c) = (node(), node(), node());
    set(&a, "k", "1", &["x", "y"]).await;
    set(&a, "other", "2", &["x"]).await;
    // Marks of tags are read by `b`; `c` and `a` are told by a swap that theirs are old.
    assert_eq!(get(&b, "k").await.as_deref(), Some("1"));
    assert!(b.get_many(["k", "other", "none"]).await.unwrap().iter().take(2).all(Option::is_some));
    confirmed(b.invalidate_tag("x").await);
    confirmed(c.invalidate_tag("x").await);
    confirmed(a.invalidate_tags(["x", "y"]).await);
    assert_eq!(get(&c, "k").await, None);
    set(&a, "k", "3", &["y"]).await;
    for cache in [&a, &b, &c] {
        confirmed(cache.invalidate_tag("z").await);
        get(cache, "k").await;
    }
    assert_eq!(lent.load(Ordering::SeqCst), 0);
}

/// Bytes that are shown are the caller's.
#[tokio::test]
async fn what_is_inspected_is_a_copy() {
    let lent = Arc::new(AtomicUsize::new(0));
    let store = Arc::new(MapProvider::new());
    store.plant("users:k", &b"no JSON"[..]);
    let cache: TracedCache<Opaque> = TracedCache::builder("users")
        .level(Level::new(Lender { store, lent: Arc::clone(&lent) }).plain())
        .policy(Policy::ttl(Duration::from_secs(60)))
        .build()
        .unwrap();
    let inspection = cache.inspect_with_value("k").await.unwrap();
    assert!(matches!(&inspection.levels[0].value, Some(Shown::Bytes(bytes)) if bytes == &b"no JSON"[..]));
    assert_eq!(lent.load(Ordering::SeqCst), 0);
}
