//! The test kit (feature `testing`): the list of behaviours that every provider is held to, a provider without a server,
//! injected faults, and an observer that remembers. **Not covered by semver.**
#![allow(clippy::panic, clippy::expect_used, reason = "a test kit: what goes wrong here must fail the test")]

mod chaos;
pub mod conformance;
mod hub;
mod map;
mod recorder;

pub use chaos::{Chaos, ChaosError, ChaosOp, Fault};
pub use hub::{Hub, Link};
pub use map::{Dump, MapProvider};
pub use recorder::{Recorded, Recorder};
