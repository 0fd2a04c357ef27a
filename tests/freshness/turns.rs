//! Writers of a key take turns at remote levels, and who stalls in its turn loses it.

use std::{
    future::Future,
    pin::Pin,
    sync::{Arc, Barrier},
    thread,
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use futures::poll;
use serde::{Deserialize, Serialize, Serializer};
use tokio::task::JoinHandle;
use traced_cache::{
    Backplane, BoxError, Clock, Delivery, Level, Listener, Policy, Result, TracedCache, Value, ok,
    testing::{Chaos, Fault, MapProvider},
};

use crate::world::*;

type Call<'a> = Pin<Box<dyn Future<Output = Result<Delivery>> + Send + 'a>>;

fn policy() -> Policy {
    Policy::ttl(100 * S).grace(1_000 * S)
}

/// Writes of a key, by the value that they leave.
fn writes(cache: &TracedCache<String>) -> Vec<(&'static str, Call<'_>)> {
    vec![
        ("set", Box::pin(cache.set("k", "late".to_owned()))),
        ("set_many", Box::pin(cache.set_many([("j", "late".to_owned()), ("k", "late".to_owned())]))),
        ("invalidate", Box::pin(cache.invalidate("k"))),
        ("expire", Box::pin(cache.expire("k"))),
    ]
}

/// Levels that writers take turns at, with and without leases.
fn levels(world: &World) -> [Arc<Chaos<MapProvider>>; 2] {
    [world.leasing(), Arc::clone(&world.l2)]
}

async fn stored(l2: &Arc<Chaos<MapProvider>>, world: &World) -> Option<String> {
    let peer = world.builder(policy()).level(Arc::clone(l2)).build().unwrap();
    peer.get("k").await.unwrap().map(|value| value.to_string())
}

fn setting<T: Value + From<String>>(cache: &TracedCache<T>, value: &str) -> JoinHandle<Result<Delivery>> {
    let (cache, value) = (cache.clone(), T::from(value.to_owned()));
    tokio::spawn(async move { cache.set("k", value).await })
}

fn invalidating<T: Value>(cache: &TracedCache<T>) -> JoinHandle<Result<Delivery>> {
    let cache = cache.clone();
    tokio::spawn(async move { cache.invalidate("k").await })
}

/// Begins a call, and leaves it when it is on its way to the level.
async fn stall<F: Future + Unpin>(l2: &Chaos<MapProvider>, call: &mut F) {
    l2.set_all(Fault::Delay(MS));
    assert!(poll!(call).is_pending());
    l2.set_all(Fault::None);
}

async fn ended<R>(world: &World, call: JoinHandle<R>) -> R {
    for _ in 0..20 {
        world.pass(S / 4).await;
    }
    assert!(call.is_finished(), "it waits for a writer that nobody polls");
    call.await.unwrap()
}

#[tokio::test]
async fn a_writer_that_stalls_keeps_no_other_waiting_and_its_value_does_not_come_after_theirs() {
    for (leasing, verb) in (0..2).flat_map(|level| (0..4).map(move |verb| (level, verb))) {
        let world = World::new();
        let l2 = Arc::clone(&levels(&world)[leasing]);
        let cache = world.node_at(policy(), &l2);
        confirmed(cache.set("k", "old".to_owned()).await);
        let (name, mut stalled) = writes(&cache).remove(verb);
        stall(&l2, &mut stalled).await;

        let call = setting(&cache, "new");
        assert_eq!(
            ended(&world, call).await.unwrap(),
            Delivery::Pending,
            "{name}: what it sent may arrive yet"
        );
        assert_eq!((cache.stats().pending, stored(&l2, &world).await), (0, None), "{name}: it hears of that");
        confirmed(cache.set("k", "newest".to_owned()).await);
        assert_eq!(stored(&l2, &world).await.as_deref(), Some("newest"));

        // It goes on where it was: its turn is over.
        assert_eq!(stalled.await.unwrap(), Delivery::Pending, "{name}");
        assert_ne!(stored(&l2, &world).await.as_deref(), Some("late"), "{name} at level {leasing}");
        world.pass(S).await;
        let found = cache.get("k").await.unwrap();
        assert_ne!(found.as_deref().map(String::as_str), Some("late"), "{name}");
        confirmed(cache.set("k", "last".to_owned()).await);
        assert_eq!(stored(&l2, &world).await.as_deref(), Some("last"), "{name}");
    }
}

/// The other keys of its batch wait for their own writers, and are not stored after those, either.
#[tokio::test]
async fn of_a_batch_that_stalls_each_key_is_passed_over_on_its_own() {
    let world = World::new();
    let cache = world.node(policy());
    confirmed(cache.set("k", "old".to_owned()).await);
    let items = ["a", "k", "z"].map(|key| (key, "late".to_owned()));
    let mut stalled = Box::pin(cache.set_many(items));
    stall(&world.l2, &mut stalled).await;
    assert_eq!(ended(&world, setting(&cache, "new")).await.unwrap(), Delivery::Pending);
    assert_eq!(stalled.await.unwrap(), Delivery::Pending);
    world.pass(S).await;
    let peer = world.bare(policy());
    for key in ["a", "k", "z"] {
        assert_ne!(peer.get(key).await.unwrap().as_deref().map(String::as_str), Some("late"), "{key}");
    }
}

/// Who waits for its turn may stall, too, when it has been given it.
#[tokio::test]
async fn a_writer_that_stalls_in_the_line_keeps_no_other_waiting() {
    let world = World::new();
    let cache = world.node(policy());
    world.l2.set_all(Fault::Delay(MS));
    let mut first = Box::pin(cache.set("k", "1".to_owned()));
    assert!(poll!(&mut first).is_pending());
    let mut second = Box::pin(cache.set("k", "2".to_owned()));
    assert!(poll!(&mut second).is_pending());
    world.l2.set_all(Fault::None);
    let third = setting(&cache, "3");
    settled().await;
    drop(first);
    assert_eq!(ended(&world, third).await.unwrap(), Delivery::Pending);
    world.pass(S).await;
    // It waits for a new turn, and has that.
    confirmed(second.await);
    assert_eq!(stored(&world.l2, &world).await.as_deref(), Some("2"));
}

#[tokio::test]
async fn a_writer_that_is_slow_keeps_its_turn() {
    let world = World::new();
    let cache = world.node(policy());
    world.l2.set_all(Fault::Delay(200 * MS));
    let calls: Vec<_> = (0..20).map(|n| setting(&cache, &n.to_string())).collect();
    for _ in 0..20 * 8 {
        world.pass(50 * MS).await;
    }
    for call in calls {
        assert!(call.is_finished());
        confirmed(call.await.unwrap());
    }
    world.l2.set_all(Fault::None);
    assert_eq!(stored(&world.l2, &world).await.as_deref(), Some("19"));
}

/// Of two keys it has the turn at one and waits at the other: who waits for the first sees that it is alive.
#[tokio::test]
async fn a_batch_that_waits_for_one_of_its_keys_keeps_its_turn_at_the_others() {
    let world = World::new();
    let cache = world.node(policy());
    world.l2.set_all(Fault::Delay(200 * MS));
    let mut calls: Vec<_> = (0..10)
        .map(|n| {
            let cache = cache.clone();
            tokio::spawn(async move { cache.set("z", n.to_string()).await })
        })
        .collect();
    settled().await;
    calls.push(tokio::spawn({
        let cache = cache.clone();
        async move { cache.set_many([("k", "both".to_owned()), ("z", "both".to_owned())]).await }
    }));
    settled().await;
    calls.push(setting(&cache, "last"));
    for _ in 0..20 * 4 {
        world.pass(50 * MS).await;
    }
    for call in calls {
        confirmed(call.await.unwrap());
    }
    world.l2.set_all(Fault::None);
    assert_eq!(stored(&world.l2, &world).await.as_deref(), Some("last"));
}

/// Changing a value is the user's code, and runs as a task.
#[tokio::test]
async fn an_update_keeps_its_turn_however_long_it_takes() {
    for level in 0..2 {
        let world = World::new();
        let l2 = Arc::clone(&levels(&world)[level]);
        let cache = world.node_at(policy(), &l2);
        confirmed(cache.set("k", "1".to_owned()).await);
        let clock = world.clock.clone();
        let updating = tokio::spawn({
            let cache = cache.clone();
            async move {
                let change = |clock: traced_cache::Clock, _, seen: Option<Arc<String>>| async move {
                    clock.sleep(20 * S).await;
                    ok(format!("{}+", seen.as_deref().map_or("", String::as_str)))
                };
                cache.update("k", &clock, change).await
            }
        });
        world.pass(S).await;
        let invalidating = invalidating(&cache);
        for _ in 0..15 {
            world.pass(S).await;
        }
        assert!(!invalidating.is_finished(), "it waits for its turn");
        for _ in 0..10 {
            world.pass(S).await;
        }
        confirmed(invalidating.await.unwrap());
        assert_eq!(*updating.await.unwrap().unwrap().value, "1+");
        assert_eq!(stored(&l2, &world).await, None);
    }
}

/// A value on its way to a background level, and a fill of one, are tasks of a runtime that may stand still.
#[test]
fn a_value_behind_whose_runtime_stands_still_keeps_no_writer_waiting() {
    for load in [false, true] {
        let (idle, driven) = (runtime(), runtime());
        let world = World::new();
        let cache = world.node_with(policy(), |level| level.background(true));
        // On its way when its runtime stops.
        idle.block_on(async {
            assert_eq!(cache.get("k").await.unwrap(), None);
            if load {
                let l2 = Arc::clone(&world.l2);
                let slow = move || async move {
                    l2.set_all(Fault::Delay(MS));
                    ok("late".to_owned())
                };
                assert_eq!(*cache.get_or_set("k", slow).await.unwrap(), "late");
            } else {
                world.l2.set_all(Fault::Delay(MS));
                assert_eq!(cache.set("k", "late".to_owned()).await.unwrap(), Delivery::Pending);
            }
            settled().await;
            world.l2.set_all(Fault::None);
        });
        driven.block_on(async {
            assert_eq!(ended(&world, invalidating(&cache)).await.unwrap(), Delivery::Pending);
        });
        idle.block_on(settled());
        driven.block_on(async {
            world.pass(S).await;
            assert_eq!(stored(&world.l2, &world).await, None, "load: {load}");
        });
    }
}

/// The load was overtaken by it, and has nothing more to say to the level when its runtime goes on.
#[test]
fn an_update_that_took_the_turn_of_a_load_stays() {
    for background in [false, true] {
        let (idle, driven) = (runtime(), runtime());
        let world = World::new();
        let cache = world.node_with(policy(), |level| level.background(background));
        // On its way to the level when its runtime stops.
        idle.block_on(async {
            assert_eq!(cache.get("k").await.unwrap(), None);
            let l2 = Arc::clone(&world.l2);
            let slow = move || async move {
                l2.set_all(Fault::Delay(MS));
                ok("late".to_owned())
            };
            let loading = cache.clone();
            drop(tokio::spawn(async move { loading.get_or_set("k", slow).await.map(drop) }));
            settled().await;
            world.l2.set_all(Fault::None);
        });
        let updated = |value: &'static str| {
            driven.block_on(async {
                let update = tokio::spawn({
                    let cache = cache.clone();
                    async move {
                        let change = |(), _, seen: Option<Arc<String>>| async move {
                            ok(format!("{}+", seen.as_deref().map_or("", String::as_str)))
                        };
                        cache.update("k", &(), change).await
                    }
                });
                assert_eq!(*ended(&world, update).await.unwrap().value, value, "background: {background}");
            });
        };
        updated("+");
        idle.block_on(settled());
        driven.block_on(world.pass(S));
        updated("++");
    }
}

/// Whose level has a budget of its own.
#[tokio::test]
async fn a_turn_may_take_what_the_levels_budgets_allow() {
    let world = World::new();
    let l2 = Level::new(Arc::clone(&world.l2)).budget(10 * S).breaker(None);
    let cache = world.builder(policy()).level(memory()).level(l2).build().unwrap();
    world.l2.set_all(Fault::Delay(9 * S));
    let (first, second) = (setting(&cache, "1"), setting(&cache, "2"));
    for _ in 0..60 {
        world.pass(S).await;
    }
    confirmed(first.await.unwrap());
    confirmed(second.await.unwrap());
}

/// A channel that takes its time for each message.
struct Steady(Clock, Duration);

#[async_trait]
impl Backplane for Steady {
    async fn publish(&self, _: &str, _: Bytes) -> std::result::Result<(), BoxError> {
        self.0.sleep(self.1).await;
        Ok(())
    }

    fn subscribe(&self, _: &str, _: Arc<dyn Listener>) {}
}

/// A message may take longer than a level, and those of a large batch longer than one.
#[tokio::test]
async fn a_writer_that_tells_other_nodes_keeps_its_turn() {
    for (budget, takes, keys) in [(S / 20, S / 5, 1), (S / 4, S / 10, 3_000)] {
        let world = World::new();
        let l2 = Level::new(Arc::clone(&world.l2)).budget(budget);
        let plane = Steady(world.clock.clone(), takes);
        let cache = world.builder(policy()).level(memory()).level(l2).backplane(plane).build().unwrap();
        let first = tokio::spawn({
            let cache = cache.clone();
            async move {
                cache
                    .set_many(
                        (0..keys)
                            .map(|n| (if n == 0 { "k".to_owned() } else { n.to_string() }, "1".to_owned())),
                    )
                    .await
            }
        });
        settled().await;
        let second = setting(&cache, "2");
        for _ in 0..200 {
            world.pass(S / 100).await;
        }
        confirmed(first.await.unwrap());
        confirmed(second.await.unwrap());
        assert_eq!(stored(&world.l2, &world).await.as_deref(), Some("2"), "{keys} keys");
    }
}

/// A value that is encoded when the test says so.
#[derive(Clone, Deserialize)]
#[serde(from = "String")]
struct Paced(String, Option<Arc<Barrier>>);

impl From<String> for Paced {
    fn from(text: String) -> Self {
        Self(text, None)
    }
}

impl Serialize for Paced {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        if let Some(pace) = &self.1 {
            // It has begun, and is to go on.
            pace.wait();
            pace.wait();
        }
        serializer.serialize_str(&self.0)
    }
}

/// Memory in front of the shared level.
fn paced(world: &World) -> TracedCache<Paced> {
    let builder = TracedCache::builder("things").policy(policy()).clock(world.clock.clone());
    builder.level(memory()).level(Arc::clone(&world.l2)).build().unwrap()
}

fn drive<R: Send + 'static>(work: impl Future<Output = R> + Send + 'static) -> thread::JoinHandle<R> {
    let runtime = runtime();
    thread::spawn(move || runtime.block_on(work))
}

/// Nor is it sent by the poll in which its turn was lost.
#[tokio::test]
async fn a_load_that_is_encoded_for_too_long_does_not_come_after_what_has_overtaken_it() {
    let world = World::new();
    let cache = paced(&world);
    confirmed(cache.set("other", Paced::from("1".to_owned())).await);
    let pace = Arc::new(Barrier::new(2));
    let loading = drive({
        let (cache, loaded) = (cache.clone(), Paced("stale".to_owned(), Some(Arc::clone(&pace))));
        async move { cache.get_or_set("k", move || async move { ok(loaded) }).await }
    });
    pace.wait();
    let invalidating = invalidating(&cache);
    assert_eq!(ended(&world, invalidating).await.unwrap(), Delivery::Pending);
    confirmed(cache.invalidate("k").await);
    pace.wait();
    assert_eq!(loading.join().unwrap().unwrap().0, "stale");
    assert_eq!(stored(&world.l2, &world).await, None);
}

/// Where its turn was lost, a journal with all of its keys would end up as a `clear` of the cache.
#[tokio::test]
async fn a_batch_that_is_being_encoded_keeps_its_turns() {
    let world = World::new();
    let cache = paced(&world);
    confirmed(cache.set("other", Paced::from("1".to_owned())).await);
    let pace = Arc::new(Barrier::new(2));
    let batch = drive({
        let (cache, pace) = (cache.clone(), Arc::clone(&pace));
        async move {
            let keys = ["k", "l", "m", "n", "o", "p", "q", "r"];
            cache.set_many(keys.map(|key| (key, Paced("1".to_owned(), Some(Arc::clone(&pace)))))).await
        }
    });
    pace.wait();
    let second = setting(&cache, "2");
    for _ in 0..7 {
        world.pass(S / 4).await;
        pace.wait();
        pace.wait();
    }
    pace.wait();
    confirmed(batch.join().unwrap());
    confirmed(ended(&world, second).await);
    assert_eq!(stored(&world.l2, &world).await.as_deref(), Some("2"));
}

/// A caller that nobody polls says nothing about the level.
#[tokio::test]
async fn a_writer_that_lost_its_turn_is_no_failure_of_the_level() {
    let world = World::new();
    let cache = world.node(policy());
    let keys = ["a", "b", "c", "d", "e", "f"];
    world.l2.set_all(Fault::Delay(MS));
    let mut stalled: Vec<_> = keys.iter().map(|key| Box::pin(cache.set(*key, "late".to_owned()))).collect();
    for call in &mut stalled {
        assert!(poll!(call).is_pending());
    }
    world.l2.set_all(Fault::None);
    for key in keys {
        let cache = cache.clone();
        tokio::spawn(async move { cache.set(key, "new".to_owned()).await });
    }
    // Until what went well is out of the breaker's window.
    for _ in 0..20 {
        world.pass(S).await;
    }
    for call in stalled {
        assert_eq!(call.await.unwrap(), Delivery::Pending);
    }
    assert_eq!(world.breaker_events(), []);
    world.pass(S).await;
    confirmed(cache.set("a", "newest".to_owned()).await);
}

/// It counts as dropped: readers do not load for ever because of it.
#[tokio::test]
async fn a_writer_that_lost_its_turn_keeps_nobody_from_storing_what_is_loaded() {
    for (level, verb) in (0..2).flat_map(|level| (0..4).map(move |verb| (level, verb))) {
        let world = World::new();
        let l2 = Arc::clone(&levels(&world)[level]);
        let cache = world.node_at(policy(), &l2);
        confirmed(cache.set("k", "old".to_owned()).await);
        let (name, mut stalled) = writes(&cache).remove(verb);
        stall(&l2, &mut stalled).await;
        let invalidating = invalidating(&cache);
        assert_eq!(ended(&world, invalidating).await.unwrap(), Delivery::Pending);
        let db = world.db();
        for _ in 0..10 {
            ask(&cache, &db).await.unwrap();
        }
        assert_eq!((db.loads(), stored(&l2, &world).await.as_deref()), (1, Some("1")), "{name}");

        // When it goes on, what it finds is not what it has left.
        assert_eq!(stalled.await.unwrap(), Delivery::Pending);
        world.pass(S).await;
        assert_ne!(look(&cache).await.unwrap().1.as_deref(), Some("late"), "{name}");
        ask(&cache, &db).await.unwrap();
        ask(&cache, &db).await.unwrap();
        assert_eq!((db.loads(), stored(&l2, &world).await.as_deref()), (2, Some("1")), "{name}");
    }
}

/// As a `set` that takes over: what was sent may arrive yet, or is taken away with the rest.
#[tokio::test]
async fn an_update_that_takes_a_turn_over_is_not_confirmed() {
    for level in 0..2 {
        let world = World::new();
        let l2 = Arc::clone(&levels(&world)[level]);
        let cache = world.node_at(policy(), &l2);
        confirmed(cache.set("k", "old".to_owned()).await);
        let mut stalled = Box::pin(cache.set("k", "late".to_owned()));
        stall(&l2, &mut stalled).await;
        let updating = tokio::spawn({
            let cache = cache.clone();
            async move { cache.update("k", &(), |(), _, _| async { ok("new".to_owned()) }).await }
        });
        assert_eq!(ended(&world, updating).await.unwrap().delivery, Delivery::Pending);
    }
}
