//! One connection that many requests share.
//!
//! Callers append requests to one buffer; one task writes them, reads the replies in order, and hands them out. Where
//! nothing is under way, the caller writes its request itself, so an idle connection costs no switch of tasks. Under load,
//! the task lets callers run once after it has handed out several replies, and before it writes the first of several
//! requests: what they ask meanwhile goes out in one piece. The first of a crowd that was answered leaves its request to the
//! task, too: it would go alone.
//!
//! - **Look-ups of single keys that come while others are under way are gathered into one `MGET`.** It is sealed when the
//!   task writes it, when there are enough of them, or when another request comes behind it: a look-up never joins a command
//!   that was sent before it came, so nobody gets an answer older than the question.
//! - A caller may leave at any time; its reply is read and dropped.
//! - What the server sends of its own accord is passed on by the same task, in order, before any later reply.
//! - No timer: levels bound their calls, and the keeper watches for a connection that is stuck.
//! - Bounded: bytes that wait to be written, length of a reply's lines, depth of replies, size of a value that is kept, what
//!   is allocated for it before it has come, and all of a reply, by how many values were asked for.
//!
//! The client library writes commands and reads all replies but the two that every look-up gets, strings and lists of
//! them. Through its own connection a typed look-up took a third more instructions (docs/performance.md).

mod driver;
mod frame;
mod io;
mod queue;

use std::{
    collections::VecDeque,
    future::{Future, poll_fn},
    mem,
    pin::{Pin, pin},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    task::{Poll, Waker},
};

use futures::FutureExt;
use redis::{Arg, Cmd, Pipeline, RedisError, Value};
use tokio::sync::{Notify, oneshot};

use self::{
    driver::{Driver, Guard},
    io::{Io, Writer},
    queue::{Lookups, Waiter},
};
pub(crate) use self::{frame::Reply, io::Stream};
use crate::{connection::Hears, overhear::First};

/// Gathered look-ups that a caller writes himself.
const ENOUGH: usize = 32;
/// Most bytes that a caller writes himself.
const OWN_MAX: usize = 64 << 10;
/// Unsent bytes from which on callers wait for room.
const UNSENT_MAX: usize = 16 << 20;

type Answer<T> = oneshot::Receiver<Result<T, RedisError>>;

pub(crate) type Running = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Runs a connection that has no task of its own while it is called.
pub(crate) async fn alongside<T>(running: &mut Running, call: impl Future<Output = T>) -> T {
    let mut call = pin!(call);
    let mut over = false;
    poll_fn(|cx| {
        if let Poll::Ready(answer) = call.as_mut().poll(cx) {
            return Poll::Ready(answer);
        }
        // At its end, too, the call has got its answer.
        over = over || running.as_mut().poll(cx).is_ready();
        call.as_mut().poll(cx)
    })
    .await
}

/// The callers' end of a connection.
pub(crate) struct Mux(Arc<Shared>);

struct Shared {
    state: Mutex<State>,
    /// So much waits to be written that no more should.
    crowded: AtomicBool,
    /// It is not crowded any more, or has ended.
    room: Notify,
    end: Notify,
}

struct State {
    /// Requests that nobody has begun to write.
    out: Vec<u8>,
    /// Look-ups behind those.
    lookups: Lookups,
    /// The task holds requests that it has not written so far.
    writing: bool,
    /// The task has answered a crowd, and not written since: it lets all of them run first.
    expecting: bool,
    waiting: VecDeque<Waiter>,
    /// Look-ups that have been gathered, and not been answered.
    under_way: usize,
    /// The task, where it does not know of what is unsent.
    waker: Option<Waker>,
    /// For callers who write.
    writer: Option<Writer>,
    /// Calls that have been put to it; replies and pushes that have come. A call may wait for several.
    progress: (u64, u64),
    /// Why it has ended.
    over: Option<RedisError>,
}

impl Mux {
    /// A connection over `stream`, and its task, which has to run for it to work. `hears` takes what the server sends of its
    /// own accord, `first` keeps what it says first. A value over `value_max` and a MiB is an error, and is not read.
    pub(crate) fn new(
        stream: Stream,
        hears: Option<(u64, Hears)>,
        first: First,
        value_max: usize,
    ) -> (Self, Running) {
        let io = Io::new(stream);
        let state = State {
            out: Vec::new(),
            lookups: Lookups::default(),
            writing: false,
            expecting: false,
            waiting: VecDeque::new(),
            under_way: 0,
            waker: None,
            writer: io.writer(),
            progress: (0, 0),
            over: None,
        };
        let shared = Arc::new(Shared {
            state: Mutex::new(state),
            crowded: AtomicBool::new(false),
            room: Notify::new(),
            end: Notify::new(),
        });
        // Made here, as the task may be dropped before it has begun.
        let guard = Guard::new(Arc::clone(&shared));
        let driver = Driver::new(Arc::clone(&shared), io, hears, first, value_max);
        (Self(shared), Box::pin(driver::run(guard, driver)))
    }

    /// Sends one command.
    pub(crate) async fn command(&self, command: &Cmd) -> Result<Value, RedisError> {
        let (caller, answer) = oneshot::channel();
        self.send(Waiter::One(caller), command.get_packed_command()).await?;
        self.received(answer.await).map(Reply::into_value)
    }

    /// Sends several commands in one go. Error replies are among the replies, of which there are as many.
    pub(crate) async fn pipeline(&self, commands: &Pipeline) -> Result<Vec<Reply>, RedisError> {
        if commands.is_empty() {
            return Ok(Vec::new());
        }
        let (caller, answer) = oneshot::channel();
        let values = commands.cmd_iter().map(values_of).max().unwrap_or(1);
        let waiter = Waiter::Many { left: commands.len(), values, replies: Vec::new(), caller };
        self.send(waiter, commands.get_packed_pipeline()).await?;
        self.received(answer.await)
    }

    /// Sends a command that the server confirms by `count` pushes, one for each channel, or refuses by one error.
    pub(crate) async fn confirmed(&self, command: &Cmd, count: usize) -> Result<Value, RedisError> {
        let (caller, answer) = oneshot::channel();
        let waiter = Waiter::Confirmed { left: count, caller };
        self.send(waiter, command.get_packed_command()).await?;
        self.received(answer.await).map(Reply::into_value)
    }

    /// Looks up one key, together with others where `gathers`.
    #[allow(clippy::manual_async_fn, reason = "an `async fn` would keep each argument twice")]
    pub(crate) fn get(
        &self,
        key: &str,
        gathers: bool,
    ) -> impl Future<Output = Result<Reply, RedisError>> + Send {
        async move {
            self.0.room().await;
            let answer = self.look_up(key, gathers)?;
            match self.received(answer.await) {
                // One key that the user may not read fails the whole command. Each goes alone.
                Ok(Reply::AskAlone) => {
                    let answer = self.look_up(key, false)?;
                    self.received(answer.await)
                }
                reply => reply,
            }
        }
    }

    fn look_up(&self, key: &str, gathers: bool) -> Result<Answer<Reply>, RedisError> {
        let (caller, answer) = oneshot::channel();
        self.0.add(|state, idle| {
            if gathers && !idle {
                state.look_up(key, caller);
            } else {
                state.seal();
                queue::put_get(&mut state.out, key);
                state.waiting.push_back(Waiter::Lookup(caller));
            }
        })?;
        Ok(answer)
    }

    /// `requests` have been packed outside of the lock: they may be large.
    async fn send(&self, waiter: Waiter, mut requests: Vec<u8>) -> Result<(), RedisError> {
        self.0.room().await;
        self.0.add(|state, _| {
            state.seal();
            if state.out.is_empty() {
                state.out = requests;
            } else {
                state.out.append(&mut requests);
            }
            state.waiting.push_back(waiter);
        })
    }

    fn received<T>(
        &self,
        answer: Result<Result<T, RedisError>, oneshot::error::RecvError>,
    ) -> Result<T, RedisError> {
        // Everybody is answered, also by a task that is dropped.
        answer.unwrap_or_else(|_gone| Err(self.over().unwrap_or_else(broken)))
    }

    /// Calls that have been put to it; replies and pushes that have come.
    pub(crate) fn progress(&self) -> (u64, u64) {
        self.0.lock().progress
    }

    /// Requests that somebody waits for, but for those that wait for room. Goes through all of them.
    pub(crate) fn in_flight(&self) -> u64 {
        let state = self.0.lock();
        let all = state.waiting.iter().map(Waiter::attended).sum::<usize>() + state.lookups.attended();
        u64::try_from(all).unwrap_or(u64::MAX)
    }

    /// Ends it. Requests under way fail.
    pub(crate) fn end(&self) {
        self.0.end(broken());
    }

    /// Why it has ended.
    pub(crate) fn over(&self) -> Option<RedisError> {
        self.0.lock().over.clone()
    }

    /// Until it has ended.
    pub(crate) async fn ended(&self) {
        let told = self.0.end.notified();
        if self.over().is_none() {
            told.await;
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock_open(&self) -> Result<MutexGuard<'_, State>, RedisError> {
        let state = self.lock();
        match &state.over {
            None => Ok(state),
            Some(error) => Err(error.clone()),
        }
    }

    /// Until there is room, or all is over.
    async fn room(&self) {
        if self.crowded.load(Ordering::Relaxed) {
            self.wait_for_room().boxed().await;
        }
    }

    async fn wait_for_room(&self) {
        loop {
            let told = self.room.notified();
            if !self.crowded.load(Ordering::SeqCst) {
                return;
            }
            told.await;
        }
    }

    /// Adds requests, and sees to it that somebody writes them. `put` is told whether nothing is under way.
    fn add(&self, put: impl FnOnce(&mut State, bool)) -> Result<(), RedisError> {
        let mut state = self.lock_open()?;
        let (idle, unsent) = (state.is_idle(), state.has_unsent());
        put(&mut state, idle);
        state.progress.0 += 1;
        if idle || state.is_enough() {
            state.seal();
            state.write_now();
        }
        if state.out.len() + state.lookups.len() > UNSENT_MAX {
            self.crowded.store(true, Ordering::SeqCst);
        }
        // The task already knows of what was unsent before.
        let wake = if !unsent && state.has_unsent() { state.waker.take() } else { None };
        drop(state);
        if let Some(waker) = wake {
            waker.wake();
        }
        Ok(())
    }

    fn end(&self, error: RedisError) {
        let mut state = self.lock();
        if state.over.is_some() {
            return;
        }
        // An answer that makes no sense is that of the first who waits.
        let garbled = error.kind() == redis::ErrorKind::Parse;
        let (mut first, error) = if garbled { (Some(error), broken()) } else { (None, error) };
        state.over = Some(error.clone());
        let waiting = mem::take(&mut state.waiting);
        let lookups = mem::take(&mut state.lookups).into_waiter();
        state.out = Vec::new();
        state.writer = None;
        let waker = state.waker.take();
        drop(state);
        self.crowded.store(false, Ordering::SeqCst);
        self.end.notify_waiters();
        self.room.notify_waiters();
        for waiter in waiting.into_iter().chain(lookups) {
            waiter.fail(first.take().as_ref().unwrap_or(&error));
        }
        // The task notices that it is over.
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

impl State {
    /// Nobody waits for anything, and no crowd is expected to.
    fn is_idle(&self) -> bool {
        !self.expecting && self.waiting.is_empty() && !self.writing && !self.has_unsent()
    }

    /// Whether those who look up should not wait for the task, which lets all callers run before it writes: so the server is at
    /// work as well. Where very many come, commands grow with them.
    fn is_enough(&self) -> bool {
        !self.writing && self.lookups.callers() >= ENOUGH.max(self.under_way / 2)
    }

    fn has_unsent(&self) -> bool {
        !self.out.is_empty() || !self.lookups.is_empty()
    }

    fn look_up(&mut self, key: &str, caller: queue::Caller<Reply>) {
        if self.lookups.is_full() {
            self.seal();
        }
        self.lookups.add(key, caller);
    }

    /// Puts the look-ups that have been gathered among the requests.
    fn seal(&mut self) {
        if !self.lookups.is_empty() {
            let waiter = self.lookups.seal(&mut self.out);
            self.under_way += waiter.gathered();
            self.waiting.push_back(waiter);
        }
    }

    /// Writes what is unsent, as far as the socket takes it. For a caller, while the task is not writing.
    fn write_now(&mut self) {
        let Some(writer) = &self.writer else { return };
        // Others wait for the lock meanwhile.
        if self.out.len() > OWN_MAX {
            return;
        }
        let mut written = 0;
        while written < self.out.len() {
            match writer.try_write(&self.out[written..]) {
                Ok(taken @ 1..) => written += taken,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                // Full, or broken: the task takes over, and finds out which.
                Ok(0) | Err(_) => break,
            }
        }
        self.out.drain(..written);
    }
}

/// Most values that a command asks for.
fn values_of(command: &Cmd) -> usize {
    let mut arguments = command.args_iter();
    match arguments.next() {
        Some(Arg::Simple(b"MGET")) => arguments.len(),
        _ => 1,
    }
}

/// The connection has ended, for no reason that the system has told.
fn broken() -> RedisError {
    std::io::Error::from(std::io::ErrorKind::BrokenPipe).into()
}

#[cfg(test)]
mod tests;
