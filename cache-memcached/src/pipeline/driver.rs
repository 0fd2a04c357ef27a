//! The task of one connection: connects, writes, reads, watches deadlines.

use std::{
    future::poll_fn,
    io,
    pin::Pin,
    sync::{Arc, MutexGuard},
    task::{Context, Poll},
    thread,
    time::Instant,
};

use bytes::{Buf, BytesMut};
use tokio::{
    runtime,
    time::{Sleep, sleep_until, timeout},
};

use super::{
    io::Io,
    link::{Link, Phase, State},
    parse::{Body, Parser},
    queue::{ENDED, Ended, GARBLED, LOST, NO_ANSWER, PANICKED},
};
use crate::{ErrorKind, dial::Stream, error::Fault, login::WANTED};

/// Runs until the connection ends. Whatever ends it, also the runtime's shutdown, every waiter gets its answer: the guard
/// comes from outside, since a runtime that is ending drops this before it has begun.
pub(super) async fn run(mut guard: Guard, home: runtime::Id) {
    let (link, generation) = (Arc::clone(&guard.link), guard.generation);
    let begun = Instant::now();
    let io = match connect(&link).await {
        Ok(stream) => Io::new(stream),
        Err(fault) => {
            (guard.at_once, guard.cause) = (false, fault);
            return;
        }
    };
    {
        let mut state = link.lock();
        if state.generation != generation {
            return;
        }
        state.phase = Phase::Up(io.writer(), home);
    }
    link.made().count_made(begun.elapsed());
    let mut driver = Driver {
        link: &link,
        io,
        generation,
        parser: Parser::new(link.value_max),
        first: None,
        writing: BytesMut::new(),
        timer: Box::pin(sleep_until(Instant::now().into())),
        ticking: false,
        ended: Vec::new(),
        rested: false,
    };
    let cause = poll_fn(|cx| driver.poll(cx)).await;
    driver.hand_back();
    guard.cause = driver.explained(cause);
}

async fn connect(link: &Link) -> Result<Stream, Fault> {
    let limit = link.limits.connect_timeout;
    match timeout(limit, link.dial.connect(limit)).await {
        Ok(connected) => connected,
        Err(_elapsed) => Err(Fault::new(ErrorKind::Timeout, "no connection in time")),
    }
}

pub(super) struct Guard {
    link: Arc<Link>,
    generation: u64,
    /// Whether the next call may try again at once: unless the server, or a panic, has ended the attempt.
    at_once: bool,
    cause: Fault,
}

impl Guard {
    pub(super) const fn new(link: Arc<Link>, generation: u64) -> Self {
        Self { link, generation, at_once: true, cause: ENDED }
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        if thread::panicking() {
            // The next one would do so, too.
            (self.at_once, self.cause) = (false, PANICKED);
        }
        self.link.end(self.generation, &self.cause, self.at_once);
    }
}

/// With this many exchanges under way, the task lets callers run before it writes the next request. Where more than this
/// many have been answered at once, the first of their callers does not write its next request itself.
const CROWD: usize = 8;

struct Driver<'a> {
    link: &'a Link,
    io: Io,
    generation: u64,
    parser: Parser,
    /// What the server began with.
    first: Option<u8>,
    writing: BytesMut,
    timer: Pin<Box<Sleep>>,
    /// Whether the timer has been set and has not fired.
    ticking: bool,
    /// Exchanges that have all their replies, told outside the lock.
    ended: Vec<Ended>,
    /// Whether it has just let the callers run.
    rested: bool,
}

impl<'a> Driver<'a> {
    /// Ready with the reason when the connection is over.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Fault> {
        match self.step(cx) {
            Ok(()) => Poll::Pending,
            Err(fault) => Poll::Ready(fault),
        }
    }

    fn step(&mut self, cx: &mut Context<'_>) -> Result<(), Fault> {
        // Never waits for the write before it reads: a server that is blocked on its replies reads nothing.
        if self.rested {
            self.rested = false;
            self.write(cx)?;
            self.read(cx)?;
        } else if self.read(cx)? > 1 || self.is_crowded()? {
            // Callers who were answered ask again: let them, and write all that at once.
            self.rested = true;
            cx.waker().wake_by_ref();
            return Ok(());
        } else {
            self.write(cx)?;
        }
        self.watch(cx)
    }

    /// Why the connection is over, with what may be behind it.
    fn explained(&self, cause: Fault) -> Fault {
        match cause.kind {
            ErrorKind::Connect | ErrorKind::Protocol if !cause.ours => {
                self.link.dial.unheard(self.first, cause)
            }
            _ => cause,
        }
    }

    /// Whether so many replies are to come that more requests are likely to follow the first.
    fn is_crowded(&self) -> Result<bool, Fault> {
        let state = self.state()?;
        Ok(self.writing.is_empty() && !state.out.is_empty() && state.queue.len() >= CROWD)
    }

    fn write(&mut self, cx: &mut Context<'_>) -> Result<(), Fault> {
        loop {
            if self.writing.is_empty() {
                let mut state = self.state()?;
                if !state.waker.as_ref().is_some_and(|w| w.will_wake(cx.waker())) {
                    state.waker = Some(cx.waker().clone());
                }
                state.expecting = false;
                std::mem::swap(&mut self.writing, &mut state.out);
                state.writing = !self.writing.is_empty();
                if self.writing.is_empty() {
                    drop(state);
                    return self.io.flush(cx).map_err(lost);
                }
            }
            match self.io.poll_write(&self.writing, cx) {
                Poll::Ready(Ok(written)) => {
                    self.writing.advance(written);
                    if !self.writing.is_empty() {
                        // Over, perhaps.
                        drop(self.state()?);
                    }
                }
                Poll::Ready(Err(e)) => return Err(lost(e)),
                Poll::Pending => {
                    // A reset or a new request must still be noticed.
                    self.state()?.waker = Some(cx.waker().clone());
                    return Ok(());
                }
            }
        }
    }

    /// What it has not written has not left, and lies again where nobody has begun to write.
    fn hand_back(&mut self) {
        if let Ok(mut state) = self.state() {
            self.writing.extend_from_slice(&state.out);
            std::mem::swap(&mut self.writing, &mut state.out);
        }
    }

    /// Reads until there is nothing more; how many exchanges got their answer.
    fn read(&mut self, cx: &mut Context<'_>) -> Result<usize, Fault> {
        let mut answered = 0;
        loop {
            match self.io.poll_read(self.parser.room(), cx) {
                Poll::Ready(Ok(0)) => return Err(LOST),
                Poll::Ready(Ok(_)) => {
                    self.first = self.first.or_else(|| self.parser.first());
                    answered += self.hand_out()?;
                }
                Poll::Ready(Err(e)) => return Err(lost(e)),
                Poll::Pending => return Ok(answered),
            }
        }
    }

    fn hand_out(&mut self) -> Result<usize, Fault> {
        let mut ended = std::mem::take(&mut self.ended);
        let mut over = None;
        {
            let mut state = self.state()?;
            loop {
                match self.parser.next() {
                    Ok(Some(answer)) => {
                        // What follows a command that was not understood may be its data, read as commands.
                        let rejected = match answer.body {
                            Body::Rejected => Some(GARBLED),
                            Body::LoginWanted => Some(WANTED),
                            Body::Full => Some(LOST),
                            _ => None,
                        };
                        match state.queue.answer(answer) {
                            Ok(done) => ended.extend(done),
                            Err(_out_of_step) => over = Some(GARBLED),
                        }
                        over = rejected.or(over);
                    }
                    Ok(None) => break,
                    Err(_garbled) => over = Some(GARBLED),
                }
                if over.is_some() {
                    break;
                }
            }
            state.expecting |= ended.len() > CROWD;
        }
        let count = ended.len();
        ended.drain(..).for_each(Ended::tell);
        self.ended = ended;
        match over {
            Some(fault) => Err(fault),
            None => Ok(count),
        }
    }

    /// Ends the connection when its oldest exchange is overdue: a queue cannot skip.
    fn watch(&mut self, cx: &mut Context<'_>) -> Result<(), Fault> {
        loop {
            let oldest = {
                let mut state = self.state()?;
                let oldest = state.queue.deadline();
                // The timer runs on through idle moments, so that a single caller need not wake this task each time.
                state.armed = self.ticking || oldest.is_some();
                oldest
            };
            // Otherwise left alone until it fires: it is not moved with every call, and no clock is read.
            if let Some(oldest) = oldest
                && (!self.ticking || self.timer.deadline() > oldest.into())
            {
                if oldest <= Instant::now() {
                    return Err(NO_ANSWER);
                }
                self.timer.as_mut().reset(oldest.into());
                self.ticking = true;
            }
            if !self.ticking || self.timer.as_mut().poll(cx).is_pending() {
                return Ok(());
            }
            self.ticking = false;
        }
    }

    fn state(&self) -> Result<MutexGuard<'a, State>, Fault> {
        let state = self.link.lock();
        if state.generation == self.generation { Ok(state) } else { Err(LOST) }
    }
}

fn lost(e: io::Error) -> Fault {
    Fault::caused(ErrorKind::Connect, "the connection was lost", e)
}
