//! Typed, layered, observable caches over memory, Redis and memcached.
//!
//! A [`TracedCache`] has a name, a type, and levels: process memory first, then, if you like, Redis or memcached. It
//! loads what no level has, once per key however many callers ask, and counts every look-up exactly.
//!
#![cfg_attr(feature = "memory", doc = "```")]
#![cfg_attr(not(feature = "memory"), doc = "```ignore")]
//! use std::time::Duration;
//!
//! use serde::{Deserialize, Serialize};
//! use traced_cache::{Error, Memory, Policy, TracedCache, ok};
//!
//! #[derive(Serialize, Deserialize)]
//! struct User {
//!     name: String,
//! }
//!
//! # #[derive(Clone)]
//! # struct Db;
//! # impl Db {
//! #     async fn user(&self, id: u64) -> User {
//! #         User { name: format!("user {id}") }
//! #     }
//! # }
//! # #[tokio::main]
//! # async fn main() -> Result<(), Error> {
//! # let db = Db;
//! let users: TracedCache<User> = TracedCache::builder("users")
//!     .level(Memory::entries(10_000))
//!     .policy(Policy::ttl(Duration::from_secs(60)))
//!     .build()?;
//!
//! // From the cache, or else from the database. The loader gets a clone of `&db` and the key, on a miss only.
//! for _ in 0..3 {
//!     let user = users.get_or_set_with(42u64, &db, |db, id| async move { ok(db.user(id).await) }).await?;
//!     assert_eq!(user.name, "user 42");
//! }
//! let stats = users.stats();
//! assert_eq!((stats.loads, stats.misses(), stats.hits()), (1, 1, 2));
//!
//! // The row has changed: nobody gets the old one any more.
//! assert!(users.invalidate(42u64).await?.is_confirmed());
//! assert!(users.get(42u64).await?.is_none());
//! # Ok(())
//! # }
//! ```
//!
//! A second level is one more line, `.level(RedisProvider::builder("redis://127.0.0.1:6379").build()?)`, metrics and spans
//! another, `.observer(Telemetry::global())`.
//!
//! # Main types
//!
//! | type | what it is |
//! | --- | --- |
//! | [`TracedCache`] | the cache; clones are the same one |
//! | [`Builder`] | puts it together and finds contradictions before any I/O |
//! | [`Level`] | a provider in the stack: ttl cap, time budget, breaker, codec, compression, encryption, stance on errors |
//! | [`Policy`] | how long entries live and how loads are held |
//! | [`CacheKey`] | strings, integers, tuples of them, your newtypes |
//! | [`Loaded`] | all that a loader may answer; a plain `Ok(value)` or `Ok(Some(value))` will do |
//! | [`Found`] | all that a look-up answers: value, outcome, level, age |
//! | [`Delivery`] | whether every level has acknowledged a write or an invalidation |
//! | [`Source`] | the data behind a cache, for cache-aside and write-through |
//! | [`Access`] | what one call may use: [`TracedCache::access`] |
//! | [`Snapshot`] | the counts: [`TracedCache::stats`] |
//! | [`Error`] | the one error; its [`ErrorKind`] is for decisions |
//! | [`CacheProvider`] | a place that keeps entries; implement it for your own |
//! | [`Backplane`] | tells other nodes what has changed; `RedisProvider::backplane` makes one |
//! | [`Observer`] | hears what happens |
//!
//! # Guides
//!
//! | question | page |
//! | --- | --- |
//! | memory, Redis, memcached, how many of them? | [choosing levels](https://github.com/traced-cache/traced-cache/blob/main/docs/choosing-levels.md) |
//! | a thousand callers ask for one cold key | [stampedes](https://github.com/traced-cache/traced-cache/blob/main/docs/stampedes.md) |
//! | the row has changed: who still sees the old one? | [invalidation](https://github.com/traced-cache/traced-cache/blob/main/docs/invalidation.md) |
//! | what happens when Redis is down? | [when Redis is down](https://github.com/traced-cache/traced-cache/blob/main/docs/when-redis-is-down.md) |
//! | what exactly is promised? | [semantics](https://github.com/traced-cache/traced-cache/blob/main/docs/semantics.md) |
//! | all others | [README](https://github.com/traced-cache/traced-cache#answers) |
//!
//! # Features
//!
//! | feature | default | adds |
//! | --- | --- | --- |
//! | `memory` | yes | `Memory`: this process, on quick_cache or moka |
//! | `redis` | yes | `RedisProvider` and `RedisBackplane`: Redis 6+ and Valkey |
//! | `memcached` | yes | `MemcachedProvider`: one server or many |
//! | `otel` | yes | `Telemetry`: OpenTelemetry metrics and spans |
//! | `otel-bound` | no | metrics of remote reads at less cost, by an experimental part of OpenTelemetry |
//! | `tracing` | no | what an operator may want to put right, why a level or the backplane fails, and why loads do, as lines of that facade |
//! | `otel-setup` | no | `setup`: one call that sets up OTLP and a page for Prometheus |
//! | `otel-setup-tls` | no | the same with OTLP over TLS; wants a C compiler |
//! | `tls` | no | `rediss://` and `memcacheds://`, on rustls; wants a C compiler |
//! | `config` | yes | `Caches`: caches from a TOML, JSON or YAML file |
//! | `macros` | no | `#[cached]` for async functions, over the caches of a file; `#[derive(CacheKey)]` |
//! | `schema` | no | the JSON Schema of such files |
//! | `msgpack`, `postcard` | no | [`Codec`]s beside JSON |
//! | `lz4`, `zstd` | no | [`Compression`] at remote levels; `zstd` builds a C library |
//! | `encryption` | no | [`Encryption`] at remote levels |
//! | `uuid` | no | `uuid::Uuid` as a key |
//! | `testing` | no | `testing`: the conformance list for providers, injected faults, a recording observer |

#![cfg_attr(docsrs, feature(doc_cfg))]

#[cfg(feature = "config")]
pub mod config;

pub use cache_core::*;
#[cfg(feature = "macros")]
pub use cache_macros::{CacheKey, cached};
#[cfg(feature = "memcached")]
pub use cache_memcached::{Builder as MemcachedProviderBuilder, MemcachedProvider};
#[cfg(feature = "memory")]
pub use cache_memory::{Engine, Memory};
#[cfg(feature = "otel-setup")]
pub use cache_otel::setup;
#[cfg(feature = "otel")]
pub use cache_otel::{
    CacheStatus, Latency, LevelStatus, Servers, Telemetry, TelemetryBuilder, Vocabulary, key_pattern,
};
#[cfg(feature = "redis")]
pub use cache_redis::{RedisBackplane, RedisProvider, RedisProviderBuilder};
#[cfg(feature = "config")]
pub use config::Caches;

/// Code in these pages is compiled with the tests, and runs where it needs no server. `tests/docs` knows of pages that are
/// missing here.
#[cfg(all(
    doctest,
    feature = "memory",
    feature = "redis",
    feature = "memcached",
    feature = "macros",
    feature = "otel-setup"
))]
mod pages {
    macro_rules! pages {
        ($($name:ident $file:literal)*) => {$(
            #[doc = include_str!($file)]
            mod $name {}
        )*};
    }
    pages! {
        readme "../README.md"
        choosing_levels "../docs/choosing-levels.md"
        configuration "../docs/configuration.md"
        from_a_wrapper "../docs/from-a-wrapper.md"
        from_cached "../docs/from-cached.md"
        from_cachet "../docs/from-cachet.md"
        invalidation "../docs/invalidation.md"
        stampedes "../docs/stampedes.md"
        telemetry "../docs/telemetry.md"
        testing "../docs/testing.md"
        when_redis_is_down "../docs/when-redis-is-down.md"
        writing_a_backend "../docs/writing-a-backend.md"
    }
}

#[cfg(all(test, feature = "redis", feature = "memcached", feature = "otel"))]
mod tests {
    use crate::{
        CacheStatus, Latency, LevelStatus, MemcachedProvider, MemcachedProviderBuilder, RedisProvider,
        RedisProviderBuilder,
    };

    /// What an application's own functions take and answer has a name here: nobody has to depend on the crates behind.
    #[test]
    fn what_this_crate_hands_out_can_be_named() {
        fn _slowest(status: &CacheStatus) -> Option<Latency> {
            status.latency.iter().map(|(_, latency)| *latency).max_by_key(|latency| latency.p99)
        }
        fn _off(status: &CacheStatus) -> Vec<&LevelStatus> {
            status.levels.iter().filter(|level| level.is_off).collect()
        }
        fn redis(builder: RedisProviderBuilder) -> RedisProviderBuilder {
            builder.key_prefix("shop:")
        }
        fn memcached(builder: MemcachedProviderBuilder) -> MemcachedProviderBuilder {
            builder.key_prefix("shop:")
        }
        assert!(redis(RedisProvider::builder("redis://127.0.0.1")).build().is_ok());
        assert!(memcached(MemcachedProvider::builder("memcached://127.0.0.1")).build().is_ok());
    }
}
