//! Values of which serde knows nothing: they stay in memory, or have a codec of their own, and everything else is as ever.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use traced_cache::{
    BoxError, Builder, CacheProvider, Compression, Encryption, Engine, ErrorKind, Level, Loaded, Memory,
    Opaque, Policy, Shown, TracedCache, ValueCodec, testing::Shelf,
};

use crate::{
    kit::{Down, Loads, Recorder, S},
    stacks,
    stores::MapProvider,
};

/// Neither serde's, nor `Clone`, nor `Debug`.
struct Rule(Box<dyn Fn(u32) -> bool + Send + Sync>);

fn above(least: u32) -> Rule {
    Rule(Box::new(move |n| n > least))
}

fn rules(memory: Memory) -> TracedCache<Rule> {
    let policy = Policy::ttl(60 * S).grace(600 * S).absent_ttl(60 * S);
    TracedCache::in_memory("rules").level(memory).policy(policy).build().unwrap()
}

#[tokio::test]
async fn every_verb_works() {
    for engine in [Engine::Quick, Engine::Moka] {
        let cache = rules(Memory::entries(100).engine(engine));
        let loads = Loads::default();
        for _ in 0..2 {
            let loads = loads.clone();
            let rule = cache.get_or_set("five", || async move {
                loads.add();
                Ok::<_, Down>(Loaded::value(above(5)).tag("x"))
            });
            assert!((rule.await.unwrap().unwrap().0)(6));
        }
        assert_eq!(loads.count(), 1);
        assert!(cache.set("six", above(6)).await.unwrap().is_confirmed());
        let both = cache.get_many(["five", "six", "seven"]).await.unwrap();
        assert_eq!(both.iter().filter(|found| found.is_some()).count(), 2);

        let raised = cache.update("six", &(), |(), _, held| async move {
            let held = held.is_some_and(|rule| (rule.0)(7));
            Ok::<_, Down>(above(if held { 60 } else { 0 }))
        });
        assert!(!(raised.await.unwrap().value.0)(60));

        assert!(cache.expire("six").await.unwrap().is_confirmed());
        let stale = cache.get_or_set("six", || async { Err::<Rule, _>(Down(1)) }).await.unwrap();
        assert!((stale.0)(61), "what is held serves where the source fails");
        assert!(cache.invalidate_tag("x").await.unwrap().is_confirmed());
        assert!(cache.get("five").await.unwrap().is_none());

        let shown = cache.inspect_with_value("six").await.unwrap();
        assert!(shown.levels[0].entry.is_some() && shown.levels[0].value.is_none());
        assert!(cache.clear().await.unwrap().is_confirmed());
    }
}

#[tokio::test]
async fn bytes_are_counted_by_a_weigher_and_not_guessed() {
    let memory = || Memory::bytes(1 << 20);
    let error = TracedCache::<Rule>::in_memory("rules").level(memory()).build().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Config);
    assert!(error.to_string().contains("weigher") && error.to_string().contains("level 1"), "{error}");
    let cache = TracedCache::in_memory("rules").level(memory()).weigher(|_: &Rule| 1000).build().unwrap();
    assert!(cache.set("five", above(5)).await.unwrap().is_confirmed());
    assert!(cache.stats().levels[0].weight.unwrap() >= 1000);
}

#[tokio::test]
async fn a_level_of_bytes_is_refused() {
    let builder =
        TracedCache::<Rule>::in_memory("rules").level(Memory::entries(10)).level(MapProvider::new());
    let error = builder.build().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Config);
    let field = format!("level 2 ({}) provider", MapProvider::new().describe().system);
    assert!(error.to_string().contains(&field), "{error}");
}

/// Of a rule only its bound.
#[derive(Debug, PartialEq)]
struct Bound(u32);

#[derive(Clone, Default)]
struct Text {
    fails: Arc<AtomicBool>,
    panics: Arc<AtomicBool>,
}

impl Text {
    fn trip(&self) -> Result<(), BoxError> {
        assert!(!self.panics.load(Ordering::SeqCst), "the codec panics");
        if self.fails.load(Ordering::SeqCst) { Err("a secret value".into()) } else { Ok(()) }
    }
}

impl ValueCodec<Bound> for Text {
    fn encode(&self, value: &Bound, out: &mut Vec<u8>) -> Result<(), BoxError> {
        self.trip()?;
        out.extend_from_slice(value.0.to_string().as_bytes());
        Ok(())
    }

    fn decode(&self, bytes: &[u8]) -> Result<Bound, BoxError> {
        self.trip()?;
        Ok(Bound(std::str::from_utf8(bytes)?.parse()?))
    }
}

fn coded(codec: &Text, level: Level) -> (Builder<Bound>, Shelf) {
    let shelf = Shelf::default();
    let near = Level::new(shelf.clone()).ttl_cap(10 * S);
    (TracedCache::coded("bounds", codec.clone()).level(near).level(level).policy(Policy::ttl(60 * S)), shelf)
}

type Form = fn(Level) -> Level;

async fn read(cache: &TracedCache<Bound>) -> Option<u32> {
    cache.get("k").await.unwrap().map(|bound| bound.0)
}

#[tokio::test]
async fn a_codec_of_ones_own_is_what_levels_are_written_in() {
    let forms: [(&str, Form); 4] = [
        ("as it is", |level| level),
        ("smaller", |level| level.compression(Compression::lz4().above(0))),
        ("encrypted", |level| level.encryption(Encryption::new(1, &[7; 32]))),
        ("bare", Level::plain),
    ];
    for (how, form) in forms {
        let map = MapProvider::new();
        let (builder, shelf) = coded(&Text::default(), form(stacks::level(map.clone())));
        let cache = builder.build().unwrap();
        assert!(cache.set("k", Bound(5)).await.unwrap().is_confirmed());
        shelf.evict_all();
        assert_eq!(read(&cache).await, Some(5), "{how}");
        assert_eq!(map.raw("bounds:k").as_deref() == Some(b"5"), how == "bare", "{how}");
        let shown = cache.inspect_with_value("k").await.unwrap();
        let level = &shown.levels[1];
        assert_eq!(level.entry.as_ref().unwrap().codec, Some("own"));
        assert!(matches!(&level.value, Some(Shown::Bytes(bytes)) if bytes == "5"), "{how}");
        let settings = &cache.settings().levels[1].settings;
        assert!(settings.contains(&("codec", "own".to_owned())));
    }
}

#[tokio::test]
async fn what_its_codec_cannot_write_or_read_is_as_with_any_other() {
    let (codec, map, events) = (Text::default(), MapProvider::new(), Recorder::default());
    let (builder, shelf) = coded(&codec, stacks::level(map.clone()));
    let cache = builder.observer(events.clone()).build().unwrap();
    for trip in [&codec.fails, &codec.panics] {
        assert!(cache.set("k", Bound(5)).await.unwrap().is_confirmed());
        trip.store(true, Ordering::SeqCst);
        shelf.evict_all();
        assert_eq!(read(&cache).await, None);
        assert!(cache.set("k", Bound(6)).await.unwrap().is_confirmed());
        assert_eq!(read(&cache).await, Some(6), "memory needs no codec");
        trip.store(false, Ordering::SeqCst);
        shelf.evict_all();
        assert_eq!(read(&cache).await, None, "what could not be written leaves nothing older behind");
    }
    assert_eq!(events.count("unreadable 1 payload"), 2);
    assert!(!format!("{:?}", events.all()).contains("secret"));
}

#[tokio::test]
async fn one_codec_does_not_read_what_another_has_written() {
    let (map, events) = (MapProvider::new(), Recorder::default());
    let (builder, _) = coded(&Text::default(), stacks::level(map.clone()));
    let own = builder.observer(events.clone()).build().unwrap();
    let serde = TracedCache::<u32>::builder("bounds")
        .level(stacks::level(map.clone()))
        .observer(events.clone())
        .build();
    let serde = serde.unwrap();
    assert!(own.set("k", Bound(5)).await.unwrap().is_confirmed());
    assert_eq!(serde.get("k").await.unwrap(), None);
    assert!(serde.set("k", 6).await.unwrap().is_confirmed());
    own.inspect("k").await.unwrap();
    let (builder, _) = coded(&Text::default(), stacks::level(map.clone()));
    assert_eq!(read(&builder.observer(events.clone()).build().unwrap()).await, None);
    assert_eq!((events.count("unreadable 0 codec"), events.count("unreadable 1 codec")), (1, 1));

    // Who knows no type reads its bytes.
    assert!(own.set("k", Bound(5)).await.unwrap().is_confirmed());
    let blind = TracedCache::<Opaque>::builder("bounds").level(stacks::level(map)).build().unwrap();
    let shown = blind.inspect_with_value("k").await.unwrap();
    assert!(matches!(&shown.levels[0].value, Some(Shown::Bytes(bytes)) if bytes == "5"));
}

#[tokio::test]
async fn memory_bounded_by_bytes_weighs_what_its_codec_writes() {
    let builder = TracedCache::coded("bounds", Text::default()).level(Memory::bytes(1 << 20));
    let cache = builder.build().unwrap();
    let weight = async |bound| {
        assert!(cache.set("k", Bound(bound)).await.unwrap().is_confirmed());
        cache.stats().levels[0].weight.unwrap()
    };
    assert_eq!(weight(1_000_000).await - weight(1).await, 6);
}
