//! Memcached as a level of a cache: one server or many, over the meta protocol.
//!
//! ```no_run
//! use std::{sync::Arc, time::Duration};
//! use cache_core::CacheProvider;
//! use cache_memcached::MemcachedProvider;
//!
//! # fn main() -> Result<(), cache_memcached::Error> {
//! let memcached: Arc<dyn CacheProvider> = Arc::new(
//!     MemcachedProvider::builder("memcached://10.0.0.1:11211")
//!         .server("memcached://10.0.0.2:11211")
//!         .key_prefix("shop:")
//!         .response_timeout(Duration::from_millis(200))
//!         .build()?,
//! );
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
//! | [`server`](Builder::server) | | `memcached://host[:port]`; as many as you have, named alike in every process |
//! | [`key_prefix`](Builder::key_prefix) | none | in front of every key |
//! | [`connect_timeout`](Builder::connect_timeout) | 1 s | look-up and connect (and waiting for a free connection, where pooled) |
//! | [`response_timeout`](Builder::response_timeout) | 500 ms | one exchange on a connection |
//! | [`max_value`](Builder::max_value) | 1 MiB less 1 KiB | larger items are refused; see `-I` of the server |
//! | [`pooled`](Builder::pooled) | false | a pool of connections instead of one pipelined connection per server |
//! | [`connections`](Builder::connections) | 32 | per server, where pooled |
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
//! - **Values**: a put over `max_value`, or over the server's limit, is [`ErrorKind::TooLarge`], and leaves nothing of the
//!   old value.
//! - TCP only, no TLS, no login: the meta protocol has none. Keep the servers on a private network.
//! - [`time_offset_ms`](cache_core::CacheProvider::time_offset_ms) is 0: servers' clocks are not measured. Run NTP.
//!
//! # Several servers
//!
//! A key lives on one server, chosen by rendezvous hashing of the key and the server's name as written in the URL; the hash
//! does not change between releases. A server that joins or leaves moves only the keys that it wins or held. A batch asks
//! all its servers at once.
//!
//! # When a server fails
//!
//! - Each key has its own result: a dead server fails its own keys only, and they are never moved to another server, where
//!   an older value could wait for them.
//! - After five failures in a row its keys fail at once ([`ErrorKind::Sick`]) for half a second; then one request finds out.
//!   Calls that were dropped after 20 ms count as well, so that budgets shorter than the response timeout open it, too.
//!   [`ping`](cache_core::CacheProvider::ping) asks every server regardless, and closes the breaker when it answers.
//! - An exchange ends within `connect_timeout + response_timeout`, on an established connection within the latter. A batch of
//!   writes takes one exchange for every 256 KiB. What lost its connection and had not been sent, and any read, is tried once
//!   more within the same limits.
//! - A write that was sent and has no answer is [`ErrorKind::InDoubt`], since it may still happen; it is not retried.
//! - When the oldest call on a connection is overdue, the connection ends with all calls on it: replies come in order, and
//!   none can be skipped. Large values and short timeouts do not go together.
//! - After a failed connect, calls fail at once for 5 to 500 ms. A connect goes on when its caller has left.
//! - Every request carries an id that its reply must echo. Dropped calls cost nothing: their replies are read and dropped.
//!   (A pooled connection is closed instead.) No reply ever reaches another call.
//! - Bounded per server: 65,536 commands and 64 MiB of requests that wait ([`ErrorKind::Overloaded`] beyond), 2 KiB for a reply
//!   line, and an item over `max_value` is skipped without being allocated. (Pooled, the client underneath bounds values by
//!   1 GiB only, and when a server refuses one item of a batch, the writes behind it are in doubt.)
//! - Errors name the server, never a key, a value, or the text of a reply.

mod breaker;
mod builder;
mod endpoint;
mod error;
mod exp;
mod item;
mod lease;
mod life;
mod pipeline;
mod provider;
mod route;
mod server;
mod transport;
mod wire;

pub use builder::Builder;
pub use error::{Error, ErrorKind};
pub use provider::MemcachedProvider;
