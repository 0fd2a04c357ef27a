//! Facade.
pub use cache_core::*;
