//! Metrics as a reader of the SDK gets them, and what is logged.
#![allow(clippy::unwrap_used, clippy::panic, dead_code, reason = "helpers of tests, not all used by each")]

pub(crate) mod heard;

use std::collections::BTreeMap;

use cache_otel::{Telemetry, TelemetryBuilder};
use opentelemetry::KeyValue;
use opentelemetry_sdk::metrics::{
    InMemoryMetricExporter, InMemoryMetricExporterBuilder, SdkMeterProvider, Temporality,
    data::{AggregatedMetrics, Metric, MetricData},
};

/// `metric{attributes}` and value, of one collection.
pub(crate) type Series = BTreeMap<String, f64>;

pub(crate) struct Reader {
    pub(crate) provider: SdkMeterProvider,
    exporter: InMemoryMetricExporter,
}

impl Reader {
    pub(crate) fn new(temporality: Temporality) -> Self {
        heard::let_all_be_asked();
        let exporter = InMemoryMetricExporterBuilder::new().with_temporality(temporality).build();
        let provider = SdkMeterProvider::builder().with_periodic_exporter(exporter.clone()).build();
        Self { provider, exporter }
    }

    pub(crate) fn telemetry(&self) -> Telemetry {
        self.builder().build()
    }

    pub(crate) fn builder(&self) -> TelemetryBuilder {
        Telemetry::builder().meter_provider(&self.provider)
    }

    pub(crate) fn collect(&self) -> Series {
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

impl Reader {
    /// Bounds of a histogram of times, as it was collected last.
    pub(crate) fn bounds(&self, name: &str) -> Vec<f64> {
        let all = self.exporter.get_finished_metrics().unwrap();
        let mut metrics =
            all.iter().flat_map(|resource| resource.scope_metrics()).flat_map(|scope| scope.metrics());
        match metrics.find(|metric| metric.name() == name).map(Metric::data) {
            Some(AggregatedMetrics::F64(MetricData::Histogram(histogram))) => {
                histogram.data_points().next().unwrap().bounds().collect()
            }
            _ => panic!("no histogram {name}"),
        }
    }
}

fn words<'a>(attributes: impl Iterator<Item = &'a KeyValue>) -> Vec<String> {
    let mut words: Vec<_> = attributes.map(|kv| format!("{}={}", kv.key, kv.value)).collect();
    words.sort();
    words
}

#[allow(clippy::cast_precision_loss, reason = "small counts")]
fn read(metric: &Metric, series: &mut Series) {
    assert!(!metric.description().is_empty(), "{} says what it is", metric.name());
    let mut put = |suffix: &str, words: Vec<String>, value: f64| {
        let name = format!("{}{suffix}{{{}}}", metric.name(), words.join(","));
        assert!(series.insert(name, value).is_none(), "one point a series");
    };
    macro_rules! points {
        ($data:expr) => {
            for point in $data.data_points() {
                put("", words(point.attributes()), point.value() as f64);
            }
        };
    }
    match metric.data() {
        AggregatedMetrics::U64(MetricData::Sum(sum)) => points!(sum),
        AggregatedMetrics::I64(MetricData::Sum(sum)) => points!(sum),
        AggregatedMetrics::F64(MetricData::Gauge(gauge)) => points!(gauge),
        AggregatedMetrics::U64(MetricData::Gauge(gauge)) => points!(gauge),
        AggregatedMetrics::F64(MetricData::Sum(sum)) => points!(sum),
        AggregatedMetrics::F64(MetricData::Histogram(histogram)) => {
            // How often, as Prometheus has it.
            for point in histogram.data_points() {
                put("_count", words(point.attributes()), point.count() as f64);
            }
        }
        AggregatedMetrics::U64(MetricData::Histogram(histogram)) => {
            for point in histogram.data_points() {
                put("_count", words(point.attributes()), point.count() as f64);
            }
        }
        _ => panic!("unexpected data in {}", metric.name()),
    }
}

/// All series of one metric.
pub(crate) fn of<'a>(series: &'a Series, metric: &str) -> impl Iterator<Item = (&'a String, f64)> {
    let start = format!("{metric}{{");
    series.iter().filter(move |(name, _)| name.starts_with(&start)).map(|(name, value)| (name, *value))
}

pub(crate) fn sum(series: &Series, metric: &str) -> f64 {
    of(series, metric).map(|(_, value)| value).sum()
}
