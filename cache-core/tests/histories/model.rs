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

/// Which of the tags a value carries.
pub(crate) type Tagged = [bool; TAGS.len()];

/// The tag that most values of a key have.
pub(crate) fn tag_of(key: usize) -> usize {
    key % TAGS.len()
}

/// How long what is stored now lives.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Life {
    pub(crate) ttl: Duration,
    pub(crate) max_age: Duration,
    pub(crate) absent: Duration,
}

impl Life {
    /// An answer's own times, in place of the policy's.
    pub(crate) fn own(self, ttl: Option<Duration>, grace: Option<Duration>) -> Self {
        let (fresh, absent) = (ttl.unwrap_or(self.ttl), ttl.unwrap_or(self.absent));
        let max_age = match grace {
            _ if fresh.is_zero() => fresh,
            Some(grace) => grace,
            // A grace of zero is none.
            None if self.max_age > self.ttl => self.max_age,
            None => fresh,
        };
        Self { ttl: fresh, max_age: max_age.max(fresh), absent }
    }

    fn raise(&mut self, to: Self) {
        self.ttl = self.ttl.max(to.ttl);
        self.max_age = self.max_age.max(to.max_age);
        self.absent = self.absent.max(to.absent);
    }
}

/// Values are numbers that are drawn once, so that each tells its load or its write.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Birth {
    /// A load's begin; a write's end, as it may have taken effect at any time until then.
    tick: Tick,
    /// Until when it is fresh, and usable. `None`: its write is under way, or its load.
    until: Option<[Moment; 2]>,
    tags: Tagged,
    /// Of a write: the node, and the longest life that it has given to values since it began.
    write: Option<(usize, Life)>,
}

impl Birth {
    fn lives(&mut self, born: Moment, life: Life) {
        let until = [life.ttl, life.max_age].map(|life| born.after(life));
        let before = self.until.unwrap_or(until);
        self.until = Some([before[0].max(until[0]), before[1].max(until[1])]);
    }
}

/// Remote levels count in milliseconds of the wall clock.
const GRAIN: Duration = Duration::from_millis(2);

/// How long a node that can read the cache's mark may not have.
const PERIOD: Duration = Duration::from_secs(1);

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
    pub(crate) tagged: [Bar; TAGS.len()],
}

impl Floor {
    fn raise(&mut self, to: Self) {
        self.any.raise(to.any);
        self.tagged.iter_mut().zip(to.tagged).for_each(|(bar, to)| bar.raise(to));
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
    Tag(usize),
    All,
}

impl Effect {
    pub(crate) fn keys(keys: &[usize]) -> Self {
        Self { keys: keys.to_vec(), reach: Reach::Keys, stale: false }
    }

    pub(crate) fn tag(tag: usize) -> Self {
        Self { reach: Reach::Tag(tag), ..Self::all() }
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
        let mut floor = Floor::default();
        match self.reach {
            Reach::Tag(tag) => floor.tagged[tag] = bar,
            Reach::Keys | Reach::All => floor.any = bar,
        }
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
    /// What every remote level has acknowledged long enough ago for any node to have read it there.
    pub(crate) late: Floor,
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

/// What all nodes are to learn by reading a mark.
struct Late {
    confirmed: Moment,
    floors: Floors,
    /// How many turns tasks have had since the mark was due.
    turns: usize,
}

/// What has happened so far.
pub(crate) struct Model {
    ages: bool,
    /// Within how many turns a node learns of what is due.
    turns: usize,
    tick: Tick,
    births: HashMap<u64, Birth>,
    /// By key: the begin of the latest load that found nothing at the source, and until when that is remembered.
    absent: [Tick; KEYS],
    absent_until: [Moment; KEYS],
    /// Writes of an absence that are under way.
    clearing: [usize; KEYS],
    /// What all remote levels and the backplane have acknowledged.
    confirmed: Floors,
    /// The part of it that was of keys.
    confirmed_keys: Floors,
    /// The part of it that was not of keys: of late, and of before.
    lately: Vec<Late>,
    late: Floors,
    /// By key: the last begin or end of a write, and how many are under way.
    overtaken: [Tick; KEYS],
    writing: [usize; KEYS],
    loads: [Vec<Load>; KEYS],
    updated: HashSet<u64>,
}

impl Model {
    /// With `ages`, it is asked whether anything lives longer than it may; with `turns`, whether every node learns in time of
    /// what others have done to more than keys.
    pub(crate) fn new(ages: bool, turns: Option<usize>) -> Self {
        Self {
            ages,
            turns: turns.unwrap_or(usize::MAX),
            tick: 0,
            births: HashMap::new(),
            absent: [0; KEYS],
            absent_until: [Moment::ORIGIN; KEYS],
            clearing: [0; KEYS],
            confirmed: Floors::default(),
            confirmed_keys: Floors::default(),
            lately: Vec::new(),
            late: Floors::default(),
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
        let (here, levels, late) = (here.of(key), self.confirmed_keys.of(key), self.late.of(key));
        Asked { at: self.tick(), now, here, levels, late }
    }

    /// A load that was called for at `called` begins. With `alone`, no other may be under way that has not been overtaken.
    /// Gives its begin and its value; the error says what is wrong.
    pub(crate) fn load_begins(
        &mut self,
        key: usize,
        called: Tick,
        alone: bool,
    ) -> (Tick, u64, Result<(), String>) {
        let begun = self.tick();
        let value = self.tick();
        self.births.insert(value, Birth { tick: begun, until: None, tags: Tagged::default(), write: None });
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

    /// A load that began at this time has answered with the value, which is kept for so long.
    pub(crate) fn loaded(&mut self, value: u64, born: Moment, life: Life, tags: Tagged) {
        if let Some(birth) = self.births.get_mut(&value) {
            birth.tags = tags;
            birth.lives(born, life);
        }
    }

    /// The source has no value, said a load that began then.
    pub(crate) fn absent(&mut self, key: usize, begun: Tick, born: Moment, life: Life) {
        self.absent[key] = self.absent[key].max(begun);
        self.absent_until[key] = self.absent_until[key].max(born.after(life.absent));
    }

    /// An absence is being written.
    pub(crate) fn clearing_begins(&mut self, key: usize) {
        self.clearing[key] += 1;
    }

    /// This write of one is over.
    pub(crate) fn clearing_ends(&mut self, key: usize, written: u64, now: Moment) {
        self.clearing[key] -= 1;
        let life = self.births.get(&written).and_then(|birth| birth.write).map(|(_, life)| life);
        self.absent(key, self.tick, now, life.unwrap_or_default());
    }

    /// A load that began then found that the value is still right.
    pub(crate) fn unchanged(&mut self, value: u64, begun: Tick, born: Moment, life: Life) {
        if let Some(birth) = self.births.get_mut(&value) {
            birth.tick = birth.tick.max(begun);
            if birth.until.is_some() {
                birth.lives(born, life);
            }
        }
    }

    /// A value that is about to be written on a node.
    pub(crate) fn written(&mut self, node: usize, life: Life, tags: Tagged) -> u64 {
        let value = self.tick();
        self.births.insert(value, Birth { tick: Tick::MAX, until: None, tags, write: Some((node, life)) });
        value
    }

    /// A node has another policy: so may have what it is writing.
    pub(crate) fn ruled(&mut self, node: usize, life: Life) {
        let under_way = self.births.values_mut().filter(|birth| birth.until.is_none());
        let theirs = under_way.filter_map(|birth| birth.write.as_mut()).filter(|write| write.0 == node);
        theirs.for_each(|write| write.1.raise(life));
    }

    /// Its write is over, whatever came of it.
    pub(crate) fn write_is_over(&mut self, value: u64, now: Moment) {
        let tick = self.tick();
        if let Some(birth) = self.births.get_mut(&value).filter(|birth| birth.until.is_none()) {
            birth.tick = birth.tick.min(tick);
            let life = birth.write.map(|(_, life)| life);
            birth.lives(now, life.unwrap_or_default());
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
    pub(crate) fn confirm(&mut self, floors: &Floors, reach: Option<Reach>, now: Moment) {
        self.confirmed.raise(floors);
        match reach {
            Some(Reach::Keys) => self.confirmed_keys.raise(floors),
            Some(Reach::Tag(_) | Reach::All) => {
                self.lately.push(Late { confirmed: now, floors: *floors, turns: 0 });
            }
            None => {}
        }
    }

    /// Tasks have had so many turns.
    pub(crate) fn ran(&mut self, turns: usize, now: Moment) {
        for late in self.lately.iter_mut().filter(|late| now.since(late.confirmed) > PERIOD) {
            late.turns += turns;
        }
        let enough = self.turns;
        for late in self.lately.extract_if(.., |late| late.turns >= enough) {
            self.late.raise(&late.floors);
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
            let mut tagged = birth.tags.iter().zip(floor.tagged);
            floor.any.forbids(birth.tick, shown.stale)
                || tagged.any(|(has, bar)| *has && bar.forbids(birth.tick, shown.stale))
        };
        if of(asked.here) {
            return Err(format!("{value} of {birth:?} is served against {:?}", asked.here));
        }
        if shown.from_remote && of(asked.levels) {
            return Err(format!("a level has {value} of {birth:?}, against {:?}", asked.levels));
        }
        if shown.found && of(asked.late) {
            return Err(format!("{value} of {birth:?} is still served against {:?}", asked.late));
        }
        match birth.until.map(|until| until[usize::from(shown.stale)]) {
            Some(until) if self.ages && shown.found && asked.now >= until.after(GRAIN) => {
                Err(format!("{value} of {birth:?} is served at {:?}", asked.now))
            }
            _ => Ok(()),
        }
    }

    /// Whether a reader may be told that the source has no value, without a load.
    pub(crate) fn shows_absence(&self, asked: &Asked, key: usize) -> Result<(), String> {
        if self.clearing[key] == 0 && asked.here.any.forbids(self.absent[key], false) {
            return Err(format!("an absence of {} is served against {:?}", self.absent[key], asked.here));
        }
        let until = self.absent_until[key];
        if self.clearing[key] == 0 && self.ages && asked.now >= until.after(GRAIN) {
            return Err(format!("an absence is served at {:?}, after {until:?}", asked.now));
        }
        Ok(())
    }
}
