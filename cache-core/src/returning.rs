//! Leases on their way back to their levels. Whoever asks for one of them before it is there would be told that somebody
//! holds it, and wait for its own process. Those of a runtime that has ended are given back by whoever asks next.

use std::{
    collections::HashMap,
    pin::pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use tokio::sync::Notify;

use crate::{
    Moment,
    rights::{LEASE, Rights},
};

/// The keys whose leases are being given back, by their hash: one that has the hash of another waits in vain, and not long.
#[derive(Default)]
pub(crate) struct Returning {
    /// Of `keys` and `left`, for who asks without their locks.
    any: AtomicUsize,
    keys: Mutex<HashMap<u64, usize>>,
    /// Nobody has given these back: their runtime has ended. Each with when it ends by itself.
    left: Mutex<Vec<(Lent, Moment)>>,
    back: Notify,
}

/// What one key has been lent.
pub(crate) struct Lent {
    pub(crate) id: Arc<str>,
    pub(crate) hash: u64,
    pub(crate) rights: Rights,
}

impl Returning {
    /// They are on their way until what this answers is dropped.
    pub(crate) fn begin(self: &Arc<Self>, hashes: Vec<u64>) -> OnTheWay {
        let mut keys = self.keys();
        for hash in &hashes {
            *keys.entry(*hash).or_default() += 1;
        }
        self.count(&keys, &self.left());
        OnTheWay { of: Arc::clone(self), hashes }
    }

    /// Keeps what has not been given back, for as long as it may be missed.
    pub(crate) fn leave(&self, lent: Vec<Lent>, now: Moment) {
        let keys = self.keys();
        let mut left = self.left();
        left.retain(|(_, until)| now < *until);
        left.extend(lent.into_iter().map(|lent| (lent, now.after(LEASE))));
        self.count(&keys, &left);
    }

    /// Those of these keys that nobody has given back.
    pub(crate) fn take_left(&self, hashes: impl Iterator<Item = u64> + Clone, now: Moment) -> Vec<Lent> {
        let keys = self.keys();
        let mut left = self.left();
        left.retain(|(_, until)| now < *until);
        let wanted = left.extract_if(.., |(lent, _)| hashes.clone().any(|hash| hash == lent.hash));
        let wanted = wanted.map(|(lent, _)| lent).collect();
        self.count(&keys, &left);
        wanted
    }

    fn count(&self, keys: &HashMap<u64, usize>, left: &[(Lent, Moment)]) {
        self.any.store(keys.len() + left.len(), Ordering::Release);
    }

    fn left(&self) -> MutexGuard<'_, Vec<(Lent, Moment)>> {
        self.left.lock().unwrap_or_else(PoisonError::into_inner)
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
        self.of.count(&keys, &self.of.left());
        drop(keys);
        self.of.back.notify_waiters();
    }
}
