//! A span and a duration for each request, so that the cache's spans have a parent; and a line for those that fail.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use axum::{
    extract::{MatchedPath, Request, State},
    http::{HeaderMap, StatusCode},
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

use crate::{Service, answer::Why};

const SCOPE: &str = "service";
const BOUNDS: [f64; 14] =
    [0.0001, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0];

/// Of a route that fails there is a line so often at most, however many requests do.
const A_LINE_EACH: Duration = Duration::from_secs(60);

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
    failing: Failing,
}

/// Requests that failed since the last line, by what they are: of routes and statuses there are few.
#[derive(Debug, Default)]
struct Failing(Mutex<BTreeMap<(String, u16), (Instant, u64)>>);

impl Failing {
    /// One more, and how many there have been if a line is due: of the first one at once.
    fn more(&self, what: &str, status: u16, now: Instant) -> Option<u64> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some((since, many)) = all.get_mut(&(what.to_owned(), status)) else {
            all.insert((what.to_owned(), status), (now, 0));
            return Some(1);
        };
        *many += 1;
        if now.saturating_duration_since(*since) < A_LINE_EACH {
            return None;
        }
        *since = now;
        Some(std::mem::take(many))
    }
}

impl Requests {
    pub(crate) fn new(running: &Running) -> Self {
        let meter = running.meter_provider().meter(SCOPE);
        let builder = meter.f64_histogram("http.server.request.duration").with_unit("s");
        let durations =
            builder.with_boundaries(BOUNDS.to_vec()).with_description("Time to an answer").build();
        Self { tracer: running.tracer_provider().tracer(SCOPE), durations, failing: Failing::default() }
    }

    /// Says that a request has failed, now and then.
    pub(crate) fn failed(&self, what: &str, status: StatusCode, why: &str) {
        match self.failing.more(what, status.as_u16(), Instant::now()) {
            None => {}
            Some(1) => tracing::warn!("{what} is answered {status}: {why}"),
            Some(many) => {
                tracing::warn!("{what} was answered {status} {many} times lately, the last time: {why}");
            }
        }
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
    let Requests { tracer, durations, .. } = &service.requests;
    let span = tracer
        .span_builder(name.clone())
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
        let why = response.extensions().get::<Why>().map_or("no reason is known", |Why(why)| why);
        service.requests.failed(&name, status, why);
    }
    durations.record(started.elapsed().as_secs_f64(), &attributes);
    span.end();
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_fails_is_a_line_at_once_and_then_one_a_minute() {
        let (failing, start) = (Failing::default(), Instant::now());
        let due = |second| failing.more("GET /airport/{code}", 503, start + Duration::from_secs(second));
        assert_eq!((0..130).filter_map(due).collect::<Vec<_>>(), [1, 60, 60]);
        assert_eq!(failing.more("GET /airport/{code}", 504, start), Some(1));
    }
}
