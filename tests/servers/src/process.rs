//! One server process: started in a directory of its own, watched until ready, gone on drop.

use std::{
    ffi::OsString,
    fs::{self, File},
    io::{Read, Seek, SeekFrom},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process, waitid};
use tempfile::TempDir;

/// How long a server may take to start: far more than it needs, because test machines are busy.
pub(crate) const START_LIMIT: Duration = Duration::from_secs(30);
/// How often a start is tried again on another port.
const ATTEMPTS: usize = 8;
/// How much of the log a failure shows.
const LOG_TAIL: u64 = 4_000;

/// How to start a server and tell that it is ready.
pub(crate) trait Launch: Send + Sync {
    /// Program and arguments for this port. The working directory is `dir`.
    fn command(&self, port: u16, dir: &Path) -> Command;

    /// Asks the process with this id, listening on `port`, whether it serves. Must not believe a stranger on that port.
    fn ready(&self, port: u16, pid: u32, log: &str) -> bool;
}

pub(crate) struct Process {
    launch: Box<dyn Launch>,
    port: u16,
    running: Mutex<Option<Running>>,
    dir: TempDir,
}

struct Running {
    server: Child,
    /// Kills the server and removes its directory when this process dies without running destructors.
    guard: Child,
}

enum Failed {
    /// It ended by itself, most likely because the port was taken.
    Exited(String),
    Deadline(String),
}

impl Process {
    /// Starts on a free port; on another one if that was taken meanwhile. Panics with the log's tail.
    pub(crate) fn start(launch: Box<dyn Launch>, files: &[(String, String)]) -> Self {
        let dir = directory();
        for (name, contents) in files {
            fs::write(dir.path().join(name), contents).expect("cannot write a server's file");
        }
        let mut last = String::new();
        for _ in 0..ATTEMPTS {
            let port = crate::port::free();
            match launch_on(&*launch, port, dir.path()) {
                Ok(running) => return Self { launch, port, running: Mutex::new(Some(running)), dir },
                Err(Failed::Exited(why)) => last = why,
                Err(Failed::Deadline(why)) => panic!("{why}"),
            }
        }
        panic!("gave up after {ATTEMPTS} ports; the last one: {last}");
    }

    /// Starts on this port. Panics with the log's tail.
    pub(crate) fn start_on(launch: Box<dyn Launch>, port: u16) -> Self {
        let process = Self { launch, port, running: Mutex::new(None), dir: directory() };
        process.restart();
        process
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn log(&self) -> String {
        log_tail(&log_path(self.dir()), u64::MAX)
    }

    /// The process id, while it runs.
    pub(crate) fn pid(&self) -> Option<u32> {
        self.lock().as_ref().map(|running| running.server.id())
    }

    pub(crate) fn kill(&self) {
        if let Some(running) = self.lock().take() {
            end(running);
        }
    }

    /// SIGTERM, then waits for a clean end; kills after a while.
    pub(crate) fn shutdown(&self) {
        if let Some(mut running) = self.lock().take() {
            signal(&running.server, Signal::TERM);
            crate::until(START_LIMIT, || matches!(running.server.try_wait(), Ok(Some(_))));
            end(running);
        }
    }

    /// Kills it if it runs, and starts it on the same port and directory.
    pub(crate) fn restart(&self) {
        let mut running = self.lock();
        if let Some(running) = running.take() {
            end(running);
        }
        // The port is ours by custom only: give a stranger some time to leave.
        let deadline = Instant::now() + START_LIMIT;
        *running = loop {
            match launch_on(&*self.launch, self.port, self.dir()) {
                Ok(running) => break Some(running),
                Err(Failed::Exited(why)) => {
                    assert!(Instant::now() < deadline, "start on port {}: {why}", self.port);
                    thread::sleep(Duration::from_millis(50));
                }
                Err(Failed::Deadline(why)) => panic!("start on port {}: {why}", self.port),
            }
        };
    }

    /// SIGSTOP; returns once it stands still.
    pub(crate) fn stop(&self) {
        if let Some(running) = &*self.lock() {
            signal(&running.server, Signal::STOP);
            let options = WaitIdOptions::STOPPED | WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
            waitid(WaitId::Pid(pid_of(&running.server)), options).expect("cannot wait for SIGSTOP");
        }
    }

    pub(crate) fn cont(&self) {
        if let Some(running) = &*self.lock() {
            signal(&running.server, Signal::CONT);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<Running>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

fn directory() -> TempDir {
    tempfile::Builder::new().prefix("test-server-").tempdir().expect("cannot create a directory")
}

fn launch_on(launch: &dyn Launch, port: u16, dir: &Path) -> Result<Running, Failed> {
    let log = log_path(dir);
    // Appends, so that a restart keeps the story; readiness looks at what is new.
    let file = File::options().create(true).append(true).open(&log).expect("cannot create a server's log");
    let before = file.metadata().map_or(0, |data| data.len());
    let errors = file.try_clone().expect("cannot share a server's log");
    let mut command = launch.command(port, dir);
    // A group of its own: Ctrl-C on the tests must leave the end to the guard.
    command.current_dir(dir).stdin(Stdio::null()).stdout(file).stderr(errors).process_group(0);
    let program = command.get_program().to_owned();
    let server = command.spawn().unwrap_or_else(|error| panic!("cannot run {}: {error}", program.display()));
    let guard = guard(&server, dir);
    let mut running = Running { server, guard };
    let deadline = Instant::now() + START_LIMIT;
    loop {
        if let Ok(Some(status)) = running.server.try_wait() {
            end(running);
            return Err(Failed::Exited(report(&program, port, &format!("ended with {status}"), &log)));
        }
        if launch.ready(port, running.server.id(), &log_since(&log, before)) {
            return Ok(running);
        }
        if Instant::now() >= deadline {
            end(running);
            return Err(Failed::Deadline(report(&program, port, "was not ready in time", &log)));
        }
        thread::sleep(Duration::from_millis(3));
    }
}

fn guard(server: &Child, dir: &Path) -> Child {
    // `read` ends when the other end of the pipe closes, whatever becomes of this process.
    Command::new("sh")
        .args(["-c", "read -r _; kill -KILL \"$1\"; rm -rf \"$2\"", "guard"])
        .arg(server.id().to_string())
        .arg(dir)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .process_group(0)
        .spawn()
        .expect("cannot run sh")
}

fn end(mut running: Running) {
    // The guard first: once the server is reaped, its id may belong to another process.
    let _ = running.guard.kill();
    let _ = running.guard.wait();
    // One that stands still dies as it stands: continued first, it would answer what it had been sent.
    let _ = running.server.kill();
    let _ = running.server.wait();
}

fn pid_of(child: &Child) -> Pid {
    Pid::from_child(child)
}

/// Sends a signal to a program that a test has started. Small systems have no program `kill`.
pub fn signal(child: &Child, signal: Signal) {
    // The child is not reaped while we hold it, so the id cannot be another process's; it may be dead already.
    let _ = kill_process(pid_of(child), signal);
}

fn log_path(dir: &Path) -> PathBuf {
    dir.join("server.log")
}

fn log_since(path: &Path, start: u64) -> String {
    let mut bytes = Vec::new();
    if let Ok(mut file) = File::open(path) {
        let _ = file.seek(SeekFrom::Start(start));
        let _ = file.read_to_end(&mut bytes);
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn log_tail(path: &Path, most: u64) -> String {
    let len = fs::metadata(path).map_or(0, |data| data.len());
    log_since(path, len.saturating_sub(most))
}

fn report(program: &OsString, port: u16, what: &str, log: &Path) -> String {
    format!("{} on port {port} {what}. Its log ends with:\n{}", program.display(), log_tail(log, LOG_TAIL))
}
