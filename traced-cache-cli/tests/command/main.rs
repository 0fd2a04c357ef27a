//! The command as scripts and people use it: the real binary, real servers, exit codes, JSON.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests fail their test")]

mod file;
mod invalidate;
mod kit;
mod look;
mod watch;
mod work;
