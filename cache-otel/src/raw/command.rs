//! What is said of a command.

use std::{borrow::Cow, fmt, io, time::Duration};

use crate::names;

/// What kind of command it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Class {
    /// Looks something up.
    Read,
    /// Stores or changes something.
    Write,
    /// Removes something, now or in time.
    Delete,
    /// Of the server and the connection.
    Admin,
    /// Transactions and scripts.
    Transaction,
    /// Publish and subscribe.
    PubSub,
    /// Streams.
    Stream,
}

impl Class {
    /// A low-cardinality word for telemetry.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Delete => "delete",
            Self::Admin => "admin",
            Self::Transaction => "transaction",
            Self::PubSub => "pubsub",
            Self::Stream => "stream",
        }
    }

    /// The class of a Redis or memcached command. What is not known is a write: nothing is lost by taking more care.
    pub fn of(command: &str) -> Self {
        match command.to_ascii_uppercase().as_str() {
            "GET" | "GETS" | "MGET" | "MG" | "MN" | "GETRANGE" | "STRLEN" | "EXISTS" | "TTL" | "PTTL"
            | "EXPIRETIME" | "PEXPIRETIME" | "TYPE" | "KEYS" | "SCAN" | "RANDOMKEY" | "DUMP" | "HGET"
            | "HMGET" | "HGETALL" | "HKEYS" | "HVALS" | "HLEN" | "HEXISTS" | "HSTRLEN" | "HSCAN"
            | "HRANDFIELD" | "LRANGE" | "LLEN" | "LINDEX" | "LPOS" | "SMEMBERS" | "SISMEMBER"
            | "SMISMEMBER" | "SCARD" | "SRANDMEMBER" | "SSCAN" | "SINTER" | "SUNION" | "SDIFF" | "ZRANGE"
            | "ZRANGEBYSCORE" | "ZREVRANGE" | "ZSCORE" | "ZMSCORE" | "ZRANK" | "ZREVRANK" | "ZCARD"
            | "ZCOUNT" | "ZSCAN" | "BITCOUNT" | "BITPOS" | "GETBIT" | "PFCOUNT" | "GEOPOS" | "GEODIST"
            | "GEOSEARCH" | "OBJECT" | "TOUCH" | "LCS" | "SORT_RO" => Self::Read,
            "DEL" | "UNLINK" | "GETDEL" | "DELETE" | "MD" | "HDEL" | "HGETDEL" | "SREM" | "ZREM" | "LREM"
            | "LTRIM" | "ZREMRANGEBYRANK" | "ZREMRANGEBYSCORE" | "ZREMRANGEBYLEX" | "EXPIRE" | "PEXPIRE"
            | "EXPIREAT" | "PEXPIREAT" | "FLUSHDB" | "FLUSHALL" | "FLUSH_ALL" => Self::Delete,
            "MULTI" | "EXEC" | "DISCARD" | "WATCH" | "UNWATCH" | "EVAL" | "EVALSHA" | "EVAL_RO"
            | "EVALSHA_RO" | "FCALL" | "FCALL_RO" | "SCRIPT" | "FUNCTION" => Self::Transaction,
            "PUBLISH" | "SPUBLISH" | "SUBSCRIBE" | "PSUBSCRIBE" | "SSUBSCRIBE" | "UNSUBSCRIBE"
            | "PUNSUBSCRIBE" | "SUNSUBSCRIBE" | "PUBSUB" => Self::PubSub,
            "XADD" | "XREAD" | "XREADGROUP" | "XRANGE" | "XREVRANGE" | "XLEN" | "XDEL" | "XTRIM" | "XACK"
            | "XGROUP" | "XINFO" | "XPENDING" | "XCLAIM" | "XAUTOCLAIM" | "XSETID" => Self::Stream,
            "PING" | "ECHO" | "HELLO" | "AUTH" | "SELECT" | "QUIT" | "RESET" | "CLIENT" | "CONFIG"
            | "INFO" | "COMMAND" | "DBSIZE" | "DEBUG" | "MEMORY" | "LATENCY" | "MONITOR" | "SLOWLOG"
            | "TIME" | "ROLE" | "REPLICAOF" | "SAVE" | "BGSAVE" | "BGREWRITEAOF" | "LASTSAVE"
            | "SHUTDOWN" | "CLUSTER" | "ACL" | "MODULE" | "WAIT" | "WAITAOF" | "SWAPDB" | "ASKING"
            | "READONLY" | "READWRITE" | "SLAVEOF" | "SENTINEL" | "REPLCONF" | "PSYNC" | "SYNC"
            | "FAILOVER" | "LOLWUT" | "PFDEBUG" | "PFSELFTEST" | "JSON.DEBUG" | "STATS" | "VERSION"
            | "ME" => Self::Admin,
            _ => Self::Write,
        }
    }
}

/// Whether the server lets the command of this name wait, for something to come or for others to follow.
pub(crate) fn waits(command: &str) -> bool {
    matches!(
        command.to_ascii_uppercase().as_str(),
        "BLPOP"
            | "BRPOP"
            | "BRPOPLPUSH"
            | "BLMOVE"
            | "BLMPOP"
            | "BZPOPMIN"
            | "BZPOPMAX"
            | "BZMPOP"
            | "WAIT"
            | "WAITAOF"
    )
}

/// A command on its way.
#[derive(Clone)]
#[non_exhaustive]
pub struct Command<'a> {
    /// Its name as it is sent, `MULTI` or `PIPELINE` for several.
    pub name: Cow<'a, str>,
    /// The one command that all of several are, if they are.
    pub inner: Option<Cow<'a, str>>,
    /// What kind it is.
    pub class: Class,
    /// How many commands go together; `None` for one that goes alone.
    pub batch: Option<usize>,
    /// The key, for those who were told to show some.
    pub key: Option<Cow<'a, str>>,
    /// Number of keys, where it is known.
    pub keys: usize,
    /// Number of arguments, where it is known.
    pub arguments: usize,
    /// A script's digest or a function's name.
    pub procedure: Option<Cow<'a, str>>,
    /// Bytes of the value that it stores.
    pub size: Option<usize>,
    /// How long that is to live.
    pub ttl: Option<Duration>,
    /// The database's index.
    pub database: Option<i64>,
    /// Of several, how often each comes.
    pub counts: Vec<(Cow<'a, str>, usize)>,
    /// Of several, the first ones, each with its number of arguments: for `db.query.text`, where that is wanted.
    pub first: Vec<(Cow<'a, str>, usize)>,
    /// It is to wait at the server: how long it takes is then what was asked for, and no sign of a slow one.
    pub waits: bool,
}

/// Keys stay out of `Debug` output.
impl fmt::Debug for Command<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Command").field("name", &self.name).field("keys", &self.keys).finish_non_exhaustive()
    }
}

impl<'a> Command<'a> {
    /// A command of this name.
    pub fn named(name: impl Into<Cow<'a, str>>) -> Self {
        let name = name.into();
        Self {
            class: Class::of(&name),
            waits: waits(&name),
            name,
            inner: None,
            batch: None,
            key: None,
            keys: 0,
            arguments: 0,
            procedure: None,
            size: None,
            ttl: None,
            database: None,
            counts: Vec::new(),
            first: Vec::new(),
        }
    }

    /// With the key that it is about.
    #[must_use]
    pub fn key(mut self, key: impl Into<Cow<'a, str>>) -> Self {
        self.key = Some(key.into());
        self.keys = 1;
        self
    }

    /// With the number of keys that it is about.
    #[must_use]
    pub fn keys(mut self, keys: usize) -> Self {
        self.keys = keys;
        self
    }

    /// Storing a value of so many bytes.
    #[must_use]
    pub fn size(mut self, bytes: usize) -> Self {
        self.size = Some(bytes);
        self
    }

    /// Storing it for so long.
    #[must_use]
    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.ttl = Some(ttl);
        self
    }

    /// `GET`, `MULTI SET`: the operation by the conventions.
    pub(crate) fn operation(&self) -> String {
        match &self.inner {
            Some(inner) => format!("{} {inner}", self.name),
            None => self.name.to_string(),
        }
    }
}

/// What a reply says.
#[derive(Clone, Copy, Debug, Default)]
#[non_exhaustive]
pub struct Outcome {
    /// Keys found, where the command looks keys up.
    pub hits: Option<usize>,
    /// Keys not found.
    pub misses: Option<usize>,
    /// Bytes of the one value that it brings.
    pub size: Option<usize>,
    /// Number of things that it brings, where it brings a collection.
    pub items: Option<usize>,
    /// What it removed.
    pub deleted: Option<usize>,
}

impl Outcome {
    /// Of a look-up of one key.
    pub fn found(yes: bool) -> Self {
        Self { hits: Some(usize::from(yes)), misses: Some(usize::from(!yes)), ..Self::default() }
    }
}

/// The class of a failure, and what the server calls it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Failed {
    /// `connection`, `timeout` or `command`: `error.type`.
    pub class: &'static str,
    /// The error prefix of a reply, `WRONGTYPE` say: `db.response.status_code`.
    pub code: Option<String>,
}

impl Failed {
    /// The server did not take the command as it was.
    pub fn command(code: Option<&str>) -> Self {
        // A prefix, not a sentence that may quote what was sent.
        let plain =
            |code: &&str| code.len() <= 32 && code.bytes().all(|b| b.is_ascii_uppercase() || b == b'_');
        Self { class: "command", code: code.filter(plain).map(str::to_owned) }
    }

    /// The server could not be reached, or was lost.
    pub const CONNECTION: Self = Self { class: "connection", code: None };
    /// It did not answer in time.
    pub const TIMEOUT: Self = Self { class: "timeout", code: None };
    pub(crate) const CANCELLED: Self = Self { class: names::CANCELLED, code: None };
}

/// An error that can say what kind it is.
pub trait Failure {
    /// Its class. Must hold nothing of keys, values or credentials.
    fn describe(&self) -> Failed;
}

impl Failure for io::Error {
    fn describe(&self) -> Failed {
        match self.kind() {
            io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => Failed::TIMEOUT,
            _ => Failed::CONNECTION,
        }
    }
}
