//! Redis and Valkey as a level of a cache.
//!
//! ```no_run
//! use std::time::Duration;
//!
//! use cache_core::{BoxError, Policy, TracedCache, ok};
//! use cache_redis::RedisProvider;
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), BoxError> {
//! let redis = RedisProvider::builder("redis://127.0.0.1:6379")
//!     .key_prefix("shop:")
//!     .connect_timeout(Duration::from_millis(500))
//!     .build()?;
//! // A level like any other; usually behind one in memory, which the backplane tells what has changed.
//! let users: TracedCache<String> = TracedCache::builder("users")
//!     .level(redis.clone())
//!     .backplane(redis.backplane())
//!     .policy(Policy::ttl(Duration::from_secs(60)))
//!     .build()?;
//! let user = users.get_or_set(42u64, || async { ok("Ann".to_owned()) }).await?;
//! # let _ = user;
//! # Ok(())
//! # }
//! ```
//!
//! The server speaks RESP3: Redis 6 or later, or Valkey. The braces keep all keys of one id in one cluster slot; in
//! `redis-cli` those of the entry above are:
//!
//! | key | what it holds | how long |
//! | --- | --- | --- |
//! | `shop:v:{users:42}` | the entry, or after a removal the eight bytes `\0removed`, which read as a miss | its ttl; 60 s |
//! | `shop:l:{users:42}` | the lease: a token, while somebody has the right to fill | the lease's life, at most a day |
//! | `shop:w:{users:42}` | a writer's hold: a token, while the source is being written | some seconds |
//! | `shop:f:{users:42}` | a fill on its way to the entry, inside of one transaction | |
//! | `shop:m:{users}` | the cache's own mark, a line of text: epoch and number of its last invalidation | for ever |
//! | `shop:f:{users}` | another one on its way there, inside of one transaction | |
//! | `shop:t:{users}:vip` | the mark of the tag `vip`, likewise | twice an entry's life |
//! | `shop:r:{masters}` | of a cluster, which masters it has been seen with | |
//!
//! A level of bare values ([`Level::plain`](cache_core::Level::plain)) keeps them under `shop:users:42`, without braces, and a
//! removal is an `UNLINK`. Such a cache has a name of more than one letter.
//!
//! # Leases
//!
//! [`Leases`](cache_core::Leases) make one load run across processes, and refuse the fill of a load that an invalidation
//! or a set has overtaken. A look-up stays one `GET`; a miss adds one round trip (a script that answers with the entry or
//! gives the lease), and a fill is one (`MULTI`, a script on the lease, `RENAME`, `EXEC`). A put and a removal are
//! transactions as well: each ends the lease of its key. Batches are one round trip, of fills, puts and removals one per
//! 512 items or 8 MiB. Scripts are sent by their digest, and by their text to a server that does not know them.
//!
//! Scripts write leases and scratch keys, plain commands write entries: who tracks entries without hearing of its own writes
//! (`CLIENT TRACKING ... NOLOOP`, as the backplane does) hears of nothing that it did itself. Removals write a tombstone,
//! because who tracks a key hears of writes, and not of a `DEL` where nothing was.
//!
//! # Rights
//!
//! An ACL user needs `get mget getrange set del unlink pexpire pttl rename evalsha eval multi exec ping` on these keys, and what
//! a new connection begins with: `info time role client|id client|kill`. More is needed with
//!
//! - a database other than 0: `select`;
//! - a cluster: `cluster|slots asking hget hset hexists hlen`, and `readonly` with
//!   [`read_replicas`](RedisProviderBuilder::read_replicas);
//! - a backplane that tracks: `client|tracking pubsub|numsub subscribe publish`, and the channels `shop:b:*`; one that
//!   goes by messages: `unsubscribe` in the place of `client|tracking pubsub|numsub`;
//! - Redis 7.2 or later, for `CLIENT LIST` to show what it is: `client|setinfo`. Without it, a provider asks once, which
//!   `ACL LOG` shows.
//!
//! Redis 6.2 wants `resetchannels` before the channels of a new user.
//!
//! Who lacks one of these goes on as follows, and every cache on the provider is told so once, with the permission that is
//! missing ([`Event::Advice`](cache_core::Event::Advice)):
//!
//! | refused | what is weaker |
//! | --- | --- |
//! | `INFO` | the server's identity is not known: data that a restart or failover has brought back is served, late bytes are not fenced off |
//! | `CLIENT KILL`, `CLIENT ID` | a write that timed out may still arrive after the connection was lost |
//! | `EVALSHA`, `EVAL` | no leases, and tags widen to the whole cache: the level counts as one without |
//! | `MULTI`, `EXEC` | nothing is written: [`ErrorKind::Denied`]. Half of a transaction is not sent; on a connection that had the right and has lost it, halves undo nothing that others have written |
//! | `TIME` | ages at this level are counted by this machine's clock |
//! | `ROLE` | that a master is one is not verified |
//! | `CLIENT TRACKING`, `PUBSUB NUMSUB`, or channels | see [`RedisBackplane`] |
//!
//! So it is where the server does not know a command, or knows it by another name (`rename-command`).
//! Permissions are looked at with every new connection, but for `CLIENT TRACKING`: a provider that was refused it goes on
//! with messages. Any other permission that is missing is [`ErrorKind::Denied`] of the call, or of the attempt
//! to connect, and its text names it. So is one that is taken away while a connection is up, until it is given back.
//!
//! # Backplane
//!
//! [`RedisProvider::backplane`] lets nodes' memory hear of changes: by tracking on the provider's own connection, where the
//! server tells of every write, whoever made it, and else by messages over pub/sub. [`RedisProvider::messages`] is the
//! latter by choice. See [`RedisBackplane`] for what each promises and costs.
//!
//! # Settings
//!
//! | setting | default | what it does |
//! | --- | --- | --- |
//! | URL | | `redis://[user[:password]@]host[:port][/database]`, `unix:///path[?db=0&user=name&pass=word]`, `redis+sentinel://[user[:password]@]host[:port][,host[:port]...]/master-name[/database]`, `redis+cluster://[user[:password]@]host[:port][,host[:port]...]`; `rediss` for TLS |
//! | [`username`](RedisProviderBuilder::username), [`password`](RedisProviderBuilder::password) | of the URL | credentials, as they are |
//! | [`database`](RedisProviderBuilder::database) | of the URL, or 0 | index of the database |
//! | [`sentinel_username`](RedisProviderBuilder::sentinel_username), [`sentinel_password`](RedisProviderBuilder::sentinel_password) | none | credentials at the sentinels, which do not know those of the server |
//! | [`ca_file`](RedisProviderBuilder::ca_file) | the system's | authorities that may vouch for a server with TLS |
//! | [`client_certificate`](RedisProviderBuilder::client_certificate) | none | certificate and key for servers that want one |
//! | [`tls_server_name`](RedisProviderBuilder::tls_server_name) | the host | name that the server's certificate must be for |
//! | [`read_replicas`](RedisProviderBuilder::read_replicas) | off | replicas answer those who accept stale answers |
//! | [`tracking`](RedisProviderBuilder::tracking) | on | a backplane that a configuration names has the server tell what changes |
//! | [`key_prefix`](RedisProviderBuilder::key_prefix) | none | goes in front of every key |
//! | [`connect_timeout`](RedisProviderBuilder::connect_timeout) | 1 s | bounds one attempt to connect, handshake included |
//! | [`response_timeout`](RedisProviderBuilder::response_timeout) | 2 s | silence after which a connection counts as lost |
//! | [`value_max`](RedisProviderBuilder::value_max) | 512 MiB | larger items are refused and not sent, nor kept in memory when they are read |
//! | [`heartbeat`](RedisProviderBuilder::heartbeat), [`heartbeat_timeout`](RedisProviderBuilder::heartbeat_timeout) | 1 s, 1 s | a connection that a backplane listens on and that was silent for both together is given up |
//!
//! TTLs have steps of 1 ms and are rounded up; `Duration::MAX` is stored without expiry. Of keys, the first 4 KiB of
//! `namespace:id` are stored as they are; longer ones end in a digest. A batch of look-ups is one `MGET` per 512 keys,
//! in one round trip; batches of writes are pipelines, with a result per item.
//!
//! Requests of all callers share a connection, and what comes together goes out in one piece. Single look-ups that come while
//! others are under way are gathered into one `MGET`; a look-up that comes alone is a plain `GET` without delay.
//!
//! TLS (1.2 and 1.3, rustls) needs the feature `tls`, which is off by default: it compiles ring, which wants a C compiler.
//!
//! # Sentinels
//!
//! Every connection begins by asking all sentinels of the URL at once and goes to the server that the latest failover has
//! made the master, by its `config-epoch`, if that says so of itself, too; one sentinel that answers is enough, where
//! others are silent for 200 ms more. Once connected, they are asked again with each `heartbeat`, over a connection to each of them,
//! and as soon as one tells of a failover (`+promoted-slave`, `+switch-master`). Until it leaves, a process that is connected
//! to a living master which was replaced sees what that one has, not what others have removed at the new one.
//! A failover is followed when the connection is lost, when the server hangs, when it answers `READONLY`, and when a
//! sentinel names another master by a later failover, also where the old one has come back and does not know. What the
//! new master holds counts as another state of the store, as it may lack what the old one has acknowledged. Who has heard of
//! a later failover goes back to the master of an earlier one only by the word of most sentinels of the URL. Whoever has not, and
//! is cut off from all others together with the old master, goes on with that: bound it with `min-replicas-to-write`. A user
//! of the sentinels needs `+sentinel|get-master-addr-by-name` and `+sentinel|master`; without the latter the first answer
//! counts. Without `+subscribe` on the channels above failovers are noticed with the heartbeat.
//!
//! # Cluster
//!
//! Each master has a connection of its own, with all that a new one begins with: the one before it ended, its server
//! identified, tracking turned on. Batches are split by node, one round trip to each, pipelined `GET`s in the place of
//! `MGET`. The map is taken from what most nodes say in `CLUSTER SLOTS`, when one of them redirects, cannot be reached or
//! does not serve, and every five seconds. `MOVED` is followed. While a slot moves, what has moved is read there (`ASK`);
//! writes of it are [`ErrorKind::Unavailable`] until the move is over.
//!
//! What a promoted replica or a restarted master holds may lack what was acknowledged, so it counts as another state of the
//! whole cluster, and caches begin anew. The masters that have been met are recorded in the cluster itself, under
//! `r:{masters}`, so that all nodes agree on that; one that is promoted again is met anew. So is each of a cluster that nobody
//! has used before, with the first connection to it: what was stored until then, in its first moments, is void. One that is not
//! in the record is not used until it is: while the master of that key is away, no new connection is. `EVAL` and the hash
//! commands are needed on it; without, such losses go unnoticed, and the cache is told so.
//!
//! # Replicas
//!
//! With [`read_replicas`](RedisProviderBuilder::read_replicas), behind sentinels or in a cluster, a caller under
//! [`Access::AllowStale`](cache_core::Access::AllowStale) is answered by a replica. Its answer counts as stale, whatever its
//! age: it may have been replaced or removed since. It fills no nearer level and takes no lease. What the replica lacks, or
//! does not say in the level's time, the master is asked for.
//!
//! # When things go wrong
//!
//! | what happens | what callers see |
//! | --- | --- |
//! | the server is down at start | nothing: the first call connects. [`RedisProvider::connect`] asks now |
//! | it cannot be reached | who comes while an attempt is under way waits for it; between attempts (5 ms to 1 s, with jitter) calls fail at once with the last error |
//! | the connection breaks | it is made again at once, in the background; calls that come meanwhile wait for it |
//! | ... under a read | the read is sent once more on the next connection |
//! | ... under a wish for a lease, its renewal or return | it is sent once more, too: under its own token, so that twice is as good as once |
//! | ... under any other write | [`ErrorKind::Disconnected`]: whether it took effect is unknown, and it is not sent twice |
//! | the server hangs | calls wait, bounded by the level that makes them; the connection is given up within twice the response timeout |
//! | it takes no more clients (`maxclients`), or none from here (protected mode) | [`ErrorKind::Connect`]; the message says what it answered |
//! | of the addresses of a name some are dead, or hang | the next one is tried when one has failed, or not answered for 250 ms or a quarter of the connect timeout; the first that answers counts |
//! | no sentinel answers, or none knows the master's name | [`ErrorKind::Connect`], or [`ErrorKind::Config`]; the message names them |
//! | no node of a cluster answers | [`ErrorKind::Connect`]; the message names them |
//! | a URL of one form leads to a server of another | [`ErrorKind::Config`]; the message names the form to use |
//! | a node of a cluster dies or hangs | its keys fail as [`ErrorKind::Connect`] or run into the level's time until another takes over; the others' do not, unless the cluster wants all its slots covered. A cache asks each node in a call with a budget and a breaker of its own |
//! | a certificate is not trusted, expired, for another name, or missing | [`ErrorKind::Tls`]; the message says which setting or file to look at |
//! | `READONLY` | [`ErrorKind::ReadOnly`], and a new connection, as a failover may have moved the master; at most once a second |
//! | `LOADING`, out of memory, no permission | an error of that kind; the connection stays |
//! | a put or fill is refused, as too large or out of memory | the old value is removed, unless the fill had lost its lease |
//! | everything is invalidated, while the server is out of memory | it works, by a script |
//! | a removal, while the server is out of memory | it works, by a script, or by `UNLINK` where scripts are not allowed. Of a key that is not there the latter tells nobody: with a backplane that tracks it stays pending |
//! | the key holds a list or a hash | a miss; the next put replaces it |
//! | it holds a value over `value_max` (and over 1 MiB), by a node that allows more | a miss ([`Unreadable::TooLarge`](cache_core::Unreadable)), and none of it is kept while it comes; the next put replaces it |
//!
//! [`RedisProvider::connections`] tells how connections stand, [`RedisProvider::info`] what servers say of themselves.
//!
//! Dropping a call's future leaves the connection usable and disturbs no other call; whether a write that was dropped
//! took effect is unknown. Errors, `Debug` and logs hold no key, value or credential.
//!
//! The connection lives on the tokio runtime of the call that made it. Should that runtime end, the next call makes
//! another connection on its own. A runtime that lives on must be driven: after a first call in the `block_on` of one of
//! the kind `current_thread` that is kept and not entered again, calls from elsewhere wait in vain, until their levels give
//! them up. Drop such a runtime, or make the first call where the others are made. Runtimes need their I/O and time drivers
//! (`enable_all`).

#![cfg_attr(docsrs, feature(doc_cfg))]

mod address;
mod advice;
mod at_hand;
mod backoff;
mod backplane;
mod clocks;
mod cluster;
mod connection;
mod dial;
mod dials;
mod ears;
mod error;
mod fleet;
mod greet;
mod home;
mod info;
mod keeper;
mod lease;
mod marks;
mod mux;
mod node;
mod overhear;
mod plain;
mod provider;
mod read;
mod rights;
mod scripts;
mod sentinel;
mod settings;
mod slots;
mod state;
mod ticks;
mod units;
mod watch;
mod wire;
mod write;

pub use backplane::RedisBackplane;
pub use error::{Error, ErrorKind};
pub use info::{ConnectionInfo, ServerInfo};
pub use provider::RedisProvider;
pub use settings::RedisProviderBuilder;
