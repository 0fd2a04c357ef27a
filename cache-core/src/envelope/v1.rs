//! The header of version 1, which is read and no longer written. Up to its schema id it is as today's.
//!
//! ```text
//! at   bytes
//! 11   1     version, 1
//! 12   1     codec, 0 for an absent entry
//! 13   1     flags: 1 absent, 2 made by `set`, 4 compressed with LZ4, 8 with Zstandard, 16 encrypted
//! 14   8     entry id
//! 22   4     schema id
//! 26   8     born
//! 34   8     fresh for (all ones: for ever)
//! 42   8     usable for, likewise
//! 50   4     load cost
//! 54   8     epoch
//! 62   8     sequence
//! 70   2     number of tags, then for each 2 bytes of length and the text
//!      2     length of the etag plus one, 0 for none; then the text
//! ```

use std::time::Duration;

use super::{CHECKED_FROM, Cursor, FLAG_BY_SET, FLAG_ENCRYPTED, Header, squeezed};
use crate::{EntryId, Extra, Stamp, payload::Form, tags::TAGS_MAX};

pub(super) const VERSION: u8 = 1;
const FIXED: usize = 70;
const FLAG_ABSENT: u8 = 1;
const UNKNOWN_FLAGS: u8 = 0b1110_0000;

/// What follows the version.
pub(super) fn header(mut rest: Cursor<'_>, expired: bool) -> Option<(Header, &[u8])> {
    let mut fixed = Cursor(rest.part(FIXED - CHECKED_FROM - 1)?);
    let [codec, flags] = fixed.take()?;
    if flags & UNKNOWN_FLAGS != 0 || (flags & FLAG_ABSENT != 0) != (codec == 0) {
        return None;
    }
    let form = Form { squeezed: squeezed(flags)?, encrypted: flags & FLAG_ENCRYPTED != 0 };
    let header = Header {
        codec: (codec != 0).then_some(codec),
        form,
        by_set: flags & FLAG_BY_SET != 0,
        expired,
        id: EntryId(fixed.u64()?),
        schema: fixed.u32()?,
        born_ms: fixed.u64()?,
        fresh_for: duration(fixed.u64()?),
        usable_for: duration(fixed.u64()?),
        cost_us: fixed.u32()?,
        stamp: Stamp { epoch: fixed.u64()?, sequence: fixed.u64()? },
        extra: extra(&mut rest)?.boxed(),
    };
    Some((header, rest.0))
}

fn extra(rest: &mut Cursor<'_>) -> Option<Extra> {
    let mut extra = Extra::default();
    for _ in 0..length(rest).filter(|tags| *tags <= TAGS_MAX)? {
        let len = length(rest)?;
        extra.tags.push(rest.tag(len)?);
    }
    if let Some(len) = length(rest)?.checked_sub(1) {
        extra.etag = Some(rest.text(len)?);
    }
    Some(extra)
}

fn length(rest: &mut Cursor<'_>) -> Option<usize> {
    rest.take().map(|length| u16::from_le_bytes(length).into())
}

fn duration(us: u64) -> Duration {
    if us == u64::MAX { Duration::MAX } else { Duration::from_micros(us) }
}
