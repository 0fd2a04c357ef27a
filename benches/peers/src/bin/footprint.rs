//! What entries, flights and caches take in memory, as JSON: bytes that the program has asked its allocator for. A program
//! of its own: it counts at the allocator. Each row is a process of its own: `footprint ROW`.

use std::{
    collections::BTreeMap,
    env, fs,
    future::{pending, poll_fn},
    mem::forget,
    pin::Pin,
    process::Command,
    sync::Arc,
    task::Poll,
    time::{Duration, Instant},
};

use allocation_counter::measure;
use cache_core::{Policy, TracedCache, ok};
use cache_memory::{Engine, Memory};
use cache_otel::Telemetry;
use futures::FutureExt;
use opentelemetry_sdk::metrics::SdkMeterProvider;

const ENTRIES: usize = 1_000_000;
const FLIGHTS: usize = 1_000;
const CACHES: usize = 1_000;
const HOUR: Duration = Duration::from_secs(3600);

/// One for all entries: what values take is theirs.
type Value = Arc<[u64; 8]>;

struct Hour;
impl moka::Expiry<String, Value> for Hour {
    fn expire_after_create(&self, _: &String, _: &Value, _: Instant) -> Option<Duration> {
        Some(HOUR)
    }
}

fn main() {
    let Some(row) = env::args().nth(1) else { return all() };
    let (mut bytes, mut resident) = (0, 0);
    let mut count = |work: &mut dyn FnMut()| {
        let before = resident_bytes();
        bytes = measure(work).bytes_current;
        resident = resident_bytes() - before;
    };
    let per = match &*row {
        "raw moka" => {
            let moka = moka::sync::Cache::builder().max_capacity(2 * ENTRIES as u64).expire_after(Hour);
            let moka = moka.build_with_hasher(foldhash::fast::RandomState::default());
            count(&mut || {
                fill(|key, value| moka.insert(key.to_owned(), value));
                moka.run_pending_tasks();
            });
            assert_eq!(moka.entry_count(), ENTRIES as u64);
            ENTRIES
        }
        "raw quick_cache" => {
            count(&mut || {
                let quick = quick_cache::sync::Cache::new(2 * ENTRIES);
                fill(|key, value| quick.insert(key.to_owned(), value));
                assert_eq!(quick.len(), ENTRIES);
                forget(quick);
            });
            ENTRIES
        }
        "own, moka" | "own, quick" => {
            let engine = if row == "own, moka" { Engine::Moka } else { Engine::Quick };
            count(&mut || {
                let memory = Memory::entries(2 * ENTRIES as u64).engine(engine);
                let cache = cache("entries", &memory, None);
                fill(|key, value| {
                    let set = cache.set(key, value).now_or_never().expect("memory is ready");
                    let _ = set.expect("it takes it");
                });
                memory.maintain();
                let found = cache.get(key(ENTRIES - 1)).now_or_never().expect("memory is ready");
                assert!(found.expect("it can be asked").is_some());
                forget((cache, memory));
            });
            ENTRIES
        }
        "flight" | "waiter" => {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let runtime = runtime.expect("a runtime can be had");
            let cache = cache("flights", &Memory::entries(2 * FLIGHTS as u64), None);
            let mut calls = calls(&cache);
            if row == "flight" {
                count(&mut || runtime.block_on(begin(&mut calls)));
            } else {
                runtime.block_on(begin(&mut calls));
                let mut more = self::calls(&cache);
                count(&mut || runtime.block_on(begin(&mut more)));
                forget(more);
            }
            forget(calls);
            FLIGHTS
        }
        "cache" | "cache with metrics" => {
            let meters = SdkMeterProvider::default();
            let telemetry = Telemetry::builder().meter_provider(&meters).build();
            let telemetry = (row == "cache with metrics").then_some(&telemetry);
            let memory = Memory::entries(ENTRIES as u64);
            let names: Vec<String> = (0..CACHES).map(|n| format!("cache{n}")).collect();
            count(&mut || {
                let caches: Vec<_> = names.iter().map(|name| cache(name, &memory, telemetry)).collect();
                forget(caches);
            });
            CACHES
        }
        "store" => {
            count(&mut || {
                let memory = Memory::entries(10_000);
                forget((cache("alone", &memory, None), memory));
            });
            1
        }
        _ => panic!("there is no row {row}"),
    };
    println!("{} {}", bytes as f64 / per as f64, resident as f64 / per as f64);
}

fn all() {
    let rows = [
        "raw moka",
        "raw quick_cache",
        "own, moka",
        "own, quick",
        "flight",
        "waiter",
        "cache",
        "cache with metrics",
        "store",
    ];
    let rows: BTreeMap<_, _> = rows.into_iter().map(|row| (row, apart(row))).collect();
    println!("{}", serde_json::to_string(&rows).expect("names and numbers"));
}

/// Bytes asked for and bytes resident, each per thing that the row counts.
fn apart(row: &str) -> [f64; 2] {
    let itself = env::current_exe().expect("this program has a path");
    let output = Command::new(itself).arg(row).output().expect("this program starts");
    assert!(output.status.success(), "{row}: {}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).expect("numbers");
    let mut numbers = text.split_whitespace().map(|number| number.parse().expect("a number"));
    [(); 2].map(|()| numbers.next().expect("two numbers"))
}

fn key(n: usize) -> String {
    format!("user:{n:016}")
}

fn fill(put: impl Fn(&str, Value)) {
    let value: Value = Arc::new([0; 8]);
    for n in 0..ENTRIES {
        put(&key(n), Arc::clone(&value));
    }
    // Its own bytes are nobody's entry.
    forget(value);
}

fn cache(name: &str, memory: &Memory, telemetry: Option<&Telemetry>) -> TracedCache<[u64; 8]> {
    let builder = TracedCache::builder(name).level(memory.clone()).policy(Policy::ttl(HOUR));
    match telemetry {
        Some(telemetry) => builder.observer(telemetry.clone()),
        None => builder,
    }
    .build()
    .expect("the settings are right")
}

type Call = Pin<Box<dyn Future<Output = ()>>>;

/// A call for each of so many keys, none of them begun, whose loads do not end.
fn calls(cache: &TracedCache<[u64; 8]>) -> Vec<Call> {
    (0..FLIGHTS)
        .map(|n| {
            let cache = cache.clone();
            let call: Call = Box::pin(async move {
                let load = |(), _| async move {
                    pending::<()>().await;
                    ok([0; 8])
                };
                let _ = cache.get_or_set_with(key(n), &(), load).await;
            });
            call
        })
        .collect()
}

/// Asks each once, and lets what they have started run.
async fn begin(calls: &mut [Call]) {
    poll_fn(|cx| {
        for call in calls.iter_mut() {
            assert!(call.as_mut().poll(cx).is_pending());
        }
        Poll::Ready(())
    })
    .await;
    for _ in 0..10 {
        tokio::task::yield_now().await;
    }
}

/// Of this process; 0 where the system does not say.
fn resident_bytes() -> i64 {
    const PAGE: i64 = 4096;
    let pages = fs::read_to_string("/proc/self/statm").ok();
    pages.and_then(|text| text.split_whitespace().nth(1)?.parse::<i64>().ok()).unwrap_or(0) * PAGE
}
