//! A redis-server of a test's own.
#![allow(dead_code, reason = "each test file uses a part")]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "in tests, what goes wrong must fail the test")]

pub(crate) mod proxy;

use std::{
    cell::RefCell,
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use cache_core::{BoxError, CacheId, CacheProvider, Put, RawKey};
use cache_redis::{Error, ErrorKind};
use redis::{ConnectionAddr, FromRedisValue, IntoConnectionInfo, RedisConnectionInfo, RedisResult};

/// Runs on a free loopback port and dies with this value.
pub(crate) struct RedisServer {
    port: u16,
    args: Vec<String>,
    password: Option<String>,
    dir: tempfile::TempDir,
    child: RefCell<Option<Child>>,
}

impl RedisServer {
    pub(crate) fn start() -> Self {
        Self::with(&[], None)
    }

    pub(crate) fn with(args: &[&str], password: Option<&str>) -> Self {
        let port = test_servers::free_port();
        let mut args: Vec<String> = args.iter().map(ToString::to_string).collect();
        if let Some(password) = password {
            args.extend(["--requirepass".to_owned(), password.to_owned()]);
        }
        let server = Self {
            port,
            args,
            password: password.map(str::to_owned),
            dir: tempfile::tempdir().unwrap(),
            child: RefCell::new(None),
        };
        server.restart();
        server
    }

    pub(crate) fn url(&self) -> String {
        match &self.password {
            Some(password) => format!("redis://:{password}@127.0.0.1:{}", self.port),
            None => format!("redis://127.0.0.1:{}", self.port),
        }
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.dir.path().join("redis.sock")
    }

    /// Starts the process and does not wait for it.
    pub(crate) fn launch(&self) {
        self.kill();
        let child = Command::new("redis-server")
            .args([
                "--port",
                &self.port.to_string(),
                "--bind",
                "127.0.0.1",
                "--save",
                "",
                "--appendonly",
                "no",
            ])
            .arg("--dir")
            .arg(self.dir.path())
            .arg("--unixsocket")
            .arg(self.socket())
            .args(&self.args)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("redis-server is installed");
        *self.child.borrow_mut() = Some(child);
    }

    pub(crate) fn restart(&self) {
        self.launch();
        until("the server answers", || self.command::<String>(&["PING"]).is_ok());
    }

    pub(crate) fn kill(&self) {
        if let Some(mut child) = self.child.borrow_mut().take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    fn signal(&self, signal: &str) {
        let pid = self.child.borrow().as_ref().unwrap().id().to_string();
        assert!(Command::new("kill").args([signal, &pid]).status().unwrap().success());
    }

    pub(crate) fn stop(&self) {
        self.signal("-STOP");
        let pid = self.child.borrow().as_ref().unwrap().id();
        until("the server stands still", || {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with('T'))
        });
    }

    pub(crate) fn cont(&self) {
        self.signal("-CONT");
    }

    /// Runs one command on a connection of its own. Blocks.
    pub(crate) fn command<T: FromRedisValue>(&self, parts: &[&str]) -> RedisResult<T> {
        let mut settings = RedisConnectionInfo::default();
        if let Some(password) = &self.password {
            settings = settings.set_password(password);
        }
        let info = ConnectionAddr::Tcp("127.0.0.1".into(), self.port).into_connection_info()?;
        let client = redis::Client::open(info.set_redis_settings(settings))?;
        let mut connection = client.get_connection_with_timeout(Duration::from_secs(5))?;
        let mut command = redis::Cmd::new();
        for part in parts {
            command.arg(part);
        }
        command.query(&mut connection)
    }

    /// How often a command has run.
    pub(crate) fn calls(&self, command: &str) -> u64 {
        let info: String = self.command(&["INFO", "commandstats"]).unwrap();
        let prefix = format!("cmdstat_{command}:calls=");
        info.lines().find_map(|line| line.strip_prefix(&prefix)?.split(',').next()?.parse().ok()).unwrap_or(0)
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        self.kill();
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
pub(crate) async fn until_async<F: Future<Output = bool>>(what: &str, check: impl FnMut() -> F) {
    within(Duration::from_secs(20), what, check).await;
}

/// The same for what takes its time.
pub(crate) async fn within<F: Future<Output = bool>>(
    limit: Duration,
    what: &str,
    mut check: impl FnMut() -> F,
) {
    let deadline = Instant::now() + limit;
    while !check().await {
        assert!(Instant::now() < deadline, "not within {limit:?}: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

pub(crate) fn key(id: &str) -> RawKey<'_> {
    RawKey::new(CacheId(1), "users", id)
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
