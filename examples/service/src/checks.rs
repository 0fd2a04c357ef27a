//! Checks for whoever has just set the service up: do caches work, count, and keep to what is wanted of them? They work on a
//! cache of their own, under keys and a tag of the caller's project.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    Json,
    extract::State,
    response::{IntoResponse, Response},
};
use serde::Deserialize;
use serde_json::{Value, json};
use traced_cache::{Loaded, TracedCache};

use crate::{
    Service,
    answer::{Body, Refusal},
    routes::word,
    status::{level, micros},
};

/// Most calls of one check.
const CALLS_MAX: usize = 10_000;
/// Most bytes of a key that a check may wish for.
const KEY_MAX: usize = 1024;

type Shared = State<Arc<Service>>;

fn project() -> String {
    "default".to_owned()
}

fn tag(project: &str) -> String {
    format!("project:{project}")
}

fn count_of(field: &str, count: usize) -> Result<usize, Refusal> {
    match count {
        1..=CALLS_MAX => Ok(count),
        _ => Err(Refusal::field(field, format!("from 1 to {CALLS_MAX}"))),
    }
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Operation {
    Get,
    Set,
    Delete,
}

impl Operation {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Get => "get",
            Self::Set => "set",
            Self::Delete => "delete",
        }
    }

    /// Once. Says whether a value was found.
    async fn run(
        self,
        cache: &TracedCache<String>,
        key: (&str, &str),
        value: &str,
    ) -> Result<bool, traced_cache::Error> {
        match self {
            Self::Get => Ok(cache.get(key).await?.is_some()),
            Self::Set => {
                let value = Loaded::value(value.to_owned()).tag(tag(key.0));
                cache.set_loaded(key, value).await.map(|_| false)
            }
            Self::Delete => cache.invalidate(key).await.map(|_| false),
        }
    }
}

/// What calls came to.
#[derive(Default)]
struct Calls {
    times: Vec<Duration>,
    found: usize,
    errors: usize,
}

impl Calls {
    async fn take(&mut self, call: impl Future<Output = Result<bool, traced_cache::Error>>) {
        let started = Instant::now();
        let ended = call.await;
        self.times.push(started.elapsed());
        match ended {
            Ok(found) => self.found += usize::from(found),
            Err(_counted_by_telemetry) => self.errors += 1,
        }
    }

    fn report(mut self) -> Value {
        self.times.sort_unstable();
        let at = |percent: usize| {
            let rank = (self.times.len() * percent).div_ceil(100).max(1);
            micros(self.times.get(rank - 1).copied().unwrap_or_default())
        };
        let all: Duration = self.times.iter().sum();
        let mean = all / u32::try_from(self.times.len().max(1)).unwrap_or(u32::MAX);
        json!({
            "count": self.times.len(),
            "errors": self.errors,
            "total_ms": micros(all) / 1e3,
            "mean_us": micros(mean),
            "p50_us": at(50),
            "p95_us": at(95),
            "p99_us": at(99),
        })
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Operations {
    operation: Operation,
    #[serde(default = "default_prefix")]
    prefix: String,
    #[serde(default = "default_count")]
    count: usize,
    #[serde(default = "project")]
    project: String,
}

fn default_prefix() -> String {
    "check".to_owned()
}

const fn default_count() -> usize {
    100
}

/// One operation, `count` times, on keys of a prefix.
pub(crate) async fn operations(
    State(service): Shared,
    Body(asked): Body<Operations>,
) -> Result<Json<Value>, Refusal> {
    let count = count_of("count", asked.count)?;
    let mut calls = Calls::default();
    for n in 0..count {
        let key = format!("{}:{n}", asked.prefix);
        calls.take(asked.operation.run(&service.checks, (&asked.project, &key), "value")).await;
    }
    let (found, passed) = (calls.found, calls.errors == 0);
    Ok(Json(json!({
        "operation": asked.operation.as_str(),
        "project": asked.project,
        "found": found,
        "calls": calls.report(),
        "passed": passed,
    })))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Performance {
    #[serde(default = "default_count")]
    keys: usize,
    #[serde(default = "default_target")]
    target_hit_rate: f64,
    #[serde(default = "project")]
    project: String,
}

const fn default_target() -> f64 {
    0.8
}

/// Stores as many of all keys as the target says, asks for each of them at once, then for those that it has not stored, and says
/// whether it was served what it had stored.
pub(crate) async fn performance(
    State(service): Shared,
    Body(asked): Body<Performance>,
) -> Result<Json<Value>, Refusal> {
    let keys = count_of("keys", asked.keys)?;
    if !(0.0..=1.0).contains(&asked.target_hit_rate) {
        return Err(Refusal::field("target_hit_rate", "from 0 to 1"));
    }
    let (cache, project) = (&service.checks, asked.project.as_str());
    let names: Vec<String> = (0..keys).map(|n| format!("performance:{n}")).collect();
    // As of a new cache: nothing of a check before.
    let _ = cache.invalidate_many(names.iter().map(|name| (project, name))).await?;
    let before = cache.stats();
    let mut calls = Calls::default();
    for (name, n) in names.iter().zip(0_u32..) {
        #[allow(clippy::cast_precision_loss, reason = "10,000 at most")]
        let stored = f64::from(n) < asked.target_hit_rate * keys as f64;
        // Asked for at once: where a store is full of what others ask for, what is new and not asked for is the first to go.
        if stored {
            Operation::Set.run(cache, (project, name), "value").await?;
        }
        calls.take(Operation::Get.run(cache, (project, name), "")).await;
    }
    #[allow(clippy::cast_precision_loss, reason = "10,000 at most")]
    let hit_rate = calls.found as f64 / keys as f64;
    // Others may be asking, too.
    let counted = cache.stats().lookups() - before.lookups() >= keys as u64;
    Ok(Json(json!({
        "keys": keys,
        "hit_rate": hit_rate,
        "target_hit_rate": asked.target_hit_rate,
        "counted": counted,
        "calls": calls.report(),
        "passed": hit_rate >= asked.target_hit_rate && counted,
    })))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Latency {
    command: Operation,
    #[serde(default = "default_count")]
    iterations: usize,
    #[serde(default = "default_key_size")]
    key_size: usize,
    #[serde(default = "project")]
    project: String,
}

const fn default_key_size() -> usize {
    16
}

/// How long one command takes, on one key of a size.
pub(crate) async fn latency(
    State(service): Shared,
    Body(asked): Body<Latency>,
) -> Result<Json<Value>, Refusal> {
    let iterations = count_of("iterations", asked.iterations)?;
    if !(1..=KEY_MAX).contains(&asked.key_size) {
        return Err(Refusal::field("key_size", format!("from 1 to {KEY_MAX} bytes")));
    }
    let (cache, key) = (&service.checks, "k".repeat(asked.key_size));
    let key = (asked.project.as_str(), key.as_str());
    // So that a get finds something, and a delete as well.
    Operation::Set.run(cache, key, "value").await?;
    let mut calls = Calls::default();
    for _ in 0..iterations {
        calls.take(asked.command.run(cache, key, "value")).await;
    }
    let passed = calls.errors == 0;
    Ok(Json(json!({ "command": asked.command.as_str(), "calls": calls.report(), "passed": passed })))
}

/// What levels in this process hold, and what the process has of the system's memory.
pub(crate) async fn memory(State(service): Shared) -> Json<Value> {
    let caches: Vec<Value> = service
        .telemetry
        .stats()
        .iter()
        .map(|status| {
            let levels: Vec<Value> = status.levels.iter().map(level).collect();
            json!({ "name": status.name.as_deref(), "levels": levels })
        })
        .collect();
    Json(json!({ "resident_bytes": resident(), "caches": caches, "passed": true }))
}

/// Linux only.
fn resident() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024)
}

/// Whether every provider of the file answers, and how busy the database's connections are.
pub(crate) async fn connections(State(service): Shared) -> Json<Value> {
    let mut providers = Vec::new();
    let mut all = true;
    for name in service.caches.provider_names() {
        let Some(provider) = service.caches.provider(&name) else { continue };
        let is = provider.describe();
        let started = Instant::now();
        let answer = tokio::time::timeout(Duration::from_secs(2), provider.ping()).await;
        let error = match answer {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(error.to_string()),
            Err(_elapsed) => Some("no answer within 2 s".to_owned()),
        };
        all &= error.is_none();
        providers.push(json!({
            "name": name,
            "system": is.system,
            "address": is.address,
            "port": is.port,
            "answers": error.is_none(),
            "error": error,
            "took_us": micros(started.elapsed()),
        }));
    }
    let (used, max) = service.database.connections();
    let database = json!({ "used": used, "idle": max - used, "max": max });
    Json(json!({ "providers": providers, "database": database, "passed": all }))
}

/// Series without which dashboards and alerts are blind.
const SERIES: [&str; 7] = [
    "cache_hits_total",
    "cache_misses_total",
    "cache_requests_total",
    "cache_operation_duration_seconds",
    "cache_loads_total",
    "cache_entry_count",
    "db_client_operation_duration_seconds",
];

/// Whether telemetry sees the caches, and shows what dashboards want.
pub(crate) async fn instrumentation(State(service): Shared) -> Json<Value> {
    // So that there is something to show of the database.
    let answers = service.database.ping().await.is_ok();
    let page = service.running.prometheus_text();
    let missing: Vec<&str> = SERIES.into_iter().filter(|series| !page.contains(series)).collect();
    let status = service.telemetry.stats();
    let observed: Vec<&str> = status.iter().filter_map(|status| status.name.as_deref()).collect();
    let passed = answers
        && missing.is_empty()
        && service.caches.names().iter().all(|name| observed.contains(&name.as_str()));
    Json(json!({ "caches": observed, "missing_series": missing, "passed": passed }))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct CleanUp {
    #[serde(default = "project")]
    project: String,
}

/// Removes what a project's checks have stored.
pub(crate) async fn clean_up(
    State(service): Shared,
    Body(asked): Body<CleanUp>,
) -> Result<Response, Refusal> {
    let delivery = service.checks.invalidate_tag(tag(&asked.project)).await?;
    let body =
        json!({ "project": asked.project, "delivery": word(delivery), "passed": delivery.is_confirmed() });
    Ok(Json(body).into_response())
}
