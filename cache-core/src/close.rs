//! The end of a cache, and what it leaves undelivered.

use std::{
    fmt,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use crate::{Scope, Value, backplane::Plane, inner::Inner};

/// How long `close` waits for tasks that it has cancelled.
const LAST_WAIT: Duration = Duration::from_secs(1);

impl<T: Value> Inner<T> {
    pub(crate) async fn close_within(self: &Arc<Self>, limit: Duration) -> Closed {
        // From here on calls are refused; the hot path finds nothing. Loads that end in time are still kept below.
        self.tasks.close();
        for callers in self.callers.iter() {
            callers.close();
        }
        self.news.void();
        // A replay may have ended with its runtime. The next call would go on with it, but there is none any more.
        self.replay();
        let ended = async {
            for callers in self.callers.iter() {
                callers.wait().await;
            }
            self.tasks.wait().await;
        };
        let drained = self.around.clock.timeout(limit, ended).await.is_some();
        self.ended.store(true, Ordering::Release);
        self.closing.cancel();
        // Only for tasks: a caller may hold its future for ever without polling it. A task ends when its runtime polls it
        // next, and stores nothing then. Not for long: a runtime that nobody drives polls nothing.
        self.around.clock.timeout(LAST_WAIT, self.tasks.wait()).await;
        // Callers are no tasks of ours: one that was under way may go on at any time, and must store nothing.
        self.void_in_process();
        self.plane.iter().for_each(Plane::close);
        for tier in &self.tiers {
            if let Some(store) = &tier.store {
                store.clear(self.around.cache);
            }
        }
        let levels = self.remote().map(|tier| (Some(tier.index), &*tier.pending));
        let journals: Vec<_> = levels.chain(self.plane.iter().map(|plane| (None, &plane.pending))).collect();
        // Nobody knows what has become of a write that was under way.
        let (writes, wide) = (self.slots.being_written(), self.wide_under_way());
        for (level, pending) in &journals {
            writes.iter().for_each(|id| pending.add(id));
            wide.iter().for_each(|call| call.keep_open(pending, level.is_some()));
        }
        let undelivered = journals.into_iter().flat_map(|(level, pending)| {
            let scopes = pending.undelivered().into_iter();
            scopes.map(move |(scope, name)| Undelivered { level, scope, name })
        });
        Closed { drained, undelivered: undelivered.collect() }
    }
}

impl<T> Drop for Inner<T> {
    fn drop(&mut self) {
        self.closing.cancel();
        for tier in &self.tiers {
            if let Some(store) = &tier.store {
                store.detach(self.around.cache);
            }
        }
        // Last: what the stores let go of above is still counted.
        self.around.stats.end();
    }
}

/// What `close` came to.
#[derive(Clone, Debug)]
#[must_use]
pub struct Closed {
    drained: bool,
    undelivered: Vec<Undelivered>,
}

impl Closed {
    /// Whether all loads and background work ended by themselves within the limit.
    pub fn is_drained(&self) -> bool {
        self.drained
    }

    /// Invalidations that a level has not acknowledged: it may serve older values until they end. And those that the backplane
    /// has not taken: other processes' memory may.
    pub fn undelivered(&self) -> &[Undelivered] {
        &self.undelivered
    }
}

/// An invalidation that a level has not acknowledged, or that the backplane has not taken.
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Undelivered {
    /// Which level, 0 being the nearest; `None`: the backplane.
    pub level: Option<u8>,
    /// What it has not heard of: a key, a tag, the whole cache.
    pub scope: Scope,
    /// The key, as it is rendered, or the tag.
    pub name: Option<String>,
}

/// Keys and tags stay out of `Debug` output.
impl fmt::Debug for Undelivered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Undelivered")
            .field("level", &self.level)
            .field("scope", &self.scope)
            .finish_non_exhaustive()
    }
}
