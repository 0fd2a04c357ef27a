//! How the servers behind the caches do, by their own word: `redis.up`, `redis.memory.used` and so on, under the names that
//! `cache_otel::raw::ServerWatch` has them. That one wants an address of its own; here the caches' file has them, and a file that
//! is read again may name others.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use opentelemetry::{
    KeyValue,
    metrics::{AsyncInstrument, Meter, MeterProvider},
};
use tokio::{task::AbortHandle, time::timeout};
use traced_cache::{Caches, Description, ServerStatus, setup::Running};

/// How often servers are asked. A watch costs each of them a command in that time.
const EVERY: Duration = Duration::from_secs(10);

/// Of each server, by the name of its provider and its address.
type All = BTreeMap<(String, String), Seen>;

struct Seen {
    /// `redis`, `memcached`.
    system: &'static str,
    up: bool,
    /// What it said last. Counts go on from there once it is up again, and the rest is not true while it is down.
    said: Option<ServerStatus>,
}

/// Asks until it is dropped.
pub(crate) struct Servers {
    task: AbortHandle,
}

impl Servers {
    /// Asks the remote providers of a file.
    pub(crate) fn watch(caches: &Caches, running: &Running) -> Self {
        let all = Arc::new(Mutex::new(All::new()));
        report(&running.meter_provider().meter("service"), &all);
        let caches = caches.clone();
        let asking = async move {
            loop {
                ask(&caches, &all).await;
                tokio::time::sleep(EVERY).await;
            }
        };
        Self { task: tokio::spawn(asking).abort_handle() }
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl fmt::Debug for Servers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Servers").finish_non_exhaustive()
    }
}

fn lock(all: &Mutex<All>) -> MutexGuard<'_, All> {
    all.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn ask(caches: &Caches, all: &Mutex<All>) {
    let names = caches.provider_names();
    lock(all).retain(|(name, _), _| names.contains(name));
    for name in names {
        let Some(provider) = caches.provider(&name).filter(|provider| provider.in_process().is_none()) else {
            continue;
        };
        // One that hangs is as good as down.
        let said = timeout(EVERY, provider.servers()).await.unwrap_or_default();
        let about = provider.describe();
        hear(&mut lock(all), &name, &about, said.into_iter().map(Result::ok).collect());
    }
}

/// Takes what the servers of a provider say. `None`: one that does not answer.
fn hear(all: &mut All, name: &str, about: &Description, said: Vec<Option<ServerStatus>>) {
    let silent = said.iter().filter(|said| said.is_none()).count().max(usize::from(said.is_empty()));
    let up: BTreeMap<_, _> = said.into_iter().flatten().map(|said| (said.address.clone(), said)).collect();
    let mine = |of: &(String, String)| of.0 == name;
    // Which one it is that says nothing does not show: one of those that did. Where all answer, the others are gone.
    all.retain(|of, seen| !mine(of) || up.contains_key(&of.1) || (silent > 0 && seen.said.is_some()));
    all.iter_mut().filter(|(of, _)| mine(of)).for_each(|(_, seen)| seen.up = false);
    for (address, said) in up {
        let seen = Seen { system: about.system, up: true, said: Some(said) };
        all.insert((name.to_owned(), address), seen);
    }
    if all.iter().filter(|(of, seen)| mine(of) && !seen.up).count() < silent {
        let at = about.place().unwrap_or_default();
        all.entry((name.to_owned(), at)).or_insert(Seen { system: about.system, up: false, said: None });
    }
}

/// A number that servers say, and under which name it is shown.
struct Shown {
    name: &'static str,
    unit: &'static str,
    /// Only ever grows.
    counts: bool,
    of: fn(&ServerStatus) -> Option<u64>,
}

const SHOWN: [Shown; 7] = [
    Shown { name: "memory.used", unit: "By", counts: false, of: |said| said.memory_used },
    Shown { name: "maxmemory", unit: "By", counts: false, of: |said| said.memory_max },
    Shown { name: "clients.connected", unit: "{client}", counts: false, of: |said| said.connections },
    Shown { name: "uptime", unit: "s", counts: false, of: |said| said.uptime.map(|time| time.as_secs()) },
    Shown { name: "keyspace.hits", unit: "{hit}", counts: true, of: |said| said.hits },
    Shown { name: "keyspace.misses", unit: "{miss}", counts: true, of: |said| said.misses },
    Shown { name: "keys.evicted", unit: "{key}", counts: true, of: |said| said.evicted },
];

/// What is collected is what was said last.
fn report(meter: &Meter, all: &Arc<Mutex<All>>) {
    for system in ["redis", "memcached"] {
        for Shown { name, unit, counts, of } in SHOWN {
            let (name, all) = (format!("{system}.{name}"), Arc::clone(all));
            let observe = move |to: &dyn AsyncInstrument<u64>| {
                each(&all, system, |seen, labels| {
                    let said = seen.said.as_ref().filter(|_| seen.up || counts);
                    if let Some(number) = said.and_then(of) {
                        to.observe(number, labels);
                    }
                });
            };
            match counts {
                true => {
                    drop(meter.u64_observable_counter(name).with_unit(unit).with_callback(observe).build())
                }
                false => {
                    drop(meter.u64_observable_gauge(name).with_unit(unit).with_callback(observe).build())
                }
            }
        }
        let these = Arc::clone(all);
        meter
            .u64_observable_gauge(format!("{system}.up"))
            .with_description("Whether the server answered when it was asked last")
            .with_callback(move |to| {
                each(&these, system, |seen, labels| to.observe(u64::from(seen.up), labels));
            })
            .build();
        let these = Arc::clone(all);
        meter
            .u64_observable_gauge(format!("{system}.maxmemory.policy"))
            .with_callback(move |to| {
                each(&these, system, |seen, labels| {
                    let said = seen.said.as_ref().filter(|_| seen.up);
                    if let Some(policy) = said.and_then(|said| said.memory_policy.clone()) {
                        to.observe(1, &[labels, &[KeyValue::new("redis.policy", policy)]].concat());
                    }
                });
            })
            .build();
    }
}

fn each(all: &Mutex<All>, system: &str, mut observe: impl FnMut(&Seen, &[KeyValue])) {
    for ((name, address), seen) in lock(all).iter().filter(|(_, seen)| seen.system == system) {
        let mut labels = vec![KeyValue::new("db.client.name", name.clone())];
        // The path of a socket has no port.
        match address.rsplit_once(':').and_then(|(host, port)| Some((host, port.parse::<i64>().ok()?))) {
            Some((host, port)) => {
                let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
                labels.extend([KeyValue::new("server.address", host), KeyValue::new("server.port", port)]);
            }
            None => labels.push(KeyValue::new("server.address", address.clone())),
        }
        observe(seen, &labels);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_that_says_nothing_is_down_under_the_address_that_it_had() {
        let about = Description::remote("redis", "10.0.0.1", Some(6379));
        let at = |address: &str| Some(ServerStatus::at(address));
        let mut all = All::new();
        let mut hear = |said: Vec<Option<ServerStatus>>| {
            super::hear(&mut all, "shared", &about, said);
            all.iter().map(|((_, at), seen)| (at.clone(), seen.up)).collect::<Vec<_>>()
        };
        let seen = |at: &str, up| (at.to_owned(), up);
        // Not there from the beginning.
        assert_eq!(hear(vec![]), [seen("10.0.0.1:6379", false)]);
        assert_eq!(hear(vec![at("a:1"), at("b:1")]), [seen("a:1", true), seen("b:1", true)]);
        assert_eq!(hear(vec![at("a:1"), None]), [seen("a:1", true), seen("b:1", false)]);
        assert_eq!(hear(vec![None]), [seen("a:1", false), seen("b:1", false)]);
        // Another master in its place.
        assert_eq!(hear(vec![at("a:1"), at("c:1")]), [seen("a:1", true), seen("c:1", true)]);
    }
}
