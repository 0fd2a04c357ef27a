//! From an address to a connection that takes commands: sockets, TLS, the handshake.

use redis::{Pipeline, RedisError, Value, cmd};
use tokio::net::TcpStream;

use crate::{
    Error,
    address::{Endpoint, Secret},
    connection::Hears,
    greet::node_of_a_cluster,
    mux::{Mux, Reply, Running, Stream, alongside},
    overhear::First,
    settings::Settings,
};

/// Who we are at a server.
#[derive(Clone, Debug, Default)]
pub(crate) struct Login {
    pub(crate) user: Option<Secret>,
    pub(crate) password: Option<Secret>,
    pub(crate) database: i64,
}

/// Connects. What runs it has to run for the connection to work.
pub(crate) async fn dial(
    settings: &Settings,
    endpoint: &Endpoint,
    login: &Login,
    hears: Option<(u64, Hears)>,
) -> Result<(Mux, Running), Error> {
    let stream = connect(settings, endpoint).await?;
    let first = First::default();
    let (connection, mut running) = Mux::new(stream, hears, first.clone());
    let steps = greeting(login);
    let replies =
        alongside(&mut running, connection.pipeline(&steps)).await.map_err(|error| match first.error() {
            // It has hung up, and said why.
            Some(said) if error.is_io_error() => Error::refused(&endpoint.to_string(), said, error),
            None if settings.tls.is_none()
                && matches!(endpoint, Endpoint::Tcp { .. })
                && first.may_want_tls() =>
            {
                Error::hung_up(&endpoint.to_string(), error)
            }
            _ => failed(settings, endpoint, error),
        })?;
    accepted(endpoint, login, replies)?;
    // What runs it has come to its end then.
    if let Some(error) = connection.over() {
        return Err(failed(settings, endpoint, error));
    }
    Ok((connection, running))
}

async fn connect(settings: &Settings, endpoint: &Endpoint) -> Result<Stream, Error> {
    let broken = |error: std::io::Error| failed(settings, endpoint, error.into());
    match endpoint {
        Endpoint::Tcp { host, port } => {
            let stream = socket(host, *port).await.map_err(broken)?;
            match &settings.tls {
                Some(tls) => Ok(Stream::Tls(Box::new(tls.wrap(stream, host).await?))),
                None => Ok(Stream::Tcp(stream)),
            }
        }
        #[cfg(unix)]
        Endpoint::Unix { path } => {
            tokio::net::UnixStream::connect(path).await.map(Stream::Unix).map_err(broken)
        }
        #[cfg(not(unix))]
        Endpoint::Unix { .. } => Err(broken(std::io::ErrorKind::Unsupported.into())),
    }
}

/// What a connection begins with: the protocol and who we are, the database, and what `CLIENT LIST` shows.
fn greeting(login: &Login) -> Pipeline {
    let mut hello = cmd("HELLO");
    hello.arg(3);
    if let Some(password) = &login.password {
        let user = login.user.as_ref().map_or("default", |user| &user.0);
        hello.arg("AUTH").arg(user).arg(&password.0);
    }
    let mut steps = Pipeline::new();
    steps.add_command(hello);
    if login.database != 0 {
        steps.cmd("SELECT").arg(login.database);
    }
    for (name, value) in [("LIB-NAME", "traced-cache"), ("LIB-VER", env!("CARGO_PKG_VERSION"))] {
        steps.cmd("CLIENT").arg("SETINFO").arg(name).arg(value);
    }
    steps
}

/// Whether the server has taken us in. Servers before 7.2 do not know `CLIENT SETINFO`, which does no harm.
fn accepted(endpoint: &Endpoint, login: &Login, replies: Vec<Reply>) -> Result<(), Error> {
    let mut replies = replies.into_iter();
    if let Some(Reply::Other(Value::ServerError(error))) = replies.next() {
        let old =
            error.details().is_some_and(|text| text.to_ascii_lowercase().starts_with("unknown command"));
        return Err(if old { Error::no_resp3() } else { Error::reply(&error) });
    }
    if login.database != 0
        && let Some(Reply::Other(Value::ServerError(error))) = replies.next()
    {
        let said = error.details().unwrap_or_default();
        if said.contains("DB index is out of range") {
            let fix = format!("{endpoint} has fewer databases: use a lower number, or raise its `databases`");
            return Err(Error::config("database", login.database, fix));
        }
        if said.contains("not allowed in cluster mode") {
            return Err(node_of_a_cluster(endpoint));
        }
        return Err(Error::reply(&error));
    }
    Ok(())
}

/// A failure while connecting.
pub(crate) fn failed(settings: &Settings, endpoint: &Endpoint, error: RedisError) -> Error {
    if let (Some(tls), Endpoint::Tcp { host, .. }) = (&settings.tls, endpoint)
        && let Some(error) = tls.explain(host, &error)
    {
        return error.into();
    }
    Error::connect(&endpoint.to_string(), error)
}

async fn socket(host: &str, port: u16) -> std::io::Result<TcpStream> {
    let stream = TcpStream::connect((host, port)).await?;
    // Requests are small and each caller waits for one: Nagle's algorithm only adds to their latency.
    stream.set_nodelay(true)?;
    Ok(stream)
}
