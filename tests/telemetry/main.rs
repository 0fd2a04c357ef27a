//! Telemetry, proved from outside: a real Prometheus scrapes a process at work, with the rules and the dashboard that this
//! repository ships; and nothing that anybody can read holds what must not be read.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "helpers of tests: what goes wrong here must fail the test"
)]

mod docs;
mod live;
mod prometheus;
mod rules;
mod secrets;
