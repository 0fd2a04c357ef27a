//! What becomes of a load's answer: entries stored, refused or forgotten, and flights ended.

use std::{iter::zip, sync::Arc, time::Duration};

use futures::FutureExt;

use crate::{
    Begun, Entry, EntryId, Error, ErrorKind, Event, LoadEnd, Loaded, RawKey, Result, Stamp, Value,
    fill::Outgoing,
    flight::Ended,
    inner::Inner,
    load::{Began, Failed, Landing, Load, OneOf, Ran, load_failed},
    loaded::Answered,
    order::WriteOrder,
    slots::Ticket,
};

/// What to do with an entry that a load made.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Keep {
    Store,
    /// Store nothing and remove what levels hold.
    Forget,
    /// Leave the levels alone.
    Nothing,
}

pub(crate) struct Made<T> {
    pub(crate) entry: Entry<T>,
    pub(crate) end: LoadEnd,
    pub(crate) keep: Keep,
}

impl<T: Value> Inner<T> {
    /// Stores new entries at every level. Says, per entry, whether it was not overtaken.
    async fn store(
        self: &Arc<Self>,
        items: &mut [Outgoing<'_, T>],
        tickets: &[Ticket<T>],
        ran: &Began,
        remote: bool,
    ) -> Vec<bool> {
        let below = if remote {
            self.tiers.len()
        } else {
            self.tiers.iter().take_while(|t| t.store.is_some()).count()
        };
        self.fill(items, tickets, below, &ran.begun.stamps).await
    }

    /// Removes what levels hold of keys that the source no longer has.
    async fn forget(self: &Arc<Self>, gone: Vec<Forgotten<'_, T>>, remote: bool) {
        // What a writer has overtaken is its business: it may be stalled, and this is not to wait for it.
        let mut gone = self.not_overtaken(gone);
        // What goes under leases alone needs no turn: an update has one while it waits for such a lease.
        let removes = |gone: &&Forgotten<'_, T>| self.remote().any(|tier| !gone.item.has_right(tier.index));
        let turns = match remote {
            true => self.in_order(gone.iter().filter(removes).map(|gone| gone.ticket)).await,
            false => WriteOrder::default(),
        };
        gone = self.not_overtaken(gone);
        if gone.is_empty() {
            return;
        }
        if turns.while_it_lasts(self.forget_in_turn(&mut gone, remote, &turns)).await.is_none() {
            self.in_doubt(gone.iter().map(|gone| gone.item.key));
        }
        self.give_back_many(gone.into_iter().map(|gone| (gone.item.key, gone.item.rights)).collect());
        self.replay();
    }

    async fn forget_in_turn(&self, gone: &mut [Forgotten<'_, T>], remote: bool, turns: &WriteOrder) {
        for tier in self.tiers.iter().rev() {
            match &tier.store {
                Some(store) => {
                    for Forgotten { item, ticket } in &*gone {
                        ticket.commit(|| store.remove(item.key));
                    }
                }
                None if remote => {
                    // Under its lease, as a value would be stored: what has overtaken the load stays.
                    let (mut leased, others): (Vec<_>, Vec<_>) = gone
                        .iter_mut()
                        .map(|gone| &mut gone.item)
                        .partition(|item| item.has_right(tier.index));
                    if !leased.is_empty() {
                        self.send(tier, &mut leased, tier.stamp(), turns).await;
                    }
                    let keys: Vec<_> = others.into_iter().map(|item| item.key).collect();
                    if !keys.is_empty() {
                        tier.remove_many(&self.around, &keys).await;
                    }
                }
                None => {}
            }
        }
    }

    /// Those that nothing has overtaken. Of the others the leases are given back.
    fn not_overtaken<'k>(self: &Arc<Self>, gone: Vec<Forgotten<'k, T>>) -> Vec<Forgotten<'k, T>> {
        let (current, overtaken): (Vec<_>, Vec<_>) =
            gone.into_iter().partition(|gone| gone.ticket.is_current());
        self.give_back_many(overtaken.into_iter().map(|gone| (gone.item.key, gone.item.rights)).collect());
        current
    }

    /// After a failed refresh: leaves the held entry alone for a while.
    fn throttle(
        &self,
        key: RawKey<'_>,
        ticket: &Ticket<T>,
        held: Option<&Entry<T>>,
        begun: &Begun,
        surface: bool,
    ) {
        let Some(tier) = self.tiers.first().filter(|t| t.store.is_some()) else { return };
        if let Some(entry) = held.and_then(|held| self.throttled(held, begun, self.now(), surface)) {
            self.keep(key, &entry, tier, ticket);
        }
    }

    /// Reports a load that ended.
    pub(crate) fn loaded(&self, cost: Duration, background: bool, keys: usize, end: Result<LoadEnd, &Error>) {
        let error = end.err();
        let end = end.unwrap_or_else(|error| LoadEnd::Failed(error.kind()));
        self.stats().load(cost, end);
        self.observers().event(&Event::Load { elapsed: cost, end, background, keys, error });
    }

    /// Makes the entry of a loader's answer.
    pub(crate) fn make(
        &self,
        loaded: Loaded<T>,
        began: &Began,
        held: Option<&Entry<T>>,
    ) -> Result<Made<T>, Failed> {
        let Loaded { answer, ttl, grace, mut extra, surface } = loaded;
        let (value, end, keep) = match answer {
            Answered::Value(value) => (Some(value), LoadEnd::Value, Keep::Store),
            Answered::Absent => (None, LoadEnd::Absent, Keep::Store),
            Answered::DoNotStore(value) => (value, LoadEnd::NotStored, Keep::Nothing),
            Answered::Unchanged => {
                let Some((value, old)) = held.and_then(|h| h.value.clone().map(|v| (v, h.extra.as_deref())))
                else {
                    let error = Error::new(
                        ErrorKind::Load,
                        "the loader answered `unchanged`, but no value was held for the key",
                    );
                    return Err(Failed { error, surface });
                };
                if let Some(old) = old {
                    extra.etag = extra.etag.or_else(|| old.etag.clone());
                    if extra.tags.is_empty() {
                        extra.tags.clone_from(&old.tags);
                    }
                }
                (Some(value), LoadEnd::Unchanged, Keep::Store)
            }
            Answered::Failed(cause) => return Err(Failed { error: load_failed(cause), surface }),
        };
        self.check_tags(&extra.tags).map_err(|error| Failed { error, surface })?;
        let timeline = self.timeline(began.born, value.is_none(), ttl, grace);
        let keep = match keep {
            // Nothing to keep: a ttl of zero, or absences are not remembered. What was there is out of date.
            Keep::Store if timeline.fresh_until <= began.born => Keep::Forget,
            keep => keep,
        };
        let entry = Entry {
            value,
            timeline,
            id: EntryId::random(),
            stamp: self.authority().map_or_else(Stamp::default, |tier| began.begun.stamp(tier.index)),
            seen: began.begun.seen,
            cost: began.cost,
            by_set: false,
            extra: extra.boxed(),
            quiet_until: None,
            encoded: None,
        };
        Ok(Made { entry, end, keep })
    }

    /// Stores what a load answered, as far as it has not been overtaken, and ends its flights.
    pub(crate) async fn settle(
        self: &Arc<Self>,
        landing: &Landing<T>,
        load: Load<'_, T>,
        ran: Ran<Vec<Option<Loaded<T>>>>,
    ) {
        let (terms, began) = (load.terms, ran.began);
        let Sorted { mut items, tickets, stored, unstored, gone } =
            self.sort(landing, load, ran.answer, &began);
        if !gone.is_empty() {
            self.forget(gone, terms.remote).boxed().await;
        }
        for (at, kept, made) in unstored {
            // What a writer kept out may be what it has replaced by now.
            let accepted = !kept && landing.open[at].1.is_current();
            landing.land(
                at,
                match made {
                    Ok(entry) => Ended::Entry { entry, level: None, accepted },
                    Err(Failed { error, surface }) => Ended::Failed { error, surface },
                },
            );
        }
        let accepted = self.store(&mut items, &tickets, &began, terms.remote).await;
        for ((at, item), accepted) in stored.into_iter().zip(items).zip(accepted) {
            landing.land(at, Ended::Entry { entry: item.entry, level: None, accepted });
        }
    }

    /// What becomes of each answer. Counts the load, before anybody is told, and gives back the leases that no fill needs.
    fn sort<'k>(
        self: &Arc<Self>,
        landing: &'k Landing<T>,
        load: Load<'k, T>,
        answer: Result<Vec<Option<Loaded<T>>>, Failed>,
        began: &Began,
    ) -> Sorted<'k, T> {
        let Load { of, rights, terms, .. } = load;
        let (answers, failed) = match answer {
            Ok(answers) => (answers, None),
            Err(failed) => (Vec::new(), Some(failed)),
        };
        let mut answers = answers.into_iter();
        let mut sorted = Sorted::new(of.len());
        let mut ends = Vec::with_capacity(of.len());
        let mut unused = Vec::new();
        for (OneOf { at, kept, held }, (key, rights)) in zip(of, rights) {
            let ticket = &landing.open[at].1;
            let made = match &failed {
                None => {
                    let loaded = answers.next().flatten().unwrap_or_else(Loaded::absent);
                    self.make(loaded, began, held.as_ref())
                }
                Some(failed) => Err(failed.clone()),
            };
            match made {
                Ok(Made { entry, end, keep }) => {
                    ends.push(Ok(end));
                    if keep == Keep::Store && terms.store && !kept {
                        sorted.items.push(Outgoing::new(key, entry).with_rights(rights));
                        sorted.tickets.push(ticket.again());
                        sorted.stored.push(at);
                        continue;
                    }
                    if keep == Keep::Forget && terms.store && !kept && (held.is_some() || !terms.read) {
                        let item = Outgoing::new(key, entry.clone()).with_rights(rights);
                        sorted.gone.push(Forgotten { item, ticket });
                    } else {
                        unused.push((key, rights));
                    }
                    sorted.unstored.push((at, kept, Ok(entry)));
                }
                Err(Failed { error, surface }) => {
                    ends.push(Err(error.clone()));
                    unused.push((key, rights));
                    self.throttle(key, ticket, held.as_ref(), &began.begun, surface);
                    sorted.unstored.push((at, kept, Err(Failed { error, surface })));
                }
            }
        }
        self.give_back_many(unused);
        // A batch is one load: it has failed if nothing came of it.
        let end = ends.iter().find(|end| end.is_ok()).or_else(|| ends.first());
        let end = end.map_or(Ok(LoadEnd::Absent), |end| end.as_ref().copied());
        self.loaded(began.cost, terms.background, ends.len(), end);
        sorted
    }
}

/// What a load has answered, by what is to be done with it. Numbers are those of its flights.
struct Sorted<'k, T: Value> {
    items: Vec<Outgoing<'k, T>>,
    tickets: Vec<Ticket<T>>,
    stored: Vec<usize>,
    /// Also whether a writer keeps the key.
    unstored: Vec<(usize, bool, Result<Entry<T>, Failed>)>,
    /// What levels hold of these is out of date.
    gone: Vec<Forgotten<'k, T>>,
}

/// A key that the source no longer has. The entry has no life, so that none of it is sent.
struct Forgotten<'k, T: Value> {
    item: Outgoing<'k, T>,
    ticket: &'k Ticket<T>,
}

impl<T: Value> Sorted<'_, T> {
    fn new(count: usize) -> Self {
        Self {
            items: Vec::with_capacity(count),
            tickets: Vec::with_capacity(count),
            stored: Vec::with_capacity(count),
            unstored: Vec::new(),
            gone: Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, time::Duration};

    use crate::{
        Access, Clock, Loaded, Outcome, Policy, TracedCache, ok,
        testing::{Chaos, ChaosOp, Fault, MapProvider},
    };

    type Shelf = Arc<Chaos<MapProvider>>;

    /// A cache with a grace and leases, and its level.
    fn graced() -> (TracedCache<u32>, Shelf) {
        let (clock, _) = Clock::manual();
        let shelf = Arc::new(Chaos::new(MapProvider::new().clock(clock.clone()).leasing().marking()));
        let policy = Policy::ttl(Duration::from_secs(1)).grace(Duration::from_secs(60));
        let cache = TracedCache::builder("graced").level(Arc::clone(&shelf)).clock(clock).policy(policy);
        (cache.build().unwrap(), shelf)
    }

    fn unkept(value: u32) -> Loaded<u32> {
        Loaded::value(value).ttl(Duration::ZERO)
    }

    #[tokio::test]
    async fn what_is_not_to_be_stored_is_no_stale_value_either() {
        let (cache, _) = graced();
        assert_eq!(*cache.refresh("k", &(), |(), _| async { ok(unkept(1)) }).await.unwrap().unwrap(), 1);
        let found = cache.access(Access::AllowStale).look("k").await.unwrap();
        assert_eq!((found.outcome(), found.value()), (Outcome::Miss, None));
    }

    #[tokio::test]
    async fn what_an_update_does_not_keep_is_no_absence_meanwhile() {
        let (cache, shelf) = graced();
        let _ = cache.set("k", 1).await.unwrap();
        shelf.set(ChaosOp::Remove, Fault::Hang);
        let other = cache.clone();
        let update = tokio::spawn(async move {
            let updated = other.update("k", &(), |(), _, _| async { ok(unkept(2)) }).await;
            updated.map(|updated| updated.value)
        });
        while shelf.calls(ChaosOp::Remove) == 0 {
            tokio::task::yield_now().await;
        }
        let found = cache.look("k").await.unwrap();
        assert_eq!((found.outcome(), found.value()), (Outcome::Miss, None));
        update.abort();
    }
}
