//! What is written after an invalidation by another node has been heard of stays, although nobody has read yet what the
//! store says of it.

use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use bytes::Bytes;
use futures::FutureExt as _;
use traced_cache::{
    Access, Backplane, BoxError, CacheInfo, Delivery, Event, Level, Listener, Memory, Observer, Outcome,
    TracedCache, WeakCache, ok,
    testing::{Chaos, ChaosOp, Fault, MapProvider},
};

use crate::world::{MS, Node, Source, World, confirmed, done, get, level, policy, saw, set, settled};

#[derive(Clone, Copy, Debug)]
enum By {
    Clear,
    Expire,
    /// Of two tags, the news of the first of which was lost.
    Tags,
}

const ALL: [By; 3] = [By::Clear, By::Expire, By::Tags];

/// Two nodes, of which the second has heard what the first one did.
async fn heard(by: By) -> (World, Node, Node) {
    let world = World::new();
    let (a, b) = (world.node(), world.node());
    set(&b.cache, "k", "old", &["t"]).await;
    happens(by, &a, &b).await;
    (world, a, b)
}

/// The first node does it, and the second one hears of it.
async fn happens(by: By, a: &Node, b: &Node) {
    match by {
        By::Clear => confirmed(a.cache.clear().await),
        By::Expire => confirmed(a.cache.expire_all().await),
        By::Tags => {
            b.link.mute();
            let _ = a.cache.invalidate_tag("u").await.unwrap();
            b.link.unmute();
            confirmed(a.cache.invalidate_tag("t").await);
        }
    }
}

#[tokio::test]
async fn a_set_stays() {
    for by in ALL {
        let (world, a, b) = heard(by).await;
        set(&b.cache, "k", "new", &["t"]).await;
        world.pass(1_500 * MS).await;
        for node in [&a, &b] {
            let seen = node.cache.look("k").await.unwrap();
            assert_eq!(seen.value().map(|value| value.as_str()), Some("new"), "{by:?}");
            assert!(!seen.is_stale(), "{by:?}");
        }
    }
}

/// It reads no level, and so has not heard of the store's mark by the time it loads.
#[tokio::test]
async fn what_is_loaded_anew_stays() {
    for by in ALL {
        for batch in [false, true] {
            let (world, a, b) = heard(by).await;
            set(&a.cache, "k", "set", &["t"]).await;
            if batch {
                let load = |(), ids: Vec<String>| async move {
                    ok(ids.into_iter().map(|id| (id, "new".to_owned())))
                };
                b.cache.access(Access::Reload).get_or_set_many(["k"], &(), load).await.unwrap();
            } else {
                b.cache.refresh("k", &(), |(), _| async { ok("new".to_owned()) }).await.unwrap();
            }
            world.pass(1_500 * MS).await;
            // What is in its memory is its own.
            let seen = world.node().cache.look("k").await.unwrap();
            assert_eq!(seen.value().map(|value| value.as_str()), Some("new"), "{by:?}, batch: {batch}");
            assert_eq!(b.cache.stats().overtaken, 0, "{by:?}, batch: {batch}");
        }
    }
}

#[tokio::test]
async fn an_update_sees_nothing_of_before_and_stays() {
    for by in ALL {
        let (world, a, b) = heard(by).await;
        let change = |(), _, seen: Option<Arc<String>>| async move { ok(format!("{seen:?}")) };
        let updated = b.cache.update("k", &(), change).await.unwrap();
        assert!(updated.delivery.is_confirmed());
        assert_eq!(*updated.value, "None", "{by:?}");
        world.pass(1_500 * MS).await;
        for node in [&a, &b] {
            assert_eq!(get(&node.cache, "k").await.as_deref(), Some("None"), "{by:?}");
        }
    }
}

/// Who loads once more, as what it joined was overtaken, looks at no level first: the request for a lease is answered with
/// what the level has.
#[tokio::test]
async fn what_answers_for_a_lease_is_not_what_was_there_before() {
    for by in ALL {
        let world = World::new();
        let (a, b) = (world.node(), world.node());
        let source = Source::new();
        source.has("k", "loaded", &[]);
        let _gate = source.gate();
        let first = source.asking(&b.cache, "k").await;
        let joined = source.asking(&b.cache, "k").await;
        set(&a.cache, "k", "old", &["t"]).await;
        happens(by, &a, &b).await;
        source.open();
        let _loaded = first.await.unwrap();
        assert_eq!(joined.await.unwrap(), saw(Outcome::Loaded, "loaded"), "{by:?}");
        assert_ne!(get(&b.cache, "k").await.as_deref(), Some("old"), "{by:?}");
    }
}

/// A set that nobody would believe is not confirmed.
#[tokio::test]
async fn where_the_store_does_not_say_what_is_valid_a_set_is_pending() {
    for by in ALL {
        let (world, a, b) = heard(by).await;
        b.l2.set(ChaosOp::Get, Fault::Fail);
        assert_eq!(b.cache.set("k", "new".to_owned()).await.unwrap(), Delivery::Pending, "{by:?}");
        b.l2.set(ChaosOp::Get, Fault::None);
        world.pass(1_500 * MS).await;
        assert_eq!(b.cache.stats().pending, 0);
        assert_eq!(get(&a.cache, "k").await, None, "{by:?}");
    }
}

/// The news of one level comes while the mark of the other is read.
#[tokio::test]
async fn a_set_stays_that_waits_for_one_level_while_another_is_told_of() {
    let world = World::new();
    let deep = Arc::new(MapProvider::new().leasing().marking().clock(world.clock.clone()));
    let node = || {
        let near = Arc::new(Chaos::new(Arc::clone(&world.store)));
        let builder = TracedCache::<String>::builder("things").clock(world.clock.clone()).policy(policy());
        let cache = builder
            .level(Level::new(Arc::clone(&near)).breaker(None))
            .level(Level::new(Arc::clone(&deep)).breaker(None))
            .backplane(world.hub.node())
            .build()
            .unwrap();
        (cache, near)
    };
    let ((a, _), (b, near)) = (node(), node());
    // It listens from its first call on.
    assert_eq!(get(&b, "other").await, None);
    confirmed(a.clear().await);
    near.set(ChaosOp::Get, Fault::Hang);
    let setting = tokio::spawn({
        let b = b.clone();
        async move { b.set("k", "new".to_owned()).await }
    });
    near.until_calls(ChaosOp::Get, near.calls(ChaosOp::Get) + 1).await;
    settled().await;
    confirmed(a.clear().await);
    settled().await;
    near.set(ChaosOp::Get, Fault::None);
    confirmed(setting.await.unwrap());
    for cache in [&a, &b] {
        assert_eq!(get(cache, "k").await.as_deref(), Some("new"));
    }
}

/// Looks for a key of its cache when it is told of a gap, and keeps at which level it was found.
#[derive(Clone, Default)]
struct Curious {
    cache: Arc<Mutex<Option<WeakCache<String>>>>,
    found_at: Arc<Mutex<Vec<Option<usize>>>>,
}

impl Observer for Curious {
    fn event(&self, _: &CacheInfo, event: &Event<'_>) {
        let cache = self.cache.lock().unwrap().as_ref().and_then(WeakCache::upgrade);
        if let (Event::BackplaneGap, Some(cache)) = (event, cache) {
            let found = cache.look("k").now_or_never().and_then(|found| found.unwrap().level());
            self.found_at.lock().unwrap().push(found);
        }
    }
}

#[tokio::test]
async fn who_is_told_of_a_gap_finds_nothing_of_before_in_memory() {
    let world = World::new();
    let (link, curious) = (world.hub.node(), Curious::default());
    let cache = TracedCache::<String>::builder("things")
        .level(Memory::entries(100))
        .level(Arc::clone(&world.store))
        .backplane(link.clone())
        .clock(world.clock.clone())
        .policy(policy())
        .observer(curious.clone())
        .build()
        .unwrap();
    set(&cache, "k", "v", &[]).await;
    assert_eq!(level(&cache, "k").await, Some(0));
    *curious.cache.lock().unwrap() = Some(cache.downgrade());
    link.notice();
    let found_at = curious.found_at.lock().unwrap();
    assert!(!found_at.is_empty() && !found_at.contains(&Some(0)), "{found_at:?}");
}

/// Each look is overtaken by more news.
#[tokio::test]
async fn news_that_comes_while_the_mark_is_read_does_not_bring_back_what_was_cleared() {
    let world = World::new();
    let (a, b) = (world.node(), world.node());
    set(&b.cache, "k", "old", &[]).await;
    world.pass(3_000 * MS).await;
    confirmed(a.cache.clear().await);
    b.l2.set(ChaosOp::Get, Fault::DelayReply(100 * MS));
    let mut seen = Vec::new();
    for _ in 0..30 {
        let reading = tokio::spawn({
            let cache = b.cache.clone();
            async move { get(&cache, "k").await }
        });
        settled().await;
        confirmed(a.cache.invalidate_tag("t").await);
        world.pass(100 * MS).await;
        seen.push(reading.await.unwrap());
    }
    assert!(seen.iter().all(Option::is_none), "{seen:?}");
}

/// A node whose look at the store takes its time.
fn slow(world: &World) -> Node {
    let node = world.node();
    node.l2.set(ChaosOp::Get, Fault::DelayReply(10 * MS));
    node
}

/// Looks for the key, and has asked the store.
async fn asks(node: &Node) -> tokio::task::JoinHandle<Outcome> {
    let cache = node.cache.clone();
    let asking = tokio::spawn(async move { cache.look("k").await.unwrap().outcome() });
    settled().await;
    asking
}

/// The second node's look for its first mark of all is under way when this happens: that is not in what it will be told.
async fn during_the_first_look(by: By) -> (World, Node, Node, tokio::task::JoinHandle<Outcome>) {
    let world = World::new();
    let (a, b) = (world.node(), slow(&world));
    set(&a.cache, "k", "old", &["t"]).await;
    let first = asks(&b).await;
    happens(by, &a, &b).await;
    (world, a, b, first)
}

#[tokio::test]
async fn news_that_comes_while_the_first_mark_is_read_counts() {
    for by in ALL {
        let (world, _a, b, first) = during_the_first_look(by).await;
        done(Some(&world), first).await;
        assert_eq!(done(Some(&world), asks(&b).await).await, Outcome::Miss, "{by:?}");
    }
}

/// Who has asked after the news is answered after who has asked before.
#[tokio::test]
async fn of_two_looks_for_the_first_mark_the_one_before_the_news_does_not_decide() {
    for by in ALL {
        let (world, _a, b, before) = during_the_first_look(by).await;
        let after = asks(&b).await;
        assert_eq!(done(Some(&world), before).await, Outcome::Hit, "{by:?}");
        assert_eq!(done(Some(&world), after).await, Outcome::Miss, "{by:?}");
    }
}

#[tokio::test]
async fn a_set_stays_that_comes_after_it() {
    for by in ALL {
        let (world, a, b, first) = during_the_first_look(by).await;
        done(Some(&world), first).await;
        b.l2.set(ChaosOp::Get, Fault::None);
        set(&b.cache, "k", "new", &["t"]).await;
        world.pass(1_500 * MS).await;
        for node in [&a, &b] {
            assert_eq!(get(&node.cache, "k").await.as_deref(), Some("new"), "{by:?}");
        }
    }
}

/// One that was asked for before the news, and has some of its own, is answered first.
#[tokio::test]
async fn a_later_mark_is_not_thrown_away_for_an_earlier_one() {
    let world = World::new();
    let (a, b) = (world.node(), slow(&world));
    set(&a.cache, "k", "old", &[]).await;
    done(Some(&world), asks(&b).await).await;
    confirmed(a.cache.expire_all().await);
    set(&a.cache, "k", "new", &[]).await;
    let before = asks(&b).await;
    confirmed(a.cache.expire_all().await);
    let after = asks(&b).await;
    assert_eq!(done(Some(&world), before).await, Outcome::Hit);
    assert_eq!(done(Some(&world), after).await, Outcome::Miss);
}

/// As of a store that tells of each change itself, when the test says so.
#[derive(Clone, Default)]
struct Told(Arc<Mutex<Option<Arc<dyn Listener>>>>);

impl Told {
    fn of(&self, id: &str) {
        self.0.lock().unwrap().as_ref().unwrap().changed(id);
    }
}

#[async_trait]
impl Backplane for Told {
    async fn publish(&self, _: &str, _: Bytes) -> Result<(), BoxError> {
        Ok(())
    }

    fn subscribe(&self, _: &str, listener: Arc<dyn Listener>) {
        listener.gap();
        *self.0.lock().unwrap() = Some(listener);
    }

    fn hears_writes(&self, _: &str) -> bool {
        true
    }
}

/// The fill of a node that others wait for is a change, too, and is heard of before they ask again.
#[tokio::test]
async fn what_another_node_has_loaded_is_taken_over_although_its_fill_is_heard_of() {
    for memory in [true, false] {
        let world = World::new();
        let (a, told) = (world.deaf(), Told::default());
        let l2 = Arc::new(Chaos::new(Arc::clone(&world.store)));
        let mut builder =
            TracedCache::<String>::builder("things").clock(world.clock.clone()).policy(policy());
        if memory {
            builder = builder.level(Memory::entries(100));
        }
        let b = builder.level(Arc::clone(&l2)).backplane(told.clone()).build().unwrap();
        assert_eq!(get(&b, "other").await, None);
        let source = Source::new();
        source.has("k", "loaded", &[]).has("l", "loaded", &[]);
        for (key, on_the_way) in [("k", false), ("l", true)] {
            let _gate = source.gate();
            let loads = source.asking(&a.cache, key).await;
            let waits = source.asking(&b, key).await;
            let joins = source.asking(&b, key).await;
            source.open();
            assert_eq!(loads.await.unwrap(), saw(Outcome::Loaded, "loaded"));
            let (asked, overtaken) = (l2.calls(ChaosOp::Acquire), b.stats().overtaken);
            if on_the_way {
                // It has been asked already: of what is said meanwhile nobody knows whether it came before.
                l2.set(ChaosOp::Acquire, Fault::DelayReply(100 * MS));
                world.pass(100 * MS).await;
                l2.set(ChaosOp::Acquire, Fault::None);
            }
            told.of(key);
            world.pass(100 * MS).await;
            world.pass(100 * MS).await;
            assert_eq!(waits.await.unwrap(), saw(Outcome::Hit, "loaded"));
            assert!(matches!(joins.await.unwrap().0, Outcome::Coalesced | Outcome::Hit));
            let asked = l2.calls(ChaosOp::Acquire) - asked;
            assert_eq!((asked, b.stats().overtaken - overtaken), if on_the_way { (2, 1) } else { (1, 0) });
            assert_eq!(level(&b, key).await, Some(0));
        }
        assert_eq!(source.loads(), 2);
    }
}
