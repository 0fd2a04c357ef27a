//! The task of one connection: writes, reads, hands out.

use std::{
    future::poll_fn,
    sync::{Arc, atomic::Ordering},
    task::{Context, Poll},
};

use redis::{PushInfo, PushKind, RedisError, Value};

use super::{
    Shared, broken,
    frame::{Frames, Reply, garbled},
    io::Io,
    queue::{Ended, OutOfStep, Taken, Waiter},
};
use crate::{connection::Hears, overhear::First};

/// With this many callers waiting, the task lets others run before it writes the next request. Where more than this many
/// have been answered at once, the first of them does not write its next request itself.
const CROWD: usize = 8;
/// Reads in one go.
const READS: usize = 32;
/// What the buffer of requests may keep when it is empty.
const KEEP: usize = 1 << 20;

/// Runs until the connection ends. Whatever ends it, also the runtime's shutdown, everybody who waits gets an answer.
pub(super) async fn run(mut guard: Guard, mut driver: Driver) {
    guard.cause = Some(poll_fn(|cx| driver.poll(cx)).await);
}

pub(super) struct Guard {
    shared: Arc<Shared>,
    cause: Option<RedisError>,
}

impl Guard {
    pub(super) const fn new(shared: Arc<Shared>) -> Self {
        Self { shared, cause: None }
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.shared.end(self.cause.take().unwrap_or_else(broken));
    }
}

struct Read {
    /// Callers that got their reply.
    answered: usize,
    /// Whether there may be more to read.
    more: bool,
}

pub(super) struct Driver {
    shared: Arc<Shared>,
    io: Io,
    hears: Option<(u64, Hears)>,
    frames: Frames,
    /// Until the server has said something.
    first: Option<First>,
    /// Requests, and how many of their bytes have been written.
    writing: Vec<u8>,
    written: usize,
    /// Callers that have their replies, told outside the lock.
    ended: Vec<Ended>,
    /// Whether it has just let the callers run.
    rested: bool,
}

impl Driver {
    pub(super) fn new(
        shared: Arc<Shared>,
        io: Io,
        hears: Option<(u64, Hears)>,
        first: First,
        value_max: usize,
    ) -> Self {
        Self {
            shared,
            io,
            hears,
            frames: Frames::new(value_max),
            first: Some(first),
            writing: Vec::new(),
            written: 0,
            ended: Vec::new(),
            rested: false,
        }
    }

    /// Ready with the reason when the connection is over.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<RedisError> {
        match self.step(cx) {
            Ok(()) => Poll::Pending,
            Err(error) => Poll::Ready(error),
        }
    }

    fn step(&mut self, cx: &mut Context<'_>) -> Result<(), RedisError> {
        // Never waits for the write before it reads: a server that is blocked on its replies reads nothing.
        let rests = if self.rested {
            if let Err(error) = self.write(cx) {
                // What the server has answered before it hung up counts.
                let _ = self.read(cx);
                return Err(error);
            }
            self.read(cx)?.more
        } else {
            // Callers who were answered ask again: let them, and write all that at once.
            let Read { answered, more } = self.read(cx)?;
            more || answered > 1 || self.is_crowded()?
        };
        if rests {
            cx.waker().wake_by_ref();
        } else if !self.rested {
            self.write(cx)?;
        }
        self.rested = rests;
        Ok(())
    }

    /// Whether so many wait for replies that more requests are likely to follow the first.
    fn is_crowded(&self) -> Result<bool, RedisError> {
        let state = self.shared.lock_open()?;
        Ok(self.writing.is_empty() && state.has_unsent() && state.waiting.len() + state.under_way >= CROWD)
    }

    fn write(&mut self, cx: &mut Context<'_>) -> Result<(), RedisError> {
        loop {
            if self.writing.is_empty() {
                self.take_unsent(cx)?;
                if self.writing.is_empty() {
                    return Ok(self.io.flush(cx)?);
                }
            }
            match self.io.poll_write(&self.writing[self.written..], cx) {
                Poll::Ready(Ok(0)) => return Err(broken()),
                Poll::Ready(Ok(written)) => {
                    self.written += written;
                    if self.written == self.writing.len() {
                        self.written = 0;
                        self.writing.clear();
                        self.writing.shrink_to(KEEP);
                    }
                }
                Poll::Ready(Err(error)) => return Err(error.into()),
                Poll::Pending => {
                    // An end must still be noticed.
                    self.shared.lock_open()?.waker = Some(cx.waker().clone());
                    return Ok(());
                }
            }
        }
    }

    fn take_unsent(&mut self, cx: &Context<'_>) -> Result<(), RedisError> {
        let mut state = self.shared.lock_open()?;
        if !state.waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
            state.waker = Some(cx.waker().clone());
        }
        state.seal();
        state.expecting = false;
        std::mem::swap(&mut self.writing, &mut state.out);
        state.writing = !self.writing.is_empty();
        drop(state);
        if self.shared.crowded.swap(false, Ordering::SeqCst) {
            self.shared.room.notify_waiters();
        }
        Ok(())
    }

    /// Reads until there is nothing more, or so much that requests should have their turn.
    fn read(&mut self, cx: &mut Context<'_>) -> Result<Read, RedisError> {
        let mut answered = 0;
        for _ in 0..READS {
            match self.io.poll_read(self.frames.room(), cx) {
                Poll::Ready(Ok(0)) => return Err(broken()),
                Poll::Ready(Ok(_)) => {
                    if let Some(first) = self.first.take() {
                        first.keep(self.frames.unread());
                    }
                    answered += self.hand_out()?;
                }
                Poll::Ready(Err(error)) => return Err(error.into()),
                Poll::Pending => return Ok(Read { answered, more: false }),
            }
        }
        Ok(Read { answered, more: true })
    }

    /// Replies go to who waits for them, and pushes to who hears, in the order in which they came.
    fn hand_out(&mut self) -> Result<usize, RedisError> {
        let mut answered = 0;
        loop {
            let (over, push) = self.match_replies()?;
            answered += self.answered();
            self.ended.drain(..).for_each(Ended::tell);
            if let Some(error) = over {
                return Err(error);
            }
            let Some(push) = push else { return Ok(answered) };
            if let Some((generation, hears)) = &self.hears {
                hears(*generation, push);
            }
        }
    }

    /// Callers that are going to be told.
    fn answered(&self) -> usize {
        self.ended.iter().map(Ended::callers).sum()
    }

    /// Matches replies with who waits for them, up to the next push.
    fn match_replies(&mut self) -> Result<(Option<RedisError>, Option<PushInfo>), RedisError> {
        let mut state = self.shared.lock_open()?;
        loop {
            let values = state.waiting.front().map_or(0, Waiter::values);
            let mut reply = match self.frames.next(values) {
                Ok(Some(reply)) => reply,
                Ok(None) => {
                    state.expecting |= self.answered() > CROWD;
                    return Ok((None, None));
                }
                Err(error) => return Ok((Some(error), None)),
            };
            state.progress.1 += 1;
            if let Reply::Other(Value::Push { kind, data }) = reply {
                let confirms = matches!(kind, PushKind::Subscribe | PushKind::Unsubscribe)
                    && state.waiting.front().is_some_and(Waiter::wants_pushes);
                if !confirms {
                    return Ok((None, Some(PushInfo { kind, data })));
                }
                reply = Reply::Other(Value::Push { kind, data });
            }
            let Some(waiter) = state.waiting.pop_front() else {
                match reply {
                    // What a server says before it hangs up.
                    Reply::Other(Value::ServerError(_)) => continue,
                    _ => return Ok((Some(garbled()), None)),
                }
            };
            match waiter.take(reply) {
                Ok(Taken::Ended(ended)) => {
                    state.under_way = state.under_way.saturating_sub(ended.gathered());
                    self.ended.push(ended);
                }
                Ok(Taken::Waits(waiter)) => state.waiting.push_front(waiter),
                Err(OutOfStep(waiter)) => {
                    state.waiting.push_front(waiter);
                    return Ok((Some(garbled()), None));
                }
            }
        }
    }
}
