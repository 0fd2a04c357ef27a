//! What a node's telemetry tells: counters, events and spans agree with each other and with what has been asked of it.

use std::{
    any::Any,
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
};

use cache_core::{
    BreakerState, CacheInfo, Error, Event, LoadEnd, MissReason, Observer, Outcome, Snapshot, Span, SpanKind,
    SpanStart, Stats, Verb,
};

/// How many there were of what, as it is named here.
#[derive(Default)]
struct Counts(BTreeMap<String, u64>);

impl Counts {
    fn add(&mut self, what: String, by: u64) {
        *self.0.entry(what).or_default() += by;
    }

    fn of(&self, what: &str) -> u64 {
        self.0.get(what).copied().unwrap_or(0)
    }

    /// All whose names begin so.
    fn all(&self, what: &str) -> u64 {
        self.0.iter().filter(|(name, _)| name.starts_with(what)).map(|(_, count)| count).sum()
    }
}

#[derive(Default)]
struct Seen {
    /// Calls by verb, keys looked up by verb, and how they were answered.
    calls: Counts,
    lookups: Counts,
    answers: Counts,
    errors: Counts,
    events: Counts,
    /// Spans: that have begun, and of them those that have ended, failed (and ended), or were given up.
    begun: Counts,
    ended: Counts,
    failed: Counts,
    given_up: Counts,
    breakers: BTreeMap<u8, BreakerState>,
    stats: Option<Arc<Stats>>,
    wrong: Option<String>,
}

/// The observer of one node, which also hears of its callers.
#[derive(Clone, Default)]
pub(crate) struct Watch(Arc<Mutex<Seen>>);

impl Watch {
    fn see<R>(&self, how: impl FnOnce(&mut Seen) -> R) -> R {
        how(&mut self.0.lock().unwrap())
    }

    /// A call begins, which looks up so many keys.
    pub(crate) fn calls(&self, verb: Verb, lookups: usize) {
        self.see(|seen| {
            seen.calls.add(format!("{verb:?}"), 1);
            seen.lookups.add(format!("{verb:?}"), lookups as u64);
        });
    }

    /// A look-up has been answered.
    pub(crate) fn answers(&self, verb: Verb, outcome: Outcome) {
        self.see(|seen| seen.answers.add(answer(verb, outcome), 1));
    }

    pub(crate) fn fails(&self, error: &Error) {
        self.see(|seen| seen.errors.add(format!("{:?}", error.kind()), 1));
    }

    /// Spans that are not over.
    pub(crate) fn under_way(&self) -> u64 {
        self.see(|seen| seen.begun.all("") - seen.ended.all("") - seen.given_up.all(""))
    }

    /// Once nothing is under way any more: what does not agree. `left`: callers have left, and do not know how their calls ended.
    /// `closed`: calls may have been refused.
    pub(crate) fn verdict(&self, left: bool, closed: bool) -> Result<(), String> {
        self.see(|seen| seen.verdict(left, closed))
    }
}

fn answer(verb: Verb, outcome: Outcome) -> String {
    // What a call has loaded itself is counted as the miss that it was.
    let outcome = if outcome == Outcome::Loaded { Outcome::Miss } else { outcome };
    format!("{verb:?} {outcome:?}")
}

impl Observer for Watch {
    fn attach(&self, stats: &Arc<Stats>) {
        self.see(|seen| seen.stats = Some(Arc::clone(stats)));
    }

    fn event(&self, _: &CacheInfo, event: &Event<'_>) {
        self.see(|seen| seen.event(event));
    }

    fn span(&self, _: &CacheInfo, start: &SpanStart<'_>) -> Option<Arc<dyn Span>> {
        let name = name(start.kind);
        self.see(|seen| seen.begun.add(name.clone(), 1));
        Some(Arc::new(Part { watch: self.clone(), name, ended: AtomicBool::new(false) }))
    }

    fn traces_hits(&self) -> bool {
        true
    }

    fn traces_hit(&self) -> bool {
        fastrand::bool()
    }
}

/// A span.
struct Part {
    watch: Watch,
    name: String,
    ended: AtomicBool,
}

fn name(kind: SpanKind) -> String {
    match kind {
        SpanKind::Operation(verb) => format!("Operation {verb:?}"),
        SpanKind::Level { level, op, .. } => format!("Level {level} {op:?}"),
        other => format!("{other:?}"),
    }
}

impl Part {
    fn is_told(&self, what: &str) {
        if self.ended.load(SeqCst) {
            let line = format!("{what} is told of a span that has ended: {}", self.name);
            self.watch.see(|seen| seen.wrong = Some(line));
        }
    }
}

impl Span for Part {
    fn within(&self, work: &mut dyn FnMut()) {
        self.is_told("work");
        work();
    }

    fn found(&self, _: Outcome, _: Option<u8>) {
        self.is_told("found");
    }

    fn missed(&self, _: MissReason) {
        self.is_told("missed");
    }

    fn failed(&self, _: &str) {
        self.is_told("failed");
        self.watch.see(|seen| seen.failed.add(self.name.clone(), 1));
    }

    fn end(&self) {
        self.is_told("end");
        self.ended.store(true, SeqCst);
        self.watch.see(|seen| seen.ended.add(self.name.clone(), 1));
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        if !self.ended.load(SeqCst) {
            self.watch.see(|seen| seen.given_up.add(self.name.clone(), 1));
        }
    }
}

/// Says what does not agree.
struct Books(Vec<String>);

impl Books {
    fn same(&mut self, what: &str, one: u64, other: u64) {
        if one != other {
            self.0.push(format!("{what}: {one}, but {other}"));
        }
    }

    fn at_most(&mut self, what: &str, one: u64, other: u64) {
        if one > other {
            self.0.push(format!("{what}: {one}, but {other} at most"));
        }
    }
}

impl Seen {
    fn event(&mut self, event: &Event<'_>) {
        let name = match event {
            // A sample that stands for many hits, which have no spans.
            Event::Operation { weight: 2.., .. } => return,
            Event::Operation { verb, error, .. } => {
                if let Some(kind) = error {
                    self.events.add(format!("Error {kind:?}"), 1);
                }
                format!("Operation {verb:?}")
            }
            Event::Level { level, op, fault, .. } => {
                if let Some(fault) = fault {
                    self.events.add(format!("Fault {level} {fault:?}"), 1);
                }
                format!("Level {level} {op:?}")
            }
            Event::Load { end: LoadEnd::Failed(_), .. } => "Load Failed".to_owned(),
            Event::Load { .. } => "Load".to_owned(),
            Event::Unreadable { level, reason } => format!("Unreadable {level} {reason:?}"),
            Event::Breaker { level, state } => {
                self.breakers.insert(*level, *state);
                return;
            }
            Event::Overtaken => "Overtaken".to_owned(),
            Event::BackplaneSent => "Sent".to_owned(),
            Event::BackplaneReceived { .. } => "Received".to_owned(),
            Event::BackplaneNoise => "Noise".to_owned(),
            Event::BackplaneGap => "Gap".to_owned(),
            _ => return,
        };
        self.events.add(name, 1);
    }

    fn verdict(&self, left: bool, closed: bool) -> Result<(), String> {
        let mut books = Books(self.wrong.iter().cloned().collect());
        let stats = self.stats.as_ref().unwrap().snapshot();
        self.spans(&mut books);
        self.calls(&mut books, &stats, left, closed);
        self.levels(&mut books, &stats);
        let (events, count) = (&self.events, &mut books);
        count.same("loads", events.all("Load"), stats.loads);
        count.same("loads that failed", events.of("Load Failed"), stats.load_errors);
        count.same("loads with a span", self.begun.of("Load"), stats.loads);
        count.same("loads under way", 0, stats.flights as u64);
        count.same("what was overtaken", events.of("Overtaken"), stats.overtaken);
        if let Some(plane) = stats.backplane {
            count.same("messages sent", events.of("Sent"), plane.sent);
            let taken = self.ended.of("Publish") - self.failed.of("Publish");
            count.same("messages taken", taken, plane.sent);
            count.same("messages received", events.of("Received"), plane.received);
            count.same("noise", events.of("Noise"), plane.noise);
            count.same("gaps", events.of("Gap"), plane.gaps);
        }
        if books.0.is_empty() { Ok(()) } else { Err(books.0.join("; ")) }
    }

    /// Each has one end, and its event.
    fn spans(&self, books: &mut Books) {
        for (name, begun) in &self.begun.0 {
            let over = self.ended.of(name) + self.given_up.of(name);
            books.same(&format!("spans of {name} that are over"), over, *begun);
            if name.starts_with("Operation") || name.starts_with("Level") {
                books.same(&format!("events of {name}"), self.events.of(name), self.ended.of(name));
            }
        }
    }

    fn calls(&self, books: &mut Books, stats: &Snapshot, left: bool, closed: bool) {
        for (verb, counted) in &stats.operations {
            let (name, made) = (format!("{verb:?}"), self.calls.of(&format!("{verb:?}")));
            let is_task = matches!(verb, Verb::Update | Verb::Save | Verb::Delete);
            // These are refused before they are anything.
            let refused = if closed && is_task { made.saturating_sub(*counted) } else { 0 };
            books.same(&format!("calls of {name}"), *counted, made - refused);
            let spans = self.begun.of(&format!("Operation {name}"));
            match verb {
                // Some hits have none.
                Verb::Get | Verb::GetOrSet => books.at_most(&format!("spans of {name}"), spans, *counted),
                _ => books.same(&format!("spans of {name}"), spans, *counted),
            }
            let served = stats.served.iter().filter(|served| served.verb == *verb);
            let lookups: u64 = served.clone().map(|served| served.count).sum();
            let asked = self.lookups.of(&name);
            // What a closed cache refuses is no look-up.
            let refused =
                if closed { asked.saturating_sub(lookups).min(self.errors.of("Closed")) } else { 0 };
            books.same(&format!("look-ups by {name}"), lookups, asked - refused);
            for outcome in [Outcome::Hit, Outcome::Stale, Outcome::Absent, Outcome::Coalesced, Outcome::Miss]
            {
                let counted =
                    served.clone().filter(|served| served.outcome == outcome).map(|s| s.count).sum();
                let name = answer(*verb, outcome);
                books.at_most(&name, self.answers.of(&name), counted);
            }
        }
        for (kind, counted) in stats.errors {
            let (name, told) = (format!("{kind:?}"), self.errors.of(&format!("{kind:?}")));
            match left {
                true => books.at_most(&format!("errors, {name}"), told, counted),
                false => books.same(&format!("errors, {name}"), told, counted),
            }
            books.at_most(&format!("events of {name}"), self.events.of(&format!("Error {name}")), counted);
        }
    }

    fn levels(&self, books: &mut Books, stats: &Snapshot) {
        for (at, level) in stats.levels.iter().enumerate() {
            for (fault, counted) in level.faults {
                let name = format!("Fault {at} {fault:?}");
                books.same(&name, self.events.of(&name), counted);
            }
            let (faults, failed) =
                (self.events.all(&format!("Fault {at}")), self.failed.all(&format!("Level {at}")));
            books.same(&format!("spans of level {at} that failed"), failed, faults);
            for (reason, counted) in level.unreadable {
                let name = format!("Unreadable {at} {reason:?}");
                books.same(&name, self.events.of(&name), counted);
            }
            let told = u8::try_from(at).ok().and_then(|at| self.breakers.get(&at).copied());
            let told = told.unwrap_or(BreakerState::Closed);
            if told != level.breaker {
                books.0.push(format!(
                    "the breaker of level {at} is {:?}, was told to be {told:?}",
                    level.breaker
                ));
            }
            let hits = level.outcome(cache_core::LevelOutcome::Hit);
            books.at_most(&format!("look-ups that level {at} served"), stats.hits_at(at), hits);
        }
        let misses = stats.miss_reasons.iter().map(|(_, count)| count).sum();
        books.same("misses by their reason", misses, stats.misses());
    }
}
