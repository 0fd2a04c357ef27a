//! The store as other programs see it: bare values under `{prefix}{namespace}:{id}`, and removals that leave nothing.

use std::{borrow::Cow, sync::Weak};

use async_trait::async_trait;
use bytes::Bytes;
use cache_core::{
    Advised, BoxError, CacheProvider, Capabilities, Description, LevelOp, Put, RawKey, shorten,
};

use crate::{
    Error, ErrorKind, RedisProvider,
    provider::{boxed, looked_up},
    units::Repeat,
    wire::{self, KEY_MAX},
    write::{CHUNK, chunks},
};

/// A provider's plain form: over the same connections.
pub(crate) struct Plain(pub(crate) RedisProvider);

impl Plain {
    fn key(&self, key: RawKey<'_>) -> String {
        let joined = key.joined();
        let short: Cow<'_, str> = shorten(&joined, KEY_MAX);
        format!("{}{short}", self.0.settings().prefix)
    }

    /// The provider's own keys begin with one letter: a cache of such a name could be taken for them.
    fn check(&self, key: RawKey<'_>) -> Result<(), Error> {
        match key.namespace.len() {
            1 => Err(Error::new(
                ErrorKind::Config,
                "a plain cache on Redis needs a name of more than one letter: those name keys of caches that are not plain",
            )),
            _ => Ok(()),
        }
    }

    async fn put_chunk(&self, items: &[Put<'_>]) -> Vec<Result<(), Error>> {
        let most = self.0.settings().value_max;
        let replies = self.0.fleet().units(
            items.len(),
            |at| self.key(items[at].key),
            Repeat::Never,
            |pipeline, at, _| {
                let Put { key, bytes, ttl } = &items[at];
                let key = self.key(*key);
                if bytes.len() > most {
                    // What is refused must not leave the old value behind.
                    pipeline.cmd("UNLINK").arg(key);
                    return 1;
                }
                pipeline.cmd("SET").arg(key).arg(&bytes[..]);
                if let Some(ms) = wire::px(*ttl) {
                    pipeline.arg("PX").arg(ms);
                }
                1
            },
        );
        let mut results: Vec<_> =
            replies.await.into_iter().map(|replies| self.0.heed(replies.and_then(wire::all_done))).collect();
        let refused = |at: &usize| results[*at].as_ref().is_err_and(|e| e.kind() == ErrorKind::OutOfMemory);
        let refused: Vec<RawKey<'_>> = (0..items.len()).filter(refused).map(|at| items[at].key).collect();
        if !refused.is_empty() {
            // Of a refused put, the refusal is what its caller wants to hear of.
            let _ = self.remove_chunk(&refused).await;
        }
        for (item, result) in items.iter().zip(&mut results) {
            if result.is_ok() && item.bytes.len() > most {
                *result = Err(self.0.too_large(item.bytes.len()));
            }
        }
        results
    }

    async fn remove_chunk(&self, keys: &[RawKey<'_>]) -> Vec<Result<(), Error>> {
        let replies = self.0.fleet().units(
            keys.len(),
            |at| self.key(keys[at]),
            Repeat::Never,
            |pipeline, at, _| {
                pipeline.cmd("UNLINK").arg(self.key(keys[at]));
                1
            },
        );
        replies.await.into_iter().map(|replies| self.0.heed(replies.and_then(wire::all_done))).collect()
    }
}

#[async_trait]
impl CacheProvider for Plain {
    fn capabilities(&self) -> Capabilities {
        self.0.capabilities()
    }

    fn describe(&self) -> Description {
        self.0.describe()
    }

    async fn get_many(&self, keys: &[RawKey<'_>]) -> Vec<Result<Option<Bytes>, BoxError>> {
        if let Some(error) = keys.iter().find_map(|key| self.check(*key).err()) {
            return boxed(keys.iter().map(|_| Err(error.clone())));
        }
        let wire: Vec<String> = keys.iter().map(|key| self.key(*key)).collect();
        let wire: Vec<&str> = wire.iter().map(String::as_str).collect();
        let found = if wire.is_empty() { Vec::new() } else { self.0.fleet().get_many(&wire).await };
        found.into_iter().map(looked_up).collect()
    }

    async fn put_many(&self, items: &[Put<'_>]) -> Vec<Result<(), BoxError>> {
        if let Some(error) = items.iter().find_map(|item| self.check(item.key).err()) {
            return boxed(items.iter().map(|_| Err(error.clone())));
        }
        let mut results = Vec::with_capacity(items.len());
        for chunk in chunks(items, |item| item.bytes.len()) {
            results.extend(self.put_chunk(chunk).await);
        }
        boxed(results)
    }

    async fn remove_many(&self, keys: &[RawKey<'_>]) -> Vec<Result<(), BoxError>> {
        if let Some(error) = keys.iter().find_map(|key| self.check(*key).err()) {
            return boxed(keys.iter().map(|_| Err(error.clone())));
        }
        let mut results = Vec::with_capacity(keys.len());
        for chunk in keys.chunks(CHUNK) {
            results.extend(self.remove_chunk(chunk).await);
        }
        boxed(results)
    }

    async fn get(&self, key: RawKey<'_>) -> Result<Option<Bytes>, BoxError> {
        self.check(key)?;
        looked_up(self.0.fleet().get(&self.key(key)).await)
    }

    fn command(&self, op: LevelOp, keys: usize) -> &'static str {
        match op {
            LevelOp::Put => "SET",
            LevelOp::Remove => "UNLINK",
            other => self.0.command(other, keys),
        }
    }

    async fn ping(&self) -> Result<(), BoxError> {
        self.0.ping().await
    }

    fn server_of(&self, key: RawKey<'_>) -> Option<u64> {
        self.0.fleet().server_of(|| self.key(key))
    }

    fn time_offset_ms(&self) -> i64 {
        self.0.time_offset_ms()
    }

    fn advise(&self, to: Weak<dyn Advised>) {
        self.0.advise(to);
    }
}
