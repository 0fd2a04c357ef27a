//! OpenTelemetry with the real SDK: metrics are aggregated and collected once a second, and go nowhere.

use std::time::Duration;

use crate::ours::Telemetry;
use opentelemetry::{
    Context,
    trace::{SpanContext, SpanId, TraceContextExt, TraceFlags, TraceId, TraceState},
};
use opentelemetry_sdk::{
    error::OTelSdkResult,
    metrics::{
        PeriodicReader, SdkMeterProvider, Temporality, data::ResourceMetrics, exporter::PushMetricExporter,
    },
    trace::{Sampler, SdkTracerProvider},
};

struct Nowhere;

impl PushMetricExporter for Nowhere {
    async fn export(&self, _: &ResourceMetrics) -> OTelSdkResult {
        Ok(())
    }

    fn force_flush(&self) -> OTelSdkResult {
        Ok(())
    }

    fn shutdown_with_timeout(&self, _: Duration) -> OTelSdkResult {
        Ok(())
    }

    fn temporality(&self) -> Temporality {
        Temporality::Cumulative
    }
}

/// What is current in a handler whose request's trace is not sampled, as most are.
pub fn unsampled_request() -> Context {
    let parent = SpanContext::new(
        TraceId::from(1),
        SpanId::from(1),
        TraceFlags::NOT_SAMPLED,
        true,
        TraceState::default(),
    );
    Context::new().with_remote_span_context(parent)
}

pub struct Otel {
    metrics: SdkMeterProvider,
    /// Samples nothing.
    tracer: SdkTracerProvider,
}

impl Otel {
    pub fn new() -> Self {
        let reader = PeriodicReader::builder(Nowhere).with_interval(Duration::from_secs(1)).build();
        Self {
            metrics: SdkMeterProvider::builder().with_reader(reader).build(),
            tracer: SdkTracerProvider::builder().with_sampler(Sampler::AlwaysOff).build(),
        }
    }

    /// Metrics only; the tracer that is there when nobody has set one.
    pub fn metrics(&self) -> Telemetry {
        Telemetry::builder().meter_provider(&self.metrics).build()
    }

    /// Metrics, and a tracer that samples nothing.
    pub fn unsampled(&self) -> Telemetry {
        Telemetry::builder().meter_provider(&self.metrics).tracer_provider(&self.tracer).build()
    }
}
