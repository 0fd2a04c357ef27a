//! Puts and removals: each ends the lease of its key in the same transaction, and takes what a fill may be about to move
//! there, see [`FILL`](crate::scripts::FILL).

use cache_core::{Put, RawKey};
use redis::Value;

use crate::{
    Error, ErrorKind, RedisProvider,
    scripts::{MARK, VOID},
    units::{Repeat, executed},
    wire::{self, TOMBSTONE, TOMBSTONE_MS},
};

/// Items per pipeline: what is sent and answered in one go is held in memory on both sides.
pub(crate) const CHUNK: usize = 512;
/// Bytes of values per pipeline.
const CHUNK_BYTES: usize = 8 * 1024 * 1024;

/// Pipelines of at most [`CHUNK`] items and [`CHUNK_BYTES`], but of one at least.
pub(crate) fn chunks<T>(items: &[T], size: impl Fn(&T) -> usize) -> Vec<&[T]> {
    let mut chunks = Vec::new();
    let mut rest = items;
    while !rest.is_empty() {
        let mut bytes = 0usize;
        let fits = |item: &&T| {
            bytes = bytes.saturating_add(size(item));
            bytes <= CHUNK_BYTES
        };
        let (chunk, next) = rest.split_at(rest.iter().take(CHUNK).take_while(fits).count().max(1));
        chunks.push(chunk);
        rest = next;
    }
    chunks
}

/// What a key is to hold.
#[derive(Clone, Copy)]
struct Write<'a> {
    key: RawKey<'a>,
    /// `None`: nothing any more.
    bytes: Option<&'a [u8]>,
    /// `None`: without end.
    ms: Option<u64>,
}

impl<'a> Write<'a> {
    const fn nothing(key: RawKey<'a>) -> Self {
        Self { key, bytes: None, ms: Some(TOMBSTONE_MS) }
    }
}

impl RedisProvider {
    pub(crate) async fn put_chunk(&self, items: &[Put<'_>]) -> Vec<Result<(), Error>> {
        let most = self.settings().value_max;
        let writes: Vec<_> = items
            .iter()
            .map(|item| match item.bytes.len() {
                // What is refused must not leave the old value behind.
                size if size > most => Write::nothing(item.key),
                _ => Write { key: item.key, bytes: Some(&item.bytes), ms: wire::px(item.ttl) },
            })
            .collect();
        let mut results = self.write_all(&writes).await;
        for (item, result) in items.iter().zip(&mut results) {
            if result.is_ok() && item.bytes.len() > most {
                *result = Err(self.too_large(item.bytes.len()));
            }
        }
        results
    }

    pub(crate) async fn remove_chunk(&self, keys: &[RawKey<'_>]) -> Vec<Result<(), Error>> {
        let writes: Vec<_> = keys.iter().map(|key| Write::nothing(*key)).collect();
        self.write_all(&writes).await
    }

    pub(crate) fn too_large(&self, size: usize) -> Error {
        let most = self.settings().value_max;
        Error::new(ErrorKind::TooLarge, format!("an item of {size} bytes is over value_max = {most}"))
    }

    /// Runs writes, never twice: what the first run did before the connection broke is unknown.
    ///
    /// What is removed leaves a tombstone: a removal of what is not there must reach those who track the key, and only a
    /// write does. A mark is no entry: it has no lease, and is removed outright.
    async fn write_all(&self, writes: &[Write<'_>]) -> Vec<Result<(), Error>> {
        let replies = self.units(
            writes.len(),
            |at| writes[at].key,
            Repeat::Never,
            |pipeline, at, _| {
                let write = writes[at];
                let [value, lease, scratch, _] = self.keys(write.key);
                let marker = write.key.mark;
                let beside = || wire::beside(&self.settings().prefix, write.key);
                if marker && write.bytes.is_none() {
                    pipeline.cmd("UNLINK").arg(value).cmd("DEL").arg(beside());
                    return 2;
                }
                if !marker {
                    pipeline.cmd("MULTI").cmd("DEL").arg(lease).arg(scratch);
                }
                pipeline.cmd("SET").arg(value).arg(write.bytes.unwrap_or(TOMBSTONE));
                if let Some(ms) = write.ms {
                    pipeline.arg("PX").arg(ms);
                }
                if marker {
                    pipeline.cmd("DEL").arg(beside());
                    return 2;
                }
                pipeline.cmd("EXEC");
                4
            },
        );
        let mut results: Vec<_> = replies
            .await
            .into_iter()
            .zip(writes)
            .map(|(replies, write)| {
                let replies = match replies {
                    // While its slot moves, what is beside it may not be touched, nor is there anything to be moved.
                    Ok(mut replies) if write.key.mark => {
                        replies.truncate(1);
                        Ok(replies)
                    }
                    other => other.and_then(executed),
                };
                self.heed(replies.and_then(wire::all_done))
            })
            .collect();
        self.without_memory(writes, &mut results).await;
        results
    }

    /// A server out of memory refuses writes and transactions. A removal must work all the same, and a refused put must
    /// leave nothing: a script may do that; where it may not, there is still `UNLINK`. Nobody hears of that if nothing was
    /// there, so where others listen the refusal stands then.
    async fn without_memory(&self, writes: &[Write<'_>], results: &mut [Result<(), Error>]) {
        let refused = |at: &usize| results[*at].as_ref().is_err_and(|e| e.kind() == ErrorKind::OutOfMemory);
        let refused: Vec<usize> = (0..writes.len()).filter(refused).collect();
        if refused.is_empty() {
            return;
        }
        let void = self.units(
            refused.len(),
            |at| writes[refused[at]].key,
            Repeat::Never,
            |pipeline, at, form| {
                let write = writes[refused[at]];
                let [value, lease, scratch, _] = self.keys(write.key);
                if let (true, Some(mark)) = (write.key.mark, write.bytes) {
                    MARK.on(pipeline, form, &[&value]).arg(mark).arg(write.ms);
                    return 1;
                }
                VOID.on(pipeline, form, &[&value, &lease, &scratch]).arg(TOMBSTONE).arg(TOMBSTONE_MS);
                1
            },
        );
        let mut void: Vec<_> =
            void.await.into_iter().map(|replies| replies.and_then(wire::all_done)).collect();
        let failed: Vec<usize> = (0..void.len()).filter(|at| void[*at].is_err()).collect();
        for (at, void) in refused.iter().zip(&void) {
            if writes[*at].key.mark && void.is_ok() {
                results[*at] = Ok(());
            }
        }
        let unlinked = self.units(
            failed.len(),
            |at| writes[refused[failed[at]]].key,
            Repeat::Never,
            |pipeline, at, _| {
                let [value, lease, scratch, _] = self.keys(writes[refused[failed[at]]].key);
                pipeline.cmd("UNLINK").arg(lease).arg(scratch).cmd("UNLINK").arg(value);
                2
            },
        );
        for (at, replies) in failed.iter().zip(unlinked.await) {
            let was_there = matches!(replies.as_deref(), Ok([.., Value::Int(1)]));
            let at_write = refused[*at];
            let is_silent = !was_there && self.watch().watches(writes[at_write].key.namespace);
            void[*at] = match replies.and_then(wire::all_done) {
                Ok(()) if is_silent => results[at_write].clone(),
                done => done,
            };
        }
        for (at, void) in refused.into_iter().zip(void) {
            // Of a refused put, the refusal is what its caller wants to hear of.
            if writes[at].bytes.is_none() {
                results[at] = void;
            }
        }
    }
}
