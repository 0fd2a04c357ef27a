//! What this node has learned of invalidations of more than one key: the cache's clock for in-process levels.
//!
//! Each piece of news takes the next number, and an object remembers the number of the last one before its load or read
//! began. Where that is still the last, nothing can have overtaken it: all that a hit has to look at. Else the question is
//! whether what came since concerns it.

use std::{
    collections::HashMap,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
};

use crossbeam_utils::CachePadded;

use crate::mark::Reach;

/// Most tags remembered; one more forgets the older half. Documented in docs/semantics.md.
pub(crate) const MAX_TAGS: usize = 10_000;
/// Numbers wrap around; what is this many behind counts as void.
const HORIZON: u32 = 1 << 30;

/// How an entry stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Valid,
    /// No longer fresh.
    Expired,
    /// Invalidated.
    Void,
    /// Some of its tags may have been invalidated: a remote level knows.
    Unsure,
}

impl Verdict {
    pub(crate) fn is_void(self) -> bool {
        self == Self::Void
    }
}

pub(crate) struct News {
    count: CachePadded<AtomicU32>,
    known: Mutex<Known>,
}

struct Known {
    /// What is older is void.
    void: u32,
    /// What is older is no longer fresh.
    stale: u32,
    /// Of what has tags and is older, only a remote level knows whether it is valid.
    unsure: u32,
    /// Tags by the number of their last invalidation.
    tags: HashMap<Box<str>, Tag>,
    /// There is a remote level to ask.
    remote: bool,
    /// Tags of which nothing is remembered any more were invalidated by this number at the latest.
    forgotten: u32,
}

#[derive(Clone, Copy)]
struct Tag {
    purged: Option<u32>,
    expired: Option<u32>,
}

impl Tag {
    /// Its last invalidation of any kind.
    fn last(self, now: u32) -> u32 {
        match (self.purged, self.expired) {
            (Some(a), Some(b)) => {
                if is_before(a, b) {
                    b
                } else {
                    a
                }
            }
            (a, b) => a.or(b).unwrap_or(now),
        }
    }
}

fn is_before(a: u32, b: u32) -> bool {
    a.wrapping_sub(b) > u32::MAX / 2
}

impl News {
    pub(crate) fn new(remote: bool) -> Self {
        let known = Known { void: 0, stale: 0, unsure: 0, tags: HashMap::new(), remote, forgotten: 0 };
        Self { count: CachePadded::new(AtomicU32::new(0)), known: Mutex::new(known) }
    }

    /// The number of the last piece of news.
    #[inline]
    pub(crate) fn count(&self) -> u32 {
        self.count.load(Ordering::Relaxed)
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the next number. Whoever sees it also sees what came with it.
    fn take(&self, news: impl FnOnce(&mut Known, u32)) -> u32 {
        let mut known = self.lock();
        let next = self.count().wrapping_add(1);
        news(&mut known, next);
        known.keep_up(next);
        self.count.store(next, Ordering::Release);
        next
    }

    /// Everything of before is void.
    pub(crate) fn void(&self) -> u32 {
        self.take(|known, now| {
            known.void = now;
            known.tags.clear();
        })
    }

    /// Nothing of before is fresh.
    pub(crate) fn expire(&self) {
        self.take(|known, now| known.stale = now);
    }

    /// Tags have been invalidated, it is not known which.
    pub(crate) fn unsure(&self) {
        self.take(|known, now| known.unsure = now);
    }

    /// These tags have been invalidated.
    pub(crate) fn tags<'a>(&self, tags: impl IntoIterator<Item = &'a str>, reach: Reach) {
        self.take(|known, now| {
            for tag in tags {
                known.invalidate(tag, reach, now);
            }
        });
    }

    /// How an entry stands that was valid when `seen` was the last number.
    pub(crate) fn verdict(&self, seen: u32, tags: &[Box<str>]) -> Verdict {
        if seen == self.count() {
            return Verdict::Valid;
        }
        match self.lock().verdict(seen, tags) {
            (_, true) => Verdict::Unsure,
            (verdict, false) => verdict,
        }
    }

    /// The same of one that a remote level calls valid: it may not have heard yet of what this node has expired.
    pub(crate) fn confirmed(&self, seen: u32, tags: &[Box<str>]) -> Verdict {
        self.lock().verdict(seen, tags).0
    }
}

impl Known {
    /// By what is known, and whether a remote level may know more.
    fn verdict(&self, seen: u32, tags: &[Box<str>]) -> (Verdict, bool) {
        if is_before(seen, self.void) {
            return (Verdict::Void, false);
        }
        let mut verdict = if is_before(seen, self.stale) { Verdict::Expired } else { Verdict::Valid };
        let mut unsure = false;
        for tag in tags {
            match self.tags.get(tag) {
                Some(Tag { purged: Some(at), .. }) if is_before(seen, *at) => return (Verdict::Void, false),
                Some(Tag { expired: Some(at), .. }) if is_before(seen, *at) => verdict = Verdict::Expired,
                Some(_) => {}
                None if is_before(seen, self.forgotten) => return (Verdict::Void, false),
                None => {}
            }
            unsure |= is_before(seen, self.unsure);
        }
        (verdict, unsure)
    }

    fn invalidate(&mut self, tag: &str, reach: Reach, now: u32) {
        if !self.tags.contains_key(tag) && self.tags.len() >= MAX_TAGS {
            self.forget_half(now);
        }
        let entry = match self.tags.get_mut(tag) {
            Some(entry) => entry,
            None => self.tags.entry(tag.into()).or_insert(Tag { purged: None, expired: None }),
        };
        match reach {
            Reach::Purge => entry.purged = Some(now),
            Reach::Expire => entry.expired = Some(now),
        }
    }

    /// Forgets those whose last invalidation is the longest ago: what is older than that is void from now on, or a remote
    /// level has to be asked.
    fn forget_half(&mut self, now: u32) {
        let mut ages: Vec<u32> = self.tags.values().map(|tag| now.wrapping_sub(tag.last(now))).collect();
        let middle = ages.len() / 2;
        let (_, limit, _) = ages.select_nth_unstable(middle);
        let limit = *limit;
        self.tags.retain(|_, tag| now.wrapping_sub(tag.last(now)) < limit);
        let floor = now.wrapping_sub(limit);
        let known = if self.remote { &mut self.unsure } else { &mut self.forgotten };
        if is_before(*known, floor) {
            *known = floor;
        }
    }

    /// Nothing may fall so far behind that a comparison would turn around.
    fn keep_up(&mut self, now: u32) {
        let horizon = now.wrapping_sub(HORIZON);
        let old = |at: u32| now.wrapping_sub(at) > HORIZON;
        if old(self.void) {
            self.void = horizon;
        }
        for floor in [&mut self.stale, &mut self.unsure, &mut self.forgotten] {
            if is_before(*floor, self.void) {
                *floor = self.void;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tags(tags: &[&str]) -> Vec<Box<str>> {
        tags.iter().map(|tag| Box::from(*tag)).collect()
    }

    #[test]
    fn only_what_is_concerned_is_invalid() {
        let news = News::new(false);
        let seen = news.count();
        let verdict = |of: &[&str]| news.verdict(seen, &tags(of));
        news.tags(["x"], Reach::Purge);
        assert_eq!(
            (verdict(&["x"]), verdict(&["y"]), verdict(&[])),
            (Verdict::Void, Verdict::Valid, Verdict::Valid)
        );
        news.tags(["y"], Reach::Expire);
        assert_eq!((verdict(&["y"]), verdict(&["x", "y"])), (Verdict::Expired, Verdict::Void));
        assert_eq!(news.verdict(news.count(), &tags(&["x", "y"])), Verdict::Valid);
        news.expire();
        assert_eq!(verdict(&[]), Verdict::Expired);
        news.void();
        assert_eq!(verdict(&[]), Verdict::Void);
        assert_eq!(news.verdict(news.count(), &[]), Verdict::Valid);
    }

    #[test]
    fn what_is_not_known_is_asked_for() {
        let news = News::new(true);
        let seen = news.count();
        news.unsure();
        assert_eq!(news.verdict(seen, &tags(&["x"])), Verdict::Unsure);
        assert_eq!(news.verdict(seen, &[]), Verdict::Valid, "tags only");
        assert_eq!(news.confirmed(seen, &tags(&["x"])), Verdict::Valid);
        news.tags(["x"], Reach::Expire);
        assert_eq!(news.confirmed(seen, &tags(&["x"])), Verdict::Expired);
    }

    #[test]
    fn a_tag_that_is_forgotten_takes_its_entries_along() {
        for (remote, expected) in [(false, Verdict::Void), (true, Verdict::Unsure)] {
            let news = News::new(remote);
            let seen = news.count();
            for n in 0..=MAX_TAGS {
                news.tags([n.to_string().as_str()], Reach::Purge);
            }
            assert!(news.lock().tags.len() <= MAX_TAGS);
            assert_eq!(news.verdict(seen, &tags(&["0"])), expected);
            assert_eq!(news.verdict(news.count(), &tags(&["0"])), Verdict::Valid);
            assert_eq!(news.verdict(seen, &tags(&[&MAX_TAGS.to_string()])), Verdict::Void);
        }
    }

    #[test]
    fn numbers_wrap_around() {
        let news = News::new(false);
        let turn = |to: u32| news.count.store(to, Ordering::Relaxed);
        for at in [u32::MAX / 2 - 1, u32::MAX - 1, 0] {
            turn(at);
            news.void();
            let seen = news.count();
            assert_eq!(news.verdict(seen, &[]), Verdict::Valid);
            news.tags(["x"], Reach::Purge);
            news.tags(["y"], Reach::Purge);
            assert_eq!(news.verdict(seen, &tags(&["x"])), Verdict::Void, "at {at}");
            assert_eq!(news.verdict(news.count(), &tags(&["x"])), Verdict::Valid);
        }
    }
}
