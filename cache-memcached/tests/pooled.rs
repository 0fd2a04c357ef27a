//! The suite on the pool of connections.

#![allow(dead_code, unreachable_pub, reason = "each test program uses its part")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

#[path = "suite/common/mod.rs"]
mod common;
#[path = "suite/faults.rs"]
mod faults;
#[path = "suite/real.rs"]
mod real;
#[path = "suite/settings.rs"]
mod settings;

const POOLED: bool = true;

#[test]
fn k_a_pool_without_connections_is_refused() {
    let error = common::few_connections("memcached://h", 0).build().unwrap_err();
    assert!(error.to_string().starts_with("pooled = 0"), "{error}");
}
