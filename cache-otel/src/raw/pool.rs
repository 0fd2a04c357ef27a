//! Pools of connections, whatever pools them.

use std::{
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use opentelemetry::{
    KeyValue,
    metrics::{AsyncInstrument, Counter, Histogram, Meter},
};

use super::Failed;
use crate::{names, recorded};

/// How a pool stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PoolState {
    /// Connections in use.
    pub used: u32,
    /// Connections that wait to be used.
    pub idle: u32,
    /// The most that it may have.
    pub max: u32,
    /// Who wants one and waits.
    pub pending: u32,
}

type Read = Box<dyn Fn() -> Option<PoolState> + Send + Sync>;

/// Reports a pool by the conventions: `db.client.connection.count` by state, `.max`, `.pending_requests` read at collection;
/// `.wait_time`, `.create_time`, `.use_time`, `.timeouts` and `.errors` as the pool's user tells. Under older names
/// `redis.pool.size`, `.available`, `.pending`, `.acquire_time`, `redis.connection_pool.size`, `.available`, `.in_use`,
/// `redis_pool_connections` by `state`, and `redis.connection_errors`.
///
/// Keep it, or a clone: what is read at collection ends with the last of them, which lets go of what
/// [`observe`](Self::observe) was given.
#[derive(Clone)]
pub struct PoolTelemetry {
    name: KeyValue,
    read: Arc<Mutex<Option<Read>>>,
    wait: Histogram<f64>,
    create: Histogram<f64>,
    used: Histogram<f64>,
    timeouts: Counter<u64>,
    errors: Counter<u64>,
    seeds: bool,
}

const POOL_NAME: &str = "db.client.connection.pool.name";

impl PoolTelemetry {
    pub(crate) fn new(meter: &Meter, pool: String, seeds: bool) -> Self {
        let name = KeyValue::new(if seeds { "name" } else { POOL_NAME }, pool);
        let read: Arc<Mutex<Option<Read>>> = Arc::default();
        let observe = |metric: &'static str,
                       unit: &'static str,
                       report: fn(PoolState, &KeyValue, &dyn AsyncInstrument<i64>)| {
            // The callback lives as long as the meter provider, the pool does not.
            let (read, name) = (Arc::downgrade(&read), name.clone());
            meter
                .i64_observable_up_down_counter(metric)
                .with_unit(unit)
                .with_callback(move |to| {
                    let Some(read) = read.upgrade() else { return };
                    let read = read.lock().unwrap_or_else(PoisonError::into_inner);
                    // A panic here would end the SDK's reader, and a pool is somebody else's code.
                    let state =
                        read.as_ref().and_then(|read| catch_unwind(AssertUnwindSafe(read)).ok().flatten());
                    // Where the pool cannot be read: nothing, as nothing is known.
                    if let Some(state) = state {
                        report(state, &name, to);
                    }
                })
                .build();
        };
        if seeds {
            observe("redis.pool.size", "", |s, name, to| {
                to.observe(i64::from(s.used) + i64::from(s.idle), std::slice::from_ref(name));
            });
            observe("redis.pool.available", "", |s, name, to| {
                to.observe(s.idle.into(), std::slice::from_ref(name));
            });
            observe("redis.pool.pending", "", |s, name, to| {
                to.observe(s.pending.into(), std::slice::from_ref(name));
            });
            observe("redis.connection_pool.size", "", |s, name, to| {
                to.observe(i64::from(s.used) + i64::from(s.idle), std::slice::from_ref(name));
            });
            observe("redis.connection_pool.available", "", |s, name, to| {
                to.observe(s.idle.into(), std::slice::from_ref(name));
            });
            observe("redis.connection_pool.in_use", "", |s, name, to| {
                to.observe(s.used.into(), std::slice::from_ref(name));
            });
            observe("redis_pool_connections", "", |s, name, to| {
                to.observe(s.idle.into(), &[name.clone(), KeyValue::new("state", "available")]);
                to.observe(s.used.into(), &[name.clone(), KeyValue::new("state", "in_use")]);
            });
        } else {
            observe("db.client.connection.count", "{connection}", |s, name, to| {
                let state = |state| KeyValue::new("db.client.connection.state", state);
                to.observe(s.used.into(), &[name.clone(), state("used")]);
                to.observe(s.idle.into(), &[name.clone(), state("idle")]);
            });
            observe("db.client.connection.max", "{connection}", |s, name, to| {
                to.observe(s.max.into(), std::slice::from_ref(name));
            });
            observe("db.client.connection.pending_requests", "{request}", |s, name, to| {
                to.observe(s.pending.into(), std::slice::from_ref(name));
            });
        }
        let seconds = |name, description| recorded::seconds(meter, name, description);
        let wait = if seeds {
            recorded::milliseconds(meter, "redis.pool.acquire_time")
        } else {
            seconds("db.client.connection.wait_time", "Time that a caller waited for a connection")
        };
        let timeouts = meter
            .u64_counter("db.client.connection.timeouts")
            .with_unit("{timeout}")
            .with_description("Callers who did not get a connection in time")
            .build();
        let errors = meter
            .u64_counter(if seeds { "redis.connection_errors" } else { "db.client.connection.errors" })
            .with_unit(if seeds { "" } else { "{error}" })
            .with_description("Connections that could not be made or were lost")
            .build();
        let this = Self {
            wait,
            create: seconds("db.client.connection.create_time", "Time that making a connection took"),
            used: seconds("db.client.connection.use_time", "Time from borrowing a connection to its return"),
            timeouts,
            errors,
            name,
            read,
            seeds,
        };
        this.timeouts.add(0, std::slice::from_ref(&this.name));
        for class in [Failed::CONNECTION, Failed::TIMEOUT] {
            this.errors.add(0, &this.failed_as(&class));
        }
        this
    }

    /// How the pool's state is read, at each collection. `None`, or a panic: it could not be.
    #[must_use]
    pub fn observe(self, read: impl Fn() -> Option<PoolState> + Send + Sync + 'static) -> Self {
        *self.read.lock().unwrap_or_else(PoisonError::into_inner) = Some(Box::new(read));
        self
    }

    /// A caller has waited for a connection, and has got it.
    pub fn acquired(&self, waited: Duration) {
        let waited = if self.seeds { waited.as_secs_f64() * 1e3 } else { waited.as_secs_f64() };
        self.wait.record(waited, std::slice::from_ref(&self.name));
    }

    /// A connection has been made.
    pub fn created(&self, took: Duration) {
        self.create.record(took.as_secs_f64(), std::slice::from_ref(&self.name));
    }

    /// A connection has been given back.
    pub fn released(&self, used: Duration) {
        self.used.record(used.as_secs_f64(), std::slice::from_ref(&self.name));
    }

    /// A caller has not got a connection in time.
    pub fn timed_out(&self) {
        self.timeouts.add(1, std::slice::from_ref(&self.name));
    }

    /// A connection could not be made, or was lost.
    pub fn failed(&self, why: &Failed) {
        self.errors.add(1, &self.failed_as(why));
    }

    fn failed_as(&self, why: &Failed) -> [KeyValue; 2] {
        let key = if self.seeds { "error_type" } else { names::ERROR_TYPE };
        [self.name.clone(), KeyValue::new(key, why.class)]
    }
}

impl fmt::Debug for PoolTelemetry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PoolTelemetry").field("name", &self.name.value).finish_non_exhaustive()
    }
}
