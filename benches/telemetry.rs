//! What telemetry adds to a hit at the nearest level: without it, with metrics that are read while calls run, and with
//! traces that are not sampled. `cargo bench --bench telemetry`. Ratios of medians over interleaved rounds; they travel
//! between machines, nanoseconds do not.
#![allow(
    clippy::print_stdout,
    clippy::unwrap_used,
    clippy::cast_precision_loss,
    missing_docs,
    reason = "a benchmark for people"
)]

use std::{
    hint::black_box,
    time::{Duration, Instant},
};

use futures::FutureExt;
use opentelemetry::{
    Context,
    trace::{TraceContextExt, Tracer, TracerProvider},
};
use opentelemetry_sdk::{
    metrics::{InMemoryMetricExporter, PeriodicReader, SdkMeterProvider},
    trace::{InMemorySpanExporter, Sampler, SdkTracerProvider},
};
use traced_cache::{Memory, Policy, Telemetry, TracedCache};

const KEYS: usize = 10_000;
const READS: usize = 10_000;
const ROUNDS: usize = 501;
/// What metrics may cost over none, at most.
const AT_MOST: f64 = 1.10;

fn cache(telemetry: Option<Telemetry>) -> TracedCache<String> {
    let builder = TracedCache::builder("bench")
        .level(Memory::entries(2 * KEYS as u64))
        .policy(Policy::ttl(Duration::from_secs(3600)));
    match telemetry {
        Some(telemetry) => builder.observer(telemetry),
        None => builder,
    }
    .build()
    .unwrap()
}

fn main() {
    let meters = || {
        let reader = PeriodicReader::builder(InMemoryMetricExporter::default());
        // More often than anybody scrapes.
        let reader = reader.with_interval(Duration::from_secs(1)).build();
        SdkMeterProvider::builder().with_reader(reader).build()
    };
    let never = Sampler::ParentBased(Box::new(Sampler::AlwaysOff));
    let tracers = SdkTracerProvider::builder()
        .with_sampler(never)
        .with_simple_exporter(InMemorySpanExporter::default())
        .build();
    let (some, more, most) = (meters(), meters(), meters());
    let metrics = Telemetry::builder().meter_provider(&some).build();
    let traced = Telemetry::builder().meter_provider(&more).tracer_provider(&tracers).build();
    let hits = Telemetry::builder().meter_provider(&most).tracer_provider(&tracers).trace_hits(true).build();
    let rows: [(&str, TracedCache<String>); 4] = [
        ("telemetry off", cache(None)),
        ("metrics", cache(Some(metrics))),
        ("metrics, unsampled traces", cache(Some(traced))),
        ("the same, trace_hits", cache(Some(hits))),
    ];

    let keys: Vec<String> = (0..KEYS).map(|n| format!("user:{n:016}")).collect();
    for key in &keys {
        for (_, cache) in &rows {
            let _ = cache.set(key.as_str(), key.clone()).now_or_never().unwrap().unwrap();
        }
    }
    let mut dice = fastrand::Rng::with_seed(7);
    let reads: Vec<usize> = (0..READS).map(|_| dice.usize(0..KEYS)).collect();
    // A request that has been sampled out, as nine of ten are.
    let request = tracers.tracer("bench").start_with_context("request", &Context::new());
    let _current = Context::new().with_span(request).attach();

    let mut nanos = vec![Vec::with_capacity(ROUNDS); rows.len()];
    for round in 0..ROUNDS {
        for at in 0..rows.len() {
            // Never the same row twice in a row: it would find its entries in the processor's cache.
            let at = (at + round) % rows.len();
            let started = Instant::now();
            for read in &reads {
                let found = rows[at].1.get(keys[*read].as_str()).now_or_never().unwrap().unwrap();
                black_box(found.unwrap());
            }
            nanos[at].push(started.elapsed().as_nanos() as f64 / READS as f64);
        }
    }
    for (name, cache) in &rows {
        assert_eq!(cache.stats().hits(), (ROUNDS * READS) as u64, "{name}");
    }

    println!("{:<28}{:>12}{:>18}", "row", "median ns", "over none");
    let mut verdict = 0.0;
    for (at, (name, _)) in rows.iter().enumerate() {
        let mut ratios: Vec<f64> = nanos[at].iter().zip(&nanos[0]).map(|(own, off)| own / off).collect();
        let mut own = nanos[at].clone();
        own.sort_by(f64::total_cmp);
        ratios.sort_by(f64::total_cmp);
        let ratio = ratios[ROUNDS / 2];
        println!("{name:<28}{:>12.0}{ratio:>18.2}", own[ROUNDS / 2]);
        if at == 1 {
            verdict = ratio;
        }
    }
    let holds = if verdict <= AT_MOST { "holds" } else { "DOES NOT HOLD" };
    println!("metrics cost at most {AT_MOST:.2} of none: {holds}");
}
