//! What an operator does to a server while two processes race.

use std::{collections::BTreeSet, thread::sleep, time::Duration};

use redis::{Connection, Value, cmd};
use test_servers::{MemcachedServer, RedisCluster, RedisServer};
use traced_cache::BoxError;

/// For how long it is left like that.
pub(crate) const MEDDLED: Duration = Duration::from_millis(1200);
/// How long slots stand half moved.
const HALF_MOVED: Duration = Duration::from_millis(300);

/// One thing, and how it is put right. The rights that leave no leases are not among them: less is promised then.
type Meddling = (&'static [&'static str], &'static str);

const MEDDLING: &[Meddling] = &[
    (&["FLUSHALL ASYNC"], "PING"),
    (&["SCRIPT FLUSH"], "PING"),
    (&[OTHERS_OUT], "PING"),
    (&["CLIENT PAUSE 1000 WRITE"], "PING"),
    (&["DEBUG RELOAD"], "PING"),
    (&["DEBUG SLEEP 1.5"], "PING"),
    (&["CONFIG SET maxmemory-policy noeviction", FULL], FREE),
    (&["CONFIG SET maxmemory-policy allkeys-random", FULL], FREE),
    (&["CONFIG SET maxmemory-policy allkeys-lru", FULL], FREE),
    (&["CONFIG SET maxmemory-policy volatile-ttl", FULL], FREE),
    (&["CONFIG SET requirepass other", OTHERS_OUT], RIGHTS),
    (&["ACL SETUSER default -eval -evalsha"], RIGHTS),
    (&["ACL SETUSER default -multi"], RIGHTS),
    (&["ACL SETUSER default -exec"], RIGHTS),
    (&["ACL SETUSER default -client|tracking -client|kill -time", OTHERS_OUT], RIGHTS),
    (&["ACL SETUSER default resetkeys %R~*"], RIGHTS),
    (&["ACL SETUSER default -@all"], RIGHTS),
    (&["REPLICAOF 127.0.0.1 1"], "REPLICAOF NO ONE"),
];
const OTHERS_OUT: &str = "CLIENT KILL TYPE normal SKIPME yes";
const FULL: &str = "CONFIG SET maxmemory 1";
const FREE: &str = "CONFIG SET maxmemory 0";
const RIGHTS: &str = "ACL SETUSER default on nopass allkeys allchannels +@all";

fn run(line: &str, connection: &mut Connection) -> Result<Value, BoxError> {
    let mut words = line.split(' ');
    let mut command = cmd(words.next().unwrap_or_default());
    command.arg(words.collect::<Vec<_>>());
    command.query(connection).map_err(|error| format!("{line}: {error}").into())
}

/// `before`: how often it has been done.
pub(crate) fn meddle(server: &RedisServer, before: u64) -> Result<(), BoxError> {
    let (lines, back) = MEDDLING[usize::try_from(before)? % MEDDLING.len()];
    let mut connection = server.connection()?;
    // Who takes rights away keeps his own.
    run("ACL SETUSER operator on nopass allkeys allchannels +@all", &mut connection)?;
    run("AUTH operator any", &mut connection)?;
    for line in lines {
        run(line, &mut connection)?;
    }
    sleep(MEDDLED);
    run(back, &mut connection).map(drop)
}

pub(crate) fn meddle_with_memcached(server: &MemcachedServer, before: u64) -> Result<(), BoxError> {
    let lines = ["flush_all", "flush_all 1", "cache_memlimit 1"];
    server.command(lines[usize::try_from(before)? % lines.len()])?;
    sleep(MEDDLED);
    server.command("cache_memlimit 64")?;
    Ok(())
}

/// Moves all slots with keys from one master to the next.
pub(crate) fn reshard(cluster: &RedisCluster, before: u64) -> Result<(), BoxError> {
    let nodes = cluster.nodes();
    let at = usize::try_from(before)? % nodes.len();
    let (from, to) = (&nodes[at], &nodes[(at + 1) % nodes.len()]);
    let id = |node: &RedisServer| node.command::<String>(&["CLUSTER", "MYID"]);
    let (from_id, to_id, to_port) = (id(from)?, id(to)?, to.port().to_string());
    let mut there = from.connection()?;
    let mut slots = BTreeSet::new();
    for key in cmd("KEYS").arg("*").query::<Vec<String>>(&mut there)? {
        slots.insert(cmd("CLUSTER").arg("KEYSLOT").arg(key).query::<u16>(&mut there)?.to_string());
    }
    let set = |node: &RedisServer, slot: &str, how: &str, whom: &str| {
        node.command::<()>(&["CLUSTER", "SETSLOT", slot, how, whom])
    };
    for slot in &slots {
        set(to, slot, "IMPORTING", &from_id)?;
        set(from, slot, "MIGRATING", &to_id)?;
    }
    for (number, slot) in slots.iter().enumerate() {
        if number == slots.len() / 2 {
            sleep(HALF_MOVED);
        }
        for round in 0.. {
            let count = if round == 0 { "1" } else { "100" };
            let keys: Vec<String> =
                cmd("CLUSTER").arg("GETKEYSINSLOT").arg(slot).arg(count).query(&mut there)?;
            if keys.is_empty() {
                break;
            }
            let mut migrate = cmd("MIGRATE");
            migrate.arg("127.0.0.1").arg(&to_port).arg("").arg(0).arg(5000).arg("KEYS").arg(&keys);
            migrate.query::<String>(&mut there)?;
            if round == 0 {
                sleep(Duration::from_millis(20));
            }
        }
    }
    sleep(HALF_MOVED);
    for slot in &slots {
        set(to, slot, "NODE", &to_id)?;
        for node in nodes.iter().filter(|node| node.port() != to.port()) {
            set(node, slot, "NODE", &to_id)?;
        }
    }
    Ok(())
}
