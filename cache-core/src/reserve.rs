//! Leases of a level that has not got a key, taken before anything deeper is read.

use std::{iter::zip, sync::Arc};

use tokio::{runtime::Handle, sync::oneshot};

use crate::{
    Begun, Entry, LevelOutcome, Value,
    inner::{Inner, Seen},
    read::Asked,
    rights::{Rights, Wish},
    tier::Tier,
    within::within,
};

/// A key that a level has not got.
struct Missing<T> {
    id: Arc<str>,
    hash: u64,
    held: Option<Entry<T>>,
}

/// What a level has answered. Leases that nobody takes out of it are given back.
struct Reserved<T: Value> {
    inner: Arc<Inner<T>>,
    all: Vec<(Missing<T>, Rights, Option<Seen<T>>)>,
}

impl<T: Value> Drop for Reserved<T> {
    fn drop(&mut self) {
        let lent = self.all.iter_mut().map(|(missing, rights, _)| {
            (self.inner.rekey(&missing.id, missing.hash), std::mem::take(rights))
        });
        self.inner.give_back_many(lent.collect());
    }
}

impl<T: Value> Inner<T> {
    /// Takes the leases of a level for what it does not have, before anything deeper is read.
    ///
    /// As a task: a lease whose grant is on its way when its caller leaves would keep others waiting until its end.
    pub(crate) async fn reserve(self: &Arc<Self>, tier: &Tier, asked: &mut [Asked<'_, T>], begun: &Begun) {
        let mut open: Vec<_> = asked.iter_mut().filter(|a| a.is_open() && !tier.masks(a.key.id)).collect();
        if open.is_empty() {
            return;
        }
        let missing = open.iter().map(|asked| Missing {
            id: asked.key.id.into(),
            hash: asked.key.hash,
            held: asked.stale.as_ref().map(|seen| seen.entry.clone()),
        });
        let work = Arc::clone(self).reserved(tier.index, missing.collect(), begun.clone());
        let reserved = match Handle::try_current() {
            Ok(_) => {
                let (done, answer) = oneshot::channel();
                self.spawn(within(self.observers().ambient(), async move {
                    // The caller may have left.
                    let _ = done.send(work.await);
                }));
                answer.await.ok()
            }
            Err(_none) => Some(work.await),
        };
        // Without an answer the cache is being closed, or its runtime ends.
        let Some(mut reserved) = reserved else { return };
        for (asked, (_, rights, found)) in open.iter_mut().zip(&mut reserved.all) {
            asked.owner = Some(Arc::clone(self));
            asked.rights.append(rights);
            if let Some(seen) = found {
                // It has been asked again, and has answered.
                let present = seen.entry.value.is_some();
                let outcome = if present { LevelOutcome::Hit } else { LevelOutcome::Negative };
                tier.count(&self.around, outcome);
            }
            asked.fresh = found.take();
        }
    }

    async fn reserved(self: Arc<Self>, level: u8, missing: Vec<Missing<T>>, begun: Begun) -> Reserved<T> {
        let mut wishes: Vec<_> =
            missing.iter().map(|of| Wish::at(self.rekey(&of.id, of.hash), of.held.as_ref(), level)).collect();
        self.ask_level(&self.tiers[usize::from(level)], &mut wishes, &begun).await;
        let answers: Vec<_> = wishes.into_iter().map(|wish| (wish.rights, wish.found)).collect();
        let all = zip(missing, answers).map(|(missing, (rights, found))| (missing, rights, found)).collect();
        Reserved { inner: self, all }
    }
}
