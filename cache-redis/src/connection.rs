//! One connection: requests and their replies, and its end.

use std::{
    pin::pin,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use redis::{Arg, Cmd, Pipeline, PushInfo, RedisError, Value};
use tokio::{
    task::{AbortHandle, JoinHandle},
    time::timeout,
};

use crate::{
    Error, ErrorKind,
    address::Endpoint,
    advice::Advice,
    dial::dial,
    dials::Dials,
    greet::Server,
    mux::{Mux, Reply},
    rights::Step,
    settings::Settings,
    watch::{Watch, Watching},
    wire::text,
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
    pub(crate) dials: Arc<Dials>,
}

impl Pushes {
    /// Nobody.
    pub(crate) fn unheard(advice: &Arc<Advice>) -> Self {
        Self { hears: Arc::new(|_, _| {}), watch: None, advice: Arc::clone(advice), dials: Arc::default() }
    }

    /// Those connections count as these do.
    pub(crate) fn counted_with(mut self, others: &Self) -> Self {
        self.dials = Arc::clone(&others.dials);
        self
    }

    pub(crate) fn watched(watch: &Arc<Watch>, advice: &Arc<Advice>) -> Self {
        let hears = Arc::clone(watch);
        Self {
            hears: Arc::new(move |_, push| hears.push(&push)),
            watch: Some(Arc::clone(watch)),
            advice: Arc::clone(advice),
            dials: Arc::default(),
        }
    }
}

/// A connection that is ready for requests. Ends when the last holder lets go.
pub(crate) struct Link {
    connection: Mux,
    driver: AbortHandle,
    /// Counts up over the provider's life; no two links share one.
    pub(crate) generation: u64,
    /// Where it leads.
    pub(crate) endpoint: Endpoint,
    pub(crate) server: Server,
    /// Progress when callers got it: what they send first is counted from there.
    pub(crate) greeted: (u64, u64),
    watching: Mutex<Watching>,
}

impl Link {
    /// Connects, and takes no steps yet.
    pub(crate) async fn dial(
        settings: &Settings,
        endpoint: Endpoint,
        generation: u64,
        pushes: &Pushes,
    ) -> Result<(Self, JoinHandle<()>), Error> {
        let hears = (generation, Arc::clone(&pushes.hears));
        let (connection, driver) = dial(settings, &endpoint, &settings.login, Some(hears)).await?;
        let driver = tokio::spawn(driver);
        // From here on the link's drop ends the driver, also when a step fails or the time is over.
        let link = Self {
            connection,
            driver: driver.abort_handle(),
            generation,
            endpoint,
            server: Server::default(),
            greeted: (0, 0),
            watching: Mutex::default(),
        };
        Ok((link, driver))
    }

    /// Sends one command and waits for its reply. Dropping the future leaves the connection usable: the reply is read
    /// and thrown away.
    pub(crate) async fn command(&self, command: &Cmd) -> Result<Value, RedisError> {
        self.note(self.connection.command(command).await)
    }

    /// Looks up one key; `gathers`: where it is not the only one, by one command with others.
    #[allow(clippy::manual_async_fn, reason = "an `async fn` would keep each argument twice")]
    pub(crate) fn get(
        &self,
        key: &str,
        gathers: bool,
    ) -> impl Future<Output = Result<Reply, RedisError>> + Send {
        async move { self.note(self.connection.get(key, gathers).await) }
    }

    /// Sends several commands in one go. Error replies are among the values.
    pub(crate) async fn pipeline(&self, commands: &Pipeline) -> Result<Vec<Value>, RedisError> {
        Ok(self.replies(commands).await?.into_iter().map(Reply::into_value).collect())
    }

    /// The same, with texts as they have come.
    pub(crate) async fn replies(&self, commands: &Pipeline) -> Result<Vec<Reply>, RedisError> {
        self.note(self.connection.pipeline(commands).await)
    }

    /// Waits for the server's confirmation.
    pub(crate) async fn subscribe(&self, channels: &[&String]) -> Result<(), RedisError> {
        self.confirmed("SUBSCRIBE", channels).await
    }

    /// Waits for the server's confirmation.
    pub(crate) async fn unsubscribe(&self, channels: &[&String]) -> Result<(), RedisError> {
        self.confirmed("UNSUBSCRIBE", channels).await
    }

    async fn confirmed(&self, what: &str, channels: &[&String]) -> Result<(), RedisError> {
        // Without channels it would concern all of them.
        if channels.is_empty() {
            return Ok(());
        }
        let mut command = redis::cmd(what);
        command.arg(channels);
        match self.note(self.connection.confirmed(&command, channels.len()).await)? {
            Value::ServerError(error) => Err(error.into()),
            _ => Ok(()),
        }
    }

    /// Until the connection has ended.
    pub(crate) async fn ended(&self) {
        self.connection.ended().await;
    }

    fn note<T>(&self, reply: Result<T, RedisError>) -> Result<T, RedisError> {
        // Most often the driver has already ended. Where the client would go on after such an error, we do not.
        reply.inspect_err(|error| {
            if error.is_io_error() || error.kind() == redis::ErrorKind::Parse {
                self.condemn();
            }
        })
    }

    /// Ends the connection. Requests under way fail as disconnected.
    pub(crate) fn condemn(&self) {
        self.connection.end();
        self.driver.abort();
    }

    /// Whether the user may run what these hold there. Half of a transaction must not be sent to a server that refuses the
    /// other half.
    pub(crate) fn may_run(&self, commands: &Pipeline) -> Result<(), Error> {
        let refuses = self.server.refused.iter().any(|step| matches!(step, Step::Multi | Step::Exec));
        let begins = |command: &Cmd| matches!(command.args_iter().next(), Some(Arg::Simple(b"MULTI")));
        if refuses && commands.cmd_iter().any(begins) {
            let what = "Redis does not let this user run MULTI and EXEC: grant +multi +exec";
            return Err(Error::new(ErrorKind::Denied, what));
        }
        Ok(())
    }

    /// Requests that somebody waits for.
    pub(crate) fn in_flight(&self) -> u64 {
        self.connection.in_flight()
    }

    /// What is watched over it.
    pub(crate) fn watching(&self) -> Watching {
        self.watching.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn watches(&self, watching: Watching) {
        *self.watching.lock().unwrap_or_else(PoisonError::into_inner) = watching;
    }

    /// Calls that have been put to it; replies and pushes that have come.
    pub(crate) fn progress(&self) -> (u64, u64) {
        self.connection.progress()
    }

    /// Asks for a sign of life within `limit`.
    pub(crate) async fn is_there(&self, limit: Duration) -> There {
        let (_, before) = self.progress();
        match timeout(limit, self.command(&redis::cmd("PING"))).await {
            Ok(answer) if is_in_step(&answer) => There::Answers,
            Ok(_) => There::No,
            Err(_elapsed) if self.progress().1 != before => There::IsBusy,
            Err(_elapsed) => There::No,
        }
    }

    /// Waits until the server has answered, for as long as anything comes within each `limit`. `proves` is told since when the
    /// connection is known to be read: what comes behind a burst is late, and yet nobody stands still.
    pub(crate) async fn answers(&self, limit: Duration, proves: impl Fn(Instant)) -> bool {
        let ping = redis::cmd("PING");
        let mut answer = pin!(self.command(&ping));
        loop {
            let (from, (_, before)) = (Instant::now(), self.progress());
            match timeout(limit, answer.as_mut()).await {
                Ok(answer) if !is_in_step(&answer) => return false,
                Err(_elapsed) if self.progress().1 == before => return false,
                Ok(_) => {
                    proves(from);
                    return true;
                }
                Err(_elapsed) => proves(from),
            }
        }
    }
}

/// Whether what has come may be the answer to a `PING`. If it is another one's, all are.
fn is_in_step(answer: &Result<Value, RedisError>) -> bool {
    match answer {
        Ok(Value::ServerError(_)) | Err(_) => true,
        Ok(value) => text(value) == Some("PONG"),
    }
}

/// What has come of a `PING`.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum There {
    Answers,
    /// Something else has come.
    IsBusy,
    No,
}

impl Drop for Link {
    fn drop(&mut self) {
        self.driver.abort();
    }
}
