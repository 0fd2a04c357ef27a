//! Polling with a deadline, instead of sleeps that hope.

use std::{
    thread,
    time::{Duration, Instant},
};

/// Polls `condition` every few milliseconds, for at most `limit`; says whether it came true.
///
/// Blocks the thread: in async tests call it where that hurts nobody.
pub fn until(limit: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + limit;
    loop {
        if condition() {
            return true;
        }
        if Instant::now() >= deadline {
            return false;
        }
        thread::sleep(Duration::from_millis(5));
    }
}

/// The same for a check that awaits: polls it until it says yes, and fails the test after `limit`, saying `what` was waited
/// for. On the clock of tokio.
///
/// # Panics
/// If it has not come true within `limit`.
pub async fn eventually(limit: Duration, what: &str, mut check: impl AsyncFnMut() -> bool) {
    let deadline = tokio::time::Instant::now() + limit;
    while !check().await {
        assert!(tokio::time::Instant::now() < deadline, "not within {limit:?}: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}
