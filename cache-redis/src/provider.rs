//! Redis as a [`CacheProvider`].

use std::{
    fmt,
    sync::{
        Arc, Weak,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use cache_core::{
    Advised, Backplane, BoxError, CacheProvider, Capabilities, Description, Leases, LevelOp, Put, RawKey,
};
use redis::cmd;

use crate::{
    Error, RedisBackplane, RedisProviderBuilder,
    address::Endpoint,
    advice::Advice,
    gather::Gatherer,
    keeper::{Home, Keeper, State},
    settings::Settings,
    watch::Watch,
    wire,
    write::{CHUNK, chunks},
};

/// Keeps entries in Redis or Valkey. Cheap to clone; clones share one connection.
///
/// The connection and the task that keeps it end when the last clone is dropped, or at [`close`](CacheProvider::close).
#[derive(Clone)]
pub struct RedisProvider(Arc<Owner>);

/// The last clone's drop ends the keeper, which holds itself.
struct Owner {
    /// Unique within this process.
    id: u64,
    keeper: Arc<Keeper>,
    gatherer: Arc<Gatherer>,
    watch: Arc<Watch>,
    advice: Arc<Advice>,
}

impl Drop for Owner {
    fn drop(&mut self) {
        self.keeper.close_soon();
    }
}

impl RedisProvider {
    /// Begins with a URL:
    /// - `redis://[user[:password]@]host[:port][/database]`: one server;
    /// - `unix:///path[?db=0&user=name&pass=word]`: the same over its socket;
    /// - `redis+sentinel://[user[:password]@]host[:port][,host[:port]...]/master-name[/database]`: the master that these
    ///   sentinels know under that name (port 26379 unless given), with credentials of the server.
    ///
    /// `rediss` in the place of `redis` speaks TLS, to sentinels too. `valkey` and `valkeys` are the same words. Special
    /// characters in user, password and name are percent-encoded.
    pub fn builder(url: impl Into<String>) -> RedisProviderBuilder {
        RedisProviderBuilder::new(url.into())
    }

    pub(crate) fn new(settings: Settings) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let settings = Arc::new(settings);
        let advice = Arc::new(Advice::default());
        let watch = Watch::new(&settings, Arc::clone(&advice));
        let home = Home::from(&settings.place);
        let keeper = Keeper::watching(settings, home, Arc::clone(&watch));
        let gatherer = Gatherer::new(Arc::clone(&keeper));
        let id = NEXT.fetch_add(1, Ordering::Relaxed);
        Self(Arc::new(Owner { id, keeper, gatherer, watch, advice }))
    }

    /// Connects now instead of at the first call, for those who would rather fail at start.
    ///
    /// # Errors
    /// Why the server cannot be used. The provider goes on trying in the background and stays usable.
    pub async fn connect(&self) -> Result<(), Error> {
        self.keeper().link().await.map(drop)
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
        &self.keeper().settings
    }

    pub(crate) fn watch(&self) -> &Watch {
        &self.0.watch
    }

    pub(crate) fn keeper(&self) -> &Arc<Keeper> {
        &self.0.keeper
    }

    fn key(&self, key: RawKey<'_>) -> String {
        wire::key(&self.keeper().settings.prefix, key)
    }
}

pub(crate) fn boxed<T>(results: impl IntoIterator<Item = Result<T, Error>>) -> Vec<Result<T, BoxError>> {
    results.into_iter().map(|result| result.map_err(BoxError::from)).collect()
}

#[async_trait]
impl CacheProvider for RedisProvider {
    fn capabilities(&self) -> Capabilities {
        Capabilities::remote()
            .ttl_step(Duration::from_millis(1))
            .key_max(wire::KEY_MAX)
            .value_max(self.keeper().settings.value_max)
    }

    fn describe(&self) -> Description {
        match self.keeper().settings.place.first() {
            Endpoint::Tcp { host, port } => Description::remote("redis", host, Some(*port)),
            Endpoint::Unix { path } => Description::remote("redis", path, None),
        }
    }

    async fn get_many(&self, keys: &[RawKey<'_>]) -> Vec<Result<Option<Bytes>, BoxError>> {
        if keys.is_empty() {
            return Vec::new();
        }
        let mut pipeline = redis::pipe();
        let chunks = keys.chunks(CHUNK);
        let count = chunks.len();
        for chunk in chunks {
            let mget = pipeline.cmd("MGET");
            for key in chunk {
                mget.arg(self.key(*key));
            }
        }
        let results = match self.keeper().read_all(&pipeline, count).await {
            Ok(replies) => keys
                .chunks(CHUNK)
                .zip(replies)
                .flat_map(|(chunk, reply)| wire::found_many(reply, chunk.len()))
                .collect(),
            Err(error) => vec![Err(error); keys.len()],
        };
        boxed(results)
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
        let key = self.key(key);
        if self.keeper().gathers() {
            return Ok(self.0.gatherer.get(key).await?);
        }
        Ok(wire::found(self.keeper().read(cmd("GET").arg(key)).await?)?)
    }

    fn command(&self, op: LevelOp, keys: usize) -> &'static str {
        match op {
            LevelOp::Get if keys == 1 => "GET",
            LevelOp::Get => "MGET",
            LevelOp::Acquire => "EVALSHA",
            LevelOp::Put | LevelOp::Remove => "MULTI",
            other => other.as_str(),
        }
    }

    async fn ping(&self) -> Result<(), BoxError> {
        Ok(wire::done(self.keeper().read(&cmd("PING")).await?)?)
    }

    fn incarnation(&self) -> u64 {
        self.keeper().incarnation()
    }

    fn time_offset_ms(&self) -> i64 {
        self.keeper().time_offset_ms()
    }

    fn store_id(&self) -> u64 {
        self.0.id
    }

    fn advise(&self, to: Weak<dyn Advised>) {
        self.0.advice.add(to);
    }

    fn leases(&self) -> Option<&dyn Leases> {
        Some(self)
    }

    fn backplane(&self) -> Option<Arc<dyn Backplane>> {
        Some(Arc::new(Self::backplane(self)))
    }

    async fn close(&self) {
        self.keeper().close().await;
    }
}

/// Shows where the server is and how the connection stands. No credentials, no keys.
impl fmt::Debug for RedisProvider {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let settings = &self.keeper().settings;
        let mut d = f.debug_struct("RedisProvider");
        d.field("address", &settings.place).field("database", &settings.login.database);
        self.keeper().inspect(|state| {
            d.field("state", &state.as_str());
            if let State::Up(link) = state {
                d.field("connection", &link.generation).field("at", &format_args!("{}", link.endpoint));
                d.field("server", &link.server);
            }
        });
        d.finish_non_exhaustive()
    }
}
