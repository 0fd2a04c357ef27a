//! The one error of this crate.

use std::{borrow::Cow, error::Error as StdError, fmt, io, sync::Arc};

use crate::endpoint::Endpoint;

/// What went wrong, for callers that decide by it. A miss is never an error.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// A setting is malformed. The message names field, value and fix.
    Config,
    /// The server could not be reached, or the connection ended before the request had been written in full: nothing
    /// was changed.
    Connect,
    /// No answer in time. A read, or a write that had not been sent.
    Timeout,
    /// A write was sent and its answer did not come: it may or may not have happened, and may still happen.
    InDoubt,
    /// The item is over the configured limit or the server's. Nothing of an older value is left under the key.
    TooLarge,
    /// The server refused the command: out of memory, or it did not understand.
    Refused,
    /// The peer does not speak the meta protocol, or answered out of turn.
    Protocol,
    /// The server failed several times in a row and is left alone for a while; nothing was sent.
    Sick,
    /// Too many calls wait for this server already; nothing was sent.
    Overloaded,
    /// The server does not accept the login, or wants one.
    Login,
    /// TLS failed: a certificate that is not trusted, expired or for another name, none where one is wanted, or no TLS at
    /// that port. The message names what to do.
    Tls,
    /// The provider has been closed.
    Closed,
    /// No tokio runtime is running on this thread, or it has no timers and I/O.
    NoRuntime,
}

impl ErrorKind {
    /// A low-cardinality word for telemetry (`error.type`).
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Config => "config",
            Self::Connect => "connect",
            Self::Timeout => "timeout",
            Self::InDoubt => "in_doubt",
            Self::TooLarge => "too_large",
            Self::Refused => "refused",
            Self::Protocol => "protocol",
            Self::Sick => "sick",
            Self::Overloaded => "overloaded",
            Self::Login => "login",
            Self::Tls => "tls",
            Self::Closed => "closed",
            Self::NoRuntime => "no_runtime",
        }
    }
}

/// A cheap, cloneable error: the members of a failed batch share it, cause included.
///
/// Names the server, never a key, a value or a credential; nor the text of a reply, which a peer could fill with them.
#[derive(Clone)]
pub struct Error(Arc<Inner>);

struct Inner {
    kind: ErrorKind,
    message: String,
    source: Option<io::Error>,
}

impl Error {
    pub(crate) fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self(Arc::new(Inner { kind, message: message.into(), source: None }))
    }

    pub(crate) fn at(endpoint: &Endpoint, fault: Fault) -> Self {
        let Fault { kind, what, source, ours: _ } = fault;
        let message = match kind {
            // It begins with the field.
            ErrorKind::Login => what.replacen(": ", &format!(": memcached {endpoint}: "), 1),
            _ => format!("memcached {endpoint}: {what}"),
        };
        Self(Arc::new(Inner { kind, message, source }))
    }

    /// What kind of failure it is.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.message)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut out = f.debug_struct("Error");
        out.field("kind", &self.0.kind).field("message", &self.0.message);
        if let Some(source) = &self.0.source {
            out.field("source", source);
        }
        out.finish()
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.0.source.as_ref().map(|e| e as _)
    }
}

/// A failure as a transport sees it, before it is known which server is meant.
#[derive(Debug)]
pub(crate) struct Fault {
    pub(crate) kind: ErrorKind,
    pub(crate) what: Cow<'static, str>,
    pub(crate) source: Option<io::Error>,
    /// A runtime of ours is at fault, and the server may be well.
    pub(crate) ours: bool,
}

impl Fault {
    pub(crate) const fn new(kind: ErrorKind, what: &'static str) -> Self {
        Self { kind, what: Cow::Borrowed(what), source: None, ours: false }
    }

    pub(crate) const fn ours(kind: ErrorKind, what: &'static str) -> Self {
        Self { kind, what: Cow::Borrowed(what), source: None, ours: true }
    }

    pub(crate) fn caused(kind: ErrorKind, what: &'static str, source: io::Error) -> Self {
        Self { kind, what: Cow::Borrowed(what), source: Some(source), ours: false }
    }

    /// The same for another member of a batch.
    pub(crate) fn duplicate(&self) -> Self {
        let source = self.source.as_ref().map(|e| match e.raw_os_error() {
            Some(code) => io::Error::from_raw_os_error(code),
            None => e.kind().into(),
        });
        Self { kind: self.kind, what: self.what.clone(), source, ours: self.ours }
    }

    /// What it is to a write that had been sent.
    pub(crate) fn in_doubt(&self) -> Self {
        let what =
            format!("the answer to a write did not come, it may or may not have happened: {}", self.what);
        Self { kind: ErrorKind::InDoubt, what: Cow::Owned(what), ..self.duplicate() }
    }

    /// Whether it tells against the server's health. A refusal is an answer.
    pub(crate) const fn is_sickness(&self) -> bool {
        matches!(
            self.kind,
            ErrorKind::Connect
                | ErrorKind::Timeout
                | ErrorKind::InDoubt
                | ErrorKind::Protocol
                | ErrorKind::Login
                | ErrorKind::Tls
        )
    }
}

impl From<cache_tls::Error> for Fault {
    fn from(error: cache_tls::Error) -> Self {
        Self { kind: kind_of(&error), what: Cow::Owned(error.to_string()), source: None, ours: false }
    }
}

impl From<cache_tls::Error> for Error {
    fn from(error: cache_tls::Error) -> Self {
        Self::new(kind_of(&error), error.to_string())
    }
}

fn kind_of(error: &cache_tls::Error) -> ErrorKind {
    match error.kind() {
        cache_tls::ErrorKind::Config => ErrorKind::Config,
        cache_tls::ErrorKind::Connect => ErrorKind::Connect,
        cache_tls::ErrorKind::NoRuntime => ErrorKind::NoRuntime,
        _ => ErrorKind::Tls,
    }
}
