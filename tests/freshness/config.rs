//! K3: contradictory settings are refused when the cache is built, with field and fix. K4: one field alone.

use std::sync::Arc;

use traced_cache::{Breaker, Early, ErrorKind, Level, Loaded, Outcome, Policy, TracedCache};

use crate::world::{MS, S, World, ZERO, ask, look, memory, saw};

fn refused(level: impl Into<Level>, policy: Policy, field: &str, fix: &str) {
    let world = World::new();
    let error = world.builder(policy).level(level).build().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Config);
    let text = error.to_string();
    assert!(text.contains(&format!("{field} = ")) && text.contains(fix), "{field}: {text}");
}

#[test]
fn k3_contradictions_are_refused_with_field_and_fix() {
    let ttl = Policy::ttl(10 * S);
    refused(memory(), Policy::ttl(ZERO), "policy.ttl", "above zero");
    // F5: a maximum age below the ttl.
    refused(memory(), Policy::ttl(5 * S).grace(S), "policy.grace", "raise it above the ttl");
    refused(memory(), ttl.grace(12 * S).revalidate(5 * S), "policy.revalidate", "raise grace to at least");
    refused(memory(), ttl.revalidate(5 * S), "policy.revalidate", "raise grace to at least");
    refused(memory(), ttl.grace(60 * S).soft_limit(40 * S), "policy.soft_limit", "lower it");
    refused(memory(), ttl.soft_limit(S), "policy.soft_limit", "set policy.grace");
    refused(memory(), ttl.hard_limit(Some(ZERO)), "policy.hard_limit", "above zero");
    refused(memory(), ttl.early(Early::Fraction(1.0)), "policy.early", "below 1");
    refused(memory(), ttl.loads(0), "policy.loads", "at least 1");
    let world = World::new();
    let level = || Level::new(Arc::clone(&world.l2));
    refused(level().ttl_cap(11 * S), ttl, "ttl_cap", "lower it");
    refused(level().ttl_cap(ZERO), ttl, "ttl_cap", "leave the level out");
    refused(level().budget(ZERO), ttl, "budget", "above zero");
    refused(level().breaker(Some(Breaker::default().failure_rate(0.0))), ttl, "failure_rate", "up to 1");
    refused(level().breaker(Some(Breaker::default().min_calls(0))), ttl, "min_calls", "above zero");
    // Up to the maximum age a cap says something.
    let _ = world.builder(ttl.grace(20 * S)).level(level().ttl_cap(20 * S)).build().unwrap();
    let none: Result<TracedCache<String>, _> = world.builder(ttl).build();
    let error = none.unwrap_err();
    assert_eq!((error.cache(), error.setting().map(|[field, ..]| field)), (Some("things"), Some("levels")));
}

#[tokio::test]
async fn k4_an_answer_with_only_a_ttl_keeps_all_other_defaults() {
    let world = World::new();
    let policy = Policy::ttl(10 * S).grace(60 * S).throttle(2 * S).soft_limit(100 * MS);
    let (cache, db) = (world.node(policy), world.db());
    db.answers(|| Ok(Loaded::value("1".to_owned()).ttl(S)));
    ask(&cache, &db).await.unwrap();
    world.pass(S).await;
    assert_eq!(look(&cache).await, crate::world::MISS, "its own ttl");
    db.fails();
    for loads in [2, 2] {
        assert_eq!(ask(&cache, &db).await, saw(Outcome::Stale, "1"), "the policy's grace");
        assert_eq!(db.loads(), loads, "the policy's throttle");
    }
    world.pass(59 * S).await;
    assert_eq!(ask(&cache, &db).await, Err(ErrorKind::Load), "the policy's maximum age");
}

#[tokio::test]
async fn k4_a_policy_with_only_a_ttl_keeps_all_other_defaults() {
    let world = World::new();
    let (cache, db) = (world.node(Policy::ttl(10 * S)), world.db());
    db.takes(1_000 * S);
    let caller = crate::world::asking(&cache, &db).await;
    world.pass(30 * S).await;
    assert_eq!(caller.await.unwrap(), Err(ErrorKind::LoadTimeout), "a hard limit of 30 s");
    db.takes(ZERO);
    ask(&cache, &db).await.unwrap();
    world.pass(10 * S).await;
    db.fails();
    assert_eq!(ask(&cache, &db).await, Err(ErrorKind::Load), "no grace");
}
