//! Typed, layered, observable caches over memory, Redis and Memcached.

pub use cache_core::*;
#[cfg(feature = "memcached")]
pub use cache_memcached::MemcachedProvider;
#[cfg(feature = "memory")]
pub use cache_memory::Memory;
#[cfg(feature = "otel")]
pub use cache_otel::Telemetry;
#[cfg(feature = "redis")]
pub use cache_redis::RedisProvider;
