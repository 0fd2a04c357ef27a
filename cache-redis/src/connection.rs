//! One connection: how it is made, and what is done on it before anyone else may use it.

use std::{
    future::{Future, poll_fn},
    pin::pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::Poll,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use redis::{Cmd, Pipeline, PushInfo, RedisError, Value, aio::MultiplexedConnection};
use tokio::{
    sync::Notify,
    task::{AbortHandle, JoinHandle, JoinSet},
    time::timeout,
};

use crate::{
    Error, ErrorKind,
    address::Endpoint,
    advice::Advice,
    dial::{dial, failed},
    keeper::Home,
    scripts::{Form, RELEASE},
    settings::Settings,
    watch::{Watch, Watching},
    wire::{done, text},
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
    watching: Mutex<Watching>,
    sent: AtomicU64,
    answered: AtomicU64,
    in_flight: AtomicU64,
}

/// What the server said about itself when the connection was made.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Server {
    /// Random per start of the server.
    pub(crate) run_id: Option<String>,
    /// This connection's id there; of use only together with the run id.
    pub(crate) client_id: Option<i64>,
    /// How far its wall clock is ahead, in milliseconds.
    pub(crate) time_offset_ms: Option<i64>,
    /// `standalone`, `cluster` or `sentinel`.
    pub(crate) mode: Option<String>,
    /// `master` or `slave`.
    pub(crate) role: Option<String>,
    /// What the user may not do there.
    pub(crate) refused: Vec<Step>,
}

/// What a server has to be to be spoken to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// The one server: neither a sentinel nor a node of a cluster.
    Alone,
    /// The one that takes writes.
    Master,
    /// A master of a cluster.
    Node,
    /// One that follows a master, behind sentinels.
    Replica,
    /// The same in a cluster.
    NodeReplica,
    /// Any.
    Any,
}

/// Connects to where the master is, and takes all steps on the new connection before it is handed to any caller. Bounded
/// by the connect timeout.
///
/// The driver's handle ends when the connection is lost, for whatever reason.
pub(crate) async fn establish(
    settings: &Arc<Settings>,
    home: &Home,
    generation: u64,
    last: &Server,
    pushes: &Pushes,
) -> Result<(Link, JoinHandle<()>), Error> {
    let limit = settings.connect_timeout;
    let attempt = async {
        match home {
            Home::At(endpoint) => {
                open(settings, endpoint.clone(), Role::Alone, generation, last, pushes).await
            }
            Home::Sentinels(sentinels) => sentinels.connect(settings, generation, last, pushes).await,
            Home::Node(endpoint, _) => {
                open(settings, endpoint.clone(), Role::Node, generation, last, pushes).await
            }
            Home::Replica(sentinels) => sentinels.connect_replica(settings, generation, last, pushes).await,
            Home::NodeReplica(endpoint) => {
                open(settings, endpoint.clone(), Role::NodeReplica, generation, last, pushes).await
            }
            Home::Any(addresses) => first(settings, addresses(), generation, last, pushes).await,
        }
    };
    match timeout(limit, attempt).await {
        Ok(result) => result,
        Err(_elapsed) => {
            let hint = if settings.tls.is_some() { "; is TLS on at that port?" } else { "" };
            Err(Error::new(
                ErrorKind::Timeout,
                format!("{home} did not answer within the connect timeout of {limit:?}{hint}"),
            ))
        }
    }
}

/// Connects to the first of these that can be used.
async fn first(
    settings: &Arc<Settings>,
    addresses: Vec<Endpoint>,
    generation: u64,
    last: &Server,
    pushes: &Pushes,
) -> Result<(Link, JoinHandle<()>), Error> {
    let mut attempts = JoinSet::new();
    for endpoint in addresses {
        let (settings, last, pushes) = (Arc::clone(settings), last.clone(), pushes.clone());
        attempts.spawn(async move { open(&settings, endpoint, Role::Any, generation, &last, &pushes).await });
    }
    let mut refusal = None;
    while let Some(attempt) = attempts.join_next().await {
        match attempt {
            Ok(Ok(found)) => return Ok(found),
            Ok(Err(error)) => refusal = Some(error),
            Err(_gone) => return Err(Error::new(ErrorKind::NoRuntime, "the runtime ended while connecting")),
        }
    }
    Err(refusal.unwrap_or_else(Error::closed))
}

/// Connects to one server and takes all steps.
pub(crate) async fn open(
    settings: &Settings,
    endpoint: Endpoint,
    role: Role,
    generation: u64,
    last: &Server,
    pushes: &Pushes,
) -> Result<(Link, JoinHandle<()>), Error> {
    let hears = (generation, Arc::clone(&pushes.hears));
    let (connection, driver) = dial(settings, &endpoint, &settings.login, Some(hears)).await?;
    let end = Arc::new(End::default());
    let told = TellsEnd(Arc::clone(&end));
    let driver = tokio::spawn(async move {
        let _told = told;
        driver.await;
    });
    // From here on the link's drop ends the driver, also when a step fails or the time is over.
    let mut link = Link {
        connection,
        driver: driver.abort_handle(),
        end,
        generation,
        endpoint,
        server: Server::default(),
        watching: Mutex::default(),
        sent: AtomicU64::new(0),
        answered: AtomicU64::new(0),
        in_flight: AtomicU64::new(0),
    };
    link.server = identify(settings, &link).await?;
    link.server.fits(role, &link.endpoint)?;
    if !fence(settings, &link, last).await? {
        link.server.refused.push(Step::Kill);
    }
    for step in &link.server.refused {
        if *step != Step::Role || matches!(role, Role::Master | Role::Node) {
            pushes.advice.say(step.advice());
        }
    }
    if role == Role::NodeReplica {
        let mut readonly = redis::pipe();
        readonly.cmd("READONLY");
        let replies =
            link.pipeline(&readonly, 1).await.map_err(|error| failed(settings, &link.endpoint, error))?;
        replies.into_iter().try_for_each(done)?;
    }
    if let Some(watch) = &pushes.watch {
        watch.follow(&link).await?;
    }
    Ok((link, driver))
}

impl Server {
    /// Whether this is whom we were looking for. A user who may not ask gets the benefit of the doubt.
    fn fits(&self, role: Role, endpoint: &Endpoint) -> Result<(), Error> {
        let use_instead = |url: &str, is: &str, form: &str| {
            Error::config("url", url, format!("{endpoint} is {is}: use {form}"))
        };
        match (role, self.mode.as_deref(), self.role.as_deref()) {
            (_, Some("sentinel"), _) => {
                let form = "redis+sentinel://host:port/master-name";
                Err(use_instead("redis://***", "a sentinel, which keeps no data", form))
            }
            (Role::Alone | Role::Master, Some("cluster"), _) => Err(use_instead(
                "redis://***",
                "a node of a cluster, which has a part of the keys",
                "redis+cluster://host:port",
            )),
            (Role::Node, Some("standalone"), _) => {
                Err(use_instead("redis+cluster://***", "no node of a cluster", "redis://host:port"))
            }
            (Role::Master | Role::Node, _, Some(role)) if role != "master" => Err(Error::new(
                ErrorKind::Unavailable,
                format!("{endpoint} is no master any more, or not yet: a failover may be under way"),
            )),
            (Role::Replica, _, Some("master")) => {
                Err(Error::new(ErrorKind::Unavailable, format!("{endpoint} is no replica any more")))
            }
            _ => Ok(()),
        }
    }
}

/// Asks who the server is. A user without the permission to ask gets a provider that does not know.
async fn identify(settings: &Settings, link: &Link) -> Result<Server, Error> {
    let mut ask = redis::pipe();
    ask.cmd("TIME").cmd("INFO").arg("server").cmd("CLIENT").arg("ID").cmd("ROLE");
    // Does nothing: whether it may be run is what is asked.
    RELEASE.on(&mut ask, Form::Digest, &["l:{}"]).arg("");
    ask.cmd("MULTI").cmd("EXEC");
    let before = wall_ms();
    let replies = link.pipeline(&ask, Step::ASKED.len()).await;
    let replies = replies.map_err(|error| failed(settings, &link.endpoint, error))?;
    let after = wall_ms();
    let [time, info, id, role, ..] = replies.as_slice() else { return Ok(Server::default()) };
    [time, info, id, role].into_iter().try_for_each(meant)?;
    let steps = Step::ASKED.into_iter().zip(&replies);
    Ok(Server {
        refused: steps.filter(|(_, reply)| may_not_run(reply)).map(|(step, _)| step).collect(),
        time_offset_ms: time_ms(time).map(|server| server - (before + (after - before) / 2)),
        run_id: field(info, "run_id:"),
        client_id: if let Value::Int(id) = id { Some(*id) } else { None },
        // Valkey has another name for it.
        mode: field(info, "redis_mode:").or_else(|| field(info, "server_mode:")),
        role: if let Value::Array(parts) = role {
            parts.first().and_then(text).map(str::to_owned)
        } else {
            None
        },
    })
}

/// Ends the connection before this one at the server, so that bytes of it which are still on their way can never run: a
/// write that timed out must not arrive after an invalidation that was acknowledged.
///
/// Another run of the server gave that id to a stranger, who is left alone. `false`: the user has not got the permission.
async fn fence(settings: &Settings, link: &Link, last: &Server) -> Result<bool, Error> {
    let id = last.client_id.filter(|_| last.run_id.is_some() && last.run_id == link.server.run_id);
    let mut kill = redis::pipe();
    kill.cmd("CLIENT").arg("KILL").arg("ID").arg(id.unwrap_or(NOBODY));
    let replies = link.pipeline(&kill, 1).await.map_err(|error| failed(settings, &link.endpoint, error))?;
    // It may be gone already.
    replies.iter().try_for_each(meant)?;
    Ok(!replies.iter().any(may_not_run))
}

/// No server has had so many connections.
const NOBODY: i64 = i64::MAX;

/// What is done on a new connection and a user may be forbidden to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    Time,
    Info,
    Id,
    Role,
    Script,
    Multi,
    Exec,
    Kill,
}

impl Step {
    /// In the order in which a new server is asked.
    const ASKED: [Self; 7] =
        [Self::Time, Self::Info, Self::Id, Self::Role, Self::Script, Self::Multi, Self::Exec];

    /// What is weaker without, and how to put it right.
    fn advice(self) -> String {
        let (command, weaker, grant) = match self {
            Self::Time => ("TIME", "ages at this level are counted by this machine's own clock", "+time"),
            Self::Info => (
                "INFO",
                "a restart or failover that loses acknowledged writes is not noticed, and late bytes of a lost \
                 connection may still run",
                "+info",
            ),
            Self::Id => ("CLIENT ID", "late bytes of a lost connection may still run", "+client|id"),
            Self::Kill => ("CLIENT KILL", "late bytes of a lost connection may still run", "+client|kill"),
            Self::Role => ("ROLE", "whether the server is the master is not verified", "+role"),
            Self::Script => (
                "EVALSHA",
                "there are no leases, so there is one load per process, and what a load has read before an invalidation \
                 may be stored after it; to invalidate a tag clears the cache",
                "+evalsha +eval",
            ),
            Self::Multi | Self::Exec => ("MULTI or EXEC", "nothing is stored or removed", "+multi +exec"),
        };
        format!("{command} is refused to this user: {weaker}; grant {grant}")
    }
}

/// Whether a reply is the server's last word. One that is busy with a script, say, tells nothing of what it would do
/// otherwise: then there is no connection yet.
pub(crate) fn meant(reply: &Value) -> Result<(), Error> {
    match reply {
        Value::ServerError(error) if !matches!(error.code(), "ERR" | "NOPERM" | "NOAUTH") => {
            Err(Error::reply(error))
        }
        _ => Ok(()),
    }
}

/// Whether the user may not run the command at all; not to touch a key is another matter.
fn may_not_run(reply: &Value) -> bool {
    let Value::ServerError(error) = reply else { return false };
    // `EXEC` that is refused throws the transaction away, and says so first.
    matches!(error.code(), "NOPERM" | "EXECABORT")
        && error.details().is_some_and(|text| text.contains("permissions to run"))
}

fn wall_ms() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(now.as_millis()).unwrap_or(i64::MAX / 4)
}

/// Milliseconds since the epoch out of a reply to `TIME`; anything beyond a few thousand years is nonsense.
fn time_ms(reply: &Value) -> Option<i64> {
    let Value::Array(parts) = reply else { return None };
    let [seconds, micros] = parts.as_slice() else { return None };
    let seconds: u32 = text(seconds)?.parse().ok()?;
    let micros: u32 = text(micros)?.parse().ok()?;
    Some(i64::from(seconds) * 1000 + i64::from(micros / 1000))
}

fn field(info: &Value, name: &str) -> Option<String> {
    let value = text(info)?.lines().find_map(|line| line.strip_prefix(name))?.trim();
    (!value.is_empty() && value.len() <= 64).then(|| value.to_owned())
}

impl Link {
    /// Sends one command and waits for its reply. Dropping the future leaves the connection usable: the reply is read
    /// and thrown away.
    pub(crate) async fn command(&self, command: &Cmd) -> Result<Value, RedisError> {
        let _waiting = self.waits();
        let mut connection = self.connection.clone();
        let reply = self.unless_ended(connection.send_packed_command(command)).await;
        self.note(reply)
    }

    /// Sends `count` commands in one go. Error replies are among the values.
    pub(crate) async fn pipeline(&self, commands: &Pipeline, count: usize) -> Result<Vec<Value>, RedisError> {
        let _waiting = self.waits();
        let mut connection = self.connection.clone();
        let replies = self.unless_ended(connection.send_packed_commands(commands, 0, count)).await;
        self.note(replies)
    }

    /// Waits for the server's confirmation.
    pub(crate) async fn subscribe(&self, channels: &[&String]) -> Result<(), RedisError> {
        let _waiting = self.waits();
        let mut connection = self.connection.clone();
        let reply = self.unless_ended(connection.subscribe(channels)).await;
        self.note(reply)
    }

    /// Waits for the server's confirmation.
    pub(crate) async fn unsubscribe(&self, channels: &[&String]) -> Result<(), RedisError> {
        let _waiting = self.waits();
        let mut connection = self.connection.clone();
        let reply = self.unless_ended(connection.unsubscribe(channels)).await;
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
    async fn unless_ended<T>(
        &self,
        reply: impl Future<Output = Result<T, RedisError>>,
    ) -> Result<T, RedisError> {
        let mut reply = pin!(reply);
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
                self.answered.fetch_add(1, Ordering::Relaxed);
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

    /// Whether the user may run transactions there. Half of one must not be sent to a server that refuses the other half.
    pub(crate) fn transacts(&self) -> bool {
        !self.server.refused.iter().any(|step| matches!(step, Step::Multi | Step::Exec))
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

    /// Requests sent, and answers received.
    pub(crate) fn progress(&self) -> (u64, u64) {
        (self.sent.load(Ordering::Relaxed), self.answered.load(Ordering::Relaxed))
    }

    /// Whether the server answers within `limit`.
    pub(crate) async fn answers_within(&self, limit: Duration) -> bool {
        timeout(limit, self.command(&redis::cmd("PING"))).await.is_ok()
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

#[cfg(test)]
mod tests {
    use super::*;

    fn bulk(text: &str) -> Value {
        Value::BulkString(text.into())
    }

    #[test]
    fn time_is_read_or_not_at_all() {
        assert_eq!(time_ms(&Value::Array(vec![bulk("1700000000"), bulk("123456")])), Some(1_700_000_000_123));
        assert_eq!(time_ms(&Value::Array(vec![bulk("99999999999999999999"), bulk("0")])), None);
        assert_eq!(time_ms(&Value::Array(vec![bulk("1")])), None);
        assert_eq!(time_ms(&Value::Nil), None);
    }

    #[test]
    fn info_fields_are_read() {
        let info = bulk("# Server\r\nredis_version:7.0.15\r\nrun_id:abc123\r\n");
        assert_eq!(field(&info, "run_id:").as_deref(), Some("abc123"));
        assert_eq!(field(&info, "nope:"), None);
    }
}
