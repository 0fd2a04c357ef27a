//! Redis as a [`CacheProvider`].

use std::{fmt, sync::Arc, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use cache_core::{BoxError, CacheProvider, Capabilities, Description, Put, RawKey};
use redis::{Pipeline, Value, cmd};

use crate::{
    Error, ErrorKind, RedisProviderBuilder,
    address::Endpoint,
    gather::Gatherer,
    keeper::{Keeper, State},
    read::expect_replies,
    settings::Settings,
    wire,
};

/// Keys per `MGET`, and commands per pipeline. One command blocks the server for all others while it runs.
const CHUNK: usize = 512;
/// Bytes of values per pipeline.
const CHUNK_BYTES: usize = 8 * 1024 * 1024;

/// Keeps entries in Redis or Valkey. Cheap to clone; clones share one connection.
///
/// The connection and the task that keeps it end when the last clone is dropped, or at [`close`](CacheProvider::close).
#[derive(Clone)]
pub struct RedisProvider(Arc<Owner>);

/// The last clone's drop ends the keeper, which holds itself.
struct Owner {
    keeper: Arc<Keeper>,
    gatherer: Arc<Gatherer>,
}

impl Drop for Owner {
    fn drop(&mut self) {
        self.keeper.close_soon();
    }
}

impl RedisProvider {
    /// Begins with a URL: `redis://[user[:password]@]host[:port][/database]` or
    /// `unix:///path[?db=0&user=name&pass=word]`; `valkey://` is `redis://`. Special characters in user and password are
    /// percent-encoded.
    pub fn builder(url: impl Into<String>) -> RedisProviderBuilder {
        RedisProviderBuilder::new(url.into())
    }

    pub(crate) fn new(settings: Settings) -> Self {
        let keeper = Keeper::new(settings);
        let gatherer = Gatherer::new(Arc::clone(&keeper));
        Self(Arc::new(Owner { keeper, gatherer }))
    }

    /// Connects now instead of at the first call, for those who would rather fail at start.
    ///
    /// # Errors
    /// Why the server cannot be used. The provider goes on trying in the background and stays usable.
    pub async fn connect(&self) -> Result<(), Error> {
        self.keeper().link().await.map(drop)
    }

    fn keeper(&self) -> &Arc<Keeper> {
        &self.0.keeper
    }

    fn key(&self, key: RawKey<'_>) -> String {
        wire::key(&self.keeper().settings.prefix, key)
    }

    /// Runs writes, never twice: what the first run did before the connection broke is unknown.
    async fn write_all(&self, commands: &Pipeline, count: usize) -> Vec<Result<(), Error>> {
        let replies = match self.keeper().link().await {
            Ok(link) => expect_replies(link.pipeline(commands, count).await, count),
            Err(error) => Err(error),
        };
        match replies {
            Ok(replies) => replies.into_iter().map(|reply| self.wrote(reply)).collect(),
            Err(error) => vec![Err(error); count],
        }
    }

    fn wrote(&self, reply: Value) -> Result<(), Error> {
        let done = wire::done(reply);
        if done.as_ref().is_err_and(|e| e.kind() == ErrorKind::ReadOnly) {
            // After a failover the address may lead to the new master by now.
            self.keeper().renew();
        }
        done
    }

    async fn put_chunk(&self, items: &[Put<'_>]) -> Vec<Result<(), Error>> {
        let most = self.keeper().settings.value_max;
        let mut pipeline = redis::pipe();
        for item in items {
            let key = self.key(item.key);
            if item.bytes.len() > most {
                // What is refused must not leave the old value behind.
                pipeline.cmd("UNLINK").arg(key);
            } else {
                set(pipeline.cmd("SET").arg(key).arg(&item.bytes[..]), item.ttl);
            }
        }
        let mut results = self.write_all(&pipeline, items.len()).await;
        for (item, result) in items.iter().zip(&mut results) {
            if result.is_ok() && item.bytes.len() > most {
                let size = item.bytes.len();
                *result = Err(Error::new(
                    ErrorKind::TooLarge,
                    format!("an item of {size} bytes is over value_max = {most}"),
                ));
            }
        }
        self.forget_refused(items, &results).await;
        results
    }

    /// A server out of memory refuses `SET` but allows `UNLINK`.
    async fn forget_refused(&self, items: &[Put<'_>], results: &[Result<(), Error>]) {
        let mut pipeline = redis::pipe();
        let mut count = 0;
        for (item, result) in items.iter().zip(results) {
            if result.as_ref().is_err_and(|e| e.kind() == ErrorKind::OutOfMemory) {
                pipeline.cmd("UNLINK").arg(self.key(item.key));
                count += 1;
            }
        }
        if count > 0 {
            // The caller is told of the refusal; that the removal may fail, too, adds nothing.
            let _ = self.write_all(&pipeline, count).await;
        }
    }
}

fn set(command: &mut Pipeline, ttl: Duration) {
    if let Some(ms) = wire::px(ttl) {
        command.arg("PX").arg(ms);
    }
}

fn boxed<T>(results: Vec<Result<T, Error>>) -> Vec<Result<T, BoxError>> {
    results.into_iter().map(|result| result.map_err(BoxError::from)).collect()
}

/// Where the next pipeline's items end: after [`CHUNK`] of them or [`CHUNK_BYTES`], but after one at least.
fn chunk_end(items: &[Put<'_>]) -> usize {
    let mut bytes = 0usize;
    let fits = |item: &&Put<'_>| {
        bytes = bytes.saturating_add(item.bytes.len());
        bytes <= CHUNK_BYTES
    };
    items.iter().take(CHUNK).take_while(fits).count().max(1)
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
        match &self.keeper().settings.endpoint {
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
        let mut rest = items;
        while !rest.is_empty() {
            let (chunk, next) = rest.split_at(chunk_end(rest));
            results.extend(self.put_chunk(chunk).await);
            rest = next;
        }
        boxed(results)
    }

    async fn remove_many(&self, keys: &[RawKey<'_>]) -> Vec<Result<(), BoxError>> {
        let mut results = Vec::with_capacity(keys.len());
        for chunk in keys.chunks(CHUNK) {
            let mut pipeline = redis::pipe();
            for key in chunk {
                pipeline.cmd("UNLINK").arg(self.key(*key));
            }
            results.extend(self.write_all(&pipeline, chunk.len()).await);
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

    async fn ping(&self) -> Result<(), BoxError> {
        Ok(wire::done(self.keeper().read(&cmd("PING")).await?)?)
    }

    fn time_offset_ms(&self) -> i64 {
        self.keeper().time_offset_ms()
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
        d.field("address", &format_args!("{}", settings.endpoint)).field("database", &settings.database);
        self.keeper().inspect(|state| {
            d.field("state", &state.as_str());
            if let State::Up(link) = state {
                d.field("connection", &link.generation).field("server", &link.server);
            }
        });
        d.finish_non_exhaustive()
    }
}
