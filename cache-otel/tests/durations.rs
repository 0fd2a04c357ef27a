//! Durations, recorded from events.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests")]

use std::{collections::BTreeMap, sync::Barrier, thread, time::Duration};

use cache_core::{
    CacheInfo, Description, ErrorKind, Event, LevelFault, LevelInfo, LevelOp, LoadEnd, Observer, Outcome,
    Policy, TracedCache, Verb,
};
use cache_memory::Memory;
use cache_otel::{Telemetry, names};
use opentelemetry_sdk::metrics::{
    InMemoryMetricExporter, SdkMeterProvider,
    data::{AggregatedMetrics, MetricData},
};

type Points = BTreeMap<String, (u64, f64)>;

/// `attributes -> (count, sum)` of one histogram.
fn histogram(exporter: &InMemoryMetricExporter, name: &str) -> (String, Points) {
    let metrics = exporter.get_finished_metrics().unwrap();
    let metric = metrics
        .iter()
        .flat_map(|resource| resource.scope_metrics())
        .flat_map(|scope| scope.metrics())
        .find(|metric| metric.name() == name)
        .unwrap();
    let AggregatedMetrics::F64(MetricData::Histogram(data)) = metric.data() else {
        panic!("not a histogram")
    };
    let points = data.data_points().map(|point| {
        assert_eq!(point.bounds().next(), Some(1e-6));
        assert_eq!(point.bounds().last(), Some(10.0));
        let mut words: Vec<_> =
            point.attributes().map(|kv| format!("{}={}", kv.key.as_str(), kv.value.as_str())).collect();
        words.sort();
        (words.join(" "), (point.count(), point.sum()))
    });
    (metric.unit().to_owned(), points.collect())
}

#[test]
fn durations_are_in_seconds_by_what_was_done() {
    let exporter = InMemoryMetricExporter::default();
    let provider = SdkMeterProvider::builder().with_periodic_exporter(exporter.clone()).build();
    let telemetry = Telemetry::builder().meter_provider(&provider).build();
    let level = LevelInfo { position: "l1".into(), provider: Description::local("memory"), in_process: true };
    let cache = CacheInfo::for_tests("users", vec![level]);
    let elapsed = Duration::from_millis(250);
    let operation = |outcome, level, weight, error| Event::Operation {
        verb: Verb::Get,
        outcome,
        level,
        elapsed,
        keys: 1,
        weight,
        error,
    };
    // One that stands for others is in a series of its own.
    telemetry.event(&cache, &operation(Some(Outcome::Hit), Some(0), 64, None));
    telemetry.event(&cache, &operation(Some(Outcome::Hit), Some(0), 1, None));
    telemetry.event(&cache, &operation(Some(Outcome::Loaded), None, 1, None));
    telemetry.event(&cache, &operation(Some(Outcome::Miss), None, 1, Some(ErrorKind::Load)));
    let level = |fault| Event::Level {
        level: 0,
        op: LevelOp::Get,
        command: "GET",
        keys: 1,
        elapsed,
        fault,
        error: None,
    };
    telemetry.event(&cache, &level(None));
    telemetry.event(&cache, &level(Some(LevelFault::Timeout)));
    let load = |end| Event::Load { elapsed, end, background: false, keys: 1, error: None };
    telemetry.event(&cache, &load(LoadEnd::Value));
    telemetry.event(&cache, &load(LoadEnd::Failed(ErrorKind::LoadPanicked)));
    provider.force_flush().unwrap();

    let each = |points: &[&str]| -> Points { points.iter().map(|p| ((*p).to_owned(), (1, 0.25))).collect() };
    let seconds = "s".to_owned();
    assert_eq!(
        histogram(&exporter, names::OPERATION_DURATION),
        (
            seconds.clone(),
            each(&[
                "cache.level=l1 cache.name=users cache.operation=get cache.result=hit",
                "cache.level=l1 cache.name=users cache.operation=get cache.result=hit cache.sample_weight=64",
                "cache.level=none cache.name=users cache.operation=get cache.result=miss",
                "cache.level=none cache.name=users cache.operation=get cache.result=miss error.type=load",
            ])
        )
    );
    assert_eq!(
        histogram(&exporter, names::LEVEL_DURATION),
        (
            seconds.clone(),
            each(&[
                "cache.level=l1 cache.name=users cache.operation=get",
                "cache.level=l1 cache.name=users cache.operation=get error.type=timeout",
            ])
        )
    );
    assert_eq!(
        histogram(&exporter, names::LOAD_DURATION),
        (
            seconds,
            each(&[
                "cache.load.result=failed cache.name=users error.type=load_panicked",
                "cache.load.result=value cache.name=users",
            ])
        )
    );
}

#[test]
fn what_threads_have_not_handed_over_is_in_each_collection_and_in_stats() {
    let exporter = InMemoryMetricExporter::default();
    let provider = SdkMeterProvider::builder().with_periodic_exporter(exporter.clone()).build();
    let telemetry = Telemetry::builder().meter_provider(&provider).build();
    let _cache: TracedCache<u32> = TracedCache::builder("users")
        .level(Memory::entries(100))
        .policy(Policy::ttl(Duration::from_secs(60)))
        .observer(telemetry.clone())
        .build()
        .unwrap();
    let users = CacheInfo::for_tests("users", Vec::new());
    let set = || Event::Operation {
        verb: Verb::Set,
        outcome: None,
        level: None,
        elapsed: Duration::from_millis(250),
        keys: 1,
        weight: 1,
        error: None,
    };
    // The first of a minute begins it, at which others may lose what they say of it.
    telemetry.event(&users, &set());
    assert_eq!(telemetry.stats()[0].latency[0].1.count, 1);
    let (recorded, read) = (Barrier::new(4), Barrier::new(4));
    thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                for _ in 0..100 {
                    telemetry.event(&users, &set());
                }
                recorded.wait();
                read.wait();
                telemetry.event(&users, &set());
            });
        }
        recorded.wait();
        let stats = telemetry.stats();
        provider.force_flush().unwrap();
        // Before anything can fail: the threads must be able to end.
        read.wait();
        assert_eq!(stats[0].latency.iter().map(|(_, latency)| latency.count).sum::<u64>(), 301);
    });
    let counted = || -> u64 {
        let (_, points) = histogram(&exporter, names::OPERATION_DURATION);
        exporter.reset();
        points.values().map(|(count, _)| count).sum()
    };
    assert_eq!(counted(), 301);
    // What threads had left when they ended.
    provider.force_flush().unwrap();
    assert_eq!(counted(), 304);
}
