//! Marks: replaced by one script, since those of a cache are in one slot.

use async_trait::async_trait;
use cache_core::{BoxError, Marks, Swap, Swapped};
use redis::Value;

use crate::{Error, RedisProvider, scripts::SWAP, units::Repeat, wire};

#[async_trait]
impl Marks for RedisProvider {
    async fn swap(&self, marks: &[Swap<'_>]) -> Result<Swapped, BoxError> {
        if marks.is_empty() {
            return Ok(Swapped::Done);
        }
        let keys: Vec<String> =
            marks.iter().map(|mark| wire::key(&self.settings().prefix, mark.key)).collect();
        let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
        let replies = self.units(
            1,
            |_| marks[0].key,
            Repeat::Never,
            |pipeline, _, form| {
                let script = SWAP.on(pipeline, form, &keys);
                for Swap { seen, bytes, ttl, .. } in marks {
                    let ms = wire::px(*ttl).map_or_else(String::new, |ms| ms.to_string());
                    script.arg(u8::from(seen.is_some())).arg(seen.as_deref().unwrap_or_default());
                    script.arg(&bytes[..]).arg(ms);
                }
                1
            },
        );
        let reply = replies.await.pop().unwrap_or_else(|| Err(no_answer()));
        let swapped = reply.and_then(|mut replies| swapped(replies.pop(), marks.len()));
        let swapped = self.heed(swapped)?;
        if let Swapped::Other { now, .. } = &swapped {
            // As with one that was read: whatever state of the store it was made in is known here, too.
            self.fleet().recognise(now.as_deref()).await?;
        }
        Ok(swapped)
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
