//! The one error of this crate.

use std::{error::Error as StdError, fmt, sync::Arc};

use cache_core::with_causes;
use redis::{RedisError, ServerError, ServerErrorKind};

use crate::{
    address::Endpoint,
    dial::Login,
    rights::{forbidden, forbids},
    slots::Redirect,
};

/// What went wrong, for callers that decide by it.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// A setting is wrong. The message names field, value and fix. What can be seen without the server is found when the
    /// provider is built.
    Config,
    /// TLS failed: a certificate that is not trusted, expired or for another name, none where one is wanted, or no TLS at
    /// that port. The message names what to do.
    Tls,
    /// The server cannot be reached; nothing was sent. A reconnect goes on in the background.
    Connect,
    /// The connection broke while the request was under way. Whether a write took effect is unknown.
    Disconnected,
    /// The server did not answer in time while connecting.
    Timeout,
    /// The server refused the credentials, or wants some.
    Auth,
    /// The user may not run this command or touch this key.
    Denied,
    /// The server is reading its data set and does not serve yet.
    Loading,
    /// The server takes no writes: a replica, perhaps after a failover. Makes the provider connect anew.
    ReadOnly,
    /// The server is over its memory limit and evicts nothing.
    OutOfMemory,
    /// The server or its cluster cannot serve this key now (`BUSY`, `NOREPLICAS`, `CLUSTERDOWN`, `MASTERDOWN`, `TRYAGAIN`,
    /// `MOVED`, `ASK`, `CROSSSLOT`).
    Unavailable,
    /// The value is over the limit. Nothing is stored under its key any more.
    TooLarge,
    /// The answer makes no sense, or is no RESP3.
    Protocol,
    /// The server answered with another error.
    Server,
    /// The provider has been closed.
    Closed,
    /// No tokio runtime is running on this thread, so there is nothing to connect on.
    NoRuntime,
}

impl ErrorKind {
    /// A low-cardinality word for telemetry (`error.type`).
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Config => "config",
            Self::Tls => "tls",
            Self::Connect => "connect",
            Self::Disconnected => "disconnected",
            Self::Timeout => "timeout",
            Self::Auth => "auth",
            Self::Denied => "denied",
            Self::Loading => "loading",
            Self::ReadOnly => "read_only",
            Self::OutOfMemory => "out_of_memory",
            Self::Unavailable => "unavailable",
            Self::TooLarge => "too_large",
            Self::Protocol => "protocol",
            Self::Server => "server",
            Self::Closed => "closed",
            Self::NoRuntime => "no_runtime",
        }
    }
}

/// A cheap, cloneable error. Carries no key, value or credential.
///
/// Providers hand it out boxed: `boxed.downcast_ref::<cache_redis::Error>()` gives it back.
#[derive(Clone)]
pub struct Error(Arc<Inner>);

struct Inner {
    kind: ErrorKind,
    about: About,
    message: String,
    source: Option<RedisError>,
    redirect: Option<Redirect>,
    /// The server that answered is the one that serves the key: no other needs to be looked for.
    at_home: bool,
}

/// What stands in front of the message. Apart from it, as a list of what several servers said leaves it out.
enum About {
    Nothing,
    /// A setting and its value, as far as that may be shown: `password = ***`.
    Setting(String),
    /// The address of a server that could not be connected to. There may be no message then: the cause says it all.
    Server(String),
}

impl Inner {
    fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self {
            kind,
            about: About::Nothing,
            message: message.into(),
            source: None,
            redirect: None,
            at_home: false,
        }
    }
}

impl Error {
    pub(crate) fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self(Arc::new(Inner::new(kind, message)))
    }

    pub(crate) fn config(field: &str, value: impl fmt::Display, fix: impl fmt::Display) -> Self {
        Self::about(ErrorKind::Config, About::Setting(format!("{field} = {value}")), fix.to_string(), None)
    }

    fn about(kind: ErrorKind, about: About, message: String, source: Option<RedisError>) -> Self {
        Self(Arc::new(Inner { about, source, ..Inner::new(kind, message) }))
    }

    /// A server refuses the login, or wants one.
    pub(crate) fn login(endpoint: &Endpoint, login: &Login, code: &str) -> Self {
        let (user, password, whose) = match login.at_sentinels {
            true => ("sentinel_username", "sentinel_password", "sentinels have others than the server"),
            false => ("username", "password", "both may be in the url"),
        };
        let (shown, fix) = match login.password {
            Some(_) => ("***", format!("correct it or `{user}`")),
            None => ("(none)", format!("set it, and for an ACL user `{user}`")),
        };
        let about = About::Setting(format!("{password} = {shown}"));
        let message = format!("Redis at {endpoint} answered {code}: {fix}; {whose}");
        Self::about(ErrorKind::Auth, about, message, None)
    }

    /// What several servers said who refuse the login. `setting`: the one that all of them are about.
    pub(crate) fn logins(setting: Option<&str>, message: String) -> Self {
        let about = setting.map_or(About::Nothing, |setting| About::Setting(setting.to_owned()));
        Self::about(ErrorKind::Auth, about, message, None)
    }

    /// The setting that is wrong, with its value.
    pub(crate) fn setting(&self) -> Option<&str> {
        match &self.0.about {
            About::Setting(setting) => Some(setting),
            About::Nothing | About::Server(_) => None,
        }
    }

    /// With its causes, for a list that names the address, and, if all of it is about one, the setting.
    pub(crate) fn at(&self, address: &Endpoint, setting: Option<&str>) -> String {
        let is_told = match &self.0.about {
            About::Nothing => false,
            About::Setting(mine) => setting == Some(mine),
            About::Server(mine) => *mine == address.to_string(),
        };
        match &self.0.source {
            _ if !is_told => with_causes(self),
            None => self.0.message.clone(),
            Some(source) if self.0.message.is_empty() => with_causes(source),
            Some(source) => format!("{}: {}", self.0.message, with_causes(source)),
        }
    }

    pub(crate) fn closed() -> Self {
        Self::new(ErrorKind::Closed, "the Redis provider has been closed")
    }

    /// A task that keeps a connection.
    pub(crate) fn panicked() -> Self {
        let hint = "the task that keeps the connection has panicked; its runtime needs timers and I/O (`enable_all`)";
        Self::new(ErrorKind::NoRuntime, hint)
    }

    pub(crate) fn no_resp3() -> Self {
        Self::new(ErrorKind::Protocol, "the server does not speak RESP3: Redis 6, Valkey or later is needed")
    }

    pub(crate) fn protocol(what: &str) -> Self {
        Self::new(ErrorKind::Protocol, format!("Redis gave an unexpected answer: {what}"))
    }

    /// From the client, about a request. Its text is kept only where it cannot quote the request.
    pub(crate) fn request(error: RedisError) -> Self {
        let kind = match error.kind() {
            redis::ErrorKind::Io => ErrorKind::Disconnected,
            redis::ErrorKind::Parse | redis::ErrorKind::UnexpectedReturnType => ErrorKind::Protocol,
            _ => return Self::from_code(error.code(), error.detail()),
        };
        let message = match kind {
            ErrorKind::Disconnected => "the connection to Redis broke",
            _ => "Redis gave an answer that cannot be read",
        };
        let source = (kind == ErrorKind::Disconnected).then_some(error);
        Self(Arc::new(Inner { source, ..Inner::new(kind, message) }))
    }

    /// From the client, about connecting to `address`.
    pub(crate) fn connect(address: &str, error: RedisError) -> Self {
        match error.kind() {
            redis::ErrorKind::Io => {}
            // Its text may quote what was sent: the login.
            redis::ErrorKind::Parse => {
                let message = format!("what answers at {address} is no Redis: check host and port");
                return Self::new(ErrorKind::Protocol, message);
            }
            _ => return Self::request(error),
        }
        Self::unreachable(address, String::new(), error)
    }

    fn unreachable(address: &str, message: String, error: RedisError) -> Self {
        Self::about(ErrorKind::Connect, About::Server(address.to_owned()), message, Some(error))
    }

    /// From the client: the server at `address` closed the connection without an answer. Nothing was encrypted, so it may
    /// want TLS.
    pub(crate) fn hung_up(address: &str, error: RedisError) -> Self {
        let message = "it hung up; if it wants TLS, begin the url with `rediss`".to_owned();
        Self::unreachable(address, message, error)
    }

    /// From the client: the server at `address` said this and closed the connection.
    pub(crate) fn refused(address: &str, said: &str, error: RedisError) -> Self {
        let said = match said.split_once(' ') {
            Some((code, detail)) if is_code(code) => format!("it answered {code} {}", quotable(detail)),
            _ => String::new(),
        };
        Self::unreachable(address, said, error)
    }

    /// From an error reply.
    pub(crate) fn reply(error: &ServerError) -> Self {
        let built = match error.kind() {
            Some(ServerErrorKind::ReadOnly) => return Self::from_code(Some("READONLY"), None),
            _ => Self::from_code(Some(error.code()), error.details()),
        };
        // A key that is being moved, missing replicas, a script that runs: none of that changes who serves the key.
        let at_home = matches!(error.code(), "ASK" | "TRYAGAIN" | "NOREPLICAS" | "BUSY");
        match Redirect::of(error) {
            None if !at_home => built,
            redirect => {
                Self(Arc::new(Inner { redirect, at_home, ..Inner::new(built.kind(), built.to_string()) }))
            }
        }
    }

    /// Whether a server that answers so is known to be the one that was to be asked.
    pub(crate) fn is_at_home(&self) -> bool {
        self.0.at_home
    }

    /// Where a cluster's node says that the key is.
    pub(crate) fn redirect(&self) -> Option<&Redirect> {
        self.0.redirect.as_ref()
    }

    fn from_code(code: Option<&str>, detail: Option<&str>) -> Self {
        // The client leaves the code out where it refuses a connection because of `SELECT`.
        let code = match code.unwrap_or("ERR") {
            "ERR" if detail.is_some_and(forbids) => "NOPERM",
            "ERR" => detail.and_then(of_a_script).unwrap_or("ERR"),
            code => code,
        };
        let (kind, hint) = match code {
            "NOAUTH" | "WRONGPASS" => (ErrorKind::Auth, "check `username` and `password`"),
            "NOPERM" => (ErrorKind::Denied, "the user lacks a permission"),
            "LOADING" => (ErrorKind::Loading, "the server is loading its data set"),
            "READONLY" => (ErrorKind::ReadOnly, "the server is a read-only replica"),
            "OOM" => (
                ErrorKind::OutOfMemory,
                "the server is over maxmemory and evicts nothing: raise it, or set a maxmemory-policy that evicts",
            ),
            // Our own words, for what was not read.
            "TOOLARGE" => (ErrorKind::TooLarge, "the value is over value_max"),
            "BUSY" => (ErrorKind::Unavailable, "the server is busy with a script"),
            "NOREPLICAS" => (ErrorKind::Unavailable, "the server has too few replicas to take writes"),
            "CLUSTERDOWN" | "MASTERDOWN" | "TRYAGAIN" | "MOVED" | "ASK" | "CROSSSLOT" => {
                (ErrorKind::Unavailable, "the server cannot serve this key now")
            }
            _ => (ErrorKind::Server, ""),
        };
        let text = match detail.and_then(forbidden) {
            Some(command) if kind == ErrorKind::Denied => format!(": {hint}: grant +{command}"),
            _ if hint.is_empty() => format!(" {}", quotable(detail.unwrap_or_default())),
            // In our words: the server's may quote what was sent.
            _ => format!(": {hint}"),
        };
        let code = if is_code(code) { code } else { "ERR" };
        Self::new(kind, format!("Redis answered {code}{text}").trim_end())
    }

    /// What went wrong.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// Whether the same call may succeed later without any change.
    pub fn is_retryable(&self) -> bool {
        matches!(
            self.0.kind,
            ErrorKind::Connect
                | ErrorKind::Disconnected
                | ErrorKind::Timeout
                | ErrorKind::Loading
                | ErrorKind::ReadOnly
                | ErrorKind::OutOfMemory
                | ErrorKind::Unavailable
        )
    }
}

impl From<cache_tls::Error> for Error {
    fn from(error: cache_tls::Error) -> Self {
        let kind = match error.kind() {
            cache_tls::ErrorKind::Config => ErrorKind::Config,
            cache_tls::ErrorKind::Connect => ErrorKind::Connect,
            cache_tls::ErrorKind::NoRuntime => ErrorKind::NoRuntime,
            _ => ErrorKind::Tls,
        };
        Self::new(kind, error.to_string())
    }
}

/// Servers quote commands and arguments in their errors ("unknown command 'X', with args beginning with: 'key'"), so
/// only what comes before the first quote may be passed on.
fn quotable(detail: &str) -> &str {
    let end = detail.find(['\'', '"', '`']).unwrap_or(detail.len()).min(120);
    let end = (0..=end).rev().find(|at| detail.is_char_boundary(*at)).unwrap_or(0);
    detail[..end].trim_end()
}

/// What has gone wrong in a script, where that stands behind the fact (before Redis 7): `Error running script (call to f_...):
/// @user_script:1: -OOM ...`.
fn of_a_script(detail: &str) -> Option<&str> {
    let (_, said) = detail.strip_prefix("Error running script")?.split_once(": -")?;
    said.split(' ').next().filter(|code| is_code(code))
}

fn is_code(code: &str) -> bool {
    (1..=24).contains(&code.len()) && code.bytes().all(|b| b.is_ascii_uppercase())
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut d = f.debug_struct("Error");
        d.field("kind", &self.0.kind).field("message", &self.to_string());
        if let Some(source) = &self.0.source {
            d.field("source", source);
        }
        d.finish()
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Inner { about, message, .. } = &*self.0;
        match about {
            About::Nothing => f.write_str(message),
            About::Setting(setting) => write!(f, "{setting}: {message}"),
            About::Server(address) if message.is_empty() => write!(f, "cannot connect to Redis at {address}"),
            About::Server(address) => write!(f, "cannot connect to Redis at {address}: {message}"),
        }
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.0.source.as_ref().map(|e| e as _)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::address::Secret;

    #[test]
    fn quoted_arguments_are_cut_off() {
        let error =
            Error::from_code(Some("ERR"), Some("unknown command 'X', with args beginning with: 'key'"));
        assert_eq!(error.to_string(), "Redis answered ERR unknown command");
        let error = Error::from_code(Some("v:{users:42}"), None);
        assert_eq!(error.to_string(), "Redis answered ERR");
        assert_eq!(quotable(&"é".repeat(100)).len(), 120);
    }

    #[test]
    fn the_permission_that_is_missing_is_named_and_nothing_else() {
        let shown = |code, detail| {
            let error = Error::from_code(Some(code), Some(detail));
            assert_eq!(error.kind(), ErrorKind::Denied, "{detail}");
            error.to_string()
        };
        let lacks = "Redis answered NOPERM: the user lacks a permission";
        // Redis 7, Redis 6, and what the client leaves of either.
        let text = "User ann has no permissions to run the 'cluster|slots' command";
        assert_eq!(shown("NOPERM", text), format!("{lacks}: grant +cluster|slots"));
        let text = "this user has no permissions to run the 'select' command or its subcommand";
        assert_eq!(shown("NOPERM", text), format!("{lacks}: grant +select"));
        assert_eq!(shown("ERR", text), format!("{lacks}: grant +select"));
        assert_eq!(shown("NOPERM", "No permissions to access a key"), lacks);
        assert_eq!(shown("NOPERM", "no permissions to run the 'v:{users:42}' command"), lacks);
    }

    #[test]
    fn a_list_of_what_servers_said_tells_once_what_all_of_it_is_about() {
        let [a, b] = [7001, 7002].map(|port| Endpoint::Tcp { host: "h".to_owned(), port });
        let login = Login { password: Some(Secret("hunter2".to_owned())), ..Login::default() };
        let refused = Error::login(&a, &login, "WRONGPASS");
        let message = "Redis at h:7001 answered WRONGPASS: correct it or `username`; both may be in the url";
        assert_eq!(refused.setting(), Some("password = ***"));
        assert_eq!(refused.to_string(), format!("password = ***: {message}"));
        assert_eq!(refused.at(&a, refused.setting()), message);
        // Beside others it says what it is about.
        assert_eq!(refused.at(&a, None), refused.to_string());
        let all = Error::logins(refused.setting(), format!("nobody: h:7001 ({message})"));
        assert_eq!((all.kind(), all.setting()), (ErrorKind::Auth, refused.setting()));

        let broken = || RedisError::from(std::io::Error::other("no route"));
        let away = Error::connect("h:7001", broken());
        assert_eq!(away.to_string(), "cannot connect to Redis at h:7001");
        assert_eq!(away.at(&a, None), "no route");
        assert_eq!(away.at(&b, None), "cannot connect to Redis at h:7001: no route");
        let full = Error::refused("h:7001", "ERR max number of clients reached", broken());
        assert_eq!(
            full.to_string(),
            "cannot connect to Redis at h:7001: it answered ERR max number of clients reached"
        );
        assert_eq!(full.at(&a, None), "it answered ERR max number of clients reached: no route");
    }

    #[test]
    fn codes_have_kinds() {
        for (code, kind) in [
            ("LOADING", ErrorKind::Loading),
            ("READONLY", ErrorKind::ReadOnly),
            ("NOAUTH", ErrorKind::Auth),
            ("OOM", ErrorKind::OutOfMemory),
            ("NOPERM", ErrorKind::Denied),
            ("MISCONF", ErrorKind::Server),
        ] {
            assert_eq!(Error::from_code(Some(code), None).kind(), kind, "{code}");
        }
    }

    #[test]
    fn what_goes_wrong_in_a_script_is_told_as_elsewhere() {
        let kind = |said: &str| {
            // Redis 6, and Dragonfly.
            ["@user_script:1: @user_script: 1: ", "@user_script:1: "].map(|place| {
                let text = format!("Error running script (call to f_28a3c1): {place}{said}");
                Error::from_code(Some("ERR"), Some(&text)).kind()
            })
        };
        let read_only = kind("-READONLY You can't write against a read only replica. ");
        assert_eq!(read_only, [ErrorKind::ReadOnly; 2]);
        let full = kind("-OOM command not allowed when used memory > 'maxmemory'. ");
        assert_eq!(full, [ErrorKind::OutOfMemory; 2]);
        assert_eq!(kind("no such field"), [ErrorKind::Server; 2]);
    }
}
