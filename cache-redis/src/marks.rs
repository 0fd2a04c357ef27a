//! Marks: replaced by one script, since those of a cache are in one slot, and a `RENAME` where that of the cache becomes
//! another one, as with a fill.

use async_trait::async_trait;
use cache_core::{BoxError, Marks, Swap, Swapped};
use redis::Value;

use crate::{
    Error, ErrorKind, RedisProvider,
    scripts::SWAP,
    units::{Repeat, executed},
    wire,
};

#[async_trait]
impl Marks for RedisProvider {
    async fn swap(&self, marks: &[Swap<'_>]) -> Result<Swapped, BoxError> {
        if marks.is_empty() {
            return Ok(Swapped::Done);
        }
        // The cache's mark is tracked. Were a script to write it, this node would hear of its own change as of another
        // node's.
        let moved = marks.iter().position(|mark| is_moved(mark));
        let swapped = match self.swap_once(marks, moved).await {
            Err(error) if moved.is_some() && is_for_a_script(&error) => self.swap_once(marks, None).await,
            swapped => swapped,
        };
        let swapped = self.heed(swapped)?;
        if let Swapped::Other { now, .. } = &swapped {
            // As with a mark that was read: the state of the store that it was made in has to be known here, too.
            self.fleet().recognise(now.as_deref()).await?;
        }
        Ok(swapped)
    }
}

impl RedisProvider {
    /// There is at least one mark. `moved`: which of them is put in place by a `RENAME`, in a transaction.
    async fn swap_once(&self, marks: &[Swap<'_>], moved: Option<usize>) -> Result<Swapped, Error> {
        let prefix = &self.settings().prefix;
        let keys: Vec<String> = marks.iter().map(|mark| wire::key(prefix, mark.key)).collect();
        let scratch = wire::beside(prefix, marks[0].key);
        // No more keys than needed: while a slot moves, one that is not there keeps a command from touching those that are.
        let beside = moved.map(|_| &scratch);
        let touched: Vec<&str> = keys.iter().chain(beside).map(String::as_str).collect();
        let replies = self.units(
            1,
            |_| marks[0].key,
            Repeat::Never,
            |pipeline, _, form| {
                if moved.is_some() {
                    pipeline.cmd("MULTI").cmd("DEL").arg(&scratch);
                }
                let script = SWAP.on(pipeline, form, &touched).arg(moved.map_or(0, |at| at + 1));
                for Swap { seen, bytes, ttl, .. } in marks {
                    let ms = wire::px(*ttl).map_or_else(String::new, |ms| ms.to_string());
                    script.arg(u8::from(seen.is_some())).arg(seen.as_deref().unwrap_or_default());
                    script.arg(&bytes[..]).arg(ms);
                }
                match moved {
                    Some(at) => {
                        pipeline.cmd("RENAME").arg(&scratch).arg(&keys[at]).cmd("EXEC");
                        5
                    }
                    None => 1,
                }
            },
        );
        let replies = replies.await.pop().unwrap_or_else(|| Err(no_answer()));
        replies.and_then(|replies| match moved {
            Some(_) => moved_as_well(replies, marks.len()),
            None => swapped(replies.into_iter().next(), marks.len()),
        })
    }
}

/// Whether a transaction was refused where a script may run: when the server is out of memory, and while the slot moves, as
/// the scratch key is not there.
fn is_for_a_script(error: &Error) -> bool {
    error.kind() == ErrorKind::OutOfMemory || error.redirect().is_some_and(|to| to.ask)
}

/// Whether it is the mark of a cache, and becomes another one.
fn is_moved(swap: &Swap<'_>) -> bool {
    swap.key.id.is_empty() && swap.seen.as_ref() != Some(&swap.bytes)
}

/// What has become of a transaction. Where marks are not what was seen, there is nothing to be moved.
fn moved_as_well(replies: Vec<Value>, count: usize) -> Result<Swapped, Error> {
    let mut replies = executed(replies)?.into_iter().skip(1);
    match (swapped(replies.next(), count)?, replies.next()) {
        (Swapped::Done, Some(Value::ServerError(error))) => Err(Error::reply(&error)),
        (Swapped::Done, None) => Err(no_answer()),
        (swapped, _) => Ok(swapped),
    }
}

fn no_answer() -> Error {
    Error::protocol("no answer to a swap of marks")
}

fn swapped(reply: Option<Value>, count: usize) -> Result<Swapped, Error> {
    match reply {
        Some(Value::Int(0)) => Ok(Swapped::Done),
        Some(Value::Array(parts)) => {
            let mut parts = parts.into_iter();
            let (Some(Value::Int(position)), Some(now), None) = (parts.next(), parts.next(), parts.next())
            else {
                return Err(no_answer());
            };
            let at = usize::try_from(position).ok().and_then(|at| at.checked_sub(1)).filter(|at| *at < count);
            Ok(Swapped::Other { at: at.ok_or_else(no_answer)?, now: wire::found_value(now)? })
        }
        Some(Value::ServerError(error)) => Err(Error::reply(&error)),
        _ => Err(no_answer()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_that_make_no_sense_are_errors() {
        let other = |parts| swapped(Some(Value::Array(parts)), 2);
        assert_eq!(other(vec![Value::Int(2), Value::Nil]).unwrap(), Swapped::Other { at: 1, now: None });
        for parts in
            [vec![], vec![Value::Int(1)], vec![Value::Int(0), Value::Nil], vec![Value::Int(3), Value::Nil]]
        {
            assert!(other(parts).is_err());
        }
        assert!(swapped(None, 1).is_err() && swapped(Some(Value::Okay), 1).is_err());
    }
}
