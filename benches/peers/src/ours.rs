//! Our crates under one name.

pub use cache_core::{Policy, TracedCache, ok};
pub use cache_memcached::MemcachedProvider;
pub use cache_memory::{Engine, Memory};
pub use cache_otel::Telemetry;
pub use cache_redis::RedisProvider;
