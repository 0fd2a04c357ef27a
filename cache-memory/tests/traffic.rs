//! Whoever wishes to hear of keys hears of each that is looked up, once.
#![allow(clippy::unwrap_used, reason = "helpers of tests fail their test")]

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use cache_core::{Observer, Policy, RawKey, Stats, TracedCache, Traffic, ok};
use cache_memory::Memory;

#[derive(Clone, Default)]
struct Heard(Arc<Mutex<HashMap<String, u64>>>);

impl Traffic for Heard {
    fn asked(&self, key: &RawKey<'_>) {
        *self.0.lock().unwrap().entry(key.id.to_owned()).or_default() += 1;
        assert_ne!(key.id, "trouble", "a panic here is nobody's trouble");
    }
}

impl Observer for Heard {
    fn traffic(&self, stats: &Arc<Stats>) -> Option<Arc<dyn Traffic>> {
        assert_eq!(stats.info().name(), "asked");
        assert_eq!(stats.store().unwrap().capacity(), Some(100));
        Some(Arc::new(self.clone()))
    }
}

#[tokio::test]
async fn each_key_that_is_looked_up_is_heard_of_once() {
    let heard = Heard::default();
    let cache: TracedCache<u8> = TracedCache::builder("asked")
        .level(Memory::entries(100))
        .policy(Policy::ttl(Duration::MAX))
        .observer(heard.clone())
        .build()
        .unwrap();
    // No look-ups.
    let _ = cache.set("a", 1).await.unwrap();
    let _ = cache.invalidate("z").await.unwrap();
    cache.inspect("a").await.unwrap();
    assert!(heard.0.lock().unwrap().is_empty());

    for _ in 0..1000 {
        assert!(cache.get("a").await.unwrap().is_some());
    }
    assert!(cache.get("b").await.unwrap().is_none());
    cache.look("a").await.unwrap();
    cache.get_or_set("b", || async { ok(2) }).await.unwrap();
    cache.get_or_set("b", || async { ok(2) }).await.unwrap();
    cache.get_many(["a", "b", "c"]).await.unwrap();
    let load =
        |(), keys: Vec<String>| async move { ok(keys.into_iter().map(|key| (key, 3)).collect::<Vec<_>>()) };
    cache.get_or_set_many(["c", "d"], &(), load).await.unwrap();
    cache.refresh("a", &(), |(), _| async { ok(4) }).await.unwrap();
    let _ = cache.set("trouble", 5).await.unwrap();
    assert!(cache.get("trouble").await.unwrap().is_some());

    let counts = heard.0.lock().unwrap().clone();
    let of = |key: &str| counts.get(key).copied().unwrap_or_default();
    assert_eq!([of("a"), of("b"), of("c"), of("d"), of("trouble")], [1003, 4, 2, 1, 1]);
    assert_eq!(counts.values().sum::<u64>(), cache.stats().lookups());
}
