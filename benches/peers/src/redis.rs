//! Reads from Redis, alone and below memory.

use std::{sync::Arc, time::SystemTime};

use crate::ours::{Engine, Memory, Policy, RedisProvider, Telemetry, TracedCache};
use cached::{AsyncRedisCache, ConcurrentCachedAsync};
use cachet::{CacheEntry, CacheTier, InsertOutcome};
use hitbox::{offload::OffloadManager, policy::PolicyConfig};
use hitbox_backend::composition::Compose;
use hitbox_moka::MokaBackend;
use hitbox_redis::{ConnectionMode, RedisBackend};
use opentelemetry::trace::FutureExt;
use redis::{
    AsyncCommands, Client,
    aio::{ConnectionManager, ConnectionManagerConfig},
};
use tick::Clock;

use crate::{
    Scale,
    clocks::wall_per,
    flights::{read_all, runtime},
    memory::{HOUR, Response, hitbox_user, multi_tier, raw_moka},
    otel::{Otel, unsampled_request},
    rounds::{Row, Timed},
    work::{User, decode, keys, raw_key, shuffled},
};

/// A connection of redis-rs as its users have it, without Nagle's algorithm, as ours. `patient`: without the timer that it
/// sets for each command.
pub async fn connect(url: &str, patient: bool) -> ConnectionManager {
    use redis::{ConnectionInfo, IntoConnectionInfo, io::tcp::TcpSettings};
    let info: ConnectionInfo = url.into_connection_info().expect("the url is right");
    let info = info.set_tcp_settings(TcpSettings::default().set_nodelay(true));
    let client = Client::open(info).expect("the url is right");
    let config = ConnectionManagerConfig::new();
    let config = if patient { config.set_response_timeout(None) } else { config };
    ConnectionManager::new_with_config(client, config).await.expect("redis is there")
}

async fn get(mut connection: ConnectionManager, key: &str) -> Vec<u8> {
    connection.get(raw_key(key)).await.expect("it was set")
}

/// Ours over Redis alone, or below memory.
fn own(redis: &RedisProvider, memory: Option<Memory>, telemetry: Option<&Telemetry>) -> TracedCache<User> {
    let mut builder = TracedCache::builder("peers").policy(Policy::ttl(HOUR));
    if let Some(memory) = memory {
        builder = builder.level(memory);
    }
    if let Some(telemetry) = telemetry {
        builder = builder.observer(telemetry.clone());
    }
    builder.level(redis.clone()).build().expect("the settings are right")
}

async fn found(cache: &TracedCache<User>, key: &str) {
    let user = cache.get(key).await.expect("redis is there");
    assert!(user.is_some(), "it was set");
}

/// A Redis tier, which cachet leaves to its users.
struct Tier(ConnectionManager);

impl CacheTier<String, Arc<User>> for Tier {
    async fn get(&self, key: &String) -> Result<Option<CacheEntry<Arc<User>>>, cachet::Error> {
        let bytes = get(self.0.clone(), key).await;
        Ok(Some(CacheEntry::expires_at(Arc::new(decode(&bytes)), HOUR, SystemTime::now())))
    }

    async fn insert(&self, _: String, _: CacheEntry<Arc<User>>) -> Result<InsertOutcome, cachet::Error> {
        Ok(InsertOutcome::Accepted)
    }

    async fn invalidate(&self, _: &String) -> Result<(), cachet::Error> {
        Ok(())
    }

    async fn clear(&self) -> Result<(), cachet::Error> {
        Ok(())
    }
}

fn hitbox(
    url: &str,
    room: u64,
) -> hitbox_fn::Cache<impl hitbox_backend::CacheBackend + Send + Sync + 'static> {
    let moka = MokaBackend::builder().max_entries(room).build();
    let redis = RedisBackend::builder().connection(ConnectionMode::single(url)).build();
    hitbox_fn::Cache::builder()
        .backend(moka.compose(redis.expect("the url is right"), OffloadManager::with_defaults()))
        .policy(PolicyConfig::builder().ttl(HOUR).build())
        .build()
}

pub struct Redis {
    url: String,
    keys: &'static [String],
    otel: Otel,
    raw: ConnectionManager,
    patient: ConnectionManager,
    provider: RedisProvider,
}

impl Redis {
    /// Fills the server in the form of each row, with the same expiry. Keys are read in another order than anybody wrote them
    /// in: the server would find one after the other in its memory, and those that are written at random it would not.
    pub fn filled(url: &str, scale: &Scale) -> Self {
        let written = keys("user", scale.reads);
        let keys: &'static [String] = Vec::leak(shuffled(written.clone()));
        runtime().block_on(async {
            let (mut raw, patient) = (connect(url, false).await, connect(url, true).await);
            let provider = RedisProvider::builder(url).build().expect("the url is right");
            let ours = own(&provider, None, None);
            let multi_tier = multi_tier(url).await;
            for chunk in written.chunks(500) {
                let mut pipeline = redis::pipe();
                for key in chunk {
                    pipeline.set_ex(raw_key(key), User::of(key).json(), HOUR.as_secs()).ignore();
                }
                let () = pipeline.query_async(&mut raw).await.expect("redis takes it");
                let _ = ours
                    .set_many(chunk.iter().map(|key| (key, User::of(key))))
                    .await
                    .expect("redis takes it");
                for key in chunk {
                    let strategy = multi_tier_cache::CacheStrategy::LongTerm;
                    let set = multi_tier.set_with_strategy(key, User::of(key).json().into(), strategy);
                    set.await.expect("redis takes it");
                }
            }
            let this = Self { url: url.to_owned(), keys, otel: Otel::new(), raw, patient, provider };
            let lru = this.cached().await;
            for key in &written {
                lru.async_cache_set(key.clone(), User::of(key)).await.expect("redis takes it");
            }
            let hitbox = hitbox(url, keys.len() as u64);
            for key in this.few() {
                hitbox_user(key.clone()).cache(&hitbox).await;
            }
            this
        })
    }

    /// For rows that are slow.
    fn few(&self) -> &'static [String] {
        &self.keys[..self.keys.len() / 10]
    }

    async fn cached(&self) -> AsyncRedisCache<String, User> {
        let builder = AsyncRedisCache::builder("peers").connection_manager(true);
        builder.connection_string(&self.url).ttl(HOUR).build().await.expect("redis is there")
    }

    fn memory(&self, engine: Engine) -> Memory {
        Memory::entries(2 * self.keys.len() as u64).engine(engine)
    }

    fn rows(&self, keys: &'static [String], flights: usize) -> Vec<Row> {
        let metrics = self.otel.metrics();
        let raw = |name, connection: &ConnectionManager, decoded: bool| {
            let connection = connection.clone();
            Row::new(name, move || {
                let connection = connection.clone();
                read_all(keys, flights, move |key| {
                    let connection = connection.clone();
                    async move {
                        let bytes = get(connection, key).await;
                        match decoded {
                            true => drop(std::hint::black_box(Arc::new(decode(&bytes)))),
                            false => drop(std::hint::black_box(bytes)),
                        }
                    }
                })
            })
        };
        let typed = |name, telemetry: Option<&Telemetry>| {
            let cache = own(&self.provider, None, telemetry);
            Row::new(name, move || {
                let cache = cache.clone();
                read_all(keys, flights, move |key| {
                    let cache = cache.clone();
                    async move { found(&cache, key).await }
                })
            })
        };
        let in_a_request = |name, telemetry: &Telemetry| {
            let cache = own(&self.provider, None, Some(telemetry));
            let request = unsampled_request();
            Row::new(name, move || {
                let (cache, request) = (cache.clone(), request.clone());
                read_all(keys, flights, move |key| {
                    let (cache, request) = (cache.clone(), request.clone());
                    async move { found(&cache, key).await }.with_context(request)
                })
            })
        };
        // Memory is empty in each round.
        let layered = |name, engine| {
            let (provider, memory, metrics) = (self.provider.clone(), self.memory(engine), metrics.clone());
            Row::new(name, move || {
                let cache = own(&provider, Some(memory.clone().engine(engine)), Some(&metrics));
                read_all(keys, flights, move |key| {
                    let cache = cache.clone();
                    async move { found(&cache, key).await }
                })
            })
        };
        let mut rows = vec![
            raw("raw GET, bytes", &self.raw, false),
            raw("raw GET, bytes, no timer", &self.patient, false),
            raw("raw GET, decoded", &self.raw, true),
            raw("raw GET, decoded, no timer", &self.patient, true),
            typed("own, Redis", Some(&metrics)),
            typed("own, Redis, no observer", None),
            typed("own, Redis, unsampled tracer", Some(&self.otel.unsampled())),
            in_a_request("own, Redis, in a request that is not sampled", &self.otel.unsampled()),
            layered("own, quick over Redis", Engine::Quick),
            layered("own, moka over Redis", Engine::Moka),
        ];
        let (connection, room) = (self.raw.clone(), 2 * keys.len() as u64);
        rows.push(Row::new("by hand: moka over GET, decoded", move || {
            let moka = raw_moka(room);
            let connection = connection.clone();
            read_all(keys, flights, move |key| {
                let (moka, connection) = (moka.clone(), connection.clone());
                async move {
                    if moka.get(key).is_none() {
                        let bytes = get(connection, key).await;
                        moka.insert(key.clone(), Arc::new(decode(&bytes)));
                    }
                }
            })
        }));
        let cached = Arc::new(runtime().block_on(self.cached()));
        rows.push(Row::new("cached, Redis alone", move || {
            let cached = Arc::clone(&cached);
            read_all(keys, flights, move |key| {
                let cached = Arc::clone(&cached);
                async move { assert!(cached.async_cache_get(key).await.expect("redis is there").is_some()) }
            })
        }));
        let connection = self.raw.clone();
        rows.push(Row::new("cachet over a tier of ours", move || {
            let clock = runtime().block_on(async { Clock::new_tokio() });
            let below = cachet::Cache::builder(clock.clone()).storage(Tier(connection.clone()));
            let cachet =
                cachet::Cache::builder::<String, Arc<User>>(clock).memory().ttl(HOUR).fallback(below);
            let cachet = Arc::new(cachet.build());
            read_all(keys, flights, move |key| {
                let cachet = Arc::clone(&cachet);
                async move { assert!(cachet.get(key).await.expect("redis is there").is_some()) }
            })
        }));
        let url = self.url.clone();
        rows.push(Row::new("multi-tier-cache, filled always", move || {
            let cache = runtime().block_on(multi_tier(&url));
            read_all(keys, flights, move |key| {
                let cache = Arc::clone(&cache);
                async move {
                    let user = cache.get_typed::<User>(key).await.expect("redis is there");
                    assert!(user.is_some());
                }
            })
        }));
        let (url, few) = (self.url.clone(), self.few());
        rows.push(Row::new("hitbox, moka composed with Redis", move || {
            let cache = hitbox(&url, room);
            read_all(few, flights, move |key| {
                let cache = cache.clone();
                async move {
                    let Response { user } = hitbox_user(key.clone()).cache(&cache).await;
                    std::hint::black_box(user);
                }
            })
        }));
        rows
    }

    pub fn crowded(&self, scale: &Scale) -> Timed {
        Timed::run("Redis, 64 in flight", "raw GET, bytes", scale.remote_rounds, self.rows(self.keys, 64))
    }

    pub fn alone(&self, scale: &Scale) -> Timed {
        let rows = self.rows(self.few(), 1);
        Timed::run("Redis, one in flight", "raw GET, bytes", scale.remote_rounds, rows)
    }

    /// A hundred keys at a time, one batch under way.
    pub fn batches(&self, scale: &Scale) -> Timed {
        let keys = self.keys;
        let raw = |name, connection: &ConnectionManager| {
            let connection = connection.clone();
            Row::new(name, move || {
                let mut connection = connection.clone();
                wall_per(keys.len(), || {
                    runtime().block_on(async move {
                        let batches = tokio::spawn(async move {
                            for batch in keys.chunks(100) {
                                let ids: Vec<String> = batch.iter().map(|key| raw_key(key)).collect();
                                let all: Vec<Vec<u8>> = connection.mget(&ids).await.expect("they were set");
                                let users: Vec<Arc<User>> = all.iter().map(|b| Arc::new(decode(b))).collect();
                                drop(std::hint::black_box(users));
                            }
                        });
                        batches.await.expect("reads do not panic");
                    });
                })
            })
        };
        let ours = |name, memory: Option<Memory>| {
            let (provider, metrics) = (self.provider.clone(), self.otel.metrics());
            let lasting = memory.is_none().then(|| own(&provider, None, Some(&metrics)));
            Row::new(name, move || {
                let fresh =
                    || own(&provider, memory.clone().map(|m| m.engine(Engine::Quick)), Some(&metrics));
                let cache = lasting.clone().unwrap_or_else(fresh);
                wall_per(keys.len(), || {
                    runtime().block_on(async move {
                        let batches = tokio::spawn(async move {
                            for batch in keys.chunks(100) {
                                let users = cache.get_many(batch).await.expect("redis is there");
                                assert!(users.iter().all(Option::is_some));
                            }
                        });
                        batches.await.expect("reads do not panic");
                    });
                })
            })
        };
        let rows = vec![
            raw("raw MGET, decoded", &self.raw),
            raw("raw MGET, decoded, no timer", &self.patient),
            ours("own, Redis", None),
            ours("own, quick over Redis", Some(self.memory(Engine::Quick))),
        ];
        Timed::run("Redis, batches of 100", "raw MGET, decoded", scale.remote_rounds, rows)
    }
}
