//! The object store, driven as a cache drives it.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};

use cache_core::{
    CacheId, CacheProvider, Clock, EvictionCause, Evictions, Moment, Object, ObjectStore, RawKey, Timeline,
};
use cache_memory::{ENTRY_OVERHEAD, Memory};

const CACHE: CacheId = CacheId(7);

fn key(id: &str) -> RawKey<'_> {
    RawKey::new(CACHE, "users", id)
}

fn store(memory: &Memory) -> Arc<dyn ObjectStore> {
    memory.in_process().unwrap()
}

fn object(value: u64, now: Moment, ttl: Duration) -> Object {
    Object::for_tests(Arc::new(value), Timeline::new(now, ttl, ttl), 100)
}

fn until(what: &str, mut done: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(30);
    while !done() {
        assert!(Instant::now() < end, "{what} did not happen");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[derive(Default)]
struct Count {
    expired: AtomicU64,
    size: AtomicU64,
}

impl Evictions for Count {
    fn evicted(&self, _key_hash: u64, cause: EvictionCause) {
        match cause {
            EvictionCause::Expired => self.expired.fetch_add(1, SeqCst),
            EvictionCause::Size => self.size.fetch_add(1, SeqCst),
        };
    }
}

#[test]
fn caches_are_apart_and_replacing_is_no_eviction() {
    let store = store(&Memory::entries(100));
    let counts = Arc::new(Count::default());
    store.attach(CACHE, Arc::<Count>::clone(&counts));
    let now = Clock::system().now();
    let hour = Duration::from_secs(3600);
    store.put(key("42"), object(1, now, hour), now);
    store.put(key("42"), object(2, now, hour), now);
    assert!(store.get(RawKey::new(CacheId(8), "users", "42")).is_none());
    assert_eq!(*store.get(key("42")).unwrap().value::<u64>().unwrap(), 2);
    assert_eq!(store.len(), 1);
    assert!(store.remove(key("42")));
    assert!(!store.remove(key("42")));
    assert!(store.is_empty());
    assert_eq!((counts.size.load(SeqCst), counts.expired.load(SeqCst)), (0, 0));
}

#[test]
fn a_dead_object_replaces_and_is_not_kept() {
    let store = store(&Memory::entries(10));
    let now = Clock::system().now();
    store.put(key("a"), object(1, now, Duration::from_secs(1)), now);
    store.put(key("a"), object(2, now, Duration::from_secs(1)), now.after(Duration::from_secs(1)));
    assert!(store.get(key("a")).is_none());
}

#[test]
fn t_expired_entries_leave_by_themselves_where_asked() {
    let virtual_now = Moment::from_nanos(5);
    for on in [true, false] {
        let memory = Memory::entries(100).engine_expiry(on);
        let store = store(&memory);
        let counts = Arc::new(Count::default());
        store.attach(CACHE, Arc::<Count>::clone(&counts));
        // The clock of the cache is not the engine's: only the remaining life counts.
        store.put(key("short"), object(1, virtual_now, Duration::from_millis(20)), virtual_now);
        store.put(key("long"), object(2, virtual_now, Duration::MAX), virtual_now);
        if on {
            until("expiry", || store.len() == 1);
            assert!(store.get(key("short")).is_none());
            assert_eq!(counts.expired.load(SeqCst), 1);
        } else {
            let start = Instant::now();
            until("time", || start.elapsed() > Duration::from_millis(40));
            assert_eq!(store.len(), 2);
        }
        assert!(store.get(key("long")).is_some());
    }
}

#[test]
fn an_update_takes_the_new_life() {
    let store = store(&Memory::entries(10));
    let now = Clock::system().now();
    store.put(key("a"), object(1, now, Duration::from_secs(3600)), now);
    store.put(key("a"), object(2, now, Duration::from_millis(10)), now);
    until("expiry", || store.get(key("a")).is_none());
}

#[test]
fn z4_ten_times_the_capacity_stays_under_the_bound() {
    const ROOM: u64 = 200;
    let now = Clock::system().now();
    let weight = u64::from(ENTRY_OVERHEAD) + 100 + 5;
    for (memory, bytes) in [(Memory::entries(ROOM), false), (Memory::bytes(ROOM * weight), true)] {
        let store = store(&memory);
        let counts = Arc::new(Count::default());
        store.attach(CACHE, Arc::<Count>::clone(&counts));
        for n in 0..ROOM * 10 {
            store.put(key(&format!("{n:05}")), object(n, now, Duration::MAX), now);
        }
        until("maintenance", || store.len() <= ROOM);
        assert!(store.len() > ROOM / 2, "it still holds something: {}", store.len());
        assert_eq!(store.weighs(), bytes);
        assert_eq!(store.weight(), if bytes { store.len() * weight } else { 0 });
        assert_eq!(counts.size.load(SeqCst), ROOM * 10 - store.len());
    }
}

#[test]
fn c5_clear_frees_for_a_sole_cache_and_spares_others() {
    let memory = Memory::entries(1_000);
    let store = store(&memory);
    let now = Clock::system().now();
    let other = RawKey::new(CacheId(8), "users", "1");
    store.attach(CACHE, Arc::new(Count::default()));
    for n in 0..500 {
        store.put(key(&n.to_string()), object(n, now, Duration::MAX), now);
    }
    store.clear(CACHE);
    assert!(store.get(key("1")).is_none());
    until("sweep", || store.is_empty());

    store.attach(other.cache, Arc::new(Count::default()));
    store.put(other, object(1, now, Duration::MAX), now);
    store.clear(CACHE);
    assert!(store.get(other).is_some());
    store.detach(CACHE);
    assert!(store.get(other).is_some());
    store.detach(other.cache);
    assert!(store.get(other).is_none());
}

#[test]
fn clones_share_one_store() {
    let memory = Memory::entries(10);
    let now = Clock::system().now();
    let twin = memory.clone();
    store(&memory).put(key("a"), object(1, now, Duration::MAX), now);
    assert!(store(&twin).get(key("a")).is_some());
    assert!(store(&memory.engine_expiry(false)).get(key("a")).is_none());
}
