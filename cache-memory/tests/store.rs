//! The object store, driven as a cache drives it.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
    thread,
    time::{Duration, Instant},
};

use bytes::Bytes;
use cache_core::{
    CacheId, CacheProvider, Clock, EvictionCause, Evictions, Moment, Object, ObjectStore, Put, RawKey,
    Timeline,
};
use cache_memory::{Engine, Memory};

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
            other => unreachable!("{other:?}"),
        };
    }
}

#[test]
fn caches_are_apart_and_replacing_is_no_eviction() {
    Engine::ALL.into_iter().for_each(apart);
}

fn apart(engine: Engine) {
    let store = store(&Memory::entries(100).engine(engine));
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
    for engine in Engine::ALL {
        let store = store(&Memory::entries(10).engine(engine));
        let now = Clock::system().now();
        store.put(key("a"), object(1, now, Duration::from_secs(1)), now);
        store.put(key("a"), object(2, now, Duration::from_secs(1)), now.after(Duration::from_secs(1)));
        assert!(store.get(key("a")).is_none());
    }
}

#[test]
fn t_expired_entries_leave_moka_by_themselves_where_asked() {
    let now = Clock::system().now();
    for on in [true, false] {
        let memory = Memory::entries(100).engine(Engine::Moka).engine_expiry(on);
        let store = store(&memory);
        let counts = Arc::new(Count::default());
        store.attach(CACHE, Arc::<Count>::clone(&counts));
        store.put(key("short"), object(1, now, Duration::from_millis(20)), now);
        store.put(key("long"), object(2, now, Duration::MAX), now);
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
fn t_writes_sweep_expired_entries_out_of_quick_where_asked() {
    const SHORT: Duration = Duration::from_millis(1);
    for on in [true, false] {
        let store = store(&Memory::entries(100).engine(Engine::Quick).engine_expiry(on));
        let counts = Arc::new(Count::default());
        store.attach(CACHE, Arc::<Count>::clone(&counts));
        let now = Clock::system().now();
        for n in 0..50 {
            store.put(key(&format!("short {n}")), object(n, now, SHORT), now);
        }
        store.put(key("long"), object(1, now, Duration::MAX), now);
        // Room is left: only time can make them leave.
        for _ in 0..200 {
            store.put(key("again"), object(1, now, Duration::MAX), now.after(SHORT));
        }
        let (expired, size) = (counts.expired.load(SeqCst), counts.size.load(SeqCst));
        assert_eq!((expired, size), if on { (50, 0) } else { (0, 0) });
        assert_eq!(store.len(), if on { 2 } else { 52 });
        assert!(store.get(key("long")).is_some());
    }
}

#[test]
fn t_an_update_counts_for_the_sweep_and_maintenance_does_it_at_once() {
    let memory = Memory::entries(100).engine(Engine::Quick);
    let store = store(&memory);
    let now = Clock::system().now();
    store.put(key("a"), object(1, now, Duration::from_millis(1)), now);
    store.put(key("a"), object(2, now, Duration::MAX), now);
    store.put(key("b"), object(3, now, Duration::from_millis(1)), now);
    until("maintenance", || {
        memory.maintain();
        store.len() == 1
    });
    assert!(store.get(key("a")).is_some());
}

/// With an object under `a` whose time is over by this clock.
fn dead_by_its_clock(engine: Engine) -> (Memory, Arc<dyn ObjectStore>, Clock) {
    let (clock, time) = Clock::manual();
    let memory = Memory::entries(100).engine(engine);
    let store = store(&memory);
    store.put(key("a"), object(1, clock.now(), Duration::from_secs(1)), clock.now());
    time.advance(Duration::from_secs(2));
    (memory, store, clock)
}

#[test]
fn t_on_a_clock_of_its_own_nothing_is_taken_for_dead() {
    for engine in Engine::ALL {
        let (memory, store, clock) = dead_by_its_clock(engine);
        for n in 0..100 {
            store.put(key("b"), object(n, clock.now(), Duration::MAX), clock.now());
        }
        memory.maintain();
        assert!(store.get(key("a")).is_some());
    }
}

/// Nor by the system's, on which bytes beside them are counted.
#[tokio::test]
async fn t_bytes_take_no_object_of_another_clock_for_dead() {
    for engine in Engine::ALL {
        let (memory, store, _) = dead_by_its_clock(engine);
        let bytes = Put { key: key("b"), bytes: Bytes::from_static(b"b"), ttl: Duration::from_secs(60) };
        for _ in 0..200 {
            memory.put_many(std::slice::from_ref(&bytes)).await.remove(0).unwrap();
        }
        assert!(store.get(key("a")).is_some(), "{engine}");
    }
}

#[test]
fn an_update_takes_the_new_life() {
    let store = store(&Memory::entries(10).engine(Engine::Moka));
    let now = Clock::system().now();
    store.put(key("a"), object(1, now, Duration::from_secs(3600)), now);
    store.put(key("a"), object(2, now, Duration::from_millis(10)), now);
    until("expiry", || store.get(key("a")).is_none());
}

#[test]
fn z4_ten_times_the_capacity_stays_under_the_bound() {
    const ROOM: u64 = 200;
    let now = Clock::system().now();
    for engine in Engine::ALL {
        let weight = u64::from(engine.entry_overhead()) + 100 + 5;
        for (memory, bytes) in [(Memory::entries(ROOM), false), (Memory::bytes(ROOM * weight), true)] {
            let store = store(&memory.engine(engine));
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
}

#[test]
fn z4_the_bound_holds_in_a_store_of_many_parts() {
    let now = Clock::system().now();
    for room in [1, 5_000, 100_003] {
        let store = store(&Memory::entries(room));
        for n in 0..2 * room + 10 {
            store.put(key(&n.to_string()), object(n, now, Duration::MAX), now);
            assert!(n % 1_000 != 0 || store.len() <= room);
        }
        // Parts do not fill evenly.
        assert!(store.len() <= room && store.len() >= room * 9 / 10, "{} of {room}", store.len());
    }
}

#[test]
fn the_least_bound_that_is_taken_holds_an_empty_entry() {
    for engine in Engine::ALL {
        let mut all = (1..).map(|bytes| Memory::bytes(bytes).engine(engine));
        let store = store(&all.find(|memory| memory.check().is_ok()).unwrap());
        let now = Clock::system().now();
        let life = Timeline::new(now, Duration::MAX, Duration::MAX);
        store.put(key(""), Object::for_tests(Arc::new(1u8), life, 0), now);
        assert_eq!(store.len(), 1, "{engine}");
    }
}

#[test]
fn an_object_that_is_too_heavy_is_evicted_at_once_and_takes_the_old_one_along() {
    let store = store(&Memory::bytes(10_000).engine(Engine::Quick));
    let counts = Arc::new(Count::default());
    store.attach(CACHE, Arc::<Count>::clone(&counts));
    let now = Clock::system().now();
    let weighing =
        |weight| Object::for_tests(Arc::new(1u8), Timeline::new(now, Duration::MAX, Duration::MAX), weight);
    store.put(key("a"), weighing(100), now);
    store.put(key("a"), weighing(10_001), now);
    assert!(store.get(key("a")).is_none() && store.is_empty());
    // One was replaced, one evicted.
    assert_eq!((counts.size.load(SeqCst), counts.expired.load(SeqCst)), (1, 0));
}

#[test]
fn c5_clear_frees_for_a_sole_cache_and_spares_others() {
    Engine::ALL.into_iter().for_each(cleared);
}

fn cleared(engine: Engine) {
    let memory = Memory::entries(1_000).engine(engine);
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
fn c5_clear_frees_a_large_store_behind() {
    const MANY: u64 = 50_000;
    let store = store(&Memory::entries(2 * MANY).engine(Engine::Quick));
    let now = Clock::system().now();
    let value: Arc<u64> = Arc::new(1);
    store.attach(CACHE, Arc::new(Count::default()));
    for n in 0..MANY {
        let held =
            Object::for_tests(Arc::<u64>::clone(&value), Timeline::new(now, Duration::MAX, Duration::MAX), 0);
        store.put(key(&n.to_string()), held, now);
    }
    store.clear(CACHE);
    assert!(store.is_empty() && store.get(key("1")).is_none());
    store.put(key("1"), object(1, now, Duration::MAX), now);
    until("freeing", || Arc::strong_count(&value) == 1);
    assert!(store.get(key("1")).is_some());
}

/// A value whose end uses the store, as a destructor may.
struct Returns(Arc<dyn ObjectStore>);

impl Drop for Returns {
    fn drop(&mut self) {
        self.0.get(key("other"));
        self.0.remove(key("last words"));
    }
}

#[test]
fn destructors_may_use_the_store() {
    for engine in Engine::ALL {
        let memory = Memory::entries(8).engine(engine);
        let store = store(&memory);
        let now = Clock::system().now();
        let put = |n: u64, life| {
            let value = Arc::new(Returns(Arc::clone(&store)));
            store.put(key(&n.to_string()), Object::for_tests(value, Timeline::new(now, life, life), 0), now);
        };
        put(0, Duration::MAX);
        put(0, Duration::MAX);
        store.remove(key("0"));
        (1..100).for_each(|n| put(n, Duration::MAX));
        (1..100).for_each(|n| put(n, Duration::from_nanos(1)));
        memory.maintain();
        store.attach(CACHE, Arc::new(Count::default()));
        store.clear(CACHE);
        memory.maintain();
    }
}

/// moka frees what it holds while it grows a table, under a lock: destructors that run there must not use it.
#[test]
fn destructors_may_use_a_store_that_many_write_to() {
    let store = store(&Memory::entries(64).engine(Engine::Moka));
    thread::scope(|threads| {
        for thread in 0..4_u64 {
            let store = &store;
            threads.spawn(move || {
                for n in 0..5_000_u64 {
                    let now = Clock::system().now();
                    let value = Arc::new(Returns(Arc::clone(store)));
                    let life = Timeline::new(now, Duration::MAX, Duration::MAX);
                    store.put(key(&format!("{thread}.{n}")), Object::for_tests(value, life, 0), now);
                }
            });
        }
    });
    store.clear(CACHE);
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

/// Whoever means "without bound" must not have a table of all that could come be made.
#[test]
fn a_bound_beyond_all_memory_takes_none_at_once() {
    for engine in Engine::ALL {
        for memory in [Memory::entries(u64::MAX), Memory::bytes(u64::MAX), Memory::entries(1 << 40)] {
            let store = store(&memory.engine(engine));
            let now = Clock::system().now();
            store.put(key("a"), object(1, now, Duration::from_secs(60)), now);
            assert_eq!(*store.get(key("a")).unwrap().value::<u64>().unwrap(), 1);
            assert_eq!(store.len(), 1);
        }
    }
}

/// Asks the store for its numbers when it hears of an eviction, as an observer may.
struct Asks {
    store: std::sync::OnceLock<Arc<dyn ObjectStore>>,
    heard: AtomicU64,
}

impl Evictions for Asks {
    fn evicted(&self, _key_hash: u64, _cause: EvictionCause) {
        if let Some(store) = self.store.get() {
            let _ = (store.len(), store.weight());
            self.heard.fetch_add(1, SeqCst);
        }
    }
}

#[test]
fn whoever_hears_of_an_eviction_may_ask_for_numbers() {
    for engine in Engine::ALL {
        let (told, done) = std::sync::mpsc::channel();
        // In a thread of its own: where this hangs, it hangs for good.
        std::thread::spawn(move || {
            let store = store(&Memory::bytes(100_000).engine(engine));
            let asks = Arc::new(Asks { store: std::sync::OnceLock::new(), heard: AtomicU64::new(0) });
            assert!(asks.store.set(Arc::clone(&store)).is_ok());
            store.attach(CACHE, Arc::clone(&asks) as _);
            let now = Clock::system().now();
            for n in 0..2000 {
                store.put(key(&n.to_string()), object(n, now, Duration::from_secs(60)), now);
            }
            store.len();
            told.send(asks.heard.load(SeqCst)).unwrap();
        });
        let heard = done.recv_timeout(Duration::from_secs(30)).expect("it hangs");
        assert!(heard > 0, "{engine}");
    }
}
