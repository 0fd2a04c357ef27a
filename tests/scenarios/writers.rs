//! Writers of one key that overlap: the levels agree afterwards.

use crate::{
    hooks::At,
    kit::{self, Loads},
    races::{elsewhere, layered},
};

#[tokio::test]
async fn overlapping_sets_leave_the_levels_agreeing() {
    for stack in layered() {
        for at in [At::BeforePut, At::AfterPut] {
            let cache = stack.plain::<u64>();
            kit::set(&cache, "other", 0_u64).await;
            let gate = stack.hooks().hold(at);
            let set = |value: u64| {
                let cache = cache.clone();
                tokio::spawn(async move { cache.set("k", value).await })
            };
            let first = set(1);
            gate.reached().await;
            let second = set(2);
            kit::settle().await;
            gate.open();
            assert!(kit::patient(first).await.unwrap().unwrap().is_confirmed());
            assert!(kit::patient(second).await.unwrap().unwrap().is_confirmed());
            let here = kit::get(&cache, "k").await;
            assert_eq!((here, elsewhere(&stack, &cache).await), (Some(2), Some(2)), "{at:?}");
        }
    }
}

#[tokio::test]
async fn a_set_and_an_invalidation_that_overlap_leave_the_levels_agreeing() {
    for stack in layered() {
        for invalidation_first in [true, false] {
            let cache = stack.plain::<u64>();
            kit::set(&cache, "k", 0_u64).await;
            let gate = stack.hooks().hold(if invalidation_first { At::BeforeRemove } else { At::BeforePut });
            let run = |invalidates: bool| {
                let cache = cache.clone();
                tokio::spawn(async move {
                    if invalidates { cache.invalidate("k").await } else { cache.set("k", 1_u64).await }
                })
            };
            let first = run(invalidation_first);
            gate.reached().await;
            let second = run(!invalidation_first);
            kit::settle().await;
            gate.open();
            assert!(kit::patient(first).await.unwrap().unwrap().is_confirmed());
            assert!(kit::patient(second).await.unwrap().unwrap().is_confirmed());
            let here = kit::get(&cache, "k").await;
            assert_eq!(here, elsewhere(&stack, &cache).await);
            assert_eq!(here, invalidation_first.then_some(1), "the later one counts");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_writers_of_one_key_leave_the_levels_agreeing() {
    for stack in layered() {
        let cache = stack.plain::<u64>();
        for round in 0..20_u64 {
            let writers: Vec<_> = (0..8_u64)
                .map(|writer| {
                    let cache = cache.clone();
                    tokio::spawn(async move {
                        for n in 0..5 {
                            match (writer + n) % 4 {
                                0 => drop(cache.invalidate("k").await.unwrap()),
                                1 => drop(kit::load(&cache, "k", &Loads::default(), round).await),
                                _ => drop(cache.set("k", round * 100 + writer * 10 + n).await.unwrap()),
                            }
                        }
                    })
                })
                .collect();
            for writer in writers {
                kit::moving(&stack.time, writer).await.unwrap();
            }
            let below = elsewhere(&stack, &cache).await;
            assert_eq!(kit::get(&cache, "k").await, below, "round {round}");
        }
        assert_eq!((cache.stats().flights, cache.stats().pending), (0, 0));
    }
}
