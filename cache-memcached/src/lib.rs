//! Memcached as a level of a cache: one server or many, over the meta protocol.
//!
//! ```no_run
//! use std::time::Duration;
//!
//! use cache_core::{BoxError, Policy, TracedCache, ok};
//! use cache_memcached::MemcachedProvider;
//!
//! # #[tokio::main]
//! # async fn main() -> Result<(), BoxError> {
//! let memcached = MemcachedProvider::builder("memcached://10.0.0.1:11211")
//!     .server("memcached://10.0.0.2:11211")
//!     .key_prefix("shop:")
//!     .response_timeout(Duration::from_millis(200))
//!     .build()?;
//! // A level like any other; usually behind one in memory.
//! let users: TracedCache<String> = TracedCache::builder("users")
//!     .level(memcached)
//!     .policy(Policy::ttl(Duration::from_secs(60)))
//!     .build()?;
//! let user = users.get_or_set(42u64, || async { ok("Ada".to_owned()) }).await?;
//! # let _ = user;
//! # Ok(())
//! # }
//! ```
//!
//! Building checks the settings and connects nothing. A server that is down then is used once it is up. The provider may
//! be cloned, shared by caches, and used from one tokio runtime after another.
//!
//! # Settings
//!
//! | setting | default | meaning |
//! | --- | --- | --- |
//! | [`server`](Builder::server) | | `memcached://host[:port]`, `memcacheds` for TLS; as many as you have, named alike in every process |
//! | [`retiring`](Builder::retiring) | none | servers of another list that is in use as well, while it changes |
//! | [`login`](Builder::login) | none | user and password, for servers with `-Y FILE` |
//! | [`ca_file`](Builder::ca_file) | the system's | authorities that may vouch for the servers |
//! | [`client_certificate`](Builder::client_certificate) | none | a certificate and its key |
//! | [`tls_server_name`](Builder::tls_server_name) | the host | the name that the servers' certificates must be for |
//! | [`key_prefix`](Builder::key_prefix) | none | in front of every key |
//! | [`connect_timeout`](Builder::connect_timeout) | 1 s | look-up and connect (and waiting for a free connection, where pooled) |
//! | [`response_timeout`](Builder::response_timeout) | 500 ms | one exchange on a connection |
//! | [`value_max`](Builder::value_max) | 1 MiB less 1 KiB | larger items are refused; see `-I` of the server |
//! | `pooled` (feature `client`) | | a pool of connections instead of one pipelined connection per server |
//! | [`breaker`](Builder::breaker) | 5, 500 ms | failures in a row that close a server off, and for how long |
//!
//! # Limits
//!
//! - **Time to live**: whole seconds, rounded up (300 ms becomes 1 s, never "for ever"; an entry's own timeline stays
//!   exact). Up to 30 days it is counted by the server from now; above, it is an absolute time by this node's wall clock.
//!   Times past January 2038, which memcached 1.6 reads as the past, are stored without expiry and leave by eviction.
//! - **Keys**: prefix, namespace, colon and id as they are, up to 250 bytes. Keys with spaces or control characters are
//!   sent as base64, which the server decodes, up to 186 bytes. Longer ones keep their head and end in a digest of the
//!   whole ([`cache_core::shorten`]). No key can inject a command.
//! - **Values**: a put over `value_max`, or over the server's limit, is [`ErrorKind::TooLarge`], and leaves nothing of the
//!   old value. An item over it that others have stored is a miss ([`Unreadable::TooLarge`](cache_core::Unreadable)).
//! - TCP only, with TLS (feature `tls`, servers with `-Z`) or without: then keep them on a private network. The login of the
//!   text protocol is there ([`login`](Builder::login)); SASL (`-S`) belongs to the binary protocol, and a server with it
//!   refuses every other.
//! - [`time_offset_ms`](cache_core::CacheProvider::time_offset_ms) is 0: servers' clocks are not measured. Run NTP.
//!
//! # What lies in the store
//!
//! | item | bytes | life |
//! | --- | --- | --- |
//! | `<prefix><namespace>:<id>` | `V`, 8 bytes of the server's life, envelope | the entry's |
//! | the same, removed | `T` | 60 s |
//! | the same, leased | none | the lease's |
//! | `<prefix>~lease-<32 hex digits>` | none: the right to refresh an entry, named by XXH3-128 of its key and id | the lease's |
//! | `<prefix><namespace>:` | as an entry's; for the envelope a line of text: the cache's mark | for ever |
//! | `<prefix><namespace>~:<tag>` | likewise: the tag's mark | twice an entry's life |
//! | `<prefix>~hold-<32 hex digits>` | 8 random bytes, or none: a writer keeps the key, named by XXH3-128 of it | the hold's |
//! | `<prefix>~life` | `E`, 8 random bytes | 30 s from the last poll |
//!
//! With several servers the names of marks and lives carry the number of the list, a hash of its names: `<namespace>~<16 hex
//! digits>:`, `<namespace>~<16 hex digits>~:<tag>`, `<prefix>~life-<16 hex digits>`.
//!
//! Values of other programs are a miss, and are replaced. So are those of releases before 0.1.
//!
//! # Leases
//!
//! [`leases`](cache_core::CacheProvider::leases) are the meta protocol's own means: who finds a key absent leaves an empty
//! item and is told whether it was the first (`mg N`); a fill replaces exactly the version that the lease saw (`ms C`).
//! Whatever happens to the key in between, on any client, refuses the fill, and so does anything that ends the lease: its
//! time, eviction, a restart of the server. A removal leaves a tombstone, which can be leased like an absent key. An entry
//! that is there is refreshed under a right of its own, so that a refresher who dies is followed by another.
//!
//! - Lives are whole seconds: what is asked is rounded up, and one more is added, since the server ends 2 s after 1 to 2 s.
//! - Reading leaves nothing behind. Sets and removals know nothing of leases, and cost nothing for them.
//! - Round trips: asking 1 (over a tombstone 2), a fill 1 (a refresh 2), giving back 1, renewing 2.
//! - A fill under a lease that arrives late, after its caller has given up, is refused like any that was overtaken.
//!
//! # Lives of a server
//!
//! A restarted server counts versions from 1 again, and one that was away, or was taken from the list and put back, holds
//! what has been invalidated since. So each server has an item with a random number per prefix, its *life*. Entries and
//! leases carry the life that they were made under; under another one, an entry is a miss and a lease is refused. The
//! item ends when no provider has polled it for 30 s, so:
//!
//! - A new connection reads the life before all else: one round trip more. So does the first call after 2.5 s without a
//!   poll. Else a hit is one command and one round trip.
//! - A provider polls each server every second while it is used, every 10 s while it is not (`mg`, 40 bytes), on the
//!   runtime of some caller, until it is dropped or closed. **What is cached is lost when nothing has polled for 30 s**: when
//!   all processes are down for so long, or when the server could not be reached by any.
//! - A server whose life cannot be read has no values: its keys are errors. Removals are sent all the same.
//! - The life item is also what a poll or a [`ping`](cache_core::CacheProvider::ping) asks for, and either closes the
//!   breaker.
//! - Wrong only where something between us and the server keeps connections while it replaces the server (a proxy), or where
//!   an older state of a whole machine comes back within those 30 s.
//!
//! # Several servers
//!
//! A key lives on one server, chosen by rendezvous hashing of the key and the server's name as written in the URL; the hash
//! does not change between releases. A server that joins or leaves moves only the keys that it wins or held. A batch asks
//! all its servers at once.
//!
//! # A list that changes
//!
//! Another list is another store ([`incarnation`](cache_core::CacheProvider::incarnation) is its number): nothing that was
//! stored under the one is believed under the other, because a key that moves away and back would find what it left there.
//! So the level is empty after a change. A cache that follows a reloaded file keeps its memory.
//!
//! While processes move from one list to the other, those of the one do not hear what those of the other invalidate, but for
//! keys whose server is the same in both. [`retiring`](Builder::retiring) closes that gap in three steps, each of them
//! everywhere before the next:
//!
//! 1. the old list, with the new one as `retiring`;
//! 2. the new list, with the old one as `retiring`;
//! 3. the new list alone.
//!
//! What is set, updated, expired, removed or held is then taken from its home in the other list, and a `clear` or the
//! invalidation of a tag takes the cache's mark there, upon which all of the cache is void for the others. Both are
//! acknowledged only when both lists have taken them. Until all processes are on one list, the two overwrite each other's
//! entries of keys that both keep on one server: expect more loads.
//!
//! # When a server fails
//!
//! - Each key has its own result: a server that is dead or hangs fails its own keys only, and they are never moved to another
//!   server, where an older value could wait for them. A cache asks each server in a call with a budget and a breaker of its
//!   own; who calls the provider itself waits for the slowest.
//! - After five failures in a row its keys fail at once ([`ErrorKind::Sick`]) for half a second; then one request finds out.
//!   Calls that were dropped after 20 ms count as well, so that budgets shorter than the response timeout open it, too.
//!   [`ping`](cache_core::CacheProvider::ping) asks every server regardless.
//! - An exchange ends within `connect_timeout + response_timeout`, on an established connection within the latter; the life
//!   item is an exchange of its own. A batch of writes takes one exchange for every 256 KiB. What lost its connection and had
//!   not been sent, and any read, is tried once more within the same limits.
//! - A write that was sent and has no answer is [`ErrorKind::InDoubt`], since it may still happen; it is not retried.
//! - When the oldest call on a connection is overdue, the connection ends with all calls on it: replies come in order, and
//!   none can be skipped. Large values and short timeouts do not go together.
//! - Of the addresses of a name, the next one is tried when one has failed, or not answered for 250 ms or a quarter of the connect
//!   timeout. That is for one server with several: two servers are two URLs.
//! - After a failed connect, calls fail at once for 5 to 500 ms. A connect goes on when its caller has left.
//! - Every request carries an id that its reply must echo. Dropped calls cost nothing: their replies are read and dropped.
//!   (A pooled connection is closed instead.) No reply ever reaches another call.
//! - Bounded per server: 65,536 commands and 64 MiB of requests that wait ([`ErrorKind::Overloaded`] beyond), 2 KiB for a reply
//!   line, and an item over `value_max` is skipped without being allocated. (Pooled, the client underneath bounds values by
//!   1 GiB only, and when a server refuses one item of a batch, the writes behind it are in doubt.)
//! - Errors name the server, never a key, a value, or the text of a reply.

#![cfg_attr(docsrs, feature(doc_cfg))]

mod breaker;
mod builder;
mod dial;
mod endpoint;
mod error;
#[cfg(feature = "client")]
mod exp;
mod item;
mod lease;
mod life;
mod login;
mod marks;
mod pipeline;
mod plain;
mod provider;
mod route;
mod server;
mod status;
mod transport;
mod wire;

pub use builder::Builder;
pub use error::{Error, ErrorKind};
pub use provider::MemcachedProvider;
