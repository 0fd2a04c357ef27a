//! Batches: one round trip per level, and a loader that gets only what is missing.

use std::{collections::HashMap, sync::Arc};

use crate::{
    Access, Error, Found, Moment, Outcome, RawKey, Result, Value, Verb,
    cycle::LoadId,
    fetch::{Awaited, Counted, Next, Taken, wait_for},
    flight::Flight,
    inner::{Inner, Seen, State},
    load::{Departure, ManyLoader, Terms},
    observers::Spans,
    read::Asked,
    tally::Tally,
};

/// Tells what is counted why each key is a miss, should it be one.
fn missed<T: Value>(asked: &[Asked<'_, T>], counted: &mut [Counted<'_>]) {
    for (asked, counted) in asked.iter().zip(counted) {
        counted.missed(asked.reason);
    }
}

/// Tells a batch's span whether levels had all of it.
fn found_all<T>(all: Vec<Found<T>>, spans: &Spans) -> Vec<Found<T>> {
    if !spans.is_empty() {
        spans.found_all(all.iter().all(|found| matches!(found.outcome, Outcome::Hit | Outcome::Stale)));
    }
    all
}

/// How one key of a batch is answered.
enum Part<T> {
    Done(Result<Found<T>>),
    Wait(Wait<T>),
}

/// The load that one key of a batch waits for.
struct Wait<T> {
    flight: Arc<Flight<T>>,
    stale: Option<Seen<T>>,
    leads: bool,
    /// It had begun before this call: its value may be older than an invalidation that this call must see.
    late: bool,
}

/// What waiting for one key has come to.
enum Waited<T> {
    Answered(Result<Found<T>>),
    /// Not yet: the key is to be tried once more, with what was stale before.
    Overtaken(Option<Seen<T>>),
}

/// What a batch has come to so far, by the positions of its keys.
struct Answers<'a, T> {
    counted: Vec<Counted<'a>>,
    found: Vec<Option<Found<T>>>,
    /// The first failure.
    error: Option<Error>,
}

impl<T> Answers<'_, T> {
    fn take(&mut self, at: usize, answer: Result<Found<T>>) {
        match answer {
            Ok(mut found) => {
                self.counted[at].as_found(&mut found);
                self.found[at] = Some(found);
            }
            Err(failed) => {
                self.error.get_or_insert(failed);
            }
        }
    }

    fn end(self) -> Result<Vec<Found<T>>> {
        match self.error {
            Some(error) => Err(error),
            None => Ok(self.found.into_iter().flatten().collect()),
        }
    }
}

impl<T: Value> Inner<T> {
    /// Looks up many keys, in their order.
    pub(crate) async fn look_many(
        self: &Arc<Self>,
        keys: &[RawKey<'_>],
        access: Access,
        spans: &Spans,
    ) -> Result<Vec<Found<T>>> {
        self.check_open()?;
        let mut tally = Tally::new(self.stats(), Verb::GetMany, keys.len());
        self.tell_asked(keys);
        let mut asked: Vec<_> = keys.iter().map(|key| Asked::only(*key)).collect();
        if access.reads() {
            self.read_levels(&mut asked, access).await;
        }
        let now = self.now();
        // All of them, whatever the first failure is: each counts as what it came to.
        let answers: Vec<_> = asked
            .iter_mut()
            .map(|asked| {
                let mut answer = self.answer(asked, access, now);
                match &mut answer {
                    Ok(found) => tally.found(found, asked.reason),
                    Err(_) => tally.missed(asked.reason),
                }
                answer
            })
            .collect();
        Ok(found_all(answers.into_iter().collect::<Result<_>>()?, spans))
    }

    /// Tells whoever wants to know which keys are looked up.
    fn tell_asked(&self, keys: &[RawKey<'_>]) {
        keys.iter().for_each(|key| self.observers().asked(key));
    }

    /// Looks up many keys and loads what is missing in one call of `loader`, which gets positions in `keys` and answers in
    /// their order. Keys that are being loaded already, alone or in another batch, are waited for.
    pub(crate) async fn fetch_many(
        self: &Arc<Self>,
        keys: &[RawKey<'_>],
        access: Access,
        loader: ManyLoader<T>,
        spans: &Spans,
    ) -> Result<Vec<Found<T>>> {
        self.check_open()?;
        let counted = keys.iter().map(|_| Counted::new(self.stats(), Verb::GetOrSetMany, spans)).collect();
        let mut answers = Answers { counted, found: keys.iter().map(|_| None).collect(), error: None };
        self.tell_asked(keys);
        let mut asked: Vec<_> = keys.iter().map(|key| Asked::new(*key)).collect();
        if access.reads() {
            self.read_levels(&mut asked, access).await;
        }
        missed(&asked, &mut answers.counted);
        let mut round: Vec<_> = asked.into_iter().enumerate().collect();
        let mut again = false;
        while !round.is_empty() {
            let overtaken = self.round(round, access, &loader, again, &mut answers).await?;
            // Once: whatever it joins now began after it called.
            again = true;
            round = overtaken
                .into_iter()
                .map(|(at, stale)| {
                    let mut asked = Asked::new(keys[at]).because(answers.counted[at].reason());
                    if let Some(seen) = stale {
                        asked.ticket = Some(self.slots.open(keys[at]));
                        asked.stale = self.held_nearby(keys[at], seen.entry.id).map(Box::new);
                    }
                    (at, asked)
                })
                .collect();
        }
        Ok(found_all(answers.end()?, spans))
    }

    /// Answers some of a batch's keys, given with their positions. Gives those back that have joined loads which were
    /// overtaken, the first time.
    async fn round(
        self: &Arc<Self>,
        asked: Vec<(usize, Asked<'_, T>)>,
        access: Access,
        loader: &ManyLoader<T>,
        again: bool,
        answers: &mut Answers<'_, T>,
    ) -> Result<Vec<(usize, Option<Seen<T>>)>> {
        self.meet_levels(access).await;
        let load = LoadId::next();
        let mut departures = Vec::new();
        let mut wanted = Vec::new();
        let mut parts = Vec::with_capacity(asked.len());
        let mut joined = Vec::new();
        let mut led: HashMap<&str, Arc<Flight<T>>> = HashMap::new();
        for (at, mut asked) in asked {
            let key = asked.key;
            let part = match led.get(key.id).filter(|_| asked.fresh.is_none()) {
                // Asked for twice: the loader gets it once, also if it has been invalidated in between.
                Some(flight) => {
                    self.give_back(key, std::mem::take(&mut asked.rights));
                    let (flight, stale) = (Arc::clone(flight), asked.take_stale());
                    Part::Wait(Wait { flight, stale, leads: false, late: false })
                }
                None => self.part(asked, access, load, &mut answers.counted[at], |departure| {
                    departures.push(departure);
                    wanted.push(at);
                }),
            };
            match &part {
                Part::Wait(Wait { leads: true, flight, .. }) => {
                    led.insert(key.id, Arc::clone(flight));
                }
                Part::Wait(Wait { flight, .. }) => {
                    answers.counted[at].coalesced();
                    joined.push(Arc::clone(flight));
                }
                Part::Done(_) => {}
            }
            parts.push((at, key, part));
        }
        if !departures.is_empty() {
            // Nobody waits if all of it are refreshes behind values that are served.
            let terms = Terms { background: led.is_empty(), ..Terms::of(access) };
            self.launch_many(load, departures, wanted, terms, Arc::clone(loader))?;
        }
        // From now on, not only when it is their turn: nobody else may think to be the last who waits.
        let _waiting: Vec<_> = joined.iter().map(|flight| flight.waiting()).collect();
        let waited_from = self.now();
        let mut overtaken = Vec::new();
        for (at, key, part) in parts {
            let waited = match part {
                Part::Done(answer) => Waited::Answered(answer),
                Part::Wait(wait) => self.wait(key, wait, waited_from, again, &answers.counted[at]).await?,
            };
            match waited {
                Waited::Answered(answer) => answers.take(at, answer),
                Waited::Overtaken(stale) => overtaken.push((at, stale)),
            }
        }
        Ok(overtaken)
    }

    /// Waits for the load of one key of a batch, which began to wait at `waited_from`.
    async fn wait(
        self: &Arc<Self>,
        key: RawKey<'_>,
        wait: Wait<T>,
        waited_from: Moment,
        again: bool,
        counted: &Counted<'_>,
    ) -> Result<Waited<T>> {
        let Wait { flight, stale, leads, late } = wait;
        let _edge = wait_for(&flight)?;
        let awaited = self.wait_for_end(&flight, stale.as_ref(), waited_from, None).await;
        if !leads {
            self.has_waited(&flight, waited_from, counted);
        }
        let outcome = if leads { Outcome::Loaded } else { Outcome::Coalesced };
        Ok(match awaited {
            Awaited::Ended(ended) if !leads && !again && self.was_overtaken(&flight, &ended, late).await => {
                Waited::Overtaken(stale)
            }
            Awaited::Ended(ended) => Waited::Answered(self.conclude(ended, stale.as_ref(), outcome)),
            Awaited::StandsIn(seen) => {
                if flight.stands_still(self.now()) {
                    self.slots.disown(key, &flight);
                }
                Waited::Answered(Ok(seen.entry.found(Outcome::Stale, Some(seen.level), self.now())))
            }
            Awaited::Idle | Awaited::Over => {
                // Should its runtime go on, what it comes to is its own callers' only.
                self.slots.disown(key, &flight);
                Waited::Overtaken(stale)
            }
        })
    }

    /// How one key that the levels have been asked for is answered. `depart` is to launch the load that this begins, if any:
    /// a refresh, or one that this call waits for.
    fn part(
        self: &Arc<Self>,
        mut asked: Asked<'_, T>,
        access: Access,
        load: LoadId,
        counted: &mut Counted<'_>,
        depart: impl FnOnce(Departure<T>),
    ) -> Part<T> {
        let now = self.now();
        let stale = match self.decide(&mut asked, access, now) {
            Next::Answer(found) => return Part::Done(Ok(found)),
            Next::Refresh(found, held) => {
                self.refresh(asked.key, asked.ticket.as_ref(), &held, load, depart);
                return Part::Done(Ok(found));
            }
            Next::Load(stale) => stale,
        };
        let ticket = asked.ticket.take().unwrap_or_else(|| self.slots.open(asked.key));
        let rights = std::mem::take(&mut asked.rights);
        match self.take_role(access, ticket, rights, stale.as_ref(), || load, counted) {
            Ok(Taken::Answered(found)) => Part::Done(Ok(found)),
            Ok(Taken::Lead(mut departure)) => {
                departure.held.take_if(|held| held.state(now) == State::Dead);
                let flight = Arc::clone(&departure.flight);
                depart(departure);
                Part::Wait(Wait { flight, stale, leads: true, late: false })
            }
            Ok(Taken::Join(flight, _)) => {
                let late = flight.has_begun();
                Part::Wait(Wait { flight, stale, leads: false, late })
            }
            Err(error) => Part::Done(Err(error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::{
        ErrorKind, Level, MissReason, Outcome, Stance, TracedCache,
        testing::{Chaos, ChaosOp, Fault, MapProvider},
    };

    /// As a batch with a loader counts: what has been found is a hit, whatever became of the others.
    #[tokio::test]
    async fn a_batch_that_fails_counts_what_it_has_found() {
        let deep = std::sync::Arc::new(Chaos::new(MapProvider::new()));
        let level = Level::new(std::sync::Arc::clone(&deep)).stance(Stance::Surface);
        let cache: TracedCache<u32> =
            TracedCache::builder("t").level(MapProvider::new()).level(level).build().unwrap();
        for key in ["a", "c"] {
            assert!(cache.set(key, 1).await.unwrap().is_confirmed());
        }
        deep.set(ChaosOp::Get, Fault::Fail);
        let error = cache.get_many(["a", "b", "c"]).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Level);
        let stats = cache.stats();
        assert_eq!(
            (stats.outcome(Outcome::Hit), stats.missed(MissReason::Error), stats.lookups()),
            (2, 1, 3)
        );
    }
}
