//! What a Redis server says of itself, asked in the background.

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
    time::{Duration, Instant},
};

use ::redis::{
    Client, Cmd, Pipeline, RedisFuture, Value,
    aio::{ConnectionLike, MultiplexedConnection},
};
use opentelemetry::{Context, KeyValue, metrics::AsyncInstrument, trace::FutureExt};
use tokio::task::AbortHandle;

use super::{CLIENT_NAME, ClientTelemetry, Inner, call::server};
use crate::{
    servers::{SHORTEST, description},
    total::Total,
};

/// A whole number of `INFO`, its name there, and the metric that shows it.
#[derive(Clone, Copy)]
struct Shown {
    metric: &'static str,
    unit: &'static str,
    field: &'static str,
    /// Only ever grows.
    counts: bool,
}

const fn held(metric: &'static str, unit: &'static str, field: &'static str) -> Shown {
    Shown { metric, unit, field, counts: false }
}

const fn counted(metric: &'static str, unit: &'static str, field: &'static str) -> Shown {
    Shown { metric, unit, field, counts: true }
}

/// Names as the OpenTelemetry Collector's Redis receiver has them, where it has one: dashboards fit both.
const SHOWN: [Shown; 18] = [
    held("redis.memory.used", "By", "used_memory"),
    held("redis.memory.rss", "By", "used_memory_rss"),
    held("redis.memory.peak", "By", "used_memory_peak"),
    held("redis.memory.lua", "By", "used_memory_lua"),
    held("redis.memory.allocator.allocated", "By", "allocator_allocated"),
    held("redis.memory.allocator.active", "By", "allocator_active"),
    held("redis.memory.allocator.resident", "By", "allocator_resident"),
    held("redis.maxmemory", "By", "maxmemory"),
    held("redis.clients.connected", "{client}", "connected_clients"),
    held("redis.clients.blocked", "{client}", "blocked_clients"),
    counted("redis.keyspace.hits", "{hit}", "keyspace_hits"),
    counted("redis.keyspace.misses", "{miss}", "keyspace_misses"),
    counted("redis.commands.processed", "{command}", "total_commands_processed"),
    counted("redis.connections.received", "{connection}", "total_connections_received"),
    counted("redis.connections.rejected", "{connection}", "rejected_connections"),
    counted("redis.keys.evicted", "{key}", "evicted_keys"),
    counted("redis.keys.expired", "{key}", "expired_keys"),
    held("redis.uptime", "s", "uptime_in_seconds"),
];

/// Under older names, where those are not what Prometheus makes of today's.
const SEEDS: [Shown; 3] = [
    held("redis_memory_max_bytes", "", "maxmemory"),
    held("redis_keyspace_read_hits", "", "keyspace_hits"),
    held("redis_keyspace_read_misses", "", "keyspace_misses"),
];

/// What a server said last.
#[derive(Clone, Debug, Default)]
pub struct ServerInfo {
    fields: HashMap<String, String>,
    /// When it said so; `None` before the first answer, and while it does not answer.
    seen: Option<Instant>,
}

impl ServerInfo {
    /// Reads the text of `INFO`.
    pub fn parse(text: &str) -> Self {
        let pairs = text.lines().filter_map(|line| line.trim_end().split_once(':'));
        Self {
            fields: pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect(),
            seen: Some(Instant::now()),
        }
    }

    /// Whether it answered when it was asked last.
    pub fn is_up(&self) -> bool {
        self.seen.is_some()
    }

    /// A field as it was sent.
    pub fn field(&self, name: &str) -> Option<&str> {
        self.fields.get(name).map(String::as_str)
    }

    /// A field that is a whole number.
    pub fn number(&self, name: &str) -> Option<u64> {
        self.field(name)?.parse().ok()
    }

    /// Memory that the server has from the system, over what it uses; 1 is best.
    pub fn fragmentation(&self) -> Option<f64> {
        // A server that uses nothing yet says `-nan`, or `inf`.
        self.field("mem_fragmentation_ratio")?.parse().ok().filter(|ratio: &f64| ratio.is_finite())
    }

    /// Keys found over keys asked for, since the server's start; `None` before the first.
    pub fn hit_rate(&self) -> Option<f64> {
        let hits = self.number("keyspace_hits")?;
        cache_core::figures::share(hits, hits.checked_add(self.number("keyspace_misses")?)?)
    }

    /// What the server does when it is full.
    pub fn policy(&self) -> Option<&str> {
        self.field("maxmemory_policy")
    }
}

type Latest = Arc<RwLock<ServerInfo>>;

/// What a client's servers say: the watches of one [`ClientTelemetry`].
#[derive(Default)]
pub(crate) struct Watches(RwLock<State>);

#[derive(Default)]
struct State {
    registered: bool,
    /// Those that have not been dropped, the newest last.
    living: Vec<Latest>,
    /// By field.
    counts: HashMap<&'static str, Total>,
}

impl State {
    fn hear(&mut self, info: &ServerInfo) {
        for Shown { field, .. } in SHOWN.iter().filter(|shown| shown.counts) {
            if let Some(now) = info.number(field) {
                self.counts.entry(field).or_default().hear(now);
            }
        }
    }
}

impl Watches {
    fn read(&self) -> RwLockReadGuard<'_, State> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, State> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a watch, and says whether it is the first: instruments are registered once, as their callbacks stay for as long
    /// as the meter provider.
    fn add(&self, latest: &Latest) -> bool {
        let mut state = self.write();
        state.living.push(Arc::clone(latest));
        !std::mem::replace(&mut state.registered, true)
    }

    fn remove(&self, latest: &Latest) {
        self.write().living.retain(|other| !Arc::ptr_eq(other, latest));
    }

    /// A watch has asked. The numbers that are reported are the newest watch's.
    fn answered(&self, latest: &Latest, info: ServerInfo) {
        let mut state = self.write();
        if state.living.last().is_some_and(|newest| Arc::ptr_eq(newest, latest)) {
            state.hear(&info);
        }
        *latest.write().unwrap_or_else(PoisonError::into_inner) = info;
    }

    /// A count, also while the server is silent: one that is left out once is taken for one that begins at zero.
    fn count(&self, field: &str) -> Option<u64> {
        let state = self.read();
        state.living.last()?;
        state.counts.get(field).map(Total::sum)
    }

    fn newest<T>(&self, say: impl FnOnce(&ServerInfo) -> Option<T>) -> Option<T> {
        say(&read(self.read().living.last()?))
    }

    /// Whether all answer; `None` where there are none.
    fn are_up(&self) -> Option<bool> {
        self.read().living.iter().map(|latest| read(latest).is_up()).reduce(|all, one| all && one)
    }
}

/// Asks a server for `INFO` in the background, and reports what it says: `redis.memory.used`, `.rss`, `.peak`,
/// `redis.memory.fragmentation_ratio`, `redis.memory.allocator.*`, `redis.maxmemory`, `redis.maxmemory.policy` (1, by
/// `redis.policy`), `redis.keyspace.hits` and `.misses`, `redis.clients.*`, `redis.commands.processed`,
/// `redis.keys.evicted` and `.expired`, and `redis.up`; by `db.client.name`, and by `server.address` and `server.port` where
/// [`ClientTelemetryBuilder::server`](super::ClientTelemetryBuilder::server) names them. Collections read what was said last;
/// no command of the service waits for it, and none of it is in a trace. Counts are the server's, and go on from where they
/// were when it begins anew. Ends when dropped.
///
/// Servers are told apart by their addresses: for each node of several a [`ClientTelemetry`] that names it, whose client's name
/// may be that of the others. Of two watches of one `ClientTelemetry` the newer one's numbers are reported, and `redis.up` is 0
/// if either server is silent.
pub struct ServerWatch {
    latest: Latest,
    watches: Arc<Watches>,
    task: AbortHandle,
}

impl ServerWatch {
    /// Starts to ask over a connection of its own, every so often: 30 s is usual. An answer may take as long as that, with the
    /// connection, which is made anew once it has failed: the server need not be there yet, and may be restarted.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn open(telemetry: &ClientTelemetry, client: Client, every: Duration) -> Self {
        Self::start(telemetry, Anew { client, connection: None }, every)
    }

    /// The same over a connection that is given. It has to find back to a server that was restarted: redis-rs's
    /// `MultiplexedConnection` never does, and `redis.up` would stay 0 for good.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn start(
        telemetry: &ClientTelemetry,
        connection: impl ConnectionLike + Send + 'static,
        every: Duration,
    ) -> Self {
        let (of, latest) = (&telemetry.0, Latest::default());
        if of.watches.add(&latest) {
            register(of);
        }
        let watches = Arc::clone(&of.watches);
        let asking = ask(connection, every.max(SHORTEST), Arc::clone(&latest), Arc::clone(&watches));
        let quiet = Context::new().with_telemetry_suppressed();
        Self { latest, watches, task: tokio::spawn(asking.with_context(quiet)).abort_handle() }
    }

    /// What the server said last.
    pub fn info(&self) -> ServerInfo {
        read(&self.latest).clone()
    }

    /// Whether the server answered when it was asked last: a health check that costs nothing.
    pub fn is_up(&self) -> bool {
        read(&self.latest).is_up()
    }
}

impl Drop for ServerWatch {
    fn drop(&mut self) {
        self.watches.remove(&self.latest);
        self.task.abort();
    }
}

impl fmt::Debug for ServerWatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerWatch").field("up", &self.is_up()).finish_non_exhaustive()
    }
}

/// A connection that is made when it is first used, and again after it has failed. redis-rs's `ConnectionManager` would go on
/// with one whose answers do not come.
struct Anew {
    client: Client,
    connection: Option<MultiplexedConnection>,
}

impl Anew {
    /// Taken away for the time of a call, so that one that fails, or whose caller gives it up, is not used again.
    async fn take(&mut self) -> ::redis::RedisResult<MultiplexedConnection> {
        match self.connection.take() {
            Some(connection) => Ok(connection),
            None => self.client.get_multiplexed_async_connection().await,
        }
    }
}

impl ConnectionLike for Anew {
    fn req_packed_command<'a>(&'a mut self, command: &'a Cmd) -> RedisFuture<'a, Value> {
        Box::pin(async move {
            let mut connection = self.take().await?;
            let said = connection.req_packed_command(command).await?;
            self.connection = Some(connection);
            Ok(said)
        })
    }

    fn req_packed_commands<'a>(
        &'a mut self,
        commands: &'a Pipeline,
        offset: usize,
        count: usize,
    ) -> RedisFuture<'a, Vec<Value>> {
        Box::pin(async move {
            let mut connection = self.take().await?;
            let said = connection.req_packed_commands(commands, offset, count).await?;
            self.connection = Some(connection);
            Ok(said)
        })
    }

    fn get_db(&self) -> i64 {
        self.connection.as_ref().map_or(0, ConnectionLike::get_db)
    }
}

fn read(latest: &RwLock<ServerInfo>) -> RwLockReadGuard<'_, ServerInfo> {
    latest.read().unwrap_or_else(PoisonError::into_inner)
}

async fn ask(
    mut connection: impl ConnectionLike + Send,
    every: Duration,
    latest: Latest,
    watches: Arc<Watches>,
) {
    let info = ::redis::cmd("INFO");
    loop {
        let asked = tokio::time::timeout(every, connection.req_packed_command(&info)).await;
        let said = match asked {
            Ok(Ok(Value::BulkString(bytes))) => std::str::from_utf8(&bytes).ok().map(ServerInfo::parse),
            Ok(Ok(Value::VerbatimString { text, .. })) => Some(ServerInfo::parse(&text)),
            _ => None,
        };
        // A server that is silent says nothing, and what it said before is not true any more.
        watches.answered(&latest, said.unwrap_or_default());
        tokio::time::sleep(every).await;
    }
}

/// The callbacks live as long as the meter provider, the client does not.
fn register(of: &Inner) {
    let meter = &of.meter;
    let all: Arc<[KeyValue]> =
        std::iter::once(KeyValue::new(CLIENT_NAME, of.name.value.clone())).chain(server(of)).collect();
    let watches = || (Arc::downgrade(&of.watches), Arc::clone(&all));
    let older = if of.seeds { &SEEDS[..] } else { &[] };
    for Shown { metric, unit, field, counts } in SHOWN.iter().chain(older).copied() {
        let (weak, of) = watches();
        if counts {
            let callback = move |to: &dyn AsyncInstrument<u64>| {
                if let Some(value) = weak.upgrade().and_then(|watches| watches.count(field)) {
                    to.observe(value, &of);
                }
            };
            let counter = meter.u64_observable_counter(metric).with_unit(unit);
            counter.with_description(description(metric)).with_callback(callback).build();
        } else {
            let callback = move |to: &dyn AsyncInstrument<u64>| {
                let number = |info: &ServerInfo| info.number(field);
                if let Some(value) = weak.upgrade().and_then(|watches| watches.newest(number)) {
                    to.observe(value, &of);
                }
            };
            let gauge = meter.u64_observable_gauge(metric).with_unit(unit);
            gauge.with_description(description(metric)).with_callback(callback).build();
        }
    }
    let (weak, of) = watches();
    meter
        .f64_observable_gauge("redis.memory.fragmentation_ratio")
        .with_description(description("redis.memory.fragmentation_ratio"))
        .with_callback(move |to| {
            if let Some(ratio) = weak.upgrade().and_then(|watches| watches.newest(ServerInfo::fragmentation))
            {
                to.observe(ratio, &of);
            }
        })
        .build();
    let (weak, of) = watches();
    meter
        .u64_observable_gauge("redis.maxmemory.policy")
        .with_description(description("redis.maxmemory.policy"))
        .with_callback(move |to| {
            let policy = |info: &ServerInfo| info.policy().map(str::to_owned);
            if let Some(policy) = weak.upgrade().and_then(|watches| watches.newest(policy)) {
                let policy = KeyValue::new("redis.policy", policy);
                to.observe(1, &of.iter().cloned().chain([policy]).collect::<Vec<_>>());
            }
        })
        .build();
    let (weak, of) = watches();
    meter
        .u64_observable_gauge("redis.up")
        .with_description(description("redis.up"))
        .with_callback(move |to| {
            if let Some(up) = weak.upgrade().and_then(|watches| watches.are_up()) {
                to.observe(u64::from(up), &of);
            }
        })
        .build();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn info_is_read_as_far_as_it_makes_sense() {
        let text = "# Memory\r\nused_memory:1024\r\nmem_fragmentation_ratio:1.25\r\nmaxmemory_policy:allkeys-lru\r\n\
                    # Stats\r\nkeyspace_hits:3\r\nkeyspace_misses:1\r\nodd\r\nmany:x\r\n";
        let info = ServerInfo::parse(text);
        assert!(info.is_up());
        assert_eq!((info.number("used_memory"), info.number("many")), (Some(1024), None));
        assert_eq!((info.fragmentation(), info.hit_rate()), (Some(1.25), Some(0.75)));
        assert_eq!(info.policy(), Some("allkeys-lru"));
        for ratio in ["-nan", "inf", ""] {
            let odd = ServerInfo::parse(&format!("mem_fragmentation_ratio:{ratio}\n"));
            assert_eq!(odd.fragmentation(), None, "{ratio}");
        }
        let huge = ServerInfo::parse(&format!("keyspace_hits:{}\nkeyspace_misses:1\n", u64::MAX));
        assert_eq!(huge.hit_rate(), None);
        let fresh = ServerInfo::parse("keyspace_hits:0\nkeyspace_misses:0\n");
        assert_eq!(fresh.hit_rate(), None);
        assert!(!ServerInfo::default().is_up());
    }
}
