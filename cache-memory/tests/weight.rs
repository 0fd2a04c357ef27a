//! What a cache keeps in memory bounded by bytes counts for what the page of `Memory` says.
#![allow(clippy::unwrap_used, reason = "helpers of tests fail their test")]

use cache_core::TracedCache;
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
