//! V: compression and encryption of what a remote level holds.

use bytes::Bytes;
use traced_cache::{
    Access, Clock, Codec, Compression, Encryption, ErrorKind, Level, Memory, Outcome, Policy, TracedCache,
    testing::{Shelf, payload_at, reseal},
};

use crate::{
    kit::{self, Loads, Recorder, S},
    stacks,
    stores::MapProvider,
};

const KEY: [u8; 32] = [42; 32];
const FLAGS: usize = 13;
const LZ4: u8 = 4;
const ZSTD: u8 = 8;
const ENCRYPTED: u8 = 16;

struct Bench {
    map: MapProvider,
    events: Recorder,
    cache: TracedCache<String>,
}

fn bench(map: &MapProvider, with: impl Fn(Level) -> Level) -> Bench {
    let events = Recorder::default();
    let cache = TracedCache::builder("p")
        .level(with(stacks::level(map.clone())))
        .clock(Clock::manual().0)
        .observer(events.clone())
        .policy(Policy::ttl(100 * S).grace(1_000 * S).absent_ttl(10 * S))
        .build()
        .unwrap();
    Bench { map: map.clone(), events, cache }
}

impl Bench {
    fn raw(&self, id: &str) -> Bytes {
        self.map.raw(&format!("p:{id}")).unwrap()
    }

    fn flags(&self, id: &str) -> u8 {
        self.raw(id)[FLAGS] & !3
    }

    /// Not there, and for this reason.
    async fn misses(&self, id: &str, why: &str) {
        let word = format!("unreadable 0 {why}");
        let before = self.events.count(&word);
        let seen = kit::get(&self.cache.access(Access::AllowStale), id).await;
        assert_eq!((seen, self.events.count(&word)), (None, before + 1), "{:?}", self.events.all().last());
    }
}

fn all() -> [(Compression, u8); 2] {
    [(Compression::lz4(), LZ4), (Compression::zstd(1), ZSTD)]
}

#[tokio::test]
async fn v10_compression_above_a_threshold_is_flagged_per_entry() {
    for (compression, flag) in all() {
        let map = MapProvider::new();
        let on = bench(&map, |level| level.compression(compression.above(1000)));
        let (small, zeros) = ("x".repeat(900), "0".repeat(2_000));
        for (id, text) in [("small", &small), ("zeros", &zeros)] {
            kit::set(&on.cache, id, text.clone()).await;
        }
        assert_eq!((on.flags("small"), on.flags("zeros")), (0, flag));
        assert!(on.raw("zeros").len() < 200, "{}", on.raw("zeros").len());
        assert!(on.raw("small").len() > 900);
        // Another threshold, another algorithm and none at all: what lies there is read as it says it was written.
        for with in [
            (|level: Level| level.compression(Compression::lz4().above(0))) as fn(Level) -> Level,
            |level| level.compression(Compression::zstd(3).above(1_000_000)),
            |level| level,
            |level| level.codec(Codec::MsgPack),
        ] {
            let other = bench(&map, with);
            assert_eq!(kit::get(&other.cache, "small").await.as_ref(), Some(&small));
            assert_eq!(kit::get(&other.cache, "zeros").await.as_ref(), Some(&zeros));
        }
    }
}

#[tokio::test]
async fn v10_what_does_not_get_smaller_is_stored_as_it_is() {
    for (compression, _) in all() {
        let map = MapProvider::new();
        let cache = TracedCache::<Vec<u8>>::builder("p")
            .level(stacks::level(map.clone()).codec(Codec::Postcard).compression(compression))
            .clock(Clock::manual().0)
            .build()
            .unwrap();
        let mut dice = fastrand::Rng::with_seed(10);
        let random: Vec<u8> = std::iter::repeat_with(|| dice.u8(..)).take(2_000).collect();
        kit::set(&cache, "random", random.clone()).await;
        assert_eq!(map.raw("p:random").unwrap()[FLAGS] & !3, 0);
        assert_eq!(kit::get(&cache, "random").await, Some(random));
    }
}

#[tokio::test]
async fn v11_a_claim_of_gigabytes_is_refused() {
    for (compression, _) in all() {
        let bench = bench(&MapProvider::new(), |level| level.compression(compression));
        kit::set(&bench.cache, "k", "0".repeat(5_000)).await;
        let whole = bench.raw("k");
        let at = payload_at("p", "k", &whole).unwrap();
        assert_eq!(whole[at..at + 4], 5_002_u32.to_le_bytes(), "with its quotes");
        let claim = |bytes: u32| {
            let mut claims = whole.to_vec();
            claims[at..at + 4].copy_from_slice(&bytes.to_le_bytes());
            reseal("p", "k", &claims).unwrap()
        };
        for (bytes, why) in [
            (u32::MAX, "too_large"),
            (64 * 1024 * 1024 + 1, "too_large"),
            (5_001, "payload"),
            (5_003, "payload"),
        ] {
            bench.map.plant("p:k", claim(bytes));
            bench.misses("k", why).await;
        }
        bench.map.plant("p:k", claim(5_002));
        assert!(kit::get(&bench.cache, "k").await.is_some(), "the claim alone was changed");
    }
}

#[tokio::test]
async fn encrypted_values_are_read_under_their_own_key_only() {
    let bench = bench(&MapProvider::new(), |level| {
        level.encryption(Encryption::new(7, &KEY)).compression(Compression::lz4().above(100))
    });
    let long = "a long text ".repeat(50);
    kit::set(&bench.cache, "alice", "hers, in confidence").await;
    kit::set(&bench.cache, "long", long.clone()).await;
    assert_eq!((bench.flags("alice"), bench.flags("long")), (ENCRYPTED, ENCRYPTED | LZ4));
    assert_eq!(kit::get(&bench.cache, "long").await, Some(long));
    assert_eq!(kit::get(&bench.cache, "alice").await, Some("hers, in confidence".into()));
    let shows = |bytes: &Bytes| bytes.windows(6).any(|part| part == b"confid");
    assert!(!shows(&bench.raw("alice")));
    let again = bench.raw("alice");
    kit::set(&bench.cache, "alice", "hers, in confidence").await;
    assert_ne!(bench.raw("alice")[80..], again[80..], "a nonce is drawn each time");

    // Moved to another key by somebody who can put the checksum right.
    let moved = reseal("p", "bob", &bench.raw("alice")).unwrap();
    bench.map.plant("p:bob", moved);
    bench.misses("bob", "not_authentic").await;
    // Any byte of the header or of the payload changed.
    let whole = bench.raw("alice");
    for at in (FLAGS..whole.len()).filter(|at| *at != FLAGS) {
        let mut bytes = whole.to_vec();
        bytes[at] ^= 1;
        let Some(bytes) = reseal("p", "alice", &bytes) else { continue };
        bench.map.plant("p:alice", bytes);
        assert_eq!(kit::get(&bench.cache.access(Access::AllowStale), "alice").await, None, "byte {at}");
    }
    // Its flag taken away: in the clear, nothing is believed.
    let mut bytes = whole.to_vec();
    bytes[FLAGS] &= !ENCRYPTED;
    bench.map.plant("p:alice", reseal("p", "alice", &bytes).unwrap());
    bench.misses("alice", "not_authentic").await;
    // A load replaces it.
    let loads = Loads::default();
    kit::load(&bench.cache, "alice", &loads, "anew").await;
    assert_eq!(kit::get(&bench.cache, "alice").await, Some("anew".into()));
}

#[tokio::test]
async fn an_absence_is_authenticated_too() {
    let map = MapProvider::new();
    let plain = bench(&map, |level| level);
    let sealed = bench(&map, |level| level.encryption(Encryption::new(7, &KEY)));
    let loads = Loads::default();
    kit::absent(&sealed.cache, "gone", &loads).await;
    assert_eq!(kit::outcome(&sealed.cache, "gone").await, Outcome::Absent);
    assert_eq!(kit::outcome(&plain.cache, "gone").await, Outcome::Miss, "who has no key does not read it");
    // Nor can who may write to the store, but has no key, say that there is nothing.
    kit::absent(&plain.cache, "forged", &loads).await;
    sealed.misses("forged", "not_authentic").await;
}

#[tokio::test]
async fn keys_are_rotated_without_a_gap() {
    let map = MapProvider::new();
    let (old, new) = (KEY, [43; 32]);
    let before = bench(&map, |level| level.encryption(Encryption::new(1, &old)));
    kit::set(&before.cache, "k", "written with 1").await;
    // First every node learns to read the new key, then they write with it, then the old one goes.
    let learns = bench(&map, |level| level.encryption(Encryption::new(1, &old).also_reads(2, &new)));
    let writes = bench(&map, |level| level.encryption(Encryption::new(2, &new).also_reads(1, &old)));
    let after = bench(&map, |level| level.encryption(Encryption::new(2, &new)));
    for bench in [&learns, &writes] {
        assert_eq!(kit::get(&bench.cache, "k").await, Some("written with 1".into()));
    }
    after.misses("k", "no_key").await;
    kit::set(&writes.cache, "k", "written with 2").await;
    for bench in [&learns, &writes, &after] {
        assert_eq!(kit::get(&bench.cache, "k").await, Some("written with 2".into()));
    }
    before.misses("k", "no_key").await;
    // A level without keys, and one whose key has the same id but is another.
    bench(&map, |level| level).misses("k", "no_key").await;
    bench(&map, |level| level.encryption(Encryption::new(2, &old))).misses("k", "not_authentic").await;
}

#[tokio::test]
async fn an_expired_entry_keeps_its_seal() {
    let bench = bench(&MapProvider::new(), |level| level.encryption(Encryption::new(1, &KEY)));
    kit::set(&bench.cache, "k", "v").await;
    assert!(bench.cache.expire("k").await.unwrap().is_confirmed());
    assert_eq!(kit::get(&bench.cache, "k").await, None);
    let stale = bench.cache.access(Access::AllowStale).look("k").await.unwrap();
    assert_eq!(stale.outcome(), Outcome::Stale);
}

#[tokio::test]
async fn a_nearer_level_weighs_the_value_not_what_was_stored() {
    // Read back from a level that compresses: the bytes that count in memory are those of the value.
    let map = MapProvider::new();
    let text = "0".repeat(10_000);
    kit::set(&bench(&map, |level| level.compression(Compression::lz4())).cache, "k", text).await;
    let memory = Memory::bytes(5_000);
    let cache = TracedCache::<String>::builder("p")
        .level(memory.clone())
        .level(stacks::level(map))
        .clock(Clock::manual().0)
        .build()
        .unwrap();
    for _ in 0..3 {
        assert_eq!(cache.look("k").await.unwrap().level(), Some(1), "too large to stay in memory");
        memory.maintain();
    }
}

#[tokio::test]
async fn levels_share_one_encoding_and_pack_it_each_in_its_way() {
    let (a, b, c) = (MapProvider::new(), MapProvider::new(), MapProvider::new());
    let cache = TracedCache::<String>::builder("p")
        .level(Shelf::default())
        .level(stacks::level(a.clone()).compression(Compression::zstd(1)))
        .level(
            stacks::level(b.clone()).compression(Compression::zstd(1)).encryption(Encryption::new(1, &KEY)),
        )
        .level(stacks::level(c.clone()).codec(Codec::Postcard))
        .clock(Clock::manual().0)
        .build()
        .unwrap();
    kit::set(&cache, "k", "0".repeat(5_000)).await;
    let flags = |map: &MapProvider| map.raw("p:k").unwrap()[FLAGS] & !3;
    assert_eq!([flags(&a), flags(&b), flags(&c)], [ZSTD, ZSTD | ENCRYPTED, 0]);
    let only = |level: Level| {
        TracedCache::<String>::builder("p").level(level).clock(Clock::manual().0).build().unwrap()
    };
    let expected = Some("0".repeat(5_000));
    assert_eq!(kit::get(&only(stacks::level(a)), "k").await, expected);
    assert_eq!(kit::get(&only(stacks::level(b).encryption(Encryption::new(1, &KEY))), "k").await, expected);
    assert_eq!(kit::get(&only(stacks::level(c)), "k").await, expected);
}

#[test]
fn contradictions_are_refused_and_secrets_stay_hidden() {
    let sealed = || Encryption::new(1, &KEY);
    let build = |level: Level| TracedCache::<String>::builder("p").level(level).build().unwrap_err();
    for (error, field) in [
        (build(Level::new(Shelf::default()).encryption(sealed())), "level 1 (shelf) encryption"),
        (build(Level::new(Shelf::default()).compression(Compression::lz4())), "level 1 (shelf) compression"),
        (
            build(Level::new(MapProvider::new()).compression(Compression::zstd(40))),
            "level 1 (map) compression.level",
        ),
        (
            build(Level::new(MapProvider::new()).encryption(sealed().also_reads(1, &[1; 32]))),
            "level 1 (map) encryption key id",
        ),
    ] {
        assert_eq!(error.kind(), ErrorKind::Config);
        assert!(error.setting().unwrap()[0].starts_with(field), "{error}");
    }
    // 42, 42, 42: neither in decimal nor in hex.
    let level = Level::new(MapProvider::new()).encryption(sealed().also_reads(9, &KEY));
    let shown = format!("{level:?} {:?}", sealed());
    assert!(shown.contains("[1, 9]") && !shown.contains("42, 42") && !shown.contains("2a2a"), "{shown}");
}
