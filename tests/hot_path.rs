//! The hot path: what a hit at the nearest level costs in allocations, and how large the public futures are.
#![allow(clippy::unwrap_used, reason = "helpers of tests fail their test")]

use std::{
    future::pending,
    sync::{
        Arc,
        atomic::{AtomicU16, Ordering},
    },
    time::Duration,
};

use allocation_counter::measure;
use futures::FutureExt;
use tokio::task::yield_now;
use traced_cache::{Memory, Policy, TracedCache, ok};

fn cache() -> TracedCache<String> {
    TracedCache::builder("hot")
        .level(Memory::entries(10_000))
        .policy(Policy::ttl(Duration::from_secs(3600)))
        .build()
        .unwrap()
}

#[tokio::test]
async fn a_hit_allocates_nothing() {
    const HITS: u64 = 20_000;
    let cache = cache();
    let state = Arc::new(());
    for id in 0..100u64 {
        assert!(cache.set(id, id.to_string()).await.unwrap().is_confirmed());
        assert!(cache.set(("user", id), id.to_string()).await.unwrap().is_confirmed());
        assert!(cache.set(format!("user:{id}"), id.to_string()).await.unwrap().is_confirmed());
    }
    let names: Vec<String> = (0..100).map(|id| format!("user:{id}")).collect();
    let mut found = 0;
    let info = measure(|| {
        for n in 0..HITS {
            let id = n % 100;
            // Ready at once: a hit never waits.
            let name = &names[usize::try_from(id).unwrap()];
            found += u64::from(cache.get(id).now_or_never().unwrap().unwrap().is_some());
            found += u64::from(cache.get(name).now_or_never().unwrap().unwrap().is_some());
            found += u64::from(cache.get(("user", id)).now_or_never().unwrap().unwrap().is_some());
            let loaded = cache.get_or_set_with(id, &state, |_, id| async move { ok(id.to_string()) });
            found += u64::from(!loaded.now_or_never().unwrap().unwrap().is_empty());
        }
    });
    assert_eq!(found, 4 * HITS);
    assert_eq!(cache.stats().hits(), 4 * HITS);
    assert_eq!(info.count_total, 0, "allocations in {} hits", 4 * HITS);
}

#[test]
fn futures_are_small() {
    let cache = cache();
    let state = Arc::new(());
    let sizes = [
        ("get", size_of_val(&cache.get(1u64)), 64),
        ("look", size_of_val(&cache.look(1u64)), 64),
        ("get_or_set", size_of_val(&cache.get_or_set(1u64, || async { ok(String::new()) })), 72),
        (
            "get_or_set_with",
            size_of_val(&cache.get_or_set_with(1u64, &state, |_, _| async { ok(String::new()) })),
            72,
        ),
        ("invalidate", size_of_val(&cache.invalidate(1u64)), 96),
    ];
    for (name, size, most) in sizes {
        assert!(
            size <= most,
            "the future of `{name}` has {size} bytes, at most {most} were agreed; all: {sizes:?}"
        );
    }
}

/// Bytes that callers of loads under way take, each for a key of its own: a load with its first caller, and one more caller.
#[test]
fn loads_under_way_are_small() {
    // Many: their average takes most of the chance out of how far tables have grown.
    const KEYS: u16 = 1000;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let cache = cache();
    let begun = Arc::new(AtomicU16::new(0));
    let mut calls = Vec::with_capacity(2 * usize::from(KEYS));
    let mut begin = || {
        let work = async {
            for id in 0..KEYS {
                let load = |begun: Arc<AtomicU16>, _| async move {
                    begun.fetch_add(1, Ordering::Relaxed);
                    pending::<()>().await;
                    ok(String::new())
                };
                let mut call = Box::pin(cache.get_or_set_with(id, &begun, load));
                assert!((&mut call).now_or_never().is_none(), "its load does not end");
                calls.push(call);
            }
            while begun.load(Ordering::Relaxed) < KEYS {
                yield_now().await;
            }
        };
        let info = measure(|| runtime.block_on(work));
        assert_eq!(begun.load(Ordering::Relaxed), KEYS, "all have begun, each once");
        info.bytes_current / i64::from(KEYS)
    };
    let (load, caller) = (begin(), begin());
    // 6,376 to 6,428 in eight runs: hashes are seeded anew in each, and how far the tables of flights have grown differs.
    assert!(load <= 6600, "a load and its caller take {load} bytes");
    assert!(caller <= 2800, "another caller takes {caller} bytes");
}
