//! One call that may leave the nearest level: the hit that does not, and what is counted, timed and traced of the rest.

use std::{
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll},
};

use pin_project_lite::pin_project;
use tokio_util::task::task_tracker::TaskTrackerToken;

use crate::{
    Access, Error, Event, Found, MissReason, Outcome, RawKey, Result, SpanKind, SpanStart, Value, Verb,
    inner::Inner, observers::Spans, stats::SAMPLE,
};

impl<T> Found<T> {
    pub(crate) fn brief(&self) -> Option<Brief> {
        Some(Brief { outcome: self.outcome, level: self.level, reason: self.reason })
    }
}

/// What telemetry is told of a look-up.
#[derive(Clone, Copy)]
pub(crate) struct Brief {
    outcome: Outcome,
    level: Option<u8>,
    reason: Option<MissReason>,
}

/// What a look for a hit at the nearest level has shown.
pub(crate) enum Glimpse<T> {
    Hit(Arc<T>),
    /// The level has nothing under the key.
    Nothing,
    /// The level has not been looked at, or what it has is no plain hit.
    Unclear,
}

impl<T: Value> Inner<T> {
    /// A fresh hit at the nearest level: no allocation, no future, no lock of ours.
    #[inline]
    pub(crate) fn hot(&self, key: &RawKey<'_>, verb: Verb, access: Access) -> Glimpse<T> {
        if !access.reads() || self.observers().traces_hit() {
            return Glimpse::Unclear;
        }
        let hits = self.stats().hot();
        let started = (!self.observers().is_empty() && hits.are_sampled(verb)).then(|| self.now());
        let Some(near) = &self.near else { return Glimpse::Unclear };
        let Some(object) = near.glance(key) else { return Glimpse::Nothing };
        let until = self.trust.until().min(object.quiet_until);
        if object.seen != self.news.count() || !self.around.clock.is_before(until) {
            return Glimpse::Unclear;
        }
        let Ok(value) = object.value.downcast::<T>() else { return Glimpse::Unclear };
        hits.add(verb, object.cost_us);
        self.observers().asked(key);
        if let Some(started) = started {
            self.sampled_hit(verb, started);
        }
        Glimpse::Hit(value)
    }

    #[cold]
    fn sampled_hit(&self, verb: Verb, started: crate::Moment) {
        self.observers().event(&Event::Operation {
            verb,
            outcome: Some(Outcome::Hit),
            level: Some(0),
            elapsed: self.now().since(started),
            keys: 1,
            weight: u32::try_from(SAMPLE).unwrap_or(1),
            error: None,
        });
    }

    /// Runs one call that leaves the nearest level: counts it, times it, gives it a span.
    #[allow(clippy::manual_async_fn, reason = "an `async fn` would keep each argument twice")]
    pub(crate) fn operation<R>(
        self: &Arc<Self>,
        verb: Verb,
        id: Option<&str>,
        keys: usize,
        work: impl AsyncFnOnce(&Spans) -> Result<R>,
        brief: impl Fn(&R) -> Option<Brief>,
    ) -> impl Future<Output = Result<R>> {
        async move {
            self.stats().operation(verb);
            self.listen();
            self.watch();
            self.distrust();
            let observed = !self.observers().is_empty();
            let (spans, started) = match observed {
                true => {
                    let start = SpanStart { kind: SpanKind::Operation(verb), key: id, keys, root: false };
                    (self.observers().span(&start), Some(self.now()))
                }
                false => (Spans::default(), None),
            };
            // Outlives the work: what that gives up when it is dropped, leases say, is given up before `close` goes on.
            let mut caller = None;
            // Pinned, as it would be copied into each of those around it.
            let work = pin!(work(&spans));
            let ended = spans.around(UntilClosed { inner: self, work, caller: &mut caller }).await;
            if let Err(error) = &ended {
                self.note(error);
            }
            let Some(started) = started else { return ended };
            let brief = ended.as_ref().ok().and_then(brief);
            if let Some(Brief { outcome, level, reason }) = brief {
                spans.found(outcome, level);
                if let Some(reason) = reason {
                    spans.missed(reason);
                }
            }
            let error = ended.as_ref().err().map(Error::kind);
            if let Some(kind) = error {
                spans.failed(kind.as_str());
            }
            spans.end();
            self.observers().event(&Event::Operation {
                verb,
                outcome: brief.map(|brief| brief.outcome),
                level: brief.and_then(|brief| brief.level),
                elapsed: self.now().since(started),
                keys,
                weight: 1,
                error,
            });
            ended
        }
    }
}

pin_project! {
    /// A call that ends when the cache is closed under it. `close` waits for it within its limit.
    struct UntilClosed<'a, T, F> {
        inner: &'a Inner<T>,
        #[pin]
        work: F,
        // Set when it has begun.
        caller: &'a mut Option<TaskTrackerToken>,
    }
}

impl<T: Value, R, F: Future<Output = Result<R>>> Future for UntilClosed<'_, T, F> {
    type Output = Result<R>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        if this.caller.is_none() {
            this.inner.check_open()?;
            **this.caller = Some(this.inner.callers.mine().token());
        }
        // Asked at every poll, and cheaper than a wake-up: what a call waits for has an end of its own.
        match this.inner.has_ended() {
            true => Poll::Ready(Err(this.inner.closed())),
            false => this.work.poll(cx),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use tokio_util::task::TaskTracker;

    use super::*;
    use crate::{TracedCache, testing::MapProvider};

    /// `close` waits for callers, then for tasks: what a call starts while it is given up has to be among them.
    #[tokio::test]
    async fn a_call_that_is_given_up_counts_until_its_work_is_gone() {
        struct Gone<'a>(&'a Inner<String>, &'a AtomicBool);
        impl Drop for Gone<'_> {
            fn drop(&mut self) {
                self.1.store(self.0.callers.iter().all(TaskTracker::is_empty), Ordering::Relaxed);
            }
        }
        let cache: TracedCache<String> =
            TracedCache::builder("left").level(MapProvider::new()).build().unwrap();
        let nobody_left = AtomicBool::new(true);
        {
            let work = async |_: &Spans| {
                let _gone = Gone(&cache.inner, &nobody_left);
                std::future::pending::<Result<()>>().await
            };
            let mut call = pin!(cache.inner.operation(Verb::Get, None, 1, work, |_| None));
            assert!(futures::poll!(call.as_mut()).is_pending());
        }
        assert!(!nobody_left.load(Ordering::Relaxed));
        assert!(cache.inner.callers.iter().all(TaskTracker::is_empty));
    }
}
