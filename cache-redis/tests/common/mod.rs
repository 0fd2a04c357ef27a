//! A redis-server of a test's own.
#![allow(dead_code, reason = "each test file uses a part")]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "in tests, what goes wrong must fail the test")]

pub(crate) mod proxy;

use std::{
    ops::Deref,
    path::PathBuf,
    time::{Duration, Instant},
};

use bytes::Bytes;
use cache_core::{BoxError, CacheId, CacheProvider, Put, RawKey, Swap};
use cache_redis::{Error, ErrorKind};

/// One for a test that is nothing without it.
pub(crate) struct RedisServer(test_servers::RedisServer);

impl RedisServer {
    pub(crate) fn start() -> Self {
        Self::with(&[], None)
    }

    pub(crate) fn with(args: &[&str], password: Option<&str>) -> Self {
        let builder = test_servers::RedisServer::builder().unix_socket().args(args.iter().copied());
        let builder = match password {
            Some(password) => builder.password(password),
            None => builder,
        };
        Self(builder.start().expect("redis-server is installed"))
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.0.socket().unwrap()
    }

    /// How often a command has run.
    pub(crate) fn calls(&self, command: &str) -> u64 {
        let info: String = self.command(&["INFO", "commandstats"]).unwrap();
        let prefix = format!("cmdstat_{command}:calls=");
        info.lines().find_map(|line| line.strip_prefix(&prefix)?.split(',').next()?.parse().ok()).unwrap_or(0)
    }
}

impl Deref for RedisServer {
    type Target = test_servers::RedisServer;

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

/// Polls with a deadline.
pub(crate) fn until(what: &str, mut check: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !check() {
        assert!(Instant::now() < deadline, "not within 20 s: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// The same for a check that awaits.
pub(crate) async fn until_async(what: &str, check: impl AsyncFnMut() -> bool) {
    test_servers::eventually(Duration::from_secs(20), what, check).await;
}

/// Ends all connections of clients but the one that says so. Returns how many there were.
pub(crate) fn kill_clients(server: &test_servers::RedisServer) -> u64 {
    server.command(&["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"]).unwrap()
}

pub(crate) fn key(id: &str) -> RawKey<'_> {
    RawKey::new(CacheId(1), "users", id)
}

pub(crate) fn swap<'a>(
    key: RawKey<'a>,
    seen: Option<&'static [u8]>,
    bytes: &'static [u8],
    ttl: Duration,
) -> Swap<'a> {
    Swap { key, seen: seen.map(Bytes::from_static), bytes: Bytes::from_static(bytes), ttl }
}

pub(crate) fn item<'a>(id: &'a str, bytes: &[u8]) -> Put<'a> {
    Put { key: key(id), bytes: bytes.to_vec().into(), ttl: Duration::from_secs(60) }
}

pub(crate) fn kind<T: std::fmt::Debug>(result: Result<T, BoxError>) -> ErrorKind {
    result.unwrap_err().downcast_ref::<Error>().expect("the crate's own error").kind()
}

pub(crate) async fn put(provider: &impl CacheProvider, id: &str, value: &str) {
    provider.put(item(id, value.as_bytes())).await.unwrap();
}

pub(crate) async fn get(provider: &impl CacheProvider, id: &str) -> Result<Option<String>, BoxError> {
    let found = provider.get(key(id)).await?;
    Ok(found.map(|bytes| String::from_utf8(bytes.to_vec()).unwrap()))
}
