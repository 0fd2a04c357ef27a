//! What an operator has of this very program: each query of the dashboard and each rule finds what it asks for, once a
//! Prometheus has scraped two instances at work.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests fail their test")]

#[path = "../../../tests/telemetry/prometheus.rs"]
mod prometheus;
mod running;

use std::{
    fs,
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use prometheus::{Prometheus, queries};
use tempfile::TempDir;
use test_servers::{MemcachedServer, RedisServer, until};

use crate::running::{Running, program};

const LIMIT: Duration = Duration::from_secs(120);

/// Metrics that are there for raw clients only, which this program does not have: its database is SQLite.
const OF_RAW_CLIENTS: [&str; 8] = [
    "db_client_lookups_total",
    "redis_memory_rss_bytes",
    "redis_memory_peak_bytes",
    "redis_memory_allocator_allocated_bytes",
    "redis_memory_fragmentation_ratio",
    "redis_commands_processed_total",
    "redis_keys_expired_total",
    "db_operation_name=\"GET\"",
];

/// Who is well has none of these: no command of the database fails; and Redis itself tells what has changed, not when it was
/// sent.
const SILENT_WHEN_HEALTHY: [&str; 2] =
    ["db_client_name!=\"\", error_type!=\"\"}", "cache_backplane_lag_seconds_bucket"];

fn config(folder: &Path, redis: &RedisServer, memcached: &MemcachedServer) {
    let text = format!(
        "[providers.local]\nbackend = \"memory\"\nbytes = \"64KiB\"\n\
         [providers.shared]\nbackend = \"redis\"\nurl = \"{}\"\n\
         [providers.list]\nbackend = \"memcached\"\nurl = \"{}\"\n\
         [defaults]\nlevels = [\"local\", \"shared\"]\npolicy = {{ ttl = \"5m\" }}\n\
         [caches.airports]\nbackplane = \"shared\"\n[caches.checks]\nlevels = [\"local\", \"list\"]\n",
        redis.url(),
        memcached.url(),
    );
    fs::write(folder.join("cache.toml"), text).unwrap();
}

/// Something of everything, as callers and operators do it.
fn work(nodes: &[Running; 2], codes: &[&str], over: &AtomicBool) {
    for round in 0_usize.. {
        let code = |more: usize| codes[(round + more) % codes.len()];
        for node in nodes {
            node.get(&format!("/airport/{}", code(0)));
            node.get("/airport/ZZZZ");
        }
        let [one, other] = nodes;
        let batch = serde_json::json!({ "codes": [code(1), code(2), code(3)] });
        one.post("/airports/batch", &batch.to_string());
        other.post("/cache/invalidate", &serde_json::json!({ "key": code(0) }).to_string());
        // Of these one loads, and the others wait for it.
        thread::scope(|crowd| {
            for _ in 0..6 {
                crowd.spawn(|| one.get(&format!("/airport/{}", code(0))));
            }
        });
        for operation in ["set", "get", "delete"] {
            let check = serde_json::json!({ "operation": operation, "count": 5 });
            one.post("/check/operations", &check.to_string());
        }
        if over.load(Ordering::Relaxed) {
            return;
        }
    }
}

#[test]
fn the_dashboard_and_the_rules_find_what_they_ask_for() {
    let Some(redis) = RedisServer::builder().config("maxmemory", "100mb").start() else { return };
    let Some(memcached) = MemcachedServer::start() else { return };
    let folders = [TempDir::new().unwrap(), TempDir::new().unwrap()];
    let nodes = folders.each_ref().map(|folder| {
        config(folder.path(), &redis, &memcached);
        let mut service = program(folder.path());
        service.arg("--config").arg(folder.path().join("cache.toml"));
        Running::start(service)
    });
    let targets = nodes.each_ref().map(|node| node.at.clone());
    let Some(prometheus) = Prometheus::of(&targets) else { return };
    let over = AtomicBool::new(false);
    let codes = ["EDDF", "EDDM", "EGLL", "LFPG", "KJFK", "LOWW", "LSZH", "EHAM"];
    let mut silent = Vec::new();
    thread::scope(|scope| {
        scope.spawn(|| work(&nodes, &codes, &over));
        // However the checks end.
        let _ends = Ends(&over);
        let mut finds = |query: &str, what: &str| {
            let mut last = Ok(0);
            let expected = [&OF_RAW_CLIENTS[..], &SILENT_WHEN_HEALTHY].concat();
            if let Some(listed) = expected.iter().find(|listed| query.contains(*listed)) {
                last = prometheus.answers(query);
                assert_eq!(last, Ok(0), "{what}: {query} is not silent any more: take {listed} off the list");
                return;
            }
            let found = until(Duration::from_secs(20), || {
                last = prometheus.answers(query);
                last != Ok(0)
            });
            assert!(last.is_ok(), "{what}: {query}: {last:?}\n{}", prometheus.log());
            if !found {
                silent.push(format!("{what}: {query}"));
            }
        };
        for (panel, queries) in queries() {
            queries.iter().for_each(|query| finds(query, &panel));
        }
        let rules = prometheus.api("rules");
        let groups = rules["data"]["groups"].as_array().unwrap();
        let mut seen = (0, 0);
        for rule in groups.iter().flat_map(|group| group["rules"].as_array().unwrap()) {
            let name = rule["name"].as_str().unwrap();
            assert_eq!(rule["health"], "ok", "{rule}");
            if rule["type"] == "recording" {
                seen.0 += 1;
                finds(name, "recording rule");
                continue;
            }
            // Of an alert, what it goes by.
            seen.1 += 1;
            for metric in metrics(rule["query"].as_str().unwrap()) {
                finds(&metric, name);
            }
        }
        assert!(seen.0 > 8 && seen.1 > 15, "{seen:?}");
    });
    assert!(silent.is_empty(), "found nothing:\n{}", silent.join("\n"));
    let calm = until(LIMIT, || prometheus.firing().is_empty());
    assert!(calm, "{:?}", prometheus.firing());
}

struct Ends<'a>(&'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// The names of metrics in a query.
fn metrics(query: &str) -> Vec<String> {
    let words = query.split(|c: char| !(c.is_ascii_alphanumeric() || matches!(c, '_' | ':')));
    let is_metric = |word: &&str| {
        let prefixes = ["cache_", "cache:", "db_client_", "db:", "redis_", "redis:", "memcached_"];
        prefixes.iter().any(|prefix| word.starts_with(prefix))
            && !query.contains(&format!("{word}="))
            && !query.contains(&format!("{word}!="))
            && !query.contains(&format!("{word}~"))
    };
    let labels = [
        "cache_name",
        "cache_level",
        "cache_operation",
        "db_client_name",
        "redis_policy",
        "db_client_connection_pool_name",
    ];
    words.filter(is_metric).filter(|word| !labels.contains(word)).map(str::to_owned).collect()
}
