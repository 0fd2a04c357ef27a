//! Redis and Valkey as a level of a cache.
//!
//! ```no_run
//! use std::time::Duration;
//!
//! use cache_core::{CacheId, CacheProvider, Put, RawKey};
//! use cache_redis::RedisProvider;
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
//! let redis = RedisProvider::builder("redis://127.0.0.1:6379")
//!     .key_prefix("shop:")
//!     .connect_timeout(Duration::from_millis(500))
//!     .build()?;
//!
//! // A cache does this for you: hand it the provider as a level.
//! let key = RawKey::new(CacheId(1), "users", "42");
//! redis.put(Put { key, bytes: "Ann".into(), ttl: Duration::from_secs(60) }).await?;
//! assert_eq!(redis.get(key).await?.as_deref(), Some(&b"Ann"[..]));
//! # Ok(())
//! # }
//! ```
//!
//! The server speaks RESP3: Redis 6 or later, or Valkey. In `redis-cli` the entry above is `shop:v:{users:42}`; the
//! braces keep all keys of one id in one cluster slot.
//!
//! # Settings
//!
//! | setting | default | what it does |
//! | --- | --- | --- |
//! | URL | | `redis://[user[:password]@]host[:port][/database]`, `unix:///path[?db=0&user=name&pass=word]` |
//! | [`username`](RedisProviderBuilder::username), [`password`](RedisProviderBuilder::password) | of the URL | credentials, as they are |
//! | [`database`](RedisProviderBuilder::database) | of the URL, or 0 | index of the database |
//! | [`key_prefix`](RedisProviderBuilder::key_prefix) | none | goes in front of every key |
//! | [`connect_timeout`](RedisProviderBuilder::connect_timeout) | 1 s | bounds one attempt to connect, handshake included |
//! | [`response_timeout`](RedisProviderBuilder::response_timeout) | 2 s | silence after which a connection counts as lost |
//! | [`value_max`](RedisProviderBuilder::value_max) | 512 MiB | larger items are refused and not sent |
//!
//! TTLs have steps of 1 ms and are rounded up; `Duration::MAX` is stored without expiry. Of keys, the first 4 KiB of
//! `namespace:id` are stored as they are; longer ones end in a digest. A batch of look-ups is one `MGET` per 512 keys,
//! in one round trip; batches of writes are pipelines, with a result per item.
//!
//! On a runtime of several workers, single look-ups that come while another is under way are gathered into one `MGET`; a
//! look-up that comes alone is a plain `GET` without delay. At 64 look-ups in flight over loopback that gave 1.3 to 1.8
//! times the throughput of plain `GET`s on one connection, and the same latency at one in flight.
//!
//! # When things go wrong
//!
//! | what happens | what callers see |
//! | --- | --- |
//! | the server is down at start | nothing: the first call connects. [`RedisProvider::connect`] asks now |
//! | it cannot be reached | who comes while an attempt is under way waits for it; between attempts (5 ms to 1 s, with jitter) calls fail at once with the last error |
//! | the connection breaks | it is made again at once, in the background; calls that come meanwhile wait for it |
//! | ... under a read | the read is sent once more on the next connection |
//! | ... under a write | [`ErrorKind::Disconnected`]: whether it took effect is unknown, and it is not sent twice |
//! | the server hangs | calls wait, bounded by the level that makes them; the connection is given up within twice the response timeout |
//! | `READONLY` | [`ErrorKind::ReadOnly`], and a new connection, as a failover may have moved the master; at most once a second |
//! | `LOADING`, out of memory, no permission | an error of that kind; the connection stays |
//! | a put is refused, as too large or out of memory | the old value is removed |
//! | the key holds a list or a hash | a miss; the next put replaces it |
//!
//! Dropping a call's future leaves the connection usable and disturbs no other call; whether a write that was dropped
//! took effect is unknown. Errors, `Debug` and logs hold no key, value or credential.
//!
//! The connection lives on the tokio runtime of the call that made it. Should that runtime end, the next call makes
//! another connection on its own. The runtime needs its I/O and time drivers (`enable_all`).

mod address;
mod backoff;
mod connection;
mod error;
mod gather;
mod keeper;
mod lease;
mod provider;
mod read;
mod scripts;
mod settings;
mod units;
mod wire;
mod write;

pub use error::{Error, ErrorKind};
pub use provider::RedisProvider;
pub use settings::RedisProviderBuilder;
