//! The journal's replay: levels that are back hear what they have missed, invalidations first.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use scopeguard::ScopeGuard;

use crate::{
    Acquire, Acquired, EntryId, Fill, Holding, Lease, Put, RawKey, SpanKind, SpanStart, Value, envelope,
    gates::Whom,
    inner::Inner,
    pending::Due,
    rights::{LEASE, Right},
    tier::{Failure, Place, Tier},
    unsaved::Unsaved,
    within::within,
};

/// Most of one round.
pub(crate) const BATCH: usize = 256;

/// Pause after a round that failed: 20 ms, twice as long with each that fails after it, 1 s at most.
pub(crate) struct Pause(Duration);

impl Pause {
    pub(crate) const FIRST: Self = Self(Duration::from_millis(20));
    const LONGEST: Duration = Duration::from_secs(1);

    /// The one that is due now. With jitter: nodes that lost one server together do not come back to it together.
    pub(crate) fn next(&mut self) -> Duration {
        let due = self.0.mul_f64(0.5 + fastrand::f64() / 2.0);
        self.0 = (self.0 * 2).min(Self::LONGEST);
        due
    }
}

impl<T: Value> Inner<T> {
    /// Sees to it that levels, and other nodes, hear of what they have not acknowledged.
    pub(crate) fn replay(self: &Arc<Self>) {
        for tier in self.remote() {
            if tier.pending.claim() {
                let level = usize::from(tier.index);
                // Without a runtime, or when that ends, the next call goes on.
                let claimed =
                    scopeguard::guard(Arc::clone(self), move |inner| inner.tiers[level].pending.unclaim());
                self.spawn(within(self.observers().ambient(), async move {
                    claimed.replay_level(&claimed.tiers[level]).await;
                    ScopeGuard::into_inner(claimed);
                }));
            }
        }
        self.plane.iter().for_each(|plane| self.tell_later(plane));
        self.count_pending();
    }

    pub(crate) fn count_pending(&self) {
        let untold = self.plane.as_ref().map_or(0, |plane| plane.pending.len());
        let pending = self.remote().map(|t| t.pending.len()).sum::<usize>() + untold;
        self.stats().pending().store(pending, Ordering::Relaxed);
        let lost = self.remote().map(|t| t.pending.lost()).sum::<usize>();
        self.stats().lost().store(lost as u64, Ordering::Relaxed);
    }

    async fn replay_level(self: &Arc<Self>, tier: &Tier) {
        let mut pause = Pause::FIRST;
        loop {
            let spans = self.observers().span(&SpanStart {
                kind: SpanKind::Replay,
                key: None,
                keys: tier.pending.len(),
                root: true,
            });
            let well = spans.around(self.deliver(tier)).await;
            spans.end();
            if well {
                pause = Pause::FIRST;
                self.replay();
            } else {
                let pause = pause.next().max(tier.opens_in(&self.around.clock));
                self.around.clock.sleep(pause).await;
            }
            self.count_pending();
            if tier.pending.len() == 0 && tier.pending.release() {
                return;
            }
        }
    }

    /// Remote levels nearer than this one. Until this one had heard, other nodes may have filled them with what it held. So
    /// they are told once more, and are masked before this one's mask ends.
    fn above(&self, tier: &Tier) -> impl Iterator<Item = &Tier> {
        self.remote().take_while(|above| above.index < tier.index)
    }

    /// One round of the replay. `false`: the level is not well.
    pub(crate) async fn deliver(self: &Arc<Self>, tier: &Tier) -> bool {
        let _turn = tier.pending.telling.lock().await;
        let due = tier.pending.due(BATCH);
        let apart = match &due {
            Some(Due::Keys(due)) => tier.whom(due.iter().map(|(id, _)| self.named(id))) != Whom::Level,
            _ => false,
        };
        let mut well = self.deliver_due(tier, due).await;
        if !well && apart {
            // Keys of a server that is away hold up no others.
            for due in tier.pending.due_besides(BATCH) {
                well &= self.deliver_due(tier, due).await;
            }
        }
        well
    }

    /// Tells a level what it has yet to hear of a key, before that is updated. `false`: it has not heard.
    pub(crate) async fn deliver_before(self: &Arc<Self>, tier: &Tier, id: &str) -> bool {
        let _turn = tier.pending.telling.lock().await;
        while let Some(due) = tier.pending.due_before(id) {
            if !self.deliver_due(tier, Some(due)).await {
                return !tier.pending.has(id);
            }
        }
        true
    }

    async fn deliver_due(self: &Arc<Self>, tier: &Tier, due: Option<Due>) -> bool {
        match due {
            None => true,
            Some(Due::Clear(number)) => {
                if tier.new_epoch(&self.around).await.is_err() {
                    return false;
                }
                self.above(tier).for_each(|above| above.pending.add_clear());
                tier.pending.delivered_clear(number);
                // Others have heard of it before, and may have read the old value from this level since.
                let _ = self.tell_clear().await;
                true
            }
            Some(Due::Tags(reach, due)) => {
                let tags: Vec<Box<str>> = due.iter().map(|(tag, _)| tag.clone()).collect();
                let Ok(stamp) = tier.advance(&self.around, &tags, reach, self.mark_life(None)).await else {
                    return false;
                };
                self.above(tier).for_each(|above| above.pending.add_tags(&tags, reach));
                for (tag, number) in &due {
                    tier.pending.delivered_tag(tag, *number);
                }
                let _ = self.tell_tags(&tags, reach, stamp).await;
                true
            }
            Some(Due::Keys(due)) => {
                let keys: Vec<_> = due.iter().map(|(id, _)| self.named(id)).collect();
                let mut told = Vec::new();
                for (((id, number), key), result) in
                    due.iter().zip(&keys).zip(tier.remove_again(&self.around, &keys).await)
                {
                    if result.is_ok() {
                        self.above(tier).for_each(|above| above.pending.add(id));
                        tier.pending.delivered(id, *number);
                        told.push(*key);
                    }
                }
                let _ = self.tell(&told).await;
                told.len() == keys.len()
            }
            Some(Due::Values(due)) => self.deliver_values(tier, &due).await,
        }
    }

    /// Stores values of sets that the level had not taken, each in the place of the entry that this node knew to be there:
    /// where that is there still, unexpired, nobody has written the key since. All others are given up, and their keys
    /// invalidated in the next round. `false`: the level is not well.
    async fn deliver_values(self: &Arc<Self>, tier: &Tier, due: &[(Box<str>, u64, Arc<Unsaved>)]) -> bool {
        // If the cache has been cleared meanwhile, nobody would believe what is stored.
        if tier.read_mark(&self.around).await.is_err() {
            return false;
        }
        let mut round =
            Round { tier, due, granted: Vec::new(), stored: Vec::new(), refused: Vec::new(), well: true };
        round.acquire(self).await;
        round.check(self).await;
        round.fill(self).await;
        let Round { stored, refused, well, .. } = round;
        for at in refused {
            let (id, number, value) = &due[at];
            tier.pending.give_up(id, *number);
            // Else this node would be the only one to have it.
            self.let_go(id, value.id);
        }
        let mut told = Vec::with_capacity(stored.len());
        for at in stored {
            let (id, number, _) = &due[at];
            self.above(tier).for_each(|above| above.pending.add(id));
            tier.pending.delivered(id, *number);
            told.push(self.named(id));
        }
        self.stats().stored_late(told.len());
        let _ = self.tell(&told).await;
        well
    }
}

/// Some values on their way to a level that is back, by their position in what is due.
struct Round<'a> {
    tier: &'a Tier,
    due: &'a [(Box<str>, u64, Arc<Unsaved>)],
    granted: Vec<(usize, EntryId, Lease)>,
    stored: Vec<usize>,
    refused: Vec<usize>,
    well: bool,
}

impl Round<'_> {
    fn key<'k, T: Value>(&'k self, inner: &'k Inner<T>, at: usize) -> RawKey<'k> {
        inner.named(&self.due[at].0)
    }

    /// The right to replace what was there before, and nothing else.
    async fn acquire<T: Value>(&mut self, inner: &Inner<T>) {
        let (now, epoch, here) = (inner.now(), self.tier.stamp().epoch, self.tier.place());
        let mut open = Vec::new();
        for (at, (_, _, value)) in self.due.iter().enumerate() {
            match value.before.last() {
                Some(id) if value.until > now && value.stamp.epoch == epoch => open.push((at, *id)),
                _ => self.refused.push(at),
            }
        }
        let mut first = true;
        while !open.is_empty() {
            let wanted: Vec<_> = open
                .iter()
                .map(|(at, id)| Acquire { key: self.key(inner, *at), holding: Holding::Still(*id) })
                .collect();
            let answers = self.tier.acquire_many(&inner.around, &wanted, LEASE).await;
            let mut again = Vec::new();
            for ((at, id), answer) in std::mem::take(&mut open).into_iter().zip(answers) {
                let value = &self.due[at].2;
                match answer {
                    Ok(Acquired::Granted(lease)) => self.granted.push((at, id, lease)),
                    Ok(Acquired::Found(bytes)) => {
                        match envelope::open(self.key(inner, at), &bytes).map(|(header, _)| header.id) {
                            // It has arrived after all.
                            Ok(found) if found == value.id => self.noted(inner, here, at, Ok(true)),
                            Ok(found) if first && value.before.contains(&found) => again.push((at, found)),
                            _ => self.refused.push(at),
                        }
                    }
                    Ok(Acquired::Held | Acquired::Kept) => self.refused.push(at),
                    Err(_) => self.well = false,
                }
            }
            (open, first) = (again, false);
        }
    }

    /// Gives up what has been expired: `expire` leaves an entry where it is, only marked. One that comes after the right
    /// has been granted revokes that.
    async fn check<T: Value>(&mut self, inner: &Arc<Inner<T>>) {
        if self.granted.is_empty() {
            return;
        }
        let keys: Vec<_> = self.granted.iter().map(|(at, ..)| self.key(inner, *at)).collect();
        let answers = self.tier.get_raw(&inner.around, &keys).await;
        for ((at, id, lease), answer) in std::mem::take(&mut self.granted).into_iter().zip(answers) {
            let is_fresh = answer.ok().flatten().is_some_and(|bytes| {
                envelope::open(self.key(inner, at), &bytes)
                    .is_ok_and(|(header, _)| header.id == id && !header.expired)
            });
            if is_fresh {
                self.granted.push((at, id, lease));
            } else {
                inner.give_back(self.key(inner, at), vec![Right::new(self.tier.index, lease)]);
                self.refused.push(at);
            }
        }
    }

    async fn fill<T: Value>(&mut self, inner: &Inner<T>) {
        if self.granted.is_empty() {
            return;
        }
        let now = inner.now();
        let fills: Vec<_> = self
            .granted
            .iter()
            .map(|(at, _, lease)| {
                let value = &self.due[*at].2;
                let put = Put {
                    key: self.key(inner, *at),
                    bytes: value.bytes.clone(),
                    ttl: value.until.since(now),
                };
                Fill { put, lease: lease.clone() }
            })
            .collect();
        let here = self.tier.place();
        let filled = self.tier.fill_many(&inner.around, &fills).await;
        for ((at, ..), filled) in std::mem::take(&mut self.granted).into_iter().zip(filled) {
            self.noted(inner, here, at, filled);
        }
    }

    /// What has been stored may be lost by a failover, as what a writer stores itself.
    fn noted<T: Value>(&mut self, inner: &Inner<T>, here: Place, at: usize, filled: Result<bool, Failure>) {
        let noted = self.tier.noted_if_stored(&inner.around, here, &self.due[at].0, filled);
        // One that failed may have been stored: the invalidation that follows removes it.
        if matches!(noted, Ok(true)) { self.stored.push(at) } else { self.refused.push(at) }
    }
}

/// Starts the replay of what is pending when it is dropped: when a fill has ended, or its caller has left.
pub(crate) struct Replay<'a, T: Value>(pub(crate) &'a Arc<Inner<T>>);

impl<T: Value> Drop for Replay<'_, T> {
    fn drop(&mut self) {
        self.0.replay();
    }
}
