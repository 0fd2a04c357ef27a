//! `backend = "redis"`

use std::convert::identity;

use cache_core::BoxError;
use cache_redis::RedisProvider;
use serde::Deserialize;

use super::client_certificate;
use crate::config::units::{FilePath, Secret, Size, Timespan};

/// Redis and Valkey: one server, a master behind sentinels, or a cluster; the URL says which.
#[derive(Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub(crate) struct Settings {
    /// `redis://host:port/database`, `unix:///path`, `redis+sentinel://host,host/master`, `redis+cluster://host,host`;
    /// `rediss` for TLS. Never shown.
    url: Secret,
    /// The ACL user; wins over the URL's.
    #[serde(default)]
    username: Option<Secret>,
    /// The password; wins over the URL's. Best by reference: `${NAME}` or `${file:path}`.
    #[serde(default)]
    password: Option<Secret>,
    /// The database's index; wins over the URL's.
    #[serde(default)]
    database: Option<u32>,
    /// The ACL user at the sentinels.
    #[serde(default)]
    sentinel_username: Option<Secret>,
    /// The password at the sentinels.
    #[serde(default)]
    sentinel_password: Option<Secret>,
    /// PEM file of the authorities that may vouch for the server. Default: the system's.
    #[serde(default)]
    ca_file: Option<FilePath>,
    /// PEM file of a client certificate. Wants `client_key`.
    #[serde(default)]
    client_certificate: Option<FilePath>,
    /// PEM file of the client certificate's key.
    #[serde(default)]
    client_key: Option<FilePath>,
    /// The name that the server's certificate must be for. Default: the host.
    #[serde(default)]
    tls_server_name: Option<String>,
    /// Whether replicas answer callers who accept stale answers. For sentinels and clusters. Default: no.
    #[serde(default)]
    read_replicas: Option<bool>,
    /// Goes in front of every key, to share a database with others. Default: none.
    #[serde(default)]
    key_prefix: Option<String>,
    /// How long one attempt to connect may take. Default: 1s.
    #[serde(default)]
    connect_timeout: Option<Timespan>,
    /// Silence after which a connection counts as lost. Default: 2s.
    #[serde(default)]
    response_timeout: Option<Timespan>,
    /// Largest item. Default, and most: 512MiB.
    #[serde(default)]
    value_max: Option<Size>,
    /// Whether a backplane on this provider has the server tell what changes; otherwise nodes send messages. Default: true.
    #[serde(default)]
    tracking: Option<bool>,
    /// How often a backplane on this provider sends itself a sign of life. Default: 1s.
    #[serde(default)]
    heartbeat: Option<Timespan>,
    /// How long the backplane waits for one beyond its time. Default: 1s.
    #[serde(default)]
    heartbeat_timeout: Option<Timespan>,
}

pub(super) fn build(settings: Settings) -> Result<RedisProvider, BoxError> {
    let mut builder = RedisProvider::builder(settings.url.0);
    macro_rules! set {
        ($($field:ident: $take:expr),* $(,)?) => {$(
            if let Some(value) = settings.$field {
                builder = builder.$field(($take)(value));
            }
        )*};
    }
    set! {
        username: |Secret(text)| text,
        password: |Secret(text)| text,
        database: identity,
        sentinel_username: |Secret(text)| text,
        sentinel_password: |Secret(text)| text,
        ca_file: |FilePath(path)| path,
        tls_server_name: identity,
        read_replicas: identity,
        key_prefix: identity,
        connect_timeout: |Timespan(time)| time,
        response_timeout: |Timespan(time)| time,
        value_max: |Size(bytes)| usize::try_from(bytes).unwrap_or(usize::MAX),
        tracking: identity,
        heartbeat: |Timespan(time)| time,
        heartbeat_timeout: |Timespan(time)| time,
    }
    if let Some((FilePath(certificate), FilePath(key))) =
        client_certificate(settings.client_certificate, settings.client_key)?
    {
        builder = builder.client_certificate(certificate, key);
    }
    Ok(builder.build()?)
}
