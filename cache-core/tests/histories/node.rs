//! Nodes, and the world that they live in.

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
};

use cache_core::{
    Clock, Level, ObjectStore, Stance, Time, TracedCache,
    testing::{Chaos, ChaosOp, MapProvider, Shelf},
};

use crate::{
    model::{Asked, Effect, Floors, KEYS, Life, Model, Reach, Shown, Tick},
    post::{Link, Post},
    shape::Shape,
    watch::Watch,
};

pub(crate) const CACHE: &str = "history";

pub(crate) fn id(key: usize) -> String {
    format!("k{key}")
}

pub(crate) type Faulty = Chaos<Arc<MapProvider>>;

/// One node of a history. Another takes its place when it ends; calls of before go on with it.
pub(crate) struct Node {
    pub(crate) name: usize,
    pub(crate) cache: TracedCache<u64>,
    /// Each level with the two stores that it may be at.
    pub(crate) levels: Vec<[Arc<Faulty>; 2]>,
    pub(crate) link: Link,
    /// What it keeps in memory.
    pub(crate) shelf: Shelf,
    pub(crate) watch: Watch,
    /// Of what it stores now.
    pub(crate) life: Mutex<Life>,
    /// `close` has answered.
    pub(crate) closed: AtomicBool,
    stored: AtomicU64,
}

impl Node {
    /// Values that it has sent to levels so far.
    fn sent(&self) -> u64 {
        self.levels.iter().flatten().map(|level| level.calls(ChaosOp::Put) + level.calls(ChaosOp::Fill)).sum()
    }

    pub(crate) fn has_closed(&self) {
        self.stored.store(self.sent(), SeqCst);
        self.closed.store(true, SeqCst);
    }

    /// Of one that is closed: whether it has stored anything since.
    pub(crate) fn stores_after_its_end(&self) -> bool {
        self.shelf.len() > 0 || self.sent() != self.stored.load(SeqCst)
    }
}

/// All that nodes share, and what is known of it.
pub(crate) struct World {
    pub(crate) shape: Shape,
    pub(crate) clock: Clock,
    pub(crate) time: Time,
    pub(crate) stores: Vec<[Arc<MapProvider>; 2]>,
    pub(crate) post: Post,
    seed: u64,
    model: Mutex<Model>,
    /// Nothing takes long any more.
    pub(crate) calm: AtomicBool,
    /// Of all nodes that have ever been.
    pub(crate) watches: Mutex<Vec<(usize, Watch)>>,
    trace: Mutex<Vec<String>>,
    wrong: Mutex<Option<String>>,
}

impl World {
    pub(crate) fn new(seed: u64, shape: Shape) -> Self {
        let (clock, time) = Clock::manual();
        let post = Post::new(shape.lag, shape.tracks, clock.clone());
        let store = |level, side: u64| {
            let mut store = MapProvider::new().clock(clock.clone()).incarnated(1 + side * 1_000);
            if shape.leases {
                store = store.leasing();
            }
            if shape.marks {
                store = store.marking();
            }
            if shape.tracks && level == 0 {
                let post = post.clone();
                store = store.watched(move |key| {
                    let id = key.strip_prefix(CACHE).and_then(|rest| rest.strip_prefix(':'));
                    post.changed(id.filter(|id| (0..KEYS).any(|key| *id == self::id(key))));
                });
            }
            Arc::new(store)
        };
        Self {
            shape,
            stores: (0..shape.levels).map(|level| [0, 1].map(|side| store(level, side))).collect(),
            clock,
            time,
            post,
            seed,
            model: Mutex::new(Model::new(shape.clocks_agree(), shape.learns_within())),
            calm: AtomicBool::new(false),
            watches: Mutex::default(),
            trace: Mutex::default(),
            wrong: Mutex::default(),
        }
    }

    pub(crate) fn join(&self, name: usize) -> Arc<Node> {
        let shape = &self.shape;
        let (link, shelf) = (self.post.join(self.model(|model| model.confirmed())), Shelf::default());
        let watch = Watch::default();
        self.watches.lock().unwrap().push((name, watch.clone()));
        let builder = TracedCache::builder(CACHE).clock(self.clock.clone()).policy(shape.policy());
        let mut builder = builder.observer(watch.clone());
        if shape.memory {
            builder = builder.level(shelf.clone());
        }
        let mut levels = Vec::new();
        for stores in &self.stores {
            let faulty = stores.each_ref().map(|store| {
                let faulty = Chaos::new(Arc::clone(store)).clock(self.clock.clone()).restless(shape.restless);
                Arc::new(faulty.seed(self.seed.wrapping_mul(31) + name as u64))
            });
            let stance = if shape.surface { Stance::Surface } else { Stance::Absorb };
            let mut level = Level::new(Arc::clone(&faulty[0])).stance(stance).background(shape.behind);
            if !shape.breaker {
                level = level.breaker(None);
            }
            builder = builder.level(level);
            levels.push(faulty);
        }
        if shape.backplane {
            builder = builder.backplane(link.clone());
        } else {
            // Nobody tells it anything.
            link.cut(false);
        }
        Arc::new(Node {
            name,
            cache: builder.build().unwrap(),
            levels,
            link,
            shelf,
            watch,
            life: Mutex::new(shape.life(0)),
            closed: AtomicBool::new(false),
            stored: AtomicU64::new(0),
        })
    }

    pub(crate) fn model<R>(&self, ask: impl FnOnce(&mut Model) -> R) -> R {
        ask(&mut self.model.lock().unwrap())
    }

    pub(crate) fn asks(&self, node: &Node, key: usize) -> Asked {
        let here = node.link.inbox.bound();
        self.model(|model| model.asks(key, &here, self.clock.now()))
    }

    /// A write has been answered: what was there before its start is over for its node, and, if it is `confirmed`, for whoever
    /// hears of it.
    pub(crate) fn is_over(&self, node: &Node, effect: &Effect, start: Tick, confirmed: bool) {
        let floors = effect.since(start);
        node.link.inbox.bind(&floors);
        if confirmed {
            self.confirm(&floors, Some(effect.reach));
        }
    }

    /// `reach`: of one write, or of several (`None`).
    pub(crate) fn confirm(&self, floors: &Floors, reach: Option<Reach>) {
        self.model(|model| model.confirm(floors, reach, self.clock.now()));
        // A store that tells of its mark does not tell what is in it: others read that first.
        if reach == Some(Reach::Keys) || !self.shape.tracks {
            self.post.bind(floors);
        }
    }

    pub(crate) fn judge(&self, what: &str, node: &Node, key: usize, verdict: Result<(), String>) {
        if let Err(why) = verdict {
            self.wrong(format!("{what} of k{key} on n{}: {why}", node.name));
        }
    }

    pub(crate) fn shows(&self, what: &str, node: &Node, key: usize, asked: &Asked, value: u64, shown: Shown) {
        self.judge(what, node, key, self.model(|model| model.shows(asked, value, shown)));
    }

    pub(crate) fn note(&self, line: String) {
        let tick = self.model(|model| model.now());
        self.trace.lock().unwrap().push(format!("[{tick}] {line}"));
    }

    /// Remembers the first of what is wrong.
    pub(crate) fn wrong(&self, line: String) {
        self.note(format!("WRONG: {line}"));
        self.wrong.lock().unwrap().get_or_insert(line);
    }

    pub(crate) fn is_wrong(&self) -> bool {
        self.wrong.lock().unwrap().is_some()
    }

    /// What was wrong, and what has happened.
    pub(crate) fn end(&self) -> (Option<String>, Vec<String>) {
        (self.wrong.lock().unwrap().take(), std::mem::take(&mut *self.trace.lock().unwrap()))
    }
}
