//! Levels that are written in the background: what they have meanwhile is out of date.

use std::sync::Arc;

use tokio::sync::Notify;
use traced_cache::{
    Level, Memory, Scope, Stance, TracedCache, ok,
    testing::{Chaos, ChaosOp, Fault, MapProvider},
};

use crate::world::{MS, S, Source, World, confirmed, get, policy, settled};

/// Its level has an old value of `k`, and the new one is on its way there.
async fn writing_behind(world: &World, fault: Fault) -> (TracedCache<String>, Arc<Chaos<Arc<MapProvider>>>) {
    let l2 = Arc::new(Chaos::new(Arc::clone(&world.store)).clock(world.clock.clone()));
    let level = Level::new(Arc::clone(&l2)).budget(100 * S).breaker(None).background(true);
    let builder = TracedCache::builder("things").clock(world.clock.clone()).policy(policy());
    let cache = builder.level(level).build().unwrap();
    assert!(!cache.set("k", "old".to_owned()).await.unwrap().is_confirmed());
    settled().await;
    assert_eq!(get(&cache, "k").await.as_deref(), Some("old"));
    l2.set(ChaosOp::Put, fault);
    assert!(!cache.set("k", "new".to_owned()).await.unwrap().is_confirmed());
    settled().await;
    (cache, l2)
}

#[tokio::test]
async fn the_old_value_is_not_read_while_the_new_one_is_on_its_way() {
    let world = World::new();
    let (cache, _) = writing_behind(&world, Fault::Delay(5 * MS)).await;
    assert_eq!(get(&cache, "k").await, None);
    world.pass(5 * MS).await;
    assert_eq!(get(&cache, "k").await.as_deref(), Some("new"));
    assert_eq!(cache.stats().pending, 0);
}

#[tokio::test]
async fn close_tells_of_values_that_did_not_get_there() {
    let world = World::new();
    let (cache, _) = writing_behind(&world, Fault::Hang).await;
    let closing = tokio::spawn({
        let cache = cache.clone();
        async move { cache.close(S).await }
    });
    world.pass(2 * S).await;
    let closed = closing.await.unwrap();
    assert_eq!(closed.undelivered().len(), 1);
    let left = &closed.undelivered()[0];
    assert_eq!((left.scope, left.name.as_deref()), (Scope::Key, Some("k")));
}

/// Also where its level would surface a failure: the caller was told `Pending`, and of none.
#[tokio::test]
async fn a_value_follows_when_the_level_is_back_whatever_its_stance() {
    for stance in [Stance::Absorb, Stance::Surface] {
        let world = World::new();
        let l2 = Arc::new(Chaos::new(Arc::clone(&world.store)).clock(world.clock.clone()));
        let level = Level::new(Arc::clone(&l2)).breaker(None).background(true).stance(stance);
        let builder = TracedCache::builder("things").clock(world.clock.clone()).policy(policy());
        let memory = Memory::entries(100).engine_expiry(false);
        let cache: TracedCache<String> = builder.level(memory).level(level).build().unwrap();
        for value in ["1", "2"] {
            assert!(!cache.set("k", value.to_owned()).await.unwrap().is_confirmed());
            world.pass(S).await;
            l2.set_all(Fault::Fail);
        }
        l2.set_all(Fault::None);
        for _ in 0..20 {
            world.pass(S).await;
        }
        assert_eq!(get(&world.bare().cache, "k").await.as_deref(), Some("2"), "{stance:?}");
    }
}

/// Memory before the store, which is written in the background.
fn node(world: &World) -> TracedCache<String> {
    let builder = TracedCache::builder("things").clock(world.clock.clone()).policy(policy());
    let level = Level::new(Arc::clone(&world.store)).background(true);
    builder.level(Memory::entries(100).engine_expiry(false)).level(level).build().unwrap()
}

/// The update has its turn among the writers, and waits for the lease of the load, which waits for no turn.
#[tokio::test]
async fn what_is_loaded_gets_there_while_an_update_waits_for_it() {
    let world = World::new();
    let (cache, source) = (node(&world), Source::new());
    source.has("k", "1", &[]).gate();
    let load = source.asking(&cache, "k").await;
    let update = tokio::spawn({
        let cache = cache.clone();
        async move {
            let change = |(), _, held: Option<Arc<String>>| async move { ok(format!("{held:?}, changed")) };
            cache.update("k", &(), change).await.map(|updated| updated.value)
        }
    });
    settled().await;
    source.open();
    world.pass(100 * MS).await;
    assert!(load.is_finished());
    assert!(update.is_finished(), "it waits for the end of the lease");
    assert_eq!(*update.await.unwrap().unwrap(), r#"Some("1"), changed"#);
}

#[tokio::test]
async fn what_is_overtaken_on_its_way_leaves_its_lease_to_nobody() {
    let world = World::new();
    let cache = node(&world);
    // Its mark is known.
    assert_eq!(get(&cache, "k").await, None);
    let loaded = Arc::new(Notify::new());
    let clear = tokio::spawn({
        let (cache, loaded) = (cache.clone(), Arc::clone(&loaded));
        async move {
            loaded.notified().await;
            cache.clear().await
        }
    });
    settled().await;
    let load = move |()| async move {
        // The clear is next in line, before what the load is to store.
        loaded.notify_one();
        ok("1".to_owned())
    };
    assert_eq!(*cache.get_or_set("k", || load(())).await.unwrap(), "1");
    confirmed(clear.await.unwrap());
    settled().await;
    assert_eq!(get(&cache, "k").await, None);
    assert!(!world.store.is_leased("things:k"));
}
