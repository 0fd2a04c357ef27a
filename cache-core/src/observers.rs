//! The observers of one cache, as the rest of it calls them.

use std::{fmt, sync::Arc, time::Duration};

use smallvec::SmallVec;

use crate::{
    Ambient, CacheInfo, Entry, Event, LevelOp, MissReason, Moment, Observer, Outcome, RawKey, Span,
    SpanStart, Traffic,
    stats::Stats,
    within::{Surroundings, Within, within},
};

/// The observers of one cache. Empty costs a length check.
#[derive(Clone)]
pub(crate) struct Observers {
    pub(crate) info: CacheInfo,
    all: Arc<[Arc<dyn Observer>]>,
    traffic: Arc<[Arc<dyn Traffic>]>,
    traces_hits: bool,
}

impl Observers {
    pub(crate) fn new(info: CacheInfo, all: Vec<Arc<dyn Observer>>) -> Self {
        let traces_hits = all.iter().any(|o| guard(|| o.traces_hits()) == Some(true));
        Self { info, all: all.into(), traffic: Arc::default(), traces_hits }
    }

    pub(crate) fn attach(&self, stats: &Arc<Stats>) {
        for observer in self.all.iter() {
            guard(|| observer.attach(stats));
        }
    }

    /// The same observers, once they have said whether they want to hear of keys.
    pub(crate) fn hearing(mut self, stats: &Arc<Stats>) -> Self {
        self.traffic = self.all.iter().filter_map(|o| guard(|| o.traffic(stats)).flatten()).collect();
        self
    }

    #[inline]
    pub(crate) fn asked(&self, key: &RawKey<'_>) {
        if !self.traffic.is_empty() {
            self.tell(key);
        }
    }

    /// Apart, so that a hit that nobody hears of is as short as it was.
    #[inline(never)]
    fn tell(&self, key: &RawKey<'_>) {
        for traffic in self.traffic.iter() {
            guard(|| traffic.asked(key));
        }
    }

    /// Tells of items, if there are any.
    pub(crate) fn items(&self, level: u8, op: LevelOp, bytes: &[usize]) {
        if !bytes.is_empty() {
            self.event(&Event::Items { level, op, bytes });
        }
    }

    pub(crate) fn event(&self, event: &Event<'_>) {
        for observer in self.all.iter() {
            guard(|| observer.event(&self.info, event));
        }
    }

    /// Whether the next hit should take the way that has spans.
    #[inline]
    pub(crate) fn traces_hit(&self) -> bool {
        self.traces_hits && self.all.iter().any(|o| guard(|| o.traces_hit()) == Some(true))
    }

    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// Starts a span with every observer that records.
    pub(crate) fn span(&self, start: &SpanStart<'_>) -> Spans {
        let mut spans = Spans::default();
        for observer in self.all.iter() {
            if let Some(Some(span)) = guard(|| observer.span(&self.info, start)) {
                spans.0.push(span);
            }
        }
        spans
    }

    pub(crate) fn ambient(&self) -> Vec<Arc<dyn Ambient>> {
        self.all.iter().filter_map(|o| guard(|| o.ambient()).flatten()).collect()
    }
}

impl fmt::Debug for Observers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Observers").field("cache", &self.info.name).finish_non_exhaustive()
    }
}

/// A broken observer must not break the cache.
fn guard<R>(call: impl FnOnce() -> R) -> Option<R> {
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(call)).ok()
}

/// One piece of work, as every recording observer sees it.
#[derive(Clone, Default)]
pub(crate) struct Spans(SmallVec<[Arc<dyn Span>; 1]>);

impl Spans {
    pub(crate) fn found(&self, outcome: Outcome, level: Option<u8>) {
        self.each(|s| s.found(outcome, level));
    }

    pub(crate) fn done(&self, keys: usize, failed: usize) {
        self.each(|s| s.done(keys, failed));
    }

    pub(crate) fn missed(&self, reason: MissReason) {
        self.each(|s| s.missed(reason));
    }

    pub(crate) fn size(&self, bytes: usize) {
        self.each(|s| s.size(bytes));
    }

    pub(crate) fn found_all(&self, yes: bool) {
        self.each(|s| s.found_all(yes));
    }

    /// Of what is kept for ever there is nothing to say.
    pub(crate) fn ttl(&self, time: Option<Duration>) {
        if let Some(time) = time.filter(|time| *time < Duration::MAX) {
            self.each(|s| s.ttl(time));
        }
    }

    /// What is left of an entry that is served or stored, and its size where that is known.
    #[inline]
    pub(crate) fn entry<T>(&self, entry: &Entry<T>, now: Moment) {
        if !self.is_empty() {
            self.tell_entry(entry, now);
        }
    }

    #[cold]
    fn tell_entry<T>(&self, entry: &Entry<T>, now: Moment) {
        self.ttl(Some(entry.timeline.fresh_until.since(now)));
        if let (Some(_), Some(bytes)) = (&entry.value, entry.encoded) {
            self.size(usize::try_from(bytes).unwrap_or(usize::MAX));
        }
    }

    /// Nobody records.
    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn failed(&self, error: &str) {
        self.each(|s| s.failed(error));
    }

    pub(crate) fn end(&self) {
        self.each(|s| s.end());
    }

    /// Links span by span; a span of another observer's kind is for `link` to ignore.
    pub(crate) fn link(&self, other: &Self) {
        self.each(|s| other.0.iter().for_each(|o| s.link(&**o)));
    }

    fn each(&self, call: impl Fn(&dyn Span)) {
        for span in &self.0 {
            guard(|| call(&**span));
        }
    }

    /// Runs `future` with these spans current.
    pub(crate) fn around<F: Future>(&self, future: F) -> Within<&Self, F> {
        within(self, future)
    }
}

impl Surroundings for Spans {
    type One = dyn Span;

    fn all(&self) -> &[Arc<dyn Span>] {
        &self.0
    }

    fn within(one: &dyn Span, work: &mut dyn FnMut()) {
        one.within(work);
    }
}
