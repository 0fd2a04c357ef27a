//! What things cost as something grows: threads, tasks, keys, values, caches that share a store.

use std::{
    fs, io,
    path::Path,
    sync::{Arc, Barrier},
    thread,
};

use cache_core::CacheProvider;
use futures::FutureExt;
use redis::{AsyncCommands, aio::ConnectionManager};
use serde_json::json;

use crate::{
    clocks::{cpu_per, wall_per},
    flights::runtime,
    memory::{HOUR, raw_moka},
    ours::{Engine, Memory, Policy, RedisProvider, TracedCache},
    rounds::median,
    work::{Dice, User},
};

const ROUNDS: usize = 5;

/// Costs against sizes, one column for each row of the source.
pub struct Growth {
    name: &'static str,
    unit: &'static str,
    sizes: Vec<String>,
    rows: Vec<(&'static str, Vec<f64>)>,
}

impl Growth {
    fn new(name: &'static str, unit: &'static str) -> Self {
        eprintln!("growth: {name}");
        Self { name, unit, sizes: Vec::new(), rows: Vec::new() }
    }

    /// Takes the median of some rounds of each row, the rows taking turns.
    fn at(&mut self, size: impl ToString, mut rows: Vec<(&'static str, Box<dyn FnMut() -> f64 + '_>)>) {
        self.sizes.push(size.to_string());
        let mut costs = vec![Vec::new(); rows.len()];
        for _ in 0..ROUNDS {
            for ((_, row), costs) in rows.iter_mut().zip(&mut costs) {
                costs.push(row());
            }
        }
        for ((name, _), costs) in rows.into_iter().zip(costs) {
            self.add(name, median(costs.into_iter()));
        }
    }

    fn add(&mut self, row: &'static str, cost: f64) {
        match self.rows.iter_mut().find(|(name, _)| *name == row) {
            Some((_, costs)) => costs.push(cost),
            None => self.rows.push((row, vec![cost])),
        }
    }

    fn print(&self) {
        print!("\n{:<44}", format!("{} ({})", self.name, self.unit));
        self.sizes.iter().for_each(|size| print!("{size:>11}"));
        println!();
        for (name, costs) in &self.rows {
            print!("  {name:<42}");
            costs.iter().for_each(|cost| print!("{cost:>11.0}"));
            println!();
        }
    }
}

/// All tables, printed and written.
pub fn all(redis: &str, file: &Path) -> io::Result<()> {
    let tables =
        [on_threads(), in_tasks(), redis_in_tasks(redis), over_keys(), of_values(redis), shared(redis)];
    tables.iter().for_each(Growth::print);
    let json: Vec<_> = tables
        .iter()
        .map(|table| {
            let rows: Vec<_> =
                table.rows.iter().map(|(row, costs)| json!({"row": row, "costs": costs})).collect();
            json!({"name": table.name, "unit": table.unit, "sizes": table.sizes, "rows": rows})
        })
        .collect();
    fs::create_dir_all(file.parent().unwrap_or(Path::new(".")))?;
    fs::write(file, serde_json::to_string_pretty(&json)?)
}

fn own(memory: &Memory) -> TracedCache<User> {
    let builder = TracedCache::builder("growth").level(memory.clone()).policy(Policy::ttl(HOUR));
    builder.build().expect("the settings are right")
}

/// Memory never waits.
fn now<T>(call: impl Future<Output = cache_core::Result<T>>) -> T {
    call.now_or_never().expect("memory is ready").expect("it can be asked")
}

fn name(n: usize) -> String {
    format!("user:{n:016}")
}

/// Any of so many keys, each as likely as the others.
fn draws(count: usize, keys: usize, seed: u64) -> Vec<u32> {
    let mut dice = Dice::new(seed);
    (0..count).map(|_| (dice.next() * keys as f64) as u32).collect()
}

/// A look-up that must find something, by the number of its key.
type Hit = Arc<dyn Fn(&str) + Send + Sync>;

/// Filled stores, and how they are asked. All entries share one value.
fn stores(keys: &[String]) -> Vec<(&'static str, Hit)> {
    let user = Arc::new(User::of("anybody"));
    let room = 2 * keys.len() as u64;
    let filled = |engine| {
        let cache = own(&Memory::entries(room).engine(engine));
        runtime().block_on(async {
            for key in keys {
                let _ = cache.set(key, Arc::clone(&user)).await.expect("memory takes it");
            }
        });
        cache
    };
    let ours = |cache: TracedCache<User>| -> Hit {
        Arc::new(move |key| {
            assert!(now(cache.get(key)).is_some());
        })
    };
    let quick = quick_cache::sync::Cache::<String, Arc<User>>::new(room as usize);
    let moka = raw_moka(room);
    for key in keys {
        quick.insert(key.clone(), Arc::clone(&user));
        moka.insert(key.clone(), Arc::clone(&user));
    }
    moka.run_pending_tasks();
    vec![
        ("own, quick", ours(filled(Engine::Quick))),
        ("own, moka", ours(filled(Engine::Moka))),
        ("raw quick_cache", Arc::new(move |key| assert!(quick.get(key).is_some()))),
        ("raw moka, expiry", Arc::new(move |key| assert!(moka.get(key).is_some()))),
    ]
}

/// CPU time per hit on each of so many threads.
fn hits(hit: &Hit, keys: &Arc<Vec<String>>, threads: usize, count: usize) -> f64 {
    let barrier = Arc::new(Barrier::new(threads));
    let running: Vec<_> = (0..threads)
        .map(|at| {
            let (hit, keys, barrier) = (Arc::clone(hit), Arc::clone(keys), Arc::clone(&barrier));
            thread::spawn(move || {
                let order = draws(count, keys.len(), at as u64);
                barrier.wait();
                cpu_per(count, || order.iter().for_each(|n| hit(&keys[*n as usize])))
            })
        })
        .collect();
    let took = running.into_iter().map(|thread| thread.join().expect("rows do not panic"));
    took.sum::<f64>() / threads as f64
}

fn on_threads() -> Growth {
    let mut table = Growth::new("L1 hit, 10,000 keys, on threads", "ns of CPU");
    let keys = Arc::new((0..10_000).map(name).collect::<Vec<_>>());
    let stores = stores(&keys);
    for threads in [1, 2, 4, 8] {
        let rows = stores.iter().map(|(row, hit)| {
            let time: Box<dyn FnMut() -> f64> = Box::new(|| hits(hit, &keys, threads, 200_000));
            (*row, time)
        });
        table.at(threads, rows.collect());
    }
    table
}

/// Wall time per read, shared evenly among so many tasks on two workers.
fn read<Fut: Future<Output = ()> + Send + 'static>(
    count: usize,
    tasks: usize,
    read: impl Fn(usize) -> Fut + Clone + Send + 'static,
) -> f64 {
    wall_per(count, || {
        runtime().block_on(async {
            let running: Vec<_> = (0..tasks)
                .map(|task| {
                    let read = read.clone();
                    tokio::spawn(async move {
                        for n in (task..count).step_by(tasks) {
                            read(n).await;
                        }
                    })
                })
                .collect();
            for task in running {
                task.await.expect("reads do not panic");
            }
        });
    })
}

fn in_tasks() -> Growth {
    let mut table = Growth::new("L1 hit, 10,000 keys, in tasks on 2 workers", "ns");
    let keys = Arc::new((0..10_000).map(name).collect::<Vec<_>>());
    let stores = stores(&keys);
    for tasks in [1, 10, 100, 1_000] {
        let rows = stores.iter().map(|(row, hit)| {
            let time: Box<dyn FnMut() -> f64> = Box::new(|| {
                let (hit, keys) = (Arc::clone(hit), Arc::clone(&keys));
                read(200_000, tasks, move |n| {
                    hit(&keys[n % keys.len()]);
                    std::future::ready(())
                })
            });
            (*row, time)
        });
        table.at(tasks, rows.collect());
    }
    table
}

/// Raw and ours over one server.
struct Remote {
    raw: ConnectionManager,
    own: TracedCache<String>,
}

impl Remote {
    fn new(url: &str) -> Self {
        let raw = runtime().block_on(crate::redis::connect(url, false));
        let provider = RedisProvider::builder(url).build().expect("the url is right");
        let own = TracedCache::builder("growth").level(provider).policy(Policy::ttl(HOUR));
        Self { raw, own: own.build().expect("the settings are right") }
    }

    /// Writes so many values of so many bytes, in both forms.
    fn fill(&self, count: usize, bytes: usize) {
        runtime().block_on(async {
            for n in 0..count {
                let value = text(bytes);
                let encoded = serde_json::to_vec(&value).expect("it is a text");
                let () = self.raw.clone().set(format!("growth:{n}"), encoded).await.expect("redis takes it");
                let _ = self.own.set(n, value).await.expect("redis takes it");
            }
        });
    }

    fn rows(&self, count: usize, keys: usize, tasks: usize) -> Vec<(&'static str, Box<dyn FnMut() -> f64>)> {
        let (raw, own) = (self.raw.clone(), self.own.clone());
        vec![
            (
                "own, Redis, get",
                Box::new(move || {
                    let own = own.clone();
                    read(count, tasks, move |n| {
                        let own = own.clone();
                        async move { assert!(own.get(n % keys).await.expect("redis is there").is_some()) }
                    })
                }),
            ),
            (
                "raw GET, decoded",
                Box::new(move || {
                    let raw = raw.clone();
                    read(count, tasks, move |n| {
                        let mut raw = raw.clone();
                        async move {
                            let bytes: Vec<u8> =
                                raw.get(format!("growth:{}", n % keys)).await.expect("redis is there");
                            let text: Arc<String> =
                                Arc::new(serde_json::from_slice(&bytes).expect("it was set"));
                            drop(std::hint::black_box(text));
                        }
                    })
                }),
            ),
        ]
    }
}

fn text(bytes: usize) -> String {
    "It is a truth universally acknowledged. ".chars().cycle().take(bytes).collect()
}

fn redis_in_tasks(url: &str) -> Growth {
    let mut table = Growth::new("Redis, 1,000 keys of 150 bytes, reads in tasks", "ns");
    let remote = Remote::new(url);
    remote.fill(1_000, 150);
    for tasks in [1, 10, 100, 1_000] {
        table.at(tasks, remote.rows(if tasks == 1 { 1_000 } else { 10_000 }, 1_000, tasks));
    }
    table
}

fn over_keys() -> Growth {
    let mut table = Growth::new("L1, any of so many keys", "ns of CPU");
    for count in [1_000, 10_000, 100_000, 1_000_000, 10_000_000] {
        table.sizes.push(count.to_string());
        let keys = Arc::new((0..count).map(name).collect::<Vec<_>>());
        // One after another: ten million entries take gigabytes.
        let user = Arc::new(User::of("anybody"));
        let room = 2 * count as u64;
        for (set, hit, engine) in [
            ("own, quick, set", "own, quick, hit", Engine::Quick),
            ("own, moka, set", "own, moka, hit", Engine::Moka),
        ] {
            let cache = own(&Memory::entries(room).engine(engine));
            table.add(
                set,
                cpu_per(count, || {
                    for key in keys.iter() {
                        let _ = now(cache.set(key, Arc::clone(&user)));
                    }
                }),
            );
            let get: Hit = Arc::new(move |key| {
                assert!(now(cache.get(key)).is_some());
            });
            table.add(hit, median((0..3).map(|_| hits(&get, &keys, 1, 500_000))));
        }
        let quick = quick_cache::sync::Cache::<String, Arc<User>>::new(room as usize);
        table.add(
            "raw quick_cache, set",
            cpu_per(count, || {
                keys.iter().for_each(|key| quick.insert(key.clone(), Arc::clone(&user)));
            }),
        );
        let get: Hit = Arc::new(move |key| assert!(quick.get(key).is_some()));
        table.add("raw quick_cache, hit", median((0..3).map(|_| hits(&get, &keys, 1, 500_000))));
        drop(get);
        let moka = raw_moka(room);
        table.add(
            "raw moka, expiry, set",
            cpu_per(count, || {
                keys.iter().for_each(|key| moka.insert(key.clone(), Arc::clone(&user)));
            }),
        );
        let get: Hit = Arc::new(move |key| assert!(moka.get(key).is_some()));
        table.add("raw moka, expiry, hit", median((0..3).map(|_| hits(&get, &keys, 1, 500_000))));
    }
    table
}

fn of_values(url: &str) -> Growth {
    let mut table = Growth::new("values of so many bytes, one call at a time", "ns");
    let remote = Remote::new(url);
    let near = TracedCache::<String>::builder("near").level(Memory::entries(100)).policy(Policy::ttl(HOUR));
    let near = near.build().expect("the settings are right");
    let _awake = crate::clocks::Awake::new();
    for bytes in [100, 1_000, 10_000, 100_000, 1_000_000] {
        let calls = (2_000_000 / bytes).clamp(20, 500);
        let value = Arc::new(text(bytes));
        remote.fill(20, bytes);
        let mut rows = remote.rows(calls, 20, 1);
        let own = remote.own.clone();
        let set = Arc::clone(&value);
        rows.push((
            "own, Redis, set",
            Box::new(move || {
                let (own, value) = (own.clone(), Arc::clone(&set));
                read(calls, 1, move |n| {
                    let (own, value) = (own.clone(), Arc::clone(&value));
                    async move {
                        let _ = own.set(n % 20, value).await.expect("redis takes it");
                    }
                })
            }),
        ));
        let (raw, set) = (remote.raw.clone(), Arc::clone(&value));
        rows.push((
            "raw SET, encoded",
            Box::new(move || {
                let (raw, value) = (raw.clone(), Arc::clone(&set));
                read(calls, 1, move |n| {
                    let (mut raw, value) = (raw.clone(), Arc::clone(&value));
                    async move {
                        let encoded = serde_json::to_vec(&*value).expect("it is a text");
                        let () =
                            raw.set(format!("growth:{}", n % 20), encoded).await.expect("redis takes it");
                    }
                })
            }),
        ));
        let near = near.clone();
        rows.push((
            "own, quick, hit",
            Box::new(move || {
                let (near, value) = (near.clone(), Arc::clone(&value));
                let _ = now(near.set("one", value));
                cpu_per(100_000, || {
                    for _ in 0..100_000 {
                        assert!(now(near.get("one")).is_some());
                    }
                })
            }),
        ));
        table.at(bytes, rows);
    }
    table
}

/// Caches in turn over one store: in memory, and at a server with 64 reads in flight.
fn shared(url: &str) -> Growth {
    let mut table = Growth::new("caches that share one store", "ns");
    let user = Arc::new(User::of("anybody"));
    let provider = RedisProvider::builder(url).build().expect("the url is right");
    assert!(provider.capabilities().remote);
    for caches in [1, 2, 4, 8, 16] {
        let memory = Memory::entries(100_000);
        let keys: Vec<String> = (0..10_000).map(name).collect();
        let build = |level: &dyn Fn() -> cache_core::Level| -> Vec<TracedCache<User>> {
            (0..caches)
                .map(|n| {
                    let builder = TracedCache::builder(format!("shared{n}")).policy(Policy::ttl(HOUR));
                    builder.level(level()).build().expect("the settings are right")
                })
                .collect()
        };
        let near = Arc::new(build(&|| memory.clone().into()));
        let far = Arc::new(build(&|| provider.clone().into()));
        runtime().block_on(async {
            for (n, key) in keys.iter().enumerate() {
                let _ = near[n % caches].set(key, Arc::clone(&user)).await.expect("memory takes it");
            }
            for (n, key) in keys.iter().enumerate().take(1_000) {
                let _ = far[n % caches].set(key, Arc::clone(&user)).await.expect("redis takes it");
            }
        });
        let keys = Arc::new(keys);
        let order = draws(200_000, 10_000, 1);
        let (near_keys, far_keys) = (Arc::clone(&keys), keys);
        let rows: Vec<(&'static str, Box<dyn FnMut() -> f64>)> = vec![
            (
                "L1 hit, memory shared",
                Box::new(move || {
                    cpu_per(order.len(), || {
                        for n in &order {
                            let n = *n as usize;
                            assert!(now(near[n % caches].get(&near_keys[n])).is_some());
                        }
                    })
                }),
            ),
            (
                "Redis shared, 64 in flight",
                Box::new(move || {
                    let (far, keys) = (Arc::clone(&far), Arc::clone(&far_keys));
                    read(10_000, 64, move |n| {
                        let (far, keys) = (Arc::clone(&far), Arc::clone(&keys));
                        async move {
                            let n = n % 1_000;
                            let found = far[n % caches].get(&keys[n]).await;
                            assert!(found.expect("redis is there").is_some());
                        }
                    })
                }),
            ),
        ];
        table.at(caches, rows);
    }
    table
}
