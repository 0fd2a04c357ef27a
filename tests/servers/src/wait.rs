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
