//! From an address to a connection that takes commands: sockets, TLS, the handshake.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use cache_tls::{addresses_of, first_of};
use redis::{Pipeline, RedisError, Value, cmd};
use tokio::net::TcpStream;

use crate::{
    Error, ErrorKind,
    address::{Endpoint, Secret},
    connection::Hears,
    greet::node_of_a_cluster,
    mux::{Mux, Reply, Running, Stream, alongside},
    overhear::First,
    settings::Settings,
    wire::text,
};

/// Who we are at a server.
#[derive(Clone, Debug, Default)]
pub(crate) struct Login {
    /// As its settings are called: sentinels have users of their own.
    pub(crate) at_sentinels: bool,
    pub(crate) user: Option<Secret>,
    pub(crate) password: Option<Secret>,
    pub(crate) database: i64,
    /// It may not say what it is (`CLIENT SETINFO`). Servers log what they refuse, and operators have alarms on that.
    pub(crate) unnamed: Arc<AtomicBool>,
}

/// Connects. What runs it has to run for the connection to work.
pub(crate) async fn dial(
    settings: &Settings,
    endpoint: &Endpoint,
    login: &Login,
    hears: Option<(u64, Hears)>,
) -> Result<(Mux, Running), Error> {
    let broken = |error: std::io::Error| failed(settings, endpoint, error.into());
    match endpoint {
        Endpoint::Tcp { host, port } => {
            let addresses = addresses_of(host, *port).await.map_err(broken)?;
            dial_any(settings, endpoint, host, addresses, login, hears).await
        }
        #[cfg(unix)]
        Endpoint::Unix { path } => {
            let stream = tokio::net::UnixStream::connect(path).await.map_err(broken)?;
            greet(settings, endpoint, Stream::Unix(stream), login, hears).await
        }
        #[cfg(not(unix))]
        Endpoint::Unix { .. } => Err(broken(std::io::ErrorKind::Unsupported.into())),
    }
}

/// Connects to one of the addresses of a host.
async fn dial_any(
    settings: &Settings,
    endpoint: &Endpoint,
    host: &str,
    addresses: Vec<SocketAddr>,
    login: &Login,
    hears: Option<(u64, Hears)>,
) -> Result<(Mux, Running), Error> {
    let broken = |error: std::io::Error| failed(settings, endpoint, error.into());
    let hears = &hears;
    let attempt = |address| async move {
        let stream = socket(address).await.map_err(broken)?;
        let stream = match &settings.tls {
            Some(tls) => Stream::Tls(Box::new(tls.wrap(stream, host).await?)),
            None => Stream::Tcp(stream),
        };
        greet(settings, endpoint, stream, login, hears.clone()).await
    };
    let is_there = |error: &Error| error.kind() != ErrorKind::Connect;
    let greeted = first_of(addresses, settings.connect_timeout, attempt, is_there).await;
    greeted.unwrap_or_else(|| Err(broken(std::io::Error::other("the name has no address"))))
}

/// Takes up a connection over `stream`.
async fn greet(
    settings: &Settings,
    endpoint: &Endpoint,
    stream: Stream,
    login: &Login,
    hears: Option<(u64, Hears)>,
) -> Result<(Mux, Running), Error> {
    let first = First::default();
    let (connection, mut running) = Mux::new(stream, hears, first.clone(), settings.value_max);
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
    let refused =
        |reply: &Reply| matches!(reply, Reply::Other(Value::ServerError(error)) if error.code() == "NOPERM");
    let unnamed = replies.last().is_some_and(refused);
    accepted(endpoint, login, replies)?;
    if unnamed {
        login.unnamed.store(true, Ordering::Relaxed);
    }
    // What runs it has come to its end then.
    if let Some(error) = connection.over() {
        return Err(failed(settings, endpoint, error));
    }
    Ok((connection, running))
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
    if !login.unnamed.load(Ordering::Relaxed) {
        for (name, value) in [("LIB-NAME", "traced-cache"), ("LIB-VER", env!("CARGO_PKG_VERSION"))] {
            steps.cmd("CLIENT").arg("SETINFO").arg(name).arg(value);
        }
    }
    steps
}

/// Whether the server has taken us in. Servers before 7.2 do not know `CLIENT SETINFO`, which does no harm.
fn accepted(endpoint: &Endpoint, login: &Login, replies: Vec<Reply>) -> Result<(), Error> {
    let mut replies = replies.into_iter();
    let hello = replies.next();
    match &hello {
        Some(Reply::Other(Value::ServerError(error))) => {
            let old =
                error.details().is_some_and(|text| text.to_ascii_lowercase().starts_with("unknown command"));
            let refuses = old || error.code() == "NOPROTO";
            return Err(match error.code() {
                _ if refuses => Error::no_resp3(),
                "NOAUTH" | "WRONGPASS" => Error::login(endpoint, login, error.code()),
                _ => Error::reply(error),
            });
        }
        Some(Reply::Other(Value::Map(_))) => {}
        // A proxy may take the word for it, and go on as before: nothing would be told of what changes.
        _ => return Err(Error::no_resp3()),
    }
    if login.database != 0
        && let Some(Reply::Other(Value::ServerError(error))) = replies.next()
    {
        let said = error.details().unwrap_or_default();
        let no_such = said.contains("DB index is out of range");
        // Nodes of Valkey from 9 on have databases, too: one, unless told otherwise.
        if said.contains("not allowed in cluster mode") || (no_such && is_of_a_cluster(hello.as_ref())) {
            return Err(node_of_a_cluster(endpoint));
        }
        if no_such {
            let fix = format!("{endpoint} has fewer databases: use a lower number, or raise its `databases`");
            return Err(Error::config("database", login.database, fix));
        }
        return Err(Error::reply(&error));
    }
    Ok(())
}

/// What a server says of itself in its answer to `HELLO`.
fn is_of_a_cluster(hello: Option<&Reply>) -> bool {
    let Some(Reply::Other(Value::Map(said))) = hello else { return false };
    said.iter().any(|(name, value)| text(name) == Some("mode") && text(value) == Some("cluster"))
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

async fn socket(address: SocketAddr) -> std::io::Result<TcpStream> {
    let stream = TcpStream::connect(address).await?;
    // Requests are small and each caller waits for one: Nagle's algorithm only adds to their latency.
    stream.set_nodelay(true)?;
    Ok(stream)
}

#[cfg(test)]
mod tests {
    use std::{net::TcpListener, sync::Arc, time::Duration};

    use test_servers::RedisServer;
    use tokio::time::timeout;

    use super::*;
    use crate::{ErrorKind, RedisProvider};

    /// As of a name that leads to all of these, in this order.
    async fn dialled(settings: &Settings, addresses: &[SocketAddr]) -> Result<(), Error> {
        let endpoint = Endpoint::Tcp { host: "name".into(), port: 1 };
        let dialled = dial_any(settings, &endpoint, "name", addresses.to_vec(), &settings.login, None);
        timeout(settings.connect_timeout, dialled).await.expect("an answer in time").map(drop)
    }

    #[tokio::test]
    async fn of_the_addresses_of_a_name_one_that_answers_is_enough() {
        let Some(server) = RedisServer::builder().password("hunter2").start() else { return };
        let listener = || TcpListener::bind("127.0.0.1:0").unwrap();
        // Whoever connects there waits for an answer for ever.
        let waits = listener();
        let (silent, closed) = (waits.local_addr().unwrap(), listener().local_addr().unwrap());
        let settings = |password| {
            let builder = RedisProvider::builder("redis://name").password(password);
            let built = builder.connect_timeout(Duration::from_secs(20)).build().unwrap();
            Arc::clone(built.settings())
        };
        let (knows, guesses) = (settings("hunter2"), settings("wrong"));
        for order in [[silent, closed, server.addr()], [closed, silent, server.addr()]] {
            dialled(&knows, &order).await.unwrap();
        }
        let kind = async |addresses: &[SocketAddr]| dialled(&guesses, addresses).await.unwrap_err().kind();
        assert_eq!(kind(&[closed, closed]).await, ErrorKind::Connect);
        // What a server says is told, not that another one is not there.
        assert_eq!(kind(&[closed, server.addr()]).await, ErrorKind::Auth);
        assert_eq!(kind(&[server.addr(), closed]).await, ErrorKind::Auth);
    }
}
