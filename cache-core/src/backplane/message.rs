//! What nodes tell each other, on the wire: version, node, time of sending, kind, and what the kind needs.

use bytes::{BufMut, Bytes, BytesMut};

use crate::{
    Stamp,
    mark::Reach,
    tags::{TAG_MAX, TAGS_MAX},
};

const VERSION: u8 = 2;
const CLEAR: u8 = 0;
const KEY: u8 = 1;
const PURGE_TAGS: u8 = 2;
const EXPIRE_TAGS: u8 = 3;
const EXPIRE_ALL: u8 = 4;
/// Longest id that a message carries; a longer one travels as a clear.
const LONGEST_ID: usize = 16 * 1024;

/// What is told to the other nodes.
pub(super) enum Told<'a> {
    Key(&'a str),
    Clear,
    ExpireAll,
    /// `number`: what the invalidation is at the nearest remote level; an epoch of 0 where there is none.
    Tags {
        reach: Reach,
        number: Stamp,
        tags: &'a [Box<str>],
    },
}

impl Told<'_> {
    pub(super) fn keys(&self) -> usize {
        usize::from(matches!(self, Self::Key(_)))
    }

    /// `node`: who tells. `sent_us`: the time, for those who want to know how long it took.
    pub(super) fn encode(&self, node: u64, sent_us: i64) -> Bytes {
        let mut out = BytesMut::with_capacity(64);
        out.put_u8(VERSION);
        out.put_u64_le(node);
        out.put_i64_le(sent_us);
        match self {
            Self::Key(id) if id.len() <= LONGEST_ID => {
                out.put_u8(KEY);
                out.put_slice(id.as_bytes());
            }
            Self::Key(_) | Self::Clear => out.put_u8(CLEAR),
            Self::ExpireAll => out.put_u8(EXPIRE_ALL),
            Self::Tags { reach, number, tags } => {
                out.put_u8(match reach {
                    Reach::Purge => PURGE_TAGS,
                    Reach::Expire => EXPIRE_TAGS,
                });
                out.put_u64_le(number.epoch);
                out.put_u64_le(number.sequence);
                for tag in *tags {
                    // Checked: a tag is short.
                    out.put_u16_le(u16::try_from(tag.len()).unwrap_or(u16::MAX));
                    out.put_slice(tag.as_bytes());
                }
            }
        }
        out.freeze()
    }
}

/// A message, as it arrives.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Heard<'a> {
    Own,
    News {
        sent_us: i64,
        what: What<'a>,
    },
    /// Not a message of this release: dropped.
    Noise,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum What<'a> {
    Clear,
    ExpireAll,
    Key(&'a str),
    Tags { reach: Reach, number: Stamp, tags: Vec<&'a str> },
}

pub(super) fn decode(bytes: &[u8], me: u64) -> Heard<'_> {
    let [VERSION, rest @ ..] = bytes else { return Heard::Noise };
    let Some((node, rest)) = rest.split_first_chunk::<8>() else { return Heard::Noise };
    let Some((sent, rest)) = rest.split_first_chunk::<8>() else { return Heard::Noise };
    if u64::from_le_bytes(*node) == me {
        return Heard::Own;
    }
    let sent_us = i64::from_le_bytes(*sent);
    what(rest).map_or(Heard::Noise, |what| Heard::News { sent_us, what })
}

fn what(bytes: &[u8]) -> Option<What<'_>> {
    match bytes {
        [CLEAR] => Some(What::Clear),
        [EXPIRE_ALL] => Some(What::ExpireAll),
        [KEY, id @ ..] if !id.is_empty() && id.len() <= LONGEST_ID => {
            std::str::from_utf8(id).ok().map(What::Key)
        }
        [PURGE_TAGS, rest @ ..] => tags(rest, Reach::Purge),
        [EXPIRE_TAGS, rest @ ..] => tags(rest, Reach::Expire),
        _ => None,
    }
}

fn tags(bytes: &[u8], reach: Reach) -> Option<What<'_>> {
    let (epoch, rest) = bytes.split_first_chunk()?;
    let (sequence, mut rest) = rest.split_first_chunk()?;
    let number = Stamp { epoch: u64::from_le_bytes(*epoch), sequence: u64::from_le_bytes(*sequence) };
    let mut tags = Vec::new();
    while let Some((len, text)) = rest.split_first_chunk() {
        let (tag, next) = text.split_at_checked(usize::from(u16::from_le_bytes(*len)))?;
        tags.push(std::str::from_utf8(tag).ok().filter(|tag| !tag.is_empty() && tag.len() <= TAG_MAX)?);
        rest = next;
    }
    let sensible = rest.is_empty() && !tags.is_empty() && tags.len() <= TAGS_MAX;
    sensible.then_some(What::Tags { reach, number, tags })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_read_back_and_noise_is_not() {
        let (node, other) = (1, 2);
        let news = |what| Heard::News { sent_us: 7, what };
        let key = Told::Key("k").encode(node, 7);
        assert_eq!(decode(&key, node), Heard::Own);
        assert_eq!(decode(&key, other), news(What::Key("k")));
        assert_eq!(decode(&Told::Clear.encode(node, 7), other), news(What::Clear));
        assert_eq!(decode(&Told::ExpireAll.encode(node, 7), other), news(What::ExpireAll));
        let long = "x".repeat(LONGEST_ID + 1);
        assert_eq!(decode(&Told::Key(&long).encode(node, 7), other), news(What::Clear));
        let (tags, number) = ([Box::from("a"), Box::from("b c")], Stamp { epoch: 7, sequence: 9 });
        let told = Told::Tags { reach: Reach::Expire, number, tags: &tags }.encode(node, 7);
        let heard = What::Tags { reach: Reach::Expire, number, tags: vec!["a", "b c"] };
        assert_eq!(decode(&told, other), news(heard));
        for cut in 0..key.len() {
            assert_eq!(decode(&key[..cut], other), Heard::Noise, "p10: cut at {cut}");
        }
        for cut in 0..told.len() {
            let heard = decode(&told[..cut], other);
            assert!(heard == Heard::Noise || cut == told.len() - 5, "p10: cut at {cut}: {heard:?}");
        }
        for (at, byte) in [(0, 1), (17, 7)] {
            let mut bytes = key.to_vec();
            bytes[at] = byte;
            assert_eq!(decode(&bytes, other), Heard::Noise);
        }
    }
}
