//! `update`: read, change, write, so that no update is lost between callers, nor between nodes.

use std::{fmt, panic::AssertUnwindSafe, pin::pin, sync::Arc, time::Duration};

use futures::{FutureExt, future::BoxFuture};

use crate::{
    Acquire, Acquired, Answer, Begun, BoxError, CacheKey, Delivery, Entry, Error, ErrorKind, Held, Holding,
    Lease, LevelOp, LoadEnd, Loaded, Moment, RawKey, Result, TracedCache, Value, Verb, cycle,
    cycle::LoadId,
    envelope,
    fetch::wait_for,
    fill::Outgoing,
    inner::{Inner, State},
    load::{Began, load_failed},
    order::NO_ORDER,
    rights::{LEASE, LONGEST_WAIT, Right, Rights, pause_after},
    settle::{Keep, Made},
    tier::{Failure, Tier},
    wire::Decoded,
    within::within,
    write::{Writing, Written},
};

/// Makes a new value from what is held, its types erased.
type Change<T> =
    Box<dyn Fn(Option<Held<T>>) -> BoxFuture<'static, Result<Loaded<T>, BoxError>> + Send + Sync>;

/// What an update came to.
#[derive(Clone, Copy)]
#[must_use = "a pending update holds on this node only, until the level is back"]
pub struct Updated<R> {
    /// What `change` has answered: the value that is held now, unless it was [`Loaded::do_not_store`].
    pub value: R,
    /// Whether every level, and the other nodes, have heard that the old one is gone.
    pub delivery: Delivery,
}

/// Values stay out of `Debug` output.
impl<R> fmt::Debug for Updated<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Updated").field("delivery", &self.delivery).finish_non_exhaustive()
    }
}

impl<T: Value> TracedCache<T> {
    /// Replaces a value by one made from it: `change` gets the fresh value that is held, or `None`, and may answer what a
    /// loader may. No update is lost: of callers of this process, and of all nodes where the deepest level keeps leases,
    /// one at a time reads, changes and writes; whoever comes next sees what it has written. A `set` or an invalidation
    /// in between makes `change` run once more, on what is there then.
    ///
    /// It reads the deepest level. Where that keeps no leases, it does not see a `set` of this node that has not arrived there
    /// yet ([`Delivery::Pending`]), whatever `get` says, and that set is then lost. The key's other writers in this process, `set` and
    /// `invalidate` as well, wait until `change` has ended: for the policy's hard limit at most, and without one for as long as it
    /// takes. Keep it short.
    ///
    /// An answer without tags keeps those of the value that it replaces, an absence that is remembered as well; an etag, and a
    /// ttl or grace of its own, have to be given again. Answering an absence removes the key, or has that remembered for the
    /// policy's `absent_ttl`; [`Loaded::do_not_store`] leaves it as it is.
    ///
    /// Goes on when its caller leaves. Costs two round trips at the deepest level and one at each other. `change` must not
    /// ask this cache for the same key: it would wait for itself until the hard limit. A loader of the key that updates it gets
    /// [`ErrorKind::Cycle`] where the deepest level keeps leases, as the load has that lease.
    ///
    /// # Errors
    /// [`ErrorKind::Load`] with the error of `change`, `LoadTimeout` (of `change`, or because others held the key all the
    /// time), `LoadPanicked`; [`ErrorKind::Level`] if the deepest level cannot be asked, does not say which of its entries are
    /// valid, cannot hold the new value, or cannot be told of an invalidation of before, whatever its stance: without it
    /// updates would be lost. If it did not answer when the new value was sent, the key is invalidated: nobody can tell
    /// whether it was stored; `Absent`, `Key`, `Tag`, `Closed`, `NoRuntime`.
    ///
    /// ```
    /// # use cache_core::{TracedCache, testing::MapProvider, ok};
    /// # #[tokio::main]
    /// # async fn main() -> Result<(), cache_core::Error> {
    /// let visits: TracedCache<u64> = TracedCache::builder("visits").level(MapProvider::new().leasing()).build()?;
    /// for expected in 1..=3 {
    ///     let seen = visits.update("home", &(), |(), _, seen| async move { ok(seen.map_or(1, |n| *n + 1)) }).await?;
    ///     assert_eq!(*seen.value, expected);
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub async fn update<K, S, A, E, F, Fut>(&self, key: K, state: &S, change: F) -> Result<Updated<A::Out>>
    where
        K: CacheKey,
        S: Clone + Send + Sync + 'static,
        A: Answer<T>,
        E: Into<BoxError>,
        F: Fn(S, K::Owned, Option<Arc<T>>) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<A, E>> + Send + 'static,
    {
        let id = self.render(&key)?;
        let (state, owned) = (state.clone(), key.to_owned_key());
        let change: Change<T> = Box::new(move |held| {
            let changed = change(state.clone(), owned.clone(), held.map(|held| held.value));
            async move { changed.await.map(Answer::into_loaded).map_err(Into::into) }.boxed()
        });
        let (value, delivery) = self.update_erased(id, change).boxed().await?;
        Ok(Updated { value: self.answer::<A>(value)?, delivery })
    }

    async fn update_erased(&self, id: Arc<str>, change: Change<T>) -> Result<(Option<Arc<T>>, Delivery)> {
        let owner = Arc::clone(&self.inner);
        // Its task is not known as part of a load.
        let _edge = owner.waits_for_a_load(&id).map_err(|error| owner.failed(error))?;
        let work = async move {
            let work = async |_: &crate::observers::Spans| owner.update(&id, &change).await;
            owner.operation(Verb::Update, Some(&id), 1, work, |_| None).await
        };
        self.inner.apart("update", "it was stored", work).await
    }
}

impl<T: Value> Inner<T> {
    /// Runs a call as a task, which goes on when its caller leaves. `what` it is called, and what nobody knows if it is
    /// aborted: whether `it_came_to`.
    pub(crate) async fn apart<R: Send + 'static>(
        self: &Arc<Self>,
        what: &str,
        it_came_to: &str,
        work: impl Future<Output = Result<R>> + Send + 'static,
    ) -> Result<R> {
        self.check_open().map_err(|closed| self.failed(closed))?;
        let (done, ended) = tokio::sync::oneshot::channel();
        let task = self.spawn(within(self.observers().ambient(), async move {
            // The caller may have left.
            let _ = done.send(work.await);
        }));
        let failed = match task {
            Some(_) => match ended.await {
                Ok(result) => return result,
                Err(_gone) => Error::new(
                    ErrorKind::LoadAborted,
                    format!("the {what} was aborted; whether {it_came_to} is unknown"),
                ),
            },
            None => Error::new(
                ErrorKind::NoRuntime,
                format!("{what}s run as tokio tasks: call from inside a tokio runtime"),
            ),
        };
        Err(self.failed(failed))
    }
}

/// What became of one try.
enum Tried<T> {
    Done(Option<Arc<T>>, Delivery),
    /// Something has come between.
    Again,
}

impl<T: Value> Inner<T> {
    async fn update(self: &Arc<Self>, id: &str, change: &Change<T>) -> Result<(Option<Arc<T>>, Delivery)> {
        let key = self.key(id)?;
        let until = self.now().after(self.policy().hard.unwrap_or(LONGEST_WAIT));
        let turn = self.slots.open(key);
        // Updates of this process take turns: else each would make the others try again.
        let order = self.in_order([&turn]).await.firm();
        // What the one who had its turn has sent may arrive after the update.
        let alone = if order.took_over { Delivery::Pending } else { Delivery::Confirmed };
        let deepest = self.remote().next_back();
        loop {
            if let Some(tier) = deepest.filter(|tier| tier.pending.due_before(id).is_some())
                && !self.deliver_before(tier, id).boxed().await
            {
                return Err(deaf(tier));
            }
            let tried = match deepest {
                Some(tier) if tier.leases() => self.update_leased(key, tier, change, until).await?,
                Some(tier) => self.update_unleased(key, tier, change).await?,
                None => self.update_nearby(key, change).await?,
            };
            match tried {
                Tried::Done(value, delivery) => return Ok((value, delivery.and(alone))),
                Tried::Again if self.now() >= until => return Err(contended()),
                Tried::Again => {}
            }
        }
    }

    /// An update waits for the lease that a load of the key under way here has: one by that load would wait for itself.
    fn waits_for_a_load(&self, id: &str) -> Result<Option<cycle::Waiting>> {
        if !self.remote().next_back().is_some_and(Tier::leases) {
            return Ok(None);
        }
        self.slots.flight(self.key(id)?).map(|flight| wait_for(&flight)).transpose()
    }

    /// Memory alone: stored if nothing has written the key since it was read.
    async fn update_nearby(self: &Arc<Self>, key: RawKey<'_>, change: &Change<T>) -> Result<Tried<T>> {
        let ticket = self.slots.open(key);
        let begun = self.begin();
        let fresh = |entry: &Entry<T>| entry.state(self.now()) == State::Fresh;
        let near = self.tiers.iter().find_map(|tier| self.peek_surely(key, tier).filter(fresh));
        let Made { entry, keep, .. } = self.changed(near.as_ref(), change, &begun, &[]).await?;
        if keep != Keep::Nothing && self.is_overtaken(key, near.as_ref()).await {
            return Ok(Tried::Again);
        }
        let value = entry.value.clone();
        let now = self.now();
        // Made before the key is locked: a weigher is anybody's code.
        let object = |tier| if keep == Keep::Store { self.object(&entry, tier) } else { None };
        let objects: Vec<_> =
            self.tiers.iter().filter_map(|tier| Some((tier.store.as_ref()?, object(tier)))).collect();
        let stored = ticket.swap(|| {
            for (store, object) in objects {
                match object {
                    Some(object) => self.put_back(key, object, &**store, now),
                    None if keep != Keep::Nothing => {
                        store.remove(key);
                    }
                    None => {}
                }
            }
        });
        if !stored {
            return Ok(Tried::Again);
        }
        let told = if keep == Keep::Nothing { Delivery::Confirmed } else { self.tell(&[key]).await };
        Ok(Tried::Done(value, told))
    }

    /// A level without leases: one at a time in this process; another node's update in between is lost.
    async fn update_unleased(
        self: &Arc<Self>,
        key: RawKey<'_>,
        tier: &Tier,
        change: &Change<T>,
    ) -> Result<Tried<T>> {
        let mut begun = self.begin_writing().await;
        let writing = Writing::begin(self, [key]);
        let (read, _) = tier.read_many(&self.around, &[key]).await;
        let held = match read.into_iter().next() {
            Some(crate::tier::Read::Bytes(bytes)) => self.readable(key, tier, &bytes, &begun).await,
            Some(crate::tier::Read::Failed(failure)) => {
                writing.end_unwritten();
                return Err(failure.into_error(tier));
            }
            _ => None,
        };
        self.learned_since(&mut begun);
        if begun.stamp(tier.index).epoch == 0 {
            writing.end_unwritten();
            return Err(Failure::Mute.into_error(tier));
        }
        let (mut item, keep) = match self.prepare(key, tier, held.as_ref(), change, &begun, &[]).await {
            Ok(Some(prepared)) => prepared,
            other => {
                writing.end_unwritten();
                return other.map(|_overtaken| Tried::Again);
            }
        };
        let value = item.entry.value.clone();
        let delivery = self.spread(writing, &mut item, keep, None, &begun).await?;
        Ok(Tried::Done(value, delivery))
    }

    /// Under the lease of the deepest level: stored there if nothing has written the key since it was read, and removed
    /// from all others.
    async fn update_leased(
        self: &Arc<Self>,
        key: RawKey<'_>,
        tier: &Tier,
        change: &Change<T>,
        until: Moment,
    ) -> Result<Tried<T>> {
        let here = tier.place();
        let begun = self.begin_writing().await;
        if begun.stamp(tier.index).epoch == 0 {
            return Err(Failure::Mute.into_error(tier));
        }
        let Some((lease, held)) = self.take(key, tier, &begun, until).await? else {
            return Ok(Tried::Again);
        };
        let rights: Rights = vec![Right::new(tier.index, lease)];
        if !tier.is_at(here) || !tier.ledger.is_of(here.home) {
            // What it holds has perhaps been read from another state of the store than the mark that it was judged by.
            self.give_back(key, rights);
            return Ok(Tried::Again);
        }
        let mut writing = Writing::begin(self, [key]);
        let kept = [(key, rights.clone())];
        let (item, keep) = match self.prepare(key, tier, held.as_ref(), change, &begun, &kept).await {
            Ok(Some((item, keep))) if keep != Keep::Nothing => (item, keep),
            other => {
                self.give_back(key, rights);
                writing.end_unwritten();
                return Ok(match other? {
                    None => Tried::Again,
                    Some((item, _as_it_is)) => Tried::Done(item.entry.value, Delivery::Confirmed),
                });
            }
        };
        let value = item.entry.value.clone();
        let mut item = item.with_rights(rights);
        if keep == Keep::Forget {
            // What is to be gone must still be what was read: it is replaced by what nobody believes, and that is removed.
            item.entry.value = None;
            item.entry.timeline = crate::Timeline::new(self.now(), Duration::ZERO, Duration::ZERO);
        }
        writing.sends();
        let sent = self.send(tier, &mut [&mut item], begun.stamp(tier.index), &NO_ORDER).await.pop();
        match sent.map(|sent| tier.noted_if_stored(&self.around, here, key.id, sent)) {
            Some(Ok(true)) => {}
            Some(Ok(false)) => {
                writing.end_unwritten();
                return Ok(Tried::Again);
            }
            Some(Err(failure)) => {
                // It may have been stored. What is in doubt is not read again before it has been removed.
                tier.pending.add(key.id);
                writing.end([]);
                self.replay();
                return Err(failure.into_error(tier));
            }
            None => return Err(Failure::Skipped.into_error(tier)),
        }
        let delivery = self.spread(writing, &mut item, keep, Some(tier.index), &begun).await?;
        Ok(Tried::Done(value, delivery))
    }

    /// Runs `change`, and sees to it that the level can hold what it answers. `None`: what it was shown has been overtaken
    /// meanwhile.
    async fn prepare<'k>(
        &self,
        key: RawKey<'k>,
        tier: &Tier,
        shown: Option<&Entry<T>>,
        change: &Change<T>,
        begun: &Begun,
        rights: &[(RawKey<'_>, Rights)],
    ) -> Result<Option<(Outgoing<'k, T>, Keep)>> {
        let Made { entry, keep, .. } = self.changed(shown, change, begun, rights).await?;
        if keep != Keep::Nothing && self.is_overtaken(key, shown).await {
            return Ok(None);
        }
        let mut item = Outgoing::new(key, entry);
        if keep == Keep::Store {
            let fits = self.fits(&mut item, tier, begun.stamp(tier.index));
            fits.map_err(|unfit| unfit.into_error(tier))?;
        }
        Ok(Some((item, keep)))
    }

    /// Waits for the lease of a key; with what the level holds of it. `None`: there is something that it has to hear first.
    async fn take(
        self: &Arc<Self>,
        key: RawKey<'_>,
        tier: &Tier,
        begun: &Begun,
        until: Moment,
    ) -> Result<Option<(Lease, Option<Entry<T>>)>> {
        let (mut held, mut holding) = (None, Holding::Nothing);
        let started = self.now();
        loop {
            let wish = [Acquire { key, holding }];
            let answer = self.acquire_many(tier, &wish).await.pop();
            if tier.pending.has(key.id) {
                if let Some(Ok(Acquired::Granted(lease))) = answer {
                    self.give_back(key, vec![Right::new(tier.index, lease)]);
                }
                return Ok(None);
            }
            match answer {
                Some(Ok(Acquired::Granted(lease))) => return Ok(Some((lease, held))),
                Some(Ok(Acquired::Found(bytes))) => {
                    held = self.readable(key, tier, &bytes, begun).await;
                    if tier.ledger.is_outdated() {
                        // The level does not say whether this is valid, and a new value must not be made as if there were
                        // none.
                        return Err(Failure::Mute.into_error(tier));
                    }
                    let told = holding;
                    holding = match envelope::open(key, &bytes) {
                        // What has been invalidated since must not be the value that the new one is made from.
                        Ok((header, _)) => Holding::Still(header.id),
                        Err(_) => Holding::Unreadable,
                    };
                    // Asked with the same again, it would answer the same: then there is a pause first.
                    if holding != told {
                        continue;
                    }
                }
                Some(Ok(Acquired::Held | Acquired::Kept)) => {
                    (held, holding) = (None, Holding::Nothing);
                }
                Some(Err(failure)) => return Err(failure.into_error(tier)),
                None => return Err(Failure::Skipped.into_error(tier)),
            }
            if self.now() >= until {
                return Err(contended());
            }
            let waited = self.now().since(started);
            self.around.clock.sleep(pause_after(waited)).await;
        }
    }

    /// A fresh entry out of a level's bytes, if it is one.
    pub(crate) async fn readable(
        &self,
        key: RawKey<'_>,
        tier: &Tier,
        bytes: &[u8],
        begun: &Begun,
    ) -> Option<Entry<T>> {
        // Unlike a read, a request for a lease does not look at the mark, which may have changed since anybody did.
        tier.know_epoch(&self.around).await;
        if tier.ledger.is_outdated() {
            return None;
        }
        let Decoded { entry, stamp } =
            self.decode_quietly(key, tier, bytes, tier.times(&self.around.clock)).ok()?;
        self.observers().items(tier.index, LevelOp::Get, &[bytes.len()]);
        let entry = self.believed(tier, entry, stamp, begun).await?;
        (entry.state(self.now()) == State::Fresh).then_some(entry)
    }

    /// Runs `change`: hard limit, panic, leases kept alive.
    async fn changed(
        &self,
        held: Option<&Entry<T>>,
        change: &Change<T>,
        begun: &Begun,
        rights: &[(RawKey<'_>, Rights)],
    ) -> Result<Made<T>> {
        let born = self.now();
        let shown = held.filter(|entry| entry.state(born) == State::Fresh).and_then(|entry| self.held(entry));
        let work = async { change(shown).await };
        let guarded = AssertUnwindSafe(cycle::running(LoadId::next(), work)).catch_unwind();
        let alive = async { self.keeping(rights, LEASE, pin!(guarded)).await };
        let loaded = match self.within_hard_limit(pin!(alive)).await {
            Ok(Ok(Ok(loaded))) => loaded,
            Ok(Ok(Err(cause))) => return Err(load_failed(cause)),
            Ok(Err(_panic)) => return Err(Error::new(ErrorKind::LoadPanicked, "the update panicked")),
            Err(limit) => {
                let message = format!("the update ran into the policy's hard limit of {limit:?}");
                return Err(Error::new(ErrorKind::LoadTimeout, message));
            }
        };
        let began = Began::of(born, self.now().since(born), begun.clone());
        let mut made = self.make(loaded, &began, held).map_err(|failed| failed.error)?;
        // An update is a write like a set: nothing that begins now is older.
        made.entry.by_set = matches!(made.end, LoadEnd::Value | LoadEnd::Absent);
        let tags = held.map_or(&[][..], Entry::tags);
        if made.keep == Keep::Store && made.entry.tags().is_empty() && !tags.is_empty() {
            // `change` gets a value without its tags, and would drop them unawares.
            let mut extra = made.entry.extra.as_deref().cloned().unwrap_or_default();
            extra.tags = tags.to_vec();
            made.entry.extra = extra.boxed();
        }
        Ok(made)
    }

    /// Whether what `change` was shown has been invalidated or expired since, by one of its tags or with the whole cache: a
    /// lease and the writers' turn tell of the key alone. Or something has failed to reach the deepest level meanwhile: told
    /// there after the update, it would take that away.
    async fn is_overtaken(&self, key: RawKey<'_>, shown: Option<&Entry<T>>) -> bool {
        let is_void = match shown {
            Some(entry) => !self.believes(entry).boxed().await,
            None => false,
        };
        is_void || self.remote().next_back().is_some_and(|tier| tier.pending.due_before(key.id).is_some())
    }

    /// Takes the stamps of levels that have said what is valid only since an update began. Before its change is asked for: what is
    /// invalidated from then on takes what that makes along.
    fn learned_since(&self, begun: &mut Begun) {
        for tier in self.remote().filter(|tier| !tier.ledger.is_outdated()) {
            if let Some(stamp) =
                begun.stamps.get_mut(usize::from(tier.index)).filter(|stamp| stamp.epoch == 0)
            {
                *stamp = tier.stamp();
            }
        }
    }

    /// Tells every level but `done` that the old value is gone, or gives it the new one where no lease guards it, and the
    /// other nodes.
    async fn spread(
        self: &Arc<Self>,
        mut writing: Writing<'_, T>,
        item: &mut Outgoing<'_, T>,
        keep: Keep,
        done: Option<u8>,
        begun: &Begun,
    ) -> Result<Delivery> {
        let key = item.key;
        let mut written = Written::new();
        if keep != Keep::Nothing {
            writing.sends();
            let deepest = self.remote().next_back().map(|tier| tier.index);
            for tier in self.remote().rev() {
                if done == Some(tier.index) && keep == Keep::Store {
                    continue;
                }
                // With leases, levels above are filled from the deepest one, in the order of its values.
                let result = if done.is_none() && keep == Keep::Store {
                    let (stamp, here) = (begun.stamp(tier.index), tier.place());
                    let sent = match stamp.epoch {
                        0 => None,
                        _ => self.send(tier, &mut [item], stamp, &NO_ORDER).await.pop(),
                    };
                    let sent = sent.unwrap_or(Err(Failure::Skipped));
                    let sent = tier.noted(&self.around, here, key.id, sent);
                    if let Err(failure) = sent {
                        tier.pending.add(key.id);
                        if deepest == Some(tier.index) {
                            // The next update reads it there, and would not find this one.
                            writing.end([]);
                            self.replay();
                            return Err(failure.into_error(tier));
                        }
                        Err(failure)
                    } else {
                        Ok(())
                    }
                } else {
                    let removed = tier.remove_many(&self.around, &[key]).await.pop();
                    removed.unwrap_or(Err(Failure::Skipped))
                };
                written.take(tier, result);
            }
            written = written.told(self.tell(&[key]).await);
            let kept = keep == Keep::Store && !self.has_ended();
            writing.end(kept.then_some(&item.entry));
        } else {
            writing.end_unwritten();
        }
        self.replay();
        written.end()
    }
}

/// It has not heard yet that what it holds of the key is gone.
fn deaf(tier: &Tier) -> Error {
    let at = tier.number();
    Error::new(
        ErrorKind::Level,
        format!(
            "level {at} could not be told of an invalidation of before, which would take the update away"
        ),
    )
}

fn contended() -> Error {
    Error::new(ErrorKind::LoadTimeout, "others held or wrote the key all the time")
}
