//! The parent: keeps the source, starts the server and the nodes, gathers what they report.

use std::{
    process::{Command, Stdio},
    sync::Arc,
    time::Duration,
};

use tokio::{net::TcpListener, task::JoinSet};
use traced_cache::BoxError;

use crate::{
    failure::Failure,
    faults::{Fault, Server},
    options::{Kind, Levels, Options, Settings},
    remote::Remote,
    report::{Race, Report},
    source::{NODES, Table},
    subject::bound,
};

/// The control fails within moments, nearly always.
const CONTROL: u64 = 2;
/// How often it may be lucky.
const CONTROLS: usize = 5;

/// What a node runs in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Spawn {
    Processes,
    /// A test's executable is not this program: a runtime of its own for each node.
    #[cfg(test)]
    Threads,
}

/// Races the cache, then the one by hand. Faults are for the first of them only: the other one fails without.
pub(crate) fn race(options: &Options, spawn: Spawn) -> Result<Report, Failure> {
    let Options { l2, l3, seconds, fault, hasty, levels, .. } = options;
    if let Some(fault) = fault.filter(|fault| Duration::from_secs(*seconds) < fault.takes()) {
        let takes = fault.takes().as_secs() + 1;
        return Err(Failure::options(format!(
            "--seconds {seconds}: this fault takes longer; use {takes} or more"
        )));
    }
    let server = Arc::new(Server::new(l2, *fault)?);
    // What it does not suffer it need not be able to.
    let deeper = l3.as_ref().map(|l3| Server::new(l3, fault.filter(|fault| fault.alternates())));
    let deeper = deeper.transpose()?.map(Arc::new);
    let l2 = server.url();
    let runtime = tokio::runtime::Runtime::new().map_err(Failure::run)?;
    let remote = Remote::new(&l2, "race").map_err(Failure::options)?;
    runtime.block_on(remote.reach()).map_err(Failure::run)?;
    let run = async |kind, seconds, fault| {
        let rules = match kind {
            Kind::Traced => Rules { kind, seconds, fault, hasty: *hasty, levels: *levels },
            Kind::Naive => Rules { kind, seconds, fault, hasty: false, levels: Levels::Told },
        };
        one(&server, deeper.as_ref(), &remote, &rules, spawn).await.map_err(Failure::run)
    };
    runtime.block_on(async {
        let race = run(Kind::Traced, *seconds, *fault).await?;
        let mut controls = 0;
        let control = loop {
            let control = run(Kind::Naive, (*seconds).min(CONTROL), None).await?;
            controls += 1;
            if control.failed() || controls == CONTROLS {
                break control;
            }
        };
        Ok(Report { l2: remote.system(), race, control })
    })
}

/// What is raced, and how.
struct Rules {
    kind: Kind,
    seconds: u64,
    fault: Option<Fault>,
    hasty: bool,
    levels: Levels,
}

async fn one(
    server: &Arc<Server>,
    deeper: Option<&Arc<Server>>,
    remote: &Remote,
    rules: &Rules,
    spawn: Spawn,
) -> Result<Race, BoxError> {
    let Rules { kind, seconds, fault, hasty, levels } = *rules;
    let bound = bound(kind, levels, remote);
    let table = Table::new(bound);
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let source = listener.local_addr()?;
    let run = format!("race-{}", uuid::Uuid::new_v4().simple());
    let mut nodes = JoinSet::new();
    for node in 0..NODES {
        let (run, disturbed) = (run.clone(), fault.is_some());
        let (l2, l3) = (server.url(), deeper.map(|deeper| deeper.url()));
        let settings = Settings { source, l2, l3, run, node, kind, seconds, disturbed, hasty, levels };
        nodes.spawn_blocking(move || start(&settings, spawn));
    }
    let ended = async {
        while let Some(ended) = nodes.join_next().await {
            ended??;
        }
        Ok::<_, BoxError>(())
    };
    let disturbed = async {
        table.meet().await;
        let faults = match fault {
            Some(fault) => {
                let (server, deeper) = (Arc::clone(server), deeper.cloned());
                let time = Duration::from_secs(seconds);
                tokio::task::spawn_blocking(move || server.suffer(fault, time, deeper.as_deref())).await??
            }
            None => 0,
        };
        // The source stands still, and the server is well.
        table.meet().await;
        table.meet().await;
        Ok::<_, BoxError>(faults)
    };
    // When a node fails the source goes, and so the others end.
    let faults = tokio::select! {
        both = async { tokio::try_join!(ended, disturbed) } => both?.1,
        served = Arc::clone(&table).serve(listener) => return Err(served.err().map_or_else(|| "no source".into(), Into::into)),
    };
    let reports = table.reports();
    let reports = reports.iter().map(|report| serde_json::from_str(report)).collect::<Result<Vec<_>, _>>()?;
    if reports.len() != NODES {
        return Err("a node did not report".into());
    }
    Ok(Race::new(kind.as_str(), seconds, fault, faults, u64::try_from(bound.as_millis())?, reports))
}

fn start(settings: &Settings, spawn: Spawn) -> Result<(), BoxError> {
    match spawn {
        Spawn::Processes => {
            let Settings { source, l2, l3, run, node, kind, seconds, disturbed, hasty, levels } = settings;
            let mut child = Command::new(std::env::current_exe()?);
            child.args(["node", "--l2", l2, "--run", run, "--kind", kind.as_str()]);
            child.args(["--source", &source.to_string(), "--node", &node.to_string()]);
            child.args(["--seconds", &seconds.to_string(), "--levels", levels.as_str()]);
            if let Some(l3) = l3 {
                child.args(["--l3", l3]);
            }
            child.args(disturbed.then_some("--disturbed"));
            child.args(hasty.then_some("--hasty"));
            let status = child.stdin(Stdio::null()).stdout(Stdio::null()).status()?;
            if status.success() { Ok(()) } else { Err(format!("node {node} failed: {status}").into()) }
        }
        #[cfg(test)]
        Spawn::Threads => crate::node::run(settings).map_err(|failure| failure.report().0.into()),
    }
}
