//! Counters, as a reader of the SDK gets them from real caches.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests")]

use std::{collections::BTreeMap, time::Duration};

use cache_core::{Policy, TracedCache, ok};
use cache_memory::Memory;
use cache_otel::{Telemetry, names};
use opentelemetry_sdk::metrics::{
    InMemoryMetricExporter, InMemoryMetricExporterBuilder, SdkMeterProvider, Temporality,
    data::{AggregatedMetrics, Metric, MetricData},
};

/// `metric{attributes}` and value, of one collection.
type Series = BTreeMap<String, f64>;

struct Reader {
    provider: SdkMeterProvider,
    exporter: InMemoryMetricExporter,
}

impl Reader {
    fn new(temporality: Temporality) -> Self {
        let exporter = InMemoryMetricExporterBuilder::new().with_temporality(temporality).build();
        let provider = SdkMeterProvider::builder().with_periodic_exporter(exporter.clone()).build();
        Self { provider, exporter }
    }

    fn telemetry(&self) -> Telemetry {
        Telemetry::builder().meter_provider(&self.provider).build()
    }

    fn collect(&self) -> Series {
        self.exporter.reset();
        self.provider.force_flush().unwrap();
        let mut series = Series::new();
        for resource in self.exporter.get_finished_metrics().unwrap() {
            for metric in resource.scope_metrics().flat_map(|scope| scope.metrics()) {
                read(metric, &mut series);
            }
        }
        series
    }
}

#[allow(clippy::cast_precision_loss, reason = "small counts")]
fn read(metric: &Metric, series: &mut Series) {
    let mut put = |attributes: Vec<(String, String)>, value: f64| {
        let mut attributes: Vec<_> = attributes.into_iter().map(|(k, v)| format!("{k}={v}")).collect();
        attributes.sort();
        let name = format!("{}{{{}}}", metric.name(), attributes.join(","));
        assert!(series.insert(name, value).is_none(), "one point a series");
    };
    macro_rules! points {
        ($data:expr) => {
            for point in $data.data_points() {
                let words = point.attributes().map(|kv| (kv.key.to_string(), kv.value.to_string()));
                put(words.collect(), point.value() as f64);
            }
        };
    }
    match metric.data() {
        AggregatedMetrics::U64(MetricData::Sum(sum)) => points!(sum),
        AggregatedMetrics::I64(MetricData::Sum(sum)) => points!(sum),
        AggregatedMetrics::F64(MetricData::Gauge(gauge)) => points!(gauge),
        AggregatedMetrics::F64(MetricData::Histogram(_)) => {}
        _ => panic!("unexpected data in {}", metric.name()),
    }
}

fn users(telemetry: &Telemetry) -> TracedCache<u64> {
    TracedCache::builder("users")
        .level(Memory::bytes(1 << 20))
        .policy(Policy::ttl(Duration::from_secs(600)))
        .observer(telemetry.clone())
        .build()
        .unwrap()
}

fn sum(series: &Series, metric: &str) -> f64 {
    series.iter().filter(|(name, _)| name.starts_with(&format!("{metric}{{"))).map(|(_, n)| n).sum()
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
        "cache.loads{cache.name=users}",
        "cache.load.errors{cache.name=users}",
        "cache.entry.count{cache.level=l1,cache.name=users}",
        "cache.size{cache.level=l1,cache.name=users}",
        "cache.evictions{cache.eviction.cause=size,cache.level=l1,cache.name=users}",
        "cache.level.requests{cache.level=l1,cache.name=users,cache.result=miss}",
    ] {
        assert_eq!(zero.get(declared), Some(&0.0), "{declared}");
    }
    assert!(!zero.contains_key("cache.requests{cache.level=l1,cache.name=users,cache.result=miss}"));

    for _ in 0..3 {
        cache.get_or_set(1, || async { ok(7u64) }).await.unwrap();
    }
    cache.get(2).await.unwrap();
    let failed = cache.get_or_set(3, || async { Err::<u64, _>(std::io::Error::other("down")) }).await;
    assert!(failed.is_err());

    let now = reader.collect();
    for (series, count) in [
        ("cache.hits{cache.name=users,cache.operation=get_or_set}", 2.0),
        ("cache.misses{cache.name=users,cache.operation=get_or_set}", 2.0),
        ("cache.misses{cache.name=users,cache.operation=get}", 1.0),
        ("cache.operations{cache.name=users,cache.operation=get_or_set}", 4.0),
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
async fn caches_of_one_name_are_summed_and_gone_ones_do_not_pull_the_sum_back() {
    // With deltas the SDK subtracts: a sum that went back would make it panic.
    for temporality in [Temporality::Cumulative, Temporality::Delta] {
        let reader = Reader::new(temporality);
        let telemetry = reader.telemetry();
        let (one, two) = (users(&telemetry), users(&telemetry));
        one.get(1).await.unwrap();
        two.get(1).await.unwrap();
        let misses = "cache.misses{cache.name=users,cache.operation=get}";
        assert_eq!(reader.collect()[misses], 2.0);

        drop(one);
        two.get(1).await.unwrap();
        let expected = if temporality == Temporality::Delta { 1.0 } else { 3.0 };
        assert_eq!(reader.collect()[misses], expected);

        drop(two);
        let gone = reader.collect();
        assert_eq!(gone.keys().filter(|name| !name.starts_with(names::HIT_RATE)).count(), 0, "{gone:?}");

        // The name comes back, and its counts go on.
        let three = users(&telemetry);
        three.get(1).await.unwrap();
        assert!(reader.collect()[misses] >= 1.0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_collection_agrees_with_itself_while_calls_run() {
    let reader = Reader::new(Temporality::Cumulative);
    let telemetry = reader.telemetry();
    let cache = users(&telemetry);
    let calls = tokio::spawn({
        let cache = cache.clone();
        async move {
            for n in 0..20_000u64 {
                cache.get_or_set(n % 50, || async { ok(1u64) }).await.unwrap();
            }
        }
    });
    while !calls.is_finished() {
        let series = reader.collect();
        let by_verb = sum(&series, names::HITS);
        let at_l1 = series["cache.requests{cache.level=l1,cache.name=users,cache.result=hit}"];
        assert_eq!(by_verb, at_l1);
        tokio::task::yield_now().await;
    }
    calls.await.unwrap();
    let series = reader.collect();
    assert_eq!(sum(&series, names::REQUESTS), 20_000.0);
    assert_eq!(sum(&series, names::OPERATIONS), 20_000.0);
    assert_eq!(sum(&series, names::LEVEL_REQUESTS), 20_000.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_reported_once_the_observer_is_gone() {
    let reader = Reader::new(Temporality::Cumulative);
    drop(users(&reader.telemetry()));
    assert!(reader.collect().is_empty());
}
