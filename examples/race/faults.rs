//! What befalls the server while two processes race.

use std::{
    thread::sleep,
    time::{Duration, Instant},
};

use clap::ValueEnum;
use test_servers::{MemcachedServer, RedisCluster, RedisSentinel, RedisServer, until};
use traced_cache::BoxError;

use crate::{
    failure::Failure,
    operator::{MEDDLED, meddle, meddle_with_memcached, reshard},
};

/// Of undisturbed racing before each fault.
const CALM: Duration = Duration::from_secs(1);
/// How long a server that was killed is away.
const AWAY: Duration = Duration::from_millis(300);
/// How long one stands still.
const STILL: Duration = Duration::from_secs(2);
/// How much of the race an old dump lacks.
const OLD: Duration = Duration::from_millis(500);
/// Sentinels agree, and a server follows another one, within this.
const LIMIT: Duration = Duration::from_secs(30);

/// A fault, repeated for as long as the race lasts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Fault {
    /// The server is killed and begins again with nothing
    Kill,
    /// The server is killed and begins again with a dump of half a second before (Redis)
    Dump,
    /// The server stands still for 2 s
    Stop,
    /// The master of three servers is killed and sentinels promote another one (Redis)
    Failover,
    /// The master of three servers is replaced, and is not told for as long as sentinels take (Redis)
    Replace,
    /// An operator empties and reloads it, ends connections, takes memory and rights away, and more, in turn
    Meddle,
    /// The slots of a cluster's keys move from one of three masters to the next (Redis)
    Reshard,
}

impl Fault {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Kill => "killed",
            Self::Dump => "restarted from an old dump",
            Self::Stop => "stopped for 2 s",
            Self::Failover => "failed over",
            Self::Replace => "replaced while it is alive",
            Self::Meddle => "in the hands of an operator",
            Self::Reshard => "a cluster whose slots move",
        }
    }

    /// Whether it befalls both levels in turn, where there are two.
    pub(crate) fn alternates(self) -> bool {
        matches!(self, Self::Kill | Self::Stop)
    }

    /// What one takes, with the calm before it.
    pub(crate) fn takes(self) -> Duration {
        CALM + match self {
            Self::Kill => AWAY,
            Self::Dump => OLD,
            Self::Stop => STILL,
            // A second until the sentinels think it down, and a few until all follow the new one.
            Self::Failover => Duration::from_secs(7),
            // A moment until there is another one. That the old one follows it is not waited for.
            Self::Replace => Duration::from_secs(2),
            Self::Meddle => MEDDLED,
            Self::Reshard => Duration::from_secs(2),
        }
    }
}

/// The second level. A server of our own lives as long as this.
pub(crate) enum Server {
    Redis(RedisServer),
    Sentinel(RedisSentinel),
    Cluster(RedisCluster),
    Memcached(MemcachedServer),
    Given(String),
}

impl Server {
    pub(crate) fn new(l2: &str, fault: Option<Fault>) -> Result<Self, Failure> {
        let started = match (l2, fault) {
            ("redis", Some(Fault::Failover | Fault::Replace)) => {
                RedisSentinel::with_replicas(2).map(Self::Sentinel)
            }
            ("redis", Some(Fault::Reshard)) => RedisCluster::start(3, 0).map(Self::Cluster),
            ("redis", Some(Fault::Meddle)) => {
                RedisServer::builder().config("enable-debug-command", "yes").start().map(Self::Redis)
            }
            ("redis", _) => RedisServer::start().map(Self::Redis),
            ("memcached", None | Some(Fault::Kill | Fault::Stop | Fault::Meddle)) => {
                MemcachedServer::start().map(Self::Memcached)
            }
            ("memcached", Some(fault)) => {
                let fault = fault.to_possible_value().map(|value| value.get_name().to_owned());
                let fault = fault.unwrap_or_default();
                return Err(Failure::options(format!(
                    "--fault {fault}: memcached has neither dumps nor replicas nor slots; use `kill`, `stop` or `meddle`"
                )));
            }
            (_, Some(_)) => {
                return Err(Failure::options(
                    "--fault needs a server of its own; use --l2 redis or --l2 memcached",
                ));
            }
            (url, None) => Some(Self::Given(url.to_owned())),
        };
        let missing = format!(
            "there is no {l2} server on this machine, so nothing was raced; scripts/test installs it"
        );
        started.ok_or_else(|| Failure::options(missing))
    }

    pub(crate) fn url(&self) -> String {
        match self {
            Self::Redis(server) => server.url(),
            Self::Sentinel(servers) => servers.url(),
            Self::Cluster(cluster) => cluster.urls().swap_remove(0).replace("redis://", "redis+cluster://"),
            Self::Memcached(server) => server.url(),
            Self::Given(url) => url.clone(),
        }
    }

    /// Has the fault happen for this long, as often as it fits in, now and then to a deeper one; says how often. Both are
    /// well afterwards.
    pub(crate) fn suffer(
        &self,
        fault: Fault,
        time: Duration,
        deeper: Option<&Self>,
    ) -> Result<u64, BoxError> {
        let end = Instant::now() + time;
        let mut faults = 0;
        // Options see to it that there is time for one.
        while faults == 0 || Instant::now() + fault.takes() <= end {
            sleep(CALM);
            let deeper = deeper.filter(|_| fault.alternates() && faults % 2 == 0);
            deeper.unwrap_or(self).once(fault, faults)?;
            faults += 1;
        }
        Ok(faults)
    }

    /// `before`: how often it has happened.
    fn once(&self, fault: Fault, before: u64) -> Result<(), BoxError> {
        match (self, fault) {
            (Self::Redis(server), Fault::Kill) => {
                server.kill();
                sleep(AWAY);
                server.restart();
            }
            (Self::Redis(server), Fault::Dump) => {
                server.command::<()>(&["SAVE"])?;
                sleep(OLD);
                server.kill();
                server.restart();
            }
            (Self::Redis(server), Fault::Stop) => {
                server.stop();
                sleep(STILL);
                server.cont();
            }
            (Self::Memcached(server), Fault::Kill) => {
                server.kill();
                sleep(AWAY);
                server.restart();
            }
            (Self::Memcached(server), Fault::Stop) => {
                server.stop();
                sleep(STILL);
                server.cont();
            }
            (Self::Redis(server), Fault::Meddle) => meddle(server, before)?,
            (Self::Memcached(server), Fault::Meddle) => meddle_with_memcached(server, before)?,
            (Self::Cluster(cluster), Fault::Reshard) => reshard(cluster, before)?,
            (Self::Sentinel(servers), Fault::Failover) => fail_over(servers)?,
            (Self::Sentinel(servers), Fault::Replace) => replace(servers)?,
            _ => return Err("the server cannot suffer this".into()),
        }
        Ok(())
    }
}

fn master(servers: &RedisSentinel) -> Result<&RedisServer, BoxError> {
    Ok(servers.master().ok_or("the sentinels know no master")?)
}

/// Whether the sentinels name another master within the limit.
fn another_than(master: &RedisServer, servers: &RedisSentinel) -> bool {
    until(LIMIT, || servers.master().is_some_and(|new| new.port() != master.port()))
}

fn replace(servers: &RedisSentinel) -> Result<(), BoxError> {
    let master = master(servers)?;
    // It may still be busy with the failover before, or know of no replica that it would promote.
    let sentinel = &servers.sentinels()[0];
    let begun = || sentinel.command::<()>(&["SENTINEL", "FAILOVER", RedisSentinel::MASTER]).is_ok();
    if until(LIMIT, begun) && another_than(master, servers) {
        Ok(())
    } else {
        Err("the sentinels did not replace the master in time".into())
    }
}

fn fail_over(servers: &RedisSentinel) -> Result<(), BoxError> {
    let master = master(servers)?;
    master.kill();
    let promoted = another_than(master, servers);
    master.restart();
    let follows = |server: &RedisServer| {
        let info = server.command::<String>(&["INFO", "replication"]);
        info.is_ok_and(|info| info.contains("master_link_status:up"))
    };
    let settled = until(LIMIT, || servers.servers().iter().filter(|server| follows(server)).count() == 2);
    if promoted && settled {
        Ok(())
    } else {
        Err("the sentinels did not promote another server in time".into())
    }
}
