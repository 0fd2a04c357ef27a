//! `stats` and `watch`, of a service that really runs.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    process::{Child, Stdio},
    sync::mpsc,
    time::Duration,
};

use cache_page::Page;
use serde_json::{Value, json};
use traced_cache::{
    Caches, TracedCache, ok,
    setup::{Running, Setup},
};

use test_servers::{Signal, until};

use crate::kit::{Ended, Place, Servers, WAIT, command, layered, run, utf8};

/// An application that tells its metrics.
struct Service {
    users: TracedCache<Value>,
    running: Running,
}

impl Service {
    async fn start(place: &Place) -> Self {
        let setup = Setup::new("shop").prometheus(([127, 0, 0, 1], 0)).variables(|name| match name {
            "OTEL_TRACES_EXPORTER" => Some("none".to_owned()),
            _ => None,
        });
        let running = setup.start().unwrap();
        let caches = Caches::builder().observer(running.telemetry()).variables([("", ""); 0]);
        let users = caches.from_file(&place.file).await.unwrap().cache("users").unwrap();
        Self { users, running }
    }

    fn url(&self) -> String {
        format!("http://{}", self.running.prometheus_address().unwrap())
    }

    async fn ask(&self, keys: std::ops::Range<u32>) {
        for key in keys {
            self.users.get_or_set(key, || async { ok(json!("a value that stays inside")) }).await.unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_caches_of_a_running_service_and_the_servers_of_a_file() {
    for server in Servers::start().urls() {
        let place = Place::new(&layered(&server, ""));
        let service = Service::start(&place).await;
        service.ask(0..10).await;
        service.ask(0..10).await;
        service.ask(0..5).await;
        let url = service.url();
        let (code, seen) = place.json("stats", &["--url", &url]);
        assert_eq!(code, 0, "{seen}");
        let users = &seen["caches"][0];
        assert_eq!((&users["name"], &users["lookups"]), (&"users".into(), &25.into()), "{seen}");
        assert_eq!(users["served"]["hit"], 15);
        assert_eq!((&users["hits_by_level"]["l1"], &users["loads"]), (&15.into(), &10.into()));
        assert_eq!(users["hit_rate"], 0.6);
        assert!(users["load_mean_seconds"].as_f64().unwrap() > 0.0);
        let far = users["levels"].as_array().unwrap().iter().find(|level| level["level"] == "l2").unwrap();
        assert_eq!((&far["answers"]["miss"], &far["breaker"]), (&10.into(), &"closed".into()), "{far}");
        let shared = &seen["servers"][0];
        assert_eq!(shared["provider"], "shared");
        assert!(shared["version"].is_string() && shared["uptime_seconds"].is_u64(), "{shared}");
        assert!(
            shared["items"].as_u64().unwrap() >= 10 && shared["memory_used"].as_u64().unwrap() > 0,
            "{shared}"
        );

        let ended = place.run("stats", &["--url", &url, "--cache", "users"]);
        assert_eq!(ended.code, 0, "{ended:?}");
        for part in ["users", "60.0 %", "L1", "L2", "closed", "shared"] {
            assert!(ended.out.contains(part), "{part}: {}", ended.out);
        }
        assert!(!ended.out.contains("stays inside"));
        // Without a file: the caches alone.
        let ended = run(["stats", "--url", &url]);
        assert!(ended.code == 0 && !ended.out.contains("shared"), "{ended:?}");
        // Without a service: the servers alone.
        let (code, seen) = place.json("stats", &[]);
        assert!(code == 0 && seen.get("caches").is_none() && seen["servers"][0]["hits"].is_u64(), "{seen}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_says_the_same_as_json() {
    let page = Page::builder().build().unwrap();
    let place = Place::new(&layered("redis://127.0.0.1:1", ""));
    let caches = Caches::builder().observer(page.clone()).variables([("", ""); 0]);
    let users = caches.from_file(&place.file).await.unwrap().cache::<Value>("users").unwrap();
    for key in [1, 2, 3, 1, 2, 3] {
        users.get_or_set(key, || async { ok(json!(1)) }).await.unwrap();
    }
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let serving = tokio::spawn(async move { axum::serve(listener, page.router()).await });
    for path in ["caches", "caches/users"] {
        let url = format!("http://{address}/cache/api/{path}");
        let ended: Ended = run(["stats", "--url", &url, "--json"]);
        let users = &ended.json()["caches"][0];
        assert_eq!(
            (ended.code, &users["lookups"], &users["hit_rate"]),
            (0, &6.into(), &0.5.into()),
            "{users}"
        );
        assert_eq!((&users["hits_by_level"]["l1"], &users["loads"]), (&3.into(), &3.into()));
        assert!(users["load_mean_seconds"].as_f64().unwrap() > 0.0 && users["lookup_p50_seconds"].is_null());
        let far = &users["levels"][1];
        assert!(far["errors"].as_u64().unwrap() > 0 && far["breaker"].is_string(), "{far}");
    }
    let url = format!("http://{address}/cache/api/caches");
    assert!(run(["watch", "--url", &url, "--every", "100ms", "--count", "1"]).out.contains("users"));
    serving.abort();
}

/// Calls go well, and the level never has the value.
#[tokio::test(flavor = "multi_thread")]
async fn values_that_a_level_does_not_get_are_a_column() {
    let Some(redis) = Servers::start().redis else { return };
    let text = layered(&redis.url(), "").replace("[caches.", "value_max = '200B'\n[caches.");
    let place = Place::new(&text);
    let service = Service::start(&place).await;
    let page = Page::builder().build().unwrap();
    let caches = Caches::builder().observer(page.clone()).variables([("", ""); 0]);
    let shown = caches.from_file(&place.file).await.unwrap().cache::<Value>("users").unwrap();
    for cache in [&service.users, &shown] {
        cache.get_or_set(1, || async { ok(json!("x".repeat(1000))) }).await.unwrap();
    }
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let pages = format!("http://{}/cache/api/caches", listener.local_addr().unwrap());
    let serving = tokio::spawn(async move { axum::serve(listener, page.router()).await });
    for url in [service.url(), pages] {
        let json = run(["stats", "--url", &url, "--json"]).json();
        let users = &json["caches"][0];
        assert_eq!(
            (&users["levels"][0]["unsent"], &users["levels"][1]["unsent"]),
            (&0.into(), &1.into()),
            "{json}"
        );
        assert_eq!((&users["stored_late"], &users["lost"]), (&0.into(), &0.into()), "{json}");
        let table = run(["stats", "--url", &url]).out;
        assert!(table.contains("unsent") && table.contains(" lost "), "{table}");
        assert!(run(["watch", "--url", &url, "--every", "100ms", "--count", "1"]).out.contains("unsent/s"));
    }
    serving.abort();
}

#[test]
fn a_service_that_is_down_does_not_hide_the_servers() {
    for server in Servers::start().urls() {
        let place = Place::new(&layered(&server, ""));
        let away = ["--url", "http://127.0.0.1:1"];
        let (code, seen) = place.json("stats", &away);
        assert!(code == 1 && seen.get("caches").is_none(), "{seen}");
        assert!(seen["error"].as_str().unwrap().contains("no metrics from there"), "{seen}");
        assert!(seen["servers"][0]["version"].is_string(), "{seen}");
        let ended = place.run("stats", &away);
        assert_eq!(ended.code, 1, "{ended:?}");
        for part in ["http://127.0.0.1:1/metrics: no metrics from there", "shared"] {
            assert!(ended.out.contains(part), "{part}: {}", ended.out);
        }
    }
}

/// One answer, after which every call waits. Says where it is, and when a call has begun to wait.
fn hanging() -> (String, mpsc::Receiver<TcpStream>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let (waits, waiting) = mpsc::channel();
    std::thread::spawn(move || {
        let body = "cache_requests_total{cache_name=\"users\",cache_result=\"hit\",cache_level=\"l1\"} 1\n";
        let (mut stream, _) = listener.accept().unwrap();
        let _ = stream.read(&mut [0; 1024]).unwrap();
        let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", body.len());
        stream.write_all((head + body).as_bytes()).unwrap();
        drop(stream);
        while let Ok((stream, _)) = listener.accept() {
            // Nobody may want to know any more.
            drop(waits.send(stream));
        }
    });
    (url, waiting)
}

#[test]
fn an_interrupt_is_heard_while_a_service_hangs() {
    let (url, waiting) = hanging();
    let child = watch(&["--url", &url, "--every", "100ms"]);
    let _open = waiting.recv_timeout(WAIT).unwrap();
    test_servers::signal(&child, Signal::INT);
    let ended: Ended = child.wait_with_output().unwrap().into();
    // Had it waited for the service, a line would say that this has not answered.
    assert!(ended.code == 0 && ended.out.is_empty() && ended.err.is_empty(), "{ended:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_is_not_asked_for_this_machine() {
    let place = Place::new(&layered("redis://127.0.0.1:1", ""));
    let service = Service::start(&place).await;
    service.ask(0..10).await;
    let mut stats = command();
    // Nobody is there.
    stats.args(["stats", "--url", &service.url()]).env("http_proxy", "http://127.0.0.1:1");
    let ended: Ended = stats.output().unwrap().into();
    assert!(ended.code == 0 && ended.out.contains("users"), "{ended:?}");
    let mut stats = command();
    stats.args(["stats", "--url", "http://service.invalid"]);
    let ended: Ended = stats.env("http_proxy", "http://127.0.0.1:1").output().unwrap().into();
    assert!(ended.code == 1 && ended.err.contains("refused"), "{ended:?}");
}

fn watch(arguments: &[&str]) -> Child {
    let mut child = command();
    child.arg("watch").args(arguments).stdout(Stdio::piped()).stderr(Stdio::piped());
    child.spawn().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn each_look_shows_what_has_come_since_the_last_and_a_service_may_be_away() {
    let servers = Servers::start();
    let Some(server) = servers.urls().into_iter().next() else { return };
    let place = Place::new(&layered(&server, ""));
    let service = Service::start(&place).await;
    service.ask(0..10).await;
    let url = service.url();
    let mut child = watch(&["--url", &url, "--every", "300ms", "--json"]);
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut next = || -> Value { serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap() };
    let first = next();
    assert_eq!(first["caches"][0]["lookups"], 0, "what was before the first look is none of it: {first}");
    assert!(first["over_seconds"].as_f64().unwrap() >= 0.25, "{first}");
    service.ask(0..10).await;
    let mut seen = 0;
    while seen < 10 {
        let look = next();
        let users = &look["caches"][0];
        seen += users["served"]["hit"].as_u64().unwrap();
        assert_eq!(users["loads"], 0, "{look}");
    }
    assert_eq!(seen, 10);
    service.running.shutdown(Duration::from_secs(1));
    while next()["error"].as_str().is_none_or(|error| !error.contains("no metrics from there")) {}
    child.kill().unwrap();
    child.wait().unwrap();

    let ended = place.run("watch", &["--every", "100ms", "--count", "2"]);
    assert_eq!(ended.code, 0, "{ended:?}");
    assert_eq!(ended.out.matches("shared").count(), 2, "{}", ended.out);
    assert!(ended.out.contains("look-ups/s") && !ended.out.contains('\x1b'), "{}", ended.out);
}

/// `| head -1`
#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_has_seen_enough_ends_it() {
    let servers = Servers::start();
    let Some(server) = servers.urls().into_iter().next() else { return };
    let place = Place::new(&layered(&server, ""));
    for form in [&["--json"][..], &[]] {
        let mut child = watch(&[&[place.file.to_str().unwrap(), "--every", "100ms"], form].concat());
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert!(until(WAIT, || child.try_wait().unwrap().is_some()), "{form:?}");
        assert_eq!(child.wait().unwrap().code(), Some(0), "{form:?}");
    }
}

#[test]
fn what_cannot_be_watched_is_told_in_a_line() {
    let place = Place::new(&layered("redis://127.0.0.1:1", ""));
    let file = place.file.to_str().unwrap();
    let local = Place::new(
        "[providers.local]\nbackend = 'memory'\nentries = 10\n[caches.users]\nlevels = ['local']\n",
    );
    // A cache in memory beside another one at a server.
    let mixed = Place::new(&layered("redis://127.0.0.1:1", "[caches.local]\nlevels = ['local']\n"));
    let memory = "--url = missing: its caches live in the memory of their application only";
    let secret = "--url = ***: percent-encode / ? # @";
    for (arguments, code, says) in [
        (&["stats"][..], 2, "FILE = none: name a configuration file"),
        (&["stats", utf8(&mixed.file), "--cache", "local"], 2, memory),
        (&["stats", utf8(&mixed.file), "--cache", "local", "--json"], 2, memory),
        (&["watch", utf8(&mixed.file), "--cache", "local"], 2, memory),
        (&["stats", "--url", "http://u:hunter2/@host/"], 2, secret),
        (&["stats", "--url", "http://u:2?hunter2@host"], 2, secret),
        (&["watch", "--url", "http://u:2#hunter2@host"], 2, secret),
        (&["stats", "--url", "http://u:2\\hunter2@host"], 2, secret),
        (&["stats", "--url", "ftp://u:2/hunter2@host"], 2, secret),
        (&["stats", "--url", "u:hunter2@http://host"], 2, "--url = (no URL): write http://host:port"),
        (&["stats", "--url", "http://u:hunter2@127.0.0.1:99999"], 2, "--url = http://127.0.0.1:99999: "),
        (&["stats", "--url", "http://u:hunter2@ho st/"], 2, "--url = http://ho st/: "),
        (&["stats", "--url", "http://[::1"], 2, "--url = http://[::1: "),
        (&["stats", "--url", "localhost"], 2, "write http://host:port"),
        (&["stats", local.file.to_str().unwrap()], 2, "name its metrics with --url"),
        (&["stats", file, "--cache", "nobody"], 2, "has no such cache"),
        (&["watch", file, "--every", "1ms"], 2, "--every = 1ms"),
        (
            &["stats", "--url", "http://u:hunter2@127.0.0.1:1"],
            1,
            "http://127.0.0.1:1/metrics: no metrics from there: Connection refused (os error 111); is the service running, and",
        ),
        (&["watch", "--url", "http://127.0.0.1:1"], 1, "no metrics from there"),
    ] {
        let ended = run(arguments.iter().copied());
        assert_eq!(ended.code, code, "{arguments:?}: {ended:?}");
        assert!(ended.error().contains(says) && !ended.err.contains("hunter2"), "{arguments:?}: {ended:?}");
    }
    // No clock tells such a time; the server is down.
    let ended = place.run("watch", &["--every", "500000000000y", "--count", "0"]);
    assert!(ended.code < 2 && ended.err.is_empty(), "{ended:?}");
    // A server that is down is an answer, of a kind.
    let (code, seen) = place.json("stats", &[]);
    assert!(code == 1 && seen["servers"][0]["error"].is_string(), "{seen}");
}

#[test]
fn a_password_goes_out_as_it_is_meant() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://me:hun%2Fter2%3A@{}", listener.local_addr().unwrap());
    let asked = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut head = String::new();
        let mut lines = BufReader::new(stream.try_clone().unwrap());
        while !head.ends_with("\r\n\r\n") && lines.read_line(&mut head).unwrap() > 0 {}
        stream.write_all(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n").unwrap();
        head
    });
    let ended = run(["stats", "--url", &url]);
    assert!(ended.code == 1 && !ended.err.contains("ter2"), "{ended:?}");
    let head = asked.join().unwrap();
    // me:hun/ter2:
    assert!(head.contains("uthorization: Basic bWU6aHVuL3RlcjI6\r\n"), "{head}");
}

#[test]
fn a_page_that_is_no_metrics_of_ours_is_told() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let pages = std::thread::spawn(move || {
        let wide = "cache_requests_total{cache_name=\"a\u{9b}2J\",cache_result=\"hit\",cache_level=\"l99999999\"} 1\n";
        for (status, body) in [("200 OK", "up 1\n"), ("404 Not Found", "no"), ("200 OK", wide)] {
            let (mut stream, _) = listener.accept().unwrap();
            let _ = stream.read(&mut [0; 1024]).unwrap();
            let head =
                format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", body.len());
            stream.write_all((head + body).as_bytes()).unwrap();
        }
    });
    assert!(run(["stats", "--url", &url]).error().contains("not with metrics of these caches"));
    assert!(run(["stats", "--url", &url]).error().contains("404"));
    // Whatever it is that answers there.
    let out = run(["stats", "--url", &url]).out;
    assert!(out.contains("a\\u009b2J") && out.len() < 10_000 && !out.contains('\u{9b}'), "{out:.1000}");
    pages.join().unwrap();
}
