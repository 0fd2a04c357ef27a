//! What a verb leaves at remote levels: invalidations that have not arrived, and values of a measurement.

use std::time::{Duration, Instant};

use futures::future::join_all;
use traced_cache::{CacheId, RawKey, TracedCache, Value};

use crate::{end::Failure, session::LevelAt};

/// What levels may take to hear that what was stored is to go.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);

/// Waits until every level has heard of every invalidation, for so long at most.
pub(super) async fn delivered<T: Value>(cache: &TracedCache<T>, limit: Duration) {
    let begun = Instant::now();
    while cache.stats().pending > 0 && begun.elapsed() < limit {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Ends a cache whose values have been removed. Whether every level has heard of that. Nobody's memory but ours has had any of
/// them, so the backplane does not count.
pub(super) async fn ends_clean<T: Value>(cache: &TracedCache<T>) -> bool {
    cache.close(PATIENCE).await.undelivered().iter().all(|left| left.level.is_none())
}

/// Removes the mark that a cache of this name, which nobody else has, leaves at remote levels: it has no ttl. Whether they have
/// all done so.
pub(super) async fn unmarked(levels: &[LevelAt], name: &str) -> bool {
    // Stores outside of this process do not ask which cache of it this is.
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

/// A failure, and after it that note.
pub(super) fn noted(failure: Failure, note: Option<&str>) -> Failure {
    match note {
        Some(note) => failure.after(note),
        None => failure,
    }
}
