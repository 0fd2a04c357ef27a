//! Whatever bytes a store may hold, for fuzzers.

use std::{collections::BTreeMap, time::Duration};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::{
    CacheId, Clock, Codec, EntryId, Extra, RawKey, Stamp,
    envelope::{self, Header},
    payload::Packing,
};

#[derive(Serialize, Deserialize)]
struct Small {
    id: u64,
    name: String,
    scores: Vec<f64>,
    ratio: Option<f32>,
    kind: Kind,
    more: BTreeMap<String, (i64, bool)>,
}

#[derive(Serialize, Deserialize)]
enum Kind {
    Plain,
    Named(String),
    Sized { width: u16, letter: char },
}

fn key() -> RawKey<'static> {
    RawKey::new(CacheId(0), "anything", "k")
}

fn codecs() -> impl Iterator<Item = Codec> {
    (0..=u8::MAX).filter_map(Codec::from_id)
}

/// Most bytes that a payload expands to here: the bound on memory counts what was given.
const EXPANDED: usize = 16 * 1024;

/// Every packing that a level may have, as far as it is compiled in.
fn packings() -> Vec<Packing> {
    #[allow(unused_mut, reason = "without the features there is one")]
    let mut all = vec![Packing::default()];
    #[cfg(feature = "lz4")]
    all.push(Packing { compression: Some(crate::Compression::lz4().above(0)), ..Packing::default() });
    #[cfg(feature = "zstd")]
    all.push(Packing { compression: Some(crate::Compression::zstd(1).above(0)), ..Packing::default() });
    #[cfg(feature = "encryption")]
    for at in 0..all.len() {
        let encryption = Some(crate::Encryption::new(7, &[42; 32]));
        all.push(Packing { encryption, ..all[at].clone() });
    }
    all
}

/// Reads the bytes in every way in which a remote level's bytes are read: as an entry; as an entry of each version after
/// magic, version and checksum have been put right, as a broken or hostile writer with our code could send it; and as a
/// payload of every codec. Answers in how many of these ways they hold a value of a small type.
///
/// Whatever the bytes, it must end, and not panic, and keep its memory within `64 * bytes.len()` and 4 MiB.
///
/// # Panics
/// If an envelope that opens is not the one that its own header and payload make. A finding.
pub fn read_anything(bytes: &[u8]) -> usize {
    let mut found = 0;
    let packings = packings();
    let mut entry = |bytes: &Bytes| {
        let Ok((header, payload)) = envelope::open(key(), bytes) else { return };
        if envelope::is_of_today(bytes) {
            assert_eq!(envelope::seal(key(), &header, payload), bytes, "an envelope has one form");
        }
        let clock = Clock::system();
        for offset_ms in [0, i64::MIN, i64::MAX] {
            let timeline = header.timeline(clock.times(offset_ms));
            assert!(
                timeline.fresh_until <= clock.now().after(header.fresh_for),
                "none outlives its ttl from now"
            );
        }
        let head = envelope::header_of(bytes, payload);
        // Of these, one that encrypts and one that does not tell all: how to expand, the entry says.
        let read = [packings.first(), packings.last()].into_iter().flatten().any(|packing| {
            let raw = packing.unpack_within(EXPANDED, key(), head, header.form, payload);
            let codec = header.codec.and_then(Codec::from_id);
            codec.zip(raw.ok()).and_then(|(codec, raw)| codec.decode::<Small>(&raw)).is_some()
        });
        found += usize::from(read);
    };
    entry(&Bytes::copy_from_slice(bytes));
    for version in envelope::VERSIONS {
        if let Some(righted) = envelope::right(key(), version, bytes) {
            entry(&righted);
        }
    }
    for codec in codecs() {
        found += usize::from(codec.decode::<Small>(bytes).is_some());
    }
    found
}

/// An envelope changed behind a cache's back, with magic, version and checksum as they are for `id` in cache `namespace`.
/// `None`: too short for one.
pub fn reseal(namespace: &str, id: &str, bytes: &[u8]) -> Option<Bytes> {
    envelope::right(RawKey::new(CacheId(0), namespace, id), envelope::VERSION, bytes)
}

/// Where the payload begins in the envelope of `id` in cache `namespace`. `None`: it does not open.
pub fn payload_at(namespace: &str, id: &str, bytes: &Bytes) -> Option<usize> {
    let (_, payload) = envelope::open(RawKey::new(CacheId(0), namespace, id), bytes).ok()?;
    Some(bytes.len() - payload.len())
}

/// Entries that [`read_anything`] finds a value in, by every codec and every packing: where a fuzzer may begin.
pub fn readable_entries() -> Vec<Bytes> {
    let small = |kind| Small {
        id: 42,
        // Long enough to be worth compressing.
        name: "Zoë \"z\" ".repeat(8),
        scores: vec![0.1, -2.5e300],
        ratio: Some(0.5),
        kind,
        more: BTreeMap::from([("a".to_owned(), (-1, true)), (String::new(), (i64::MAX, false))]),
    };
    let extra = Extra {
        tags: vec!["team:1".into(), "zoë".into()],
        etag: Some("W/\"17\"".into()),
        ..Extra::default()
    };
    let mut entries = Vec::new();
    for (codec, packing) in
        codecs().flat_map(|codec| packings().into_iter().map(move |packing| (codec, packing)))
    {
        for (kind, extra) in [
            (Kind::Plain, None),
            (Kind::Named("n".to_owned()), extra.clone().boxed()),
            (Kind::Sized { width: 7, letter: 'ß' }, Extra::default().boxed()),
        ] {
            let mut raw = Vec::new();
            codec.encode(&small(kind), &mut raw).expect("it holds finite numbers only");
            let (form, payload) = packing.pack(&raw.into());
            let header = Header {
                codec: Some(codec.id()),
                form,
                by_set: extra.is_some(),
                expired: false,
                id: EntryId(7),
                schema: 0,
                born_ms: 1_700_000_000_123,
                fresh_for: Duration::from_secs(60),
                usable_for: Duration::MAX,
                cost_us: 50_000,
                stamp: Stamp { epoch: 3, sequence: 4 },
                extra,
            };
            entries.push(match &packing.encryption {
                Some(encryption) => envelope::seal_encrypted(key(), &header, &payload, encryption)
                    .expect("the system has randomness"),
                None => envelope::seal(key(), &header, &payload),
            });
        }
    }
    entries
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_it_gives_it_reads() {
        for entry in readable_entries() {
            // As it is, and put right, which changes nothing.
            assert_eq!(read_anything(&entry), 2);
            let mut spoilt = entry.to_vec();
            spoilt[5] ^= 1;
            assert_eq!(read_anything(&spoilt), 1, "put right");
            spoilt[20] ^= 1;
            let sealed = entry[13] & 16 != 0;
            assert_eq!(
                read_anything(&spoilt),
                usize::from(!sealed),
                "its header does not matter, unless encrypted"
            );
            assert_eq!(read_anything(&entry[..entry.len() / 2]), 0);
        }
        assert_eq!(read_anything(b""), 0);
        for flag in [4, 8, 16] {
            assert!(readable_entries().iter().any(|entry| entry[13] & flag != 0), "{flag}");
        }
    }
}
