//! The servers behind a provider: which one a key belongs to, and what is sent there.

use std::{fmt, sync::Arc};

use bytes::Bytes;
use cache_core::{PoolStatus, state_of_marker};
use futures::{FutureExt, future::join_all};
use redis::{Pipeline, Value, cmd};

use crate::{
    Error, ErrorKind,
    address::Place,
    advice::Advice,
    cluster::Cluster,
    connection::{Link, Pushes},
    home::Home,
    info::{ConnectionInfo, ServerInfo},
    keeper::Keeper,
    node::Node,
    read::Several,
    scripts::Form,
    settings::Settings,
    state::State,
    units::{Repeat, Replies},
    watch::Watch,
    wire,
};

pub(crate) enum Fleet {
    One(One),
    Cluster(Arc<Cluster>),
}

/// One server, and one that follows it.
pub(crate) struct One {
    master: Node,
    /// For those who accept stale answers.
    replica: Option<Node>,
}

impl Fleet {
    pub(crate) fn new(settings: Arc<Settings>, watch: &Arc<Watch>, advice: &Arc<Advice>) -> Self {
        let pushes = Pushes::watched(watch, advice);
        match &settings.place {
            Place::Cluster { .. } => Self::Cluster(Cluster::new(settings, pushes, Arc::clone(advice))),
            Place::One(_) | Place::Sentinels { .. } => {
                let home = Home::of(&settings.place);
                let replica = match &home {
                    Home::Sentinels(sentinels) if settings.read_replicas => {
                        let home = Home::Replica(sentinels.clone());
                        let unheard = Pushes::unheard(advice).counted_with(&pushes);
                        let keeper = Keeper::new(Arc::clone(&settings), home, unheard);
                        Some(Node::new(keeper, Several::Mget))
                    }
                    _ => None,
                };
                let master = Node::new(Keeper::new(settings, home, pushes), Several::Mget);
                Self::One(One { master, replica })
            }
        }
    }

    /// Connects now.
    pub(crate) async fn connect(&self) -> Result<(), Error> {
        match self {
            Self::One(one) => one.master.keeper.link().await.map(drop),
            Self::Cluster(cluster) => {
                let map = cluster.map().await?;
                let links = join_all(map.masters().iter().map(|node| node.keeper.link())).await;
                links.into_iter().try_for_each(|link| link.map(drop))
            }
        }
    }

    /// Connects, if nobody has asked for it yet, and does not wait.
    pub(crate) fn wake(&self) {
        match self {
            Self::One(one) => one.master.keeper.wake(),
            Self::Cluster(cluster) => cluster.wake(),
        }
    }

    /// A connection to any of them.
    pub(crate) async fn link(&self) -> Result<Arc<Link>, Error> {
        match self {
            Self::One(one) => one.master.keeper.link().await,
            Self::Cluster(cluster) => {
                let map = cluster.map().await?;
                let mut last = None;
                for node in map.masters() {
                    match node.keeper.link().await {
                        Ok(link) => return Ok(link),
                        Err(error) => last = Some(error),
                    }
                }
                Err(last.unwrap_or_else(|| Error::new(ErrorKind::Unavailable, "the cluster has no master")))
            }
        }
    }

    /// Which of several servers keeps a key, by a number, as far as is known now. `key` makes it as it is on the wire.
    pub(crate) fn server_of(&self, key: impl FnOnce() -> String) -> Option<u64> {
        match self {
            Self::One(_) => None,
            Self::Cluster(cluster) => cluster.server_of(&key()),
        }
    }

    /// Looks up one key, given as it is on the wire.
    #[allow(clippy::manual_async_fn, reason = "an `async fn` would keep each argument twice")]
    pub(crate) fn get(&self, key: &str) -> impl Future<Output = Result<Option<Bytes>, Error>> + Send {
        async move {
            match self {
                Self::One(one) => one.master.get(key).await,
                Self::Cluster(cluster) => cluster.get(key).boxed().await,
            }
        }
    }

    /// Looks up several keys, given as they are on the wire, in one round trip to each server.
    pub(crate) async fn get_many(&self, keys: &[&str]) -> Vec<Result<Option<Bytes>, Error>> {
        match self {
            Self::One(one) => one.master.get_many(keys).await,
            Self::Cluster(cluster) => cluster.get_many(keys).await,
        }
    }

    /// Looks up several keys on replicas, where there are any to be reached.
    pub(crate) async fn get_copies(&self, keys: &[&str]) -> Vec<Result<Option<Bytes>, Error>> {
        match self {
            Self::One(One { replica: Some(replica), .. }) => replica.get_many(keys).await,
            Self::One(_) => vec![Err(no_replica()); keys.len()],
            Self::Cluster(cluster) => cluster.get_copies(keys).await,
        }
    }

    /// The command by which several keys are looked up.
    pub(crate) const fn several(&self) -> &'static str {
        match self {
            Self::One(_) => "MGET",
            Self::Cluster(_) => "GET",
        }
    }

    /// Runs units of commands, each of which concerns one key, or several in one slot: `key` gives one of them. `add` puts
    /// a unit into the pipeline and says how many commands it has.
    ///
    /// One round trip to each server. Units of which a server does not know the script are run once more, with its text.
    pub(crate) async fn units(
        &self,
        count: usize,
        key: impl Fn(usize) -> String,
        repeat: Repeat,
        add: impl Fn(&mut Pipeline, usize, Form) -> usize + Send + Sync,
    ) -> Replies {
        let all: Vec<usize> = (0..count).collect();
        match self {
            Self::One(one) => one.master.keeper.units(&all, repeat, &add).await,
            Self::Cluster(cluster) => cluster.units(all, key, repeat, &add).await,
        }
    }

    pub(crate) async fn ping(&self) -> Result<(), Error> {
        match self {
            Self::One(one) => wire::done(one.master.keeper.read(&cmd("PING")).await?),
            Self::Cluster(cluster) => cluster.ping().await,
        }
    }

    /// Takes note of an error that a new connection, or another look at the cluster, may heal.
    pub(crate) fn heed<T>(&self, result: Result<T, Error>) -> Result<T, Error> {
        if let Err(error) = &result {
            match self {
                // After a failover the address may lead to the new master by now.
                Self::One(one) if error.kind() == ErrorKind::ReadOnly => one.master.keeper.renew(),
                Self::One(one) if error.kind() == ErrorKind::Protocol => one.master.keeper.distrust(),
                Self::One(_) => {}
                Self::Cluster(cluster) => cluster.heed(error),
            }
        }
        result
    }

    /// To be called after a marker has been read: from then on the number that it carries is known here, too.
    pub(crate) async fn recognise(&self, marker: Option<&[u8]>) -> Result<(), Error> {
        // A marker with the number that is known says nothing new, so no server needs to be asked.
        match self {
            _ if marker.and_then(state_of_marker) == Some(self.incarnation()) => Ok(()),
            Self::One(one) => one.master.keeper.recognise().await,
            Self::Cluster(cluster) => cluster.recognise().await,
        }
    }

    /// Whether scripts may be run, as far as is known.
    pub(crate) fn runs_scripts(&self) -> bool {
        match self {
            Self::One(one) => one.master.keeper.runs_scripts(),
            Self::Cluster(cluster) => cluster.all(Keeper::runs_scripts),
        }
    }

    /// The connections as they stand, one to each server that is known.
    pub(crate) fn connections(&self) -> Vec<ConnectionInfo> {
        match self {
            Self::One(one) => {
                let nodes = std::iter::once(&one.master).chain(&one.replica);
                nodes.map(|node| ConnectionInfo::of(&node.keeper)).collect()
            }
            Self::Cluster(cluster) => {
                cluster.nodes().iter().map(|node| ConnectionInfo::of(&node.keeper)).collect()
            }
        }
    }

    /// The same in numbers, with what has come of making them.
    pub(crate) fn pool(&self) -> Option<PoolStatus> {
        let mut pool = match self {
            Self::One(one) => one.master.keeper.dials().status(),
            Self::Cluster(cluster) => cluster.dials().status(),
        };
        let mut rests = true;
        for connection in self.connections() {
            pool.max += 1;
            pool.idle += u64::from(connection.state == "up");
            rests &= matches!(connection.state, "idle" | "closed");
        }
        (!rests || pool.pending > 0).then_some(pool)
    }

    /// Asks each server about itself, and says of each what came of it. `Err`: not even which there are is known.
    pub(crate) async fn each_info(&self) -> Result<Vec<Result<ServerInfo, Error>>, Error> {
        match self {
            Self::One(one) => Ok(vec![ask_info(&one.master.keeper).await]),
            Self::Cluster(cluster) => {
                let map = cluster.map().await?;
                Ok(join_all(map.masters().iter().map(|node| ask_info(&node.keeper))).await)
            }
        }
    }

    /// Those that do not answer are left out, unless none does.
    pub(crate) async fn info(&self) -> Result<Vec<ServerInfo>, Error> {
        let (found, mut failed): (Vec<_>, Vec<_>) =
            self.each_info().await?.into_iter().partition(Result::is_ok);
        match failed.pop() {
            Some(Err(error)) if found.is_empty() => Err(error),
            _ => Ok(found.into_iter().flatten().collect()),
        }
    }

    pub(crate) fn incarnation(&self) -> u64 {
        match self {
            Self::One(one) => one.master.keeper.incarnation(),
            Self::Cluster(cluster) => cluster.incarnation(),
        }
    }

    pub(crate) fn time_offset_ms(&self) -> i64 {
        match self {
            Self::One(one) => one.master.keeper.time_offset_ms(),
            Self::Cluster(cluster) => cluster.time_offset_ms(),
        }
    }

    /// For those who need one connection of their own, to any server that hears all messages.
    pub(crate) fn home(&self, settings: &Settings) -> Home {
        match self {
            Self::One(_) => Home::of(&settings.place),
            Self::Cluster(cluster) => {
                let cluster = Arc::clone(cluster);
                Home::Any(Arc::new(move || cluster.addresses()))
            }
        }
    }

    pub(crate) fn close_soon(&self) {
        match self {
            Self::One(one) => {
                let nodes = std::iter::once(&one.master).chain(&one.replica);
                nodes.for_each(|node| node.keeper.close_soon());
            }
            Self::Cluster(cluster) => cluster.close_soon(),
        }
    }

    /// Closes, and waits until all connections are gone.
    pub(crate) async fn close(&self) {
        match self {
            Self::One(one) => {
                let nodes = std::iter::once(&one.master).chain(&one.replica);
                join_all(nodes.map(|node| node.keeper.close())).await;
            }
            Self::Cluster(cluster) => cluster.close().await,
        }
    }
}

pub(crate) fn no_replica() -> Error {
    Error::new(ErrorKind::Unavailable, "there is no replica that could be asked")
}

async fn ask_info(keeper: &Arc<Keeper>) -> Result<ServerInfo, Error> {
    let reply = keeper.read(&cmd("INFO")).await?;
    if let Value::ServerError(error) = &reply {
        return Err(Error::reply(error));
    }
    let address = keeper.inspect(|state| match state {
        State::Up(link) => link.endpoint.to_string(),
        _ => keeper.endpoint().to_string(),
    });
    Ok(ServerInfo::read(address, wire::text(&reply).unwrap_or_default()))
}

impl fmt::Debug for Fleet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::One(one) => one.master.keeper.fmt(f),
            Self::Cluster(cluster) => cluster.fmt(f),
        }
    }
}
