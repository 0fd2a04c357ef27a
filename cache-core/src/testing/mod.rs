//! The test kit (feature `testing`): the list of behaviours that every provider is held to, a provider without a server,
//! injected faults, levels over a store of one's own, nodes that can be cut off, an observer that remembers, a limit for what
//! may be stuck, and a function for fuzzers. **Not covered by semver.**
#![allow(clippy::panic, clippy::expect_used, reason = "a test kit: what goes wrong here must fail the test")]

mod anything;
mod chaos;
pub mod conformance;
mod hub;
mod map;
mod objects;
mod recorder;
mod stuck;

pub use anything::{payload_at, read_anything, readable_entries, reseal};
pub use chaos::{Chaos, ChaosError, ChaosOp, Fault};
pub use hub::{Hub, Link};
pub use map::{Dump, MapProvider};
pub use objects::{ObjectsOnly, Shelf};
pub use recorder::{Recorded, Recorder};
pub use stuck::ends_within;
