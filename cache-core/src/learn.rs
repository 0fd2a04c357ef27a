//! Reading and writing the marks of a remote level.

use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use scopeguard::ScopeGuard;

use crate::{
    BoxError, LevelOp, Moment, Put, RawKey, Stamp, Swap, Swapped,
    ledger::{Change, Ledger, TagCopy},
    mark::{Mark, Reach, TagMark},
    tier::{Around, Failure, Place, Tier, flatten},
};

/// How often a remote level's mark is read, along with a look-up or on its own: the period within which invalidations of
/// more than a key, made by another node, show.
pub(crate) const MARK_PERIOD: Duration = Duration::from_secs(1);
/// How long entries with tags are believed while the level does not say what its mark is.
pub(crate) const DOUBT_AFTER: Duration = Duration::from_secs(10);
/// Tries to swap marks before the level counts as not well. Each that fails is one that succeeded for another node.
const TRIES: usize = 64;
/// Reads of a mark that is told to have changed meanwhile, before a write that waits for it goes without.
pub(crate) const READS: usize = 8;

/// What answers have brought to light, and memory has heeded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Learned {
    is_news: bool,
    /// The number of the news that all of before is void.
    void: Option<u32>,
}

impl Learned {
    pub(crate) const NOTHING: Self = Self { is_news: false, void: None };

    /// Has been heeded; `void`: as news of that number, by which all of before is void.
    pub(crate) const fn news(void: Option<u32>) -> Self {
        Self { is_news: true, void }
    }

    pub(crate) fn is_nothing(self) -> bool {
        !self.is_news
    }

    /// That from which on objects count, if all of before is void.
    pub(crate) fn void(self) -> Option<u32> {
        self.void
    }

    /// The one and, later, the other.
    pub(crate) fn and(self, other: Self) -> Self {
        Self { is_news: self.is_news || other.is_news, void: other.void.or(self.void) }
    }
}

impl Tier {
    /// Takes the mark that a read brought.
    pub(crate) async fn learn(&self, around: &Around, raw: Option<Bytes>, changes: u64) -> Learned {
        let (before, moving) = (self.ledger.home(), self.ledger.moving());
        // A mark of the epoch that the level comes from is that of the same store, reached in another way.
        let moved = moving.is_some_and(|epoch| {
            raw.as_deref().and_then(Mark::decode).is_none_or(|mark| mark.epoch != epoch)
        });
        let elsewhere = match before {
            Some(before) => before != self.incarnation(),
            // A node that has only removed keys so far has read no mark.
            None => self.has_told_another(),
        };
        if moved || elsewhere {
            // Before anybody believes what this store has: it may be older than what this node has told the one before.
            self.tell_again(around);
        }
        let learned = self.learn_mark(around, raw, changes).await;
        let arrived = moving.is_some_and(|epoch| self.ledger.has_arrived_from(epoch));
        if arrived || before.is_some_and(|before| self.ledger.home() != Some(before)) {
            // Also what has been told the one before in the meantime.
            self.tell_again(around);
        }
        learned
    }

    async fn learn_mark(&self, around: &Around, raw: Option<Bytes>, changes: u64) -> Learned {
        let home = self.incarnation();
        if let Some(learned) = self.believe(around, raw.as_ref(), home, changes) {
            return learned;
        }
        // The mark is lost, damaged, rolled back, or of a store that has since been restarted or replaced. Whatever it
        // said, no entry of before may be believed.
        let tries = self.ledger.tries();
        // Whoever has waited for another's try has waited long enough, whatever came of it.
        let turn = around.clock.timeout(self.budget(), self.ledger.creating.lock()).await;
        let Some(_turn) = turn else {
            self.ledger.doubt();
            return Learned::NOTHING;
        };
        if self.ledger.has_changed_since(changes) || self.ledger.tries() != tries {
            return Learned::NOTHING;
        }
        let learned = self.begin_epoch(around, raw, changes).await;
        self.ledger.tried();
        learned.unwrap_or_else(|_failure| around.heed(self.index, self.ledger.lost(home, changes)))
    }

    /// Takes a mark that is as it should be; `None` if it is not.
    fn believe(&self, around: &Around, raw: Option<&Bytes>, home: u64, changes: u64) -> Option<Learned> {
        let raw = raw?;
        // Written to this very state of the store, or nobody can tell.
        let mark = Mark::decode(raw).filter(|mark| mark.is_of(home))?;
        if !self.ledger.arrives(&mark, changes) || self.ledger.is_rolled_back(&mark, changes) {
            return None;
        }
        // Copied: it is kept, and the buffer that it may be a part of is not to be.
        let change = self.ledger.adopt(mark, Bytes::copy_from_slice(raw), home, changes, around.clock.now());
        Some(around.heed(self.index, change))
    }

    /// Gives the cache a mark where there is none that can be believed. Of several who do so at once, where the level can
    /// swap, the first one counts.
    async fn begin_epoch(
        &self,
        around: &Around,
        mut seen: Option<Bytes>,
        changes: u64,
    ) -> Result<Learned, Failure> {
        let swaps = self.provider().marks().is_some();
        let key = RawKey::marker(around.cache, &around.name);
        for _ in 0..TRIES {
            let here = self.place();
            let home = here.home;
            let found = seen.as_deref().and_then(Mark::decode);
            let used = found.is_some_and(|mark| mark.home == home);
            let mark = match found.filter(|mark| self.keeps && self.ledger.goes_on(mark)) {
                Some(mark) => Mark { home, ..mark },
                None => self.ledger.first(home, used),
            };
            let bytes = mark.encode();
            // A swap has to name what it replaces, and this was found but not handed out.
            if !swaps || seen.as_ref().is_some_and(Bytes::is_empty) {
                return self.put_mark(around, here, mark, || ()).await;
            }
            let swap = Swap { key, seen, bytes: bytes.clone(), ttl: Duration::MAX };
            let sent = around.clock.now();
            match self.swap(around, &[swap]).await? {
                Swapped::Done => {
                    let change = self.wrote(here, (mark, bytes), Vec::new(), changes, sent, false)?;
                    return Ok(around.heed(self.index, change));
                }
                Swapped::Other { now, .. } => {
                    if let Some(learned) = self.believe(around, now.as_ref(), home, changes) {
                        return Ok(learned);
                    }
                    seen = now;
                }
            }
        }
        Err(Failure::busy())
    }

    /// Gives the cache a new epoch at this level: everything stored in it before is void.
    pub(crate) async fn new_epoch(&self, around: &Around) -> Result<(), Failure> {
        if !self.is_marked() {
            // Bare values carry no epoch. After more invalidations than its journal has room for, such a level is not read
            // any more.
            return Err(Failure::Skipped);
        }
        for _ in 0..TRIES {
            let here = self.place();
            let note = || self.note_tags(around, &[], Reach::Purge);
            self.put_mark(around, here, Mark::new(here.home), note).await?;
            // Which state of the store this is may be known only once the first call of all has made a connection.
            if self.incarnation() == here.home {
                break;
            }
        }
        Ok(())
    }

    /// `note` is called once the mark is stored, and before it is known which store the level has by then: see
    /// [`Tier::noted`].
    async fn put_mark(
        &self,
        around: &Around,
        here: Place,
        mark: Mark,
        note: impl FnOnce(),
    ) -> Result<Learned, Failure> {
        let bytes = mark.encode();
        let key = RawKey::marker(around.cache, &around.name);
        let put = [Put { key, bytes: bytes.clone(), ttl: Duration::MAX }];
        let (changes, sent) = (self.ledger.changes(), around.clock.now());
        let results = flatten(
            self.call_about_marks(around, LevelOp::Put, self.whom([key]), self.provider().put_many(&put))
                .await,
            1,
        );
        for result in results {
            result?;
        }
        note();
        let change = self.wrote(here, (mark, bytes), Vec::new(), changes, sent, false)?;
        Ok(around.heed(self.index, change))
    }

    /// Makes sure that the epoch is known, for writers that have read nothing.
    pub(crate) async fn know_epoch(&self, around: &Around) {
        if !self.is_marked() || self.ledger.is_current(self.incarnation()) {
            return;
        }
        // Boxed: it hardly happens, and every write would carry its size.
        self.read_current(around).boxed().await;
    }

    /// Reads the mark, and again where another node has told of a change meanwhile.
    async fn read_current(&self, around: &Around) {
        for _ in 0..READS {
            if self.read_mark(around).await.is_err() || !self.ledger.is_outdated() {
                break;
            }
        }
    }

    /// Reads the mark, and again where it is not clear what to make of it.
    pub(crate) async fn read_mark(&self, around: &Around) -> Result<Learned, Failure> {
        let mut learned = Learned::NOTHING;
        let mut failure = Failure::Mute;
        for _ in 0..2 {
            let changes = self.ledger.changes();
            let marker = [RawKey::marker(around.cache, &around.name)];
            let read = self.looking(self.get_raw(around, &marker)).await.pop();
            match read.map_or(Err(Failure::Skipped), mark_of) {
                Ok(raw) => {
                    learned = learned.and(self.learn(around, raw.clone(), changes).await);
                    if !self.ledger.is_at_odds_with(raw.as_deref()) {
                        return Ok(learned);
                    }
                }
                Err(failed) => {
                    // Whoever reads next asks again, not only when the period is over.
                    self.ledger.doubt();
                    failure = failed;
                    break;
                }
            }
        }
        // What has been learned counts from here on.
        if learned.is_nothing() { Err(failure) } else { Ok(learned) }
    }

    /// A call that asks for the mark because it was due. Whoever leaves it has not looked, and the next one does.
    pub(crate) async fn looking<A>(&self, call: impl Future<Output = A>) -> A {
        let left = scopeguard::guard(&self.ledger, Ledger::doubt);
        let answer = call.await;
        ScopeGuard::into_inner(left);
        answer
    }

    /// Reads the marks of tags that are not known, in one round trip unless something is invalidated meanwhile.
    pub(crate) async fn read_tags(&self, around: &Around, tags: &[Box<str>]) -> Learned {
        let mut learned = Learned::NOTHING;
        for _ in 0..3 {
            let at = self.ledger.snapshot();
            let mut keys = vec![RawKey::marker(around.cache, &around.name)];
            keys.extend(tags.iter().map(|tag| RawKey::tag(around.cache, &around.name, tag)));
            let mut answers = self.get_raw(around, &keys).await.into_iter();
            let Some(Ok(raw)) = answers.next().map(mark_of) else { break };
            learned = learned.and(self.learn(around, raw, at.changes).await);
            let Some((mark, _)) = self.ledger.mark() else { break };
            let copies = tags.iter().zip(answers).filter_map(|(tag, raw)| {
                let raw = raw.ok()?;
                Some((tag.clone(), tag_copy(raw, &mark, Moment::ORIGIN)))
            });
            // Marks of tags are raised before the cache's own: those that were read while that did not move are of it.
            if self.ledger.take_tags(copies.collect(), at) {
                break;
            }
        }
        learned
    }

    /// Takes the next number for an invalidation: of these tags, or of every entry's freshness. A level that cannot swap
    /// gives the cache a new epoch instead. `life`: how long the marks of tags are needed. Answers the number there, and the
    /// epoch that it belongs to.
    pub(crate) async fn advance(
        &self,
        around: &Around,
        tags: &[Box<str>],
        reach: Reach,
        life: Duration,
    ) -> Result<Stamp, Failure> {
        if self.provider().marks().is_none() {
            self.new_epoch(around).await?;
            around.heed(self.index, Change::Epoch);
            return Ok(self.ledger.stamp());
        }
        // Those of this node take turns, rather than make each other try again.
        let turn = around.clock.timeout(self.budget(), self.ledger.advancing.lock()).await;
        if turn.is_none() {
            return Err(Failure::busy());
        }
        for _ in 0..TRIES {
            let here = self.place();
            if !self.ledger.is_of(here.home) {
                self.read_mark(around).await?;
            }
            let at = self.ledger.snapshot();
            let Some((mark, raw)) = self.ledger.mark() else { return Err(Failure::Mute) };
            let until = around.clock.now().after(life);
            let mut next = mark.next();
            if tags.is_empty() {
                next.expired = next.sequence;
            }
            // What a missing mark of a tag stands for is right only while the cache's mark is what it is known to be.
            let mut swaps = vec![still(around, &raw)];
            let mut copies = Vec::with_capacity(tags.len());
            for tag in tags {
                let known = self.ledger.copy(tag);
                let old = known.as_ref().map_or_else(|| TagMark::unknown(&mark), |copy| copy.mark);
                let new = old.raised(reach, next.sequence);
                let bytes = new.encode();
                let key = RawKey::tag(around.cache, &around.name, tag);
                // Entries with a longer life of their own may have it: the level keeps that.
                let until = known.as_ref().map_or(until, |copy| until.max(copy.until));
                let seen = known.and_then(|copy| copy.raw);
                swaps.push(Swap { key, seen, bytes: bytes.clone(), ttl: life });
                copies.push((tag.clone(), TagCopy { mark: new, raw: Some(bytes), until }));
            }
            let bytes = next.encode();
            swaps.push(Swap { bytes: bytes.clone(), ..still(around, &raw) });
            let needed = if swaps[1..].iter().all(|swap| swap.seen.is_some()) { &swaps[1..] } else { &swaps };
            let skipped = swaps.len() - needed.len();
            let sent = around.clock.now();
            let (place, now) = match self.swap(around, needed).await? {
                Swapped::Done => {
                    self.note_tags(around, tags, reach);
                    if !self.is_at(here) {
                        return Err(Failure::left());
                    }
                    let change = self.wrote(here, (next, bytes), copies, at.changes, sent, true)?;
                    around.heed(self.index, change);
                    return Ok(self.ledger.stamp());
                }
                Swapped::Other { at, now } => (at + skipped, now),
            };
            match place.checked_sub(1).and_then(|place| Some((place, tags.get(place)?))) {
                Some((place, tag)) => {
                    // Those before it are raised already, or will say so themselves.
                    copies.truncate(place);
                    copies.push((tag.clone(), tag_copy(now, &mark, Moment::ORIGIN)));
                    self.ledger.take_tags(copies, at);
                }
                None => {
                    // Also after another epoch: what has been stored since that began is not void by it.
                    self.learn(around, now, at.changes).await;
                }
            }
        }
        Err(Failure::busy())
    }

    /// Sees to it that tags have marks which the level keeps for at least `life`: an entry with a tag that has none is void
    /// with the next invalidation of any tag. One round trip, where the marks are made here.
    pub(crate) async fn touch_tags(&self, around: &Around, tags: &[Box<str>], life: Duration) {
        let until = around.clock.now().after(life);
        let mut open: Vec<&Box<str>> = tags.iter().collect();
        // Each try makes all of them, or tells what one of them is.
        for _ in 0..tags.len() + 2 {
            open.retain(|tag| self.ledger.needs_touch(tag, until));
            let at = self.ledger.snapshot();
            let (Some((mark, raw)), false) = (self.ledger.mark(), open.is_empty()) else { break };
            let mut swaps = vec![still(around, &raw)];
            let mut copies = Vec::with_capacity(open.len());
            for tag in &open {
                let (new, seen) = match self.ledger.copy(tag) {
                    Some(TagCopy { mark, raw: Some(raw), .. }) => (mark, Some(raw)),
                    _ => (TagMark::unknown(&mark), None),
                };
                // Not what is there: that may be of an epoch that a clear has ended, and stands for nothing in this one.
                let bytes = new.encode();
                let key = RawKey::tag(around.cache, &around.name, tag);
                swaps.push(Swap { key, seen, bytes: bytes.clone(), ttl: life });
                copies.push(((*tag).clone(), TagCopy { mark: new, raw: Some(bytes), until }));
            }
            match self.swap(around, &swaps).await {
                Ok(Swapped::Done) => {
                    self.ledger.take_tags(copies, at);
                    break;
                }
                Ok(Swapped::Other { at: 0, now }) => {
                    self.learn(around, now, at.changes).await;
                }
                Ok(Swapped::Other { at: place, now }) => {
                    let copy = tag_copy(now, &mark, Moment::ORIGIN);
                    copies.truncate(place - 1);
                    copies.extend(open.get(place - 1).map(|tag| ((*tag).clone(), copy)));
                    self.ledger.take_tags(copies, at);
                }
                Err(_) => break,
            }
        }
    }

    async fn swap(&self, around: &Around, swaps: &[Swap<'_>]) -> Result<Swapped, Failure> {
        let call = async {
            vec![match self.provider().marks() {
                Some(marks) => marks.swap(swaps).await,
                None => Err(BoxError::from("the provider swaps no marks")),
            }]
        };
        // Several servers, where each has marks of its own: one that hangs must not count against another.
        let whom = self.whom(swaps.iter().map(|swap| swap.key));
        flatten(self.call_about_marks(around, LevelOp::Swap, whom, call).await, 1)
            .pop()
            .unwrap_or(Err(Failure::Skipped))
    }
}

/// A cache's mark as a level has answered. What is there and is not handed out, as it is too large say, is as good as
/// damaged.
pub(crate) fn mark_of(answer: Result<Option<Bytes>, Failure>) -> Result<Option<Bytes>, Failure> {
    answer.or_else(|failure| failure.or_nothing_readable().map(Some))
}

/// Makes sure that the cache's mark is what it is known to be.
fn still<'a>(around: &'a Around, raw: &Bytes) -> Swap<'a> {
    let key = RawKey::marker(around.cache, &around.name);
    Swap { key, seen: Some(raw.clone()), bytes: raw.clone(), ttl: Duration::MAX }
}

fn tag_copy(raw: Option<Bytes>, mark: &Mark, until: Moment) -> TagCopy {
    // Copied: it is kept, and the buffer that it may be a part of is not to be.
    let raw = raw.map(|raw| Bytes::copy_from_slice(&raw));
    TagCopy { mark: TagMark::read(raw.as_deref(), mark), raw, until }
}
