//! Time, injectable.
//!
//! All freshness inside a process is counted on a monotonic clock, in nanoseconds since the clock's origin; wall time
//! is used only for what is written to a remote level.

use std::{
    fmt,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicI64, AtomicU64, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use futures::future::Either;
use tokio::sync::Notify;

/// A moment on the monotonic clock, in nanoseconds since its origin. `Moment::NEVER` is later than all others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Moment(u64);

impl Moment {
    /// The end of time: an entry with this deadline does not expire.
    pub const NEVER: Self = Self(u64::MAX);
    /// The clock's origin.
    pub const ORIGIN: Self = Self(0);

    /// This many nanoseconds after the origin.
    pub const fn from_nanos(nanos: u64) -> Self {
        Self(nanos)
    }

    /// Nanoseconds since the origin.
    pub const fn as_nanos(self) -> u64 {
        self.0
    }

    /// Later by `by`; saturates at [`Moment::NEVER`].
    #[must_use]
    pub fn after(self, by: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(by.as_nanos()).unwrap_or(u64::MAX)))
    }

    /// Earlier by `by`; stops at the origin. `NEVER` stays `NEVER`.
    #[must_use]
    pub fn before(self, by: Duration) -> Self {
        if self == Self::NEVER {
            return self;
        }
        Self(self.0.saturating_sub(u64::try_from(by.as_nanos()).unwrap_or(u64::MAX)))
    }

    /// Time from `earlier` to `self`, zero if it is not earlier. From anything to `NEVER` it is `Duration::MAX`.
    pub fn since(self, earlier: Self) -> Duration {
        if self == Self::NEVER {
            return Duration::MAX;
        }
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

/// What the clocks of this node and of a store say at one time: read once for all entries of an answer.
#[derive(Clone, Copy)]
pub(crate) struct Times {
    pub(crate) now: Moment,
    /// Milliseconds since the Unix epoch.
    pub(crate) store_ms: i64,
}

/// The source of time of a cache: the system's, or a test's own ([`Clock::manual`]).
///
/// Cloning is cheap; clones share one time.
#[derive(Clone)]
pub struct Clock(Kind);

#[derive(Clone)]
enum Kind {
    System,
    Manual(Arc<Manual>),
}

#[derive(Debug)]
struct Manual {
    nanos: AtomicU64,
    wall_offset_ms: AtomicI64,
    moved: Notify,
}

/// 2020-09-13, where manual clocks start their wall time.
const MANUAL_EPOCH_MS: i64 = 1_600_000_000_000;

impl Clock {
    /// The system's clocks.
    pub const fn system() -> Self {
        Self(Kind::System)
    }

    /// A clock that stands still until [`Time`] moves it, exact to the nanosecond.
    pub fn manual() -> (Self, Time) {
        let manual = Arc::new(Manual {
            // Not at the origin, so that "an hour ago" exists.
            nanos: AtomicU64::new(1_000_000_000_000_000),
            wall_offset_ms: AtomicI64::new(0),
            moved: Notify::new(),
        });
        (Self(Kind::Manual(Arc::clone(&manual))), Time(manual))
    }

    /// The exact monotonic time. 25 to 60 ns on the system clock.
    #[inline]
    pub fn now(&self) -> Moment {
        match &self.0 {
            Kind::System => Moment(system_nanos()),
            Kind::Manual(manual) => Moment(manual.nanos.load(Ordering::Acquire)),
        }
    }

    /// Whether `deadline` lies ahead. Asks a coarse clock first (3 to 5 ns) and the exact one only when the deadline is
    /// within the coarse clock's slack, so the answer is exact.
    ///
    /// After the process has been suspended, the coarse clock may lag for one tick.
    #[inline]
    pub fn is_before(&self, deadline: Moment) -> bool {
        match &self.0 {
            Kind::System => coarse::is_before(deadline.0) || system_nanos() < deadline.0,
            Kind::Manual(manual) => manual.nanos.load(Ordering::Acquire) < deadline.0,
        }
    }

    pub(crate) const fn is_system(&self) -> bool {
        matches!(self.0, Kind::System)
    }

    /// `offset_ms`: how far the store's clock is ahead of ours.
    pub(crate) fn times(&self, offset_ms: i64) -> Times {
        self.times_at(self.now(), offset_ms)
    }

    /// The same for a caller who has just asked for the time.
    pub(crate) fn times_at(&self, now: Moment, offset_ms: i64) -> Times {
        Times { now, store_ms: self.wall_ms().saturating_add(offset_ms) }
    }

    /// Milliseconds since the Unix epoch, by this node's wall clock.
    pub fn wall_ms(&self) -> i64 {
        match &self.0 {
            Kind::System => SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .map_or(0, |d| i64::try_from(d.as_millis()).unwrap_or(i64::MAX)),
            Kind::Manual(manual) => {
                let elapsed =
                    i64::try_from(manual.nanos.load(Ordering::Acquire) / 1_000_000).unwrap_or(i64::MAX);
                MANUAL_EPOCH_MS
                    .saturating_add(elapsed)
                    .saturating_add(manual.wall_offset_ms.load(Ordering::Acquire))
            }
        }
    }

    /// Microseconds since the Unix epoch, by this node's wall clock.
    pub(crate) fn wall_us(&self) -> i64 {
        match &self.0 {
            Kind::System => SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .map_or(0, |d| i64::try_from(d.as_micros()).unwrap_or(i64::MAX)),
            Kind::Manual(_) => self.wall_ms().saturating_mul(1000),
        }
    }

    /// Waits until `by` has passed on this clock. Cancel-safe.
    pub async fn sleep(&self, by: Duration) {
        match &self.0 {
            Kind::System => tokio::time::sleep(by).await,
            Kind::Manual(manual) => {
                let until = self.now().after(by);
                loop {
                    let moved = manual.moved.notified();
                    tokio::pin!(moved);
                    moved.as_mut().enable();
                    if self.now() >= until {
                        return;
                    }
                    moved.await;
                }
            }
        }
    }

    /// Runs `future` for at most `limit` on this clock; `None` when the limit came first. Drops the future then.
    pub async fn timeout<F: Future>(&self, limit: Duration, future: F) -> Option<F::Output> {
        let work = std::pin::pin!(future);
        let limit = std::pin::pin!(self.sleep(limit));
        // Asks the work first: an answer that is there counts, whatever the time.
        match futures::future::select(work, limit).await {
            Either::Left((out, _)) => Some(out),
            Either::Right(((), _)) => None,
        }
    }
}

impl Default for Clock {
    fn default() -> Self {
        Self::system()
    }
}

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            Kind::System => "Clock(system)",
            Kind::Manual(_) => "Clock(manual)",
        })
    }
}

/// Moves a manual clock.
#[derive(Clone, Debug)]
pub struct Time(Arc<Manual>);

impl Time {
    /// Lets `by` pass: wakes everything that slept until then. Stops one nanosecond before [`Moment::NEVER`].
    pub fn advance(&self, by: Duration) {
        let later = |nanos| Some(Moment(nanos).after(by).0.min(Moment::NEVER.0 - 1));
        // Never refused.
        let _ = self.0.nanos.fetch_update(Ordering::AcqRel, Ordering::Acquire, later);
        self.0.moved.notify_waiters();
    }

    /// Shifts the wall clock only, as an operator or NTP may.
    pub fn jump_wall(&self, by_ms: i64) {
        self.0.wall_offset_ms.fetch_add(by_ms, Ordering::AcqRel);
    }
}

fn system_nanos() -> u64 {
    static START: OnceLock<u64> = OnceLock::new();
    let start = *START.get_or_init(|| {
        // The coarse clock must not start before this one: see `coarse::is_before`.
        let start = exact::raw();
        coarse::start();
        start
    });
    ORIGIN_NANOS + exact::raw().saturating_sub(start)
}

/// Where the system's monotonic time starts, so that an entry loaded elsewhere may be older than this process.
const ORIGIN_NANOS: u64 = 1_000_000_000_000_000_000;

/// Nanoseconds from some moment on. Not through `Instant`, whose differences take longer than the system's answer.
#[cfg(unix)]
mod exact {
    use rustix::time::{ClockId, Timespec, clock_gettime};

    #[inline]
    pub(super) fn raw() -> u64 {
        nanos_of(clock_gettime(ClockId::Monotonic))
    }

    pub(super) fn nanos_of(t: Timespec) -> u64 {
        u64::try_from(t.tv_sec).unwrap_or(0) * 1_000_000_000 + u64::try_from(t.tv_nsec).unwrap_or(0)
    }
}

#[cfg(not(unix))]
mod exact {
    use std::{sync::OnceLock, time::Instant};

    pub(super) fn raw() -> u64 {
        static START: OnceLock<Instant> = OnceLock::new();
        u64::try_from(START.get_or_init(Instant::now).elapsed().as_nanos()).unwrap_or(u64::MAX)
    }
}

#[cfg(unix)]
mod coarse {
    use std::sync::OnceLock;

    use rustix::time::{ClockId, clock_getres, clock_gettime};

    use super::exact::nanos_of;

    static START: OnceLock<(u64, u64)> = OnceLock::new();

    fn raw() -> u64 {
        nanos_of(clock_gettime(CLOCK))
    }

    #[cfg(any(target_os = "linux", target_os = "android"))]
    const CLOCK: ClockId = ClockId::MonotonicCoarse;
    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    const CLOCK: ClockId = ClockId::Monotonic;

    fn init() -> (u64, u64) {
        let step = nanos_of(clock_getres(CLOCK));
        (raw(), (2 * step).max(10_000_000))
    }

    pub(super) fn start() {
        START.get_or_init(init);
    }

    /// Whether `deadline` certainly lies ahead: this clock is at most two steps behind the exact one, and never ahead of
    /// it by more than one.
    #[inline]
    pub(super) fn is_before(deadline: u64) -> bool {
        // As much as the exact clock has counted since its start, and the slack.
        START.get().is_some_and(|(start, slack)| {
            super::ORIGIN_NANOS + (raw() + slack).saturating_sub(*start) < deadline
        })
    }
}

#[cfg(not(unix))]
mod coarse {
    pub(super) fn start() {}
    pub(super) fn is_before(_deadline: u64) -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn coarse_answer_equals_the_exact_one() {
        let clock = Clock::system();
        for _ in 0..2_000 {
            let now = clock.now();
            assert!(!clock.is_before(now));
            assert!(clock.is_before(now.after(Duration::from_secs(1))));
        }
    }

    #[test]
    fn manual_time_stops_before_never() {
        let (clock, time) = Clock::manual();
        for _ in 0..2 {
            let before = clock.now();
            time.advance(Duration::MAX);
            assert!(before <= clock.now() && clock.now() < Moment::NEVER);
        }
    }

    #[tokio::test]
    async fn manual_sleep_ends_when_time_moves() {
        let (clock, time) = Clock::manual();
        let sleeper = tokio::spawn({
            let clock = clock.clone();
            async move { clock.sleep(Duration::from_secs(3600)).await }
        });
        tokio::task::yield_now().await;
        time.advance(Duration::from_secs(3599));
        tokio::task::yield_now().await;
        assert!(!sleeper.is_finished());
        time.advance(Duration::from_secs(1));
        sleeper.await.unwrap();
    }

    #[test]
    fn t4_never_does_not_overflow() {
        let now = Clock::system().now();
        assert_eq!(now.after(Duration::MAX), Moment::NEVER);
        assert_eq!(Moment::NEVER.since(now), Duration::MAX);
    }
}
