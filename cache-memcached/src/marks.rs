//! Marks: compare-and-swap, one after the other, since they may be on different servers.

use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use bytes::Bytes;
use cache_core::{BoxError, Marks, Swap, Swapped};

use crate::{
    Error, ErrorKind, MemcachedProvider,
    error::Fault,
    item::Item,
    server::{Answer, Under},
    transport::{Command, Look, Reply, Seen, When},
    wire::exptime,
};

const NO_CAS: Fault = Fault::new(ErrorKind::Protocol, "the server does not tell versions of items");

/// Tries of one swap: a version may change without the bytes, by a swap that only lengthens a life.
const TRIES: usize = 16;

impl MemcachedProvider {
    /// `None`: in place. Else what is there.
    async fn swap_one(&self, mark: &Swap<'_>) -> Result<Option<Option<Bytes>>, Error> {
        let key = self.key(&mark.key);
        let home = self.0.home(&key);
        let mut now = None;
        for _ in 0..TRIES {
            let look = Command::Get { key: key.clone(), look: Some(Look::default()) };
            let Answer { reply, life, .. } = self.run_one(home, look, Under::Known).await?;
            let seen = match reply {
                Reply::Item(seen) => seen,
                Reply::Done(_) | Reply::Refused => None,
            };
            let cas = seen.as_ref().map(|seen| seen.cas);
            let left = seen.as_ref().map_or(Duration::ZERO, Seen::left);
            now = seen.and_then(|seen| seen.envelope(life));
            if now != mark.seen {
                break;
            }
            if mark.seen.as_ref() == Some(&mark.bytes) && mark.ttl == Duration::MAX {
                return Ok(None);
            }
            let when = match cas {
                None => When::Absent,
                Some(0) => return Err(self.0.servers[home].error(NO_CAS)),
                Some(cas) => When::Cas(cas),
            };
            let ttl = if now.is_some() { mark.ttl.max(left) } else { mark.ttl };
            let (item, exptime) = (Item::Entry(0, mark.bytes.clone()), exptime(ttl, SystemTime::now()));
            let put = Command::Put { key: key.clone(), item, exptime, when };
            match self.run_one(home, put, Under::Exactly(life)).await?.reply {
                Reply::Done(_) => return Ok(None),
                // Somebody was quicker, or the server has begun another life.
                Reply::Refused | Reply::Item(_) => {}
            }
        }
        Ok(Some(now))
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
        // Another number for the cache itself: something has been invalidated. Not where it has just begun.
        let moved = |swap: &&Swap<'_>| {
            swap.key.id.is_empty() && swap.seen.as_ref().is_some_and(|seen| *seen != swap.bytes)
        };
        if let Some(swap) = marks.iter().find(moved) {
            let mut told = [Ok::<_, Error>(())];
            self.retire(std::iter::once((0, &swap.key)), &mut told).await;
            let [told] = told;
            told?;
        }
        Ok(Swapped::Done)
    }
}
