//! A memcached of a test's own, and a raw socket to it.

pub mod fake;

use std::{
    io::{BufRead, BufReader, Write},
    net::TcpStream,
    ops::Deref,
    time::{Duration, Instant},
};

use bytes::Bytes;
use cache_core::{BoxError, CacheId, Put, RawKey};
use cache_memcached::{Builder, Error, ErrorKind, MemcachedProvider};
use test_servers::{MemcachedBuilder, MemcachedServer};

/// One for a test that is nothing without it.
pub struct Server(MemcachedServer);

impl Server {
    pub fn start() -> Self {
        Self::with(&[])
    }

    pub fn with(args: &[&str]) -> Self {
        Self::of(MemcachedServer::builder().args(args.iter().copied()))
    }

    /// On this port, where a provider looks for it already.
    pub fn on(port: u16) -> Self {
        Self::of(MemcachedServer::builder().port(port))
    }

    fn of(builder: MemcachedBuilder) -> Self {
        Self(builder.start().expect("memcached is installed"))
    }

    /// Stops the process (SIGSTOP) until the guard is dropped.
    pub fn stop(&self) -> Stopped<'_> {
        self.0.stop();
        Stopped(&self.0)
    }

    /// Sends bytes and returns what comes back until the answer to a closing `mn`.
    pub fn raw(&self, request: &[u8]) -> String {
        let mut socket = TcpStream::connect(self.addr()).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        socket.write_all(request).unwrap();
        socket.write_all(b"mn\r\n").unwrap();
        let mut reader = BufReader::new(socket);
        let mut out = Vec::new();
        while !out.ends_with(b"MN\r\n") {
            assert_ne!(reader.read_until(b'\n', &mut out).unwrap(), 0, "closed");
        }
        out.truncate(out.len() - 4);
        String::from_utf8_lossy(&out).into_owned()
    }

    /// A number from `stats`.
    pub fn number(&self, name: &str) -> i64 {
        self.stat(name).unwrap().unwrap().parse().unwrap()
    }

    /// Remaining life of a key in seconds, -1 for "does not expire".
    pub fn ttl(&self, key: &str) -> i64 {
        let out = self.raw(format!("mg {key} t\r\n").as_bytes());
        out.trim().strip_prefix("HD t").unwrap_or_else(|| panic!("{out}")).parse().unwrap()
    }
}

impl Deref for Server {
    type Target = MemcachedServer;

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

pub struct Stopped<'a>(&'a MemcachedServer);

impl Drop for Stopped<'_> {
    fn drop(&mut self) {
        self.0.cont();
    }
}

pub const HOUR: Duration = Duration::from_secs(3600);

/// A builder with the transport that this test program is about.
pub fn builder(url: impl Into<String>) -> Builder {
    few_connections(url, 32)
}

/// The same, with so many connections where there are several.
pub fn few_connections(url: impl Into<String>, most: usize) -> Builder {
    let builder = MemcachedProvider::builder(url);
    #[cfg(feature = "client")]
    if crate::POOLED {
        return builder.pooled(most);
    }
    let _ = most;
    builder
}

pub fn provider(server: &Server) -> MemcachedProvider {
    builder(server.url()).build().unwrap()
}

pub fn key(id: &str) -> RawKey<'_> {
    RawKey::new(CacheId(1), "ns", id)
}

pub fn item<'a>(id: &'a str, bytes: &[u8]) -> Put<'a> {
    Put { key: key(id), bytes: Bytes::copy_from_slice(bytes), ttl: HOUR }
}

pub fn kind<T: std::fmt::Debug>(result: Result<T, BoxError>) -> ErrorKind {
    result.unwrap_err().downcast_ref::<Error>().expect("this crate's error").kind()
}

/// Polls until `done`.
pub async fn eventually(what: &str, mut done: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !done().await {
        assert!(Instant::now() < deadline, "never: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
