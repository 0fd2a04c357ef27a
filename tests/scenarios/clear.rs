//! C: clearing a cache.

use traced_cache::{Access, Loaded, Memory, Policy, TracedCache};

use crate::{
    kit::{self, Loads, S},
    stacks::{self, unique},
};

#[tokio::test]
async fn c1_only_the_cache_that_was_cleared_is_empty() {
    for stack in stacks::all() {
        let (one, two) = (stack.plain::<u64>(), stack.plain::<u64>());
        kit::set(&one, "k", 1_u64).await;
        kit::set(&two, "k", 2_u64).await;
        let flushes = || {
            stacks::redis_server().map(|server| {
                let stats: String = server.command(&["INFO", "commandstats"]).unwrap();
                stats.contains("cmdstat_flushall") || stats.contains("cmdstat_flushdb")
            })
        };
        assert!(kit::patient(one.clear()).await.unwrap().is_confirmed());
        assert_eq!(kit::get(&one, "k").await, None);
        assert_eq!(kit::get(&one.access(Access::AllowStale), "k").await, None);
        assert_eq!(one.get_many(["k"]).await.unwrap(), [None]);
        assert_eq!(kit::get(&two, "k").await, Some(2));
        if stack.remote.is_some() {
            let policy = Policy::ttl(100 * S);
            assert_eq!(kit::get(&stack.peer().named::<u64>(two.name(), policy), "k").await, Some(2));
            assert_eq!(kit::get(&stack.peer().named::<u64>(one.name(), policy), "k").await, None);
        }
        assert_ne!(flushes(), Some(true));
        if stack.name.ends_with("memcached") {
            let server = stacks::memcached_server().unwrap();
            assert_eq!(server.stat("cmd_flush").unwrap().as_deref(), Some("0"));
        }
        kit::set(&one, "k", 3_u64).await;
        assert_eq!(kit::get(&one, "k").await, Some(3), "and usable as before");
    }
}

#[tokio::test]
async fn c2_a_name_that_begins_like_another_is_another() {
    for stack in stacks::all() {
        let name = unique("users");
        let policy = Policy::ttl(100 * S);
        let (short, long) =
            (stack.named::<u64>(&name, policy), stack.named::<u64>(&format!("{name}Abc"), policy));
        kit::set(&short, "k", 1_u64).await;
        kit::set(&long, "k", 2_u64).await;
        assert!(kit::patient(short.clear()).await.unwrap().is_confirmed());
        assert_eq!(kit::get(&short, "k").await, None);
        assert_eq!(kit::get(&long, "k").await, Some(2));
        if stack.remote.is_some() {
            let peer = stack.peer().named::<u64>(long.name(), policy);
            assert_eq!(kit::get(&peer, "k").await, Some(2));
        }
    }
}

#[tokio::test]
async fn c4_a_cold_node_does_not_serve_what_was_cleared() {
    for stack in stacks::shared() {
        let name = unique("c4");
        let policy = Policy::ttl(100 * S).grace(1_000 * S);
        let cache = stack.named::<u64>(&name, policy);
        kit::set(&cache, "k", 1_u64).await;
        assert!(kit::patient(cache.clear()).await.unwrap().is_confirmed());
        for access in [Access::Normal, Access::AllowStale] {
            let cold = stack.peer().named::<u64>(&name, policy).access(access);
            assert_eq!(kit::get(&cold, "k").await, None);
            assert_eq!(cold.get_many(["k"]).await.unwrap(), [None]);
        }
        let cold = stack.peer().named::<u64>(&name, policy);
        let loads = Loads::default();
        assert!(kit::fail(&cold, "k", &loads).await.is_err(), "nothing stale stands in");
        assert_eq!(kit::load(&cold, "k", &loads, 2_u64).await, 2);
        assert_eq!(kit::get(&cache, "k").await, Some(2));
    }
}

#[tokio::test]
async fn c4_a_warm_node_learns_of_a_clear_with_its_next_look_at_the_level() {
    for stack in stacks::shared() {
        let name = unique("c4");
        let policy = Policy::ttl(100 * S);
        let (a, b) = (stack.named::<u64>(&name, policy), stack.peer().named::<u64>(&name, policy));
        kit::set(&a, "k", 1_u64).await;
        kit::set(&a, "other", 1_u64).await;
        assert_eq!(kit::get(&b, "k").await, Some(1));
        assert!(kit::patient(a.clear()).await.unwrap().is_confirmed());
        // The stated period of a second.
        stack.time.advance(S);
        assert_eq!(kit::get(&b, "other").await, None, "read at the level, with the marker");
        assert_eq!(kit::get(&b, "k").await, None, "and from now on L1 knows, too");
    }
}

#[tokio::test]
async fn c5_clearing_memory_of_its_own_frees_it() {
    let memory = Memory::entries(10_000);
    let cache = TracedCache::<String>::builder("c5").level(memory.clone()).build().unwrap();
    for key in 0..1_000_u64 {
        let _ = cache.set(key, "x".repeat(100)).await.unwrap();
    }
    // The engine stops its maintenance after a while, and goes on with the next look.
    kit::until(|| cache.stats().levels[0].entries == Some(1_000)).await;
    assert!(cache.clear().await.unwrap().is_confirmed());
    kit::until(|| cache.stats().levels[0].entries == Some(0)).await;
}

#[tokio::test]
async fn a_clear_outlives_the_process_that_made_it() {
    for stack in stacks::shared() {
        let name = unique("clear");
        let policy = Policy::ttl(100 * S);
        let cache = stack.named::<u64>(&name, policy);
        let value = Loaded::value(1_u64).tag("t");
        assert!(cache.set_loaded("k", value).await.unwrap().is_confirmed());
        assert!(kit::patient(cache.clear()).await.unwrap().is_confirmed());
        drop(cache);
        let next = stack.peer().named::<u64>(&name, policy);
        assert_eq!(kit::get(&next, "k").await, None);
    }
}
