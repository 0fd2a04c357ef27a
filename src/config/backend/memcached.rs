//! `backend = "memcached"`

use cache_core::{BoxError, Error, ErrorKind};
use cache_memcached::MemcachedProvider;
use serde::Deserialize;

use super::{both, client_certificate};
use crate::config::units::{FilePath, Secret, Size, Timespan, secrets};

/// Memcached, one server or many.
#[derive(Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub(crate) struct Settings {
    /// `memcached://host:port`; `memcacheds` for TLS. Either this or `servers`.
    #[serde(default)]
    url: Option<Secret>,
    /// Several of them. Every process must name them alike, in any order: the name decides which keys live there.
    #[serde(default, deserialize_with = "secrets")]
    servers: Option<Vec<Secret>>,
    /// Servers of another list that is in use as well, while processes move from one to the other: what is invalidated here is
    /// so there, too. Default: none.
    #[serde(default, deserialize_with = "secrets")]
    retiring: Option<Vec<Secret>>,
    /// The user, for servers with `-Y`. Wants `password`.
    #[serde(default)]
    username: Option<Secret>,
    /// The password.
    #[serde(default)]
    password: Option<Secret>,
    /// PEM file of the authorities that may vouch for the servers. Default: the system's.
    #[serde(default)]
    ca_file: Option<FilePath>,
    /// PEM file of a client certificate. Wants `client_key`.
    #[serde(default)]
    client_certificate: Option<FilePath>,
    /// PEM file of the client certificate's key.
    #[serde(default)]
    client_key: Option<FilePath>,
    /// The name that the servers' certificates must be for. Default: the host.
    #[serde(default)]
    tls_server_name: Option<String>,
    /// Goes in front of every key, so that applications can share a server. Default: none.
    #[serde(default)]
    key_prefix: Option<String>,
    /// How long a look-up and a connect may take together. Default: 1s.
    #[serde(default)]
    connect_timeout: Option<Timespan>,
    /// How long one exchange may take. Default: 500ms.
    #[serde(default)]
    response_timeout: Option<Timespan>,
    /// Largest item. Stay 1KiB below the server's own limit. Default: 1MiB less 1KiB.
    #[serde(default)]
    value_max: Option<Size>,
    /// When a single server is left alone.
    #[serde(default)]
    breaker: Option<Breaker>,
}

/// Both default to what they are without the table.
#[derive(Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[cfg_attr(feature = "schema", schemars(rename = "MemcachedBreaker"))]
#[serde(deny_unknown_fields)]
struct Breaker {
    /// After so many failures in a row. Default: 5.
    #[serde(default)]
    failures: Option<u32>,
    /// For so long; then one request finds out. Default: 500ms.
    #[serde(default)]
    cool_down: Option<Timespan>,
}

pub(super) fn build(settings: Settings) -> Result<MemcachedProvider, BoxError> {
    let mut servers = match (settings.url, settings.servers) {
        (Some(url), None) => vec![url],
        (None, Some(servers)) if servers.is_empty() => {
            return Err(Error::config("servers", "[]", "name at least one: \"memcached://host:port\"").into());
        }
        (None, Some(servers)) => servers,
        (None, None) => {
            let fix = "say where: `url = \"memcached://host:port\"` or `servers = [...]`";
            return Err(Error::new(ErrorKind::Config, fix).into());
        }
        (Some(_), Some(_)) => {
            return Err(Error::config("url", "set", "there is `servers` as well; keep one of the two").into());
        }
    }
    .into_iter()
    .map(|Secret(url)| url);
    let mut builder = MemcachedProvider::builder(servers.next().unwrap_or_default()).servers(servers);
    if let Some(urls) = settings.retiring {
        builder = builder.retiring(urls.into_iter().map(|Secret(url)| url));
    }
    if let Some((Secret(user), Secret(password))) =
        both(["username", "password"], settings.username, settings.password)?
    {
        builder = builder.login(user, password);
    }
    if let Some(FilePath(path)) = settings.ca_file {
        builder = builder.ca_file(path);
    }
    if let Some((FilePath(certificate), FilePath(key))) =
        client_certificate(settings.client_certificate, settings.client_key)?
    {
        builder = builder.client_certificate(certificate, key);
    }
    if let Some(name) = settings.tls_server_name {
        builder = builder.tls_server_name(name);
    }
    if let Some(prefix) = settings.key_prefix {
        builder = builder.key_prefix(prefix);
    }
    if let Some(Timespan(limit)) = settings.connect_timeout {
        builder = builder.connect_timeout(limit);
    }
    if let Some(Timespan(limit)) = settings.response_timeout {
        builder = builder.response_timeout(limit);
    }
    if let Some(Size(bytes)) = settings.value_max {
        builder = builder.value_max(usize::try_from(bytes).unwrap_or(usize::MAX));
    }
    if let Some(Breaker { failures, cool_down }) = settings.breaker {
        let cool_down = cool_down.map_or(std::time::Duration::from_millis(500), |Timespan(time)| time);
        builder = builder.breaker(failures.unwrap_or(5), cool_down);
    }
    Ok(builder.build()?)
}
