//! Work that may wait for itself.

use std::{
    panic::resume_unwind,
    sync::mpsc::{self, RecvTimeoutError},
    thread,
    time::Duration,
};

/// Runs `work` in a thread of its own, and gives back what it has made. A panic in it is passed on; one that is stuck is
/// left behind, and not joined.
///
/// # Panics
/// If it has not ended within `limit`.
pub fn ends_within<T: Send + 'static>(limit: Duration, work: impl FnOnce() -> T + Send + 'static) -> T {
    let (done, ended) = mpsc::channel();
    let thread = thread::spawn(move || {
        let _ = done.send(work());
    });
    match (ended.recv_timeout(limit), thread) {
        (Ok(made), _) => made,
        (Err(RecvTimeoutError::Timeout), _) => panic!("it is stuck: it has not ended within {limit:?}"),
        (Err(RecvTimeoutError::Disconnected), thread) => match thread.join() {
            Err(panicked) => resume_unwind(panicked),
            Ok(()) => panic!("it has ended and made nothing"),
        },
    }
}
