//! Whole replays of small traces.

use std::io::Write;

use clap::Parser;
use serde_json::Value;
use test_servers::{MemcachedServer, RedisServer};

use super::{Failure, Options, replay};

/// Ten thousand requests for 1,000 keys, in a loop.
fn trace() -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    for key in 0..10_000 {
        writeln!(file, "/product/{}", key % 1_000).unwrap();
    }
    file.flush().unwrap();
    file
}

fn run(options: &[&str]) -> Result<Value, Failure> {
    let file = trace();
    let path = file.path().to_str().unwrap();
    let options = Options::parse_from(["replay", path, "--json"].iter().chain(options));
    replay(&options).map(|json| serde_json::from_str(&json).unwrap())
}

fn number(report: &Value, field: &str) -> u64 {
    report[field].as_u64().unwrap()
}

#[test]
fn every_request_is_a_hit_or_a_miss_and_every_key_is_loaded_once() {
    for (threads, engine) in [("1", "quick"), ("3", "quick"), ("1", "moka")] {
        let report = run(&["--threads", threads, "--engine", engine]).unwrap();
        assert_eq!(report["engine"], engine);
        assert_eq!(number(&report, "requests"), 10_000);
        assert_eq!(number(&report, "distinct"), 1_000);
        assert_eq!(number(&report, "loads"), 1_000);
        assert_eq!(number(&report, "loads_avoided"), 9_000);
        assert_eq!(number(&report, "hits") + number(&report, "misses"), 10_000);
        assert_eq!(number(&report, "misses"), 1_000 + number(&report, "coalesced"));
        assert!(report["seconds"].as_f64().unwrap() > 0.0);
        let rate = report["hit_rate"].as_f64().unwrap();
        assert!((rate - report["hits"].as_f64().unwrap() / 10_000.0).abs() < 1e-9);
    }
}

#[test]
fn what_memory_lets_go_the_second_level_still_has() {
    let redis = RedisServer::start();
    let memcached = MemcachedServer::start();
    for url in [redis.as_ref().map(RedisServer::url), memcached.as_ref().map(MemcachedServer::url)] {
        let Some(url) = url else { continue };
        let report = run(&["--threads", "1", "--capacity", "10", "--l2", &url]).unwrap();
        assert_eq!(number(&report, "loads"), 1_000, "{report}");
        let by_level = report["hits_by_level"].as_array().unwrap();
        assert!(by_level[1].as_u64().unwrap() > 8_000, "{report}");
    }
}

#[test]
fn a_loader_that_takes_its_time_is_timed() {
    let report = run(&["--threads", "8", "--load-time", "1ms"]).unwrap();
    assert!(report["latency_micros"]["miss"]["p50"].as_f64().unwrap() >= 1_000.0, "{report}");
}

#[test]
fn bad_options_end_with_two_and_name_the_fix() {
    for (options, says) in [
        (["--capacity", "0"], "Memory::entries = 0: give it room for at least one entry"),
        (["--ttl", "0s"], "policy.ttl = 0s"),
        (["--l2", "http://x"], "use redis://host:port or memcached://host:port"),
        (["--l2", "memcached://"], "write memcached://host:port"),
    ] {
        let failure = run(&options).unwrap_err();
        assert!(matches!(failure, Failure::Options(_)), "{failure:?}");
        assert!(failure.report().0.contains(says), "{failure:?}");
    }
    assert!(Options::try_parse_from(["replay", "t", "--threads", "0"]).is_err());
}

#[test]
fn a_server_that_is_not_there_and_a_file_that_is_not_there_end_with_one() {
    for url in ["redis://127.0.0.1:1", "memcached://127.0.0.1:1"] {
        let failure = run(&["--l2", url]).unwrap_err();
        assert!(matches!(failure, Failure::Run(_)));
        assert!(failure.report().0.contains("no answer from"), "{failure:?}");
    }
    let missing = replay(&Options::parse_from(["replay", "no-such-trace"])).unwrap_err();
    assert!(matches!(missing, Failure::Run(_)));
    assert!(missing.report().0.contains("no-such-trace cannot be read"), "{missing:?}");
}
