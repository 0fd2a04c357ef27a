//! The parent: keeps the source, starts the server and the nodes, gathers what they report.

use std::{
    process::{Command, Stdio},
    sync::Arc,
};

use test_servers::{MemcachedServer, RedisServer};
use tokio::{net::TcpListener, task::JoinSet};
use traced_cache::BoxError;

use crate::{
    failure::Failure,
    options::{Kind, Options, Settings},
    remote::Remote,
    report::{Race, Report},
    source::{NODES, Table},
    subject::bound,
};

/// The control fails within moments.
const CONTROL: u64 = 5;

/// What a node runs in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Spawn {
    Processes,
    /// A test's executable is not this program: a runtime of its own for each node.
    #[cfg(test)]
    Threads,
}

/// A server of our own lives as long as this.
enum Server {
    Redis(RedisServer),
    Memcached(MemcachedServer),
    Given(String),
}

impl Server {
    fn new(l2: &str) -> Result<Self, Failure> {
        let started = match l2 {
            "redis" => RedisServer::start().map(Self::Redis),
            "memcached" => MemcachedServer::start().map(Self::Memcached),
            url => Some(Self::Given(url.to_owned())),
        };
        let missing = format!(
            "there is no {l2} server on this machine, so nothing was raced; scripts/test installs it"
        );
        started.ok_or_else(|| Failure::options(missing))
    }

    fn url(&self) -> String {
        match self {
            Self::Redis(server) => server.url(),
            Self::Memcached(server) => server.url(),
            Self::Given(url) => url.clone(),
        }
    }
}

/// Races the cache, then the one by hand.
pub(crate) fn race(options: &Options, spawn: Spawn) -> Result<Report, Failure> {
    let server = Server::new(&options.l2)?;
    let l2 = server.url();
    let runtime = tokio::runtime::Runtime::new().map_err(Failure::run)?;
    let remote = Remote::new(&l2, "race").map_err(Failure::options)?;
    runtime.block_on(remote.reach()).map_err(Failure::run)?;
    let run = async |kind, seconds| one(&l2, &remote, kind, seconds, spawn).await.map_err(Failure::run);
    runtime.block_on(async {
        let race = run(Kind::Traced, options.seconds).await?;
        let control = run(Kind::Naive, options.seconds.min(CONTROL)).await?;
        Ok(Report { l2: remote.system(), race, control })
    })
}

async fn one(l2: &str, remote: &Remote, kind: Kind, seconds: u64, spawn: Spawn) -> Result<Race, BoxError> {
    let bound = bound(kind, remote);
    let table = Table::new(bound);
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let source = listener.local_addr()?;
    let run = format!("race-{}", uuid::Uuid::new_v4().simple());
    let mut nodes = JoinSet::new();
    for node in 0..NODES {
        let settings = Settings { source, l2: l2.to_owned(), run: run.clone(), node, kind, seconds };
        nodes.spawn_blocking(move || start(&settings, spawn));
    }
    let ended = async {
        while let Some(ended) = nodes.join_next().await {
            ended??;
        }
        Ok::<_, BoxError>(())
    };
    // When a node fails the source goes, and so the others end.
    tokio::select! {
        ended = ended => ended?,
        served = Arc::clone(&table).serve(listener) => served?,
    }
    let reports = table.reports();
    let reports = reports.iter().map(|report| serde_json::from_str(report)).collect::<Result<Vec<_>, _>>()?;
    if reports.len() != NODES {
        return Err("a node did not report".into());
    }
    Ok(Race::new(kind.as_str(), seconds, u64::try_from(bound.as_millis())?, reports))
}

fn start(settings: &Settings, spawn: Spawn) -> Result<(), BoxError> {
    match spawn {
        Spawn::Processes => {
            let Settings { source, l2, run, node, kind, seconds } = settings;
            let mut child = Command::new(std::env::current_exe()?);
            child.args(["node", "--l2", l2, "--run", run, "--kind", kind.as_str()]);
            child.args(["--source", &source.to_string(), "--node", &node.to_string()]);
            child.args(["--seconds", &seconds.to_string()]);
            let status = child.stdin(Stdio::null()).stdout(Stdio::null()).status()?;
            if status.success() { Ok(()) } else { Err(format!("node {node} failed: {status}").into()) }
        }
        #[cfg(test)]
        Spawn::Threads => crate::node::run(settings).map_err(|failure| failure.report().0.into()),
    }
}
