//! Warming: filling a cache before its callers ask.

use std::{fmt, sync::Arc};

use futures::StreamExt;

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
        let pairs = keys.into_iter().map(|key| {
            let load = load.clone();
            async move {
                let result = self.look_or_set_with(&key, state, load).await;
                (key, result.map(|found| found.value().is_some() && self.access != Access::Bypass))
            }
        });
        self.inner.warming(gather(futures::stream::iter(pairs), at_once)).await
    }

    /// Stores a stream of pairs, from a database cursor say, with at most `at_once` writes under way.
    pub async fn warm_from<K, V>(
        &self,
        pairs: impl futures::Stream<Item = (K, V)>,
        at_once: usize,
    ) -> Warmed<K>
    where
        K: CacheKey,
        V: Into<Arc<T>>,
    {
        let writes = pairs.map(|(key, value)| async move {
            let result = self.set(&key, value).await;
            (key, result.map(|_delivery| true))
        });
        self.inner.warming(gather(writes, at_once)).await
    }
}

impl<T: Value> Inner<T> {
    /// Counts a warm-up as a call of its own, and gives it a span around those of its keys.
    async fn warming<K>(&self, work: impl Future<Output = Gathered<K>>) -> Warmed<K> {
        self.stats().operation(Verb::Warm);
        let kind = SpanKind::Operation(Verb::Warm);
        let spans = self.observers().span(&SpanStart { kind, key: None, keys: 0, root: false });
        let started = self.now();
        let (warmed, keys) = spans.around(work).await;
        spans.done(keys, warmed.failed.len());
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

/// What came of the keys, and how many there were.
type Gathered<K> = (Warmed<K>, usize);

async fn gather<K, F>(work: impl futures::Stream<Item = F>, at_once: usize) -> Gathered<K>
where
    F: Future<Output = (K, Result<bool>)>,
{
    let none = Warmed { warmed: 0, failed: Vec::new() };
    work.buffer_unordered(at_once.max(1))
        .fold((none, 0), |(mut all, keys), (key, result)| {
            match result {
                Ok(holds) => all.warmed += usize::from(holds),
                Err(error) => all.failed.push((key, error)),
            }
            std::future::ready((all, keys + 1))
        })
        .await
}
