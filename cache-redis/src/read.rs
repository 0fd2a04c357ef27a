//! Reads: sent once more if the connection breaks under them.

use std::sync::Arc;

use bytes::Bytes;
use futures::FutureExt;
use redis::{Cmd, Pipeline, Value};

use crate::{
    Error, ErrorKind,
    connection::Link,
    keeper::Keeper,
    mux::Reply,
    units::Repeat,
    wire::{found, found_many},
    write::CHUNK,
};

/// How several look-ups are put.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Several {
    /// As one command.
    Mget,
    /// As a pipeline: keys of several slots are not for one command.
    Gets,
}

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
        repeat: Repeat,
    ) -> Result<Vec<Reply>, Error> {
        let link = self.link().await?;
        link.may_run(commands)?;
        let replies = match link.replies(commands).await {
            Err(error) if repeat == Repeat::Once && error.is_io_error() => {
                let next = self.link_after(link.generation).await?;
                next.may_run(commands)?;
                next.replies(commands).await
            }
            other => other,
        };
        replies.map_err(Error::request)
    }

    /// Looks up one key, given as it is on the wire. Where others are under way, they are sent together.
    #[allow(clippy::manual_async_fn, reason = "an `async fn` would keep each argument twice")]
    pub(crate) fn look_up(
        self: &Arc<Self>,
        key: &str,
        several: Several,
    ) -> impl Future<Output = Result<Option<Bytes>, Error>> + Send {
        async move {
            let gathers = several == Several::Mget;
            // Boxed, as what hardly ever happens has no room in what always does.
            let Some(link) = self.at_hand.get() else {
                return self.look_up_once_up(key, gathers).boxed().await;
            };
            self.look_up_over(&link, key, gathers).await
        }
    }

    async fn look_up_once_up(self: &Arc<Self>, key: &str, gathers: bool) -> Result<Option<Bytes>, Error> {
        let link = self.link().await?;
        self.look_up_over(&link, key, gathers).await
    }

    #[allow(clippy::manual_async_fn, reason = "an `async fn` would keep each argument twice")]
    fn look_up_over(
        self: &Arc<Self>,
        link: &Link,
        key: &str,
        gathers: bool,
    ) -> impl Future<Output = Result<Option<Bytes>, Error>> + Send {
        async move {
            match link.get(key, gathers).await {
                Err(error) if error.is_io_error() => {
                    self.look_up_again(key, gathers, link.generation).boxed().await
                }
                reply => found(reply.map_err(Error::request)?),
            }
        }
    }

    async fn look_up_again(
        self: &Arc<Self>,
        key: &str,
        gathers: bool,
        broken: u64,
    ) -> Result<Option<Bytes>, Error> {
        let next = self.link_after(broken).await?;
        found(next.get(key, gathers).await.map_err(Error::request)?)
    }

    /// Looks up several keys in one round trip.
    pub(crate) async fn look_up_many(
        self: &Arc<Self>,
        keys: &[&str],
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
        let found: Vec<_> = match self.all(&pipeline, Repeat::Once).await {
            Ok(replies) => match several {
                Several::Mget => {
                    let each = chunks.zip(replies);
                    each.flat_map(|(keys, reply)| found_many(reply, keys.len())).collect()
                }
                Several::Gets => replies.into_iter().map(found).collect(),
            },
            Err(error) => return vec![Err(error); keys.len()],
        };
        if found.iter().any(|found| found.as_ref().is_err_and(|e| e.kind() == ErrorKind::Protocol)) {
            self.distrust();
        }
        found
    }
}

/// A command whose arguments are keys, in one piece of memory that does not grow.
fn of_keys(command: &str, keys: &[impl AsRef<str>]) -> Cmd {
    let bytes: usize = keys.iter().map(|key| key.as_ref().len()).sum();
    let mut whole = Cmd::with_capacity(1 + keys.len(), command.len() + bytes);
    whole.arg(command);
    for key in keys {
        whole.arg(key.as_ref());
    }
    whole
}

#[cfg(test)]
mod tests {
    use cache_core::{CacheId, CacheProvider, RawKey};

    use crate::RedisProvider;

    /// Every read boxes one. Where tasks move between threads, a block that the threads' own lists do not take (glibc: over
    /// 1,032 bytes) costs a lock that all of them want.
    #[test]
    fn a_read_that_waits_is_small() {
        let provider = RedisProvider::builder("redis://127.0.0.1").build().unwrap();
        let size = size_of_val(&*provider.get(RawKey::new(CacheId(1), "ns", "id")));
        assert!(size <= 448, "{size}");
    }
}
