//! One server: its connections, its life, its breaker, and errors that name it.

use std::{
    borrow::Cow,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use cache_core::ServerStatus;
use futures::future::join_all;

use crate::{
    Error, ErrorKind,
    breaker::{Breaker, Verdict},
    dial::Dial,
    error::Fault,
    item::{Item, Kind},
    life::{Knowledge, Known, LIFE_SECONDS},
    status,
    transport::{Command, Look, NO_RESULT, Reply, Transport, When, Wire},
};

pub(crate) struct Server {
    pub(crate) dial: Dial,
    /// Its number, by its name.
    pub(crate) number: u64,
    pub(crate) breaker: Breaker,
    /// How it failed last, for those who are told that it is left alone.
    pub(crate) last: Mutex<Option<Fault>>,
    pub(crate) transport: Wire,
    /// Wire key of the life item.
    pub(crate) life_key: String,
    pub(crate) life: Knowledge,
    pub(crate) response_timeout: Duration,
}

/// A command, and under which life of the server it may run.
pub(crate) struct Task {
    pub(crate) command: Command,
    pub(crate) under: Under,
}

/// Under which life of a server a command may run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Under {
    /// Under any, also one that nobody knows.
    Unknown,
    /// Under any that is known. Entries are stamped with it.
    Known,
    /// Under this one only; else it is [`Reply::Refused`] and not sent.
    Exactly(u64),
}

/// A reply, and the server's life under which it was given (0 under [`Under::Unknown`]).
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) reply: Reply,
    pub(crate) life: u64,
    /// It is to a request that was sent again: the first may have had its effect.
    pub(crate) again: bool,
}

/// Requests of one exchange, in bytes. A whole request is written before replies are read, so requests for values must
/// fit into the socket's buffers, or both sides would wait for each other.
const READ_CHUNK: usize = 32 << 10;
/// Such exchanges that one batch has under way: about half of the commands that may wait.
const AT_ONCE: usize = 64;
/// Replies to writes are short: these chunks only bound the copy that is made.
const WRITE_CHUNK: usize = 256 << 10;
/// A call that is dropped after this time counts against the server: callers whose budgets end before the response
/// timeout must open the breaker, too. Harmless for slow calls, since one answer in between resets the count.
const PATIENCE: Duration = Duration::from_millis(20);

const SICK: &str = "failed several times in a row and is left alone for a while; nothing was sent";
const GIVEN_UP: Fault = Fault::new(ErrorKind::Timeout, "no answer before its caller's time was over");
const NO_LIFE: Fault = Fault::new(ErrorKind::Protocol, "the life item does not keep what it is given");
const LIFE_TIMEOUT: Fault = Fault::new(ErrorKind::Timeout, "no answer in time");

impl Server {
    /// Runs commands in exchanges that fit; results in the order of the commands.
    pub(crate) async fn run(&self, tasks: Vec<Task>) -> Vec<Result<Answer, Error>> {
        let chunks = chunks(tasks);
        if chunks.iter().flatten().any(|task| task.command.is_write()) {
            // One after the other: of two writes of a key, the later one must win.
            let mut results = Vec::new();
            for chunk in chunks {
                results.append(&mut self.run_chunk(chunk).await);
            }
            results
        } else {
            // Not all at once: a batch may have more keys than may wait on one connection.
            let mut results = Vec::new();
            let mut chunks = chunks.into_iter().peekable();
            while chunks.peek().is_some() {
                let some = chunks.by_ref().take(AT_ONCE).map(|chunk| self.run_chunk(chunk));
                results.extend(join_all(some).await.into_iter().flatten());
            }
            results
        }
    }

    /// One exchange, if the breaker lets it.
    async fn run_chunk(&self, tasks: Vec<Task>) -> Vec<Result<Answer, Error>> {
        let count = tasks.len();
        let fail = |fault| {
            let error = Error::at(&self.dial.endpoint, fault);
            (0..count).map(|_| Err(error.clone())).collect()
        };
        let Some(mut outcome) = Outcome::admitted(self) else { return fail(self.sick()) };
        let results = match self.exchange(tasks).await {
            Ok(results) => results,
            Err(fault) => {
                outcome.ended = Some(Err(fault.duplicate()));
                return fail(fault);
            }
        };
        // Of what parts of it learned, the least counts.
        let learned = results.iter().map(|result| result.as_ref().map(|_| ()));
        outcome.ended = Some(learned.min_by_key(verdict).unwrap_or(Ok(())).map_err(Fault::duplicate));
        results
            .into_iter()
            .map(|result| result.map_err(|fault| Error::at(&self.dial.endpoint, fault)))
            .collect()
    }

    /// It is left alone. Why is what an operator wants to know.
    fn sick(&self) -> Fault {
        let last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let (what, source) = match last.as_ref().map(Fault::duplicate) {
            Some(Fault { what, source, .. }) => (format!("{SICK}; the last time: {what}").into(), source),
            None => (Cow::Borrowed(SICK), None),
        };
        Fault { kind: ErrorKind::Sick, what, source, ours: false }
    }

    async fn exchange(&self, tasks: Vec<Task>) -> Result<Vec<Result<Answer, Fault>>, Fault> {
        let needs_life = tasks.iter().any(|task| task.under != Under::Unknown);
        let unders: Vec<Under> = tasks.iter().map(|task| task.under).collect();
        let mut commands: Vec<Command> = tasks.into_iter().map(|task| task.command).collect();
        let mut last = false;
        loop {
            let known = if needs_life { Some(self.known().await?) } else { None };
            let life = known.map_or(0, |known| known.life);
            let link = known.map(|known| known.link);
            let may = |under: &Under| !matches!(under, Under::Exactly(of) if *of != life);
            commands.iter_mut().for_each(|command| command.stamp(life));
            let allowed: Vec<Command>;
            let sent = if unders.iter().all(may) {
                &commands
            } else {
                allowed =
                    commands.iter().zip(&unders).filter(|(_, u)| may(u)).map(|(c, _)| c.clone()).collect();
                &allowed
            };
            let (_, replies) = self.transport.run(sent, link).await;
            // A lost connection: reading twice is safe, and so is sending what never left. A look that leaves something
            // behind may find what it has left itself; who asks for a lease minds that.
            if !replies.is_empty() && replies.iter().all(|r| r.as_ref().is_err_and(is_lost)) {
                link.into_iter().for_each(|link| self.life.forget(link));
                if !last {
                    last = true;
                    continue;
                }
            }
            let mut replies = replies.into_iter();
            let answer = |under| match may(under) {
                true => {
                    replies.next().unwrap_or(Err(NO_RESULT)).map(|reply| Answer { reply, life, again: last })
                }
                false => Ok(Answer { reply: Reply::Refused, life, again: last }),
            };
            return Ok(unders.iter().map(answer).collect());
        }
    }

    /// One command, at less cost.
    #[allow(clippy::manual_async_fn, reason = "an `async fn` would keep each argument twice")]
    pub(crate) fn one(&self, command: &Command) -> impl Future<Output = Result<Answer, Error>> + Send {
        async move {
            let Some(mut outcome) = Outcome::admitted(self) else {
                return Err(Error::at(&self.dial.endpoint, self.sick()));
            };
            let result = self.ask(command, outcome.since).await;
            outcome.ended = Some(result.as_ref().map(|_| ()).map_err(Fault::duplicate));
            result.map_err(|fault| Error::at(&self.dial.endpoint, fault))
        }
    }

    #[allow(clippy::manual_async_fn, reason = "an `async fn` would keep each argument twice")]
    fn ask(&self, command: &Command, mut now: Instant) -> impl Future<Output = Result<Answer, Fault>> + Send {
        async move {
            let mut last = false;
            loop {
                let known = match self.life.get(now) {
                    Some(known) => known,
                    None => {
                        // Boxed, since it would make the future of every read larger than an allocator hands out quickly.
                        let known = Box::pin(self.check()).await?;
                        now = Instant::now();
                        known
                    }
                };
                let result = self.transport.one(command, Some(known.link), now).await.1;
                if result.as_ref().is_err_and(is_lost) {
                    self.life.forget(known.link);
                    if !last {
                        (last, now) = (true, Instant::now());
                        continue;
                    }
                }
                return result.map(|reply| Answer { reply, life: known.life, again: last });
            }
        }
    }

    /// The server's life. No round trip, where it was read on this connection not long ago.
    async fn known(&self) -> Result<Known, Fault> {
        match self.life.get(Instant::now()) {
            Some(known) => Ok(known),
            None => self.check().await,
        }
    }

    /// Reads the life item, and makes one where there is none.
    async fn check(&self) -> Result<Known, Fault> {
        let known = match self.read_life().await {
            Err(fault) if is_lost(&fault) => self.read_life().await?,
            result => result?,
        };
        self.life.learn(known);
        Ok(known)
    }

    async fn read_life(&self) -> Result<Known, Fault> {
        let at = Instant::now();
        let look = Look { touch: Some(LIFE_SECONDS), ..Look::default() };
        let look = Command::Get { key: self.life_key.clone(), look: Some(look) };
        let (link, reply) = self.transport.one(&look, None, at).await;
        let reply = reply?;
        if let Some(life) = life_of(&reply) {
            return Ok(Known { life, link, at });
        }
        // Somebody else may be making one, too: the first one counts.
        let when = match reply {
            Reply::Item(Some(seen)) => When::Cas(seen.cas),
            _ => When::Absent,
        };
        let item = Item::Life(fastrand::u64(..));
        let put = Command::Put { key: self.life_key.clone(), item, exptime: LIFE_SECONDS, when };
        let at = Instant::now();
        let (link, mut replies) = self.transport.run(&[put, look], Some(link)).await;
        let (read, made) = (replies.pop().unwrap_or(Err(NO_RESULT)), replies.pop().unwrap_or(Err(NO_RESULT)));
        match (made, read) {
            (_, Ok(reply)) if life_of(&reply).is_some() => {
                Ok(Known { life: life_of(&reply).unwrap_or_default(), link, at })
            }
            // Nothing of the caller's is in doubt.
            (Err(Fault { kind: ErrorKind::InDoubt, source, ours, .. }), _) => {
                Err(Fault { source, ours, ..LIFE_TIMEOUT })
            }
            (Err(fault), _) | (_, Err(fault)) => Err(fault),
            _ => Err(NO_LIFE),
        }
    }

    /// The server's life, read again.
    pub(crate) async fn life_now(&self) -> Result<u64, Error> {
        match self.check().await {
            Ok(known) => Ok(known.life),
            Err(fault) => Err(Error::at(&self.dial.endpoint, fault)),
        }
    }

    /// What it says of itself.
    pub(crate) async fn status(&self) -> Result<ServerStatus, Error> {
        // A connect takes longer than an exchange may.
        let limit = self.response_timeout + Duration::from_secs(1);
        status::ask(&self.dial, limit).await.map_err(|fault| Error::at(&self.dial.endpoint, fault))
    }

    /// Asks past the breaker, so that an operator's check says how things are, and closes it early.
    pub(crate) async fn ping(&self) -> Result<(), Error> {
        self.life_now().await?;
        self.breaker.learn(Verdict::Well, Instant::now());
        Ok(())
    }

    /// A ping that nobody waits for.
    pub(crate) async fn poll(&self) {
        // Failures are the callers' to count: this one has a rhythm of its own.
        let _ = self.ping().await;
    }

    pub(crate) fn error(&self, fault: Fault) -> Error {
        Error::at(&self.dial.endpoint, fault)
    }
}

fn is_lost(fault: &Fault) -> bool {
    fault.kind == ErrorKind::Connect
}

fn verdict(ended: &Result<(), &Fault>) -> Verdict {
    match ended {
        Err(fault) if fault.ours => Verdict::Unknown,
        Err(fault) if fault.is_sickness() => Verdict::Sick,
        Ok(()) | Err(_) => Verdict::Well,
    }
}

fn life_of(reply: &Reply) -> Option<u64> {
    match reply {
        Reply::Item(Some(seen)) => match seen.kind() {
            Kind::Life(life) => Some(life),
            _ => None,
        },
        _ => None,
    }
}

/// Reports to the breaker, also when the call is dropped.
struct Outcome<'a> {
    /// `None`: it was dropped.
    ended: Option<Result<(), Fault>>,
    server: &'a Server,
    since: Instant,
}

impl<'a> Outcome<'a> {
    fn admitted(server: &'a Server) -> Option<Self> {
        let since = Instant::now();
        server.breaker.admit(since).then_some(Self { ended: None, server, since })
    }
}

impl Drop for Outcome<'_> {
    fn drop(&mut self) {
        let Self { ended, server, since } = self;
        let verdict = ended.as_ref().map(|ended| verdict(&ended.as_ref().copied()));
        if verdict == Some(Verdict::Well) && server.breaker.is_quiet() {
            return;
        }
        let now = Instant::now();
        let given_up = now.duration_since(*since) >= server.response_timeout.min(PATIENCE);
        let verdict = verdict.unwrap_or(if given_up { Verdict::Sick } else { Verdict::Unknown });
        if verdict == Verdict::Sick {
            let fault = ended.take().and_then(Result::err).unwrap_or(GIVEN_UP);
            *server.last.lock().unwrap_or_else(PoisonError::into_inner) = Some(fault);
        }
        if server.breaker.learn(verdict, now) {
            // The next attempt starts afresh: a name may have come to mean another machine.
            server.transport.reset();
        }
    }
}

/// Splits a batch into exchanges that fit.
fn chunks(tasks: Vec<Task>) -> Vec<Vec<Task>> {
    let (mut chunks, mut chunk, mut weight) = (Vec::new(), Vec::new(), 0);
    for task in tasks {
        let (limit, more) =
            (if task.command.is_write() { WRITE_CHUNK } else { READ_CHUNK }, task.command.weight());
        if !chunk.is_empty() && weight + more > limit {
            chunks.push(std::mem::take(&mut chunk));
            weight = 0;
        }
        weight += more;
        chunk.push(task);
    }
    chunks.push(chunk);
    chunks
}
