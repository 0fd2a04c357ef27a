//! Recorded access traces, and what a cache would have made of them.
//!
//! ```
//! use std::time::Duration;
//!
//! use cache_core::TracedCache;
//! use cache_memory::Memory;
//! use cache_replay::{Latencies, Report, Trace, replay};
//!
//! # #[tokio::main]
//! # async fn main() -> Result<(), cache_core::BoxError> {
//! // Keys as a service may log them, one a line; `.gz` and `.xz` are read as well.
//! let folder = tempfile::tempdir()?;
//! let keys = folder.path().join("keys.trace");
//! std::fs::write(&keys, "ada\ngrace\nada\nada\n")?;
//!
//! let latencies = Latencies::default();
//! // Levels and policy as in your service.
//! let cache: TracedCache<u64> =
//!     TracedCache::builder("users").level(Memory::entries(1000)).observer(latencies.clone()).build()?;
//! let asked = replay(&cache, Trace::open(&keys, None)?, 1, Duration::ZERO, |_| ()).await?;
//! let stats = cache.stats();
//! assert_eq!((stats.misses(), stats.hits()), (2, 2));
//! let report = Report::new(asked, &stats, &latencies, &["memory"])?;
//! println!("{}", report.tables());
//! # Ok(())
//! # }
//! ```
//!
//! | type | what it is |
//! | --- | --- |
//! | [`Trace`] | a list of keys, one a line or as 32-bit integers, plain or packed with gzip or xz; read as a stream |
//! | [`replay()`] | asks a cache for every key of a trace |
//! | [`Latencies`] | an observer that times look-ups by how they ended |
//! | [`Report`] | all numbers of a replay: tables for people, serde for programs |
//!
//! `traced-cache replay` is the same as a command, over the caches of a file.

mod latency;
mod report;
mod run;
mod trace;

pub use latency::{Latencies, Quantiles, Row};
pub use report::{Disagree, LatencyReport, LevelReport, Report};
pub use run::{Asked, WrongValue, replay};
pub use trace::{Fault, Form, Keys, Lines, Trace, TraceError};
