//! Whether an engine can tell by the system's clock what is dead.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use cache_core::{Clock, Moment};

/// Engines know no clock but the system's. Once a cache has come that counts time on one of its own, as tests do, nothing
/// in the store is taken for dead any more: it stays until it is pushed out.
#[derive(Debug)]
pub(crate) struct Tempo {
    /// Times before this are of another clock: some time before the store was made, for writers with an old one.
    earliest: Moment,
    foreign: AtomicBool,
}

impl Tempo {
    pub(crate) fn new() -> Self {
        let earliest = Clock::system().now().before(Duration::from_secs(3600));
        Self { earliest, foreign: AtomicBool::new(false) }
    }

    /// Notes the time of a write.
    pub(crate) fn note(&self, now: Moment) {
        if now < self.earliest {
            self.foreign.store(true, Ordering::Relaxed);
        }
    }

    pub(crate) fn is_known(&self) -> bool {
        !self.foreign.load(Ordering::Relaxed)
    }
}
