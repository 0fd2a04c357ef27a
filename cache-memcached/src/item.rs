//! Items as they lie in the store.
//!
//! | first byte | rest | what it is |
//! | --- | --- | --- |
//! | (none) | | a placeholder: somebody has the lease |
//! | `V` | 8 bytes, envelope | an entry, and under which life of the server it was put |
//! | `T` | | a tombstone: removed, not long ago |
//! | `E` | 8 bytes | the life item |
//!
//! Anything else is foreign, and a miss.

use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use cache_core::{ENTRY_ID_AT, EntryId};

use crate::transport::Seen;

const ENTRY: u8 = b'V';
const TOMBSTONE: u8 = b'T';
const LIFE: u8 = b'E';
/// Bytes in front of an envelope.
pub(crate) const HEAD: usize = 9;

/// How long a tombstone stays, in seconds: as long as an invalidation may wait to be replayed.
pub(crate) const TOMBSTONE_SECONDS: u32 = 60;

/// What is put.
#[derive(Clone)]
pub(crate) enum Item {
    /// An envelope, under a life of the server: stamped when it is sent.
    Entry(u64, Bytes),
    /// A value for other programs to read, as it is.
    Bare(Bytes),
    Tombstone,
    /// The right to fill.
    Placeholder,
    Life(u64),
}

impl Item {
    pub(crate) fn len(&self) -> usize {
        match self {
            Self::Entry(_, bytes) => HEAD + bytes.len(),
            Self::Bare(bytes) => bytes.len(),
            Self::Tombstone => 1,
            Self::Placeholder => 0,
            Self::Life(_) => HEAD,
        }
    }

    /// Appends it to a request. The envelope is copied once, here.
    pub(crate) fn write(&self, out: &mut BytesMut) {
        match self {
            Self::Entry(life, bytes) => {
                out.put_u8(ENTRY);
                out.put_u64_le(*life);
                out.put_slice(bytes);
            }
            Self::Bare(bytes) => out.put_slice(bytes),
            Self::Tombstone => out.put_u8(TOMBSTONE),
            Self::Placeholder => {}
            Self::Life(life) => {
                out.put_u8(LIFE);
                out.put_u64_le(*life);
            }
        }
    }
}

/// What was read.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Placeholder,
    /// Life, envelope.
    Entry(u64, Bytes),
    Life(u64),
    /// A tombstone, or nothing of ours: it may be replaced by whoever has the lease.
    Void,
}

impl Seen {
    pub(crate) fn kind(&self) -> Kind {
        let Some(value) = self.value.as_ref().filter(|_| !self.stale) else { return Kind::Void };
        if value.is_empty() {
            return Kind::Placeholder;
        }
        match (value[0], value.get(1..HEAD).map(<[u8; 8]>::try_from)) {
            (ENTRY, Some(Ok(life))) => Kind::Entry(u64::from_le_bytes(life), value.slice(HEAD..)),
            (LIFE, Some(Ok(life))) if value.len() == HEAD => Kind::Life(u64::from_le_bytes(life)),
            _ => Kind::Void,
        }
    }

    /// The envelope, if it was put under this life of the server. Nothing is shared or counted: most reads end here.
    pub(crate) fn envelope(self, life: u64) -> Option<Bytes> {
        let mut value = self.value.filter(|_| !self.stale)?;
        let (head, _) = value.split_first_chunk::<HEAD>()?;
        if head[0] != ENTRY || head[1..] != life.to_le_bytes() {
            return None;
        }
        value.advance(HEAD);
        Some(value)
    }

    /// How long it still lives, if that was asked for.
    pub(crate) fn left(&self) -> Duration {
        if self.left == u32::MAX { Duration::MAX } else { Duration::from_secs(self.left.into()) }
    }

    pub(crate) fn is_tombstone(&self) -> bool {
        self.value.as_deref() == Some(&[TOMBSTONE])
    }
}

/// The id that an envelope carries; `None` where it is too short for one.
pub(crate) fn entry_id(envelope: &[u8]) -> Option<EntryId> {
    let id = envelope.get(ENTRY_ID_AT)?.try_into().ok()?;
    Some(EntryId(u64::from_le_bytes(id)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(item: &Item) -> Seen {
        let mut out = BytesMut::new();
        item.write(&mut out);
        assert_eq!(out.len(), item.len());
        raw(&out)
    }

    fn raw(bytes: &[u8]) -> Seen {
        Seen { value: Some(Bytes::copy_from_slice(bytes)), cas: 0, won: false, stale: false, left: 0 }
    }

    #[test]
    fn what_is_written_is_read() {
        let entry = seen(&Item::Entry(7, Bytes::from_static(b"abc")));
        assert_eq!(entry.kind(), Kind::Entry(7, Bytes::from_static(b"abc")));
        assert_eq!(seen(&Item::Entry(7, Bytes::new())).kind(), Kind::Entry(7, Bytes::new()));
        assert_eq!(entry.clone().envelope(7).as_deref(), Some(&b"abc"[..]));
        assert_eq!(entry.envelope(8), None);
        assert_eq!(seen(&Item::Placeholder).kind(), Kind::Placeholder);
        assert_eq!(seen(&Item::Life(9)).kind(), Kind::Life(9));
        let tombstone = seen(&Item::Tombstone);
        assert!(tombstone.is_tombstone() && tombstone.kind() == Kind::Void);
    }

    #[test]
    fn all_else_is_void() {
        for foreign in [&b"V"[..], b"V1234567", b"E12345678x", b"E1234567", b"TT", b"hello", b"\0"] {
            assert_eq!(raw(foreign).kind(), Kind::Void);
            let life = u64::from_le_bytes(*b"12345678");
            assert_eq!(raw(foreign).envelope(life), None);
        }
        let stale = Seen { stale: true, ..seen(&Item::Entry(7, Bytes::new())) };
        assert_eq!((stale.kind(), stale.envelope(7)), (Kind::Void, None));
        assert_eq!(Seen { value: None, ..raw(b"") }.kind(), Kind::Void);
    }

    #[test]
    fn ids_are_read_where_the_envelope_has_them() {
        let envelope: Vec<u8> = (0..80).collect();
        assert_eq!(entry_id(&envelope), Some(EntryId(u64::from_le_bytes([14, 15, 16, 17, 18, 19, 20, 21]))));
        assert_eq!(entry_id(&envelope[..21]), None);
    }
}
