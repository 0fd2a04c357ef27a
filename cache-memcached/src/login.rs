//! The text protocol's login (`memcached -Y FILE`): a `set`, before anything else on a connection, whose value is user and
//! password. The server forgets it with the connection.
//!
//! A server that wants none would keep it as an item, for everybody to read. So it is asked first.

use std::{fmt, io, io::ErrorKind::InvalidData};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::{ErrorKind, error::Fault, wire::is_plain};

/// What it says to those who have not logged in.
pub(crate) const UNAUTHENTICATED: &[u8] = b"CLIENT_ERROR unauthenticated";
/// It wants one.
pub(crate) const WANTED: Fault = Fault::new(
    ErrorKind::Login,
    "password = (none): the server wants a login (option -Y): set it, and `username`",
);
const REFUSED: Fault = Fault::new(
    ErrorKind::Login,
    "password = ***: the server does not accept the login: correct it or `username`, as in its file (option -Y)",
);
/// Asks for nothing that anybody needs. Not `mn`: before a login, memcached 1.6.44 and later hang up on lines of less than
/// six bytes.
const QUESTION: &[u8] = b"version\r\n";
const ANSWER: &[u8] = b"VERSION";
/// Longer is no answer to it.
const ANSWER_MAX: usize = 256;

/// A user and a password.
#[derive(Clone)]
pub(crate) struct Login {
    user: String,
    password: String,
}

impl Login {
    /// Or what stands in the way. Neither is shown.
    pub(crate) fn new(user: String, password: String) -> Result<Self, String> {
        let fix = "the server separates the two by a space: use characters without spaces and line ends";
        if user.is_empty() || user.contains(':') || !user.bytes().all(is_plain) {
            return Err(format!("username = (not shown): {fix}, and no colon"));
        }
        if password.is_empty() || !password.bytes().all(is_plain) {
            return Err(format!("password = (not shown): {fix}"));
        }
        Ok(Self { user, password })
    }

    /// On a new connection. The caller bounds the time.
    pub(crate) async fn give(&self, stream: &mut (impl AsyncRead + AsyncWrite + Unpin)) -> Result<(), Fault> {
        let Self { user, password } = self;
        match &*ask(stream, QUESTION).await? {
            UNAUTHENTICATED => {}
            answer if answer.starts_with(ANSWER) => return Ok(()),
            _ => return Err(broken(InvalidData.into())),
        }
        let size = user.len() + 1 + password.len();
        let request = format!("set login 0 0 {size}\r\n{user} {password}\r\n");
        match &*ask(stream, request.as_bytes()).await? {
            b"STORED" => Ok(()),
            _ => Err(REFUSED),
        }
    }
}

/// Waits for a server that gets no login to say anything.
pub(crate) async fn greet(stream: &mut (impl AsyncRead + AsyncWrite + Unpin)) -> Result<(), Fault> {
    ask(stream, QUESTION).await.map(drop)
}

/// One line for another.
async fn ask(stream: &mut (impl AsyncRead + AsyncWrite + Unpin), request: &[u8]) -> Result<Vec<u8>, Fault> {
    stream.write_all(request).await.map_err(broken)?;
    stream.flush().await.map_err(broken)?;
    let mut answer = Vec::new();
    // Byte by byte: it comes alone, once for a connection.
    while !answer.ends_with(b"\r\n") {
        if answer.len() > ANSWER_MAX {
            return Err(broken(InvalidData.into()));
        }
        answer.push(stream.read_u8().await.map_err(broken)?);
    }
    answer.truncate(answer.len() - 2);
    Ok(answer)
}

fn broken(error: io::Error) -> Fault {
    Fault::caused(ErrorKind::Connect, "the connection was lost before its first answer", error)
}

/// Shows neither: a user may be a customer's name.
impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Login")
    }
}
