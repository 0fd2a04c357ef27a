//! Typed, layered caches with a pluggable backend: the nouns, the read and write paths, and the
//! [`CacheProvider`] trait.

mod clock;
mod codec;
mod entry;
mod envelope;
mod error;
mod found;
mod key;
mod loaded;
mod observe;
mod policy;
mod provider;
mod stats;
#[cfg(any(test, feature = "testing"))]
pub mod testing;

pub use clock::{Clock, Moment, Time};
pub use codec::Codec;
pub use entry::{EntryId, Extra, Object, Stamp, Timeline};
pub use envelope::Unreadable;
pub use error::{BoxError, Error, ErrorKind, Result};
pub use found::{Delivery, Found, Outcome};
pub use key::{CacheId, CacheKey, KeyBuf, RawKey, shorten};
pub use loaded::{Answer, Held, Loaded, ok};
pub use observe::{
    Ambient, BreakerState, CacheInfo, Event, LevelFault, LevelInfo, LevelOp, LoadEnd, Observer, Span, SpanKind,
    SpanStart, Verb,
};
pub use policy::{Access, Early, Policy};
pub use provider::{
    CacheProvider, Capabilities, Description, EvictionCause, Evictions, ObjectStore, Put,
};
pub use stats::{LevelOutcome, LevelSnapshot, Served, Snapshot, Stats};
