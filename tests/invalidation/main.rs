//! Invalidations by tag and of whole caches, across nodes and on real servers; what beats what, and what is left when a
//! store loses something. Groups G and C of the scenarios, and PROTOCOL's table of tests.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests fail their test")]

mod behind;
mod clocks;
mod depth;
mod failover;
mod heard;
mod holds;
mod journal;
mod lent;
mod lost;
mod moves;
mod pair;
mod pending;
mod real;
mod running;
mod silent;
mod tags;
mod update;
mod world;
