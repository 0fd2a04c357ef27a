//! Faults between a cache and its provider.

use std::{
    error::Error,
    fmt,
    sync::{
        Mutex, PoisonError, Weak,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::watch;

use crate::{
    Acquire, Acquired, Advised, BoxError, CacheProvider, Capabilities, Clock, Description, Fill, Lease,
    Leases, LevelOp, Marks, Put, RawKey, Replicas, Swap, Swapped,
};

/// A call of a provider.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChaosOp {
    /// `get` and `get_many`.
    Get,
    /// `put` and `put_many`.
    Put,
    /// `remove` and `remove_many`.
    Remove,
    /// `ping`.
    Ping,
    /// `acquire_many`.
    Acquire,
    /// `fill_many`.
    Fill,
    /// `renew_many`.
    Renew,
    /// `release_many`.
    Release,
    /// `swap` of marks.
    Swap,
    /// `hold_many`.
    Hold,
}

impl ChaosOp {
    /// All of them.
    pub const ALL: [Self; 10] = [
        Self::Get,
        Self::Put,
        Self::Remove,
        Self::Ping,
        Self::Acquire,
        Self::Fill,
        Self::Renew,
        Self::Release,
        Self::Swap,
        Self::Hold,
    ];
}

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Fault {
    /// Nothing.
    None,
    /// Every call fails; the provider behind is not asked.
    Fail,
    /// This share of calls fails, 0 to 1.
    FailSome(f64),
    /// The call reaches the provider behind, and then fails: its outcome is unknown to the caller.
    LoseReply,
    /// Every call takes this much longer, on the clock of the decorator.
    Delay(Duration),
    /// The same, but the provider behind is asked at once: its answer is on its way for that long.
    DelayReply(Duration),
    /// Calls wait until another fault is set for their operation, and then go on with that one.
    Hang,
    /// One random bit of each non-empty value is flipped, on its way out of or into the provider behind.
    Corrupt,
    /// Only the first half of each value passes.
    Truncate,
    /// The call panics.
    Panic,
}

/// A decorator that injects faults into each operation, switchable while calls are under way, and counts calls. Without a
/// fault it changes nothing. Bytes only: an in-process object store behind it is not shown.
pub struct Chaos<P> {
    inner: P,
    clock: Clock,
    restless: usize,
    ops: [Op; ChaosOp::ALL.len()],
}

struct Op {
    fault: watch::Sender<Fault>,
    calls: watch::Sender<u64>,
    keys: AtomicU64,
    dice: Mutex<fastrand::Rng>,
}

impl Op {
    fn new() -> Self {
        Self {
            fault: watch::Sender::new(Fault::None),
            calls: watch::Sender::new(0),
            keys: AtomicU64::new(0),
            dice: Mutex::new(fastrand::Rng::new()),
        }
    }

    fn roll<R>(&self, roll: impl FnOnce(&mut fastrand::Rng) -> R) -> R {
        roll(&mut self.dice.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn spoil(&self, fault: Fault, bytes: Bytes) -> Bytes {
        match fault {
            Fault::Corrupt if !bytes.is_empty() => {
                let mut spoilt = bytes.to_vec();
                let at = self.roll(|dice| dice.usize(..spoilt.len()));
                spoilt[at] ^= 1 << self.roll(|dice| dice.u8(..8));
                spoilt.into()
            }
            Fault::Truncate => bytes.slice(..bytes.len() / 2),
            _ => bytes,
        }
    }
}

/// What an injected failure says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChaosError;

impl fmt::Display for ChaosError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("injected failure")
    }
}

impl Error for ChaosError {}

impl<P: CacheProvider> Chaos<P> {
    /// Puts the decorator around a provider, without a fault.
    pub fn new(inner: P) -> Self {
        Self { inner, clock: Clock::system(), restless: 0, ops: std::array::from_fn(|_| Op::new()) }
    }

    /// Delays pass on this clock.
    #[must_use]
    pub fn clock(mut self, clock: Clock) -> Self {
        self.clock = clock;
        self
    }

    /// Has each call give way to other tasks, a random number of times below this one, before the provider behind is asked and
    /// again before it has answered: so calls overtake each other, as they do on a network, without time that passes.
    #[must_use]
    pub fn restless(mut self, times: usize) -> Self {
        self.restless = times;
        self
    }

    /// Makes random faults, and giving way, repeatable.
    #[must_use]
    pub fn seed(self, seed: u64) -> Self {
        for op in &self.ops {
            op.roll(|dice| dice.seed(seed));
        }
        self
    }

    /// The provider behind.
    pub fn inner(&self) -> &P {
        &self.inner
    }

    /// Sets the fault of one operation, for calls to come and those that hang.
    pub fn set(&self, op: ChaosOp, fault: Fault) {
        self.op(op).fault.send_replace(fault);
    }

    /// Sets the fault of all operations.
    pub fn set_all(&self, fault: Fault) {
        for op in ChaosOp::ALL {
            self.set(op, fault);
        }
    }

    /// Calls begun since the start or the last [`Chaos::reset`]. A batch is one call: one round trip.
    pub fn calls(&self, op: ChaosOp) -> u64 {
        *self.op(op).calls.borrow()
    }

    /// Keys in those calls.
    pub fn keys(&self, op: ChaosOp) -> u64 {
        self.op(op).keys.load(Ordering::Acquire)
    }

    /// Waits until `calls` have begun. Cancel-safe.
    pub async fn until_calls(&self, op: ChaosOp, calls: u64) {
        // The sender lives as long as `self`.
        let _ = self.op(op).calls.subscribe().wait_for(|begun| *begun >= calls).await;
    }

    /// Sets all counts to zero.
    pub fn reset(&self) {
        for op in &self.ops {
            op.calls.send_replace(0);
            op.keys.store(0, Ordering::Release);
        }
    }

    fn op(&self, op: ChaosOp) -> &Op {
        &self.ops[op as usize]
    }

    /// Counts the call and lives through what comes before the provider behind is asked. Gives the fault to apply after.
    async fn enter(&self, op: ChaosOp, keys: usize) -> Result<Fault, ChaosError> {
        let op = self.op(op);
        op.keys.fetch_add(u64::try_from(keys).unwrap_or(u64::MAX), Ordering::AcqRel);
        op.calls.send_modify(|calls| *calls += 1);
        self.give_way().await;
        let fault = match op.fault.subscribe().wait_for(|fault| *fault != Fault::Hang).await {
            Ok(fault) => *fault,
            Err(_) => Fault::None,
        };
        match fault {
            Fault::Fail => return Err(ChaosError),
            Fault::FailSome(share) if op.roll(fastrand::Rng::f64) < share => return Err(ChaosError),
            Fault::Delay(by) => self.clock.sleep(by).await,
            Fault::Panic => panic!("injected panic"),
            _ => {}
        }
        Ok(fault)
    }

    async fn give_way(&self) {
        let times = match self.restless {
            0 => 0,
            below => self.op(ChaosOp::Get).roll(|dice| dice.usize(..below)),
        };
        for _ in 0..times {
            tokio::task::yield_now().await;
        }
    }

    /// Asks the provider behind.
    async fn ask<R>(&self, fault: Fault, call: impl Future<Output = R> + Send) -> R {
        let answer = call.await;
        self.give_way().await;
        if let Fault::DelayReply(by) = fault {
            self.clock.sleep(by).await;
        }
        answer
    }

    fn spoilt<'a>(&self, op: ChaosOp, fault: Fault, item: &Put<'a>) -> Put<'a> {
        Put { bytes: self.op(op).spoil(fault, item.bytes.clone()), ..*item }
    }
}

fn fail_all<T>(count: usize) -> Vec<Result<T, BoxError>> {
    (0..count).map(|_| Err(ChaosError.into())).collect()
}

fn lose<T>(fault: Fault, result: Result<T, BoxError>) -> Result<T, BoxError> {
    if fault == Fault::LoseReply { Err(ChaosError.into()) } else { result }
}

impl<P: fmt::Debug> fmt::Debug for Chaos<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Chaos").field("inner", &self.inner).finish_non_exhaustive()
    }
}

#[async_trait]
impl<P: CacheProvider> CacheProvider for Chaos<P> {
    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }

    fn describe(&self) -> Description {
        self.inner.describe()
    }

    fn check(&self) -> Result<(), crate::Error> {
        self.inner.check()
    }

    async fn get_many(&self, keys: &[RawKey<'_>]) -> Vec<Result<Option<Bytes>, BoxError>> {
        let Ok(fault) = self.enter(ChaosOp::Get, keys.len()).await else { return fail_all(keys.len()) };
        let op = self.op(ChaosOp::Get);
        let found = self.ask(fault, self.inner.get_many(keys)).await.into_iter();
        found.map(|found| lose(fault, found.map(|bytes| bytes.map(|bytes| op.spoil(fault, bytes))))).collect()
    }

    async fn put_many(&self, items: &[Put<'_>]) -> Vec<Result<(), BoxError>> {
        let Ok(fault) = self.enter(ChaosOp::Put, items.len()).await else { return fail_all(items.len()) };
        let items: Vec<_> = items.iter().map(|item| self.spoilt(ChaosOp::Put, fault, item)).collect();
        self.ask(fault, self.inner.put_many(&items))
            .await
            .into_iter()
            .map(|result| lose(fault, result))
            .collect()
    }

    async fn remove_many(&self, keys: &[RawKey<'_>]) -> Vec<Result<(), BoxError>> {
        let Ok(fault) = self.enter(ChaosOp::Remove, keys.len()).await else { return fail_all(keys.len()) };
        self.ask(fault, self.inner.remove_many(keys))
            .await
            .into_iter()
            .map(|result| lose(fault, result))
            .collect()
    }

    async fn get(&self, key: RawKey<'_>) -> Result<Option<Bytes>, BoxError> {
        let fault = self.enter(ChaosOp::Get, 1).await?;
        let found = self.ask(fault, self.inner.get(key)).await;
        lose(fault, found.map(|bytes| bytes.map(|bytes| self.op(ChaosOp::Get).spoil(fault, bytes))))
    }

    async fn put(&self, item: Put<'_>) -> Result<(), BoxError> {
        let fault = self.enter(ChaosOp::Put, 1).await?;
        lose(fault, self.ask(fault, self.inner.put(self.spoilt(ChaosOp::Put, fault, &item))).await)
    }

    async fn remove(&self, key: RawKey<'_>) -> Result<(), BoxError> {
        let fault = self.enter(ChaosOp::Remove, 1).await?;
        lose(fault, self.ask(fault, self.inner.remove(key)).await)
    }

    fn command(&self, op: LevelOp, keys: usize) -> &'static str {
        self.inner.command(op, keys)
    }

    async fn ping(&self) -> Result<(), BoxError> {
        let fault = self.enter(ChaosOp::Ping, 0).await?;
        lose(fault, self.ask(fault, self.inner.ping()).await)
    }

    fn incarnation(&self) -> u64 {
        self.inner.incarnation()
    }

    fn time_offset_ms(&self) -> i64 {
        self.inner.time_offset_ms()
    }

    fn server_of(&self, key: RawKey<'_>) -> Option<u64> {
        self.inner.server_of(key)
    }

    fn store_id(&self) -> u64 {
        self.inner.store_id()
    }

    fn advise(&self, to: Weak<dyn Advised>) {
        self.inner.advise(to);
    }

    fn replicas(&self) -> Option<&dyn Replicas> {
        self.inner.replicas()
    }

    fn leases(&self) -> Option<&dyn Leases> {
        self.inner.leases().is_some().then_some(self)
    }

    fn marks(&self) -> Option<&dyn Marks> {
        self.inner.marks().is_some().then_some(self)
    }

    async fn close(&self) {
        self.inner.close().await;
    }
}

#[async_trait]
impl<P: CacheProvider> Marks for Chaos<P> {
    async fn swap(&self, marks: &[Swap<'_>]) -> Result<Swapped, BoxError> {
        let fault = self.enter(ChaosOp::Swap, marks.len()).await?;
        let Some(inner) = self.inner.marks() else { return Err(ChaosError.into()) };
        lose(fault, self.ask(fault, inner.swap(marks)).await)
    }
}

#[async_trait]
impl<P: CacheProvider> Leases for Chaos<P> {
    async fn acquire_many(&self, wanted: &[Acquire<'_>], life: Duration) -> Vec<Result<Acquired, BoxError>> {
        let Some(inner) = self.inner.leases() else { return fail_all(wanted.len()) };
        let op = ChaosOp::Acquire;
        let Ok(fault) = self.enter(op, wanted.len()).await else { return fail_all(wanted.len()) };
        let spoil = |acquired| match acquired {
            Acquired::Found(bytes) => Acquired::Found(self.op(op).spoil(fault, bytes)),
            other => other,
        };
        let answers = self.ask(fault, inner.acquire_many(wanted, life)).await.into_iter();
        answers.map(|answer| lose(fault, answer.map(spoil))).collect()
    }

    async fn fill_many(&self, fills: &[Fill<'_>]) -> Vec<Result<bool, BoxError>> {
        let Some(inner) = self.inner.leases() else { return fail_all(fills.len()) };
        let op = ChaosOp::Fill;
        let Ok(fault) = self.enter(op, fills.len()).await else { return fail_all(fills.len()) };
        let spoilt = |fill: &Fill<'_>| self.spoilt(op, fault, &fill.put).bytes;
        let fills: Vec<_> = fills
            .iter()
            .map(|fill| Fill { put: Put { bytes: spoilt(fill), ..fill.put }, lease: fill.lease.clone() })
            .collect();
        self.ask(fault, inner.fill_many(&fills)).await.into_iter().map(|result| lose(fault, result)).collect()
    }

    async fn hold_many(&self, keys: &[RawKey<'_>], life: Duration) -> Vec<Result<Lease, BoxError>> {
        let Some(inner) = self.inner.leases() else { return fail_all(keys.len()) };
        let op = ChaosOp::Hold;
        let Ok(fault) = self.enter(op, keys.len()).await else { return fail_all(keys.len()) };
        self.ask(fault, inner.hold_many(keys, life))
            .await
            .into_iter()
            .map(|result| lose(fault, result))
            .collect()
    }

    async fn renew_many(&self, leases: &[(RawKey<'_>, Lease)], life: Duration) -> Vec<Result<(), BoxError>> {
        let Some(inner) = self.inner.leases() else { return fail_all(leases.len()) };
        let op = ChaosOp::Renew;
        let Ok(fault) = self.enter(op, leases.len()).await else { return fail_all(leases.len()) };
        self.ask(fault, inner.renew_many(leases, life))
            .await
            .into_iter()
            .map(|result| lose(fault, result))
            .collect()
    }

    async fn release_many(&self, leases: &[(RawKey<'_>, Lease)]) -> Vec<Result<(), BoxError>> {
        let Some(inner) = self.inner.leases() else { return fail_all(leases.len()) };
        let op = ChaosOp::Release;
        let Ok(fault) = self.enter(op, leases.len()).await else { return fail_all(leases.len()) };
        self.ask(fault, inner.release_many(leases))
            .await
            .into_iter()
            .map(|result| lose(fault, result))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use futures::FutureExt;

    use super::*;
    use crate::{CacheId, testing::MapProvider};

    fn key(id: &str) -> RawKey<'_> {
        RawKey::new(CacheId(1), "users", id)
    }

    fn item<'a>(id: &'a str, bytes: &'static [u8]) -> Put<'a> {
        Put { key: key(id), bytes: Bytes::from_static(bytes), ttl: Duration::MAX }
    }

    #[tokio::test]
    async fn who_is_restless_gives_way() {
        let waits = async |times| {
            let chaos = Chaos::new(MapProvider::new()).seed(1).restless(times);
            let calls = (0..20).filter(|_| chaos.get(key("k")).now_or_never().is_none()).count();
            chaos.get(key("k")).await.unwrap();
            calls
        };
        assert_eq!(waits(0).await, 0);
        assert!(waits(6).await > 10);
    }

    #[tokio::test]
    async fn each_fault_does_what_it_says() {
        let (clock, time) = Clock::manual();
        let chaos = Chaos::new(MapProvider::new()).clock(clock).seed(7);
        chaos.put(item("a", b"value")).await.unwrap();

        chaos.set_all(Fault::Fail);
        assert!(chaos.get(key("a")).await.unwrap_err().is::<ChaosError>());
        assert!(chaos.ping().await.is_err());
        assert_eq!(chaos.get_many(&[key("a"), key("b")]).await.iter().filter(|r| r.is_err()).count(), 2);
        assert!(chaos.remove(key("a")).await.is_err());
        assert!(chaos.inner().peek("users:a").is_some());

        chaos.set_all(Fault::LoseReply);
        assert!(chaos.put(item("b", b"stored")).await.is_err());
        assert!(chaos.inner().peek("users:b").is_some());

        chaos.set_all(Fault::Corrupt);
        let spoilt = chaos.get(key("a")).await.unwrap().unwrap();
        let bits: u32 = spoilt.iter().zip(b"value").map(|(a, b)| (a ^ b).count_ones()).sum();
        assert_eq!((spoilt.len(), bits), (5, 1));
        chaos.put(item("c", b"value")).await.unwrap();
        assert_ne!(chaos.inner().peek("users:c").unwrap(), "value");

        chaos.set_all(Fault::Truncate);
        assert_eq!(chaos.get(key("a")).await.unwrap().unwrap(), "va");

        chaos.set_all(Fault::Panic);
        assert!(std::panic::AssertUnwindSafe(chaos.get(key("a"))).catch_unwind().await.is_err());

        chaos.set_all(Fault::Delay(Duration::from_secs(60)));
        let mut late = chaos.get(key("a"));
        assert!(futures::poll!(&mut late).is_pending());
        time.advance(Duration::from_secs(60));
        assert_eq!(late.await.unwrap().unwrap(), "value");

        chaos.set_all(Fault::DelayReply(Duration::from_secs(60)));
        let mut late = chaos.put(item("d", b"stored"));
        assert!(futures::poll!(&mut late).is_pending() && chaos.inner().peek("users:d").is_some());
        time.advance(Duration::from_secs(60));
        late.await.unwrap();

        chaos.set_all(Fault::FailSome(0.5));
        let mut failed = 0;
        for _ in 0..400 {
            failed += u32::from(chaos.get(key("a")).await.is_err());
        }
        assert!((100..300).contains(&failed), "{failed} of 400");
    }

    #[tokio::test]
    async fn leases_fail_like_everything_else() {
        assert!(Chaos::new(MapProvider::new()).leases().is_none(), "no leases behind it");
        let chaos = Chaos::new(MapProvider::new().leasing());
        let leases = chaos.leases().unwrap();
        let key = RawKey::new(CacheId(1), "users", "42");
        let wish = [Acquire { key, holding: crate::Holding::Nothing }];
        let life = Duration::from_secs(60);
        chaos.set(ChaosOp::Acquire, Fault::LoseReply);
        assert!(leases.acquire_many(&wish, life).await.remove(0).is_err());
        assert!(chaos.inner().is_leased("users:42"), "it reached the provider behind");
        chaos.set_all(Fault::None);
        chaos.inner().wipe();
        let Acquired::Granted(lease) = leases.acquire_many(&wish, life).await.remove(0).unwrap() else {
            panic!("granted")
        };
        let put = Put { key, bytes: Bytes::from_static(b"value!"), ttl: Duration::MAX };
        chaos.set_all(Fault::Fail);
        assert!(leases.fill_many(&[Fill { put: put.clone(), lease: lease.clone() }]).await[0].is_err());
        assert!(leases.renew_many(&[(key, lease.clone())], life).await[0].is_err());
        assert!(leases.release_many(&[(key, lease.clone())]).await[0].is_err());
        assert!(chaos.inner().is_leased("users:42") && chaos.inner().is_empty());
        chaos.set_all(Fault::Truncate);
        assert!(leases.fill_many(&[Fill { put, lease }]).await.remove(0).unwrap());
        assert_eq!(chaos.inner().peek("users:42").as_deref(), Some(&b"val"[..]));
        assert_eq!(
            (chaos.calls(ChaosOp::Acquire), chaos.calls(ChaosOp::Fill), chaos.keys(ChaosOp::Release)),
            (2, 2, 1)
        );
    }

    #[tokio::test]
    async fn hangs_until_told_otherwise_and_counts_calls() {
        let chaos = Arc::new(Chaos::new(MapProvider::new()));
        chaos.inner().plant("users:a", "value");
        chaos.set(ChaosOp::Get, Fault::Hang);
        let waiting = tokio::spawn({
            let chaos = Arc::clone(&chaos);
            async move { chaos.get_many(&[key("a"), key("b")]).await.len() }
        });
        chaos.until_calls(ChaosOp::Get, 1).await;
        assert!(!waiting.is_finished());
        chaos.ping().await.unwrap();
        chaos.set(ChaosOp::Get, Fault::None);
        assert_eq!(waiting.await.unwrap(), 2);
        assert_eq!((chaos.calls(ChaosOp::Get), chaos.keys(ChaosOp::Get)), (1, 2));
        chaos.reset();
        assert_eq!((chaos.calls(ChaosOp::Get), chaos.keys(ChaosOp::Get)), (0, 0));
    }
}
