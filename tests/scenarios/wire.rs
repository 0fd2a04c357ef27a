//! V: what a remote level may hold, and what becomes of it.

#[path = "../snapshots/items.rs"]
mod snapshots;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use traced_cache::{
    Access, Clock, Codec, Compression, Encryption, Level, Loaded, Outcome, Policy, Schema, SerdeValue, Time,
    TracedCache, testing::Shelf,
};

use crate::{
    kit::{self, Loads, Recorder, S},
    stacks,
    stores::MapProvider,
};

/// A map behind an empty shelf, and a cache on both.
struct Bench<T> {
    map: MapProvider,
    shelf: Shelf,
    events: Recorder,
    time: Time,
    cache: TracedCache<T>,
}

fn bench<T: SerdeValue>(codec: Codec, schema: u32) -> Bench<T> {
    on(&MapProvider::new(), codec, schema)
}

fn on<T: SerdeValue>(map: &MapProvider, codec: Codec, schema: u32) -> Bench<T> {
    at(map, stacks::level(map.clone()).codec(codec), schema)
}

/// `level` stands on `map`.
fn at<T: SerdeValue>(map: &MapProvider, level: Level, schema: u32) -> Bench<T> {
    let (clock, time) = Clock::manual();
    let (shelf, events) = (Shelf::default(), Recorder::default());
    let cache = TracedCache::builder("v")
        .level(shelf.clone())
        .level(level)
        .clock(clock)
        .schema(schema)
        .observer(events.clone())
        .policy(Policy::ttl(100 * S).grace(1_000 * S))
        .build()
        .unwrap();
    Bench { map: map.clone(), shelf, events, time, cache }
}

impl<T: SerdeValue + Clone + PartialEq + std::fmt::Debug> Bench<T> {
    /// What is planted is a miss with one event; a load replaces it.
    async fn is_replaced(&self, bytes: impl Into<Bytes>, why: &str, right: T) {
        let bytes = bytes.into();
        self.shelf.evict_all();
        self.map.plant("v:k", bytes.clone());
        let word = format!("unreadable 1 {why}");
        let before = self.events.count(&word);
        assert_eq!(kit::get(&self.cache, "k").await, None, "{bytes:?}");
        assert_eq!(self.events.count(&word), before + 1, "{bytes:?}: {:?}", self.events.all().last());
        assert_eq!(self.map.raw("v:k"), Some(bytes), "nothing is written before a load has succeeded");
        let loads = Loads::default();
        assert!(kit::fail(&self.cache, "k", &loads).await.is_err());
        assert_eq!(kit::load(&self.cache, "k", &loads, right.clone()).await, right);
        assert_eq!(loads.count(), 2);
        self.shelf.evict_all();
        let found = self.cache.look("k").await.unwrap();
        assert_eq!((found.level(), found.value().map(|v| T::clone(v))), (Some(1), Some(right)));
    }
}

#[tokio::test]
async fn v1_gibberish_of_every_length_is_a_miss_and_replaced() {
    let bench = bench::<String>(Codec::Json, 0);
    kit::set(&bench.cache, "other", "so that the marker is there").await;
    // Fixed, so that a failure comes back; the unit tests draw more.
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    for len in 0..=64 {
        let bytes: Vec<u8> = (0..len)
            .map(|_| {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                state.to_le_bytes()[0]
            })
            .collect();
        bench.is_replaced(bytes, "foreign", "right".into()).await;
    }
}

#[tokio::test]
async fn v2_v4_every_cut_and_every_flipped_bit_is_a_miss_or_the_right_value() {
    let bench = bench::<String>(Codec::Json, 0);
    kit::set(&bench.cache, "k", "right").await;
    let whole = bench.map.raw("v:k").unwrap();
    for end in 0..whole.len() {
        let why = if end < 2 { "foreign" } else { "corrupt" };
        bench.is_replaced(whole.slice(..end), why, "right".into()).await;
    }
    let mut longer = whole.to_vec();
    longer.push(b' ');
    bench.is_replaced(longer, "corrupt", "right".into()).await;
    for bit in 0..whole.len() * 8 {
        let mut bytes = whole.to_vec();
        bytes[bit / 8] ^= 1 << (bit % 8);
        bench.shelf.evict_all();
        bench.map.plant("v:k", bytes);
        let seen = kit::get(&bench.cache.access(Access::AllowStale), "k").await;
        assert!(seen.is_none() || seen.as_deref() == Some("right"), "bit {bit}: {seen:?}");
    }
}

#[tokio::test]
async fn v5_snapshots_of_every_release_decode() {
    // Bytes as they were written by each release; see `snapshots/README.md`. Never change a file: add one.
    for (file, codec, pack, user) in snapshot::all() {
        let map = MapProvider::new();
        snapshot::plant(&map, &file);
        // Another codec is configured than the one that the entry was written with, and no compression.
        let other = if codec == Codec::Json { Codec::MsgPack } else { Codec::Json };
        let level = stacks::level(map.clone()).codec(other);
        let level = if file.contains("encrypted") { pack(level) } else { level };
        let bench = at::<snapshot::User>(&map, level, 7);
        let found = bench.cache.look("42").await.unwrap();
        assert_eq!(found.outcome(), Outcome::Hit, "{file}: {:?}", bench.events.all());
        assert_eq!(**found.value().unwrap(), user, "{file}");
        assert_eq!(kit::outcome(&bench.cache, "gone").await, Outcome::Absent, "{file}");
        // Tags and validator are there, too: a refresh is conditional.
        bench.time.advance(snapshot::TTL);
        let etag = |(), _, held: Option<traced_cache::Held<snapshot::User>>| async move {
            let etag = held.as_ref().and_then(|held| held.etag().map(str::to_owned));
            assert_eq!(etag.as_deref(), Some("W/\"17\""));
            traced_cache::ok(Loaded::unchanged())
        };
        let held = bench.cache.get_or_set_if_changed("42", &(), etag).await.unwrap();
        assert_eq!(held.as_deref(), Some(&user), "{file}");
    }
}

mod snapshot {
    use std::{fmt::Write, fs, time::Duration};

    use super::{
        snapshots::{items, path},
        *,
    };

    /// Longer than any test run, short enough to be passed by a manual clock.
    pub(super) const TTL: Duration = Duration::from_secs(3600);

    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
    pub(crate) struct User {
        id: u64,
        name: String,
        email: Option<String>,
        scores: Vec<f64>,
        active: bool,
    }

    pub(super) fn user() -> User {
        User { id: 42, name: "Zoë \"z\"".into(), email: None, scores: vec![0.1, -2.5e300], active: true }
    }

    /// Worth compressing.
    fn long() -> User {
        User { name: "Zoë \"z\" ".repeat(40), ..user() }
    }

    type Pack = fn(Level) -> Level;

    /// Each file, the codec and the level's settings that wrote it, and what it holds: of each version of the wire format.
    pub(super) fn all() -> impl Iterator<Item = (String, Codec, Pack, User)> {
        let none: Pack = |level| level;
        let forms: [(_, _, Pack, _); 6] = [
            ("json", Codec::Json, none, user()),
            ("msgpack", Codec::MsgPack, none, user()),
            ("postcard", Codec::Postcard, none, user()),
            ("lz4", Codec::Json, |level| level.compression(Compression::lz4().above(100)), long()),
            ("zstd", Codec::MsgPack, |level| level.compression(Compression::zstd(3).above(100)), long()),
            ("encrypted-lz4", Codec::Postcard, encrypted, long()),
        ];
        ["v1", "v2"].into_iter().flat_map(move |version| {
            forms
                .clone()
                .map(|(form, codec, pack, user)| (format!("{version}-{form}.hex"), codec, pack, user))
        })
    }

    fn encrypted(level: Level) -> Level {
        level.compression(Compression::lz4().above(100)).encryption(Encryption::new(17, &[0x5a; 32]))
    }

    pub(super) fn plant(map: &MapProvider, file: &str) {
        for (key, bytes) in items(file) {
            map.plant(&key, bytes);
        }
    }

    /// Writes the files of the wire format of today: `cargo test --test scenarios write_snapshots -- --ignored`.
    #[tokio::test]
    #[ignore = "writes files that are not there yet: for a new wire form, under a new name"]
    async fn write_snapshots() {
        for (file, codec, pack, user) in all() {
            if path(&file).exists() {
                continue;
            }
            let map = MapProvider::new();
            let bench = at::<User>(&map, pack(stacks::level(map.clone()).codec(codec)), 7);
            let value = Loaded::value(user).ttl(TTL).grace(10 * TTL).tags(["team:1", "zoë"]).etag("W/\"17\"");
            assert!(bench.cache.set_loaded("42", value).await.unwrap().is_confirmed());
            let gone = Loaded::absent().ttl(TTL);
            assert!(bench.cache.set_loaded("gone", gone).await.unwrap().is_confirmed());
            let mut text = String::new();
            for key in ["v:", "v:42", "v:gone"] {
                write!(text, "{key} ").unwrap();
                for byte in bench.map.raw(key).unwrap() {
                    write!(text, "{byte:02x}").unwrap();
                }
                text.push('\n');
            }
            fs::create_dir_all(path("")).unwrap();
            fs::write(path(&file), text).unwrap();
        }
    }
}

#[tokio::test]
async fn v7_another_schema_is_a_clean_miss() {
    let map = MapProvider::new();
    let old = on::<String>(&map, Codec::Postcard, 1);
    kit::set(&old.cache, "k", "old shape").await;
    let bytes = map.raw("v:k").unwrap();
    let new = on::<(String, u64)>(&map, Codec::Postcard, 2);
    new.is_replaced(bytes, "schema", ("new shape".into(), 1)).await;
    assert_eq!(new.events.count("unreadable 1 payload"), 0);
}

#[tokio::test]
async fn v7_a_type_may_name_its_schema_itself() {
    let map = MapProvider::new();
    let build =
        || TracedCache::<OddBreaks>::builder("v").level(stacks::level(map.clone())).clock(Clock::manual().0);
    kit::set(&build().versioned().build().unwrap(), "k", OddBreaks(2)).await;
    assert_eq!(kit::get(&build().schema(7).build().unwrap(), "k").await, Some(OddBreaks(2)));
    assert_eq!(kit::get(&build().build().unwrap(), "k").await, None);
}

/// Cannot be written while it is odd.
#[derive(Clone, Debug, PartialEq, Deserialize)]
struct OddBreaks(u64);

impl Schema for OddBreaks {
    const ID: u32 = 7;
}

impl Serialize for OddBreaks {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if self.0 % 2 == 1 {
            return Err(serde::ser::Error::custom("odd"));
        }
        serializer.serialize_newtype_struct("OddBreaks", &self.0)
    }
}

#[tokio::test]
async fn v8_what_cannot_be_encoded_stays_out_of_the_second_level() {
    for codec in [Codec::Json, Codec::MsgPack, Codec::Postcard] {
        let bench = bench::<OddBreaks>(codec, 0);
        kit::set(&bench.cache, "k", OddBreaks(2)).await;
        kit::set(&bench.cache, "k", OddBreaks(3)).await;
        assert_eq!(bench.events.count("not_encoded 1"), 1);
        assert_eq!(kit::get(&bench.cache, "k").await, Some(OddBreaks(3)), "L1 holds it");
        bench.shelf.evict_all();
        assert_eq!(kit::get(&bench.cache, "k").await, None, "and L2 neither has it nor what it replaced");
        let loads = Loads::default();
        assert_eq!(kit::load(&bench.cache, "loaded", &loads, OddBreaks(5)).await, OddBreaks(5));
        assert_eq!(bench.events.count("not_encoded 1"), 2);
        assert_eq!(kit::load(&bench.cache, "loaded", &loads, OddBreaks(5)).await, OddBreaks(5));
        assert_eq!(loads.count(), 1);
        // In a batch the others are stored.
        let batch = [("a", OddBreaks(4)), ("b", OddBreaks(7)), ("c", OddBreaks(6))];
        assert!(bench.cache.set_many(batch).await.unwrap().is_confirmed());
        bench.shelf.evict_all();
        let found = bench.cache.get_many(["a", "b", "c"]).await.unwrap();
        assert_eq!(found, [Some(OddBreaks(4).into()), None, Some(OddBreaks(6).into())]);
    }
}

#[tokio::test]
async fn v13_another_programs_value_is_a_miss_and_left_alone() {
    let bench = bench::<String>(Codec::Json, 0);
    kit::set(&bench.cache, "other", "x").await;
    for foreign in [&b"\"a JSON string\""[..], b"hello", b"", b"\xc7", b"\x80\x04\x95"] {
        bench.is_replaced(foreign.to_vec(), "foreign", "right".into()).await;
    }
    bench
        .is_replaced(&b"\xc7\xacwith our magic, by chance, and no more of it"[..], "version", "right".into())
        .await;
    // On real servers as well.
    if let (Some(server), Some(redis)) = (stacks::redis_server(), stacks::redis()) {
        let cache = TracedCache::<String>::builder("v13").level(stacks::level(redis)).build().unwrap();
        let key = "v:{v13:k}";
        let _: () = server.command(&["SET", key, "legacy"]).unwrap();
        assert_eq!(kit::get(&cache, "k").await, None);
        assert_eq!(server.command::<String>(&["GET", key]).unwrap(), "legacy");
        let loads = Loads::default();
        kit::load(&cache, "k", &loads, "right").await;
        assert_eq!(kit::get(&cache, "k").await, Some("right".into()));
        // A type that is no string at all.
        let _: i64 = server.command(&["DEL", key]).unwrap();
        let _: i64 = server.command(&["LPUSH", key, "1"]).unwrap();
        assert_eq!(kit::get(&cache, "k").await, None);
        kit::load(&cache, "k", &loads, "again").await;
        assert_eq!(kit::get(&cache, "k").await, Some("again".into()));
    }
}

#[tokio::test]
async fn v4_a_copy_under_another_key_is_a_miss() {
    let bench = bench::<String>(Codec::Json, 0);
    kit::set(&bench.cache, "alice", "hers").await;
    bench.map.plant("v:k", bench.map.raw("v:alice").unwrap());
    let bytes = bench.map.raw("v:alice").unwrap();
    bench.is_replaced(bytes, "corrupt", "right".into()).await;
}

#[tokio::test]
async fn v4_a_damaged_marker_empties_the_cache() {
    // Whatever it said: what was cleared must not come back.
    let bench = bench::<String>(Codec::Json, 0);
    kit::set(&bench.cache, "k", "before").await;
    bench.map.plant("v:", &b"damaged"[..]);
    let node = on::<String>(&bench.map, Codec::Json, 0);
    assert_eq!(kit::get(&node.cache, "k").await, None);
    kit::set(&node.cache, "k", "after").await;
    let third = on::<String>(&bench.map, Codec::Json, 0);
    assert_eq!(kit::get(&third.cache, "k").await, Some("after".into()));
}
