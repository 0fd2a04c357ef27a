//! What is heard of other nodes, and what becomes of it here.

use std::{
    sync::{Arc, Weak, atomic::Ordering},
    time::Duration,
};

use super::{
    FIRST, Listener, Plane,
    message::{Heard, What, decode},
};
use crate::{
    EntryId, Event, Moment, Stamp, Value, gone::Cause, inner::Inner, mark::Reach, stats::OnBackplane,
    tier::Tier,
};

/// Listens for a cache without keeping it alive.
struct Ear<T> {
    inner: Weak<Inner<T>>,
    /// The number of the channel that it listens to.
    channel: u64,
}

impl<T: Value> Ear<T> {
    /// What the channel before said of how long memory is to be believed says nothing of this one.
    fn comes_up(&self, inner: &Inner<T>, plane: &Plane) {
        if plane.is_new(self.channel) {
            inner.trust.lift();
        }
    }
}

impl<T: Value> Listener for Ear<T> {
    fn message(&self, bytes: &[u8]) {
        let Some(inner) = self.inner.upgrade() else { return };
        let Some(plane) = &inner.plane else { return };
        self.comes_up(&inner, plane);
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

    fn believe(&self, left: Duration, span: Duration) {
        let Some(inner) = self.inner.upgrade() else { return };
        if inner.plane.as_ref().is_some_and(|plane| plane.is_listened_to(self.channel)) {
            inner.trust.give(inner.now(), left, span);
        }
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
        inner.plane.iter().for_each(|plane| self.comes_up(&inner, plane));
        if inner.plane.as_ref().is_none_or(|plane| plane.has_gap(self.channel)) {
            inner.missed_something();
        }
        inner.plane.iter().for_each(Plane::heard);
        if inner.plane.as_ref().is_some_and(|plane| plane.fails.swap(false, Ordering::AcqRel)) {
            inner.observers().event(&Event::BackplaneUp);
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
            inner.has_ended()
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

    /// Begins to listen, and waits a while for the channel to come up: what is being loaded at that moment is kept nowhere.
    pub(crate) async fn hears(self: &Arc<Self>) {
        self.listen();
        let Some(plane) = &self.plane else { return };
        if plane.subscribed.load(Ordering::Acquire) > 0 && !*plane.hears.borrow() {
            let mut hears = plane.hears.subscribe();
            let _ = self.around.clock.timeout(FIRST, hears.wait_for(|hears| *hears)).await;
        }
    }

    /// Lets go of what memory holds if nobody has said for too long that nothing was missed.
    pub(crate) fn distrust(&self) {
        let until = self.trust.until();
        if until != Moment::NEVER && !self.around.clock.is_before(until) {
            self.trust.end(self.now(), || self.missed_something());
        }
    }

    /// Messages were missed, and nobody knows which. Entries of before are void from here on, and so before any observer is
    /// told.
    fn missed_something(&self) {
        self.cleared_elsewhere();
        self.stats().on_backplane(OnBackplane::Gap);
        self.observers().event(&Event::BackplaneGap);
    }

    /// Counts a change that the backplane has seen in the store.
    fn noticed(&self) {
        self.stats().on_backplane(OnBackplane::Received);
        self.observers().event(&Event::BackplaneReceived { lag: None });
    }

    /// The time, in microseconds since the Unix epoch, by the clock that the nodes of this cache share: a store's, where
    /// its difference is measured.
    pub(super) fn shared_us(&self) -> i64 {
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
}
