//! The ratios that are held against targets. Their names are an interface: do not change them.

use std::collections::BTreeMap;

use crate::{
    rounds::{Timed, median},
    stampede::Between,
};

/// Which way is better.
#[derive(Clone, Copy, PartialEq)]
pub enum Goal {
    AtMost(f64),
    AtLeast(f64),
    /// Told beside the others.
    None,
}

impl Goal {
    pub fn is_met(self, ratio: f64) -> Option<bool> {
        match self {
            Self::AtMost(most) => Some(ratio <= most),
            Self::AtLeast(least) => Some(ratio >= least),
            Self::None => None,
        }
    }
}

pub struct Ratio {
    pub name: &'static str,
    pub value: f64,
    pub goal: Goal,
    /// What was compared with what.
    pub of: String,
}

pub struct Tables<'a> {
    pub hits: &'a Timed,
    pub hits_on_two: &'a Timed,
    pub get_or_load: &'a Timed,
    pub redis_one: &'a Timed,
    pub redis_many: &'a Timed,
    pub batches: &'a Timed,
    pub memcached_one: &'a Timed,
    pub memcached_many: &'a Timed,
    pub between: &'a Between,
    pub allocations: &'a BTreeMap<String, f64>,
    /// Bytes asked for, and bytes resident, by what takes them.
    pub footprint: &'a BTreeMap<String, [f64; 2]>,
}

/// Time of one row over another's.
fn time(name: &'static str, table: &Timed, own: &'static str, other: &'static str, goal: Goal) -> Ratio {
    Ratio { name, value: table.ratio(own, other), goal, of: format!("{own} over {other}") }
}

/// Throughput of one row over another's.
fn rate(name: &'static str, table: &Timed, own: &'static str, other: &'static str, goal: Goal) -> Ratio {
    Ratio {
        name,
        value: table.ratio(other, own),
        goal,
        of: format!("{own} over {other}, operations per second"),
    }
}

pub fn all(tables: &Tables<'_>) -> Vec<Ratio> {
    use Goal::{AtLeast, AtMost, None};
    let Tables {
        hits,
        hits_on_two,
        get_or_load,
        redis_one,
        redis_many,
        batches,
        memcached_one,
        memcached_many,
        ..
    } = tables;
    let peers = [
        "cached sharded lru",
        "cached sharded lru, ttl",
        "foyer memory",
        "cachet",
        "multi-tier-cache get_typed",
    ];
    let expiring = ["cached sharded lru, ttl", "cachet", "multi-tier-cache get_typed"];
    let loading = [
        "cached sharded lru, several flights",
        "cached macro, by_key",
        "foyer memory",
        "cachet, stampede protection",
        "multi-tier-cache typed",
        "hitbox",
    ];
    // The fastest of those that let one caller load and the others wait.
    let (_, single) = loading.split_first().expect("there are several");
    let moka = "raw moka, expiry";
    vec![
        time("l1_hit_moka_over_raw_moka", hits, "own, moka", moka, AtMost(1.05)),
        time("l1_hit_moka_expiring_over_raw_moka", hits, "own, moka, engine expiry", moka, AtMost(1.15)),
        time("l1_hit_quick_over_raw_moka", hits, "own, quick", moka, AtMost(0.28)),
        time("l1_hit_quick_over_raw_quick", hits, "own, quick", "raw quick_cache", AtMost(1.7)),
        time("l1_hit_over_best_peer", hits, "own, quick", hits.fastest(&peers), AtMost(0.8)),
        time(
            "dated_quick_over_best_peer",
            hits,
            "raw quick_cache, dated, counted",
            hits.fastest(&peers),
            None,
        ),
        time("l1_hit_over_best_expiring_peer", hits, "own, quick", hits.fastest(&expiring), None),
        time("l1_hit_2_threads_quick_over_raw_moka", hits_on_two, "own, quick", moka, None),
        time("l1_hit_2_threads_over_best_peer", hits_on_two, "own, quick", hits_on_two.fastest(&peers), None),
        time(
            "get_or_set_hit_over_best_peer",
            get_or_load,
            "own, quick",
            get_or_load.fastest(single),
            AtMost(0.8),
        ),
        time("get_or_set_hit_over_any_peer", get_or_load, "own, quick", get_or_load.fastest(&loading), None),
        Ratio {
            name: "l1_hit_allocations",
            value: tables.allocations["own, quick"],
            goal: AtMost(0.0),
            of: "allocations per hit".into(),
        },
        Ratio {
            name: "l1_entry_bytes_more_than_raw_moka",
            value: tables.footprint["own, quick"][0] - tables.footprint["raw moka"][0],
            goal: AtMost(64.0),
            of: "bytes, of 1,000,000 entries".into(),
        },
        time("metrics_cost_l1", hits, "own, quick", "own, quick, no observer", AtMost(1.15)),
        time(
            "unsampled_trace_cost_l2",
            redis_many,
            "own, Redis, unsampled tracer",
            "own, Redis",
            AtMost(1.03),
        ),
        time(
            "unsampled_trace_cost_l2_in_a_request",
            redis_many,
            "own, Redis, in a request that is not sampled",
            "own, Redis",
            None,
        ),
        time("unsampled_trace_cost_l2_alone", redis_one, "own, Redis, unsampled tracer", "own, Redis", None),
        time("l2_redis_1_latency_over_raw_get", redis_one, "own, Redis", "raw GET, decoded", AtMost(1.05)),
        rate("l2_redis_64_throughput_over_raw_get", redis_many, "own, Redis", "raw GET, bytes", AtLeast(1.3)),
        rate(
            "l2_redis_64_throughput_over_raw_get_without_timers",
            redis_many,
            "own, Redis",
            "raw GET, bytes, no timer",
            None,
        ),
        rate(
            "l2_backfill_64_throughput_over_handmade",
            redis_many,
            "own, quick over Redis",
            "by hand: moka over GET, decoded",
            AtLeast(1.4),
        ),
        rate("l2_redis_batch100_over_raw_mget", batches, "own, Redis", "raw MGET, decoded", AtLeast(0.95)),
        rate(
            "l2_memcached_64_throughput_over_raw_client",
            memcached_many,
            "own, memcached",
            "raw client, bytes",
            AtLeast(2.2),
        ),
        time(
            "l2_memcached_1_latency_over_raw_client",
            memcached_one,
            "own, memcached",
            "raw client, bytes",
            AtMost(1.05),
        ),
        time(
            "l2_memcached_1_latency_over_raw_client_decoded",
            memcached_one,
            "own, memcached",
            "raw client, decoded",
            None,
        ),
        Ratio {
            name: "stampede_two_processes_time",
            value: median(tables.between.times.iter().copied()),
            goal: AtMost(1.2),
            of: "time of 1,000 callers in two processes over that of a load".into(),
        },
        Ratio {
            name: "stampede_two_processes_loads",
            value: tables.between.loads as f64,
            goal: AtMost(1.0),
            of: "most loads in a round".into(),
        },
    ]
}
