//! Short races.

use clap::Parser;
use test_servers::{Server, require};

use super::{Failure, Options, Spawn, parent};

fn race(l2: &str) {
    let options = Options::parse_from(["race", "--l2", l2, "--seconds", "2"]);
    let report = parent::race(&options, Spawn::Threads).unwrap();
    assert!(report.good(), "{}", report.text(false));
    let json: serde_json::Value = serde_json::from_str(&report.text(true)).unwrap();
    assert_eq!(json["race"]["violations"], 0);
    for count in ["reads", "loads", "invalidations", "sets", "near", "far"] {
        assert!(json["race"][count].as_u64().unwrap() > 0, "{count}: {json}");
    }
    assert!(json["control"]["violations"].as_u64().unwrap() > 0);
}

#[test]
fn redis() {
    if require(Server::Redis).is_some() {
        race("redis");
    }
}

#[test]
fn memcached() {
    if require(Server::Memcached).is_some() {
        race("memcached");
    }
}

#[test]
fn bad_options_end_with_two() {
    let options = Options::parse_from(["race", "--l2", "http://x"]);
    let failure = parent::race(&options, Spawn::Threads).unwrap_err();
    assert!(matches!(failure, Failure::Options(_)), "{failure:?}");
    assert!(Options::try_parse_from(["race", "--seconds", "0"]).is_err());
}
