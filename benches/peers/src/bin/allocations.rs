//! Allocations per hit, as JSON. A program of its own: it replaces the allocator.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use allocation_counter::measure;
use cache_core::{Policy, TracedCache, ok};
use cache_memory::{Engine, Memory};
use cached::ShardedLruCache;
use futures::FutureExt;
use tick::Clock;

const KEYS: usize = 1_000;
const HITS: usize = 100_000;
const HOUR: Duration = Duration::from_secs(3600);

fn main() {
    let keys: Vec<String> = (0..KEYS).map(|n| format!("user:{n:016}")).collect();
    let mut rows: BTreeMap<&str, f64> = BTreeMap::new();
    let mut row = |name, hit: &dyn Fn(&String)| {
        // Whatever a first hit sets up is no part of one.
        keys.iter().for_each(hit);
        let counted = measure(|| keys.iter().cycle().take(HITS).for_each(hit));
        rows.insert(name, counted.count_total as f64 / HITS as f64);
    };
    let own = |engine| {
        let memory = Memory::entries(2 * KEYS as u64).engine(engine);
        let cache = TracedCache::<String>::builder("hits").level(memory).policy(Policy::ttl(HOUR)).build();
        let cache = cache.expect("the settings are right");
        for key in &keys {
            let _ =
                cache.set(key, key.clone()).now_or_never().expect("memory is ready").expect("it takes it");
        }
        cache
    };
    let (quick, moka) = (own(Engine::Quick), own(Engine::Moka));
    row("own, quick", &|key| drop(quick.get(key).now_or_never()));
    row("own, moka", &|key| drop(moka.get(key).now_or_never()));
    let load = |(), key: String| async move { ok(key) };
    row("own, quick, get_or_set", &|key| drop(quick.get_or_set_with(key, &(), load).now_or_never()));

    let raw = moka::sync::Cache::new(2 * KEYS as u64);
    keys.iter().for_each(|key| raw.insert(key.clone(), Arc::new(key.clone())));
    row("raw moka", &|key| drop(raw.get(key)));
    let lru = ShardedLruCache::new(2 * KEYS);
    keys.iter().for_each(|key| drop(lru.set(key.clone(), Arc::new(key.clone()))));
    row("cached sharded lru", &|key| drop(lru.get(key)));
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime can be had");
    let clock = runtime.block_on(async { Clock::new_tokio() });
    let cachet = cachet::Cache::builder::<String, Arc<String>>(clock).memory().ttl(HOUR).build();
    for key in &keys {
        let set = cachet.insert(key.clone(), Arc::new(key.clone())).now_or_never();
        set.expect("memory is ready").expect("it takes it");
    }
    row("cachet", &|key| drop(cachet.get(key).now_or_never()));
    println!("{}", serde_json::to_string(&rows).expect("names and numbers"));
}
