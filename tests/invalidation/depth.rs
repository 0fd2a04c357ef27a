//! Two remote levels: the nearer one gets nothing from the deeper one that the deeper one has yet to be told is gone.

use std::sync::Arc;

use traced_cache::{
    Delivery, Level, Memory, Outcome, TracedCache,
    testing::{Chaos, ChaosOp, Fault, MapProvider},
};

use crate::world::{MS, S, Source, World, confirmed, done, get, policy, runtime, saw, set, settled};

/// The world's store, and a second one behind it.
struct Deep {
    world: World,
    third: Arc<MapProvider>,
}

struct Node {
    cache: TracedCache<String>,
    l2: Arc<Chaos<Arc<MapProvider>>>,
    l3: Arc<Chaos<Arc<MapProvider>>>,
}

impl Deep {
    fn new() -> Self {
        let world = World::new();
        let third = Arc::new(MapProvider::new().leasing().marking().clock(world.clock.clone()));
        Self { world, third }
    }

    fn node(&self) -> Node {
        self.build(true)
    }

    /// Without memory.
    fn bare(&self) -> Node {
        self.build(false)
    }

    fn build(&self, memory: bool) -> Node {
        let chaos = |store: &Arc<MapProvider>| {
            Arc::new(Chaos::new(Arc::clone(store)).clock(self.world.clock.clone()))
        };
        let (l2, l3) = (chaos(&self.world.store), chaos(&self.third));
        let mut builder = TracedCache::builder("things").clock(self.world.clock.clone()).policy(policy());
        if memory {
            builder = builder.level(Memory::entries(1_000).engine_expiry(false));
        }
        let cache = builder
            .level(Level::new(Arc::clone(&l2)).breaker(None))
            .level(Level::new(Arc::clone(&l3)).breaker(None))
            .build()
            .unwrap();
        Node { cache, l2, l3 }
    }
}

async fn pending(node: &Node, of: impl Future<Output = traced_cache::Result<Delivery>>) {
    assert_eq!(of.await.unwrap(), Delivery::Pending);
    assert_eq!(get(&node.cache, "k").await, None);
}

/// Neither by a read nor when it is asked for a lease, which is answered with what is there.
#[tokio::test]
async fn what_a_level_has_yet_to_hear_is_gone_is_not_taken_from_it() {
    let deep = Deep::new();
    let a = deep.bare();
    set(&a.cache, "k", "old", &[]).await;
    a.l2.set(ChaosOp::Remove, Fault::Fail);
    pending(&a, a.cache.invalidate("k")).await;
    let source = Source::new();
    source.has("k", "new", &[]);
    assert_eq!(source.ask(&a.cache, "k").await, saw(Outcome::Loaded, "new"));
}

#[tokio::test]
async fn what_the_deepest_level_has_not_heard_does_not_come_back_through_the_one_above() {
    for what in 0..3 {
        let deep = Deep::new();
        let (a, b) = (deep.node(), deep.node());
        get(&b.cache, "warm").await;
        set(&a.cache, "k", "old", &["x"]).await;
        settled().await;
        a.l3.set_all(Fault::Fail);
        a.l3.set(ChaosOp::Get, Fault::None);
        let answer = match what {
            0 => a.cache.invalidate("k").await,
            1 => a.cache.invalidate_tag("x").await,
            _ => a.cache.clear().await,
        };
        assert_eq!(answer.unwrap(), Delivery::Pending);
        // Nobody else can know; and so it fills the second level with it.
        assert_eq!(get(&b.cache, "k").await.as_deref(), Some("old"), "{what}");
        settled().await;
        assert_eq!(get(&a.cache, "k").await, None, "on the node that was told: {what}");
        a.l3.set_all(Fault::None);
        for _ in 0..5 {
            deep.world.pass(S).await;
        }
        assert_eq!(a.cache.stats().pending, 0);
        for node in [&a, &deep.node()] {
            assert_eq!(get(&node.cache, "k").await, None, "once it is delivered: {what}");
        }
    }
}

#[tokio::test]
async fn a_set_that_the_deepest_level_has_not_taken_is_not_replaced_from_there() {
    let deep = Deep::new();
    let (a, b) = (deep.bare(), deep.bare());
    get(&b.cache, "warm").await;
    set(&a.cache, "k", "old", &[]).await;
    a.l3.set_all(Fault::Fail);
    a.l3.set(ChaosOp::Get, Fault::None);
    assert_eq!(a.cache.set("k", "new".to_owned()).await.unwrap(), Delivery::Pending);
    deep.world.store.evict("things:k");
    assert_eq!(get(&b.cache, "k").await.as_deref(), Some("old"), "nobody else can know");
    settled().await;
    assert_ne!(get(&a.cache, "k").await.as_deref(), Some("old"));
    a.l3.set_all(Fault::None);
    for _ in 0..5 {
        deep.world.pass(S).await;
    }
    for node in [&a, &b, &deep.node()] {
        assert_ne!(get(&node.cache, "k").await.as_deref(), Some("old"));
    }
    confirmed(a.cache.invalidate("k").await);
}

/// A value on its way to the deepest level is no outage of it.
#[tokio::test]
async fn a_level_is_read_while_the_one_behind_it_is_being_written() {
    let deep = Deep::new();
    let level = |store: &Arc<MapProvider>| Level::new(Arc::clone(store)).breaker(None);
    let cache: TracedCache<String> = TracedCache::builder("things")
        .clock(deep.world.clock.clone())
        .policy(policy())
        .level(level(&deep.world.store))
        .level(level(&deep.third).background(true))
        .build()
        .unwrap();
    assert_eq!(cache.set("k", "new".to_owned()).await.unwrap(), Delivery::Pending);
    assert_eq!(get(&cache, "k").await.as_deref(), Some("new"));
}

/// Marks are read level by level, each when it is due. Who has learned at the second level what another node has
/// invalidated, and not yet at the third, would give the second one what the third still has, as if it were younger.
#[tokio::test]
async fn what_one_level_has_told_is_not_brought_back_from_the_next() {
    for what in ["invalidate_tag", "expire_all", "clear"] {
        for fails in [false, true] {
            let deep = Deep::new();
            let (a, b) = (deep.node(), deep.node());
            set(&a.cache, "k", "old", &["x"]).await;
            set(&a.cache, "other", "o", &[]).await;
            // B looks at the mark of the second level, and later at that of the third.
            get(&b.cache, "other").await;
            deep.world.pass(600 * MS).await;
            get(&b.cache, "nothing").await;
            deep.world.pass(100 * MS).await;
            confirmed(match what {
                "invalidate_tag" => a.cache.invalidate_tag("x").await,
                "expire_all" => a.cache.expire_all().await,
                _ => a.cache.clear().await,
            });
            // It learns of it at the second level.
            deep.world.pass(350 * MS).await;
            if fails {
                // The third does not say at once, and has to be asked again.
                b.l3.set(ChaosOp::Get, Fault::Fail);
                get(&b.cache, "k").await;
                b.l3.set(ChaosOp::Get, Fault::None);
            }
            get(&b.cache, "k").await;
            settled().await;
            for node in [&a, &b, &deep.node()] {
                assert_eq!(get(&node.cache, "k").await, None, "{what}, {fails}");
            }
        }
    }
}

/// The same while the call that learns of it at the second level is still at it.
#[tokio::test]
async fn what_one_level_has_told_a_call_outdates_the_next_at_once() {
    for clear in [false, true] {
        let deep = Deep::new();
        let (a, b) = (deep.bare(), deep.bare());
        set(&a.cache, "k", "old", &["x"]).await;
        get(&b.cache, "nothing").await;
        confirmed(if clear { a.cache.clear().await } else { a.cache.expire_all().await });
        // It asks for the next number at the second level, is told what the number is, and asks once more.
        b.l3.set(ChaosOp::Swap, Fault::Fail);
        b.l2.set(ChaosOp::Swap, Fault::DelayReply(100 * MS));
        let invalidating = tokio::spawn({
            let cache = b.cache.clone();
            async move { cache.invalidate_tag("y").await }
        });
        deep.world.pass(100 * MS).await;
        assert_eq!(b.l2.calls(ChaosOp::Swap), 2);
        let reading = tokio::spawn({
            let cache = b.cache.clone();
            async move { get(&cache, "k").await }
        });
        settled().await;
        for node in [&a, &deep.bare()] {
            assert_eq!(get(&node.cache, "k").await, None, "{clear}");
        }
        assert_eq!(done(Some(&deep.world), reading).await, None, "{clear}");
        assert_eq!(done(Some(&deep.world), invalidating).await.unwrap(), Delivery::Pending);
    }
}

/// A load that another process answers brings what was read while its callers waited, or before.
#[tokio::test]
async fn who_joins_a_load_that_the_next_level_answers_is_not_given_what_a_tag_has_reached() {
    let deep = Deep::new();
    let a = deep.node();
    let b: TracedCache<String> = TracedCache::builder("things")
        .clock(deep.world.clock.clone())
        .policy(policy())
        .level(Level::new(Arc::clone(&deep.third)).breaker(None))
        .build()
        .unwrap();
    get(&a.cache, "warm").await;
    get(&b, "warm").await;
    let (theirs, ours) = (Source::new(), Source::new());
    theirs.has("k", "old", &["x"]).gate();
    let loading = theirs.asking(&b, "k").await;
    ours.has("k", "new", &["x"]);
    let early = ours.asking(&a.cache, "k").await;
    // The second level is slow to take what the third has.
    a.l2.set(ChaosOp::Fill, Fault::Hang);
    theirs.open();
    assert_eq!(loading.await.unwrap(), saw(Outcome::Loaded, "old"));
    for _ in 0..30 {
        deep.world.pass(5 * MS).await;
        if a.l2.calls(ChaosOp::Fill) > 0 {
            break;
        }
    }
    assert_eq!(a.l2.calls(ChaosOp::Fill), 1);
    confirmed(a.cache.invalidate_tag("x").await);
    let late = ours.asking(&a.cache, "k").await;
    let batch = ours.asking_many(&a.cache, &["k"]).await;
    a.l2.set(ChaosOp::Fill, Fault::None);
    assert_eq!(done(Some(&deep.world), early).await.1, "old", "it asked before");
    assert_eq!(done(Some(&deep.world), late).await.1, "new");
    assert_eq!(done(Some(&deep.world), batch).await, ["new"]);
}

/// The deepest level has the new value then, and the one above was yet to be told. As after a `set` whose caller leaves, nobody
/// can tell what has arrived where.
#[test]
fn an_update_that_ends_in_the_middle_leaves_nothing_older_nearer() {
    let deep = Deep::new();
    let a = deep.bare();
    let first = runtime();
    first.block_on(async {
        set(&a.cache, "k", "old", &[]).await;
        a.l2.set(ChaosOp::Remove, Fault::Hang);
        let cache = a.cache.clone();
        tokio::spawn(async move {
            cache.update("k", &(), |(), _, _| async { traced_cache::ok("new".to_owned()) }).await
        });
        settled().await;
        assert_eq!(a.l2.calls(ChaosOp::Remove), 1);
    });
    drop(first);
    a.l2.set_all(Fault::None);
    runtime().block_on(async {
        assert_eq!(get(&a.cache, "k").await, None);
        deep.world.pass(S).await;
        assert_eq!((get(&deep.bare().cache, "k").await, a.cache.stats().pending), (None, 0));
    });
}
