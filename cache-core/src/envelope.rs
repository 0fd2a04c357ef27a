//! The wire form of an entry: a header, its checksum, and the payload of a codec.
//!
//! ```text
//! at   bytes
//! 0    2     magic C7 AC
//! 2    1     state: 0 live, 1 expired by hand. Outside the checksum, so that a store-side script can set it
//! 3    8     XXH3-64 of everything from byte 11 on, seeded with the XXH3-64 of `namespace:id`
//! 11   1     version, 2
//! 12   1     codec, 0 for an absent entry
//! 13   1     flags: 1 usable for longer than fresh, 2 made by `set`, 4 compressed with LZ4, 8 with Zstandard, 16 encrypted,
//!            32 has a load cost, 64 tagged, 128 has an etag
//! 14   8     entry id
//! 22   4     schema id
//! 26   6     born, milliseconds since the Unix epoch by the store's clock
//! 32   6     fresh for, microseconds from birth (all ones: for ever, which is all beyond 8.9 years)
//! 38   8     epoch
//! 46   n     sequence
//!            by the flags: 6 usable for, as fresh; 4 load cost, microseconds, saturating; n for how many tags, and for each
//!            n for its length and the text; n for the length of the etag, and the text
//!            payload: compressed, 4 bytes of raw length and a block; encrypted, see `payload/encryption.rs`
//! ```
//! `n` is as many bytes as the number needs, seven bits in each, the lowest first (LEB128). A header has one form. What most
//! entries do not have takes no room, as a store keeps millions of these.
//! Other integers are little-endian. The seed binds an entry to its key: a copy under another key does not decode. Version 1
//! (`envelope/v1.rs`) is still read.

mod v1;

use std::{fmt, sync::Arc, time::Duration};

use bytes::{BufMut, Bytes, BytesMut};
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use crate::{
    EntryId, Extra, RawKey, Stamp, Timeline,
    clock::Times,
    payload::{Encryption, Form, Squeezed},
    tags::{TAG_MAX, TAGS_MAX},
};

const MAGIC: [u8; 2] = [0xC7, 0xAC];
/// The version that is written.
pub(crate) const VERSION: u8 = 2;
const CHECKED_FROM: usize = 11;
const FIXED: usize = 46;
/// Bytes of a header with sequence, stale time and cost.
const ROOM: usize = FIXED + 16;
const FLAG_STALE: u8 = 1;
const FLAG_BY_SET: u8 = 2;
const FLAG_LZ4: u8 = 4;
const FLAG_ZSTD: u8 = 8;
const FLAG_ENCRYPTED: u8 = 16;
const FLAG_COST: u8 = 32;
const FLAG_TAGGED: u8 = 64;
const FLAG_ETAG: u8 = 128;
const TIME: usize = 6;
const LONGEST_NUMBER: usize = 10;
/// As milliseconds since the Unix epoch, the year 10889.
const LATEST: u64 = (1 << (8 * TIME)) - 1;
const FOREVER: u64 = LATEST;

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
///
/// A provider that finds what it does not hand out, because it is too large to be read say, answers a look-up with this as
/// its error: a miss of that key, and no failure of the level.
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

impl fmt::Display for Unreadable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "what the store has under the key cannot be read ({})", self.as_str())
    }
}

impl std::error::Error for Unreadable {}

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
            // When it was expired is not stored.
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
    xxh3_64(buf.as_str().as_bytes())
}

fn micros(d: Duration) -> u64 {
    u64::try_from(d.as_micros()).map_or(FOREVER, |us| us.min(FOREVER))
}

fn duration(us: u64) -> Duration {
    if us == FOREVER { Duration::MAX } else { Duration::from_micros(us) }
}

fn put_number(out: &mut BytesMut, mut number: u64) {
    loop {
        let [low, ..] = number.to_le_bytes();
        number >>= 7;
        if number == 0 {
            return out.put_u8(low);
        }
        out.put_u8(low | 0x80);
    }
}

fn put_text(out: &mut BytesMut, text: &str) {
    put_number(out, text.len() as u64);
    out.put_slice(text.as_bytes());
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
    let mut out = BytesMut::with_capacity(ROOM + payload);
    out.put_slice(&MAGIC);
    out.put_u8(u8::from(header.expired));
    out.put_u64_le(0);
    out.put_u8(VERSION);
    out.put_u8(header.codec.unwrap_or(0));
    let extra = header.extra.as_deref();
    let tags = extra.map_or(&[][..], |e| &e.tags);
    let etag = extra.and_then(|e| e.etag.as_deref());
    let flag = |is: bool, flag| if is { flag } else { 0 };
    let squeezed = match header.form.squeezed {
        None => 0,
        Some(Squeezed::Lz4) => FLAG_LZ4,
        Some(Squeezed::Zstd) => FLAG_ZSTD,
    };
    let (fresh_for, usable_for) = (micros(header.fresh_for), micros(header.usable_for));
    let flags = flag(usable_for != fresh_for, FLAG_STALE)
        | flag(header.by_set, FLAG_BY_SET)
        | squeezed
        | flag(header.form.encrypted, FLAG_ENCRYPTED)
        | flag(header.cost_us != 0, FLAG_COST)
        | flag(!tags.is_empty(), FLAG_TAGGED)
        | flag(etag.is_some(), FLAG_ETAG);
    out.put_u8(flags);
    out.put_u64_le(header.id.0);
    out.put_u32_le(header.schema);
    out.put_uint_le(header.born_ms.min(LATEST), TIME);
    out.put_uint_le(fresh_for, TIME);
    out.put_u64_le(header.stamp.epoch);
    put_number(&mut out, header.stamp.sequence);
    if flags & FLAG_STALE != 0 {
        out.put_uint_le(usable_for, TIME);
    }
    if flags & FLAG_COST != 0 {
        out.put_u32_le(header.cost_us);
    }
    if flags & FLAG_TAGGED != 0 {
        put_number(&mut out, tags.len() as u64);
        tags.iter().for_each(|tag| put_text(&mut out, tag));
    }
    if let Some(etag) = etag {
        put_text(&mut out, etag);
    }
    out
}

/// Puts in the checksum over all of it.
fn end(key: RawKey<'_>, mut out: BytesMut) -> Bytes {
    let sum = xxh3_64_with_seed(&out[CHECKED_FROM..], seed(key));
    out[3..CHECKED_FROM].copy_from_slice(&sum.to_le_bytes());
    out.freeze()
}

/// A copy of the envelope, expired by hand.
pub(crate) fn expire(bytes: &Bytes) -> Bytes {
    let mut out = BytesMut::from(&bytes[..]);
    if let Some(state) = out.get_mut(STATE_AT) {
        *state = 1;
    }
    out.freeze()
}

/// The versions that are read.
#[cfg(any(test, feature = "testing"))]
pub(crate) const VERSIONS: [u8; 2] = [VERSION, v1::VERSION];

/// Whether an envelope is of the version that is written, and so has one form.
#[cfg(any(test, feature = "testing"))]
pub(crate) fn is_of_today(envelope: &[u8]) -> bool {
    envelope.get(CHECKED_FROM) == Some(&VERSION)
}

/// The bytes with magic, version and checksum as they should be, for tests of what lies behind these.
#[cfg(any(test, feature = "testing"))]
pub(crate) fn right(key: RawKey<'_>, version: u8, bytes: &[u8]) -> Option<Bytes> {
    let mut out = BytesMut::from(bytes);
    out.get_mut(..2)?.copy_from_slice(&MAGIC);
    *out.get_mut(CHECKED_FROM)? = version;
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
    let header = match version {
        VERSION => header,
        v1::VERSION => v1::header,
        _ => return Err(Unreadable::Version),
    };
    if state > 1 || sum != xxh3_64_with_seed(checked, seed(key)) {
        return Err(Unreadable::Corrupt);
    }
    header(cursor, state == 1).ok_or(Unreadable::Corrupt)
}

/// What follows the version.
fn header(mut rest: Cursor<'_>, expired: bool) -> Option<(Header, &[u8])> {
    // One length check for all the parts that are always there.
    let mut fixed = Cursor(rest.part(FIXED - CHECKED_FROM - 1)?);
    let [codec, flags] = fixed.take()?;
    let form = Form { squeezed: squeezed(flags)?, encrypted: flags & FLAG_ENCRYPTED != 0 };
    let id = EntryId(fixed.u64()?);
    let schema = fixed.u32()?;
    let born_ms = fixed.time()?;
    let fresh_for = fixed.time()?;
    let stamp = Stamp { epoch: fixed.u64()?, sequence: rest.number()? };
    // One form: a part with nothing in it must be left out, not present and empty.
    let usable_for = match flags & FLAG_STALE {
        0 => fresh_for,
        _ => rest.time().filter(|usable_for| *usable_for != fresh_for)?,
    };
    let cost_us = match flags & FLAG_COST {
        0 => 0,
        _ => rest.u32().filter(|cost_us| *cost_us != 0)?,
    };
    let mut extra = Extra::default();
    if flags & FLAG_TAGGED != 0 {
        let tags = rest.length().filter(|tags| (1..=TAGS_MAX).contains(tags))?;
        for _ in 0..tags {
            let len = rest.length()?;
            extra.tags.push(rest.tag(len)?);
        }
    }
    if flags & FLAG_ETAG != 0 {
        let len = rest.length()?;
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
        fresh_for: duration(fresh_for),
        usable_for: duration(usable_for),
        cost_us,
        stamp,
        extra: extra.boxed(),
    };
    Some((header, rest.0))
}

/// By which compression, if any. Outer `None`: by two at once, which no writer does.
fn squeezed(flags: u8) -> Option<Option<Squeezed>> {
    match flags & (FLAG_LZ4 | FLAG_ZSTD) {
        0 => Some(None),
        FLAG_LZ4 => Some(Some(Squeezed::Lz4)),
        FLAG_ZSTD => Some(Some(Squeezed::Zstd)),
        _ => None,
    }
}

/// What is left to be read.
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

    fn u32(&mut self) -> Option<u32> {
        self.take().map(u32::from_le_bytes)
    }

    fn time(&mut self) -> Option<u64> {
        self.take().map(|[a, b, c, d, e, f]| u64::from_le_bytes([a, b, c, d, e, f, 0, 0]))
    }

    fn u64(&mut self) -> Option<u64> {
        self.take().map(u64::from_le_bytes)
    }

    /// A number in its only form: no zero byte at the end, no bits beyond the sixty-fourth.
    fn number(&mut self) -> Option<u64> {
        let mut number = 0;
        for (at, byte) in self.0.iter().enumerate().take(LONGEST_NUMBER) {
            let (part, shift) = (u64::from(byte & 0x7F), 7 * at);
            number |= part << shift;
            if *byte <= 0x7F {
                self.0 = &self.0[at + 1..];
                return (number >> shift == part && (part != 0 || at == 0)).then_some(number);
            }
        }
        None
    }

    fn length(&mut self) -> Option<usize> {
        self.number()?.try_into().ok()
    }

    fn tag(&mut self, len: usize) -> Option<Box<str>> {
        (1..=TAG_MAX).contains(&len).then(|| self.text(len)).flatten()
    }

    fn text(&mut self, len: usize) -> Option<Box<str>> {
        std::str::from_utf8(self.part(len)?).ok().map(Into::into)
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
            extra: Extra {
                tags: vec!["a".into(), "ü".into()], etag: Some("W/1".into()), ..Extra::default()
            }
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
    fn a_number_has_one_form() {
        for number in (0..64).flat_map(|bit| [(1 << bit) - 1, 1 << bit]).chain([u64::MAX]) {
            let mut out = BytesMut::new();
            put_number(&mut out, number);
            let mut cursor = Cursor(&out);
            assert_eq!((cursor.number(), cursor.0), (Some(number), &[][..]));
            assert_eq!(Cursor(&out[..out.len() - 1]).number(), None, "cut short");
            *out.last_mut().unwrap() |= 0x80;
            out.put_u8(0);
            assert_eq!(Cursor(&out).number(), None, "{number} with a byte of nothing behind it");
        }
        let mut longest = [0xFF; 10];
        longest[9] = 3;
        assert_eq!(Cursor(&longest).number(), None, "more than 64 bits");
    }

    #[test]
    fn lifetimes_come_back_as_they_were() {
        let lifetimes = [Duration::ZERO, Duration::from_secs(3600), Duration::MAX];
        for (fresh_for, usable_for) in lifetimes.into_iter().flat_map(|a| lifetimes.map(|b| (a, b))) {
            let header = Header { fresh_for, usable_for, ..sample() };
            assert_eq!(open(key("42"), &seal(key("42"), &header, b"{}")).unwrap().0, header);
        }
    }

    #[test]
    fn what_an_entry_does_not_have_takes_no_room() {
        let hour = Duration::from_secs(3600);
        let header = Header { fresh_for: hour, usable_for: hour, cost_us: 0, extra: None, ..sample() };
        assert_eq!(seal(key("42"), &header, b"").len(), FIXED + 1);
    }

    #[test]
    fn what_is_there_is_there_for_something() {
        let hour = Duration::from_secs(3600);
        let least = Header { fresh_for: hour, usable_for: hour, cost_us: 0, extra: None, ..sample() };
        for (flag, zeros) in [(FLAG_STALE, TIME), (FLAG_COST, 4), (FLAG_TAGGED, 1)] {
            let mut bytes = seal(key("42"), &least, b"").to_vec();
            bytes[FLAGS_AT] |= flag;
            let fresh_for = bytes[32..38].to_vec();
            bytes.extend(if flag == FLAG_STALE { fresh_for } else { vec![0; zeros] });
            assert_eq!(
                open(key("42"), &right(key("42"), VERSION, &bytes).unwrap()),
                Err(Unreadable::Corrupt)
            );
        }
    }

    #[test]
    fn more_tags_than_an_entry_may_have_are_not_believed() {
        let tagged = |tags: Vec<Box<str>>| {
            let extra = Extra { tags, ..Extra::default() }.boxed();
            open(key("42"), &seal(key("42"), &Header { extra, ..sample() }, b"{}")).map(|_| ())
        };
        assert_eq!(tagged(vec!["a".repeat(TAG_MAX).into(); TAGS_MAX]), Ok(()));
        assert_eq!(tagged(vec!["a".into(); TAGS_MAX + 1]), Err(Unreadable::Corrupt));
        assert_eq!(tagged(vec!["a".repeat(TAG_MAX + 1).into()]), Err(Unreadable::Corrupt));
        assert_eq!(tagged(vec!["".into()]), Err(Unreadable::Corrupt));
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
        bytes[CHECKED_FROM] = VERSION + 1;
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
