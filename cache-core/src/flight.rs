//! Flights: the unit of loading. Owned by the runtime; callers only wait.

use std::sync::{Arc, OnceLock};

use futures::future::BoxFuture;
use tokio::{sync::Notify, task::AbortHandle};

use crate::{BoxError, Error, Held, Loaded, cycle::LoadId, entry::Entry, inner::Seen, observe::Spans};

/// A loader, with its types erased once, on a miss.
pub(crate) type Loader<T> =
    Box<dyn FnOnce(Option<Held<T>>) -> BoxFuture<'static, Result<Loaded<T>, BoxError>> + Send>;

/// How a flight ended, as its callers see it.
pub(crate) enum Ended<T> {
    /// The entry; its value is `None` for an absence.
    Entry(Entry<T>),
    Failed {
        error: Error,
        surface: bool,
    },
}

impl<T> Clone for Ended<T> {
    fn clone(&self) -> Self {
        match self {
            Self::Entry(entry) => Self::Entry(entry.clone()),
            Self::Failed { error, surface } => Self::Failed { error: error.clone(), surface: *surface },
        }
    }
}

/// One load of one key under way.
pub(crate) struct Flight<T> {
    pub(crate) load: LoadId,
    /// Somebody waits for it: no level had the key. A refresh behind a value that is being served is not.
    pub(crate) awaited: bool,
    /// What its leader had to fall back on, for callers who join without reading levels themselves.
    pub(crate) stale: Option<Seen<T>>,
    /// The load's span, for waiters to link to.
    pub(crate) spans: OnceLock<Spans>,
    ended: OnceLock<Ended<T>>,
    landed: Notify,
    /// Another load waits for this one.
    needed: Notify,
    task: OnceLock<AbortHandle>,
}

impl<T> Flight<T> {
    pub(crate) fn new(load: LoadId, awaited: bool, stale: Option<Seen<T>>) -> Arc<Self> {
        Arc::new(Self {
            load,
            awaited,
            stale,
            spans: OnceLock::new(),
            ended: OnceLock::new(),
            landed: Notify::new(),
            needed: Notify::new(),
            task: OnceLock::new(),
        })
    }

    pub(crate) fn runs_as(&self, task: AbortHandle) {
        // Set once, by whoever spawned the task.
        let _ = self.task.set(task);
    }

    /// A load waits for this one: it must not queue behind that load for its turn.
    pub(crate) fn is_needed(&self) {
        self.needed.notify_one();
    }

    /// Waits until a load needs this one, if ever.
    pub(crate) async fn needed(&self) {
        self.needed.notified().await;
    }

    /// Ends the flight. The first ending counts.
    pub(crate) fn end(&self, ended: Ended<T>) {
        let _ = self.ended.set(ended);
        self.landed.notify_waiters();
    }

    /// Cancels the load; its task's guard ends the flight.
    pub(crate) fn abort(&self) {
        if let Some(task) = self.task.get() {
            task.abort();
        }
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
