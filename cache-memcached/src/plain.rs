//! The store as other programs see it: items are the bare values, and a removal leaves nothing.

use std::time::SystemTime;

use async_trait::async_trait;
use bytes::Bytes;
use cache_core::{BoxError, CacheProvider, Capabilities, Description, LevelOp, Put, RawKey};

use crate::{
    MemcachedProvider,
    item::Item,
    provider::value,
    server::Under,
    transport::{Command, Seen, When},
    wire::exptime,
};

/// A provider's plain form: over the same connections, under the same keys. No life of the server is asked for.
pub(crate) struct Plain(pub(crate) MemcachedProvider);

#[async_trait]
impl CacheProvider for Plain {
    fn capabilities(&self) -> Capabilities {
        self.0.capabilities()
    }

    fn describe(&self) -> Description {
        self.0.describe()
    }

    async fn get_many(&self, keys: &[RawKey<'_>]) -> Vec<Result<Option<Bytes>, BoxError>> {
        let commands = keys.iter().map(|key| Command::get(self.0.key(key)));
        let answers = self.0.run_each(commands, Under::Unknown).await;
        let fresh = |seen: Seen| seen.value.filter(|_| !seen.stale);
        answers.into_iter().map(|answer| value(answer?.reply, fresh)).collect()
    }

    async fn put_many(&self, items: &[Put<'_>]) -> Vec<Result<(), BoxError>> {
        let now = SystemTime::now();
        let most = self.0.0.value_max;
        let commands = items.iter().map(|item| {
            let key = self.0.key(&item.key);
            if item.bytes.len() > most {
                // Not stored; but the value that it was to replace must go.
                return Command::Remove { key, cas: None };
            }
            let exptime = exptime(item.ttl, now);
            Command::Put { key, item: Item::Bare(item.bytes.clone()), exptime, when: When::Always }
        });
        let mut answers = self.0.run_each(commands, Under::Unknown).await;
        self.0.clear_refused(|i| self.0.key(&items[i].key), &mut answers, false).await;
        self.0.retire(items.iter().map(|item| &item.key).enumerate(), &mut answers).await;
        items
            .iter()
            .zip(answers)
            .map(|(item, answer)| match answer {
                Ok(_) if item.bytes.len() > most => Err(self.0.too_large(item.bytes.len()).into()),
                Ok(_) => Ok(()),
                Err(error) => Err(error.into()),
            })
            .collect()
    }

    async fn remove_many(&self, keys: &[RawKey<'_>]) -> Vec<Result<(), BoxError>> {
        let commands = keys.iter().map(|key| Command::Remove { key: self.0.key(key), cas: None });
        let mut answers = self.0.run_each(commands, Under::Unknown).await;
        self.0.retire(keys.iter().enumerate(), &mut answers).await;
        answers.into_iter().map(|answer| answer.map(drop).map_err(Into::into)).collect()
    }

    fn command(&self, op: LevelOp, keys: usize) -> &'static str {
        match op {
            LevelOp::Remove => "md",
            other => self.0.command(other, keys),
        }
    }

    fn server_of(&self, key: RawKey<'_>) -> Option<u64> {
        self.0.server_of(key)
    }

    async fn ping(&self) -> Result<(), BoxError> {
        self.0.ping().await
    }
}
