//! Reads: sent once more if the connection breaks under them.

use std::sync::Arc;

use bytes::Bytes;
use futures::FutureExt;
use redis::{Cmd, Pipeline, RedisError, Value};

use crate::{Error, gather::Several, keeper::Keeper, units::Repeat, wire, write::CHUNK};

impl Keeper {
    /// Runs a read. If the connection breaks under it, once more on the next one.
    pub(crate) async fn read(self: &Arc<Self>, command: &Cmd) -> Result<Value, Error> {
        let link = self.link().await?;
        match link.command(command).await {
            // Boxed, as what hardly ever happens has no room in what always does.
            Err(error) if error.is_io_error() => self.read_again(command, link.generation).boxed().await,
            other => other.map_err(Error::request),
        }
    }

    async fn read_again(self: &Arc<Self>, command: &Cmd, broken: u64) -> Result<Value, Error> {
        let next = self.link_after(broken).await?;
        next.command(command).await.map_err(Error::request)
    }

    /// The same for several commands at once, and again only if that is as good as once.
    pub(crate) async fn all(
        self: &Arc<Self>,
        commands: &Pipeline,
        count: usize,
        repeat: Repeat,
    ) -> Result<Vec<Value>, Error> {
        let link = self.link().await?;
        link.may_run(commands)?;
        let replies = match link.pipeline(commands, count).await {
            Err(error) if repeat == Repeat::Once && error.is_io_error() => {
                let next = self.link_after(link.generation).await?;
                next.may_run(commands)?;
                next.pipeline(commands, count).await
            }
            other => other,
        };
        expect_replies(replies, count)
    }
}

impl Keeper {
    /// Looks up several keys, given as they are on the wire, in one round trip.
    pub(crate) async fn look_up(
        self: &Arc<Self>,
        keys: &[impl AsRef<str> + Sync],
        several: Several,
    ) -> Vec<Result<Option<Bytes>, Error>> {
        let (command, at_once) = match several {
            Several::Mget => ("MGET", CHUNK),
            Several::Gets => ("GET", 1),
        };
        let chunks = keys.chunks(at_once);
        let mut pipeline = Pipeline::with_capacity(chunks.len());
        chunks.clone().for_each(|keys| {
            pipeline.add_command(of_keys(command, keys));
        });
        match self.all(&pipeline, chunks.len(), Repeat::Once).await {
            Ok(replies) => match several {
                Several::Mget => {
                    let each = chunks.zip(replies);
                    each.flat_map(|(keys, reply)| wire::found_many(reply, keys.len())).collect()
                }
                Several::Gets => replies.into_iter().map(wire::found).collect(),
            },
            Err(error) => vec![Err(error); keys.len()],
        }
    }
}

/// A command whose arguments are keys, in one piece of memory that does not grow.
pub(crate) fn of_keys(command: &str, keys: &[impl AsRef<str>]) -> Cmd {
    let bytes: usize = keys.iter().map(|key| key.as_ref().len()).sum();
    let mut whole = Cmd::with_capacity(1 + keys.len(), command.len() + bytes);
    whole.arg(command);
    for key in keys {
        whole.arg(key.as_ref());
    }
    whole
}

/// As many replies as there were commands.
pub(crate) fn expect_replies(
    replies: Result<Vec<Value>, RedisError>,
    count: usize,
) -> Result<Vec<Value>, Error> {
    let replies = replies.map_err(Error::request)?;
    if replies.len() == count { Ok(replies) } else { Err(Error::protocol("not one reply per command")) }
}
