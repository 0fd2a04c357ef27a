//! Asking sentinels: where the master is, whether it still is, and where its replicas are.

mod search;

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use cache_tls::first_of;
use futures::{StreamExt, stream::FuturesUnordered};
use redis::{Pipeline, PushKind, Value, cmd};
use tokio::{
    sync::Notify,
    task::JoinHandle,
    time::{sleep, timeout},
};

use crate::{
    Error, ErrorKind,
    address::{Endpoint, is_host},
    backoff::Backoff,
    connection::{Hears, Link, Pushes},
    dial::{dial, failed},
    fleet::no_replica,
    greet::{Role, Server, open},
    mux::{Mux, Reply, Running, alongside},
    settings::Settings,
    wire::text,
};

/// What sentinels tell of a failover: the one that leads it as soon as the new master is one, each of them when it names that.
const FAILOVERS: [&str; 2] = ["+promoted-slave", "+switch-master"];

/// Who knows where the master is.
#[derive(Clone, Debug)]
pub(crate) struct Sentinels {
    pub(crate) at: Vec<Endpoint>,
    pub(crate) master: String,
    /// The master of the last connection, or who was said to have replaced it. Another one that is named by an earlier
    /// failover has been replaced.
    pub(crate) latest: Arc<Mutex<Option<Named>>>,
}

/// Where a sentinel says that the master is.
#[derive(Clone, Debug)]
pub(crate) struct Named {
    pub(crate) at: Endpoint,
    /// Of the failover that made it the master: a later one has a greater number. 0: none so far, or not told.
    pub(crate) epoch: u64,
}

/// Whether somebody has said so who is there.
fn is_answer(error: &Error) -> bool {
    !matches!(error.kind(), ErrorKind::Connect | ErrorKind::Timeout)
}

impl Sentinels {
    /// Connects to a replica that one of them names. Asks all at once; of the replicas that one names, one by chance is the
    /// first, and none keeps the next one waiting for long.
    pub(crate) async fn connect_replica(
        &self,
        settings: &Arc<Settings>,
        generation: u64,
        last: &Server,
        pushes: &Pushes,
    ) -> Result<(Link, JoinHandle<()>), Error> {
        let mut refusal = None;
        let mut answers: FuturesUnordered<_> =
            (0..self.at.len()).map(|number| self.replicas(number, settings)).collect();
        while let Some(answer) = answers.next().await {
            let mut replicas = match answer {
                Ok(replicas) => replicas,
                Err(error) => {
                    refusal = Some(error);
                    continue;
                }
            };
            fastrand::shuffle(&mut replicas);
            let attempt = |replica| open(settings, replica, Role::Replica, generation, last, pushes);
            match first_of(replicas, settings.connect_timeout, attempt, is_answer).await {
                Some(Ok(found)) => return Ok(found),
                Some(Err(error)) => refusal = Some(error),
                None => {}
            }
        }
        Err(refusal.unwrap_or_else(no_replica))
    }

    /// Ends when a sentinel names another master than this one, by a later failover. The old one may not know of it: cut
    /// off from the sentinels, or back after having been away, it goes on until one of them tells it.
    pub(crate) async fn replaced(&self, settings: &Settings, master: &Endpoint) {
        let heard = (0..self.at.len()).map(|number| self.hears_of_another(number, settings, master));
        heard.collect::<FuturesUnordered<_>>().next().await;
    }

    /// Asks it with each heartbeat, and when it tells of a failover: until then the old master answers with what others have
    /// removed at the new one.
    async fn hears_of_another(&self, number: usize, settings: &Settings, master: &Endpoint) {
        let told = Arc::new(Notify::new());
        let mut backoff = Backoff::new();
        let mut line = None;
        loop {
            let asked = timeout(settings.connect_timeout, async {
                let line = match &mut line {
                    Some(line) => line,
                    none => none.insert(self.listen(number, settings, &told).await?),
                };
                line.ask(&self.master).await
            });
            match (asked.await, &mut line) {
                (Ok(Ok(named)), Some(line)) => {
                    if named.is_some_and(|named| self.hear(named) != *master) {
                        return;
                    }
                    backoff.reset();
                    line.run_until(told.notified(), settings.heartbeat).await;
                }
                _ => {
                    line = None;
                    sleep(backoff.after_failure().max(settings.heartbeat)).await;
                }
            }
        }
    }

    /// A line that wakes when the sentinel tells of a failover, where the user may hear of one.
    async fn listen<'a>(
        &'a self,
        number: usize,
        settings: &'a Settings,
        told: &Arc<Notify>,
    ) -> Result<Line<'a>, Error> {
        let told = Arc::clone(told);
        let hears: Hears = Arc::new(move |_, push| {
            if push.kind == PushKind::Message {
                told.notify_one();
            }
        });
        let mut line = self.line(number, settings, Some((0, hears))).await?;
        line.subscribe().await?;
        Ok(line)
    }

    /// Takes note of it, if it is by a later failover than has been heard of. Of the same one, another name may be of the same
    /// server. Returns who is the master by all that is known.
    fn hear(&self, named: Named) -> Endpoint {
        let mut latest = self.latest();
        match &*latest {
            Some(known) if known.epoch >= named.epoch => known.at.clone(),
            _ => latest.insert(named).at.clone(),
        }
    }

    fn latest(&self) -> MutexGuard<'_, Option<Named>> {
        self.latest.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Replicas that the sentinel believes to be well.
    async fn replicas(&self, number: usize, settings: &Settings) -> Result<Vec<Endpoint>, Error> {
        match self.line(number, settings, None).await?.ask_for(&["REPLICAS"], &self.master).await?.pop() {
            Some(Value::Array(all)) => Ok(all.iter().filter_map(replica).collect()),
            Some(Value::ServerError(error)) => Err(Error::reply(&error)),
            _ => Err(Error::protocol("no list where a sentinel was asked for replicas")),
        }
    }

    /// What one of them says.
    async fn ask(&self, number: usize, settings: &Settings) -> Result<Option<Named>, Error> {
        self.line(number, settings, None).await?.ask(&self.master).await
    }

    async fn line<'a>(
        &'a self,
        number: usize,
        settings: &'a Settings,
        hears: Option<(u64, Hears)>,
    ) -> Result<Line<'a>, Error> {
        let at = &self.at[number];
        let (connection, running) = dial(settings, at, &settings.sentinel_login, hears).await?;
        Ok(Line { settings, at, connection, running })
    }
}

/// A connection to a sentinel.
struct Line<'a> {
    settings: &'a Settings,
    at: &'a Endpoint,
    connection: Mux,
    running: Running,
}

impl Line<'_> {
    /// Where the master is. `None`: the sentinel knows none of that name.
    async fn ask(&mut self, master: &str) -> Result<Option<Named>, Error> {
        // While a failover is under way, the second one still describes the old master.
        let mut replies = self.ask_for(&["GET-MASTER-ADDR-BY-NAME", "MASTER"], master).await?;
        // Who may not ask for it, or knows none of that name, is told so in its place.
        let epoch = replies.pop().and_then(|reply| field(&reply, "config-epoch")?.parse().ok());
        match replies.pop() {
            Some(Value::Nil) => Ok(None),
            Some(Value::ServerError(error)) => Err(Error::reply(&error)),
            reply => match reply.as_ref().and_then(endpoint) {
                Some(at) => Ok(Some(Named { at, epoch: epoch.unwrap_or(0) })),
                None => Err(Error::protocol("no address where a sentinel was asked for one")),
            },
        }
    }

    /// Who may not hear of failovers goes without.
    async fn subscribe(&mut self) -> Result<(), Error> {
        let mut subscribe = cmd("SUBSCRIBE");
        subscribe.arg(&FAILOVERS);
        let confirmed = self.connection.confirmed(&subscribe, FAILOVERS.len());
        let confirmed = alongside(&mut self.running, confirmed).await;
        confirmed.map(drop).map_err(|error| failed(self.settings, self.at, error))
    }

    /// Keeps it going until something happens, it ends, or the time is over.
    async fn run_until(&mut self, event: impl Future<Output = ()>, limit: Duration) {
        let connection = &self.connection;
        let happens = async {
            tokio::select! {
                () = event => {}
                () = connection.ended() => {}
            }
        };
        // Late is as good: whoever waits asks then.
        let _ = timeout(limit, alongside(&mut self.running, happens)).await;
    }

    async fn ask_for(&mut self, what: &[&str], master: &str) -> Result<Vec<Value>, Error> {
        let mut questions = Pipeline::new();
        for what in what {
            questions.cmd("SENTINEL").arg(what).arg(master);
        }
        let answers = alongside(&mut self.running, self.connection.pipeline(&questions)).await;
        let answers = answers.map_err(|error| failed(self.settings, self.at, error))?;
        Ok(answers.into_iter().map(Reply::into_value).collect())
    }
}

/// The address out of a description, unless it is said to be down.
fn replica(reply: &Value) -> Option<Endpoint> {
    let flags = field(reply, "flags").unwrap_or_default();
    if flags.split(',').any(|flag| matches!(flag, "s_down" | "o_down" | "disconnected")) {
        return None;
    }
    named(field(reply, "ip")?, field(reply, "port")?)
}

/// A field of a description.
fn field<'a>(description: &'a Value, name: &str) -> Option<&'a str> {
    match description {
        Value::Map(fields) => {
            fields.iter().find(|(key, _)| text(key) == Some(name)).and_then(|(_, value)| text(value))
        }
        Value::Array(parts) => {
            parts.chunks_exact(2).find(|pair| text(&pair[0]) == Some(name)).and_then(|pair| text(&pair[1]))
        }
        _ => None,
    }
}

fn named(host: &str, port: &str) -> Option<Endpoint> {
    let host = Some(host).filter(|host| is_host(host))?.to_owned();
    Some(Endpoint::Tcp { host, port: port.parse().ok()? })
}

/// Host and port.
fn endpoint(reply: &Value) -> Option<Endpoint> {
    let Value::Array(parts) = reply else { return None };
    let [host, port] = parts.as_slice() else { return None };
    named(text(host)?, text(port)?)
}
