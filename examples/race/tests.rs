//! Short races, one at a time: what is late by more than a bound must not be so because of the other races.

use std::sync::{Mutex, PoisonError};

use clap::Parser;
use test_servers::{Server, require};

use super::{Failure, Options, Spawn, parent};

static TURN: Mutex<()> = Mutex::new(());

fn race(l2: &str, more: &[&str]) -> serde_json::Value {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let options = Options::parse_from(["race", "--l2", l2].iter().chain(more));
    let report = parent::race(&options, Spawn::Threads).unwrap();
    assert!(report.good(), "{}", report.text(false));
    let json: serde_json::Value = serde_json::from_str(&report.text(true)).unwrap();
    assert_eq!(json["race"]["violations"], 0);
    for count in [
        "reads",
        "loads",
        "invalidations",
        "sets",
        "updates",
        "through",
        "tags",
        "clears",
        "near",
        "far",
        "unsaid",
    ] {
        assert!(json["race"][count].as_u64().unwrap() > 0, "{count}: {json}");
    }
    assert!(json["control"]["violations"].as_u64().unwrap() > 0);
    json
}

#[test]
fn redis() {
    if require(Server::Redis).is_some() {
        race("redis", &["--seconds", "2"]);
    }
}

#[test]
fn memcached() {
    if require(Server::Memcached).is_some() {
        race("memcached", &["--seconds", "2"]);
    }
}

fn hasty(l2: &str, more: &[&str]) {
    let json = race(l2, &[&["--hasty", "--seconds", "3"], more].concat());
    for count in ["expiries", "left", "failed", "stale"] {
        assert!(json["race"][count].as_u64().unwrap() > 0, "{count}: {json}");
    }
}

#[test]
fn callers_are_hasty() {
    for (server, l2) in [(Server::Redis, "redis"), (Server::Memcached, "memcached")] {
        if require(server).is_some() {
            hasty(l2, &[]);
        }
    }
}

#[test]
fn other_levels() {
    // Without its server's messages it makes no difference to memcached who hears.
    let redis = (Server::Redis, "redis", &["behind", "plain", "mixed", "untold"][..]);
    for (server, l2, levels) in [redis, (Server::Memcached, "memcached", &["behind", "plain"])] {
        if require(server).is_some() {
            race(l2, &["--levels", "behind", "--seconds", "2"]);
            let json = race(l2, &["--levels", "surface", "--fault", "stop", "--seconds", "4"]);
            assert!(json["race"]["pending"].as_u64().unwrap() > 0, "{json}");
            levels.iter().for_each(|levels| hasty(l2, &["--levels", levels]));
        }
    }
}

#[test]
fn a_level_behind_the_second_one() {
    if require(Server::Redis).is_some() && require(Server::Memcached).is_some() {
        for (l2, l3) in [("redis", "memcached"), ("memcached", "redis"), ("redis", "redis")] {
            race(l2, &["--l3", l3, "--fault", "stop", "--seconds", "7"]);
            hasty(l2, &["--l3", l3, "--levels", "behind"]);
        }
    }
}

#[test]
fn redis_in_trouble() {
    if require(Server::Redis).is_some() {
        for (fault, seconds) in [
            ("kill", "4"),
            ("dump", "5"),
            ("stop", "4"),
            ("failover", "8"),
            ("replace", "4"),
            ("reshard", "4"),
            // Time for each of its meddlings.
            ("meddle", "45"),
        ] {
            let json = race("redis", &["--fault", fault, "--seconds", seconds]);
            assert!(json["race"]["faults"].as_u64().unwrap() > 0, "{fault}");
        }
    }
}

#[test]
fn memcached_in_trouble() {
    if require(Server::Memcached).is_some() {
        for fault in ["kill", "stop", "meddle"] {
            let json = race("memcached", &["--fault", fault, "--seconds", "4"]);
            assert!(json["race"]["faults"].as_u64().unwrap() > 0, "{fault}");
        }
    }
}

#[test]
fn bad_options_end_with_two() {
    for bad in [
        &["race", "--l2", "http://x"][..],
        &["race", "--fault", "failover", "--seconds", "2"],
        &["race", "--l2", "memcached", "--fault", "dump"],
        &["race", "--l2", "redis://127.0.0.1:1", "--fault", "kill"],
    ] {
        let failure = parent::race(&Options::parse_from(bad), Spawn::Threads).unwrap_err();
        assert!(matches!(failure, Failure::Options(_)), "{failure:?}");
    }
    assert!(Options::try_parse_from(["race", "--seconds", "0"]).is_err());
}
