//! Recorded access traces, and what a cache would have made of them.
//!
//! ```no_run
//! use std::{path::Path, time::Duration};
//!
//! use cache_core::TracedCache;
//! use cache_replay::{Latencies, Report, Trace, replay};
//!
//! # async fn run(builder: cache_core::Builder<u64>) -> Result<(), cache_core::BoxError> {
//! let latencies = Latencies::default();
//! // Levels and policy as in your service.
//! let cache: TracedCache<u64> = builder.observer(latencies.clone()).build()?;
//! let trace = Trace::open(Path::new("keys.trace.xz"), None)?;
//! let asked = replay(&cache, trace, 2, Duration::ZERO, |_| ()).await?;
//! let report = Report::new(asked, &cache.stats(), &latencies, &["memory"])?;
//! print!("{}", report.tables());
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
