//! `set`, `invalidate` and `clear`: bottom-up, in order per key, the nearest level last.

use std::sync::Arc;

use futures::FutureExt;
use smallvec::SmallVec;
use smol_str::SmolStr;

use crate::{
    Begun, Delivery, Entry, EntryId, ErrorKind, Loaded, RawKey, Result, Scope, Value,
    fill::Outgoing,
    gone::Cause,
    inner::Inner,
    learn::READS,
    loaded::Answered,
    mark::Reach,
    observers::Spans,
    order::WriteOrder,
    slots::Ticket,
    tier::{Failure, Tier, Unfit},
};

/// What a write has come to so far, over its levels.
pub(crate) struct Written {
    delivery: Delivery,
    error: Option<crate::Error>,
}

impl Written {
    pub(crate) fn new() -> Self {
        Self { delivery: Delivery::Confirmed, error: None }
    }

    pub(crate) fn take(&mut self, tier: &Tier, result: Result<(), Failure>) {
        if let Err(failure) = result {
            self.delivery = Delivery::Pending;
            if tier.surface {
                self.error.get_or_insert_with(|| failure.into_error(tier));
            }
        }
    }

    /// What a level cannot hold is gone from there, as if it had been evicted.
    fn unfit(&mut self, tier: &Tier, unfit: Unfit) {
        if tier.surface {
            self.error.get_or_insert_with(|| unfit.into_error(tier));
        }
    }

    /// With what came of telling the other nodes.
    pub(crate) fn told(mut self, told: Delivery) -> Self {
        self.delivery = self.delivery.and(told);
        self
    }

    pub(crate) fn pending(&mut self) {
        self.delivery = Delivery::Pending;
    }

    pub(crate) fn end(self) -> Result<Delivery> {
        match self.error {
            Some(error) => Err(error),
            None => Ok(self.delivery),
        }
    }
}

/// A write under way on some keys. If its caller leaves in the middle, nothing of the keys stays at in-process levels,
/// and remote ones, which may hold either value then, hear an invalidation before they are read again.
pub(crate) struct Writing<'k, T: Value> {
    inner: Arc<Inner<T>>,
    pub(crate) keys: SmallVec<[RawKey<'k>; 1]>,
    pub(crate) tickets: SmallVec<[Ticket<T>; 1]>,
    /// It has had its turn: remote levels may have been sent something.
    sent: bool,
    ended: bool,
}

impl<'k, T: Value> Writing<'k, T> {
    /// Revokes every ticket of the keys: what was loaded or read before now is older than what is being written.
    pub(crate) fn begin(inner: &Arc<Inner<T>>, keys: impl IntoIterator<Item = RawKey<'k>>) -> Self {
        let keys: SmallVec<_> = keys.into_iter().collect();
        let tickets = keys.iter().map(|key| inner.slots.open_write(*key)).collect();
        Self { inner: Arc::clone(inner), keys, tickets, sent: false, ended: false }
    }

    /// From here on remote levels may be sent something.
    pub(crate) fn sends(&mut self) {
        self.sent = true;
    }

    /// Ends it: reads that began in between fill nothing. `entries` are kept at in-process levels, one per key, unless
    /// another write of the key overlapped; keys without one are gone from there.
    pub(crate) fn end<'e>(mut self, entries: impl IntoIterator<Item = &'e Entry<T>>) {
        self.finish(entries);
        // Not before: should a weigher panic, nothing stays.
        self.ended = true;
    }

    /// Ends it without having written: only what was under way is revoked.
    pub(crate) fn end_unwritten(mut self) {
        self.ended = true;
        for ticket in &mut self.tickets {
            ticket.end_write(|_| ());
        }
    }

    /// Ends it, leaving at in-process levels what they hold, no longer fresh.
    pub(crate) fn end_expired(&mut self) {
        self.ended = true;
        let Self { inner, keys, tickets, .. } = self;
        let now = inner.now();
        for (key, ticket) in keys.iter().zip(tickets) {
            ticket.end_write(|_| {
                for store in inner.tiers.iter().filter_map(|tier| tier.store.as_ref()) {
                    if let Some(mut object) = store.get(*key) {
                        // The store may have let go of it by now.
                        object.outlive_locks();
                        object.expire(now);
                        store.put(*key, object, now);
                    }
                }
            });
        }
    }

    fn finish<'e>(&mut self, entries: impl IntoIterator<Item = &'e Entry<T>>) {
        let Self { inner, keys, tickets, .. } = self;
        let now = inner.now();
        let mut entries = entries.into_iter();
        for (key, ticket) in keys.iter().zip(tickets) {
            let entry = entries.next();
            // Made before the key is locked: a weigher is anybody's code.
            let objects: SmallVec<[_; 2]> = inner
                .tiers
                .iter()
                .rev()
                .filter_map(|tier| {
                    let store = tier.store.as_ref()?;
                    Some((store, entry.and_then(|entry| inner.object(entry, tier))))
                })
                .collect();
            ticket.end_write(|alone| {
                if alone && entry.is_some() {
                    // Before: what is too heavy has left again when it has been put.
                    inner.stats().gone.back(key.hash);
                }
                for (store, object) in objects {
                    match object.filter(|_| alone) {
                        Some(object) => store.put(*key, object, now),
                        None => {
                            store.remove(*key);
                        }
                    }
                }
            });
        }
    }
}

impl<T: Value> Drop for Writing<'_, T> {
    fn drop(&mut self) {
        if self.ended {
            return;
        }
        self.finish([]);
        if self.sent {
            self.inner.in_doubt(self.keys.iter().copied());
            self.inner.replay();
        }
    }
}

impl<T: Value> Inner<T> {
    /// Stores values given by the caller. Each key once.
    pub(crate) async fn set_all(
        self: &Arc<Self>,
        items: Vec<(RawKey<'_>, Loaded<T>)>,
        spans: &Spans,
    ) -> Result<Delivery> {
        self.check_open()?;
        let now = self.now();
        let (mut stored, mut gone) = (Vec::with_capacity(items.len()), Vec::new());
        for (key, loaded) in items {
            let Loaded { answer, ttl, grace, extra, .. } = loaded;
            let value = match answer {
                Answered::Value(value) => Some(value),
                Answered::Absent => None,
                Answered::Unchanged | Answered::DoNotStore(_) | Answered::Failed(_) => {
                    return Err(crate::Error::new(
                        ErrorKind::Config,
                        "a set takes a value or an absence; `unchanged`, `do_not_store` and `failed` are answers of loaders",
                    ));
                }
            };
            self.check_tags(&extra.tags)?;
            let timeline = self.timeline(now, value.is_none(), ttl, grace);
            if timeline.fresh_until <= now {
                gone.push(key);
                continue;
            }
            let entry = Entry {
                value,
                timeline,
                id: EntryId::random(),
                stamp: crate::Stamp::default(),
                seen: 0,
                cost: std::time::Duration::ZERO,
                by_set: true,
                extra: extra.boxed(),
                quiet_until: None,
                encoded: None,
            };
            stored.push(Outgoing::new(key, entry));
        }
        let mut delivery = Delivery::Confirmed;
        if !gone.is_empty() {
            delivery = self.invalidate_all(gone).boxed().await?;
        }
        if !stored.is_empty() {
            delivery = delivery.and(self.put_all(stored, spans).await?);
        }
        Ok(delivery)
    }

    async fn put_all(self: &Arc<Self>, mut items: Vec<Outgoing<'_, T>>, spans: &Spans) -> Result<Delivery> {
        let mut writing = Writing::begin(self, items.iter().map(|i| i.key));
        for item in items.iter_mut().filter(|_| self.has_remote()) {
            item.before = self.nearby_id(item.key);
        }
        let mut written = Written::new();
        // Held until the end: a fill that waits for its turn must find its ticket revoked by then.
        let order = Arc::new(self.order_of(&mut writing, &mut written).await);
        self.write_through(&mut items, &order, &mut written).await;
        if let [Outgoing { entry, .. }] = &items[..] {
            spans.entry(entry, entry.timeline.born);
        }
        let told = order.meanwhile(self.tell(&writing.keys)).await;
        // A caller who is told of an error assumes that nothing was stored; what is in doubt must not be served.
        let kept = (written.error.is_none() && !self.has_ended()).then_some(&items);
        writing.end(kept.into_iter().flatten().map(|item| &item.entry));
        drop(order);
        self.replay();
        written.told(told).end()
    }

    /// The entry that this node holds of a key.
    fn nearby_id(&self, key: RawKey<'_>) -> Option<EntryId> {
        self.tiers.iter().find_map(|tier| tier.store.as_ref()?.get(key)).map(|object| object.id)
    }

    /// Waits for the turn of a write among the writers of its keys. Nothing to wait for without remote levels: there
    /// the key's own lock orders.
    pub(crate) async fn order_of(&self, writing: &mut Writing<'_, T>, written: &mut Written) -> WriteOrder {
        if !self.has_remote() {
            return WriteOrder::default();
        }
        let order = self.in_order(&writing.tickets).await;
        writing.sends();
        if order.took_over {
            written.pending();
        }
        order
    }

    /// Remote levels may hold anything of keys: they hear an invalidation before they are read again.
    pub(crate) fn in_doubt<'k>(&self, keys: impl IntoIterator<Item = RawKey<'k>>) {
        for key in keys {
            self.remote().for_each(|tier| tier.pending.add(key.id));
        }
    }

    /// For a write that did not get on, so that others have taken its turn: what it has sent may arrive after theirs.
    pub(crate) fn lost_turn(&self, keys: &[RawKey<'_>], written: &mut Written) {
        self.in_doubt(keys.iter().copied());
        for tier in self.remote().rev() {
            written.take(tier, Err(Failure::overtaken()));
        }
    }

    /// Begins a write, for writers that have read nothing: what is invalidated from here on as a whole or by a tag beats
    /// it, at every level alike. A level that does not say what its mark is now gets an empty stamp: what is written there
    /// under the old one would be confirmed, and void.
    pub(crate) async fn begin_writing(&self) -> Begun {
        let outdated = || self.remote().filter(|tier| tier.ledger.is_outdated());
        for _ in 0..READS {
            let mut silent = false;
            for tier in self.remote().rev() {
                tier.know_epoch(&self.around).await;
                tier.ledger.note_blind();
                silent |= tier.ledger.is_outdated();
            }
            // News of one level may come while another is asked. Who does not answer is not asked again.
            if silent || outdated().next().is_none() {
                break;
            }
        }
        let mut begun = self.begin();
        for tier in outdated() {
            if let Some(stamp) = begun.stamps.get_mut(usize::from(tier.index)) {
                *stamp = crate::Stamp::default();
            }
        }
        begun
    }

    /// Writes entries to the remote levels, deepest first, in their turn.
    async fn write_through(
        self: &Arc<Self>,
        items: &mut [Outgoing<'_, T>],
        order: &Arc<WriteOrder>,
        written: &mut Written,
    ) {
        let begun = order.while_it_lasts(self.begin_writing()).await.unwrap_or_else(|| self.begin());
        let near = self.authority().map_or_else(crate::Stamp::default, |tier| begun.stamp(tier.index));
        for item in &mut *items {
            (item.entry.stamp, item.entry.seen) = (near, begun.seen);
        }
        // Boxed: a set in memory is not made to carry what remote levels need.
        if self.has_remote() {
            let writing = self.write_below(items, &begun, order, written).boxed();
            if order.while_it_lasts(writing).await.is_none() {
                let keys: Vec<_> = items.iter().map(|item| item.key).collect();
                self.lost_turn(&keys, written);
            }
        }
    }

    pub(crate) async fn write_below(
        self: &Arc<Self>,
        items: &mut [Outgoing<'_, T>],
        begun: &Begun,
        order: &Arc<WriteOrder>,
        written: &mut Written,
    ) {
        for tier in self.remote().rev().filter(|tier| !tier.background) {
            let (stamp, here) = (begun.stamp(tier.index), tier.place());
            let results = if stamp.epoch == 0 {
                items.iter().map(|_| Err(Failure::Mute)).collect()
            } else {
                let mut refs: SmallVec<[_; 1]> = items.iter_mut().collect();
                self.send(tier, &mut refs, stamp, order).await
            };
            for (item, result) in items.iter_mut().zip(results) {
                let result = tier.noted(&self.around, here, item.key.id, result);
                if result.is_err() {
                    self.keep_for_later(item, tier, stamp);
                }
                written.take(tier, result.map(drop));
                if let Some(unfit) = item.unfit.take() {
                    written.unfit(tier, unfit);
                }
            }
        }
        let behind = self.remote().rev().filter(|tier| tier.background);
        let later: Vec<_> = behind.map(|tier| (tier.index, begun.stamp(tier.index))).collect();
        if !later.is_empty() {
            written.pending();
            self.write_later(items, later, order);
        }
    }

    /// The level may hold what this write replaces: its journal has the key, and the value where it may be stored yet.
    fn keep_for_later(&self, item: &mut Outgoing<'_, T>, tier: &Tier, stamp: crate::Stamp) {
        let id = item.key.id;
        match self.unsaved(item, tier, stamp) {
            Some(value) => tier.pending.add_value(id, value, self.now()),
            None => tier.pending.add(id),
        }
    }

    /// Background levels. They share the order, so that a later writer of a key waits for this one.
    fn write_later(
        self: &Arc<Self>,
        items: &[Outgoing<'_, T>],
        levels: Vec<(u8, crate::Stamp)>,
        order: &Arc<WriteOrder>,
    ) {
        let (inner, order) = (Arc::clone(self), Arc::clone(order));
        let batch: Vec<(Ticket<T>, Entry<T>, Option<EntryId>)> =
            items.iter().map(|i| (self.slots.open(i.key), i.entry.clone(), i.before)).collect();
        let mut behind: Vec<_> =
            levels.iter().map(|(level, _)| Behind::new(&inner, *level, &batch)).collect();
        self.spawn_write(batch.len(), async move {
            let write = inner.write_behind(&batch, levels, &mut behind, &order);
            // What has not arrived by then is in doubt, as `behind` says when it goes.
            let _lost = order.while_it_lasts(write).await;
            // Before the order ends: the next writer of a key is to find it in doubt.
            drop(behind);
        });
    }

    /// Writes to background levels, one after the other.
    async fn write_behind(
        &self,
        batch: &[(Ticket<T>, Entry<T>, Option<EntryId>)],
        levels: Vec<(u8, crate::Stamp)>,
        behind: &mut [Behind<T>],
        order: &WriteOrder,
    ) {
        for ((level, stamp), behind) in levels.into_iter().zip(behind) {
            let tier = &self.tiers[usize::from(level)];
            let mut items: Vec<_> = batch
                .iter()
                .map(|(ticket, entry, before)| {
                    Outgoing::new(ticket.key(&self.around), entry.clone()).with_before(*before)
                })
                .collect();
            let mut refs: Vec<_> = items.iter_mut().collect();
            let here = tier.place();
            let results = self.send(tier, &mut refs, stamp, order).await;
            if order.is_lost() {
                return;
            }
            for (item, result) in items.iter_mut().zip(results) {
                let result = tier.noted(&self.around, here, item.key.id, result);
                if result.is_err() {
                    self.keep_for_later(item, tier, stamp);
                }
            }
            behind.arrived();
        }
    }

    /// Makes keys gone at every level. Each key once.
    pub(crate) async fn invalidate_all(self: &Arc<Self>, keys: Vec<RawKey<'_>>) -> Result<Delivery> {
        self.check_open()?;
        let mut writing = Writing::begin(self, keys);
        let mut written = Written::new();
        let order = self.order_of(&mut writing, &mut written).await;
        if order.while_it_lasts(self.remove_below(&writing, &mut written)).await.is_none() {
            self.lost_turn(&writing.keys, &mut written);
        }
        let told = order.meanwhile(self.tell(&writing.keys)).await;
        self.gone(&writing.keys);
        writing.end([]);
        self.replay();
        written.told(told).end()
    }

    /// Counts keys that have been invalidated here.
    pub(crate) fn gone(&self, keys: &[RawKey<'_>]) {
        self.stats().invalidated(Scope::Key, keys.len());
        for key in keys {
            self.stats().gone.left(key.hash, Cause::Invalidated);
        }
    }

    /// Removes the keys of a write from the remote levels, deepest first, in their turn.
    pub(crate) async fn remove_below(self: &Arc<Self>, writing: &Writing<'_, T>, written: &mut Written) {
        for tier in self.remote().rev() {
            for result in tier.remove_many(&self.around, &writing.keys).await {
                written.take(tier, result);
            }
        }
    }

    /// Makes every entry of this cache void, at every level, without touching another cache's.
    pub(crate) async fn clear_all(self: &Arc<Self>) -> Result<Delivery> {
        self.check_open()?;
        self.check_scopes("clear")?;
        let mut written = Written::new();
        let wide = self.begin_wide(&[], Reach::Purge);
        let mut clearing = Clearing { inner: self, ended: false };
        for tier in self.remote().rev() {
            let result = tier.new_epoch(&self.around).await;
            if result.is_err() {
                tier.pending.add_clear();
            }
            written.take(tier, result);
        }
        clearing.ended = true;
        drop(clearing);
        wide.past_levels();
        self.stats().invalidated(Scope::Cache, 1);
        let told = self.tell_clear().await;
        drop(wide);
        written.told(told).end()
    }
}

/// Values on their way to a level that is written in the background: until they are there, this node does not believe what
/// the level has. Should they never get there, the level has to hear that what it has is out of date.
struct Behind<T: Value> {
    inner: Arc<Inner<T>>,
    level: u8,
    ids: Vec<SmolStr>,
}

impl<T: Value> Behind<T> {
    fn new(inner: &Arc<Inner<T>>, level: u8, batch: &[(Ticket<T>, Entry<T>, Option<EntryId>)]) -> Self {
        let ids: Vec<_> = batch.iter().map(|(ticket, ..)| ticket.id().clone()).collect();
        ids.iter().for_each(|id| inner.tiers[usize::from(level)].pending.set_out(id));
        Self { inner: Arc::clone(inner), level, ids }
    }

    fn arrived(&mut self) {
        let pending = &self.inner.tiers[usize::from(self.level)].pending;
        self.ids.drain(..).for_each(|id| pending.arrived(&id));
    }
}

impl<T: Value> Drop for Behind<T> {
    fn drop(&mut self) {
        let pending = &self.inner.tiers[usize::from(self.level)].pending;
        self.ids.iter().for_each(|id| pending.add(id));
        self.arrived();
    }
}

/// A clear under way. Its end is the nearest levels' turn. If its caller leaves in the middle, a remote level may have
/// a new epoch that this node does not know: they are all cleared once more.
struct Clearing<'a, T: Value> {
    inner: &'a Arc<Inner<T>>,
    ended: bool,
}

impl<T: Value> Drop for Clearing<'_, T> {
    fn drop(&mut self) {
        let inner = self.inner;
        if !self.ended {
            inner.remote().for_each(|tier| tier.pending.add_clear());
        }
        // From here on no object of before is believed, and no older fill gets in.
        inner.void_in_process();
        for tier in &inner.tiers {
            if let Some(store) = &tier.store {
                store.clear(inner.around.cache);
            }
        }
        inner.replay();
    }
}
