//! Asking nodes of a cluster who serves what.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use redis::{Value, cmd};
use tokio::{task::JoinSet, time::timeout};

use crate::{
    Error, ErrorKind,
    address::Endpoint,
    connection::Link,
    dial::{dial, failed},
    mux::alongside,
    settings::Settings,
    slots::{Range, ranges},
};

/// Nodes that are asked at once.
const ASKED: usize = 9;

impl super::Cluster {
    /// Nodes that may know the map.
    pub(crate) fn addresses(&self) -> Vec<Endpoint> {
        let known = self.known();
        let known = known.iter().flat_map(|map| &map.ranges);
        let known = known.flat_map(|range| std::iter::once(&range.master).chain(&range.replicas));
        let mut all: Vec<Endpoint> = known.collect::<HashSet<_>>().into_iter().cloned().collect();
        fastrand::shuffle(&mut all);
        all.truncate(ASKED - 1);
        let mut seeds: Vec<_> = self.seeds.iter().filter(|seed| !all.contains(seed)).cloned().collect();
        fastrand::shuffle(&mut seeds);
        all.extend(seeds);
        all.truncate(ASKED);
        all
    }

    /// Asks several nodes at once and takes what most of them say: one that has been cut off may say something else.
    pub(super) async fn look(&self) -> Result<Vec<Range>, Error> {
        let limit = self.settings.connect_timeout;
        let asked = self.addresses();
        let mut answers = JoinSet::new();
        for endpoint in &asked {
            let (settings, endpoint) = (Arc::clone(&self.settings), endpoint.clone());
            answers.spawn(async move {
                let answer = timeout(limit, ask(&settings, &endpoint)).await;
                let answer = answer.unwrap_or_else(|_elapsed| {
                    Err(Error::new(ErrorKind::Timeout, format!("no answer within {limit:?}")))
                });
                (endpoint, answer)
            });
        }
        let mut votes: HashMap<Vec<Range>, usize> = HashMap::new();
        let mut refusals = Vec::new();
        while let Some(answer) = answers.join_next().await {
            match answer {
                Ok((_, Ok(ranges))) => {
                    let count = votes.entry(ranges).or_default();
                    *count += 1;
                    if *count * 2 > asked.len() {
                        break;
                    }
                }
                Ok((endpoint, Err(error))) => refusals.push((endpoint, error)),
                Err(_gone) => {
                    return Err(Error::new(ErrorKind::NoRuntime, "the runtime ended while connecting"));
                }
            }
        }
        votes
            .into_iter()
            .max_by_key(|(_, count)| *count)
            .map(|(ranges, _)| ranges)
            .ok_or_else(|| nobody(refusals))
    }
}

async fn ask(settings: &Settings, endpoint: &Endpoint) -> Result<Vec<Range>, Error> {
    let (connection, mut running) = dial(settings, endpoint, &settings.login, None).await?;
    let mut question = cmd("CLUSTER");
    question.arg("SLOTS");
    let answer = alongside(&mut running, connection.command(&question)).await;
    match answer.map_err(|error| failed(settings, endpoint, error))? {
        Value::ServerError(error)
            if error.details().is_some_and(|text| text.contains("cluster support disabled")) =>
        {
            let fix = format!("{endpoint} is no node of a cluster: use redis://host:port");
            Err(Error::config("url", "redis+cluster://***", fix))
        }
        Value::ServerError(error) => Err(Error::reply(&error)),
        reply => ranges(&reply, endpoint),
    }
}

/// Whether a node is still one of a cluster. One that has been taken out goes on by itself: it knows of no slots, and of
/// messages it passes on its own alone. Who may not ask believes it.
pub(crate) async fn takes_part(link: &Link) -> Result<(), Error> {
    let mut question = cmd("CLUSTER");
    question.arg("SLOTS");
    match link.command(&question).await.map_err(Error::request)? {
        Value::ServerError(_) => Ok(()),
        reply => ranges(&reply, &link.endpoint).map(drop),
    }
}

/// Why there is no map.
fn nobody(mut refusals: Vec<(Endpoint, Error)>) -> Error {
    refusals.sort_by(|(a, _), (b, _)| a.cmp(b));
    if let Some((_, error)) = refusals.iter().find(|(_, error)| error.kind() == ErrorKind::Config) {
        return error.clone();
    }
    let kind = match refusals.first() {
        Some((_, first)) if refusals.iter().all(|(_, error)| error.kind() == first.kind()) => first.kind(),
        _ => ErrorKind::Connect,
    };
    let setting = match kind {
        ErrorKind::Auth => refusals.iter().find_map(|(_, error)| error.setting()),
        _ => None,
    };
    let each: Vec<_> = refusals
        .iter()
        .map(|(endpoint, error)| format!("{endpoint} ({})", error.at(endpoint, setting)))
        .collect();
    let message = format!("no node of the cluster says who serves what: {}", each.join(", "));
    let text = match kind {
        ErrorKind::Auth => return Error::logins(setting, message),
        ErrorKind::Connect | ErrorKind::Timeout => {
            format!("url = redis+cluster://***: {message}; start one, or correct its host and port")
        }
        _ => message,
    };
    Error::new(kind, text)
}
