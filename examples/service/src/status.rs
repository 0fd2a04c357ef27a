//! What operators and their machines ask for.

use std::{sync::Arc, time::Duration};

use axum::{
    Json,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use serde_json::{Value, json};
use traced_cache::{BreakerState, CacheStatus, LevelStatus};

use crate::Service;

/// Metrics, as Prometheus reads them.
pub(crate) async fn metrics(State(service): State<Arc<Service>>) -> Response {
    let kind = [(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")];
    (kind, service.running.prometheus_text()).into_response()
}

/// 200 while the database answers: a cache level that is away costs speed, not the service.
pub(crate) async fn health(State(service): State<Arc<Service>>) -> Response {
    match service.database.ping().await {
        Ok(()) => Json(json!({ "status": "ok" })).into_response(),
        Err(error) => {
            // Whoever asks may end the service for it, and then there is only the log.
            service.requests.failed("GET /healthz", StatusCode::SERVICE_UNAVAILABLE, &error.to_string());
            let body = json!({ "status": "down", "error": error.to_string() });
            (StatusCode::SERVICE_UNAVAILABLE, Json(body)).into_response()
        }
    }
}

/// How each cache does: counts since the start, latencies of the last minute or two.
pub(crate) async fn stats(State(service): State<Arc<Service>>) -> Json<Value> {
    let caches: Vec<Value> = service.telemetry.stats().iter().map(cache).collect();
    Json(json!({ "caches": caches }))
}

fn cache(status: &CacheStatus) -> Value {
    let latency = status.latency.iter().map(|(verb, latency)| {
        let times = json!({
            "count": latency.count,
            "mean_us": micros(latency.mean),
            "p50_us": micros(latency.p50),
            "p95_us": micros(latency.p95),
            "p99_us": micros(latency.p99),
        });
        (verb.as_str().to_owned(), times)
    });
    json!({
        "name": status.name.as_deref(),
        "lookups": status.lookups,
        "hits": status.hits,
        "stale": status.stale,
        "negative": status.negative,
        "coalesced": status.coalesced,
        "misses": status.misses,
        "miss_reasons": by_word(status.miss_reasons.iter().map(|(reason, count)| (reason.as_str(), *count))),
        "hit_rate": status.hit_rate,
        "operations": by_word(status.operations.iter().map(|(verb, count)| (verb.as_str(), *count))),
        "errors": status.errors,
        "error_rate": status.error_rate,
        "loads": status.loads,
        "load_error_rate": status.load_error_rate,
        "load_mean_us": status.load_mean.map(micros),
        "time_saved_s": status.time_saved.as_secs_f64(),
        "pending": status.pending,
        "latency": latency.collect::<serde_json::Map<_, _>>(),
        "levels": status.levels.iter().map(level).collect::<Vec<_>>(),
    })
}

pub(crate) fn level(level: &LevelStatus) -> Value {
    json!({
        "level": &*level.position,
        "asked": level.asked,
        "hit_rate": level.hit_rate,
        "error_rate": level.error_rate,
        "entries": level.entries,
        "bytes": level.bytes,
        "breaker": if level.is_off { BreakerState::Open } else { BreakerState::Closed }.as_str(),
    })
}

fn by_word<'a>(counts: impl Iterator<Item = (&'a str, u64)>) -> Value {
    counts.map(|(word, count)| (word.to_owned(), json!(count))).collect::<serde_json::Map<_, _>>().into()
}

pub(crate) fn micros(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e7).round() / 10.0
}
