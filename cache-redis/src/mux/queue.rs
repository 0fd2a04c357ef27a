//! What waits for replies on one connection, in the order in which it was asked.

use std::mem;

use bytes::Bytes;
use redis::{RedisError, ServerError, Value};
use tokio::sync::oneshot;
use xxhash_rust::xxh3::xxh3_64;

use super::frame::Reply;

pub(super) type Caller<T> = oneshot::Sender<Result<T, RedisError>>;

/// Keys per `MGET`.
const KEYS: usize = 512;

/// Who waits for which replies.
pub(super) enum Waiter {
    /// For one.
    One(Caller<Reply>),
    /// For that to a look-up.
    Lookup(Caller<Reply>),
    /// Look-ups of one `MGET` of so many keys: each for a part of its reply.
    Gathered(usize, Vec<Asking>),
    /// For as many as are left, each of so many values at most.
    Many { left: usize, values: usize, replies: Vec<Reply>, caller: Caller<Vec<Reply>> },
    /// For as many pushes, or one error.
    Confirmed { left: usize, caller: Caller<Reply> },
}

/// A reply of another shape than the request has, and who waited for it.
pub(super) struct OutOfStep(pub(super) Waiter);

/// What becomes of who has been given a reply.
pub(super) enum Taken {
    Ended(Ended),
    Waits(Waiter),
}

/// Has all that it waited for.
pub(super) enum Ended {
    One(Reply, Caller<Reply>),
    Gathered(Vec<Option<Bytes>>, Vec<Asking>),
    /// Has values and errors.
    Mixed(Vec<Value>, Vec<Asking>),
    /// One of the look-ups has failed them all.
    Scattered(Vec<Asking>),
    Refused(ServerError, Vec<Asking>),
    Many(Vec<Reply>, Caller<Vec<Reply>>),
}

impl Ended {
    /// Look-ups in it that were gathered.
    pub(super) fn gathered(&self) -> usize {
        match self {
            Self::Gathered(_, callers)
            | Self::Mixed(_, callers)
            | Self::Scattered(callers)
            | Self::Refused(_, callers) => callers.len(),
            Self::One(..) | Self::Many(..) => 0,
        }
    }

    pub(super) fn callers(&self) -> usize {
        match self {
            Self::One(..) | Self::Many(..) => 1,
            _ => self.gathered(),
        }
    }

    /// Wakes the callers. One that has walked away is not missed.
    pub(super) fn tell(self) {
        match self {
            Self::One(reply, caller) => drop(caller.send(Ok(reply))),
            Self::Many(replies, caller) => drop(caller.send(Ok(replies))),
            Self::Gathered(mut values, callers) => {
                // Unless several have asked for one key, each value goes to one.
                let alone = values.len() == callers.len();
                for Asking(place, caller) in callers {
                    let value = values.get_mut(place).and_then(|v| if alone { v.take() } else { v.clone() });
                    let _ = caller.send(Ok(value.map_or(Reply::Nil, Reply::Text)));
                }
            }
            Self::Mixed(values, callers) => {
                for Asking(place, caller) in callers {
                    let value = values.get(place).cloned().unwrap_or(Value::Nil);
                    let _ = caller.send(Ok(Reply::Other(value)));
                }
            }
            Self::Refused(error, callers) => {
                for Asking(_, caller) in callers {
                    let _ = caller.send(Ok(Reply::Other(Value::ServerError(error.clone()))));
                }
            }
            Self::Scattered(callers) => {
                for Asking(_, caller) in callers {
                    let _ = caller.send(Ok(Reply::AskAlone));
                }
            }
        }
    }
}

impl Waiter {
    /// Look-ups in it that were gathered.
    pub(super) fn gathered(&self) -> usize {
        match self {
            Self::Gathered(_, callers) => callers.len(),
            Self::One(_) | Self::Lookup(_) | Self::Many { .. } | Self::Confirmed { .. } => 0,
        }
    }

    /// Most values that the next reply may hold.
    pub(super) const fn values(&self) -> usize {
        match self {
            Self::One(_) | Self::Lookup(_) => 1,
            Self::Gathered(count, _) => *count,
            Self::Many { values, .. } => *values,
            Self::Confirmed { .. } => 0,
        }
    }

    /// How many have not left.
    pub(super) fn attended(&self) -> usize {
        match self {
            Self::One(caller) | Self::Lookup(caller) | Self::Confirmed { caller, .. } => {
                usize::from(!caller.is_closed())
            }
            Self::Many { caller, .. } => usize::from(!caller.is_closed()),
            Self::Gathered(_, callers) => attended(callers),
        }
    }

    /// Whether pushes are its replies.
    pub(super) const fn wants_pushes(&self) -> bool {
        matches!(self, Self::Confirmed { .. })
    }

    /// Takes a reply, and has ended or goes on waiting.
    pub(super) fn take(self, reply: Reply) -> Result<Taken, OutOfStep> {
        Ok(match self {
            Self::One(caller) => Taken::Ended(Ended::One(reply, caller)),
            // Whatever else has come may be the answer to another question, and so may all that follows.
            Self::Lookup(caller) => match reply {
                Reply::Text(_) | Reply::Nil | Reply::Other(Value::ServerError(_)) => {
                    Taken::Ended(Ended::One(reply, caller))
                }
                _ => return Err(OutOfStep(Self::Lookup(caller))),
            },
            Self::Gathered(count, callers) => Taken::Ended(match reply {
                Reply::Texts(values) if values.len() == count => Ended::Gathered(values, callers),
                // A proxy asks several servers, and one of them may be away.
                Reply::Other(Value::Array(values)) if values.len() == count && are_found(&values) => {
                    Ended::Mixed(values, callers)
                }
                Reply::Other(Value::ServerError(error)) if error.code() == "NOPERM" => {
                    Ended::Scattered(callers)
                }
                Reply::Other(Value::ServerError(error)) => Ended::Refused(error, callers),
                _ => return Err(OutOfStep(Self::Gathered(count, callers))),
            }),
            Self::Many { left, values, mut replies, caller } => {
                replies.push(reply);
                match left.saturating_sub(1) {
                    0 => Taken::Ended(Ended::Many(replies, caller)),
                    left => Taken::Waits(Self::Many { left, values, replies, caller }),
                }
            }
            Self::Confirmed { left, caller } => match (left, &reply) {
                (2.., Reply::Other(Value::Push { .. })) => {
                    Taken::Waits(Self::Confirmed { left: left - 1, caller })
                }
                (_, Reply::Other(Value::Push { .. } | Value::ServerError(_))) => {
                    Taken::Ended(Ended::One(reply, caller))
                }
                _ => return Err(OutOfStep(Self::Confirmed { left, caller })),
            },
        })
    }

    pub(super) fn fail(self, error: &RedisError) {
        match self {
            Self::One(caller) | Self::Lookup(caller) | Self::Confirmed { caller, .. } => {
                let _ = caller.send(Err(error.clone()));
            }
            Self::Many { caller, .. } => {
                let _ = caller.send(Err(error.clone()));
            }
            Self::Gathered(_, callers) => {
                for Asking(_, caller) in callers {
                    let _ = caller.send(Err(error.clone()));
                }
            }
        }
    }
}

/// Whether each can be the answer to a look-up.
fn are_found(values: &[Value]) -> bool {
    values.iter().all(|value| matches!(value, Value::BulkString(_) | Value::Nil | Value::ServerError(_)))
}

/// Look-ups that have been gathered and not been sent. Those of one key share their place in the command, for the most part:
/// a key is compared with one other.
#[derive(Default)]
pub(super) struct Lookups {
    /// The keys, as arguments.
    keys: Vec<u8>,
    /// Where each of them ends.
    ends: Vec<usize>,
    callers: Vec<Asking>,
    /// By a part of a key's hash, the place of the last of them.
    seen: Vec<usize>,
}

/// A caller, and the place of the key.
pub(super) struct Asking(usize, Caller<Reply>);

fn attended(callers: &[Asking]) -> usize {
    callers.iter().filter(|Asking(_, caller)| !caller.is_closed()).count()
}

impl Lookups {
    const SEEN: usize = 64;

    pub(super) fn is_empty(&self) -> bool {
        self.callers.is_empty()
    }

    pub(super) fn is_full(&self) -> bool {
        self.ends.len() >= KEYS
    }

    pub(super) fn callers(&self) -> usize {
        self.callers.len()
    }

    /// How many of the callers have not left.
    pub(super) fn attended(&self) -> usize {
        attended(&self.callers)
    }

    /// Bytes, or so.
    pub(super) fn len(&self) -> usize {
        self.keys.len() + self.callers.len() * size_of::<Asking>()
    }

    pub(super) fn add(&mut self, key: &str, caller: Caller<Reply>) {
        let from = self.keys.len();
        put_argument(&mut self.keys, key.as_bytes());
        self.seen.resize(Self::SEEN, usize::MAX);
        let slot = usize::from(xxh3_64(key.as_bytes()).to_le_bytes()[0]) % Self::SEEN;
        if self.argument(self.seen[slot]) == Some(&self.keys[from..]) {
            self.keys.truncate(from);
        } else {
            self.seen[slot] = self.ends.len();
            self.ends.push(self.keys.len());
        }
        self.callers.push(Asking(self.seen[slot], caller));
    }

    fn argument(&self, place: usize) -> Option<&[u8]> {
        let to = *self.ends.get(place)?;
        let from = place.checked_sub(1).and_then(|before| self.ends.get(before)).copied().unwrap_or(0);
        self.keys.get(from..to)
    }

    /// Appends them as one command, also for those who have left: what a caller's drop runs has no place under a lock.
    pub(super) fn seal(&mut self, out: &mut Vec<u8>) -> Waiter {
        let (count, mut callers) = (self.ends.len(), mem::take(&mut self.callers));
        put_header(out, count + 1);
        let waiter = match callers.pop() {
            Some(Asking(_, caller)) if callers.is_empty() => {
                put_argument(out, b"GET");
                Waiter::Lookup(caller)
            }
            last => {
                put_argument(out, b"MGET");
                callers.extend(last);
                Waiter::Gathered(count, callers)
            }
        };
        out.append(&mut self.keys);
        self.ends.clear();
        self.seen.clear();
        waiter
    }

    /// Those who wait, of what is not going to be sent.
    pub(super) fn into_waiter(self) -> Option<Waiter> {
        (!self.callers.is_empty()).then_some(Waiter::Gathered(self.ends.len(), self.callers))
    }
}

/// A whole look-up of one key.
pub(super) fn put_get(out: &mut Vec<u8>, key: &str) {
    // Not more than this beside the key.
    const REST: usize = 48;
    out.reserve(key.len() + REST);
    put_header(out, 2);
    put_argument(out, b"GET");
    put_argument(out, key.as_bytes());
}

fn put_header(out: &mut Vec<u8>, arguments: usize) {
    out.push(b'*');
    put_number(out, arguments);
}

fn put_argument(out: &mut Vec<u8>, argument: &[u8]) {
    out.push(b'$');
    put_number(out, argument.len());
    out.extend_from_slice(argument);
    out.extend_from_slice(b"\r\n");
}

fn put_number(out: &mut Vec<u8>, number: usize) {
    out.extend_from_slice(itoa::Buffer::new().format(number).as_bytes());
    out.extend_from_slice(b"\r\n");
}
