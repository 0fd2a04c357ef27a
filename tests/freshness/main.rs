//! Promises 1, 3 to 5, 7 and 12: how long entries live, how loads are held, and what a failing loader or a sick level
//! costs. The scenarios by id, in virtual time: nothing here sleeps.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "what goes wrong here must fail the test"
)]

mod access;
mod batches;
mod config;
mod early;
mod elsewhere;
mod fail_safe;
mod level_down;
mod limits;
mod live;
mod moved;
mod overtaken;
mod shutdown;
mod single_flight;
mod turns;
mod windows;
mod world;
mod writes;
