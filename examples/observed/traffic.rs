//! Traffic that goes every way through a cache, and the check of what was counted of it.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use opentelemetry::{
    Context,
    trace::{FutureExt, SpanContext, SpanId, TraceContextExt, TraceFlags, TraceId, TraceState},
};
use traced_cache::{TracedCache, ok};

/// Keys asked for; half of them fit into memory.
const KEYS: u64 = 4_000;
const CALLERS: u64 = 8;

/// A trace that has been sampled out, as most are: nothing of the traffic is kept.
fn unsampled() -> Context {
    let (trace, span) = (TraceId::from_bytes([1; 16]), SpanId::from_bytes([1; 8]));
    let context = SpanContext::new(trace, span, TraceFlags::NOT_SAMPLED, true, TraceState::NONE);
    Context::new().with_remote_span_context(context)
}

/// What the callers did, by their own count.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Traffic {
    pub(crate) look_ups: u64,
}

impl Traffic {
    /// Callers at it for `time`.
    pub(crate) async fn run(cache: &TracedCache<u64>, time: Duration) -> Self {
        let until = Instant::now() + time;
        let callers: Vec<_> = (0..CALLERS)
            .map(|caller| {
                let cache = cache.clone();
                let work = async move {
                    let mut dice = fastrand::Rng::with_seed(caller);
                    let mut look_ups = 0;
                    while Instant::now() < until {
                        look_ups += call(&cache, &mut dice).await;
                    }
                    look_ups
                };
                tokio::spawn(work.with_context(unsampled()))
            })
            .collect();
        let mut all = Self::default();
        for caller in callers {
            all.look_ups += caller.await.unwrap_or_default();
        }
        all
    }
}

/// One call, and how many look-ups it was. What it answers is nobody's business here.
async fn call(cache: &TracedCache<u64>, dice: &mut fastrand::Rng) -> u64 {
    // Some keys are asked for much more often than others.
    let key = dice.u64(1..=KEYS).min(dice.u64(1..=KEYS)).min(dice.u64(1..=KEYS));
    let load = |state: Arc<()>, key: u64| async move {
        drop(state);
        // The source does without some, and fails now and then.
        match key % 101 {
            0 => Err("the source is out of sorts"),
            1 => Ok(None),
            _ => {
                tokio::time::sleep(Duration::from_millis(1)).await;
                Ok(Some(key))
            }
        }
    };
    let state = Arc::new(());
    match dice.u32(0..1000) {
        0..5 => {
            let _ = cache.invalidate(key).await;
            0
        }
        5..10 => {
            let _ = cache.set(key, key).await;
            0
        }
        10..20 => {
            let _ = cache.refresh(key, &state, load).await;
            1
        }
        20..40 => {
            let batch = |_: Arc<()>, keys: Vec<u64>| async move {
                ok(keys.into_iter().map(|key| (key, key)).collect::<Vec<_>>())
            };
            let _ = cache.get_or_set_many(key..key + 10, &state, batch).await;
            10
        }
        40..240 => {
            let _ = cache.get(key).await;
            1
        }
        _ => {
            let _ = cache.get_or_set_with(key, &state, load).await;
            1
        }
    }
}

/// The sum of all series of one metric.
pub(crate) fn sum(page: &str, metric: &str) -> u64 {
    let start = format!("{metric}{{");
    let values =
        page.lines().filter(|line| line.starts_with(&start)).filter_map(|line| line.rsplit(' ').next());
    values.filter_map(|value| value.parse::<u64>().ok()).sum()
}

/// Whether what the callers counted is what the metrics say, however they are cut.
pub(crate) fn check(page: &str, traffic: &Traffic) -> (String, bool) {
    let outcomes = sum(page, "cache_requests_total");
    let (misses, reasons) = (sum(page, "cache_misses_total"), sum(page, "cache_miss_reasons_total"));
    let adds_up = outcomes == traffic.look_ups && misses == reasons;
    let text = format!(
        "{}: {} look-ups were made, the outcomes sum to {outcomes}; {misses} misses, their reasons sum to {reasons}\n",
        if adds_up { "it adds up" } else { "IT DOES NOT ADD UP" },
        traffic.look_ups
    );
    (text, adds_up)
}
