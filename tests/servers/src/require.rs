//! What to do about programs that are not installed.

use std::{
    env, fmt,
    io::{self, Write},
    path::PathBuf,
};

/// A program that tests need.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Server {
    /// `redis-server` (or `valkey-server`), with its command-line client.
    Redis,
    /// `memcached`.
    Memcached,
    /// `prometheus`.
    Prometheus,
    /// `promtool`, of the same package.
    Promtool,
    /// `python3`, for programs that are not written in Rust.
    Python,
    /// `chromium`.
    Chromium,
}

impl Server {
    fn programs(self) -> &'static [&'static str] {
        match self {
            Self::Redis => &["redis-server", "valkey-server"],
            Self::Memcached => &["memcached"],
            Self::Prometheus => &["prometheus"],
            Self::Promtool => &["promtool"],
            Self::Python => &["python3"],
            Self::Chromium => &["chromium", "chromium-browser", "google-chrome"],
        }
    }
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.programs()[0])
    }
}

/// Where the program is. If it is not installed: `None` after a line on stderr that starts with `SKIPPED`.
///
/// # Panics
/// If it is not installed and the environment has `CI=true`: a test that did not run is no success there.
pub fn require(server: Server) -> Option<PathBuf> {
    let found = find(server.programs());
    if found.is_none() {
        missing(server, env::var("CI").is_ok_and(|ci| ci == "true"), &mut io::stderr());
    }
    found
}

/// Writes to the stream itself: what `eprintln` says in a test that passes is never shown.
fn missing(server: Server, ci: bool, out: &mut dyn Write) {
    assert!(!ci, "{server} is not installed, and CI=true demands it: run scripts/test, or install it");
    let thread = std::thread::current();
    let test = thread.name().unwrap_or("a test");
    let line = format!("SKIPPED {test}: {server} is not installed; scripts/test installs it\n");
    out.write_all(line.as_bytes()).expect("cannot write to stderr");
}

/// The first of these programs on `PATH` or where system packages put daemons.
pub(crate) fn find(programs: &[&str]) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let daemons = ["/usr/local/bin", "/usr/bin", "/usr/sbin", "/usr/local/sbin", "/opt/homebrew/bin"];
    let dirs: Vec<PathBuf> = env::split_paths(&path).chain(daemons.iter().map(PathBuf::from)).collect();
    programs.iter().find_map(|program| dirs.iter().map(|dir| dir.join(program)).find(|file| file.is_file()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_what_is_there_only() {
        assert!(find(&["no-such-program", "sh"]).is_some_and(|path| path.ends_with("sh")));
        assert_eq!(find(&["no-such-program"]), None);
    }

    #[test]
    fn missing_is_a_skip() {
        let mut out = Vec::new();
        missing(Server::Redis, false, &mut out);
        let line = String::from_utf8(out).unwrap();
        assert!(line.starts_with("SKIPPED require::tests::missing_is_a_skip: redis-server is not"));
    }

    #[test]
    #[should_panic(expected = "memcached is not installed")]
    fn missing_is_a_failure_in_ci() {
        missing(Server::Memcached, true, &mut Vec::new());
    }
}
