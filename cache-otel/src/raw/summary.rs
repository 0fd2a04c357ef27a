//! How commands do, for code that asks.

use std::{
    collections::HashMap,
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use cache_core::figures::share;

use crate::{
    Latency,
    status::{Timed, Window, minute},
};

/// Operations that are told apart, in series and spans as well. A program has some dozens; what comes after is one.
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
pub(crate) struct Seen {
    window: Window,
    calls: AtomicU64,
    failed: AtomicU64,
}

impl Seen {
    pub(crate) fn record(&self, took: Duration, failed: bool) {
        self.window.record(minute(), &[Timed::new(took, 1)]);
        self.calls.fetch_add(1, Ordering::Relaxed);
        self.failed.fetch_add(u64::from(failed), Ordering::Relaxed);
    }
}

#[derive(Default)]
pub(crate) struct Summary(RwLock<HashMap<String, Arc<Seen>>>);

impl Summary {
    /// What an operation goes by, how it does, and whether it is the first of its name.
    pub(crate) fn named(&self, operation: String) -> (String, Arc<Seen>, bool) {
        let known = self.0.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(seen) = known.get(&operation) {
            return (operation, Arc::clone(seen), false);
        }
        drop(known);
        let mut known = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let has_room = known.len() < OPERATIONS || known.contains_key(&operation);
        let name = if has_room { operation } else { "other".to_owned() };
        let new = !known.contains_key(&name);
        let seen = Arc::clone(known.entry(name.clone()).or_default());
        (name, seen, new)
    }

    pub(crate) fn read(&self) -> Vec<CommandStatus> {
        let known = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let mut all: Vec<_> = known
            .iter()
            // The first call may be under way.
            .filter(|(_, seen)| seen.calls.load(Ordering::Relaxed) > 0)
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
    use std::collections::HashSet;

    use super::*;
    use crate::raw::{ClientTelemetry, Command};

    /// Series and spans are named after them, too.
    #[test]
    fn names_without_number_end_in_one() {
        let telemetry = ClientTelemetry::builder("redis", "users").build();
        let name = |n: usize| format!("{:?}", telemetry.start(&Command::named(format!("CMD{n}"))));
        let names: HashSet<String> = (0..1000).map(name).collect();
        assert!(names.len() <= OPERATIONS + 1, "{}", names.len());
        assert!(name(7).contains("CMD7") && name(900).contains("other"));
    }

    #[test]
    fn commands_without_number_end_in_one() {
        let summary = Summary::default();
        for n in 0..1000 {
            summary.named(format!("CMD{n}")).1.record(Duration::from_millis(1), n % 2 == 0);
        }
        let all = summary.read();
        assert!(all.len() <= OPERATIONS + 1);
        assert_eq!(all.iter().map(|status| status.calls).sum::<u64>(), 1000);
        let other = all.iter().find(|status| status.operation == "other").unwrap();
        assert!(other.calls >= 700 && (other.error_rate - 0.5).abs() < 0.1);
        assert!(other.latency.is_some_and(|latency| latency.p50 < Duration::from_millis(2)));
    }
}
