//! `invalidate` and `clear`.

use serde_json::{Value, json};
use test_servers::{RedisServer, until};
use traced_cache::{Loaded, TracedCache};

use crate::kit::{Place, Servers, WAIT, layered, run_with_input, utf8};

/// Loads `value`, unless a level has something.
async fn value(cache: &TracedCache<Value>, key: &str, value: u64) -> u64 {
    let value = cache.get_or_set(key, move || async move { traced_cache::ok(json!(value)) }).await.unwrap();
    value.as_u64().unwrap()
}

async fn tagged(cache: &TracedCache<Value>, key: &str, tag: &str) {
    let _ = cache.set_loaded(key, Loaded::value(json!(1)).tag(tag)).await.unwrap();
}

/// Waits until an application's cache, memory included, has nothing of it.
async fn gone(cache: &TracedCache<Value>, key: &str) {
    let deadline = std::time::Instant::now() + WAIT;
    while cache.get(key).await.unwrap().is_some() {
        assert!(std::time::Instant::now() < deadline, "{key} is still served");
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_are_gone_everywhere() {
    let servers = Servers::start();
    for url in servers.urls() {
        let place = Place::new(&layered(&url, ""));
        for (key, old) in [("1", 1), ("2", 2), ("3", 3)] {
            assert_eq!(value(&place.cache().await, key, old).await, old);
        }
        let (code, answer) = place.json("invalidate", &["users", "1", "2"]);
        assert_eq!(
            (code, &answer["delivery"], &answer["keys"]),
            (0, &"confirmed".into(), &2.into()),
            "{answer}"
        );
        assert_eq!(answer["undelivered"], json!([]));
        // Memory of other processes is not told here, and that is said.
        assert!(
            answer["notes"][0].as_str().unwrap().contains("may serve what they hold for up to 30s"),
            "{answer}"
        );
        let new = place.cache().await;
        assert_eq!(
            (value(&new, "1", 10).await, value(&new, "2", 20).await, value(&new, "3", 30).await),
            (10, 20, 3)
        );
        let ended = run_with_input(&["invalidate", utf8(&place.file), "users", "--keys-from", "-"], "3\n1\n");
        assert!(ended.code == 0 && ended.out.starts_with("confirmed: 2 keys of users"), "{ended:?}");
        assert_eq!(value(&place.cache().await, "3", 31).await, 31);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn memory_of_a_running_application_hears_of_it_by_the_backplane() {
    let servers = Servers::start();
    let Some(redis) = &servers.redis else { return };
    let place = Place::new(&layered(&redis.url(), "backplane = 'shared'\n"));
    let running = place.cache().await;
    assert_eq!(value(&running, "1", 1).await, 1);
    tagged(&running, "2", "team").await;
    tagged(&running, "3", "team").await;
    let (code, answer) = place.json("invalidate", &["users", "1"]);
    assert_eq!((code, &answer["notes"]), (0, &json!([])), "{answer}");
    gone(&running, "1").await;
    let (code, answer) = place.json("invalidate", &["users", "--tag", "team"]);
    assert_eq!((code, &answer["tags"]), (0, &1.into()));
    gone(&running, "2").await;
    gone(&running, "3").await;
    assert_eq!(value(&running, "4", 4).await, 4);
    assert_eq!(place.run("clear", &["users", "--yes"]).code, 0);
    gone(&running, "4").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tags_and_whole_caches_and_freshness() {
    let servers = Servers::start();
    for url in servers.urls() {
        let place = Place::new(&layered(&url, ""));
        let cache = place.cache().await;
        tagged(&cache, "a", "red").await;
        tagged(&cache, "b", "blue").await;
        let state = |key: &str| place.json("inspect", &["users", key]).1["levels"][1]["state"].clone();
        assert_eq!((state("a"), state("b")), ("fresh".into(), "fresh".into()));
        assert_eq!(place.json("invalidate", &["users", "--tag", "red"]).0, 0);
        assert_eq!((state("a"), state("b")), ("invalidated".into(), "fresh".into()));
        let (code, answer) = place.json("invalidate", &["users", "b", "--expire"]);
        assert_eq!((code, &answer["verb"], state("b")), (0, &"expire".into(), "stale".into()));
        let fresh = place.cache().await;
        tagged(&fresh, "c", "blue").await;
        for (options, verb, left) in [
            (&["users", "--yes", "--expire"][..], "expire", "stale"),
            (&["users", "--yes"], "clear", "invalidated"),
        ] {
            let (code, answer) = place.json("clear", options);
            assert_eq!((code, &answer["verb"], state("c")), (0, &verb.into(), left.into()));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_no_level_has_acknowledged_is_pending_and_says_so() {
    let servers = Servers::start();
    let Some(redis) = &servers.redis else { return };
    for stance in ["absorb", "surface"] {
        let shared = format!("[providers.shared.level]\nstance = '{stance}'\n");
        let place = Place::new(&layered(&redis.url(), &shared));
        assert_eq!(value(&place.cache().await, "1", 1).await, 1);
        redis.stop();
        for rest in [&["users", "1"][..], &["users", "--tag", "a"]] {
            let (code, answer) = place.json("invalidate", &[rest, &["--wait", "100ms"]].concat());
            assert_eq!((code, &answer["delivery"]), (4, &"pending".into()), "{stance}: {answer}");
            let left = &answer["undelivered"][0];
            assert_eq!((&left["level"], &left["name"]), (&2.into(), &rest.last().copied().into()));
            // Not a word alone that is for telemetry.
            let error = left["error"].as_str().unwrap();
            assert!(error == "no answer within its budget" || error.contains("Redis"), "{error}");
        }
        let ended = place.run("clear", &["users", "--yes", "--wait", "0s"]);
        assert!(ended.code == 4 && ended.out.starts_with("pending: the whole cache of users"), "{ended:?}");
        assert!(ended.out.contains("run it again when all of them are back"), "{ended:?}");
        redis.cont();
        assert!(until(WAIT, || place.run("check", &[]).code == 0));
        assert_eq!(place.json("invalidate", &["users", "1"]).0, 0);
    }
}

/// A query may come to no key at all: what else was named goes all the same.
#[tokio::test(flavor = "multi_thread")]
async fn no_key_in_a_file_is_nothing_to_do() {
    let servers = Servers::start();
    let Some(redis) = &servers.redis else { return };
    let place = Place::new(&layered(&redis.url(), ""));
    tagged(&place.cache().await, "a", "t").await;
    let from = |rest: &[&str], input: &[u8]| {
        let all = [&["invalidate", utf8(&place.file), "users", "--keys-from", "-"], rest].concat();
        run_with_input(&all, input)
    };
    let ended = from(&["--tag", "t"], b"");
    assert!(ended.code == 0 && ended.out.starts_with("confirmed: 1 tag of users"), "{ended:?}");
    assert_eq!(place.json("inspect", &["users", "a"]).1["levels"][1]["state"], "invalidated");
    let ended = from(&[], b"\n");
    assert!(ended.code == 0 && ended.out.starts_with("confirmed: 0 keys of users"), "{ended:?}");
    assert_eq!(run_with_input(&["get", utf8(&place.file), "users", "--keys-from", "-"], "").code, 0);
    let ended = from(&[], b"a\n\xff\n");
    assert!(ended.error().starts_with("error: standard input is no list of keys: "), "{ended:?}");
    assert!(ended.code == 1 && ended.error().ends_with("one key a line is wanted, in UTF-8"), "{ended:?}");
}

/// The level has heard; that others hear is told over another server.
#[tokio::test(flavor = "multi_thread")]
async fn what_the_backplane_has_not_taken_is_pending() {
    let (Some(redis), Some(bus)) = (RedisServer::start(), RedisServer::start()) else { return };
    let more = format!("backplane = 'bus'\n[providers.bus]\nbackend = 'redis'\nurl = '{}'\n", bus.url());
    let place = Place::new(&layered(&redis.url(), &more));
    let told = place.json("invalidate", &["users", "1"]);
    assert_eq!((told.0, &told.1["delivery"]), (0, &"confirmed".into()), "{}", told.1);
    bus.stop();
    for (verb, rest) in [
        ("invalidate", &["users", "1"][..]),
        ("invalidate", &["users", "--tag", "a", "--expire"]),
        ("clear", &["users", "--yes"]),
    ] {
        let (code, answer) = place.json(verb, &[rest, &["--wait", "100ms"]].concat());
        assert_eq!((code, &answer["delivery"]), (4, &"pending".into()), "{rest:?}: {answer}");
        let left = answer["undelivered"].as_array().unwrap();
        assert!(left.len() == 1 && left[0]["level"].is_null(), "{rest:?}: {answer}");
    }
    let ended = place.run("invalidate", &["users", "1", "--wait", "0s"]);
    assert!(ended.code == 4 && ended.out.contains("the backplane has not taken it"), "{ended:?}");
    // It is waited for, for as long as one cares to say.
    let (code, answer) = std::thread::scope(|scope| {
        let asked = scope.spawn(|| place.json("invalidate", &["users", "1", "--wait", "500000000000y"]));
        std::thread::sleep(std::time::Duration::from_millis(2_500));
        bus.cont();
        asked.join().unwrap()
    });
    assert_eq!((code, &answer["delivery"]), (0, &"confirmed".into()), "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_comes_back_in_time_is_confirmed() {
    let servers = Servers::start();
    let Some(redis) = &servers.redis else { return };
    let place = Place::new(&layered(&redis.url(), ""));
    assert_eq!(value(&place.cache().await, "1", 1).await, 1);
    redis.stop();
    let (code, answer) = std::thread::scope(|scope| {
        let asked = scope.spawn(|| place.json("invalidate", &["users", "1", "--wait", "30s"]));
        std::thread::sleep(std::time::Duration::from_millis(1_500));
        redis.cont();
        asked.join().unwrap()
    });
    assert_eq!((code, &answer["delivery"]), (0, &"confirmed".into()), "{answer}");
    assert_eq!(value(&place.cache().await, "1", 2).await, 2);
}
