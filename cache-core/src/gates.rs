//! The breakers of one level: its own, or where it has several servers, one for each of them. They fail one by one, and one
//! that is away must not take the others' keys along.

use std::{
    ops::Deref,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use arc_swap::ArcSwap;

use crate::{
    Breaker, BreakerState, Clock,
    breaker::{Gate, Pass},
};

/// Most servers with a breaker of their own. Others share the level's: a provider that names ever new ones must not fill
/// the memory.
const SERVERS_MAX: usize = 1024;

/// Who is asked by one call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Whom {
    /// The level: it is one server, or nobody knows which.
    Level,
    /// This one of its servers, by its number folded to a half: each call carries it several times over.
    Server(u32),
    /// Several of them by one command. What fails says nothing of any one.
    Several,
}

impl Whom {
    pub(crate) fn of(server: Option<u64>) -> Self {
        match server.map(u64::to_le_bytes) {
            Some([a, b, c, d, e, f, g, h]) => Self::Server(u32::from_le_bytes([a ^ e, b ^ f, c ^ g, d ^ h])),
            None => Self::Level,
        }
    }

    pub(crate) fn and(self, other: Self) -> Self {
        if self == other { self } else { Self::Several }
    }
}

pub(crate) struct Gates {
    settings: Breaker,
    budget: Duration,
    level: Gate,
    /// In the order in which they were met.
    servers: ArcSwap<Vec<(u32, Arc<Gate>)>>,
    /// What was last said of the level.
    told: Mutex<BreakerState>,
}

/// A gate for one call.
pub(crate) enum Chosen<'a> {
    Level(&'a Gate),
    Server(Arc<Gate>),
}

impl Deref for Chosen<'_> {
    type Target = Gate;

    fn deref(&self) -> &Gate {
        match self {
            Self::Level(gate) => gate,
            Self::Server(gate) => gate,
        }
    }
}

impl Gates {
    /// `budget`: the longest a call takes that somebody attends to.
    pub(crate) fn new(settings: Breaker, budget: Duration) -> Self {
        Self {
            settings,
            budget,
            level: Gate::new(settings, budget),
            servers: ArcSwap::default(),
            told: Mutex::new(BreakerState::Closed),
        }
    }

    pub(crate) const fn settings(&self) -> &Breaker {
        &self.settings
    }

    /// `None`: none of them is concerned.
    pub(crate) fn choose(&self, whom: Whom, clock: &Clock) -> Option<Chosen<'_>> {
        match whom {
            Whom::Level => Some(Chosen::Level(&self.level)),
            Whom::Server(server) => Some(self.of(server).unwrap_or_else(|| self.meet(server, clock))),
            Whom::Several => None,
        }
    }

    fn of(&self, server: u32) -> Option<Chosen<'_>> {
        let servers = self.servers.load();
        let known = servers.iter().find(|(known, _)| *known == server);
        known.map(|(_, gate)| Chosen::Server(Arc::clone(gate)))
    }

    #[cold]
    fn meet(&self, server: u32, clock: &Clock) -> Chosen<'_> {
        self.servers.rcu(|servers| {
            let mut servers = Vec::clone(servers);
            if servers.len() < SERVERS_MAX && servers.iter().all(|(known, _)| *known != server) {
                let gate = Gate::new(self.settings, self.budget);
                gate.begin(clock.now());
                servers.push((server, Arc::new(gate)));
            }
            servers
        });
        self.of(server).unwrap_or(Chosen::Level(&self.level))
    }

    /// Lets a call in: `Err` if it is not to be made.
    pub(crate) fn enter<'a>(
        &self,
        chosen: Option<&'a Chosen<'_>>,
        clock: &'a Clock,
    ) -> Result<Option<Pass<'a>>, ()> {
        match chosen {
            Some(gate) => gate.enter(clock).map(Some).ok_or(()),
            // It would find nothing out, so it is not made while there is nobody to answer.
            None if self.state(clock) == BreakerState::Open => Err(()),
            None => Ok(None),
        }
    }

    /// How the level is as a whole: away when none of its servers is asked, of those that anybody wants something of.
    pub(crate) fn state(&self, clock: &Clock) -> BreakerState {
        let servers = self.servers.load();
        let now = clock.now();
        let mut all: Vec<_> = servers.iter().filter_map(|(_, gate)| gate.state(now)).collect();
        if servers.is_empty() {
            all.extend(self.level.state(now));
        }
        let has = |state| all.contains(&state);
        match () {
            () if all.is_empty() || has(BreakerState::Closed) => BreakerState::Closed,
            () if has(BreakerState::HalfOpen) => BreakerState::HalfOpen,
            () => BreakerState::Open,
        }
    }

    /// The level's state where it is another one than was last told. `tell` takes note of it.
    pub(crate) fn news(&self, clock: &Clock, tell: impl FnOnce(BreakerState)) -> Option<BreakerState> {
        let mut told = self.lock();
        let state = self.state(clock);
        if *told == state {
            return None;
        }
        *told = state;
        tell(state);
        Some(state)
    }

    fn lock(&self) -> MutexGuard<'_, BreakerState> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Time until some call would be let through.
    pub(crate) fn opens_in(&self, clock: &Clock) -> Duration {
        let servers = self.servers.load();
        let now = clock.now();
        let asked = servers.iter().filter(|(_, gate)| gate.state(now).is_some());
        let opens = asked.map(|(_, gate)| gate.opens_in(clock)).min();
        opens.unwrap_or_else(|| if servers.is_empty() { self.level.opens_in(clock) } else { Duration::ZERO })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: Duration = Duration::from_secs(1);

    /// Whether it was let through.
    fn call(gates: &Gates, whom: Whom, clock: &Clock, ok: bool) -> bool {
        let chosen = gates.choose(whom, clock);
        let pass = gates.enter(chosen.as_ref(), clock);
        pass.map(|pass| pass.map(|pass| pass.end(ok, clock.now()))).is_ok()
    }

    #[test]
    fn servers_fail_one_by_one_and_the_level_when_all_have() {
        let (clock, time) = Clock::manual();
        let gates = Gates::new(Breaker::default(), S);
        let (a, b) = (Whom::Server(1), Whom::Server(2));
        for _ in 0..5 {
            assert!(call(&gates, a, &clock, false));
            assert!(call(&gates, b, &clock, true));
        }
        assert!(!call(&gates, a, &clock, true), "its own breaker is open");
        assert!(call(&gates, b, &clock, true));
        assert_eq!(gates.news(&clock, |_| {}), None, "the level is well");
        assert_eq!(gates.opens_in(&clock), Duration::ZERO);
        assert!(call(&gates, Whom::Several, &clock, false));

        for _ in 0..6 {
            call(&gates, b, &clock, false);
        }
        assert_eq!(gates.news(&clock, |_| {}), Some(BreakerState::Open));
        assert_eq!(gates.opens_in(&clock), S);
        assert!(!call(&gates, b, &clock, true) && !call(&gates, Whom::Several, &clock, true));

        time.advance(S);
        assert!(call(&gates, b, &clock, true), "a probe");
        assert_eq!(gates.news(&clock, |_| {}), Some(BreakerState::Closed));
    }

    #[test]
    fn a_server_that_nobody_asks_says_nothing_of_the_level() {
        let (clock, time) = Clock::manual();
        let gates = Gates::new(Breaker::default(), S);
        assert!(call(&gates, Whom::Server(1), &clock, true));
        time.advance(60 * S);
        for _ in 0..5 {
            call(&gates, Whom::Server(2), &clock, false);
        }
        assert_eq!(gates.news(&clock, |_| {}), Some(BreakerState::Open));
        // Where it was away before its servers were known, they tell.
        let gates = Gates::new(Breaker::default(), S);
        for _ in 0..5 {
            call(&gates, Whom::Level, &clock, false);
        }
        assert_eq!(gates.news(&clock, |_| {}), Some(BreakerState::Open));
        assert!(call(&gates, Whom::Server(1), &clock, true));
        assert_eq!(gates.news(&clock, |_| {}), Some(BreakerState::Closed));
    }

    #[test]
    fn names_without_end_take_no_memory_without_end() {
        let (clock, _time) = Clock::manual();
        let gates = Gates::new(Breaker::default(), S);
        for server in (0..u32::MAX).take(2 * SERVERS_MAX) {
            assert!(call(&gates, Whom::Server(server), &clock, true));
        }
        assert_eq!(gates.servers.load().len(), SERVERS_MAX);
    }
}
