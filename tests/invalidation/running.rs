//! Invalidations while a load or a read is under way.

use std::sync::Arc;

use traced_cache::{
    Access, Level, Memory, Outcome, Policy, TracedCache,
    testing::{ChaosOp, Fault},
};

use crate::world::{
    MS, PERIOD, S, Source, World, alone, confirmed, done, get, level, policy, saw, set, settled,
};

fn caches() -> Vec<(TracedCache<String>, Option<World>)> {
    let (layered, bare) = (World::new(), World::new());
    vec![(alone(), None), (layered.node().cache, Some(layered)), (bare.bare().cache, Some(bare))]
}

#[tokio::test]
async fn g5_a_load_under_way_serves_who_waited_and_nobody_later() {
    for (cache, _world) in caches() {
        let source = Source::new();
        source.has("k", "old", &["x"]).gate();
        let early = source.asking(&cache, "k").await;
        confirmed(cache.invalidate_tag("x").await);
        source.has("k", "new", &["x"]);
        let late = source.asking(&cache, "k").await;
        assert_eq!(source.loads(), 1, "it joins: what tags the load will bring is not known yet");
        source.open();
        assert_eq!(early.await.unwrap(), saw(Outcome::Loaded, "old"));
        assert_eq!(late.await.unwrap().1, "new", "the tag was invalidated before it called");
        assert_eq!(source.loads(), 2);
        assert_eq!(source.ask(&cache, "k").await, saw(Outcome::Hit, "new"));
    }
}

#[tokio::test]
async fn late_joiners_of_an_overtaken_load_share_one_more() {
    for (cache, _world) in caches() {
        let source = Source::new();
        source.has("k", "old", &["x"]).gate();
        let early = source.asking(&cache, "k").await;
        confirmed(cache.invalidate_tag("x").await);
        source.has("k", "new", &["x"]);
        let mut late = Vec::new();
        for _ in 0..20 {
            late.push(source.asking(&cache, "k").await);
        }
        source.open();
        early.await.unwrap();
        for late in late {
            assert_eq!(late.await.unwrap().1, "new");
        }
        assert_eq!(source.loads(), 2);
    }
}

#[tokio::test]
async fn a_batch_is_no_exception() {
    for (cache, _world) in caches() {
        let source = Source::new();
        source.has("a", "old", &["x"]).gate();
        let early = source.asking(&cache, "a").await;
        confirmed(cache.invalidate_tag("x").await);
        source.has("a", "new", &["x"]).has("b", "b", &[]);
        let late = source.asking_many(&cache, &["a", "b"]).await;
        source.open();
        early.await.unwrap();
        assert_eq!(late.await.unwrap(), ["new", "b"]);
    }
}

#[tokio::test]
async fn a_clear_and_an_expiry_beat_the_load_as_well() {
    for (cache, world) in caches() {
        for (round, clear) in [(1, true), (2, false)] {
            let source = Source::new();
            let key = format!("k{round}");
            source.has(&key, "old", &[]).gate();
            let early = source.asking(&cache, &key).await;
            confirmed(if clear { cache.clear().await } else { cache.expire_all().await });
            source.has(&key, "new", &[]);
            let late = source.asking(&cache, &key).await;
            source.open();
            assert_eq!(early.await.unwrap(), saw(Outcome::Loaded, "old"));
            assert_eq!(done(world.as_ref(), late).await.1, "new");
        }
    }
}

#[tokio::test]
async fn a_load_behind_a_stale_value_does_not_bring_it_back() {
    let world = World::new();
    let node = world.node();
    let source = Source::new();
    source.has("k", "old", &["x"]);
    source.ask(&node.cache, "k").await;
    world.pass(100 * S).await;
    // Its load fails in the end, and would put the stale value back for a while.
    source.gate();
    source.down(true);
    let asking = {
        let (source, cache) = (source.clone(), node.cache.clone());
        tokio::spawn(async move { source.try_ask(&cache, "k").await })
    };
    settled().await;
    confirmed(node.cache.invalidate_tag("x").await);
    source.open();
    // Whoever asked before may have it; nobody later.
    let _ = asking.await.unwrap();
    assert!(source.try_ask(&node.cache, "k").await.is_err());
    assert_eq!(get(&node.cache.access(Access::AllowStale), "k").await, None);
}

#[tokio::test]
async fn a_read_under_way_fills_nothing_that_a_tag_has_reached() {
    let world = World::new();
    let (a, b) = (world.node(), world.node());
    set(&a.cache, "k", "old", &["x"]).await;
    settled().await;
    // B has read the value and is held up before it can keep it.
    get(&b.cache, "other").await;
    b.l2.set(ChaosOp::Get, Fault::Hang);
    let reading = tokio::spawn({
        let cache = b.cache.clone();
        async move { get(&cache, "k").await }
    });
    settled().await;
    confirmed(a.cache.invalidate_tag("x").await);
    b.l2.set(ChaosOp::Get, Fault::None);
    let _ = reading.await.unwrap();
    assert_eq!(get(&b.cache, "k").await, None);
}

#[tokio::test]
async fn another_nodes_load_is_dead_on_arrival() {
    let world = World::new();
    let (a, b) = (world.node(), world.deaf());
    // B knows the mark.
    get(&b.cache, "k").await;
    let source = Source::new();
    source.has("k", "old", &["x"]).gate();
    let loading = source.asking(&b.cache, "k").await;
    confirmed(a.cache.invalidate_tag("x").await);
    source.open();
    assert_eq!(loading.await.unwrap(), saw(Outcome::Loaded, "old"));
    settled().await;
    assert_eq!(get(&a.cache, "k").await, None, "stored with a number from before");
    assert_eq!(get(&world.bare().cache, "k").await, None);
    // And B's own memory learns of it within the period.
    world.pass(S).await;
    assert_eq!(get(&b.cache, "k").await, None);
}

#[tokio::test]
async fn an_early_refresh_does_not_bring_a_tag_back() {
    let world = World::new();
    let cache: TracedCache<String> = TracedCache::builder("early")
        .level(Memory::entries(100).engine_expiry(false))
        .level(Level::new(Arc::clone(&world.store)))
        .clock(world.clock.clone())
        .policy(policy().early(traced_cache::Early::Fraction(0.5)))
        .build()
        .unwrap();
    let source = Source::new();
    source.has("k", "old", &["x"]);
    source.ask(&cache, "k").await;
    world.pass(60 * S).await;
    source.gate();
    assert_eq!(source.ask(&cache, "k").await, saw(Outcome::Hit, "old"), "and a refresh has begun");
    settled().await;
    assert_eq!(source.loads(), 2);
    confirmed(cache.invalidate_tag("x").await);
    source.open();
    settled().await;
    assert_eq!(get(&cache, "k").await, None);
    assert_eq!(level(&cache, "k").await, None);
}

/// `expire` reads, and then writes: what another node invalidates in between does not come back as a fallback.
#[tokio::test]
async fn an_expiry_brings_nothing_back_that_was_invalidated_meanwhile() {
    let world = World::new();
    let (a, b) = (world.bare(), world.bare());
    set(&a.cache, "k", "old", &[]).await;
    for op in [ChaosOp::Acquire, ChaosOp::Put, ChaosOp::Fill] {
        a.l2.set(op, Fault::Delay(MS));
    }
    let expiring = tokio::spawn({
        let cache = a.cache.clone();
        async move { confirmed(cache.expire("k").await) }
    });
    settled().await;
    assert!(!expiring.is_finished());
    confirmed(b.cache.invalidate("k").await);
    done(Some(&world), expiring).await;
    assert_eq!(get(&b.cache.access(Access::AllowStale), "k").await, None);
}

/// Where there is nothing to mark, a load under way elsewhere is not kept all the same.
#[tokio::test]
async fn an_expiry_beats_another_nodes_load() {
    let world = World::new();
    let (a, b) = (world.bare(), world.bare());
    let source = Source::new();
    source.has("k", "old", &[]);
    source.gate();
    let loading = source.asking(&b.cache, "k").await;
    confirmed(a.cache.expire("k").await);
    source.open();
    assert_eq!(done(Some(&world), loading).await.1, "old", "it asked before");
    for node in [&a, &b] {
        assert_eq!(get(&node.cache, "k").await, None);
    }
}

/// The lease may be lost by itself: a store that is full lets go of it, and keeps the entry.
#[tokio::test]
async fn an_expiry_without_its_lease_removes() {
    let world = World::new();
    let a = world.bare();
    set(&a.cache, "k", "old", &[]).await;
    a.l2.set(ChaosOp::Fill, Fault::Delay(MS));
    let expiring = tokio::spawn({
        let cache = a.cache.clone();
        async move { confirmed(cache.expire("k").await) }
    });
    settled().await;
    assert!(world.store.is_leased("things:k"));
    world.store.revoke("things:k");
    done(Some(&world), expiring).await;
    assert_eq!(get(&a.cache, "k").await, None);
}

/// Who joins a load gets the stale value that its leader has found only if it is still believed.
#[tokio::test]
async fn a_late_joiner_does_not_fall_back_on_what_a_tag_has_reached() {
    let world = World::new();
    let (a, b) = (world.bare(), world.deaf());
    let source = Source::new();
    source.has("k", "old", &["x"]);
    source.ask(&b.cache, "k").await;
    world.pass(100 * S).await;
    source.gate();
    source.down(true);
    let ask = || {
        let (source, cache) = (source.clone(), b.cache.clone());
        tokio::spawn(async move { source.try_ask(&cache, "k").await })
    };
    let early = ask();
    settled().await;
    confirmed(a.cache.invalidate_tag("x").await);
    world.pass(PERIOD).await;
    world.pass(PERIOD).await;
    let late = ask();
    settled().await;
    assert!(!late.is_finished());
    source.open();
    // Whoever asked before may have it; nobody later.
    let _ = done(Some(&world), early).await;
    done(Some(&world), late).await.unwrap_err();
}

/// A load has left its value to those who were here before it ended: some of whom have come after the invalidation.
#[tokio::test]
async fn what_a_load_has_left_is_not_taken_unasked() {
    let world = World::new();
    let (a, b) = (world.bare(), world.deaf());
    get(&b.cache, "other").await;
    let source = Source::new();
    source.has("k", "old", &["x"]).gate();
    let early = source.asking(&b.cache, "k").await;
    confirmed(a.cache.invalidate_tag("x").await);
    world.pass(PERIOD).await;
    world.pass(PERIOD).await;
    source.has("k", "new", &["x"]);
    // It reads by itself, and finds nothing, before that value is there.
    b.l2.set(ChaosOp::Get, Fault::DelayReply(100 * MS));
    let late = source.asking(&b.cache.access(Access::AllowStale), "k").await;
    b.l2.set(ChaosOp::Swap, Fault::Fail);
    source.open();
    assert_eq!(done(None, early).await.1, "old");
    assert!(!late.is_finished());
    b.l2.set(ChaosOp::Get, Fault::None);
    b.l2.set(ChaosOp::Swap, Fault::None);
    assert_eq!(done(Some(&world), late).await.1, "new");
}

/// A batch has read what another node has stored, and waits for that node's load of another key.
#[tokio::test]
async fn who_joins_a_batch_that_another_node_answers_is_not_given_what_a_tag_has_reached() {
    let world = World::new();
    let (a, b) = (world.deaf(), world.deaf());
    get(&a.cache, "warm").await;
    get(&b.cache, "warm").await;
    let (first, second, ours) = (Source::new(), Source::new(), Source::new());
    first.has("k", "old", &["x"]).gate();
    second.has("j", "old", &["x"]).gate();
    ours.has("k", "new", &["x"]).has("j", "new", &["x"]);
    let loading = (first.asking(&b.cache, "k").await, second.asking(&b.cache, "j").await);
    let early = ours.asking_many(&a.cache, &["k", "j"]).await;
    first.open();
    loading.0.await.unwrap();
    for _ in 0..40 {
        world.pass(5 * MS).await;
    }
    confirmed(a.cache.invalidate_tag("x").await);
    let late = ours.asking(&a.cache, "k").await;
    let batch = ours.asking_many(&a.cache, &["k"]).await;
    second.open();
    loading.1.await.unwrap();
    done(Some(&world), early).await;
    assert_eq!(done(Some(&world), late).await.1, "new");
    assert_eq!(done(Some(&world), batch).await, ["new"]);
}

/// With a stale value at hand that dies while its caller waits.
#[tokio::test]
async fn a_late_joiner_whose_stale_value_dies_is_not_given_what_a_tag_has_reached() {
    let world = World::new();
    let cache: TracedCache<String> = TracedCache::builder("alone")
        .level(Memory::entries(100).engine_expiry(false))
        .clock(world.clock.clone())
        .policy(Policy::ttl(10 * S).grace(20 * S).soft_limit(S))
        .build()
        .unwrap();
    set(&cache, "k", "stale", &[]).await;
    world.pass(19 * S + 500 * MS).await;
    let source = Source::new();
    source.has("k", "old", &["x"]).gate();
    let early = source.asking(&cache, "k").await;
    confirmed(cache.invalidate_tag("x").await);
    source.has("k", "new", &["x"]);
    let late = source.asking(&cache, "k").await;
    world.pass(S).await;
    assert!(!early.is_finished() && !late.is_finished());
    source.open();
    assert_eq!(early.await.unwrap().1, "old", "it asked before");
    assert_eq!(late.await.unwrap().1, "new");
}
