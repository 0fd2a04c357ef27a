//! What OpenTelemetry recorded, read back.

use std::{collections::BTreeMap, ops::Sub, time::Duration};

use cache_otel::{Telemetry, names};
use opentelemetry_sdk::metrics::{
    InMemoryMetricExporter, SdkMeterProvider,
    data::{AggregatedMetrics, Metric, MetricData},
};
use traced_cache::BoxError;

/// OpenTelemetry as an application sets it up, but for the exporter, which keeps everything in memory. In its place
/// yours would have OTLP or Prometheus.
pub(crate) struct Metrics {
    provider: SdkMeterProvider,
    exporter: InMemoryMetricExporter,
    telemetry: Telemetry,
}

impl Metrics {
    pub(crate) fn new() -> Self {
        let exporter = InMemoryMetricExporter::default();
        let provider = SdkMeterProvider::builder().with_periodic_exporter(exporter.clone()).build();
        let telemetry = Telemetry::builder().meter_provider(&provider).build();
        Self { provider, exporter, telemetry }
    }

    /// The observer to give to caches.
    pub(crate) fn telemetry(&self) -> Telemetry {
        self.telemetry.clone()
    }

    /// Everything as it stands now.
    pub(crate) fn read(&self) -> Result<Reading, BoxError> {
        self.exporter.reset();
        self.provider.force_flush()?;
        let mut points = BTreeMap::new();
        for resource in self.exporter.get_finished_metrics()? {
            for metric in resource.scope_metrics().flat_map(|scope| scope.metrics()) {
                points.extend(points_of(metric));
            }
        }
        Ok(Reading(points))
    }
}

/// A series: the metric's name and its attributes.
pub(crate) type Series = (String, BTreeMap<String, String>);

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Value {
    Count(u64),
    Held(i64),
    Share(f64),
    /// Seconds: how many times, and in all.
    Times(u64, f64),
}

fn points_of(metric: &Metric) -> Vec<(Series, Value)> {
    macro_rules! points {
        ($points:expr, $value:expr) => {
            $points
                .map(|point| {
                    let attributes =
                        point.attributes().map(|kv| (kv.key.to_string(), kv.value.to_string())).collect();
                    ((metric.name().to_owned(), attributes), $value(point))
                })
                .collect()
        };
    }
    match metric.data() {
        AggregatedMetrics::U64(MetricData::Sum(sum)) => {
            points!(
                sum.data_points(),
                |p: &opentelemetry_sdk::metrics::data::SumDataPoint<u64>| Value::Count(p.value())
            )
        }
        AggregatedMetrics::I64(MetricData::Sum(sum)) => {
            points!(sum.data_points(), |p: &opentelemetry_sdk::metrics::data::SumDataPoint<i64>| Value::Held(
                p.value()
            ))
        }
        AggregatedMetrics::F64(MetricData::Gauge(gauge)) => {
            points!(gauge.data_points(), |p: &opentelemetry_sdk::metrics::data::GaugeDataPoint<f64>| {
                Value::Share(p.value())
            })
        }
        AggregatedMetrics::F64(MetricData::Histogram(histogram)) => {
            points!(histogram.data_points(), |p: &opentelemetry_sdk::metrics::data::HistogramDataPoint<
                f64,
            >| { Value::Times(p.count(), p.sum()) })
        }
        _ => Vec::new(),
    }
}

/// All series at one moment, or what was added to them between two.
#[derive(Clone, Debug, Default)]
pub(crate) struct Reading(pub(crate) BTreeMap<Series, Value>);

impl Reading {
    fn of<'a>(&'a self, name: &'a str, having: &'a [(&str, &str)]) -> impl Iterator<Item = &'a Value> {
        let all = move |attributes: &BTreeMap<String, String>| {
            having.iter().all(|(key, value)| attributes.get(*key).is_some_and(|has| has == value))
        };
        self.0.iter().filter(move |((of, has), _)| of == name && all(has)).map(|(_, value)| value)
    }

    /// The sum of a counter over the series with these attributes.
    pub(crate) fn count(&self, name: &str, having: &[(&str, &str)]) -> u64 {
        self.of(name, having).map(|value| if let Value::Count(n) = value { *n } else { 0 }).sum()
    }

    /// Look-ups with this result, served by this level if one is given.
    pub(crate) fn lookups(&self, result: &str, level: Option<&str>) -> u64 {
        let mut having = vec![(names::CACHE_RESULT, result)];
        having.extend(level.map(|level| (names::CACHE_LEVEL, level)));
        self.count(names::REQUESTS, &having)
    }

    /// The mean of a histogram of seconds over the series with these attributes.
    pub(crate) fn mean(&self, name: &str, having: &[(&str, &str)]) -> Option<Duration> {
        let (times, seconds) = self.of(name, having).fold((0, 0.0), |sum, value| match value {
            Value::Times(times, seconds) => (sum.0 + times, sum.1 + seconds),
            _ => sum,
        });
        #[allow(clippy::cast_precision_loss, reason = "a mean for people")]
        (times > 0).then(|| Duration::try_from_secs_f64(seconds / times as f64).unwrap_or_default())
    }
}

impl Sub for &Reading {
    type Output = Reading;

    /// What was counted and timed since `earlier`. Shares and numbers of held entries stay as they are now.
    fn sub(self, earlier: Self) -> Reading {
        let since = |(series, now): (&Series, &Value)| {
            let value = match (*now, earlier.0.get(series)) {
                (Value::Count(now), Some(Value::Count(then))) => Value::Count(now.saturating_sub(*then)),
                (Value::Times(n, sum), Some(Value::Times(then, before))) => {
                    Value::Times(n.saturating_sub(*then), sum - before)
                }
                (now, _) => now,
            };
            (series.clone(), value)
        };
        Reading(self.0.iter().map(since).collect())
    }
}
