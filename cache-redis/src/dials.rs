//! What making connections has come to, and who waits for one.

use std::{
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use cache_core::PoolStatus;

use crate::{Error, ErrorKind};

/// Of all connections of a provider, as those to nodes of a cluster come and go. Nothing here is touched by a call that finds
/// its connection up.
#[derive(Default)]
pub(crate) struct Dials {
    counts: Mutex<PoolStatus>,
    waiting: AtomicU64,
}

impl Dials {
    fn counts(&self) -> MutexGuard<'_, PoolStatus> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An attempt has ended.
    pub(crate) fn tried<T>(&self, took: Duration, result: &Result<T, Error>) {
        let mut counts = self.counts();
        match result {
            Ok(_) => counts.count_made(took),
            Err(error) if error.kind() == ErrorKind::Timeout => counts.timeouts += 1,
            Err(_) => counts.errors += 1,
        }
    }

    /// A connection was lost.
    pub(crate) fn lost(&self) {
        self.counts().errors += 1;
    }

    /// Somebody waits until what is returned is dropped.
    pub(crate) fn waits(&self) -> Waits<'_> {
        self.waiting.fetch_add(1, Ordering::Relaxed);
        Waits(self)
    }

    /// The counts, and who waits.
    pub(crate) fn status(&self) -> PoolStatus {
        let mut status = self.counts().clone();
        status.pending = self.waiting.load(Ordering::Relaxed);
        status
    }
}

pub(crate) struct Waits<'a>(&'a Dials);

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}
