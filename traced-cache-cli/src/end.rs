//! How the command ends.

use std::{
    fmt,
    io::{self, Write},
};

use traced_cache::{Error, ErrorKind, with_causes};

use crate::output;

/// Exit codes, for scripts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
#[non_exhaustive]
pub enum Exit {
    /// Done: what was asked for is so. Invalidations are confirmed by every level.
    Done = 0,
    /// It could not be done: a server does not answer, a file of keys or values cannot be read.
    Failed = 1,
    /// The command line or the configuration file is wrong, or that file cannot be read.
    Wrong = 2,
    /// No level has the key, or what is there may not be served any more.
    Missing = 3,
    /// An invalidation has not been acknowledged by every level, or not taken by the backplane.
    Pending = 4,
    /// A level has something of the key that cannot be read.
    Unreadable = 5,
}

/// Why the command ends early: a line for each thing that is wrong.
#[derive(Clone, Debug)]
pub(crate) struct Failure {
    exit: Exit,
    message: String,
}

impl Failure {
    pub(crate) fn failed(message: impl Into<String>) -> Self {
        Self { exit: Exit::Failed, message: message.into() }
    }

    /// Names a part of the command line, what it is, and what to do.
    pub(crate) fn wrong(field: &str, value: impl fmt::Display, fix: impl fmt::Display) -> Self {
        Self { exit: Exit::Wrong, message: format!("{field} = {value}: {fix}") }
    }

    /// The command line is wrong, and this is what its parser says.
    pub(crate) fn misread(message: impl Into<String>) -> Self {
        Self { exit: Exit::Wrong, message: message.into() }
    }

    /// Where in a file.
    pub(crate) fn of(self, place: impl fmt::Display) -> Self {
        Self { message: format!("{place}: {}", self.message), ..self }
    }

    /// Adds what had been done before.
    pub(crate) fn after(self, done: &str) -> Self {
        Self { message: format!("{}; {done}", self.message), ..self }
    }

    pub(crate) fn message(&self) -> &str {
        &self.message
    }

    /// Writes the lines to the error output. If that fails, the exit code has to say enough.
    pub(crate) fn tell(self, json: bool) -> Exit {
        let Self { exit, message } = self;
        let mut err = io::stderr().lock();
        let _ = match json {
            true => {
                let told = serde_json::json!({ "error": message, "exit": exit as u8 }).to_string();
                writeln!(err, "{}", output::word(&told))
            }
            false => message.lines().try_for_each(|line| writeln!(err, "error: {}", output::word(line))),
        };
        exit
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let exit = match error.kind() {
            ErrorKind::Config | ErrorKind::Key | ErrorKind::Tag | ErrorKind::Unsupported => Exit::Wrong,
            _ => Exit::Failed,
        };
        Self { exit, message: with_causes(&error) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_with_the_input_is_told_from_what_failed() {
        let of = |kind| Failure::from(Error::new(kind, "x")).exit;
        assert_eq!(of(ErrorKind::Config), Exit::Wrong);
        assert_eq!(of(ErrorKind::Key), Exit::Wrong);
        assert_eq!(of(ErrorKind::Level), Exit::Failed);
    }
}
