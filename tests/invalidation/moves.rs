//! A level that goes on with another store, on purpose, while calls are under way at the last one.

use std::sync::Arc;

use traced_cache::{Delivery, Level, TracedCache, testing::MapProvider};

use crate::{
    pair::Pair,
    world::{S, World, confirmed, get, policy, set},
};

#[derive(Clone, Copy, Debug)]
enum Wide {
    Key,
    Tag,
    Clear,
}

struct Moving {
    world: World,
    from: Arc<Pair>,
    to: Arc<MapProvider>,
    here: TracedCache<String>,
}

impl Moving {
    /// This node is still at the first store, another one has gone on and stored `k` in the second.
    async fn new(named: bool) -> Self {
        let world = World::new();
        let store = |name| {
            let store = MapProvider::new().leasing().marking().clock(world.clock.clone());
            Arc::new(if named { store.incarnated(name) } else { store })
        };
        let (first, second) = (store(10), store(11));
        let node = |level: Level| {
            let builder =
                TracedCache::<String>::builder("things").clock(world.clock.clone()).policy(policy());
            builder.level(level.budget(60 * S)).build().unwrap()
        };
        let from = Pair::new(&first, &first);
        let here = node(Level::shared(Arc::clone(&from) as _));
        let there = node(Level::shared(Arc::clone(&first) as _));
        for cache in [&here, &there] {
            assert_eq!(get(cache, "warm").await, None);
        }
        there.move_level(0, Arc::clone(&second) as _).unwrap();
        set(&there, "k", "old", &["x"]).await;
        Self { here, from, to: second, world }
    }

    /// Invalidates, moves, and lets the first store answer only then.
    async fn late(&self, wide: Wide, reads: bool) -> bool {
        let (answered, go) = self.from.late();
        let cache = self.here.clone();
        let late = tokio::spawn(async move {
            match wide {
                Wide::Key => cache.invalidate("k").await,
                Wide::Tag => cache.invalidate_tag("x").await,
                Wide::Clear => cache.clear().await,
            }
        });
        answered.await.unwrap();
        self.here.move_level(0, Arc::clone(&self.to) as _).unwrap();
        if reads {
            assert_eq!(get(&self.here, "warm").await, None);
        }
        go.send(()).unwrap();
        late.await.unwrap().is_ok_and(Delivery::is_confirmed)
    }

    async fn is_gone(&self) -> bool {
        let mut gone = true;
        for _ in 0..3 {
            gone &= get(&self.here, "k").await.is_none();
            self.world.pass(S).await;
        }
        gone
    }
}

#[tokio::test]
async fn what_the_store_before_confirms_after_the_move_is_pending() {
    for named in [true, false] {
        for wide in [Wide::Key, Wide::Tag, Wide::Clear] {
            for reads in [true, false] {
                let moving = Moving::new(named).await;
                let what = format!("{wide:?}, named: {named}, read meanwhile: {reads}");
                assert!(!moving.late(wide, reads).await, "{what}");
                assert!(moving.is_gone().await, "{what}");
            }
        }
    }
}

/// The late answer is the mark of the store before: it must not pass for that of the one now.
#[tokio::test]
async fn a_late_answer_does_not_end_the_move() {
    for named in [true, false] {
        let moving = Moving::new(named).await;
        confirmed(moving.here.invalidate("k").await);
        moving.late(Wide::Tag, false).await;
        assert!(moving.is_gone().await, "named: {named}");
    }
}
