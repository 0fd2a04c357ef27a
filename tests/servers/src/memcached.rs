//! `memcached`.

use std::{
    fmt,
    io::{self, BufRead, BufReader, Write},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use crate::{
    Authority, Certificate, Server,
    port::BUS,
    process::{Launch, Process},
    require,
};

/// A memcached server for one test.
pub struct MemcachedServer {
    process: Process,
}

/// Settings of a [`MemcachedServer`].
#[derive(Clone, Debug, Default)]
pub struct MemcachedBuilder {
    args: Vec<String>,
    port: Option<u16>,
    tls: bool,
}

impl MemcachedServer {
    /// Starts a server with default settings: 64 MB, items up to 1 MiB. `None`: not installed, see [`require`].
    pub fn start() -> Option<Self> {
        Self::builder().start()
    }

    /// A server with settings of its own.
    pub fn builder() -> MemcachedBuilder {
        MemcachedBuilder::default()
    }

    /// `memcached://127.0.0.1:PORT`.
    pub fn url(&self) -> String {
        format!("memcached://127.0.0.1:{}", self.port())
    }

    /// The TCP port.
    pub fn port(&self) -> u16 {
        self.process.port()
    }

    /// The port of TLS, if asked for with [`MemcachedBuilder::tls`]. The other one goes without, for the test's own needs.
    pub fn tls_port(&self) -> u16 {
        self.port() + BUS
    }

    /// The TCP address.
    pub fn addr(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.port()).into()
    }

    /// The process id, while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.process.pid()
    }

    /// What it has written to its log: nothing without `-v`.
    pub fn log(&self) -> String {
        self.process.log()
    }

    /// SIGKILL. Does nothing if it is dead already.
    pub fn kill(&self) {
        self.process.kill();
    }

    /// Kills it if it runs, and starts it empty on the same port with the same settings.
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

    /// One value of `stats`: `stat("curr_items")`. Blocks the thread.
    pub fn stat(&self, name: &str) -> io::Result<Option<String>> {
        stat(self.port(), name)
    }

    /// Sends one line of the text protocol on a new connection and gives the first line of the answer. Blocks the thread.
    pub fn command(&self, line: &str) -> io::Result<String> {
        let mut stream = BufReader::new(connect(self.port())?);
        ask(&mut stream, line)
    }
}

impl fmt::Debug for MemcachedServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemcachedServer")
            .field("port", &self.port())
            .field("pid", &self.pid())
            .finish_non_exhaustive()
    }
}

impl MemcachedBuilder {
    /// Appends arguments as they are: `["-I", "2m", "-m", "8", "-M"]`.
    #[must_use]
    pub fn args<A: Into<String>>(mut self, args: impl IntoIterator<Item = A>) -> Self {
        self.args.extend(args.into_iter().map(Into::into));
        self
    }

    /// On this port, from [`free_port`](crate::free_port), instead of one that it finds: for clients that look there before
    /// there is a server.
    #[must_use]
    pub fn port(mut self, port: u16) -> Self {
        self.port = Some(port);
        self
    }

    /// Also speaks TLS, with this certificate, see [`MemcachedServer::tls_port`]. `demands`: of clients too it wants one
    /// that this authority has signed.
    #[must_use]
    pub fn tls(mut self, authority: &Authority, own: &Certificate, demands: bool) -> Self {
        self.tls = true;
        let (chain, key, ca) = (own.certificate.display(), own.key.display(), authority.ca_file());
        let verify = if demands { 2 } else { 0 };
        let options = format!(
            "ssl_chain_cert={chain},ssl_key={key},ssl_ca_cert={},ssl_verify_mode={verify}",
            ca.display()
        );
        self.args(["-Z", "-o", &options])
    }

    /// Starts it and waits until it answers. `None`: not installed, see [`require`].
    ///
    /// # Panics
    /// If it does not come up; the message ends with its log.
    pub fn start(self) -> Option<MemcachedServer> {
        let program = require(Server::Memcached)?;
        let launch = Box::new(Memcached { program, args: self.args, tls: self.tls });
        let process = match self.port {
            Some(port) => Process::start_on(launch, port),
            None => Process::start(launch, &[]),
        };
        Some(MemcachedServer { process })
    }
}

struct Memcached {
    program: PathBuf,
    args: Vec<String>,
    tls: bool,
}

impl Launch for Memcached {
    fn command(&self, port: u16, _: &Path) -> Command {
        let mut command = Command::new(&self.program);
        let listen = match self.tls {
            true => format!("notls:127.0.0.1:{port},127.0.0.1:{}", port + BUS),
            false => "127.0.0.1".to_owned(),
        };
        command.args(["-l", &listen, "-U", "0", "-p", &port.to_string()]);
        if rustix::process::geteuid().is_root() {
            // It refuses to run as root unless told so.
            command.args(["-u", "root"]);
        }
        command.args(&self.args);
        command
    }

    fn ready(&self, port: u16, pid: u32, _: &str) -> bool {
        let Ok(stream) = connect(port) else { return false };
        match ask(&mut BufReader::new(stream), "version").as_deref() {
            // It wants a login (`-Y`), and tells nobody else its pid.
            Ok("CLIENT_ERROR unauthenticated") => return true,
            Ok(line) if line.starts_with("VERSION") => {}
            _ => return false,
        }
        stat(port, "pid").is_ok_and(|found| found == Some(pid.to_string()))
    }
}

fn connect(port: u16) -> io::Result<TcpStream> {
    let limit = Duration::from_secs(5);
    let stream = TcpStream::connect_timeout(&(Ipv4Addr::LOCALHOST, port).into(), limit)?;
    stream.set_read_timeout(Some(limit))?;
    stream.set_write_timeout(Some(limit))?;
    Ok(stream)
}

fn ask(stream: &mut BufReader<TcpStream>, line: &str) -> io::Result<String> {
    stream.get_mut().write_all(format!("{line}\r\n").as_bytes())?;
    next_line(stream)
}

fn next_line(stream: &mut BufReader<TcpStream>) -> io::Result<String> {
    let mut answer = String::new();
    if stream.read_line(&mut answer)? == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(answer.trim_end().to_owned())
}

fn stat(port: u16, name: &str) -> io::Result<Option<String>> {
    let mut stream = BufReader::new(connect(port)?);
    let mut line = ask(&mut stream, "stats")?;
    let mut found = None;
    while let Some((key, value)) = line.strip_prefix("STAT ").and_then(|rest| rest.split_once(' ')) {
        if key == name {
            found = Some(value.to_owned());
        }
        line = next_line(&mut stream)?;
    }
    Ok(found)
}
