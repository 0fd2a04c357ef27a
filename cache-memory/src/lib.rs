//! Process memory as a level of a cache, on [quick_cache](https://docs.rs/quick_cache) or
//! [moka](https://docs.rs/moka).
//!
//! ```
//! use cache_core::CacheProvider;
//! use cache_memory::Memory;
//!
//! // Bounded by number of entries, or by bytes.
//! let small = Memory::entries(10_000);
//! let large = Memory::bytes(64 << 20);
//! assert!(small.check().is_ok() && large.check().is_ok());
//!
//! // A bound that cannot hold anything is refused when a cache is built with it.
//! let error = Memory::entries(0).check().unwrap_err();
//! assert_eq!(error.to_string(), "Memory::entries = 0: give it room for at least one entry");
//! ```
//!
//! # What a level holds
//! A cache keeps its objects here as they are (`Arc<T>`, no encoding): see [`CacheProvider::in_process`]. Entries of
//! different caches never meet, even under one name. The same [`Memory`] is also a plain provider of bytes, under
//! `namespace:id`, which several caches or nodes of one process can share.
//!
//! Clones share one store and one bound: give `memory.clone()` to several caches to bound them together.
//!
//! # Engines
//! [`Engine::Quick`] is the default: a hit costs about a fifth of moka's, and of recorded look-ups it hits more in eight
//! cases of nine (docs/performance.md has the table). [`Engine::Moka`] keeps strictly what was used last, fills to the last
//! entry, and lets go of the dead by a timer.
//!
//! | | [`Engine::Quick`] | [`Engine::Moka`] |
//! | --- | --- | --- |
//! | leaves when the store is full | what was asked for once, then what was not asked for lately (Clock-PRO, much like S3-FIFO) | what was used longest ago (LRU) |
//! | the bound | never exceeded; divided among parts of at least 512 entries or 4 MiB, so a store filled to the brim with distinct keys may hold a few per cent less | exceeded for a moment by what has just been put |
//! | a single entry | up to nine tenths of a part | up to the bound |
//! | the dead, with [`Memory::engine_expiry`] | looked for in a part after as many writes to it as half of its entries: the number of entries is an upper bound | leave within about a second of the next use of the store |
//! | without it | stay until newer ones push them out | the same |
//! | eviction causes | by expiry if the time was over when the entry left | by expiry if the timer took it |
//! | with a cache on a clock of its own | nothing is taken for dead | the same |
//! | `clear` by the only cache | at once; more than 10,000 entries are freed by a thread of their own | in passing |
//!
//! An idle store keeps what has expired; [`Memory::maintain`] does at once what is due. What is **served** is the same with
//! either: a cache judges each entry by its own timeline, to the nanosecond.
//!
//! | | [`Memory::entries`] | [`Memory::bytes`] |
//! | --- | --- | --- |
//! | bound | number of entries | [`Object::weight`] + key + [`Engine::entry_overhead`] |
//! | an entry that is too heavy | cannot be | does not stay, and what it was to replace goes |
//!
//! [`CacheProvider::in_process`]: cache_core::CacheProvider::in_process
//! [`Object::weight`]: cache_core::Object::weight

mod attached;
mod engine;
mod key;
mod memory;
mod moka;
mod quick;
mod slot;
mod tempo;

pub use engine::Engine;
pub use memory::Memory;
