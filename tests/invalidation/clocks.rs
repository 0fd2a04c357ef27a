//! Nodes whose wall clocks are an hour apart: no clock decides whether an invalidation applies.

use futures::future::BoxFuture;
use traced_cache::{Clock, Level, Memory, Time, TracedCache, testing::Chaos};

use crate::world::{S, Source, World, confirmed, get, policy, set, settled};

const HOUR_MS: i64 = 3_600_000;

/// A node of the world whose wall clock is off.
fn node(world: &World, off_ms: i64, memory: bool) -> (TracedCache<String>, Time) {
    let (clock, time) = Clock::manual();
    time.jump_wall(off_ms);
    let mut builder = TracedCache::builder("things").clock(clock.clone()).policy(policy());
    if memory {
        builder = builder.level(Memory::entries(1_000)).backplane(world.hub.node());
    }
    let l2 = Chaos::new(std::sync::Arc::clone(&world.store)).clock(clock);
    (builder.level(Level::new(l2).breaker(None)).build().unwrap(), time)
}

type Act = for<'a> fn(&'a TracedCache<String>) -> BoxFuture<'a, ()>;

#[tokio::test]
async fn what_is_invalidated_is_gone_whatever_the_clocks_say() {
    for (here, there) in [(HOUR_MS, 0), (0, HOUR_MS), (-HOUR_MS, HOUR_MS)] {
        for memory in [true, false] {
            let world = World::new();
            let ((a, a_time), (b, b_time)) = (node(&world, here, memory), node(&world, there, memory));
            let acts: [Act; 5] = [
                |cache| Box::pin(async { confirmed(cache.invalidate("k").await) }),
                |cache| Box::pin(async { confirmed(cache.invalidate_tag("x").await) }),
                |cache| Box::pin(async { confirmed(cache.clear().await) }),
                |cache| Box::pin(async { confirmed(cache.expire("k").await) }),
                |cache| Box::pin(set(cache, "k", "new", &["x"])),
            ];
            for (nth, act) in acts.into_iter().enumerate() {
                for (by, other) in [(&a, &b), (&b, &a)] {
                    set(by, "k", "old", &["x"]).await;
                    get(other, "k").await;
                    // A load of the other node is under way meanwhile, of what the source had before.
                    let source = Source::new();
                    source.has("k", "old", &["x"]);
                    source.gate();
                    confirmed(by.invalidate("k").await);
                    let late = source.asking(other, "k").await;
                    act(by).await;
                    source.open();
                    late.await.unwrap();
                    settled().await;
                    // Without a backplane the other node looks at the marks once in a period.
                    if !memory {
                        for time in [&world.time, &a_time, &b_time] {
                            time.advance(S);
                        }
                    }
                    for (who, cache) in [("by", by), ("other", other)] {
                        let seen = get(cache, "k").await;
                        assert_ne!(
                            seen.as_deref(),
                            Some("old"),
                            "{who}, act {nth}, {here} and {there} ms off, memory: {memory}"
                        );
                    }
                    confirmed(by.invalidate("k").await);
                }
            }
        }
    }
}
