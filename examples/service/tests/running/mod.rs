//! The service's program, running for one test.
#![allow(dead_code, unreachable_pub, reason = "each test program uses some of it")]

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    path::Path,
    process::{Child, Command, Stdio},
};

use test_servers::Signal;

pub fn program(folder: &Path) -> Command {
    with_database(&folder.join("airports.db"))
}

pub fn with_database(path: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_service"));
    command.args(["--listen", "127.0.0.1:0", "--database"]).arg(path);
    command
        .env("CARGO_MANIFEST_DIR", env!("CARGO_MANIFEST_DIR"))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

/// A service that runs, and its address.
pub struct Running {
    child: Child,
    pub at: String,
    said: BufReader<std::process::ChildStdout>,
}

impl Running {
    pub fn start(mut command: Command) -> Self {
        let mut child = command.spawn().unwrap();
        let mut said = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        said.read_line(&mut line).unwrap();
        let at = line.split("http://").nth(1).unwrap_or_else(|| panic!("said {line:?}"));
        let at = at.split(' ').next().unwrap().to_owned();
        Self { child, at, said }
    }

    pub fn get(&self, path: &str) -> String {
        let mut stream = TcpStream::connect(&self.at).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    pub fn post(&self, path: &str, json: &str) -> String {
        let mut stream = TcpStream::connect(&self.at).unwrap();
        let length = json.len();
        write!(
            stream,
            "POST {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/json\r\n\
             Content-Length: {length}\r\n\r\n{json}"
        )
        .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    /// As a supervisor would.
    pub fn ask_to_end(&self) {
        self.signal(Signal::TERM);
    }

    pub fn signal(&self, signal: Signal) {
        test_servers::signal(&self.child, signal);
    }

    pub fn has_ended(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }

    /// Asks it to end, and waits for that.
    pub fn end(self) -> (bool, String) {
        self.ask_to_end();
        self.ended()
    }

    /// How it has ended, and what it said.
    pub fn ended(mut self) -> (bool, String) {
        let mut rest = String::new();
        self.said.read_to_string(&mut rest).unwrap();
        (self.child.wait().unwrap().success(), rest)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It has ended already, or its test has failed.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

pub fn tool(program: &str, running: &Running) -> Command {
    let mut command = Command::new(program);
    command.args(["--url", &format!("http://{}", running.at)]);
    command
}
