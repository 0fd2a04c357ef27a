//! `redis-server`.

use std::{
    fmt,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use redis::{
    Connection, ConnectionAddr, FromRedisValue, IntoConnectionInfo, RedisConnectionInfo, RedisResult,
};

use crate::{
    Authority, Certificate, Server,
    port::BUS,
    process::{Launch, Process},
    require,
};

/// A Redis (or Valkey) server for one test, without persistence unless asked for.
pub struct RedisServer {
    process: Process,
    password: Option<String>,
    socket: bool,
    tls_offset: u16,
}

/// Settings of a [`RedisServer`].
#[derive(Clone, Default)]
pub struct RedisBuilder {
    args: Vec<String>,
    files: Vec<(String, String)>,
    password: Option<String>,
    socket: bool,
    sentinel: bool,
    tls: bool,
}

impl RedisServer {
    /// Starts a server with default settings. `None`: not installed, see [`require`].
    pub fn start() -> Option<Self> {
        Self::builder().start()
    }

    /// A server with settings of its own.
    pub fn builder() -> RedisBuilder {
        RedisBuilder::default()
    }

    /// `redis://127.0.0.1:PORT`, with the password if one was set.
    pub fn url(&self) -> String {
        match &self.password {
            Some(password) => format!("redis://:{password}@127.0.0.1:{}", self.port()),
            None => format!("redis://127.0.0.1:{}", self.port()),
        }
    }

    /// The TCP port.
    pub fn port(&self) -> u16 {
        self.process.port()
    }

    /// The port of TLS, if asked for with [`RedisBuilder::tls`]. The other one goes without, for the test's own needs.
    pub fn tls_port(&self) -> u16 {
        self.port() + self.tls_offset
    }

    /// The TCP address.
    pub fn addr(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.port()).into()
    }

    /// The unix socket, if asked for.
    pub fn socket(&self) -> Option<PathBuf> {
        self.socket.then(|| self.process.dir().join(SOCKET))
    }

    /// The process id, while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.process.pid()
    }

    /// Its working directory: dumps, append-only files and files from [`RedisBuilder::file`] are there.
    pub fn dir(&self) -> &Path {
        self.process.dir()
    }

    /// What it has written to its log.
    pub fn log(&self) -> String {
        self.process.log()
    }

    /// SIGKILL: nothing is saved. Does nothing if it is dead already.
    pub fn kill(&self) {
        self.process.kill();
    }

    /// SIGTERM, and waits: a server with save points or an append-only file keeps its data.
    pub fn shutdown(&self) {
        self.process.shutdown();
    }

    /// Kills it if it runs, and starts it on the same port and directory with the same settings.
    pub fn restart(&self) {
        self.process.restart();
    }

    /// SIGSTOP: connections stay, nothing answers. Returns once it stands still.
    pub fn stop(&self) {
        self.process.stop();
    }

    /// SIGCONT.
    pub fn cont(&self) {
        self.process.cont();
    }

    /// A new blocking connection, for what a test does behind the back of the code under test.
    pub fn connection(&self) -> RedisResult<Connection> {
        connect(self.port(), self.password.as_deref())
    }

    /// Runs one command on a new connection: `server.command::<i64>(&["PTTL", "key"])`. Blocks the thread.
    pub fn command<T: FromRedisValue>(&self, parts: &[&str]) -> RedisResult<T> {
        command(&mut self.connection()?, parts)
    }
}

impl fmt::Debug for RedisServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisServer")
            .field("port", &self.port())
            .field("pid", &self.pid())
            .finish_non_exhaustive()
    }
}

impl RedisBuilder {
    /// Appends arguments as they are: `["--maxmemory", "2mb"]`. Later ones win over defaults.
    #[must_use]
    pub fn args<A: Into<String>>(mut self, args: impl IntoIterator<Item = A>) -> Self {
        self.args.extend(args.into_iter().map(Into::into));
        self
    }

    /// Sets one directive: `config("maxmemory", "2mb")`.
    #[must_use]
    pub fn config(self, name: &str, value: &str) -> Self {
        self.args([format!("--{name}"), value.to_owned()])
    }

    /// Demands a password of the default user; [`RedisServer::url`] has it.
    #[must_use]
    pub fn password(mut self, password: &str) -> Self {
        self.password = Some(password.to_owned());
        self.config("requirepass", password)
    }

    /// Writes a file into the working directory before the start.
    #[must_use]
    pub fn file(mut self, name: &str, contents: &str) -> Self {
        self.files.push((name.to_owned(), contents.to_owned()));
        self
    }

    /// An ACL file with these lines: `user alice on >secret ~* +@all`.
    #[must_use]
    pub fn acl(self, lines: &str) -> Self {
        self.file("users.acl", lines).config("aclfile", "users.acl")
    }

    /// Keeps data in an append-only file, flushed at every write.
    #[must_use]
    pub fn append_only(self) -> Self {
        self.config("appendonly", "yes").config("appendfsync", "always")
    }

    /// Also listens on a unix socket, see [`RedisServer::socket`].
    #[must_use]
    pub fn unix_socket(mut self) -> Self {
        self.socket = true;
        self.config("unixsocket", SOCKET)
    }

    /// Also speaks TLS, with this certificate, see [`RedisServer::tls_port`]. `demands`: of clients too it wants one that
    /// this authority has signed.
    #[must_use]
    pub fn tls(mut self, authority: &Authority, own: &Certificate, demands: bool) -> Self {
        self.tls = true;
        let path = |path: &Path| path.to_str().expect("a temporary path is UTF-8").to_owned();
        self.config("tls-cert-file", &path(&own.certificate))
            .config("tls-key-file", &path(&own.key))
            .config("tls-ca-cert-file", &path(&authority.ca_file()))
            .config("tls-auth-clients", if demands { "yes" } else { "no" })
    }

    /// A sentinel with this configuration file, which it rewrites.
    #[must_use]
    pub fn sentinel(mut self, config: &str) -> Self {
        self.sentinel = true;
        self.file(SENTINEL, config)
    }

    /// Starts it and waits until it answers. `None`: not installed, see [`require`].
    ///
    /// # Panics
    /// If it does not come up; the message ends with its log.
    pub fn start(self) -> Option<RedisServer> {
        let program = require(Server::Redis)?;
        let tls_offset = if self.args.iter().any(|arg| arg == "--cluster-enabled") { 2 * BUS } else { BUS };
        let launch = Redis {
            program,
            args: self.args,
            password: self.password.clone(),
            sentinel: self.sentinel,
            tls: self.tls.then_some(tls_offset),
        };
        let process = Process::start(Box::new(launch), &self.files);
        Some(RedisServer { process, password: self.password, socket: self.socket, tls_offset })
    }
}

impl fmt::Debug for RedisBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisBuilder").finish_non_exhaustive()
    }
}

const SOCKET: &str = "redis.sock";
const SENTINEL: &str = "sentinel.conf";

struct Redis {
    program: PathBuf,
    args: Vec<String>,
    password: Option<String>,
    sentinel: bool,
    /// From the other port to that of TLS.
    tls: Option<u16>,
}

impl Launch for Redis {
    fn command(&self, port: u16, _: &Path) -> Command {
        let mut command = Command::new(&self.program);
        if self.sentinel {
            command.args([SENTINEL, "--sentinel"]);
        }
        command.args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--daemonize", "no"]);
        if !self.sentinel {
            // No dump unless asked for. A replica syncs at once rather than after 5 s.
            command.args(["--save", "", "--appendonly", "no", "--repl-diskless-sync-delay", "0"]);
        }
        if let Some(offset) = self.tls {
            command.args(["--tls-port", &(port + offset).to_string()]);
            if offset != BUS {
                // A node of a cluster would count from the port of TLS.
                command.args(["--cluster-port", &(port + BUS).to_string()]);
            }
        }
        command.args(&self.args);
        command
    }

    fn ready(&self, port: u16, pid: u32, log: &str) -> bool {
        let Ok(mut connection) = connect(port, self.password.as_deref()) else {
            // An ACL may keep us out: its own log then says that it listens, so no stranger has the port.
            return log.contains("Ready to accept connections") && refuses(port);
        };
        match command::<String>(&mut connection, &["INFO", "server"]) {
            Ok(info) => info.contains(&format!("process_id:{pid}\r\n")) && ping(&mut connection),
            // Nor does it tell its id where `INFO` goes by another name.
            Err(error) => {
                log.contains("Ready to accept connections")
                    && (matches!(error.code(), Some("NOAUTH" | "NOPERM"))
                        || error.to_string().contains("unknown command"))
            }
        }
    }
}

/// Fails while the server is loading its data.
fn ping(connection: &mut Connection) -> bool {
    match command::<String>(connection, &["PING"]) {
        Ok(_) => true,
        Err(error) => matches!(error.code(), Some("NOAUTH" | "NOPERM")),
    }
}

/// Whether the handshake gets an answer, and the answer is that we may not.
fn refuses(port: u16) -> bool {
    connect(port, None).is_err_and(|error| {
        let words = error.to_string();
        ["NOAUTH", "NOPERM", "WRONGPASS", "WRONG_PASS", "Authentication"]
            .iter()
            .any(|word| words.contains(word))
    })
}

fn connect(port: u16, password: Option<&str>) -> RedisResult<Connection> {
    let mut settings = RedisConnectionInfo::default();
    if let Some(password) = password {
        settings = settings.set_password(password);
    }
    let info = ConnectionAddr::Tcp("127.0.0.1".to_owned(), port).into_connection_info()?;
    let client = redis::Client::open(info.set_redis_settings(settings))?;
    let limit = Duration::from_secs(5);
    let connection = client.get_connection_with_timeout(limit)?;
    connection.set_read_timeout(Some(limit))?;
    connection.set_write_timeout(Some(limit))?;
    Ok(connection)
}

fn command<T: FromRedisValue>(connection: &mut Connection, parts: &[&str]) -> RedisResult<T> {
    let mut command = redis::Cmd::new();
    for part in parts {
        command.arg(part);
    }
    command.query(connection)
}
