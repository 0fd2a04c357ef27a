//! The backplane: how other nodes learn of invalidations, so that their in-process levels let go of old values.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use async_trait::async_trait;
use bytes::{BufMut, Bytes, BytesMut};
use scopeguard::ScopeGuard;

use crate::{
    BoxError, Delivery, EntryId, Event, LevelFault, RawKey, SpanKind, SpanStart, Stamp, Value,
    gone::Cause,
    inner::Inner,
    mark::Reach,
    pending::{Due, Pending},
    stats::OnBackplane,
    tags::{TAG_MAX, TAGS_MAX},
    tier::Tier,
    within::within,
};

/// A channel between the nodes of a cache.
///
/// # Contract
/// - Messages are opaque bytes, small, and may be lost only with a [`Listener::gap`] for those who lost them.
/// - Listeners are called in the order of arrival, one call at a time per listener, and never block.
/// - A node may or may not hear its own messages.
#[async_trait]
pub trait Backplane: Send + Sync + 'static {
    /// Hands a message to every node of `cache`. `Ok` once the channel has it; it need not have arrived.
    async fn publish(&self, cache: &str, message: Bytes) -> Result<(), BoxError>;

    /// Begins to hear the messages of `cache`. Called once per cache, from inside a runtime; ends when the listener is
    /// dropped elsewhere (keep a `Weak`).
    fn subscribe(&self, cache: &str, listener: Arc<dyn Listener>);

    /// Whether every other node of `cache` hears by itself of what this node has just written to the store: of keys and of
    /// the marker. Asked once the store has acknowledged, and then nothing is published.
    fn hears_writes(&self, cache: &str) -> bool {
        let _ = cache;
        false
    }
}

/// One node's ear.
///
/// Call it, and drop it, without a lock of the backplane's own: it does not keep its cache alive, but a call may turn out to
/// hold the last of it. Then the cache ends in the call, and lets go of its backplane and its providers there.
pub trait Listener: Send + Sync + 'static {
    /// A message has arrived.
    fn message(&self, bytes: &[u8]);

    /// Messages may have been lost: the channel was down or silent, or has just come up for the first time.
    fn gap(&self);

    /// The channel is down, or has not come up so far: messages are lost until a [`gap`](Self::gap) says that it is up. To be
    /// told again while that lasts, as what others change meanwhile is not heard of.
    fn down(&self) {
        self.gap();
    }

    /// Why the channel is down, for an operator, without credentials. Beside [`down`](Self::down), and again while that lasts.
    fn fails(&self, error: &(dyn std::error::Error + 'static)) {
        let _ = error;
    }

    /// Somebody else has written, removed or lost what the watched store holds under this id of the cache.
    fn changed(&self, id: &str) {
        let _ = id;
        self.gap();
    }

    /// Somebody has written, removed or lost the cache's mark there.
    fn marker_changed(&self) {
        self.gap();
    }

    /// Whether the cache keeps its entries in this store ([`CacheProvider::store_id`](crate::CacheProvider::store_id)), at
    /// its nearest remote level: then each of its writes is over once it is there, and to watch the store is to hear of
    /// them all.
    fn keeps_in(&self, store: u64) -> bool {
        let _ = store;
        false
    }

    /// Whether nobody listens any more: the cache is gone.
    fn is_closed(&self) -> bool;
}

/// How long a message may take to be handed to the channel.
pub(crate) const BUDGET: Duration = Duration::from_millis(250);

/// Version, node, time of sending, kind, and what the kind needs.
const VERSION: u8 = 2;
const CLEAR: u8 = 0;
const KEY: u8 = 1;
const PURGE_TAGS: u8 = 2;
const EXPIRE_TAGS: u8 = 3;
const EXPIRE_ALL: u8 = 4;
/// Longest id that a message carries; a longer one travels as a clear.
const LONGEST_ID: usize = 16 * 1024;

/// A cache's end of its backplane.
pub(crate) struct Plane {
    channel: ArcSwap<Channel>,
    /// The youngest channel that has come up.
    up: AtomicU64,
    /// The youngest one that had a gap after that.
    gapped: AtomicU64,
    /// This node, so that it knows its own messages.
    node: u64,
    /// The youngest channel that is listened to, counted from 1.
    subscribed: AtomicU64,
    /// What the channel has not taken yet.
    pub(crate) pending: Pending,
    /// Somebody has been told why it is down.
    fails: AtomicBool,
    /// It did not answer in time when it was last given a message. Who tells that of before again finds out when it does.
    silent: AtomicBool,
}

/// One after the other, where a cache moves from one to the next.
#[derive(Clone)]
struct Channel {
    carrier: Arc<dyn Backplane>,
    number: u64,
    /// Listened to until this one has come up.
    before: Option<Arc<dyn Backplane>>,
}

impl Plane {
    pub(crate) fn new(carrier: Arc<dyn Backplane>) -> Self {
        Self {
            channel: ArcSwap::from_pointee(Channel { carrier, number: 1, before: None }),
            up: AtomicU64::new(0),
            gapped: AtomicU64::new(0),
            node: fastrand::u64(..),
            subscribed: AtomicU64::new(0),
            pending: Pending::default(),
            fails: AtomicBool::new(false),
            silent: AtomicBool::new(false),
        }
    }

    /// Goes on over another channel. The one before is listened to until that has come up.
    pub(crate) fn move_to(&self, carrier: Arc<dyn Backplane>) {
        self.channel.rcu(|channel| Channel {
            carrier: Arc::clone(&carrier),
            number: channel.number + 1,
            before: Some(Arc::clone(&channel.carrier)),
        });
        self.silent.store(false, Ordering::Release);
    }

    /// A channel has come up. Says which one had before.
    fn has_come_up(&self, number: u64) -> u64 {
        let before = self.up.fetch_max(number, Ordering::AcqRel);
        if before < number {
            self.leave_before(number);
        }
        before
    }

    /// A channel has a gap, or has just come up. Whether something may have been missed by that.
    fn has_gap(&self, number: u64) -> bool {
        let up = self.has_come_up(number);
        if up == number {
            self.gapped.fetch_max(number, Ordering::AcqRel);
        }
        // One that takes over from one that was listened to until now, all the time: nothing of that one was missed. Whether
        // one that had a gap has been mended is not known. Nor is anything missed that only a channel could have said that
        // is left.
        let takes_over = up > 0 && up + 1 == number && self.gapped.load(Ordering::Acquire) < up;
        up <= number && !takes_over
    }

    /// A channel is down. Whether something may be missed by that.
    fn is_missed(&self, number: u64) -> bool {
        if self.up.load(Ordering::Acquire) == number {
            self.gapped.fetch_max(number, Ordering::AcqRel);
        }
        self.is_listened_to(number)
    }

    /// Until a channel has come up, the one before is.
    fn is_listened_to(&self, number: u64) -> bool {
        let up = self.up.load(Ordering::Acquire);
        up == 0 || up == number
    }

    /// Lets go of the channel before this one.
    fn leave_before(&self, number: u64) {
        self.channel.rcu(|channel| match channel {
            channel if channel.number == number && channel.before.is_some() => {
                Arc::new(Channel { before: None, ..Channel::clone(channel) })
            }
            channel => Arc::clone(channel),
        });
    }

    /// Nothing is to be heard any more.
    pub(crate) fn close(&self) {
        self.leave_before(self.channel.load().number);
    }

    /// Whether the others hear of writes by themselves.
    fn is_heard(&self, cache: &str) -> bool {
        self.channel.load().carrier.hears_writes(cache)
    }

    /// Whether a caller need not wait to find out that it does not answer.
    fn is_silent(&self) -> bool {
        self.silent.load(Ordering::Acquire) && self.pending.len() > 0
    }

    /// `sent_us`: the time, for those who want to know how long it took.
    fn encode(&self, told: &Told<'_>, sent_us: i64) -> Bytes {
        let mut out = BytesMut::with_capacity(64);
        out.put_u8(VERSION);
        out.put_u64_le(self.node);
        out.put_i64_le(sent_us);
        match told {
            Told::Key(id) if id.len() <= LONGEST_ID => {
                out.put_u8(KEY);
                out.put_slice(id.as_bytes());
            }
            Told::Key(_) | Told::Clear => out.put_u8(CLEAR),
            Told::ExpireAll => out.put_u8(EXPIRE_ALL),
            Told::Tags { reach, number, tags } => {
                out.put_u8(match reach {
                    Reach::Purge => PURGE_TAGS,
                    Reach::Expire => EXPIRE_TAGS,
                });
                out.put_u64_le(number.epoch);
                out.put_u64_le(number.sequence);
                for tag in *tags {
                    // Checked: a tag is short.
                    out.put_u16_le(u16::try_from(tag.len()).unwrap_or(u16::MAX));
                    out.put_slice(tag.as_bytes());
                }
            }
        }
        out.freeze()
    }
}

/// What is told to the other nodes.
enum Told<'a> {
    Key(&'a str),
    Clear,
    ExpireAll,
    /// `number`: what the invalidation is at the nearest remote level; an epoch of 0 where there is none.
    Tags {
        reach: Reach,
        number: Stamp,
        tags: &'a [Box<str>],
    },
}

impl Told<'_> {
    fn keys(&self) -> usize {
        usize::from(matches!(self, Self::Key(_)))
    }
}

/// A message, as it arrives.
#[derive(Debug, PartialEq, Eq)]
enum Heard<'a> {
    Own,
    News {
        sent_us: i64,
        what: What<'a>,
    },
    /// Not a message of this release: dropped.
    Noise,
}

#[derive(Debug, PartialEq, Eq)]
enum What<'a> {
    Clear,
    ExpireAll,
    Key(&'a str),
    Tags { reach: Reach, number: Stamp, tags: Vec<&'a str> },
}

fn decode(bytes: &[u8], me: u64) -> Heard<'_> {
    let [VERSION, rest @ ..] = bytes else { return Heard::Noise };
    let Some((node, rest)) = rest.split_first_chunk::<8>() else { return Heard::Noise };
    let Some((sent, rest)) = rest.split_first_chunk::<8>() else { return Heard::Noise };
    if u64::from_le_bytes(*node) == me {
        return Heard::Own;
    }
    let sent_us = i64::from_le_bytes(*sent);
    what(rest).map_or(Heard::Noise, |what| Heard::News { sent_us, what })
}

fn what(bytes: &[u8]) -> Option<What<'_>> {
    match bytes {
        [CLEAR] => Some(What::Clear),
        [EXPIRE_ALL] => Some(What::ExpireAll),
        [KEY, id @ ..] if !id.is_empty() && id.len() <= LONGEST_ID => {
            std::str::from_utf8(id).ok().map(What::Key)
        }
        [PURGE_TAGS, rest @ ..] => tags(rest, Reach::Purge),
        [EXPIRE_TAGS, rest @ ..] => tags(rest, Reach::Expire),
        _ => None,
    }
}

fn tags(bytes: &[u8], reach: Reach) -> Option<What<'_>> {
    let (epoch, rest) = bytes.split_first_chunk()?;
    let (sequence, mut rest) = rest.split_first_chunk()?;
    let number = Stamp { epoch: u64::from_le_bytes(*epoch), sequence: u64::from_le_bytes(*sequence) };
    let mut tags = Vec::new();
    while let Some((len, text)) = rest.split_first_chunk() {
        let (tag, next) = text.split_at_checked(usize::from(u16::from_le_bytes(*len)))?;
        tags.push(std::str::from_utf8(tag).ok().filter(|tag| !tag.is_empty() && tag.len() <= TAG_MAX)?);
        rest = next;
    }
    let sensible = rest.is_empty() && !tags.is_empty() && tags.len() <= TAGS_MAX;
    sensible.then_some(What::Tags { reach, number, tags })
}

/// Listens for a cache without keeping it alive.
struct Ear<T> {
    inner: std::sync::Weak<Inner<T>>,
    /// The number of the channel that it listens to.
    channel: u64,
}

impl<T: Value> Listener for Ear<T> {
    fn message(&self, bytes: &[u8]) {
        let Some(inner) = self.inner.upgrade() else { return };
        let Some(plane) = &inner.plane else { return };
        plane.has_come_up(self.channel);
        let (sent_us, what) = match decode(bytes, plane.node) {
            Heard::Own => return,
            Heard::News { sent_us, what } => (sent_us, what),
            Heard::Noise => {
                inner.stats().on_backplane(OnBackplane::Noise);
                inner.observers().event(&Event::BackplaneNoise);
                return;
            }
        };
        match what {
            What::Clear => inner.cleared_elsewhere(),
            What::ExpireAll => inner.expired_elsewhere(),
            What::Key(id) => inner.invalidated_elsewhere(id),
            What::Tags { reach, number, tags } => inner.reached_elsewhere(reach, number, &tags),
        }
        inner.stats().on_backplane(OnBackplane::Received);
        if !inner.observers().is_empty() {
            let lag =
                Duration::from_micros(u64::try_from(inner.shared_us().saturating_sub(sent_us)).unwrap_or(0));
            inner.observers().event(&Event::BackplaneReceived { lag: Some(lag) });
        }
    }

    fn changed(&self, id: &str) {
        let Some(inner) = self.inner.upgrade() else { return };
        inner.invalidated_elsewhere(id);
        inner.noticed();
    }

    fn marker_changed(&self) {
        let Some(inner) = self.inner.upgrade() else { return };
        inner.mark_changed();
        inner.noticed();
    }

    fn keeps_in(&self, store: u64) -> bool {
        let Some(inner) = self.inner.upgrade() else { return false };
        store != 0 && inner.remote().next().is_some_and(|tier| tier.provider().store_id() == store)
    }

    fn fails(&self, error: &(dyn std::error::Error + 'static)) {
        let Some(inner) = self.inner.upgrade() else { return };
        if inner.plane.as_ref().is_some_and(|plane| plane.is_listened_to(self.channel)) {
            inner.plane.iter().for_each(|plane| plane.fails.store(true, Ordering::Release));
            inner.observers().event(&Event::BackplaneDown { error });
        }
    }

    fn gap(&self) {
        let Some(inner) = self.inner.upgrade() else { return };
        if inner.plane.as_ref().is_some_and(|plane| plane.fails.swap(false, Ordering::AcqRel)) {
            inner.observers().event(&Event::BackplaneUp);
        }
        if inner.plane.as_ref().is_none_or(|plane| plane.has_gap(self.channel)) {
            inner.missed_something();
        }
    }

    fn down(&self) {
        let Some(inner) = self.inner.upgrade() else { return };
        if inner.plane.as_ref().is_none_or(|plane| plane.is_missed(self.channel)) {
            inner.missed_something();
        }
    }

    fn is_closed(&self) -> bool {
        self.inner.upgrade().is_none_or(|inner| {
            inner.ended.load(Ordering::Acquire)
                || inner.plane.as_ref().is_some_and(|plane| plane.up.load(Ordering::Acquire) > self.channel)
        })
    }
}

impl<T: Value> Inner<T> {
    /// Begins to listen, with the first call that leaves the nearest level: a cache may be built outside of a runtime.
    pub(crate) fn listen(self: &Arc<Self>) {
        let Some(plane) = &self.plane else { return };
        let channel = plane.channel.load();
        if plane.subscribed.load(Ordering::Relaxed) < channel.number
            && tokio::runtime::Handle::try_current().is_ok()
            && plane.subscribed.fetch_max(channel.number, Ordering::AcqRel) < channel.number
        {
            let ear = Ear { inner: Arc::downgrade(self), channel: channel.number };
            channel.carrier.subscribe(&self.around.name, Arc::new(ear));
        }
    }

    /// What was missed is not known: no entry of before is believed.
    fn missed_something(&self) {
        self.stats().on_backplane(OnBackplane::Gap);
        self.observers().event(&Event::BackplaneGap);
        self.cleared_elsewhere();
    }

    /// Counts a change that the backplane has seen in the store.
    fn noticed(&self) {
        self.stats().on_backplane(OnBackplane::Received);
        self.observers().event(&Event::BackplaneReceived { lag: None });
    }

    /// The time, in microseconds since the Unix epoch, by the clock that the nodes of this cache share: a store's, where
    /// its difference is measured.
    fn shared_us(&self) -> i64 {
        let ahead_ms = self.remote().map(Tier::time_offset_ms).find(|ms| *ms != 0);
        self.around.clock.wall_us().saturating_add(ahead_ms.unwrap_or(0).saturating_mul(1000))
    }

    /// Another node has changed a key: revokes what is in flight and lets go of it, also where nothing is held.
    fn invalidated_elsewhere(&self, id: &str) {
        let Ok(key) = self.key(id) else { return };
        self.slots.revoke(key, || {
            for store in self.tiers.iter().filter_map(|tier| tier.store.as_ref()) {
                store.remove(key);
            }
        });
        self.stats().gone.left(key.hash, Cause::Invalidated);
    }

    /// The same, if what is held nearby is this entry.
    pub(crate) fn let_go(&self, id: &str, entry: EntryId) {
        let Ok(key) = self.key(id) else { return };
        let near = self.tiers.iter().filter_map(|tier| tier.store.as_ref()?.get(key));
        if near.into_iter().any(|object| object.id == entry) {
            self.invalidated_elsewhere(id);
        }
    }

    /// Another node has ended the freshness of every entry.
    fn expired_elsewhere(&self) {
        self.remote().for_each(|tier| tier.ledger.outdate());
        self.news.expire();
    }

    /// Another node has invalidated tags. What is told by name needs no asking; whether something was missed before it shows
    /// by its number.
    fn reached_elsewhere(&self, reach: Reach, number: Stamp, tags: &[&str]) {
        if let Some(tier) = self.authority()
            && !tier.ledger.heard(number, tags.iter().copied(), reach)
        {
            tier.ledger.outdate();
        }
        self.remote().skip(1).for_each(|tier| tier.ledger.outdate());
        self.news.tags(tags.iter().copied(), reach);
    }

    /// Tells the other nodes that keys have changed. What the channel does not take is told when it is back.
    pub(crate) async fn tell(self: &Arc<Self>, keys: &[RawKey<'_>]) -> Delivery {
        let Some(plane) = self.plane.as_ref().filter(|plane| !plane.is_heard(&self.around.name)) else {
            return Delivery::Confirmed;
        };
        // Messages of a large batch take longer than one of them may: sent all at once, the last would be given up on a
        // channel that is well.
        const AT_ONCE: usize = 256;
        let send = async |key: &RawKey<'_>| self.send_now(plane, &Told::Key(key.id)).await;
        let mut delivery = Delivery::Confirmed;
        for keys in keys.chunks(AT_ONCE) {
            let sent = futures::future::join_all(keys.iter().map(send)).await;
            for (key, sent) in keys.iter().zip(sent) {
                if !sent {
                    plane.pending.add(key.id);
                    delivery = Delivery::Pending;
                }
            }
        }
        self.tell_later(plane);
        delivery
    }

    /// Tells the other nodes that the whole cache has been cleared.
    pub(crate) async fn tell_clear(self: &Arc<Self>) -> Delivery {
        self.tell_or(&Told::Clear, Pending::add_clear).await
    }

    /// Tells the other nodes that every entry has been expired.
    pub(crate) async fn tell_expire(self: &Arc<Self>) -> Delivery {
        // What is told late is widened: the other nodes must not go on with what was fresh.
        self.tell_or(&Told::ExpireAll, Pending::add_clear).await
    }

    /// Tells the other nodes that tags have been invalidated, under this number.
    pub(crate) async fn tell_tags(
        self: &Arc<Self>,
        tags: &[Box<str>],
        reach: Reach,
        number: Stamp,
    ) -> Delivery {
        self.tell_or(&Told::Tags { reach, number, tags }, |pending| pending.add_tags(tags, reach)).await
    }

    async fn tell_or(self: &Arc<Self>, told: &Told<'_>, keep: impl FnOnce(&Pending)) -> Delivery {
        let Some(plane) = self.plane.as_ref().filter(|plane| !plane.is_heard(&self.around.name)) else {
            return Delivery::Confirmed;
        };
        // Also where its caller leaves before the channel has taken it.
        let untold = scopeguard::guard(keep, |keep| {
            keep(&plane.pending);
            self.tell_later(plane);
        });
        if self.send_now(plane, told).await {
            ScopeGuard::into_inner(untold);
            return Delivery::Confirmed;
        }
        Delivery::Pending
    }

    /// Hands a message to the channel, for a caller who waits: not to one that hangs.
    async fn send_now(&self, plane: &Plane, told: &Told<'_>) -> bool {
        !plane.is_silent() && self.send_message(plane, told).await
    }

    async fn send_message(&self, plane: &Plane, told: &Told<'_>) -> bool {
        let start = SpanStart { kind: SpanKind::Publish, key: None, keys: told.keys(), root: false };
        let spans = self.observers().span(&start);
        let channel = plane.channel.load_full();
        let call = channel.carrier.publish(&self.around.name, plane.encode(told, self.shared_us()));
        let sent = self.around.clock.timeout(BUDGET, spans.around(call)).await;
        plane.silent.store(sent.is_none(), Ordering::Release);
        let fault = match &sent {
            Some(Ok(())) => None,
            Some(Err(_)) => Some(LevelFault::Error),
            None => Some(LevelFault::Timeout),
        };
        if let Some(fault) = fault {
            spans.failed(fault.as_str());
        }
        let sent = fault.is_none();
        if sent {
            self.stats().on_backplane(OnBackplane::Sent);
            self.observers().event(&Event::BackplaneSent);
        }
        sent
    }

    fn tell_later(self: &Arc<Self>, plane: &Plane) {
        if plane.pending.len() == 0 {
            return;
        }
        self.count_pending();
        if plane.pending.claim() {
            let inner = Arc::clone(self);
            let retell = within(self.observers().ambient(), async move { inner.retell().await });
            if self.spawn(retell).is_none() {
                plane.pending.release();
            }
        }
    }

    /// One round. `false`: the channel is not well.
    async fn retell_some(&self, plane: &Plane) -> bool {
        match plane.pending.due(256) {
            // Nobody is told values.
            None | Some(Due::Values(_)) => {}
            Some(Due::Clear(number)) => {
                if !self.send_message(plane, &Told::Clear).await {
                    return false;
                }
                plane.pending.delivered_clear(number);
            }
            Some(Due::Tags(reach, due)) => {
                let tags: Vec<Box<str>> = due.iter().map(|(tag, _)| tag.clone()).collect();
                // Under no number: what was missed is not known by now.
                let told = Told::Tags { reach, number: Stamp::default(), tags: &tags };
                if !self.send_message(plane, &told).await {
                    return false;
                }
                due.iter().for_each(|(tag, number)| plane.pending.delivered_tag(tag, *number));
            }
            Some(Due::Keys(due)) => {
                for (id, number) in due {
                    if !self.send_message(plane, &Told::Key(&id)).await {
                        return false;
                    }
                    plane.pending.delivered(&id, number);
                }
            }
        }
        true
    }

    async fn retell(self: &Arc<Self>) {
        let Some(plane) = &self.plane else { return };
        let mut pause = Duration::from_millis(20);
        loop {
            let start =
                SpanStart { kind: SpanKind::Replay, key: None, keys: plane.pending.len(), root: true };
            let spans = self.observers().span(&start);
            let well = spans.around(self.retell_some(plane)).await;
            self.count_pending();
            if plane.pending.len() == 0 && plane.pending.release() {
                return;
            }
            if !well {
                self.around.clock.sleep(pause).await;
                pause = (pause * 2).min(Duration::from_secs(1));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Clock, TracedCache, testing::MapProvider};

    struct Nowhere;
    #[async_trait]
    impl Backplane for Nowhere {
        async fn publish(&self, _: &str, _: Bytes) -> Result<(), BoxError> {
            Ok(())
        }
        fn subscribe(&self, _: &str, _: Arc<dyn Listener>) {}
    }

    /// Takes a tenth of a millisecond for each message, one after the other.
    struct Steady(Clock, tokio::sync::Mutex<()>);
    #[async_trait]
    impl Backplane for Steady {
        async fn publish(&self, _: &str, _: Bytes) -> Result<(), BoxError> {
            let _turn = self.1.lock().await;
            self.0.sleep(Duration::from_micros(100)).await;
            Ok(())
        }
        fn subscribe(&self, _: &str, _: Arc<dyn Listener>) {}
    }

    #[tokio::test]
    async fn a_batch_is_told_of_however_large() {
        let (clock, time) = Clock::manual();
        let cache: TracedCache<String> = TracedCache::builder("users")
            .level(MapProvider::new().clock(clock.clone()))
            .backplane(Steady(clock.clone(), tokio::sync::Mutex::default()))
            .clock(clock)
            .build()
            .unwrap();
        // More than are remembered.
        let told = cache.invalidate_many(0..12_000_u64);
        let pass = async {
            loop {
                tokio::task::yield_now().await;
                time.advance(Duration::from_micros(100));
            }
        };
        let told = tokio::select! {
            biased;
            told = told => told.unwrap(),
            () = pass => unreachable!("time passes for ever"),
        };
        assert_eq!((told, cache.stats().pending), (Delivery::Confirmed, 0));
    }

    #[test]
    fn messages_are_read_back_and_noise_is_not() {
        let plane = Plane::new(Arc::new(Nowhere));
        let other = plane.node ^ 1;
        let news = |what| Heard::News { sent_us: 7, what };
        let key = plane.encode(&Told::Key("k"), 7);
        assert_eq!(decode(&key, plane.node), Heard::Own);
        assert_eq!(decode(&key, other), news(What::Key("k")));
        assert_eq!(decode(&plane.encode(&Told::Clear, 7), other), news(What::Clear));
        assert_eq!(decode(&plane.encode(&Told::ExpireAll, 7), other), news(What::ExpireAll));
        let long = "x".repeat(LONGEST_ID + 1);
        assert_eq!(decode(&plane.encode(&Told::Key(&long), 7), other), news(What::Clear));
        let (tags, number) = ([Box::from("a"), Box::from("b c")], Stamp { epoch: 7, sequence: 9 });
        let told = plane.encode(&Told::Tags { reach: Reach::Expire, number, tags: &tags }, 7);
        let heard = What::Tags { reach: Reach::Expire, number, tags: vec!["a", "b c"] };
        assert_eq!(decode(&told, other), news(heard));
        for cut in 0..key.len() {
            assert_eq!(decode(&key[..cut], other), Heard::Noise, "p10: cut at {cut}");
        }
        for cut in 0..told.len() {
            let heard = decode(&told[..cut], other);
            assert!(heard == Heard::Noise || cut == told.len() - 5, "p10: cut at {cut}: {heard:?}");
        }
        for (at, byte) in [(0, 1), (17, 7)] {
            let mut bytes = key.to_vec();
            bytes[at] = byte;
            assert_eq!(decode(&bytes, other), Heard::Noise);
        }
    }
}
