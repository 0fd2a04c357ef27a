//! A Redis master with replicas, watched by sentinels.

use std::{collections::HashMap, time::Duration};

use crate::{Authority, RedisServer, until};

const LIMIT: Duration = Duration::from_secs(60);
const SENTINELS: usize = 3;

/// A master, one or more replicas and three sentinels of which two must agree. A dead master is replaced within seconds.
#[derive(Debug)]
pub struct RedisSentinel {
    servers: Vec<RedisServer>,
    sentinels: Vec<RedisServer>,
}

impl RedisSentinel {
    /// The name under which the sentinels know the master.
    pub const MASTER: &str = "mymaster";

    /// Starts all five and waits until the sentinels know each other and the replica. `None`: not installed, see
    /// [`require`](crate::require).
    pub fn start() -> Option<Self> {
        Self::with(1, None, None)
    }

    /// The same with this many replicas.
    pub fn with_replicas(count: usize) -> Option<Self> {
        Self::with(count, None, None)
    }

    /// The same with a password of the servers and another one of the sentinels.
    pub fn guarded(servers: &str, sentinels: &str) -> Option<Self> {
        Self::with(1, Some((servers, sentinels)), None)
    }

    /// The same over TLS, with certificates of this authority, see [`RedisServer::tls_port`]; a test itself may go without.
    pub fn with_tls(authority: &Authority) -> Option<Self> {
        Self::with(1, None, Some(authority))
    }

    /// Both: TLS, a password of the servers and another one of the sentinels.
    pub fn guarded_with_tls(servers: &str, sentinels: &str, authority: &Authority) -> Option<Self> {
        Self::with(1, Some((servers, sentinels)), Some(authority))
    }

    fn with(replicas: usize, passwords: Option<(&str, &str)>, authority: Option<&Authority>) -> Option<Self> {
        let any = || match authority {
            Some(authority) => {
                let own = authority.issue(&["127.0.0.1"]);
                RedisServer::builder().tls(authority, &own, false).config("tls-replication", "yes")
            }
            None => RedisServer::builder(),
        };
        let port = if authority.is_some() { RedisServer::tls_port } else { RedisServer::port };
        let server = || match passwords {
            Some((password, _)) => any().password(password).config("masterauth", password),
            None => any(),
        };
        let master = server().start()?;
        let replica = || server().args(["--replicaof", "127.0.0.1", &port(&master).to_string()]).start();
        let replicas = (0..replicas).map(|_| replica()).collect::<Option<Vec<_>>>()?;
        let mut config = format!(
            "sentinel monitor {name} 127.0.0.1 {port} 2\n\
             sentinel down-after-milliseconds {name} 1000\n\
             sentinel failover-timeout {name} 5000\n\
             sentinel parallel-syncs {name} 1\n",
            name = Self::MASTER,
            port = port(&master)
        );
        let mut sentinel = any();
        if let Some((servers, sentinels)) = passwords {
            config += &format!(
                "sentinel auth-pass {} {servers}\nsentinel sentinel-pass {sentinels}\n",
                Self::MASTER
            );
            sentinel = sentinel.password(sentinels);
        }
        let sentinels =
            (0..SENTINELS).map(|_| sentinel.clone().sentinel(&config).start()).collect::<Option<Vec<_>>>()?;
        let count = replicas.len();
        let servers = std::iter::once(master).chain(replicas).collect();
        let all = Self { servers, sentinels };
        let ready = until(LIMIT, || all.sentinels.iter().all(|sentinel| knows_all(sentinel, count)));
        assert!(ready, "the sentinels did not find each other; {}", all.sentinels[0].log());
        Some(all)
    }

    /// The servers; the first one began as the master.
    pub fn servers(&self) -> &[RedisServer] {
        &self.servers
    }

    /// The sentinels.
    pub fn sentinels(&self) -> &[RedisServer] {
        &self.sentinels
    }

    /// `redis+sentinel://127.0.0.1:PORT,.../mymaster`, without credentials.
    pub fn url(&self) -> String {
        let at: Vec<_> = self.sentinels.iter().map(|sentinel| sentinel.addr().to_string()).collect();
        format!("redis+sentinel://{}/{}", at.join(","), Self::MASTER)
    }

    /// `redis://127.0.0.1:PORT` of each sentinel.
    pub fn urls(&self) -> Vec<String> {
        self.sentinels.iter().map(RedisServer::url).collect()
    }

    /// The master's port, by the word of the first sentinel that answers.
    pub fn master_port(&self) -> Option<u16> {
        self.sentinels.iter().find_map(|sentinel| {
            let (_, port): (String, u16) =
                sentinel.command(&["SENTINEL", "GET-MASTER-ADDR-BY-NAME", Self::MASTER]).ok()?;
            Some(port)
        })
    }

    /// The server that is the master now, by the sentinels' word.
    pub fn master(&self) -> Option<&RedisServer> {
        let port = self.master_port()?;
        self.servers.iter().find(|server| [server.port(), server.tls_port()].contains(&port))
    }
}

fn knows_all(sentinel: &RedisServer, replicas: usize) -> bool {
    let known: HashMap<String, String> =
        sentinel.command(&["SENTINEL", "MASTER", RedisSentinel::MASTER]).unwrap_or_default();
    let count = |field: &str| known.get(field).and_then(|text| text.parse::<usize>().ok());
    let flags = known.get("flags").map(String::as_str);
    count("num-other-sentinels") == Some(SENTINELS - 1)
        && count("num-slaves") == Some(replicas)
        && flags == Some("master")
}
