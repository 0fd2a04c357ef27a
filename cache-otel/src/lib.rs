//! OpenTelemetry for caches: exact counts, durations and spans, tagged with the name of the cache.

mod collector;
mod instruments;
pub mod names;
mod spans;
mod telemetry;
mod totals;

pub use telemetry::{Telemetry, TelemetryBuilder};
