//! Which of a server's words is which metric.

use std::{
    collections::BTreeMap,
    sync::{Mutex, Weak},
};

use cache_core::ServerStatus;
use opentelemetry::{
    KeyValue,
    metrics::{AsyncInstrument, Meter},
};

use super::{All, Seen, lock};
use crate::{names, total::Total};

/// What a server says, or does not.
type Word = fn(&ServerStatus) -> Option<u64>;
/// Each with the attributes that tell it from the others of its metric.
type Words = &'static [(&'static [(&'static str, &'static str)], Word)];

/// Numbers that servers say, and the metric that shows them.
struct Shown {
    metric: &'static str,
    unit: &'static str,
    /// Only ever grows.
    counts: bool,
    words: Words,
}

const fn held(metric: &'static str, unit: &'static str, words: Words) -> Shown {
    Shown { metric, unit, counts: false, words }
}

const fn counted(metric: &'static str, unit: &'static str, words: Words) -> Shown {
    Shown { metric, unit, counts: true, words }
}

fn uptime(said: &ServerStatus) -> Option<u64> {
    said.uptime.map(|time| time.as_secs())
}

/// Names as the OpenTelemetry Collector's receivers have them, where they have one: dashboards fit both. The name of memcached's
/// limit is the server's own.
const REDIS: [Shown; 7] = [
    held("redis.memory.used", "By", &[(&[], |said| said.memory_used)]),
    held("redis.maxmemory", "By", &[(&[], |said| said.memory_max)]),
    held("redis.clients.connected", "{client}", &[(&[], |said| said.connections)]),
    held("redis.uptime", "s", &[(&[], uptime)]),
    counted("redis.keyspace.hits", "{hit}", &[(&[], |said| said.hits)]),
    counted("redis.keyspace.misses", "{miss}", &[(&[], |said| said.misses)]),
    counted("redis.keys.evicted", "{key}", &[(&[], |said| said.evicted)]),
];

const MEMCACHED: [Shown; 7] = [
    held("memcached.bytes", "By", &[(&[], |said| said.memory_used)]),
    held("memcached.limit_maxbytes", "By", &[(&[], |said| said.memory_max)]),
    held("memcached.connections.current", "{connection}", &[(&[], |said| said.connections)]),
    held("memcached.current_items", "{item}", &[(&[], |said| said.items)]),
    held("memcached.uptime", "s", &[(&[], uptime)]),
    counted(
        "memcached.operations",
        "{operation}",
        &[
            (&[("operation", "get"), ("type", "hit")], |said| said.hits),
            (&[("operation", "get"), ("type", "miss")], |said| said.misses),
        ],
    ),
    counted("memcached.evictions", "{eviction}", &[(&[], |said| said.evicted)]),
];

/// What a metric of a server says. One for all who report it: a reader takes two descriptions of one name for a mistake.
pub(crate) fn description(metric: &str) -> &'static str {
    match metric {
        "redis.memory.used" | "memcached.bytes" => "Memory that the server uses for what it holds",
        "redis.memory.rss" => "Memory that the server has of the system",
        "redis.memory.peak" => "The most memory that the server has used",
        "redis.memory.lua" => "Memory that scripts use",
        "redis.memory.fragmentation_ratio" => "Memory that the server has of the system, over what it uses",
        "redis.memory.allocator.allocated" => "Bytes that the allocator has given out",
        "redis.memory.allocator.active" => "Bytes in pages of the allocator that are in use",
        "redis.memory.allocator.resident" => "Bytes that the allocator has of the system",
        "redis.maxmemory" | "redis_memory_max_bytes" | "memcached.limit_maxbytes" => {
            "The most memory that the server may use; of Redis, 0 is no limit"
        }
        "redis.maxmemory.policy" => "1, by what the server does when its memory is full",
        "redis.clients.connected" | "memcached.connections.current" => "Connections of all clients",
        "redis.clients.blocked" => "Clients that wait in a command that blocks",
        "redis.keyspace.hits" | "redis_keyspace_read_hits" => "Look-ups of all clients that found a key",
        "redis.keyspace.misses" | "redis_keyspace_read_misses" => "Look-ups of all clients that found no key",
        "redis.commands.processed" => "Commands of all clients",
        "redis.connections.received" => "Connections that the server has accepted",
        "redis.connections.rejected" => "Connections that the server has refused, as there were too many",
        "redis.keys.evicted" | "memcached.evictions" => "What the server has let go for want of memory",
        "redis.keys.expired" => "Keys whose time was over",
        "redis.uptime" | "memcached.uptime" => "Time since the server's start",
        "memcached.current_items" => "Items that the server holds",
        "memcached.operations" => "Look-ups of all clients, by what they found",
        up if up.ends_with(".up") => "Whether the server answered when it was asked last",
        _ => "",
    }
}

fn shown(system: &str) -> &'static [Shown] {
    match system {
        "redis" => &REDIS,
        "memcached" => &MEMCACHED,
        // One of somebody's own: whether it is up.
        _ => &[],
    }
}

/// Counts of one server, by metric and word.
#[derive(Default)]
pub(super) struct Counts(BTreeMap<(&'static str, usize), Total>);

impl Counts {
    pub(super) fn hear(&mut self, said: &ServerStatus, system: &str) {
        for Shown { metric, words, .. } in shown(system).iter().filter(|shown| shown.counts) {
            for (at, (_, word)) in words.iter().enumerate() {
                if let Some(now) = word(said) {
                    self.0.entry((*metric, at)).or_default().hear(now);
                }
            }
        }
    }
}

/// Of a provider and one of its servers.
pub(super) fn labels(name: &str, address: &str) -> Vec<KeyValue> {
    let mut labels = vec![KeyValue::new(names::CLIENT_NAME, name.to_owned())];
    // The path of a socket has no port.
    match address.rsplit_once(':').and_then(|(host, port)| Some((host, port.parse::<u16>().ok()?))) {
        Some((host, port)) => {
            let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
            labels.push(KeyValue::new(names::SERVER_ADDRESS, host));
            labels.push(KeyValue::new(names::SERVER_PORT, i64::from(port)));
        }
        None => labels.push(KeyValue::new(names::SERVER_ADDRESS, address.to_owned())),
    }
    labels
}

/// The instruments of a system. What is collected is what was said last.
pub(super) fn register(meter: &Meter, system: &'static str, all: &Weak<Mutex<All>>) {
    for Shown { metric, unit, counts, words } in shown(system) {
        let all = Weak::clone(all);
        let about = description(metric);
        let observe = move |to: &dyn AsyncInstrument<u64>| {
            each(&all, system, |seen| {
                for (at, (more, word)) in words.iter().enumerate() {
                    // A count goes on while the server is silent: one that is left out once is taken for one that begins at zero.
                    let number = match counts {
                        true => seen.counts.0.get(&(*metric, at)).map(Total::sum),
                        false => seen.said.as_ref().filter(|_| seen.up).and_then(word),
                    };
                    if let Some(number) = number {
                        let more = more.iter().map(|(key, value)| KeyValue::new(*key, *value));
                        to.observe(number, &seen.labels.iter().cloned().chain(more).collect::<Vec<_>>());
                    }
                }
            });
        };
        if *counts {
            let counter = meter.u64_observable_counter(*metric).with_unit(*unit);
            counter.with_description(about).with_callback(observe).build();
        } else {
            let gauge = meter.u64_observable_gauge(*metric).with_unit(*unit);
            gauge.with_description(about).with_callback(observe).build();
        }
    }
    let these = Weak::clone(all);
    let up = format!("{system}.up");
    let about = description(&up);
    meter
        .u64_observable_gauge(up)
        .with_description(about)
        .with_callback(move |to| each(&these, system, |seen| to.observe(u64::from(seen.up), &seen.labels)))
        .build();
    if system == "redis" {
        let these = Weak::clone(all);
        meter
            .u64_observable_gauge("redis.maxmemory.policy")
            .with_description(description("redis.maxmemory.policy"))
            .with_callback(move |to| {
                each(&these, system, |seen| {
                    let said = seen.said.as_ref().filter(|_| seen.up);
                    if let Some(policy) = said.and_then(|said| said.memory_policy.clone()) {
                        let policy = KeyValue::new("redis.policy", policy);
                        to.observe(1, &seen.labels.iter().cloned().chain([policy]).collect::<Vec<_>>());
                    }
                });
            })
            .build();
    }
}

fn each(all: &Weak<Mutex<All>>, system: &str, observe: impl FnMut(&Seen)) {
    if let Some(all) = all.upgrade() {
        lock(&all).seen.values().filter(|seen| seen.system == system).for_each(observe);
    }
}
