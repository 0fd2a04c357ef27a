//! Flights: the unit of loading. Owned by the runtime; callers only wait.

use std::{
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures::future::BoxFuture;
use tokio::{
    runtime::Handle,
    sync::Notify,
    task::{AbortHandle, JoinHandle},
};

use crate::{
    BoxError, Error, Held, Loaded, MissReason, Moment, cycle::LoadId, entry::Entry, inner::Seen,
    observers::Spans,
};

/// How long a load of another runtime is waited for before that is asked for a sign of life, and how long for this.
pub(crate) const SIGN_OF_LIFE: Duration = Duration::from_secs(1);

/// A loader, with its types erased once, on a miss.
pub(crate) type Loader<T> =
    Box<dyn FnOnce(Option<Held<T>>) -> BoxFuture<'static, Result<Loaded<T>, BoxError>> + Send>;

/// How a flight ended, as its callers see it.
pub(crate) enum Ended<T> {
    /// The entry; its value is `None` for an absence.
    Entry {
        entry: Entry<T>,
        /// The level that had it after all: another process has filled it.
        level: Option<u8>,
        /// Whether it was not overtaken. If it was, only callers from before its load began may use it.
        accepted: bool,
    },
    Failed {
        error: Error,
        surface: bool,
    },
}

impl<T> Clone for Ended<T> {
    fn clone(&self) -> Self {
        match self {
            Self::Entry { entry, level, accepted } => {
                Self::Entry { entry: entry.clone(), level: *level, accepted: *accepted }
            }
            Self::Failed { error, surface } => Self::Failed { error: error.clone(), surface: *surface },
        }
    }
}

/// One load of one key under way.
pub(crate) struct Flight<T> {
    pub(crate) load: LoadId,
    /// Somebody waits for it: no level had the key. Not so for a refresh behind a value that is being served, nor for a load
    /// that has not asked the levels.
    pub(crate) awaited: bool,
    /// What its leader had to fall back on, for callers who join without reading levels themselves.
    pub(crate) stale: Option<Seen<T>>,
    /// Why no level had the key, for the same.
    pub(crate) reason: MissReason,
    /// The load's span, for waiters to link to.
    pub(crate) spans: OnceLock<Spans>,
    /// The loader has begun to run.
    begun: AtomicBool,
    ended: OnceLock<Ended<T>>,
    landed: Notify,
    /// Another load waits for this one.
    needed: Notify,
    /// The runtime that it is a task of.
    home: Option<Handle>,
    /// Since when that is asked for a sign of life.
    asked: Mutex<Option<(Moment, JoinHandle<()>)>>,
    task: OnceLock<AbortHandle>,
    /// It asks for no more leases, and gives back those that it has if its task is aborted.
    has_leases: AtomicBool,
    aborted: AtomicBool,
    /// Callers who wait now.
    callers: AtomicUsize,
}

/// A caller who waits.
pub(crate) struct Waiting<'a>(&'a AtomicUsize);

impl Waiting<'_> {
    pub(crate) fn is_last(&self) -> bool {
        self.0.load(Ordering::Acquire) == 1
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

impl<T> Flight<T> {
    /// To be called where it is launched.
    pub(crate) fn new(load: LoadId, awaited: bool, stale: Option<Seen<T>>, reason: MissReason) -> Arc<Self> {
        Arc::new(Self {
            load,
            awaited,
            stale,
            reason,
            spans: OnceLock::new(),
            begun: AtomicBool::new(false),
            ended: OnceLock::new(),
            landed: Notify::new(),
            needed: Notify::new(),
            home: Handle::try_current().ok(),
            asked: Mutex::default(),
            task: OnceLock::new(),
            has_leases: AtomicBool::new(false),
            aborted: AtomicBool::new(false),
            callers: AtomicUsize::new(0),
        })
    }

    pub(crate) fn waiting(&self) -> Waiting<'_> {
        self.callers.fetch_add(1, Ordering::AcqRel);
        Waiting(&self.callers)
    }

    /// Notes that whoever begins it waits for it, before anybody can join: who gives up must not think to be the last.
    pub(crate) fn led(self: Arc<Self>) -> Arc<Self> {
        self.callers.fetch_add(1, Ordering::AcqRel);
        self
    }

    /// Its leader, who is among those who wait already.
    pub(crate) fn leading(&self) -> Waiting<'_> {
        Waiting(&self.callers)
    }

    pub(crate) fn runs_as(&self, task: AbortHandle) {
        // Set once, by whoever spawned the task.
        let _ = self.task.set(task);
    }

    /// The runtime that it is a task of, if that is not the caller's own: it may stand still while the caller's does not.
    pub(crate) fn elsewhere(&self) -> Option<&Handle> {
        let here = Handle::try_current().ok()?.id();
        self.home.as_ref().filter(|home| home.id() != here)
    }

    /// Whether its runtime stands still, for callers who do not wait long enough to see: one asks it for a sign of life, and a
    /// later one looks whether that has come in time.
    pub(crate) fn stands_still(&self, now: Moment) -> bool {
        let Some(home) = self.elsewhere() else { return false };
        let mut asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        match &*asked {
            Some((at, sign)) if !sign.is_finished() => now.since(*at) >= SIGN_OF_LIFE,
            _ => {
                *asked = Some((now, home.spawn(async {})));
                false
            }
        }
    }

    /// A load waits for this one: it must not queue behind that load for its turn.
    pub(crate) fn is_needed(&self) {
        self.needed.notify_one();
    }

    /// Waits until a load needs this one, if ever.
    pub(crate) async fn needed(&self) {
        self.needed.notified().await;
    }

    pub(crate) fn begin(&self) {
        self.begun.store(true, Ordering::Release);
    }

    /// Whether it has been cancelled: nobody may join it any more.
    pub(crate) fn is_aborted(&self) -> bool {
        self.aborted.load(Ordering::Acquire)
    }

    /// Whether a caller who joins now comes after the load began.
    pub(crate) fn has_begun(&self) -> bool {
        self.begun.load(Ordering::Acquire)
    }

    /// Ends the flight. The first ending counts.
    pub(crate) fn end(&self, ended: Ended<T>) {
        let _ = self.ended.set(ended);
        self.landed.notify_waiters();
    }

    pub(crate) fn has_ended(&self) -> bool {
        self.ended.get().is_some()
    }

    /// Cancels the load; its task's guard ends the flight. While it is being granted leases it has to see to that itself.
    pub(crate) fn abort(&self) {
        if let Some(task) = self.task.get() {
            self.aborted.store(true, Ordering::SeqCst);
            if self.has_leases.load(Ordering::SeqCst) {
                task.abort();
            }
        }
    }

    /// To be called once it has what leases it gets. `false`: it has been cancelled.
    pub(crate) fn has_leases(&self) -> bool {
        self.has_leases.store(true, Ordering::SeqCst);
        !self.aborted.load(Ordering::SeqCst)
    }

    /// Waits for the end. Cancel-safe: leaving disturbs nobody.
    pub(crate) async fn wait(&self) -> Ended<T> {
        loop {
            let landed = self.landed.notified();
            tokio::pin!(landed);
            landed.as_mut().enable();
            if let Some(ended) = self.ended.get() {
                return ended.clone();
            }
            landed.await;
        }
    }
}
