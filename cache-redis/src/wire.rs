//! Keys, TTLs and replies as Redis has them.

use std::{borrow::Cow, time::Duration};

use bytes::Bytes;
use cache_core::{RawKey, shorten};
use redis::Value;

use crate::{Error, mux::Reply};

/// Most bytes of `namespace:id` that go to the server as they are.
pub(crate) const KEY_MAX: usize = 4096;

/// What stands under a removed key for a while, so that those who track the key hear of its removal. Read as a miss. No
/// envelope, no text and no number begins so.
pub(crate) const TOMBSTONE: &[u8] = b"\0removed";
/// How long a tombstone stands.
pub(crate) const TOMBSTONE_MS: u64 = 60_000;

/// `{prefix}v:{ns:id}`, with the braces, so that all keys of one id are in one cluster slot; `{prefix}m:{ns}` for the
/// cache's own mark and `{prefix}t:{ns}:tag` for a tag's, in one slot as well.
pub(crate) fn key(prefix: &str, key: RawKey<'_>) -> String {
    let mut out = String::new();
    put_key(&mut out, prefix, key);
    out
}

fn put_key(out: &mut String, prefix: &str, key: RawKey<'_>) {
    match key {
        RawKey { mark: false, .. } => put_named(out, prefix, "v:{", key),
        RawKey { namespace, id: "", .. } => out.extend([prefix, "m:{", namespace, "}"]),
        RawKey { namespace, id, .. } => out.extend([prefix, "t:{", namespace, "}:", &shorten(id, KEY_MAX)]),
    }
}

/// Keys of a batch, one after the other in one text.
pub(crate) struct Keys {
    text: String,
    ends: Vec<usize>,
}

impl Keys {
    pub(crate) fn of(prefix: &str, keys: &[RawKey<'_>]) -> Self {
        let size = |key: &RawKey<'_>| room(prefix, *key);
        let mut text = String::with_capacity(keys.iter().map(size).sum());
        let end = |key: &RawKey<'_>| {
            put_key(&mut text, prefix, *key);
            text.len()
        };
        let ends = keys.iter().map(end).collect();
        Self { text, ends }
    }

    pub(crate) fn each(&self) -> Vec<&str> {
        let mut rest = self.text.as_str();
        let mut from = 0;
        let one = |end: &usize| {
            let (key, behind) = rest.split_at(end - from);
            (rest, from) = (behind, *end);
            key
        };
        self.ends.iter().map(one).collect()
    }
}

/// Of value, lease (`l:`), scratch (`f:`) and a writer's hold (`w:`).
pub(crate) fn keys(prefix: &str, key: RawKey<'_>) -> [String; 4] {
    [self::key(prefix, key), named(prefix, "l:{", key), named(prefix, "f:{", key), named(prefix, "w:{", key)]
}

/// Scratch of the marks of a cache.
pub(crate) fn beside(prefix: &str, mark: RawKey<'_>) -> String {
    format!("{prefix}f:{{{}}}", mark.namespace)
}

fn named(prefix: &str, kind: &str, key: RawKey<'_>) -> String {
    let mut out = String::new();
    put_named(&mut out, prefix, kind, key);
    out
}

/// Bytes that a key takes.
fn room(prefix: &str, key: RawKey<'_>) -> usize {
    prefix.len() + 5 + key.joined_len().min(KEY_MAX)
}

fn put_named(out: &mut String, prefix: &str, kind: &str, key: RawKey<'_>) {
    out.reserve(room(prefix, key));
    out.push_str(prefix);
    out.push_str(kind);
    let from = out.len();
    out.push_str(key.namespace);
    out.push(':');
    out.push_str(key.id);
    if let Cow::Owned(short) = shorten(&out[from..], KEY_MAX) {
        out.replace_range(from.., &short);
    }
    out.push('}');
}

/// Milliseconds for `PX`: rounded up, at least 1, at most what the server can add to its clock. `None`: no expiry.
pub(crate) fn px(ttl: Duration) -> Option<u64> {
    const MOST: u128 = 1 << 62;
    if ttl == Duration::MAX {
        return None;
    }
    let ms = ttl.as_nanos().div_ceil(1_000_000).clamp(1, MOST);
    u64::try_from(ms).ok()
}

/// What a reply says, if it is a text.
pub(crate) fn text(value: &Value) -> Option<&str> {
    match value {
        Value::BulkString(bytes) => std::str::from_utf8(bytes).ok(),
        Value::SimpleString(text) | Value::VerbatimString { text, .. } => Some(text),
        _ => None,
    }
}

/// A reply to one `GET`, or one element of a reply to `MGET`.
///
/// A key that holds something else than a string is a miss, as in `MGET`; the next put replaces it.
pub(crate) fn found(reply: Reply) -> Result<Option<Bytes>, Error> {
    match reply {
        Reply::Text(text) => Ok(value_of(text)),
        Reply::Nil => Ok(None),
        reply => found_value(reply.into_value()),
    }
}

/// The same as the client library has it.
pub(crate) fn found_value(reply: Value) -> Result<Option<Bytes>, Error> {
    match reply {
        Value::BulkString(bytes) if bytes == TOMBSTONE => Ok(None),
        Value::BulkString(bytes) => Ok(Some(Bytes::from(bytes))),
        Value::Nil => Ok(None),
        Value::ServerError(error) if error.code() == "WRONGTYPE" => Ok(None),
        Value::ServerError(error) => Err(Error::reply(&error)),
        _ => Err(Error::protocol("no string where a value was asked for")),
    }
}

fn value_of(text: Bytes) -> Option<Bytes> {
    (text != TOMBSTONE).then_some(text)
}

/// A reply to `MGET` of `count` keys.
pub(crate) fn found_many(reply: Reply, count: usize) -> Vec<Result<Option<Bytes>, Error>> {
    let error = match reply {
        Reply::Texts(texts) if texts.len() == count => {
            return texts.into_iter().map(|text| Ok(text.and_then(value_of))).collect();
        }
        // A proxy that asks several servers puts the error of one in the place of its keys.
        Reply::Other(Value::Array(values)) if values.len() == count => {
            return values.into_iter().map(found_value).collect();
        }
        Reply::Other(Value::ServerError(error)) => Error::reply(&error),
        _ => Error::protocol("not one value per key"),
    };
    vec![Err(error); count]
}

/// A reply of which only success matters.
pub(crate) fn done(reply: Value) -> Result<(), Error> {
    match reply {
        Value::ServerError(error) => Err(Error::reply(&error)),
        _ => Ok(()),
    }
}

/// The same for several.
pub(crate) fn all_done(replies: Vec<Value>) -> Result<(), Error> {
    replies.into_iter().try_for_each(done)
}

#[cfg(test)]
mod tests {
    use cache_core::CacheId;

    use super::*;

    fn key_of(namespace: &str, id: &str) -> String {
        key("app:", RawKey::new(CacheId(1), namespace, id))
    }

    #[test]
    fn keys_carry_their_slot_in_braces() {
        assert_eq!(key_of("users", "42"), "app:v:{users:42}");
        assert_eq!(key("app:", RawKey::marker(CacheId(1), "users")), "app:m:{users}");
        assert_eq!(key("app:", RawKey::tag(CacheId(1), "users", "a}b")), "app:t:{users}:a}b");
        assert_eq!(key_of("users", "a}b"), "app:v:{users:a}b}");
        let all = keys("app:", RawKey::new(CacheId(1), "users", "a}b"));
        assert_eq!(all, ["v", "l", "f", "w"].map(|kind| format!("app:{kind}:{{users:a}}b}}")));
    }

    #[test]
    fn keys_of_a_batch_are_those_of_one() {
        let long = "k".repeat(5_000);
        let all = [
            RawKey::new(CacheId(1), "users", "42"),
            RawKey::marker(CacheId(1), "users"),
            RawKey::new(CacheId(1), "users", &long),
            RawKey::new(CacheId(1), "users", "é"),
            RawKey::tag(CacheId(1), "users", "a"),
        ];
        assert_eq!(Keys::of("app:", &all).each(), all.map(|one| key("app:", one)));
        assert!(Keys::of("app:", &[]).each().is_empty());
    }

    #[test]
    fn y2_long_keys_are_shortened_and_stay_apart() {
        let long = "k".repeat(10_000);
        let (a, b) = (key_of("users", &(long.clone() + "a")), key_of("users", &(long + "b")));
        assert_ne!(a, b);
        assert!(a.len() <= KEY_MAX + 8 && a.starts_with("app:v:{users:kkk") && a.ends_with('}'));
    }

    #[test]
    fn t11_a_ttl_is_never_lost() {
        assert_eq!(px(Duration::from_micros(400)), Some(1));
        assert_eq!(px(Duration::ZERO), Some(1));
        assert_eq!(px(Duration::from_micros(1001)), Some(2));
        assert_eq!(px(Duration::from_millis(250)), Some(250));
        assert_eq!(px(Duration::from_secs(u64::MAX)), Some(1 << 62));
        assert_eq!(px(Duration::MAX), None);
    }

    #[test]
    fn replies_that_make_no_sense_are_errors() {
        assert!(found(Reply::Other(Value::Int(1))).is_err());
        assert!(found_many(Reply::Texts(vec![None]), 2).iter().all(Result::is_err));
        assert_eq!(found_many(Reply::Nil, 2).len(), 2);
        let several = Value::Array(vec![Value::BulkString(b"v".into()), Value::Int(1), Value::Nil]);
        let several = found_many(Reply::Other(several), 3).into_iter().map(|found| found.ok());
        assert_eq!(several.collect::<Vec<_>>(), [Some(Some("v".into())), None, Some(None)]);
    }

    #[test]
    fn values_are_not_copied_but_those_of_the_client_library_are() {
        let input = Bytes::from(vec![b'x'; 100_000]);
        let alone = found(Reply::Text(input.clone())).unwrap().unwrap();
        let of_many = found_many(Reply::Texts(vec![Some(input.clone())]), 1).pop().unwrap().unwrap().unwrap();
        assert!(alone == input && of_many == input);
        assert!([alone, of_many].iter().all(|value| value.as_ptr() == input.as_ptr()));
        let Value::BulkString(value) = Reply::Text(input.slice(..1)).into_value() else {
            panic!("no string")
        };
        assert!(input.is_unique() && value.capacity() == 1);
    }
}
