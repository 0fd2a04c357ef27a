//! Every name that this crate gives to telemetry. The README of the metrics and the dashboards are written from it.
//!
//! Units follow the conventions: `{hit}`-like annotations on counts (a unit of `1` would make Prometheus call them
//! ratios), seconds and bytes otherwise, none on the hit rate.

/// The instrumentation scope.
pub const SCOPE: &str = "traced-cache";

/// Counter `{hit}`: look-ups served fresh by a level. By [`CACHE_NAME`], [`CACHE_OPERATION`].
pub const HITS: &str = "cache.hits";
/// Counter `{miss}`: look-ups that found nothing and did not wait for another call's load. By [`CACHE_NAME`],
/// [`CACHE_OPERATION`].
pub const MISSES: &str = "cache.misses";
/// Counter `{operation}`: calls. By [`CACHE_NAME`], [`CACHE_OPERATION`].
pub const OPERATIONS: &str = "cache.operations";
/// Counter `{request}`: look-ups, each in exactly one result. By [`CACHE_NAME`], [`CACHE_LEVEL`], [`CACHE_RESULT`].
pub const REQUESTS: &str = "cache.requests";
/// Gauge, 0 to 1: hits over look-ups since the start. By [`CACHE_NAME`]; not there before the first look-up.
pub const HIT_RATE: &str = "cache.hit_rate";
/// Counter `{load}`: loads that ended, failed ones included. By [`CACHE_NAME`].
pub const LOADS: &str = "cache.loads";
/// Counter `{error}`: loads that failed. By [`CACHE_NAME`].
pub const LOAD_ERRORS: &str = "cache.load.errors";
/// Up-down counter `{entry}`: entries held by an in-process level. By [`CACHE_NAME`], [`CACHE_LEVEL`].
pub const ENTRY_COUNT: &str = "cache.entry.count";
/// Up-down counter `By`: bytes held by an in-process level that counts them. By [`CACHE_NAME`], [`CACHE_LEVEL`].
pub const SIZE: &str = "cache.size";
/// Counter `{eviction}`: entries that an in-process level let go. By [`CACHE_NAME`], [`CACHE_LEVEL`],
/// [`EVICTION_CAUSE`].
pub const EVICTIONS: &str = "cache.evictions";
/// Counter `{request}`: keys that a level was asked for, by its answer. By [`CACHE_NAME`], [`CACHE_LEVEL`],
/// [`CACHE_RESULT`].
pub const LEVEL_REQUESTS: &str = "cache.level.requests";
/// Histogram `s`: time from call to answer. By [`CACHE_NAME`], [`CACHE_OPERATION`], for look-ups [`CACHE_LEVEL`] and
/// [`CACHE_RESULT`], for failures [`ERROR_TYPE`].
pub const OPERATION_DURATION: &str = "cache.operation.duration";
/// Histogram `s`: time that a level took. By [`CACHE_NAME`], [`CACHE_LEVEL`], [`CACHE_OPERATION`], for failures
/// [`ERROR_TYPE`].
pub const LEVEL_DURATION: &str = "cache.level.duration";
/// Histogram `s`: time that a load took. By [`CACHE_NAME`], [`LOAD_RESULT`], for failures [`ERROR_TYPE`].
pub const LOAD_DURATION: &str = "cache.load.duration";

/// The cache's name. On every metric and span.
pub const CACHE_NAME: &str = "cache.name";
/// The verb (`get`, `get_or_set`, ...), or what a level was asked (`get`, `put`, `remove`).
pub const CACHE_OPERATION: &str = "cache.operation";
/// How a look-up ended: `hit`, `stale`, `negative`, `coalesced`, `miss`; for a level also `invalidated`,
/// `unreadable`, `error`, `skipped`.
pub const CACHE_RESULT: &str = "cache.result";
/// A level by its position: `l1`, `l2`, ...; for look-ups the one that served them, or [`NO_LEVEL`].
pub const CACHE_LEVEL: &str = "cache.level";
/// Why an entry was let go: `expired`, `size`.
pub const EVICTION_CAUSE: &str = "cache.eviction.cause";
/// How a load ended: `value`, `absent`, `unchanged`, `not_stored`, `failed`.
pub const LOAD_RESULT: &str = "cache.load.result";
/// The class of an error, on what failed.
pub const ERROR_TYPE: &str = "error.type";

/// Span attribute, boolean, on look-ups of one key: served by an entry.
pub const CACHE_HIT: &str = "cache.hit";
/// Span attribute: size of the encoded item in bytes.
pub const ITEM_SIZE: &str = "cache.item.size";
/// Span attribute, on batches: number of keys.
pub const KEY_COUNT: &str = "cache.key.count";
/// Span attribute, an array: the key, as far as the user's function lets it be seen. Off by default.
pub const CACHE_KEY: &str = "cache.key";

/// [`CACHE_LEVEL`] of look-ups that no level served.
pub const NO_LEVEL: &str = "none";

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    const METRICS: [&str; 14] = [
        HITS,
        MISSES,
        OPERATIONS,
        REQUESTS,
        HIT_RATE,
        LOADS,
        LOAD_ERRORS,
        ENTRY_COUNT,
        SIZE,
        EVICTIONS,
        LEVEL_REQUESTS,
        OPERATION_DURATION,
        LEVEL_DURATION,
        LOAD_DURATION,
    ];
    const ATTRIBUTES: [&str; 11] = [
        CACHE_NAME,
        CACHE_OPERATION,
        CACHE_RESULT,
        CACHE_LEVEL,
        EVICTION_CAUSE,
        LOAD_RESULT,
        ERROR_TYPE,
        CACHE_HIT,
        ITEM_SIZE,
        KEY_COUNT,
        CACHE_KEY,
    ];

    #[test]
    fn names_are_unique() {
        assert_eq!(METRICS.iter().collect::<HashSet<_>>().len(), METRICS.len());
        assert_eq!(ATTRIBUTES.iter().collect::<HashSet<_>>().len(), ATTRIBUTES.len());
    }

    #[test]
    fn the_lists_of_this_test_are_whole() {
        let constants = include_str!("names.rs").lines().filter(|line| line.starts_with("pub const")).count();
        // SCOPE and NO_LEVEL are neither.
        assert_eq!(constants, METRICS.len() + ATTRIBUTES.len() + 2);
    }
}
