//! Requests under way.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use hdrhistogram::Histogram;
use indicatif::ProgressBar;
use tokio::sync::mpsc;
use traced_cache::BoxError;

use crate::{keys::Keys, service::Service};

/// What a run came to.
pub(crate) struct Done {
    pub(crate) took: Duration,
    /// Microseconds.
    pub(crate) latencies: Histogram<u64>,
    pub(crate) statuses: BTreeMap<u16, u64>,
    /// Requests without an answer.
    pub(crate) unanswered: u64,
}

/// The longest time that is told from longer ones, in microseconds.
const HOUR: u64 = 3_600_000_000;

/// A request that is due.
struct Due {
    code: Arc<str>,
    at: Instant,
}

pub(crate) async fn run(
    service: &Service,
    mut keys: Keys,
    limit: Option<Duration>,
    rate: Option<u32>,
    connections: usize,
    bar: &ProgressBar,
) -> Result<Done, BoxError> {
    // With a rate, what is late waits here; its latency counts from when it was due.
    let (send, due) = mpsc::channel::<Due>(if rate.is_some() { 1 << 16 } else { 1 });
    let due = Arc::new(tokio::sync::Mutex::new(due));
    let answered = Arc::new(AtomicU64::new(0));
    let failed = Arc::new(AtomicBool::new(false));
    let seen = Arc::new(Mutex::new((Histogram::<u64>::new_with_bounds(1, HOUR, 3)?, BTreeMap::new(), 0u64)));
    let started = Instant::now();
    let workers: Vec<_> = (0..connections)
        .map(|_| {
            let (service, due, seen) = (service.clone(), Arc::clone(&due), Arc::clone(&seen));
            let (answered, failed) = (Arc::clone(&answered), Arc::clone(&failed));
            let on_time = rate.is_some();
            tokio::spawn(async move {
                loop {
                    let next = due.lock().await.recv().await;
                    let Some(Due { code, at }) = next else { return };
                    let from = if on_time { at } else { Instant::now() };
                    let status = service.airport(&code).await;
                    let micros = u64::try_from(from.elapsed().as_micros()).unwrap_or(u64::MAX);
                    let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
                    match status {
                        Some(status) => {
                            seen.0.saturating_record(micros);
                            *seen.1.entry(status.as_u16()).or_insert(0) += 1;
                        }
                        None => {
                            seen.2 += 1;
                            failed.store(true, Ordering::Relaxed);
                        }
                    }
                    answered.fetch_add(1, Ordering::Relaxed);
                }
            })
        })
        .collect();
    let mut sent = 0u32;
    let mut shown = Instant::now();
    while limit.is_none_or(|limit| started.elapsed() < limit) {
        let Some(code) = keys.next()? else { break };
        let at = match rate {
            Some(rate) => started + Duration::from_secs(1) * sent / rate,
            None => Instant::now(),
        };
        tokio::time::sleep_until(at.into()).await;
        if send.send(Due { code, at }).await.is_err() {
            break;
        }
        sent = sent.saturating_add(1);
        if shown.elapsed() > Duration::from_millis(100) {
            shown = Instant::now();
            let so_far = answered.load(Ordering::Relaxed);
            bar.set_position(u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX));
            #[allow(clippy::cast_precision_loss, reason = "for people")]
            let rate = so_far as f64 / started.elapsed().as_secs_f64();
            let trouble = if failed.load(Ordering::Relaxed) { ", some without an answer" } else { "" };
            bar.set_message(format!("{so_far} answers, {rate:.0} a second{trouble}"));
        }
    }
    drop(send);
    for worker in workers {
        worker.await?;
    }
    let took = started.elapsed();
    let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
    let (latencies, statuses) = (seen.0.clone(), std::mem::take(&mut seen.1));
    Ok(Done { took, latencies, statuses, unanswered: seen.2 })
}
