//! A Redis cluster.

use std::{collections::HashSet, process::Command, time::Duration};

use crate::{Authority, RedisBuilder, RedisServer, Server, require, require::find, until};

const LIMIT: Duration = Duration::from_secs(60);

/// A Redis cluster on loopback: masters that share all slots, and replicas of each.
#[derive(Debug)]
pub struct RedisCluster {
    nodes: Vec<RedisServer>,
}

impl RedisCluster {
    /// Starts `masters` (at least 3) with `replicas` each, and waits until all of them agree that the cluster is whole.
    /// Takes some seconds. `None`: not installed, see [`require`].
    pub fn start(masters: usize, replicas: usize) -> Option<Self> {
        Self::of(masters, replicas, &node(), None)
    }

    /// The same over TLS, with a certificate of this authority, see [`RedisServer::tls_port`]; a test itself may go without.
    pub fn with_tls(masters: usize, replicas: usize, authority: &Authority) -> Option<Self> {
        let own = authority.issue(&["127.0.0.1"]);
        let node =
            node().tls(authority, &own, false).config("tls-cluster", "yes").config("tls-replication", "yes");
        Self::of(masters, replicas, &node, Some(authority))
    }

    fn of(
        masters: usize,
        replicas: usize,
        node: &RedisBuilder,
        authority: Option<&Authority>,
    ) -> Option<Self> {
        assert!(masters >= 3, "masters = {masters}: a cluster needs at least 3");
        require(Server::Redis)?;
        let client =
            find(&["redis-cli", "valkey-cli"]).expect("redis-cli is not installed beside redis-server");
        let nodes =
            (0..masters * (replicas + 1)).map(|_| node.clone().start()).collect::<Option<Vec<_>>>()?;
        let mut command = Command::new(client);
        let port = match authority {
            Some(authority) => {
                command.arg("--tls").arg("--cacert").arg(authority.ca_file());
                RedisServer::tls_port
            }
            None => RedisServer::port,
        };
        let created = command
            .args(["--cluster", "create"])
            .args(nodes.iter().map(|node| format!("127.0.0.1:{}", port(node))))
            .args(["--cluster-replicas", &replicas.to_string(), "--cluster-yes"])
            .output()
            .expect("cannot run redis-cli");
        assert!(
            created.status.success(),
            "redis-cli --cluster create: {}{}",
            String::from_utf8_lossy(&created.stdout),
            String::from_utf8_lossy(&created.stderr)
        );
        let cluster = Self { nodes };
        let whole = until(LIMIT, || cluster.nodes.iter().all(|node| agrees(node, masters, replicas)));
        assert!(whole, "the cluster did not become whole; {}", cluster.nodes[0].log());
        Some(cluster)
    }

    /// All nodes, as they were started; roles change with failovers.
    pub fn nodes(&self) -> &[RedisServer] {
        &self.nodes
    }

    /// `redis://127.0.0.1:PORT` of each node.
    pub fn urls(&self) -> Vec<String> {
        self.nodes.iter().map(RedisServer::url).collect()
    }

    /// The nodes that are masters now, by their own word. A node that does not answer is none.
    pub fn masters(&self) -> Vec<&RedisServer> {
        self.nodes.iter().filter(|node| is_master(node)).collect()
    }

    /// The node that serves a key's slot, as far as the first node that answers knows.
    pub fn owner(&self, key: &str) -> Option<&RedisServer> {
        let asked = self.nodes.iter().find(|node| node.command::<String>(&["PING"]).is_ok())?;
        let slot: u16 = asked.command(&["CLUSTER", "KEYSLOT", key]).ok()?;
        let slots: Vec<Vec<redis::Value>> = asked.command(&["CLUSTER", "SLOTS"]).ok()?;
        let port = slots.iter().find_map(|range| {
            let [first, last, master, ..] = range.as_slice() else { return None };
            let first: u16 = redis::from_redis_value(first.clone()).ok()?;
            let last: u16 = redis::from_redis_value(last.clone()).ok()?;
            let redis::Value::Array(master) = master else { return None };
            (first..=last)
                .contains(&slot)
                .then(|| redis::from_redis_value::<u16>(master.get(1)?.clone()).ok())?
        })?;
        self.nodes.iter().find(|node| node.port() == port)
    }
}

fn node() -> RedisBuilder {
    RedisServer::builder()
        .config("cluster-enabled", "yes")
        .config("cluster-config-file", "nodes.conf")
        // Failovers must not take the default 15 s, and a busy machine must not cause them.
        .config("cluster-node-timeout", "3000")
        .config("cluster-replica-validity-factor", "0")
}

fn is_master(node: &RedisServer) -> bool {
    node.command::<String>(&["INFO", "replication"]).is_ok_and(|info| info.contains("role:master"))
}

fn agrees(node: &RedisServer, masters: usize, replicas: usize) -> bool {
    let info = node.command::<String>(&["CLUSTER", "INFO"]).unwrap_or_default();
    let known: HashSet<String> = node
        .command::<String>(&["CLUSTER", "NODES"])
        .unwrap_or_default()
        .lines()
        .filter(|line| !line.contains("fail") && !line.contains("handshake"))
        .filter_map(|line| line.split_whitespace().next().map(str::to_owned))
        .collect();
    let replication = node.command::<String>(&["INFO", "replication"]).unwrap_or_default();
    let synced = if replication.contains("role:master") {
        replication.contains(&format!("connected_slaves:{replicas}\r\n"))
    } else {
        replication.contains("master_link_status:up")
    };
    info.contains("cluster_state:ok")
        && info.contains("cluster_slots_ok:16384")
        && info.contains(&format!("cluster_size:{masters}\r\n"))
        && known.len() == masters * (replicas + 1)
        && synced
}
