//! Keeps one connection: connects when first asked, notices loss, reconnects in the background.
//!
//! One task per provider does all of it; callers only look at the state that it publishes. The task runs on the runtime
//! of the caller that started it. Should that runtime end first, the next caller starts another.

mod task;

use std::{
    fmt,
    future::Future,
    mem,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use futures::FutureExt;
use redis::{Value, cmd};
use tokio::{
    runtime::Handle,
    sync::{Notify, watch},
    task::JoinHandle,
    time::timeout,
};

use self::task::{IdleAtEnd, run};
use crate::{
    Error, ErrorKind,
    address::Endpoint,
    at_hand::AtHand,
    clocks::{Ahead, Measured, Now},
    connection::{Link, Pushes},
    dials::Dials,
    greet::{Server, establish},
    home::Home,
    rights::Step,
    settings::Settings,
    state::{State, start_if_idle},
    watch::Watch,
};

impl State<Link> {
    pub(crate) const fn as_str(&self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Trying => "connecting",
            Self::Up(_) => "up",
            Self::Down(_) | Self::Broken(..) => "down",
            Self::Closed => "closed",
        }
    }
}

/// How long a task that has been told to end is waited for, beyond the time that a request may take.
const LAST_WAIT: Duration = Duration::from_secs(1);

/// Waits for a task that has been told to end: for what is under way, and a little longer. A task whose runtime nobody
/// drives does not end: it is given up, and goes with its runtime.
pub(crate) async fn ended(mut task: JoinHandle<()>, under_way: Duration) {
    // Without timers there is nothing to bound it by.
    let in_time = match Handle::try_current() {
        Ok(_) => timeout(under_way + LAST_WAIT, &mut task).await.is_ok(),
        // An error says that its runtime ended it, which is as good.
        Err(_none) => (&mut task).await.is_ok(),
    };
    if !in_time {
        task.abort();
    }
}

/// What callers and the task share.
pub(crate) struct Keeper {
    /// Unique within this process.
    id: u64,
    pub(crate) settings: Arc<Settings>,
    home: Home,
    state: watch::Sender<State<Link>>,
    /// The link, where it is up.
    pub(crate) at_hand: AtHand<Link>,
    generations: AtomicU64,
    ahead: Ahead,
    /// Names the server's present run, or reign; 0 while it is not known.
    incarnation: AtomicU64,
    /// The connection over which that was said.
    said_over: Mutex<u64>,
    /// The server behind the last connection.
    last: Mutex<Server>,
    /// Whether the user may run scripts, as far as is known.
    runs_scripts: AtomicBool,
    /// Connections that have been made.
    made: AtomicU64,
    renew: Notify,
    pushes: Pushes,
    task: Mutex<Option<JoinHandle<()>>>,
}

impl Keeper {
    /// Tells the caches on the provider what an operator may want to put right.
    pub(crate) fn advise(&self, text: String) {
        self.pushes.advice.say(text);
    }

    pub(crate) fn new(settings: Arc<Settings>, home: Home, pushes: Pushes) -> Arc<Self> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Arc::new(Self {
            id: NEXT.fetch_add(1, Ordering::Relaxed),
            settings,
            home,
            state: watch::Sender::new(State::Idle),
            at_hand: AtHand::default(),
            generations: AtomicU64::new(0),
            ahead: Ahead::default(),
            incarnation: AtomicU64::new(0),
            said_over: Mutex::new(0),
            last: Mutex::default(),
            runs_scripts: AtomicBool::new(true),
            made: AtomicU64::new(0),
            renew: Notify::new(),
            pushes,
            task: Mutex::new(None),
        })
    }

    /// The address that it was made for.
    pub(crate) fn endpoint(&self) -> &Endpoint {
        match &self.home {
            Home::At(endpoint) | Home::Node(endpoint, _) | Home::NodeReplica(endpoint) => endpoint,
            Home::Sentinels(_) | Home::Replica(_) | Home::Any(_) => self.settings.place.first(),
        }
    }

    pub(crate) fn time_offset_ms(&self) -> i64 {
        self.ahead.ms()
    }

    /// Asks the server for the time once more.
    async fn set_clocks(&self, link: &Link) {
        let before = Now::read();
        // Where it is lost, the next connection asks.
        let Ok(time) = link.command(&cmd("TIME")).await else { return };
        let after = Now::read();
        if let Some(measured) = Measured::of(&time, before, after) {
            self.ahead.correct(measured, after);
        }
    }

    pub(crate) fn incarnation(&self) -> u64 {
        self.incarnation.load(Ordering::Acquire)
    }

    /// Takes the number of the server behind a connection. What is said over an older one comes too late.
    fn behind(&self, server: &Server, generation: u64) {
        let number = match &self.home {
            Home::Sentinels(_) => server.reign(),
            _ => server.run(),
        };
        let mut said_over = self.said_over.lock().unwrap_or_else(PoisonError::into_inner);
        if generation >= *said_over {
            *said_over = generation;
            self.incarnation.store(number.unwrap_or(0), Ordering::Release);
        }
    }

    /// Asks which reign this is. It may be another one than when the connection was made: a master begins one when it gets
    /// the first of its replicas, too, and whoever has come since knows it by that number.
    pub(crate) async fn recognise(self: &Arc<Self>) -> Result<(), Error> {
        if !matches!(self.home, Home::Sentinels(_)) || self.incarnation() == 0 {
            return Ok(());
        }
        let link = self.link().await?;
        match link.command(cmd("INFO").arg("replication")).await.map_err(Error::request)? {
            Value::ServerError(error) => Err(Error::reply(&error)),
            replication => {
                self.behind(&link.server.now(&replication), link.generation);
                Ok(())
            }
        }
    }

    pub(crate) fn runs_scripts(&self) -> bool {
        self.runs_scripts.load(Ordering::Relaxed)
    }

    /// Connections that have been made after the first one.
    pub(crate) fn reconnects(&self) -> u64 {
        self.made.load(Ordering::Relaxed).saturating_sub(1)
    }

    pub(crate) fn dials(&self) -> &Dials {
        &self.pushes.dials
    }

    pub(crate) fn inspect<T>(&self, look: impl FnOnce(&State<Link>) -> T) -> T {
        look(&self.state.borrow())
    }

    /// The connection. Waits while one is being made; fails at once while the server is known to be away. Dropping the
    /// future does not stop the attempt, which other callers share.
    pub(crate) async fn link(self: &Arc<Self>) -> Result<Arc<Link>, Error> {
        match self.settled(None) {
            Some(settled) => settled,
            None => self.wait(None).boxed().await,
        }
    }

    /// The connection that comes after the one of that generation, which has been seen to break.
    pub(crate) async fn link_after(self: &Arc<Self>, generation: u64) -> Result<Arc<Link>, Error> {
        self.wait(Some(generation)).await
    }

    /// The next connection but the one of that generation, however long it takes. `None`: closed, or no runtime.
    pub(crate) async fn up(self: &Arc<Self>, lost: Option<u64>) -> Option<Arc<Link>> {
        let mut changes = self.state.subscribe();
        loop {
            self.start_if_idle().ok()?;
            match &*changes.borrow_and_update() {
                State::Up(link) if lost != Some(link.generation) => return Some(Arc::clone(link)),
                State::Closed => return None,
                _ => {}
            }
            changes.changed().await.ok()?;
        }
    }

    /// Why the next try to connect fails.
    pub(crate) async fn failure(&self) -> Error {
        let mut changes = self.state.subscribe();
        loop {
            // An error means that the sender is gone, which `self` holds.
            if changes.changed().await.is_err() {
                return Error::closed();
            }
            if let State::Down(error) | State::Broken(error, _) = &*changes.borrow_and_update() {
                return error.clone();
            }
        }
    }

    fn settled(&self, lost: Option<u64>) -> Option<Result<Arc<Link>, Error>> {
        match &*self.state.borrow() {
            State::Up(link) if lost == Some(link.generation) => None,
            State::Up(link) => Some(Ok(Arc::clone(link))),
            state if state.wants_start() => None,
            State::Down(error) | State::Broken(error, _) => Some(Err(error.clone())),
            State::Closed => Some(Err(Error::closed())),
            State::Idle | State::Trying => None,
        }
    }

    async fn wait(self: &Arc<Self>, lost: Option<u64>) -> Result<Arc<Link>, Error> {
        // Subscribed before the first look, so that no change is missed.
        let mut changes = self.state.subscribe();
        let _waits = self.pushes.dials.waits();
        loop {
            self.start_if_idle()?;
            if let Some(settled) = self.settled(lost) {
                return settled;
            }
            if changes.changed().await.is_err() {
                return Err(Error::closed());
            }
        }
    }

    /// Connects if nobody has asked for it yet, and does not wait.
    pub(crate) fn wake(self: &Arc<Self>) {
        // Without a runtime the first call does it.
        let _ = self.start_if_idle();
    }

    fn start_if_idle(self: &Arc<Self>) -> Result<(), Error> {
        start_if_idle(&self.state, &self.task, || run(IdleAtEnd(Arc::clone(self))))
    }

    /// Asks for a new connection, as the server behind this one seems to be the wrong one by now.
    pub(crate) fn renew(&self) {
        self.renew.notify_one();
    }

    /// An answer did not fit its question: whatever comes over this connection may be the answer to another one.
    pub(crate) fn distrust(&self) {
        if let Some(link) = self.inspect(|state| state.up().cloned()) {
            link.condemn();
        }
    }

    /// No more requests. Those under way may end, within the response timeout.
    pub(crate) fn close_soon(&self) {
        let before = self.state.send_replace(State::Closed);
        self.at_hand.put(None);
        drop(before);
        // Its task may stand still, and would keep others from being believed.
        if let Some(watch) = &self.pushes.watch {
            watch.proves_nothing(self.id);
        }
    }

    /// Closes, and waits until the connection is gone.
    pub(crate) async fn close(&self) {
        self.close_soon();
        let task = self.task.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(task) = task {
            ended(task, self.settings.response_timeout).await;
        }
    }

    /// Whoever wants to hear of changes hears nothing now.
    fn deaf(&self) {
        if let Some(watch) = &self.pushes.watch {
            watch.proves_nothing(self.id);
            watch.down();
        }
    }

    /// Publishes, unless closed; says whether it did.
    fn publish(&self, next: State<Link>) -> bool {
        let mut slot = Some(next);
        self.state.send_if_modified(|state| {
            if !matches!(state, State::Closed)
                && let Some(next) = slot.take()
            {
                self.at_hand.put(next.up());
                slot = Some(mem::replace(state, next));
                return true;
            }
            false
        })
        // `slot`, with a link perhaps, is dropped here, outside of the lock.
    }

    pub(crate) async fn closed(&self) {
        // An error means that the sender is gone, which `self` holds.
        let _ = self.state.subscribe().wait_for(|state| matches!(state, State::Closed)).await;
    }

    /// `fenced`: the connection before is lost, and nothing that it still carries may run.
    async fn connect(&self, fenced: bool) -> Result<(Arc<Link>, JoinHandle<()>), Error> {
        let begun = Instant::now();
        let tried = self.connect_once(fenced).await;
        self.pushes.dials.tried(begun.elapsed(), &tried);
        tried
    }

    async fn connect_once(&self, fenced: bool) -> Result<(Arc<Link>, JoinHandle<()>), Error> {
        let generation = self.generations.fetch_add(1, Ordering::Relaxed) + 1;
        let last = match fenced {
            true => self.last.lock().unwrap_or_else(PoisonError::into_inner).clone(),
            false => Server::default(),
        };
        let (mut link, driver) =
            establish(&self.settings, &self.home, generation, &last, &self.pushes).await?;
        // Before anybody gets the link: whoever is answered over it sees the new number.
        self.behind(&link.server, generation);
        if let Home::Node(endpoint, cluster) = &self.home
            && let Some(cluster) = cluster.upgrade()
        {
            let limit = self.settings.connect_timeout;
            let vouched = timeout(limit, cluster.vouch(&link)).await.unwrap_or_else(|_elapsed| {
                let what = format!("the cluster did not vouch for Redis at {endpoint} within {limit:?}");
                Err(Error::new(ErrorKind::Timeout, what))
            });
            let last = self.last.lock().unwrap_or_else(PoisonError::into_inner).reign();
            match vouched {
                // The record cannot be asked now, but this server was vouched for with the last connection, and is the same
                // still.
                Err(error) if error.is_retryable() && link.server.reign() == last => {}
                vouched => vouched?,
            }
        }
        // Not before: of those that are tried, one that is not used may lack the right, and what it tells goes nowhere.
        if let Some(watch) = &self.pushes.watch {
            let begun = Instant::now();
            self.followed(watch, &link, self.settings.connect_timeout).await?;
            watch.proves(self.id, begun);
        }
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = link.server.clone();
        self.runs_scripts.store(!link.server.refused.contains(&Step::Script), Ordering::Relaxed);
        self.made.fetch_add(1, Ordering::Relaxed);
        if let Some(measured) = link.server.time {
            self.ahead.begin(measured, Now::read());
        }
        link.greeted = link.progress();
        Ok((Arc::new(link), driver))
    }

    /// Turns tracking on over a connection, where somebody wants it.
    async fn followed(&self, watch: &Watch, link: &Link, limit: Duration) -> Result<(), Error> {
        timeout(limit, watch.follow(link)).await.unwrap_or_else(|_elapsed| {
            let what = format!("Redis at {} did not turn tracking on within {limit:?}", link.endpoint);
            Err(Error::new(ErrorKind::Timeout, what))
        })
    }

    /// What comes of it, unless it is closed meanwhile.
    async fn unless_closed<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        tokio::select! {
            biased;
            () = self.closed() => None,
            done = work => Some(done),
        }
    }
}

/// Shows where the server is and how the connection stands. No credentials, no keys.
impl fmt::Debug for Keeper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut d = f.debug_struct("Node");
        self.inspect(|state| {
            d.field("state", &state.as_str());
            match state {
                State::Up(link) => {
                    d.field("connection", &link.generation).field("at", &format_args!("{}", link.endpoint));
                    d.field("server", &link.server);
                }
                _ => {
                    d.field("at", &format_args!("{}", self.endpoint()));
                }
            }
        });
        d.finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;
    use crate::{RedisProvider, advice::Advice};

    /// A runtime without timers makes the task panic, each time.
    #[test]
    fn a_task_that_panics_is_not_started_again_and_again() {
        let built = RedisProvider::builder("redis://127.0.0.1:1").build().unwrap();
        let settings = Arc::clone(built.settings());
        let home = Home::of(&settings.place);
        let keeper = Keeper::new(settings, home, Pushes::unheard(&Arc::new(Advice::default())));
        let started = || keeper.generations.load(Ordering::Relaxed);
        let calls = || {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            runtime.block_on(async {
                for _ in 0..100 {
                    let Err(error) = keeper.link().await else { panic!("nothing is there") };
                    assert_eq!(error.kind(), ErrorKind::NoRuntime);
                }
            });
        };
        calls();
        assert_eq!(started(), 1);
        // Once its time is over, the next call tries again.
        keeper.publish(State::Broken(Error::panicked(), Instant::now()));
        calls();
        assert_eq!(started(), 2);
    }
}
