//! What a Redis server says of itself, asked in the background.

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, PoisonError, RwLock},
    time::{Duration, Instant},
};

use ::redis::{Value, aio::ConnectionLike};
use opentelemetry::{Context, KeyValue, metrics::Meter, trace::FutureExt};
use tokio::task::AbortHandle;

use super::{CLIENT_NAME, ClientTelemetry};

/// A whole number of `INFO`, its name there, and the metric that shows it.
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
        self.field("mem_fragmentation_ratio")?.parse().ok()
    }

    /// Keys found over keys asked for, since the server's start; `None` before the first.
    pub fn hit_rate(&self) -> Option<f64> {
        let hits = self.number("keyspace_hits")?;
        crate::totals::share(hits, hits + self.number("keyspace_misses")?)
    }

    /// What the server does when it is full.
    pub fn policy(&self) -> Option<&str> {
        self.field("maxmemory_policy")
    }
}

type Latest = Arc<RwLock<ServerInfo>>;

/// Asks a server for `INFO` in the background, and reports what it says: `redis.memory.used`, `.rss`, `.peak`,
/// `redis.memory.fragmentation_ratio`, `redis.memory.allocator.*`, `redis.maxmemory`, `redis.maxmemory.policy` (1, by
/// `redis.policy`), `redis.keyspace.hits` and `.misses`, `redis.clients.*`, `redis.commands.processed`,
/// `redis.keys.evicted` and `.expired`, and `redis.up`. Collections read what was said last; no command of the service waits
/// for it, and none of it is in a trace. Ends when dropped.
pub struct ServerWatch {
    latest: Latest,
    task: AbortHandle,
}

impl ServerWatch {
    /// Starts to ask over a connection of its own, every so often: 30 s is usual. An answer may take as long as that.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn start(
        telemetry: &ClientTelemetry,
        connection: impl ConnectionLike + Send + 'static,
        every: Duration,
    ) -> Self {
        let latest = Latest::default();
        register(&telemetry.0.meter, &telemetry.0.name.value.as_str(), &latest);
        let asking = ask(connection, every, Arc::clone(&latest));
        let quiet = Context::new().with_telemetry_suppressed();
        Self { latest, task: tokio::spawn(asking.with_context(quiet)).abort_handle() }
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
        self.task.abort();
    }
}

impl fmt::Debug for ServerWatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerWatch").field("up", &self.is_up()).finish_non_exhaustive()
    }
}

fn read(latest: &RwLock<ServerInfo>) -> std::sync::RwLockReadGuard<'_, ServerInfo> {
    latest.read().unwrap_or_else(PoisonError::into_inner)
}

async fn ask(mut connection: impl ConnectionLike + Send, every: Duration, latest: Latest) {
    let info = ::redis::cmd("INFO");
    loop {
        let asked = tokio::time::timeout(every, connection.req_packed_command(&info)).await;
        let said = match asked {
            Ok(Ok(Value::BulkString(bytes))) => std::str::from_utf8(&bytes).ok().map(ServerInfo::parse),
            Ok(Ok(Value::VerbatimString { text, .. })) => Some(ServerInfo::parse(&text)),
            _ => None,
        };
        // A server that is silent says nothing, and what it said before is not true any more.
        *latest.write().unwrap_or_else(PoisonError::into_inner) = said.unwrap_or_default();
        tokio::time::sleep(every).await;
    }
}

fn register(meter: &Meter, client: &str, latest: &Latest) {
    let name = KeyValue::new(CLIENT_NAME, client.to_owned());
    for Shown { metric, unit, field, counts } in SHOWN {
        let (weak, name) = (Arc::downgrade(latest), name.clone());
        let said = move || weak.upgrade().and_then(|latest| read(&latest).number(field));
        if counts {
            let callback = move |to: &dyn opentelemetry::metrics::AsyncInstrument<u64>| {
                if let Some(value) = said() {
                    to.observe(value, std::slice::from_ref(&name));
                }
            };
            meter.u64_observable_counter(metric).with_unit(unit).with_callback(callback).build();
        } else {
            let callback = move |to: &dyn opentelemetry::metrics::AsyncInstrument<u64>| {
                if let Some(value) = said() {
                    to.observe(value, std::slice::from_ref(&name));
                }
            };
            meter.u64_observable_gauge(metric).with_unit(unit).with_callback(callback).build();
        }
    }
    let (weak, of) = (Arc::downgrade(latest), name.clone());
    meter
        .f64_observable_gauge("redis.memory.fragmentation_ratio")
        .with_callback(move |to| {
            if let Some(ratio) = weak.upgrade().and_then(|latest| read(&latest).fragmentation()) {
                to.observe(ratio, std::slice::from_ref(&of));
            }
        })
        .build();
    let (weak, of) = (Arc::downgrade(latest), name.clone());
    meter
        .u64_observable_gauge("redis.maxmemory.policy")
        .with_callback(move |to| {
            let policy = weak.upgrade().and_then(|latest| read(&latest).policy().map(str::to_owned));
            if let Some(policy) = policy {
                to.observe(1, &[of.clone(), KeyValue::new("redis.policy", policy)]);
            }
        })
        .build();
    let weak = Arc::downgrade(latest);
    meter
        .u64_observable_gauge("redis.up")
        .with_description("Whether the server answered when it was asked last")
        .with_callback(move |to| {
            if let Some(latest) = weak.upgrade() {
                to.observe(u64::from(read(&latest).is_up()), std::slice::from_ref(&name));
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
        let fresh = ServerInfo::parse("keyspace_hits:0\nkeyspace_misses:0\n");
        assert_eq!(fresh.hit_rate(), None);
        assert!(!ServerInfo::default().is_up());
    }
}
