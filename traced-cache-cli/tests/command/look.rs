//! `get` and `inspect`.

use serde_json::{Value, json};
use traced_cache::Loaded;

use crate::kit::{Place, Servers, layered, run_with_input, utf8};

async fn set(place: &Place, key: &str, value: Loaded<Value>) {
    let delivery = place.cache().await.set_loaded(key, value).await.unwrap();
    assert!(delivery.is_confirmed());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_application_has_stored_is_seen_and_no_value_unless_asked_for() {
    let servers = Servers::start();
    for url in servers.urls() {
        let place = Place::new(&layered(&url, ""));
        set(
            &place,
            "42",
            Loaded::value(json!({ "name": "Ada", "id": 18446744073709551615u64 })).tags(["a"]).etag("v1"),
        )
        .await;
        let (code, found) = place.json("inspect", &["users", "42"]);
        assert_eq!((code, &found["served_by"], &found["cache"]), (0, &2.into(), &"users".into()), "{found}");
        assert_eq!(found["levels"][0]["state"], "elsewhere");
        let far = &found["levels"][1];
        assert_eq!((&far["state"], &far["provider"]), (&"fresh".into(), &"shared".into()));
        let entry = &far["entry"];
        assert_eq!(entry["tags"], json!(["a"]));
        assert_eq!(
            (&entry["codec"], &entry["etag"], &entry["made_by"]),
            (&"json".into(), &"v1".into(), &"set".into())
        );
        let left = entry["fresh_for_seconds"].as_f64().unwrap();
        assert!((240.0..=300.1).contains(&left), "{left}");
        assert!(entry["bytes"].as_u64() > entry["value_bytes"].as_u64());
        for verb in ["get", "inspect"] {
            for form in [&[][..], &["--json"]] {
                let ended = place.run(verb, &[&["users", "42"], form].concat());
                assert!(!ended.out.contains("Ada") && ended.code == 0, "{ended:?}");
            }
        }
        let text = place.run("inspect", &["users", "42"]).out;
        assert!(
            text.contains("fresh for 4m") && text.contains("tags a") && text.contains("not seen from here"),
            "{text}"
        );

        let (code, shown) = place.json("get", &["users", "42", "--show-value"]);
        assert_eq!((code, &shown["keys"][0]["value"]["id"]), (0, &18446744073709551615u64.into()));
        assert!(place.run("inspect", &["users", "42", "--show-value"]).out.contains("value {"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_there_has_a_code_of_its_own() {
    let servers = Servers::start();
    for url in servers.urls() {
        let place = Place::new(&layered(&url, ""));
        assert_eq!(place.json("inspect", &["users", "42"]).0, 3);
        set(&place, "gone", Loaded::absent()).await;
        let (code, found) = place.json("get", &["users", "gone"]);
        assert_eq!(
            (code, &found["keys"][0]["state"]),
            (0, &"absent".into()),
            "a remembered absence is an answer"
        );
        set(&place, "42", Loaded::value(json!(1))).await;
        let keys = place.write("keys", "42\n\n43\n42\n");
        let (code, found) = place.json("get", &["users", "--keys-from", utf8(&keys)]);
        assert_eq!(code, 3);
        let states: Vec<_> = found["keys"].as_array().unwrap().iter().map(|row| &row["state"]).collect();
        assert_eq!(states, ["fresh", "nothing"]);
        let ended = run_with_input(&["get", utf8(&place.file), "users", "--keys-from", "-"], "42\n");
        assert_eq!(ended.code, 0, "{ended:?}");
        let _ = place.cache().await.clear().await.unwrap();
        let (code, found) = place.json("inspect", &["users", "42"]);
        assert_eq!((code, &found["levels"][1]["state"]), (3, &"invalidated".into()));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_stored_does_not_speak_to_the_terminal() {
    let servers = Servers::start();
    let Some(redis) = &servers.redis else { return };
    let place = Place::new(&layered(&redis.url(), ""));
    let (tag, etag, key) = ("\u{1b}[2Jtag\nfresh", "\u{9b}31metag", "k\u{9b}2J\n");
    set(&place, key, Loaded::value(json!("\u{9b}\u{7f}")).tags([tag]).etag(etag)).await;
    for verb in ["inspect", "get"] {
        let out = place.run(verb, &["users", key, "--show-value"]).out;
        assert!(out.contains("k\\u009b2J\\u000a"), "{verb}: {out:?}");
        assert!(!out.contains(|c: char| c.is_control() && c != '\n'), "{verb}: {out:?}");
        assert!(verb == "get" || out.contains("tags \\u001b[2Jtag\\u000afresh"), "{out:?}");
    }
    let (_, found) = place.json("inspect", &["users", key]);
    assert_eq!(found["levels"][1]["entry"]["tags"], json!([tag]), "programs get it as it is");
    for verb in ["inspect", "get"] {
        let out = place.run(verb, &["users", key, "--show-value", "--json"]).out;
        assert!(!out.trim_end().contains(char::is_control), "{verb}: {out:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_read_says_why() {
    let servers = Servers::start();
    let Some(redis) = &servers.redis else { return };
    let place = Place::new(&layered(&redis.url(), ""));
    set(&place, "42", Loaded::value(json!(1))).await;
    let () = redis.command(&["SET", "v:{users:7}", "hello"]).unwrap();
    let (code, found) = place.json("inspect", &["users", "7"]);
    let far = &found["levels"][1];
    assert_eq!((code, &far["unreadable"], &far["entry"]["bytes"]), (5, &"foreign".into(), &5.into()));
    for unknown in ["age_seconds", "load_seconds", "made_by"] {
        assert_eq!(far["entry"][unknown], Value::Null, "{unknown}");
    }
    assert!(place.run("inspect", &["users", "7"]).out.contains("written by another program"));
    // One that is not there and one that cannot be read.
    assert_eq!(place.json("get", &["users", "7", "8", "42"]).0, 5);
    redis.kill();
    let (code, found) = place.json("inspect", &["users", "42"]);
    assert_eq!((code, &found["levels"][1]["state"]), (1, &"error".into()), "{found}");
    assert!(found["levels"][1]["error"].as_str().unwrap().contains("level 2"), "{found}");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_form_of_value_shows() {
    let servers = Servers::start();
    let Some(redis) = &servers.redis else { return };
    let secret = "[keyrings.ring]\nkeys = [{ id = 1, secret = '0000000000000000000000000000000000000000000000000000000000000001' }]\n";
    let large = json!({ "text": "x".repeat(5_000) });
    for (more, shows) in [
        ("codec = 'msgpack'\n", true),
        ("codec = 'postcard'\n", false),
        ("compression = 'lz4'\n", true),
        ("compression = 'zstd'\n", true),
        (&*format!("encryption = 'ring'\n{secret}"), true),
    ] {
        let place = Place::new(&layered(&redis.url(), more));
        let users = place.caches().await;
        match shows {
            true => drop(users.cache::<Value>("users").unwrap().set("42", large.clone()).await.unwrap()),
            false => drop(
                users.cache::<(u8, String)>("users").unwrap().set("42", (7, "Ada".to_owned())).await.unwrap(),
            ),
        }
        let (code, found) = place.json("inspect", &["users", "42", "--show-value"]);
        let far = &found["levels"][1];
        assert_eq!(code, 0, "{more}: {found}");
        match shows {
            true => assert_eq!(far["value"], large, "{more}"),
            false => assert_eq!(far["value_hex"], "0703416461", "{far}"),
        }
        assert_eq!(far["entry"]["encrypted"], more.contains("encryption"));
        assert_eq!(far["entry"]["compression"].is_string(), more.contains("compression"));
        // The key of the encryption is not in this file.
        if more.contains("encryption") {
            let (code, found) = Place::new(&layered(&redis.url(), "")).json("inspect", &["users", "42"]);
            assert_eq!((code, &found["levels"][1]["unreadable"]), (5, &"no_key".into()));
        }
    }
}
