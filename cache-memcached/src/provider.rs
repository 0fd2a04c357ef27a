//! The provider: routes commands to servers, and makes their failures each server's own.

use std::{
    fmt,
    sync::{
        Arc, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, SystemTime},
};

use async_trait::async_trait;
use bytes::Bytes;
use cache_core::{
    BoxError, CacheProvider, Capabilities, Description, Leases, LevelOp, Marks, PoolStatus, Put, RawKey,
    ServerStatus, Unreadable,
};
use futures::future::join_all;

use crate::{
    Builder, Error, ErrorKind,
    item::{Item, TOMBSTONE_SECONDS},
    life::{self, Polling},
    pipeline::Made,
    plain::Plain,
    route::Placement,
    server::{Answer, Server, Task, Under},
    transport::{Command, NO_RESULT, Reply, Seen, Transport, When},
    wire::{KEY_MAX, exptime, wire_key},
};

/// Memcached, one server or many. Cloning is cheap; clones share connections.
///
/// See the [crate docs](crate).
#[derive(Clone)]
pub struct MemcachedProvider(pub(crate) Arc<Inner>);

pub(crate) struct Inner {
    /// Those of the list, then others of the retiring one.
    pub(crate) servers: Vec<Server>,
    pub(crate) made: Made,
    /// How many of them are of the list.
    pub(crate) current: usize,
    pub(crate) placement: Placement,
    /// A list that is in use as well.
    pub(crate) retiring: Option<Placement>,
    pub(crate) prefix: String,
    pub(crate) value_max: usize,
    pub(crate) closed: AtomicBool,
    pub(crate) polling: Polling,
    /// Whether every server can keep leases, and marks.
    pub(crate) leases: bool,
}

/// A command for a server.
pub(crate) struct Routed {
    pub(crate) home: usize,
    pub(crate) command: Command,
    pub(crate) under: Under,
}

/// The value in a reply to a get; `of` takes it out of the item.
pub(crate) fn value(reply: Reply, of: impl FnOnce(Seen) -> Option<Bytes>) -> Result<Option<Bytes>, BoxError> {
    match reply {
        Reply::Item(Some(seen)) if seen.value.is_none() => Err(Unreadable::TooLarge.into()),
        Reply::Item(Some(seen)) => Ok(of(seen)),
        Reply::Item(None) | Reply::Done(_) | Reply::Refused => Ok(None),
    }
}

fn envelope(answer: Answer) -> Result<Option<Bytes>, BoxError> {
    value(answer.reply, |seen| seen.envelope(answer.life))
}

impl MemcachedProvider {
    /// Starts with the URL of a server, `memcached://host[:port]`; [`Builder::server`] adds more.
    pub fn builder(url: impl Into<String>) -> Builder {
        Builder::new(url.into())
    }

    /// Runs commands on their servers, all at once; results in the order of the commands.
    pub(crate) async fn run(&self, commands: Vec<Routed>) -> Vec<Result<Answer, Error>> {
        let Some(first) = commands.first().map(|command| command.home) else { return Vec::new() };
        if let Err(error) = self.usable() {
            return commands.iter().map(|_| Err(error.clone())).collect();
        }
        let count = commands.len();
        let split = |Routed { home, command, under }| (home, Task { command, under });
        if commands.iter().all(|command| command.home == first) {
            let tasks = commands.into_iter().map(|command| split(command).1).collect();
            return self.0.servers[first].run(tasks).await;
        }
        let mut groups: Vec<(Vec<usize>, Vec<Task>)> = Vec::new();
        groups.resize_with(self.0.servers.len(), Default::default);
        for (index, (home, task)) in commands.into_iter().map(split).enumerate() {
            groups[home].0.push(index);
            groups[home].1.push(task);
        }
        let runs = groups
            .into_iter()
            .zip(&self.0.servers)
            .filter(|(group, _)| !group.0.is_empty())
            .map(async |((indices, tasks), server)| (indices, server.run(tasks).await));
        let mut results: Vec<Option<Result<Answer, Error>>> = Vec::new();
        results.resize_with(count, || None);
        for (indices, answers) in join_all(runs).await {
            for (index, answer) in indices.into_iter().zip(answers) {
                results[index] = Some(answer);
            }
        }
        let missing = || Err(self.0.servers[first].error(NO_RESULT));
        results.into_iter().map(|result| result.unwrap_or_else(missing)).collect()
    }

    /// Runs one command for each key, on the key's server.
    pub(crate) async fn run_each(
        &self,
        commands: impl Iterator<Item = Command>,
        under: Under,
    ) -> Vec<Result<Answer, Error>> {
        let routed = commands.map(|command| Routed { home: self.0.home(command.key()), command, under });
        self.run(routed.collect()).await
    }

    /// Runs one command on a server.
    pub(crate) async fn run_one(&self, home: usize, command: Command, under: Under) -> Result<Answer, Error> {
        let mut answers = self.run(vec![Routed { home, command, under }]).await;
        answers.pop().unwrap_or_else(|| Err(self.0.servers[home].error(NO_RESULT)))
    }

    pub(crate) fn key(&self, key: &RawKey<'_>) -> String {
        wire_key(&self.0.prefix, key, self.0.placement.list)
    }

    fn usable(&self) -> Result<(), Error> {
        if self.0.is_closed() {
            return Err(Error::new(ErrorKind::Closed, "memcached: the provider has been closed"));
        }
        life::used(&self.0);
        Ok(())
    }

    pub(crate) fn too_large(&self, bytes: usize) -> Error {
        let most = self.0.value_max;
        let message = format!("memcached: the item has {bytes} bytes, over value_max = {most}; not stored");
        Error::new(ErrorKind::TooLarge, message)
    }

    /// Takes keys from the retiring list, where they have another home there; an error of that becomes theirs. Marks have
    /// another one always: without its mark a cache believes nothing.
    pub(crate) async fn retire<'a, T>(
        &self,
        keys: impl Iterator<Item = (usize, &'a RawKey<'a>)>,
        results: &mut [Result<T, Error>],
    ) {
        let Some(retiring) = &self.0.retiring else { return };
        let (mut removals, mut places) = (Vec::new(), Vec::new());
        for (place, key) in keys {
            let other = wire_key(&self.0.prefix, key, retiring.list);
            let home = retiring.home(&other);
            if key.mark || home != self.0.home(&other) {
                let command = Command::Remove { key: other, cas: None };
                removals.push(Routed { home, command, under: Under::Unknown });
                places.push(place);
            }
        }
        for (place, answer) in places.into_iter().zip(self.run(removals).await) {
            if let Err(error) = answer {
                results[place] = Err(error);
            }
        }
    }

    /// Kept small: see the test of its size.
    #[allow(clippy::manual_async_fn, reason = "an `async fn` would keep each argument twice")]
    fn read(&self, key: RawKey<'_>) -> impl Future<Output = Result<Option<Bytes>, BoxError>> + Send {
        async move {
            self.usable()?;
            let key = self.key(&key);
            let home = self.0.home(&key);
            let command = Command::get(key);
            envelope(self.0.servers[home].one(&command).await?)
        }
    }

    /// Removes what is there, where the server did not store what was to take its place. `voids`: that will do.
    pub(crate) async fn clear_refused(
        &self,
        keys: impl Fn(usize) -> String,
        answers: &mut [Result<Answer, Error>],
        voids: bool,
    ) {
        let is_refused = |e: &Error| matches!(e.kind(), ErrorKind::TooLarge | ErrorKind::Refused);
        let refused: Vec<usize> =
            (0..answers.len()).filter(|&i| answers[i].as_ref().is_err_and(is_refused)).collect();
        let removals = refused.iter().map(|&i| Command::Remove { key: keys(i), cas: None });
        for (&i, removal) in refused.iter().zip(self.run_each(removals, Under::Unknown).await) {
            if voids || removal.is_err() {
                answers[i] = removal;
            }
        }
    }
}

impl Inner {
    /// Those of the list.
    pub(crate) fn current(&self) -> &[Server] {
        &self.servers[..self.current]
    }

    /// Which server a key lives on.
    pub(crate) fn home(&self, key: &str) -> usize {
        self.placement.home(key)
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }
}

#[async_trait]
impl CacheProvider for MemcachedProvider {
    fn capabilities(&self) -> Capabilities {
        Capabilities::remote()
            .ttl_step(Duration::from_secs(1))
            .key_max(KEY_MAX - self.0.prefix.len())
            .value_max(self.0.value_max)
    }

    fn describe(&self) -> Description {
        match self.0.current() {
            [server] => Description::remote(
                "memcached",
                server.dial.endpoint.host.clone(),
                Some(server.dial.endpoint.port),
            ),
            _ => Description::local("memcached"),
        }
    }

    async fn get_many(&self, keys: &[RawKey<'_>]) -> Vec<Result<Option<Bytes>, BoxError>> {
        let keys: Vec<String> = keys.iter().map(|key| self.key(key)).collect();
        let homes: Vec<usize> = keys.iter().map(|key| self.0.home(key)).collect();
        let commands = keys.into_iter().map(Command::get).zip(&homes);
        let routed = commands.map(|(command, &home)| Routed { home, command, under: Under::Known });
        let answers = self.run(routed.collect()).await;
        answers.into_iter().map(|answer| envelope(answer?)).collect()
    }

    async fn get(&self, key: RawKey<'_>) -> Result<Option<Bytes>, BoxError> {
        self.read(key).await
    }

    async fn put_many(&self, items: &[Put<'_>]) -> Vec<Result<(), BoxError>> {
        let now = SystemTime::now();
        let commands = items.iter().map(|item| {
            let key = self.key(&item.key);
            if item.bytes.len() > self.0.value_max {
                // Not stored; but the value that it was to replace must go.
                return Command::Remove { key, cas: None };
            }
            let (exptime, item) = (exptime(item.ttl, now), Item::Entry(0, item.bytes.clone()));
            Command::Put { key, item, exptime, when: When::Always }
        });
        let mut answers = self.run_each(commands, Under::Known).await;
        // The server has dropped the old value when it refuses a new one (1.6 does); this makes sure, with any server.
        self.clear_refused(|i| self.key(&items[i].key), &mut answers, false).await;
        self.retire(items.iter().map(|item| &item.key).enumerate(), &mut answers).await;
        items
            .iter()
            .zip(answers)
            .map(|(item, answer)| match answer {
                Ok(_) if item.bytes.len() > self.0.value_max => Err(self.too_large(item.bytes.len()).into()),
                Ok(_) => Ok(()),
                Err(error) => Err(error.into()),
            })
            .collect()
    }

    /// Leaves a tombstone for a minute, which refuses fills under way.
    async fn remove_many(&self, keys: &[RawKey<'_>]) -> Vec<Result<(), BoxError>> {
        let commands = keys.iter().map(|key| Command::Put {
            key: self.key(key),
            item: Item::Tombstone,
            exptime: TOMBSTONE_SECONDS,
            when: When::Always,
        });
        let mut answers = self.run_each(commands, Under::Unknown).await;
        self.clear_refused(|i| self.key(&keys[i]), &mut answers, true).await;
        self.retire(keys.iter().enumerate(), &mut answers).await;
        answers.into_iter().map(|answer| answer.map(drop).map_err(Into::into)).collect()
    }

    fn command(&self, op: LevelOp, _keys: usize) -> &'static str {
        match op {
            LevelOp::Get | LevelOp::Acquire => "mg",
            // A removal leaves a tombstone; marks are compared and set.
            LevelOp::Put | LevelOp::Remove | LevelOp::Swap => "ms",
            other => other.as_str(),
        }
    }

    async fn ping(&self) -> Result<(), BoxError> {
        self.usable()?;
        for answer in join_all(self.0.current().iter().map(Server::ping)).await {
            answer?;
        }
        Ok(())
    }

    async fn servers(&self) -> Vec<Result<ServerStatus, BoxError>> {
        let asked = join_all(self.0.servers.iter().map(Server::status)).await;
        asked.into_iter().map(|status| status.map_err(Into::into)).collect()
    }

    fn pool(&self) -> Option<PoolStatus> {
        let mut pool = self.0.made.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let mut rests = true;
        for server in &self.0.servers {
            rests &= server.transport.tell(&mut pool)?;
        }
        (!rests).then_some(pool)
    }

    /// Another list of servers is another store.
    fn incarnation(&self) -> u64 {
        self.0.placement.list
    }

    fn server_of(&self, key: RawKey<'_>) -> Option<u64> {
        let Inner { servers, prefix, .. } = &*self.0;
        if servers.len() == 1 {
            return None;
        }
        let home = servers[self.0.home(&self.key(&key))].number;
        let Some(retiring) = &self.0.retiring else { return Some(home) };
        // Its writes need the other list's server, too: keys with the same two fail together.
        let other = servers[retiring.home(&wire_key(prefix, &key, retiring.list))].number;
        Some(home.wrapping_add(other.rotate_left(1)))
    }

    fn leases(&self) -> Option<&dyn Leases> {
        self.0.leases.then_some(self as &dyn Leases)
    }

    fn plain(&self) -> Option<Arc<dyn CacheProvider>> {
        Some(Arc::new(Plain(self.clone())))
    }

    fn marks(&self) -> Option<&dyn Marks> {
        self.0.leases.then_some(self as &dyn Marks)
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
        let servers: Vec<String> = self.0.current().iter().map(|s| s.dial.endpoint.to_string()).collect();
        f.debug_struct("MemcachedProvider").field("servers", &servers).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use cache_core::CacheId;

    use super::*;

    /// Every read boxes one. Where tasks move between threads, a block that the threads' own lists do not take (glibc: over
    /// 1,032 bytes) costs a lock that all of them want.
    #[test]
    fn a_read_is_small() {
        let provider = MemcachedProvider::builder("memcached://127.0.0.1").build().unwrap();
        let size = size_of_val(&provider.read(RawKey::new(CacheId(1), "ns", "id")));
        assert!(size <= 608, "{size}");
    }
}
