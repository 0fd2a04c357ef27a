//! Cleans up what a verb leaves at remote levels: pending invalidations, and values of a measurement.

use std::time::{Duration, Instant};

use futures::future::join_all;
use traced_cache::{CacheId, RawKey, TracedCache, Value};

use crate::{end::Failure, session::LevelAt};

/// How long levels may take to acknowledge that what was stored is removed.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);

/// Waits until every level has acknowledged every invalidation, for so long at most.
pub(super) async fn delivered<T: Value>(cache: &TracedCache<T>, limit: Duration) {
    let begun = Instant::now();
    while cache.stats().pending > 0 && begun.elapsed() < limit {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Closes a cache whose values have been removed. `true` if every level has acknowledged the removal. The backplane does not
/// count: no other process's memory has had these values.
pub(super) async fn ends_clean<T: Value>(cache: &TracedCache<T>) -> bool {
    cache.close(PATIENCE).await.undelivered().iter().all(|left| left.level.is_none())
}

/// Removes the mark that a cache of this name, which nobody else uses, leaves at remote levels: it has no ttl. `true` if all
/// have done so.
pub(super) async fn unmarked(levels: &[LevelAt], name: &str) -> bool {
    // Stores outside of this process ignore this number.
    let mark = [RawKey::marker(CacheId(0), name)];
    let remote = levels.iter().filter(|level| level.is_remote());
    let removed = join_all(remote.map(|level| level.provider.remove_many(&mark)));
    let removed = tokio::time::timeout(PATIENCE, removed).await;
    removed.is_ok_and(|results| results.iter().flatten().all(Result::is_ok))
}

/// What to do about keys that could not be removed.
pub(super) fn note(left: &str) -> String {
    format!(
        "not all of what was stored could be removed: keys with `{left}` in them stay until you remove them, values until their \
         ttl ends at the latest"
    )
}

/// A failure with that note behind it.
pub(super) fn noted(failure: Failure, note: Option<&str>) -> Failure {
    match note {
        Some(note) => failure.after(note),
        None => failure,
    }
}
