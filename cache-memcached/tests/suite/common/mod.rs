//! A real memcached on a free loopback port, and a raw socket to it.

pub mod fake;

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use bytes::Bytes;
use cache_core::{BoxError, CacheId, Put, RawKey};
use cache_memcached::{Builder, Error, ErrorKind, MemcachedProvider};

pub struct Server {
    child: Child,
    pub port: u16,
    args: Vec<String>,
}

impl Server {
    pub fn start() -> Self {
        Self::with(&[])
    }

    pub fn with(args: &[&str]) -> Self {
        let port = test_servers::free_port();
        let args: Vec<String> = args.iter().map(|a| (*a).to_owned()).collect();
        Self { child: spawn(port, &args), port, args }
    }

    pub fn on(port: u16) -> Self {
        Self { child: spawn(port, &[]), port, args: Vec::new() }
    }

    pub fn url(&self) -> String {
        format!("memcached://127.0.0.1:{}", self.port)
    }

    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    pub fn restart(&mut self) {
        self.kill();
        self.child = spawn(self.port, &self.args);
    }

    /// Stops the process (SIGSTOP) until the guard is dropped.
    pub fn stop(&self) -> Stopped {
        signal(self.child.id(), "STOP");
        // The signal reaches one thread after the other.
        let deadline = Instant::now() + Duration::from_secs(20);
        while !is_stopped(self.child.id()) {
            assert!(Instant::now() < deadline, "memcached does not stop");
            std::thread::sleep(Duration::from_millis(1));
        }
        Stopped(self.child.id())
    }

    /// Sends bytes and returns what comes back until the answer to a closing `mn`.
    pub fn raw(&self, request: &[u8]) -> String {
        let mut socket = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
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
    pub fn stat(&self, name: &str) -> i64 {
        let out = self.raw(b"stats\r\n");
        let line = out.lines().find_map(|l| l.strip_prefix(&format!("STAT {name} "))).unwrap();
        line.trim().parse().unwrap()
    }

    /// Remaining life of a key in seconds, -1 for "does not expire".
    pub fn ttl(&self, key: &str) -> i64 {
        let out = self.raw(format!("mg {key} t\r\n").as_bytes());
        out.trim().strip_prefix("HD t").unwrap_or_else(|| panic!("{out}")).parse().unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub struct Stopped(u32);

impl Drop for Stopped {
    fn drop(&mut self) {
        signal(self.0, "CONT");
    }
}

fn signal(pid: u32, name: &str) {
    let done = Command::new("kill").args([format!("-{name}"), pid.to_string()]).status().unwrap();
    assert!(done.success());
}

fn is_stopped(pid: u32) -> bool {
    std::fs::read_dir(format!("/proc/{pid}/task")).unwrap().all(|task| {
        let stat = std::fs::read_to_string(task.unwrap().path().join("stat")).unwrap();
        stat.rsplit_once(") ").unwrap().1.starts_with('T')
    })
}

fn spawn(port: u16, args: &[String]) -> Child {
    let mut child = Command::new("memcached")
        .args(["-u", "nobody", "-l", "127.0.0.1", "-p", &port.to_string(), "-t", "2"])
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("memcached is installed");
    let deadline = Instant::now() + Duration::from_secs(20);
    while !answers(port) {
        assert!(child.try_wait().unwrap().is_none(), "memcached ended at once");
        assert!(Instant::now() < deadline, "memcached does not answer");
        std::thread::sleep(Duration::from_millis(5));
    }
    child
}

fn answers(port: u16) -> bool {
    let Ok(mut socket) = TcpStream::connect(("127.0.0.1", port)) else { return false };
    let mut reply = [0; 4];
    socket.write_all(b"mn\r\n").is_ok() && socket.read_exact(&mut reply).is_ok()
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
