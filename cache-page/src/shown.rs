//! A cache of whatever type, as the page works with it.

use cache_core::{Delivery, Inspection, Rendered, Result, Settings, TracedCache, Value};
use futures::future::BoxFuture;

pub(crate) trait Shown: Send + Sync {
    fn settings(&self) -> Settings;
    fn inspect(&self, key: String, values: bool) -> BoxFuture<'_, Result<Inspection>>;
    fn invalidate(&self, key: String) -> BoxFuture<'_, Result<Delivery>>;
    fn invalidate_tag(&self, tag: String) -> BoxFuture<'_, Result<Delivery>>;
}

impl<T: Value> Shown for TracedCache<T> {
    fn settings(&self) -> Settings {
        Self::settings(self)
    }

    fn inspect(&self, key: String, values: bool) -> BoxFuture<'_, Result<Inspection>> {
        Box::pin(async move {
            match values {
                true => self.inspect_with_value(Rendered(key)).await,
                false => Self::inspect(self, Rendered(key)).await,
            }
        })
    }

    fn invalidate(&self, key: String) -> BoxFuture<'_, Result<Delivery>> {
        Box::pin(Self::invalidate(self, Rendered(key)))
    }

    fn invalidate_tag(&self, tag: String) -> BoxFuture<'_, Result<Delivery>> {
        Box::pin(Self::invalidate_tag(self, tag))
    }
}
