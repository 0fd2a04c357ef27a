//! Code of the user's at odd moments: destructors that use the cache which drops them, weighers and providers that panic.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::{
    mem,
    sync::{Arc, OnceLock, mpsc},
    thread,
    time::Duration,
};

use bytes::Bytes;
use futures::{FutureExt, future::BoxFuture};
use serde::{Deserialize, Serialize};
use traced_cache::{
    BoxError, CacheProvider, Capabilities, Delivery, Description, Engine, Memory, Policy, Put, RawKey,
    TracedCache, ok, testing::MapProvider,
};

/// Long enough for a machine that is busy; a lock that waits for itself waits for ever.
const PATIENCE: Duration = Duration::from_secs(60);

/// What a destructor does.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Does {
    Get,
    Invalidate,
    Load,
}

/// Forgotten instead of dropped where a destructor gets one: they would go on without end.
#[derive(Serialize, Deserialize)]
struct Nosy(u64);

struct Nose {
    cache: TracedCache<Nosy>,
    does: Does,
}

thread_local! {
    static NOSE: OnceLock<Nose> = const { OnceLock::new() };
}

impl Drop for Nosy {
    fn drop(&mut self) {
        // In threads that are not under test, as one that a store has for itself, nothing.
        let _ = NOSE.try_with(|nose| {
            let Some(Nose { cache, does }) = nose.get() else { return };
            match does {
                Does::Get => mem::forget(cache.get("k").now_or_never()),
                Does::Invalidate => mem::forget(cache.invalidate("other").now_or_never()),
                Does::Load => mem::forget(cache.get_or_set("k", || async { ok(Self(0)) }).now_or_never()),
            }
        });
    }
}

/// Everything by which a value may go.
async fn work(cache: &TracedCache<Nosy>) {
    let set = async |key: &str| assert!(cache.set(key, Nosy(1)).await.unwrap().is_confirmed());
    set("k").await;
    set("k").await;
    for n in 0..50 {
        set(&n.to_string()).await;
    }
    set("k").await;
    assert!(cache.invalidate("k").await.unwrap().is_confirmed());
    cache.get_or_set("k", || async { ok(Nosy(2)) }).await.unwrap();
    assert!(cache.expire("k").await.unwrap().is_confirmed());
    cache.get_or_set("k", || async { ok(Nosy(3)) }).await.unwrap();
    for _ in 0..2 {
        let all = (0..10u64).map(|n| (n, Nosy(n)));
        assert!(cache.set_many(all).await.unwrap().is_confirmed());
    }
    assert!(cache.clear().await.unwrap().is_confirmed());
    set("k").await;
}

#[test]
fn a_destructor_may_use_the_cache() {
    for engine in [Engine::Quick, Engine::Moka] {
        for does in [Does::Get, Does::Invalidate, Does::Load] {
            let (done, ended) = mpsc::channel();
            thread::spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                let hour = Duration::from_secs(3600);
                let cache: TracedCache<Nosy> = TracedCache::builder("nosy")
                    .level(Memory::entries(4).engine(engine))
                    .policy(Policy::ttl(hour).grace(hour))
                    .build()
                    .unwrap();
                NOSE.with(|nose| assert!(nose.set(Nose { cache: cache.clone(), does }).is_ok()));
                runtime.block_on(work(&cache));
                done.send(()).unwrap();
            });
            // Not joined: one that is stuck is left behind.
            assert_eq!(ended.recv_timeout(PATIENCE), Ok(()), "{engine:?}, {does:?}");
        }
    }
}

#[tokio::test]
async fn a_weigher_that_panics_leaves_no_older_value() {
    let store = Arc::new(MapProvider::new());
    let memory = Memory::bytes(1 << 20);
    let cache: TracedCache<u32> = TracedCache::builder("numbers")
        .level(memory)
        .level(Arc::clone(&store))
        .weigher(|value| if *value == 13 { panic!("bad luck") } else { 10 })
        .policy(Policy::ttl(Duration::from_secs(3600)))
        .build()
        .unwrap();
    assert!(cache.set("k", 1).await.unwrap().is_confirmed());
    let writer = cache.clone();
    let panicked = tokio::spawn(async move { writer.set("k", 13).await }).await;
    assert!(panicked.unwrap_err().is_panic());
    // The store below may have had the new value, which nobody could keep: it is gone from there as well.
    assert_eq!(cache.get("k").await.unwrap(), None);
    assert!(cache.set("k", 2).await.unwrap().is_confirmed());
    assert_eq!(cache.get("k").await.unwrap().as_deref(), Some(&2));
}

type Answers<'a, T> = BoxFuture<'a, Vec<Result<T, BoxError>>>;

/// A provider that is written without `async_trait`, and panics before it has a future.
struct Rude;

impl CacheProvider for Rude {
    fn capabilities(&self) -> Capabilities {
        Capabilities::remote()
    }

    fn describe(&self) -> Description {
        Description::local("rude")
    }

    fn get_many<'a, 'b, 'c, 't>(&'a self, _: &'b [RawKey<'c>]) -> Answers<'t, Option<Bytes>>
    where
        'a: 't,
        'b: 't,
        'c: 't,
        Self: 't,
    {
        panic!("get_many")
    }

    fn put_many<'a, 'b, 'c, 't>(&'a self, _: &'b [Put<'c>]) -> Answers<'t, ()>
    where
        'a: 't,
        'b: 't,
        'c: 't,
        Self: 't,
    {
        panic!("put_many")
    }

    fn remove_many<'a, 'b, 'c, 't>(&'a self, _: &'b [RawKey<'c>]) -> Answers<'t, ()>
    where
        'a: 't,
        'b: 't,
        'c: 't,
        Self: 't,
    {
        panic!("remove_many")
    }
}

#[tokio::test]
async fn a_provider_that_panics_before_its_future_is_a_level_that_fails() {
    let builder = TracedCache::<u64>::builder("things").level(Memory::entries(100)).level(Rude);
    let cache = builder.build().unwrap();
    assert_eq!(*cache.get_or_set("k", || async { ok(1) }).await.unwrap(), 1);
    assert_eq!(cache.get("other").await.unwrap(), None);
    assert_eq!(cache.get_many(["a", "b"]).await.unwrap(), [None, None]);
    assert_eq!(cache.set("k", 2).await.unwrap(), Delivery::Pending);
    assert_eq!(cache.invalidate("k").await.unwrap(), Delivery::Pending);
}
