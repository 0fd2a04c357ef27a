//! What people write by hand: memory, then the server, then the source; after a change, delete.

use std::{sync::Arc, time::Duration};

use moka::sync::Cache;
use traced_cache::{BoxError, CacheId, CacheProvider, Delivery, Put, RawKey};

use crate::subject::Seen;

const TTL: Duration = Duration::from_secs(60);

pub(crate) struct Naive {
    near: Option<Cache<usize, u64>>,
    far: Arc<dyn CacheProvider>,
}

impl Naive {
    pub(crate) fn new(near: Option<Duration>, far: Arc<dyn CacheProvider>) -> Self {
        let memory = |ttl| Cache::builder().max_capacity(1_000).time_to_live(ttl).build();
        Self { near: near.map(memory), far }
    }

    pub(crate) async fn read(
        &self,
        key: usize,
        load: impl Future<Output = Result<u64, BoxError>>,
    ) -> Result<(u64, Seen), BoxError> {
        if let Some(version) = self.near.as_ref().and_then(|near| near.get(&key)) {
            return Ok((version, Seen::Near));
        }
        let id = key.to_string();
        // A server that does not answer is a miss.
        let version = match self.far.get(raw(&id)).await {
            Ok(Some(bytes)) => std::str::from_utf8(&bytes)?.parse()?,
            Ok(None) | Err(_) => {
                let version = load.await?;
                let _ = self.put(&id, version).await;
                version
            }
        };
        if let Some(near) = &self.near {
            near.insert(key, version);
        }
        Ok((version, Seen::Far))
    }

    pub(crate) async fn set(&self, key: usize, version: u64) -> Delivery {
        let put = self.put(&key.to_string(), version).await;
        if let Some(near) = &self.near {
            near.insert(key, version);
        }
        delivery(&put)
    }

    pub(crate) async fn invalidate(&self, key: usize) -> Delivery {
        let removed = self.far.remove(raw(&key.to_string())).await;
        if let Some(near) = &self.near {
            near.invalidate(&key);
        }
        delivery(&removed)
    }

    pub(crate) async fn invalidate_all(&self, keys: impl Iterator<Item = usize>) -> Delivery {
        let mut confirmed = true;
        for key in keys {
            confirmed &= self.invalidate(key).await.is_confirmed();
        }
        if confirmed { Delivery::Confirmed } else { Delivery::Pending }
    }

    async fn put(&self, id: &str, version: u64) -> Result<(), BoxError> {
        self.far.put(Put { key: raw(id), bytes: version.to_string().into(), ttl: TTL }).await
    }
}

fn raw(id: &str) -> RawKey<'_> {
    RawKey::new(CacheId(0), "naive", id)
}

fn delivery(written: &Result<(), BoxError>) -> Delivery {
    if written.is_ok() { Delivery::Confirmed } else { Delivery::Pending }
}
