//! Caches from a file: TOML, JSON or YAML.

mod backend;
mod build;
mod de;
mod environment;
mod explain;
mod fault;
mod load;
mod model;
mod node;
mod parse;
mod registry;
mod resolve;
#[cfg(feature = "schema")]
mod schema;
mod units;

pub use explain::{ExplainedCache, ExplainedLevel, ExplainedProvider, Explanation, Setting};
pub use parse::Format;
pub use registry::{Caches, CachesBuilder};
#[cfg(feature = "schema")]
pub use schema::schema;
pub use units::{FilePath, Secret, Size, Timespan};
