//! The one error of this crate.

use std::fmt;

/// What went wrong, for callers that decide by it.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// A setting is wrong, a file cannot be read, or TLS is not compiled in. The message names field, value and fix.
    Config,
    /// A certificate is not trusted, or there is no TLS at that port. The message names what to do.
    Tls,
    /// The server hung up in the middle of the handshake, and did not say why.
    Connect,
    /// The runtime ended meanwhile.
    NoRuntime,
}

/// Holds paths and names of hosts, nothing that was in a file.
#[derive(Clone, Debug)]
pub struct Error {
    kind: ErrorKind,
    message: String,
}

impl Error {
    pub(crate) fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into() }
    }

    pub(crate) fn config(field: &str, value: impl fmt::Display, fix: impl fmt::Display) -> Self {
        Self::new(ErrorKind::Config, format!("{field} = {value}: {fix}"))
    }

    /// What went wrong.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {}
