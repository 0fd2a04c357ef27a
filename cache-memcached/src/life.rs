//! The life item: tells one life of a server from another.
//!
//! A server counts item versions (CAS) from 1 again when it has restarted, and a server that was away may hold what has
//! been invalidated since. So each server keeps an item with a random number, the *life*, that ends when nobody has asked
//! for it in [`LIFE_SECONDS`]. Entries and leases carry the life that they were made under; under another one an entry is
//! a miss, and a lease is refused.
//!
//! The life is known for one connection and a short time: a new connection reads it before all else, and so does a call
//! after [`TRUST`]. A task reads it ahead of time, so calls need not wait for that. It holds no provider alive, and ends
//! with it, or with its runtime; the next call then starts another.

use std::{
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use crossbeam_utils::atomic::AtomicCell;
use futures::future::join_all;
use tokio::runtime::Handle;

use crate::{provider::Inner, transport::Link};

/// How long the life item stays when nobody reads it.
pub(crate) const LIFE_SECONDS: u32 = 30;
/// How old knowledge of it may be. The item cannot have ended by its time in so short a while.
const TRUST: Duration = Duration::from_millis(2500);
/// How often it is read while the provider is used.
const PERIOD: Duration = Duration::from_secs(1);
/// And while it is not: often enough for the item, and with it what is cached, to stay.
const IDLE: Duration = Duration::from_secs(10);

/// A server's life, as last read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Known {
    pub(crate) life: u64,
    /// The connection on which it was read.
    pub(crate) link: Link,
    /// When it was asked for.
    pub(crate) at: Instant,
}

/// What is known of one server's life.
#[derive(Debug, Default)]
pub(crate) struct Knowledge {
    /// Read at each call, without a lock unless it is just being written.
    known: AtomicCell<Option<Known>>,
    changing: Mutex<()>,
}

impl Knowledge {
    pub(crate) fn get(&self, now: Instant) -> Option<Known> {
        self.known.load().filter(|known| now.saturating_duration_since(known.at) < TRUST)
    }

    pub(crate) fn learn(&self, known: Known) {
        self.change(|held| if held.is_none_or(|held| held.at <= known.at) { Some(known) } else { held });
    }

    /// That connection has gone.
    pub(crate) fn forget(&self, link: Link) {
        self.change(|held| held.filter(|known| known.link != link));
    }

    fn change(&self, to: impl FnOnce(Option<Known>) -> Option<Known>) {
        let _alone = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let held = self.known.load();
        let next = to(held);
        if next != held {
            self.known.store(next);
        }
    }
}

/// Whether somebody polls, and whether there is use for it.
#[derive(Debug, Default)]
pub(crate) struct Polling {
    runs: AtomicBool,
    used: AtomicBool,
}

/// Notes a use, and sees to it that somebody polls.
pub(crate) fn used(inner: &Arc<Inner>) {
    let polling = &inner.polling;
    if !polling.used.load(Ordering::Relaxed) {
        polling.used.store(true, Ordering::Relaxed);
    }
    if polling.runs.load(Ordering::Relaxed) || polling.runs.swap(true, Ordering::AcqRel) {
        return;
    }
    let running = Running(Arc::downgrade(inner));
    // Without a runtime the call fails soon enough.
    if let Ok(handle) = Handle::try_current() {
        handle.spawn(running.poll());
    }
}

struct Running(Weak<Inner>);

impl Running {
    async fn poll(self) {
        loop {
            let period = match self.0.upgrade() {
                Some(inner) if inner.is_closed() => return,
                Some(inner) if inner.polling.used.swap(false, Ordering::Relaxed) => PERIOD,
                Some(_) => IDLE,
                None => return,
            };
            tokio::time::sleep(period).await;
            let Some(inner) = self.0.upgrade() else { return };
            join_all(inner.current().iter().map(|server| server.poll())).await;
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(inner) = self.0.upgrade() {
            inner.polling.runs.store(false, Ordering::Release);
        }
    }
}
