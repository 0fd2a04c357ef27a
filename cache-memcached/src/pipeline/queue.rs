//! What waits for replies on one connection, in the order in which it was asked.

use std::{collections::VecDeque, time::Instant};

use tokio::sync::oneshot;

use super::parse::{Answer, Body};
use crate::{
    ErrorKind,
    error::Fault,
    login::WANTED,
    transport::{Command, Reply, Seen, When},
};

pub(super) type Results = Vec<Result<Reply, Fault>>;

/// What kind of reply a command gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Get,
    /// A put; whether it has a condition.
    Put(bool),
    /// A removal; whether it has a condition.
    Remove(bool),
}

impl From<&Command> for Kind {
    fn from(command: &Command) -> Self {
        match command {
            Command::Get { .. } => Self::Get,
            Command::Put { when, .. } => Self::Put(*when != When::Always),
            Command::Remove { cas, .. } => Self::Remove(cas.is_some()),
        }
    }
}

/// Who waits for which replies.
#[derive(Debug)]
pub(super) enum Waiter {
    One(Kind, oneshot::Sender<Result<Reply, Fault>>),
    Many { kinds: Vec<Kind>, results: Results, caller: oneshot::Sender<Results> },
}

impl Waiter {
    /// A batch, and where its results come out.
    pub(super) fn many(kinds: Vec<Kind>) -> (Self, oneshot::Receiver<Results>) {
        let (caller, receiver) = oneshot::channel();
        let results = Vec::with_capacity(kinds.len());
        (Self::Many { kinds, results, caller }, receiver)
    }

    /// A single command, and where its result comes out.
    pub(super) fn one(kind: Kind) -> (Self, oneshot::Receiver<Result<Reply, Fault>>) {
        let (caller, receiver) = oneshot::channel();
        (Self::One(kind, caller), receiver)
    }

    fn len(&self) -> usize {
        match self {
            Self::One(..) => 1,
            Self::Many { kinds, .. } => kinds.len(),
        }
    }

    fn is_attended(&self) -> bool {
        match self {
            Self::One(_, caller) => !caller.is_closed(),
            Self::Many { caller, .. } => !caller.is_closed(),
        }
    }

    fn answered(&self) -> usize {
        match self {
            Self::One(..) => 0,
            Self::Many { results, .. } => results.len(),
        }
    }
}

/// An exchange with all its replies.
#[derive(Debug)]
pub(super) enum Ended {
    One(Result<Reply, Fault>, oneshot::Sender<Result<Reply, Fault>>),
    Many(Results, oneshot::Sender<Results>),
}

impl Ended {
    /// Wakes the caller. One that has walked away is not missed.
    pub(super) fn tell(self) {
        match self {
            Self::One(result, caller) => drop(caller.send(result)),
            Self::Many(results, caller) => drop(caller.send(results)),
        }
    }
}

/// One caller's commands.
#[derive(Debug)]
pub(super) struct Exchange {
    /// Opaque id of the first command; the others follow.
    pub(super) first: u64,
    /// Where its bytes start in the stream of all requests.
    pub(super) start: u64,
    pub(super) deadline: Instant,
    pub(super) waiter: Waiter,
}

/// The connection cannot go on: replies no longer belong to requests.
#[derive(Debug)]
pub(super) struct OutOfStep;

pub(super) const NO_ANSWER: Fault = Fault::new(ErrorKind::Timeout, "no answer in time");
pub(super) const LOST: Fault = Fault::new(ErrorKind::Connect, "the connection was lost");
pub(super) const ENDED: Fault =
    Fault::ours(ErrorKind::Connect, "the runtime that the connection lived on has ended");
pub(super) const PANICKED: Fault = Fault::ours(
    ErrorKind::NoRuntime,
    "the connection's task has panicked; its runtime needs timers and I/O (`enable_all`)",
);
pub(super) const GARBLED: Fault = Fault::new(
    ErrorKind::Protocol,
    "an answer that the meta protocol does not have, or out of turn; is that memcached 1.6.13 or later?",
);
const TOO_LARGE: Fault = Fault::new(ErrorKind::TooLarge, "the item is over the server's limit (option -I)");
const NO_MEMORY: Fault =
    Fault::new(ErrorKind::Refused, "the server is out of memory (option -m, or evictions are off)");
const FAILED: Fault = Fault::new(ErrorKind::Refused, "the server reported an error");
const REJECTED: Fault = Fault::new(
    ErrorKind::Refused,
    "the server did not accept the command; is that memcached 1.6.13 or later?",
);
const FULL: Fault = Fault::new(ErrorKind::Connect, "the server takes no more connections (option -c)");

/// First in, first out: replies come in the order of the requests.
#[derive(Debug, Default)]
pub(super) struct Queue {
    waiting: VecDeque<Exchange>,
    commands: usize,
}

impl Queue {
    /// Commands without a reply.
    pub(super) fn len(&self) -> usize {
        self.commands
    }

    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Callers who have not left. Looks at each.
    pub(super) fn attended(&self) -> usize {
        self.waiting.iter().filter(|exchange| exchange.waiter.is_attended()).count()
    }

    pub(super) fn push(&mut self, exchange: Exchange) {
        self.commands += exchange.waiter.len();
        self.waiting.push_back(exchange);
    }

    /// When the oldest exchange must have ended.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.waiting.front().map(|exchange| exchange.deadline)
    }

    /// Gives a reply to the command that it answers; the exchange, when that was its last.
    pub(super) fn answer(&mut self, answer: Answer) -> Result<Option<Ended>, OutOfStep> {
        let Some(head) = self.waiting.front_mut() else { return Err(OutOfStep) };
        let position = head.waiter.answered();
        let expected = head.first + position as u64;
        match (answer.id, &answer.body) {
            (Some(id), _) if id == expected => {}
            // Some releases leave the id out of a miss; errors never have one.
            (
                None,
                Body::Miss
                | Body::TooLarge
                | Body::NoMemory
                | Body::Failed
                | Body::Rejected
                | Body::LoginWanted
                | Body::Full,
            ) => {}
            _ => return Err(OutOfStep),
        }
        let kind = match &head.waiter {
            Waiter::One(kind, _) => *kind,
            Waiter::Many { kinds, .. } => kinds[position],
        };
        let (cas, won, stale, left) = (answer.cas, answer.won, answer.stale, answer.left);
        let result = match (kind, answer.body) {
            (Kind::Get, Body::Miss) => Ok(Reply::Item(None)),
            (Kind::Get, Body::Value(value)) => Ok(Reply::Item(Some(Seen { value, cas, won, stale, left }))),
            (Kind::Put(_) | Kind::Remove(_), Body::Done) | (Kind::Remove(false), Body::NotFound) => {
                Ok(Reply::Done(cas))
            }
            (Kind::Put(true) | Kind::Remove(true), Body::NotStored | Body::NotFound) => Ok(Reply::Refused),
            (Kind::Put(_), Body::TooLarge) => Err(TOO_LARGE),
            (_, Body::NoMemory) => Err(NO_MEMORY),
            (_, Body::TooLarge | Body::Failed) => Err(FAILED),
            (_, Body::Rejected) => Err(REJECTED),
            (_, Body::LoginWanted) => Err(WANTED),
            (_, Body::Full) => Err(FULL),
            _ => return Err(OutOfStep),
        };
        self.commands -= 1;
        if let Waiter::Many { kinds, results, .. } = &mut head.waiter
            && results.len() + 1 < kinds.len()
        {
            results.push(result);
            return Ok(None);
        }
        Ok(self.waiting.pop_front().map(|exchange| match exchange.waiter {
            Waiter::One(_, caller) => Ended::One(result, caller),
            Waiter::Many { mut results, caller, .. } => {
                results.push(result);
                Ended::Many(results, caller)
            }
        }))
    }

    /// Ends everything; those who are to be told. What starts at `sent` or later never left, so nothing was changed; of the
    /// rest, reads failed by `cause` and writes are in doubt.
    pub(super) fn fail(&mut self, cause: &Fault, sent: u64) -> Vec<Ended> {
        self.commands = 0;
        let fail = |Exchange { start, waiter, .. }| {
            let fate = |kind: Kind| match kind {
                Kind::Put(_) | Kind::Remove(_) if start < sent => Err(cause.in_doubt()),
                _ => Err(cause.duplicate()),
            };
            match waiter {
                Waiter::One(kind, caller) => Ended::One(fate(kind), caller),
                Waiter::Many { kinds, mut results, caller } => {
                    let answered = results.len();
                    results.extend(kinds.into_iter().skip(answered).map(fate));
                    Ended::Many(results, caller)
                }
            }
        };
        self.waiting.drain(..).map(fail).collect()
    }
}
