//! How far a task has come that keeps something up: a connection, or the map of a cluster.

use std::{
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::Duration,
};

use tokio::{runtime::Handle, sync::watch, task::JoinHandle, time::Instant};

use crate::{Error, ErrorKind};

/// Between two starts of a task that panics.
const BROKEN_FOR: Duration = Duration::from_millis(500);

pub(crate) enum State<T> {
    /// Nobody has asked yet, or the runtime of the task is gone.
    Idle,
    /// The first try, or the next one, is under way: wait for it.
    Trying,
    Up(Arc<T>),
    /// The last try failed and the next is not due: fail at once.
    Down(Error),
    /// The task has panicked. It is not started again before then.
    Broken(Error, Instant),
    Closed,
}

impl<T> State<T> {
    /// Once the task has ended without being told to. To be asked by what drops with it.
    pub(crate) fn ended() -> Self {
        // One that panics would do so again at once.
        match thread::panicking() {
            true => Self::Broken(Error::panicked(), Instant::now() + BROKEN_FOR),
            false => Self::Idle,
        }
    }

    pub(crate) fn up(&self) -> Option<&Arc<T>> {
        match self {
            Self::Up(up) => Some(up),
            _ => None,
        }
    }

    /// Whether the next caller is to start the task.
    pub(crate) fn wants_start(&self) -> bool {
        match self {
            Self::Idle => true,
            Self::Broken(_, until) => *until <= Instant::now(),
            _ => false,
        }
    }

    /// Says that it is being started, if that is wanted.
    pub(crate) fn start(&mut self) -> bool {
        let wanted = self.wants_start();
        if wanted {
            *self = Self::Trying;
        }
        wanted
    }
}

/// Spawns the task, in the runtime of the caller, if the next caller is to.
pub(crate) fn start_if_idle<T, F>(
    state: &watch::Sender<State<T>>,
    task: &Mutex<Option<JoinHandle<()>>>,
    run: impl FnOnce() -> F,
) -> Result<(), Error>
where
    F: Future<Output = ()> + Send + 'static,
{
    if !state.borrow().wants_start() {
        return Ok(());
    }
    let Ok(runtime) = Handle::try_current() else {
        return Err(Error::new(ErrorKind::NoRuntime, "Redis is asked outside of a tokio runtime"));
    };
    let mut task = task.lock().unwrap_or_else(PoisonError::into_inner);
    if state.send_if_modified(State::start) {
        *task = Some(runtime.spawn(run()));
    }
    Ok(())
}
