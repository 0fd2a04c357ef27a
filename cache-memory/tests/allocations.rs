//! What a hit and an entry cost in memory. A binary of its own: it replaces the allocator.

use std::{sync::Arc, time::Duration};

use allocation_counter::measure;
use cache_core::{CacheId, CacheProvider, Clock, Object, RawKey, Timeline};
use cache_memory::{Engine, Memory};

const HITS: u64 = 20_000;

#[test]
fn a_hit_allocates_nothing_of_ours() {
    for (engine, on) in [(Engine::Quick, true), (Engine::Moka, true), (Engine::Moka, false)] {
        let store = Memory::entries(1_000).engine(engine).engine_expiry(on).in_process().unwrap();
        let now = Clock::system().now();
        let timeline = Timeline::new(now, Duration::from_secs(3600), Duration::from_secs(3600));
        let ids: Vec<String> = (0..100).map(|n| format!("user:{n}:a-key-of-some-length")).collect();
        let keys: Vec<RawKey<'_>> = ids.iter().map(|id| RawKey::new(CacheId(1), "users", id)).collect();
        for key in &keys {
            store.put(*key, Object::for_tests(Arc::new(1u8), timeline, 0), now);
        }
        let mut found = 0;
        let info = measure(|| {
            for n in 0..HITS {
                found += u64::from(store.get(keys[usize::try_from(n).unwrap() % keys.len()]).is_some());
            }
        });
        assert_eq!(found, HITS);
        // moka records reads in batches, and now and then allocates for one.
        let most = if engine == Engine::Moka { HITS / 20 } else { 0 };
        assert!(
            info.count_total <= most,
            "{} allocations in {HITS} hits, {engine}, engine expiry {on}",
            info.count_total
        );
    }
}

#[test]
fn the_stated_overhead_is_about_what_an_entry_takes() {
    const ENTRIES: u32 = 20_000;
    let now = Clock::system().now();
    let timeline = Timeline::new(now, Duration::from_secs(3600), Duration::from_secs(3600));
    let value: Arc<u8> = Arc::new(1);
    for engine in Engine::ALL {
        let info = measure(|| {
            let memory = Memory::bytes(1 << 30).engine(engine);
            let store = memory.in_process().unwrap();
            for n in 0..ENTRIES {
                let value: Arc<u8> = Arc::clone(&value);
                store.put(
                    RawKey::new(CacheId(1), "users", &format!("{n:08}")),
                    Object::for_tests(value, timeline, 0),
                    now,
                );
            }
            memory.maintain();
            // Kept, so that what is still allocated at the end is what the entries take.
            std::mem::forget(store);
            std::mem::forget(memory);
        });
        let per_entry = info.bytes_current / i64::from(ENTRIES) - 8;
        println!("{engine}: {per_entry} bytes an entry");
        let stated = i64::from(engine.entry_overhead());
        assert!(
            (stated * 7 / 10..=stated * 13 / 10).contains(&per_entry),
            "{engine}: {per_entry} against {stated}"
        );
    }
}
