//! The real command on real files, beside an application that uses the same file.

use std::{
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    time::Duration,
};

use serde_json::Value;
use tempfile::TempDir;
use test_servers::{MemcachedServer, RedisServer};
use traced_cache::{Caches, TracedCache};

pub(crate) const WAIT: Duration = Duration::from_secs(10);

/// A folder with a configuration file.
pub(crate) struct Place {
    folder: TempDir,
    pub(crate) file: PathBuf,
}

/// How the command ended.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) code: i32,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Ended {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// The one line that says why it ended.
    pub(crate) fn error(&self) -> &str {
        assert_eq!(self.err.lines().count(), 1, "{self:?}");
        self.err.trim_end()
    }
}

impl From<Output> for Ended {
    fn from(output: Output) -> Self {
        let text = |bytes| String::from_utf8(bytes).unwrap();
        Self { code: output.status.code().unwrap(), out: text(output.stdout), err: text(output.stderr) }
    }
}

impl Place {
    pub(crate) fn new(text: &str) -> Self {
        let folder = TempDir::new().unwrap();
        let file = folder.path().join("cache.toml");
        std::fs::write(&file, text).unwrap();
        Self { folder, file }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn write(&self, name: &str, text: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        std::fs::write(&path, text).unwrap();
        path
    }

    /// `verb`, this file, and the rest.
    pub(crate) fn run(&self, verb: &str, rest: &[&str]) -> Ended {
        run([&[verb, self.file.to_str().unwrap()], rest].concat())
    }

    pub(crate) fn json(&self, verb: &str, rest: &[&str]) -> (i32, Value) {
        let ended = self.run(verb, &[rest, &["--json"]].concat());
        (ended.code, ended.json())
    }

    pub(crate) async fn caches(&self) -> Caches {
        Caches::builder().variables([("", ""); 0]).from_file(&self.file).await.unwrap()
    }

    pub(crate) async fn cache(&self) -> TracedCache<Value> {
        self.caches().await.cache("users").unwrap()
    }
}

pub(crate) fn command() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_traced-cache"));
    command.env_clear().stdin(Stdio::null());
    command
}

pub(crate) fn run<'a>(arguments: impl IntoIterator<Item = &'a str>) -> Ended {
    command().args(arguments).output().unwrap().into()
}

pub(crate) fn run_with_input(arguments: &[&str], input: impl AsRef<[u8]>) -> Ended {
    let mut child = command()
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(input.as_ref()).unwrap();
    child.wait_with_output().unwrap().into()
}

/// Memory in front of a server, which has time: the machine may be busy.
pub(crate) fn layered(url: &str, more: &str) -> String {
    let backend = url.split("://").next().unwrap();
    format!(
        "[providers.local]\nbackend = 'memory'\nentries = 1000\n\
         [providers.shared]\nbackend = '{backend}'\nurl = '{url}'\n\
         [caches.users]\nlevels = [{{ provider = 'local', ttl_cap = '30s' }}, {{ provider = 'shared', budget = '5s' }}]\n\
         policy = {{ ttl = '5m', grace = '10m', absent_ttl = '1m' }}\n{more}"
    )
}

/// A Redis and a memcached, as far as they are installed.
pub(crate) struct Servers {
    pub(crate) redis: Option<RedisServer>,
    pub(crate) memcached: Option<MemcachedServer>,
}

impl Servers {
    pub(crate) fn start() -> Self {
        Self { redis: RedisServer::start(), memcached: MemcachedServer::start() }
    }

    pub(crate) fn urls(&self) -> Vec<String> {
        let redis = self.redis.as_ref().map(RedisServer::url);
        redis.into_iter().chain(self.memcached.as_ref().map(MemcachedServer::url)).collect()
    }
}

pub(crate) fn utf8(path: &Path) -> &str {
    path.to_str().unwrap()
}
