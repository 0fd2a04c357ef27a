//! Invalidations of more than a key: by tag, and of every entry's freshness.

use std::{
    sync::{
        Arc, PoisonError, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use crate::{
    Delivery, Entry, Error, ErrorKind, Result, Scope, Stamp, Value, inner::Inner, mark::Reach, news::Verdict,
    pending::Pending, tier::Tier, write::Written,
};

/// Longest tag, in bytes.
pub(crate) const TAG_MAX: usize = 200;
/// Most tags of an entry.
pub(crate) const TAGS_MAX: usize = 64;

impl<T: Value> Inner<T> {
    /// The level whose word counts on which tags have been invalidated: the nearest remote one.
    pub(crate) fn authority(&self) -> Option<&Tier> {
        self.tiers.iter().find(|tier| tier.is_marked())
    }

    /// How an entry stands.
    pub(crate) fn verdict(&self, entry: &Entry<T>) -> Verdict {
        self.verdict_of(entry.seen, entry.stamp, entry.tags())
    }

    pub(crate) fn verdict_of(&self, seen: u32, stamp: Stamp, tags: &[Box<str>]) -> Verdict {
        match (self.news.verdict(seen, tags), self.authority()) {
            (Verdict::Unsure, Some(tier)) => match tier.ledger.judge(stamp, tags) {
                Verdict::Valid => self.news.confirmed(seen, tags),
                other => other,
            },
            (verdict, _) => verdict,
        }
    }

    /// Whether an entry may be shown to somebody who asked after its load began.
    pub(crate) async fn believes(&self, entry: &Entry<T>) -> bool {
        self.surely(entry).await == Verdict::Valid
    }

    /// How an entry stands; a remote level is asked about its tags where they are not known.
    pub(crate) async fn surely(&self, entry: &Entry<T>) -> Verdict {
        if self.verdict(entry) == Verdict::Unsure {
            self.learn_tags(entry.tags().iter().map(|tag| &**tag)).await;
        }
        self.verdict(entry)
    }

    /// Asks the nearest remote level about tags, as far as it has not told yet.
    pub(crate) async fn learn_tags<'a>(&self, tags: impl Iterator<Item = &'a str>) {
        let Some(tier) = self.authority() else { return };
        let tags = tier.ledger.unknown(tags);
        if !tags.is_empty() {
            tier.read_tags(&self.around, &tags).await;
        }
    }

    /// What is wrong with tags, if anything.
    pub(crate) fn check_tags(&self, tags: &[Box<str>]) -> Result<()> {
        let refuse = |value: String, fix: &str| Err(Error::new(ErrorKind::Tag, format!("{value}: {fix}")));
        if tags.is_empty() {
            return Ok(());
        }
        if !self.tagging {
            return refuse("tags".to_owned(), "this cache was built without tags: `Builder::tags(true)`");
        }
        if tags.len() > TAGS_MAX {
            return refuse(
                format!("{} tags", tags.len()),
                &format!("at most {TAGS_MAX} for one entry or call"),
            );
        }
        match tags.iter().map(|tag| tag.len()).find(|len| *len == 0 || *len > TAG_MAX) {
            Some(len) => refuse(format!("a tag of {len} bytes"), &format!("a tag has 1 to {TAG_MAX} bytes")),
            None => Ok(()),
        }
    }

    /// How long marks of tags are needed: twice as long as any entry lives, so that none outlives them.
    pub(crate) fn mark_life(&self, entry: Option<&Entry<T>>) -> Duration {
        let own = entry.map_or(Duration::ZERO, |entry| entry.timeline.lifetime());
        self.policy().max_age().saturating_add(self.policy().jitter).max(own).saturating_mul(2)
    }

    /// Invalidates tags at every level. Each must be one.
    pub(crate) async fn reach_tags(
        self: &Arc<Self>,
        mut tags: Vec<Box<str>>,
        reach: Reach,
    ) -> Result<Delivery> {
        self.check_open()?;
        self.check_scopes("a tag")?;
        tags.sort_unstable();
        tags.dedup();
        self.check_tags(&tags)?;
        let (written, number, _wide) = self.reach(&tags, reach).await;
        self.stats().invalidated(Scope::Tag, tags.len());
        let told = self.tell_tags(&tags, reach, number).await;
        written.told(told).end()
    }

    /// Ends the freshness of every entry at every level.
    pub(crate) async fn expire_everything(self: &Arc<Self>) -> Result<Delivery> {
        self.check_open()?;
        self.check_scopes("`expire_all`")?;
        let (written, _, _wide) = self.reach(&[], Reach::Expire).await;
        self.stats().invalidated(Scope::Cache, 1);
        let told = self.tell_expire().await;
        written.told(told).end()
    }

    /// Tells the levels, deepest first; without tags, that every entry is expired. Answers what came of it, the number of
    /// the invalidation at the nearest remote level, and the invalidation itself, which is under way until other nodes have
    /// been told.
    async fn reach(self: &Arc<Self>, tags: &[Box<str>], reach: Reach) -> (Written, Stamp, Arc<Wide>) {
        let mut written = Written::new();
        let mut number = Stamp::default();
        let mut reaching = Reaching { inner: self, wide: self.begin_wide(tags, reach), ended: false };
        let life = self.mark_life(None);
        let decides = self.authority().map(|tier| tier.index);
        for tier in self.remote().rev() {
            let result = tier.advance(&self.around, tags, reach, life).await.map(|stamp| {
                if decides == Some(tier.index) {
                    number = stamp;
                }
            });
            if result.is_err() {
                reaching.wide.keep(&tier.pending);
            }
            written.take(tier, result);
        }
        reaching.ended = true;
        reaching.wide.past_levels();
        (written, number, Arc::clone(&reaching.wide))
    }

    /// Sees to it that the tags of entries have marks at a level that is being filled with them.
    pub(crate) async fn touch(&self, tier: &Tier, entries: &[&Entry<T>]) {
        let mut life = Duration::ZERO;
        let mut tags: Vec<Box<str>> = Vec::new();
        for entry in entries {
            life = life.max(self.mark_life(Some(entry)));
            tags.extend(entry.tags().iter().cloned());
        }
        // Marks are not lengthened with every entry.
        let needed_until = self.now().after(life / 2);
        tags.retain(|tag| tier.ledger.needs_touch(tag, needed_until));
        if tags.is_empty() || tier.provider().marks().is_none() {
            return;
        }
        tags.sort_unstable();
        tags.dedup();
        tier.touch_tags(&self.around, &tags, life).await;
    }
}

/// An invalidation of tags, or of all freshness, under way. Its end is the in-process levels' turn. If its caller leaves in
/// the middle, a remote level may not have heard of it: they all hear of it once more.
struct Reaching<'a, T: Value> {
    inner: &'a Arc<Inner<T>>,
    wide: Arc<Wide>,
    ended: bool,
}

impl<T: Value> Drop for Reaching<'_, T> {
    fn drop(&mut self) {
        let (inner, wide) = (self.inner, &self.wide);
        if !self.ended {
            inner.remote().for_each(|tier| wide.keep(&tier.pending));
        }
        if wide.tags.is_empty() {
            inner.news.expire();
        } else {
            inner.news.tags(wide.tags.iter().map(|tag| &**tag), wide.reach);
        }
        inner.replay();
    }
}

/// An invalidation of tags, or without any of the whole cache, under way.
pub(crate) struct Wide {
    tags: Box<[Box<str>]>,
    reach: Reach,
    /// Only other nodes have yet to be told.
    past_levels: AtomicBool,
}

impl Wide {
    /// Each level has heard, or will from its journal.
    pub(crate) fn past_levels(&self) {
        self.past_levels.store(true, Ordering::Release);
    }

    /// It has been ended in the middle: whoever may not have heard of it is to hear. `level`: the journal is one's.
    pub(crate) fn keep_open(&self, pending: &Pending, level: bool) {
        if !level || !self.past_levels.load(Ordering::Acquire) {
            self.keep(pending);
        }
    }

    /// A level hears of it when it is back. What ends all freshness is widened to a clear: until the level has heard, it must
    /// not serve anything fresh.
    pub(crate) fn keep(&self, pending: &Pending) {
        if self.tags.is_empty() {
            pending.add_clear();
        } else {
            pending.add_tags(&self.tags, self.reach);
        }
    }
}

impl<T: Value> Inner<T> {
    /// `close` finds it, should it end the call.
    pub(crate) fn begin_wide(&self, tags: &[Box<str>], reach: Reach) -> Arc<Wide> {
        let wide = Arc::new(Wide { tags: tags.into(), reach, past_levels: AtomicBool::new(false) });
        let mut under_way = self.under_way.lock().unwrap_or_else(PoisonError::into_inner);
        under_way.retain(|call| call.strong_count() > 0);
        under_way.push(Arc::downgrade(&wide));
        wide
    }

    /// Those that have not ended.
    pub(crate) fn wide_under_way(&self) -> Vec<Arc<Wide>> {
        let under_way = self.under_way.lock().unwrap_or_else(PoisonError::into_inner);
        under_way.iter().filter_map(Weak::upgrade).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        Access, Clock, Level, Loaded, Outcome, Policy, Stance, TracedCache,
        clock::Time,
        testing::{Chaos, ChaosOp, Fault, MapProvider, ObjectsOnly, conformance::object_store::tests::fifo},
    };

    const S: Duration = Duration::from_secs(1);

    type Store = Arc<Chaos<Arc<MapProvider>>>;

    /// Two nodes over one store, which marks: with memory, or without.
    fn two(memory: bool) -> ([(TracedCache<u64>, Store); 2], Time) {
        let (clock, time) = Clock::manual();
        let store = Arc::new(MapProvider::new().leasing().marking().clock(clock.clone()));
        let nodes = [(); 2].map(|()| {
            let level = Arc::new(Chaos::new(Arc::clone(&store)).clock(clock.clone()));
            let builder = TracedCache::builder("tagged").clock(clock.clone());
            let builder = if memory { builder.level(ObjectsOnly(fifo(1_000))) } else { builder };
            let cache = builder
                .level(Level::new(Arc::clone(&level)).stance(Stance::Absorb).breaker(None))
                .policy(Policy::ttl(100 * S).grace(1_000 * S));
            (cache.build().unwrap(), level)
        });
        (nodes, time)
    }

    #[tokio::test]
    async fn what_is_expired_here_stays_so_when_a_level_that_has_not_heard_calls_it_valid() {
        for all in [false, true] {
            let ([(a, level), (b, _)], time) = two(true);
            assert!(a.set_loaded("k", Loaded::value(1).tag("t")).await.unwrap().is_confirmed());
            level.set(ChaosOp::Swap, Fault::Fail);
            level.set(ChaosOp::Put, Fault::Fail);
            let expired = if all { a.expire_all().await } else { a.expire_tag("t").await };
            assert!(!expired.unwrap().is_confirmed());
            // That something has been invalidated shows with the next look at the level.
            assert!(b.invalidate_tag("other").await.unwrap().is_confirmed());
            time.advance(S);
            assert!(
                a.inner.tiers[1]
                    .read_mark(&a.inner.around)
                    .await
                    .is_ok_and(|learned| { !learned.is_nothing() && learned.void().is_none() })
            );
            let found = a.access(Access::AllowStale).look("k").await.unwrap();
            assert_eq!((found.outcome(), found.level()), (Outcome::Stale, Some(0)), "all: {all}");
        }
    }

    #[tokio::test]
    async fn what_others_have_purged_does_not_stand_in_while_an_expiry_of_its_tag_is_pending() {
        let ([(a, _), (b, level)], time) = two(false);
        assert!(a.set_loaded("k", Loaded::value(1).tag("t")).await.unwrap().is_confirmed());
        assert!(b.look("k").await.unwrap().is_hit());
        level.set(ChaosOp::Swap, Fault::Fail);
        assert!(!b.expire_tag("t").await.unwrap().is_confirmed());
        let stands_in = async || b.access(Access::AllowStale).look("k").await.unwrap().outcome();
        assert_eq!(stands_in().await, Outcome::Stale);
        assert!(a.invalidate_tag("t").await.unwrap().is_confirmed());
        time.advance(S);
        assert_eq!(stands_in().await, Outcome::Miss);
    }

    #[tokio::test]
    async fn after_a_clear_an_invalidation_leaves_what_other_tags_have() {
        let ([(a, _), (b, _)], time) = two(false);
        for cleared in [false, true] {
            if cleared {
                assert!(a.clear().await.unwrap().is_confirmed());
            }
            assert!(a.set_loaded("k", Loaded::value(1).tag("t")).await.unwrap().is_confirmed());
            assert!(a.invalidate_tag("other").await.unwrap().is_confirmed());
            time.advance(S);
            assert!(b.look("k").await.unwrap().is_hit(), "cleared: {cleared}");
        }
        assert!(b.invalidate_tag("t").await.unwrap().is_confirmed());
        time.advance(S);
        assert_eq!(a.look("k").await.unwrap().outcome(), Outcome::Miss);
    }

    #[tokio::test]
    async fn what_is_expired_by_a_tag_stands_in_for_the_whole_of_its_own_life() {
        let ([(a, _), (b, _)], time) = two(false);
        let long = Loaded::value(1).tag("t").grace(10_000 * S);
        assert!(a.set_loaded("k", long).await.unwrap().is_confirmed());
        assert!(a.expire_tag("t").await.unwrap().is_confirmed());
        // Beyond twice the longest life under the policy.
        time.advance(9_999 * S);
        assert_eq!(b.access(Access::AllowStale).look("k").await.unwrap().outcome(), Outcome::Stale);
    }
}
