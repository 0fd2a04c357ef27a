//! How commands do, for code that asks.

use std::{
    collections::HashMap,
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use crate::{
    Latency,
    status::{Timed, Window, minute},
    totals::share,
};

/// Operations that are told apart. A program has some dozens; what comes after is one.
const OPERATIONS: usize = 256;

/// How one command of a client does. From [`ClientTelemetry::stats`](super::ClientTelemetry::stats).
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct CommandStatus {
    /// The command, as its span is named; `other` for those beyond the first 256.
    pub operation: String,
    /// How often, since the start.
    pub calls: u64,
    /// How often it failed.
    pub failed: u64,
    /// Failed over all, 0 to 1.
    pub error_rate: f64,
    /// How long it took, in the last minute or two; `None` if it was not used then.
    pub latency: Option<Latency>,
}

#[derive(Default)]
struct Seen {
    window: Window,
    calls: AtomicU64,
    failed: AtomicU64,
}

#[derive(Default)]
pub(crate) struct Summary(RwLock<HashMap<String, Arc<Seen>>>);

impl Summary {
    pub(crate) fn record(&self, operation: &str, took: Duration, failed: bool) {
        let seen = self.of(operation);
        seen.window.record(minute(), &[Timed::new(took, 1)]);
        seen.calls.fetch_add(1, Ordering::Relaxed);
        seen.failed.fetch_add(u64::from(failed), Ordering::Relaxed);
    }

    fn of(&self, operation: &str) -> Arc<Seen> {
        let known = self.0.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(seen) = known.get(operation) {
            return Arc::clone(seen);
        }
        let name = if known.len() < OPERATIONS { operation } else { "other" };
        drop(known);
        let mut known = self.0.write().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(known.entry(name.to_owned()).or_default())
    }

    pub(crate) fn read(&self) -> Vec<CommandStatus> {
        let known = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let mut all: Vec<_> = known
            .iter()
            .map(|(operation, seen)| {
                let (calls, failed) =
                    (seen.calls.load(Ordering::Relaxed), seen.failed.load(Ordering::Relaxed));
                CommandStatus {
                    operation: operation.clone(),
                    calls,
                    failed,
                    error_rate: share(failed, calls).unwrap_or_default(),
                    latency: seen.window.read(minute()),
                }
            })
            .collect();
        all.sort_by(|a, b| a.operation.cmp(&b.operation));
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_without_number_end_in_one() {
        let summary = Summary::default();
        for n in 0..1000 {
            summary.record(&format!("CMD{n}"), Duration::from_millis(1), n % 2 == 0);
        }
        let all = summary.read();
        assert!(all.len() <= OPERATIONS + 1);
        assert_eq!(all.iter().map(|status| status.calls).sum::<u64>(), 1000);
        let other = all.iter().find(|status| status.operation == "other").unwrap();
        assert!(other.calls >= 700 && (other.error_rate - 0.5).abs() < 0.1);
        assert!(other.latency.is_some_and(|latency| latency.p50 < Duration::from_millis(2)));
    }
}
