//! The transport on `memcache::exp`: a pool of connections, one exchange at a time on each.
//!
//! What it does that matters here: a connection is taken out of the pool for an exchange and put back only when every
//! reply has been read, so a dropped future, a timeout or a refusal closes it. A batch carries opaque ids, which the
//! replies must echo in order. A pooled connection that turns out dead before a byte was written is replaced once.
//!
//! What it does not do: it closes the connection at a `SERVER_ERROR`, which leaves the later writes of that batch in
//! doubt; it dials inside the caller's future, so a budget shorter than a connect never gets one; and it does not say
//! which connection a command ran on, so a restarted server can pass for the old one, and there can be no leases.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use bytes::{Bytes, BytesMut};
use memcache::exp::{
    AsyncMetaClient, Delete, Error as ExpError, Get, GetResult, LeaseState, Meta, MutationResult,
    MutationStatus, Op, OpResult, Set, ValueState,
};

use crate::{
    ErrorKind,
    endpoint::Endpoint,
    error::Fault,
    transport::{Command, Limits, Link, NO_RESULT, NO_RUNTIME, Reply, Seen, Transport, When},
};

pub(crate) struct Pool {
    endpoint: Endpoint,
    limits: Limits,
    connections: usize,
    /// Made at the first call: it looks the host up. Given up by `reset`, so that a host that has moved is found.
    client: Mutex<Option<AsyncMetaClient>>,
}

impl Pool {
    pub(crate) fn new(endpoint: Endpoint, limits: Limits, connections: usize) -> Self {
        Self { endpoint, limits, connections, client: Mutex::new(None) }
    }

    fn slot(&self) -> MutexGuard<'_, Option<AsyncMetaClient>> {
        self.client.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn client(&self) -> Result<AsyncMetaClient, Fault> {
        if let Some(client) = &*self.slot() {
            return Ok(client.clone());
        }
        let made = AsyncMetaClient::builder()
            .max_idle(self.connections)
            .max_connections(Some(self.connections))
            .connect_timeout(Some(self.limits.connect_timeout))
            .io_timeout(Some(self.limits.response_timeout))
            .connect_async((self.endpoint.host.as_str(), self.endpoint.port))
            .await
            .map_err(|e| fault(e, false))?;
        Ok(self.slot().get_or_insert(made).clone())
    }

    /// Waiting for a free connection, looking up, connecting and the exchange, all together.
    async fn in_time<T>(
        &self,
        write: bool,
        work: impl Future<Output = Result<T, Fault>>,
    ) -> Result<T, Fault> {
        if tokio::runtime::Handle::try_current().is_err() {
            return Err(NO_RUNTIME);
        }
        match tokio::time::timeout(self.limits.connect_timeout + self.limits.response_timeout, work).await {
            Ok(done) => done,
            Err(_elapsed) if write => Err(NO_ANSWER.in_doubt()),
            Err(_elapsed) => Err(NO_ANSWER),
        }
    }

    async fn exchange(&self, commands: &[Command]) -> Result<Vec<Result<Reply, Fault>>, Fault> {
        let client = self.client().await?;
        let results = match commands {
            // Alone, a command needs no opaque id: the connection carries nothing else.
            [command] => vec![match operation(command) {
                Op::Get(get) => client.run(get).await.map(OpResult::Get),
                Op::Set(set) => client.run(set).await.map(OpResult::Mutation),
                Op::Delete(delete) => client.run(delete).await.map(OpResult::Mutation),
                _ => return Err(UNEXPECTED),
            }],
            _ => client.run_batch(commands.iter().map(operation)).await.map_err(|e| fault(e, false))?,
        };
        if results.len() != commands.len() {
            return Err(UNEXPECTED);
        }
        let mut over = false;
        Ok(commands
            .iter()
            .zip(results)
            .map(|(command, result)| match result {
                Ok(OpResult::Get(got)) => Ok(Reply::Item(item(got))),
                Ok(OpResult::Mutation(done)) => mutation(command, &done),
                Ok(_) => Err(UNEXPECTED),
                // The first command without a reply is the one that was refused, if one was. The others share its
                // error, but their replies were just never read.
                Err(error) => {
                    Err(match (std::mem::replace(&mut over, true), fault(error, command.is_write())) {
                        (true, Fault { kind: ErrorKind::TooLarge | ErrorKind::Refused, .. })
                            if command.is_write() =>
                        {
                            NO_ANSWER.in_doubt()
                        }
                        (true, Fault { kind: ErrorKind::TooLarge | ErrorKind::Refused, .. }) => NO_ANSWER,
                        (_, fault) => fault,
                    })
                }
            })
            .collect())
    }
}

impl Transport for Pool {
    async fn run(&self, commands: &[Command], _on: Option<Link>) -> (Link, Vec<Result<Reply, Fault>>) {
        let write = commands.iter().any(Command::is_write);
        let results = match self.in_time(write, self.exchange(commands)).await {
            Ok(results) => results,
            Err(fault) => commands.iter().map(|_| Err(fault.duplicate())).collect(),
        };
        (0, results)
    }

    async fn one(&self, command: &Command, on: Option<Link>, _now: Instant) -> (Link, Result<Reply, Fault>) {
        let (link, mut results) = self.run(std::slice::from_ref(command), on).await;
        (link, results.pop().unwrap_or(Err(NO_RESULT)))
    }

    fn is_linked(&self) -> bool {
        false
    }

    fn reset(&self) {
        *self.slot() = None;
    }

    fn close(&self) {
        self.reset();
    }
}

const NO_ANSWER: Fault = Fault::new(ErrorKind::Timeout, "no answer in time");
const UNEXPECTED: Fault = Fault::new(ErrorKind::Protocol, "an answer that the meta protocol does not have");

fn operation(command: &Command) -> Op {
    match command {
        Command::Get { key, look } => {
            let mut get = Get::new(key);
            if let Some(look) = look {
                get = get.meta(Meta::NONE.cas());
                get.lease_ttl = look.vivify;
                if let Some(seconds) = look.touch {
                    get = get.touch_raw(seconds);
                }
            }
            get.into()
        }
        Command::Put { key, item, exptime, when } => {
            let mut bytes = BytesMut::with_capacity(item.len());
            item.write(&mut bytes);
            let set = Set::new(key, bytes).ttl_raw(*exptime);
            match when {
                When::Always if command.wants_version() => set.return_cas(),
                When::Always => set,
                When::Absent => set.add().return_cas(),
                When::Cas(cas) => set.compare_cas(*cas).return_cas(),
            }
            .into()
        }
        Command::Remove { key, cas } => {
            let mut delete = Delete::new(key);
            delete.compare_cas = *cas;
            delete.into()
        }
    }
}

fn item(got: GetResult) -> Option<Seen> {
    let cas = got.item.cas.unwrap_or(0);
    let won = got.lease_state == LeaseState::Granted;
    let stale = got.value_state == ValueState::Stale;
    let value = match got.value {
        Some(value) => Bytes::from(value),
        // A placeholder.
        None if got.lease_state != LeaseState::None => Bytes::new(),
        None => return None,
    };
    Some(Seen { value: Some(value), cas, won, stale, left: 0 })
}

fn mutation(command: &Command, done: &MutationResult) -> Result<Reply, Fault> {
    let conditional = match command {
        Command::Put { when, .. } => *when != When::Always,
        Command::Remove { cas, .. } => cas.is_some(),
        Command::Get { .. } => false,
    };
    match (command, done.status) {
        (_, MutationStatus::Applied) => Ok(Reply::Done(done.cas.unwrap_or(0))),
        (Command::Remove { cas: None, .. }, MutationStatus::NotFound) => Ok(Reply::Done(0)),
        _ if conditional => Ok(Reply::Refused),
        _ => Err(UNEXPECTED),
    }
}

/// Errors of the client hold keys and the peer's text; what comes out of here does not.
fn fault(error: ExpError, write: bool) -> Fault {
    match error {
        ExpError::Io(e) if e.kind() == std::io::ErrorKind::TimedOut => {
            Fault::caused(ErrorKind::Timeout, "no connection in time", e)
        }
        ExpError::Io(e) => Fault::caused(ErrorKind::Connect, "no connection, or it was lost", e),
        ExpError::Timeout { .. } => NO_ANSWER,
        ExpError::Server(text) if text.contains("too large") => {
            Fault::new(ErrorKind::TooLarge, "the item is over the server's limit (option -I)")
        }
        ExpError::Server(text) if text.contains("out of memory") => {
            Fault::new(ErrorKind::Refused, "the server is out of memory (option -m, or evictions are off)")
        }
        ExpError::Server(_) => Fault::new(ErrorKind::Refused, "the server reported an error"),
        ExpError::Rejected(_) => Fault::new(ErrorKind::Refused, "the server did not accept the command"),
        // A refusal is an answer: nothing is in doubt.
        ExpError::Ambiguous { source, .. } => match (fault(*source, write), write) {
            (refused @ Fault { kind: ErrorKind::TooLarge | ErrorKind::Refused, .. }, _) => refused,
            (cause, true) => cause.in_doubt(),
            (cause, false) => cause,
        },
        ExpError::Protocol(_) if write => UNEXPECTED.in_doubt(),
        _ => UNEXPECTED,
    }
}
