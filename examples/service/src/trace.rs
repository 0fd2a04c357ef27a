//! A span and a duration for each request, so that the cache's spans have a parent.

use std::{sync::Arc, time::Instant};

use axum::{
    extract::{MatchedPath, Request, State},
    http::HeaderMap,
    middleware::Next,
    response::Response,
};
use opentelemetry::{
    KeyValue, global,
    metrics::{Histogram, MeterProvider},
    propagation::Extractor,
    trace::{FutureExt, SpanKind, Status, TraceContextExt, Tracer, TracerProvider},
};
use opentelemetry_sdk::trace::SdkTracer;
use traced_cache::setup::Running;

use crate::Service;

const SCOPE: &str = "service";
const BOUNDS: [f64; 14] =
    [0.0001, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0];

struct Headers<'a>(&'a HeaderMap);

impl Extractor for Headers<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key)?.to_str().ok()
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(axum::http::HeaderName::as_str).collect()
    }
}

/// What requests are reported to.
#[derive(Debug)]
pub(crate) struct Requests {
    tracer: SdkTracer,
    durations: Histogram<f64>,
}

impl Requests {
    pub(crate) fn new(running: &Running) -> Self {
        let meter = running.meter_provider().meter(SCOPE);
        let builder = meter.f64_histogram("http.server.request.duration").with_unit("s");
        let durations =
            builder.with_boundaries(BOUNDS.to_vec()).with_description("Time to an answer").build();
        Self { tracer: running.tracer_provider().tracer(SCOPE), durations }
    }
}

/// Continues the caller's trace, if there is one. The route is recorded, not the path: that has keys.
pub(crate) async fn traced(State(service): State<Arc<Service>>, request: Request, next: Next) -> Response {
    let route = request.extensions().get::<MatchedPath>().map(|path| path.as_str().to_owned());
    let method = request.method().as_str().to_owned();
    let parent =
        global::get_text_map_propagator(|propagator| propagator.extract(&Headers(request.headers())));
    let mut attributes = vec![KeyValue::new("http.request.method", method.clone())];
    attributes.extend(route.clone().map(|route| KeyValue::new("http.route", route)));
    let name = route.map_or_else(|| method.clone(), |route| format!("{method} {route}"));
    let Requests { tracer, durations } = &service.requests;
    let span = tracer
        .span_builder(name)
        .with_kind(SpanKind::Server)
        .with_attributes(attributes.clone())
        .start_with_context(tracer, &parent);
    let context = parent.with_span(span);
    let started = Instant::now();
    let response = next.run(request).with_context(context.clone()).await;
    let status = response.status();
    let code = KeyValue::new("http.response.status_code", i64::from(status.as_u16()));
    let span = context.span();
    span.set_attribute(code.clone());
    attributes.push(code);
    if status.is_server_error() {
        let kind = KeyValue::new("error.type", status.as_str().to_owned());
        span.set_attribute(kind.clone());
        span.set_status(Status::error(""));
        attributes.push(kind);
    }
    durations.record(started.elapsed().as_secs_f64(), &attributes);
    span.end();
    response
}
