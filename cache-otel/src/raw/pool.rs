//! Pools of connections, whatever pools them.

use std::{
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use opentelemetry::{
    KeyValue,
    metrics::{Counter, Histogram, Meter},
};

use super::Failed;
use crate::{names, pools, recorded};

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

/// One of a pool's numbers.
type Number = fn(PoolState) -> i64;

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

impl PoolTelemetry {
    pub(crate) fn new(meter: &Meter, pool: String, seeds: bool) -> Self {
        let name = KeyValue::new(if seeds { "name" } else { pools::POOL_NAME }, pool);
        let read: Arc<Mutex<Option<Read>>> = Arc::default();
        let observe = |metric: pools::Named, numbers: &[(Number, Option<KeyValue>)]| {
            let with_name = |state: &Option<KeyValue>| std::iter::once(&name).chain(state).cloned().collect();
            let series: Vec<(Number, Vec<KeyValue>)> =
                numbers.iter().map(|(number, state)| (*number, with_name(state))).collect();
            // The callback lives as long as the meter provider, the pool does not.
            let read = Arc::downgrade(&read);
            pools::observed(meter, metric, move |to| {
                let Some(read) = read.upgrade() else { return };
                let read = read.lock().unwrap_or_else(PoisonError::into_inner);
                // A panic here would end the SDK's reader, and a pool is somebody else's code.
                let state =
                    read.as_ref().and_then(|read| catch_unwind(AssertUnwindSafe(read)).ok().flatten());
                // Where the pool cannot be read: nothing, as nothing is known.
                let Some(state) = state else { return };
                for (number, attributes) in &series {
                    to.observe(number(state), attributes);
                }
            });
        };
        let [size, idle, used, max, pending]: [Number; 5] = [
            |pool| i64::from(pool.used) + i64::from(pool.idle),
            |pool| pool.idle.into(),
            |pool| pool.used.into(),
            |pool| pool.max.into(),
            |pool| pool.pending.into(),
        ];
        if seeds {
            let free = "Connections that are free";
            observe(("redis.pool.size", "", pools::ALL), &[(size, None)]);
            observe(("redis.pool.available", "", free), &[(idle, None)]);
            observe(("redis.pool.pending", "", pools::WAITING), &[(pending, None)]);
            observe(("redis.connection_pool.size", "", pools::ALL), &[(size, None)]);
            observe(("redis.connection_pool.available", "", free), &[(idle, None)]);
            observe(("redis.connection_pool.in_use", "", "Connections in use"), &[(used, None)]);
            let state = |state| Some(KeyValue::new("state", state));
            let by_state = [(idle, state("available")), (used, state("in_use"))];
            observe(("redis_pool_connections", "", pools::ALL), &by_state);
        } else {
            let state = |state| Some(KeyValue::new(pools::STATE, state));
            observe(pools::COUNT, &[(used, state("used")), (idle, state("idle"))]);
            observe(pools::MAX, &[(max, None)]);
            observe(pools::PENDING, &[(pending, None)]);
        }
        let seconds = |name, description| recorded::seconds(meter, name, description);
        let wait = if seeds {
            recorded::milliseconds(meter, "redis.pool.acquire_time")
        } else {
            seconds("db.client.connection.wait_time", "Time that a caller waited for a connection")
        };
        let errors = if seeds { ("redis.connection_errors", "", pools::LOST) } else { pools::ERRORS };
        let this = Self {
            wait,
            create: pools::create_time(meter),
            used: seconds("db.client.connection.use_time", "Time from borrowing a connection to its return"),
            timeouts: pools::timeouts(meter),
            errors: pools::errors(meter, errors),
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
