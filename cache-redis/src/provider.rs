//! Redis as a [`CacheProvider`].

use std::{
    fmt,
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use cache_core::{
    Advised, Backplane, BoxError, CacheProvider, Capabilities, Description, Leases, LevelOp, Marks,
    PoolStatus, Put, RawKey, Replicas, ServerStatus, Unreadable,
};
use redis::Pipeline;

use crate::{
    ConnectionInfo, Error, ErrorKind, RedisBackplane, RedisProviderBuilder, ServerInfo,
    address::Endpoint,
    advice::Advice,
    fleet::Fleet,
    greet::stores_nothing,
    plain::Plain,
    scripts::Form,
    settings::Settings,
    units::{Repeat, Replies},
    watch::Watch,
    wire::{self, Keys},
    write::{CHUNK, chunks},
};

/// Keeps entries in Redis or Valkey. Cheap to clone; clones share one connection.
///
/// The connection and the task that keeps it end when the last clone is dropped, or at [`close`](CacheProvider::close).
#[derive(Clone)]
pub struct RedisProvider(Arc<Owner>);

/// The last clone's drop ends the tasks, which hold themselves.
struct Owner {
    /// Unique within this process.
    id: u64,
    settings: Arc<Settings>,
    fleet: Fleet,
    watch: Arc<Watch>,
    advice: Arc<Advice>,
}

impl Drop for Owner {
    fn drop(&mut self) {
        self.fleet.close_soon();
    }
}

impl RedisProvider {
    /// Begins with a URL:
    /// - `redis://[user[:password]@]host[:port][/database]`: one server;
    /// - `unix:///path[?db=0&user=name&pass=word]`: the same over its socket;
    /// - `redis+sentinel://[user[:password]@]host[:port][,host[:port]...]/master-name[/database]`: the master that these
    ///   sentinels know under that name (port 26379 unless given), with credentials of the server;
    /// - `redis+cluster://[user[:password]@]host[:port][,host[:port]...]`: the cluster that these nodes are of. One that
    ///   answers is enough.
    ///
    /// `rediss` in the place of `redis` speaks TLS, to sentinels too. `valkey` and `valkeys` are the same words. Special
    /// characters in user, password and name are percent-encoded; all others, `+` too, are themselves.
    pub fn builder(url: impl Into<String>) -> RedisProviderBuilder {
        RedisProviderBuilder::new(url.into())
    }

    pub(crate) fn new(settings: Settings) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let settings = Arc::new(settings);
        let advice = Arc::new(Advice::default());
        let watch = Watch::new(Arc::clone(&settings), Arc::clone(&advice));
        let fleet = Fleet::new(Arc::clone(&settings), &watch, &advice);
        let id = NEXT.fetch_add(1, Ordering::Relaxed);
        Self(Arc::new(Owner { id, settings, fleet, watch, advice }))
    }

    /// Connects now instead of at the first call, for those who would rather fail at start.
    ///
    /// # Errors
    /// Why the server cannot be used. The provider goes on trying in the background and stays usable.
    pub async fn connect(&self) -> Result<(), Error> {
        self.fleet().connect().await
    }

    /// A backplane for caches of which this provider is a level: the server tells what changes there. See
    /// [`RedisBackplane`] for what happens where it does not. No I/O, no task.
    pub fn backplane(&self) -> RedisBackplane {
        RedisBackplane::new(self.clone(), true)
    }

    /// A backplane on the same server that goes by messages, whatever the server can do: for caches whose writes are few
    /// among many of other nodes, as each node hears of each key that is written otherwise. No I/O, no task.
    pub fn messages(&self) -> RedisBackplane {
        RedisBackplane::new(self.clone(), false)
    }

    pub(crate) fn settings(&self) -> &Arc<Settings> {
        &self.0.settings
    }

    /// Asks each server about itself: one, or every master of a cluster, of which those that do not answer are left out.
    /// One round trip to each.
    ///
    /// # Errors
    /// Why no server answers. [`ErrorKind::Denied`](crate::ErrorKind::Denied): the user may not run `INFO`.
    pub async fn info(&self) -> Result<Vec<ServerInfo>, Error> {
        self.fleet().info().await
    }

    /// How the connections stand now: one, or one for each node of a cluster that is known. No I/O.
    pub fn connections(&self) -> Vec<ConnectionInfo> {
        self.fleet().connections()
    }

    pub(crate) fn advice(&self) -> &Arc<Advice> {
        &self.0.advice
    }

    /// Takes note of an error that something can be done about.
    pub(crate) fn heed<T>(&self, result: Result<T, Error>) -> Result<T, Error> {
        // It had memory when the connection was made, or that would have been said.
        if result.as_ref().is_err_and(|error| error.kind() == ErrorKind::OutOfMemory) {
            self.advice().say(stores_nothing(self.describe().place().unwrap_or_default()));
        }
        self.fleet().heed(result)
    }

    pub(crate) fn watch(&self) -> &Watch {
        &self.0.watch
    }

    pub(crate) fn fleet(&self) -> &Fleet {
        &self.0.fleet
    }

    pub(crate) fn key(&self, key: RawKey<'_>) -> String {
        wire::key(&self.settings().prefix, key)
    }

    /// Runs one unit of commands per key, each on the server of its key.
    pub(crate) async fn units<'k>(
        &self,
        count: usize,
        key: impl Fn(usize) -> RawKey<'k>,
        repeat: Repeat,
        add: impl Fn(&mut Pipeline, usize, Form) -> usize + Send + Sync,
    ) -> Replies {
        // What is never sent twice is what others have to hear of.
        let cache = (repeat == Repeat::Never && count > 0).then(|| key(0).namespace);
        match cache.and_then(|cache| self.watch().counted(cache)) {
            Some(channel) => self.counting(count, &channel, |at| self.key(key(at)), repeat, add).await,
            None => self.fleet().units(count, |at| self.key(key(at)), repeat, add).await,
        }
    }

    /// The same, and behind the last of them a look at who listens to the channel.
    async fn counting(
        &self,
        count: usize,
        channel: &str,
        key: impl Fn(usize) -> String,
        repeat: Repeat,
        add: impl Fn(&mut Pipeline, usize, Form) -> usize + Send + Sync,
    ) -> Replies {
        let again = AtomicBool::new(false);
        let counting = |pipeline: &mut Pipeline, at: usize, form: Form| {
            let size = add(pipeline, at, form);
            if form == Form::Text {
                again.store(true, Ordering::Relaxed);
            }
            if at + 1 < count {
                return size;
            }
            pipeline.cmd("PUBSUB").arg("NUMSUB").arg(channel);
            size + 1
        };
        let mut replies = self.fleet().units(count, key, repeat, counting).await;
        if let Some(Ok(last)) = replies.last_mut() {
            let listeners = last.pop();
            // Of those that were run once more, some may have been so behind that look.
            self.watch().count(listeners.as_ref().filter(|_| !again.load(Ordering::Relaxed)));
        }
        replies
    }
}

pub(crate) fn boxed<T>(results: impl IntoIterator<Item = Result<T, Error>>) -> Vec<Result<T, BoxError>> {
    results.into_iter().map(|result| result.map_err(BoxError::from)).collect()
}

/// What a look-up has come to. A value that was not read is no failure.
pub(crate) fn looked_up<T>(found: Result<T, Error>) -> Result<T, BoxError> {
    found.map_err(|error| match error.kind() {
        ErrorKind::TooLarge => Unreadable::TooLarge.into(),
        _ => error.into(),
    })
}

#[async_trait]
impl CacheProvider for RedisProvider {
    fn capabilities(&self) -> Capabilities {
        Capabilities::remote()
            .ttl_step(Duration::from_millis(1))
            .key_max(wire::KEY_MAX)
            .value_max(self.settings().value_max)
    }

    fn describe(&self) -> Description {
        let settings = self.settings();
        let server = match settings.place.first() {
            Endpoint::Tcp { host, port } => Description::remote("redis", host, Some(*port)),
            Endpoint::Unix { path } => Description::remote("redis", path, None),
        };
        server.within(settings.login.database.to_string())
    }

    async fn get_many(&self, keys: &[RawKey<'_>]) -> Vec<Result<Option<Bytes>, BoxError>> {
        if keys.is_empty() {
            return Vec::new();
        }
        let wire = Keys::of(&self.settings().prefix, keys);
        let mut results = self.fleet().get_many(&wire.each()).await;
        if let Some(marker) = keys.iter().position(|key| key.mark && key.id.is_empty())
            && let Ok(found) = &results[marker]
            && let Err(error) = self.fleet().recognise(found.as_deref()).await
        {
            results[marker] = Err(error);
        }
        results.into_iter().map(looked_up).collect()
    }

    async fn put_many(&self, items: &[Put<'_>]) -> Vec<Result<(), BoxError>> {
        let mut results = Vec::with_capacity(items.len());
        for chunk in chunks(items, |item| item.bytes.len()) {
            results.extend(self.put_chunk(chunk).await);
        }
        boxed(results)
    }

    async fn remove_many(&self, keys: &[RawKey<'_>]) -> Vec<Result<(), BoxError>> {
        let mut results = Vec::with_capacity(keys.len());
        for chunk in keys.chunks(CHUNK) {
            results.extend(self.remove_chunk(chunk).await);
        }
        boxed(results)
    }

    async fn get(&self, key: RawKey<'_>) -> Result<Option<Bytes>, BoxError> {
        if key.mark {
            return self.get_many(&[key]).await.pop().unwrap_or(Ok(None));
        }
        looked_up(self.fleet().get(&self.key(key)).await)
    }

    fn command(&self, op: LevelOp, keys: usize) -> &'static str {
        match op {
            LevelOp::Get if keys == 1 => "GET",
            LevelOp::Get => self.fleet().several(),
            LevelOp::Acquire | LevelOp::Swap => "EVALSHA",
            LevelOp::Put | LevelOp::Remove => "MULTI",
            other => other.as_str(),
        }
    }

    async fn ping(&self) -> Result<(), BoxError> {
        Ok(self.fleet().ping().await?)
    }

    async fn servers(&self) -> Vec<Result<ServerStatus, BoxError>> {
        match self.fleet().each_info().await {
            Ok(all) => all.into_iter().map(|info| Ok(info?.into())).collect(),
            Err(error) => vec![Err(error.into())],
        }
    }

    fn pool(&self) -> Option<PoolStatus> {
        self.fleet().pool()
    }

    fn incarnation(&self) -> u64 {
        self.fleet().incarnation()
    }

    fn time_offset_ms(&self) -> i64 {
        self.fleet().time_offset_ms()
    }

    fn server_of(&self, key: RawKey<'_>) -> Option<u64> {
        self.fleet().server_of(|| self.key(key))
    }

    fn store_id(&self) -> u64 {
        self.0.id
    }

    fn advise(&self, to: Weak<dyn Advised>) {
        self.0.advice.add(to);
    }

    fn replicas(&self) -> Option<&dyn Replicas> {
        self.settings().read_replicas.then_some(self as &dyn Replicas)
    }

    fn leases(&self) -> Option<&dyn Leases> {
        // As a store without leases it still works, with less promised.
        self.fleet().runs_scripts().then_some(self as &dyn Leases)
    }

    fn plain(&self) -> Option<Arc<dyn CacheProvider>> {
        Some(Arc::new(Plain(self.clone())))
    }

    fn marks(&self) -> Option<&dyn Marks> {
        self.fleet().runs_scripts().then_some(self as &dyn Marks)
    }

    fn backplane(&self) -> Option<Arc<dyn Backplane>> {
        Some(Arc::new(if self.settings().tracking { Self::backplane(self) } else { self.messages() }))
    }

    async fn close(&self) {
        self.fleet().close().await;
    }
}

#[async_trait]
impl Replicas for RedisProvider {
    async fn get_copies(&self, keys: &[RawKey<'_>]) -> Vec<Result<Option<Bytes>, BoxError>> {
        let wire = Keys::of(&self.settings().prefix, keys);
        self.fleet().get_copies(&wire.each()).await.into_iter().map(looked_up).collect()
    }
}

/// Shows where the server is and how the connection stands. No credentials, no keys.
impl fmt::Debug for RedisProvider {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut d = f.debug_struct("RedisProvider");
        d.field("address", &self.settings().place).field("database", &self.settings().login.database);
        d.field("servers", self.fleet());
        d.finish_non_exhaustive()
    }
}
