//! The backplane: how other nodes learn of invalidations, so that their in-process levels let go of old values.

use std::{
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use bytes::{BufMut, Bytes, BytesMut};

use crate::{
    BoxError, Delivery, Event, RawKey, Stamp, Value,
    inner::Inner,
    mark::Reach,
    pending::{Due, Pending},
    tags::{TAG_MAX, TAGS_MAX},
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
}

/// One node's ear.
pub trait Listener: Send + Sync + 'static {
    /// A message has arrived.
    fn message(&self, bytes: &[u8]);

    /// Messages may have been lost: the channel was down or silent, or has just come up for the first time.
    fn gap(&self);

    /// Whether nobody listens any more: the cache is gone.
    fn is_closed(&self) -> bool;
}

const VERSION: u8 = 1;
const CLEAR: u8 = 0;
const KEY: u8 = 1;
const PURGE_TAGS: u8 = 2;
const EXPIRE_TAGS: u8 = 3;
const EXPIRE_ALL: u8 = 4;
/// Longest id that a message carries; a longer one travels as a clear.
const LONGEST_ID: usize = 16 * 1024;

/// A cache's end of its backplane.
pub(crate) struct Plane {
    channel: Arc<dyn Backplane>,
    /// This node, so that it knows its own messages.
    node: u64,
    subscribed: OnceLock<()>,
    /// What the channel has not taken yet.
    pub(crate) pending: Pending,
    received: AtomicU64,
}

impl Plane {
    pub(crate) fn new(channel: Arc<dyn Backplane>) -> Self {
        Self {
            channel,
            node: fastrand::u64(..),
            subscribed: OnceLock::new(),
            pending: Pending::default(),
            received: AtomicU64::new(0),
        }
    }

    fn encode(&self, news: &Told<'_>) -> Bytes {
        let mut out = BytesMut::with_capacity(64);
        out.put_u8(VERSION);
        out.put_u64_le(self.node);
        match news {
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

/// What a message says. Anything that is not one is dropped.
#[derive(Debug, PartialEq, Eq)]
enum Heard<'a> {
    Own,
    Clear,
    ExpireAll,
    Key(&'a str),
    Tags { reach: Reach, number: Stamp, tags: Vec<&'a str> },
    Noise,
}

fn decode(bytes: &[u8], me: u64) -> Heard<'_> {
    let [VERSION, rest @ ..] = bytes else { return Heard::Noise };
    let Some((node, rest)) = rest.split_first_chunk::<8>() else { return Heard::Noise };
    if u64::from_le_bytes(*node) == me {
        return Heard::Own;
    }
    match rest {
        [CLEAR] => Heard::Clear,
        [EXPIRE_ALL] => Heard::ExpireAll,
        [KEY, id @ ..] if !id.is_empty() && id.len() <= LONGEST_ID => {
            std::str::from_utf8(id).map_or(Heard::Noise, Heard::Key)
        }
        [PURGE_TAGS, rest @ ..] => tags(rest, Reach::Purge).unwrap_or(Heard::Noise),
        [EXPIRE_TAGS, rest @ ..] => tags(rest, Reach::Expire).unwrap_or(Heard::Noise),
        _ => Heard::Noise,
    }
}

fn tags(bytes: &[u8], reach: Reach) -> Option<Heard<'_>> {
    let (epoch, rest) = bytes.split_first_chunk()?;
    let (sequence, mut rest) = rest.split_first_chunk()?;
    let number = Stamp { epoch: u64::from_le_bytes(*epoch), sequence: u64::from_le_bytes(*sequence) };
    let mut tags = Vec::new();
    while let Some((len, text)) = rest.split_first_chunk() {
        let (tag, next) = text.split_at_checked(usize::from(u16::from_le_bytes(*len)))?;
        tags.push(std::str::from_utf8(tag).ok().filter(|tag| !tag.is_empty() && tag.len() <= TAG_MAX)?);
        rest = next;
    }
    (rest.is_empty() && !tags.is_empty() && tags.len() <= TAGS_MAX).then_some(Heard::Tags {
        reach,
        number,
        tags,
    })
}

/// Listens for a cache without keeping it alive.
struct Ear<T>(std::sync::Weak<Inner<T>>);

impl<T: Value> Listener for Ear<T> {
    fn message(&self, bytes: &[u8]) {
        let Some(inner) = self.0.upgrade() else { return };
        let Some(plane) = &inner.plane else { return };
        match decode(bytes, plane.node) {
            Heard::Own => return,
            Heard::Clear => inner.cleared_elsewhere(),
            Heard::ExpireAll => {
                inner.remote().for_each(|tier| tier.ledger.doubt());
                inner.news.expire();
            }
            Heard::Key(id) => inner.invalidated_elsewhere(id),
            Heard::Tags { reach, number, tags } => inner.reached_elsewhere(reach, number, &tags),
            Heard::Noise => {
                inner.observers().event(&Event::BackplaneNoise);
                return;
            }
        }
        plane.received.fetch_add(1, Ordering::Relaxed);
        inner.observers().event(&Event::BackplaneReceived);
    }

    fn gap(&self) {
        if let Some(inner) = self.0.upgrade() {
            // What was missed is not known: no entry of before is believed.
            inner.observers().event(&Event::BackplaneGap);
            inner.cleared_elsewhere();
        }
    }

    fn is_closed(&self) -> bool {
        self.0.strong_count() == 0
    }
}

impl<T: Value> Inner<T> {
    /// Begins to listen, with the first call that leaves the nearest level: a cache may be built outside of a runtime.
    pub(crate) fn listen(self: &Arc<Self>) {
        let Some(plane) = &self.plane else { return };
        if plane.subscribed.get().is_none()
            && tokio::runtime::Handle::try_current().is_ok()
            && plane.subscribed.set(()).is_ok()
        {
            plane.channel.subscribe(&self.around.name, Arc::new(Ear(Arc::downgrade(self))));
        }
    }

    /// Another node has changed a key: revokes what is in flight and lets go of it, also where nothing is held.
    fn invalidated_elsewhere(&self, id: &str) {
        let Ok(key) = self.key(id) else { return };
        self.slots.revoke(key, || {
            for store in self.tiers.iter().filter_map(|tier| tier.store.as_ref()) {
                store.remove(key);
            }
        });
    }

    /// Another node has invalidated tags. What is told by name needs no asking; whether something was missed before it shows
    /// by its number.
    fn reached_elsewhere(&self, reach: Reach, number: Stamp, tags: &[&str]) {
        if let Some(tier) = self.authority()
            && !tier.ledger.heard(number, tags.iter().copied(), reach)
        {
            tier.ledger.doubt();
        }
        self.remote().skip(1).for_each(|tier| tier.ledger.doubt());
        self.news.tags(tags.iter().copied(), reach);
    }

    /// Tells the other nodes that keys have changed. What the channel does not take is told when it is back.
    pub(crate) async fn tell(self: &Arc<Self>, keys: &[RawKey<'_>]) -> Delivery {
        let Some(plane) = &self.plane else { return Delivery::Confirmed };
        let sent = futures::future::join_all(
            keys.iter().map(|key| async { self.send_message(plane, &Told::Key(key.id)).await }),
        )
        .await;
        let mut delivery = Delivery::Confirmed;
        for (key, sent) in keys.iter().zip(sent) {
            if !sent {
                plane.pending.add(key.id);
                delivery = Delivery::Pending;
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

    async fn tell_or(self: &Arc<Self>, news: &Told<'_>, keep: impl FnOnce(&Pending)) -> Delivery {
        let Some(plane) = &self.plane else { return Delivery::Confirmed };
        if self.send_message(plane, news).await {
            return Delivery::Confirmed;
        }
        keep(&plane.pending);
        self.tell_later(plane);
        Delivery::Pending
    }

    async fn send_message(&self, plane: &Plane, news: &Told<'_>) -> bool {
        const BUDGET: Duration = Duration::from_millis(250);
        let call = plane.channel.publish(&self.around.name, plane.encode(news));
        let sent = self.around.clock.timeout(BUDGET, call).await.is_some_and(|sent| sent.is_ok());
        if sent {
            self.observers().event(&Event::BackplaneSent);
        }
        sent
    }

    fn tell_later(self: &Arc<Self>, plane: &Plane) {
        if plane.pending.claim() {
            let inner = Arc::clone(self);
            if self.spawn(async move { inner.retell().await }).is_none() {
                plane.pending.release();
            }
        }
    }

    async fn retell(self: &Arc<Self>) {
        let Some(plane) = &self.plane else { return };
        let mut pause = Duration::from_millis(20);
        loop {
            let mut well = true;
            match plane.pending.due(256) {
                None => {}
                Some(Due::Clear(number)) => {
                    well = self.send_message(plane, &Told::Clear).await;
                    if well {
                        plane.pending.delivered_clear(number);
                    }
                }
                Some(Due::Tags(reach, due)) => {
                    let tags: Vec<Box<str>> = due.iter().map(|(tag, _)| tag.clone()).collect();
                    // Under no number: what was missed is not known by now.
                    let news = Told::Tags { reach, number: Stamp::default(), tags: &tags };
                    well = self.send_message(plane, &news).await;
                    if well {
                        due.iter().for_each(|(tag, number)| plane.pending.delivered_tag(tag, *number));
                    }
                }
                Some(Due::Keys(due)) => {
                    for (id, number) in due {
                        well = self.send_message(plane, &Told::Key(&id)).await;
                        if !well {
                            break;
                        }
                        plane.pending.delivered(&id, number);
                    }
                }
            }
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

    struct Nowhere;
    #[async_trait]
    impl Backplane for Nowhere {
        async fn publish(&self, _: &str, _: Bytes) -> Result<(), BoxError> {
            Ok(())
        }
        fn subscribe(&self, _: &str, _: Arc<dyn Listener>) {}
    }

    #[test]
    fn messages_are_read_back_and_noise_is_not() {
        let plane = Plane::new(Arc::new(Nowhere));
        let other = plane.node ^ 1;
        let key = plane.encode(&Told::Key("k"));
        assert_eq!(decode(&key, plane.node), Heard::Own);
        assert_eq!(decode(&key, other), Heard::Key("k"));
        assert_eq!(decode(&plane.encode(&Told::Clear), other), Heard::Clear);
        assert_eq!(decode(&plane.encode(&Told::ExpireAll), other), Heard::ExpireAll);
        let long = "x".repeat(LONGEST_ID + 1);
        assert_eq!(decode(&plane.encode(&Told::Key(&long)), other), Heard::Clear);
        let (tags, number) = ([Box::from("a"), Box::from("b c")], Stamp { epoch: 7, sequence: 9 });
        let told = plane.encode(&Told::Tags { reach: Reach::Expire, number, tags: &tags });
        let heard = Heard::Tags { reach: Reach::Expire, number, tags: vec!["a", "b c"] };
        assert_eq!(decode(&told, other), heard);
        for cut in 0..key.len() {
            assert_eq!(decode(&key[..cut], other), Heard::Noise, "p10: cut at {cut}");
        }
        for cut in 0..told.len() {
            let heard = decode(&told[..cut], other);
            assert!(heard == Heard::Noise || cut == told.len() - 5, "p10: cut at {cut}: {heard:?}");
        }
        for (at, byte) in [(0, 2), (9, 7)] {
            let mut bytes = key.to_vec();
            bytes[at] = byte;
            assert_eq!(decode(&bytes, other), Heard::Noise);
        }
    }
}
