//! Leases on their way back to their levels. Whoever asks for one of them before it is there would be told that somebody
//! holds it, and wait for its own process.

use std::{
    collections::HashMap,
    pin::pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use tokio::sync::Notify;

/// The keys whose leases are being given back, by their hash: one that has the hash of another waits in vain, and not long.
#[derive(Default)]
pub(crate) struct Returning {
    /// Of `keys`, for who asks without its lock.
    any: AtomicUsize,
    keys: Mutex<HashMap<u64, usize>>,
    back: Notify,
}

impl Returning {
    /// They are on their way until what this answers is dropped.
    pub(crate) fn begin(self: &Arc<Self>, hashes: Vec<u64>) -> OnTheWay {
        let mut keys = self.keys();
        for hash in &hashes {
            *keys.entry(*hash).or_default() += 1;
        }
        self.any.store(keys.len(), Ordering::Release);
        OnTheWay { of: Arc::clone(self), hashes }
    }

    pub(crate) fn is_any(&self) -> bool {
        self.any.load(Ordering::Acquire) > 0
    }

    /// Waits until none of these is on its way. For ever, if that is for a runtime to do that nobody drives.
    pub(crate) async fn are_back(&self, hashes: impl Iterator<Item = u64> + Clone) {
        while self.is_any() {
            let mut back = pin!(self.back.notified());
            // Before the look, so that none that comes back after it is missed.
            back.as_mut().enable();
            if !self.has_any(hashes.clone()) {
                return;
            }
            back.await;
        }
    }

    fn has_any(&self, mut hashes: impl Iterator<Item = u64>) -> bool {
        let keys = self.keys();
        hashes.any(|hash| keys.contains_key(&hash))
    }

    fn keys(&self) -> MutexGuard<'_, HashMap<u64, usize>> {
        self.keys.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Ends also where its task is dropped, or never begun.
pub(crate) struct OnTheWay {
    of: Arc<Returning>,
    hashes: Vec<u64>,
}

impl Drop for OnTheWay {
    fn drop(&mut self) {
        let mut keys = self.of.keys();
        for hash in &self.hashes {
            if let Some(count) = keys.get_mut(hash) {
                *count -= 1;
                if *count == 0 {
                    keys.remove(hash);
                }
            }
        }
        self.of.any.store(keys.len(), Ordering::Release);
        drop(keys);
        self.of.back.notify_waiters();
    }
}
