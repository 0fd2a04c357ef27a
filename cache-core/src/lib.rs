//! Typed, layered caches with a pluggable backend: the nouns, the read and write paths, and the
//! [`CacheProvider`] trait.
//!
//! Applications depend on `traced-cache`, which re-exports all of this and brings the backends. This crate alone is for those
//! who write a backend, an observer or a codec of their own: it knows no backend, no client library and no exporter.
//!
#![cfg_attr(feature = "testing", doc = "```")]
#![cfg_attr(not(feature = "testing"), doc = "```ignore")]
//! use std::{sync::Arc, time::Duration};
//!
//! use cache_core::{
//!     Clock, Error, Outcome, Policy, TracedCache, ok,
//!     testing::{MapProvider, conformance},
//! };
//!
//! # #[tokio::main]
//! # async fn main() -> Result<(), Error> {
//! let (clock, time) = Clock::manual();
//! // A backend: here a map. Yours is held to the same list.
//! let map = Arc::new(MapProvider::new().clock(clock.clone()));
//! conformance::run(Arc::new(MapProvider::new()), conformance::Options::default()).await;
//!
//! let users: TracedCache<String> = TracedCache::builder("users")
//!     .level(Arc::clone(&map))
//!     .policy(Policy::ttl(Duration::from_secs(60)))
//!     .clock(clock)
//!     .build()?;
//! let user = users.get_or_set(42u64, || async { ok("Ada".to_owned()) }).await?;
//! assert_eq!((user.as_str(), map.len()), ("Ada", 2), "the entry, and the cache's own mark");
//!
//! time.advance(Duration::from_secs(60));
//! assert_eq!(users.look(42u64).await?.outcome(), Outcome::Miss);
//! # Ok(())
//! # }
//! ```
//!
//! | seam | trait | a double for tests |
//! | --- | --- | --- |
//! | a place that keeps entries | [`CacheProvider`]; in process also [`ObjectStore`] | `testing::MapProvider`, `testing::Chaos` in front of any |
//! | what nodes tell each other | [`Backplane`] | `testing::Hub` |
//! | who hears what happens | [`Observer`] | `testing::Recorder` |
//! | where values come from and go to | [`Source`], or a closure | |
//! | keys | [`CacheKey`] | |
//! | time | [`Clock`] | [`Clock::manual`] |

#![cfg_attr(docsrs, feature(doc_cfg))]

mod backplane;
mod batch;
mod breaker;
mod builder;
mod cache;
mod clock;
mod close;
mod codec;
mod copies;
mod cycle;
mod early;
mod entry;
mod envelope;
mod error;
mod expire;
mod fetch;
#[doc(hidden)]
pub mod figures;
mod fill;
mod flight;
mod found;
mod gates;
mod gone;
mod ids;
mod inner;
mod inspect;
mod key;
mod learn;
mod lease;
mod ledger;
mod level;
mod life;
mod limbo;
mod load;
mod loaded;
mod mark;
mod nearby;
mod news;
mod observe;
mod observers;
mod operation;
mod order;
mod parts;
mod patience;
mod payload;
mod pending;
mod plain;
mod policy;
mod poll;
mod pool;
mod provider;
mod read;
mod recent;
mod replay;
mod reserve;
mod returning;
mod rights;
mod rules;
mod server;
mod settings;
mod settle;
mod slots;
mod snapshot;
mod source;
mod stats;
mod striped;
mod tags;
mod tally;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
mod tier;
mod unsaved;
mod update;
mod value;
mod warm;
mod weak;
mod wire;
mod within;
mod words;
mod write;

pub use backplane::{Backplane, Listener};
pub use breaker::Breaker;
pub use builder::Builder;
pub use cache::TracedCache;
pub use clock::{Clock, Moment, Time};
pub use close::{Closed, Undelivered};
pub use codec::Codec;
pub use entry::{EntryId, Extra, Glance, Object, Stamp, Timeline};
pub use envelope::{ENTRY_ID_AT, Unreadable, is_written};
pub use error::{BoxError, Error, ErrorKind, Result, with_causes};
pub use found::{Delivery, Found, MissReason, Outcome};
pub use inspect::{EntryInfo, Inspected, Inspection, Opaque, Rendered, Shown};
pub use key::{CacheId, CacheKey, KeyBuf, RawKey, is_shortened, shorten};
pub use lease::{Acquire, Acquired, Fill, Holding, Lease, Leases};
pub use level::{Failover, Level, Stance};
pub use loaded::{Answer, Held, Loaded, ok};
pub use mark::{Marks, Swap, Swapped, state_of_marker};
pub use observe::{Ambient, CacheInfo, Event, LevelInfo, Observer, Span, SpanKind, SpanStart, Traffic};
pub use payload::{Compression, Encryption};
pub use policy::{Access, Early, Policy};
pub use pool::PoolStatus;
pub use provider::{
    Advised, CacheProvider, Capabilities, Description, EvictionCause, Evictions, ObjectStore, Put, Replicas,
};
pub use server::ServerStatus;
pub use settings::{LevelSettings, Settings};
pub use snapshot::{BackplaneSnapshot, LevelSnapshot, Served, Snapshot};
pub use source::{Source, Sourced};
pub use stats::{LevelOutcome, Stats};
pub use update::Updated;
pub use value::{Schema, SerdeValue, Value, ValueCodec};
pub use warm::Warmed;
pub use weak::WeakCache;
pub use words::{BreakerState, LevelFault, LevelOp, LoadEnd, Scope, Verb};

pub(crate) use entry::{Begun, Entry};
