//! Caches that are asked for while another one is being built, and what all of a registry have in common.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use cache_core::testing::{Chaos, ChaosOp, Fault, MapProvider, ends_within};
use traced_cache::{Clock, Error, TracedCache, config::Format};

use crate::kit::{sealed, toml};

const FILE: &str = r#"
[providers.near]
backend = "memory"
entries = 10
[defaults]
levels = ["near"]
policy = { ttl = "1h" }
[caches.users]
[caches.groups]
"#;

#[test]
fn what_sets_a_cache_up_may_ask_for_others_and_for_itself() {
    ends_within(Duration::from_secs(10), move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let caches = runtime.block_on(toml(FILE)).unwrap();
        let _on = runtime.enter();
        let mut inner = None;
        let users: TracedCache<u32> = caches
            .cache_with("users", |builder| {
                let groups = caches.cache::<u32>("groups").unwrap();
                inner = Some(caches.cache::<u32>("users").unwrap());
                builder.weigher(move |_| u32::from(groups.name() == "groups"))
            })
            .unwrap();
        runtime.block_on(async {
            assert!(users.set("k", 1).await.unwrap().is_confirmed());
            assert_eq!(inner.unwrap().get("k").await.unwrap().as_deref(), Some(&1), "they are one");
        });
    });
}

/// Nobody can write it.
struct Handle(std::sync::mpsc::Sender<u32>);

#[tokio::test]
async fn values_of_any_type_stay_in_memory() {
    let text = r#"
[providers.near]
backend = "memory"
entries = 10
[providers.weighed]
backend = "memory"
bytes = "1MiB"
[providers.far]
backend = "memcached"
servers = ["memcached://127.0.0.1:1"]
[caches.handles]
levels = ["near"]
[caches.heavy]
levels = ["weighed"]
[caches.shared]
levels = ["near", "far"]
"#;
    let caches = toml(text).await.unwrap();
    let handle = || Handle(std::sync::mpsc::channel().0);
    let handles = caches.in_memory::<Handle>("handles").unwrap();
    assert!(handles.set("k", handle()).await.unwrap().is_confirmed());
    assert!(
        caches.in_memory::<Handle>("handles").unwrap().get("k").await.unwrap().unwrap().0.send(1).is_err()
    );
    let mistake = |name: &str| caches.in_memory::<Handle>(name).expect_err(name).to_string();
    assert!(mistake("heavy").contains("weigher"), "{}", mistake("heavy"));
    assert!(mistake("shared").contains("level 2 (memcached)"), "{}", mistake("shared"));
    let heavy = caches.in_memory_with("heavy", |builder| builder.weigher(|_: &Handle| 100)).unwrap();
    assert!(heavy.set("k", handle()).await.unwrap().is_confirmed());
}

/// Of the whole file: a test of an application builds none of its caches itself.
#[tokio::test]
async fn all_caches_of_a_file_go_by_the_clock_that_the_registry_was_given() {
    let (clock, time) = Clock::manual();
    let text = "[providers.local]\nbackend = \"memory\"\nentries = 10\n[defaults]\nlevels = [\"local\"]\n[caches.a]\n[caches.b]\n";
    let caches = sealed().clock(clock).from_text(Format::Toml, text).await.unwrap();
    let alike = caches.like::<u64>("a", "a2", |_| true).unwrap().build().unwrap();
    let all: [TracedCache<u64>; 3] = [caches.cache("a").unwrap(), caches.cache("b").unwrap(), alike];
    for cache in &all {
        assert!(cache.set("k", 1u64).await.unwrap().is_confirmed());
    }
    for (after, held) in [(59, Some(1)), (1, None)] {
        time.advance(Duration::from_secs(after));
        for cache in &all {
            assert_eq!(cache.get("k").await.unwrap().as_deref().copied(), held, "{}", cache.name());
        }
    }
}

/// Who asks how the stores are waits for the slowest, not for all in a row.
#[tokio::test]
async fn all_providers_are_asked_for_a_sign_of_life_at_once() {
    let text = "[providers.a]\nbackend = \"sick\"\n[providers.b]\nbackend = \"sick\"\n";
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("caches.toml");
    std::fs::write(&path, text).unwrap();
    for explained in [false, true] {
        let sick = Arc::new(Chaos::new(MapProvider::new()));
        sick.set_all(Fault::Hang);
        let theirs = Arc::clone(&sick);
        let builder =
            sealed().backend("sick", move |_: BTreeMap<String, String>| Ok::<_, Error>(Arc::clone(&theirs)));
        let path = path.clone();
        let asking = tokio::spawn(async move {
            match explained {
                true => drop(builder.explain_and_ping(path).await.unwrap()),
                false => drop(builder.from_text(Format::Toml, text).await.unwrap().ping().await),
            }
        });
        let both = tokio::time::timeout(Duration::from_secs(10), sick.until_calls(ChaosOp::Ping, 2));
        both.await.expect("one waits for the other");
        asking.abort();
    }
}
