//! What servers and connections say of themselves, for those who watch them.

use std::time::Duration;

use cache_core::ServerStatus;

use crate::keeper::Keeper;

/// A server by its own word (`INFO`). `None`: it did not say.
#[non_exhaustive]
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ServerInfo {
    /// Where it listens: `host:port`, or the path of its socket.
    pub address: String,
    /// Its release, of Valkey that of the Redis that it is compatible with.
    pub version: Option<String>,
    /// `master` or `slave`.
    pub role: Option<String>,
    /// Time since its start.
    pub uptime: Option<Duration>,
    /// Bytes that it has allocated.
    pub memory_used: Option<u64>,
    /// Bytes that the system has given it.
    pub memory_rss: Option<u64>,
    /// Most bytes that it had allocated at any time.
    pub memory_peak: Option<u64>,
    /// Resident over allocated.
    pub memory_fragmentation: Option<f64>,
    /// Its allocator.
    pub memory_allocator: Option<String>,
    /// Most bytes that it may allocate; 0: no limit.
    pub memory_max: Option<u64>,
    /// What it does at that limit: `noeviction`, `allkeys-lru`, ...
    pub memory_policy: Option<String>,
    /// Look-ups of keys that it held, of all its clients.
    pub keyspace_hits: Option<u64>,
    /// Look-ups of keys that it did not hold.
    pub keyspace_misses: Option<u64>,
    /// Connections.
    pub clients: Option<u64>,
    /// Commands that it has run.
    pub commands: Option<u64>,
    /// Keys that it let go for want of memory.
    pub evicted_keys: Option<u64>,
    /// Keys whose time was over.
    pub expired_keys: Option<u64>,
    /// Keys that it holds, in all databases.
    pub keys: Option<u64>,
}

impl ServerInfo {
    pub(crate) fn read(address: String, info: &str) -> Self {
        let field = |name: &str| {
            let of = |line: &'_ str| line.strip_prefix(name)?.strip_prefix(':').map(str::to_owned);
            info.lines().find_map(of).filter(|text| text.len() <= 100)
        };
        let number = |name: &str| field(name)?.parse::<u64>().ok();
        Self {
            address,
            version: field("redis_version"),
            role: field("role"),
            uptime: number("uptime_in_seconds").map(Duration::from_secs),
            memory_used: number("used_memory"),
            memory_rss: number("used_memory_rss"),
            memory_peak: number("used_memory_peak"),
            // A server that uses nothing yet says `-nan`, or `inf`.
            memory_fragmentation: field("mem_fragmentation_ratio")
                .and_then(|text| text.parse().ok())
                .filter(|ratio: &f64| ratio.is_finite()),
            memory_allocator: field("mem_allocator"),
            memory_max: number("maxmemory"),
            memory_policy: field("maxmemory_policy"),
            keyspace_hits: number("keyspace_hits"),
            keyspace_misses: number("keyspace_misses"),
            clients: number("connected_clients"),
            commands: number("total_commands_processed"),
            evicted_keys: number("evicted_keys"),
            expired_keys: number("expired_keys"),
            keys: info
                .contains("# Keyspace")
                .then(|| info.lines().filter_map(keys).fold(0, u64::saturating_add)),
        }
    }
}

impl From<ServerInfo> for ServerStatus {
    fn from(info: ServerInfo) -> Self {
        let mut status = Self::at(info.address);
        status.version = info.version;
        status.uptime = info.uptime;
        status.memory_used = info.memory_used;
        status.memory_max = info.memory_max;
        status.memory_policy = info.memory_policy;
        status.items = info.keys;
        status.hits = info.keyspace_hits;
        status.misses = info.keyspace_misses;
        status.evicted = info.evicted_keys;
        status.connections = info.clients;
        status
    }
}

/// Of `db0:keys=3,expires=1,...`.
fn keys(line: &str) -> Option<u64> {
    let (database, rest) = line.strip_prefix("db")?.split_once(":keys=")?;
    database.parse::<u32>().ok()?;
    rest.split(',').next()?.parse().ok()
}

/// A connection as it stands.
#[non_exhaustive]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConnectionInfo {
    /// Where it leads: `host:port`, or the path of a socket. While there is none, where the next one would, or the first
    /// sentinel.
    pub address: String,
    /// `idle` (nobody has asked), `connecting`, `up`, `down` (the last attempt failed) or `closed`.
    pub state: &'static str,
    /// Number of the attempt that made it, 0 while there is none.
    pub generation: u64,
    /// Connections that were made after the first one.
    pub reconnects: u64,
    /// Requests that somebody waits for, but for those that wait for room in a crowded connection.
    pub in_flight: u64,
}

impl ConnectionInfo {
    pub(crate) fn of(keeper: &Keeper) -> Self {
        let (state, link) = keeper.inspect(|state| (state.as_str(), state.up().cloned()));
        let at = link.as_ref().map_or_else(|| keeper.endpoint(), |link| &link.endpoint);
        Self {
            address: at.to_string(),
            state,
            generation: link.as_ref().map_or(0, |link| link.generation),
            reconnects: keeper.reconnects(),
            in_flight: link.as_ref().map_or(0, |link| link.in_flight()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_said_is_not_made_up() {
        let text = "# Memory\r\nused_memory:123\r\nused_memory_rss:x\r\nmem_fragmentation_ratio:1.50\r\nrole:master\r\n\
            # Keyspace\r\ndb0:keys=3,expires=1,avg_ttl=0\r\ndb11:keys=4,expires=0,avg_ttl=0\r\n";
        let info = ServerInfo::read("here".into(), text);
        let read = ServerInfo {
            address: "here".into(),
            memory_used: Some(123),
            memory_fragmentation: Some(1.5),
            role: Some("master".into()),
            keys: Some(7),
            ..ServerInfo::default()
        };
        assert_eq!(info, read);
        let odd =
            "mem_fragmentation_ratio:-nan\r\n# Keyspace\r\ndb0:keys=18446744073709551615\r\ndb1:keys=1\r\n";
        let odd = ServerInfo::read("here".into(), odd);
        assert_eq!((odd.memory_fragmentation, odd.keys), (None, Some(u64::MAX)));
        assert_eq!(
            ServerInfo::read("here".into(), ""),
            ServerInfo { address: "here".into(), ..Default::default() }
        );
    }
}
