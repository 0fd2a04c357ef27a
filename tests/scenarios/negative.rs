//! N: remembered absences.

use traced_cache::{Access, ErrorKind, Outcome, Policy};

use crate::{
    kit::{self, Loads, MS, S},
    stacks::{self, unique},
};

fn policy() -> Policy {
    Policy::ttl(100 * S).absent_ttl(60 * S)
}

#[tokio::test]
async fn n1_n4_an_absence_is_remembered_and_counted_as_one() {
    for stack in stacks::all() {
        let cache = stack.cache::<u64>(policy());
        let loads = Loads::default();
        let found = kit::absent(&cache, "k", &loads).await;
        assert_eq!((found.value(), found.outcome()), (None, Outcome::Loaded));
        let found = kit::absent(&cache, "k", &loads).await;
        assert_eq!((found.value(), found.outcome(), found.level()), (None, Outcome::Absent, Some(0)));
        assert_eq!(loads.count(), 1);
        assert_eq!(kit::outcome(&cache, "k").await, Outcome::Absent);
        assert_eq!(kit::get(&cache, "k").await, None);
        let stats = cache.stats();
        assert_eq!((stats.hits(), stats.misses(), stats.outcome(Outcome::Absent)), (0, 1, 3));
        stack.time.advance(60 * S - MS);
        assert_eq!(kit::outcome(&cache, "k").await, Outcome::Absent);
        stack.time.advance(MS);
        assert_eq!(kit::outcome(&cache, "k").await, Outcome::Miss);
        if stack.remote.is_some() {
            kit::absent(&cache, "k", &loads).await;
            let peer = stack.peer().named::<u64>(cache.name(), policy());
            let found = peer.look("k").await.unwrap();
            assert_eq!((found.outcome(), found.level()), (Outcome::Absent, Some(stack.far())));
            assert_eq!(kit::outcome(&peer, "k").await, Outcome::Absent);
        }
    }
}

#[tokio::test]
async fn n1_a_plain_loader_hears_of_a_remembered_absence() {
    for stack in stacks::all() {
        let cache = stack.cache::<u64>(policy());
        kit::absent(&cache, "k", &Loads::default()).await;
        let error = cache.get_or_set("k", || async { traced_cache::ok(1_u64) }).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Absent);
        let seen = cache.get_or_set("k", || async { traced_cache::ok(Some(1_u64)) }).await.unwrap();
        assert_eq!(seen, None);
    }
}

#[tokio::test]
async fn n1_without_a_ttl_absences_are_not_remembered() {
    for stack in stacks::all() {
        let cache = stack.plain::<u64>();
        let loads = Loads::default();
        kit::absent(&cache, "k", &loads).await;
        kit::absent(&cache, "k", &loads).await;
        assert_eq!(loads.count(), 2);
    }
}

#[tokio::test]
async fn n2_a_set_ends_an_absence() {
    for stack in stacks::all() {
        let cache = stack.cache::<u64>(policy());
        kit::absent(&cache, "k", &Loads::default()).await;
        kit::set(&cache, "k", 1_u64).await;
        assert_eq!(kit::get(&cache, "k").await, Some(1));
        if stack.remote.is_some() {
            let peer = stack.peer().named::<u64>(cache.name(), policy());
            assert_eq!(kit::get(&peer, "k").await, Some(1));
        }
    }
}

#[tokio::test]
async fn n2_an_invalidation_ends_an_absence() {
    for stack in stacks::all() {
        let cache = stack.cache::<u64>(policy());
        let loads = Loads::default();
        kit::absent(&cache, "k", &loads).await;
        kit::invalidate(&cache, "k").await;
        assert_eq!(kit::load(&cache, "k", &loads, 1_u64).await, 1);
    }
}

#[tokio::test]
async fn n5_what_is_gone_at_the_source_is_not_served_stale() {
    for stack in stacks::all() {
        for remembered in [true, false] {
            let base = if remembered { policy() } else { Policy::ttl(100 * S) };
            let policy = base.grace(10_000 * S);
            let name = unique("n5");
            let cache = stack.named::<u64>(&name, policy);
            kit::set(&cache, "k", 1_u64).await;
            stack.time.advance(100 * S);
            let found = kit::absent(&cache, "k", &Loads::default()).await;
            assert_eq!(found.value(), None);
            let fallback = cache.access(Access::AllowStale);
            assert_eq!(kit::get(&fallback, "k").await, None);
            let error = kit::fail(&cache, "k", &Loads::default()).await;
            assert!(error.map_or(true, |found| found.value().is_none()), "no stale value stands in");
            if stack.remote.is_some() {
                let peer = stack.peer().named::<u64>(&name, policy).access(Access::AllowStale);
                assert_eq!(kit::get(&peer, "k").await, None);
            }
        }
    }
}
