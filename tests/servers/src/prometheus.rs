//! `prometheus`, and `promtool`, which comes with it.

use std::{
    fmt,
    io::{self, Read, Write},
    net::{Ipv4Addr, TcpStream},
    path::{Path, PathBuf},
    process::{Command, Output},
    time::Duration,
};

use crate::{
    Server,
    process::{Launch, Process},
    require,
};

/// A Prometheus for one test.
pub struct PrometheusServer {
    process: Process,
}

impl PrometheusServer {
    /// Starts one with `prometheus.yml` and other files beside it (names without folders). `None`: not installed, see
    /// [`require`].
    ///
    /// # Panics
    /// If it does not come up; the message ends with its log.
    pub fn start(files: &[(String, String)]) -> Option<Self> {
        let program = require(Server::Prometheus)?;
        Some(Self { process: Process::start(Box::new(Prometheus { program }), files) })
    }

    /// The body that it answers to `GET path` with, a query of its API say. Blocks the thread.
    pub fn get(&self, path: &str) -> io::Result<String> {
        get(self.process.port(), path)
    }

    /// What it has written to its log.
    pub fn log(&self) -> String {
        self.process.log()
    }
}

impl fmt::Debug for PrometheusServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PrometheusServer").field("port", &self.process.port()).finish_non_exhaustive()
    }
}

/// Runs `promtool` in a folder. `None`: not installed, see [`require`].
///
/// # Panics
/// If it cannot be run.
pub fn promtool(folder: &Path, arguments: &[&str]) -> Option<Output> {
    let program = require(Server::Promtool)?;
    Some(Command::new(program).current_dir(folder).args(arguments).output().expect("cannot run promtool"))
}

struct Prometheus {
    program: PathBuf,
}

impl Launch for Prometheus {
    fn command(&self, port: u16, dir: &Path) -> Command {
        let mut command = Command::new(&self.program);
        command
            .arg("--config.file=prometheus.yml")
            .arg(format!("--web.listen-address=127.0.0.1:{port}"))
            .arg(format!("--storage.tsdb.path={}", dir.join("data").display()))
            .arg("--log.level=warn");
        command
    }

    fn ready(&self, port: u16, pid: u32, _: &str) -> bool {
        // A stranger on this port would have another process behind it.
        let own = get(port, "/metrics").is_ok_and(|page| page.contains("prometheus_build_info"));
        own && pid > 0 && get(port, "/-/ready").is_ok_and(|text| text.contains("Ready"))
    }
}

fn get(port: u16, path: &str) -> io::Result<String> {
    let limit = Duration::from_secs(10);
    let mut stream = TcpStream::connect_timeout(&(Ipv4Addr::LOCALHOST, port).into(), limit)?;
    stream.set_read_timeout(Some(limit))?;
    // HTTP/1.0: the body ends with the connection.
    stream.write_all(format!("GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n").as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    match answer.split_once("\r\n\r\n") {
        Some((_, body)) => Ok(body.to_owned()),
        None => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}
