//! Reads: sent once more if the connection breaks under them.

use std::sync::Arc;

use redis::{Cmd, Pipeline, RedisError, Value};

use crate::{Error, keeper::Keeper};

impl Keeper {
    /// Runs a read. If the connection breaks under it, once more on the next one.
    pub(crate) async fn read(self: &Arc<Self>, command: &Cmd) -> Result<Value, Error> {
        let link = self.link().await?;
        match link.command(command).await {
            Err(error) if error.is_io_error() => {
                let next = self.link_after(link.generation).await?;
                next.command(command).await.map_err(Error::request)
            }
            other => other.map_err(Error::request),
        }
    }

    /// The same for several reads at once.
    pub(crate) async fn read_all(
        self: &Arc<Self>,
        commands: &Pipeline,
        count: usize,
    ) -> Result<Vec<Value>, Error> {
        let link = self.link().await?;
        let replies = match link.pipeline(commands, count).await {
            Err(error) if error.is_io_error() => {
                let next = self.link_after(link.generation).await?;
                next.pipeline(commands, count).await
            }
            other => other,
        };
        expect_replies(replies, count)
    }
}

/// As many replies as there were commands.
pub(crate) fn expect_replies(
    replies: Result<Vec<Value>, RedisError>,
    count: usize,
) -> Result<Vec<Value>, Error> {
    let replies = replies.map_err(Error::request)?;
    if replies.len() == count { Ok(replies) } else { Err(Error::protocol("not one reply per command")) }
}
