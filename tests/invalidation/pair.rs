//! A provider that finds another store where one was, and answers late.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::oneshot;
use traced_cache::{
    Acquire, Acquired, BoxError, CacheProvider, Capabilities, Description, Fill, Lease, Leases, Marks, Put,
    RawKey, Swap, Swapped, testing::MapProvider,
};

/// Two stores of which it is now the one, now the other.
pub(crate) struct Pair {
    stores: [Arc<MapProvider>; 2],
    second: AtomicBool,
    /// Until the next lease is asked for.
    trips: AtomicBool,
    /// Tells that the next call has been answered, and keeps the answer until told.
    late: Mutex<Option<(oneshot::Sender<()>, oneshot::Receiver<()>)>>,
}

impl Pair {
    pub(crate) fn new(first: &Arc<MapProvider>, second: &Arc<MapProvider>) -> Arc<Self> {
        let stores = [Arc::clone(first), Arc::clone(second)];
        Arc::new(Self {
            stores,
            second: AtomicBool::new(false),
            trips: AtomicBool::new(false),
            late: Mutex::default(),
        })
    }

    fn now(&self) -> &MapProvider {
        &self.stores[usize::from(self.second.load(Ordering::SeqCst))]
    }

    pub(crate) fn fail_over(&self) {
        self.second.store(true, Ordering::SeqCst);
    }

    /// The next one who asks for a lease finds the other store.
    pub(crate) fn fail_over_for_a_lease(&self) {
        self.trips.store(true, Ordering::SeqCst);
    }

    /// When the next call for the key or its marks has been answered, and what lets the answer go.
    pub(crate) fn late(&self) -> (oneshot::Receiver<()>, oneshot::Sender<()>) {
        let ((answered, is_answered), (go, goes)) = (oneshot::channel(), oneshot::channel());
        *self.late.lock().unwrap() = Some((answered, goes));
        (is_answered, go)
    }

    async fn kept<T>(&self, answer: T) -> T {
        let late = self.late.lock().unwrap().take();
        if let Some((answered, goes)) = late {
            answered.send(()).unwrap();
            goes.await.unwrap();
        }
        answer
    }
}

#[async_trait]
impl CacheProvider for Pair {
    fn capabilities(&self) -> Capabilities {
        self.now().capabilities()
    }

    fn describe(&self) -> Description {
        self.now().describe()
    }

    async fn get_many(&self, keys: &[RawKey<'_>]) -> Vec<Result<Option<Bytes>, BoxError>> {
        self.kept(self.now().get_many(keys).await).await
    }

    async fn put_many(&self, items: &[Put<'_>]) -> Vec<Result<(), BoxError>> {
        self.kept(self.now().put_many(items).await).await
    }

    async fn remove_many(&self, keys: &[RawKey<'_>]) -> Vec<Result<(), BoxError>> {
        self.kept(self.now().remove_many(keys).await).await
    }

    fn leases(&self) -> Option<&dyn Leases> {
        Some(self)
    }

    fn marks(&self) -> Option<&dyn Marks> {
        Some(self)
    }

    fn incarnation(&self) -> u64 {
        self.now().incarnation()
    }
}

impl Pair {
    fn leased(&self) -> &dyn Leases {
        self.now().leases().unwrap()
    }
}

#[async_trait]
impl Leases for Pair {
    async fn acquire_many(&self, wanted: &[Acquire<'_>], life: Duration) -> Vec<Result<Acquired, BoxError>> {
        if self.trips.swap(false, Ordering::SeqCst) {
            self.fail_over();
        }
        self.leased().acquire_many(wanted, life).await
    }

    async fn fill_many(&self, fills: &[Fill<'_>]) -> Vec<Result<bool, BoxError>> {
        self.leased().fill_many(fills).await
    }

    async fn hold_many(&self, keys: &[RawKey<'_>], life: Duration) -> Vec<Result<Lease, BoxError>> {
        self.leased().hold_many(keys, life).await
    }

    async fn renew_many(&self, held: &[(RawKey<'_>, Lease)], life: Duration) -> Vec<Result<(), BoxError>> {
        self.leased().renew_many(held, life).await
    }

    async fn release_many(&self, held: &[(RawKey<'_>, Lease)]) -> Vec<Result<(), BoxError>> {
        self.leased().release_many(held).await
    }
}

#[async_trait]
impl Marks for Pair {
    async fn swap(&self, swaps: &[Swap<'_>]) -> Result<Swapped, BoxError> {
        self.kept(self.now().marks().unwrap().swap(swaps).await).await
    }
}
