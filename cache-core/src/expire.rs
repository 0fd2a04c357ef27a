//! `expire`: what levels hold of a key is no longer fresh, and stays usable as a fallback.

use std::sync::Arc;

use crate::{
    Acquire, Acquired, Delivery, EntryId, Fill, Holding, Put, RawKey, Result, Scope, Value, envelope,
    inner::Inner,
    rights::LEASE,
    tier::{Read, Tier},
    write::{Writing, Written},
};

/// An entry that a level holds, and what is to be in its place.
struct Ending<'k> {
    id: EntryId,
    put: Put<'k>,
}

impl<T: Value> Inner<T> {
    /// Ends the freshness of keys at every level. Each key once. Loads under way store nothing any more, here and where a
    /// level keeps leases.
    pub(crate) async fn expire_keys(self: &Arc<Self>, keys: Vec<RawKey<'_>>) -> Result<Delivery> {
        self.check_open()?;
        let mut writing = Writing::begin(self, keys);
        let mut written = Written::new();
        let order = self.order_of(&mut writing, &mut written).await;
        if order.while_it_lasts(self.expire_below(&writing.keys, &mut written)).await.is_none() {
            self.lost_turn(&writing.keys, &mut written);
        }
        let told = order.meanwhile(self.tell(&writing.keys)).await;
        self.stats().invalidated(Scope::Key, writing.keys.len());
        writing.end_expired();
        drop(order);
        self.replay();
        written.told(told).end()
    }

    async fn expire_below(self: &Arc<Self>, keys: &[RawKey<'_>], written: &mut Written) {
        for tier in self.remote().rev() {
            let gone = match tier.packing.plain {
                // Without a timeline it has no other end.
                true => keys.to_vec(),
                false => self.end_freshness(tier, keys, written).await,
            };
            if !gone.is_empty() {
                for result in tier.remove_many(&self.around, &gone).await {
                    written.take(tier, result);
                }
            }
        }
    }

    /// Marks at a level what can be marked as expired. Says which keys are to go instead.
    async fn end_freshness<'k>(
        self: &Arc<Self>,
        tier: &Tier,
        keys: &[RawKey<'k>],
        written: &mut Written,
    ) -> Vec<RawKey<'k>> {
        let (ending, mut gone) = self.find_ending(tier, keys, written).await;
        if tier.leases() {
            self.end_leased(tier, ending, &mut gone, written).await;
        } else {
            self.end_unleased(tier, ending, written).await;
        }
        gone
    }

    /// What a level holds of the keys that can be marked as expired, and keys of which it holds nothing of the kind: a load
    /// of such a one may be under way, or another version of this program may be able to read what is there.
    async fn find_ending<'k>(
        self: &Arc<Self>,
        tier: &Tier,
        keys: &[RawKey<'k>],
        written: &mut Written,
    ) -> (Vec<Ending<'k>>, Vec<RawKey<'k>>) {
        let (held, _) = tier.read_many(&self.around, keys).await;
        let times = tier.times(&self.around.clock);
        let (mut ending, mut gone) = (Vec::new(), Vec::new());
        for (key, held) in keys.iter().zip(held) {
            match held {
                Read::Bytes(bytes) => {
                    let found = envelope::open(*key, &bytes).ok();
                    let found =
                        found.map(|(header, _)| (header.id, header.timeline(times).remaining(times.now)));
                    match found {
                        Some((id, ttl)) if !ttl.is_zero() => {
                            let put = Put { key: *key, bytes: envelope::expire(&bytes), ttl };
                            ending.push(Ending { id, put });
                        }
                        _ => gone.push(*key),
                    }
                }
                // What it has yet to hear is that this is gone. A value that waits to be stored there must not come after this.
                Read::Nothing | Read::Unreadable(_) | Read::Masked => gone.push(*key),
                Read::Failed(failure) => {
                    // What it holds may be fresh: without it the level is not asked for the key until it has heard an
                    // invalidation.
                    tier.pending.add(key.id);
                    written.take(tier, Err(failure));
                }
            }
        }
        (ending, gone)
    }

    /// Marks entries where they are still what was read: one that has been invalidated since must not come back. What
    /// somebody is replacing, or has replaced, is to go.
    async fn end_leased<'k>(
        &self,
        tier: &Tier,
        ending: Vec<Ending<'k>>,
        gone: &mut Vec<RawKey<'k>>,
        written: &mut Written,
    ) {
        if ending.is_empty() {
            return;
        }
        let wanted: Vec<_> = ending
            .iter()
            .map(|Ending { id, put }| Acquire { key: put.key, holding: Holding::Still(*id) })
            .collect();
        let answers = tier.acquire_many(&self.around, &wanted, LEASE).await;
        let mut fills = Vec::with_capacity(ending.len());
        for (Ending { put, .. }, answer) in ending.into_iter().zip(answers) {
            match answer {
                Ok(Acquired::Granted(lease)) => fills.push(Fill { put, lease }),
                Ok(Acquired::Held | Acquired::Kept | Acquired::Found(_)) => gone.push(put.key),
                Err(failure) => {
                    tier.pending.add(put.key.id);
                    written.take(tier, Err(failure));
                }
            }
        }
        if fills.is_empty() {
            return;
        }
        let here = tier.place();
        for (fill, filled) in fills.iter().zip(tier.fill_many(&self.around, &fills).await) {
            match tier.noted_if_stored(&self.around, here, fill.put.key.id, filled) {
                Ok(true) => {}
                // Set or invalidated meanwhile, or the lease has been lost, and it is there still.
                Ok(false) => gone.push(fill.put.key),
                Err(failure) => {
                    tier.pending.add(fill.put.key.id);
                    written.take(tier, Err(failure));
                }
            }
        }
    }

    async fn end_unleased(&self, tier: &Tier, ending: Vec<Ending<'_>>, written: &mut Written) {
        if ending.is_empty() {
            return;
        }
        let puts: Vec<_> = ending.into_iter().map(|ending| ending.put).collect();
        let here = tier.place();
        for (put, result) in puts.iter().zip(tier.put_many(&self.around, &puts).await) {
            let result = tier.noted(&self.around, here, put.key.id, result);
            if result.is_err() {
                tier.pending.add(put.key.id);
            }
            written.take(tier, result);
        }
    }
}
