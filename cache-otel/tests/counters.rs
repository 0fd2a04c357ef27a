//! Counters, as a reader of the SDK gets them from real caches.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests")]

mod common;

use std::{sync::Arc, time::Duration};

use cache_core::{
    CacheInfo, Capabilities, Clock, Event, Level, LevelOutcome, MissReason, Observer, Policy, TracedCache,
    ok,
    testing::{Chaos, Fault, Hub, MapProvider},
};
use cache_memory::Memory;
use cache_otel::{Telemetry, Vocabulary, names};
use common::{Reader, heard::Heard, of, sum};
use opentelemetry_sdk::metrics::Temporality;
use test_servers::until;

/// A bound that a loaded machine does not reach.
const SOON: Duration = Duration::from_secs(60);

fn users(telemetry: &Telemetry) -> TracedCache<u64> {
    TracedCache::builder("users")
        .level(Memory::bytes(1 << 20))
        .policy(Policy::ttl(Duration::from_secs(600)))
        .observer(telemetry.clone())
        .build()
        .unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_series_starts_at_zero_and_moves_as_calls_end() {
    let reader = Reader::new(Temporality::Cumulative);
    let telemetry = reader.telemetry();
    let cache = users(&telemetry);

    let zero = reader.collect();
    assert!(!zero.keys().any(|name| name.starts_with(names::HIT_RATE)), "no rate before a look-up");
    for declared in [
        "cache.hits{cache.name=users,cache.operation=get}",
        "cache.misses{cache.name=users,cache.operation=get_or_set}",
        "cache.operations{cache.name=users,cache.operation=invalidate}",
        "cache.requests{cache.level=l1,cache.name=users,cache.result=stale}",
        "cache.requests{cache.level=none,cache.name=users,cache.result=coalesced}",
        "cache.miss.reasons{cache.miss.reason=evicted,cache.name=users}",
        "cache.errors{cache.name=users,error.type=load_timeout}",
        "cache.invalidations{cache.invalidation.scope=clear,cache.name=users}",
        "cache.journal.depth{cache.name=users}",
        "cache.journal.values{cache.journal.result=stored,cache.name=users}",
        "cache.time_saved{cache.name=users}",
        "cache.loads{cache.name=users}",
        "cache.load.errors{cache.name=users}",
        "cache.load.active{cache.name=users}",
        "cache.fill.overtaken{cache.name=users}",
        "cache.entry.count{cache.level=l1,cache.name=users}",
        "cache.size{cache.level=l1,cache.name=users}",
        "cache.evictions{cache.eviction.cause=size,cache.level=l1,cache.name=users}",
        "cache.level.requests{cache.level=l1,cache.name=users,cache.result=miss}",
        "cache.unreadable{cache.level=l1,cache.name=users,cache.unreadable.reason=type}",
    ] {
        assert_eq!(zero.get(declared), Some(&0.0), "{declared}");
    }
    assert!(!zero.contains_key("cache.requests{cache.level=l1,cache.name=users,cache.result=miss}"));
    assert_eq!(of(&zero, names::BREAKER_COUNT).count(), 0, "memory has no breaker");
    assert_eq!(of(&zero, names::BACKPLANE_GAPS).count(), 0, "there is no backplane");

    for _ in 0..3 {
        cache.get_or_set(1, || async { ok(7u64) }).await.unwrap();
    }
    cache.get(2).await.unwrap();
    let failed = cache.get_or_set(3, || async { Err::<u64, _>(std::io::Error::other("down")) }).await;
    assert!(failed.is_err());
    let _ = cache.invalidate_many([4, 5]).await.unwrap();

    let now = reader.collect();
    for (series, count) in [
        ("cache.hits{cache.name=users,cache.operation=get_or_set}", 2.0),
        ("cache.misses{cache.name=users,cache.operation=get_or_set}", 2.0),
        ("cache.misses{cache.name=users,cache.operation=get}", 1.0),
        ("cache.miss.reasons{cache.miss.reason=absent,cache.name=users}", 3.0),
        ("cache.operations{cache.name=users,cache.operation=get_or_set}", 4.0),
        ("cache.errors{cache.name=users,error.type=load}", 1.0),
        ("cache.invalidations{cache.invalidation.scope=key,cache.name=users}", 2.0),
        ("cache.requests{cache.level=l1,cache.name=users,cache.result=hit}", 2.0),
        ("cache.requests{cache.level=none,cache.name=users,cache.result=miss}", 3.0),
        ("cache.hit_rate{cache.name=users}", 0.4),
        ("cache.loads{cache.name=users}", 2.0),
        ("cache.load.errors{cache.name=users}", 1.0),
        ("cache.entry.count{cache.level=l1,cache.name=users}", 1.0),
    ] {
        assert_eq!(now.get(series), Some(&count), "{series}");
    }
    assert!(now["cache.size{cache.level=l1,cache.name=users}"] > 0.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_remote_level_a_breaker_and_a_backplane_have_their_series() {
    let reader = Reader::new(Temporality::Cumulative);
    let telemetry = reader.telemetry();
    let (hub, store) = (Hub::new(), Arc::new(Chaos::new(MapProvider::new())));
    let (link, other_link) = (hub.node(), hub.node());
    let node = |link: &cache_core::testing::Link, telemetry: Option<&Telemetry>| {
        let breaker = cache_core::Breaker::default().min_calls(1).failure_rate(0.01);
        let mut builder = TracedCache::<u64>::builder("users")
            .level(Memory::entries(100))
            .level(Level::new(Arc::clone(&store)).breaker(Some(breaker)))
            .backplane(link.clone());
        if let Some(telemetry) = telemetry {
            builder = builder.observer(telemetry.clone());
        }
        builder.build().unwrap()
    };
    let (cache, other) = (node(&link, Some(&telemetry)), node(&other_link, None));
    cache.get(1).await.unwrap();
    let zero = reader.collect();
    for (series, value) in [
        ("cache.breaker.count{cache.breaker.state=closed,cache.level=l2,cache.name=users}", 1.0),
        ("cache.breaker.count{cache.breaker.state=open,cache.level=l2,cache.name=users}", 0.0),
        ("cache.breaker.openings{cache.level=l2,cache.name=users}", 0.0),
        ("cache.level.errors{cache.level=l2,cache.name=users,error.type=timeout}", 0.0),
        ("cache.unsent{cache.level=l2,cache.name=users,cache.unsent.reason=too_large}", 0.0),
        ("cache.backplane.messages{cache.backplane.message=sent,cache.name=users}", 0.0),
    ] {
        assert_eq!(zero.get(series), Some(&value), "{series}");
    }
    let _ = cache.set(1, 7u64).await.unwrap();
    let _ = other.set(1, 8u64).await.unwrap();
    cache.get(1).await.unwrap();
    store.set_all(Fault::Fail);
    cache.get(2).await.unwrap();
    cache.get(3).await.unwrap();
    let now = reader.collect();
    for (series, value) in [
        ("cache.backplane.messages{cache.backplane.message=sent,cache.name=users}", 1.0),
        ("cache.backplane.messages{cache.backplane.message=received,cache.name=users}", 1.0),
        ("cache.backplane.lag_count{cache.name=users}", 1.0),
        ("cache.breaker.count{cache.breaker.state=closed,cache.level=l2,cache.name=users}", 0.0),
        ("cache.breaker.count{cache.breaker.state=open,cache.level=l2,cache.name=users}", 1.0),
        ("cache.breaker.openings{cache.level=l2,cache.name=users}", 1.0),
        ("cache.level.errors{cache.level=l2,cache.name=users,error.type=error}", 1.0),
        ("cache.level.requests{cache.level=l2,cache.name=users,cache.result=skipped}", 1.0),
        ("cache.miss.reasons{cache.miss.reason=error,cache.name=users}", 2.0),
    ] {
        assert_eq!(now.get(series), Some(&value), "{series}: {now:#?}");
    }
    assert!(sum(&now, "cache.item.size_count") >= 2.0);
    assert!(sum(&now, "db.client.operation.duration_count") >= 3.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn caches_of_one_name_are_summed_and_gone_ones_stay_in_the_sum() {
    // With deltas the SDK subtracts: a sum that went back would make it panic.
    for temporality in [Temporality::Cumulative, Temporality::Delta] {
        let reader = Reader::new(temporality);
        let telemetry = reader.telemetry();
        let (one, two) = (users(&telemetry), users(&telemetry));
        one.get(1).await.unwrap();
        two.get(1).await.unwrap();
        let misses = "cache.misses{cache.name=users,cache.operation=get}";
        assert_eq!(reader.collect()[misses], 2.0);

        let expect = |all: f64, since: f64| if temporality == Temporality::Delta { since } else { all };
        drop(one);
        two.get(1).await.unwrap();
        assert_eq!(reader.collect()[misses], expect(3.0, 1.0));

        two.get(1).await.unwrap();
        drop(two);
        let gone = reader.collect();
        assert_eq!(gone[misses], expect(4.0, 1.0), "also what came after the last collection");
        assert_eq!(gone["cache.entry.count{cache.level=l1,cache.name=users}"], 0.0);

        // The name comes back, and its counts go on.
        let three = users(&telemetry);
        three.get(1).await.unwrap();
        assert_eq!(reader.collect()[misses], expect(5.0, 1.0));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gone_cache_is_let_go_also_where_two_telemetries_and_a_recorder_held_it() {
    let (one, two) = (Reader::new(Temporality::Cumulative), Reader::new(Temporality::Cumulative));
    let (first, second) = (one.telemetry(), two.telemetry());
    let recorder = cache_core::testing::Recorder::new();
    for _ in 0..3 {
        let cache = TracedCache::<u64>::builder("users")
            .level(Memory::entries(100))
            .level(MapProvider::new())
            .observer(first.clone())
            .observer(second.clone())
            .observer(recorder.clone())
            .build()
            .unwrap();
        cache.get(1).await.unwrap();
    }
    let stats: Vec<_> = recorder.stats().iter().map(Arc::downgrade).collect();
    // A cache's poll may have been holding it when its last handle went.
    assert!(until(SOON, || recorder.stats().iter().all(|stats| stats.is_over())));
    for reader in [&one, &two] {
        let series = reader.collect();
        assert_eq!(series["cache.misses{cache.name=users,cache.operation=get}"], 3.0);
        assert_eq!(sum(&series, names::BREAKER_COUNT), 0.0, "breakers of caches that are gone");
        assert_eq!(sum(&series, names::ENTRY_COUNT), 0.0);
    }
    drop(recorder);
    let is_let_go = || stats.iter().all(|stats| stats.upgrade().is_none());
    assert!(until(SOON, is_let_go), "nobody holds what is over");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_remote_level_shows_also_where_another_cache_of_the_name_has_memory_there() {
    for memory_first in [true, false] {
        let reader = Reader::new(Temporality::Cumulative);
        let telemetry = reader.telemetry();
        let store = Arc::new(Chaos::new(MapProvider::new()));
        let breaker = cache_core::Breaker::default().min_calls(1).failure_rate(0.01);
        let remote = || {
            TracedCache::<u64>::builder("users")
                .level(Level::new(Arc::clone(&store)).breaker(Some(breaker)))
                .observer(telemetry.clone())
                .build()
                .unwrap()
        };
        let (_near, far) = if memory_first {
            let near = users(&telemetry);
            (near, remote())
        } else {
            let far = remote();
            (users(&telemetry), far)
        };
        store.set_all(Fault::Fail);
        let _ = far.get(1).await;
        let series = reader.collect();
        for (name, value) in [
            ("cache.level.errors{cache.level=l1,cache.name=users,error.type=error}", 1.0),
            ("cache.breaker.count{cache.breaker.state=open,cache.level=l1,cache.name=users}", 1.0),
            ("cache.breaker.count{cache.breaker.state=closed,cache.level=l1,cache.name=users}", 0.0),
            ("cache.breaker.openings{cache.level=l1,cache.name=users}", 1.0),
            ("cache.evictions{cache.eviction.cause=size,cache.level=l1,cache.name=users}", 0.0),
        ] {
            assert_eq!(series.get(name), Some(&value), "{name}: {series:#?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p10_one_collection_agrees_with_itself_while_calls_run() {
    let reader = Reader::new(Temporality::Cumulative);
    let telemetry = reader.telemetry();
    let cache = users(&telemetry);
    let calls = tokio::spawn({
        let cache = cache.clone();
        async move {
            for n in 0..20_000u64 {
                cache.get_or_set(n % 50, || async { ok(1u64) }).await.unwrap();
                if n % 100 == 0 {
                    let _ = cache.invalidate(n % 50).await.unwrap();
                }
            }
        }
    });
    while !calls.is_finished() {
        let series = reader.collect();
        let by_verb = sum(&series, names::HITS);
        let at_l1 = series["cache.requests{cache.level=l1,cache.name=users,cache.result=hit}"];
        assert_eq!(by_verb, at_l1);
        assert_eq!(sum(&series, names::MISSES), sum(&series, names::MISS_REASONS));
        tokio::task::yield_now().await;
    }
    calls.await.unwrap();
    let series = reader.collect();
    assert_eq!(sum(&series, names::REQUESTS), 20_000.0);
    assert_eq!(sum(&series, names::OPERATIONS), 20_200.0);
    assert_eq!(sum(&series, names::LEVEL_REQUESTS), 20_000.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn older_dashboards_get_their_names() {
    let reader = Reader::new(Temporality::Cumulative);
    let telemetry = reader.builder().vocabulary(Vocabulary::Seeds).build();
    let cache = TracedCache::<u64>::builder("users")
        .level(Memory::entries(100))
        .level(MapProvider::new())
        .observer(telemetry)
        .build()
        .unwrap();
    for _ in 0..2 {
        cache.get_or_set(1, || async { ok(7u64) }).await.unwrap();
    }
    cache.get(2).await.unwrap();
    let _ = cache.set(3, 7u64).await.unwrap();
    let _ = cache.invalidate(3).await.unwrap();
    let series = reader.collect();
    for (name, value) in [
        ("cache.hits{cache.name=users,cache.operation=get,cache_group=users}", 1.0),
        ("cache.misses{cache.name=users,cache.operation=get,cache_group=users}", 2.0),
        ("cache.operations{cache.name=users,cache.operation=get,cache_group=users}", 3.0),
        ("cache.operations{cache.name=users,cache.operation=set,cache_group=users}", 1.0),
        ("cache.operations{cache.name=users,cache.operation=delete,cache_group=users}", 1.0),
        ("cache.latency_count{cache.name=users,cache.operation=get}", 2.0),
        ("cache.operation.latency_count{cache_group=users,operation=delete}", 1.0),
        ("cache.value_size_count{cache.name=users,cache.operation=set}", 2.0),
    ] {
        assert_eq!(series.get(name), Some(&value), "{name}: {series:#?}");
    }
    for gone in [names::OPERATION_DURATION, names::DB_DURATION, names::ITEM_SIZES] {
        assert!(!series.keys().any(|name| name.starts_with(gone)), "{gone}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_thousand_names_stay_within_the_limit_and_lose_nothing() {
    // Fifty times as many as one metric may have series.
    const NAMES: u32 = 100_000;
    let reader = Reader::new(Temporality::Cumulative);
    let telemetry = reader.telemetry();
    let memory = Memory::entries(10_000);
    for n in 0..NAMES {
        let cache = TracedCache::<u64>::builder(format!("tenant-{n}"))
            .level(memory.clone())
            .observer(telemetry.clone())
            .build()
            .unwrap();
        cache.get(1).await.unwrap();
        if n == NAMES / 2 {
            reader.collect();
        }
    }
    let series = reader.collect();
    for metric in series.keys().map(|name| name.split('{').next().unwrap()) {
        let points = of(&series, metric).count();
        assert!(points <= 2000, "{metric} has {points} series");
    }
    assert_eq!(sum(&series, names::MISSES), f64::from(NAMES));
    assert_eq!(sum(&series, names::REQUESTS), f64::from(NAMES));
    assert_eq!(sum(&series, "cache.operation.duration_count"), f64::from(NAMES));
    let rest = series["cache.misses{cache.operation=get,otel.metric.overflow=true}"];
    let named = of(&series, names::MISSES).filter(|(name, _)| name.contains("tenant-")).count();
    assert!(named >= 5 * 90, "{named} series of {} names", named / 5);
    assert_eq!(rest, f64::from(NAMES) - f64::from(u32::try_from(named / 5).unwrap()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_counted_last_is_reported_although_the_observer_went_with_the_cache() {
    let reader = Reader::new(Temporality::Cumulative);
    let recorder = cache_core::testing::Recorder::new();
    let cache = TracedCache::<u64>::builder("job")
        .level(Memory::entries(100))
        .observer(reader.telemetry())
        .observer(recorder.clone())
        .build()
        .unwrap();
    cache.get_or_set(1, || async { ok(7u64) }).await.unwrap();
    let stats: Vec<_> = recorder.stats().iter().map(Arc::downgrade).collect();
    drop((cache, recorder));
    let is_let_go = || stats.iter().all(|stats| stats.upgrade().is_none());
    assert!(until(SOON, is_let_go), "its store goes at once, although nobody has collected");
    for _ in 0..2 {
        let series = reader.collect();
        assert_eq!((sum(&series, names::MISSES), sum(&series, names::LOADS)), (1.0, 1.0));
        assert_eq!(sum(&series, "cache.operation.duration_count"), 1.0);
        assert_eq!(sum(&series, names::ENTRY_COUNT), 0.0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn code_can_ask_how_caches_do() {
    let reader = Reader::new(Temporality::Cumulative);
    let telemetry = reader.telemetry();
    let cache = users(&telemetry);
    for n in 0..300u64 {
        cache.get_or_set(n % 3, || async { ok(7u64) }).await.unwrap();
    }
    assert!(cache.get_or_set(9, || async { Err::<u64, _>(std::io::Error::other("down")) }).await.is_err());
    let [status] = telemetry.stats().try_into().unwrap();
    assert_eq!(status.name.as_deref(), Some("users"));
    assert_eq!((status.lookups, status.hits, status.misses, status.errors), (301, 297, 4, 1));
    assert!(status.miss_reasons.contains(&(MissReason::Absent, 4)));
    assert!((status.hit_rate.unwrap() - 297.0 / 301.0).abs() < 1e-9);
    assert!((status.error_rate.unwrap() - 1.0 / 301.0).abs() < 1e-9);
    assert!((status.load_error_rate.unwrap() - 0.25).abs() < 1e-9);
    let (_, latency) = status.latency[0];
    assert!(latency.p50 <= latency.p95 && latency.p95 <= latency.p99 && latency.count >= 68);
    assert_eq!((status.levels[0].asked, status.levels[0].is_off), (301, false));
    assert_eq!(cache.stats().levels[0].outcome(LevelOutcome::Hit), 297);
    let line = status.to_string();
    assert!(
        line.starts_with("users: 301 look-ups, hit rate 98.7 %, error rate 0.3 %, get_or_set "),
        "{line}"
    );
}

#[test]
fn advice_is_counted_and_a_line() {
    let heard = Heard::begin();
    let reader = Reader::new(Temporality::Cumulative);
    let cache = CacheInfo::for_tests("users", Vec::new());
    reader.telemetry().event(&cache, &Event::Advice("give the user the right to run INFO"));
    assert_eq!(reader.collect()["cache.advice{cache.name=users}"], 1.0);
    let text = heard.text();
    if cfg!(feature = "tracing") {
        let line = " WARN traced_cache::advice: give the user the right to run INFO cache=\"users\"\n";
        assert!(text.ends_with(line) && text.lines().count() == 1, "{text}");
    } else {
        assert_eq!(text, "");
    }
}

#[tokio::test]
async fn a_level_that_is_not_asked_any_more_is_a_line_with_the_reason_and_so_is_its_return() {
    let heard = Heard::begin();
    let reader = Reader::new(Temporality::Cumulative);
    let (clock, time) = Clock::manual();
    let remote = Arc::new(Chaos::new(MapProvider::new().clock(clock.clone())).clock(clock.clone()));
    let cache: TracedCache<u64> = TracedCache::builder("users")
        .level(Memory::entries(100))
        .level(Arc::clone(&remote))
        .clock(clock)
        .observer(reader.telemetry())
        .build()
        .unwrap();
    let lines = || heard.text().lines().map(str::to_owned).collect::<Vec<_>>();
    remote.set_all(Fault::Fail);
    for round in 0..30u64 {
        cache.get(round).await.unwrap();
        time.advance(Duration::from_secs(1));
    }
    if cfg!(not(feature = "tracing")) {
        assert!(lines().is_empty());
        return;
    }
    // One, however often it is tried in vain.
    let [line] = lines().try_into().unwrap();
    let warns = " WARN traced_cache::breaker: level 2 (map at map.test) fails and is left alone, but for a try now and then: ";
    assert!(line.contains(warns), "{line}");
    assert!(line.ends_with(" cache=\"users\"") && line.contains("injected"), "{line}");

    remote.set_all(Fault::None);
    for round in 0..3u64 {
        cache.get(round).await.unwrap();
        time.advance(Duration::from_secs(1));
    }
    let [_, line] = lines().try_into().unwrap();
    assert!(line.contains(" INFO traced_cache::breaker: level 2 (map at map.test) is asked again"), "{line}");
}

#[tokio::test]
async fn why_a_load_failed_is_a_line_although_a_stale_value_stood_in() {
    let heard = Heard::begin();
    let reader = Reader::new(Temporality::Cumulative);
    let (clock, time) = Clock::manual();
    let cache: TracedCache<u64> = TracedCache::builder("users")
        .level(Memory::entries(100))
        .policy(Policy::ttl(Duration::from_secs(60)).grace(Duration::from_secs(600)))
        .clock(clock)
        .observer(reader.telemetry())
        .build()
        .unwrap();
    cache.get_or_set(1, || async { ok(7) }).await.unwrap();
    time.advance(Duration::from_secs(61));
    let down = || async { Err::<u64, _>(std::io::Error::other("the database is down")) };
    assert_eq!(*cache.get_or_set(1, down).await.unwrap(), 7);
    let text = heard.text();
    match cfg!(feature = "tracing") {
        true => assert!(
            text.ends_with(
                " WARN traced_cache::load: the load failed: the database is down cache=\"users\"\n"
            ),
            "{text}"
        ),
        false => assert_eq!(text, ""),
    }
}

#[tokio::test]
async fn a_value_that_is_too_large_for_a_level_is_a_line() {
    let heard = Heard::begin();
    let reader = Reader::new(Temporality::Cumulative);
    let cache: TracedCache<String> = TracedCache::builder("users")
        .level(MapProvider::with(Capabilities::remote().value_max(300)))
        .observer(reader.telemetry())
        .build()
        .unwrap();
    let (large, larger) = ("x".repeat(1000), "x".repeat(2000));
    cache.get_or_set(1, || async { ok(large) }).await.unwrap();
    cache.get_or_set(2, || async { ok(larger) }).await.unwrap();
    let text = heard.text();
    match cfg!(feature = "tracing") {
        true => {
            let says = " WARN traced_cache::level: level 1 (map at map.test) does not get a value: it is 1";
            assert!(text.contains(says) && text.contains("takes 300 at most (`value_max`)"), "{text}");
            assert_eq!(text.lines().count(), 1, "{text}");
            assert!(!text.contains("xxx"), "{text}");
        }
        false => assert_eq!(text, ""),
    }
}
