//! Finding the master by asking sentinels.

use std::{
    collections::{BTreeSet, HashSet},
    pin::pin,
    sync::Arc,
};

use cache_tls::first_of;
use futures::{StreamExt, stream::FuturesUnordered};
use redis::{Value, cmd};
use tokio::{
    task::{JoinHandle, JoinSet},
    time::sleep,
};

use crate::{
    Error, ErrorKind,
    address::Endpoint,
    connection::{Link, Pushes},
    dial::{dial, failed},
    fleet::no_replica,
    greet::{Role, Server, late, open},
    mux::alongside,
    settings::Settings,
    wire::text,
};

/// Who knows where the master is.
#[derive(Clone, Debug)]
pub(crate) struct Sentinels {
    pub(crate) at: Vec<Endpoint>,
    pub(crate) master: String,
}

enum Step {
    /// What the sentinel of that number says.
    Said(usize, Result<Option<Endpoint>, Error>),
    /// What has come of the server there.
    Opened(Endpoint, Result<Box<(Link, JoinHandle<()>)>, Error>),
}

/// Whether somebody has said so who is there.
fn is_answer(error: &Error) -> bool {
    !matches!(error.kind(), ErrorKind::Connect | ErrorKind::Timeout)
}

impl Sentinels {
    /// Asks all at once and connects to what the first ones say, until somebody is found who says so of itself: a
    /// sentinel that was cut off may still name the old master. Bounded by the connect timeout: whoever has not answered by
    /// then is told of beside what the others have said.
    pub(crate) async fn connect(
        &self,
        settings: &Arc<Settings>,
        generation: u64,
        last: &Server,
        pushes: &Pushes,
    ) -> Result<(Link, JoinHandle<()>), Error> {
        let mut steps = JoinSet::new();
        for number in 0..self.at.len() {
            let (all, settings) = (self.clone(), Arc::clone(settings));
            steps.spawn(async move { Step::Said(number, all.ask(number, &settings).await) });
        }
        let mut over = pin!(sleep(settings.connect_timeout));
        let mut named = HashSet::new();
        let mut asked: BTreeSet<usize> = (0..self.at.len()).collect();
        let mut tried = BTreeSet::new();
        let mut silent = Vec::new();
        let (mut refusal, mut unknown) = (None, Vec::new());
        loop {
            let step = tokio::select! {
                biased;
                step = steps.join_next() => step,
                () = &mut over => break,
            };
            match step {
                None => break,
                Some(Ok(Step::Opened(_, Ok(found)))) => return Ok(*found),
                Some(Ok(Step::Opened(endpoint, Err(error)))) => {
                    tried.remove(&endpoint);
                    // What one who is there says is told, not that another one is not.
                    if !refusal.as_ref().is_some_and(is_answer) {
                        refusal = Some(error);
                    }
                }
                Some(Ok(Step::Said(number, said))) => {
                    asked.remove(&number);
                    match said {
                        Ok(Some(endpoint)) if named.insert(endpoint.clone()) => {
                            tried.insert(endpoint.clone());
                            let (settings, last, pushes) =
                                (Arc::clone(settings), last.clone(), pushes.clone());
                            steps.spawn(async move {
                                let at = endpoint.clone();
                                let opened = open(&settings, at, Role::Master, generation, &last, &pushes);
                                Step::Opened(endpoint, opened.await.map(Box::new))
                            });
                        }
                        Ok(Some(_)) => {}
                        Ok(None) => unknown.push(number),
                        Err(error) => silent.push((number, error)),
                    }
                }
                Some(Err(_gone)) => {
                    return Err(Error::new(ErrorKind::NoRuntime, "the runtime ended while connecting"));
                }
            }
        }
        if let (None, Some(endpoint)) = (&refusal, tried.first()) {
            refusal = Some(late(settings, format_args!("the master {:?} at {endpoint}", self.master)));
        }
        silent.extend(asked.into_iter().map(|number| (number, late(settings, "it"))));
        Err(refusal.unwrap_or_else(|| self.nobody(&unknown, silent)))
    }

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

    /// Replicas that the sentinel believes to be well.
    async fn replicas(&self, number: usize, settings: &Settings) -> Result<Vec<Endpoint>, Error> {
        let Value::Array(all) = self.command(number, settings, "REPLICAS").await? else {
            return Err(Error::protocol("no list where a sentinel was asked for replicas"));
        };
        Ok(all.iter().filter_map(replica).collect())
    }

    async fn ask(&self, number: usize, settings: &Settings) -> Result<Option<Endpoint>, Error> {
        match self.command(number, settings, "GET-MASTER-ADDR-BY-NAME").await? {
            Value::Nil => Ok(None),
            reply => match endpoint(&reply) {
                Some(endpoint) => Ok(Some(endpoint)),
                None => Err(Error::protocol("no address where a sentinel was asked for one")),
            },
        }
    }

    /// Asks one of them about the master, over a connection for this one question.
    async fn command(&self, number: usize, settings: &Settings, what: &str) -> Result<Value, Error> {
        let at = &self.at[number];
        let (connection, mut running) = dial(settings, at, &settings.sentinel_login, None).await?;
        let mut question = cmd("SENTINEL");
        question.arg(what).arg(&self.master);
        let answer = alongside(&mut running, connection.command(&question)).await;
        match answer.map_err(|error| failed(settings, at, error))? {
            Value::ServerError(error) => Err(Error::reply(&error)),
            reply => Ok(reply),
        }
    }

    /// Why no master was found. `unknown`: those who know none of that name.
    fn nobody(&self, unknown: &[usize], mut silent: Vec<(usize, Error)>) -> Error {
        let fix = "use the name of their `sentinel monitor`";
        if silent.is_empty() {
            let names: Vec<String> = self.at.iter().map(ToString::to_string).collect();
            return Error::config(
                "url",
                format_args!("redis+sentinel://***/{}", self.master),
                format!("the sentinels at {} know no master of that name: {fix}", names.join(", ")),
            );
        }
        // Those who are away may know it.
        let strange = format!("it knows no master {:?}: {fix}", self.master);
        let strange = |number: &usize| (*number, Error::new(ErrorKind::Unavailable, &*strange));
        silent.extend(unknown.iter().map(strange));
        silent.sort_by_key(|(number, _)| *number);
        let answers = silent.iter().any(|(_, error)| is_answer(error));
        let telling = silent.iter().filter(|(_, error)| is_answer(error) == answers);
        let kinds: HashSet<ErrorKind> = telling.map(|(_, error)| error.kind()).collect();
        let kind = match kinds.into_iter().collect::<Vec<_>>().as_slice() {
            [kind] => *kind,
            _ => ErrorKind::Connect,
        };
        let each: Vec<String> =
            silent.iter().map(|(number, error)| format!("{} ({error})", self.at[*number])).collect();
        let hint = match kind {
            ErrorKind::Auth => "; sentinels have credentials of their own: set sentinel_password",
            ErrorKind::Server => "; is that a sentinel?",
            _ => "",
        };
        Error::new(kind, format!("no sentinel says where the master is: {}{hint}", each.join(", ")))
    }
}

/// The address out of a description, unless it is said to be down.
fn replica(reply: &Value) -> Option<Endpoint> {
    let field = |name: &str| match reply {
        Value::Map(fields) => {
            fields.iter().find(|(key, _)| text(key) == Some(name)).and_then(|(_, value)| text(value))
        }
        Value::Array(parts) => {
            parts.chunks_exact(2).find(|pair| text(&pair[0]) == Some(name)).and_then(|pair| text(&pair[1]))
        }
        _ => None,
    };
    let flags = field("flags").unwrap_or_default();
    if flags.split(',').any(|flag| matches!(flag, "s_down" | "o_down" | "disconnected")) {
        return None;
    }
    Some(Endpoint::Tcp { host: field("ip")?.to_owned(), port: field("port")?.parse().ok()? })
}

/// Host and port.
fn endpoint(reply: &Value) -> Option<Endpoint> {
    let Value::Array(parts) = reply else { return None };
    let [host, port] = parts.as_slice() else { return None };
    Some(Endpoint::Tcp { host: text(host)?.to_owned(), port: text(port)?.parse().ok()? })
}
