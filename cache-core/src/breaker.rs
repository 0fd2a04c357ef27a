//! A circuit breaker: stops asking a sick level, and finds out with one request when it is well again.

use std::{
    fmt,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use crate::{BreakerState, Clock, Error, Moment, Result, striped::Counters};

/// When a level stops being asked.
///
/// The breaker opens when at least `min_calls` calls ended within the last `window` and the share of failures reached
/// `failure_rate`, or when for as long as `open_for` at least `min_calls` have failed and none ended well. After `open_for`
/// one single call is let through; if it succeeds the breaker closes, else it stays open for `open_for` more. Where a level
/// has several servers ([`CacheProvider::server_of`](crate::CacheProvider::server_of)),
/// each has a breaker of its own, and the level's is open when all of theirs are.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Breaker {
    pub(crate) failure_rate: f64,
    pub(crate) min_calls: u32,
    pub(crate) window: Duration,
    pub(crate) open_for: Duration,
}

impl Default for Breaker {
    /// Half of at least 5 calls within 10 s; open for 1 s.
    fn default() -> Self {
        Self {
            failure_rate: 0.5,
            min_calls: 5,
            window: Duration::from_secs(10),
            open_for: Duration::from_secs(1),
        }
    }
}

impl Breaker {
    /// Share of failures, above 0 up to 1, at which it opens.
    #[must_use]
    pub const fn failure_rate(mut self, rate: f64) -> Self {
        self.failure_rate = rate;
        self
    }

    /// Calls that must have ended within the window before the rate counts. 1 opens at the first failure.
    #[must_use]
    pub const fn min_calls(mut self, calls: u32) -> Self {
        self.min_calls = calls;
        self
    }

    /// How far back calls are counted.
    #[must_use]
    pub const fn window(mut self, window: Duration) -> Self {
        self.window = window;
        self
    }

    /// Pause before the next try.
    #[must_use]
    pub const fn open_for(mut self, pause: Duration) -> Self {
        self.open_for = pause;
        self
    }

    pub(crate) fn check(&self, field: impl Fn(&str) -> String) -> Result<()> {
        if !(self.failure_rate > 0.0 && self.failure_rate <= 1.0) {
            return Err(Error::config(
                &field("breaker.failure_rate"),
                self.failure_rate,
                "a share of calls, above 0 up to 1",
            ));
        }
        for (name, zero) in [
            ("breaker.min_calls", self.min_calls == 0),
            ("breaker.window", self.window.is_zero()),
            ("breaker.open_for", self.open_for.is_zero()),
        ] {
            if zero {
                return Err(Error::config(&field(name), 0, "must be above zero"));
            }
        }
        Ok(())
    }
}

/// The breaker of one level at work.
pub(crate) struct Gate {
    settings: Breaker,
    /// How long a probe may take.
    patience: Duration,
    state: Mutex<State>,
    /// Mirrors the mode, for the usual call: it enters, and ends well, without the lock.
    closed: AtomicBool,
    /// Mirrors the end of the present half.
    half_ends: AtomicU64,
    /// Calls that ended well so far.
    well: Counters,
}

#[derive(Clone, Copy, Default)]
struct Half {
    calls: u32,
    failures: u32,
}

enum Mode {
    Closed,
    Open {
        until: Moment,
    },
    /// `until`: a caller who has left its probe unattended keeps nobody else from the next one.
    Probing {
        number: u64,
        until: Moment,
    },
}

struct State {
    mode: Mode,
    probes: u64,
    /// Counts of the current and the previous half of the window.
    now: Half,
    before: Half,
    half_ends: Moment,
    /// How many of the calls that ended well have been added to a half, this one or one before.
    well: u64,
    /// Failures in a row, and when the first of them ended. They count besides the share: a level that hangs would be asked
    /// until its earlier successes have left the window.
    row: u32,
    row_began: Moment,
}

/// Leave to make one call. Dropping it without a verdict counts as a failure of a probe and as nothing otherwise; see also
/// [`Pass::abandon`].
pub(crate) struct Pass<'a> {
    gate: &'a Gate,
    clock: &'a Clock,
    /// Its number, if it is one.
    probe: Option<u64>,
    judged: bool,
}

impl fmt::Display for Breaker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { failure_rate, min_calls, window, open_for } = self;
        write!(
            f,
            "at {:.0} % failures of {min_calls} calls or more in {window:?}, for {open_for:?}",
            failure_rate * 100.0
        )
    }
}

impl Gate {
    /// `budget`: the longest a call takes that somebody attends to.
    pub(crate) fn new(settings: Breaker, budget: Duration) -> Self {
        Self {
            settings,
            patience: settings.open_for.max(budget.saturating_mul(2)),
            state: Mutex::new(State {
                mode: Mode::Closed,
                probes: 0,
                now: Half::default(),
                before: Half::default(),
                half_ends: Moment::ORIGIN,
                well: 0,
                row: 0,
                row_began: Moment::ORIGIN,
            }),
            closed: AtomicBool::new(true),
            half_ends: AtomicU64::new(0),
            well: Counters::new(1),
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets a call in, as the probe once the pause of an open breaker is over. `None`: do not ask.
    pub(crate) fn enter<'a>(&'a self, clock: &'a Clock) -> Option<Pass<'a>> {
        if self.closed.load(Ordering::Acquire) {
            return Some(Pass { gate: self, clock, probe: None, judged: false });
        }
        let mut state = self.lock();
        let probe = match state.mode {
            Mode::Closed => None,
            Mode::Probing { until, .. } | Mode::Open { until } if clock.now() < until => return None,
            Mode::Probing { .. } | Mode::Open { .. } => {
                state.probes += 1;
                let number = state.probes;
                state.mode = Mode::Probing { number, until: clock.now().after(self.patience) };
                Some(number)
            }
        };
        Some(Pass { gate: self, clock, probe, judged: false })
    }

    /// Counts from now on.
    pub(crate) fn begin(&self, now: Moment) {
        self.lock().half_ends = now.after(self.settings.window / 2);
    }

    /// How it is; `None` while it is closed and no call has ended for a window.
    pub(crate) fn state(&self, now: Moment) -> Option<BreakerState> {
        let state = self.lock();
        match state.mode {
            Mode::Closed => {
                (now < state.half_ends.after(self.settings.window)).then_some(BreakerState::Closed)
            }
            Mode::Probing { .. } => Some(BreakerState::HalfOpen),
            Mode::Open { .. } => Some(BreakerState::Open),
        }
    }

    /// Time until a call would be let through.
    pub(crate) fn opens_in(&self, clock: &Clock) -> Duration {
        match self.lock().mode {
            Mode::Closed => Duration::ZERO,
            Mode::Probing { .. } => self.settings.open_for,
            Mode::Open { until } => until.since(clock.now()),
        }
    }
}

impl Pass<'_> {
    /// Whether this call is the half-open probe.
    pub(crate) fn is_probe(&self) -> bool {
        self.probe.is_some()
    }

    /// The caller has left before the call ended. A failure if it was `overdue`: else impatient callers would keep a level
    /// that does not answer from ever counting as sick.
    pub(crate) fn abandon(mut self, overdue: bool) -> Option<BreakerState> {
        if !overdue && self.probe.is_none() {
            return None;
        }
        self.judge(false, self.clock.now())
    }

    /// The call ended, now. Returns the new state if it changed.
    pub(crate) fn end(mut self, ok: bool, now: Moment) -> Option<BreakerState> {
        self.judge(ok, now)
    }

    fn judge(&mut self, ok: bool, now: Moment) -> Option<BreakerState> {
        self.judged = true;
        let gate = self.gate;
        if ok
            && self.probe.is_none()
            && gate.closed.load(Ordering::Acquire)
            && now.as_nanos() < gate.half_ends.load(Ordering::Relaxed)
        {
            gate.well.add(0, 1);
            return None;
        }
        let mut state = gate.lock();
        let all = gate.well.sum(0);
        let well = all.wrapping_sub(state.well);
        state.well = all;
        state.now.calls = state.now.calls.saturating_add(u32::try_from(well).unwrap_or(u32::MAX));
        if ok || well > 0 {
            state.row = 0;
        }
        let changed = self.count(&mut state, ok, now);
        gate.half_ends.store(state.half_ends.as_nanos(), Ordering::Relaxed);
        gate.closed.store(matches!(state.mode, Mode::Closed), Ordering::Release);
        changed
    }

    fn count(&self, state: &mut State, ok: bool, now: Moment) -> Option<BreakerState> {
        let settings = self.gate.settings;
        if let Some(mine) = self.probe {
            if !matches!(state.mode, Mode::Probing { number, .. } if number == mine) {
                // Too late: another has been sent meanwhile.
                return None;
            }
            state.now = Half::default();
            state.before = Half::default();
            state.row = 0;
            state.mode = if ok { Mode::Closed } else { Mode::Open { until: now.after(settings.open_for) } };
            return Some(if ok { BreakerState::Closed } else { BreakerState::Open });
        }
        if !matches!(state.mode, Mode::Closed) {
            return None;
        }
        if now >= state.half_ends {
            let half = settings.window / 2;
            // After a pause of a whole half, the previous half is empty too.
            state.before = if now < state.half_ends.after(half) { state.now } else { Half::default() };
            state.now = Half::default();
            state.half_ends = now.after(half);
        }
        state.now.calls = state.now.calls.saturating_add(1);
        state.now.failures = state.now.failures.saturating_add(u32::from(!ok));
        let calls = state.now.calls.saturating_add(state.before.calls);
        let failures = state.now.failures.saturating_add(state.before.failures);
        if ok {
            return None;
        }
        if state.row == 0 || now >= state.row_began.after(settings.window) {
            (state.row, state.row_began) = (0, now);
        }
        state.row = state.row.saturating_add(1);
        let often =
            calls >= settings.min_calls && f64::from(failures) >= settings.failure_rate * f64::from(calls);
        let always = state.row >= settings.min_calls && now >= state.row_began.after(settings.open_for);
        if often || always {
            state.mode = Mode::Open { until: now.after(settings.open_for) };
            return Some(BreakerState::Open);
        }
        None
    }
}

impl Drop for Pass<'_> {
    fn drop(&mut self) {
        if self.probe.is_some() && !self.judged {
            self.judge(false, self.clock.now());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    const S: Duration = Duration::from_secs(1);

    fn call(gate: &Gate, clock: &Clock, ok: bool) -> bool {
        gate.enter(clock).map(|pass| pass.end(ok, clock.now())).is_some()
    }

    #[test]
    fn opens_at_the_rate_and_closes_by_one_probe() {
        let (clock, time) = Clock::manual();
        let gate = Gate::new(Breaker::default(), S);
        for ok in [true, true, false, false] {
            assert!(call(&gate, &clock, ok));
        }
        assert!(call(&gate, &clock, false), "below five calls it stays closed");
        assert!(!call(&gate, &clock, true), "three of five failed");
        time.advance(S);
        let probe = gate.enter(&clock).unwrap();
        assert!(probe.is_probe());
        assert!(gate.enter(&clock).is_none(), "a single probe");
        assert_eq!(probe.end(false, clock.now()), Some(BreakerState::Open));
        assert!(!call(&gate, &clock, true));
        time.advance(S);
        assert_eq!(gate.enter(&clock).unwrap().end(true, clock.now()), Some(BreakerState::Closed));
        assert!(call(&gate, &clock, false), "old failures are forgotten");
        assert!(call(&gate, &clock, true));
    }

    #[test]
    fn calls_that_end_well_count_though_they_take_no_lock() {
        let (clock, time) = Clock::manual();
        let gate = Gate::new(Breaker::default(), S);
        for _ in 0..10 {
            assert!(call(&gate, &clock, true));
        }
        time.advance(4 * S);
        for ok in [false; 9] {
            assert!(call(&gate, &clock, ok), "nine of up to nineteen failed");
        }
        assert!(call(&gate, &clock, false));
        assert!(!call(&gate, &clock, true), "ten of twenty failed");
        // What was long ago does not count, nor do pauses keep it alive.
        let gate = Gate::new(Breaker::default(), S);
        for _ in 0..100 {
            assert!(call(&gate, &clock, true));
        }
        time.advance(11 * S);
        for _ in 0..5 {
            assert!(call(&gate, &clock, false));
        }
        assert!(!call(&gate, &clock, true), "five of five failed");
    }

    #[test]
    fn more_calls_than_can_be_counted_are_as_many_as_can() {
        let (clock, _time) = Clock::manual();
        let gate = Gate::new(Breaker::default(), S);
        gate.begin(clock.now());
        gate.well.add(0, u64::from(u32::MAX));
        for _ in 0..10 {
            assert!(call(&gate, &clock, false), "ten of four billion failed");
        }
        assert!(call(&gate, &clock, true));
    }

    #[test]
    fn what_went_well_before_does_not_keep_a_level_that_hangs_asked() {
        let (clock, time) = Clock::manual();
        let gate = Gate::new(Breaker::default(), S);
        let well = |n| (0..n).for_each(|_| assert!(call(&gate, &clock, true)));
        well(1000);
        for _ in 0..10 {
            assert!(call(&gate, &clock, false), "many at once may be one broken connection");
        }
        time.advance(S / 2);
        well(1);
        assert!(call(&gate, &clock, false));
        time.advance(S / 2);
        assert!(call(&gate, &clock, false), "it has answered half a second ago");
        for _ in 0..3 {
            assert!(call(&gate, &clock, false));
        }
        time.advance(S / 2);
        assert!(call(&gate, &clock, false));
        assert!(!call(&gate, &clock, true), "a second of nothing else");
    }

    #[test]
    fn a_dropped_probe_does_not_jam_the_breaker() {
        let (clock, time) = Clock::manual();
        let gate = Gate::new(Breaker::default().min_calls(1), S);
        assert!(call(&gate, &clock, false));
        time.advance(S);
        drop(gate.enter(&clock).unwrap());
        assert!(!call(&gate, &clock, true));
        time.advance(S);
        assert!(call(&gate, &clock, true));
        assert!(call(&gate, &clock, true));
    }

    #[test]
    fn old_failures_leave_the_window() {
        let (clock, time) = Clock::manual();
        let gate = Gate::new(Breaker::default(), S);
        for _ in 0..4 {
            assert!(call(&gate, &clock, false));
        }
        time.advance(11 * S);
        assert!(call(&gate, &clock, false));
        assert!(call(&gate, &clock, true), "one failure within the window");
    }
}
