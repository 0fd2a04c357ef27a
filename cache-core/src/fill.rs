//! Writing entries to levels: encoding once per codec, fills under a ticket, order per key.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use futures::FutureExt;
use smallvec::SmallVec;

use crate::{
    Codec, Compression, Entry, EntryId, Event, Fill, LevelOp, Put, RawKey, SpanKind, SpanStart, Stamp, Value,
    entry::Stamps,
    envelope,
    inner::Inner,
    order::{NO_ORDER, WriteOrder},
    payload::{Form, Packing},
    replay::Replay,
    rights::{Right, Rights},
    slots::Ticket,
    tier::{Failure, Tier, Unfit},
    unsaved::Unsaved,
    value::Coding,
    within::{until_cancelled, within},
};

/// Room for an encoded value. Most are no larger, and a buffer that grows from nothing is moved five times until it is as
/// large.
const FIRST_ROOM: usize = 256;

/// An entry on its way to levels.
pub(crate) struct Outgoing<'k, T> {
    pub(crate) key: RawKey<'k>,
    pub(crate) entry: Entry<T>,
    /// The leases that it holds: without one of its own, a level that grants leases is not filled.
    pub(crate) rights: Rights,
    /// What this node knew to be stored under the key before.
    pub(crate) before: Option<EntryId>,
    /// Why the last level that it was sent to cannot hold it.
    pub(crate) unfit: Option<Unfit>,
    /// Encoded by the last codec asked for; levels usually share one. `None` inside: it cannot be encoded.
    payload: Option<(u8, Option<Bytes>)>,
    /// Packed as the last level packs, if its payload was that of `payload`.
    packed: Option<(Option<Compression>, Form, Bytes)>,
}

impl<'k, T: Value> Outgoing<'k, T> {
    pub(crate) fn new(key: RawKey<'k>, entry: Entry<T>) -> Self {
        Self { key, entry, rights: Rights::new(), before: None, unfit: None, payload: None, packed: None }
    }

    pub(crate) fn with_rights(mut self, rights: Rights) -> Self {
        self.rights = rights;
        self
    }

    pub(crate) fn with_before(mut self, before: Option<EntryId>) -> Self {
        self.before = before;
        self
    }

    pub(crate) fn has_right(&self, level: u8) -> bool {
        self.rights.iter().any(|right| right.level == level)
    }

    fn use_right(&mut self, level: u8) -> Option<Right> {
        let at = self.rights.iter().position(|right| right.level == level)?;
        Some(self.rights.swap_remove(at))
    }

    fn payload(&mut self, level: Codec, coding: &Coding<T>) -> Option<Bytes> {
        let codec = coding.id(level);
        if let Some((by, payload)) = &self.payload
            && *by == codec
        {
            return payload.clone();
        }
        let payload = match &self.entry.value {
            None => Some(Bytes::new()),
            Some(value) => {
                let mut out = Vec::with_capacity(FIRST_ROOM);
                coding.encode(level, value, &mut out).map(|()| Bytes::from(out))
            }
        };
        self.entry.encoded = payload.as_ref().and_then(|p| u32::try_from(p.len()).ok());
        self.payload = Some((codec, payload.clone()));
        self.packed = None;
        payload
    }

    /// The payload as this packing writes it, but for encryption, which binds it to a header.
    fn packed(&mut self, packing: &Packing, coding: &Coding<T>) -> Option<(Form, Bytes)> {
        let raw = self.payload(packing.codec, coding)?;
        let encrypted = packing.encryption.is_some();
        if let Some((by, form, bytes)) = &self.packed
            && *by == packing.compression
        {
            return Some((Form { encrypted, ..*form }, bytes.clone()));
        }
        let (form, bytes) = packing.pack(&raw);
        self.packed = Some((packing.compression, form, bytes.clone()));
        Some((form, bytes))
    }
}

/// Why an entry has no bytes for a level.
enum Unsent {
    /// Nothing of its life is left, or the level has no form for it.
    Spent,
    Unfit(Unfit),
}

const NOT_ENCODED: Unsent = Unsent::Unfit(Unfit::NotEncoded);

/// What became of each item that was sent.
type Sent<R> = Vec<Result<R, Failure>>;

impl<T: Value> Inner<T> {
    /// The bytes of an entry at a remote level, and how long they live there.
    fn wrap(
        &self,
        item: &mut Outgoing<'_, T>,
        tier: &Tier,
        stamp: Stamp,
    ) -> Result<(Bytes, Duration), Unsent> {
        let packing = &tier.packing;
        if packing.plain {
            // A bare level cannot say that there is nothing, and has no items of no bytes.
            let ttl = self.plain_ttl(&item.entry, tier).filter(|_| item.entry.value.is_some());
            let ttl = ttl.ok_or(Unsent::Spent)?;
            let payload = item.payload(packing.codec, &self.coding).filter(|bytes| !bytes.is_empty());
            return Ok((payload.ok_or(NOT_ENCODED)?, ttl));
        }
        let (mut header, ttl) = self.header(&item.entry, tier, stamp).ok_or(Unsent::Spent)?;
        let (form, payload) = item.packed(packing, &self.coding).ok_or(NOT_ENCODED)?;
        header.form = form;
        let bytes = match &packing.encryption {
            Some(encryption) => envelope::seal_encrypted(item.key, &header, &payload, encryption),
            None => Some(envelope::seal(item.key, &header, &payload)),
        };
        Ok((bytes.ok_or(NOT_ENCODED)?, ttl))
    }

    /// As [`wrap`](Self::wrap), if the level takes values that large. What cannot be stored there is counted and reported.
    fn wrap_to_fit(
        &self,
        item: &mut Outgoing<'_, T>,
        tier: &Tier,
        stamp: Stamp,
    ) -> Result<(Bytes, Duration), Unsent> {
        let wrapped = self.wrap(item, tier, stamp);
        if let Err(Unsent::Unfit(Unfit::NotEncoded)) = &wrapped {
            self.stats().not_encoded(tier.index);
            self.observers().event(&Event::NotEncoded { level: tier.index });
        }
        let (bytes, ttl) = wrapped?;
        if let Some(limit) = tier.caps.value_max
            && bytes.len() > limit
        {
            self.stats().too_large(tier.index);
            self.observers().event(&Event::TooLarge { level: tier.index, size: bytes.len(), limit });
            return Err(Unsent::Unfit(Unfit::TooLarge));
        }
        Ok((bytes, ttl))
    }

    /// Whether a level can hold a value, even if nothing of its life is left.
    pub(crate) fn fits(&self, item: &mut Outgoing<'_, T>, tier: &Tier, stamp: Stamp) -> Result<(), Unfit> {
        match self.wrap_to_fit(item, tier, stamp) {
            Err(Unsent::Unfit(unfit)) => Err(unfit),
            Ok(_) | Err(Unsent::Spent) => Ok(()),
        }
    }

    /// An entry that every reader takes for expired, and how long the level keeps it: see [`Plan::End`].
    fn nothing(&self, key: RawKey<'_>, tier: &Tier, stamp: Stamp) -> Option<(Bytes, Duration)> {
        let times = tier.times(&self.around.clock);
        let header = envelope::Header {
            codec: None,
            form: Form { squeezed: None, encrypted: tier.packing.encryption.is_some() },
            by_set: false,
            expired: true,
            id: EntryId::random(),
            schema: self.schema,
            born_ms: u64::try_from(times.store_ms).unwrap_or(0),
            fresh_for: Duration::ZERO,
            usable_for: Duration::ZERO,
            cost_us: 0,
            stamp,
            extra: None,
        };
        let bytes = match &tier.packing.encryption {
            Some(encryption) => envelope::seal_encrypted(key, &header, &[], encryption)?,
            None => envelope::seal(key, &header, &[]),
        };
        Some((bytes, tier.caps.ttl_step.max(Duration::from_millis(1))))
    }

    /// What the journal is to write to a level that has failed to take a set's value. `None`: nothing.
    pub(crate) fn unsaved(&self, item: &mut Outgoing<'_, T>, tier: &Tier, stamp: Stamp) -> Option<Unsaved> {
        // Here the caller is told of the failure, and assumes that nothing was stored.
        if tier.surface && !tier.background || !tier.leases() || stamp.epoch == 0 {
            return None;
        }
        let (bytes, ttl) = self.wrap(item, tier, stamp).ok()?;
        let until = self.now().after(ttl);
        Some(Unsaved { bytes, id: item.entry.id, stamp, until, before: item.before.into_iter().collect() })
    }

    /// Sends entries to one remote level in one batch, under their leases where they hold one for it. A value that the
    /// level cannot take leaves nothing behind there. `false`: the lease was refused.
    pub(crate) fn send(
        &self,
        tier: &Tier,
        items: &mut [&mut Outgoing<'_, T>],
        stamp: Stamp,
        order: &WriteOrder,
    ) -> impl Future<Output = Vec<Result<bool, Failure>>> + Send {
        let planned = (!self.has_ended()).then(|| self.plan(tier, items, stamp, order));
        // One value may take so long to encode that others have had their turn since.
        let planned = planned.filter(|_| !order.is_lost());
        // What only the plan needs is not carried along.
        async move {
            let Some(Planned { plan, fills, puts, drops }) = &planned else {
                return items.iter().map(|_| Err(Failure::Skipped)).collect();
            };
            let kept = items.iter().zip(plan).filter(|(_, plan)| matches!(plan, Plan::Fill | Plan::Put));
            let tagged: Vec<_> =
                kept.map(|(item, _)| &item.entry).filter(|entry| !entry.tags().is_empty()).collect();
            let (filled, put, dropped) = match &tagged[..] {
                [] => self.send_all(tier, fills, puts, drops).await,
                // Marks of their tags, where there are none yet, are made at the same time.
                tagged => {
                    let sent = self.send_all(tier, fills, puts, drops);
                    futures::future::join(sent, self.touch(tier, tagged)).boxed().await.0
                }
            };
            let (mut filled, mut put, mut dropped) =
                (filled.into_iter(), put.into_iter(), dropped.into_iter());
            plan.iter()
                .map(|plan| {
                    let result = match plan {
                        Plan::Fill | Plan::End(_) => filled.next(),
                        Plan::Put => put.next().map(stored),
                        Plan::Drop => dropped.next().map(stored),
                        Plan::Leave => Some(Ok(true)),
                    };
                    let result = result.unwrap_or(Err(Failure::Skipped));
                    if let (Plan::End(id), Err(_)) = (plan, &result) {
                        // The level may still have what should have gone.
                        tier.pending.add(id);
                    }
                    result
                })
                .collect()
        }
    }

    /// Says how entries go to a remote level, and puts together what is sent.
    fn plan<'k>(
        &self,
        tier: &Tier,
        items: &mut [&mut Outgoing<'k, T>],
        stamp: Stamp,
        order: &WriteOrder,
    ) -> Planned<'k> {
        let mut puts = Vec::with_capacity(items.len());
        let mut fills = Vec::new();
        let mut drops = Vec::new();
        let mut sizes = SmallVec::<[_; 4]>::with_capacity(items.len());
        let mut plan = SmallVec::with_capacity(items.len());
        for item in items.iter_mut() {
            // Encoding a large batch counts as progress: it does not lose its turn for that.
            if !plan.is_empty() {
                order.step();
            }
            let key = item.key;
            let wrapped = self.wrap_to_fit(item, tier, stamp);
            item.unfit = match &wrapped {
                Err(Unsent::Unfit(unfit)) => Some(*unfit),
                Ok(_) | Err(Unsent::Spent) => None,
            };
            match (wrapped, item.use_right(tier.index)) {
                (Ok((bytes, ttl)), right) => {
                    sizes.push(bytes.len());
                    let put = Put { key, bytes, ttl };
                    match right {
                        Some(Right { lease, .. }) => {
                            plan.push(Plan::Fill);
                            fills.push(Fill { put, lease });
                        }
                        None => {
                            plan.push(Plan::Put);
                            puts.push(put);
                        }
                    }
                }
                (Err(_), Some(right)) if right.of_nothing && self.plane.is_some() => {
                    plan.push(Plan::Leave);
                    item.rights.push(right);
                }
                (Err(_), right) => {
                    match right.and_then(|right| Some((self.nothing(key, tier, stamp)?, right.lease))) {
                        Some(((bytes, ttl), lease)) => {
                            plan.push(Plan::End(key.id));
                            fills.push(Fill { put: Put { key, bytes, ttl }, lease });
                        }
                        None => {
                            plan.push(Plan::Drop);
                            drops.push(key);
                        }
                    }
                }
            }
        }
        self.observers().items(tier.index, LevelOp::Put, &sizes);
        Planned { plan, fills, puts, drops }
    }

    async fn send_all(
        &self,
        tier: &Tier,
        fills: &[Fill<'_>],
        puts: &[Put<'_>],
        drops: &[RawKey<'_>],
    ) -> (Sent<bool>, Sent<()>, Sent<()>) {
        let around = &self.around;
        let filled = if fills.is_empty() { Vec::new() } else { tier.fill_many(around, fills).await };
        let put = if puts.is_empty() { Vec::new() } else { tier.put_many(around, puts).await };
        let dropped =
            if drops.is_empty() { Vec::new() } else { tier.remove_many(around, drops).boxed().await };
        (filled, put, dropped)
    }

    /// Fills the levels nearer than `below` with entries that were read or loaded, deepest first, each under its ticket.
    /// `stamps` were taken before that began. Says, per entry, whether it was not overtaken.
    pub(crate) async fn fill(
        self: &Arc<Self>,
        items: &mut [Outgoing<'_, T>],
        tickets: &[Ticket<T>],
        below: usize,
        stamps: &[Stamp],
    ) -> Vec<bool> {
        // After a put that failed, the level is not believed about its key until it has heard that the old entry is gone.
        let _replay = Replay(self);
        let mut held = vec![true; items.len()];
        for tier in self.tiers[..below].iter().rev() {
            if tier.store.is_some() {
                for ((item, ticket), held) in items.iter().zip(tickets).zip(&mut held) {
                    // What a deeper level has refused is not kept nearer.
                    *held = *held && self.keep(item.key, &item.entry, tier, ticket);
                }
                continue;
            }
            let stamp = stamps.get(usize::from(tier.index)).copied().unwrap_or_default();
            // The epoch is unknown, or the cache has been cleared since: no reader would believe an entry that carries it.
            if stamp.epoch == 0 || stamp.epoch != tier.stamp().epoch {
                continue;
            }
            for (item, held) in items.iter().zip(&mut held) {
                *held =
                    *held && (!tier.is_marked() || !tier.ledger.judge(stamp, item.entry.tags()).is_void());
            }
            // Boxed: a fill of memory alone needs none of it, and would carry its size.
            if tier.background {
                self.fill_later(tier, items, tickets, &held, stamp);
            } else if tier.leases() {
                self.fill_leased(tier, items, tickets, &mut held, stamp).boxed().await;
            } else {
                self.fill_in_turn(tier, items, tickets, &mut held, stamp).boxed().await;
            }
        }
        // Where a level is in memory, that has noted already that the key is there again.
        let nearby = self.tiers[..below].iter().any(|tier| tier.store.is_some());
        for ((item, held), ticket) in items.iter_mut().zip(&mut held).zip(tickets) {
            self.give_back(item.key, std::mem::take(&mut item.rights));
            *held = self.is_held(*held, ticket, &item.entry);
            if !*held {
                self.overtaken();
            } else if !nearby {
                ticket.commit(|| self.stats().gone.back(item.key.hash));
            }
        }
        held
    }

    /// Fills a level that keeps no leases, behind the writers that came before.
    async fn fill_in_turn(
        &self,
        tier: &Tier,
        items: &mut [Outgoing<'_, T>],
        tickets: &[Ticket<T>],
        held: &mut [bool],
        stamp: Stamp,
    ) {
        let mut batch = Vec::new();
        let mut order = Vec::new();
        for ((item, ticket), held) in items.iter_mut().zip(tickets).zip(held) {
            *held &= ticket.is_current();
            if *held && tier.takes(item) {
                batch.push(item);
                order.push(ticket);
            }
        }
        let turns = self.in_order(order.iter().copied()).await;
        // The writer that was waited for may have revoked the ticket.
        let mut current = order.iter().map(|t| t.is_current());
        batch.retain(|_| current.next().unwrap_or(false));
        // If the turn is lost, nothing is to be done: whoever took it has the level hear of the key.
        let _lost = turns.while_it_lasts(self.send(tier, &mut batch, stamp, &turns)).await;
    }

    /// Whether an entry that has been kept, as `held` says, has not been overtaken since.
    pub(crate) fn is_held(&self, held: bool, ticket: &Ticket<T>, entry: &Entry<T>) -> bool {
        held && ticket.is_current() && !self.verdict(entry).is_void()
    }

    pub(crate) fn overtaken(&self) {
        self.stats().overtaken();
        self.observers().event(&Event::Overtaken);
    }

    /// Fills a level that keeps leases. The store itself refuses what has been overtaken, so writers need not take turns.
    async fn fill_leased(
        &self,
        tier: &Tier,
        items: &mut [Outgoing<'_, T>],
        tickets: &[Ticket<T>],
        held: &mut [bool],
        stamp: Stamp,
    ) {
        let mut batch = Vec::new();
        let mut of = Vec::new();
        for (at, (item, ticket)) in items.iter_mut().zip(tickets).enumerate() {
            held[at] &= ticket.is_current();
            if held[at] && item.has_right(tier.index) && tier.takes(item) {
                batch.push(item);
                of.push(at);
            }
        }
        if batch.is_empty() {
            return;
        }
        for (at, sent) in of.into_iter().zip(self.send(tier, &mut batch, stamp, &NO_ORDER).await) {
            // Only a refusal forbids to keep it nearer; a level that fails has refused nothing.
            held[at] &= !matches!(sent, Ok(false));
        }
    }

    /// Fills a level that is written in the background, whether it grants leases or not.
    fn fill_later(
        self: &Arc<Self>,
        tier: &Tier,
        items: &mut [Outgoing<'_, T>],
        tickets: &[Ticket<T>],
        held: &[bool],
        stamp: Stamp,
    ) {
        let level = tier.index;
        let leased = tier.leases();
        let batch: Vec<_> = items
            .iter_mut()
            .zip(tickets)
            .zip(held)
            // What a deeper level has refused is not kept nearer.
            .filter(|((item, ticket), held)| {
                **held && ticket.is_current() && (!leased || item.has_right(level))
            })
            .map(|((item, ticket), _)| {
                let rights = item.use_right(level).into_iter().collect::<Rights>();
                (item.entry.clone(), ticket.again(), rights)
            })
            .collect();
        let inner = Arc::clone(self);
        self.spawn_write(batch.len(), async move {
            // As in `fill_leased`: an update has its turn while it waits for the lease that this fill is to use.
            let turns = match leased {
                true => WriteOrder::default(),
                false => inner.in_order(batch.iter().map(|(_, ticket, _)| ticket)).await,
            };
            let mut items: Vec<_> = batch
                .iter()
                .map(|(entry, ticket, rights)| {
                    Outgoing::new(ticket.key(&inner.around), entry.clone()).with_rights(rights.clone())
                })
                .collect();
            // What has been overtaken since is not sent. Its lease is given back all the same.
            let current = items.iter_mut().zip(&batch).filter(|(_, (_, ticket, _))| ticket.is_current());
            let mut refs: Vec<_> = current.map(|(item, _)| item).collect();
            let tier = &inner.tiers[usize::from(level)];
            // As in `fill_in_turn`.
            let _lost = turns.while_it_lasts(inner.send(tier, &mut refs, stamp, &turns)).await;
            inner.give_back_many(items.into_iter().map(|item| (item.key, item.rights)).collect());
        });
    }

    /// Runs a write of so many keys in the background, under a span of its own.
    pub(crate) fn spawn_write(
        self: &Arc<Self>,
        keys: usize,
        write: impl Future<Output = ()> + Send + 'static,
    ) {
        let inner = Arc::clone(self);
        let start = SpanStart { kind: SpanKind::WriteBehind, key: None, keys, root: true };
        let spans = self.observers().span(&start);
        let span = spans.clone();
        self.spawn(within(spans, async move {
            write.await;
            span.end();
            inner.replay();
        }));
    }

    /// The stamps that entries loaded or read from now on will carry.
    pub(crate) fn stamps(&self) -> Stamps {
        let near = self.authority().map_or_else(Stamp::default, Tier::stamp);
        let decides = self.authority().map(|tier| tier.index);
        let of = |tier: &Tier| {
            if tier.store.is_some() || decides == Some(tier.index) { near } else { tier.stamp() }
        };
        self.tiers.iter().map(of).collect()
    }

    /// Runs work that outlives its caller, until the cache is closed at the latest. `None`: there is no runtime to run it.
    pub(crate) fn spawn(
        &self,
        work: impl Future<Output = ()> + Send + 'static,
    ) -> Option<tokio::task::AbortHandle> {
        let runtime = tokio::runtime::Handle::try_current().ok()?;
        let task = runtime.spawn(self.tasks.track_future(until_cancelled(&self.closing, work)));
        Some(task.abort_handle())
    }
}

impl Tier {
    /// Whether the level may be filled with the item: not while it has yet to hear of an invalidation that concerns it.
    fn takes<T>(&self, item: &Outgoing<'_, T>) -> bool {
        !self.masks(item.key.id) && self.reaches(item.entry.tags()).is_none()
    }
}

fn stored(result: Result<(), Failure>) -> Result<bool, Failure> {
    result.map(|()| true)
}

/// How an entry goes to a level.
enum Plan<'k> {
    Fill,
    Put,
    /// The level cannot hold it, or nothing is left of its life: what is there is removed.
    Drop,
    /// As `Drop`, under a lease: an entry that every reader takes for expired is filled in. A removal would also take away
    /// what another has stored since.
    End(&'k str),
    /// As `End`, but the level had nothing when it granted the lease: nothing is sent, and the lease is given back. An
    /// entry filled in would expire a moment later, and the backplane may report that to all nodes as a change.
    Leave,
}

/// What is sent to a level, and in which way each item goes.
struct Planned<'k> {
    plan: SmallVec<[Plan<'k>; 1]>,
    fills: Vec<Fill<'k>>,
    puts: Vec<Put<'k>>,
    drops: Vec<RawKey<'k>>,
}
