//! Batches, by the servers that they concern: each is asked in a call of its own, with a budget and a breaker of its own. So
//! one that hangs keeps nobody waiting longer than that, and its keys alone are without an answer.
//!
//! A large batch is asked for piece by piece: a budget is for a call, and tens of thousands of keys would take longer than
//! that on a server that is well. All of them would count as failed then, more than the journal has room for, and a write
//! would end up as a `clear` of the whole cache.

use std::{
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    time::Duration,
};

use futures::{
    FutureExt,
    future::{BoxFuture, join_all},
};

use crate::{
    Acquire, BoxError, Fill, Lease, LevelOp, Moment, Put, RawKey,
    gates::Whom,
    tier::{Around, Asking, Failure, Provider, Received, Tier, flatten, skipped},
};

/// Most keys of one call.
const PIECE: usize = 1_000;
/// Bytes that one call sends, but for a single item.
const PIECE_BYTES: usize = 4 << 20;

/// One of a batch.
pub(crate) trait Item: Clone + Sync {
    fn key(&self) -> RawKey<'_>;

    /// Bytes that it sends.
    fn sent(&self) -> usize {
        0
    }

    /// How long what it stores is to live.
    fn ttl(&self) -> Option<Duration> {
        None
    }
}

impl Item for RawKey<'_> {
    fn key(&self) -> RawKey<'_> {
        *self
    }
}

impl Item for Acquire<'_> {
    fn key(&self) -> RawKey<'_> {
        self.key
    }
}

impl Item for (RawKey<'_>, Lease) {
    fn key(&self) -> RawKey<'_> {
        self.0
    }
}

impl Item for Put<'_> {
    fn key(&self) -> RawKey<'_> {
        self.key
    }

    fn sent(&self) -> usize {
        self.bytes.len()
    }

    fn ttl(&self) -> Option<Duration> {
        Some(self.ttl)
    }
}

impl Item for Fill<'_> {
    fn key(&self) -> RawKey<'_> {
        self.put.key
    }

    fn sent(&self) -> usize {
        self.put.sent()
    }

    fn ttl(&self) -> Option<Duration> {
        self.put.ttl()
    }
}

/// How many of these go into one call.
fn piece<I: Item>(items: &[I]) -> usize {
    let mut bytes = 0usize;
    let fits = |item: &&I| {
        bytes = bytes.saturating_add(item.sent());
        bytes <= PIECE_BYTES
    };
    items.iter().take(PIECE).take_while(fits).count().max(1)
}

/// How many calls so many keys take, besides the first.
pub(crate) fn more_pieces(keys: usize) -> u32 {
    u32::try_from(keys.saturating_sub(1) / PIECE).unwrap_or(u32::MAX)
}

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

impl<'a, I: Item> Parts<'a, I> {
    pub(crate) fn new(provider: &Provider, items: &'a [I]) -> Self {
        let whom = |item: &I| Whom::of(provider.server_of(item.key()));
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

impl Asking {
    /// For a call that concerns these.
    fn of<I: Item>(op: LevelOp, command: &'static str, whom: Whom, items: &[I], since: Moment) -> Self {
        Self {
            op,
            command,
            whom,
            keys: items.len(),
            // Those that go along with keys come last.
            marks: items.iter().rev().take_while(|item| item.key().mark).count(),
            sent: items.iter().map(Item::sent).sum(),
            ttl: if let [one] = items { one.ttl() } else { None },
            since,
        }
    }
}

impl Tier {
    /// Asks for each part of a batch, all at once; results in the order of the batch.
    pub(crate) async fn call_parts<'p, I: Item, R: Received + Send>(
        &self,
        around: &Around,
        op: LevelOp,
        batch: &'p Parts<'_, I>,
        ask: impl Fn(&'p [I]) -> BoxFuture<'p, Vec<Result<R, BoxError>>> + Send + Sync,
    ) -> Vec<Result<R, Failure>> {
        // Nearly always: what follows for several has no room in it.
        if batch.parts.is_empty() {
            let keys = batch.all.len();
            if keys > 1 && piece(batch.all) < keys {
                return self.call_in_pieces(around, op, batch.whom, batch.all, &ask).boxed().await;
            }
            let what = Asking::of(op, self.command(op, keys), batch.whom, batch.all, around.clock.now());
            let answers = self.call_at(around, &what, asked(|| ask(batch.all))).await;
            return flatten(answers.map(|(answers, _)| answers), what.keys);
        }
        self.call_each(around, op, batch, ask).boxed().await
    }

    async fn call_each<'p, I: Item, R: Received + Send>(
        &self,
        around: &Around,
        op: LevelOp,
        batch: &'p Parts<'_, I>,
        ask: impl Fn(&'p [I]) -> BoxFuture<'p, Vec<Result<R, BoxError>>> + Send + Sync,
    ) -> Vec<Result<R, Failure>> {
        let calls = batch
            .parts
            .iter()
            .map(|Part { whom, items, .. }| self.call_in_pieces(around, op, *whom, items, &ask));
        let mut results: Vec<Result<R, Failure>> = batch.all.iter().map(|_| Err(Failure::Skipped)).collect();
        for (part, answers) in batch.parts.iter().zip(join_all(calls).await) {
            for (place, answer) in part.places.iter().zip(answers) {
                results[*place] = answer;
            }
        }
        results
    }

    /// Asks one server, or all that there is, one call after the other. After one that has no answer in its time it asks for
    /// nothing more: the rest would wait for the same.
    async fn call_in_pieces<'p, I: Item, R: Received + Send>(
        &self,
        around: &Around,
        op: LevelOp,
        whom: Whom,
        items: &'p [I],
        ask: &(impl Fn(&'p [I]) -> BoxFuture<'p, Vec<Result<R, BoxError>>> + Send + Sync),
    ) -> Vec<Result<R, Failure>> {
        let mut results = Vec::with_capacity(items.len());
        let mut rest = items;
        while !rest.is_empty() {
            let (now, later) = rest.split_at(piece(rest));
            rest = later;
            let what = Asking::of(op, self.command(op, now.len()), whom, now, around.clock.now());
            let answers = self.call_at(around, &what, asked(|| ask(now))).await.map(|(answers, _)| answers);
            let failed = answers.is_err();
            results.extend(flatten(answers, now.len()));
            if failed {
                results.extend(skipped(rest.len()));
                break;
            }
        }
        results
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use async_trait::async_trait;
    use bytes::Bytes;

    use super::*;
    use crate::{
        Acquired, BreakerState, CacheProvider, Capabilities, Clock, Delivery, Description, Leases, Level,
        Policy, Stance, Time, TracedCache,
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

    /// Takes a tenth of a millisecond for each key, one after the other.
    struct Steady(MapProvider, Clock);

    impl Steady {
        async fn work(&self, keys: usize) {
            self.1.sleep(Duration::from_micros(100) * u32::try_from(keys).unwrap()).await;
        }
    }

    #[async_trait]
    impl CacheProvider for Steady {
        fn capabilities(&self) -> Capabilities {
            Capabilities::remote()
        }

        fn describe(&self) -> Description {
            Description::local("steady")
        }

        fn leases(&self) -> Option<&dyn Leases> {
            self.0.leases().map(|_| self as _)
        }

        async fn get_many(&self, keys: &[RawKey<'_>]) -> Vec<Result<Option<Bytes>, BoxError>> {
            self.work(keys.len()).await;
            self.0.get_many(keys).await
        }

        async fn put_many(&self, items: &[Put<'_>]) -> Vec<Result<(), BoxError>> {
            self.work(items.len()).await;
            self.0.put_many(items).await
        }

        async fn remove_many(&self, keys: &[RawKey<'_>]) -> Vec<Result<(), BoxError>> {
            self.work(keys.len()).await;
            self.0.remove_many(keys).await
        }
    }

    impl Steady {
        async fn leases_after(&self, keys: usize) -> &dyn Leases {
            self.work(keys).await;
            self.0.leases().unwrap()
        }
    }

    #[async_trait]
    impl Leases for Steady {
        async fn acquire_many(&self, all: &[Acquire<'_>], life: Duration) -> Vec<Result<Acquired, BoxError>> {
            self.leases_after(all.len()).await.acquire_many(all, life).await
        }

        async fn fill_many(&self, all: &[Fill<'_>]) -> Vec<Result<bool, BoxError>> {
            self.leases_after(all.len()).await.fill_many(all).await
        }

        async fn hold_many(&self, all: &[RawKey<'_>], life: Duration) -> Vec<Result<Lease, BoxError>> {
            self.leases_after(all.len()).await.hold_many(all, life).await
        }

        async fn renew_many(&self, all: &[(RawKey<'_>, Lease)], life: Duration) -> Vec<Result<(), BoxError>> {
            self.leases_after(all.len()).await.renew_many(all, life).await
        }

        async fn release_many(&self, all: &[(RawKey<'_>, Lease)]) -> Vec<Result<(), BoxError>> {
            self.leases_after(all.len()).await.release_many(all).await
        }
    }

    /// Lets time pass until a call has ended.
    async fn in_steps<T>(time: &Time, call: impl Future<Output = T>) -> T {
        let pass = async {
            loop {
                tokio::task::yield_now().await;
                time.advance(BUDGET / 25);
            }
        };
        tokio::select! {
            biased;
            ended = call => ended,
            () = pass => unreachable!("time passes for ever"),
        }
    }

    fn alone(provider: impl CacheProvider, clock: Clock) -> TracedCache<String> {
        let level = Level::new(provider).stance(Stance::Absorb).budget(BUDGET);
        TracedCache::builder("users").level(level).clock(clock).build().unwrap()
    }

    /// More than the journal has room for, and longer than a budget.
    const MANY: u64 = 12_000;

    #[tokio::test]
    async fn a_batch_is_no_failure_for_being_large() {
        let (clock, time) = Clock::manual();
        let cache = alone(Steady(MapProvider::new().clock(clock.clone()), clock.clone()), clock);
        let other = in_steps(&time, cache.set("other", "value".to_owned())).await.unwrap();
        assert!(other.is_confirmed());
        let all = (0..MANY).map(|id| (id, "value".to_owned()));
        assert_eq!(in_steps(&time, cache.set_many(all)).await.unwrap(), Delivery::Confirmed);
        let found = in_steps(&time, cache.get_many(0..MANY)).await.unwrap();
        assert_eq!(found.iter().flatten().count() as u64, MANY);
        assert_eq!(in_steps(&time, cache.invalidate_many(0..MANY)).await.unwrap(), Delivery::Confirmed);
        assert!(
            in_steps(&time, cache.get("other")).await.unwrap().is_some(),
            "the cache has not been cleared"
        );
    }

    #[tokio::test]
    async fn a_large_batch_keeps_its_leases_until_all_of_it_is_stored() {
        for (keys, takes) in [(25_000, Duration::from_millis(1_500)), (40_000, Duration::ZERO)] {
            let (clock, time) = Clock::manual();
            let store = MapProvider::new().leasing().clock(clock.clone());
            let cache = alone(Steady(store, clock.clone()), clock.clone());
            let load = move |clock: Clock, keys: Vec<u64>| async move {
                clock.sleep(takes).await;
                Ok::<_, BoxError>(keys.into_iter().map(|id| (id, "value".to_owned())).collect::<Vec<_>>())
            };
            let loaded = in_steps(&time, cache.get_or_set_many(0..keys, &clock, load)).await.unwrap();
            assert_eq!(loaded.len() as u64, keys);
            let found = in_steps(&time, cache.get_many(0..keys)).await.unwrap();
            assert_eq!((found.iter().flatten().count() as u64, cache.stats().overtaken), (keys, 0));
        }
    }

    #[tokio::test]
    async fn a_large_batch_waits_once_for_a_server_that_hangs() {
        let (clock, time) = Clock::manual();
        let server = Chaos::new(MapProvider::new().clock(clock.clone())).clock(clock.clone());
        let server = Arc::new(server);
        let cache = alone(Arc::clone(&server), clock.clone());
        assert!(cache.set("other", "value".to_owned()).await.unwrap().is_confirmed());
        server.set_all(Fault::Hang);
        let (asked, began) = (server.calls(ChaosOp::Get), clock.now());
        let found = in_steps(&time, cache.get_many(0..MANY)).await.unwrap();
        assert_eq!(found.iter().flatten().count(), 0);
        assert_eq!(server.calls(ChaosOp::Get), asked + 1);
        assert!(clock.now().since(began) <= BUDGET * 2);
    }
}
