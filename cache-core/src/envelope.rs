//! The wire form of an entry: a header, its checksum, and the payload of a codec.
//!
//! ```text
//! at   bytes
//! 0    2     magic C7 AC
//! 2    1     state: 0 live, 1 expired by hand. Outside the checksum, so that a store-side script can set it
//! 3    8     XXH3-64 of everything from byte 11 on, seeded with the XXH3-64 of `namespace:id`
//! 11   1     version, 1
//! 12   1     codec, 0 for an absent entry
//! 13   1     flags: 1 absent, 2 made by `set`, 4 compressed with LZ4, 8 with Zstandard, 16 encrypted
//! 14   8     entry id
//! 22   4     schema id
//! 26   8     born, milliseconds since the Unix epoch by the store's clock
//! 34   8     fresh for, microseconds from birth (all ones: for ever)
//! 42   8     usable for, likewise
//! 50   4     load cost, microseconds, saturating
//! 54   8     epoch
//! 62   8     sequence
//! 70   2     number of tags, then for each 2 bytes of length and the text
//!      2     length of the etag plus one, 0 for none; then the text
//!            payload: compressed, 4 bytes of raw length and a block; encrypted, see `payload/encryption.rs`
//! ```
//! Integers are little-endian. The seed binds an entry to its key: a copy under another key does not decode.

use std::{sync::Arc, time::Duration};

use bytes::{BufMut, Bytes, BytesMut};
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use crate::{
    EntryId, Extra, RawKey, Stamp, Timeline,
    clock::Times,
    payload::{Encryption, Form, Squeezed},
};

const MAGIC: [u8; 2] = [0xC7, 0xAC];
const VERSION: u8 = 1;
const CHECKED_FROM: usize = 11;
const FIXED: usize = 70;
const FLAG_ABSENT: u8 = 1;
const FLAG_BY_SET: u8 = 2;
const FLAG_LZ4: u8 = 4;
const FLAG_ZSTD: u8 = 8;
const FLAG_ENCRYPTED: u8 = 16;
const KNOWN_FLAGS: u8 = FLAG_ABSENT | FLAG_BY_SET | FLAG_LZ4 | FLAG_ZSTD | FLAG_ENCRYPTED;
const FOREVER: u64 = u64::MAX;

/// Where an envelope carries its [`EntryId`], little-endian: for store-side scripts that compare it.
pub const ENTRY_ID_AT: std::ops::Range<usize> = 14..22;
const STATE_AT: usize = 2;
const FLAGS_AT: usize = 13;

/// Whether an envelope is what a `set` or an `update` has written, or has been expired, and not what a load has come to: for
/// providers that keep copies elsewhere, which are out of date by that.
pub fn is_written(envelope: &[u8]) -> bool {
    let is_expired = || envelope.get(STATE_AT).is_some_and(|state| *state != 0);
    let is_set = || envelope.get(FLAGS_AT).is_some_and(|flags| flags & FLAG_BY_SET != 0);
    envelope.starts_with(&MAGIC) && (is_expired() || is_set())
}

/// Why bytes from a store are a miss.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Unreadable {
    /// Not an envelope: another program's value.
    Foreign,
    /// Written by a release with another wire format.
    Version,
    /// Damaged, cut short, or copied from another key.
    Corrupt,
    /// Its codec or compression is not compiled in.
    Codec,
    /// The value's schema id is another one.
    Schema,
    /// The payload does not decode as the value's type.
    Payload,
    /// An in-process object of another type.
    Type,
    /// Larger than the level's limit, or would be once expanded.
    TooLarge,
    /// Encrypted, and its key is not held.
    NoKey,
    /// Changed since it was encrypted, moved here from another key, or in the clear at a level that encrypts.
    NotAuthentic,
}

impl Unreadable {
    /// All reasons.
    pub const ALL: [Self; 10] = [
        Self::Foreign,
        Self::Version,
        Self::Corrupt,
        Self::Codec,
        Self::Schema,
        Self::Payload,
        Self::Type,
        Self::TooLarge,
        Self::NoKey,
        Self::NotAuthentic,
    ];

    /// A low-cardinality word for telemetry.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Foreign => "foreign",
            Self::Version => "version",
            Self::Corrupt => "corrupt",
            Self::Codec => "codec",
            Self::Schema => "schema",
            Self::Payload => "payload",
            Self::Type => "type",
            Self::TooLarge => "too_large",
            Self::NoKey => "no_key",
            Self::NotAuthentic => "not_authentic",
        }
    }
}

/// Everything in an envelope but the payload.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Header {
    /// `None` for an absent entry.
    pub(crate) codec: Option<u8>,
    pub(crate) form: Form,
    pub(crate) by_set: bool,
    pub(crate) expired: bool,
    pub(crate) id: EntryId,
    pub(crate) schema: u32,
    pub(crate) born_ms: u64,
    pub(crate) fresh_for: Duration,
    pub(crate) usable_for: Duration,
    pub(crate) cost_us: u32,
    pub(crate) stamp: Stamp,
    pub(crate) extra: Option<Arc<Extra>>,
}

impl Header {
    /// The timeline on this node's monotonic clock.
    ///
    /// An entry from the future counts as just born, and no entry lives longer than its own lifetime from now.
    pub(crate) fn timeline(&self, Times { now, store_ms }: Times) -> Timeline {
        let born_ms = i64::try_from(self.born_ms).unwrap_or(i64::MAX);
        let age_ms = u64::try_from(store_ms.saturating_sub(born_ms)).unwrap_or(0);
        let mut timeline =
            Timeline::new(now.before(Duration::from_millis(age_ms)), self.fresh_for, self.usable_for);
        if self.expired {
            // Nobody has written down when that was.
            timeline.fresh_until = timeline.born;
        }
        timeline
    }
}

fn seed(key: RawKey<'_>) -> u64 {
    let mut buf = crate::KeyBuf::new();
    buf.push_str(key.namespace);
    buf.push_str(":");
    buf.push_str(key.id);
    xxh3_64(buf.as_bytes())
}

fn micros(d: Duration) -> u64 {
    u64::try_from(d.as_micros()).unwrap_or(FOREVER)
}

fn duration(us: u64) -> Duration {
    if us == FOREVER { Duration::MAX } else { Duration::from_micros(us) }
}

fn put_text(out: &mut BytesMut, text: &str, plus: u16) {
    // Tags are checked to be far below this, and an etag that is not is left out.
    let len = u16::try_from(text.len()).unwrap_or(u16::MAX - 1);
    out.put_u16_le(len + plus);
    out.put_slice(&text.as_bytes()[..usize::from(len)]);
}

/// Puts header and payload together.
pub(crate) fn seal(key: RawKey<'_>, header: &Header, payload: &[u8]) -> Bytes {
    let mut out = begin(header, payload.len());
    out.put_slice(payload);
    end(key, out)
}

/// The same with the payload encrypted under the header. `None`: it could not be.
pub(crate) fn seal_encrypted(
    key: RawKey<'_>,
    header: &Header,
    payload: &[u8],
    encryption: &Encryption,
) -> Option<Bytes> {
    let mut out = begin(header, payload.len() + Encryption::OVERHEAD);
    encryption.encrypt(key, &mut out, CHECKED_FROM, payload).then(|| end(key, out))
}

/// The header as it was sealed: what comes before the payload, the state byte apart.
pub(crate) fn header_of<'a>(bytes: &'a [u8], payload: &[u8]) -> &'a [u8] {
    bytes.get(CHECKED_FROM..bytes.len() - payload.len()).unwrap_or_default()
}

/// Everything in front of the payload, without the checksum.
fn begin(header: &Header, payload: usize) -> BytesMut {
    let mut out = BytesMut::with_capacity(FIXED + 4 + payload);
    out.put_slice(&MAGIC);
    out.put_u8(u8::from(header.expired));
    out.put_u64_le(0);
    out.put_u8(VERSION);
    out.put_u8(header.codec.unwrap_or(0));
    let absent = if header.codec.is_none() { FLAG_ABSENT } else { 0 };
    let by_set = if header.by_set { FLAG_BY_SET } else { 0 };
    let squeezed = match header.form.squeezed {
        None => 0,
        Some(Squeezed::Lz4) => FLAG_LZ4,
        Some(Squeezed::Zstd) => FLAG_ZSTD,
    };
    let encrypted = if header.form.encrypted { FLAG_ENCRYPTED } else { 0 };
    out.put_u8(absent | by_set | squeezed | encrypted);
    out.put_u64_le(header.id.0);
    out.put_u32_le(header.schema);
    out.put_u64_le(header.born_ms);
    out.put_u64_le(micros(header.fresh_for));
    out.put_u64_le(micros(header.usable_for));
    out.put_u32_le(header.cost_us);
    out.put_u64_le(header.stamp.epoch);
    out.put_u64_le(header.stamp.sequence);
    let extra = header.extra.as_deref();
    let tags = extra.map_or(&[][..], |e| &e.tags);
    let count = u16::try_from(tags.len()).unwrap_or(u16::MAX);
    out.put_u16_le(count);
    for tag in &tags[..usize::from(count)] {
        put_text(&mut out, tag, 0);
    }
    match extra.and_then(|e| e.etag.as_deref()) {
        // Cut short it would be another one, or half a character.
        Some(etag) if etag.len() < usize::from(u16::MAX) => put_text(&mut out, etag, 1),
        _ => out.put_u16_le(0),
    }
    out
}

/// With the checksum over all of it.
fn end(key: RawKey<'_>, mut out: BytesMut) -> Bytes {
    let sum = xxh3_64_with_seed(&out[CHECKED_FROM..], seed(key));
    out[3..CHECKED_FROM].copy_from_slice(&sum.to_le_bytes());
    out.freeze()
}

/// The same envelope, expired by hand.
pub(crate) fn expire(bytes: &Bytes) -> Bytes {
    let mut out = BytesMut::from(&bytes[..]);
    if let Some(state) = out.get_mut(STATE_AT) {
        *state = 1;
    }
    out.freeze()
}

/// The bytes with magic, version and checksum as they should be, for tests of what lies behind these.
#[cfg(any(test, feature = "testing"))]
pub(crate) fn right(key: RawKey<'_>, bytes: &[u8]) -> Option<Bytes> {
    let mut out = BytesMut::from(bytes);
    out.get_mut(..2)?.copy_from_slice(&MAGIC);
    *out.get_mut(CHECKED_FROM)? = VERSION;
    let sum = xxh3_64_with_seed(&out[CHECKED_FROM..], seed(key));
    out[3..CHECKED_FROM].copy_from_slice(&sum.to_le_bytes());
    Some(out.freeze())
}

/// Takes an envelope apart: its header, and the payload where it lies. Reads no size that the checksum does not cover, and
/// allocates only for tags and etag.
pub(crate) fn open<'a>(key: RawKey<'_>, bytes: &'a [u8]) -> Result<(Header, &'a [u8]), Unreadable> {
    let mut cursor = Cursor(bytes);
    if cursor.take() != Some(MAGIC) {
        return Err(Unreadable::Foreign);
    }
    let [state] = cursor.take().ok_or(Unreadable::Corrupt)?;
    let sum = cursor.u64().ok_or(Unreadable::Corrupt)?;
    let checked = cursor.0;
    let [version] = cursor.take().ok_or(Unreadable::Corrupt)?;
    if version != VERSION {
        return Err(Unreadable::Version);
    }
    if state > 1 || sum != xxh3_64_with_seed(checked, seed(key)) {
        return Err(Unreadable::Corrupt);
    }
    header(cursor, state == 1).ok_or(Unreadable::Corrupt)
}

/// What follows the version.
fn header(mut cursor: Cursor<'_>, expired: bool) -> Option<(Header, &[u8])> {
    let mut rest = cursor;
    // One length to check for all that is always there.
    cursor = Cursor(rest.part(FIXED - CHECKED_FROM - 1)?);
    let [codec, flags] = cursor.take()?;
    if flags & !KNOWN_FLAGS != 0 || (flags & FLAG_ABSENT != 0) != (codec == 0) {
        return None;
    }
    let squeezed = match flags & (FLAG_LZ4 | FLAG_ZSTD) {
        0 => None,
        FLAG_LZ4 => Some(Squeezed::Lz4),
        FLAG_ZSTD => Some(Squeezed::Zstd),
        _ => return None,
    };
    let form = Form { squeezed, encrypted: flags & FLAG_ENCRYPTED != 0 };
    let id = EntryId(cursor.u64()?);
    let schema = u32::from_le_bytes(cursor.take()?);
    let born_ms = cursor.u64()?;
    let fresh_for = duration(cursor.u64()?);
    let usable_for = duration(cursor.u64()?);
    let cost_us = u32::from_le_bytes(cursor.take()?);
    let stamp = Stamp { epoch: cursor.u64()?, sequence: cursor.u64()? };
    let mut extra = Extra::default();
    for _ in 0..rest.u16()? {
        let len = rest.u16()?;
        extra.tags.push(rest.text(len)?);
    }
    if let Some(len) = rest.u16()?.checked_sub(1) {
        extra.etag = Some(rest.text(len)?);
    }
    let header = Header {
        codec: (codec != 0).then_some(codec),
        form,
        by_set: flags & FLAG_BY_SET != 0,
        expired,
        id,
        schema,
        born_ms,
        fresh_for,
        usable_for,
        cost_us,
        stamp,
        extra: extra.boxed(),
    };
    Some((header, rest.0))
}

/// What is left to be read.
#[derive(Clone, Copy)]
struct Cursor<'a>(&'a [u8]);

impl<'a> Cursor<'a> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (part, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*part)
    }

    fn part(&mut self, len: usize) -> Option<&'a [u8]> {
        let (part, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(part)
    }

    fn u16(&mut self) -> Option<u16> {
        self.take().map(u16::from_le_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.take().map(u64::from_le_bytes)
    }

    fn text(&mut self, len: u16) -> Option<Box<str>> {
        std::str::from_utf8(self.part(len.into())?).ok().map(Into::into)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{CacheId, Clock};

    fn key(id: &str) -> RawKey<'_> {
        RawKey::new(CacheId(1), "users", id)
    }

    fn sample() -> Header {
        Header {
            codec: Some(1),
            form: Form::default(),
            by_set: true,
            expired: false,
            id: EntryId(7),
            schema: 9,
            born_ms: 1_700_000_000_123,
            fresh_for: Duration::from_millis(250),
            usable_for: Duration::MAX,
            cost_us: 50_000,
            stamp: Stamp { epoch: 3, sequence: 4 },
            extra: Extra { tags: vec!["a".into(), "".into()], etag: Some("W/1".into()), ..Extra::default() }
                .boxed(),
        }
    }

    #[test]
    fn round_trip() {
        for (header, payload) in [
            (sample(), &b"{}"[..]),
            (Header { codec: None, extra: None, ..sample() }, b""),
            (Header { expired: true, by_set: false, ..sample() }, b"x"),
        ] {
            let sealed = seal(key("42"), &header, payload);
            let (back, rest) = open(key("42"), &sealed).unwrap();
            assert_eq!(back, header);
            assert_eq!(rest, payload);
            assert!(is_written(&sealed));
        }
        let loaded = seal(key("42"), &Header { by_set: false, ..sample() }, b"{}");
        assert!(!is_written(&loaded) && is_written(&expire(&loaded)) && !is_written(b"??\x01"));
    }

    #[test]
    fn an_etag_that_does_not_fit_is_left_out() {
        let etag_of = |etag: &str| {
            let extra = Extra { etag: Some(etag.into()), ..Extra::default() }.boxed();
            let sealed = seal(key("42"), &Header { extra, ..sample() }, b"{}");
            let (back, rest) = open(key("42"), &sealed).unwrap();
            assert_eq!(rest, b"{}");
            back.extra.and_then(|extra| extra.etag.clone())
        };
        let longest = "e".repeat(usize::from(u16::MAX) - 1);
        assert_eq!(etag_of(&longest).as_deref(), Some(&*longest));
        assert_eq!(etag_of(&format!("{longest}e")), None);
        assert_eq!(etag_of(&format!("e{}", "é".repeat(40_000))), None);
    }

    #[test]
    fn v1_gibberish_is_a_miss() {
        for len in 0..65 {
            for _ in 0..50 {
                let bytes: Vec<u8> = std::iter::repeat_with(|| fastrand::u8(..)).take(len).collect();
                assert!(open(key("k"), &bytes).is_err());
            }
        }
    }

    #[test]
    fn v2_every_cut_and_trailing_bytes_are_a_miss() {
        let sealed = seal(key("k"), &sample(), b"{\"name\":\"x\"}");
        for end in 0..sealed.len() {
            assert!(open(key("k"), &sealed[..end]).is_err(), "cut at {end}");
        }
        let mut longer = sealed.to_vec();
        longer.push(0);
        assert_eq!(open(key("k"), &longer), Err(Unreadable::Corrupt));
    }

    #[test]
    fn v4_every_bit_flip_is_a_miss_or_the_right_value() {
        let sealed = seal(key("k"), &sample(), b"{\"name\":\"x\"}");
        for bit in 0..sealed.len() * 8 {
            let mut bytes = sealed.to_vec();
            bytes[bit / 8] ^= 1 << (bit % 8);
            match open(key("k"), &bytes) {
                Err(_) => {}
                // The state byte alone lies outside the checksum: live becomes expired.
                Ok((header, payload)) => {
                    assert_eq!(header, Header { expired: true, ..sample() });
                    assert_eq!(payload, &b"{\"name\":\"x\"}"[..]);
                }
            }
        }
    }

    #[test]
    fn a_copy_under_another_key_is_a_miss() {
        let sealed = seal(key("alice"), &sample(), b"1");
        assert_eq!(open(key("bob"), &sealed), Err(Unreadable::Corrupt));
    }

    #[test]
    fn another_version_is_named() {
        let mut bytes = seal(key("k"), &sample(), b"1").to_vec();
        bytes[CHECKED_FROM] = 2;
        assert_eq!(open(key("k"), &bytes), Err(Unreadable::Version));
        assert_eq!(open(key("k"), b"hello"), Err(Unreadable::Foreign));
    }

    #[test]
    fn z5_entries_from_the_future_are_capped_at_their_ttl_from_now() {
        let (clock, time) = Clock::manual();
        let wall = u64::try_from(clock.wall_ms()).unwrap();
        let header = Header { born_ms: wall, fresh_for: Duration::from_secs(60), ..sample() };
        time.jump_wall(-3_600_000);
        assert_eq!(header.timeline(clock.times(0)).fresh_until, clock.now().after(Duration::from_secs(60)));
        time.jump_wall(3_600_000);
        time.advance(Duration::from_secs(59));
        assert_eq!(header.timeline(clock.times(0)).fresh_until, clock.now().after(Duration::from_secs(1)));
    }
}
