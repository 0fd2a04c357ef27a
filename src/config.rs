//! Caches from a file: TOML, JSON or YAML.
//!
//! ```no_run
//! use traced_cache::{Caches, TracedCache};
//!
//! # #[tokio::main]
//! # async fn main() -> Result<(), traced_cache::Error> {
//! let caches = Caches::from_file("cache.toml").await?;
//! let names: TracedCache<String> = caches.cache("names")?;
//! # Ok(())
//! # }
//! ```
//!
//! The file names providers once and the caches that stand on them:
//!
//! ```toml
//! [providers.local]
//! backend = "memory"
//! entries = 10_000
//!
//! [providers.shared]
//! backend = "redis"
//! url = "redis://cache.internal:6379"
//! password = "${REDIS_PASSWORD}"
//!
//! [defaults]
//! levels = [{ provider = "local", ttl_cap = "30s" }, "shared"]
//! policy = { ttl = "5m" }
//!
//! [caches.names]
//! ```
//!
//! Every field, what is inherited from where, references and variables: `docs/configuration.md`. All of the file is checked
//! when it is read, and a mistake is named with file, line, field, value and fix; no server is connected to.
//!
//! | type | what it is |
//! | --- | --- |
//! | [`Caches`] | the caches of a file, by name and type |
//! | [`CachesBuilder`] | a file with backends and observers of your own |
//! | [`Reloaded`] | what reading the file again has come to |
//! | [`Explanation`] | what a file comes to, with the origin of each setting |
//! | [`Timespan`], [`Size`], [`Secret`], [`FilePath`] | fields for the settings of your own backends |

mod backend;
mod build;
mod de;
mod environment;
mod explain;
mod fault;
mod load;
mod mistakes;
mod model;
mod node;
mod parse;
mod probe;
mod registry;
mod reload;
mod resolve;
mod running;
#[cfg(feature = "schema")]
mod schema;
mod setup;
mod units;

pub use explain::{ExplainedCache, ExplainedLevel, ExplainedProvider, Explanation, Setting};
pub use parse::Format;
pub use registry::Caches;
#[doc(hidden)]
pub use registry::expect_cache;
pub use reload::Reloaded;
#[doc(hidden)]
pub use running::Function;
#[cfg(feature = "schema")]
pub use schema::schema;
pub use setup::CachesBuilder;
pub use units::{FilePath, Secret, Size, Timespan};
