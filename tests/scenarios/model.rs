//! Random sequences of calls against a model so simple that it is plainly right.

use std::{collections::HashMap, sync::Arc, time::Duration};

use proptest::prelude::*;
use traced_cache::{Access, Clock, ErrorKind, Level, Outcome, Policy, TracedCache, testing::Shelf};

use crate::{
    kit::{self, Loads, MS},
    stacks,
    stores::MapProvider,
};

const TTL: u64 = 100;
const GRACE: u64 = 300;
const ABSENT_TTL: u64 = 50;

#[derive(Clone, Debug)]
enum Op {
    Get(u8),
    GetStale(u8),
    GetMany(Vec<u8>),
    Load(u8, u64),
    LoadAbsent(u8),
    LoadFails(u8),
    LoadMany(Vec<u8>, u64),
    Refresh(u8, u64),
    Set(u8, u64),
    Invalidate(u8),
    Clear,
    Advance(u64),
    Evict(u8),
}

fn op() -> impl Strategy<Value = Op> {
    let key = || 0..3_u8;
    let keys = || prop::collection::vec(key(), 0..4);
    prop_oneof![
        4 => key().prop_map(Op::Get),
        2 => key().prop_map(Op::GetStale),
        1 => keys().prop_map(Op::GetMany),
        4 => (key(), any::<u64>()).prop_map(|(k, v)| Op::Load(k, v)),
        2 => key().prop_map(Op::LoadAbsent),
        3 => key().prop_map(Op::LoadFails),
        1 => (keys(), any::<u64>()).prop_map(|(k, v)| Op::LoadMany(k, v)),
        1 => (key(), any::<u64>()).prop_map(|(k, v)| Op::Refresh(k, v)),
        3 => (key(), any::<u64>()).prop_map(|(k, v)| Op::Set(k, v)),
        2 => key().prop_map(Op::Invalidate),
        1 => Just(Op::Clear),
        5 => prop_oneof![Just(1), Just(10), Just(49), Just(50), Just(99), Just(100), 0..400_u64].prop_map(Op::Advance),
        2 => key().prop_map(Op::Evict),
    ]
}

/// Times are milliseconds since the beginning.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Entry {
    value: Option<u64>,
    born: u64,
    /// After a failed refresh.
    retry_at: u64,
}

impl Entry {
    fn fresh_until(&self) -> u64 {
        self.born + if self.value.is_some() { TTL } else { ABSENT_TTL }
    }

    fn usable_until(&self) -> u64 {
        if self.value.is_some() { self.born + GRACE } else { self.fresh_until() }
    }
}

#[derive(Default)]
struct Model {
    now: u64,
    throttle: u64,
    near: HashMap<u8, Entry>,
    /// `None`: no second level.
    far: Option<HashMap<u8, Entry>>,
}

type Seen = (Option<u64>, Outcome, Option<usize>);

const MISS: Seen = (None, Outcome::Miss, None);

impl Model {
    /// A fresh entry and its level; fills the first level from the second.
    fn fresh(&mut self, key: u8) -> Option<(Entry, usize)> {
        let now = self.now;
        let near = self.near.get(&key).filter(|e| now < e.fresh_until()).copied();
        if let Some(entry) = near {
            return Some((entry, 0));
        }
        let entry = *self.far.as_ref()?.get(&key).filter(|e| now < e.fresh_until())?;
        self.near.insert(key, entry);
        Some((entry, 1))
    }

    fn stale(&self, key: u8) -> Option<(Entry, usize)> {
        let usable = |e: &&Entry| self.now < e.usable_until();
        let near = self.near.get(&key).filter(usable).map(|e| (*e, 0));
        near.or_else(|| self.far.as_ref()?.get(&key).filter(usable).map(|e| (*e, 1)))
    }

    fn get(&mut self, key: u8, stale_too: bool) -> Seen {
        if let Some((entry, level)) = self.fresh(key) {
            let outcome = if entry.value.is_some() { Outcome::Hit } else { Outcome::Absent };
            return (entry.value, outcome, Some(level));
        }
        match self.stale(key) {
            Some((entry, level)) if stale_too => (entry.value, Outcome::Stale, Some(level)),
            _ => MISS,
        }
    }

    fn store(&mut self, key: u8, value: Option<u64>) {
        let entry = Entry { value, born: self.now, retry_at: 0 };
        self.near.insert(key, entry);
        if let Some(far) = &mut self.far {
            far.insert(key, entry);
        }
    }

    fn remove(&mut self, key: u8) {
        self.near.remove(&key);
        if let Some(far) = &mut self.far {
            far.remove(&key);
        }
    }

    /// `None`: the load's error comes out.
    fn get_or_set(&mut self, key: u8, answer: Result<Option<u64>, ()>) -> Option<Seen> {
        if let Some((entry, level)) = self.fresh(key) {
            let outcome = if entry.value.is_some() { Outcome::Hit } else { Outcome::Absent };
            return Some((entry.value, outcome, Some(level)));
        }
        let stale = self.stale(key);
        if let Some((entry, level)) = stale
            && self.now < entry.retry_at
        {
            return Some((entry.value, Outcome::Stale, Some(level)));
        }
        match (answer, stale) {
            (Ok(value), _) => {
                self.store(key, value);
                Some((value, Outcome::Loaded, None))
            }
            (Err(()), Some((entry, level))) => {
                if self.throttle > 0 {
                    self.near.insert(key, Entry { retry_at: self.now + self.throttle, ..entry });
                }
                Some((entry.value, Outcome::Stale, Some(level)))
            }
            (Err(()), None) => None,
        }
    }
}

struct Real {
    cache: TracedCache<u64>,
    shelf: Shelf,
}

fn seen(found: &traced_cache::Found<u64>) -> Seen {
    (found.value().map(|v| **v), found.outcome(), found.level())
}

async fn agree(model: &mut Model, real: &Real, time: &traced_cache::Time, op: &Op) -> u64 {
    let Real { cache, shelf } = real;
    let loads = Loads::default();
    match op {
        Op::Get(key) => {
            assert_eq!(seen(&cache.look(*key).await.unwrap()), model.get(*key, false));
            1
        }
        Op::GetStale(key) => {
            let found = cache.access(Access::AllowStale).look(*key).await.unwrap();
            assert_eq!(seen(&found), model.get(*key, true));
            1
        }
        Op::GetMany(keys) => {
            let found = cache.get_many(keys).await.unwrap();
            let expected: Vec<_> = keys.iter().map(|key| model.get(*key, false).0).collect();
            assert_eq!(found.into_iter().map(|v| v.map(|v| *v)).collect::<Vec<_>>(), expected);
            keys.len() as u64
        }
        Op::Load(key, value) => {
            let found = kit::look(cache, *key, &loads, *value).await;
            assert_eq!(Some(seen(&found)), model.get_or_set(*key, Ok(Some(*value))));
            1
        }
        Op::LoadAbsent(key) => {
            let found = kit::absent(cache, *key, &loads).await;
            assert_eq!(Some(seen(&found)), model.get_or_set(*key, Ok(None)));
            1
        }
        Op::LoadFails(key) => {
            let found = kit::fail(cache, *key, &loads).await;
            let expected = model.get_or_set(*key, Err(()));
            match found {
                Ok(found) => assert_eq!(Some(seen(&found)), expected),
                Err(error) => assert_eq!((error.kind(), expected), (ErrorKind::Load, None)),
            }
            1
        }
        Op::LoadMany(keys, value) => {
            let load = |value: u64, ids: Vec<u8>| async move {
                traced_cache::ok(ids.into_iter().map(|id| (id, value)).collect::<Vec<_>>())
            };
            let found = cache.get_or_set_many(keys.clone(), value, load).await.unwrap();
            let expected: Vec<_> = keys
                .iter()
                .map(|key| model.get_or_set(*key, Ok(Some(*value))).and_then(|seen| seen.0))
                .collect();
            assert_eq!(found.into_iter().map(|v| v.map(|v| *v)).collect::<Vec<_>>(), expected);
            keys.len() as u64
        }
        Op::Refresh(key, value) => {
            let load = |value: u64, _| async move { traced_cache::ok(value) };
            assert_eq!(*cache.refresh(*key, value, load).await.unwrap(), *value);
            model.store(*key, Some(*value));
            1
        }
        Op::Set(key, value) => {
            kit::set(cache, *key, *value).await;
            model.store(*key, Some(*value));
            0
        }
        Op::Invalidate(key) => {
            kit::invalidate(cache, *key).await;
            model.remove(*key);
            0
        }
        Op::Clear => {
            assert!(cache.clear().await.unwrap().is_confirmed());
            (0..3).for_each(|key| model.remove(key));
            0
        }
        Op::Advance(by) => {
            time.advance(Duration::from_millis(*by));
            model.now += by;
            0
        }
        Op::Evict(key) => {
            shelf.evict(&key.to_string());
            model.near.remove(key);
            0
        }
    }
}

fn run(ops: &[Op], throttle: u64, second: Option<Level>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let (clock, time) = Clock::manual();
        let shelf = Shelf::default();
        let mut builder = TracedCache::<u64>::builder("model").clock(clock).level(shelf.clone()).policy(
            Policy::ttl(Duration::from_millis(TTL))
                .grace(Duration::from_millis(GRACE))
                .absent_ttl(Duration::from_millis(ABSENT_TTL))
                .throttle(Duration::from_millis(throttle)),
        );
        let far = second.as_ref().map(|_| HashMap::new());
        if let Some(second) = second {
            builder = builder.level(second);
        }
        let real = Real { cache: builder.build().unwrap(), shelf };
        let mut model = Model { throttle, far, ..Model::default() };
        let mut lookups = 0;
        for op in ops {
            lookups += kit::patient(agree(&mut model, &real, &time, op)).await;
            assert_eq!(real.cache.stats().lookups(), lookups, "{op:?}");
        }
        assert_eq!(real.cache.stats().flights, 0);
    });
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(300) })]

    #[test]
    fn memory_agrees_with_the_model(ops in prop::collection::vec(op(), 1..60), throttled: bool) {
        run(&ops, if throttled { 30 } else { 0 }, None);
    }

    #[test]
    fn two_levels_agree_with_the_model(ops in prop::collection::vec(op(), 1..60), throttled: bool) {
        run(&ops, if throttled { 30 } else { 0 }, Some(stacks::level(MapProvider::new())));
    }

    #[test]
    fn packed_payloads_agree_with_the_model(ops in prop::collection::vec(op(), 1..60), throttled: bool) {
        run(&ops, if throttled { 30 } else { 0 }, Some(stacks::packed(MapProvider::new())));
    }
}

/// Threads of their own, real time in the scheduler: whatever the interleaving, a get after a set by the same caller on
/// keys of its own gives what was set.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn callers_with_keys_of_their_own_read_what_they_wrote() {
    for stack in stacks::local().chain(stacks::all()) {
        let cache = Arc::new(stack.plain::<u64>());
        let callers: Vec<_> = (0..4_u64)
            .map(|caller| {
                let cache = Arc::clone(&cache);
                tokio::spawn(async move {
                    for n in 0..50_u64 {
                        let key = (caller, n % 5);
                        kit::set(&cache, key, n).await;
                        assert_eq!(kit::get(&cache, key).await, Some(n));
                        if n % 3 == 0 {
                            kit::invalidate(&cache, key).await;
                            assert_eq!(kit::get(&cache, key).await, None);
                        }
                    }
                })
            })
            .collect();
        for caller in callers {
            kit::patient(caller).await.unwrap();
        }
        stack.time.advance(MS);
    }
}
