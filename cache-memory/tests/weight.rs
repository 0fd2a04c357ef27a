//! What a cache keeps in memory bounded by bytes counts for what the page of `Memory` says.
#![allow(clippy::unwrap_used, reason = "helpers of tests fail their test")]

use cache_core::{MissReason, TracedCache, ok};
use cache_memory::{Engine, Memory};

/// The value by its weigher or by its encoded size, the key once, and the engine's part.
#[tokio::test]
async fn a_key_counts_once() {
    const KEY: usize = 1000;
    for engine in Engine::ALL {
        for (weigher, value) in [(true, 100), (false, "\"value\"".len())] {
            let builder =
                TracedCache::<String>::builder("weighed").level(Memory::bytes(1 << 20).engine(engine));
            let cache = if weigher { builder.weigher(|_| 100) } else { builder }.build().unwrap();
            let _ = cache.set("k".repeat(KEY), "value".to_owned()).await.unwrap();
            let held = u64::from(engine.entry_overhead()) + (KEY + value) as u64;
            assert_eq!(cache.stats().levels[0].weight, Some(held), "{engine}, a weigher: {weigher}");
        }
    }
}

/// It was there, and room was what it wanted for.
#[tokio::test]
async fn what_is_too_heavy_is_missed_for_want_of_room() {
    for engine in Engine::ALL {
        let memory = Memory::bytes(10_000).engine(engine);
        let cache =
            TracedCache::<u64>::builder("heavy").level(memory.clone()).weigher(|_| 20_000).build().unwrap();
        let _ = cache.set("set", 1).await.unwrap();
        let _ = cache.get_or_set_with("loaded", &(), |(), _| async { ok(1) }).await.unwrap();
        memory.maintain();
        for key in ["set", "loaded"] {
            assert!(cache.get(key).await.unwrap().is_none());
        }
        let stats = cache.stats();
        assert_eq!((stats.levels[0].evicted_size, stats.missed(MissReason::Evicted)), (2, 2), "{engine}");
    }
}
