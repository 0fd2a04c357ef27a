//! Real servers for tests: `redis-server` and `memcached` processes on free loopback ports, a Redis cluster, a Redis
//! master with sentinels, a Prometheus, and a TCP [`Proxy`] that injects faults.
//!
//! ```no_run
//! # fn test() {
//! let Some(server) = test_servers::RedisServer::start() else { return };
//! let url = server.url();
//! # }
//! ```
//!
//! A missing program gives `None` after a line that starts with `SKIPPED`; under `CI=true` it fails the test. Everything
//! else that goes wrong panics with the server's log: failing the test is this crate's job. Unix only.
//!
//! Processes die with the value that started them, and also when the test process dies in any other way.
#![allow(
    clippy::panic,
    clippy::expect_used,
    reason = "a test helper: what goes wrong here must fail the test"
)]

mod alerting;
mod certificates;
mod cluster;
mod memcached;
mod port;
mod process;
mod prometheus;
mod proxy;
mod redis;
mod require;
mod sentinel;
mod wait;

pub use alerting::alerting_port;
pub use certificates::{Authority, Certificate};
pub use cluster::RedisCluster;
pub use memcached::{MemcachedBuilder, MemcachedServer};
pub use port::free as free_port;
pub use process::signal;
pub use prometheus::{PrometheusServer, promtool};
pub use proxy::Proxy;
pub use redis::{RedisBuilder, RedisServer};
pub use require::{Server, require};
pub use rustix::process::Signal;
pub use sentinel::RedisSentinel;
pub use wait::{eventually, until};
