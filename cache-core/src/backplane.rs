//! The backplane: how other nodes learn of invalidations, so that their in-process levels let go of old values.

use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

use async_trait::async_trait;
use bytes::{BufMut, Bytes, BytesMut};

use crate::{
    BoxError, Delivery, Event, LevelFault, RawKey, SpanKind, SpanStart, Value,
    gone::Cause,
    inner::Inner,
    observe::within,
    pending::{Due, Pending},
    stats::OnBackplane,
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
pub trait Listener: Send + Sync + 'static {
    /// A message has arrived.
    fn message(&self, bytes: &[u8]);

    /// Messages may have been lost: the channel was down or silent, or has just come up for the first time.
    fn gap(&self);

    /// Somebody else has written, removed or lost what the watched store holds under this id of the cache.
    fn changed(&self, id: &str) {
        let _ = id;
        self.gap();
    }

    /// Somebody else has written, removed or lost the cache's marker there.
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

/// Version, node, time of sending, kind, id.
const VERSION: u8 = 2;
const CLEAR: u8 = 0;
const KEY: u8 = 1;
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
}

impl Plane {
    pub(crate) fn new(channel: Arc<dyn Backplane>) -> Self {
        Self { channel, node: fastrand::u64(..), subscribed: OnceLock::new(), pending: Pending::default() }
    }

    /// Whether the others hear of writes by themselves.
    fn is_heard(&self, cache: &str) -> bool {
        self.channel.hears_writes(cache)
    }

    /// `None` for the whole cache. `sent_us`: the time, for those who want to know how long it took.
    fn encode(&self, id: Option<&str>, sent_us: i64) -> Bytes {
        let id = id.filter(|id| id.len() <= LONGEST_ID);
        let mut out = BytesMut::with_capacity(18 + id.map_or(0, str::len));
        out.put_u8(VERSION);
        out.put_u64_le(self.node);
        out.put_i64_le(sent_us);
        out.put_u8(if id.is_some() { KEY } else { CLEAR });
        out.put_slice(id.unwrap_or_default().as_bytes());
        out.freeze()
    }
}

/// What a message says. Anything that is not one is dropped.
enum Heard<'a> {
    Own,
    Clear { sent_us: i64 },
    Key { id: &'a str, sent_us: i64 },
    Noise,
}

fn decode(bytes: &[u8], me: u64) -> Heard<'_> {
    let [VERSION, rest @ ..] = bytes else { return Heard::Noise };
    let Some((node, rest)) = rest.split_first_chunk::<8>() else { return Heard::Noise };
    let Some((sent, rest)) = rest.split_first_chunk::<8>() else { return Heard::Noise };
    if u64::from_le_bytes(*node) == me {
        return Heard::Own;
    }
    let sent_us = i64::from_le_bytes(*sent);
    match rest {
        [CLEAR] => Heard::Clear { sent_us },
        [KEY, id @ ..] if !id.is_empty() && id.len() <= LONGEST_ID => {
            std::str::from_utf8(id).map_or(Heard::Noise, |id| Heard::Key { id, sent_us })
        }
        _ => Heard::Noise,
    }
}

/// Listens for a cache without keeping it alive.
struct Ear<T>(std::sync::Weak<Inner<T>>);

impl<T: Value> Listener for Ear<T> {
    fn message(&self, bytes: &[u8]) {
        let Some(inner) = self.0.upgrade() else { return };
        let Some(plane) = &inner.plane else { return };
        let sent_us = match decode(bytes, plane.node) {
            Heard::Own => return,
            Heard::Clear { sent_us } => {
                inner.cleared_elsewhere();
                sent_us
            }
            Heard::Key { id, sent_us } => {
                inner.invalidated_elsewhere(id);
                sent_us
            }
            Heard::Noise => {
                inner.stats().on_backplane(OnBackplane::Noise);
                inner.observers().event(&Event::BackplaneNoise);
                return;
            }
        };
        inner.stats().on_backplane(OnBackplane::Received);
        if !inner.observers().is_empty() {
            let lag =
                Duration::from_micros(u64::try_from(inner.shared_us().saturating_sub(sent_us)).unwrap_or(0));
            inner.observers().event(&Event::BackplaneReceived { lag: Some(lag) });
        }
    }

    fn changed(&self, id: &str) {
        let Some(inner) = self.0.upgrade() else { return };
        inner.invalidated_elsewhere(id);
        inner.noticed();
    }

    fn marker_changed(&self) {
        let Some(inner) = self.0.upgrade() else { return };
        inner.cleared_elsewhere();
        inner.noticed();
    }

    fn keeps_in(&self, store: u64) -> bool {
        let Some(inner) = self.0.upgrade() else { return false };
        store != 0 && inner.remote().next().is_some_and(|tier| tier.provider.store_id() == store)
    }

    fn gap(&self) {
        if let Some(inner) = self.0.upgrade() {
            // What was missed is not known: no entry of before is believed.
            inner.stats().on_backplane(OnBackplane::Gap);
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

    /// Counts a change that the backplane has seen in the store.
    fn noticed(&self) {
        self.stats().on_backplane(OnBackplane::Received);
        self.observers().event(&Event::BackplaneReceived { lag: None });
    }

    /// The time, in microseconds since the Unix epoch, by the clock that the nodes of this cache share: a store's, where
    /// its difference is measured.
    fn shared_us(&self) -> i64 {
        let ahead_ms = self.remote().map(|tier| tier.provider.time_offset_ms()).find(|ms| *ms != 0);
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

    /// Tells the other nodes that keys have changed. What the channel does not take is told when it is back.
    pub(crate) async fn tell(self: &Arc<Self>, keys: &[RawKey<'_>]) -> Delivery {
        let Some(plane) = self.plane.as_ref().filter(|plane| !plane.is_heard(&self.around.name)) else {
            return Delivery::Confirmed;
        };
        let sent =
            futures::future::join_all(keys.iter().map(|key| self.send_message(plane, Some(key.id)))).await;
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
        let Some(plane) = self.plane.as_ref().filter(|plane| !plane.is_heard(&self.around.name)) else {
            return Delivery::Confirmed;
        };
        if self.send_message(plane, None).await {
            return Delivery::Confirmed;
        }
        plane.pending.add_clear();
        self.tell_later(plane);
        Delivery::Pending
    }

    async fn send_message(&self, plane: &Plane, id: Option<&str>) -> bool {
        const BUDGET: Duration = Duration::from_millis(250);
        let start =
            SpanStart { kind: SpanKind::Publish, key: None, keys: usize::from(id.is_some()), root: false };
        let spans = self.observers().span(&start);
        let call = plane.channel.publish(&self.around.name, plane.encode(id, self.shared_us()));
        let sent = self.around.clock.timeout(BUDGET, spans.around(call)).await;
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
            None => {}
            Some(Due::Clear(number)) => {
                if !self.send_message(plane, None).await {
                    return false;
                }
                plane.pending.delivered_clear(number);
            }
            Some(Due::Keys(due)) => {
                for (id, number) in due {
                    if !self.send_message(plane, Some(&id)).await {
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
        assert!(matches!(decode(&plane.encode(Some("k"), 7), plane.node), Heard::Own));
        assert!(matches!(decode(&plane.encode(Some("k"), 7), other), Heard::Key { id: "k", sent_us: 7 }));
        assert!(matches!(decode(&plane.encode(None, 7), other), Heard::Clear { sent_us: 7 }));
        let long = "x".repeat(LONGEST_ID + 1);
        assert!(matches!(decode(&plane.encode(Some(&long), 7), other), Heard::Clear { sent_us: 7 }));
        let message = plane.encode(Some("k"), 7);
        for cut in 0..message.len() {
            assert!(matches!(decode(&message[..cut], other), Heard::Noise), "p10: cut at {cut}");
        }
        for (at, byte) in [(0, 1), (17, 7)] {
            let mut bytes = message.to_vec();
            bytes[at] = byte;
            assert!(matches!(decode(&bytes, other), Heard::Noise));
        }
    }
}
