//! A level of a store of objects alone.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;

use crate::{BoxError, CacheProvider, Capabilities, Description, ObjectStore, Put, RawKey};

/// An in-process provider of the objects of one store, for levels over a store of a test's own. It holds no bytes: asked for
/// any, it fails.
pub struct ObjectsOnly(pub Arc<dyn ObjectStore>);

fn refused<T>(count: usize) -> Vec<Result<T, BoxError>> {
    (0..count).map(|_| Err("objects only".into())).collect()
}

#[async_trait]
impl CacheProvider for ObjectsOnly {
    fn capabilities(&self) -> Capabilities {
        Capabilities::in_process()
    }

    fn describe(&self) -> Description {
        Description::local("objects")
    }

    async fn get_many(&self, keys: &[RawKey<'_>]) -> Vec<Result<Option<Bytes>, BoxError>> {
        refused(keys.len())
    }

    async fn put_many(&self, items: &[Put<'_>]) -> Vec<Result<(), BoxError>> {
        refused(items.len())
    }

    async fn remove_many(&self, keys: &[RawKey<'_>]) -> Vec<Result<(), BoxError>> {
        refused(keys.len())
    }

    fn in_process(&self) -> Option<Arc<dyn ObjectStore>> {
        Some(Arc::clone(&self.0))
    }
}

impl std::fmt::Debug for ObjectsOnly {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ObjectsOnly").finish_non_exhaustive()
    }
}
