//! B: basics, and S13.

use std::{error::Error as _, sync::Arc};

use serde::{Deserialize, Serialize};
use traced_cache::{Codec, ErrorKind, MissReason, Outcome, Policy, SerdeValue, TracedCache};

use crate::{
    kit::{self, Down, Loads, Recorder, S},
    stacks::{self, Stack, unique},
};

#[tokio::test]
async fn b1_a_miss_is_typed_and_stores_nothing() {
    for stack in stacks::all() {
        let cache = stack.plain::<String>();
        assert_eq!(cache.get("k").await.unwrap(), None);
        let found = cache.look("k").await.unwrap();
        assert_eq!((found.outcome(), found.level(), found.value()), (Outcome::Miss, None, None));
        let stats = cache.stats();
        assert_eq!((stats.misses(), stats.lookups(), stats.loads), (2, 2, 0));
        if let Some(entries) = stats.levels[0].entries {
            assert_eq!(entries, 0);
        }
        if stack.remote.is_some() {
            assert_eq!(stack.hooks().count("put"), 0);
        }
    }
}

#[tokio::test]
async fn b2_the_second_call_is_a_hit() {
    for stack in stacks::all() {
        let cache = stack.plain::<u64>();
        let loads = Loads::default();
        assert_eq!(kit::load(&cache, "k", &loads, 42_u64).await, 42);
        assert_eq!(kit::load(&cache, "k", &loads, 43_u64).await, 42);
        assert_eq!(loads.count(), 1);
        let stats = cache.stats();
        assert_eq!((stats.misses(), stats.hits(), stats.lookups()), (1, 1, 2));
        assert_eq!(stats.hits_at(0), 1);
    }
}

#[tokio::test]
async fn b4_the_loaders_error_comes_back_and_is_not_remembered() {
    for stack in stacks::all() {
        let cache = stack.plain::<u64>();
        let loads = Loads::default();
        for round in 1..=2 {
            let error = kit::fail(&cache, "k", &loads).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Load);
            assert_eq!(error.load_error::<Down>(), Some(&Down(7)));
            assert!(error.source().is_some_and(|cause| cause.is::<Down>()));
            assert_eq!(loads.count(), round);
        }
        assert_eq!(kit::get(&cache, "k").await, None);
        let stats = cache.stats();
        assert_eq!((stats.loads, stats.load_errors, stats.misses()), (2, 2, 3));
    }
}

#[tokio::test]
async fn b5_invalidating_twice_succeeds() {
    for stack in stacks::all() {
        let cache = stack.plain::<u64>();
        kit::set(&cache, "k", 1_u64).await;
        assert_eq!(kit::get(&cache, "k").await, Some(1));
        kit::invalidate(&cache, "k").await;
        assert_eq!(kit::get(&cache, "k").await, None);
        kit::invalidate(&cache, "k").await;
        kit::invalidate(&cache, "never there").await;
        assert_eq!(kit::get(&cache, "k").await, None);
    }
}

async fn survives<T: SerdeValue + Clone>(stack: &Stack, codec: Codec, value: T, same: impl Fn(&T) -> bool) {
    let name = unique("b7");
    let build = |stack: &Stack| -> TracedCache<T> {
        let mut builder = TracedCache::builder(&name).clock(stack.clock.clone());
        if let Some(memory) = &stack.memory {
            builder = builder.level(memory.clone());
        }
        if let Some(remote) = &stack.remote {
            builder = builder.level(stacks::level(remote.clone()).codec(codec));
        }
        builder.build().unwrap()
    };
    let cache = build(stack);
    kit::set(&cache, "k", value).await;
    let reader = if stack.remote.is_some() { build(&stack.peer()) } else { cache };
    for level in [stack.far(), 0] {
        let found = reader.look("k").await.unwrap();
        assert!(found.is_hit(), "{codec:?}: {found:?}");
        if stack.remote.is_some() {
            assert_eq!(found.level(), Some(level));
        }
        assert!(same(found.value().unwrap()), "{codec:?}");
    }
}

#[tokio::test]
async fn b7_edge_values_come_back_bit_for_bit() {
    for stack in stacks::all() {
        for codec in [Codec::Json, Codec::MsgPack, Codec::Postcard] {
            survives(&stack, codec, false, |v| !v).await;
            survives(&stack, codec, 0_u8, |v| *v == 0).await;
            survives(&stack, codec, String::new(), String::is_empty).await;
            survives(&stack, codec, Vec::<u8>::new(), Vec::is_empty).await;
            survives(&stack, codec, i64::MIN, |v| *v == i64::MIN).await;
            survives(&stack, codec, u64::MAX, |v| *v == u64::MAX).await;
            survives(&stack, codec, (), |()| true).await;
            survives(&stack, codec, -0.0_f64, |v| v.to_bits() == (-0.0_f64).to_bits()).await;
            survives(&stack, codec, f64::MIN_POSITIVE / 2.0, |v| *v == f64::MIN_POSITIVE / 2.0).await;
            survives(&stack, codec, "*".to_owned(), |v| v == "*").await;
            survives(&stack, codec, None::<String>, Option::is_none).await;
        }
    }
}

#[tokio::test]
async fn b7_not_a_number_comes_back_from_binary_codecs() {
    for stack in stacks::all() {
        for codec in [Codec::MsgPack, Codec::Postcard] {
            survives(&stack, codec, f64::NAN, |v| v.to_bits() == f64::NAN.to_bits()).await;
            survives(&stack, codec, f64::NEG_INFINITY, |v| *v == f64::NEG_INFINITY).await;
        }
    }
}

/// JSON would say `null`, and the next reader would get `None`.
#[tokio::test]
async fn b7_json_does_not_turn_not_a_number_into_none() {
    for stack in stacks::all().filter(|stack| stack.remote.is_some()) {
        let name = unique("b7");
        let build = |stack: &Stack, recorder: &Recorder| -> TracedCache<Option<f64>> {
            let mut builder =
                TracedCache::builder(&name).clock(stack.clock.clone()).observer(recorder.clone());
            if let Some(memory) = &stack.memory {
                builder = builder.level(memory.clone());
            }
            let remote = stacks::level(stack.remote.clone().expect("it has one"));
            builder.level(remote.codec(Codec::Json)).build().unwrap()
        };
        let seen = Recorder::default();
        let (cache, other) = (build(&stack, &seen), build(&stack.peer(), &Recorder::default()));
        kit::set(&cache, "k", Some(1.5)).await;
        assert_eq!(kit::get(&other, "k").await, Some(Some(1.5)));

        let loads = Loads::default();
        kit::invalidate(&cache, "k").await;
        let found = kit::look(&cache, "k", &loads, Some(f64::NAN)).await;
        assert!(found.value().unwrap().is_some_and(f64::is_nan), "the caller keeps it");
        assert_eq!(seen.count(&format!("not_encoded {}", stack.far())), 1, "{:?}", seen.all());
        let fresh = build(&stack.peer(), &Recorder::default());
        assert_eq!(kit::outcome(&fresh, "k").await, Outcome::Miss, "neither null nor the value of before");
        if stack.memory.is_some() {
            let near = cache.look("k").await.unwrap();
            assert_eq!(near.level(), Some(0));
            assert!(near.value().unwrap().is_some_and(f64::is_nan), "and so does the level in memory");
        }
    }
}

/// `Some(None)` would be read as `None` by the next reader.
#[tokio::test]
async fn b7_an_option_in_an_option_comes_back_as_it_was_or_not_at_all() {
    for stack in stacks::all().filter(|stack| stack.remote.is_some()) {
        for codec in [Codec::Json, Codec::MsgPack, Codec::Postcard] {
            let name = unique("b7");
            let build = |stack: &Stack| -> TracedCache<Vec<Option<Option<u8>>>> {
                let remote = stacks::level(stack.remote.clone().expect("it has one"));
                let builder = TracedCache::builder(&name).clock(stack.clock.clone());
                builder.level(remote.codec(codec)).build().unwrap()
            };
            let (cache, other) = (build(&stack), build(&stack.peer()));
            for value in [vec![Some(Some(1)), None], vec![Some(None)]] {
                let tells = codec == Codec::Postcard || !value.contains(&Some(None));
                match tells {
                    true => kit::set(&cache, "k", value.clone()).await,
                    false => kit::set_nowhere(&cache, "k", value.clone()).await,
                }
                assert_eq!(kit::get(&other, "k").await, tells.then_some(value), "{codec:?}");
            }
        }
    }
}

/// Panics when 13 is read, and when 14 is written.
#[derive(Clone, Debug, PartialEq)]
struct Superstitious(u8);

impl Serialize for Superstitious {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        assert_ne!(self.0, 14, "as the test wants it");
        serializer.serialize_u8(self.0)
    }
}

impl<'de> Deserialize<'de> for Superstitious {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let number = u8::deserialize(deserializer)?;
        assert_ne!(number, 13, "as the test wants it");
        Ok(Self(number))
    }
}

#[tokio::test]
async fn a_value_whose_own_code_panics_is_a_miss_and_replaced() {
    for stack in stacks::all().filter(|stack| stack.remote.is_some()) {
        for codec in [Codec::Json, Codec::MsgPack, Codec::Postcard] {
            let name = unique("panics");
            let build = |stack: &Stack| -> TracedCache<Superstitious> {
                let remote = stacks::level(stack.remote.clone().expect("it has one"));
                let builder = TracedCache::builder(&name).clock(stack.clock.clone());
                builder.level(remote.codec(codec)).build().unwrap()
            };
            let (cache, loads) = (build(&stack), Loads::default());
            kit::set(&cache, "k", Superstitious(13)).await;
            assert_eq!(cache.look("k").await.unwrap().outcome(), Outcome::Miss);
            assert_eq!(cache.stats().missed(MissReason::Unreadable), 1);
            assert_eq!(kit::load(&cache, "k", &loads, Superstitious(1)).await, Superstitious(1));
            assert_eq!(kit::get(&build(&stack.peer()), "k").await, Some(Superstitious(1)));

            kit::set_nowhere(&cache, "k", Superstitious(14)).await;
            assert_eq!(kit::get(&cache, "k").await, None, "not stored there, and nothing older is");
            kit::invalidate(&cache, "k").await;
            assert_eq!(kit::load(&cache, "k", &loads, Superstitious(14)).await, Superstitious(14));
        }
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Named {
    name: String,
}

#[tokio::test]
async fn b8_nobody_changes_what_another_sees() {
    for stack in stacks::all() {
        let cache = stack.plain::<Named>();
        let mut given = Arc::new(Named { name: "original".into() });
        assert!(cache.set("k", Arc::clone(&given)).await.unwrap().is_confirmed());
        Arc::make_mut(&mut given).name.push_str(", changed by the writer");
        let mut got = cache.get("k").await.unwrap().unwrap();
        Arc::make_mut(&mut got).name.push_str(", changed by a reader");
        assert_eq!(kit::get(&cache, "k").await, Some(Named { name: "original".into() }));
    }
}

#[tokio::test]
async fn b10_names_keep_caches_apart() {
    for stack in stacks::all() {
        let users = stack.plain::<String>();
        let orders = stack.plain::<u64>();
        kit::set(&users, "k", "a user").await;
        assert_eq!(kit::get(&orders, "k").await, None);
        kit::set(&orders, "k", 7_u64).await;
        assert_eq!(kit::get(&users, "k").await, Some("a user".into()));
        assert_eq!(kit::get(&orders, "k").await, Some(7));
        kit::invalidate(&orders, "k").await;
        assert_eq!(kit::get(&users, "k").await, Some("a user".into()));
    }
}

#[tokio::test]
async fn b11_another_type_under_the_name_is_a_miss_and_one_event() {
    for stack in stacks::all() {
        let name = unique("b11");
        let old = stack.named::<String>(&name, Policy::ttl(100 * S));
        kit::set(&old, "k", "text").await;
        let events = Recorder::default();
        let new: TracedCache<u64> = stack
            .peer()
            .builder(&name)
            .policy(Policy::ttl(100 * S))
            .observer(events.clone())
            .build()
            .unwrap();
        let loads = Loads::default();
        assert_eq!(kit::load(&new, "k", &loads, 9_u64).await, 9);
        assert_eq!(kit::load(&new, "k", &loads, 9_u64).await, 9);
        assert_eq!(loads.count(), 1);
        if stack.remote.is_some() {
            assert_eq!(events.count(&format!("unreadable {} payload", stack.far())), 1, "{:?}", events.all());
        }
    }
}

#[tokio::test]
async fn b11_two_types_share_one_memory() {
    let stack = stacks::all().next().unwrap();
    let (text, number) = (
        stack.named::<String>("b11-shared", Policy::ttl(100 * S)),
        stack.named::<u64>("b11-shared", Policy::ttl(100 * S)),
    );
    kit::set(&text, "k", "text").await;
    assert_eq!(kit::get(&number, "k").await, None);
    kit::set(&number, "k", 1_u64).await;
    assert_eq!(kit::get(&text, "k").await, Some("text".into()));
}
