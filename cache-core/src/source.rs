//! Sources: the data behind a cache, for cache-aside and write-through.

use std::{
    fmt,
    hash::Hash,
    marker::PhantomData,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::pin,
    sync::Arc,
    time::Duration,
};

use futures::FutureExt;

use crate::{
    BoxError, CacheKey, Delivery, Entry, EntryId, Error, ErrorKind, Extra, Loaded, RawKey, Result, SpanKind,
    SpanStart, Stamp, TracedCache, Value, Verb,
    fill::Outgoing,
    inner::Inner,
    order::NO_ORDER,
    rights::{HOLD, Right, Rights},
    tier::Failure,
    write::{Writing, Written},
};

/// Where values come from and go to: a database, a service.
///
/// Only [`load`](Self::load) must be written. Errors are boxed, so `?` works on any; callers get their own type back from
/// [`Error::load_error`].
///
/// ```
/// use cache_core::{BoxError, Loaded, Source};
/// struct Users;
/// impl Source<u64, String> for Users {
///     async fn load(&self, id: &u64) -> Result<Loaded<String>, BoxError> {
///         Ok(Loaded::value(format!("user {id}")))
///     }
/// }
/// ```
pub trait Source<K, T>: Send + Sync + 'static
where
    K: Send + Sync + Clone,
    T: Send + Sync,
{
    /// Reads one value. An `Option` converts with `.into()`.
    fn load(&self, key: &K) -> impl Future<Output = Result<Loaded<T>, BoxError>> + Send;

    /// Reads many; keys left out are absent. One after the other unless overridden.
    fn load_many(&self, keys: &[K]) -> impl Future<Output = Result<Vec<(K, Loaded<T>)>, BoxError>> + Send {
        async move {
            let mut all = Vec::with_capacity(keys.len());
            for key in keys {
                all.push((key.clone(), self.load(key).await?));
            }
            Ok(all)
        }
    }

    /// Writes one value. When this is an error, the outcome counts as unknown.
    fn save(&self, key: &K, value: &T) -> impl Future<Output = Result<(), BoxError>> + Send {
        let _ = (key, value);
        async { Err("this source cannot be written to: implement `Source::save`".into()) }
    }

    /// Tags under which a saved value is kept: those that [`load`](Self::load) would give it. A save that finds none here
    /// keeps those of the entry that it replaces, if this process holds that in memory; levels outside it are not asked.
    fn tags(&self, key: &K, value: &T) -> Vec<Box<str>> {
        let _ = (key, value);
        Vec::new()
    }

    /// Deletes one value. When this is an error, the outcome counts as unknown.
    fn delete(&self, key: &K) -> impl Future<Output = Result<(), BoxError>> + Send {
        let _ = key;
        async { Err("this source cannot be deleted from: implement `Source::delete`".into()) }
    }
}

/// A cache with its source: [`TracedCache::with_source`].
pub struct Sourced<K, T, S> {
    cache: TracedCache<T>,
    source: Arc<S>,
    keys: PhantomData<fn(K)>,
}

impl<K, T, S> Clone for Sourced<K, T, S> {
    fn clone(&self) -> Self {
        Self { cache: self.cache.clone(), source: Arc::clone(&self.source), keys: PhantomData }
    }
}

impl<T: Value> TracedCache<T> {
    /// Puts a source behind this cache: `let by_id = users.with_source(UserTable(db)); by_id.get(42).await?`.
    pub fn with_source<K, S>(&self, source: S) -> Sourced<K, T, S>
    where
        K: CacheKey<Owned = K> + Clone + Eq + Hash + Send + Sync + 'static,
        S: Source<K, T>,
    {
        Sourced { cache: self.clone(), source: Arc::new(source), keys: PhantomData }
    }
}

/// What is written to a source.
enum Change<T> {
    Save(Arc<T>),
    Delete,
}

impl<T> Change<T> {
    const fn verb(&self) -> Verb {
        match self {
            Self::Save(_) => Verb::Save,
            Self::Delete => Verb::Delete,
        }
    }
}

impl<K, T, S> Sourced<K, T, S>
where
    K: CacheKey<Owned = K> + Clone + Eq + Hash + Send + Sync + 'static,
    T: Value,
    S: Source<K, T>,
{
    /// The cache.
    pub fn cache(&self) -> &TracedCache<T> {
        &self.cache
    }

    /// The value, from a level or the source (cache-aside).
    ///
    /// # Errors
    /// As [`TracedCache::get_or_set`].
    pub async fn get(&self, key: impl CacheKey<Owned = K>) -> Result<Option<Arc<T>>> {
        self.cache
            .get_or_set_with(key, &self.source, |source, key: K| async move { source.load(&key).await })
            .await
    }

    /// Many values, in the asked order; what is missing comes from one [`Source::load_many`].
    ///
    /// # Errors
    /// As [`TracedCache::get_or_set_many`].
    pub async fn get_many<Q: CacheKey<Owned = K>>(
        &self,
        keys: impl IntoIterator<Item = Q>,
    ) -> Result<Vec<Option<Arc<T>>>> {
        self.cache
            .get_or_set_many(keys, &self.source, |source, keys: Vec<K>| async move {
                source.load_many(&keys).await
            })
            .await
    }

    /// Writes to the source, then to every level (write-through). Writes of one key through this cache take turns.
    ///
    /// If the source fails, or its outcome is unknown (an error, a panic, the policy's hard limit), the new value is not
    /// visible in the cache, and the old one is gone from it. Once the source has succeeded, no level that can be
    /// reached serves the old value. Goes on when its caller leaves.
    ///
    /// The value lives by the policy and has the tags of [`Source::tags`]; an etag, or a ttl or grace of its own, that `load`
    /// gives is not kept. A source whose `load` gives tags should implement `tags`, too: without them
    /// [`invalidate_tag`](TracedCache::invalidate_tag) does not reach what has been saved. Where more is to be kept than tags,
    /// [`invalidate`](TracedCache::invalidate) the key after the save: the next call loads it.
    ///
    /// Before the source is written, levels that keep leases drop the old value and keep the key: who reads there
    /// meanwhile loads, and what it gets is stored nowhere. Should this process die in the middle, the old value is not served
    /// from there, and nobody stores a value for 5 s at most. Memory that has the old value gives it until this has answered.
    /// Where two nodes write one key at the same time, neither value is kept. One round trip per level more than a `set`.
    ///
    /// # Errors
    /// [`ErrorKind::Load`] with the source's error, `LoadTimeout`, `LoadPanicked`; `Level` where a level surfaces its
    /// failures (if it could not be told before, the source has not been written); `Tag` (nor has it then), `Key`, `Closed`,
    /// `NoRuntime`.
    pub async fn save(&self, key: impl CacheKey<Owned = K>, value: impl Into<Arc<T>>) -> Result<Delivery> {
        self.change(key.to_owned_key(), Change::Save(value.into())).await
    }

    /// Deletes from the source, then from every level.
    ///
    /// # Errors
    /// As [`save`](Self::save).
    pub async fn delete(&self, key: impl CacheKey<Owned = K>) -> Result<Delivery> {
        self.change(key.to_owned_key(), Change::Delete).await
    }

    async fn change(&self, key: K, change: Change<T>) -> Result<Delivery> {
        let id = self.cache.render(&key)?;
        let (owner, source) = (Arc::clone(&self.cache.inner), Arc::clone(&self.source));
        let verb = change.verb();
        let work = async move {
            let work = async |_: &crate::observers::Spans| owner.change(&id, &key, &*source, change).await;
            owner.operation(verb, Some(&id), 1, work, |_| None).await
        };
        self.cache.inner.apart(verb.as_str(), "the source took it", work).await
    }
}

impl<T: Value> Inner<T> {
    async fn change<K, S>(
        self: &Arc<Self>,
        id: &str,
        key: &K,
        source: &S,
        change: Change<T>,
    ) -> Result<Delivery>
    where
        K: CacheKey<Owned = K> + Clone + Send + Sync,
        S: Source<K, T>,
    {
        let raw = self.key(id)?;
        let mut tags = match &change {
            Change::Save(value) => {
                catch_unwind(AssertUnwindSafe(|| source.tags(key, value))).map_err(|_panic| {
                    Error::new(ErrorKind::LoadPanicked, "the source's `tags` panicked: nothing was saved")
                })?
            }
            Change::Delete => Vec::new(),
        };
        self.check_tags(&tags)?;
        // Loads that begin while the source is being written may have read either value: ending the write revokes them.
        // Dropped midway (an abort), it leaves nothing at in-process levels.
        let mut writing = Writing::begin(self, [raw]);
        let mut written = Written::new();
        let order = self.order_of(&mut writing, &mut written).await.firm();
        if tags.is_empty() {
            tags = self.tags_nearby(raw);
        }
        let rights = match self.hold(raw, &mut written).await {
            Ok(rights) => vec![(raw, rights)],
            Err(error) => {
                writing.end([]);
                self.replay();
                return Err(error);
            }
        };
        let failed = self.write_source(id, key, source, &change, &rights).await.err();
        let rights = rights.into_iter().flat_map(|(_, rights)| rights).collect();
        match change {
            Change::Save(value) if failed.is_none() => {
                let now = self.now();
                let entry = Entry {
                    timeline: self.timeline(now, false, None, None),
                    value: Some(value),
                    id: EntryId::random(),
                    stamp: crate::Stamp::default(),
                    seen: 0,
                    cost: Duration::ZERO,
                    by_set: true,
                    extra: Extra { tags, ..Extra::default() }.boxed(),
                    quiet_until: None,
                    encoded: None,
                };
                let mut item = Outgoing::new(raw, entry).with_rights(rights);
                let taken = self.write_held(&mut item, &mut written).await;
                // Of levels that could not take it.
                self.give_back(raw, std::mem::take(&mut item.rights));
                written = written.told(self.tell(&[raw]).await);
                writing.end(taken.then_some(&item.entry));
            }
            _ => {
                self.remove_below(&writing, &mut written).await;
                written = written.told(self.tell(&[raw]).await);
                if failed.as_ref().is_none_or(|error| error.kind() != ErrorKind::LoadTimeout) {
                    // Whatever the source has done, it is over. After a timeout it may still be at it: the hold stays.
                    self.give_back(raw, rights);
                }
                if failed.is_none() {
                    self.gone(&[raw]);
                }
                writing.end([]);
            }
        }
        drop(order);
        self.replay();
        match failed {
            Some(error) => Err(error),
            None => written.end(),
        }
    }
}

impl<T: Value> Inner<T> {
    /// Has the source take a change: holds kept alive, hard limit, panic, span.
    async fn write_source<K, S>(
        &self,
        id: &str,
        key: &K,
        source: &S,
        change: &Change<T>,
        rights: &[(RawKey<'_>, Rights)],
    ) -> Result<()>
    where
        K: CacheKey<Owned = K> + Clone + Send + Sync,
        S: Source<K, T>,
    {
        let call = async {
            match change {
                Change::Save(value) => source.save(key, value).await,
                Change::Delete => source.delete(key).await,
            }
        };
        let call = async { self.keeping(rights, HOLD, pin!(call)).await };
        let kind = SpanKind::Source(change.verb());
        let spans = self.observers().span(&SpanStart { kind, key: Some(id), keys: 1, root: false });
        let guarded = AssertUnwindSafe(spans.around(call)).catch_unwind();
        let written = match self.within_hard_limit(pin!(guarded)).await {
            Ok(Ok(Ok(()))) => Ok(()),
            Ok(Ok(Err(cause))) => {
                Err(Error::with_source(ErrorKind::Load, format!("the source failed: {cause}"), cause))
            }
            Ok(Err(_panic)) => Err(Error::new(ErrorKind::LoadPanicked, "the source panicked")),
            Err(_limit) => Err(Error::new(
                ErrorKind::LoadTimeout,
                "the source ran into the policy's hard limit; whether it took the change is unknown",
            )),
        };
        if let Err(error) = &written {
            spans.failed(error.kind().as_str());
        }
        spans.end();
        written
    }

    /// Tags of what this process holds of a key.
    fn tags_nearby(&self, key: RawKey<'_>) -> Vec<Box<str>> {
        let stores = self.tiers.iter().filter_map(|tier| Some((tier.index, tier.store.as_ref()?)));
        let mut held = stores.filter_map(|(level, store)| self.peek_quietly(key, &**store, level).entry);
        held.next().map_or_else(Vec::new, |entry| entry.tags().to_vec())
    }

    /// Takes a key out of every remote level, deepest first, and keeps it where that can be, before its source is written.
    async fn hold(self: &Arc<Self>, key: RawKey<'_>, written: &mut Written) -> Result<Rights> {
        let mut rights = Rights::new();
        for tier in self.remote().rev() {
            let failure = if tier.leases() {
                match tier.hold_many(&self.around, &[key], HOLD).await.pop() {
                    Some(Ok(lease)) => {
                        rights.push(Right::new(tier.index, lease));
                        continue;
                    }
                    Some(Err(failure)) => failure,
                    None => Failure::Skipped,
                }
            } else {
                match tier.remove_many(&self.around, &[key]).await.pop() {
                    Some(Err(failure)) => failure,
                    Some(Ok(())) | None => continue,
                }
            };
            // It may still have the old value: not believed before it has heard.
            tier.pending.add(key.id);
            if tier.surface {
                self.give_back(key, rights);
                return Err(failure.into_error(tier));
            }
            written.pending();
        }
        Ok(rights)
    }

    /// Stores what the source has taken, at each level under its hold. A level that was not held, or that refuses because
    /// somebody else has written meanwhile, keeps nothing. Says whether the value may be kept nearby.
    async fn write_held(self: &Arc<Self>, item: &mut Outgoing<'_, T>, written: &mut Written) -> bool {
        let begun = self.begin_writing().await;
        item.entry.stamp = self.authority().map_or_else(Stamp::default, |tier| begun.stamp(tier.index));
        item.entry.seen = begun.seen;
        let mut taken = true;
        for tier in self.remote().rev() {
            let stamp = begun.stamp(tier.index);
            let may = stamp.epoch != 0 && (!tier.leases() || item.has_right(tier.index));
            let sent = match may {
                true => self
                    .send(tier, &mut [item], stamp, &NO_ORDER)
                    .await
                    .pop()
                    .unwrap_or(Err(Failure::Skipped)),
                false => Ok(false),
            };
            let result = match sent {
                Ok(true) => Ok(()),
                Ok(false) => {
                    // A refusal of the store: another value, or none, is what counts.
                    taken &= !may;
                    let removed = tier.remove_many(&self.around, &[item.key]).await.pop();
                    removed.unwrap_or(Err(Failure::Skipped))
                }
                Err(failure) => {
                    tier.pending.add(item.key.id);
                    Err(failure)
                }
            };
            written.take(tier, result);
        }
        taken
    }
}

impl<K, T, S> fmt::Debug for Sourced<K, T, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sourced").finish_non_exhaustive()
    }
}
