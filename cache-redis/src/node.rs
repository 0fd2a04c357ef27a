//! One server: the connection to it, and who gathers look-ups for it.

use std::sync::Arc;

use bytes::Bytes;
use redis::Pipeline;

use crate::{
    Error,
    gather::{Gatherer, Several},
    keeper::Keeper,
    read::expect_replies,
    wire,
};

/// Its drop ends the keeper, which holds itself.
pub(crate) struct Node {
    pub(crate) keeper: Arc<Keeper>,
    gatherer: Arc<Gatherer>,
}

impl Node {
    pub(crate) fn new(keeper: Arc<Keeper>, several: Several) -> Self {
        let gatherer = Gatherer::new(Arc::clone(&keeper), several);
        Self { keeper, gatherer }
    }

    /// Looks up one key. `key` makes it as it is on the wire.
    pub(crate) async fn get(&self, key: impl Fn() -> String) -> Result<Option<Bytes>, Error> {
        self.gatherer.get(key).await
    }

    /// Looks up several keys in one round trip, as the server likes it best.
    pub(crate) async fn get_many(&self, keys: &[&str]) -> Vec<Result<Option<Bytes>, Error>> {
        self.keeper.look_up(keys, self.gatherer.several()).await
    }

    /// The same for a key that is being moved to this server.
    pub(crate) async fn get_moving(&self, key: &str) -> Result<Option<Bytes>, Error> {
        let mut asking = Pipeline::new();
        asking.cmd("ASKING").cmd("GET").arg(key);
        let link = self.keeper.link().await?;
        let mut replies = expect_replies(link.pipeline(&asking, 2).await, 2)?;
        replies.pop().map_or(Ok(None), wire::found)
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.keeper.close_soon();
    }
}
