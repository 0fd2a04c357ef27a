//! OpenTelemetry for caches: exact counts, durations and spans, tagged with the name of the cache.
//!
//! One [`Telemetry`] per process, given to each cache as its observer; metrics and spans go to the providers of your
//! application. This crate knows the API of OpenTelemetry only, neither the SDK nor any exporter.
//!
//! ```
//! use std::time::Duration;
//!
//! use cache_core::{Policy, TracedCache};
//! use cache_memory::Memory;
//! use cache_otel::{Telemetry, names};
//! use opentelemetry_sdk::metrics::{InMemoryMetricExporter, SdkMeterProvider};
//!
//! # #[tokio::main]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! // Your application has these, with an exporter that leads somewhere.
//! let exporter = InMemoryMetricExporter::default();
//! let provider = SdkMeterProvider::builder().with_periodic_exporter(exporter.clone()).build();
//!
//! // `Telemetry::global()` takes the global providers.
//! let telemetry = Telemetry::builder().meter_provider(&provider).build();
//! let users: TracedCache<String> = TracedCache::builder("users")
//!     .level(Memory::entries(10_000))
//!     .policy(Policy::ttl(Duration::from_secs(60)))
//!     .observer(telemetry.clone())
//!     .build()?;
//!
//! users.set(42, "Ada".to_owned()).await?;
//! users.get(42).await?;
//!
//! provider.force_flush()?;
//! let exported = format!("{:?}", exporter.get_finished_metrics()?);
//! assert!(exported.contains(names::HITS) && exported.contains("users"));
//! # Ok(())
//! # }
//! ```
//!
//! # Metrics
//! [`names`] lists every metric, its unit and its attributes. Counters are read from the cache's own when telemetry
//! collects, so a hit pays nothing for them; every series that can move is there from zero on; look-ups equal the sum
//! of [`names::REQUESTS`] over levels and results, and misses that of [`names::MISS_REASONS`]. Caches of one name count
//! together. [`Vocabulary`] has the names of older dashboards. [`Telemetry::stats`] says the same to code.
//! [`Telemetry::watch_servers`] adds how the servers behind providers do.
//!
//! `cache.hits` are look-ups that a level served fresh, `cache.misses` those that found nothing. Stale and negative
//! answers and calls that waited for another's load are neither: `cache.requests` has them all.
//!
//! Durations of hits in memory are **sampled**, one in 256, and each sample is recorded once, in a series that says so by
//! [`names::SAMPLE_WEIGHT`]. Take rates from the counters; where durations of both kinds are put together, count those 256
//! times, as the dashboard of this project does.
//!
//! Histograms are lines of memory that all threads write, so a thread hands over what it has measured 32 values at a time,
//! and before each collection: the SDK asks the counters first. With another SDK that does not, the last values of each
//! thread may come with a later collection.
//!
//! # Spans
//! | span | kind | when | child of |
//! | --- | --- | --- | --- |
//! | `cache.get users` and other verbs | INTERNAL | a call leaves the nearest level | what is current at the caller |
//! | `GET`, `MULTI`, `mg 10.0.0.1:11211`, ... | CLIENT | a remote level is asked, by the database conventions | the call |
//! | `cache.load users` | INTERNAL | the loader runs; current inside it | the call that started it |
//! | `cache.publish users` | PRODUCER | other nodes are told | the call |
//! | `cache.load users`, `cache.write_behind users`, `cache.replay users` | INTERNAL | behind the caller's back | nothing: a trace of its own, with a link to what caused it |
//!
//! A call that waited for another's load links to that load. Where the parent is not sampled, telemetry is suppressed or
//! no tracer is installed, none is made, and nothing is built for it. A hit at the nearest level has no span, unless
//! [`TelemetryBuilder::trace_hits`] gives it one. Values are never recorded; keys only through
//! [`TelemetryBuilder::show_keys`] or [`TelemetryBuilder::show_key_patterns`].
//!
//! # Features
//! None is on by default, and without them this crate depends on the API of OpenTelemetry and tokio alone.
//!
//! | feature | adds |
//! | --- | --- |
//! | `bound-instruments` | metrics below memory at less cost, by an experimental part of OpenTelemetry: only `opentelemetry_sdk` takes them |
//! | `tracing` | what an operator may want to put right, and why a level is not asked any more, as lines of that facade |
//! | `raw` | `raw`: telemetry of any client's commands and connections |
//! | `redis` | the same for redis-rs connections by one line, and what a Redis server says of itself |
//! | `memcached` | the same for the `memcache` crate |
//! | `setup`, `setup-tls` | `setup`: one call that sets up the SDK, OTLP and a page for Prometheus |

#![cfg_attr(docsrs, feature(doc_cfg))]

mod backlog;
mod collector;
#[cfg(all(test, feature = "tracing"))]
#[path = "../tests/common/heard.rs"]
#[allow(clippy::unwrap_used, dead_code, reason = "shared with the integration tests")]
mod heard;
mod keys;
mod lasting;
mod lately;
pub mod names;
mod observed;
#[cfg(feature = "tracing")]
mod outages;
mod pools;
#[cfg(feature = "raw")]
pub mod raw;
mod recorded;
mod series;
mod servers;
#[cfg(feature = "setup")]
pub mod setup;
mod spans;
mod status;
mod telemetry;
mod total;
mod totals;
mod vocabulary;

pub use keys::key_pattern;
pub use servers::Servers;
pub use status::{CacheStatus, Latency, LevelStatus};
pub use telemetry::{Telemetry, TelemetryBuilder};
pub use vocabulary::Vocabulary;
