//! Marks: the logical clock of a cache at a level, as it lies in the store.
//!
//! A cache has one mark at each remote level, and each of its tags that matters has one. The cache's mark says which
//! *epoch* it is (a new one makes every older entry void) and the number of the last invalidation by tag (*sequence*).
//! A tag's mark says which number its own last invalidation had. An entry carries epoch and sequence as they were known
//! before its load began, and is void once a mark has gone beyond them. No wall clock takes part.

use std::{
    fmt::{self, Write},
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use xxhash_rust::xxh3::xxh3_64;

use crate::{BoxError, RawKey};

/// One step of [`Marks::swap`]: a mark that is to be replaced.
#[derive(Clone)]
pub struct Swap<'a> {
    /// Which mark: [`RawKey::marker`] or [`RawKey::tag`].
    pub key: RawKey<'a>,
    /// What the caller has seen there; `None` for nothing.
    pub seen: Option<Bytes>,
    /// What takes its place.
    pub bytes: Bytes,
    /// Physical life, as of a [`Put`](crate::Put). A mark that has a longer one keeps that: who swaps may not know of the
    /// entries that it is kept for.
    pub ttl: Duration,
}

/// What is stored stays out of `Debug` output.
impl fmt::Debug for Swap<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { key, seen, bytes, ttl } = self;
        f.debug_struct("Swap")
            .field("key", key)
            .field("seen", &seen.as_ref().map(Bytes::len))
            .field("bytes", &bytes.len())
            .field("ttl", ttl)
            .finish()
    }
}

/// What became of a [`Marks::swap`].
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Swapped {
    /// All are in place.
    Done,
    /// A mark is not what the caller has seen; those before it may have been replaced, it and those behind it not.
    Other {
        /// Its position.
        at: usize,
        /// What it is.
        now: Option<Bytes>,
    },
}

/// What is stored stays out of `Debug` output.
impl fmt::Debug for Swapped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Done => f.write_str("Done"),
            Self::Other { at, now } => {
                f.debug_struct("Other").field("at", at).field("now", &now.as_ref().map(Bytes::len)).finish()
            }
        }
    }
}

/// Compare-and-swap for marks. What a store needs, besides puts, so that tags of a cache can be invalidated one by one:
/// at a level without it the invalidation of a tag widens to the whole cache.
///
/// Marks are read with [`CacheProvider::get_many`](crate::CacheProvider::get_many) like any key.
#[async_trait]
pub trait Marks: Send + Sync {
    /// Replaces marks of one cache, one after the other in their order, each only where it is what the caller has seen
    /// (an item that reads as a miss counts as nothing). Stops at the first that is not.
    ///
    /// # Errors
    /// What was done is unknown.
    async fn swap(&self, marks: &[Swap<'_>]) -> Result<Swapped, BoxError>;
}

/// How far an invalidation goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Reach {
    /// Gone: never served again.
    Purge,
    /// No longer fresh; kept as a fallback.
    Expire,
}

/// A cache's mark.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Mark {
    /// The state of the store that it was made in, see [`CacheProvider::incarnation`](crate::CacheProvider::incarnation).
    pub(crate) home: u64,
    /// Never 0.
    pub(crate) epoch: u64,
    /// Number of the last invalidation in this epoch.
    pub(crate) sequence: u64,
    /// Number of the last one that ended the freshness of every entry.
    pub(crate) expired: u64,
}

/// More invalidations than there can be between a look at the cache's mark and one at a tag's.
const AHEAD_MAX: u64 = 1 << 20;

/// No mark that is read has a higher number, so that there is always a next one.
const LAST: u64 = u64::MAX / 2;

impl Mark {
    pub(crate) fn new(home: u64) -> Self {
        Self { home, epoch: fastrand::u64(1..), sequence: 0, expired: 0 }
    }

    /// The mark with which a cache of this epoch begins in another store.
    pub(crate) fn carried(&self, home: u64) -> Self {
        let from = [self.epoch.to_le_bytes(), home.to_le_bytes()].concat();
        Self { home, epoch: xxh3_64(&from).max(1), sequence: 0, expired: 0 }
    }

    pub(crate) fn encode(&self) -> Bytes {
        let Self { home, epoch, sequence, expired } = self;
        text(format_args!("mark1 {home:016x} {epoch:016x} {sequence} {expired}"))
    }

    /// `None`: no mark of this release.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let mut words = words(bytes, "mark1")?;
        let mark = Self {
            home: hex(words.next()?)?,
            epoch: hex(words.next()?).filter(|epoch| *epoch != 0)?,
            sequence: words.next()?.parse().ok().filter(|number| *number <= LAST)?,
            expired: words.next()?.parse().ok()?,
        };
        // An expiry that has yet to come would leave nothing fresh for ever: no load carries its number.
        (words.next().is_none() && mark.expired <= mark.sequence).then_some(mark)
    }

    /// Whether it was made in this state of the store. Where the store does not tell its state, nobody can say.
    pub(crate) fn is_of(&self, home: u64) -> bool {
        home == 0 || self.home == home
    }

    /// Whether it is older than another one of its epoch.
    pub(crate) fn is_behind(&self, other: &Self) -> bool {
        self.sequence < other.sequence || self.expired < other.expired
    }

    /// The mark after one more invalidation.
    pub(crate) fn next(&self) -> Self {
        Self { sequence: self.sequence + 1, ..*self }
    }
}

/// The state of the store that a cache's mark was made in, by its bytes ([`RawKey::marker`]): for stores whose
/// [`incarnation`](crate::CacheProvider::incarnation) may have become another one without their notice. A mark of the one
/// that is known has no news of that.
pub fn state_of_marker(bytes: &[u8]) -> Option<u64> {
    Mark::decode(bytes).map(|mark| mark.home)
}

/// A tag's mark.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TagMark {
    /// The numbers below belong to it.
    pub(crate) epoch: u64,
    /// Number of the last invalidation that purged, or an upper bound of it.
    pub(crate) purged: u64,
    /// Number of the last one that expired, likewise.
    pub(crate) expired: u64,
}

impl TagMark {
    /// A tag of which nothing is known: it was invalidated by the last number at the latest.
    pub(crate) fn unknown(mark: &Mark) -> Self {
        Self { epoch: mark.epoch, purged: mark.sequence, expired: mark.sequence }
    }

    /// As it was read. What is missing, unreadable or of another epoch was invalidated by the last number at the latest:
    /// absence never makes an entry valid. A number that is far ahead of that would leave none valid for ever.
    pub(crate) fn read(raw: Option<&[u8]>, mark: &Mark) -> Self {
        let latest = mark.sequence.saturating_add(AHEAD_MAX);
        let is_of_it = |tag: &Self| tag.epoch == mark.epoch && tag.purged.max(tag.expired) <= latest;
        raw.and_then(Self::decode).filter(is_of_it).unwrap_or_else(|| Self::unknown(mark))
    }

    pub(crate) fn encode(&self) -> Bytes {
        let Self { epoch, purged, expired } = self;
        text(format_args!("tag1 {epoch:016x} {purged} {expired}"))
    }

    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let mut words = words(bytes, "tag1")?;
        let mark = Self {
            epoch: hex(words.next()?)?,
            purged: words.next()?.parse().ok()?,
            expired: words.next()?.parse().ok()?,
        };
        words.next().is_none().then_some(mark)
    }

    /// Raised to `number`, never lowered.
    pub(crate) fn raised(mut self, reach: Reach, number: u64) -> Self {
        let field = match reach {
            Reach::Purge => &mut self.purged,
            Reach::Expire => &mut self.expired,
        };
        *field = number.max(*field);
        self
    }
}

fn text(arguments: std::fmt::Arguments<'_>) -> Bytes {
    let mut out = String::new();
    // Writing to a string cannot fail.
    let _ = out.write_fmt(arguments);
    out.into()
}

fn words<'a>(bytes: &'a [u8], name: &str) -> Option<impl Iterator<Item = &'a str>> {
    // Longer is none of ours, whatever it is.
    let text = std::str::from_utf8(bytes.get(..bytes.len().min(200))?).ok()?;
    let mut words = text.split(' ');
    (words.next()? == name).then_some(words)
}

fn hex(word: &str) -> Option<u64> {
    (word.len() == 16).then(|| u64::from_str_radix(word, 16).ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_are_read_back_and_nothing_else_is() {
        let mark = Mark { home: u64::MAX, epoch: 1, sequence: 7, expired: 3 };
        assert_eq!(Mark::decode(&mark.encode()), Some(mark));
        let tag = TagMark { epoch: 9, purged: 4, expired: 5 };
        assert_eq!(TagMark::decode(&tag.encode()), Some(tag));
        assert_eq!(TagMark::decode(&mark.encode()), None);
        let bytes = mark.encode();
        for cut in 0..bytes.len() - 1 {
            let other = Mark::decode(&bytes[..cut]);
            assert!(other.is_none(), "cut at {cut}: {other:?}");
        }
        for noise in [
            &b""[..],
            b"mark1",
            b"mark1 0000000000000000 0000000000000000 1 1",
            b"mark1 0000000000000000 0000000000000001 -1 1",
            b"mark1 0000000000000000 0000000000000001 1 1 1",
            // No room for one more invalidation.
            b"mark1 0000000000000000 0000000000000001 18446744073709551615 1",
            b"mark1 0000000000000000 0000000000000001 1 2",
            b"mark2 0000000000000000 0000000000000001 1 1",
            &[0xFF; 40],
        ] {
            assert_eq!(Mark::decode(noise), None);
        }
    }

    #[test]
    fn a_tag_is_never_lowered() {
        let tag = TagMark { epoch: 1, purged: 5, expired: 2 };
        assert_eq!(tag.raised(Reach::Purge, 3), tag);
        assert_eq!(tag.raised(Reach::Expire, 3).expired, 3);
    }
}
