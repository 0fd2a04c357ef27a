//! A cluster: who serves which slot, learned and learned anew, and requests sent to the right node.
//!
//! One keeper per master, each with all steps on its new connections. What a node says of a slot (`MOVED`) is followed for
//! the request at hand, and makes the task that keeps the map ask again. A key that is being moved (`ASK`) is read where it
//! is; writes of it fail as unavailable until the move is over.

mod look;
mod masters;

pub(crate) use look::takes_part;

use std::{
    collections::HashMap,
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures::future::join_all;
use redis::{Pipeline, Value, cmd};
use tokio::{
    sync::{Notify, watch},
    task::JoinHandle,
    time::{Instant, sleep, sleep_until, timeout},
};
use xxhash_rust::xxh3::xxh3_64;

use crate::{
    Error, ErrorKind,
    address::{Endpoint, Place},
    advice::Advice,
    backoff::Backoff,
    connection::Pushes,
    dials::Dials,
    fleet::no_replica,
    home::Home,
    keeper::{Keeper, ended},
    node::Node,
    read::Several,
    scripts::Form,
    settings::Settings,
    slots::{Range, Redirect, SLOTS, slot},
    state::{State, start_if_idle},
    units::{Repeat, Replies},
    wire,
};

/// How often the map is asked for without a reason: the time within which a master that has been cut off from its cluster,
/// but not from here, is noticed.
pub(crate) const PERIOD: Duration = Duration::from_secs(5);
/// Pause between two looks, however many reasons there are.
const PAUSE: Duration = Duration::from_millis(100);
/// How long a node to which a key is being moved is kept though it serves no slot yet. To give it up is a gap: only this
/// node tells of changes to what was read there.
const LED: Duration = Duration::from_secs(30);
/// Redirections that one request follows.
const REDIRECTS: usize = 4;

/// What is known of the cluster now.
pub(crate) struct Map {
    ranges: Vec<Range>,
    /// The position in `masters` of each slot's owner.
    owners: Box<[u16]>,
    masters: Vec<Arc<Node>>,
    /// A number for each master, made of its address.
    numbers: Vec<u64>,
    /// The replicas of each master.
    replicas: Vec<Vec<Endpoint>>,
}

impl Map {
    fn owner(&self, slot: u16) -> Option<&Arc<Node>> {
        self.masters.get(usize::from(*self.owners.get(usize::from(slot))?))
    }

    pub(crate) fn masters(&self) -> &[Arc<Node>] {
        &self.masters
    }
}

pub(crate) struct Cluster {
    settings: Arc<Settings>,
    pushes: Pushes,
    advice: Arc<Advice>,
    seeds: Vec<Endpoint>,
    state: watch::Sender<State<Map>>,
    nodes: Mutex<HashMap<Endpoint, Arc<Node>>>,
    /// Nodes to which keys are being moved, and when one was last asked for such a key.
    led: Mutex<HashMap<Endpoint, Instant>>,
    /// Connections to replicas: to those that have been asked for something.
    copies: Mutex<HashMap<Endpoint, Arc<Node>>>,
    reason: Notify,
    /// Names the state of all masters together; 0 while it is not known.
    incarnation: AtomicU64,
    /// Where the record of masters is kept.
    record: String,
    task: Mutex<Option<JoinHandle<()>>>,
}

impl Cluster {
    pub(crate) fn new(settings: Arc<Settings>, pushes: Pushes, advice: Arc<Advice>) -> Arc<Self> {
        let seeds = match &settings.place {
            Place::Cluster { seeds } => seeds.clone(),
            other => vec![other.first().clone()],
        };
        Arc::new(Self {
            record: format!("{}r:{{masters}}", settings.prefix),
            settings,
            pushes,
            advice,
            seeds,
            state: watch::Sender::new(State::Idle),
            nodes: Mutex::default(),
            led: Mutex::default(),
            copies: Mutex::default(),
            reason: Notify::new(),
            incarnation: AtomicU64::new(0),
            task: Mutex::new(None),
        })
    }

    pub(crate) fn incarnation(&self) -> u64 {
        self.incarnation.load(Ordering::Acquire)
    }

    /// The number of the master that serves a key, as far as is known now.
    pub(crate) fn server_of(&self, key: &str) -> Option<u64> {
        let map = self.known()?;
        map.numbers.get(usize::from(*map.owners.get(usize::from(slot(key)))?)).copied()
    }

    /// By the clock of one node, the same for everybody.
    pub(crate) fn time_offset_ms(&self) -> i64 {
        self.known().and_then(|map| Some(map.owner(slot(&self.record))?.keeper.time_offset_ms())).unwrap_or(0)
    }

    /// Whether all masters that are known allow it.
    pub(crate) fn all(&self, allows: impl Fn(&Keeper) -> bool) -> bool {
        self.known().is_none_or(|map| map.masters.iter().all(|node| allows(&node.keeper)))
    }

    /// All that are known, by address.
    pub(crate) fn nodes(&self) -> Vec<Arc<Node>> {
        let mut nodes: Vec<_> = lock(&self.nodes).values().map(Arc::clone).collect();
        nodes.extend(lock(&self.copies).values().map(Arc::clone));
        nodes.sort_by(|a, b| a.keeper.endpoint().cmp(b.keeper.endpoint()));
        nodes
    }

    fn known(&self) -> Option<Arc<Map>> {
        match &*self.state.borrow() {
            State::Up(map) => Some(Arc::clone(map)),
            _ => None,
        }
    }

    /// Waits for the first look; fails at once while none of the nodes is to be reached.
    pub(crate) async fn map(self: &Arc<Self>) -> Result<Arc<Map>, Error> {
        let mut changes = self.state.subscribe();
        loop {
            self.start_if_idle()?;
            match &*changes.borrow_and_update() {
                State::Up(map) => return Ok(Arc::clone(map)),
                State::Down(error) | State::Broken(error, _) => return Err(error.clone()),
                State::Closed => return Err(Error::closed()),
                State::Idle | State::Trying => {}
            }
            if changes.changed().await.is_err() {
                return Err(Error::closed());
            }
        }
    }

    pub(crate) fn wake(self: &Arc<Self>) {
        // Without a runtime the first call does it.
        let _ = self.start_if_idle();
    }

    fn start_if_idle(self: &Arc<Self>) -> Result<(), Error> {
        start_if_idle(&self.state, &self.task, || run(IdleAtEnd(Arc::clone(self))))
    }

    /// The map may have changed: looks again soon.
    fn look_again(&self) {
        self.reason.notify_one();
    }

    /// Takes note of an error that another look may heal.
    pub(crate) fn heed(&self, error: &Error) {
        let away = matches!(
            error.kind(),
            ErrorKind::Connect
                | ErrorKind::Disconnected
                | ErrorKind::Timeout
                | ErrorKind::Unavailable
                | ErrorKind::ReadOnly
        );
        // While a slot moves, or for as long as replicas are missing, another look would say the same, however often.
        if away && !error.is_at_home() {
            self.look_again();
        }
    }

    /// Whether a node was given up while it was chosen. Nothing has been sent then.
    fn is_stale(&self, error: &Error) -> bool {
        error.kind() == ErrorKind::Closed && !matches!(*self.state.borrow(), State::Closed)
    }

    async fn node_of(self: &Arc<Self>, key: &str) -> Result<Arc<Node>, Error> {
        let map = self.map().await?;
        map.owner(slot(key)).map(Arc::clone).ok_or_else(|| {
            self.look_again();
            Error::new(ErrorKind::Unavailable, "no node of the cluster serves the slot of this key now")
        })
    }

    pub(crate) fn dials(&self) -> &Dials {
        &self.pushes.dials
    }

    fn node_at(self: &Arc<Self>, endpoint: &Endpoint) -> Arc<Node> {
        let mut nodes = lock(&self.nodes);
        let node = nodes.entry(endpoint.clone()).or_insert_with(|| {
            let home = Home::Node(endpoint.clone(), Arc::downgrade(self));
            let keeper = Keeper::new(Arc::clone(&self.settings), home, self.pushes.clone());
            Arc::new(Node::new(keeper, Several::Gets))
        });
        Arc::clone(node)
    }

    /// Where a redirection leads.
    fn follow(self: &Arc<Self>, from: &Node, redirect: &Redirect) -> Arc<Node> {
        if !redirect.ask {
            self.look_again();
        }
        let to = redirect.endpoint(from.keeper.endpoint());
        if redirect.ask {
            lock(&self.led).insert(to.clone(), Instant::now());
        }
        self.node_at(&to)
    }

    pub(crate) async fn get(self: &Arc<Self>, key: &str) -> Result<Option<Bytes>, Error> {
        let mut node = self.node_of(key).await?;
        for _ in 0..REDIRECTS {
            let error = match node.get(key).await {
                Ok(found) => return Ok(found),
                Err(error) => error,
            };
            let Some(redirect) = error.redirect() else {
                self.heed(&error);
                if self.is_stale(&error) {
                    node = self.node_of(key).await?;
                    continue;
                }
                return Err(error);
            };
            let next = self.follow(&node, redirect);
            if redirect.ask {
                return next.get_moving(key).await;
            }
            node = next;
        }
        Err(lost())
    }

    /// Looks keys up on replicas of the masters that serve them.
    pub(crate) async fn get_copies(self: &Arc<Self>, keys: &[&str]) -> Vec<Result<Option<Bytes>, Error>> {
        let map = match self.map().await {
            Ok(map) => map,
            Err(error) => return vec![Err(error); keys.len()],
        };
        let mut found: Vec<_> = keys.iter().map(|_| Err(no_replica())).collect();
        let mut chosen: HashMap<u16, (Arc<Node>, Vec<usize>)> = HashMap::new();
        for (at, key) in keys.iter().enumerate() {
            let owner = map.owners[usize::from(slot(key))];
            if let Some((_, group)) = chosen.get_mut(&owner) {
                group.push(at);
            } else if let Some(node) =
                map.replicas.get(usize::from(owner)).and_then(|all| self.copy_among(all))
            {
                chosen.insert(owner, (node, vec![at]));
            }
        }
        let calls = chosen.values().map(async |(node, group)| {
            let keys: Vec<&str> = group.iter().map(|at| keys[*at]).collect();
            node.get_many(&keys).await
        });
        for ((_, group), answers) in chosen.values().zip(join_all(calls).await) {
            for (at, answer) in group.iter().zip(answers) {
                // Redirections are not followed: what is not found here is asked of the masters anyway.
                found[*at] = answer.inspect_err(|error| self.heed(error));
            }
        }
        found
    }

    /// One of these replicas, at random; `None` if there are none.
    fn copy_among(&self, replicas: &[Endpoint]) -> Option<Arc<Node>> {
        let endpoint = replicas.get(fastrand::usize(..replicas.len().max(1)))?;
        let mut copies = lock(&self.copies);
        let node = copies.entry(endpoint.clone()).or_insert_with(|| {
            let pushes = Pushes::unheard(&self.advice).counted_with(&self.pushes);
            let keeper = Keeper::new(Arc::clone(&self.settings), Home::NodeReplica(endpoint.clone()), pushes);
            Arc::new(Node::new(keeper, Several::Gets))
        });
        Some(Arc::clone(node))
    }

    pub(crate) async fn get_many(self: &Arc<Self>, keys: &[&str]) -> Vec<Result<Option<Bytes>, Error>> {
        let add = |pipeline: &mut Pipeline, at: usize, _: Form| {
            pipeline.cmd("GET").arg(keys[at]);
            1
        };
        let all = (0..keys.len()).collect();
        let replies = self.units(all, |at| keys[at].to_owned(), Repeat::Once, &add);
        let found = replies.await.into_iter().map(|replies| match replies?.pop() {
            Some(reply) => wire::found_value(reply).inspect_err(|error| self.heed(error)),
            None => Err(Error::protocol("no answer to a look-up")),
        });
        let mut found: Vec<_> = found.collect();
        for (key, found) in keys.iter().zip(&mut found) {
            if found.as_ref().is_err_and(|error| error.redirect().is_some_and(|redirect| redirect.ask)) {
                *found = self.get(key).await;
            }
        }
        found
    }

    /// Units by the node that serves their key, in one round trip to each. Those that a node sends elsewhere have not run.
    pub(crate) async fn units(
        self: &Arc<Self>,
        mut which: Vec<usize>,
        key: impl Fn(usize) -> String,
        repeat: Repeat,
        add: &(impl Fn(&mut Pipeline, usize, Form) -> usize + Send + Sync),
    ) -> Replies {
        let mut all: Vec<Option<Result<Vec<Value>, Error>>> = which.iter().map(|_| None).collect();
        let mut routes: HashMap<usize, Arc<Node>> = HashMap::with_capacity(which.len());
        let map = match self.map().await {
            Ok(map) => map,
            Err(error) => return vec![Err(error); which.len()],
        };
        which.retain(|at| match map.owner(slot(&key(*at))) {
            Some(node) => routes.insert(*at, Arc::clone(node)).is_none(),
            None => false,
        });
        for _ in 0..REDIRECTS {
            let mut groups: Vec<(Arc<Node>, Vec<usize>)> = Vec::new();
            for at in which.drain(..) {
                let Some(node) = routes.get(&at) else { continue };
                match groups.iter_mut().find(|(known, _)| Arc::ptr_eq(known, node)) {
                    Some((_, group)) => group.push(at),
                    None => groups.push((Arc::clone(node), vec![at])),
                }
            }
            let calls = groups.iter().map(|(node, group)| node.keeper.units(group, repeat, add));
            let answers = join_all(calls).await;
            for ((node, group), replies) in groups.iter().zip(answers) {
                for (at, replies) in group.iter().zip(replies) {
                    let to = match &replies {
                        Ok(replies) => moved(replies).map(|redirect| self.follow(node, &redirect)),
                        Err(error) => {
                            self.heed(error);
                            let map = if self.is_stale(error) { self.known() } else { None };
                            map.and_then(|map| map.owner(slot(&key(*at))).map(Arc::clone))
                        }
                    };
                    match to {
                        Some(node) => {
                            routes.insert(*at, node);
                            which.push(*at);
                        }
                        None => all[*at] = Some(replies),
                    }
                }
            }
            if which.is_empty() {
                break;
            }
        }
        if all.iter().any(Option::is_none) {
            self.look_again();
        }
        all.into_iter().map(|replies| replies.unwrap_or_else(|| Err(lost()))).collect()
    }

    /// All masters answer.
    pub(crate) async fn ping(self: &Arc<Self>) -> Result<(), Error> {
        let map = self.map().await?;
        let ping = cmd("PING");
        let answers = join_all(map.masters().iter().map(|node| node.keeper.read(&ping))).await;
        answers.into_iter().try_for_each(|answer| wire::done(answer?)).inspect_err(|error| self.heed(error))
    }

    fn install(self: &Arc<Self>, ranges: Vec<Range>) {
        let mut masters: Vec<Endpoint> = Vec::new();
        let mut owners = vec![u16::MAX; usize::from(SLOTS)].into_boxed_slice();
        for range in &ranges {
            let at = masters.iter().position(|master| *master == range.master).unwrap_or_else(|| {
                masters.push(range.master.clone());
                masters.len() - 1
            });
            let at = u16::try_from(at).unwrap_or(u16::MAX);
            for slot in range.first..=range.last {
                owners[usize::from(slot)] = at;
            }
        }
        let nodes: Vec<_> = masters.iter().map(|master| self.node_at(master)).collect();
        let numbers = masters.iter().map(|master| xxh3_64(master.to_string().as_bytes())).collect();
        let replicas = masters.iter().map(|master| {
            let of_it = ranges.iter().find(|range| range.master == *master);
            of_it.map_or_else(Vec::new, |range| range.replicas.clone())
        });
        let replicas = replicas.collect();
        let map = Arc::new(Map { ranges, owners, masters: nodes, numbers, replicas });
        // Whoever comes over a connection from now on hears of changes there, and its server is known by name.
        map.masters.iter().for_each(|node| node.keeper.wake());
        let mut slot = Some(State::Up(map));
        self.state.send_if_modified(|state| {
            if matches!(state, State::Closed) {
                return false;
            }
            if let Some(next) = slot.take() {
                slot = Some(std::mem::replace(state, next));
            }
            true
        });
    }

    /// Gives up nodes that serve nothing. Requests under way on them may end.
    fn prune(&self) {
        let Some(map) = self.known() else { return };
        let serves = |node: &Arc<Node>| map.masters.iter().any(|master| Arc::ptr_eq(master, node));
        let mut led = lock(&self.led);
        led.retain(|_, at| at.elapsed() < LED);
        let idle = |at: &Endpoint, node: &mut Arc<Node>| !serves(node) && !led.contains_key(at);
        let gone: Vec<_> = lock(&self.nodes).extract_if(idle).collect();
        drop(led);
        let known = |at: &Endpoint| map.replicas.iter().flatten().any(|replica| replica == at);
        let copies: Vec<_> = lock(&self.copies).extract_if(|at, _| !known(at)).collect();
        gone.iter().chain(&copies).for_each(|(_, node)| node.keeper.close_soon());
    }

    pub(crate) fn close_soon(&self) {
        let before = self.state.send_replace(State::Closed);
        drop(before);
        for nodes in [&self.nodes, &self.copies] {
            lock(nodes).values().for_each(|node| node.keeper.close_soon());
        }
    }

    pub(crate) async fn close(&self) {
        self.close_soon();
        let task = lock(&self.task).take();
        if let Some(task) = task {
            ended(task, self.settings.connect_timeout).await;
        }
        let mut nodes: Vec<_> = lock(&self.nodes).drain().map(|(_, node)| node).collect();
        nodes.extend(lock(&self.copies).drain().map(|(_, node)| node));
        join_all(nodes.iter().map(|node| node.keeper.close())).await;
    }

    async fn closed(&self) {
        // An error means that the sender is gone, which `self` holds.
        let _ = self.state.subscribe().wait_for(|state| matches!(state, State::Closed)).await;
    }
}

/// The first redirection among replies, but for one that is for reads.
fn moved(replies: &[Value]) -> Option<Redirect> {
    replies.iter().find_map(|reply| match reply {
        Value::ServerError(error) => Redirect::of(error).filter(|redirect| !redirect.ask),
        _ => None,
    })
}

fn lost() -> Error {
    Error::new(ErrorKind::Unavailable, "the nodes of the cluster do not agree on who serves this key now")
}

/// Notes the end of the task, also by a panic or with its runtime, so that callers do not wait for a task that is no more.
struct IdleAtEnd(Arc<Cluster>);

impl Drop for IdleAtEnd {
    fn drop(&mut self) {
        self.0.state.send_if_modified(|state| {
            let goes = !matches!(state, State::Closed);
            if goes {
                *state = State::ended();
            }
            goes
        });
    }
}

async fn run(guard: IdleAtEnd) {
    let cluster = &guard.0;
    tokio::select! {
        biased;
        () = cluster.closed() => {}
        () = keep_map(cluster) => {}
        () = keep_number(cluster) => {}
    }
}

async fn keep_map(cluster: &Arc<Cluster>) {
    let mut backoff = Backoff::new();
    loop {
        let pause = match cluster.look().await {
            Ok(ranges) => {
                backoff.reset();
                if cluster.known().is_none_or(|map| map.ranges != ranges) {
                    cluster.install(ranges);
                }
                cluster.prune();
                PERIOD
            }
            Err(error) => {
                cluster.state.send_if_modified(|state| {
                    let first = matches!(state, State::Trying | State::Down(_));
                    if first {
                        *state = State::Down(error);
                    }
                    first
                });
                backoff.after_failure()
            }
        };
        let until = Instant::now() + pause;
        let known = cluster.known().is_some();
        sleep(PAUSE.min(pause)).await;
        tokio::select! {
            biased;
            () = sleep_until(until) => {}
            () = cluster.reason.notified(), if known => {}
        }
        // Whoever comes now waits for this try.
        cluster.state.send_if_modified(|state| {
            let down = matches!(state, State::Down(_));
            if down {
                *state = State::Trying;
            }
            down
        });
    }
}

/// Asks for the record now and then: it may be that nobody else does, and what nobody asks for is evicted first.
async fn keep_number(cluster: &Arc<Cluster>) {
    loop {
        sleep(PERIOD).await;
        let _ = timeout(cluster.settings.connect_timeout, cluster.recognise()).await;
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl fmt::Debug for Cluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut list = f.debug_list();
        for node in self.nodes() {
            list.entry(&*node.keeper);
        }
        list.finish()
    }
}
