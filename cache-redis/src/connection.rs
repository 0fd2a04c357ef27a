//! One connection: requests and their replies, and its end.

use std::{
    future::{Future, poll_fn},
    pin::{Pin, pin},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::Poll,
    time::Duration,
};

use redis::{Arg, Cmd, Pipeline, PushInfo, RedisError, Value, aio::MultiplexedConnection};
use tokio::{
    sync::Notify,
    task::{AbortHandle, JoinHandle},
    time::timeout,
};

use crate::{
    Error, ErrorKind,
    address::Endpoint,
    advice::Advice,
    dial::dial,
    greet::Server,
    rights::Step,
    settings::Settings,
    watch::{Watch, Watching},
};

/// Takes what the server sends of its own accord, in the task that reads, with the connection's generation. Must not
/// block.
pub(crate) type Hears = Arc<dyn Fn(u64, PushInfo) + Send + Sync>;

/// Who takes them.
#[derive(Clone)]
pub(crate) struct Pushes {
    pub(crate) hears: Hears,
    /// Wants to know which keys change.
    pub(crate) watch: Option<Arc<Watch>>,
    pub(crate) advice: Arc<Advice>,
}

impl Pushes {
    /// Nobody.
    pub(crate) fn unheard(advice: &Arc<Advice>) -> Self {
        Self { hears: Arc::new(|_, _| {}), watch: None, advice: Arc::clone(advice) }
    }

    pub(crate) fn watched(watch: &Arc<Watch>, advice: &Arc<Advice>) -> Self {
        let hears = Arc::clone(watch);
        Self {
            hears: Arc::new(move |_, push| hears.push(&push)),
            watch: Some(Arc::clone(watch)),
            advice: Arc::clone(advice),
        }
    }
}

/// A connection that is ready for requests. Ends when the last holder lets go.
pub(crate) struct Link {
    connection: MultiplexedConnection,
    driver: AbortHandle,
    end: Arc<End>,
    /// Counts up over the provider's life; no two links share one.
    pub(crate) generation: u64,
    /// Where it leads.
    pub(crate) endpoint: Endpoint,
    pub(crate) server: Server,
    /// Progress when callers got it: what they send first is counted from there.
    pub(crate) greeted: (u64, u64),
    watching: Mutex<Watching>,
    sent: AtomicU64,
    received: Arc<AtomicU64>,
    in_flight: AtomicU64,
}

impl Link {
    /// Connects, and takes no steps yet.
    pub(crate) async fn dial(
        settings: &Settings,
        endpoint: Endpoint,
        generation: u64,
        pushes: &Pushes,
    ) -> Result<(Self, JoinHandle<()>), Error> {
        let received = Arc::new(AtomicU64::new(0));
        let hears = Arc::clone(&pushes.hears);
        let pushed = Arc::clone(&received);
        let hears: Hears = Arc::new(move |generation, push| {
            pushed.fetch_add(1, Ordering::Relaxed);
            hears(generation, push);
        });
        let hears = (generation, hears);
        let (connection, driver) = dial(settings, &endpoint, &settings.login, Some(hears)).await?;
        let end = Arc::new(End::default());
        let told = TellsEnd(Arc::clone(&end));
        let driver = tokio::spawn(async move {
            let _told = told;
            driver.await;
        });
        // From here on the link's drop ends the driver, also when a step fails or the time is over.
        let link = Self {
            connection,
            driver: driver.abort_handle(),
            end,
            generation,
            endpoint,
            server: Server::default(),
            greeted: (0, 0),
            watching: Mutex::default(),
            sent: AtomicU64::new(0),
            received,
            in_flight: AtomicU64::new(0),
        };
        Ok((link, driver))
    }

    /// Sends one command and waits for its reply. Dropping the future leaves the connection usable: the reply is read
    /// and thrown away.
    pub(crate) async fn command(&self, command: &Cmd) -> Result<Value, RedisError> {
        let _waiting = self.waits();
        let mut connection = self.connection.clone();
        let reply = pin!(connection.send_packed_command(command));
        let reply = self.unless_ended(reply).await;
        self.note(reply)
    }

    /// Sends `count` commands in one go. Error replies are among the values.
    pub(crate) async fn pipeline(&self, commands: &Pipeline, count: usize) -> Result<Vec<Value>, RedisError> {
        let _waiting = self.waits();
        let mut connection = self.connection.clone();
        let replies = pin!(connection.send_packed_commands(commands, 0, count));
        let replies = self.unless_ended(replies).await;
        self.note(replies)
    }

    /// Waits for the server's confirmation.
    pub(crate) async fn subscribe(&self, channels: &[&String]) -> Result<(), RedisError> {
        let _waiting = self.waits();
        let mut connection = self.connection.clone();
        let reply = pin!(connection.subscribe(channels));
        let reply = self.unless_ended(reply).await;
        self.note(reply)
    }

    /// Waits for the server's confirmation.
    pub(crate) async fn unsubscribe(&self, channels: &[&String]) -> Result<(), RedisError> {
        let _waiting = self.waits();
        let mut connection = self.connection.clone();
        let reply = pin!(connection.unsubscribe(channels));
        let reply = self.unless_ended(reply).await;
        self.note(reply)
    }

    /// Until the connection has ended.
    pub(crate) async fn ended(&self) {
        let mut told = pin!(self.end.told.notified());
        // Registered before the look, so that an end in between is not missed.
        told.as_mut().enable();
        if !self.end.reached.load(Ordering::SeqCst) {
            told.await;
        }
    }

    /// The client's queue can strand a request that is put in while the driver ends: its receiver empties the queue when
    /// it goes, but the queue itself lives as long as its senders, of which each waiting request holds one. Such a
    /// request would wait for ever.
    ///
    /// `reply` is pinned by its caller: an argument that is pinned here would lie in the future twice.
    async fn unless_ended<T>(
        &self,
        mut reply: Pin<&mut impl Future<Output = Result<T, RedisError>>>,
    ) -> Result<T, RedisError> {
        let mut told = pin!(self.end.told.notified());
        poll_fn(|cx| {
            // The reply first: what has been answered counts. And before the flag: the request may end up in the queue
            // only now.
            if let Poll::Ready(reply) = reply.as_mut().poll(cx) {
                return Poll::Ready(reply);
            }
            if told.as_mut().poll(cx).is_ready() || self.end.reached.load(Ordering::SeqCst) {
                return Poll::Ready(Err(std::io::Error::from(std::io::ErrorKind::BrokenPipe).into()));
            }
            Poll::Pending
        })
        .await
    }

    fn note<T>(&self, reply: Result<T, RedisError>) -> Result<T, RedisError> {
        match &reply {
            Ok(_) => {
                self.received.fetch_add(1, Ordering::Relaxed);
            }
            // Most often the driver has already ended. Where the client would go on after such an error, we do not.
            Err(error) if error.is_io_error() || error.kind() == redis::ErrorKind::Parse => self.condemn(),
            Err(_) => {}
        }
        reply
    }

    /// Ends the connection. Requests under way fail as disconnected.
    pub(crate) fn condemn(&self) {
        self.driver.abort();
    }

    /// Whether the user may run what these hold there. Half of a transaction must not be sent to a server that refuses the
    /// other half.
    pub(crate) fn may_run(&self, commands: &Pipeline) -> Result<(), Error> {
        let refuses = self.server.refused.iter().any(|step| matches!(step, Step::Multi | Step::Exec));
        let begins = |command: &Cmd| matches!(command.args_iter().next(), Some(Arg::Simple(b"MULTI")));
        if refuses && commands.cmd_iter().any(begins) {
            let what = "Redis lets this user not run MULTI and EXEC: grant +multi +exec";
            return Err(Error::new(ErrorKind::Denied, what));
        }
        Ok(())
    }

    fn waits(&self) -> Waiting<'_> {
        self.sent.fetch_add(1, Ordering::Relaxed);
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        Waiting(&self.in_flight)
    }

    /// Requests that somebody waits for.
    pub(crate) fn in_flight(&self) -> u64 {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// What is watched over it.
    pub(crate) fn watching(&self) -> Watching {
        self.watching.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn watches(&self, watching: Watching) {
        *self.watching.lock().unwrap_or_else(PoisonError::into_inner) = watching;
    }

    /// Requests sent; answers and pushes received.
    pub(crate) fn progress(&self) -> (u64, u64) {
        (self.sent.load(Ordering::Relaxed), self.received.load(Ordering::Relaxed))
    }

    /// Whether the server answers within `limit`, or what it sends before that takes longer.
    pub(crate) async fn lives_within(&self, limit: Duration) -> bool {
        let (_, before) = self.progress();
        timeout(limit, self.command(&redis::cmd("PING"))).await.is_ok() || self.progress().1 != before
    }
}

/// A request under way, which its caller may leave.
struct Waiting<'a>(&'a AtomicU64);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Whether the driver has ended, and the bell for those who wait on it.
#[derive(Default)]
struct End {
    reached: AtomicBool,
    told: Notify,
}

/// Lives in the driver's task, however that ends.
struct TellsEnd(Arc<End>);

impl Drop for TellsEnd {
    fn drop(&mut self) {
        self.0.reached.store(true, Ordering::SeqCst);
        self.0.told.notify_waiters();
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.driver.abort();
    }
}
