//! Reads of a level, with its mark where that is due.

use std::{borrow::Cow, panic::AssertUnwindSafe};

use bytes::Bytes;
use futures::FutureExt;

use super::{Around, Asking, Failure, Tier};
use crate::{
    LevelOp, RawKey, Unreadable,
    clock::Times,
    gates::Whom,
    learn::Learned,
    learn::{MARK_PERIOD, mark_of},
    parts::{Parts, asked},
};

/// What a level said about one key.
pub(crate) enum Read {
    Bytes(Bytes),
    Nothing,
    /// Something that the provider does not hand out.
    Unreadable(Unreadable),
    Failed(Failure),
    /// An invalidation has not reached the level yet.
    Masked,
}

impl Read {
    /// Of the item, in bytes.
    pub(crate) fn size(&self) -> usize {
        match self {
            Self::Bytes(bytes) => bytes.len(),
            Self::Nothing | Self::Unreadable(_) | Self::Failed(_) | Self::Masked => 0,
        }
    }
}

/// What a level said about one key that it was asked for alone.
pub(crate) struct ReadOne {
    pub(crate) read: Read,
    /// What has come to light by that.
    pub(crate) learned: Learned,
    /// When it was answered.
    pub(crate) times: Times,
    /// From which state of the store.
    pub(crate) home: u64,
}

impl Tier {
    /// Reads keys, and the mark along with them when that is due. Says what has come to light by that.
    pub(crate) async fn read_many(&self, around: &Around, keys: &[RawKey<'_>]) -> (Vec<Read>, Learned) {
        let told = self.told_again();
        let masked: Vec<bool> = keys.iter().map(|key| self.masks(key.id)).collect();
        let asked: Cow<'_, [RawKey<'_>]> = match masked.contains(&true) {
            // As nearly always.
            false => keys.into(),
            true => keys.iter().zip(&masked).filter(|(_, masked)| !**masked).map(|(key, _)| *key).collect(),
        };
        let (answers, learned) = self.ask(around, &asked, told).await;
        let mut answers = answers.into_iter();
        let all = keys.iter().zip(masked).map(|(key, masked)| match masked {
            true => Read::Masked,
            false => self.settled(*key, answers.next().unwrap_or(Err(Failure::Skipped))),
        });
        (all.collect(), learned)
    }

    /// The same for keys that are not masked, without regard to what comes up meanwhile.
    async fn ask(
        &self,
        around: &Around,
        keys: &[RawKey<'_>],
        told: u64,
    ) -> (Vec<Result<Option<Bytes>, Failure>>, Learned) {
        let provider = self.provider();
        let home = provider.incarnation();
        let plain = self.packing.plain;
        let due = if plain { None } else { self.ledger.due(around.clock.now(), home, MARK_PERIOD) };
        let mut learned = Learned::NOTHING;
        if keys.is_empty() {
            if due.is_some() {
                learned = self.read_mark(around).await.unwrap_or(learned);
            }
            return (Vec::new(), learned);
        }
        let mut answers = match due {
            None => self.get_raw(around, keys).await,
            Some(changes) => self.get_with_mark(around, keys, changes, told, &mut learned).await,
        };
        let elsewhere = || self.incarnation() != home || self.told_again() != told;
        if due.is_none() && !plain && answers.iter().any(Result::is_ok) && elsewhere() {
            // Perhaps answered from another state of the store than the epoch was read from: once more, with the mark.
            let changes = self.ledger.changes();
            answers = self.get_with_mark(around, keys, changes, told, &mut learned).await;
        }
        (answers, learned)
    }

    /// The same for one key, which is what nearly all reads are.
    #[allow(clippy::manual_async_fn, reason = "an `async fn` would keep each argument twice")]
    pub(crate) fn read_one(&self, around: &Around, key: RawKey<'_>) -> impl Future<Output = ReadOne> + Send {
        async move {
            let told = self.told_again();
            if self.masks(key.id) {
                // Whatever else is due is done all the same.
                let (mut all, learned) = self.read_many(around, &[key]).boxed().await;
                return self.just_read(around, all.pop().unwrap_or(Read::Masked), learned);
            }
            let moves = self.moves();
            let provider = self.provider();
            let home = provider.incarnation();
            let plain = self.packing.plain;
            let since = around.clock.now();
            let due = if plain { None } else { self.ledger.due(since, home, MARK_PERIOD) };
            let answer = match due {
                // Keeps to the provider's single-key path, where it may gather.
                None => {
                    let op = LevelOp::Get;
                    let whom = Whom::of(provider.server_of(key));
                    let what = Asking::one(op, provider.command(op, 1), whom, 0, since);
                    self.call_at(around, &what, asked(|| provider.get(key))).await
                }
                Some(_) => Err(Failure::Skipped),
            };
            let elsewhere = || self.incarnation_since(moves, &provider) != home || self.told_again() != told;
            if due.is_some() || !plain && answer.is_ok() && elsewhere() {
                // With the mark: it is due, or the answer was perhaps given from another state of the store than the epoch was
                // read from.
                let changes = due.unwrap_or_else(|| self.ledger.changes());
                let (read, learned) = self.read_one_with_mark(around, key, changes, told).boxed().await;
                return self.just_read(around, read, learned);
            }
            let (answer, now) = match answer {
                Ok((answer, now)) => (answer.map_err(Failure::of), now),
                Err(failure) => (Err(failure), around.clock.now()),
            };
            let times = around.clock.times_at(now, provider.time_offset_ms());
            ReadOne { read: self.settled(key, answer), learned: Learned::NOTHING, times, home }
        }
    }

    fn just_read(&self, around: &Around, read: Read, learned: Learned) -> ReadOne {
        ReadOne { read, learned, times: self.times(&around.clock), home: self.incarnation() }
    }

    async fn read_one_with_mark(
        &self,
        around: &Around,
        key: RawKey<'_>,
        changes: u64,
        told: u64,
    ) -> (Read, Learned) {
        let mut learned = Learned::NOTHING;
        let mut answers = self.get_with_mark(around, &[key], changes, told, &mut learned).await;
        let answer = answers.pop().unwrap_or(Ok(None));
        (self.settled(key, answer), learned)
    }

    /// Masked while the call was under way counts too: what was read may be what is being invalidated.
    fn settled(&self, key: RawKey<'_>, answer: Result<Option<Bytes>, Failure>) -> Read {
        match answer {
            _ if self.masks(key.id) => Read::Masked,
            Ok(Some(bytes)) => Read::Bytes(bytes),
            Ok(None) => Read::Nothing,
            Err(failure) => failure.unreadable().map_or(Read::Failed(failure), Read::Unreadable),
        }
    }

    /// What the level has under these keys, whatever is known of them and however it stands.
    pub(crate) async fn get_raw(
        &self,
        around: &Around,
        keys: &[RawKey<'_>],
    ) -> Vec<Result<Option<Bytes>, Failure>> {
        let provider = self.provider();
        let batch = Parts::new(&provider, keys);
        self.call_parts(around, LevelOp::Get, &batch, |keys| provider.get_many(keys)).await
    }

    /// Reads keys from replicas. Their failures are no failures of the level, so they are nothing.
    pub(crate) async fn read_copies(&self, around: &Around, keys: &[RawKey<'_>]) -> Vec<Read> {
        let masked: Vec<bool> = keys.iter().map(|key| self.masks(key.id)).collect();
        let asked: Vec<RawKey<'_>> =
            keys.iter().zip(&masked).filter(|(_, masked)| !**masked).map(|(key, _)| *key).collect();
        let provider = self.provider();
        let Some(replicas) = provider.replicas().filter(|_| !asked.is_empty()) else {
            return keys.iter().map(|_| Read::Nothing).collect();
        };
        let call = AssertUnwindSafe(replicas.get_copies(&asked)).catch_unwind();
        let answers = self.patience.spend(&around.clock, around.clock.now(), call).await;
        let answers = answers.and_then(Result::ok).filter(|answers| answers.len() == asked.len());
        let mut answers = answers.unwrap_or_default().into_iter();
        let all = keys.iter().zip(masked).map(|(key, masked)| {
            let answer = if masked { None } else { answers.next() };
            match answer {
                Some(Ok(Some(bytes))) if !self.masks(key.id) => Read::Bytes(bytes),
                _ => Read::Nothing,
            }
        });
        all.collect()
    }

    /// `told`: what [`Self::told_again`] was before it was known that the keys are not masked.
    async fn get_with_mark(
        &self,
        around: &Around,
        keys: &[RawKey<'_>],
        changes: u64,
        told: u64,
        learned: &mut Learned,
    ) -> Vec<Result<Option<Bytes>, Failure>> {
        let mut with_mark = keys.to_vec();
        with_mark.push(RawKey::marker(around.cache, &around.name));
        let mut all = self.looking(self.get_raw(around, &with_mark)).await;
        match all.pop().map(mark_of) {
            Some(Ok(mark)) => {
                *learned = learned.and(self.learn(around, mark.clone(), changes).await);
                if self.ledger.is_at_odds_with(mark.as_deref()) {
                    match self.read_mark(around).boxed().await {
                        Ok(more) => *learned = learned.and(more),
                        // What was read would be judged by a mark that may be out of date.
                        Err(_) => return keys.iter().map(|_| Err(Failure::Mute)).collect(),
                    }
                }
            }
            _ => {
                let outdated = self.ledger.is_outdated();
                // Whoever reads next asks again, not only when the period is over.
                self.ledger.doubt();
                if outdated {
                    return keys.iter().map(|_| Err(Failure::Mute)).collect();
                }
            }
        }
        if self.told_again() == told { all } else { self.get_unmasked(around, keys).await }
    }

    /// What the level has under these keys, and nothing of what it has yet to hear is gone.
    async fn get_unmasked(
        &self,
        around: &Around,
        keys: &[RawKey<'_>],
    ) -> Vec<Result<Option<Bytes>, Failure>> {
        let masked: Vec<bool> = keys.iter().map(|key| self.masks(key.id)).collect();
        let answers = self.get_raw(around, keys).await;
        answers
            .into_iter()
            .zip(masked)
            .map(|(answer, masked)| if masked { Ok(None) } else { answer })
            .collect()
    }
}
