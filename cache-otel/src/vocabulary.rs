//! Which words metrics are given.

use cache_core::Verb;

/// Which names metrics have.
///
/// | | [`Today`](Self::Today) | [`Seeds`](Self::Seeds) |
/// | --- | --- | --- |
/// | calls, hits, misses by | `cache.name`, `cache.operation` (the verb) | the same, the operation one of `get`, `set`, `delete`, and `cache_group`, again the name |
/// | latency of calls | `cache.operation.duration`, seconds | `cache.latency` by the same, and `cache.operation.latency` by `operation`, `cache_group`, milliseconds |
/// | size of items | `cache.item.size` by level and operation | `cache.value_size` by name and operation |
/// | a remote level's calls | `db.client.operation.duration`, seconds | `redis.operation.latency` (`memcached...`) by `operation`, `cache_group`, `batch`, milliseconds |
/// | pools of raw clients | `db.client.connection.*` | `redis.pool.*`, `redis.connection_pool.*`, `redis_pool_connections`; waits in milliseconds |
/// | what a raw client's server says | `redis.maxmemory`, `redis.keyspace.hits`, `.misses` | those, and `redis_memory_max_bytes`, `redis_keyspace_read_hits`, `_misses` |
///
/// What has no older name is the same in both. The millisecond histograms have no unit, so that Prometheus calls them what
/// those dashboards ask for: `cache_latency_bucket`, not `cache_latency_milliseconds_bucket`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Vocabulary {
    /// Names and units by the OpenTelemetry conventions of today.
    #[default]
    Today,
    /// The names that cache instrumentation was commonly written with before there were conventions, for those who have
    /// dashboards on them.
    Seeds,
}

/// A verb as older dashboards have it.
pub(crate) const fn crud(verb: Verb) -> &'static str {
    match verb {
        Verb::Get | Verb::GetOrSet | Verb::GetMany | Verb::GetOrSetMany | Verb::Refresh => "get",
        Verb::Set | Verb::SetMany | Verb::Update | Verb::Save | Verb::Warm => "set",
        _ => "delete",
    }
}

/// Older names.
pub(crate) mod seeds {
    pub(crate) const LATENCY: &str = "cache.latency";
    pub(crate) const OPERATION_LATENCY: &str = "cache.operation.latency";
    pub(crate) const VALUE_SIZE: &str = "cache.value_size";
    pub(crate) const REDIS_LATENCY: &str = "redis.operation.latency";
    pub(crate) const MEMCACHED_LATENCY: &str = "memcached.operation.latency";
    pub(crate) const OPERATION: &str = "operation";
    pub(crate) const GROUP: &str = "cache_group";
    pub(crate) const BATCH: &str = "batch";

    /// In milliseconds.
    pub(crate) const BOUNDS: [f64; 12] =
        [0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0, 500.0, 1000.0];
}
