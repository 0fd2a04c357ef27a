//! Levels that are not asked for a while: a line of the `tracing` facade when that begins, with the reason, and one when it
//! ends. Metrics say that a level fails; only the provider's own words say that its password is wrong.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

use cache_core::{BreakerState, CacheInfo, with_causes};

/// Breakers that are open, by cache and level, and whether that has been said.
#[derive(Default)]
pub(crate) struct Outages(Mutex<BTreeMap<(Arc<str>, u8), bool>>);

impl Outages {
    /// A breaker has changed. That one has opened is said with the failure that has done it, of which the observer hears next.
    pub(crate) fn breaker(&self, cache: &CacheInfo, level: u8, state: BreakerState) {
        let key = (Arc::clone(cache.shared_name()), level);
        let mut open = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let was_said = match state {
            BreakerState::Open => {
                open.entry(key).or_insert(false);
                return;
            }
            BreakerState::Closed => open.remove(&key).unwrap_or_default(),
            // Each second while it lasts.
            _ => return,
        };
        drop(open);
        if was_said {
            let level = named(cache, level);
            tracing::info!(target: "traced_cache::breaker", cache = cache.name(), "{level} is asked again");
        }
    }

    /// A call to a level has failed.
    pub(crate) fn failed(
        &self,
        cache: &CacheInfo,
        level: u8,
        fault: &str,
        error: Option<&(dyn std::error::Error + 'static)>,
    ) {
        let mut open = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // Most of the time there is none, and no key to be made for it.
        let said = match open.is_empty() {
            true => None,
            false => open.get_mut(&(Arc::clone(cache.shared_name()), level)),
        };
        let Some(said @ false) = said else { return };
        *said = true;
        drop(open);
        let (level, why) = (named(cache, level), error.map_or_else(|| fault.to_owned(), with_causes));
        tracing::warn!(
            target: "traced_cache::breaker",
            cache = cache.name(),
            "{level} fails and is left alone, but for a try now and then: {why}"
        );
    }
}

/// `level 2 (redis at 127.0.0.1:6379)`.
fn named(cache: &CacheInfo, level: u8) -> String {
    let at = usize::from(level) + 1;
    match cache.levels().get(usize::from(level)).map(|level| &level.provider) {
        Some(provider) => match provider.place() {
            Some(place) => format!("level {at} ({} at {place})", provider.system),
            None => format!("level {at} ({})", provider.system),
        },
        None => format!("level {at}"),
    }
}
