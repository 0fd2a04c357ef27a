//! One server: the connection to it, and how look-ups are put to it.

use std::sync::Arc;

use bytes::Bytes;
use redis::Pipeline;

use crate::{Error, keeper::Keeper, read::Several, wire};

/// Its drop ends the keeper, which holds itself.
pub(crate) struct Node {
    pub(crate) keeper: Arc<Keeper>,
    several: Several,
}

impl Node {
    pub(crate) const fn new(keeper: Arc<Keeper>, several: Several) -> Self {
        Self { keeper, several }
    }

    /// Looks up one key, given as it is on the wire.
    pub(crate) fn get(&self, key: &str) -> impl Future<Output = Result<Option<Bytes>, Error>> + Send {
        self.keeper.look_up(key, self.several)
    }

    /// Looks up several keys in one round trip, as the server likes it best.
    pub(crate) async fn get_many(&self, keys: &[&str]) -> Vec<Result<Option<Bytes>, Error>> {
        self.keeper.look_up_many(keys, self.several).await
    }

    /// The same for a key that is being moved to this server.
    pub(crate) async fn get_moving(&self, key: &str) -> Result<Option<Bytes>, Error> {
        let mut asking = asking();
        asking.cmd("GET").arg(key);
        let link = self.keeper.link().await?;
        let mut replies = link.replies(&asking).await.map_err(Error::request)?;
        replies.pop().map_or(Ok(None), wire::found)
    }
}

/// Begins what is put to a server to which a key is being moved: it is for the one command behind it.
pub(crate) fn asking() -> Pipeline {
    let mut asking = Pipeline::new();
    asking.cmd("ASKING");
    asking
}

impl Drop for Node {
    fn drop(&mut self) {
        self.keeper.close_soon();
    }
}
