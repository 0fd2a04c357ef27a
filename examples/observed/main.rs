//! What an operator sees of a cache: the trace of a cold call, that of a call which waited for another's load, and the
//! metrics as Prometheus gets them; with a check that they add up.
//!
//! ```text
//! cargo run --release --example observed -- --seconds 5
//! ```
//!
//! Two levels: memory, and a Redis of its own where redis-server is installed.

#[path = "../shared/failure.rs"]
mod failure;
#[cfg(test)]
mod tests;
mod traffic;
mod tree;

use std::{
    io::{self, Write},
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

use cache_otel::setup::Setup;
use clap::Parser;
use opentelemetry::{
    Context, KeyValue,
    trace::{FutureExt, TraceContextExt, Tracer, TracerProvider},
};
use opentelemetry_sdk::trace::{InMemorySpanExporter, SdkTracerProvider};
use test_servers::RedisServer;
use tokio::sync::Notify;
use traced_cache::{Level, Memory, Policy, RedisProvider, Telemetry, TracedCache, ok};

use crate::{failure::Failure, traffic::Traffic};

/// What an operator sees of a cache: traces, metrics, and that they add up.
#[derive(Debug, Parser)]
#[command(name = "observed")]
struct Options {
    /// How long the traffic goes on before metrics are read
    #[arg(long, default_value_t = 5.0, value_name = "SECONDS")]
    seconds: f64,
}

#[tokio::main]
async fn main() -> ExitCode {
    let shown = match Duration::try_from_secs_f64(Options::parse().seconds) {
        Ok(time) => observed(time).await,
        Err(error) => Err(Failure::options(error)),
    };
    let (text, code) = match shown {
        Ok(Shown { text, adds_up: true }) => (text, ExitCode::SUCCESS),
        Ok(Shown { text, .. }) => (text, ExitCode::FAILURE),
        Err(failure) => failure.report(),
    };
    let mut out = io::stdout().lock();
    // Nobody is left to be told when this fails.
    let _ = writeln!(out, "{text}").and_then(|()| out.flush());
    code
}

/// What a run came to.
struct Shown {
    text: String,
    adds_up: bool,
}

/// Where spans go, and the application's own.
struct Traces {
    provider: SdkTracerProvider,
    exporter: InMemorySpanExporter,
}

impl Traces {
    fn new() -> Self {
        let exporter = InMemorySpanExporter::default();
        let provider = SdkTracerProvider::builder().with_simple_exporter(exporter.clone()).build();
        Self { provider, exporter }
    }

    /// A request, as a web framework would trace it.
    fn request(&self, name: &'static str) -> Context {
        let span = self.provider.tracer("shop").start_with_context(name, &Context::new());
        Context::new().with_span(span)
    }

    /// The database's own span: a child of whatever is current when it is made.
    fn query(&self) -> impl Future<Output = u64> + Send + 'static {
        let tracer = self.provider.tracer("shop");
        async move {
            let query = tracer
                .span_builder("SELECT users")
                .with_attributes([KeyValue::new("db.system.name", "postgresql")]);
            let span = query.start(&tracer);
            tokio::time::sleep(Duration::from_millis(3)).await;
            drop(span);
            7
        }
    }

    fn tree(&self) -> Result<String, Failure> {
        let spans = self.exporter.get_finished_spans().map_err(Failure::run)?;
        self.exporter.reset();
        Ok(tree::of(&spans))
    }
}

async fn observed(time: Duration) -> Result<Shown, Failure> {
    // The page of metrics, at a port of its own: nothing of the surroundings has a say.
    let running = Setup::new("observed")
        .variables(|name| (name == "OTEL_TRACES_EXPORTER").then(|| "none".to_owned()))
        .prometheus(([127, 0, 0, 1], 0))
        .start()
        .map_err(Failure::run)?;
    let traces = Arc::new(Traces::new());
    let telemetry = running.builder().tracer_provider(&traces.provider).build();
    let server = RedisServer::start();
    let (cache, levels) = users(telemetry.clone(), server.as_ref())?;
    let mut text = format!("A cache `users` over {levels}.\n\n");

    // So that the trace below is of the call alone: the first one also meets the level.
    cache.get(0).await.map_err(Failure::run)?;
    traces.exporter.reset();
    cold(&cache, &traces).await?;
    text += &format!("The trace of one cold get_or_set:\n\n{}\n", traces.tree()?);
    waited(&cache, &traces).await?;
    text += &format!(
        "The traces of two calls for one cold key, of which the second waited:\n\n{}\n",
        traces.tree()?
    );

    let mut traffic = Traffic::run(&cache, time).await;
    // Those above: two gets and loads of one key each, and the one that waited.
    traffic.look_ups += 4;
    let page = running.prometheus_text();
    text += &format!("Metrics, as Prometheus reads them:\n\n{page}\n");
    let (verdict, adds_up) = traffic::check(&page, &traffic);
    text += &verdict;
    for status in telemetry.stats() {
        text += &format!("{status}\n");
    }
    Ok(Shown { text, adds_up })
}

fn users(
    telemetry: Telemetry,
    server: Option<&RedisServer>,
) -> Result<(TracedCache<u64>, &'static str), Failure> {
    let near = Memory::entries(2_000);
    let (far, levels) = match server {
        Some(server) => {
            let redis = RedisProvider::builder(server.url()).build().map_err(Failure::run)?;
            (Level::from(redis), "memory, then a Redis that this example has started")
        }
        None => (Level::from(Memory::entries(20_000)), "memory twice: redis-server is not installed"),
    };
    let cache = TracedCache::builder("users")
        .level(near)
        // A service would rather load than wait that long; a busy machine must not spoil the picture.
        .level(far.budget(Duration::from_secs(5)))
        .policy(Policy::ttl(Duration::from_secs(600)))
        .observer(telemetry)
        .build()
        .map_err(Failure::run)?;
    Ok((cache, levels))
}

async fn cold(cache: &TracedCache<u64>, traces: &Arc<Traces>) -> Result<(), Failure> {
    let request = traces.request("GET /users/42");
    let load = |traces: Arc<Traces>, _| async move { ok(traces.query().await) };
    let found = cache.get_or_set_with(42, traces, load).with_context(request).await;
    found.map(drop).map_err(Failure::run)
}

/// Two callers, one load.
async fn waited(cache: &TracedCache<u64>, traces: &Arc<Traces>) -> Result<(), Failure> {
    let (started, go) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let state = (Arc::clone(traces), Arc::clone(&started), Arc::clone(&go));
    type State = (Arc<Traces>, Arc<Notify>, Arc<Notify>);
    let load = |(traces, started, go): State, _| async move {
        started.notify_one();
        go.notified().await;
        ok(traces.query().await)
    };
    let leads = cache.get_or_set_with(43, &state, load).with_context(traces.request("GET /users/43, first"));
    let waits = async {
        started.notified().await;
        let second = cache.get_or_set_with(43, traces, |_, _| async { ok(0) });
        let second = second.with_context(traces.request("GET /users/43, second"));
        let release = async {
            // It waits by now, or soon will: the load takes longer than that.
            tokio::time::sleep(Duration::from_millis(5)).await;
            go.notify_one();
        };
        tokio::join!(second, release).0
    };
    let (first, second) = tokio::join!(leads, waits);
    first.and(second).map(drop).map_err(Failure::run)
}
