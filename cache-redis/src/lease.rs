//! Leases: a token beside the value, in the same slot.
//!
//! A fill is a transaction of a script on the lease, which nobody tracks, and a `RENAME`: so that plain commands alone
//! write values, and a client that tracks them is not told of its own fill.

use std::{
    hash::{BuildHasher, Hasher, RandomState},
    sync::{
        LazyLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use cache_core::{Acquire, Acquired, BoxError, Fill, Holding, Lease, Leases, RawKey};
use redis::Value;
use tokio::runtime::Handle;

use crate::{
    Error, ErrorKind, RedisProvider,
    provider::{boxed, looked_up},
    scripts::{ACQUIRE, FILL, HOLD, RELEASE, RENEW, VOID},
    units::{Repeat, executed},
    wire::{self, TOMBSTONE, TOMBSTONE_MS},
    write::chunks,
};

/// No two are equal: random per process, then counted.
fn token() -> Bytes {
    static ORIGIN: LazyLock<u64> = LazyLock::new(|| RandomState::new().build_hasher().finish());
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let mut token = [0; 16];
    token[..8].copy_from_slice(&ORIGIN.to_le_bytes());
    token[8..].copy_from_slice(&NEXT.fetch_add(1, Ordering::Relaxed).to_le_bytes());
    Bytes::copy_from_slice(&token)
}

fn holding(holding: Holding) -> Bytes {
    match holding {
        Holding::Nothing => Bytes::new(),
        Holding::Entry(id) | Holding::Still(id) => Bytes::copy_from_slice(&id.0.to_le_bytes()),
        Holding::Unreadable => Bytes::from_static(b"*"),
    }
}

/// Milliseconds of a lease's life. A lease without an end could outlive who holds it: at most a day.
fn life_ms(life: Duration) -> u64 {
    const MOST: u64 = 86_400_000;
    wire::px(life).unwrap_or(MOST).min(MOST)
}

fn acquired(reply: Option<Value>, token: &Bytes) -> Result<Acquired, Error> {
    match reply {
        Some(Value::Int(1)) => Ok(Acquired::Granted(Lease(token.clone()))),
        Some(Value::Int(0)) => Ok(Acquired::Held),
        Some(Value::Int(2)) => Ok(Acquired::Kept),
        Some(Value::BulkString(bytes)) => Ok(Acquired::Found(bytes.into())),
        Some(Value::ServerError(error)) => Err(Error::reply(&error)),
        _ => Err(Error::protocol("no answer to the wish for a lease")),
    }
}

/// Whether the entry is where it belongs. The reply to the script tells of a lost lease; `RENAME` finds nothing then.
fn filled(replies: Vec<Value>) -> Result<bool, Error> {
    match executed(replies)?.as_slice() {
        [_, Value::ServerError(error), _] => Err(Error::reply(error)),
        [_, Value::Int(0), _] => Ok(false),
        // So short a life that it is over by now.
        [_, Value::Int(1), Value::ServerError(error)] if error.details() == Some("no such key") => Ok(false),
        [_, Value::Int(1), Value::ServerError(error)] => Err(Error::reply(error)),
        [_, Value::Int(1), _] => Ok(true),
        _ => Err(Error::protocol("no answer to a fill")),
    }
}

impl RedisProvider {
    /// An item that is too large, or for which there is no memory, leaves nothing of the one that it was to replace.
    async fn fill_chunk(&self, fills: &[Fill<'_>]) -> Vec<Result<bool, Error>> {
        let most = self.settings().value_max;
        let replies = self.units(
            fills.len(),
            |at| fills[at].put.key,
            Repeat::Never,
            |pipeline, at, form| {
                let Fill { put, lease } = &fills[at];
                let large = put.bytes.len() > most;
                let (bytes, ms) =
                    if large { (TOMBSTONE, Some(TOMBSTONE_MS)) } else { (&put.bytes[..], wire::px(put.ttl)) };
                let [value, held, scratch, hold] = self.keys(put.key);
                // Nothing but what this fill puts there may be moved, even if the script does not run.
                pipeline.cmd("MULTI").cmd("DEL").arg(&scratch);
                FILL.on(pipeline, form, &[&held, &scratch, &hold]).arg(&lease.0[..]).arg(bytes);
                if let Some(ms) = ms {
                    pipeline.arg(ms);
                }
                pipeline.cmd("RENAME").arg(scratch).arg(value).cmd("EXEC");
                5
            },
        );
        let results: Vec<_> = replies
            .await
            .into_iter()
            .zip(fills)
            .map(|(replies, fill)| match self.heed(replies.and_then(filled)) {
                Ok(_) if fill.put.bytes.len() > most => Err(self.too_large(fill.put.bytes.len())),
                result => result,
            })
            .collect();
        let refused: Vec<_> = fills
            .iter()
            .zip(&results)
            .filter(|(_, result)| result.as_ref().is_err_and(|e| e.kind() == ErrorKind::OutOfMemory))
            .map(|(fill, _)| (fill.put.key, &fill.lease))
            .collect();
        // The caller is told of the refusal; that the removal may fail, too, adds nothing.
        let _ = self
            .units(
                refused.len(),
                |at| refused[at].0,
                Repeat::Never,
                |pipeline, at, form| {
                    let (key, lease) = refused[at];
                    let [value, held, scratch, _] = self.keys(key);
                    VOID.on(pipeline, form, &[&value, &held, &scratch])
                        .arg(TOMBSTONE)
                        .arg(TOMBSTONE_MS)
                        .arg(&lease.0[..]);
                    1
                },
            )
            .await;
        results
    }

    /// Ends leases, by their keys and tokens.
    async fn give_back(&self, lent: Vec<([String; 4], Bytes)>) -> Vec<Result<(), Error>> {
        let replies = self.fleet().units(
            lent.len(),
            |at| lent[at].0[0].clone(),
            Repeat::Once,
            |pipeline, at, form| {
                let ([_, held, _, hold], token) = &lent[at];
                RELEASE.on(pipeline, form, &[held, hold]).arg(&token[..]);
                1
            },
        );
        replies.await.into_iter().map(|replies| self.heed(replies.and_then(wire::all_done))).collect()
    }

    /// Value, lease, scratch and hold of a key: in one slot.
    pub(crate) fn keys(&self, key: RawKey<'_>) -> [String; 4] {
        wire::keys(&self.settings().prefix, key)
    }
}

#[async_trait]
impl Leases for RedisProvider {
    async fn acquire_many(&self, wanted: &[Acquire<'_>], life: Duration) -> Vec<Result<Acquired, BoxError>> {
        let tokens: Vec<Bytes> = wanted.iter().map(|_| token()).collect();
        let ms = life_ms(life);
        let mut asking =
            Asking { provider: self, wanted, key: |wish| wish.key, tokens: &tokens, is_answered: false };
        let replies = self.units(
            wanted.len(),
            |at| wanted[at].key,
            Repeat::Once,
            |pipeline, at, form| {
                let [value, held, _, hold] = self.keys(wanted[at].key);
                ACQUIRE
                    .on(pipeline, form, &[&value, &held, &hold])
                    .arg(&tokens[at][..])
                    .arg(ms)
                    .arg(TOMBSTONE)
                    .arg(&holding(wanted[at].holding)[..])
                    .arg(u8::from(matches!(wanted[at].holding, Holding::Still(_))));
                1
            },
        );
        let replies = replies.await.into_iter().zip(&tokens);
        asking.is_answered = true;
        let answers = replies.map(|(replies, token)| {
            self.heed(replies.and_then(|mut replies| acquired(replies.pop(), token)))
        });
        answers.map(looked_up).collect()
    }

    async fn fill_many(&self, fills: &[Fill<'_>]) -> Vec<Result<bool, BoxError>> {
        let mut results = Vec::with_capacity(fills.len());
        for chunk in chunks(fills, |fill| fill.put.bytes.len()) {
            results.extend(self.fill_chunk(chunk).await);
        }
        boxed(results)
    }

    async fn hold_many(&self, keys: &[RawKey<'_>], life: Duration) -> Vec<Result<Lease, BoxError>> {
        let tokens: Vec<Bytes> = keys.iter().map(|_| token()).collect();
        let ms = life_ms(life);
        let mut asking =
            Asking { provider: self, wanted: keys, key: |key| *key, tokens: &tokens, is_answered: false };
        let replies = self.units(
            keys.len(),
            |at| keys[at],
            Repeat::Once,
            |pipeline, at, form| {
                let [value, held, scratch, hold] = self.keys(keys[at]);
                pipeline.cmd("MULTI").cmd("DEL").arg(scratch);
                HOLD.on(pipeline, form, &[&held, &hold]).arg(&tokens[at][..]).arg(ms);
                pipeline.cmd("SET").arg(value).arg(TOMBSTONE).arg("PX").arg(TOMBSTONE_MS).cmd("EXEC");
                5
            },
        );
        let replies = replies.await.into_iter().zip(&tokens);
        asking.is_answered = true;
        boxed(replies.map(|(replies, token)| {
            let held = replies.and_then(executed).and_then(wire::all_done);
            self.heed(held).map(|()| Lease(token.clone()))
        }))
    }

    async fn renew_many(&self, leases: &[(RawKey<'_>, Lease)], life: Duration) -> Vec<Result<(), BoxError>> {
        let ms = life_ms(life);
        let replies = self.units(
            leases.len(),
            |at| leases[at].0,
            Repeat::Once,
            |pipeline, at, form| {
                let (key, lease) = &leases[at];
                let [_, held, _, hold] = self.keys(*key);
                RENEW.on(pipeline, form, &[&held, &hold]).arg(&lease.0[..]).arg(ms);
                1
            },
        );
        boxed(replies.await.into_iter().map(|replies| self.heed(replies.and_then(wire::all_done))))
    }

    async fn release_many(&self, leases: &[(RawKey<'_>, Lease)]) -> Vec<Result<(), BoxError>> {
        let lent = leases.iter().map(|(key, lease)| (self.keys(*key), lease.0.clone())).collect();
        boxed(self.give_back(lent).await)
    }
}

/// A request for leases, or holds, that is under way.
struct Asking<'a, W> {
    provider: &'a RedisProvider,
    wanted: &'a [W],
    key: fn(&'a W) -> RawKey<'a>,
    tokens: &'a [Bytes],
    is_answered: bool,
}

/// Whoever has asked has left, or does not wait any longer. What is granted all the same would keep others waiting until it
/// ends. Sent over the same connection, this comes after the request.
impl<W> Drop for Asking<'_, W> {
    fn drop(&mut self) {
        let Ok(runtime) = Handle::try_current() else { return };
        if self.is_answered {
            return;
        }
        let keys = self.wanted.iter().map(|wish| self.provider.keys((self.key)(wish)));
        let lent = keys.zip(self.tokens.iter().cloned()).collect();
        let provider = self.provider.clone();
        runtime.spawn(async move { drop(provider.give_back(lent).await) });
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn tokens_are_never_equal() {
        let tasks: Vec<_> =
            (0..4).map(|_| std::thread::spawn(|| (0..1000).map(|_| token()).collect::<Vec<_>>())).collect();
        let all: HashSet<Bytes> = tasks.into_iter().flat_map(|task| task.join().unwrap()).collect();
        assert_eq!(all.len(), 4000);
    }

    #[test]
    fn answers_that_make_no_sense_are_errors() {
        let token = token();
        for reply in [None, Some(Value::Nil), Some(Value::Int(3)), Some(Value::Okay)] {
            assert!(acquired(reply, &token).is_err());
        }
        for replies in [vec![], vec![Value::Array(vec![])], vec![Value::Array(vec![Value::Int(1)])]] {
            assert!(filled(replies).is_err());
        }
    }
}
