//! `warm`, `replay`, `bench`.

use std::{
    fmt::Write,
    io::{BufRead, BufReader, Write as _},
    net::TcpStream,
    process::{Child, Stdio},
};

use serde::{Deserialize, Serialize};
use serde_json::json;
use test_servers::{MemcachedServer, RedisServer, Signal, until};
use traced_cache::{BoxError, Loaded, ValueCodec};

use crate::kit::{Ended, Place, Servers, WAIT, command, layered, run_with_input, utf8};

/// An application's type.
#[derive(Debug, Deserialize, Serialize, PartialEq)]
struct User {
    id: u64,
    name: String,
    team: Option<Team>,
}

#[derive(Debug, Deserialize, Serialize, PartialEq)]
enum Team {
    Named(String),
    Freelance,
}

/// Numbers as their digits.
struct Digits;

impl ValueCodec<u32> for Digits {
    fn encode(&self, value: &u32, out: &mut Vec<u8>) -> Result<(), BoxError> {
        Ok(write!(out, "{value}")?)
    }

    fn decode(&self, bytes: &[u8]) -> Result<u32, BoxError> {
        Ok(std::str::from_utf8(bytes)?.parse()?)
    }
}

fn ada() -> User {
    User { id: u64::MAX, name: "Ada".into(), team: Some(Team::Named("Engines".into())) }
}

fn lines() -> String {
    let mut text = String::new();
    for id in 0..500u64 {
        let value = json!({ "id": id, "name": format!("user {id}"), "team": "Freelance" });
        writeln!(text, "{}", json!({ "key": id, "value": value, "tags": ["all"] })).unwrap();
    }
    let ada = json!({ "key": "ada", "value": ada(), "etag": "v1", "ttl": "1m" });
    writeln!(text, "\n{ada}").unwrap();
    text
}

/// A line whose value is a list in a list, so many times.
fn nested(depth: usize) -> String {
    let (open, close) = ("[".repeat(depth), "]".repeat(depth));
    format!("{{\"key\": \"nested\", \"value\": {open}\"secret\"{close}}}\n")
}

/// Marks of such caches, which have no ttl.
fn marks_at(redis: &RedisServer, name: &str) -> Vec<String> {
    redis.command(&["KEYS", &format!("m:{{{name}-*")]).unwrap()
}

/// Keys that stay until somebody removes them.
fn immortal_at(memcached: &MemcachedServer) -> Vec<String> {
    let mut stream = TcpStream::connect(memcached.addr()).unwrap();
    stream.write_all(b"lru_crawler metadump all\r\n").unwrap();
    let lines = BufReader::new(stream).lines().map(Result::unwrap).take_while(|line| line != "END");
    lines.filter(|line| line.contains(" exp=-1 ")).collect()
}

/// Entries of caches whose names begin so. What was removed leaves a word of eight bytes for a minute.
fn left_at(redis: &RedisServer, name: &str) -> usize {
    let keys: Vec<String> = redis.command(&["KEYS", &format!("v:{{{name}-*")]).unwrap();
    keys.iter().filter(|key| redis.command::<usize>(&["STRLEN", key]).unwrap() > 8).count()
}

fn nothing_is_left_at(servers: &Servers, name: &str) {
    if let Some(redis) = &servers.redis {
        assert_eq!((left_at(redis, name), marks_at(redis, name)), (0, vec![]));
    }
    if let Some(memcached) = &servers.memcached {
        assert_eq!(immortal_at(memcached), Vec::<String>::new());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_application_reads_what_was_warmed_as_its_own() {
    for url in Servers::start().urls() {
        for more in ["", "codec = 'msgpack'\n", "compression = 'lz4'\n", "schema = 7\n"] {
            let place = Place::new(&layered(&url, more));
            let app = place.caches().await.cache::<User>("users").unwrap();
            let _ = app.clear().await.unwrap();
            // What is there already is newer.
            let other = || User { id: 3, name: "newer".into(), team: None };
            let _ = app.set(3, other()).await.unwrap();
            let file = place.write("users.ndjson", lines());
            let (code, warmed) = place.json("warm", &["users", utf8(&file)]);
            assert_eq!(code, 0, "{more}: {warmed}");
            assert_eq!(
                (&warmed["read"], &warmed["stored"], &warmed["kept"]),
                (&501.into(), &500.into(), &1.into())
            );
            let other_app = place.caches().await.cache::<User>("users").unwrap();
            assert_eq!(other_app.get("ada").await.unwrap().as_deref(), Some(&ada()), "{more}");
            let third = other_app.get(3).await.unwrap().unwrap();
            assert_eq!(*third, other());
            let (_, seen) = place.json("inspect", &["users", "ada"]);
            let entry = &seen["levels"][1]["entry"];
            assert!(entry["fresh_for_seconds"].as_f64().unwrap() <= 60.0 && entry["etag"] == "v1", "{seen}");
            // The tag counts.
            assert_eq!(place.run("invalidate", &["users", "--tag", "all"]).code, 0);
            assert_eq!(place.run("get", &["users", "17"]).code, 3);

            let ended = place.run("warm", &["users", utf8(&file), "--replace"]);
            assert!(
                ended.code == 0 && ended.out.starts_with("users: 501 values stored, 0 left"),
                "{ended:?}"
            );
            let fresh = place.caches().await.cache::<User>("users").unwrap();
            assert_eq!(fresh.get(3).await.unwrap().unwrap().name, "user 3");
        }
    }
}

/// What is loaded before the backplane is up is stored nowhere.
#[test]
fn a_backplane_that_comes_up_meanwhile_takes_nothing_away() {
    let Some(redis) = RedisServer::start() else { return };
    let place = Place::new(&layered(&redis.url(), "backplane = 'shared'\n"));
    for round in 0..20 {
        let file = place.write("values", format!("{{\"key\": {round}, \"value\": 1}}\n"));
        let (code, told) = place.json("warm", &["users", utf8(&file)]);
        let there = place.run("get", &["users", &round.to_string()]).code == 0;
        assert_eq!((code, &told["stored"], there), (0, &1.into(), true), "{told}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_warmed_is_told_and_what_it_says_is_not_shown() {
    let servers = Servers::start();
    let Some(redis) = &servers.redis else { return };
    let place = Place::new(&layered(&redis.url(), ""));
    let is = |ended: Ended, code: i32, says: &str| {
        assert_eq!(ended.code, code, "{ended:?}");
        assert!(ended.error().contains(says) && !format!("{ended:?}").contains("secret"), "{ended:?}");
    };
    for (text, says) in [
        ("{\"key\": \"a\", \"value\": 1}\n{\"key\": \"b\", \"valeu\": \"secret\"}\n", "line 2"),
        ("{\"key\": \"a\", \"value\": \"secret\"\n", "line 1, column"),
        ("[1, \"secret\"]\n", "line 1"),
        (
            "{\"key\": \"a\", \"value\": 1, \"ttl\": \"secret\"}\n",
            "line 1, ttl = no time: write a number and its unit",
        ),
        ("{\"key\": \"a\", \"value\": 1, \"ttl\": \"30\"}\n", "line 1, ttl = no time"),
        (
            "{\"key\": \"\", \"value\": \"secret\"}\n",
            "error: standard input line 1: cache `users`: key is empty",
        ),
        (
            "\n{\"key\": \"a\", \"value\": \"secret\", \"ttl\": \"0s\"}\n",
            "error: standard input line 2, ttl = 0s: nothing would be stored",
        ),
        (
            "{\"key\": \"a\", \"value\": \"secret\", \"ttl\": \"999us\"}\n",
            "ttl = 999us: nothing would be stored",
        ),
        (&nested(127), "line 1, column 154 = a value that is nested too deep: "),
        (&nested(100_000), "nested too deep"),
    ] {
        let file = utf8(&place.file).to_owned();
        is(run_with_input(&["warm", &file, "users", "-"], text), 2, says);
    }
    let deepest = run_with_input(&["warm", utf8(&place.file), "users", "-"], nested(126));
    assert_eq!(deepest.code, 0, "{deepest:?}");
    is(place.run("warm", &["users", "no-such-file"]), 1, "no-such-file cannot be read");
    let file = place.write("values", "{\"key\": 1, \"value\": 1}\n");
    let postcard = Place::new(&layered(&redis.url(), "codec = 'postcard'\n"));
    is(postcard.run("warm", &["users", utf8(&file)]), 2, "codec = postcard: its bytes do not say");
    // An application with a codec of its own.
    let own = place.caches().await.coded_with("users", Digits, |builder| builder).unwrap();
    let _ = own.set(1, 7).await.unwrap();
    is(place.run("warm", &["users", utf8(&file)]), 2, "codec = own: the application writes");
    let shown = place.run("inspect", &["users", "1", "--show-value"]);
    assert!(shown.code == 0 && shown.out.contains("37") && shown.out.contains("own"), "{shown:?}");
    // An application whose type names a schema id.
    let versioned = Place::new(&layered(&redis.url(), "schema = 5\n"));
    let app = versioned.caches().await.cache::<u32>("users").unwrap();
    let _ = app.set_loaded(1, Loaded::value(7)).await.unwrap();
    is(place.run("warm", &["users", utf8(&file)]), 2, "say --schema 5");
    assert_eq!(place.run("warm", &["users", utf8(&file), "--schema", "5"]).code, 0);
    assert_eq!(app.get(1).await.unwrap().as_deref(), Some(&7));
    // Not by another one than the application's, which the file may say.
    let raised = Place::new(&layered(&redis.url(), "schema = 6\n"));
    is(
        raised.run("warm", &["users", utf8(&file)]),
        2,
        "caches.users.schema = 6: entries of this cache have schema id 5; clear it first",
    );
    is(raised.run("warm", &["users", utf8(&file), "--schema", "5"]), 2, "--schema = 5: the file says 6");
    assert_eq!(versioned.run("warm", &["users", utf8(&file), "--schema", "5"]).code, 0);
    // After a deploy that has raised it, `fresh` alone would say that the application has it.
    let note = "note: the file says schema 6: the application does not read an entry of schema 5, and loads";
    for (schema, noted) in [("schema = 6\n", true), ("schema = 5\n", false), ("", false)] {
        let place = Place::new(&layered(&redis.url(), schema));
        let looked = place.run("inspect", &["users", "1"]);
        let (code, state) = if noted { (5, "unreadable") } else { (0, "fresh") };
        assert_eq!((looked.code, looked.out.contains(note)), (code, noted), "{looked:?}");
        assert_eq!(looked.out.contains("unreadable: of another schema id"), noted, "{looked:?}");
        let (ended, json) = place.json("inspect", &["users", "1"]);
        assert_eq!((ended, &json["served_by"].is_null()), (code, &noted), "{json}");
        let (ended, json) = place.json("get", &["users", "1"]);
        let key = &json["keys"][0];
        assert_eq!(
            (ended, &key["state"], &key["entry"]["schema"]),
            (code, &state.into(), &5.into()),
            "{json}"
        );
        assert_eq!(key["unreadable"] == "schema", noted, "{json}");
        let text = place.run("get", &["users", "1"]).out;
        assert!(text.contains(state) && text.contains("schema") == noted, "{text}");
    }
    redis.kill();
    is(place.run("warm", &["users", utf8(&file)]), 1, "cannot be used");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_told_as_stored_is_there() {
    let acl = "user default on nopass ~* &* +@all\nuser reader on >pass ~* &* +@all -@write -eval -evalsha -fcall\n\
               user writer on >pass ~* &* +@all -@read\n";
    let Some(redis) = RedisServer::builder().acl(acl).start() else { return };
    let place = Place::new(&layered(&redis.url(), ""));
    let lines = |last: &str| {
        let mut text = (1..=250).fold(String::new(), |mut text, n| {
            writeln!(text, "{{\"key\": {n}, \"value\": {n}}}").unwrap();
            text
        });
        text.push_str(last);
        text
    };
    let warm = |place: &Place, text: &str, more: &[&str]| {
        run_with_input(&[&["warm", utf8(&place.file), "users", "-"], more].concat(), text)
    };
    let is_there = |key: &str| place.run("get", &["users", key]).code == 0;
    for more in [&[][..], &["--replace"]] {
        for (last, says) in [
            ("{\"key\": \"\", \"value\": 1}\n", "key"),
            ("{\"key\": \"a\", \"value\": 1, \"tags\": [\"\"]}\n", "tag"),
        ] {
            assert_eq!(place.run("clear", &["users", "--yes"]).code, 0);
            let ended = warm(&place, &lines(last), more);
            assert_eq!(ended.code, 2, "{ended:?}");
            let error = ended.error();
            assert!(error.starts_with("error: standard input line 251: ") && error.contains(says), "{error}");
            assert!(error.ends_with("; 250 values are stored"), "{error}");
            assert!(is_there("1") && is_there("250"));
        }
        // Before anything was stored, too.
        let ended = warm(&place, "{\"key\": \"\", \"value\": 1}\n", more);
        assert!(ended.code == 2 && ended.error().ends_with("; 0 values are stored"), "{ended:?}");
        let ended = warm(&place, "{\"key\": 1, \"value\": [1, 123456789012345678901234567890]}\n", more);
        assert!(ended.code == 2 && ended.error().contains("line 1, column 25"), "{ended:?}");

        let reader = redis.url().replace("redis://", "redis://reader:pass@");
        let reader = Place::new(&layered(&reader, ""));
        assert_eq!(place.run("clear", &["users", "--yes"]).code, 0);
        let ended = warm(&reader, &lines(""), &[more, &["--json"]].concat());
        let told = ended.json();
        assert_eq!((ended.code, &told["stored"], &told["not_stored"]), (1, &0.into(), &250.into()), "{told}");
        let ended = warm(&reader, &lines(""), more);
        assert!(
            ended.out.starts_with("users: 0 values stored, 0 left as they were, 250 not stored\n"),
            "{ended:?}"
        );
        assert!(!is_there("1"));
        // Whose fault it is: what was stored is looked for at the remote levels alone.
        let writer = redis.url().replace("redis://", "redis://writer:pass@");
        let ended = warm(&Place::new(&layered(&writer, "")), &lines(""), more);
        assert!(ended.code == 1 && ended.out.contains("\nlevel 2, shared (redis at "), "{ended:?}");
        assert!(!ended.out.contains("level 1"), "{ended:?}");
    }
}

#[test]
fn what_a_level_has_no_room_for_is_not_told_as_stored() {
    let servers = Servers::start();
    for url in servers.urls().iter().filter(|url| url.starts_with("memcached")) {
        let place = Place::new(&layered(url, ""));
        let large = "x".repeat(2 << 20);
        let lines = format!("{{\"key\": \"a\", \"value\": 1}}\n{{\"key\": \"b\", \"value\": \"{large}\"}}\n");
        let file = place.write("values", lines);
        let (code, told) = place.json("warm", &["users", utf8(&file)]);
        assert_eq!((code, &told["stored"], &told["not_stored"]), (1, &1.into(), &1.into()), "{told}");
        let ended = place.run("warm", &["users", utf8(&file)]);
        assert!(ended.code == 1 && ended.out.contains("some are larger than a level takes"), "{ended:?}");
    }
}

#[test]
fn a_bench_that_would_fill_a_servers_memory_is_refused() {
    let place = Place::new(&layered("redis://127.0.0.1:1", ""));
    let ended = place.run("bench", &["users", "--remote", "--keys", "3", "--value-bytes", "64000000"]);
    assert!(ended.code == 2 && ended.error().contains("--value-bytes = 64000000: "), "{ended:?}");
}

fn trace() -> String {
    (0..5_000).fold(String::new(), |mut text, n| {
        let _ = writeln!(text, "/page/{}", n % 500);
        text
    })
}

#[test]
fn a_replay_is_of_the_caches_own_levels_and_leaves_nothing_behind() {
    let servers = Servers::start();
    for url in servers.urls() {
        let place = Place::new(&layered(&url, ""));
        let file = place.write("trace", trace());
        let (code, report) = place.json("replay", &["users", utf8(&file)]);
        assert_eq!(code, 0, "{report}");
        assert_eq!(
            (&report["requests"], &report["distinct"], &report["loads"]),
            (&5_000.into(), &500.into(), &500.into())
        );
        assert_eq!((&report["hit_rate"], report["levels"].as_array().unwrap().len()), (&0.9.into(), 1));
        // A memory of ten entries, by a variable as in the application; the rest is found remotely.
        let mut command = crate::kit::command();
        command.args(["replay", utf8(&place.file), "users", utf8(&file), "--remote", "--json"]);
        let ended: Ended =
            command.env("TRACED_CACHE__PROVIDERS__LOCAL__ENTRIES", "10").output().unwrap().into();
        let report = ended.json();
        assert_eq!((ended.code, &report["loads"]), (0, &500.into()), "{report}");
        assert!(report["hits_by_level"][1].as_u64().unwrap() > 4_000, "{report}");
        let ended = place.run("replay", &["users", utf8(&file), "--callers", "4"]);
        assert!(ended.code == 0 && ended.out.contains("5,000"), "{ended:?}");
        let ended = run_with_input(&["replay", utf8(&place.file), "users", "-"], trace());
        assert!(ended.code == 0 && ended.out.contains("5,000"), "{ended:?}");
    }
    nothing_is_left_at(&servers, "replay");
}

#[test]
fn a_bench_measures_every_level_and_leaves_nothing_behind() {
    let servers = Servers::start();
    for url in servers.urls() {
        let place = Place::new(&layered(&url, "compression = 'lz4'\n"));
        let quick = ["users", "--each", "50ms", "--keys", "200", "--callers", "3", "--value-bytes", "8000"];
        let (code, measured) = place.json("bench", &quick);
        assert_eq!(code, 0, "{measured}");
        let calls = |measured: &serde_json::Value, level: serde_json::Value| -> Vec<String> {
            let rows = measured["rows"].as_array().unwrap().iter().filter(|row| row["level"] == level);
            rows.map(|row| row["call"].as_str().unwrap().to_owned()).collect()
        };
        let of_a_level = ["get", "get_nothing", "get_many_100", "set", "invalidate"];
        assert_eq!(calls(&measured, 1.into()), of_a_level);
        assert_eq!(measured["rows"].as_array().unwrap().len(), 5, "the server was not asked for");

        let (code, measured) = place.json("bench", &[&quick[..], &["--remote"]].concat());
        assert_eq!(code, 0, "{measured}");
        assert_eq!(
            (calls(&measured, 2.into()), calls(&measured, serde_json::Value::Null)),
            (of_a_level.map(str::to_owned).to_vec(), vec!["get_or_set".to_owned()])
        );
        for row in measured["rows"].as_array().unwrap() {
            let number = |name: &str| row[name].as_f64().unwrap();
            assert!(number("calls") > 0.0 && number("calls_per_second") > 0.0 && row["failed"] == 0, "{row}");
            assert!(number("p50_micros") > 0.0 && number("p50_micros") <= number("p99_9_micros"), "{row}");
            match row["call"].as_str().unwrap() {
                "get" | "get_many_100" => assert_eq!(row["found"], 1.0, "{row}"),
                "get_nothing" => assert_eq!(row["found"], 0.0, "{row}"),
                _ => {}
            }
        }
        let stored = measured["stored_bytes"][0]["bytes"].as_u64().unwrap();
        assert!((1_000..7_000).contains(&stored), "words compress: {stored}");
        let text = place.run("bench", &[&quick[..], &["--remote"]].concat()).out;
        assert!(text.contains("level 2, shared") && text.contains("all levels"), "{text}");
    }
    nothing_is_left_at(&servers, "bench");
}

#[test]
fn a_bench_without_time_calls_once() {
    let place = Place::new(&layered("redis://127.0.0.1:1", ""));
    let (code, measured) =
        place.json("bench", &["users", "--each", "1us", "--keys", "200", "--callers", "3"]);
    assert_eq!(code, 0, "{measured}");
    for row in measured["rows"].as_array().unwrap() {
        assert!(row["calls"].as_u64().unwrap() >= 3, "{row}");
    }
}

#[test]
fn a_replay_that_is_interrupted_leaves_nothing_behind() {
    let Some(redis) = RedisServer::start() else { return };
    let place = forever(&redis);
    let file = place.write("trace", trace());
    let mut replay = command();
    replay.args(["replay", utf8(&place.file), "users", utf8(&file), "--remote", "--load-time", "100ms"]);
    let child = replay.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    assert!(until(WAIT, || left_at(&redis, "replay") > 0));
    let ended = interrupt(child);
    assert!(ended.code == 1 && ended.error().contains("interrupted"), "{ended:?}");
    assert_eq!((left_at(&redis, "replay"), marks_at(&redis, "replay")), (0, vec![]), "{ended:?}");
}

/// A second of each kind of call, at remote levels alone.
fn bench(place: &Place) -> Child {
    let mut child = command();
    child.args(["bench", utf8(&place.file), "users", "--remote", "--json", "--each", "1s", "--keys", "501"]);
    child.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

fn interrupt(child: Child) -> Ended {
    test_servers::signal(&child, Signal::INT);
    child.wait_with_output().unwrap().into()
}

/// What a bench has at a key.
fn stored(redis: &RedisServer) -> Option<Vec<u8>> {
    let keys: Vec<String> = redis.command(&["KEYS", "v:{bench-*:0}"]).unwrap();
    redis.command(&["GET", keys.first()?]).unwrap()
}

/// Nothing but the server, which keeps entries for good.
fn forever(redis: &RedisServer) -> Place {
    Place::new(&format!(
        "[providers.shared]\nbackend = 'redis'\nurl = '{}'\n\
         [caches.users]\nlevels = [{{ provider = 'shared', budget = '5s' }}]\npolicy.ttl = 'forever'\n",
        redis.url()
    ))
}

/// Waits for the measuring of sets, by which values become other ones.
fn wait_for_sets(redis: &RedisServer) {
    let mut first = None;
    assert!(until(WAIT, || {
        let now = stored(redis);
        let changed = first.is_some() && first != now;
        first = first.take().or(now);
        changed
    }));
}

#[test]
fn a_bench_that_is_interrupted_while_it_writes_leaves_nothing_behind() {
    let Some(redis) = RedisServer::start() else { return };
    let place = forever(&redis);
    let child = bench(&place);
    wait_for_sets(&redis);
    let ended = interrupt(child);
    let json = ended.json();
    assert_eq!((ended.code, &json["complete"], &json["left"]), (1, &json!(false), &json!(null)), "{json}");
    assert_eq!((left_at(&redis, "bench"), marks_at(&redis, "bench")), (0, vec![]));
}

/// The breaker refuses at once what the server would not have answered.
#[test]
fn a_bench_counts_what_a_server_that_is_gone_has_not_answered() {
    let Some(redis) = RedisServer::start() else { return };
    let place = forever(&redis);
    let child = bench(&place);
    assert!(until(WAIT, || left_at(&redis, "bench") == 501));
    redis.kill();
    let ended: Ended = child.wait_with_output().unwrap().into();
    let measured = ended.json();
    assert_eq!(ended.code, 1, "{measured}");
    let rows = measured["rows"].as_array().unwrap();
    assert_eq!(rows.len(), 5, "{measured}");
    // It has been well for a part of the first, or where the machine is busy into the next one.
    let down = rows.iter().position(|row| row["failed"] != 0).unwrap();
    assert!(down <= 2, "{measured}");
    for row in &rows[down + 1..] {
        assert!(row["calls"].as_u64().unwrap() > 0 && row["failed"] == row["calls"], "{row}");
    }
}

#[test]
fn a_bench_that_cannot_remove_what_it_has_stored_names_it() {
    let Some(redis) = RedisServer::start() else { return };
    let place = forever(&redis);
    let child = bench(&place);
    wait_for_sets(&redis);
    let keys: Vec<String> = redis.command(&["KEYS", "v:{bench-*:0}"]).unwrap();
    redis.kill();
    let ended = interrupt(child);
    let json = ended.json();
    let left = json["left"].as_str().unwrap();
    assert_eq!((ended.code, format!("v:{{{left}:0}}")), (1, keys[0].clone()), "{json}");
}

#[test]
fn what_cannot_be_measured_is_told() {
    let place = Place::new(&layered("redis://127.0.0.1:1", ""));
    let file = utf8(&place.file);
    // Where nobody hears what is wrong.
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let ended = crate::kit::command().args(["bench", file, "nobody"]).stderr(full).status().unwrap();
    assert_eq!(ended.code(), Some(2));
    let ended = crate::kit::run(["--json", "bench", file]);
    assert!(ended.code == 2 && ended.error().contains("<CACHE>"), "{ended:?}");
    let remote = Place::new(
        "[providers.shared]\nbackend = 'redis'\nurl = 'redis://127.0.0.1:1'\n[caches.users]\nlevels = ['shared']\n",
    );
    let trace = place.write("trace", "1\n2\n");
    let trace = utf8(&trace);
    for (place, verb, rest, code, says) in [
        (&place, "replay", &["users", "no-such-file"][..], 1, "no-such-file cannot be read"),
        (&place, "replay", &["users", "-", "--remote"], 2, "give a file"),
        (&place, "replay", &["users", "/dev/null", "--remote"], 2, "TRACE = /dev/null: "),
        (&place, "replay", &["nobody", trace], 2, "has no such cache"),
        (
            &place,
            "replay",
            &["users", trace, "--remote"],
            1,
            "level 2, shared (redis at 127.0.0.1:1) cannot be used",
        ),
        (&remote, "replay", &["users", trace], 2, "--remote uses them"),
        (&remote, "bench", &["users"], 2, "--remote uses them"),
        (&place, "bench", &["users", "--remote"], 1, "cannot be used"),
        (&place, "bench", &["users", "--each", "0s"], 2, "give it some time"),
    ] {
        let ended = place.run(verb, rest);
        assert_eq!(ended.code, code, "{verb} {rest:?}: {ended:?}");
        assert!(ended.error().contains(says), "{verb} {rest:?}: {ended:?}");
    }
}
