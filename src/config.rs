//! Caches from a file: TOML, JSON or YAML.

mod backend;
mod build;
mod de;
mod environment;
mod fault;
mod model;
mod node;
mod parse;
mod registry;
mod resolve;
mod units;

pub use parse::Format;
pub use registry::{Caches, CachesBuilder};
pub use units::{FilePath, Secret, Size, Timespan};
