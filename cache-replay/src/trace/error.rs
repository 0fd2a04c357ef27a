//! What can be wrong with a trace.

use std::{
    error::Error,
    fmt, io,
    path::{Path, PathBuf},
};

/// What can be wrong with a trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Fault {
    /// It cannot be opened or read.
    Unreadable,
    /// It is something else than a trace.
    Foreign,
    /// It ends too early.
    Cut,
    /// Its packing contradicts itself.
    Corrupt,
    /// It has no keys.
    Empty,
}

/// A trace that cannot be replayed: which file, what, where, and what to do.
#[derive(Debug)]
pub struct TraceError {
    file: PathBuf,
    fault: Fault,
    message: String,
    source: Option<io::Error>,
}

impl TraceError {
    pub(crate) fn new(file: &Path, fault: Fault, message: impl Into<String>) -> Self {
        Self { file: file.to_owned(), fault, message: message.into(), source: None }
    }

    pub(crate) fn caused(mut self, source: io::Error) -> Self {
        self.source = Some(source);
        self
    }

    /// What is wrong, for those who decide by it.
    pub fn fault(&self) -> Fault {
        self.fault
    }
}

impl fmt::Display for TraceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match self.fault {
            Fault::Unreadable => "cannot be read",
            Fault::Foreign => "is no list of keys",
            Fault::Cut => "is cut short",
            Fault::Corrupt => "is corrupt",
            Fault::Empty => "is empty",
        };
        write!(f, "{} {what}: {}", self.file.display(), self.message)
    }
}

impl Error for TraceError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.source.as_ref().map(|e| e as _)
    }
}
