//! Values of which serde knows nothing: they stay in memory, and everything else is as ever.

use traced_cache::{
    CacheProvider, Engine, ErrorKind, Loaded, Memory, Policy, TracedCache, testing::MapProvider,
};

use crate::kit::{Down, Loads, S};

/// Neither serde's, nor `Clone`, nor `Debug`.
struct Rule(Box<dyn Fn(u32) -> bool + Send + Sync>);

fn above(least: u32) -> Rule {
    Rule(Box::new(move |n| n > least))
}

fn rules(memory: Memory) -> TracedCache<Rule> {
    let policy = Policy::ttl(60 * S).grace(600 * S).absent_ttl(60 * S);
    TracedCache::in_memory("rules").level(memory).policy(policy).build().unwrap()
}

#[tokio::test]
async fn every_verb_works() {
    for engine in [Engine::Quick, Engine::Moka] {
        let cache = rules(Memory::entries(100).engine(engine));
        let loads = Loads::default();
        for _ in 0..2 {
            let loads = loads.clone();
            let rule = cache.get_or_set("five", || async move {
                loads.add();
                Ok::<_, Down>(Loaded::value(above(5)).tag("x"))
            });
            assert!((rule.await.unwrap().unwrap().0)(6));
        }
        assert_eq!(loads.count(), 1);
        assert!(cache.set("six", above(6)).await.unwrap().is_confirmed());
        let both = cache.get_many(["five", "six", "seven"]).await.unwrap();
        assert_eq!(both.iter().filter(|found| found.is_some()).count(), 2);

        let raised = cache.update("six", &(), |(), _, held| async move {
            let held = held.is_some_and(|rule| (rule.0)(7));
            Ok::<_, Down>(above(if held { 60 } else { 0 }))
        });
        assert!(!(raised.await.unwrap().value.0)(60));

        assert!(cache.expire("six").await.unwrap().is_confirmed());
        let stale = cache.get_or_set("six", || async { Err::<Rule, _>(Down(1)) }).await.unwrap();
        assert!((stale.0)(61), "what is held serves where the source fails");
        assert!(cache.invalidate_tag("x").await.unwrap().is_confirmed());
        assert!(cache.get("five").await.unwrap().is_none());

        let shown = cache.inspect_with_value("six").await.unwrap();
        assert!(shown.levels[0].entry.is_some() && shown.levels[0].value.is_none());
        assert!(cache.clear().await.unwrap().is_confirmed());
    }
}

#[tokio::test]
async fn bytes_are_counted_by_a_weigher_and_not_guessed() {
    let memory = || Memory::bytes(1 << 20);
    let error = TracedCache::<Rule>::in_memory("rules").level(memory()).build().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Config);
    assert!(error.to_string().contains("weigher") && error.to_string().contains("level 1"), "{error}");
    let cache = TracedCache::in_memory("rules").level(memory()).weigher(|_: &Rule| 1000).build().unwrap();
    assert!(cache.set("five", above(5)).await.unwrap().is_confirmed());
    assert!(cache.stats().levels[0].weight.unwrap() >= 1000);
}

#[tokio::test]
async fn a_level_of_bytes_is_refused() {
    let builder =
        TracedCache::<Rule>::in_memory("rules").level(Memory::entries(10)).level(MapProvider::new());
    let error = builder.build().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Config);
    let field = format!("level 2 ({}) provider", MapProvider::new().describe().system);
    assert!(error.to_string().contains(&field), "{error}");
}
