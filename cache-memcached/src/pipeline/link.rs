//! State that callers and the connection's task share.

use std::{
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::Waker,
    time::{Duration, Instant},
};

use bytes::{Buf, BytesMut};
use cache_core::PoolStatus;
use tokio::{net::tcp::OwnedWriteHalf, runtime};

use super::queue::{Ended, Queue};
use crate::{ErrorKind, dial::Dial, error::Fault, transport::Limits};

#[derive(Debug)]
pub(super) struct Link {
    pub(super) dial: Dial,
    pub(super) limits: Limits,
    pub(super) value_max: usize,
    made: Made,
    state: Mutex<State>,
}

/// What has come of making the connections of a provider, to all its servers.
pub(crate) type Made = Arc<Mutex<PoolStatus>>;

#[derive(Debug)]
pub(super) struct State {
    pub(super) phase: Phase,
    /// Names the connection's task; an older one has no say any more.
    pub(super) generation: u64,
    pub(super) queue: Queue,
    /// Requests that nobody has begun to write.
    pub(super) out: BytesMut,
    /// The task has requests that it writes. Meanwhile callers do not.
    pub(super) writing: bool,
    /// The task has answered a crowd, and not written since: it lets all of them run first.
    pub(super) expecting: bool,
    /// Bytes of all requests on this connection, written or not.
    pub(super) total: u64,
    pub(super) next_id: u64,
    /// Wakes the task: there are requests to write, or a deadline to watch.
    pub(super) waker: Option<Waker>,
    /// Whether the task watches deadlines.
    pub(super) armed: bool,
    /// Connects that failed in a row.
    failures: u32,
}

#[derive(Debug)]
pub(super) enum Phase {
    /// Not connected, and not before then: the last connect failed like this.
    Down { until: Instant, because: Option<Fault> },
    /// A task connects; requests wait.
    Connecting(runtime::Id),
    /// With what callers write to, where they may.
    Up(Option<Arc<OwnedWriteHalf>>, runtime::Id),
    /// For good.
    Closed,
}

/// Pause after the first failed connect; doubles up to [`BACKOFF_MAX`].
const BACKOFF: Duration = Duration::from_millis(5);
const BACKOFF_MAX: Duration = Duration::from_millis(500);

impl Link {
    pub(super) fn new(dial: Dial, limits: Limits, value_max: usize, made: Made) -> Self {
        let state = State {
            phase: Phase::Down { until: Instant::now(), because: None },
            generation: 0,
            queue: Queue::default(),
            out: BytesMut::new(),
            writing: false,
            expecting: false,
            total: 0,
            next_id: 0,
            waker: None,
            armed: false,
            failures: 0,
        };
        Self { dial, limits, value_max, made, state: Mutex::new(state) }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends the connection of that generation, if it is still the one. `at_once`: the next call may try again, as where it
    /// had been up.
    pub(super) fn end(&self, generation: u64, cause: &Fault, at_once: bool) {
        let state = self.lock();
        if state.generation == generation {
            self.end_locked(state, cause, at_once);
        }
    }

    /// Ends whichever connection there is.
    pub(super) fn end_locked(&self, mut state: MutexGuard<'_, State>, cause: &Fault, at_once: bool) {
        self.note_end(&state.phase, cause);
        let over = state.end(cause, at_once);
        drop(state);
        over.tell();
    }

    pub(super) fn made(&self) -> MutexGuard<'_, PoolStatus> {
        self.made.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts an attempt that has failed, or a connection that is lost.
    fn note_end(&self, phase: &Phase, cause: &Fault) {
        match phase {
            Phase::Connecting(_) if cause.kind == ErrorKind::Timeout => self.made().timeouts += 1,
            Phase::Connecting(_) | Phase::Up(..) => self.made().errors += 1,
            Phase::Down { .. } | Phase::Closed => {}
        }
    }

    /// Adds how it stands, and says whether it is at rest.
    pub(super) fn tell(&self, pool: &mut PoolStatus) -> bool {
        let state = self.lock();
        pool.max += 1;
        match &state.phase {
            Phase::Up(..) => pool.idle += 1,
            Phase::Connecting(_) => pool.pending += state.queue.attended() as u64,
            Phase::Down { because, .. } => return because.is_none(),
            Phase::Closed => return true,
        }
        false
    }
}

/// Who is to hear of the end of a connection, once its lock is released: what wakes them may be anything.
#[must_use]
#[derive(Default)]
pub(super) struct Over {
    callers: Vec<Ended>,
    task: Option<Waker>,
}

impl Over {
    pub(super) fn tell(self) {
        self.callers.into_iter().for_each(Ended::tell);
        // The old task notices that it is over.
        if let Some(waker) = self.task {
            waker.wake();
        }
    }
}

impl State {
    pub(super) fn end(&mut self, cause: &Fault, at_once: bool) -> Over {
        if matches!(self.phase, Phase::Closed) {
            return Over::default();
        }
        self.generation += 1;
        self.failures = if at_once { 0 } else { (self.failures + 1).min(16) };
        let pause = match self.failures {
            0 => Duration::ZERO,
            n => (BACKOFF * 2u32.pow(n - 1)).min(BACKOFF_MAX),
        };
        let because = (!at_once).then(|| cause.duplicate());
        self.phase = Phase::Down { until: Instant::now() + pause, because };
        // What the task holds counts as sent: the kernel takes it outside of the lock.
        let sent = self.total - self.out.len() as u64;
        let callers = self.queue.fail(cause, sent);
        self.out = BytesMut::new();
        self.writing = false;
        self.expecting = false;
        self.total = 0;
        self.armed = false;
        Over { callers, task: self.waker.take() }
    }

    /// Nobody waits for anything, and no crowd is expected to.
    pub(super) fn is_idle(&self) -> bool {
        !self.expecting && self.queue.is_empty() && !self.writing
    }

    /// Writes what is queued, as far as the socket takes it. For a caller who finds the connection idle.
    pub(super) fn write_now(&mut self) {
        let Phase::Up(Some(stream), _) = &self.phase else { return };
        while !self.out.is_empty() {
            match stream.try_write(&self.out) {
                Ok(written) => self.out.advance(written),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                // Full, or broken: the task takes over, and finds out which.
                Err(_) => return,
            }
        }
    }
}
