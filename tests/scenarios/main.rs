//! The behaviour of whole stacks, case by case: what SCENARIOS calls B, C, L, M, N, T, V, X, Y, Z, and the promises that
//! races could break. Each case runs on every stack that it applies to, under a clock that the test moves.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "helpers of tests: what goes wrong here must fail the test, and say on which stack"
)]

mod basic;
mod batch;
mod callers;
mod clear;
mod counts;
mod dropped;
mod hooks;
mod keys;
mod kit;
mod levels;
mod model;
mod negative;
mod nested;
mod payloads;
mod plain;
mod races;
mod reasons;
mod size;
mod stacks;
mod stores;
mod three;
mod through;
mod ttl;
mod values;
mod verbs;
mod wire;
mod writers;
