//! One history, from its steps to its end.

use std::{
    sync::{Arc, Mutex, atomic::Ordering::SeqCst},
    time::Duration,
};

use cache_core::{
    Access, Outcome, Verb, WeakCache,
    testing::{Dump, Fault},
};
use fastrand::Rng;
use futures::FutureExt;
use tokio::task::JoinHandle;

use crate::{
    calls::Caller,
    model::{Floors, KEYS, Shown},
    node::{CACHE, Faulty, Node, World, id},
    post::Link,
    shape::Shape,
    steps::{LinkStep, Loss, Step},
};

/// What came of a history: what is wrong, if anything, and all that has happened.
pub(crate) struct Ended {
    pub(crate) wrong: Option<String>,
    pub(crate) trace: Vec<String>,
}

/// Runs it, in a thread of its own: it has a runtime and random numbers for itself, so that it is the same each time.
pub(crate) fn run(seed: u64, shape: Shape, steps: &[Step]) -> Ended {
    let steps = steps.to_vec();
    let history = move || {
        fastrand::seed(seed);
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let world = Arc::new(World::new(seed, shape));
        let (wrong, trace) = runtime.block_on(History::new(world).go(&steps));
        Ended { wrong, trace }
    };
    let ended = std::thread::spawn(history).join();
    ended.unwrap_or_else(|_| Ended { wrong: Some("it panicked".to_owned()), trace: Vec::new() })
}

struct History {
    world: Arc<World>,
    nodes: Vec<Arc<Node>>,
    /// Those whose place others have taken.
    left: Vec<(WeakCache<u64>, Gone)>,
    calls: Vec<JoinHandle<()>>,
    dumps: Vec<Option<Dump>>,
    joined: usize,
}

enum Gone {
    Closing(Arc<Node>),
    /// Its levels' faults and link, which calls that go on still meet.
    Left(Vec<[Arc<Faulty>; 2]>, Link),
}

impl Gone {
    fn is_left(&self) -> bool {
        matches!(self, Self::Left(..))
    }

    fn ends(&self) -> (&[[Arc<Faulty>; 2]], &Link) {
        match self {
            Self::Closing(node) => (&node.levels, &node.link),
            Self::Left(levels, link) => (levels, link),
        }
    }
}

impl History {
    fn new(world: Arc<World>) -> Self {
        let count = world.shape.nodes;
        let nodes = (0..count).map(|name| world.join(name)).collect();
        let dumps = world.stores.iter().map(|_| None).collect();
        Self { world, nodes, left: Vec::new(), calls: Vec::new(), dumps, joined: count }
    }

    async fn go(mut self, steps: &[Step]) -> (Option<String>, Vec<String>) {
        for step in steps {
            if self.world.is_wrong() {
                break;
            }
            self.step(step).await;
        }
        if !self.world.is_wrong() {
            self.end().await;
        }
        self.world.end()
    }

    async fn step(&mut self, step: &Step) {
        let world = Arc::clone(&self.world);
        if !matches!(step, Step::Call { .. } | Step::Run(_)) {
            world.note(format!("{step:?}"));
        }
        match *step {
            Step::Call { node, call, keys, leaves, seed } => {
                let dice = Arc::new(Mutex::new(Rng::with_seed(seed)));
                let caller = Caller { world, node: Arc::clone(&self.nodes[node]), keys, leaves, dice };
                self.calls.push(tokio::spawn(caller.make(call)));
            }
            Step::Run(turns) => self.run_for(turns).await,
            Step::Pass(by) => world.time.advance(by),
            Step::Fault { node, level, op, fault } => {
                self.nodes[node].levels[level].iter().for_each(|store| store.set(op, fault));
            }
            Step::FaultAll { node, fault } => {
                self.nodes[node].levels.iter().flatten().for_each(|store| store.set_all(fault));
            }
            Step::Link { node, link } => {
                let end = &self.nodes[node].link;
                match link {
                    LinkStep::Cut { noticed } => end.cut(noticed),
                    LinkStep::Deafen => end.deafen(),
                    LinkStep::Slow(by) => end.answers_after(by),
                    LinkStep::Mend if !end.is_up() => end.mend(&world.model(|model| model.confirmed())),
                    LinkStep::Mend => {}
                }
            }
            Step::Deliver { node, letters } => self.nodes[node].link.inbox.deliver(letters),
            Step::Forget { node, key } => self.nodes[node].shelf.evict(&id(key)),
            Step::Close { node, limit } => {
                let closing = self.replace(node);
                self.left.push((closing.cache.downgrade(), Gone::Closing(Arc::clone(&closing))));
                self.calls.push(tokio::spawn(close(world, closing, limit)));
            }
            Step::Leave { node } => {
                let leaving = self.replace(node);
                leaving.link.leave();
                let gone = Gone::Left(leaving.levels.clone(), leaving.link.clone());
                self.left.push((leaving.cache.downgrade(), gone));
            }
            Step::Store { level, loss } => self.lose(level, loss),
            Step::Move { node, level, side } => {
                let node = &self.nodes[node];
                let to = Arc::clone(&node.levels[level][side]);
                node.cache.move_level(level + usize::from(world.shape.memory), to).unwrap();
            }
            Step::Rules { node, policy } => {
                let (node, life) = (&self.nodes[node], world.shape.life(policy));
                node.cache.set_policy(world.shape.another(policy)).unwrap();
                *node.life.lock().unwrap() = life;
                world.model(|model| model.ruled(node.name, life));
            }
            Step::Jump(by) => world.time.jump_wall(by),
        }
    }

    async fn run_for(&self, turns: usize) {
        for _ in 0..turns {
            tokio::task::yield_now().await;
        }
        let world = &self.world;
        world.model(|model| model.ran(turns, world.clock.now()));
    }

    /// Another node takes the place of one.
    fn replace(&mut self, node: usize) -> Arc<Node> {
        let another = self.world.join(self.joined);
        self.joined += 1;
        std::mem::replace(&mut self.nodes[node], another)
    }

    fn lose(&mut self, level: usize, loss: Loss) {
        let store = &self.world.stores[level][0];
        match loss {
            Loss::Dump => self.dumps[level] = Some(store.dump()),
            Loss::Restore => {
                if let Some(dump) = &self.dumps[level] {
                    store.restore(dump);
                    if self.world.shape.tracks {
                        self.world.post.gap();
                    }
                }
            }
            Loss::Evict(key) => store.evict(&stored(key)),
            Loss::Revoke(key) => store.revoke(&stored(key)),
            Loss::Marks => {
                let of_keys: Vec<_> = (0..KEYS).map(stored).collect();
                store.keys().iter().filter(|key| !of_keys.contains(key)).for_each(|key| store.evict(key));
            }
        }
    }

    /// Everything is well again. Then all calls end, all is told, and what holds for one node holds for all.
    async fn end(&mut self) {
        let world = Arc::clone(&self.world);
        world.note("the end comes".to_owned());
        world.calm.store(true, SeqCst);
        self.mend();
        self.settle().await;
        self.run_for(200).await;
        self.nodes.iter().for_each(|node| node.link.inbox.deliver(usize::MAX));
        for call in std::mem::take(&mut self.calls) {
            if let Some(Err(error)) = call.now_or_never() {
                world.wrong(format!("a call panicked: {error}"));
            }
        }
        self.agree().await;
        self.settle().await;
        self.run_for(200).await;
        self.counts();
    }

    /// Waits until nothing is under way any more: no call, no load, nothing that is to be told, no span.
    async fn settle(&self) {
        let world = &self.world;
        for round in 0.. {
            // What is still at it after some seconds waits for something long.
            let (turns, by) = if round < 100 { (50, 20) } else { (400, 1_000) };
            self.run_for(turns).await;
            let calls = self.calls.iter().filter(|call| !call.is_finished()).count();
            let left: usize =
                self.nodes.iter().map(|node| node.cache.stats()).map(|s| s.flights + s.pending).sum();
            let alive =
                self.left.iter().filter(|(cache, gone)| gone.is_left() && cache.upgrade().is_some()).count();
            let spans: u64 = world.watches.lock().unwrap().iter().map(|(_, watch)| watch.under_way()).sum();
            if calls + left + alive == 0 && spans == 0 {
                return;
            }
            if round == 300 {
                return world.wrong(format!(
                    "{calls} calls, {left} loads and effects, {alive} old nodes, {spans} spans never end"
                ));
            }
            world.time.advance(Duration::from_millis(by));
            self.nodes.iter().for_each(|node| node.link.inbox.deliver(usize::MAX));
        }
    }

    fn mend(&self) {
        let world = &self.world;
        let confirmed = world.model(|model| model.confirmed());
        let here = self.nodes.iter().map(|node| (&*node.levels, &node.link));
        for (levels, link) in here.chain(self.left.iter().map(|(_, gone)| gone.ends())) {
            levels.iter().flatten().for_each(|store| store.set_all(Fault::None));
            link.answers_after(Duration::ZERO);
            if world.shape.backplane && !link.is_up() {
                link.mend(&confirmed);
            }
        }
    }

    /// Once nothing is pending, what any node has answered binds every other that hears it.
    async fn agree(&self) {
        let world = &self.world;
        let mut all = Floors::default();
        if world.shape.backplane {
            self.nodes.iter().for_each(|node| all.raise(&node.link.inbox.bound()));
        }
        for (node, key) in self.nodes.iter().flat_map(|node| (0..KEYS).map(move |key| (node, key))) {
            let mut bound = node.link.inbox.bound();
            bound.raise(&all);
            let asked = world.model(|model| model.asks(key, &bound, world.clock.now()));
            node.watch.calls(Verb::Get, 1);
            let found = match node.cache.access(Access::AllowStale).look(id(key)).await {
                Ok(found) => found,
                Err(error) => {
                    node.watch.fails(&error);
                    continue;
                }
            };
            let Some(value) = found.value() else { continue };
            let shown = Shown { stale: found.outcome() == Outcome::Stale, found: true, from_remote: false };
            world.note(format!(
                "at last n{} has {value} of k{key}, {:?} {:?}",
                node.name,
                found.outcome(),
                found.level()
            ));
            world.shows("the last look", node, key, &asked, **value, shown);
        }
    }

    /// Promises 9, 10 and 12.
    fn counts(&self) {
        let world = &self.world;
        for (name, watch) in world.watches.lock().unwrap().iter() {
            let closed = self.nodes.iter().all(|node| node.name != *name);
            if let Err(why) = watch.verdict(world.shape.leave, closed) {
                world.wrong(format!("n{name}: {why}"));
            }
        }
        let shape = &world.shape;
        // An answer that nobody has heard may have been a lease: that ends by its time.
        let all_heard = shape.is_orderly() && !shape.leave;
        for (store, key) in
            world.stores.iter().flatten().flat_map(|store| (0..KEYS).map(move |key| (store, stored(key))))
        {
            if all_heard && (store.is_leased(&key) || store.is_kept(&key)) {
                world.wrong(format!("{key} is leased or kept for ever"));
            }
        }
        for (_, gone) in &self.left {
            if let Gone::Closing(node) = gone
                && node.stores_after_its_end()
            {
                world.wrong(format!("n{} has stored something after it was closed", node.name));
            }
        }
    }
}

/// A key at a level.
fn stored(key: usize) -> String {
    format!("{CACHE}:{}", id(key))
}

async fn close(world: Arc<World>, node: Arc<Node>, limit: Duration) {
    let closed = node.cache.close(limit).await;
    node.has_closed();
    world.note(format!("n{} has closed: {closed:?}", node.name));
    if closed.undelivered().is_empty() {
        // What it has answered is known everywhere.
        world.confirm(&node.link.inbox.bound(), None);
    }
    node.link.leave();
}
