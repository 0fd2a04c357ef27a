//! A provider that can be stopped at any point of a call, made to fail, and asked what it was told.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::Semaphore;
use traced_cache::{
    Acquire, Acquired, BoxError, CacheProvider, Capabilities, Description, Fill, Lease, Leases, Put, RawKey,
    Result,
};

use crate::kit::patient;

/// Holds up one passer until the test opens it.
pub(crate) struct Gate {
    arrived: Semaphore,
    way: Semaphore,
}

impl Gate {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self { arrived: Semaphore::new(0), way: Semaphore::new(0) })
    }

    /// Says that it is here, and waits.
    pub(crate) async fn pass(&self) {
        self.arrived.add_permits(1);
        self.way.acquire().await.unwrap().forget();
    }

    /// Waits until somebody stands before it.
    pub(crate) async fn reached(&self) {
        patient(self.arrived.acquire()).await.unwrap().forget();
    }

    pub(crate) fn open(&self) {
        self.way.add_permits(1);
    }

    /// Lets everybody pass from now on.
    pub(crate) fn open_wide(&self) {
        self.way.add_permits(1_000_000);
    }
}

/// Where a call can be stopped. Calls that concern only a cache's marker have points of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum At {
    BeforeGet,
    AfterGet,
    BeforePut,
    AfterPut,
    BeforeRemove,
    AfterRemove,
    BeforeMarker,
    AfterMarker,
    BeforeAcquire,
    AfterAcquire,
}

#[derive(Default)]
pub(crate) struct Hooks {
    gates: Mutex<HashMap<At, Arc<Gate>>>,
    down: AtomicBool,
    puts_fail: AtomicBool,
    lazy: AtomicBool,
    calls: Mutex<Vec<(&'static str, usize)>>,
    alone: AtomicUsize,
    ttls: Mutex<Vec<Duration>>,
}

impl Hooks {
    /// Stops the next call at this point, once.
    pub(crate) fn hold(&self, at: At) -> Arc<Gate> {
        let gate = Gate::new();
        self.gates.lock().unwrap().insert(at, Arc::clone(&gate));
        gate
    }

    /// Every call yields before and after it runs: more places at which its caller may leave.
    pub(crate) fn lazy(&self, yes: bool) {
        self.lazy.store(yes, Ordering::SeqCst);
    }

    async fn point(&self, at: At) {
        if self.lazy.load(Ordering::SeqCst) {
            tokio::task::yield_now().await;
        }
        let gate = self.gates.lock().unwrap().remove(&at);
        if let Some(gate) = gate {
            gate.pass().await;
        }
    }

    /// Every call fails without being sent.
    pub(crate) fn down(&self, yes: bool) {
        self.down.store(yes, Ordering::SeqCst);
    }

    /// Every put fails without being sent.
    pub(crate) fn puts_fail(&self, yes: bool) {
        self.puts_fail.store(yes, Ordering::SeqCst);
    }

    /// Calls so far: the operation and its number of keys, markers not counted.
    pub(crate) fn calls(&self) -> Vec<(&'static str, usize)> {
        self.calls.lock().unwrap().clone()
    }

    /// How many calls of one operation there were.
    pub(crate) fn count(&self, op: &str) -> usize {
        self.calls.lock().unwrap().iter().filter(|(o, keys)| *o == op && *keys > 0).count()
    }

    /// How many look-ups came by themselves, not as batches of one: those a provider may gather.
    pub(crate) fn alone(&self) -> usize {
        self.alone.load(Ordering::SeqCst)
    }

    /// Physical lives of the items that were put, in order.
    pub(crate) fn ttls(&self) -> Vec<Duration> {
        self.ttls.lock().unwrap().clone()
    }

    fn refuse<R>(&self, count: usize) -> Option<Vec<Result<R, BoxError>>> {
        self.down.load(Ordering::SeqCst).then(|| refused(count))
    }

    fn note(&self, op: &'static str, keys: usize) {
        self.calls.lock().unwrap().push((op, keys));
    }
}

fn refused<R>(count: usize) -> Vec<Result<R, BoxError>> {
    (0..count).map(|_| Err("refused by the test".into())).collect()
}

/// A provider with hooks around it.
#[derive(Clone)]
pub(crate) struct Hooked {
    inner: Arc<dyn CacheProvider>,
    pub(crate) hooks: Arc<Hooks>,
}

impl Hooked {
    pub(crate) fn new(inner: Arc<dyn CacheProvider>) -> Self {
        Self { inner, hooks: Arc::default() }
    }

    /// The same store as another node sees it: with hooks of its own.
    pub(crate) fn again(&self) -> Self {
        Self::new(Arc::clone(&self.inner))
    }
}

fn users(keys: &[RawKey<'_>]) -> usize {
    keys.iter().filter(|key| !key.id.is_empty()).count()
}

#[async_trait]
impl CacheProvider for Hooked {
    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }

    fn describe(&self) -> Description {
        self.inner.describe()
    }

    fn check(&self) -> Result<()> {
        self.inner.check()
    }

    async fn get(&self, key: RawKey<'_>) -> Result<Option<Bytes>, BoxError> {
        let (before, after) = match users(&[key]) {
            0 => (At::BeforeMarker, At::AfterMarker),
            _ => (At::BeforeGet, At::AfterGet),
        };
        self.hooks.note("get", users(&[key]));
        self.hooks.alone.fetch_add(1, Ordering::SeqCst);
        self.hooks.point(before).await;
        let answer = match self.hooks.refuse(1).and_then(|mut all| all.pop()) {
            Some(refused) => refused,
            None => self.inner.get(key).await,
        };
        self.hooks.point(after).await;
        answer
    }

    async fn get_many(&self, keys: &[RawKey<'_>]) -> Vec<Result<Option<Bytes>, BoxError>> {
        let (before, after) = match users(keys) {
            0 => (At::BeforeMarker, At::AfterMarker),
            _ => (At::BeforeGet, At::AfterGet),
        };
        self.hooks.note("get", users(keys));
        self.hooks.point(before).await;
        let answers = match self.hooks.refuse(keys.len()) {
            Some(refused) => refused,
            None => self.inner.get_many(keys).await,
        };
        self.hooks.point(after).await;
        answers
    }

    async fn put_many(&self, items: &[Put<'_>]) -> Vec<Result<(), BoxError>> {
        let keys: Vec<_> = items.iter().map(|item| item.key).collect();
        let (before, after) = match users(&keys) {
            0 => (At::BeforeMarker, At::AfterMarker),
            _ => (At::BeforePut, At::AfterPut),
        };
        self.hooks.note("put", users(&keys));
        let ttls = items.iter().filter(|item| !item.key.id.is_empty()).map(|item| item.ttl);
        self.hooks.ttls.lock().unwrap().extend(ttls);
        self.hooks.point(before).await;
        let results = match self.hooks.refuse(items.len()) {
            Some(refused) => refused,
            None if self.hooks.puts_fail.load(Ordering::SeqCst) => refused(items.len()),
            None => self.inner.put_many(items).await,
        };
        self.hooks.point(after).await;
        results
    }

    async fn remove_many(&self, keys: &[RawKey<'_>]) -> Vec<Result<(), BoxError>> {
        self.hooks.note("remove", users(keys));
        self.hooks.point(At::BeforeRemove).await;
        let results = match self.hooks.refuse(keys.len()) {
            Some(refused) => refused,
            None => self.inner.remove_many(keys).await,
        };
        self.hooks.point(At::AfterRemove).await;
        results
    }

    async fn ping(&self) -> Result<(), BoxError> {
        self.inner.ping().await
    }

    fn time_offset_ms(&self) -> i64 {
        self.inner.time_offset_ms()
    }

    fn leases(&self) -> Option<&dyn Leases> {
        self.inner.leases().map(|_| self as &dyn Leases)
    }

    fn plain(&self) -> Option<Arc<dyn CacheProvider>> {
        Some(Arc::new(Self { inner: self.inner.plain()?, hooks: Arc::clone(&self.hooks) }))
    }
}

impl Hooked {
    fn their_leases(&self) -> &dyn Leases {
        self.inner.leases().expect("asked for where there are some")
    }
}

/// A fill is a put to the hooks.
#[async_trait]
impl Leases for Hooked {
    async fn acquire_many(&self, wanted: &[Acquire<'_>], life: Duration) -> Vec<Result<Acquired, BoxError>> {
        self.hooks.note("acquire", wanted.len());
        self.hooks.point(At::BeforeAcquire).await;
        let answers = match self.hooks.refuse(wanted.len()) {
            Some(refused) => refused,
            None => self.their_leases().acquire_many(wanted, life).await,
        };
        self.hooks.point(At::AfterAcquire).await;
        answers
    }

    async fn fill_many(&self, fills: &[Fill<'_>]) -> Vec<Result<bool, BoxError>> {
        self.hooks.note("put", fills.len());
        self.hooks.ttls.lock().unwrap().extend(fills.iter().map(|fill| fill.put.ttl));
        self.hooks.point(At::BeforePut).await;
        let results = match self.hooks.refuse(fills.len()) {
            Some(refused) => refused,
            None if self.hooks.puts_fail.load(Ordering::SeqCst) => refused(fills.len()),
            None => self.their_leases().fill_many(fills).await,
        };
        self.hooks.point(At::AfterPut).await;
        results
    }

    /// A hold is a removal to the hooks.
    async fn hold_many(&self, keys: &[RawKey<'_>], life: Duration) -> Vec<Result<Lease, BoxError>> {
        self.hooks.note("remove", users(keys));
        self.hooks.point(At::BeforeRemove).await;
        let results = match self.hooks.refuse(keys.len()) {
            Some(refused) => refused,
            None => self.their_leases().hold_many(keys, life).await,
        };
        self.hooks.point(At::AfterRemove).await;
        results
    }

    async fn renew_many(&self, leases: &[(RawKey<'_>, Lease)], life: Duration) -> Vec<Result<(), BoxError>> {
        match self.hooks.refuse(leases.len()) {
            Some(refused) => refused,
            None => self.their_leases().renew_many(leases, life).await,
        }
    }

    async fn release_many(&self, leases: &[(RawKey<'_>, Lease)]) -> Vec<Result<(), BoxError>> {
        match self.hooks.refuse(leases.len()) {
            Some(refused) => refused,
            None => self.their_leases().release_many(leases).await,
        }
    }
}
