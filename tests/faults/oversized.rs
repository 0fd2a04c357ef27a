//! What another node has stored and this one does not read, as it is larger than its `value_max`, costs its own key only.

use std::{sync::Arc, time::Duration};

use test_servers::{MemcachedServer, RedisServer};
use traced_cache::{
    BreakerState, CacheId, CacheProvider, Level, MemcachedProvider, Policy, Put, RawKey, RedisProvider,
    TracedCache, Unreadable, ok,
};

/// What this node reads; Redis reads up to a MiB in any case.
const SMALL: usize = 512 << 10;
const LARGE: usize = 2 << 20;

fn cache(provider: &Arc<dyn CacheProvider>) -> TracedCache<String> {
    TracedCache::builder("sizes")
        .level(Level::new(Arc::clone(provider)).budget(Duration::from_secs(20)))
        .policy(Policy::ttl(Duration::from_secs(600)))
        .build()
        .unwrap()
}

async fn costs_its_own_key_only(provider: impl Fn(usize) -> Arc<dyn CacheProvider>) {
    let large = cache(&provider(2 * LARGE));
    let provider = provider(SMALL);
    let small = cache(&provider);
    let writes = async |key: &str| {
        assert!(large.set(key, "x".repeat(LARGE)).await.unwrap().is_confirmed());
    };
    for key in ["k", "updated", "expired", "batch"] {
        writes(key).await;
    }
    assert!(small.set("fits", "a".to_owned()).await.unwrap().is_confirmed());

    const READS: u64 = 60;
    for _ in 0..READS {
        assert_eq!(small.get("k").await.unwrap(), None);
    }
    let level = &small.stats().levels[0];
    assert_eq!((level.breaker, level.faults.iter().map(|(_, n)| n).sum::<u64>()), (BreakerState::Closed, 0));
    assert_eq!(level.unreadable[Unreadable::TooLarge as usize], (Unreadable::TooLarge, READS));

    let many = small.get_many(["batch", "fits", "absent"]).await.unwrap();
    let found: Vec<_> = many.iter().map(|value| value.as_deref().map(String::as_str)).collect();
    assert_eq!(found, [None, Some("a"), None], "the rest of a batch is found");

    // It is replaced as whatever cannot be read is.
    let loaded = small.get_or_set("k", || async { ok("loaded".to_owned()) }).await.unwrap();
    assert_eq!(*loaded, "loaded");
    let change = |(): (), _, old: Option<Arc<String>>| async move {
        assert!(old.is_none());
        ok("updated".to_owned())
    };
    assert!(small.update("updated", &(), change).await.unwrap().delivery.is_confirmed());
    assert!(small.expire("expired").await.unwrap().is_confirmed());
    let other = cache(&provider);
    for (key, value) in [("k", Some("loaded")), ("updated", Some("updated")), ("expired", None)] {
        assert_eq!(other.get(key).await.unwrap().as_deref().map(String::as_str), value, "{key}");
        assert_eq!(large.get(key).await.unwrap().as_deref().map(String::as_str), value, "{key}");
    }
    let faults: u64 = small.stats().levels[0].faults.iter().map(|(_, n)| n).sum();
    assert_eq!(faults, 0);
}

/// What somebody has put in its place is no mark, whatever its size: the next one takes its place.
async fn a_mark_is_replaced(provider: impl Fn(usize) -> Arc<dyn CacheProvider>) {
    let (key, bytes) = (RawKey::marker(CacheId(1), "sizes"), vec![b'x'; LARGE].into());
    provider(2 * LARGE).put(Put { key, bytes, ttl: Duration::MAX }).await.unwrap();
    let small = cache(&provider(SMALL));
    assert!(small.set("k", "v".to_owned()).await.unwrap().is_confirmed());
    let other = cache(&provider(SMALL));
    assert_eq!(other.get("k").await.unwrap().as_deref().map(String::as_str), Some("v"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_redis() {
    let Some(server) = RedisServer::start() else { return };
    let provider = |most| RedisProvider::builder(server.url()).value_max(most).build().unwrap();
    costs_its_own_key_only(|most| Arc::new(provider(most))).await;
    a_mark_is_replaced(|most| Arc::new(provider(most))).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_memcached() {
    let Some(server) = MemcachedServer::builder().args(["-I", "8m"]).start() else { return };
    let provider = |most| MemcachedProvider::builder(server.url()).value_max(most).build().unwrap();
    costs_its_own_key_only(|most| Arc::new(provider(most))).await;
    a_mark_is_replaced(|most| Arc::new(provider(most))).await;
}
