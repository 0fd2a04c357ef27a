//! What may be served. The order of a history is the order in which its ticks were drawn; nothing else counts as time here.

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use cache_core::Moment;

/// A point in the order of events.
pub(crate) type Tick = u64;

pub(crate) const KEYS: usize = 3;
pub(crate) const TAGS: [&str; 2] = ["even", "odd"];

/// The tag of all values of a key that have one.
pub(crate) fn tag_of(key: usize) -> &'static str {
    TAGS[key % 2]
}

/// Values are numbers that are drawn once, so that each tells its load or its write.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Birth {
    /// A load's begin; a write's end, as it may have taken effect at any time until then.
    tick: Tick,
    /// The time of the same. `None`: its write is under way.
    at: Option<Moment>,
    tagged: bool,
}

/// What has been born before may not be served: `gone` at all, `stale` but as a stale value.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Bar {
    pub(crate) gone: Tick,
    pub(crate) stale: Tick,
}

impl Bar {
    fn raise(&mut self, to: Self) {
        self.gone = self.gone.max(to.gone);
        self.stale = self.stale.max(to.stale);
    }

    fn forbids(self, birth: Tick, stale: bool) -> bool {
        birth < self.gone || (!stale && birth < self.stale)
    }
}

/// The bars of one key: for all of its values, and for those that carry its tag.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Floor {
    pub(crate) any: Bar,
    pub(crate) tagged: Bar,
}

impl Floor {
    fn raise(&mut self, to: Self) {
        self.any.raise(to.any);
        self.tagged.raise(to.tagged);
    }
}

/// The floors of all keys, as one node knows them, or all together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Floors([Floor; KEYS]);

impl Floors {
    pub(crate) fn of(&self, key: usize) -> Floor {
        self.0[key]
    }

    pub(crate) fn raise(&mut self, to: &Self) {
        self.0.iter_mut().zip(to.0).for_each(|(floor, to)| floor.raise(to));
    }
}

/// What a write does to what was there before it.
#[derive(Clone, Debug)]
pub(crate) struct Effect {
    pub(crate) keys: Vec<usize>,
    pub(crate) reach: Reach,
    /// Whether what was there may stand in for a load that fails.
    pub(crate) stale: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reach {
    Keys,
    Tag,
    All,
}

impl Effect {
    pub(crate) fn keys(keys: &[usize]) -> Self {
        Self { keys: keys.to_vec(), reach: Reach::Keys, stale: false }
    }

    pub(crate) fn tag(tag: &str) -> Self {
        let keys = (0..KEYS).filter(|key| tag_of(*key) == tag).collect();
        Self { keys, reach: Reach::Tag, stale: false }
    }

    pub(crate) fn all() -> Self {
        Self { keys: (0..KEYS).collect(), reach: Reach::All, stale: false }
    }

    pub(crate) fn stale(self) -> Self {
        Self { stale: true, ..self }
    }

    /// What of before `start` is over by it.
    pub(crate) fn since(&self, start: Tick) -> Floors {
        let bar = Bar { gone: if self.stale { 0 } else { start }, stale: start };
        let floor = match self.reach {
            Reach::Tag => Floor { tagged: bar, ..Floor::default() },
            Reach::Keys | Reach::All => Floor { any: bar, tagged: bar },
        };
        let mut floors = Floors::default();
        self.keys.iter().for_each(|key| floors.0[*key] = floor);
        floors
    }
}

/// What a reader knew when it began: what it is shown may not be older.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asked {
    pub(crate) at: Tick,
    pub(crate) now: Moment,
    /// What its node has answered or heard.
    pub(crate) here: Floor,
    /// What every remote level has acknowledged, of keys: a level serves nothing older, whoever asks.
    pub(crate) levels: Floor,
}

/// How a value came.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shown {
    /// It may be one that is not fresh.
    pub(crate) stale: bool,
    /// It was fresh, or usable, when it was found: no load has been waited for.
    pub(crate) found: bool,
    pub(crate) from_remote: bool,
}

struct Load {
    begun: Tick,
    called: Tick,
}

/// What has happened so far.
pub(crate) struct Model {
    ttl: Duration,
    max_age: Duration,
    ages: bool,
    tick: Tick,
    births: HashMap<u64, Birth>,
    /// By key: the begin of the latest load that found nothing at the source.
    absent: [Tick; KEYS],
    /// Writes of an absence that are under way.
    clearing: [usize; KEYS],
    /// What all remote levels and the backplane have acknowledged.
    confirmed: Floors,
    /// The part of it that was of keys.
    confirmed_keys: Floors,
    /// By key: the last begin or end of a write, and how many are under way.
    overtaken: [Tick; KEYS],
    writing: [usize; KEYS],
    loads: [Vec<Load>; KEYS],
    updated: HashSet<u64>,
}

impl Model {
    /// Of caches that keep values fresh for `ttl`, and usable up to `max_age`; with `ages`, it is asked whether they do.
    pub(crate) fn new(ttl: Duration, max_age: Duration, ages: bool) -> Self {
        Self {
            ttl,
            max_age,
            ages,
            tick: 0,
            births: HashMap::new(),
            absent: [0; KEYS],
            clearing: [0; KEYS],
            confirmed: Floors::default(),
            confirmed_keys: Floors::default(),
            overtaken: [0; KEYS],
            writing: [0; KEYS],
            loads: Default::default(),
            updated: HashSet::new(),
        }
    }

    pub(crate) fn tick(&mut self) -> Tick {
        self.tick += 1;
        self.tick
    }

    pub(crate) fn now(&self) -> Tick {
        self.tick
    }

    pub(crate) fn confirmed(&self) -> Floors {
        self.confirmed
    }

    pub(crate) fn asks(&mut self, key: usize, here: &Floors, now: Moment) -> Asked {
        let (here, levels) = (here.of(key), self.confirmed_keys.of(key));
        Asked { at: self.tick(), now, here, levels }
    }

    /// A load that was called for at `called` begins. With `alone`, no other may be under way that has not been overtaken.
    /// Gives its begin and its value; the error says what is wrong.
    pub(crate) fn load_begins(
        &mut self,
        key: usize,
        called: Tick,
        now: Moment,
        alone: bool,
    ) -> (Tick, u64, Result<(), String>) {
        let begun = self.tick();
        let value = self.tick();
        self.births.insert(value, Birth { tick: begun, at: Some(now), tagged: false });
        let over = self.overtaken[key];
        let other = self.loads[key].iter().find(|load| load.called > over && called > over);
        let other = other.filter(|_| alone && self.writing[key] == 0);
        let verdict =
            other.map_or(Ok(()), |other| Err(format!("a load of k{key} runs since {}", other.begun)));
        self.loads[key].push(Load { begun, called });
        (begun, value, verdict)
    }

    pub(crate) fn load_ends(&mut self, key: usize, begun: Tick) {
        self.loads[key].retain(|load| load.begun != begun);
    }

    /// The source has no value, said a load or a change that began then.
    pub(crate) fn absent(&mut self, key: usize, begun: Tick) {
        self.absent[key] = self.absent[key].max(begun);
    }

    /// An absence is being written.
    pub(crate) fn clearing_begins(&mut self, key: usize) {
        self.clearing[key] += 1;
    }

    pub(crate) fn clearing_ends(&mut self, key: usize) {
        self.clearing[key] -= 1;
        self.absent[key] = self.tick();
    }

    /// A load that began then found that the value is still right.
    pub(crate) fn unchanged(&mut self, value: u64, begun: Tick, now: Moment) {
        if let Some(birth) = self.births.get_mut(&value) {
            birth.tick = birth.tick.max(begun);
            birth.at = birth.at.max(Some(now));
        }
    }

    pub(crate) fn tagged(&mut self, value: u64) {
        if let Some(birth) = self.births.get_mut(&value) {
            birth.tagged = true;
        }
    }

    /// A value that is about to be written.
    pub(crate) fn written(&mut self, tagged: bool) -> u64 {
        let value = self.tick();
        self.births.insert(value, Birth { tick: Tick::MAX, at: None, tagged });
        value
    }

    /// Its write is over, whatever came of it.
    pub(crate) fn write_is_over(&mut self, value: u64, now: Moment) {
        let tick = self.tick();
        if let Some(birth) = self.births.get_mut(&value).filter(|birth| birth.at.is_none()) {
            (birth.tick, birth.at) = (birth.tick.min(tick), Some(now));
        }
    }

    /// It has been refused: nobody may ever see it.
    pub(crate) fn refused(&mut self, value: u64) {
        if let Some(birth) = self.births.get_mut(&value) {
            birth.tick = 0;
        }
    }

    pub(crate) fn write_begins(&mut self, keys: &[usize]) -> Tick {
        let tick = self.tick();
        for key in keys {
            self.overtaken[*key] = tick;
            self.writing[*key] += 1;
        }
        tick
    }

    pub(crate) fn write_ends(&mut self, keys: &[usize]) {
        let tick = self.tick();
        for key in keys {
            self.overtaken[*key] = tick;
            self.writing[*key] -= 1;
        }
    }

    /// All levels and the backplane have acknowledged it.
    pub(crate) fn confirm(&mut self, floors: &Floors, of_keys: bool) {
        self.confirmed.raise(floors);
        if of_keys {
            self.confirmed_keys.raise(floors);
        }
    }

    /// An update that was answered has changed this value. Nobody else may have.
    pub(crate) fn updated(&mut self, held: u64) -> Result<(), String> {
        if self.updated.insert(held) {
            Ok(())
        } else {
            Err(format!("an update was lost: {held} was changed twice"))
        }
    }

    /// Whether a reader may be shown this value.
    pub(crate) fn shows(&self, asked: &Asked, value: u64, shown: Shown) -> Result<(), String> {
        let Some(birth) = self.births.get(&value) else { return Err(format!("{value} was never written")) };
        let of = |floor: Floor| {
            floor.any.forbids(birth.tick, shown.stale)
                || (birth.tagged && floor.tagged.forbids(birth.tick, shown.stale))
        };
        if of(asked.here) {
            return Err(format!("{value} of {birth:?} is served against {:?}", asked.here));
        }
        if shown.from_remote && of(asked.levels) {
            return Err(format!("a level has {value} of {birth:?}, against {:?}", asked.levels));
        }
        let life = if shown.stale { self.max_age } else { self.ttl };
        // Remote levels count in milliseconds of the wall clock.
        let grain = Duration::from_millis(2);
        match birth.at {
            Some(at) if self.ages && shown.found && asked.now >= at.after(life).after(grain) => {
                Err(format!("{value} is {:?} old, of {life:?}", asked.now.since(at)))
            }
            _ => Ok(()),
        }
    }

    /// Whether a reader may be told that the source has no value, without a load.
    pub(crate) fn shows_absence(&self, asked: &Asked, key: usize) -> Result<(), String> {
        if self.clearing[key] == 0 && asked.here.any.forbids(self.absent[key], false) {
            return Err(format!("an absence of {} is served against {:?}", self.absent[key], asked.here));
        }
        Ok(())
    }
}
