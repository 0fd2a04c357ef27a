//! From an address to a connection of the client library: sockets, TLS, the handshake.

use std::{future::Future, pin::Pin};

use redis::{
    AsyncConnectionConfig, ProtocolVersion, RedisConnectionInfo, RedisError,
    aio::{MultiplexedConnection, SendError},
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};

use crate::{
    Error,
    address::{Endpoint, Secret},
    connection::Hears,
    greet::node_of_a_cluster,
    overhear::{First, Overheard},
    settings::Settings,
};

/// Requests that may wait for the socket before their callers do. Above the client's 50, which costs throughput as soon
/// as more callers than that are at work.
const QUEUE: usize = 512;

pub(crate) type Driver = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Who we are at a server.
#[derive(Clone, Debug, Default)]
pub(crate) struct Login {
    pub(crate) user: Option<Secret>,
    pub(crate) password: Option<Secret>,
    pub(crate) database: i64,
}

/// Connects. The driver has to run for the connection to work.
pub(crate) async fn dial(
    settings: &Settings,
    endpoint: &Endpoint,
    login: &Login,
    hears: Option<(u64, Hears)>,
) -> Result<(MultiplexedConnection, Driver), Error> {
    let mut info = RedisConnectionInfo::default()
        .set_protocol(ProtocolVersion::RESP3)
        .set_db(login.database)
        .set_lib_name("traced-cache", env!("CARGO_PKG_VERSION"));
    if let Some(user) = &login.user {
        info = info.set_username(&user.0);
    }
    if let Some(password) = &login.password {
        info = info.set_password(&password.0);
    }
    // No timer per request: levels bound their calls, and the keeper watches for a connection that is stuck.
    let mut config = AsyncConnectionConfig::new().set_response_timeout(None).set_pipeline_buffer_size(QUEUE);
    if let Some((generation, hears)) = hears {
        config = config.set_push_sender(move |push| {
            hears(generation, push);
            Ok::<(), SendError>(())
        });
    }
    let started = match endpoint {
        Endpoint::Tcp { host, port } => {
            let stream =
                socket(host, *port).await.map_err(|error| failed(settings, endpoint, error.into()))?;
            match &settings.tls {
                Some(tls) => start(tls.wrap(stream, host).await?, &info, config).await,
                None => start(stream, &info, config).await,
            }
        }
        #[cfg(unix)]
        Endpoint::Unix { path } => match tokio::net::UnixStream::connect(path).await {
            Ok(stream) => start(stream, &info, config).await,
            Err(error) => Err((error.into(), First::default())),
        },
        #[cfg(not(unix))]
        Endpoint::Unix { .. } => {
            Err((std::io::Error::from(std::io::ErrorKind::Unsupported).into(), First::default()))
        }
    };
    started.map_err(|(error, first)| match first.error() {
        // It has hung up, and said why.
        Some(said) if error.kind() == redis::ErrorKind::Io => {
            Error::refused(&endpoint.to_string(), said, error)
        }
        None if settings.tls.is_none()
            && matches!(endpoint, Endpoint::Tcp { .. })
            && first.may_want_tls() =>
        {
            Error::hung_up(&endpoint.to_string(), error)
        }
        _ => unselected(endpoint, login, &error).unwrap_or_else(|| failed(settings, endpoint, error)),
    })
}

/// Why there is no such database, where that is what the server has against `SELECT`. The client keeps its text only.
fn unselected(endpoint: &Endpoint, login: &Login, error: &RedisError) -> Option<Error> {
    let said = error.detail().filter(|_| login.database != 0)?;
    if said.contains("DB index is out of range") {
        let fix = format!("{endpoint} has fewer databases: use a lower number, or raise its `databases`");
        return Some(Error::config("database", login.database, fix));
    }
    said.contains("not allowed in cluster mode").then(|| node_of_a_cluster(endpoint))
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

async fn start(
    stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    info: &RedisConnectionInfo,
    config: AsyncConnectionConfig,
) -> Result<(MultiplexedConnection, Driver), (RedisError, First)> {
    let (stream, first) = Overheard::new(stream);
    match MultiplexedConnection::new_with_config(info, stream, config).await {
        Ok((connection, driver)) => Ok((connection, Box::pin(driver))),
        Err(error) => Err((error, first)),
    }
}
