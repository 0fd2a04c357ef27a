//! Memcached.

mod breaker;
mod builder;
mod endpoint;
mod error;
mod exp;
mod provider;
mod route;
mod transport;
mod wire;

pub use builder::Builder;
pub use error::{Error, ErrorKind};
pub use provider::MemcachedProvider;
