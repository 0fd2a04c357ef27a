//! Several small transactions or scripts in one round trip.

use std::sync::Arc;

use redis::{Pipeline, Value};

use crate::{
    Error,
    keeper::Keeper,
    mux::Reply,
    scripts::{self, Form},
};

/// The replies to each unit, or why there are none.
pub(crate) type Replies = Vec<Result<Vec<Value>, Error>>;

/// Whether what was sent may be sent again when the connection breaks under it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Repeat {
    /// What the first run did is unknown.
    Never,
    /// Twice is as good as once.
    Once,
}

impl Keeper {
    /// Runs these units. `add` puts one into the pipeline and says how many commands it has.
    ///
    /// One round trip. Units of which the server does not know the script are run once more, with its text.
    pub(crate) async fn units(
        self: &Arc<Self>,
        which: &[usize],
        repeat: Repeat,
        add: &(impl Fn(&mut Pipeline, usize, Form) -> usize + Send + Sync),
    ) -> Replies {
        let mut replies = self.some_units(which, repeat, |p, at| add(p, at, Form::Digest)).await;
        let is_unknown = |replies: &Result<Vec<Value>, Error>| {
            replies.as_ref().is_ok_and(|replies| replies.iter().any(scripts::is_unknown))
        };
        let unknown: Vec<usize> = (0..which.len()).filter(|place| is_unknown(&replies[*place])).collect();
        if !unknown.is_empty() {
            let which: Vec<usize> = unknown.iter().map(|place| which[*place]).collect();
            let again = self.some_units(&which, repeat, |p, at| add(p, at, Form::Text)).await;
            for (place, again) in unknown.into_iter().zip(again) {
                replies[place] = again;
            }
        }
        replies
    }

    async fn some_units(
        self: &Arc<Self>,
        which: &[usize],
        repeat: Repeat,
        add: impl Fn(&mut Pipeline, usize) -> usize,
    ) -> Replies {
        if which.is_empty() {
            return Vec::new();
        }
        let mut pipeline = redis::pipe();
        let sizes: Vec<usize> = which.iter().map(|at| add(&mut pipeline, *at)).collect();
        match self.all(&pipeline, repeat).await {
            Ok(replies) => {
                let mut replies = replies.into_iter().map(Reply::into_value);
                sizes.into_iter().map(|size| Ok(replies.by_ref().take(size).collect())).collect()
            }
            Err(error) => vec![Err(error); which.len()],
        }
    }
}

/// The replies to what a transaction held, given those to all of its commands, `MULTI` and `EXEC` among them. An error
/// while it was queued comes first: of a transaction that was thrown away, `EXEC` knows no reason.
///
/// Only the last one is that of `EXEC`: where `MULTI` is refused, because a right has been taken away, say, what follows runs
/// at once, and a script may answer with a list as well.
pub(crate) fn executed(mut replies: Vec<Value>) -> Result<Vec<Value>, Error> {
    if let Some(Value::Array(_)) = replies.last()
        && let Some(Value::Array(done)) = replies.pop()
    {
        return Ok(done);
    }
    let refusal = replies.iter().find_map(|reply| match reply {
        Value::ServerError(error) => Some(Error::reply(error)),
        _ => None,
    });
    Err(refusal.unwrap_or_else(|| Error::protocol("a transaction without an end")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_transaction_that_makes_no_sense_is_an_error() {
        assert!(executed(vec![]).is_err());
        assert!(executed(vec![Value::Okay, Value::Nil]).is_err());
        assert_eq!(executed(vec![Value::Okay, Value::Array(vec![Value::Int(1)])]).unwrap(), [Value::Int(1)]);
        // Without `MULTI` a script runs at once, and its answer is not that of `EXEC`.
        assert!(executed(vec![Value::Array(vec![Value::Int(1)]), Value::Okay, Value::Nil]).is_err());
    }
}
