//! Typed, layered caches with a pluggable backend: the nouns, the read and write paths, and the
//! [`CacheProvider`] trait.

mod backplane;
mod batch;
mod breaker;
mod builder;
mod cache;
mod clock;
mod codec;
mod copies;
mod cycle;
mod entry;
mod envelope;
mod error;
mod expire;
mod fetch;
mod fill;
mod flight;
mod found;
mod gone;
mod inner;
mod inspect;
mod key;
mod learn;
mod lease;
mod ledger;
mod level;
mod life;
mod load;
mod loaded;
mod mark;
mod news;
mod observe;
mod patience;
mod payload;
mod pending;
mod plain;
mod policy;
mod poll;
mod provider;
mod read;
mod recent;
mod replay;
mod rights;
mod rules;
mod server;
mod settings;
mod slots;
mod snapshot;
mod source;
mod stats;
mod tags;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
mod tier;
mod unsaved;
mod update;
mod warm;
mod write;

pub use backplane::{Backplane, Listener};
pub use breaker::Breaker;
pub use builder::Builder;
pub use cache::{Closed, TracedCache, Undelivered};
pub use clock::{Clock, Moment, Time};
pub use codec::Codec;
pub use entry::{EntryId, Extra, Glance, Object, Stamp, Timeline};
pub use envelope::{ENTRY_ID_AT, Unreadable};
pub use error::{BoxError, Error, ErrorKind, Result};
pub use found::{Delivery, Found, MissReason, Outcome};
pub use inner::{Schema, Value};
pub use inspect::{EntryInfo, Inspected, Inspection, Opaque, Rendered, Shown};
pub use key::{CacheId, CacheKey, KeyBuf, RawKey, is_shortened, shorten};
pub use lease::{Acquire, Acquired, Fill, Holding, Lease, Leases};
pub use level::{Failover, Level, Stance};
pub use loaded::{Answer, Held, Loaded, ok};
pub use mark::{Marks, Swap, Swapped};
pub use observe::{
    Ambient, BreakerState, CacheInfo, Event, LevelFault, LevelInfo, LevelOp, LoadEnd, Observer, Scope, Span,
    SpanKind, SpanStart, Traffic, Verb,
};
pub use payload::{Compression, Encryption};
pub use policy::{Access, Early, Policy};
pub use provider::{
    Advised, CacheProvider, Capabilities, Description, EvictionCause, Evictions, ObjectStore, Put, Replicas,
};
pub use server::ServerStatus;
pub use settings::{LevelSettings, Settings};
pub use snapshot::{BackplaneSnapshot, LevelSnapshot, Served, Snapshot};
pub use source::{Source, Sourced};
pub use stats::{LevelOutcome, Stats};
pub use update::Updated;
pub use warm::Warmed;

pub(crate) use entry::{Begun, Entry};
