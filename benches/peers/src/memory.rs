//! Everything that stays in this process: hits, get-or-load on a hit, misses, sets.

use std::{
    cell::Cell,
    hint::black_box,
    sync::{Arc, Barrier},
    thread,
    time::{Duration, Instant},
};

use crate::ours::{Engine, Memory, Policy, Telemetry, TracedCache, ok};
use cached::{ShardedLruCache, ShardedLruTtlCache};
use futures::FutureExt;
use hitbox::policy::PolicyConfig;
use hitbox_fn::{CacheableResponse, cached};
use hitbox_moka::MokaBackend;
use serde::{Deserialize, Serialize};
use tick::Clock;
use tokio::runtime::Runtime;

use crate::{
    Scale,
    clocks::{coarse_seconds, cpu_per},
    rounds::{Row, Timed},
    work::{KEYS, Reads, User, keys},
};

pub const HOUR: Duration = Duration::from_secs(3600);
const ROOM: u64 = 2 * KEYS as u64;

pub struct Hour;
impl moka::Expiry<String, Arc<User>> for Hour {
    fn expire_after_create(&self, _: &String, _: &Arc<User>, _: Instant) -> Option<Duration> {
        Some(HOUR)
    }
}

pub type RawMoka = moka::sync::Cache<String, Arc<User>, foldhash::fast::RandomState>;

/// As it is used by hand: each entry has a time of its own.
pub fn raw_moka(room: u64) -> RawMoka {
    let builder = moka::sync::Cache::builder().max_capacity(room).expire_after(Hour);
    builder.build_with_hasher(foldhash::fast::RandomState::default())
}

fn raw_moka_without_expiry(room: u64) -> RawMoka {
    let builder = moka::sync::Cache::builder().max_capacity(room);
    builder.build_with_hasher(foldhash::fast::RandomState::default())
}

/// Our cache on one engine; `telemetry`: with OpenTelemetry metrics.
pub fn own(memory: Memory, telemetry: Option<&Telemetry>) -> TracedCache<User> {
    let builder = TracedCache::builder("peers").level(memory).policy(Policy::ttl(HOUR));
    match telemetry {
        Some(telemetry) => builder.observer(telemetry.clone()),
        None => builder,
    }
    .build()
    .expect("the settings are right")
}

pub fn runtime() -> Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime can be had")
}

/// One row on some threads. `hits` reads all keys that a thread is to read; `Fut` stays on its thread.
fn row<Fut: Future<Output = ()>>(
    name: &'static str,
    reads: &'static Reads,
    threads: usize,
    hits: impl Fn(usize) -> Fut + Clone + Send + 'static,
) -> Row {
    Row::new(name, move || {
        let barrier = Arc::new(Barrier::new(threads));
        let running: Vec<_> = (0..threads)
            .map(|thread| {
                let (hits, barrier) = (hits.clone(), Arc::clone(&barrier));
                thread::spawn(move || {
                    let runtime = runtime();
                    barrier.wait();
                    cpu_per(reads.of(thread).len(), || runtime.block_on(hits(thread)))
                })
            })
            .collect();
        let took = running.into_iter().map(|thread| thread.join().expect("rows do not panic"));
        took.sum::<f64>() / threads as f64
    })
}

/// A row whose look-up is `$get`, with `$cache` and `$key` in scope.
macro_rules! row {
    ($name:literal, $reads:ident, $threads:ident, $cache:expr, |$c:ident, $key:ident| $get:expr) => {{
        let cache = $cache;
        row($name, $reads, $threads, move |thread| {
            let $c = cache.clone();
            async move {
                for $key in $reads.of(thread) {
                    drop(black_box($get));
                }
            }
        })
    }};
}

/// An entry of the least that any cache on quick_cache can be whose entries end and whose hits are counted.
#[derive(Clone)]
struct Dated {
    user: Arc<User>,
    until: i64,
}

impl Dated {
    fn hit(self) -> Option<Arc<User>> {
        thread_local! {
            static HITS: Cell<u64> = const { Cell::new(0) };
        }
        (coarse_seconds() < self.until).then(|| {
            HITS.set(HITS.get() + 1);
            self.user
        })
    }
}

pub struct Caches {
    moka: RawMoka,
    moka_expiring: RawMoka,
    quick: Arc<quick_cache::sync::Cache<String, Arc<User>>>,
    quick_dated: Arc<quick_cache::sync::Cache<String, Dated>>,
    own_moka_expiring: TracedCache<User>,
    own_moka: TracedCache<User>,
    own_quick: TracedCache<User>,
    own_unmeasured: TracedCache<User>,
    lru: ShardedLruCache<String, Arc<User>>,
    lru_ttl: ShardedLruTtlCache<String, Arc<User>>,
    foyer: foyer::Cache<String, Arc<User>>,
    cachet: Arc<cachet::Cache<String, Arc<User>>>,
    cachet_single: Arc<cachet::Cache<String, Arc<User>>>,
    multi_tier: Arc<multi_tier_cache::CacheManager>,
    hitbox: hitbox_fn::Cache<MokaBackend>,
}

/// hitbox asks for a derive on what it caches.
#[derive(Clone, Debug, Serialize, Deserialize, CacheableResponse)]
pub struct Response {
    pub user: User,
}

#[cached(prefix = "user")]
pub async fn hitbox_user(id: String) -> Response {
    Response { user: User::of(&id) }
}

impl Caches {
    pub fn filled(keys: &[String], telemetry: &Telemetry, redis: &str) -> Self {
        let room = ROOM as usize;
        let runtime = runtime();
        let clock = runtime.block_on(async { Clock::new_tokio() });
        let this = Self {
            moka: raw_moka_without_expiry(ROOM),
            moka_expiring: raw_moka(ROOM),
            quick: Arc::new(quick_cache::sync::Cache::new(room)),
            quick_dated: Arc::new(quick_cache::sync::Cache::new(room)),
            own_moka_expiring: own(Memory::entries(ROOM).engine(Engine::Moka), Some(telemetry)),
            own_moka: own(Memory::entries(ROOM).engine(Engine::Moka).engine_expiry(false), Some(telemetry)),
            own_quick: own(Memory::entries(ROOM).engine(Engine::Quick), Some(telemetry)),
            own_unmeasured: own(Memory::entries(ROOM).engine(Engine::Quick), None),
            lru: ShardedLruCache::new(room),
            lru_ttl: ShardedLruTtlCache::new(room, HOUR),
            foyer: foyer::Cache::builder(room).build(),
            cachet: Arc::new(cachet::Cache::builder(clock.clone()).memory().ttl(HOUR).build()),
            cachet_single: Arc::new(
                cachet::Cache::builder(clock).memory().ttl(HOUR).stampede_protection().build(),
            ),
            multi_tier: runtime.block_on(multi_tier(redis)),
            hitbox: hitbox_fn::Cache::builder()
                .backend(MokaBackend::builder().max_entries(ROOM).build())
                .policy(PolicyConfig::builder().ttl(HOUR).build())
                .build(),
        };
        runtime.block_on(this.fill(keys));
        this
    }

    async fn fill(&self, keys: &[String]) {
        for key in keys {
            let user = Arc::new(User::of(key));
            self.moka.insert(key.clone(), Arc::clone(&user));
            self.moka_expiring.insert(key.clone(), Arc::clone(&user));
            self.quick.insert(key.clone(), Arc::clone(&user));
            self.quick_dated.insert(key.clone(), Dated { user: Arc::clone(&user), until: i64::MAX });
            for own in [&self.own_moka, &self.own_moka_expiring, &self.own_quick, &self.own_unmeasured] {
                let _ = own.set(key, Arc::clone(&user)).await.expect("memory takes it");
            }
            self.lru.set(key.clone(), Arc::clone(&user));
            self.lru_ttl.set(key.clone(), Arc::clone(&user));
            self.foyer.insert(key.clone(), Arc::clone(&user));
            self.cachet.insert(key.clone(), Arc::clone(&user)).await.expect("memory takes it");
            self.cachet_single.insert(key.clone(), Arc::clone(&user)).await.expect("memory takes it");
            let strategy = multi_tier_cache::CacheStrategy::LongTerm;
            let set = self.multi_tier.set_with_strategy(key, user.json().into(), strategy);
            set.await.expect("memory and redis take it");
            hitbox_user(key.clone()).cache(&self.hitbox).await;
        }
    }

    /// Hits, on so many threads.
    pub fn hits(&self, reads: &'static Reads, threads: usize, rounds: usize) -> Timed {
        let rows = vec![
            row!("raw moka, expiry", reads, threads, self.moka_expiring.clone(), |c, key| c.get(key)),
            row!("raw moka", reads, threads, self.moka.clone(), |c, key| c.get(key)),
            row!("raw quick_cache", reads, threads, self.quick.clone(), |c, key| c.get(key)),
            row!("raw quick_cache, dated, counted", reads, threads, self.quick_dated.clone(), |c, key| c
                .get(key)
                .and_then(Dated::hit)),
            row!("own, moka, engine expiry", reads, threads, self.own_moka_expiring.clone(), |c, key| c
                .get(key)
                .await),
            row!("own, moka", reads, threads, self.own_moka.clone(), |c, key| c.get(key).await),
            row!("own, quick", reads, threads, self.own_quick.clone(), |c, key| c.get(key).await),
            row!("own, quick, no observer", reads, threads, self.own_unmeasured.clone(), |c, key| c
                .get(key)
                .await),
            row!("cached sharded lru", reads, threads, self.lru.clone(), |c, key| c.get(key)),
            row!("cached sharded lru, ttl", reads, threads, self.lru_ttl.clone(), |c, key| c.get(key)),
            row!("foyer memory", reads, threads, self.foyer.clone(), |c, key| c.get(key)),
            row!("cachet", reads, threads, self.cachet.clone(), |c, key| c.get(key).await),
            row!("multi-tier-cache get_typed", reads, threads, self.multi_tier.clone(), |c, key| c
                .get_typed::<User>(key)
                .await),
        ];
        Timed::run(
            if threads == 1 { "L1 hit" } else { "L1 hit, 2 threads" },
            "raw moka, expiry",
            rounds,
            rows,
        )
    }

    /// Get-or-load where there is nothing to load.
    pub fn get_or_load(&self, reads: &'static Reads, rounds: usize) -> Timed {
        let threads = 1;
        let rows = vec![
            row!("raw moka, expiry", reads, threads, self.moka_expiring.clone(), |c, key| {
                c.get_with_by_ref(key, || Arc::new(User::of(key)))
            }),
            row!("raw quick_cache", reads, threads, self.quick.clone(), |c, key| {
                c.get_or_insert_async(key.as_str(), async { Ok::<_, ()>(Arc::new(User::of(key))) }).await
            }),
            row!("own, moka", reads, threads, self.own_moka.clone(), |c, key| {
                c.get_or_set_with(key, &(), |(), key| async move { ok(User::of(&key)) }).await
            }),
            row!("own, quick", reads, threads, self.own_quick.clone(), |c, key| {
                c.get_or_set_with(key, &(), |(), key| async move { ok(User::of(&key)) }).await
            }),
            row!("own, quick, no observer", reads, threads, self.own_unmeasured.clone(), |c, key| {
                c.get_or_set_with(key, &(), |(), key| async move { ok(User::of(&key)) }).await
            }),
            // Without single flight; with it there is only the macro.
            row!("cached sharded lru, several flights", reads, threads, self.lru.clone(), |c, key| {
                c.get_or_set_with(key.clone(), || Arc::new(User::of(key)))
            }),
            row!("cached macro, by_key", reads, threads, (), |_c, key| {
                let () = _c;
                cached_user(key.clone()).await
            }),
            row!("foyer memory", reads, threads, self.foyer.clone(), |c, key| {
                let id = key.clone();
                c.get_or_fetch(key, || async move { Ok::<_, std::io::Error>(Arc::new(User::of(&id))) }).await
            }),
            row!("cachet, stampede protection", reads, threads, self.cachet_single.clone(), |c, key| {
                c.get_or_insert(key, || async { Arc::new(User::of(key)) }).await
            }),
            row!("multi-tier-cache typed", reads, threads, self.multi_tier.clone(), |c, key| {
                let strategy = multi_tier_cache::CacheStrategy::LongTerm;
                c.get_or_compute_typed(key, strategy, || async { Ok(User::of(key)) }).await
            }),
            row!("hitbox", reads, threads, self.hitbox.clone(), |c, key| hitbox_user(key.clone())
                .cache(&c)
                .await),
        ];
        Timed::run("get-or-load, hit", "raw moka, expiry", rounds, rows)
    }
}

#[cached::macros::cached(max_size = 20_000, sync_writes = "by_key")]
async fn cached_user(id: String) -> Arc<User> {
    Arc::new(User::of(&id))
}

/// L1 as large as the others' and filled by every hit below; left to itself, it is filled by one in ten.
pub async fn multi_tier(redis: &str) -> Arc<multi_tier_cache::CacheManager> {
    use multi_tier_cache::{CacheManager, CacheTier, L1Cache, L2Cache, MokaCacheConfig};
    let config = MokaCacheConfig { max_capacity: ROOM, time_to_live: HOUR, time_to_idle: HOUR };
    let l1 = Arc::new(L1Cache::new(config).expect("the settings are right"));
    let l2 = Arc::new(L2Cache::with_url(redis).await.expect("redis is there"));
    let tiers = vec![CacheTier::new(l1, 1, false, 1, 1.0), CacheTier::new(l2, 2, true, 1, 1.0)];
    Arc::new(CacheManager::new_with_tiers(tiers, None).expect("the settings are right"))
}

/// Writes over what is there, and look-ups of what is not, in stores that begin empty.
pub fn writes(scale: &Scale, telemetry: &Telemetry) -> (Timed, Timed) {
    let count = scale.writes;
    let all: &'static [String] = Vec::leak(keys("user", count));
    let room = 2 * count;
    let users: &'static [Arc<User>] = Vec::leak(all.iter().map(|key| Arc::new(User::of(key))).collect());
    let fresh_own = {
        let telemetry = telemetry.clone();
        move |engine| own(Memory::entries(room as u64).engine(engine), Some(&telemetry))
    };
    let moka = move || raw_moka(room as u64);

    let set_own = |name, engine| {
        let cache = fresh_own(engine);
        Row::new(name, move || {
            let runtime = runtime();
            cpu_per(count, || {
                runtime.block_on(async {
                    for (key, user) in all.iter().zip(users) {
                        let _ = cache.set(key, Arc::clone(user)).await.expect("memory takes it");
                    }
                });
            })
        })
    };
    let raw_moka: RawMoka = moka();
    let raw_quick = quick_cache::sync::Cache::new(room);
    let lru = ShardedLruCache::new(room);
    let foyer: foyer::Cache<String, Arc<User>> = foyer::Cache::builder(room).build();
    let cachet = runtime().block_on(async {
        cachet::Cache::builder::<String, Arc<User>>(Clock::new_tokio()).memory().ttl(HOUR).build()
    });
    let set = |name, set: Box<dyn Fn(&String, &Arc<User>)>| {
        Row::new(name, move || {
            cpu_per(count, || all.iter().zip(users).for_each(|(key, user)| set(key, user)))
        })
    };
    let sets = vec![
        set("raw moka, expiry", Box::new(move |key, user| raw_moka.insert(key.clone(), Arc::clone(user)))),
        set("raw quick_cache", Box::new(move |key, user| raw_quick.insert(key.clone(), Arc::clone(user)))),
        set_own("own, moka", Engine::Moka),
        set_own("own, quick", Engine::Quick),
        set("cached sharded lru", Box::new(move |key, user| drop(lru.set(key.clone(), Arc::clone(user))))),
        set("foyer memory", Box::new(move |key, user| drop(foyer.insert(key.clone(), Arc::clone(user))))),
        set(
            "cachet",
            Box::new(move |key, user| {
                let set = cachet.insert(key.clone(), Arc::clone(user)).now_or_never();
                set.expect("memory is ready").expect("memory takes it");
            }),
        ),
    ];
    let sets = Timed::run("set", "raw moka, expiry", scale.rounds, sets);

    let load_own = |name, engine| {
        let fresh = fresh_own.clone();
        Row::new(name, move || {
            let (cache, runtime) = (fresh(engine), runtime());
            cpu_per(count, || {
                runtime.block_on(async {
                    for key in all {
                        let load = |(), key: String| async move { ok(User::of(&key)) };
                        drop(black_box(cache.get_or_set_with(key, &(), load).await));
                    }
                });
            })
        })
    };
    let loads = vec![
        Row::new("raw moka, expiry", move || {
            let cache: RawMoka = moka();
            cpu_per(count, || {
                for key in all {
                    black_box(cache.get_with_by_ref(key, || Arc::new(User::of(key))));
                }
            })
        }),
        Row::new("raw quick_cache", move || {
            let (cache, runtime) = (quick_cache::sync::Cache::<String, Arc<User>>::new(room), runtime());
            cpu_per(count, || {
                runtime.block_on(async {
                    for key in all {
                        let load = async { Ok::<_, ()>(Arc::new(User::of(key))) };
                        drop(black_box(cache.get_or_insert_async(key.as_str(), load).await));
                    }
                });
            })
        }),
        load_own("own, moka", Engine::Moka),
        load_own("own, quick", Engine::Quick),
        Row::new("cached sharded lru, several flights", move || {
            let cache = ShardedLruCache::<String, Arc<User>>::new(room);
            cpu_per(count, || {
                for key in all {
                    black_box(cache.get_or_set_with(key.clone(), || Arc::new(User::of(key))));
                }
            })
        }),
        Row::new("foyer memory", move || {
            let cache: foyer::Cache<String, Arc<User>> = foyer::Cache::builder(room).build();
            let runtime = runtime();
            cpu_per(count, || {
                runtime.block_on(async {
                    for key in all {
                        let id = key.clone();
                        let load = || async move { Ok::<_, std::io::Error>(Arc::new(User::of(&id))) };
                        drop(black_box(cache.get_or_fetch(key, load).await));
                    }
                });
            })
        }),
        Row::new("cachet, stampede protection", move || {
            let runtime = runtime();
            let cache = runtime.block_on(async {
                let builder = cachet::Cache::builder::<String, Arc<User>>(Clock::new_tokio());
                builder.memory().ttl(HOUR).stampede_protection().build()
            });
            cpu_per(count, || {
                runtime.block_on(async {
                    for key in all {
                        drop(black_box(cache.get_or_insert(key, || async { Arc::new(User::of(key)) }).await));
                    }
                });
            })
        }),
        Row::new("hitbox", move || {
            let cache = hitbox_fn::Cache::builder()
                .backend(MokaBackend::builder().max_entries(room as u64).build())
                .policy(PolicyConfig::builder().ttl(HOUR).build())
                .build();
            let runtime = runtime();
            cpu_per(count, || {
                runtime.block_on(async {
                    for key in all {
                        drop(black_box(hitbox_user(key.clone()).cache(&cache).await));
                    }
                });
            })
        }),
    ];
    (sets, Timed::run("miss, load, store", "raw moka, expiry", scale.rounds, loads))
}
