//! Levels and backplanes that fail, loads that do, and values that no level takes, as lines of the `tracing` facade with the
//! reason: one when a level is not asked for a while or a backplane is down, one when it is well again, and one a minute of the
//! rest. Metrics say that a level fails; only the provider's own words say that its password is wrong.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use cache_core::{BreakerState, CacheInfo, Error, ErrorKind, LevelFault, with_causes};

/// Failures that open no breaker get one line in this time at most, however many they are.
const A_LINE_EACH: Duration = Duration::from_secs(60);

/// Most failing levels that are told of at a time, and most caches whose loads fail.
const MOST: usize = 1_000;

#[derive(Default)]
pub(crate) struct Outages {
    /// By cache and level.
    levels: Mutex<BTreeMap<(Arc<str>, u8), Sick>>,
    /// By cache.
    loads: Mutex<BTreeMap<Arc<str>, Untold>>,
    /// By cache.
    planes: Mutex<BTreeMap<Arc<str>, Plane>>,
    /// By cache and level.
    unsent: Mutex<BTreeMap<(Arc<str>, u8), Untold>>,
}

/// A level that has failed.
enum Sick {
    /// Its breaker is closed: most calls end well, or there are few.
    Asked(Untold),
    /// Its breaker is open, and whether that has been said.
    Off { said: bool, since: Instant },
}

impl Sick {
    /// When it was last heard of, at the earliest.
    fn since(&self) -> Instant {
        match self {
            Self::Asked(untold) => untold.since,
            Self::Off { since, .. } => *since,
        }
    }
}

/// A backplane that was down, or is.
struct Plane {
    /// That it is down has been said, and not that it is up.
    said: bool,
    since: Instant,
}

/// Whether there is a place for this one. Those that nobody has heard of lately, as of caches that are gone, make room.
fn has_place<K: Ord, V>(
    map: &mut BTreeMap<K, V>,
    key: &K,
    now: Instant,
    since: impl Fn(&V) -> Instant,
) -> bool {
    if map.len() >= MOST && !map.contains_key(key) {
        map.retain(|_, one| now.saturating_duration_since(since(one)) < 2 * A_LINE_EACH);
    }
    map.len() < MOST || map.contains_key(key)
}

/// Failures that no line has told of yet.
struct Untold {
    since: Instant,
    failures: u64,
}

impl Untold {
    fn from(since: Instant) -> Self {
        Self { since, failures: 0 }
    }

    /// One more. How many there were, and within what time, if a line is due.
    fn more(&mut self, now: Instant) -> Option<(u64, Duration)> {
        self.failures += 1;
        let within = now.saturating_duration_since(self.since);
        if within < A_LINE_EACH {
            return None;
        }
        let failures = self.failures;
        *self = Self::from(now);
        Some((failures, within))
    }
}

impl Outages {
    /// A breaker has changed. That one has opened is said with the failure that has done it, of which the observer hears next.
    pub(crate) fn breaker(&self, cache: &CacheInfo, level: u8, state: BreakerState, now: Instant) {
        let key = (Arc::clone(cache.shared_name()), level);
        let mut levels = self.levels.lock().unwrap_or_else(PoisonError::into_inner);
        let was = match state {
            BreakerState::Open => {
                if has_place(&mut levels, &key, now, Sick::since)
                    && !matches!(levels.get(&key), Some(Sick::Off { .. }))
                {
                    levels.insert(key, Sick::Off { said: false, since: now });
                }
                return;
            }
            BreakerState::Closed => levels.remove(&key),
            // Each second while it lasts.
            _ => return,
        };
        drop(levels);
        if let Some(Sick::Off { said: true, .. }) = was {
            let level = named(cache, level);
            tracing::info!(target: "traced_cache::breaker", cache = cache.name(), "{level} is asked again");
        }
    }

    /// A call to a level has failed.
    pub(crate) fn failed(
        &self,
        cache: &CacheInfo,
        level: u8,
        fault: LevelFault,
        error: Option<&(dyn std::error::Error + 'static)>,
        now: Instant,
    ) {
        let key = (Arc::clone(cache.shared_name()), level);
        let mut levels = self.levels.lock().unwrap_or_else(PoisonError::into_inner);
        if !has_place(&mut levels, &key, now, Sick::since) {
            return;
        }
        // Not said at once: an outage opens the breaker within moments, and is one line.
        let some = match levels.entry(key).or_insert_with(|| Sick::Asked(Untold::from(now))) {
            Sick::Off { said, since } => {
                *since = now;
                if std::mem::replace(said, true) {
                    return;
                }
                None
            }
            Sick::Asked(untold) => match untold.more(now) {
                None => return,
                some => some,
            },
        };
        drop(levels);
        let (level, why) = (named(cache, level), why(fault, error));
        match some {
            None => tracing::warn!(
                target: "traced_cache::breaker",
                cache = cache.name(),
                "{level} fails and is left alone, but for a try now and then: {why}"
            ),
            Some((failures, within)) => tracing::warn!(
                target: "traced_cache::level",
                cache = cache.name(),
                "{level} is asked, but has failed {failures} times within {}s, the last time: {why}",
                within.as_secs()
            ),
        }
    }

    /// A backplane cannot be reached, this time either. One that breaks again and again is told of once a minute.
    pub(crate) fn backplane_down(
        &self,
        cache: &CacheInfo,
        error: &(dyn std::error::Error + 'static),
        now: Instant,
    ) {
        let key = Arc::clone(cache.shared_name());
        let mut planes = self.planes.lock().unwrap_or_else(PoisonError::into_inner);
        if !has_place(&mut planes, &key, now, |plane| plane.since) {
            return;
        }
        match planes.entry(key) {
            Entry::Occupied(mut plane) => {
                let plane = plane.get_mut();
                let early = now.saturating_duration_since(plane.since) < A_LINE_EACH;
                if plane.said {
                    plane.since = now;
                }
                if plane.said || early {
                    return;
                }
                *plane = Plane { said: true, since: now };
            }
            Entry::Vacant(place) => {
                place.insert(Plane { said: true, since: now });
            }
        }
        drop(planes);
        let why = with_causes(error);
        tracing::warn!(
            target: "traced_cache::backplane",
            cache = cache.name(),
            "the backplane is down, and what other nodes change is not heard: {why}"
        );
    }

    /// A backplane that was down is up.
    pub(crate) fn backplane_up(&self, cache: &CacheInfo) {
        let mut planes = self.planes.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(plane) = planes.get_mut(cache.name()) else { return };
        if !std::mem::take(&mut plane.said) {
            return;
        }
        drop(planes);
        tracing::info!(target: "traced_cache::backplane", cache = cache.name(), "the backplane is up again");
    }

    /// A load has failed. Where a stale value stands in, or nobody waits, no caller hears why.
    pub(crate) fn load_failed(&self, cache: &CacheInfo, error: &Error, now: Instant) {
        // Of a process that ends.
        if error.kind() == ErrorKind::LoadAborted {
            return;
        }
        let due = due(&self.loads, Arc::clone(cache.shared_name()), now);
        let Some((failures, within)) = due else { return };
        let why = with_causes(error);
        match failures {
            1 => tracing::warn!(target: "traced_cache::load", cache = cache.name(), "{why}"),
            _ => tracing::warn!(
                target: "traced_cache::load",
                cache = cache.name(),
                "{failures} loads have failed within {}s, the last one: {why}",
                within.as_secs()
            ),
        }
    }

    /// A value has not been sent to a level. Its calls go well, and it never has it.
    pub(crate) fn unsent(&self, cache: &CacheInfo, level: u8, why: fmt::Arguments<'_>, now: Instant) {
        let due = due(&self.unsent, (Arc::clone(cache.shared_name()), level), now);
        let Some((values, within)) = due else { return };
        let level = named(cache, level);
        match values {
            1 => tracing::warn!(
                target: "traced_cache::level",
                cache = cache.name(),
                "{level} does not get a value: {why}"
            ),
            _ => tracing::warn!(
                target: "traced_cache::level",
                cache = cache.name(),
                "{level} has not got {values} values within {}s, the last one: {why}",
                within.as_secs()
            ),
        }
    }
}

/// Of the first one a line is due at once, and then as of [`Untold`].
fn due<K: Ord>(all: &Mutex<BTreeMap<K, Untold>>, key: K, now: Instant) -> Option<(u64, Duration)> {
    let mut all = all.lock().unwrap_or_else(PoisonError::into_inner);
    if !has_place(&mut all, &key, now, |untold| untold.since) {
        return None;
    }
    match all.entry(key) {
        Entry::Occupied(mut untold) => untold.get_mut().more(now),
        Entry::Vacant(place) => {
            place.insert(Untold::from(now));
            Some((1, Duration::ZERO))
        }
    }
}

fn why(fault: LevelFault, error: Option<&(dyn std::error::Error + 'static)>) -> String {
    match (error, fault) {
        (Some(error), _) => with_causes(error),
        (None, LevelFault::Timeout) => {
            "no answer within the level's `budget`: the server hangs or is slow, or the network is".to_owned()
        }
        (None, LevelFault::Panic) => "the provider panicked".to_owned(),
        (None, fault) => fault.as_str().to_owned(),
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

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;
    use crate::heard::Heard;

    /// Lines of this.
    fn lines_of(work: impl FnOnce()) -> Vec<String> {
        let heard = Heard::begin();
        work();
        heard.text().lines().map(|line| line.trim().to_owned()).collect()
    }

    fn begin() -> (Outages, CacheInfo, Instant) {
        (Outages::default(), CacheInfo::for_tests("users", Vec::new()), Instant::now())
    }

    #[test]
    fn a_level_that_fails_now_and_then_is_a_line_a_minute() {
        let (outages, cache, start) = begin();
        let full = io::Error::other("full");
        let lines = lines_of(|| {
            for second in 0..130 {
                let now = start + Duration::from_secs(second);
                outages.failed(&cache, 1, LevelFault::Error, Some(&full), now);
            }
        });
        assert_eq!(
            lines,
            [
                "WARN traced_cache::level: level 2 is asked, but has failed 61 times within 60s, the last time: full cache=\"users\"",
                "WARN traced_cache::level: level 2 is asked, but has failed 60 times within 60s, the last time: full cache=\"users\"",
            ]
        );
    }

    #[test]
    fn an_outage_is_one_line_however_the_level_did_before() {
        let (outages, cache, now) = begin();
        let lines = lines_of(|| {
            outages.failed(&cache, 1, LevelFault::Timeout, None, now);
            outages.breaker(&cache, 1, BreakerState::Open, now);
            for second in 0..130 {
                outages.failed(&cache, 1, LevelFault::Timeout, None, now + Duration::from_secs(second));
            }
            outages.breaker(&cache, 1, BreakerState::Closed, now);
        });
        assert_eq!(
            lines,
            [
                "WARN traced_cache::breaker: level 2 fails and is left alone, but for a try now and then: no answer within the level's `budget`: the server hangs or is slow, or the network is cache=\"users\"",
                "INFO traced_cache::breaker: level 2 is asked again cache=\"users\"",
            ]
        );
    }

    #[test]
    fn failing_loads_are_a_line_at_once_and_then_one_a_minute() {
        let (outages, cache, start) = begin();
        let cause = io::Error::other("no such table");
        let error = Error::with_source(ErrorKind::Load, "the load failed: the database", cause);
        let lines = lines_of(|| {
            for second in 0..70 {
                outages.load_failed(&cache, &error, start + Duration::from_secs(second));
            }
            let ends = Error::new(ErrorKind::LoadAborted, "the load was aborted");
            outages.load_failed(&cache, &ends, start + Duration::from_secs(200));
        });
        assert_eq!(
            lines,
            [
                "WARN traced_cache::load: the load failed: the database: no such table cache=\"users\"",
                "WARN traced_cache::load: 60 loads have failed within 60s, the last one: the load failed: the database: no such table cache=\"users\"",
            ]
        );
    }

    #[test]
    fn a_value_that_a_level_does_not_get_is_a_line_at_once_and_then_one_a_minute() {
        let (outages, cache, start) = begin();
        let lines = lines_of(|| {
            for second in 0..70 {
                let size = 1_000 + second;
                let now = start + Duration::from_secs(second);
                outages.unsent(&cache, 1, format_args!("{size} bytes"), now);
            }
        });
        assert_eq!(
            lines,
            [
                "WARN traced_cache::level: level 2 does not get a value: 1000 bytes cache=\"users\"",
                "WARN traced_cache::level: level 2 has not got 60 values within 60s, the last one: 1060 bytes cache=\"users\"",
            ]
        );
    }

    #[test]
    fn a_backplane_that_is_down_is_a_line_and_so_is_its_return() {
        let (outages, cache, start) = begin();
        let refused = io::Error::other("refused");
        let down = |second| outages.backplane_down(&cache, &refused, start + Duration::from_secs(second));
        let lines = lines_of(|| {
            outages.backplane_up(&cache);
            (0..300).for_each(down);
            outages.backplane_up(&cache);
            // Again within the minute: no line, unless it stays down.
            down(310);
            outages.backplane_up(&cache);
            (320..400).for_each(down);
            outages.backplane_up(&cache);
        });
        let warns = "WARN traced_cache::backplane: the backplane is down, and what other nodes change is not heard: refused cache=\"users\"";
        let is_up = "INFO traced_cache::backplane: the backplane is up again cache=\"users\"";
        assert_eq!(lines, [warns, is_up, warns, is_up]);
    }

    /// Caches come and go, and may all fail at once.
    #[test]
    fn what_is_known_of_failures_is_bounded() {
        let (outages, start) = (Outages::default(), Instant::now());
        let error = Error::new(ErrorKind::Load, "the load failed");
        let fail = |name: &str, now| {
            let cache = CacheInfo::for_tests(name, Vec::new());
            lines_of(|| {
                outages.load_failed(&cache, &error, now);
                outages.failed(&cache, 1, LevelFault::Error, None, now);
                outages.breaker(&cache, 2, BreakerState::Open, now);
                outages.failed(&cache, 2, LevelFault::Error, None, now);
                outages.backplane_down(&cache, &error, now);
            })
        };
        for n in 0..MOST {
            fail(&format!("tenant-{n}"), start);
        }
        assert_eq!(fail("late", start), [""; 0]);
        let known = || {
            let (levels, loads) = (outages.levels.lock().unwrap(), outages.loads.lock().unwrap());
            (levels.len(), loads.len(), outages.planes.lock().unwrap().len())
        };
        assert_eq!(known(), (MOST, MOST, MOST));
        assert_eq!(
            fail("later", start + 2 * A_LINE_EACH).len(),
            3,
            "of the load, of the level that is off, and of the backplane"
        );
        assert_eq!(known(), (2, 1, 1));
    }
}
