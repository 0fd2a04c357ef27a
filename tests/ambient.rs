//! What surrounds a caller (trace context, task-locals) surrounds its loader, wherever that runs.
#![allow(clippy::unwrap_used, reason = "helpers of tests fail their test")]

use std::{sync::Arc, time::Duration};

use tokio::{sync::mpsc, task::yield_now, task_local};
use traced_cache::{
    Access, Ambient, BoxError, Clock, Early, Loaded, Memory, Observer, Policy, Source, TracedCache, ok,
    testing::{MapProvider, Recorded, Recorder},
};

const S: Duration = Duration::from_secs(1);

task_local! {
    static REQUEST: u64;
}

struct Request(u64);

impl Ambient for Request {
    fn within(&self, work: &mut dyn FnMut()) {
        REQUEST.sync_scope(self.0, work);
    }
}

/// An observer that does nothing else.
struct Carry;

impl Observer for Carry {
    fn ambient(&self) -> Option<Arc<dyn Ambient>> {
        REQUEST.try_with(|request| Arc::new(Request(*request)) as _).ok()
    }
}

fn cache(policy: Policy) -> TracedCache<u64> {
    TracedCache::builder("ambient")
        .level(Memory::entries(100))
        .level(MapProvider::new().leasing())
        .policy(policy)
        .observer(Carry)
        .build()
        .unwrap()
}

/// The request as a loader sees it: when it is called, and after it has been put aside.
async fn request(when_called: Option<u64>) -> u64 {
    yield_now().await;
    let then = REQUEST.try_with(|request| *request).ok();
    assert_eq!(when_called, then);
    then.unwrap_or(0)
}

fn now() -> Option<u64> {
    REQUEST.try_with(|request| *request).ok()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_form_of_load_is_within() {
    let cache = cache(Policy::ttl(60 * S));
    let load = |_: (), _: String| {
        let called = now();
        async move { ok(request(called).await) }
    };
    REQUEST
        .scope(7, async {
            let plain = || {
                let called = now();
                async move { ok(request(called).await) }
            };
            assert_eq!(*cache.get_or_set("a", plain).await.unwrap(), 7);
            assert_eq!(*cache.get_or_set_with("b", &(), load).await.unwrap(), 7);
            assert_eq!(*cache.refresh("c", &(), load).await.unwrap(), 7);
            assert_eq!(*cache.access(Access::Bypass).get_or_set_with("d", &(), load).await.unwrap(), 7);
            let conditional = |_: (), _: String, _| {
                let called = now();
                async move { ok(request(called).await) }
            };
            assert_eq!(*cache.get_or_set_if_changed("e", &(), conditional).await.unwrap(), 7);
        })
        .await;
    assert_eq!(*cache.get_or_set_with("outside", &(), load).await.unwrap(), 0, "nothing surrounds this one");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_is_within() {
    let cache = cache(Policy::ttl(60 * S));
    let load = |_: (), keys: Vec<u32>| {
        let called = now();
        async move {
            let seen = request(called).await;
            ok(keys.into_iter().map(|key| (key, seen)).collect::<Vec<_>>())
        }
    };
    let found = REQUEST.scope(7, cache.get_or_set_many([1_u32, 2, 3], &(), load)).await.unwrap();
    assert_eq!(found.into_iter().map(|value| *value.unwrap()).collect::<Vec<_>>(), [7, 7, 7]);
}

/// Each load gets what surrounds the caller who started it, not who comes later or waits for it.
#[tokio::test]
async fn a_shared_load_is_within_what_its_starter_had() {
    let cache = cache(Policy::ttl(60 * S));
    let (go, mut gate) = mpsc::channel::<()>(1);
    let (started, mut starts) = mpsc::channel::<()>(1);
    let first = tokio::spawn(REQUEST.scope(1, {
        let cache = cache.clone();
        async move {
            let load = move || async move {
                started.send(()).await.unwrap();
                gate.recv().await;
                ok(request(now()).await)
            };
            *cache.get_or_set("k", load).await.unwrap()
        }
    }));
    starts.recv().await.unwrap();
    let second = tokio::spawn(REQUEST.scope(2, {
        let cache = cache.clone();
        async move { *cache.get_or_set("k", || async { ok(request(now()).await) }).await.unwrap() }
    }));
    go.send(()).await.unwrap();
    assert_eq!((first.await.unwrap(), second.await.unwrap()), (1, 1));
}

#[tokio::test]
async fn loads_in_the_background_are_within_what_their_causer_had() {
    for (what, policy) in [
        ("early", Policy::ttl(100 * S).early(Early::Fraction(0.5))),
        ("stale while revalidating", Policy::ttl(60 * S).grace(1000 * S).revalidate(500 * S)),
    ] {
        let (clock, time) = Clock::manual();
        let recorder = Recorder::new();
        let cache: TracedCache<u64> = TracedCache::builder("ambient")
            .level(Memory::entries(100).engine_expiry(false))
            .policy(policy)
            .clock(clock)
            .observer(Carry)
            .observer(recorder.clone())
            .build()
            .unwrap();
        let get = async |who: u64| {
            let load = || {
                let called = now();
                async move { ok(request(called).await) }
            };
            *REQUEST.scope(who, cache.get_or_set("k", load)).await.unwrap()
        };
        assert_eq!(get(1).await, 1, "{what}");
        time.advance(90 * S);
        assert_eq!(get(2).await, 1, "{what}: the old value, and a load in the background");
        let ended = recorder.until(1, |event| matches!(event, Recorded::Load { background: true, .. }));
        tokio::time::timeout(60 * S, ended).await.expect("a load in the background");
        tokio::time::timeout(60 * S, async {
            while get(3).await != 2 {
                yield_now().await;
            }
        })
        .await
        .expect("what it loaded");
    }
}

/// A source that tells which request it heard each call from.
struct Table(mpsc::UnboundedSender<(&'static str, u64)>);

impl Source<u32, u64> for Table {
    async fn load(&self, _: &u32) -> Result<Loaded<u64>, BoxError> {
        let seen = request(now()).await;
        self.0.send(("load", seen))?;
        Ok(Loaded::value(seen))
    }

    async fn save(&self, _: &u32, _: &u64) -> Result<(), BoxError> {
        Ok(self.0.send(("save", request(now()).await))?)
    }

    async fn delete(&self, _: &u32) -> Result<(), BoxError> {
        Ok(self.0.send(("delete", request(now()).await))?)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_source_is_within() {
    let (heard, mut calls) = mpsc::unbounded_channel();
    let table = cache(Policy::ttl(60 * S)).with_source(Table(heard));
    REQUEST
        .scope(7, async {
            assert_eq!(*table.get(1_u32).await.unwrap().unwrap(), 7);
            assert_eq!(table.get_many([2_u32, 3]).await.unwrap().len(), 2);
            assert!(table.save(1_u32, 5_u64).await.unwrap().is_confirmed());
            assert!(table.delete(1_u32).await.unwrap().is_confirmed());
        })
        .await;
    drop(table);
    let mut all = Vec::new();
    while let Ok(call) = calls.try_recv() {
        all.push(call);
    }
    assert_eq!(all, [("load", 7), ("load", 7), ("load", 7), ("save", 7), ("delete", 7)]);
}
