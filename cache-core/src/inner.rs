//! The shared state of a cache, and entries in their two forms: object and envelope.

use std::{
    any::Any,
    sync::{Arc, Mutex, Weak, atomic::AtomicBool},
    time::Duration,
};

use arc_swap::ArcSwap;
use serde::{Serialize, de::DeserializeOwned};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    Advised, Begun, Codec, Early, Entry, EntryId, Error, ErrorKind, Event, EvictionCause, Evictions, Extra,
    Found, LevelOutcome, Moment, Object, ObjectStore, Outcome, Policy, RawKey, Result, Stamp, Stats,
    Timeline, Unreadable,
    backplane::Plane,
    clock::Times,
    codec,
    entry::AbsentMark,
    envelope::{self, Header},
    ledger::Learned,
    news::{News, Verdict},
    observe::Observers,
    payload::Form,
    rules::{self, Rules},
    slots::{Slots, Ticket},
    striped::Striped,
    tags::Wide,
    tier::{Around, Tier},
};

/// A value that a cache can hold. Implemented for every type that serde can write and read back. Its destructor may use the
/// cache.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be cached",
    note = "a cached value is `Serialize + DeserializeOwned + Send + Sync + 'static`: derive serde's two traits for it"
)]
pub trait Value: Serialize + DeserializeOwned + Send + Sync + 'static {}
impl<T: Serialize + DeserializeOwned + Send + Sync + 'static> Value for T {}

/// The id of a type's shape on the wire, beside the type: whoever changes the one sees the other.
///
/// Entries with another id are a clean miss. Raise it when the type changes in a way that its codec would misread: with
/// postcard any change, with JSON and MessagePack a field that is renamed, or means something else. Put to use by
/// [`Builder::versioned`](crate::Builder::versioned).
///
/// ```
/// # use cache_core::Schema;
/// #[derive(serde::Serialize, serde::Deserialize)]
/// struct User {
///     name: String,
/// }
///
/// impl Schema for User {
///     const ID: u32 = 3;
/// }
/// ```
pub trait Schema {
    /// The id. 0 is that of caches which were given none.
    const ID: u32;
}

pub(crate) type Weigher<T> = Box<dyn Fn(&T) -> u32 + Send + Sync>;

pub(crate) struct Inner<T> {
    pub(crate) around: Around,
    pub(crate) tiers: Box<[Tier]>,
    /// The nearest level's objects, where it is in process.
    pub(crate) near: Option<Arc<dyn ObjectStore>>,
    pub(crate) plane: Option<Plane>,
    pub(crate) rules: ArcSwap<Rules>,
    pub(crate) schema: u32,
    pub(crate) weigher: Option<Weigher<T>>,
    pub(crate) news: News,
    /// Somebody polls the marks of remote levels.
    pub(crate) watching: AtomicBool,
    /// Wakes whoever polls.
    pub(crate) poke: Arc<tokio::sync::Notify>,
    /// Entries may have tags.
    pub(crate) tagging: bool,
    pub(crate) slots: Arc<Slots<T>>,
    /// Invalidations of more than keys.
    pub(crate) under_way: Mutex<Vec<Weak<Wide>>>,
    pub(crate) tasks: TaskTracker,
    /// Calls under way beyond the nearest level.
    pub(crate) callers: Striped<TaskTracker>,
    /// `close` has done with waiting: calls that are still under way go no further.
    pub(crate) ended: AtomicBool,
    pub(crate) closing: CancellationToken,
}

/// An entry that a level holds, and where.
pub(crate) struct Seen<T> {
    pub(crate) entry: Entry<T>,
    pub(crate) level: u8,
}

impl<T> Clone for Seen<T> {
    fn clone(&self) -> Self {
        Self { entry: self.entry.clone(), level: self.level }
    }
}

/// What a look into an in-process level has shown.
pub(crate) struct Peeked<T> {
    pub(crate) entry: Option<Entry<T>>,
    pub(crate) outcome: LevelOutcome,
    /// There has been news since it was last found valid, which did not concern it.
    pub(crate) behind: bool,
    /// Whether its tags have been invalidated is not known: a remote level has to be asked.
    pub(crate) doubtful: bool,
}

impl<T> Peeked<T> {
    const fn nothing(outcome: LevelOutcome) -> Self {
        Self { entry: None, outcome, behind: false, doubtful: false }
    }
}

/// An entry out of bytes, and the stamp that it carried there.
pub(crate) struct Decoded<T> {
    pub(crate) entry: Entry<T>,
    pub(crate) stamp: Stamp,
}

/// How an entry stands at a moment.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    Fresh,
    Stale,
    Dead,
}

impl State {
    pub(crate) fn of(timeline: &Timeline, has_value: bool, now: Moment) -> Self {
        if now < timeline.fresh_until {
            Self::Fresh
        } else if now < timeline.usable_until && has_value {
            Self::Stale
        } else {
            Self::Dead
        }
    }
}

impl<T> Entry<T> {
    pub(crate) fn state(&self, now: Moment) -> State {
        State::of(&self.timeline, self.value.is_some(), now)
    }

    pub(crate) fn found(&self, outcome: Outcome, level: Option<u8>, now: Moment) -> Found<T> {
        self.clone().into_found(outcome, level, now)
    }

    pub(crate) fn into_found(self, outcome: Outcome, level: Option<u8>, now: Moment) -> Found<T> {
        Found {
            value: self.value,
            outcome,
            level,
            age: now.since(self.timeline.born),
            cost: self.cost,
            reason: None,
        }
    }

    /// Ends its freshness, since an invalidation of which it is not known when it was: as if the entry had never been fresh,
    /// so that no window which begins at that end starts anew with each read. A refresh that failed before no longer holds
    /// up the next one.
    pub(crate) fn expire(&mut self) {
        self.timeline.fresh_until = self.timeline.born;
        Extra::hurry(&mut self.extra);
    }

    /// Until when no refresh should be tried after a failed one.
    pub(crate) fn retry_at(&self) -> Option<Moment> {
        self.extra.as_ref().and_then(|e| e.retry_at)
    }
}

/// Vattani et al.: refresh if now - beta * cost * ln(draw) reaches the end, the draw being uniform in 0..1. The chance of
/// that is exp(-remaining / (beta * cost)).
fn xfetch(beta: f64, cost: Duration, remaining: Duration, draw: f64) -> bool {
    -draw.ln() * beta * cost.as_secs_f64() >= remaining.as_secs_f64()
}

/// How long before the end the chance is below 1e-7 per hit: exp(-16).
fn unlikely(beta: f64, cost: Duration) -> Duration {
    Duration::try_from_secs_f64(cost.as_secs_f64() * beta * 16.0).unwrap_or(Duration::MAX)
}

fn micros(d: Duration) -> u32 {
    u32::try_from(d.as_micros()).unwrap_or(u32::MAX)
}

impl<T: Value> Inner<T> {
    /// Refuses a policy that contradicts itself or the levels.
    pub(crate) fn check_policy(&self, policy: &Policy) -> Result<()> {
        rules::check(&self.tiers.iter().map(Tier::shape).collect::<Vec<_>>(), policy)
    }

    /// The policy now. A copy: whoever asks twice may see two.
    pub(crate) fn policy(&self) -> Policy {
        self.rules.load().policy
    }

    pub(crate) fn now(&self) -> Moment {
        self.around.clock.now()
    }

    #[inline]
    pub(crate) fn stats(&self) -> &Stats {
        &self.around.stats
    }

    #[inline]
    pub(crate) fn observers(&self) -> &Observers {
        &self.around.observers
    }

    /// Refuses an id that nobody may have.
    #[inline]
    pub(crate) fn id<'a>(&self, id: &'a str) -> Result<&'a str> {
        if id.is_empty() {
            return Err(
                self.failed(Error::new(ErrorKind::Key, "key is empty: give it at least one character"))
            );
        }
        Ok(id)
    }

    /// Counts an error that a call ends with, and says whose it is.
    #[cold]
    pub(crate) fn note(&self, error: &Error) {
        self.stats().error(error.kind());
        error.belongs_to(&self.around.name);
    }

    pub(crate) fn failed(&self, error: Error) -> Error {
        self.note(&error);
        error
    }

    pub(crate) fn key<'a>(&'a self, id: &'a str) -> Result<RawKey<'a>> {
        Ok(self.named(self.id(id)?))
    }

    /// The key of an id that has been checked. The hot path makes it in place: moving it costs as much as hashing.
    #[inline]
    pub(crate) fn named<'a>(&'a self, id: &'a str) -> RawKey<'a> {
        RawKey::new(self.around.cache, &self.around.name, id)
    }

    pub(crate) fn check_open(&self) -> Result<()> {
        if self.tasks.is_closed() { Err(self.closed()) } else { Ok(()) }
    }

    pub(crate) fn closed(&self) -> Error {
        Error::new(ErrorKind::Closed, "it has been closed")
    }

    /// Up to this moment a hit needs no second thought: no early refresh, not stale.
    fn quiet_until(&self, timeline: &Timeline, cost: Duration) -> Moment {
        let early = match self.policy().early {
            Early::Off => Moment::NEVER,
            Early::Fraction(share) => {
                let fresh_for = timeline.fresh_until.since(timeline.born);
                if fresh_for == Duration::MAX {
                    Moment::NEVER
                } else {
                    timeline.born.after(fresh_for.mul_f64(share))
                }
            }
            Early::XFetch { beta } => timeline.fresh_until.before(unlikely(beta, cost)),
        };
        early.min(timeline.fresh_until)
    }

    /// Whether a hit inside its quiet time's end and its freshness's end should start a refresh.
    pub(crate) fn wants_early(&self, entry: &Entry<T>, now: Moment) -> bool {
        if entry.value.is_none() || entry.retry_at().is_some_and(|at| now < at) {
            return false;
        }
        let quiet_until = entry.quiet_until.unwrap_or_else(|| self.quiet_until(&entry.timeline, entry.cost));
        if now < quiet_until {
            return false;
        }
        match self.policy().early {
            Early::Off => false,
            Early::Fraction(_) => true,
            Early::XFetch { beta } => {
                // Of a capped one this is where its own freshness ends.
                let own = entry.quiet_until.map(|quiet| quiet.after(unlikely(beta, entry.cost)));
                let fresh_until =
                    own.map_or(entry.timeline.fresh_until, |own| own.max(entry.timeline.fresh_until));
                xfetch(beta, entry.cost, fresh_until.since(now), fastrand::f64())
            }
        }
    }

    pub(crate) fn object(&self, key: RawKey<'_>, entry: &Entry<T>, tier: &Tier) -> Option<Object> {
        if self.tasks.is_closed() {
            // A hit asks for no more than what is there: new calls are refused only as long as there is nothing.
            return None;
        }
        let now = self.now();
        let mut timeline = entry.timeline;
        if let Some(cap) = tier.ttl_cap {
            timeline = timeline.capped(now.after(cap));
        }
        if timeline.usable_until <= now {
            return None;
        }
        let weight = match &tier.store {
            Some(store) if store.weighs() => self.weight(key, entry),
            _ => 0,
        };
        let quiet_until = match entry.retry_at() {
            // Throttled: a fresh entry is left in peace until then; a stale one never takes the quick path.
            Some(at) if at > now => at.min(timeline.fresh_until),
            _ => entry.quiet_until.unwrap_or_else(|| {
                // By its own life: of one that this level has cut short, a deeper one has the rest.
                let rest = self.tiers.iter().skip(usize::from(tier.index) + 1).map(Tier::longest).max();
                let own = rest.map_or(timeline, |rest| entry.timeline.capped(now.after(rest)));
                self.quiet_until(&own, entry.cost)
            }),
        };
        let value = match &entry.value {
            Some(value) => Arc::clone(value) as Arc<dyn Any + Send + Sync>,
            None => Arc::new(AbsentMark),
        };
        let mut object = Object::new(value, timeline, entry.id);
        object.quiet_until = match &entry.value {
            Some(_) => quiet_until.min(object.quiet_until),
            None => Moment::ORIGIN,
        };
        object.extra = Extra::for_object(entry);
        object.cost_us = micros(entry.cost);
        object.seen = entry.seen;
        object.weight = weight;
        object.by_set = entry.by_set;
        Some(object)
    }

    /// Bytes that an entry counts for: the user's own measure, else the encoded size.
    fn weight(&self, key: RawKey<'_>, entry: &Entry<T>) -> u32 {
        let value = match (&entry.value, &self.weigher, entry.encoded) {
            (None, ..) => 0,
            (Some(value), Some(weigher), _) => weigher(value),
            (Some(_), None, Some(encoded)) => encoded,
            (Some(value), None, None) => {
                let bytes = codec::measure(&**value).unwrap_or(size_of::<T>());
                u32::try_from(bytes).unwrap_or(u32::MAX)
            }
        };
        value.saturating_add(u32::try_from(key.id.len()).unwrap_or(u32::MAX))
    }

    /// Looks into an in-process level. Counts the look-up, unless there is doubt.
    pub(crate) fn peek(&self, key: RawKey<'_>, tier: &Tier) -> Peeked<T> {
        let Some(store) = &tier.store else { return Peeked::nothing(LevelOutcome::Miss) };
        let peeked = self.peek_quietly(key, &**store, tier.index);
        if !peeked.doubtful {
            tier.count(&self.around, peeked.outcome);
        }
        peeked
    }

    pub(crate) fn unreadable(&self, level: u8, reason: Unreadable) {
        self.stats().unreadable(level, reason);
        self.observers().event(&Event::Unreadable { level, reason });
    }

    pub(crate) fn peek_quietly(&self, key: RawKey<'_>, store: &dyn ObjectStore, level: u8) -> Peeked<T> {
        let Some(object) = store.get(key) else { return Peeked::nothing(LevelOutcome::Miss) };
        // Where the caller holds a lock: the store may have let go of it by now, and this is the last of its value.
        object.outlive_locks();
        let behind = object.seen != self.news.count();
        let value = match Arc::clone(&object.value).downcast::<T>() {
            Ok(value) => Some(value),
            Err(other) if other.is::<AbsentMark>() => None,
            Err(_) => {
                self.unreadable(level, Unreadable::Type);
                return Peeked::nothing(LevelOutcome::Unreadable);
            }
        };
        let mut entry = Entry {
            value,
            timeline: object.timeline(),
            id: object.id,
            stamp: object.extra.as_ref().map_or_else(Stamp::default, |extra| extra.stamp),
            seen: object.seen,
            cost: Duration::from_micros(object.cost_us.into()),
            by_set: object.by_set,
            extra: object.extra,
            quiet_until: None,
            encoded: None,
        };
        let now = self.now();
        if self.tiers.get(usize::from(level)).is_some_and(|tier| tier.ttl_cap.is_some()) {
            entry.quiet_until = Some(object.quiet_until);
        }
        let mut doubtful = false;
        if behind {
            match self.verdict(&entry) {
                Verdict::Valid => {}
                Verdict::Expired => entry.expire(),
                Verdict::Void => {
                    store.remove(key);
                    return Peeked::nothing(LevelOutcome::Invalidated);
                }
                Verdict::Unsure => doubtful = true,
            }
        }
        let outcome = match entry.state(now) {
            State::Fresh if entry.value.is_some() => LevelOutcome::Hit,
            State::Fresh => LevelOutcome::Negative,
            State::Stale => LevelOutcome::Stale,
            State::Dead => LevelOutcome::Expired,
        };
        let dead = outcome == LevelOutcome::Expired;
        let behind = behind && matches!(outcome, LevelOutcome::Hit | LevelOutcome::Negative);
        Peeked { entry: (!dead).then_some(entry), outcome, behind, doubtful: doubtful && !dead }
    }

    /// What an in-process level has, if it can be believed without asking anybody.
    pub(crate) fn peek_surely(&self, key: RawKey<'_>, tier: &Tier) -> Option<Entry<T>> {
        let peeked = self.peek_quietly(key, &**tier.store.as_ref()?, tier.index);
        peeked.entry.filter(|_| !peeked.doubtful)
    }

    /// This very entry, if an in-process level still has it and it can be believed without asking anybody.
    pub(crate) fn held_nearby(&self, key: RawKey<'_>, id: EntryId) -> Option<Seen<T>> {
        let mut there = self
            .tiers
            .iter()
            .filter_map(|tier| Some(Seen { entry: self.peek_surely(key, tier)?, level: tier.index }));
        there.find(|seen| seen.entry.id == id)
    }

    /// Notes that an object has been found valid, so that the next hit need not look again.
    pub(crate) fn reseat(&self, key: RawKey<'_>, tier: &Tier, ticket: &Ticket<T>) {
        let Some(store) = &tier.store else { return };
        let count = self.news.count();
        let now = self.now();
        // Under the key's lock: what has been invalidated in between is not put back.
        ticket.commit(|| {
            let Some(mut object) = store.get(key) else { return };
            // The store may have let go of it by now.
            object.outlive_locks();
            let stamp = object.extra.as_ref().map_or_else(Stamp::default, |extra| extra.stamp);
            let tags = object.extra.as_ref().map_or(&[][..], |extra| &extra.tags);
            if self.verdict_of(object.seen, stamp, tags) == Verdict::Valid {
                object.seen = count;
                store.put(key, object, now);
            }
        });
    }

    pub(crate) fn decode_quietly(
        &self,
        key: RawKey<'_>,
        tier: &Tier,
        bytes: &[u8],
        times: Times,
    ) -> Result<Decoded<T>, Unreadable> {
        if tier.caps.value_max.is_some_and(|max| bytes.len() > max) {
            return Err(Unreadable::TooLarge);
        }
        if tier.packing.plain {
            return self.decode_plain(tier, bytes, times.now);
        }
        let (header, payload) = envelope::open(key, bytes)?;
        if header.schema != self.schema {
            return Err(Unreadable::Schema);
        }
        let head = envelope::header_of(bytes, payload);
        let payload = tier.packing.unpack(key, head, header.form, payload)?;
        let value = match header.codec {
            None => None,
            Some(id) => {
                let codec = Codec::from_id(id).ok_or(Unreadable::Codec)?;
                Some(Arc::new(codec.decode(&payload).ok_or(Unreadable::Payload)?))
            }
        };
        let entry = Entry {
            value,
            timeline: header.timeline(times),
            id: header.id,
            stamp: Stamp::default(),
            seen: 0,
            cost: Duration::from_micros(header.cost_us.into()),
            by_set: header.by_set,
            extra: header.extra,
            quiet_until: None,
            encoded: u32::try_from(payload.len()).ok(),
        };
        Ok(Decoded { entry, stamp: header.stamp })
    }

    /// The header under which an entry goes to a remote level, and the physical life there. `None`: nothing is left of
    /// its life.
    pub(crate) fn header(&self, entry: &Entry<T>, tier: &Tier, stamp: Stamp) -> Option<(Header, Duration)> {
        let now = self.now();
        let mut timeline = entry.timeline;
        if let Some(cap) = tier.ttl_cap {
            timeline = timeline.capped(now.after(cap));
        }
        let ttl = timeline.remaining(now);
        if ttl.is_zero() {
            return None;
        }
        let age = i64::try_from(now.since(timeline.born).as_millis()).unwrap_or(i64::MAX);
        let store_now = self.around.clock.wall_ms().saturating_add(tier.time_offset_ms());
        let header = Header {
            codec: entry.value.is_some().then(|| tier.packing.codec.id()),
            form: Form::default(),
            by_set: entry.by_set,
            expired: false,
            id: entry.id,
            schema: self.schema,
            born_ms: u64::try_from(store_now.saturating_sub(age)).unwrap_or(0),
            fresh_for: timeline.fresh_until.since(timeline.born),
            usable_for: timeline.usable_until.since(timeline.born),
            cost_us: micros(entry.cost),
            stamp,
            extra: Extra::for_wire(entry.extra.as_ref()),
        };
        Some((header, ttl))
    }

    /// Puts an entry into an in-process level, if the ticket still holds. `false`: it has been overtaken.
    pub(crate) fn keep(&self, key: RawKey<'_>, entry: &Entry<T>, tier: &Tier, ticket: &Ticket<T>) -> bool {
        let Some(store) = &tier.store else { return true };
        if self.closing.is_cancelled() {
            return false;
        }
        let Some(object) = self.object(key, entry, tier) else {
            // What is there is older.
            return ticket.commit(|| store.remove(key)).is_some();
        };
        let now = self.now();
        let kept = ticket.commit(|| store.put(key, object, now)).is_some();
        if kept {
            self.stats().gone.back(key.hash);
        }
        kept
    }

    /// The timeline and extras of a new entry.
    pub(crate) fn timeline(
        &self,
        born: Moment,
        absent: bool,
        ttl: Option<Duration>,
        grace: Option<Duration>,
    ) -> Timeline {
        let policy = self.policy();
        let ttl = ttl.unwrap_or(if absent { policy.absent_ttl } else { policy.ttl });
        // A ttl of zero says that there is nothing to keep.
        let jitter = if policy.jitter.is_zero() || absent || ttl.is_zero() || ttl == Duration::MAX {
            Duration::ZERO
        } else {
            policy.jitter.mul_f64(fastrand::f64())
        };
        let fresh_for = ttl.saturating_add(jitter);
        let usable_for = if absent { fresh_for } else { grace.unwrap_or(policy.grace).max(fresh_for) };
        Timeline::new(born, fresh_for, usable_for)
    }

    pub(crate) fn remote(&self) -> impl DoubleEndedIterator<Item = &Tier> {
        self.tiers.iter().filter(|t| t.store.is_none())
    }

    pub(crate) fn has_remote(&self) -> bool {
        self.remote().next().is_some()
    }

    /// A clear of this cache by another node has been learned of, or may have been missed.
    pub(crate) fn cleared_elsewhere(&self) {
        self.remote().for_each(|tier| tier.ledger.outdate());
        self.void_in_process();
    }

    /// No object of before is believed, and no older fill gets in.
    pub(crate) fn void_in_process(&self) {
        self.news.void();
        self.slots.revoke_all();
        self.stats().gone.forget();
    }

    /// Acts on what a level's mark has brought to light.
    pub(crate) fn heed(&self, tier: &Tier, learned: Learned) {
        if tier.pending.len() > 0 {
            // Perhaps by what has just been learned.
            self.count_pending();
        }
        if learned != Learned::Nothing {
            // Whoever invalidates tells every level. What is read at another one must not be judged by what was known
            // there before, and go up to this one as what it holds since.
            self.remote().filter(|other| other.index != tier.index).for_each(|other| other.ledger.doubt());
        }
        let decides = self.authority().is_some_and(|authority| authority.index == tier.index);
        match learned {
            Learned::Nothing => {}
            Learned::Epoch => self.void_in_process(),
            Learned::Tags if decides => self.news.unsure(),
            Learned::Expired if decides => {
                self.news.expire();
                self.news.unsure();
            }
            // Whoever invalidates tells every level: the nearest remote one knows as well.
            Learned::Tags | Learned::Expired => {}
        }
    }

    /// Marks an entry so that no refresh is tried until the throttle is over, after a load that had begun then. Its failure, if
    /// that is to `surface`, must not be hidden by that: it counts only while the entry is served at once in any case.
    pub(crate) fn throttled(
        &self,
        entry: &Entry<T>,
        begun: &Begun,
        now: Moment,
        surface: bool,
    ) -> Option<Entry<T>> {
        let policy = self.policy();
        let mut entry = entry.clone();
        if self.verdict(&entry) == Verdict::Expired {
            // What is expired is expired once, not with each read, which would end the throttle. What has been expired since
            // the load began still ends it: the next call is to load.
            entry.expire();
            entry.seen = begun.seen;
        }
        let mut retry_at = now.after(policy.throttle);
        if surface {
            retry_at = retry_at.min(entry.timeline.fresh_until.after(policy.revalidate));
        }
        if retry_at <= now {
            return None;
        }
        let mut extra = entry.extra.as_deref().cloned().unwrap_or_default();
        extra.retry_at = Some(retry_at);
        Some(Entry { extra: extra.boxed(), ..entry })
    }
}

impl<T: Value> Advised for Inner<T> {
    fn advice(&self, text: &str) {
        self.observers().event(&Event::Advice(text));
    }
}

impl Extra {
    /// Without what concerns only this node.
    pub(crate) fn for_wire(this: Option<&Arc<Self>>) -> Option<Arc<Self>> {
        match this {
            Some(extra) if extra.retry_at.is_some() || extra.stamp != Stamp::default() => {
                Self { retry_at: None, stamp: Stamp::default(), ..(**extra).clone() }.boxed()
            }
            other => other.cloned(),
        }
    }

    /// Forgets that a refresh has failed.
    pub(crate) fn hurry(this: &mut Option<Arc<Self>>) {
        if let Some(extra) = this.as_deref().filter(|extra| extra.retry_at.is_some()) {
            *this = Self { retry_at: None, ..extra.clone() }.boxed();
        }
    }

    /// With what is needed to judge an object with tags.
    fn for_object<T>(entry: &Entry<T>) -> Option<Arc<Self>> {
        match &entry.extra {
            Some(extra) if !extra.tags.is_empty() && extra.stamp != entry.stamp => {
                Self { stamp: entry.stamp, ..(**extra).clone() }.boxed()
            }
            other => other.clone(),
        }
    }
}

/// Counts what an in-process level lets go.
pub(crate) struct EvictionCounter {
    pub(crate) level: u8,
    pub(crate) stats: Arc<Stats>,
    pub(crate) observers: Observers,
}

impl Evictions for EvictionCounter {
    fn evicted(&self, key_hash: u64, cause: EvictionCause) {
        self.stats.evicted(self.level, key_hash, cause);
        self.observers.event(&Event::Evicted { level: self.level, cause });
    }
}

#[cfg(test)]
mod tests {
    use std::{
        cell::OnceCell,
        sync::atomic::{AtomicBool, Ordering},
    };

    use futures::FutureExt;
    use serde::Deserialize;

    use super::*;
    use crate::{
        Builder, CacheId, TracedCache, ok,
        testing::{ObjectsOnly, ends_within},
    };

    #[test]
    fn e8_xfetch_has_its_distribution() {
        const DRAWS: u32 = 100_000;
        let share = |beta: f64, remaining: u64| {
            let mut dice = fastrand::Rng::with_seed(8);
            let (cost, remaining) = (Duration::from_secs(1), Duration::from_secs(remaining));
            let refreshed = (0..DRAWS).filter(|_| xfetch(beta, cost, remaining, dice.f64())).count();
            f64::from(u32::try_from(refreshed).unwrap()) / f64::from(DRAWS)
        };
        for (beta, remaining, expected, within) in
            [(1.0, 1, 0.368, 0.01), (1.0, 5, 0.0067, 0.002), (2.0, 1, 0.607, 0.01), (0.0, 1, 0.0, 0.0)]
        {
            let share = share(beta, remaining);
            assert!((share - expected).abs() <= within, "beta {beta}, {remaining} s left: {share}");
        }
        assert!(!xfetch(0.0, Duration::from_secs(1), Duration::from_secs(1), 0.0), "0 * infinity");
    }

    /// A value whose end uses its thread's cache.
    #[derive(Serialize, Deserialize)]
    struct Nosy(u64);

    thread_local! {
        static CACHE: OnceCell<TracedCache<Nosy>> = const { OnceCell::new() };
    }

    impl Drop for Nosy {
        fn drop(&mut self) {
            let _ = CACHE.try_with(|cache| cache.get()?.invalidate("k").now_or_never().map(drop));
        }
    }

    /// A store that keeps nothing. Where it hands something out, it is the last of its value, and its time is over.
    #[derive(Clone, Copy)]
    enum Fleeting {
        Empty,
        HandsOut,
    }

    impl ObjectStore for Fleeting {
        fn get(&self, _key: RawKey<'_>) -> Option<Object> {
            let over = Timeline::new(Moment::ORIGIN, Duration::ZERO, Duration::ZERO);
            match self {
                Self::Empty => None,
                Self::HandsOut => Some(Object::for_tests(Arc::new(Nosy(1)), over, 0)),
            }
        }

        fn put(&self, _key: RawKey<'_>, object: Object, _now: Moment) {
            object.outlive_locks();
        }

        fn remove(&self, _key: RawKey<'_>) -> bool {
            false
        }

        fn clear(&self, _cache: CacheId) {}

        fn len(&self) -> u64 {
            0
        }

        fn weight(&self) -> u64 {
            0
        }

        fn weighs(&self) -> bool {
            true
        }

        fn attach(&self, _cache: CacheId, _evictions: Arc<dyn Evictions>) {}

        fn detach(&self, _cache: CacheId) {}
    }

    /// Runs `work` with the thread's cache. It ends, unless a lock waits for itself.
    fn ends<F: Future<Output = ()>>(
        level: Fleeting,
        more: impl FnOnce(Builder<Nosy>) -> Builder<Nosy> + Send + 'static,
        work: impl FnOnce(TracedCache<Nosy>) -> F + Send + 'static,
    ) {
        ends_within(Duration::from_secs(10), move || {
            let cache =
                more(TracedCache::builder("nosy").level(ObjectsOnly(Arc::new(level)))).build().unwrap();
            CACHE.with(|own| assert!(own.set(cache.clone()).is_ok()));
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(work(cache));
        });
    }

    #[test]
    fn what_is_read_under_a_lock_may_be_the_last_of_its_value() {
        ends(
            Fleeting::HandsOut,
            |builder| builder,
            async |cache| {
                cache.get_or_set("k", async || ok(Nosy(2))).await.unwrap();
            },
        );
    }

    #[test]
    fn a_weigher_may_use_the_cache_in_an_update() {
        static WEIGHED: AtomicBool = AtomicBool::new(false);
        ends(
            Fleeting::Empty,
            |builder| {
                builder.weigher(|_| {
                    // What invalidates the key has the update try once more.
                    if !WEIGHED.swap(true, Ordering::Relaxed) {
                        CACHE.with(|cache| cache.get()?.invalidate("k").now_or_never().map(drop));
                    }
                    1
                })
            },
            async |cache| {
                let updated = cache.update("k", &(), |(), _, _| async { ok(Nosy(3)) }).await.unwrap();
                assert!(updated.delivery.is_confirmed());
                assert!(WEIGHED.load(Ordering::Relaxed));
            },
        );
    }
}
