//! Telemetry of raw clients: a span and a duration for each command, whatever sends it.
//!
//! [`ClientTelemetry`] is what a client's commands are reported to. For redis-rs a connection is wrapped by one line, see
//! [`redis`]; for the `memcache` crate, see [`memcached`]; any other client says what it does:
//!
//! ```
//! use cache_otel::raw::{ClientTelemetry, Command};
//!
//! # #[tokio::main]
//! # async fn main() -> Result<(), std::io::Error> {
//! let telemetry = ClientTelemetry::builder("valkey", "sessions").server("10.0.0.1", 6379).build();
//! let pong = telemetry.run(Command::named("PING"), async { Ok::<_, std::io::Error>("PONG") }).await?;
//! assert_eq!(pong, "PONG");
//! # Ok(())
//! # }
//! ```
//!
//! | what | name |
//! | --- | --- |
//! | span of a command, kind CLIENT | the command, `MULTI` or `PIPELINE` (with the command if all are the same); by the database conventions |
//! | histogram `s` | `db.client.operation.duration` by `db.system.name`, `db.operation.name`, `db.operation.class`, `db.client.name`, `server.address`, `server.port`, `error.type` |
//! | up-down counter `{operation}` | `db.client.operation.active` by `db.client.name` |
//! | counter `{lookup}` | `db.client.lookups`: keys that reads asked for, by `db.client.name`, `cache.result` (`hit`, `miss`) |
//! | counter `{command}` | `db.client.slow_commands` by `db.client.name`, `db.operation.name`, `db.operation.class`; there from an operation's first command on |
//! | counter `{pool}` | `db.client.connection.pools`: pools that have been made, by `db.client.name` |
//!
//! Under [`Vocabulary::Seeds`] the counts and times are `redis_commands_total`, `redis_command_duration_seconds`,
//! `redis_command_errors_total` by `name`, `command` (in lower case) and `status`, `redis.slow_queries` and
//! `redis.active_operations`.
//!
//! A slow command is also a line of the `tracing` facade, which users of `log` hear as well; it was chosen because its events
//! find their way into OpenTelemetry and carry the trace that they happened in. The line holds the command, the time and the
//! length of the key. Values are never recorded; keys only as [`ClientTelemetryBuilder::show_keys`] says.

mod call;
mod command;
#[cfg(feature = "memcached")]
pub mod memcached;
mod pool;
#[cfg(feature = "redis")]
pub mod redis;
#[cfg(feature = "redis")]
mod server;
mod slow;
mod summary;

use std::{fmt, sync::Arc, time::Duration};

use opentelemetry::{
    KeyValue,
    global::{self, BoxedTracer, ObjectSafeTracerProvider},
    metrics::{Counter, Histogram, Meter, MeterProvider, UpDownCounter},
    trace::FutureExt,
};

pub use call::Call;
pub use command::{Class, Command, Failed, Failure, Outcome};
pub use pool::{PoolState, PoolTelemetry};
#[cfg(feature = "redis")]
pub use server::{ServerInfo, ServerWatch};
pub use summary::CommandStatus;

pub use crate::names::CLIENT_NAME;
use crate::{Vocabulary, keys::ShowKey, names, recorded, telemetry::scope};

/// What kind of command it is: [`Class::as_str`].
pub const OPERATION_CLASS: &str = "db.operation.class";

/// What one client's commands are reported to. Cheap to clone.
#[derive(Clone)]
pub struct ClientTelemetry(Arc<Inner>);

pub(crate) struct Inner {
    pub(crate) system: &'static str,
    pub(crate) name: KeyValue,
    pub(crate) address: Option<String>,
    pub(crate) port: Option<u16>,
    pub(crate) slow_after: Duration,
    pub(crate) query_text: bool,
    pub(crate) show_key: Option<ShowKey>,
    pub(crate) tracer: BoxedTracer,
    pub(crate) meter: Meter,
    pub(crate) words: Words,
    pub(crate) active: UpDownCounter<i64>,
    pub(crate) lookups: Counter<u64>,
    pub(crate) slow: Counter<u64>,
    pub(crate) pools: Counter<u64>,
    pub(crate) slow_lines: slow::Lines,
    pub(crate) summary: summary::Summary,
    pub(crate) seeds: bool,
    #[cfg(feature = "redis")]
    pub(crate) watches: Arc<server::Watches>,
}

pub(crate) enum Words {
    Today { duration: Histogram<f64> },
    Seeds { commands: Counter<u64>, duration: Histogram<f64>, errors: Counter<u64> },
}

impl ClientTelemetry {
    /// For a client of `system` (`redis`, `memcached`, ...: `db.system.name`), told apart from others by `name`.
    pub fn builder(system: &'static str, name: impl Into<String>) -> ClientTelemetryBuilder {
        ClientTelemetryBuilder {
            system,
            name: name.into(),
            address: None,
            port: None,
            slow_after: Duration::from_millis(100),
            query_text: false,
            show_key: None,
            meter: None,
            tracer: None,
            vocabulary: Vocabulary::Today,
        }
    }

    /// Runs a command under its span, and records how it ends. If the future is dropped before that, the command is recorded as
    /// cancelled.
    pub async fn run<R, E: Failure>(
        &self,
        command: Command<'_>,
        work: impl Future<Output = Result<R, E>>,
    ) -> Result<R, E> {
        let mut call = self.start(&command);
        let ended = work.with_context(call.context()).await;
        call.end(ended.as_ref().err().map(|error| error.describe()), &Outcome::default());
        ended
    }

    /// The same for a client that blocks.
    pub fn run_blocking<R, E: Failure>(
        &self,
        command: Command<'_>,
        work: impl FnOnce() -> Result<R, E>,
    ) -> Result<R, E> {
        let mut call = self.start(&command);
        let current = call.context().attach();
        let ended = work();
        drop(current);
        call.end(ended.as_ref().err().map(|error| error.describe()), &Outcome::default());
        ended
    }

    /// Starts a command; [`Call::end`] ends it.
    pub fn start(&self, command: &Command<'_>) -> Call {
        Call::start(Arc::clone(&self.0), command)
    }

    /// How this client's commands do: counts since the start, latencies of the last one to two minutes.
    pub fn stats(&self) -> Vec<CommandStatus> {
        self.0.summary.read()
    }

    /// Reports a pool of this client's connections, and counts that it was made.
    pub fn pool(&self, pool: impl Into<String>) -> PoolTelemetry {
        self.0.pools.add(1, std::slice::from_ref(&self.0.name));
        PoolTelemetry::new(&self.0.meter, pool.into(), self.0.seeds)
    }
}

impl fmt::Debug for ClientTelemetry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientTelemetry").field("name", &self.0.name.value).finish_non_exhaustive()
    }
}

/// Sets up a [`ClientTelemetry`].
#[must_use]
pub struct ClientTelemetryBuilder {
    system: &'static str,
    name: String,
    address: Option<String>,
    port: Option<u16>,
    slow_after: Duration,
    query_text: bool,
    show_key: Option<ShowKey>,
    meter: Option<Meter>,
    tracer: Option<BoxedTracer>,
    vocabulary: Vocabulary,
}

impl ClientTelemetryBuilder {
    /// Where the server is.
    pub fn server(mut self, address: impl Into<String>, port: u16) -> Self {
        self.address = Some(address.into());
        self.port = Some(port);
        self
    }

    /// Commands that take this long or longer are slow: counted, and logged in one line; not those that are told to wait at the
    /// server, such as `BLPOP`. 100 ms by default.
    pub fn slow_after(mut self, threshold: Duration) -> Self {
        self.slow_after = threshold;
        self
    }

    /// Puts commands on spans with a `?` for each argument (`db.query.text`), those of a pipeline or a transaction with a `;`
    /// between them: `SET ? ?; GET ?`. No more than 16 arguments and commands. Off by default.
    pub fn query_text(mut self, yes: bool) -> Self {
        self.query_text = yes;
        self
    }

    /// Puts keys on spans and on slow commands' lines, in the form that `show` gives them. As
    /// [`TelemetryBuilder::show_keys`](crate::TelemetryBuilder::show_keys).
    pub fn show_keys(mut self, show: impl Fn(&str) -> Option<String> + Send + Sync + 'static) -> Self {
        self.show_key = Some(ShowKey::by(show));
        self
    }

    /// Where metrics go. The global provider by default.
    pub fn meter_provider(mut self, provider: &dyn MeterProvider) -> Self {
        self.meter = Some(provider.meter_with_scope(scope()));
        self
    }

    /// Where spans go. The global provider by default.
    pub fn tracer_provider(mut self, provider: &dyn ObjectSafeTracerProvider) -> Self {
        self.tracer = Some(BoxedTracer::new(provider.boxed_tracer(scope())));
        self
    }

    /// Which names metrics have.
    pub fn vocabulary(mut self, vocabulary: Vocabulary) -> Self {
        self.vocabulary = vocabulary;
        self
    }

    /// Registers the instruments.
    #[must_use]
    pub fn build(self) -> ClientTelemetry {
        let meter = self.meter.unwrap_or_else(|| global::meter_with_scope(scope()));
        let tracer = self.tracer.unwrap_or_else(|| global::tracer_with_scope(scope()));
        let counter = |name: &'static str, unit, description| {
            meter.u64_counter(name).with_unit(unit).with_description(description).build()
        };
        let duration = |name| recorded::seconds(&meter, name, "Time that a command to a store took");
        let seeds = self.vocabulary == Vocabulary::Seeds;
        let words = match self.vocabulary {
            Vocabulary::Today => Words::Today { duration: duration(names::DB_DURATION) },
            Vocabulary::Seeds => Words::Seeds {
                commands: counter("redis_commands", "", "Commands"),
                duration: duration("redis_command_duration"),
                errors: counter("redis_command_errors", "", "Commands that failed"),
            },
        };
        let pick = |today, then| if seeds { then } else { today };
        let name = KeyValue::new(if seeds { "name" } else { CLIENT_NAME }, self.name);
        let active = meter
            .i64_up_down_counter(pick("db.client.operation.active", "redis.active_operations"))
            .with_unit(pick("{operation}", ""))
            .with_description("Commands under way")
            .build();
        let slow = counter(
            pick("db.client.slow_commands", "redis.slow_queries"),
            pick("{command}", ""),
            "Commands over the threshold",
        );
        let lookups =
            counter("db.client.lookups", "{lookup}", "Keys that reads asked for, by what they found");
        let pools = counter("db.client.connection.pools", pick("{pool}", ""), "Pools that have been made");
        // There from zero on.
        pools.add(0, std::slice::from_ref(&name));
        active.add(0, std::slice::from_ref(&name));
        for result in ["hit", "miss"] {
            lookups.add(0, &[name.clone(), KeyValue::new(names::CACHE_RESULT, result)]);
        }
        ClientTelemetry(Arc::new(Inner {
            system: self.system,
            name,
            address: self.address,
            port: self.port,
            slow_after: self.slow_after,
            query_text: self.query_text,
            show_key: self.show_key,
            tracer,
            words,
            active,
            lookups,
            slow,
            pools,
            slow_lines: slow::Lines::default(),
            summary: summary::Summary::default(),
            seeds,
            #[cfg(feature = "redis")]
            watches: Arc::default(),
            meter,
        }))
    }
}

impl fmt::Debug for ClientTelemetryBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientTelemetryBuilder").field("name", &self.name).finish_non_exhaustive()
    }
}
