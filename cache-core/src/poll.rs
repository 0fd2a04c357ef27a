//! Looking at the marks of remote levels when no call does: so that memory learns of invalidations of more than a key.

use std::{
    sync::{Arc, Weak, atomic::Ordering},
    time::Duration,
};

use crate::{
    Value,
    inner::Inner,
    learn::{DOUBT_AFTER, MARK_PERIOD},
    ledger::Change,
};

impl<T: Value> Inner<T> {
    /// Begins to poll, with the first call that leaves the nearest level. Ends with the cache, or with its runtime; the next
    /// call then begins again.
    pub(crate) fn watch(self: &Arc<Self>) {
        if self.watching.load(Ordering::Relaxed) || !self.has_remote() {
            return;
        }
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        if !self.watching.swap(true, Ordering::AcqRel) {
            let watching = Watching(Arc::downgrade(self));
            runtime.spawn(watching.poll());
        }
    }

    /// Somebody has changed the mark of the nearest remote level: what it is now shows as soon as it is read.
    pub(crate) fn mark_changed(&self) {
        if self.watching.load(Ordering::Acquire) {
            if let Some(authority) = self.authority() {
                authority.ledger.outdate();
            }
            self.poke.notify_one();
        } else {
            self.cleared_elsewhere();
        }
    }

    /// How long until the first of the marks is due. Others than the poll look at them, too: reads and invalidations of this
    /// node.
    fn due_in(&self) -> Duration {
        let now = self.now();
        let marked = self.remote().filter(|tier| tier.is_marked());
        marked.map(|tier| tier.ledger.due_in(now, MARK_PERIOD)).min().unwrap_or(MARK_PERIOD)
    }

    async fn poll_once(&self, poked: bool) {
        for tier in self.remote().filter(|tier| tier.is_marked()) {
            let now = self.now();
            if tier.ledger.due(now, tier.incarnation(), MARK_PERIOD).is_none() {
                continue;
            }
            if tier.read_mark(&self.around).await.is_ok() {
                continue;
            }
            if poked {
                // Something has happened, and cannot be learned.
                self.cleared_elsewhere();
            } else if tier.ledger.is_overdue(self.now(), DOUBT_AFTER) {
                self.around.heed(tier.index, Change::Tags);
            }
        }
    }
}

/// Keeps no cache alive.
struct Watching<T>(Weak<Inner<T>>);

impl<T: Value> Watching<T> {
    async fn poll(self) {
        loop {
            let Some(inner) = self.0.upgrade() else { return };
            let (clock, closing, poke) =
                (inner.around.clock.clone(), inner.closing.clone(), Arc::clone(&inner.poke));
            let pause = inner.due_in();
            drop(inner);
            let waiting = clock.timeout(pause, poke.notified());
            let Some(poked) = closing.run_until_cancelled(waiting).await else { return };
            let Some(inner) = self.0.upgrade() else { return };
            if closing.run_until_cancelled(inner.poll_once(poked.is_some())).await.is_none() {
                return;
            }
            // What the store may have lost is told again.
            inner.replay();
        }
    }
}

impl<T> Drop for Watching<T> {
    fn drop(&mut self) {
        if let Some(inner) = self.0.upgrade() {
            inner.watching.store(false, Ordering::Release);
        }
    }
}
