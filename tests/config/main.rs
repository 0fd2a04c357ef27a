//! Caches from files: the same application on every form of store, and every mistake explained.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "helpers of tests: what goes wrong here must fail the test"
)]

mod asking;
mod explain;
mod formats;
mod forms;
mod hostile;
mod kit;
mod mistakes;
mod python;
mod reload;
#[cfg(feature = "schema")]
mod schema;
