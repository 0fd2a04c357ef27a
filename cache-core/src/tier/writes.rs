//! Writes to a level, with leases and without, and what is to be told again of them.

use std::{iter, time::Duration};

use super::{Around, Failure, Place, Tier, skipped};
use crate::{
    Acquire, Acquired, Fill, Lease, LevelOp, Put, RawKey,
    mark::Reach,
    parts::{Parts, more_pieces},
    recent::Effect,
};

impl Tier {
    /// Stores items. Each that may have been sent and was not acknowledged is in doubt: its key is masked, and the level
    /// hears an invalidation of it when it is back.
    pub(crate) async fn put_many(&self, around: &Around, items: &[Put<'_>]) -> Vec<Result<(), Failure>> {
        let provider = self.provider();
        let batch = Parts::new(&provider, items);
        let put = |items| provider.put_many(items);
        let results = self.call_parts(around, LevelOp::Put, &batch, put).await;
        for (item, result) in items.iter().zip(&results) {
            if let Err(Failure::Failed(..)) = result {
                self.pending.doubt(item.key.id);
            }
        }
        results
    }

    /// Whether the level keeps leases: then nothing but an explicit set is stored there without one.
    pub(crate) fn leases(&self) -> bool {
        self.store.is_none() && !self.packing.plain && self.provider().leases().is_some()
    }

    /// How long leases of so many keys are to last: the first must not have ended when the last is granted, nor the last
    /// when all others have been used or renewed. Longer budgets than that are for calls that go wrong.
    fn lease_life(&self, life: Duration, keys: usize) -> Duration {
        life.saturating_add(self.budget().min(life / 6).saturating_mul(2).saturating_mul(more_pieces(keys)))
    }

    pub(crate) async fn acquire_many(
        &self,
        around: &Around,
        wanted: &[Acquire<'_>],
        life: Duration,
    ) -> Vec<Result<Acquired, Failure>> {
        let provider = self.provider();
        let Some(leases) = provider.leases() else { return skipped(wanted.len()) };
        let batch = Parts::new(&provider, wanted);
        let life = self.lease_life(life, wanted.len());
        let acquire = |wanted| leases.acquire_many(wanted, life);
        let answers = self.call_parts(around, LevelOp::Acquire, &batch, acquire).await;
        let found = |failure: Failure| failure.or_nothing_readable().map(Acquired::Found);
        answers.into_iter().map(|answer| answer.or_else(found)).collect()
    }

    /// Stores items under their leases. `false`: refused. An item that was not acknowledged is not in doubt: should it
    /// arrive late, an invalidation or a set that came first has revoked its lease.
    pub(crate) async fn fill_many(&self, around: &Around, fills: &[Fill<'_>]) -> Vec<Result<bool, Failure>> {
        let provider = self.provider();
        let Some(leases) = provider.leases() else { return skipped(fills.len()) };
        let batch = Parts::new(&provider, fills);
        let fill = |fills| leases.fill_many(fills);
        self.call_parts(around, LevelOp::Put, &batch, fill).await
    }

    /// Keeps keys for a writer.
    pub(crate) async fn hold_many(
        &self,
        around: &Around,
        keys: &[RawKey<'_>],
        life: Duration,
    ) -> Vec<Result<Lease, Failure>> {
        let here = self.place();
        let provider = self.provider();
        let Some(leases) = provider.leases() else { return skipped(keys.len()) };
        let batch = Parts::new(&provider, keys);
        let hold = |keys| leases.hold_many(keys, life);
        let results = self.call_parts(around, LevelOp::Acquire, &batch, hold).await;
        self.noted_all(around, here, keys, results)
    }

    /// Notes a key that this node has written or invalidated here, if so. A store that was another one by the time it had
    /// answered has not: `here` is where it was asked.
    pub(crate) fn noted<R>(
        &self,
        around: &Around,
        here: Place,
        id: &str,
        result: Result<R, Failure>,
    ) -> Result<R, Failure> {
        match result {
            Ok(_) if !self.note(around, here, iter::once(id)) => Err(Failure::left()),
            other => other,
        }
    }

    /// The same for what may have been refused.
    pub(crate) fn noted_if_stored(
        &self,
        around: &Around,
        here: Place,
        id: &str,
        result: Result<bool, Failure>,
    ) -> Result<bool, Failure> {
        match result {
            Ok(true) => self.noted(around, here, id, result),
            other => other,
        }
    }

    /// The same as [`Self::noted`] for many, noted at once.
    fn noted_all<R>(
        &self,
        around: &Around,
        here: Place,
        keys: &[RawKey<'_>],
        results: Vec<Result<R, Failure>>,
    ) -> Vec<Result<R, Failure>> {
        let done = keys.iter().zip(&results).filter(|(_, result)| result.is_ok()).map(|(key, _)| key.id);
        if self.note(around, here, done) {
            return results;
        }
        results.into_iter().map(|result| result.and_then(|_| Err(Failure::left()))).collect()
    }

    /// `false`: the store is another one than when these were sent.
    fn note<'a>(&self, around: &Around, here: Place, ids: impl Iterator<Item = &'a str>) -> bool {
        // First: from when it is another one, what has been noted is told again.
        self.note_effects(around, ids.map(|id| Effect::Key(id.into())));
        self.is_at(here)
    }

    fn note_effects(&self, around: &Around, effects: impl Iterator<Item = Effect>) {
        // Also for a store that has but one state, and so loses nothing: the level may move to another.
        if self.is_marked() {
            self.recent.note(around.clock.now(), self.place(), effects);
        }
    }

    /// Notes an invalidation of tags, or without any, of everything.
    pub(crate) fn note_tags(&self, around: &Around, tags: &[Box<str>], reach: Reach) {
        let all = tags.is_empty().then_some(Effect::Clear);
        self.note_effects(around, tags.iter().map(|tag| Effect::Tag(tag.clone(), reach)).chain(all));
    }

    /// Whether what this node has lately told was told to another store, or to another state of it.
    pub(crate) fn has_told_another(&self) -> bool {
        self.recent.is_from_elsewhere(self.place())
    }

    /// The store is another one now, or has lost something: what this node has lately told it is told again.
    pub(crate) fn tell_again(&self, around: &Around) {
        self.recent.say_again(around.clock.now(), |effect| match effect {
            Effect::Key(id) => self.pending.add(&id),
            Effect::Tag(tag, reach) => self.pending.add_tags(&[tag], reach),
            Effect::Clear => self.pending.add_clear(),
        });
        around.count_pending();
    }

    /// Another number once something has been told again: what was read before may be older than that.
    pub(crate) fn told_again(&self) -> u64 {
        self.recent.again()
    }

    pub(crate) async fn renew_many(&self, around: &Around, held: &[(RawKey<'_>, Lease)], life: Duration) {
        let provider = self.provider();
        if let Some(leases) = provider.leases() {
            let batch = Parts::new(&provider, held);
            let life = self.lease_life(life, held.len());
            let renew = |held| leases.renew_many(held, life);
            // A lease that could not be renewed refuses its fill: nothing to do about it here.
            let _ = self.call_parts(around, LevelOp::Acquire, &batch, renew).await;
        }
    }

    pub(crate) async fn release_many(&self, around: &Around, held: &[(RawKey<'_>, Lease)]) {
        let provider = self.provider();
        if let Some(leases) = provider.leases() {
            let batch = Parts::new(&provider, held);
            let release = |held| leases.release_many(held);
            // It ends by time otherwise.
            let _ = self.call_parts(around, LevelOp::Remove, &batch, release).await;
        }
    }

    /// Removes keys. Those not acknowledged are masked and heard of later.
    pub(crate) async fn remove_many(&self, around: &Around, keys: &[RawKey<'_>]) -> Vec<Result<(), Failure>> {
        let results = self.remove_again(around, keys).await;
        for (key, result) in keys.iter().zip(&results) {
            if result.is_err() {
                self.pending.add(key.id);
            }
        }
        results
    }

    /// Removes keys that are masked already.
    pub(crate) async fn remove_again(
        &self,
        around: &Around,
        keys: &[RawKey<'_>],
    ) -> Vec<Result<(), Failure>> {
        let here = self.place();
        let provider = self.provider();
        let batch = Parts::new(&provider, keys);
        let remove = |keys| provider.remove_many(keys);
        let results = self.call_parts(around, LevelOp::Remove, &batch, remove).await;
        self.noted_all(around, here, keys, results)
    }
}
