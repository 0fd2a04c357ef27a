//! Each route, and what bad input gets.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests fail their test")]

use std::{path::Path, sync::Arc, time::Duration};

use axum::{
    Router,
    body::{Body, to_bytes},
    http::{Request, StatusCode},
};
use serde_json::{Value, json};
use service::{BATCH_MAX, Operators, Service, database::Database};
use tempfile::TempDir;
use tower::ServiceExt;

struct World {
    router: Router,
    service: Arc<Service>,
    database: Database,
    _folder: TempDir,
}

impl World {
    async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("airports.db");
        let running = service::telemetry().unwrap();
        let queries = service::queries(&running);
        let open = move || Database::open(&path, queries);
        let (database, made) = tokio::task::spawn_blocking(open).await.unwrap().unwrap();
        assert!(made);
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("cache.toml");
        let service =
            Arc::new(Service::new(&file, database.clone(), running, Operators::default()).await.unwrap());
        Self { router: service.router(), service, database, _folder: folder }
    }

    async fn ask(&self, method: &str, path: &str, body: impl Into<Body>) -> (StatusCode, Value) {
        let request = Request::builder().method(method).uri(path).body(body.into()).unwrap();
        let response = self.router.clone().oneshot(request).await.unwrap();
        let status = response.status();
        let bytes = to_bytes(response.into_body(), 8 << 20).await.unwrap();
        let text = String::from_utf8(bytes.to_vec()).unwrap();
        (status, serde_json::from_str(&text).unwrap_or(Value::String(text)))
    }

    async fn get(&self, path: &str) -> (StatusCode, Value) {
        self.ask("GET", path, Body::empty()).await
    }

    async fn send(&self, method: &str, path: &str, body: Value) -> (StatusCode, Value) {
        self.ask(method, path, body.to_string()).await
    }

    async fn stats(&self) -> Value {
        let (_, all) = self.get("/cache/stats").await;
        all["caches"].as_array().unwrap().iter().find(|cache| cache["name"] == "airports").unwrap().clone()
    }
}

fn frankfurt() -> Value {
    json!({
        "iata": "FRA", "name": "Frankfurt Main", "country": "DE", "time_zone": "Europe/Berlin", "latitude": 50.049,
        "longitude": 8.5737, "elevation_ft": 364, "size": "large", "runway_ft": 13123,
    })
}

#[tokio::test]
async fn one_airport_is_loaded_once() {
    let world = World::new().await;
    for asked in ["EDDF", "eddf", "EDDF"] {
        let (status, airport) = world.get(&format!("/airport/{asked}")).await;
        assert_eq!((status, &airport["name"]), (StatusCode::OK, &json!("Frankfurt Airport")));
        assert_eq!(airport["near"].as_array().unwrap().len(), 5);
    }
    let stats = world.stats().await;
    assert_eq!((&stats["loads"], &stats["hits"]), (&json!(1), &json!(2)));
    assert_eq!(world.database.codes().await.unwrap().len(), 18_774);
}

/// As a load does that runs into its limit: the query goes on, on a connection that nobody else can have meanwhile.
#[tokio::test]
async fn callers_who_leave_a_slow_database_take_no_connection_from_others() {
    let world = World::new().await;
    let airport = world.database.airport("EDDF").await.unwrap().unwrap();
    let writer = rusqlite::Connection::open(world._folder.path().join("airports.db")).unwrap();
    writer.execute_batch("BEGIN IMMEDIATE").unwrap();
    for _ in 0..20 {
        let saving = world.database.save(airport.clone());
        assert!(tokio::time::timeout(Duration::from_millis(20), saving).await.is_err());
    }
    // As long as its turn takes.
    world.database.airport("EDDF").await.unwrap().unwrap();
}

#[tokio::test]
async fn an_unknown_one_is_404_and_remembered_as_absent() {
    let world = World::new().await;
    for _ in 0..3 {
        let (status, body) = world.get("/airport/XXXX").await;
        assert_eq!(status, StatusCode::NOT_FOUND);
        assert!(body["error"].as_str().unwrap().contains("no airport"), "{body}");
    }
    let stats = world.stats().await;
    assert_eq!((&stats["loads"], &stats["negative"]), (&json!(1), &json!(2)));
    // What can be no code does not get as far as the cache.
    for path in ["/airport/x", "/airport/%00%00%00%00", "/airport/EDDF%27--", "/airport/abcdefghijk"] {
        assert_eq!(world.get(path).await.0, StatusCode::NOT_FOUND, "{path}");
    }
    assert_eq!(world.stats().await["lookups"], json!(3));
}

#[tokio::test]
async fn a_batch_is_one_query_and_keeps_its_order() {
    let world = World::new().await;
    world.get("/airport/EGLL").await;
    let codes = json!({ "codes": ["KJFK", "?", "egll", "XXXX", "KJFK"] });
    let (status, body) = world.send("POST", "/airports/batch", codes).await;
    assert_eq!(status, StatusCode::OK, "{body}");
    let got: Vec<&Value> =
        body["airports"].as_array().unwrap().iter().map(|airport| &airport["code"]).collect();
    assert_eq!(got, [&json!("KJFK"), &Value::Null, &json!("EGLL"), &Value::Null, &json!("KJFK")]);
    assert_eq!(world.stats().await["loads"], json!(2), "one of the first, one of the batch");
    assert_eq!(
        world.send("POST", "/airports/batch", json!({ "codes": [] })).await.1,
        json!({ "airports": [] })
    );
}

#[tokio::test]
async fn a_write_is_seen_at_once_and_is_in_the_database() {
    let world = World::new().await;
    world.get("/airport/EDDF").await;
    let (status, body) = world.send("PUT", "/airport/eddf", frankfurt()).await;
    assert_eq!((status, &body["delivery"]), (StatusCode::OK, &json!("confirmed")), "{body}");
    assert_eq!(world.get("/airport/EDDF").await.1["name"], json!("Frankfurt Main"));
    assert_eq!(world.stats().await["loads"], json!(1), "the write has filled the cache");
    assert_eq!(world.database.airport("EDDF").await.unwrap().unwrap().name, "Frankfurt Main");
    assert_eq!(world.ask("DELETE", "/airport/EDDF", Body::empty()).await.0, StatusCode::OK);
    assert_eq!(world.get("/airport/EDDF").await.0, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn invalidation_by_key_and_by_tag() {
    let world = World::new().await;
    for code in ["EDDF", "EDDM", "LFPG"] {
        world.get(&format!("/airport/{code}")).await;
    }
    // Behind the service's back.
    for code in ["EDDF", "EDDM", "LFPG"] {
        let mut airport = world.database.airport(code).await.unwrap().unwrap();
        airport.name = "another".to_owned();
        world.database.save(airport).await.unwrap();
    }
    let name = async |code: &str| world.get(&format!("/airport/{code}")).await.1["name"].clone();
    assert_ne!(name("EDDF").await, "another");
    let (status, body) = world.send("POST", "/cache/invalidate", json!({ "key": "EDDF" })).await;
    assert_eq!((status, body), (StatusCode::OK, json!({ "delivery": "confirmed" })));
    assert_eq!(name("EDDF").await, "another");
    assert_ne!(name("EDDM").await, "another");
    assert_eq!(
        world.send("POST", "/cache/invalidate", json!({ "tag": "country:DE" })).await.0,
        StatusCode::OK
    );
    assert_eq!(name("EDDM").await, "another");
    assert_ne!(name("LFPG").await, "another", "of another country");
}

/// Also where the cache had nothing of it, or had it under another country's tag.
#[tokio::test]
async fn what_is_saved_has_its_tag() {
    let world = World::new().await;
    let mut moved = frankfurt();
    moved["country"] = json!("FR");
    world.get("/airport/EDDM").await;
    for (code, draft) in [("EDDF", frankfurt()), ("EDDM", moved)] {
        let (status, body) = world.send("PUT", &format!("/airport/{code}"), draft).await;
        assert_eq!((status, &body["delivery"]), (StatusCode::OK, &json!("confirmed")), "{body}");
        let mut airport = world.database.airport(code).await.unwrap().unwrap();
        airport.name = "another".to_owned();
        world.database.save(airport).await.unwrap();
    }
    for (code, tag) in [("EDDF", "country:DE"), ("EDDM", "country:FR")] {
        world.send("POST", "/cache/invalidate", json!({ "tag": tag })).await;
        assert_eq!(world.get(&format!("/airport/{code}")).await.1["name"], "another", "{tag}");
    }
}

#[tokio::test]
async fn malformed_bodies_are_400_and_name_the_field() {
    let world = World::new().await;
    let mut cases = vec![
        ("POST", "/airports/batch", "{".to_owned(), "(body)"),
        ("POST", "/airports/batch", "".to_owned(), "(body)"),
        ("POST", "/airports/batch", "{\"codes\":[]} trailing".to_owned(), "(body)"),
        ("POST", "/airports/batch", json!({}).to_string(), "codes"),
        ("POST", "/airports/batch", json!({ "codes": "EDDF" }).to_string(), "codes"),
        ("POST", "/airports/batch", json!({ "codes": ["EDDF", 7] }).to_string(), "codes[1]"),
        ("POST", "/airports/batch", json!({ "codes": [], "more": 1 }).to_string(), "more"),
        ("POST", "/cache/invalidate", json!({}).to_string(), "key"),
        ("POST", "/cache/invalidate", json!({ "key": "EDDF", "tag": "country:DE" }).to_string(), "tag"),
        ("POST", "/cache/invalidate", json!({ "key": "?" }).to_string(), "key"),
        ("PUT", "/airport/ED$F", frankfurt().to_string(), "code"),
        ("POST", "/check/operations", json!({ "operation": "fly" }).to_string(), "operation"),
        ("POST", "/check/operations", json!({ "operation": "get", "count": 0 }).to_string(), "count"),
        ("POST", "/check/performance", json!({ "target_hit_rate": 1.5 }).to_string(), "target_hit_rate"),
        ("POST", "/check/latency", json!({ "command": "get", "key_size": 0 }).to_string(), "key_size"),
        ("POST", "/check/cleanup", json!({ "project": 7 }).to_string(), "project"),
    ];
    for (field, value) in [
        ("name", json!("")),
        ("country", json!("Germany")),
        ("latitude", json!(91)),
        ("longitude", json!("east")),
        ("size", json!("huge")),
        ("runway_ft", json!(-1)),
        ("code", json!("EDDF")),
    ] {
        let mut body = frankfurt();
        body[field] = value;
        cases.push(("PUT", "/airport/EDDF", body.to_string(), field));
    }
    let mut without = frankfurt();
    without.as_object_mut().unwrap().remove("time_zone");
    cases.push(("PUT", "/airport/EDDF", without.to_string(), "time_zone"));
    for (method, path, body, field) in cases {
        let (status, answer) = world.ask(method, path, body.clone()).await;
        assert_eq!(
            (status, &answer["field"]),
            (StatusCode::BAD_REQUEST, &json!(field)),
            "{path} {body}: {answer}"
        );
        assert!(!answer["error"].as_str().unwrap().is_empty());
    }
    let (status, answer) = world.send("POST", "/cache/invalidate", json!({ "tag": "" })).await;
    assert_eq!(status, StatusCode::BAD_REQUEST, "{answer}");
    assert_eq!(world.database.airport("EDDF").await.unwrap().unwrap().name, "Frankfurt Airport");
}

#[tokio::test]
async fn what_is_too_long_is_413() {
    let world = World::new().await;
    let codes = vec!["EDDF"; BATCH_MAX + 1];
    let (status, answer) = world.send("POST", "/airports/batch", json!({ "codes": codes })).await;
    assert_eq!((status, &answer["field"]), (StatusCode::PAYLOAD_TOO_LARGE, &json!("codes")), "{answer}");
    assert_eq!(
        world.send("POST", "/airports/batch", json!({ "codes": &codes[1..] })).await.0,
        StatusCode::OK
    );
    let long = format!("{{\"codes\":[\"{}\"]}}", "x".repeat(65 << 10));
    let (status, answer) = world.ask("POST", "/airports/batch", long).await;
    assert_eq!(status, StatusCode::PAYLOAD_TOO_LARGE, "{answer}");
}

#[tokio::test]
async fn checks_pass_count_and_clean_up() {
    let world = World::new().await;
    for (path, body) in [
        ("/check/operations", json!({ "operation": "set", "count": 50, "prefix": "p", "project": "one" })),
        ("/check/operations", json!({ "operation": "get", "count": 50, "prefix": "p", "project": "one" })),
        ("/check/performance", json!({ "keys": 200, "target_hit_rate": 0.75, "project": "one" })),
        ("/check/latency", json!({ "command": "get", "iterations": 50, "key_size": 64, "project": "one" })),
        ("/check/latency", json!({ "command": "delete", "iterations": 5 })),
    ] {
        let (status, answer) = world.send("POST", path, body).await;
        assert_eq!((status, &answer["passed"]), (StatusCode::OK, &json!(true)), "{path}: {answer}");
        if answer["operation"] == "get" {
            assert_eq!(answer["found"], json!(50));
        }
        if path.ends_with("performance") {
            assert_eq!(answer["hit_rate"], json!(0.75));
        }
    }
    for path in ["/check/memory", "/check/connections", "/check/instrumentation"] {
        let (status, answer) = world.get(path).await;
        assert_eq!((status, &answer["passed"]), (StatusCode::OK, &json!(true)), "{path}: {answer}");
    }
    let clean = world.send("POST", "/check/cleanup", json!({ "project": "one" })).await.1;
    assert_eq!(clean["passed"], json!(true));
    let again = json!({ "operation": "get", "count": 50, "prefix": "p", "project": "one" });
    assert_eq!(world.send("POST", "/check/operations", again).await.1["found"], json!(0));
    assert_eq!(world.stats().await["lookups"], json!(0), "the airports were left alone");
}

/// It shares its store with the airports, and a store that is full of what is asked for has little room for anything new.
#[tokio::test]
async fn a_check_passes_beside_airports_that_fill_the_memory() {
    let world = World::new().await;
    let codes = world.database.codes().await.unwrap();
    for _ in 0..3 {
        for codes in codes[..4_500].chunks(500) {
            let batch = json!({ "codes": codes });
            assert_eq!(world.send("POST", "/airports/batch", batch).await.0, StatusCode::OK);
        }
    }
    let asked = json!({ "keys": 500, "target_hit_rate": 0.8 });
    let (status, answer) = world.send("POST", "/check/performance", asked).await;
    assert_eq!((status, &answer["passed"]), (StatusCode::OK, &json!(true)), "{answer}");
}

#[tokio::test]
async fn metrics_agree_with_the_stats() {
    let world = World::new().await;
    for code in ["EDDF", "EDDF", "EDDF", "XXXX"] {
        world.get(&format!("/airport/{code}")).await;
    }
    let (status, page) = world.get("/metrics").await;
    assert_eq!(status, StatusCode::OK);
    let page = page.as_str().unwrap();
    let sum = |name: &str| -> f64 {
        let of_it = |line: &&str| line.starts_with(name) && line.contains("cache_name=\"airports\"");
        page.lines().filter(of_it).map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()).sum()
    };
    let stats = world.stats().await;
    for (series, field) in
        [("cache_hits_total{", "hits"), ("cache_misses_total{", "misses"), ("cache_loads_total{", "loads")]
    {
        assert_eq!(json!(sum(series)), json!(stats[field].as_f64().unwrap()), "{series}");
    }
    assert!(page.contains("http_server_request_duration_seconds_count"), "{page}");
    assert!(!page.contains("EDDF"), "keys are in no metric");
    assert_eq!(world.get("/healthz").await, (StatusCode::OK, json!({ "status": "ok" })));
}

/// One line of what Prometheus reads: its labels, and its value.
struct Line<'a> {
    labels: &'a str,
    value: f64,
}

/// The sum over the lines of a series of the airports' that have all of these labels.
fn metric(page: &str, series: &str, labels: &[(&str, &str)]) -> f64 {
    lines(page, series)
        .filter(|line| {
            labels.iter().all(|(name, value)| line.labels.contains(&format!("{name}=\"{value}\"")))
        })
        .map(|line| line.value)
        .sum()
}

fn lines<'a>(page: &'a str, series: &'a str) -> impl Iterator<Item = Line<'a>> {
    page.lines().filter_map(move |line| {
        let (labels, value) = line.strip_prefix(series)?.strip_prefix('{')?.split_once("} ")?;
        let line = Line { labels, value: value.parse().ok()? };
        labels.contains("cache_name=\"airports\"").then_some(line)
    })
}

/// The bounds, in microseconds, between which Prometheus sees half of the calls that ended like this.
fn median(page: &str, result: &str) -> (f64, f64) {
    let wanted = format!("cache_result=\"{result}\"");
    let bound = |labels: &str| labels.split("le=\"").nth(1)?.split('"').next()?.parse::<f64>().ok();
    let mut buckets: Vec<(f64, f64)> = Vec::new();
    for line in
        lines(page, "cache_operation_duration_seconds_bucket").filter(|line| line.labels.contains(&wanted))
    {
        let bound = bound(line.labels).unwrap();
        match buckets.iter_mut().find(|(known, _)| known.total_cmp(&bound).is_eq()) {
            Some((_, count)) => *count += line.value,
            None => buckets.push((bound, line.value)),
        }
    }
    buckets.sort_by(|(a, _), (b, _)| a.total_cmp(b));
    let all = buckets.last().unwrap().1;
    let at = buckets.iter().position(|(_, count)| *count * 2.0 >= all).unwrap();
    (if at == 0 { 0.0 } else { buckets[at - 1].0 * 1e6 }, buckets[at].0 * 1e6)
}

#[tokio::test]
async fn the_page_agrees_with_the_metrics() {
    let world = World::new().await;
    let codes = service::database::codes_by_popularity(1).unwrap();
    // More than memory holds, some of it often, some of it unknown.
    for n in 0..16_000 {
        let code = if n % 3 == 0 { &codes[n % 50] } else { &codes[n % 8000] };
        world.get(&format!("/airport/{code}")).await;
    }
    for code in ["XXXX", "XXXX", "YYYY"] {
        world.get(&format!("/airport/{code}")).await;
    }
    world.send("POST", "/airports/batch", json!({ "codes": codes[..40].to_vec() })).await;
    world.send("POST", "/cache/invalidate", json!({ "tag": "country:US" })).await;
    world.send("POST", "/cache/invalidate", json!({ "key": "EDDF" })).await;
    world.get("/airport/EDDF").await;
    // Metrics read the counters once a second.
    tokio::time::sleep(std::time::Duration::from_millis(1100)).await;

    let one = world.get("/cache/api/caches/airports").await.1;
    let metrics = world.get("/metrics").await.1;
    let metrics = metrics.as_str().unwrap();
    let said = |path: &str| {
        one.pointer(path).and_then(Value::as_f64).unwrap_or_else(|| panic!("no {path} in {one}"))
    };
    for (path, series, labels) in [
        ("/hits", "cache_hits_total", &[][..]),
        ("/misses", "cache_misses_total", &[]),
        ("/lookups", "cache_requests_total", &[]),
        ("/stale", "cache_requests_total", &[("cache_result", "stale")]),
        ("/negative", "cache_requests_total", &[("cache_result", "negative")]),
        ("/coalesced", "cache_requests_total", &[("cache_result", "coalesced")]),
        ("/served/0/lookups", "cache_requests_total", &[("cache_level", "l1")]),
        ("/served/2/lookups", "cache_requests_total", &[("cache_result", "miss")]),
        ("/miss_reasons/evicted", "cache_miss_reasons_total", &[("cache_miss_reason", "evicted")]),
        ("/miss_reasons/invalidated", "cache_miss_reasons_total", &[("cache_miss_reason", "invalidated")]),
        ("/operations/get_or_set", "cache_operations_total", &[("cache_operation", "get_or_set")]),
        ("/operations/get_or_set_many", "cache_operations_total", &[("cache_operation", "get_or_set_many")]),
        ("/invalidations/tag", "cache_invalidations_total", &[("cache_invalidation_scope", "tag")]),
        ("/invalidations/key", "cache_invalidations_total", &[("cache_invalidation_scope", "key")]),
        ("/errors", "cache_errors_total", &[]),
        ("/loads", "cache_loads_total", &[]),
        ("/load_errors", "cache_load_errors_total", &[]),
        ("/time_saved_s", "cache_time_saved_seconds_total", &[]),
        ("/journal/pending", "cache_journal_depth", &[]),
        ("/hit_rate", "cache_hit_rate", &[]),
        ("/levels/0/asked", "cache_level_requests_total", &[]),
        ("/levels/0/evictions/size", "cache_evictions_total", &[("cache_eviction_cause", "size")]),
        ("/levels/0/entries", "cache_entry_count", &[]),
    ] {
        let (page, metric) = (said(path), metric(metrics, series, labels));
        assert!((page - metric).abs() < 1e-6, "{path} is {page}, {series} {metric}\n{metrics}");
    }
    for some in ["/hits", "/misses", "/negative", "/miss_reasons/evicted", "/levels/0/evictions/size"] {
        assert!(said(some) > 0.0, "{some} is nothing: {one}");
    }
    let loaded = one["latency"].as_array().unwrap().iter().find(|row| row["outcome"] == "loaded").unwrap();
    let (p50, (above, below)) = (loaded["p50_us"].as_f64().unwrap(), median(metrics, "miss"));
    assert!(
        (above * 0.95..=below * 1.05).contains(&p50),
        "{p50} µs, and by the metrics from {above} to {below}"
    );
}

#[tokio::test]
async fn after_the_end_calls_are_refused() {
    let world = World::new().await;
    world.service.close().await.unwrap();
    assert_eq!(world.get("/airport/EDDF").await.0, StatusCode::SERVICE_UNAVAILABLE);
}
