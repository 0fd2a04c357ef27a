//! The list over providers without a server, and over providers that break it.

use async_trait::async_trait;
use bytes::Bytes;

use super::*;
use crate::{
    BoxError, Description, Put, RawKey,
    testing::{Chaos, ChaosOp, Fault, MapProvider},
};

fn narrow() -> Capabilities {
    Capabilities::remote().ttl_step(Duration::from_millis(100)).key_max(250).value_max(1 << 17)
}

#[test]
fn names_are_unique() {
    let names: std::collections::BTreeSet<_> = all().map(|behaviour| behaviour.name).collect();
    assert_eq!(names.len(), all().count());
}

#[tokio::test]
async fn a_map_conforms() {
    let report = run(Arc::new(MapProvider::new()), Options::default()).await;
    assert!(report.not_applicable.contains(&"too_large_leaves_nothing"));
    assert!(report.excepted.is_empty());
}

#[tokio::test]
async fn a_map_with_limits_conforms() {
    let report = run(Arc::new(MapProvider::with(narrow())), Options::default()).await;
    assert_eq!(report.not_applicable, ["sub_second_ttl"]);
}

#[tokio::test]
async fn a_decorator_without_faults_conforms() {
    let chaos = Arc::new(Chaos::new(MapProvider::with(narrow().ttl_step(Duration::from_millis(1)))));
    let report = run(Arc::clone(&chaos) as Arc<dyn CacheProvider>, Options::default()).await;
    assert_eq!(report.checked.len(), all().count());
    assert!(chaos.calls(ChaosOp::Get) > 100);
}

#[tokio::test]
async fn a_slow_decorator_conforms() {
    let chaos = Chaos::new(MapProvider::new());
    chaos.set_all(Fault::Delay(Duration::from_micros(1)));
    let some = ["put_then_get", "concurrent_calls_do_not_mix_up", "dropped_calls_leave_it_usable"];
    for behaviour in all().filter(|behaviour| some.contains(&behaviour.name)) {
        behaviour.check(&chaos).await;
    }
}

/// Puts go on without their caller, each item a while after the one before.
struct GoesOn(Arc<MapProvider>, Option<Arc<tokio::sync::Mutex<()>>>);

impl GoesOn {
    /// The turn of a write, which its work takes along.
    async fn turn(&self) -> Option<tokio::sync::OwnedMutexGuard<()>> {
        match &self.1 {
            Some(turn) => Some(Arc::clone(turn).lock_owned().await),
            None => None,
        }
    }
}

#[async_trait]
impl CacheProvider for GoesOn {
    fn capabilities(&self) -> Capabilities {
        self.0.capabilities()
    }

    fn describe(&self) -> Description {
        self.0.describe()
    }

    async fn get_many(&self, keys: &[RawKey<'_>]) -> Vec<Result<Option<Bytes>, BoxError>> {
        self.0.get_many(keys).await
    }

    async fn put_many(&self, items: &[Put<'_>]) -> Vec<Result<(), BoxError>> {
        let turn = self.turn().await;
        let own = |item: &Put<'_>| {
            (item.key.cache, item.key.namespace.to_owned(), item.key.id.to_owned(), item.bytes.clone())
        };
        let (items, store): (Vec<_>, _) = (items.iter().map(own).collect(), Arc::clone(&self.0));
        let work = tokio::spawn(async move {
            let _turn = turn;
            let mut results = Vec::new();
            for (cache, namespace, id, bytes) in items {
                tokio::time::sleep(Duration::from_micros(10)).await;
                let key = RawKey::new(cache, &namespace, &id);
                results.push(store.put(Put { key, bytes, ttl: Duration::MAX }).await);
            }
            results
        });
        work.await.unwrap()
    }

    async fn remove_many(&self, keys: &[RawKey<'_>]) -> Vec<Result<(), BoxError>> {
        let _turn = self.turn().await;
        self.0.remove_many(keys).await
    }
}

#[tokio::test]
async fn a_dropped_put_that_comes_late_is_found() {
    let held = async |turn| {
        let provider = GoesOn(Arc::new(MapProvider::new()), turn);
        AssertUnwindSafe(dropped_puts_are_not_late(&provider)).catch_unwind().await.is_ok()
    };
    assert!(!held(None).await, "it did not notice");
    assert!(held(Some(Arc::default())).await, "a turn for each write is enough");
}

/// How a provider can be wrong.
#[derive(Clone, Copy, PartialEq)]
enum Wrong {
    FoldsCase,
    TrimsKeys,
    CutsLongKeys,
    IgnoresNamespaces,
    IgnoresTtl,
    ForgetsTooEarly,
    RoundsToSeconds,
    KeepsOldWhenRefused,
    Reverses,
    DropsMissing,
    RemovesNothing,
    ReplacesNothing,
    FailsOnMiss,
    EndsAtZero,
    SpoilsBatches,
    AnswersBackwards,
    TellsKeys,
    TellsValues,
    CutsLargeValues,
    CutsVeryLongKeys,
    GoesByCache,
    GoesByHash,
}

struct Broken(MapProvider, Wrong);

impl Broken {
    fn id(&self, key: &RawKey<'_>) -> String {
        match self.1 {
            Wrong::FoldsCase => key.id.to_lowercase(),
            Wrong::TrimsKeys => key.id.trim().to_owned(),
            Wrong::CutsLongKeys => key.id.chars().take(250).collect(),
            Wrong::CutsVeryLongKeys => key.id.chars().take(1 << 16).collect(),
            Wrong::GoesByCache => format!("{}{}", key.cache.0, key.id),
            Wrong::GoesByHash => format!("{:x}{}", key.hash, key.id),
            _ => key.id.to_owned(),
        }
    }

    fn namespace<'a>(&self, key: &RawKey<'a>) -> &'a str {
        if self.1 == Wrong::IgnoresNamespaces {
            key.namespace.split_once('.').map_or("", |(t, _)| t)
        } else {
            key.namespace
        }
    }
}

#[async_trait]
impl CacheProvider for Broken {
    fn capabilities(&self) -> Capabilities {
        self.0.capabilities()
    }

    fn describe(&self) -> Description {
        self.0.describe()
    }

    async fn get_many(&self, keys: &[RawKey<'_>]) -> Vec<Result<Option<Bytes>, BoxError>> {
        let mut found = Vec::new();
        for key in keys {
            let id = self.id(key);
            found.push(self.0.get(RawKey { namespace: self.namespace(key), id: &id, ..*key }).await);
        }
        match self.1 {
            Wrong::Reverses => found.reverse(),
            Wrong::DropsMissing => found.retain(|found| matches!(found, Ok(Some(_)))),
            Wrong::FailsOnMiss if found.iter().any(|found| matches!(found, Ok(None))) => {
                return keys.iter().map(|_| Err("not found".into())).collect();
            }
            _ => {}
        }
        found
    }

    async fn put_many(&self, items: &[Put<'_>]) -> Vec<Result<(), BoxError>> {
        let mut results = Vec::new();
        for item in items {
            let id = self.id(&item.key);
            let key = RawKey { namespace: self.namespace(&item.key), id: &id, ..item.key };
            let large = self.capabilities().value_max.is_some_and(|max| item.bytes.len() > max);
            if large && self.1 == Wrong::KeepsOldWhenRefused {
                results.push(Err("too large".into()));
                continue;
            }
            let told = match self.1 {
                Wrong::TellsKeys => Some(format!("too large: {}", item.key.joined())),
                Wrong::TellsValues => Some(format!("too large: {:?}", &item.bytes[..100])),
                _ => None,
            };
            if large && let Some(told) = told {
                self.0.remove(key).await.unwrap();
                results.push(Err(told.into()));
                continue;
            }
            if large && self.1 == Wrong::SpoilsBatches {
                return items.iter().map(|_| Err("too large".into())).collect();
            }
            if self.1 == Wrong::ReplacesNothing && self.0.get(key).await.is_ok_and(|found| found.is_some()) {
                results.push(Ok(()));
                continue;
            }
            let seconds = Duration::from_secs(item.ttl.as_secs());
            let ttl = match self.1 {
                Wrong::IgnoresTtl => Duration::MAX,
                Wrong::ForgetsTooEarly => item.ttl / 4,
                Wrong::RoundsToSeconds => seconds.saturating_add(Duration::from_secs(1)),
                _ => item.ttl,
            };
            let end = item.bytes.iter().position(|byte| *byte == 0 && self.1 == Wrong::EndsAtZero);
            let most = if self.1 == Wrong::CutsLargeValues { 1 << 20 } else { usize::MAX };
            let bytes = item.bytes.slice(..end.unwrap_or(item.bytes.len()).min(most));
            results.push(self.0.put(Put { key, bytes, ttl }).await);
        }
        if self.1 == Wrong::AnswersBackwards {
            results.reverse();
        }
        results
    }

    async fn remove_many(&self, keys: &[RawKey<'_>]) -> Vec<Result<(), BoxError>> {
        if self.1 != Wrong::RemovesNothing {
            for key in keys {
                let id = self.id(key);
                self.0.remove(RawKey { namespace: self.namespace(key), id: &id, ..*key }).await.unwrap();
            }
        }
        keys.iter().map(|_| Ok(())).collect()
    }
}

/// A list that nothing can fail would be worth nothing.
#[tokio::test]
async fn each_breach_is_found() {
    let breaches = [
        (Wrong::FoldsCase, "keys_are_case_sensitive"),
        (Wrong::TrimsKeys, "odd_characters_in_keys"),
        (Wrong::CutsLongKeys, "long_keys_are_apart"),
        (Wrong::IgnoresNamespaces, "namespaces_are_apart"),
        (Wrong::ForgetsTooEarly, "ttl_expires"),
        (Wrong::KeepsOldWhenRefused, "too_large_leaves_nothing"),
        (Wrong::KeepsOldWhenRefused, "a_refused_item_spoils_no_batch"),
        (Wrong::SpoilsBatches, "a_refused_item_spoils_no_batch"),
        (Wrong::Reverses, "batch_keeps_order_and_length"),
        (Wrong::Reverses, "a_thousand_keys_in_a_batch"),
        (Wrong::DropsMissing, "duplicates_in_a_batch"),
        (Wrong::DropsMissing, "miss_is_none"),
        (Wrong::RemovesNothing, "remove_makes_a_miss"),
        (Wrong::RemovesNothing, "batch_removes"),
        (Wrong::ReplacesNothing, "overwrite_replaces"),
        (Wrong::ReplacesNothing, "overwrite_replaces_the_ttl"),
        (Wrong::FailsOnMiss, "miss_is_none"),
        (Wrong::EndsAtZero, "every_byte_survives"),
        (Wrong::EndsAtZero, "one_byte_value"),
        (Wrong::AnswersBackwards, "a_refused_item_spoils_no_batch"),
        (Wrong::TellsKeys, "refusals_are_discreet"),
        (Wrong::TellsValues, "refusals_are_discreet"),
        (Wrong::GoesByCache, "other_processes_find_it"),
        (Wrong::GoesByHash, "other_processes_find_it"),
    ];
    for (wrong, name) in breaches {
        assert!(fails(wrong, name).await, "{name} did not notice");
    }
}

/// What a limit of this list's own provider would keep away.
#[tokio::test]
async fn what_is_cut_without_a_limit_is_found() {
    for (wrong, name) in [
        (Wrong::CutsLargeValues, "larger_values_come_whole"),
        (Wrong::CutsVeryLongKeys, "long_keys_are_apart"),
    ] {
        let broken = Broken(MapProvider::new(), wrong);
        assert!(breaks(&broken, name).await, "{name} did not notice");
    }
}

#[tokio::test]
async fn wrong_ttls_are_found() {
    let rounds = fails(Wrong::RoundsToSeconds, "sub_second_ttl");
    let ignores = fails(Wrong::IgnoresTtl, "ttl_expires");
    assert_eq!(futures::join!(rounds, ignores), (true, true));
}

async fn fails(wrong: Wrong, name: &str) -> bool {
    let broken = Broken(MapProvider::with(narrow().ttl_step(Duration::from_millis(1))), wrong);
    breaks(&broken, name).await
}

async fn breaks(broken: &Broken, name: &str) -> bool {
    let behaviour = all().find(|behaviour| behaviour.name == name).unwrap();
    assert!(behaviour.applies(&broken.capabilities()));
    AssertUnwindSafe(behaviour.check(broken)).catch_unwind().await.is_err()
}

#[tokio::test]
#[should_panic(expected = "map does not conform: ping_answers (not over after")]
async fn a_call_that_hangs_is_a_failure_with_a_name() {
    let chaos = Chaos::new(MapProvider::new());
    chaos.set(ChaosOp::Ping, Fault::Hang);
    let mut options = Options { limit: Duration::from_millis(50), ..Options::default() };
    for behaviour in all().filter(|behaviour| behaviour.name != "ping_answers") {
        options = options.except(behaviour.name, "not the point");
    }
    run(Arc::new(chaos), options).await;
}

#[tokio::test]
#[should_panic(
    expected = "except = sub_second_tll: there is no such behaviour; use one of capabilities_make_sense, "
)]
async fn an_exception_that_is_misspelt_is_told_the_names() {
    let options = Options::default().except("sub_second_tll", "whole seconds only");
    run(Arc::new(MapProvider::new()), options).await;
}

/// Each behaviour would wait as long.
#[tokio::test]
#[should_panic(
    expected = "map does not conform: miss_is_none (not over after 50ms); not tried after that: 3"
)]
async fn the_first_call_that_hangs_is_the_last() {
    let chaos = Chaos::new(MapProvider::new());
    chaos.set(ChaosOp::Get, Fault::Hang);
    let list = all().filter(|behaviour| {
        ["ping_answers", "miss_is_none", "put_then_get", "overwrite_replaces", "empty_batch"]
            .contains(&behaviour.name)
    });
    let options = Options { limit: Duration::from_millis(50), ..Options::default() };
    run_all(list.collect(), Arc::new(chaos), options).await;
}
