//! Warming: filling a cache before its callers ask.

use std::{
    fmt,
    pin::{Pin, pin},
    sync::Arc,
};

use futures::{
    Stream, StreamExt,
    future::{Either, select},
    stream::{self, FuturesUnordered},
};

use crate::{
    Access, Answer, BoxError, CacheKey, Error, Event, Result, SpanKind, SpanStart, TracedCache, Value, Verb,
    inner::Inner,
};

/// What warming came to.
#[derive(Clone, Default)]
#[must_use]
pub struct Warmed<K> {
    /// Keys with a value that was held or has been loaded, or, of [`TracedCache::warm_from`], written. Not what the source does
    /// not have, and nothing under [`Access::Bypass`], which stores nothing.
    pub warmed: usize,
    /// Keys that failed, and how.
    pub failed: Vec<(K, Error)>,
}

/// Keys stay out of `Debug` output.
impl<K> fmt::Debug for Warmed<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Warmed").field("warmed", &self.warmed).field("failed", &self.failed.len()).finish()
    }
}

impl<T: Value> TracedCache<T> {
    /// Makes sure that these keys are held, with at most `at_once` of them under way. Keys that a level already has fresh
    /// are left as they are, but for an early refresh.
    ///
    /// A key is done with once a stale value stands in for it. Its load goes on and may be one of many then: `at_once` bounds
    /// the loads of keys of which nothing is held, [`Policy::loads`](crate::Policy::loads) all.
    ///
    /// Waits for a backplane that has not come up so far, two seconds at most: what is being loaded when it does is kept at no
    /// level, as nobody knows what has overtaken it.
    ///
    /// Dropping the future stops starting loads; those under way go on.
    pub async fn warm<K, S, A, E, F, Fut>(
        &self,
        keys: impl IntoIterator<Item = K>,
        at_once: usize,
        state: &S,
        load: F,
    ) -> Warmed<K>
    where
        K: CacheKey,
        S: Clone + Send + Sync + 'static,
        A: Answer<T>,
        E: Into<BoxError>,
        F: Fn(S, K::Owned) -> Fut + Clone + Send + Sync + 'static,
        Fut: Future<Output = Result<A, E>> + Send + 'static,
    {
        let work = async {
            self.inner.hears().await;
            let mut keys = pin!(stream::iter(keys));
            let mut all = Gathering::new(at_once);
            while let Some(key) = all.next(keys.as_mut()).await {
                let load = load.clone();
                all.begin(async move {
                    let found = self.look_or_set_with(&key, state, load).await;
                    (key, found.map(|found| found.value().is_some() && self.access != Access::Bypass))
                });
            }
            all.end().await
        };
        self.inner.warming(work).await
    }

    /// Stores a stream of pairs, from a database cursor say, with at most `at_once` writes under way.
    pub async fn warm_from<K, V>(&self, pairs: impl Stream<Item = (K, V)>, at_once: usize) -> Warmed<K>
    where
        K: CacheKey,
        V: Into<Arc<T>>,
    {
        let work = async {
            let mut pairs = pin!(pairs);
            let mut all = Gathering::new(at_once);
            while let Some((key, value)) = all.next(pairs.as_mut()).await {
                all.begin(async move {
                    let result = self.set(&key, value).await;
                    (key, result.map(|_delivery| true))
                });
            }
            all.end().await
        };
        self.inner.warming(work).await
    }
}

impl<T: Value> Inner<T> {
    /// Counts a warm-up as a call of its own, and gives it a span around those of its keys.
    async fn warming<K>(&self, work: impl Future<Output = (Warmed<K>, usize)>) -> Warmed<K> {
        self.stats().operation(Verb::Warm);
        let kind = SpanKind::Operation(Verb::Warm);
        let spans = self.observers().span(&SpanStart { kind, key: None, keys: 0, root: false });
        let started = self.now();
        let (warmed, keys) = spans.around(work).await;
        spans.done(keys, warmed.failed.len());
        spans.end();
        self.observers().event(&Event::Operation {
            verb: Verb::Warm,
            outcome: None,
            level: None,
            elapsed: self.now().since(started),
            keys,
            weight: 1,
            // Each that failed is an error of its own.
            error: None,
        });
        warmed
    }
}

/// A key, and whether it is held now.
type Gathered<K> = (K, Result<bool>);

/// Work for keys, some of it under way. No stream of closures: with keys that borrow, the future of such a one is not known
/// to be `Send`.
struct Gathering<K, F> {
    under_way: FuturesUnordered<F>,
    at_once: usize,
    warmed: Warmed<K>,
    keys: usize,
}

impl<K, F: Future<Output = Gathered<K>>> Gathering<K, F> {
    fn new(at_once: usize) -> Self {
        let warmed = Warmed { warmed: 0, failed: Vec::new() };
        Self { under_way: FuturesUnordered::new(), at_once: at_once.max(1), warmed, keys: 0 }
    }

    /// The next item, as soon as there is room for its work. What is under way goes on meanwhile.
    async fn next<I>(&mut self, mut items: Pin<&mut impl Stream<Item = I>>) -> Option<I> {
        while self.under_way.len() >= self.at_once {
            self.one().await;
        }
        while !self.under_way.is_empty() {
            if let Either::Left((item, _)) = select(items.next(), pin!(self.one())).await {
                return item;
            }
        }
        items.next().await
    }

    fn begin(&mut self, work: F) {
        self.keys += 1;
        self.under_way.push(work);
    }

    /// Waits for one key. `false`: none is under way. Loses nothing when it is dropped.
    async fn one(&mut self) -> bool {
        match self.under_way.next().await {
            Some((_, Ok(holds))) => self.warmed.warmed += usize::from(holds),
            Some((key, Err(error))) => self.warmed.failed.push((key, error)),
            None => return false,
        }
        true
    }

    /// What came of all keys, and how many there were.
    async fn end(mut self) -> (Warmed<K>, usize) {
        while self.one().await {}
        (self.warmed, self.keys)
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::atomic::{AtomicUsize, Ordering},
        time::Duration,
    };

    use super::*;
    use crate::{
        Policy, ok,
        testing::{Hub, MapProvider},
    };

    #[tokio::test]
    async fn nothing_is_loaded_until_the_backplane_is_up() {
        let (plane, store) = (Hub::new().node(), Arc::new(MapProvider::new().leasing().marking()));
        plane.cut();
        let cache: TracedCache<u64> = TracedCache::builder("warmed")
            .level(Arc::clone(&store))
            .policy(Policy::ttl(Duration::from_secs(60)))
            .backplane(plane.clone())
            .build()
            .unwrap();
        let loads = Arc::new(AtomicUsize::new(0));
        let load = |loads: Arc<AtomicUsize>, _| async move {
            loads.fetch_add(1, Ordering::Relaxed);
            ok(7)
        };
        let warming = cache.warm([1_u64, 2], 2, &loads, load);
        let meanwhile = async {
            tokio::task::yield_now().await;
            let before = loads.load(Ordering::Relaxed);
            plane.heal();
            before
        };
        let (warmed, before) = tokio::join!(warming, meanwhile);
        assert_eq!((warmed.warmed, before, cache.stats().overtaken), (2, 0, 0));
        assert!(cache.look(1).await.unwrap().is_hit());
    }
}
