//! Instruments of the conventions for connections of clients, those of providers and those of raw clients: where a process has
//! both, the SDK must find them alike.

use opentelemetry::{
    Key,
    metrics::{AsyncInstrument, Counter, Histogram, Meter},
};

use crate::recorded;

/// Which pool: of a provider, its name.
pub(crate) const POOL_NAME: &str = "db.client.connection.pool.name";
/// `idle` or `used`.
pub(crate) const STATE: Key = Key::from_static_str("db.client.connection.state");
/// Connections by [`STATE`].
pub(crate) const COUNT: Named = ("db.client.connection.count", "{connection}", ALL);
pub(crate) const MAX: Named =
    ("db.client.connection.max", "{connection}", "The most connections that there may be");
pub(crate) const PENDING: Named = ("db.client.connection.pending_requests", "{request}", WAITING);
/// By `error.type`.
pub(crate) const ERRORS: Named = ("db.client.connection.errors", "{error}", LOST);

pub(crate) const ALL: &str = "Connections that the pool has";
pub(crate) const WAITING: &str = "Callers that wait for a connection";
pub(crate) const LOST: &str = "Connections that could not be made or were lost";

/// A metric, its unit, and what it says.
pub(crate) type Named = (&'static str, &'static str, &'static str);

/// Asked when somebody collects.
pub(crate) fn observed(
    meter: &Meter,
    (name, unit, about): Named,
    callback: impl Fn(&dyn AsyncInstrument<i64>) + Send + Sync + 'static,
) {
    let counter = meter.i64_observable_up_down_counter(name).with_unit(unit);
    counter.with_description(about).with_callback(callback).build();
}

pub(crate) fn create_time(meter: &Meter) -> Histogram<f64> {
    recorded::seconds(meter, "db.client.connection.create_time", "Time that making a connection took")
}

pub(crate) fn timeouts(meter: &Meter) -> Counter<u64> {
    meter
        .u64_counter("db.client.connection.timeouts")
        .with_unit("{timeout}")
        .with_description("Connections that were not there in time")
        .build()
}

pub(crate) fn errors(meter: &Meter, (name, unit, about): Named) -> Counter<u64> {
    meter.u64_counter(name).with_unit(unit).with_description(about).build()
}
