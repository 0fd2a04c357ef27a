//! What is done on a new connection before anyone may use it: who the server is, what the user may do there, and the end of
//! the connection before.

use std::{fmt, sync::Arc};

use redis::Value;
use tokio::{
    task::{JoinHandle, JoinSet},
    time::timeout,
};
use xxhash_rust::xxh3::xxh3_64;

use crate::{
    Error, ErrorKind,
    address::Endpoint,
    clocks::{Measured, Now},
    cluster::takes_part,
    connection::{Link, Pushes},
    dial::failed,
    home::Home,
    rights::{Step, may_not_run, meant},
    scripts::{Form, RELEASE},
    settings::Settings,
    wire::{done, text},
};

/// What the server said about itself when the connection was made.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Server {
    /// Random per start of the server.
    pub(crate) run_id: Option<String>,
    /// Names the history of what it holds. A replica that is promoted begins another.
    pub(crate) history: Option<String>,
    /// This connection's id there; of use only together with the run id.
    pub(crate) client_id: Option<i64>,
    /// What its wall clock said.
    pub(crate) time: Option<Measured>,
    /// `standalone`, `cluster` or `sentinel`.
    pub(crate) mode: Option<String>,
    /// `master` or `slave`.
    pub(crate) role: Option<String>,
    /// What the user may not do there.
    pub(crate) refused: Vec<Step>,
    /// It has no room for values and makes none, so it refuses them.
    pub(crate) full: bool,
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
    if matches!(home, Home::Sentinels(_)) {
        // It bounds its time itself, as it has to tell who has said what.
        return attempt.await;
    }
    match timeout(settings.connect_timeout, attempt).await {
        Ok(result) => result,
        Err(_elapsed) => Err(late(settings, home)),
    }
}

/// One that has not answered in time.
pub(crate) fn late(settings: &Settings, who: impl fmt::Display) -> Error {
    let hint = if settings.tls.is_some() { "; is TLS on at that port?" } else { "" };
    let limit = settings.connect_timeout;
    let message = format!("{who} did not answer within the connect timeout of {limit:?}{hint}");
    Error::new(ErrorKind::Timeout, message)
}

/// Connects to the first of these nodes of a cluster that can be used.
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
        attempts.spawn(async move {
            let found = open(&settings, endpoint, Role::Any, generation, &last, &pushes).await?;
            takes_part(&found.0).await?;
            Ok(found)
        });
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
    let (mut link, driver) = Link::dial(settings, endpoint, generation, pushes).await?;
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
    if role == Role::Alone && link.server.role.as_deref() == Some("slave") {
        let text = format!(
            "{} is a replica: nothing is stored or removed there, unless it takes writes; name its master",
            link.endpoint
        );
        pushes.advice.say(text);
    }
    if link.server.full && !matches!(role, Role::Replica | Role::NodeReplica | Role::Any) {
        pushes.advice.say(stores_nothing(&link.endpoint));
    }
    if role == Role::NodeReplica {
        let mut readonly = redis::pipe();
        readonly.cmd("READONLY");
        let replies =
            link.pipeline(&readonly).await.map_err(|error| failed(settings, &link.endpoint, error))?;
        replies.into_iter().try_for_each(done)?;
    }
    Ok((link, driver))
}

impl Server {
    /// A number for this run of the server.
    pub(crate) fn run(&self) -> Option<u64> {
        self.run_id.as_deref().map(number_of)
    }

    /// A number for it from when it became the master on. One that has been master before may have been replaced meanwhile,
    /// and lack what its successor has acknowledged.
    pub(crate) fn reign(&self) -> Option<u64> {
        match (&self.run_id, &self.history) {
            (Some(run_id), Some(history)) => Some(number_of(&format!("{run_id}{history}"))),
            _ => self.run(),
        }
    }

    /// The same server, by what it says of its replication now.
    pub(crate) fn now(&self, replication: &Value) -> Self {
        Self { history: history(replication), ..self.clone() }
    }

    /// Whether this is whom we were looking for. A user who may not ask gets the benefit of the doubt.
    fn fits(&self, role: Role, endpoint: &Endpoint) -> Result<(), Error> {
        let use_instead = |url, is, form| use_instead(endpoint, url, is, form);
        match (role, self.mode.as_deref(), self.role.as_deref()) {
            (_, Some("sentinel"), _) => {
                let form = "redis+sentinel://host:port/master-name";
                Err(use_instead("redis://***", "a sentinel, which keeps no data", form))
            }
            (Role::Alone | Role::Master, Some("cluster"), _) => Err(node_of_a_cluster(endpoint)),
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

fn use_instead(endpoint: &Endpoint, url: &str, is: &str, form: &str) -> Error {
    Error::config("url", url, format!("{endpoint} is {is}: use {form}"))
}

/// What a node of a cluster is to whom it is told as a server of its own.
pub(crate) fn node_of_a_cluster(endpoint: &Endpoint) -> Error {
    let is = "a node of a cluster, which has a part of the keys";
    use_instead(endpoint, "redis://***", is, "redis+cluster://host:port")
}

/// Asks who the server is. A user without the permission to ask gets a provider that does not know.
async fn identify(settings: &Settings, link: &Link) -> Result<Server, Error> {
    let mut ask = redis::pipe();
    ask.cmd("TIME").cmd("INFO").arg("server").cmd("CLIENT").arg("ID").cmd("ROLE");
    // Does nothing: whether it may be run is what is asked. On a key that the user may touch, or the server logs a refusal.
    let lease = format!("{}l:{{}}", settings.prefix);
    ask.cmd("EVAL").arg("return 0").arg(1).arg(&lease);
    RELEASE.on(&mut ask, Form::Digest, &[&lease]).arg("");
    ask.cmd("MULTI").cmd("EXEC");
    ask.cmd("INFO").arg("replication").cmd("INFO").arg("memory");
    let before = Now::read();
    let replies = link.pipeline(&ask).await;
    let replies = replies.map_err(|error| failed(settings, &link.endpoint, error))?;
    let after = Now::read();
    let [time, info, id, role, ..] = replies.as_slice() else { return Ok(Server::default()) };
    [time, info, id, role].into_iter().try_for_each(meant)?;
    let steps = Step::ASKED.into_iter().zip(&replies);
    Ok(Server {
        refused: steps.filter(|(_, reply)| may_not_run(reply)).map(|(step, _)| step).collect(),
        time: Measured::of(time, before, after),
        run_id: field(info, "run_id:"),
        history: replies.get(Step::ASKED.len()).and_then(history),
        client_id: if let Value::Int(id) = id { Some(*id) } else { None },
        // Valkey has another name for it.
        mode: field(info, "redis_mode:").or_else(|| field(info, "server_mode:")),
        role: if let Value::Array(parts) = role {
            parts.first().and_then(text).map(str::to_owned)
        } else {
            None
        },
        full: replies.last().is_some_and(is_full),
    })
}

/// Advice about a server that is full.
pub(crate) fn stores_nothing(server: impl fmt::Display) -> String {
    format!(
        "{server} has no memory left and evicts nothing, so it stores nothing: set its maxmemory-policy to one that evicts, or \
         raise its maxmemory"
    )
}

/// Whether a server refuses values by what it says of its memory. What replicas have yet to get does not count.
fn is_full(memory: &Value) -> bool {
    let number = |name: &str| field(memory, name)?.parse::<u64>().ok();
    let evicts_nothing = field(memory, "maxmemory_policy:").is_some_and(|policy| policy == "noeviction");
    let used = number("used_memory:").unwrap_or_default();
    let counted = used.saturating_sub(number("mem_not_counted_for_evict:").unwrap_or_default());
    evicts_nothing && number("maxmemory:").is_some_and(|max| max > 0 && counted > max)
}

/// Ends the connection before this one at the server, so that bytes of it which are still on their way can never run: a
/// write that timed out must not arrive after an invalidation that was acknowledged.
///
/// Another run of the server gave that id to a stranger, who is left alone. `false`: the user has not got the permission.
async fn fence(settings: &Settings, link: &Link, last: &Server) -> Result<bool, Error> {
    let id = last.client_id.filter(|_| last.run_id.is_some() && last.run_id == link.server.run_id);
    let mut kill = redis::pipe();
    kill.cmd("CLIENT").arg("KILL").arg("ID").arg(id.unwrap_or(NOBODY));
    let replies = link.pipeline(&kill).await.map_err(|error| failed(settings, &link.endpoint, error))?;
    // It may be gone already.
    replies.iter().try_for_each(meant)?;
    Ok(!replies.iter().any(may_not_run))
}

/// No server has had so many connections.
const NOBODY: i64 = i64::MAX;

fn history(replication: &Value) -> Option<String> {
    field(replication, "master_replid:")
}

fn number_of(name: &str) -> u64 {
    xxh3_64(name.as_bytes()).max(1)
}

fn field(info: &Value, name: &str) -> Option<String> {
    let value = text(info)?.lines().find_map(|line| line.strip_prefix(name))?.trim();
    (!value.is_empty() && value.len() <= 64).then(|| value.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bulk(text: &str) -> Value {
        Value::BulkString(text.into())
    }

    #[test]
    fn a_server_is_full_that_is_over_its_limit_and_evicts_nothing() {
        let full = |max: u64, more: &str| {
            let text =
                format!("# Memory\r\nused_memory:200\r\nused_memory_peak:900\r\nmaxmemory:{max}\r\n{more}");
            is_full(&bulk(&text))
        };
        let never = "maxmemory_policy:noeviction\r\n";
        assert!(full(199, never));
        assert!(!full(0, never) && !full(200, never) && !full(199, "maxmemory_policy:allkeys-lru\r\n"));
        assert!(!full(199, &format!("{never}mem_not_counted_for_evict:1\r\n")));
        assert!(!full(1, "") && !is_full(&Value::Nil));
    }

    #[test]
    fn info_fields_are_read() {
        let info = bulk("# Server\r\nredis_version:7.0.15\r\nrun_id:abc123\r\n");
        assert_eq!(field(&info, "run_id:").as_deref(), Some("abc123"));
        assert_eq!(field(&info, "nope:"), None);
    }
}
