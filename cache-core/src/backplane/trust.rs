//! For how long memory is believed although nothing is heard.
//!
//! A channel that is silent is noticed by whoever reads it. Should nobody drive the runtime of that task, or the whole process
//! have stood still, only a hit itself can tell.

use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use crate::Moment;

pub(crate) struct Trust {
    /// Nanoseconds of the moment when it ends.
    until: AtomicU64,
    /// How long it was to last when it was given last; what is kept after its end is believed for as long.
    span: AtomicU64,
    ending: Mutex<()>,
}

impl Trust {
    /// Without an end, as of a channel that says nothing of it.
    pub(crate) const fn new() -> Self {
        Self {
            until: AtomicU64::new(Moment::NEVER.as_nanos()),
            span: AtomicU64::new(0),
            ending: Mutex::new(()),
        }
    }

    /// To be asked before the number of the last news: when it is put off, what was voided for it shows.
    #[inline]
    pub(crate) fn until(&self) -> Moment {
        Moment::from_nanos(self.until.load(Ordering::Acquire))
    }

    /// Has no end any more, until one is given.
    pub(super) fn lift(&self) {
        self.until.store(Moment::NEVER.as_nanos(), Ordering::Release);
    }

    /// `span`: how long it lasts if nothing has gone by of that yet.
    pub(super) fn give(&self, now: Moment, left: Duration, span: Duration) {
        self.span.store(Moment::ORIGIN.after(span).as_nanos(), Ordering::Relaxed);
        self.until.store(now.after(left).as_nanos(), Ordering::Release);
    }

    /// Has everything voided if it is over, before anybody goes on.
    pub(super) fn end(&self, now: Moment, void: impl FnOnce()) {
        let _turn = self.ending.lock().unwrap_or_else(PoisonError::into_inner);
        let until = self.until();
        if now < until {
            return;
        }
        void();
        let next = now.after(Duration::from_nanos(self.span.load(Ordering::Relaxed)));
        // It may have been given anew meanwhile.
        let (until, next) = (until.as_nanos(), next.as_nanos());
        let _ = self.until.compare_exchange(until, next, Ordering::AcqRel, Ordering::Relaxed);
    }
}
