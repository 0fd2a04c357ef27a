//! Instruments of the conventions for connections of clients, those of providers and those of raw clients: where a process has
//! both, the SDK must find them alike.

use opentelemetry::{
    Key,
    metrics::{Counter, Histogram, Meter},
};

use crate::recorded;

/// Which pool: of a provider, its name.
pub(crate) const POOL_NAME: &str = "db.client.connection.pool.name";
/// `idle` or `used`.
pub(crate) const STATE: Key = Key::from_static_str("db.client.connection.state");
/// Connections by [`STATE`].
pub(crate) const COUNT: Named = ("db.client.connection.count", "{connection}");
pub(crate) const MAX: Named = ("db.client.connection.max", "{connection}");
pub(crate) const PENDING: Named = ("db.client.connection.pending_requests", "{request}");
/// By `error.type`.
pub(crate) const ERRORS: Named = ("db.client.connection.errors", "{error}");

/// A metric and its unit.
pub(crate) type Named = (&'static str, &'static str);

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

pub(crate) fn errors(meter: &Meter, (name, unit): Named) -> Counter<u64> {
    meter
        .u64_counter(name)
        .with_unit(unit)
        .with_description("Connections that could not be made or were lost")
        .build()
}
