//! The program: how it starts, what it says when it cannot, what it traces, and how it ends.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests fail their test")]

mod running;

use std::{
    collections::HashMap,
    fs::{self, File},
    io::{BufRead, BufReader, Write},
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Command, Output},
    time::Duration,
};

use mock_collector::{MockServer, Protocol};
use tempfile::TempDir;
use test_servers::{MemcachedServer, RedisServer, Signal, until};

use crate::running::{Running, program, tool, with_database};

#[test]
fn it_fills_its_database_once_and_drains_at_the_end() {
    let folder = TempDir::new().unwrap();
    for _ in 0..2 {
        let service = Running::start(program(folder.path()));
        assert!(service.get("/airport/EDDF").contains("Frankfurt Airport"));
        let (well, said) = service.end();
        assert!(well && said.contains("draining"), "{said}");
    }
    assert!(folder.path().join("airports.db").metadata().unwrap().len() > 1 << 20);
}

/// A supervisor may change its mind.
#[test]
fn it_is_heard_as_soon_as_it_says_that_it_serves() {
    let folder = TempDir::new().unwrap();
    for _ in 0..5 {
        let service = Running::start(program(folder.path()));
        service.signal(Signal::HUP);
        let (well, said) = service.end();
        assert!(well && said.contains("draining"), "{said}");
    }
}

/// A client may never send the rest of its request.
#[test]
fn a_request_that_never_ends_is_waited_for_only_so_long() {
    let folder = TempDir::new().unwrap();
    let patience = Duration::from_secs(10);
    // Asked once, it ends by itself; asked again, at once.
    for (again, limit) in [(false, patience * 3), (true, patience / 2)] {
        let mut service = Running::start(program(folder.path()));
        let mut stream = TcpStream::connect(&service.at).unwrap();
        let head =
            "PUT /airport/EDDF HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\nexpect: 100-continue\r\n\r\n";
        stream.write_all(head.as_bytes()).unwrap();
        let mut line = String::new();
        BufReader::new(&stream).read_line(&mut line).unwrap();
        assert!(line.contains("100 Continue"), "the body is waited for: {line}");
        service.ask_to_end();
        let ended = until(limit, || {
            if again {
                service.ask_to_end();
            }
            service.has_ended()
        });
        assert!(ended, "asked again: {again}");
        let (well, said) = service.ended();
        assert!(well && said.contains("some requests have not ended") && said.contains("draining"), "{said}");
    }
}

fn fails(command: &mut Command) -> String {
    let Output { status, stderr, stdout } = command.output().unwrap();
    let said = String::from_utf8(stderr).unwrap();
    assert!(!status.success() && stdout.is_empty(), "{said}");
    assert_eq!(said.lines().count(), 1, "{said}");
    said
}

#[test]
fn what_is_wrong_is_one_line_that_says_what_to_do() {
    let folder = TempDir::new().unwrap();
    let missing = fails(program(folder.path()).args(["--config", "/nowhere/cache.toml"]));
    assert!(missing.contains("/nowhere/cache.toml") && missing.contains("name the file"), "{missing}");

    let wrong = folder.path().join("wrong.toml");
    fs::write(&wrong, "[caches.airports]\nttl = 5\n").unwrap();
    let said = fails(program(folder.path()).arg("--config").arg(&wrong));
    assert!(said.contains("wrong.toml:2"), "{said}");

    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let at = taken.local_addr().unwrap().to_string();
    let mut command = Command::new(env!("CARGO_BIN_EXE_service"));
    let said = fails(command.args(["--listen", &at]));
    assert!(said.contains(&at) && said.contains("name another address"), "{said}");

    let foreign = folder.path().join("foreign.db");
    fs::write(&foreign, "this is no database, but it is long enough to look like one".repeat(100)).unwrap();
    let said = fails(&mut with_database(&foreign));
    assert!(said.contains("foreign.db") && said.contains("--database"), "{said}");

    let nowhere = fails(&mut with_database(Path::new("/nowhere/airports.db")));
    assert!(nowhere.contains("/nowhere/airports.db") && nowhere.contains("--database"), "{nowhere}");
}

/// From the request down to the query, in one trace.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_is_traced_down_to_its_query() {
    let collector = MockServer::builder().protocol(Protocol::HttpBinary).start().await.unwrap();
    let folder = TempDir::new().unwrap();
    let mut command = program(folder.path());
    command.env("OTEL_EXPORTER_OTLP_ENDPOINT", format!("http://{}", collector.addr()));
    tokio::task::spawn_blocking(move || {
        let service = Running::start(command);
        assert!(service.get("/airport/EDDF").contains("Frankfurt Airport"));
        // Ends with the last export.
        assert!(service.end().0);
    })
    .await
    .unwrap();
    let wanted = ["SELECT sqlite", "cache.load airports", "cache.get_or_set airports", "GET /airport/{code}"];
    let mut seen_path = Vec::new();
    let found = tokio::time::timeout(Duration::from_secs(10), async {
        loop {
            let path = collector
                .with_collector(|seen| {
                    let spans: HashMap<_, _> =
                        seen.spans().iter().map(|s| (s.span().span_id.clone(), s.span().clone())).collect();
                    let mut at = spans.values().find(|span| span.name == "SELECT sqlite").cloned();
                    let mut path = Vec::new();
                    while let Some(span) = at {
                        path.push(span.name.clone());
                        at = spans.get(&span.parent_span_id).cloned();
                    }
                    path
                })
                .await;
            seen_path.clone_from(&path);
            if path == wanted {
                break;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await;
    let names = collector
        .with_collector(|seen| seen.spans().iter().map(|s| s.span().name.clone()).collect::<Vec<_>>())
        .await;
    assert!(found.is_ok(), "{seen_path:?} of {names:?}");
}

/// With the caches of this file. Its log is there.
fn logging(folder: &Path, file: &Path) -> (Running, PathBuf) {
    let log = folder.join("log");
    let mut command = program(folder);
    command.arg("--config").arg(file).stderr(File::create(&log).unwrap());
    (Running::start(command), log)
}

/// The alert `CacheAdvice` says no more than where to look.
#[test]
fn advice_is_a_line_of_the_log() {
    let Some(server) = RedisServer::start() else { return };
    let user = ["ACL", "SETUSER", "ann", "on", ">hunter2", "~*", "&*", "+@all", "-client|kill"];
    server.command::<()>(&user).unwrap();
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("cache.toml");
    let text = format!(
        "[providers.shared]\nbackend = 'redis'\nurl = 'redis://ann:hunter2@127.0.0.1:{}'\n\
         [defaults]\nlevels = [{{ provider = 'shared', budget = '5s' }}]\n[caches.airports]\n[caches.checks]\n",
        server.port()
    );
    fs::write(&file, text).unwrap();
    let (service, log) = logging(folder.path(), &file);
    assert!(service.get("/airport/EDDF").contains("Frankfurt Airport"));
    assert!(service.get("/metrics").contains("cache_advice_total{"));
    assert!(service.end().0);
    let log = fs::read_to_string(log).unwrap();
    let line = log.lines().find(|line| line.contains("traced_cache::advice")).unwrap_or_default();
    assert!(line.contains("airports") && line.contains("+client|kill"), "{log}");
    assert!(!log.contains("hunter2"), "{log}");
}

/// Whoever is paged for an outage sees in the log when it ends, and what is left of it when the service ends first.
#[test]
fn an_outage_its_end_and_what_was_not_delivered_are_told() {
    let Some(server) = RedisServer::start() else { return };
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("cache.toml");
    let text = format!(
        "[providers.shared]\nbackend = 'redis'\nurl = '{}'\n\
         [defaults]\nlevels = [{{ provider = 'shared', budget = '5s', stance = 'absorb' }}]\n\
         [caches.airports]\n[caches.checks]\n",
        server.url()
    );
    fs::write(&file, text).unwrap();
    let (service, log) = logging(folder.path(), &file);
    let logs = |what: &str| {
        until(Duration::from_secs(20), || {
            service.get("/airport/EDDF");
            fs::read_to_string(&log).unwrap().contains(what)
        })
    };
    server.kill();
    assert!(logs("WARN traced_cache::breaker: level 1 (redis at 127.0.0.1:"));
    server.restart();
    assert!(logs("INFO traced_cache::breaker: level 1 (redis at 127.0.0.1:"));

    server.kill();
    assert!(service.post("/cache/invalidate", r#"{"key":"EDDF"}"#).contains("pending"));
    let (well, _) = service.end();
    let log = fs::read_to_string(log).unwrap();
    assert!(!well && log.contains("level 1 of airports has not heard of 1; "), "{log}");
}

/// The alerts `RedisDown` and `MemcachedDown` see it, and the log says what callers are told.
#[test]
fn a_server_that_is_down_and_requests_that_fail_are_seen() {
    let (Some(redis), Some(memcached)) = (RedisServer::start(), MemcachedServer::start()) else { return };
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("cache.toml");
    let text = format!(
        "[providers.shared]\nbackend = 'redis'\nurl = '{}'\n[providers.other]\nbackend = 'memcached'\nurl = '{}'\n\
         [caches.airports]\nlevels = ['shared']\n[caches.checks]\nlevels = ['other']\n",
        redis.url(),
        memcached.url()
    );
    fs::write(&file, text).unwrap();
    let (service, log) = logging(folder.path(), &file);
    let up = |system: &str, client: &str, up: u64| {
        let ends = format!("}} {up}");
        until(Duration::from_secs(60), || {
            let page = service.get("/metrics");
            let mut lines = page.lines().filter(|line| line.starts_with(&format!("{system}_up{{")));
            lines.any(|line| {
                line.contains(&format!("db_client_name=\"{client}\""))
                    && line.contains("server_address=\"127.0.0.1\"")
                    && line.trim_end().ends_with(&ends)
            })
        })
    };
    assert!(up("redis", "shared", 1) && up("memcached", "other", 1));
    let page = service.get("/metrics");
    for wanted in [
        "redis_memory_used_bytes{",
        "redis_maxmemory_bytes{",
        "redis_policy=\"noeviction\"",
        "redis_keyspace_hits_total{",
    ] {
        assert!(page.contains(wanted), "{wanted}: {page}");
    }
    redis.kill();
    memcached.kill();
    assert!(up("redis", "shared", 0) && up("memcached", "other", 0));
    assert!(!service.get("/metrics").contains("redis_memory_used_bytes{"), "what it said is not so any more");
    let refused = service.post("/cache/invalidate", r#"{"key":"EDDF"}"#);
    assert!(refused.starts_with("HTTP/1.1 503"), "{refused}");
    redis.restart();
    assert!(up("redis", "shared", 1));
    assert!(service.end().0);
    let log = fs::read_to_string(log).unwrap();
    let line = log.lines().find(|line| line.contains(" service::trace: ")).unwrap_or_default();
    assert!(line.contains("WARN") && line.contains("POST /cache/invalidate is answered 503"), "{log}");
    // Callers are not told where servers are, but whoever reads the log is.
    assert!(line.contains(&format!("127.0.0.1:{}", redis.port())), "{line}");
    assert!(!refused.contains("127.0.0.1"), "{refused}");
}

/// After a password was rotated, say: nothing has to be started anew, and a mistake changes nothing.
#[test]
fn a_hup_signal_reads_the_caches_again() {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("cache.toml");
    let with = |ttl: &str| {
        let text = format!(
            "[providers.local]\nbackend = 'memory'\nentries = 9\n[defaults]\nlevels = ['local']\npolicy.ttl = {ttl}\n\
             [caches.airports]\n[caches.checks]\n"
        );
        fs::write(&file, text).unwrap();
    };
    with("'5m'");
    let (service, log) = logging(folder.path(), &file);
    let shows = |what: &str| {
        until(Duration::from_secs(20), || service.get("/cache/api/caches/airports").contains(what))
    };
    assert!(shows(r#"{"name":"ttl","value":"5m"}"#));
    with("7");
    service.signal(Signal::HUP);
    let told = "cache.toml:6: defaults.policy.ttl = 7: ";
    assert!(until(Duration::from_secs(20), || fs::read_to_string(&log).unwrap().contains(told)));
    let text = fs::read_to_string(&log).unwrap();
    let line = text.lines().find(|line| line.contains(told)).unwrap_or_default();
    assert!(
        line.starts_with("20") && line.contains("Z ERROR ") && line.contains("go on as before"),
        "{text}"
    );
    with("'7m'");
    service.signal(Signal::HUP);
    assert!(shows(r#"{"name":"ttl","value":"7m"}"#));
    let (well, said) = service.end();
    assert!(well && said.contains("read the caches again\n"), "{said}");
}

#[test]
fn the_load_driver_counts_what_the_service_counts() {
    let folder = TempDir::new().unwrap();
    let service = Running::start(program(folder.path()));
    let load = |arguments: &[&str]| -> serde_json::Value {
        let mut command = tool(env!("CARGO_BIN_EXE_load"), &service);
        let Output { status, stdout, stderr } = command.args(arguments).arg("--json").output().unwrap();
        assert!(status.success(), "{}", String::from_utf8_lossy(&stderr));
        serde_json::from_slice(&stdout).unwrap()
    };
    let even = load(&["--seconds", "1", "--rate", "400", "--zipf", "0"]);
    let requests = even["requests"].as_u64().unwrap();
    assert!((300..=410).contains(&requests), "{even}");
    assert_eq!(
        (&even["statuses"]["200"], &even["cache"]["lookups"]),
        (&even["requests"], &even["requests"]),
        "{even}"
    );
    let uneven = load(&["--seconds", "1", "--zipf", "1.2"]);
    let rate = |report: &serde_json::Value| report["cache"]["hit_rate"].as_f64().unwrap();
    assert!(rate(&uneven) > rate(&even) + 0.2, "{uneven} {even}");

    let trace = folder.path().join("keys.trace");
    fs::write(&trace, "a\nb\na\na\nb\n".repeat(20)).unwrap();
    let traced = load(&["--trace", trace.to_str().unwrap(), "--connections", "1", "--seed", "99"]);
    assert_eq!((&traced["requests"], &traced["cache"]["lookups"]), (&100.into(), &100.into()), "{traced}");
    assert!(traced["cache"]["loads"].as_u64().unwrap() <= 2, "{traced}");
}

#[test]
fn a_validation_passes_reports_and_fails_where_it_should() {
    let folder = TempDir::new().unwrap();
    let service = Running::start(program(folder.path()));
    let report = folder.path().join("report.json");
    let validate = |arguments: &[&str]| {
        let mut command = tool(env!("CARGO_BIN_EXE_validate"), &service);
        let Output { status, stdout, .. } =
            command.args(arguments).arg("--report").arg(&report).output().unwrap();
        let written: serde_json::Value = serde_json::from_slice(&fs::read(&report).unwrap()).unwrap();
        (status.code(), String::from_utf8(stdout).unwrap(), written)
    };
    let (code, said, written) = validate(&["--verbose"]);
    assert!(code == Some(0) && said.ends_with("11 passed, 0 failed\n"), "{said}");
    assert_eq!((&written["passed"], written["checks"].as_array().unwrap().len()), (&true.into(), 11));
    let (code, said, written) = validate(&["--target-hit-rate", "2"]);
    assert!(
        code == Some(1) && said.contains("FAILED the hit rate") && said.contains("target_hit_rate"),
        "{said}"
    );
    assert_eq!(written["passed"], false);
    let url = format!("http://u:secret@{}", service.at);
    let status =
        Command::new(env!("CARGO_BIN_EXE_validate")).args(["--url", &url, "--report"]).arg(&report).output();
    assert!(status.unwrap().status.success());
    let written = fs::read_to_string(&report).unwrap();
    assert!(
        written.contains(&format!("\"http://{}\"", service.at)) && !written.contains("secret"),
        "{written}"
    );
}

#[test]
fn tools_say_when_there_is_nobody_to_ask() {
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let url = format!("http://{closed}");
    for program in [env!("CARGO_BIN_EXE_load"), env!("CARGO_BIN_EXE_validate")] {
        for url in [url.as_str(), "ftp://somewhere", "nonsense"] {
            let said = fails(Command::new(program).args(["--url", url]));
            assert!(said.contains("--url"), "{said}");
        }
    }
    let withheld =
        ["ftp://u:secret@host", "http://u:secret@", "http://u:se/cret@host", "u:secret@http://host"];
    for url in [&*format!("http://u:secret@{closed}"), "u:secret@host"].iter().chain(&withheld) {
        for program in [env!("CARGO_BIN_EXE_load"), env!("CARGO_BIN_EXE_validate")] {
            let said = fails(Command::new(program).args(["--url", url]));
            assert!(said.contains("--url") && !said.contains("cret"), "{said}");
        }
    }
    let said = fails(Command::new(env!("CARGO_BIN_EXE_load")).args(["--trace", "/nowhere"]));
    assert!(said.starts_with("error: "), "{said}");
    let said = Command::new(env!("CARGO_BIN_EXE_load")).args(["--seconds", "0"]).output().unwrap();
    assert_eq!(said.status.code(), Some(2));
}
