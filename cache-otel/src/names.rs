//! Every name that this crate gives to telemetry. docs/telemetry.md and the dashboards go by it.
//!
//! Units follow the conventions: `{hit}`-like annotations on counts (a unit of `1` would make Prometheus call them
//! ratios), seconds and bytes otherwise, none on the hit rate.

/// The instrumentation scope.
pub const SCOPE: &str = "traced-cache";

// Look-ups and calls.

/// Counter `{hit}`: look-ups served fresh by a level. By [`CACHE_NAME`], [`CACHE_OPERATION`].
pub const HITS: &str = "cache.hits";
/// Counter `{miss}`: look-ups that found nothing and did not wait for another call's load. By [`CACHE_NAME`],
/// [`CACHE_OPERATION`].
pub const MISSES: &str = "cache.misses";
/// Counter `{miss}`: the same, each under exactly one reason. By [`CACHE_NAME`], [`MISS_REASON`].
pub const MISS_REASONS: &str = "cache.miss.reasons";
/// Counter `{operation}`: calls. By [`CACHE_NAME`], [`CACHE_OPERATION`].
pub const OPERATIONS: &str = "cache.operations";
/// Counter `{error}`: calls that ended with an error. By [`CACHE_NAME`], [`ERROR_TYPE`].
pub const ERRORS: &str = "cache.errors";
/// Counter `{request}`: look-ups, each in exactly one result. By [`CACHE_NAME`], [`CACHE_LEVEL`], [`CACHE_RESULT`].
pub const REQUESTS: &str = "cache.requests";
/// Counter `{advice}`: things that an operator may want to put right. By [`CACHE_NAME`]. With the feature `tracing`, each is
/// also a line of that facade.
pub const ADVICE: &str = "cache.advice";
/// Gauge, 0 to 1: hits over look-ups since the start. By [`CACHE_NAME`]; not there before the first look-up.
pub const HIT_RATE: &str = "cache.hit_rate";
/// Histogram `s`: time from call to answer. By [`CACHE_NAME`], [`CACHE_OPERATION`], for look-ups [`CACHE_LEVEL`] and
/// [`CACHE_RESULT`], for failures [`ERROR_TYPE`], for hits in memory [`SAMPLE_WEIGHT`].
pub const OPERATION_DURATION: &str = "cache.operation.duration";
/// Histogram `s`: how long a call waited for another call's load. By [`CACHE_NAME`].
pub const WAIT_DURATION: &str = "cache.wait.duration";
/// Counter `s`: time that loads would have taken, had levels not served. By [`CACHE_NAME`].
pub const TIME_SAVED: &str = "cache.time_saved";

// Loads.

/// Counter `{load}`: loads that ended, failed ones included. By [`CACHE_NAME`].
pub const LOADS: &str = "cache.loads";
/// Counter `{error}`: loads that failed. By [`CACHE_NAME`].
pub const LOAD_ERRORS: &str = "cache.load.errors";
/// Up-down counter `{load}`: loads under way. By [`CACHE_NAME`].
pub const LOAD_ACTIVE: &str = "cache.load.active";
/// Histogram `s`: time that a load took. By [`CACHE_NAME`], [`LOAD_RESULT`], for failures [`ERROR_TYPE`].
pub const LOAD_DURATION: &str = "cache.load.duration";
/// Counter `{fill}`: fills refused because an invalidation or a set had overtaken them. By [`CACHE_NAME`].
pub const FILL_OVERTAKEN: &str = "cache.fill.overtaken";

// Invalidations.

/// Counter `{invalidation}`: invalidations on this node; keys are counted one by one. By [`CACHE_NAME`],
/// [`INVALIDATION_SCOPE`].
pub const INVALIDATIONS: &str = "cache.invalidations";
/// Up-down counter `{invalidation}`: invalidations that a level has not acknowledged yet, or the backplane not taken. By [`CACHE_NAME`].
pub const JOURNAL_DEPTH: &str = "cache.journal.depth";
/// Counter `{value}`: values of sets that a level had not taken, by what became of them. By [`CACHE_NAME`],
/// [`JOURNAL_RESULT`].
pub const JOURNAL_VALUES: &str = "cache.journal.values";
/// Counter `{message}`: messages on the backplane. By [`CACHE_NAME`], [`BACKPLANE_MESSAGE`].
pub const BACKPLANE_MESSAGES: &str = "cache.backplane.messages";
/// Counter `{gap}`: times that messages may have been lost. By [`CACHE_NAME`].
pub const BACKPLANE_GAPS: &str = "cache.backplane.gaps";
/// Histogram `s`: from the sending of a message to its being applied here. By [`CACHE_NAME`].
pub const BACKPLANE_LAG: &str = "cache.backplane.lag";

// Levels.

/// Counter `{request}`: keys that a level was asked for, by its answer. By [`CACHE_NAME`], [`CACHE_LEVEL`],
/// [`CACHE_RESULT`].
pub const LEVEL_REQUESTS: &str = "cache.level.requests";
/// Counter `{error}`: calls to a level that failed. By [`CACHE_NAME`], [`CACHE_LEVEL`], [`ERROR_TYPE`].
pub const LEVEL_ERRORS: &str = "cache.level.errors";
/// Histogram `s`: time that a level took. By [`CACHE_NAME`], [`CACHE_LEVEL`], [`CACHE_OPERATION`], for failures
/// [`ERROR_TYPE`].
pub const LEVEL_DURATION: &str = "cache.level.duration";
/// Counter `{entry}`: entries that could not be read. By [`CACHE_NAME`], [`CACHE_LEVEL`], [`UNREADABLE_REASON`].
pub const UNREADABLE: &str = "cache.unreadable";
/// Counter `{value}`: values that were not sent to a level. By [`CACHE_NAME`], [`CACHE_LEVEL`], [`UNSENT_REASON`].
pub const UNSENT: &str = "cache.unsent";
/// Histogram `By`: size of items as remote levels have them. By [`CACHE_NAME`], [`CACHE_LEVEL`], [`CACHE_OPERATION`].
pub const ITEM_SIZES: &str = "cache.item.size";
/// Up-down counter `{entry}`: entries held by an in-process level. By [`CACHE_NAME`], [`CACHE_LEVEL`].
pub const ENTRY_COUNT: &str = "cache.entry.count";
/// Up-down counter `By`: bytes held by an in-process level that counts them. By [`CACHE_NAME`], [`CACHE_LEVEL`].
pub const SIZE: &str = "cache.size";
/// Counter `{eviction}`: entries that an in-process level let go. By [`CACHE_NAME`], [`CACHE_LEVEL`],
/// [`EVICTION_CAUSE`].
pub const EVICTIONS: &str = "cache.evictions";
/// Up-down counter `{breaker}`: breakers of a level by state; 1 for the state that it is in. By [`CACHE_NAME`],
/// [`CACHE_LEVEL`], [`BREAKER_STATE`].
pub const BREAKER_COUNT: &str = "cache.breaker.count";
/// Counter `{opening}`: times that a level's breaker has opened. By [`CACHE_NAME`], [`CACHE_LEVEL`].
pub const BREAKER_OPENINGS: &str = "cache.breaker.openings";
/// Histogram `s`, of the conventions: time that a command took, here a call to a remote level. By [`DB_SYSTEM`],
/// [`DB_OPERATION`], [`SERVER_ADDRESS`], [`SERVER_PORT`], [`CACHE_NAME`], for failures [`ERROR_TYPE`].
pub const DB_DURATION: &str = "db.client.operation.duration";

// Attributes of metrics and spans.

/// The cache's name. On every metric and span.
pub const CACHE_NAME: &str = "cache.name";
/// The verb (`get`, `get_or_set`, ...), or what a level was asked (`get`, `acquire`, `put`, `remove`, `swap`).
pub const CACHE_OPERATION: &str = "cache.operation";
/// How a look-up ended: `hit`, `stale`, `negative`, `coalesced`, `miss`; for a level also `expired`, `invalidated`,
/// `unreadable`, `error`, `skipped`.
pub const CACHE_RESULT: &str = "cache.result";
/// Why a look-up missed: `absent`, `evicted`, `expired`, `invalidated`, `unreadable`, `error`, `bypassed`.
pub const MISS_REASON: &str = "cache.miss.reason";
/// A level by its position: `l1`, `l2`, ...; for look-ups the one that served them, or [`NO_LEVEL`].
pub const CACHE_LEVEL: &str = "cache.level";
/// For how many calls each that is recorded stands: 256, on durations of hits in memory; where it is missing, every call is
/// recorded.
pub const SAMPLE_WEIGHT: &str = "cache.sample_weight";
/// Why an entry was let go: `expired`, `size`.
pub const EVICTION_CAUSE: &str = "cache.eviction.cause";
/// What was invalidated: `key`, `tag`, `clear`.
pub const INVALIDATION_SCOPE: &str = "cache.invalidation.scope";
/// `stored`: the level took it after all. `lost`: something had come between, it had expired, or there was no room; its
/// key was invalidated.
pub const JOURNAL_RESULT: &str = "cache.journal.result";
/// `sent`, `received`, or `noise`: what was no message of this release.
pub const BACKPLANE_MESSAGE: &str = "cache.backplane.message";
/// `closed`, `half_open`, `open`.
pub const BREAKER_STATE: &str = "cache.breaker.state";
/// Why an entry could not be read: `foreign`, `version`, `corrupt`, `codec`, `schema`, `payload`, `type`, `too_large`, `no_key`,
/// `not_authentic`.
pub const UNREADABLE_REASON: &str = "cache.unreadable.reason";
/// Why a value was not sent: `too_large`, `not_encoded`.
pub const UNSENT_REASON: &str = "cache.unsent.reason";
/// How a load ended: `value`, `absent`, `unchanged`, `not_stored`, `failed`.
pub const LOAD_RESULT: &str = "cache.load.result";
/// The class of an error, on what failed.
pub const ERROR_TYPE: &str = "error.type";
/// `redis`, `memcached`.
pub const DB_SYSTEM: &str = "db.system.name";
/// The command, as it is sent.
pub const DB_OPERATION: &str = "db.operation.name";
/// On spans: the database within the server, for Redis its index.
pub const DB_NAMESPACE: &str = "db.namespace";
/// On spans of scripts: what the script is for, `acquire` or `swap`; of a raw client its digest.
pub const DB_PROCEDURE: &str = "db.stored_procedure.name";
/// Where the server is.
pub const SERVER_ADDRESS: &str = "server.address";
/// Its port.
pub const SERVER_PORT: &str = "server.port";
/// The instance of a client, or the provider, that commands go by: several are told apart by it. On every metric and span of
/// `raw`, and on what servers say.
pub const CLIENT_NAME: &str = "db.client.name";
/// On the one series of the caches beyond the limit of series, instead of [`CACHE_NAME`]: `true`.
pub const OVERFLOW: &str = "otel.metric.overflow";

// Attributes of spans alone.

/// Boolean, on look-ups: served by an entry, of several keys all of them.
pub const CACHE_HIT: &str = "cache.hit";
/// Bytes: of a level's call the items as they are there, of a cache's call the value as it is encoded, where it was.
pub const ITEM_SIZE: &str = "cache.item_size";
/// Seconds. Of a level's call, how long it is to keep the one item that it is sent; of a `set`, until the value is no longer
/// fresh; of a hit, what is left of that.
pub const TTL: &str = "cache.ttl";
/// On batches: number of keys.
pub const KEY_COUNT: &str = "cache.key.count";
/// On warm-ups: number of keys that failed.
pub const ERROR_COUNT: &str = "cache.error.count";
/// An array: the key, as far as it may be seen. Off by default.
pub const CACHE_KEY: &str = "cache.key";
/// On links: why the other span matters, `waited_for` or `caused_by`.
pub const LINK_KIND: &str = "cache.link";

/// [`CACHE_LEVEL`] of look-ups that no level served.
pub const NO_LEVEL: &str = "none";
/// [`ERROR_TYPE`] of what was given up before it had ended: its caller has left, or its runtime ended.
pub const CANCELLED: &str = "cancelled";

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    /// `(identifier, name)` of every constant here.
    fn constants() -> Vec<(String, String)> {
        let source = include_str!("names.rs").lines().filter_map(|line| line.strip_prefix("pub const "));
        let all = source.filter_map(|line| {
            let (identifier, rest) = line.split_once(": &str = \"")?;
            Some((identifier.to_owned(), rest.trim_end_matches("\";").to_owned()))
        });
        all.collect()
    }

    #[test]
    fn names_are_unique_and_none_is_the_namespace_of_another() {
        let all = constants();
        assert!(all.len() > 50, "{}", all.len());
        let names: HashSet<_> = all.iter().map(|(_, name)| name).collect();
        assert_eq!(names.len(), all.len(), "{all:?}");
        let metrics = all.iter().filter(|(_, name)| name.starts_with("cache."));
        for (_, name) in metrics {
            assert!(name.chars().all(|c| c.is_ascii_lowercase() || matches!(c, '.' | '_')), "{name}");
        }
    }
}
