//! Batches, by the servers that they concern: each is asked in a call of its own, with a budget and a breaker of its own. So
//! one that hangs keeps nobody waiting longer than that, and its keys alone are without an answer.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use futures::{
    FutureExt,
    future::{BoxFuture, join_all},
};

use crate::{
    BoxError, LevelOp, RawKey,
    gates::Whom,
    tier::{Around, Asking, Failure, Provider, Received, Tier, flatten},
};

/// A batch.
pub(crate) struct Parts<'a, I> {
    all: &'a [I],
    /// Of all of them.
    whom: Whom,
    /// Where there is more than one.
    parts: Vec<Part<I>>,
}

struct Part<I> {
    whom: Whom,
    items: Vec<I>,
    /// Where they are among all.
    places: Vec<usize>,
}

impl<'a, I: Clone> Parts<'a, I> {
    pub(crate) fn new(provider: &Provider, items: &'a [I], key: impl Fn(&I) -> RawKey<'_>) -> Self {
        let whom = |item| Whom::of(provider.server_of(key(item)));
        let Some(first) = items.first().map(&whom) else {
            return Self { all: items, whom: Whom::Level, parts: Vec::new() };
        };
        let mut batch = Self { all: items, whom: first, parts: Vec::new() };
        // As nearly always.
        if items.len() == 1 || first == Whom::Level {
            return batch;
        }
        for (place, item) in items.iter().enumerate() {
            let whom = whom(item);
            let at = batch.parts.iter().position(|part| part.whom == whom).unwrap_or_else(|| {
                batch.parts.push(Part { whom, items: Vec::new(), places: Vec::new() });
                batch.parts.len() - 1
            });
            batch.parts[at].items.push(item.clone());
            batch.parts[at].places.push(place);
        }
        if batch.parts.len() == 1 {
            batch.parts.clear();
        }
        batch
    }
}

/// What a provider answers with. Should it panic before it has a future, this one does. No block around it: that would be
/// larger, in the futures of all calls.
pub(crate) fn asked<'p, A>(ask: impl FnOnce() -> BoxFuture<'p, A>) -> BoxFuture<'p, A> {
    let asked = catch_unwind(AssertUnwindSafe(ask));
    asked.unwrap_or_else(|panic| async move { resume_unwind(panic) }.boxed())
}

impl Tier {
    /// Asks for each part of a batch, all at once; results in the order of the batch. `sent`: bytes of one item.
    pub(crate) async fn call_parts<'p, I: Sync, R: Received + Send>(
        &self,
        around: &Around,
        op: LevelOp,
        batch: &'p Parts<'_, I>,
        sent: impl Fn(&I) -> usize + Send,
        ask: impl Fn(&'p [I]) -> BoxFuture<'p, Vec<Result<R, BoxError>>> + Send,
    ) -> Vec<Result<R, Failure>> {
        // Nearly always: what follows for several has no room in it.
        if batch.parts.is_empty() {
            let keys = batch.all.len();
            let what = Asking {
                op,
                command: self.command(op, keys),
                whom: batch.whom,
                keys,
                sent: batch.all.iter().map(sent).sum(),
                since: around.clock.now(),
            };
            let answers = self.call_at(around, &what, asked(|| ask(batch.all))).await;
            return flatten(answers.map(|(answers, _)| answers), what.keys);
        }
        self.call_each(around, op, batch, sent, ask).boxed().await
    }

    async fn call_each<'p, I: Sync, R: Received + Send>(
        &self,
        around: &Around,
        op: LevelOp,
        batch: &'p Parts<'_, I>,
        sent: impl Fn(&I) -> usize + Send,
        ask: impl Fn(&'p [I]) -> BoxFuture<'p, Vec<Result<R, BoxError>>> + Send,
    ) -> Vec<Result<R, Failure>> {
        let calls = batch.parts.iter().map(|Part { whom, items, .. }| {
            let size = (items.len(), items.iter().map(&sent).sum());
            self.call(around, op, *whom, size, asked(|| ask(items)))
        });
        let mut results: Vec<Result<R, Failure>> = batch.all.iter().map(|_| Err(Failure::Skipped)).collect();
        for (part, answers) in batch.parts.iter().zip(join_all(calls).await) {
            for (place, answer) in part.places.iter().zip(flatten(answers, part.items.len())) {
                results[*place] = answer;
            }
        }
        results
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, time::Duration};

    use async_trait::async_trait;
    use bytes::Bytes;

    use super::*;
    use crate::{
        BreakerState, CacheProvider, Capabilities, Clock, Delivery, Description, Level, Policy, Put, Stance,
        Time, TracedCache,
        testing::{Chaos, ChaosOp, Fault, MapProvider},
    };

    const BUDGET: Duration = Duration::from_millis(250);

    /// Two servers: one has the mark and even ids, the other one odd ids.
    struct Two([Chaos<MapProvider>; 2]);

    fn home(key: RawKey<'_>) -> usize {
        key.id.parse().map_or(0, |id: usize| id % 2)
    }

    #[async_trait]
    impl CacheProvider for Two {
        fn capabilities(&self) -> Capabilities {
            Capabilities::remote()
        }

        fn describe(&self) -> Description {
            Description::local("two")
        }

        fn server_of(&self, key: RawKey<'_>) -> Option<u64> {
            Some(home(key) as u64)
        }

        async fn get_many(&self, keys: &[RawKey<'_>]) -> Vec<Result<Option<Bytes>, BoxError>> {
            let mut found = Vec::new();
            for key in keys {
                found.push(self.0[home(*key)].get(*key).await);
            }
            found
        }

        async fn put_many(&self, items: &[Put<'_>]) -> Vec<Result<(), BoxError>> {
            let mut done = Vec::new();
            for item in items {
                done.push(self.0[home(item.key)].put(item.clone()).await);
            }
            done
        }

        async fn remove_many(&self, keys: &[RawKey<'_>]) -> Vec<Result<(), BoxError>> {
            let mut done = Vec::new();
            for key in keys {
                done.push(self.0[home(*key)].remove(*key).await);
            }
            done
        }
    }

    struct World {
        two: Arc<Two>,
        cache: TracedCache<String>,
        time: Time,
    }

    async fn world() -> World {
        let (clock, time) = Clock::manual();
        let server = || Chaos::new(MapProvider::new().clock(clock.clone())).clock(clock.clone());
        let two = Arc::new(Two([server(), server()]));
        let cache = TracedCache::builder("users")
            .level(Level::new(Arc::clone(&two)).stance(Stance::Absorb).budget(BUDGET))
            .policy(Policy::ttl(Duration::from_secs(3600)))
            .clock(clock)
            .build()
            .unwrap();
        for id in 0..10u64 {
            assert!(cache.set(id, "value".to_owned()).await.unwrap().is_confirmed());
        }
        assert_eq!(all(&cache).await, [5, 5]);
        // What went well so far is out of the breakers' window.
        time.advance(Duration::from_secs(60));
        World { two, cache, time }
    }

    /// How many even ids and how many odd ones are found by one batch.
    async fn all(cache: &TracedCache<String>) -> [usize; 2] {
        let found = cache.get_many(0..10u64).await.unwrap();
        [0, 1].map(|parity| found.iter().skip(parity).step_by(2).flatten().count())
    }

    impl World {
        /// Lets a call's time end once its part has come to the server that hangs.
        async fn in_time<T>(&self, op: ChaosOp, call: impl Future<Output = T>) -> T {
            let odd = &self.two.0[1];
            let asked = odd.calls(op);
            let pass = async {
                odd.until_calls(op, asked + 1).await;
                self.time.advance(BUDGET);
            };
            futures::join!(call, pass).0
        }

        fn breaker(&self) -> BreakerState {
            self.cache.stats().levels[0].breaker
        }
    }

    #[tokio::test]
    async fn a_server_that_hangs_costs_its_own_keys_only() {
        let world = world().await;
        let World { two, cache, .. } = &world;
        two.0[1].set_all(Fault::Hang);
        for _ in 0..4 {
            assert_eq!(world.in_time(ChaosOp::Get, all(cache)).await, [5, 0]);
        }
        assert_eq!(cache.invalidate(0u64).await.unwrap(), Delivery::Confirmed);
        let gone = world.in_time(ChaosOp::Remove, cache.invalidate(1u64)).await.unwrap();
        assert_eq!(gone, Delivery::Pending, "nobody knows what became of it");

        // From the fifth on it is not asked any more, and nothing waits for it.
        let asked = two.0[1].calls(ChaosOp::Get);
        for _ in 0..4 {
            assert_eq!(all(cache).await, [4, 0]);
            assert!(cache.get(2u64).await.unwrap().is_some() && cache.get(3u64).await.unwrap().is_none());
        }
        assert_eq!(two.0[1].calls(ChaosOp::Get), asked);
        assert_eq!(cache.invalidate(2u64).await.unwrap(), Delivery::Confirmed);
        assert_eq!(cache.invalidate(3u64).await.unwrap(), Delivery::Pending);
        assert_eq!(world.breaker(), BreakerState::Closed, "the level is well");

        // What it has missed is told.
        two.0[1].set_all(Fault::None);
        while cache.stats().pending > 0 {
            world.time.advance(Duration::from_secs(1));
            tokio::task::yield_now().await;
        }
        assert_eq!(all(cache).await, [3, 3]);
    }

    #[tokio::test]
    async fn the_breaker_is_open_when_no_server_answers() {
        let world = world().await;
        let World { two, cache, .. } = &world;
        two.0[1].set_all(Fault::Fail);
        for _ in 0..20 {
            all(cache).await;
        }
        assert_eq!(world.breaker(), BreakerState::Closed);
        two.0[0].set_all(Fault::Fail);
        for _ in 0..100 {
            all(cache).await;
        }
        assert_eq!((world.breaker(), cache.stats().levels[0].breaker_opened), (BreakerState::Open, 1));
        let asked = two.0[0].calls(ChaosOp::Get);
        assert_eq!(all(cache).await, [0, 0]);
        assert_eq!(two.0[0].calls(ChaosOp::Get), asked, "nobody is asked");

        two.0[0].set_all(Fault::None);
        world.time.advance(Duration::from_secs(1));
        assert_eq!(all(cache).await, [5, 0]);
        assert_eq!(world.breaker(), BreakerState::Closed);
    }
}
