//! What a test's thread logs.

use std::{
    any::Any,
    io::{Result, Write},
    sync::{Arc, LazyLock, Mutex},
};

use tracing::{Dispatch, subscriber::NoSubscriber};
use tracing_subscriber::util::SubscriberInitExt;

/// While there is but one subscriber, a line's interest is asked of the thread that says it first, and kept: a thread without
/// one would silence the line also for the thread that listens. With more than one, all are asked.
static MORE_THAN_ONE: LazyLock<[Dispatch; 2]> =
    LazyLock::new(|| [NoSubscriber::new(), NoSubscriber::new()].map(Dispatch::new));

/// Before anything is said, on a thread that listens or not.
pub(crate) fn let_all_be_asked() {
    LazyLock::force(&MORE_THAN_ONE);
}

/// What this thread logs while it lives, without times.
pub(crate) struct Heard {
    log: Log,
    _subscribed: Box<dyn Any>,
}

/// What is written to it.
#[derive(Clone, Default)]
pub(crate) struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    pub(crate) fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }
}

impl Heard {
    pub(crate) fn begin() -> Self {
        let_all_be_asked();
        let log = Log::default();
        let writer = log.clone();
        let subscriber = tracing_subscriber::fmt().with_ansi(false).without_time();
        let subscriber = subscriber.with_writer(move || writer.clone()).finish();
        Self { log, _subscribed: Box::new(subscriber.set_default()) }
    }

    pub(crate) fn text(&self) -> String {
        self.log.text()
    }
}

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> Result<()> {
        Ok(())
    }
}
