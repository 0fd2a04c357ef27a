//! What a user may do, as far as new connections ask, and what goes on without.

use redis::Value;

use crate::Error;

/// What is done on a new connection and a user may be forbidden to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    Time,
    Info,
    Id,
    Role,
    Script,
    Multi,
    Exec,
    Kill,
}

impl Step {
    /// In the order in which a new server is asked. Scripts by their text, and by their digest.
    pub(crate) const ASKED: [Self; 8] =
        [Self::Time, Self::Info, Self::Id, Self::Role, Self::Script, Self::Script, Self::Multi, Self::Exec];

    /// What is weaker without, and how to put it right.
    pub(crate) fn advice(self) -> String {
        let (command, weaker, grant) = match self {
            Self::Time => ("TIME", "ages at this level are counted by this machine's own clock", "+time"),
            Self::Info => (
                "INFO",
                "a restart or failover that loses acknowledged writes is not noticed, and late bytes of a lost \
                 connection may still run",
                "+info",
            ),
            Self::Id => ("CLIENT ID", "late bytes of a lost connection may still run", "+client|id"),
            Self::Kill => ("CLIENT KILL", "late bytes of a lost connection may still run", "+client|kill"),
            Self::Role => ("ROLE", "whether the server is the master is not verified", "+role"),
            Self::Script => (
                "EVALSHA or EVAL",
                "there are no leases, so there is one load per process, and what a load has read before an invalidation \
                 may be stored after it; to invalidate a tag clears the cache",
                "+evalsha +eval",
            ),
            Self::Multi | Self::Exec => ("MULTI or EXEC", "nothing is stored or removed", "+multi +exec"),
        };
        format!("{command} is refused to this user, or unknown to the server: {weaker}; grant {grant}")
    }
}

/// Whether a reply is the server's last word. One that is busy with a script, say, tells nothing of what it would do
/// otherwise: then there is no connection yet.
pub(crate) fn meant(reply: &Value) -> Result<(), Error> {
    match reply {
        Value::ServerError(error) if !matches!(error.code(), "ERR" | "NOPERM" | "NOAUTH") => {
            Err(Error::reply(error))
        }
        _ => Ok(()),
    }
}

/// Whether the user may not run the command at all, or nobody may, as the server does not have it under that name; not to
/// touch a key is another matter.
pub(crate) fn may_not_run(reply: &Value) -> bool {
    let Value::ServerError(error) = reply else { return false };
    let begins = |words: &str| {
        let head = error.details().and_then(|text| text.get(..words.len()));
        head.is_some_and(|head| head.eq_ignore_ascii_case(words))
    };
    if error.code() == "ERR" && (begins("unknown command") || begins("unknown subcommand")) {
        return true;
    }
    // `EXEC` that is refused throws the transaction away, and says so first.
    matches!(error.code(), "NOPERM" | "EXECABORT") && error.details().is_some_and(forbids)
}

/// Whether a server's text says that the user may not run a command.
pub(crate) fn forbids(text: &str) -> bool {
    text.contains("permissions to run")
}

/// The command that the server names then, and nothing else that it may quote.
pub(crate) fn forbidden(text: &str) -> Option<&str> {
    let (_, rest) = text.split_once("permissions to run the '")?;
    let (command, _) = rest.split_once("' command")?;
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'|' | b'-' | b'_' | b'.');
    ((1..=40).contains(&command.len()) && command.bytes().all(plain)).then_some(command)
}
