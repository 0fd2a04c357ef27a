//! A large batch that has a remote level to itself is read in two halves, the second of which is sent a moment later: the
//! store looks it up while the first one is decoded. Where several batches are under way, they fill each other's pauses
//! already, and halves would only cost switches between tasks.

use std::sync::atomic::{AtomicUsize, Ordering};

/// Keys of a batch that is worth it: below, a second call costs more than the wait that it saves.
const LARGE: usize = 64;

/// Batches under way at one level.
#[derive(Default)]
pub(crate) struct Batches(AtomicUsize);

/// A batch under way. Its drop ends it.
pub(crate) struct Batch<'a> {
    batches: &'a Batches,
    /// How many of its keys are sent at a time.
    pub(crate) at_a_time: usize,
}

impl Batches {
    pub(crate) fn begin(&self, keys: usize) -> Batch<'_> {
        let alone = self.0.fetch_add(1, Ordering::Relaxed) == 0;
        let at_a_time = if alone && keys >= LARGE { keys.div_ceil(2) } else { keys };
        Batch { batches: self, at_a_time }
    }
}

impl Drop for Batch<'_> {
    fn drop(&mut self) {
        self.batches.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, time::Duration};

    use futures::join;

    use super::*;
    use crate::{
        Clock, Level, Policy, Stance, Time, TracedCache,
        testing::{Chaos, ChaosOp, Fault, MapProvider},
    };

    const MS: Duration = Duration::from_millis(1);

    type Store = Chaos<MapProvider>;

    /// A cache with ids below 200, over a store whose calls are counted from now on.
    async fn world() -> (TracedCache<u64>, Arc<Store>, Time) {
        let (clock, time) = Clock::manual();
        let store = Arc::new(Chaos::new(MapProvider::new().clock(clock.clone())).clock(clock.clone()));
        let level = Level::new(Arc::clone(&store)).stance(Stance::Absorb).budget(100 * MS);
        let policy = Policy::ttl(Duration::from_secs(3600));
        let cache = TracedCache::builder("users").level(level).policy(policy).clock(clock).build().unwrap();
        assert!(cache.set_many((0..200u64).map(|id| (id, id))).await.unwrap().is_confirmed());
        // Reads the mark, which is then not due.
        assert_eq!(cache.get(0u64).await.unwrap().as_deref(), Some(&0));
        store.reset();
        (cache, store, time)
    }

    async fn all(cache: &TracedCache<u64>, keys: u64) -> Vec<Option<u64>> {
        let found = cache.get_many(0..keys).await.unwrap();
        found.into_iter().map(|value| value.map(|value| *value)).collect()
    }

    fn there(keys: std::ops::Range<u64>) -> impl Iterator<Item = Option<u64>> {
        keys.map(Some)
    }

    #[tokio::test]
    async fn a_large_batch_alone_is_two_calls_and_in_order() {
        let (cache, store, _time) = world().await;
        for (keys, calls) in [(2, 1), (63, 1), (64, 2), (65, 2), (200, 2)] {
            store.reset();
            assert_eq!(all(&cache, keys).await, there(0..keys).collect::<Vec<_>>());
            assert_eq!((store.calls(ChaosOp::Get), store.keys(ChaosOp::Get)), (calls, keys), "{keys}");
        }
    }

    #[tokio::test]
    async fn batches_beside_each_other_are_one_call_each() {
        let (cache, store, time) = world().await;
        store.set(ChaosOp::Get, Fault::Delay(MS));
        let pass = async {
            store.until_calls(ChaosOp::Get, 3).await;
            time.advance(MS);
        };
        let (one, other, ()) = join!(all(&cache, 100), all(&cache, 100), pass);
        assert_eq!((&one, one.len()), (&other, there(0..100).count()));
        assert_eq!(store.calls(ChaosOp::Get), 3, "two halves and a whole");

        // Whoever leaves is no company.
        store.reset();
        store.set(ChaosOp::Get, Fault::Hang);
        assert!(futures::poll!(Box::pin(all(&cache, 100))).is_pending());
        store.set(ChaosOp::Get, Fault::None);
        store.reset();
        all(&cache, 100).await;
        assert_eq!(store.calls(ChaosOp::Get), 2);
    }

    #[tokio::test]
    async fn a_half_that_fails_is_a_half() {
        let (cache, store, time) = world().await;
        store.set(ChaosOp::Get, Fault::Delay(MS));
        let fail_the_second = async {
            store.until_calls(ChaosOp::Get, 1).await;
            store.set(ChaosOp::Get, Fault::Fail);
            store.until_calls(ChaosOp::Get, 2).await;
            time.advance(MS);
        };
        let (found, ()) = join!(all(&cache, 100), fail_the_second);
        assert_eq!(found, there(0..50).chain([None; 50]).collect::<Vec<_>>());
    }
}
