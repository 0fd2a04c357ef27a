//! The provider: routes commands to servers, and makes their failures each server's own.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use async_trait::async_trait;
use bytes::Bytes;
use cache_core::{BoxError, CacheProvider, Capabilities, Description, Put, RawKey};
use futures::future::join_all;

use crate::{
    Builder, Error, ErrorKind,
    breaker::{Breaker, Verdict},
    endpoint::Endpoint,
    error::Fault,
    route::Routes,
    transport::{Command, Reply, Transport},
    wire::{KEY_MAX, exptime, wire_key},
};

/// Memcached, one server or many. Cloning is cheap; clones share connections.
///
/// See the [crate docs](crate).
#[derive(Clone)]
pub struct MemcachedProvider(pub(crate) Arc<Inner>);

pub(crate) struct Inner {
    pub(crate) servers: Vec<Server>,
    pub(crate) routes: Routes,
    pub(crate) prefix: String,
    pub(crate) max_value: usize,
    pub(crate) response_timeout: Duration,
    pub(crate) closed: AtomicBool,
}

pub(crate) struct Server {
    pub(crate) endpoint: Endpoint,
    pub(crate) breaker: Breaker,
    pub(crate) transport: Box<dyn Transport>,
}

/// Requests of one exchange, in bytes. A whole request is written before replies are read, so requests for values must
/// fit into the socket's buffers, or both sides would wait for each other.
const READ_CHUNK: usize = 32 << 10;
/// Replies to writes are short: these chunks only bound the copy that is made.
const WRITE_CHUNK: usize = 256 << 10;
/// A call that is dropped after this time counts against the server: callers whose budgets end before the response
/// timeout must open the breaker, too. Harmless for slow calls, since one answer in between resets the count.
const PATIENCE: Duration = Duration::from_millis(20);

impl MemcachedProvider {
    /// Starts with the URL of a server, `memcached://host[:port]`; [`Builder::server`] adds more.
    pub fn builder(url: impl Into<String>) -> Builder {
        Builder::new(url.into())
    }

    /// Runs commands where their keys live, all servers at once; results in the order of the commands.
    async fn run(&self, mut commands: Vec<Command>) -> Vec<Result<Reply, Error>> {
        if commands.is_empty() {
            return Vec::new();
        }
        if let Err(error) = self.0.usable() {
            return commands.iter().map(|_| Err(error.clone())).collect();
        }
        if commands.len() <= 1 {
            let home = commands.first().map_or(0, |command| self.0.routes.home(command.key().as_bytes()));
            return self.0.servers[home].run(commands, self.0.response_timeout).await;
        }
        let mut groups: Vec<(Vec<usize>, Vec<Command>)> = vec![Default::default(); self.0.servers.len()];
        let count = commands.len();
        for (index, command) in commands.drain(..).enumerate() {
            let group = &mut groups[self.0.routes.home(command.key().as_bytes())];
            group.0.push(index);
            group.1.push(command);
        }
        let runs = groups.into_iter().zip(&self.0.servers).filter(|(group, _)| !group.0.is_empty()).map(
            async |((indices, commands), server)| {
                (indices, server.run_chunks(commands, self.0.response_timeout).await)
            },
        );
        let mut results: Vec<Option<Result<Reply, Error>>> = Vec::new();
        results.resize_with(count, || None);
        for (indices, answers) in join_all(runs).await {
            for (index, answer) in indices.into_iter().zip(answers) {
                results[index] = Some(answer);
            }
        }
        let missing =
            || Err(Error::new(ErrorKind::Protocol, "memcached: a command of a batch has no result"));
        results.into_iter().map(|result| result.unwrap_or_else(missing)).collect()
    }

    fn key(&self, key: &RawKey<'_>) -> String {
        wire_key(&self.0.prefix, key)
    }
}

impl Inner {
    fn usable(&self) -> Result<(), Error> {
        if self.closed.load(Ordering::Acquire) {
            return Err(Error::new(ErrorKind::Closed, "memcached: the provider has been closed"));
        }
        Ok(())
    }
}

impl Server {
    async fn run_chunks(&self, commands: Vec<Command>, slow: Duration) -> Vec<Result<Reply, Error>> {
        let chunks = chunks(commands);
        if chunks.iter().flatten().any(Command::is_write) {
            // One after the other: of two writes of a key, the later one must win.
            let mut results = Vec::new();
            for chunk in chunks {
                results.append(&mut self.run(chunk, slow).await);
            }
            results
        } else {
            join_all(chunks.into_iter().map(|chunk| self.run(chunk, slow)))
                .await
                .into_iter()
                .flatten()
                .collect()
        }
    }

    /// One exchange, if the breaker lets it.
    async fn run(&self, commands: Vec<Command>, slow: Duration) -> Vec<Result<Reply, Error>> {
        let count = commands.len();
        let Some(mut outcome) = Outcome::admitted(self, slow) else {
            let sick = Error::at(&self.endpoint, SICK);
            return (0..count).map(|_| Err(sick.clone())).collect();
        };
        let results = self.transport.run(commands).await;
        let sick = results.iter().any(|r| r.as_ref().is_err_and(Fault::is_sickness));
        // Where a part was answered, the server lives.
        let well = results.iter().any(|r| !r.as_ref().is_err_and(Fault::is_sickness));
        outcome.0 = Some(if sick && !well { Verdict::Sick } else { Verdict::Well });
        results.into_iter().map(|result| result.map_err(|fault| Error::at(&self.endpoint, fault))).collect()
    }

    async fn one(&self, command: Command, slow: Duration) -> Result<Reply, Error> {
        let Some(mut outcome) = Outcome::admitted(self, slow) else {
            return Err(Error::at(&self.endpoint, SICK));
        };
        let result = self.transport.one(command).await;
        let sick = result.as_ref().is_err_and(Fault::is_sickness);
        outcome.0 = Some(if sick { Verdict::Sick } else { Verdict::Well });
        result.map_err(|fault| Error::at(&self.endpoint, fault))
    }

    /// Asks past the breaker, so that an operator's check says how things are, and closes it early.
    async fn ping(&self) -> Result<(), Error> {
        let result = self.transport.ping().await;
        if result.is_ok() {
            self.breaker.learn(Verdict::Well, Instant::now());
        }
        result.map_err(|fault| Error::at(&self.endpoint, fault))
    }
}

const SICK: Fault = Fault::new(
    ErrorKind::Sick,
    "failed several times in a row and is left alone for a while; nothing was sent",
);

/// Reports to the breaker, also when the call is dropped.
struct Outcome<'a>(Option<Verdict>, &'a Server, Instant, Duration);

impl<'a> Outcome<'a> {
    fn admitted(server: &'a Server, slow: Duration) -> Option<Self> {
        let now = Instant::now();
        server.breaker.admit(now).then_some(Self(None, server, now, slow.min(PATIENCE)))
    }
}

impl Drop for Outcome<'_> {
    fn drop(&mut self) {
        let Self(verdict, server, since, patience) = self;
        if *verdict == Some(Verdict::Well) && server.breaker.is_quiet() {
            return;
        }
        let now = Instant::now();
        let given_up = now.duration_since(*since) >= *patience;
        let verdict = verdict.unwrap_or(if given_up { Verdict::Sick } else { Verdict::Unknown });
        if server.breaker.learn(verdict, now) {
            // The next attempt starts afresh: a name may have come to mean another machine.
            server.transport.reset();
        }
    }
}

/// Splits a batch into exchanges that fit.
fn chunks(commands: Vec<Command>) -> Vec<Vec<Command>> {
    let (mut chunks, mut chunk, mut weight) = (Vec::new(), Vec::new(), 0);
    for command in commands {
        let limit = if command.is_write() { WRITE_CHUNK } else { READ_CHUNK };
        if !chunk.is_empty() && weight + command.weight() > limit {
            chunks.push(std::mem::take(&mut chunk));
            weight = 0;
        }
        weight += command.weight();
        chunk.push(command);
    }
    chunks.push(chunk);
    chunks
}

#[async_trait]
impl CacheProvider for MemcachedProvider {
    fn capabilities(&self) -> Capabilities {
        Capabilities::remote()
            .ttl_step(Duration::from_secs(1))
            .key_max(KEY_MAX - self.0.prefix.len())
            .value_max(self.0.max_value)
    }

    fn describe(&self) -> Description {
        match &*self.0.servers {
            [server] => {
                Description::remote("memcached", server.endpoint.host.clone(), Some(server.endpoint.port))
            }
            _ => Description::local("memcached"),
        }
    }

    async fn get_many(&self, keys: &[RawKey<'_>]) -> Vec<Result<Option<Bytes>, BoxError>> {
        let commands = keys.iter().map(|key| Command::Get { key: self.key(key) }).collect();
        let answers = self.run(commands).await.into_iter();
        answers
            .map(|answer| match answer {
                Ok(Reply::Item(item)) => Ok(item),
                Ok(Reply::Done) => Ok(None),
                Err(error) => Err(error.into()),
            })
            .collect()
    }

    async fn get(&self, key: RawKey<'_>) -> Result<Option<Bytes>, BoxError> {
        self.0.usable()?;
        let key = self.key(&key);
        let server = &self.0.servers[self.0.routes.home(key.as_bytes())];
        match server.one(Command::Get { key }, self.0.response_timeout).await? {
            Reply::Item(item) => Ok(item),
            Reply::Done => Ok(None),
        }
    }

    async fn put_many(&self, items: &[Put<'_>]) -> Vec<Result<(), BoxError>> {
        let now = SystemTime::now();
        let commands = items.iter().map(|item| {
            let key = self.key(&item.key);
            if item.bytes.len() > self.0.max_value {
                // Not stored; but the value that it was to replace must go.
                return Command::Remove { key };
            }
            Command::Put { key, bytes: item.bytes.clone(), exptime: exptime(item.ttl, now) }
        });
        let mut answers = self.run(commands.collect()).await;

        // The server has dropped the old value when it refuses a new one (1.6 does); this makes sure, with any server.
        let refused: Vec<usize> = (0..answers.len())
            .filter(|&i| {
                answers[i]
                    .as_ref()
                    .is_err_and(|e| matches!(e.kind(), ErrorKind::TooLarge | ErrorKind::Refused))
            })
            .collect();
        if !refused.is_empty() {
            let removals = refused.iter().map(|&i| Command::Remove { key: self.key(&items[i].key) });
            for (&i, removal) in refused.iter().zip(self.run(removals.collect()).await) {
                if let Err(error) = removal {
                    answers[i] = Err(error);
                }
            }
        }
        let too_large = |bytes: usize| {
            let most = self.0.max_value;
            let message =
                format!("memcached: the item has {bytes} bytes, over max_value = {most}; not stored");
            Error::new(ErrorKind::TooLarge, message)
        };
        items
            .iter()
            .zip(answers)
            .map(|(item, answer)| match answer {
                Ok(_) if item.bytes.len() > self.0.max_value => Err(too_large(item.bytes.len()).into()),
                Ok(_) => Ok(()),
                Err(error) => Err(error.into()),
            })
            .collect()
    }

    async fn remove_many(&self, keys: &[RawKey<'_>]) -> Vec<Result<(), BoxError>> {
        let commands = keys.iter().map(|key| Command::Remove { key: self.key(key) }).collect();
        self.run(commands).await.into_iter().map(|answer| answer.map(drop).map_err(Into::into)).collect()
    }

    async fn ping(&self) -> Result<(), BoxError> {
        self.0.usable()?;
        for answer in join_all(self.0.servers.iter().map(Server::ping)).await {
            answer?;
        }
        Ok(())
    }

    async fn close(&self) {
        self.0.closed.store(true, Ordering::Release);
        for server in &self.0.servers {
            server.transport.close();
        }
    }
}

/// Shows no prefix: it may name a customer.
impl fmt::Debug for MemcachedProvider {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let servers: Vec<String> = self.0.servers.iter().map(|s| s.endpoint.to_string()).collect();
        f.debug_struct("MemcachedProvider").field("servers", &servers).finish_non_exhaustive()
    }
}
