//! Marks: compare-and-swap, one after the other, since they may be on different servers.

use std::time::SystemTime;

use async_trait::async_trait;
use cache_core::{BoxError, Marks, Swap, Swapped};

use crate::{
    Error, ErrorKind, MemcachedProvider,
    error::Fault,
    item::{Item, Kind},
    server::{Answer, Under},
    transport::{Command, Look, Reply, Seen, When},
    wire::exptime,
};

const NO_CAS: Fault = Fault::new(ErrorKind::Protocol, "the server does not tell versions of items");

impl MemcachedProvider {
    /// `None`: in place. Else what is there.
    async fn swap_one(&self, mark: &Swap<'_>) -> Result<Option<Option<bytes::Bytes>>, Error> {
        let key = self.key(&mark.key);
        let home = self.0.home(&key);
        let look = Command::Get { key: key.clone(), look: Some(Look::default()) };
        let Answer { reply, life } = self.run_one(home, look, Under::Known).await?;
        let seen = match reply {
            Reply::Item(seen) => seen,
            Reply::Done(_) | Reply::Refused => None,
        };
        let now = seen.as_ref().and_then(|seen| seen.envelope(life));
        if now != mark.seen {
            return Ok(Some(now));
        }
        let when = match seen {
            None => When::Absent,
            Some(Seen { cas: 0, .. }) => return Err(self.0.servers[home].error(NO_CAS)),
            Some(Seen { cas, .. }) => When::Cas(cas),
        };
        let (item, exptime) = (Item::Entry(0, mark.bytes.clone()), exptime(mark.ttl, SystemTime::now()));
        let put = Command::Put { key: key.clone(), item, exptime, when };
        match self.run_one(home, put, Under::Exactly(life)).await?.reply {
            Reply::Done(_) => Ok(None),
            // Somebody was quicker, or the server has begun another life.
            Reply::Refused | Reply::Item(_) => {
                let Answer { reply, life } = self.run_one(home, Command::get(key), Under::Known).await?;
                Ok(Some(match reply {
                    Reply::Item(Some(seen)) if !matches!(seen.kind(), Kind::Placeholder) => {
                        seen.envelope(life)
                    }
                    _ => None,
                }))
            }
        }
    }
}

#[async_trait]
impl Marks for MemcachedProvider {
    async fn swap(&self, marks: &[Swap<'_>]) -> Result<Swapped, BoxError> {
        for (at, mark) in marks.iter().enumerate() {
            if let Some(now) = self.swap_one(mark).await? {
                return Ok(Swapped::Other { at, now });
            }
        }
        Ok(Swapped::Done)
    }
}
