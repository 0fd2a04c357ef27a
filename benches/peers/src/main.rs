//! Our caches beside the raw parts and the peers, in one run. docs/performance.md in the root says how to read it.
//!
//! ```text
//! peers [--quick] [--json FILE] [--only PART]
//! ```
//! PART is one of `memory`, `redis`, `memcached`, `stampede`: its tables, without ratios; or `growth`: what things cost as
//! something grows, which is no part of a quick run.

mod clocks;
mod flights;
mod growth;
mod memcached;
mod memory;
mod otel;
mod ours;
mod redis;
mod report;
mod rounds;
mod stampede;
mod targets;
mod work;

use std::{collections::BTreeMap, path::PathBuf, process::Command};

use serde::de::DeserializeOwned;
use test_servers::{MemcachedServer, RedisServer};

use crate::{
    clocks::OneCpu, memcached::Memcached, memory::Caches, otel::Otel, redis::Redis, targets::Tables,
    work::Reads,
};

/// How much of everything.
pub struct Scale {
    /// Of what stays in the process.
    pub rounds: usize,
    pub remote_rounds: usize,
    /// Hits per round.
    pub hits: usize,
    /// Misses and writes per round.
    pub writes: usize,
    /// Remote reads per round; a tenth of it where one is in flight.
    pub reads: usize,
    pub stampedes: usize,
}

const QUICK: Scale =
    Scale { rounds: 9, remote_rounds: 9, hits: 100_000, writes: 20_000, reads: 10_000, stampedes: 5 };
const WHOLE: Scale =
    Scale { rounds: 21, remote_rounds: 21, hits: 200_000, writes: 50_000, reads: 20_000, stampedes: 11 };

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if let [part, redis] = &args[..]
        && part == "node"
    {
        return stampede::node(redis);
    }
    let value = |name: &str| args.iter().position(|a| a == name).and_then(|at| args.get(at + 1));
    let quick = args.iter().any(|a| a == "--quick");
    let scale = if quick { QUICK } else { WHOLE };
    let only = value("--only").map(String::as_str);
    let wants = |part| only.is_none_or(|only| only == part);

    let (Some(redis), Some(memcached)) = (RedisServer::start(), MemcachedServer::start()) else {
        eprintln!("peers: redis-server and memcached are needed");
        std::process::exit(1);
    };
    let file = value("--json").map_or_else(|| PathBuf::from("peers.json"), PathBuf::from);
    if only == Some("growth") || only.is_none() && !quick {
        growth::all(&redis.url(), &file.with_file_name("growth.json")).expect("the JSON file can be written");
        if only.is_some() {
            return;
        }
    }
    let mut notes = Vec::new();
    let memory = wants("memory").then(|| in_memory(&scale, &redis.url()));
    let from_redis = wants("redis").then(|| {
        let rows = Redis::filled(&redis.url(), &scale);
        let (alone, batches) = {
            let _there = OneCpu::new(redis.pid());
            (rows.alone(&scale), rows.batches(&scale))
        };
        [alone, rows.crowded(&scale), batches]
    });
    let from_memcached = wants("memcached").then(|| {
        let rows = Memcached::filled(memcached.port(), &scale);
        let alone = {
            let _there = OneCpu::new(memcached.pid());
            rows.alone(&scale)
        };
        [alone, rows.crowded(&scale)]
    });
    let crowds = wants("stampede").then(|| {
        let (one, loads) = stampede::one_process(scale.stampedes, &redis.url());
        for (row, loads) in loads {
            notes.push((format!("{}/{row}", one.name), format!("{} loads", loads.last())));
        }
        (one, stampede::two_processes(scale.stampedes, &redis.url()))
    });

    let mut tables = Vec::new();
    tables.extend(memory.iter().flatten());
    tables.extend(from_redis.iter().flatten());
    tables.extend(from_memcached.iter().flatten());
    tables.extend(crowds.iter().map(|(one, _)| one));
    let notes: Vec<_> = notes.iter().map(|(of, note)| (of.as_str(), note.clone())).collect();
    report::print(&tables, &notes);
    let (
        Some([hits, hits_on_two, get_or_load, ..]),
        Some([redis_one, redis_many, batches]),
        Some([memcached_one, memcached_many]),
        Some((_, between)),
    ) = (&memory, &from_redis, &from_memcached, &crowds)
    else {
        return;
    };
    let footprint = beside("footprint");
    let ratios = targets::all(&Tables {
        hits,
        hits_on_two,
        get_or_load,
        redis_one,
        redis_many,
        batches,
        memcached_one,
        memcached_many,
        between,
        allocations: &beside("allocations"),
        footprint: &footprint,
    });
    report::print_footprint(&footprint);
    report::print_ratios(&ratios);
    report::write(&file, quick, &tables, &footprint, &ratios).expect("the JSON file can be written");
    println!("\n{}", file.display());
}

fn in_memory(scale: &Scale, redis: &str) -> [rounds::Timed; 5] {
    let telemetry = Otel::new().metrics();
    let reads = Reads::new(scale.hits, 2);
    let caches = Caches::filled(reads.keys(), &telemetry, redis);
    let hits = caches.hits(reads, 1, scale.rounds);
    let hits_on_two = caches.hits(reads, 2, scale.rounds);
    let get_or_load = caches.get_or_load(reads, scale.rounds);
    drop(caches);
    let (sets, loads) = memory::writes(scale, &telemetry);
    [hits, hits_on_two, get_or_load, sets, loads]
}

/// What one of the programs beside this one counts.
fn beside<T: DeserializeOwned>(name: &str) -> BTreeMap<String, T> {
    let program = std::env::current_exe().expect("this program has a path").with_file_name(name);
    let output = Command::new(program).output().expect("it is built with this one").stdout;
    serde_json::from_slice(&output).expect("it prints JSON")
}
