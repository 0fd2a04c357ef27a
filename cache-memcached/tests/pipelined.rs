//! The suite on the pipelined connection, the default, and what only it does.

#![allow(dead_code, unreachable_pub, reason = "each test program uses its part")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

#[path = "suite/common/mod.rs"]
mod common;
#[path = "suite/faults.rs"]
mod faults;
#[path = "suite/leases.rs"]
mod leases;
#[path = "suite/life.rs"]
mod life;
#[path = "suite/lists.rs"]
mod lists;
#[path = "suite/login.rs"]
mod login;
#[path = "suite/pipeline.rs"]
mod pipeline;
#[path = "suite/real.rs"]
mod real;
#[path = "suite/settings.rs"]
mod settings;
#[path = "suite/several.rs"]
mod several;

const POOLED: bool = false;
