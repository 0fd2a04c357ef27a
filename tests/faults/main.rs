//! Promise 4 on real servers: whatever a level does, no caller sees an error that the loader could have answered, each
//! operation costs its budget at most and nothing while the breaker is open, counters add up, and the level is used again
//! without a restart once it is well. Promise 2 meanwhile: what is invalidated while the level is away stays away.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "what goes wrong here must fail the test"
)]

mod flap;
mod oversized;
mod redis_only;
mod ride;
mod servers;

use std::time::Duration;

use ride::{Fault, ride};
use servers::{Backend, blocking};

/// Runs a case on Redis and on Memcached, each with a server and a proxy of its own.
macro_rules! on_both {
    ($($name:ident: $case:expr;)*) => {
        mod redis {
            use super::*;
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                let Some(backend) = Backend::redis() else { return };
                ride(&backend, $case).await;
            })*
        }
        mod memcached {
            use super::*;
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                let Some(backend) = Backend::memcached() else { return };
                ride(&backend, $case).await;
            })*
        }
    };
}

const MS: Duration = Duration::from_millis(1);

on_both! {
    kill_and_restart: Fault::new(|b| blocking(|| b.kill()), |b| blocking(|| b.restart()));
    stopped_for_longer_than_every_budget: Fault::new(|b| blocking(|| b.stop()), |b| b.cont());
    refused: Fault::new(|b| b.proxy.refuse(), |b| b.proxy.pass());
    reset_in_mid_reply: Fault::new(|b| b.proxy.truncate(1), |b| b.proxy.pass());
    byte_by_byte: Fault::new(|b| b.proxy.slow(100 * MS), |b| b.proxy.pass());
    accepts_and_never_answers: Fault::new(|b| { b.proxy.cut(); b.proxy.blackhole(); }, |b| b.proxy.pass());
    goes_silent: Fault::new(|b| b.proxy.blackhole(), |b| b.proxy.pass());
    // TCP loses nothing in the middle: answers that are lost are lost with their connection.
    does_the_work_and_loses_the_answer: Fault::new(|b| b.proxy.mute(), |b| { b.proxy.pass(); b.proxy.cut(); });
}
