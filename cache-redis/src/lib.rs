//! Redis and Valkey as a level of a cache.

mod address;
mod backoff;
mod connection;
mod error;
mod keeper;
mod provider;
mod settings;
mod wire;

pub use error::{Error, ErrorKind};
pub use provider::RedisProvider;
pub use settings::RedisProviderBuilder;
