//! Whatever bytes a store holds, they are the right value or a miss: no panic, and memory within bounds. `fuzz/` drives
//! the same function for longer.
#![allow(clippy::unwrap_used, reason = "helpers of tests fail their test")]

#[path = "snapshots/items.rs"]
mod snapshots;

use std::sync::LazyLock;

use allocation_counter::measure;
use proptest::{prelude::*, sample::Index};
use snapshots::items;
use traced_cache::testing::{read_anything, readable_entries};

/// Reads, and holds it to what it promises.
fn read(bytes: &[u8]) -> usize {
    let mut found = 0;
    let info = measure(|| found = read_anything(bytes));
    let bound = 64 * bytes.len() as u64 + 4 * 1024 * 1024;
    assert!(info.bytes_max <= bound, "{} bytes held for {} bytes of input", info.bytes_max, bytes.len());
    found
}

/// Entries as version 1 of the wire format has them.
static OLD: LazyLock<Vec<Vec<u8>>> = LazyLock::new(|| {
    let entries = |form| items(&format!("v1-{form}.hex")).into_iter().filter(|(key, _)| key != "v:");
    let forms = ["json", "postcard", "zstd", "encrypted-lz4"];
    forms.into_iter().flat_map(entries).map(|(_, bytes)| bytes).collect()
});

/// One change to an entry.
#[derive(Clone, Debug)]
enum Change {
    Flip(Index, u8),
    Set(Index, u8),
    Cut(Index),
    /// Drops what lies between two places.
    Drop(Index, Index),
    /// Repeats what lies between two places.
    Repeat(Index, Index),
    Insert(Index, Vec<u8>),
    /// Overwrites a place with a length that is not true.
    Length(Index, u64, usize),
    /// Goes on as another entry does from that place.
    Splice(Index, Index, Index),
}

fn length() -> impl Strategy<Value = u64> {
    prop_oneof![
        Just(u64::MAX),
        Just(u64::from(u32::MAX)),
        Just(u64::from(u16::MAX)),
        Just(0x7fff_ffff),
        any::<u64>(),
        0..1000_u64,
    ]
}

fn change() -> impl Strategy<Value = Change> {
    let at = any::<Index>;
    prop_oneof![
        (at(), 0..8_u8).prop_map(|(a, bit)| Change::Flip(a, bit)),
        (at(), any::<u8>()).prop_map(|(a, byte)| Change::Set(a, byte)),
        at().prop_map(Change::Cut),
        (at(), at()).prop_map(|(a, b)| Change::Drop(a, b)),
        (at(), at()).prop_map(|(a, b)| Change::Repeat(a, b)),
        (at(), any::<Vec<u8>>()).prop_map(|(a, bytes)| Change::Insert(a, bytes)),
        (at(), length(), 1..=8_usize).prop_map(|(a, length, width)| Change::Length(a, length, width)),
        (at(), at(), at()).prop_map(|(a, b, c)| Change::Splice(a, b, c)),
    ]
}

fn apply(change: &Change, bytes: &mut Vec<u8>, others: &[impl AsRef<[u8]>]) {
    if bytes.is_empty() {
        return;
    }
    let len = bytes.len();
    let between = |a: &Index, b: &Index| {
        let (a, b) = (a.index(len), b.index(len));
        a.min(b)..a.max(b)
    };
    match change {
        Change::Flip(at, bit) => bytes[at.index(len)] ^= 1 << bit,
        Change::Set(at, byte) => bytes[at.index(len)] = *byte,
        Change::Cut(at) => bytes.truncate(at.index(len)),
        Change::Drop(a, b) => drop(bytes.drain(between(a, b))),
        Change::Repeat(a, b) => {
            let part = bytes[between(a, b)].to_vec();
            bytes.extend(part);
        }
        Change::Insert(at, more) => drop(bytes.splice(at.index(len)..at.index(len), more.iter().copied())),
        Change::Length(at, length, width) => {
            let at = at.index(len);
            let end = (at + width).min(len);
            bytes[at..end].copy_from_slice(&length.to_le_bytes()[..end - at]);
        }
        Change::Splice(other, at, from) => {
            let other = other.get(others).as_ref();
            bytes.truncate(at.index(len));
            bytes.extend_from_slice(&other[from.index(other.len())..]);
        }
    }
}

/// One of the entries, changed.
fn changed(which: &Index, changes: &[Change], entries: &[impl AsRef<[u8]>]) -> Vec<u8> {
    let mut bytes = which.get(entries).as_ref().to_vec();
    for change in changes {
        apply(change, &mut bytes, entries);
    }
    bytes
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn v1_arbitrary_bytes_are_read_or_a_miss(bytes in proptest::collection::vec(any::<u8>(), 0..2_000)) {
        read(&bytes);
    }

    #[test]
    fn v2_v4_changed_entries_are_read_or_a_miss(
        which in any::<Index>(),
        changes in proptest::collection::vec(change(), 0..6),
    ) {
        let found = read(&changed(&which, &changes, &readable_entries()));
        prop_assert!(!changes.is_empty() || found == 2, "unchanged, it is the value");
    }

    #[test]
    fn v5_changed_entries_of_old_versions_are_read_or_a_miss(
        which in any::<Index>(),
        changes in proptest::collection::vec(change(), 0..6),
    ) {
        read(&changed(&which, &changes, &OLD));
    }
}

#[test]
fn every_length_at_every_place_is_read_or_a_miss() {
    for entry in readable_entries() {
        assert_eq!(read(&entry), 2);
        for at in 0..entry.len() {
            for length in [u64::MAX, 0xffff_ff7f, 0xffff_ffff, 0x7fff_ffff_ffff, 0] {
                for width in [1, 2, 4, 8] {
                    let mut bytes = entry.to_vec();
                    let end = (at + width).min(bytes.len());
                    bytes[at..end].copy_from_slice(&length.to_le_bytes()[..end - at]);
                    read(&bytes);
                }
            }
        }
    }
}

/// What a reader must skip may be nested deeper than any stack.
#[test]
fn depth_is_bounded() {
    for (open, field) in
        [(&b"["[..], &b"{\"x\":"[..]), (b"{\"x\":", b"{\"x\":"), (b"\x91", b"\x81\xa1x"), (b"\x81\xa1x", b"")]
    {
        let mut bytes = field.to_vec();
        bytes.extend(open.repeat(1_000_000 / open.len()));
        read(&bytes);
    }
}

/// A length of gigabytes in a few bytes, where each codec keeps one.
#[test]
fn lengths_are_not_believed() {
    for bytes in [
        // MessagePack: a string, bytes, an array and a map of 4 GiB.
        &b"\x81\xa4name\xdb\xff\xff\xff\xff"[..],
        b"\x81\xa4name\xc6\xff\xff\xff\xff",
        b"\x81\xa6scores\xdd\xff\xff\xff\xff",
        b"\x81\xa4more\xdf\xff\xff\xff\xff",
        b"\xdf\xff\xff\xff\xff",
        b"\xdd\xff\xff\xff\xff",
        // postcard: id, then a name, or scores, of 2^63 bytes.
        b"\x2a\xff\xff\xff\xff\xff\xff\xff\xff\x7f",
        b"\x2a\x00\xff\xff\xff\xff\xff\xff\xff\xff\x7f",
    ] {
        assert_eq!(read(bytes), 0);
    }
}
