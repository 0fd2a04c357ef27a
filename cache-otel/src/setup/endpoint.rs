//! Where a signal goes, and how it is spoken.

use std::collections::HashMap;

use base64::prelude::{BASE64_STANDARD, Engine};
use percent_encoding::percent_decode_str;
use url::Url;

use super::{SetupError, env::Env};

#[derive(Clone, Copy)]
pub(crate) enum Signal {
    Traces,
    Metrics,
}

impl Signal {
    const fn variables(self) -> (&'static str, &'static str) {
        match self {
            Self::Traces => ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"),
            Self::Metrics => ("OTEL_EXPORTER_OTLP_METRICS_PROTOCOL", "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT"),
        }
    }

    /// Files for TLS: whom to trust, who this is, and the key to that; of this signal, and of all.
    const fn files(self) -> [[&'static str; 2]; 3] {
        match self {
            Self::Traces => [
                ["OTEL_EXPORTER_OTLP_TRACES_CERTIFICATE", "OTEL_EXPORTER_OTLP_CERTIFICATE"],
                ["OTEL_EXPORTER_OTLP_TRACES_CLIENT_CERTIFICATE", "OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE"],
                ["OTEL_EXPORTER_OTLP_TRACES_CLIENT_KEY", "OTEL_EXPORTER_OTLP_CLIENT_KEY"],
            ],
            Self::Metrics => [
                ["OTEL_EXPORTER_OTLP_METRICS_CERTIFICATE", "OTEL_EXPORTER_OTLP_CERTIFICATE"],
                ["OTEL_EXPORTER_OTLP_METRICS_CLIENT_CERTIFICATE", "OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE"],
                ["OTEL_EXPORTER_OTLP_METRICS_CLIENT_KEY", "OTEL_EXPORTER_OTLP_CLIENT_KEY"],
            ],
        }
    }

    /// What comes after an endpoint that is not of this signal alone, over HTTP.
    const fn path(self) -> &'static str {
        match self {
            Self::Traces => "v1/traces",
            Self::Metrics => "v1/metrics",
        }
    }
}

/// A collector.
pub(crate) struct Target {
    /// Without user and password: the exporter logs it.
    pub(crate) url: String,
    pub(crate) grpc: bool,
    /// Of HTTP.
    pub(crate) headers: HashMap<String, String>,
    /// Over TLS, whom to trust in place of those whom the system trusts: PEM.
    #[cfg_attr(not(feature = "setup-tls"), allow(dead_code, reason = "of TLS alone"))]
    pub(crate) authority: Option<Vec<u8>>,
    /// Over TLS, who this is: certificate and key, PEM.
    #[cfg_attr(not(feature = "setup-tls"), allow(dead_code, reason = "of TLS alone"))]
    pub(crate) identity: Option<(Vec<u8>, Vec<u8>)>,
    /// Who said so.
    pub(crate) field: &'static str,
}

const ALL_PROTOCOL: &str = "OTEL_EXPORTER_OTLP_PROTOCOL";
const ALL_ENDPOINT: &str = "OTEL_EXPORTER_OTLP_ENDPOINT";
const SET: &str = "Setup::endpoint";

pub(crate) fn resolve(
    env: &Env,
    signal: Signal,
    set: Option<&str>,
    grpc: Option<bool>,
) -> Result<Target, SetupError> {
    let (protocol, endpoint) = signal.variables();
    let grpc = match grpc {
        Some(grpc) => grpc,
        None => is_grpc(env, protocol)?,
    };
    let (field, said, whole) = match (set, env.get(endpoint), env.get(ALL_ENDPOINT)) {
        (Some(url), ..) => (SET, url.to_owned(), false),
        (None, Some(url), _) => (endpoint, url, true),
        (None, None, Some(url)) => (ALL_ENDPOINT, url, false),
        (None, None, None) if grpc => (ALL_ENDPOINT, "http://localhost:4317".to_owned(), false),
        (None, None, None) => (ALL_ENDPOINT, "http://localhost:4318".to_owned(), false),
    };
    // It may hold a password: not shown.
    let refuse = |fix: &str| Err(SetupError::new(field, "(not shown)", fix));
    let Ok(mut url) = Url::parse(&said) else {
        return refuse("it is no URL; use http://host:port");
    };
    match url.scheme() {
        "http" => {}
        "https" if cfg!(feature = "setup-tls") => {}
        "https" => {
            return refuse(
                "TLS is not built in; add the feature `setup-tls` of cache-otel, `otel-setup-tls` of traced-cache",
            );
        }
        _ => return refuse("use http:// or https://"),
    }
    if url.host_str().is_none_or(str::is_empty) {
        return refuse("it names no host; use http://host:port");
    }
    if !grpc && !whole {
        let path = format!("{}/{}", url.path().trim_end_matches('/'), signal.path());
        url.set_path(&path);
    }
    let mut headers = HashMap::new();
    if !url.username().is_empty() || url.password().is_some() {
        if grpc {
            return refuse(
                "gRPC takes no user from a URL; say in OTEL_EXPORTER_OTLP_HEADERS what the collector wants to see",
            );
        }
        headers.insert("authorization".to_owned(), basic(&url));
        // Of a URL that has a host they can be taken away.
        let _ = url.set_username("").and_then(|()| url.set_password(None));
    }
    // Without TLS there is nothing that they would be for.
    let (mut authority, mut identity) = (None, None);
    if url.scheme() == "https" {
        let [trusted, own, key] = signal.files();
        authority = pem(env, trusted, grpc)?.map(|(_, pem)| pem);
        identity = match (pem(env, own, grpc)?, pem(env, key, grpc)?) {
            (Some((_, own)), Some((_, key))) => Some((own, key)),
            (None, None) => None,
            (Some((name, _)), None) | (None, Some((name, _))) => {
                return Err(SetupError::new(name, "(alone)", "certificate and key go together: set both"));
            }
        };
    }
    Ok(Target { url: url.into(), grpc, headers, authority, identity, field })
}

/// The file that the first of these variables names, and which of them it is.
fn pem(
    env: &Env,
    names: [&'static str; 2],
    grpc: bool,
) -> Result<Option<(&'static str, Vec<u8>)>, SetupError> {
    let said = names.into_iter().find_map(|name| Some((name, env.get(name)?)));
    let Some((name, path)) = said else { return Ok(None) };
    if !grpc {
        let fix = "over HTTP the client takes none: use gRPC (OTEL_EXPORTER_OTLP_PROTOCOL=grpc), or have the system trust it";
        return Err(SetupError::new(name, path, fix));
    }
    match std::fs::read(&path) {
        Ok(pem) if pem.windows(10).any(|part| part == b"-----BEGIN") => Ok(Some((name, pem))),
        Ok(_) => Err(SetupError::new(name, path, "the file holds no PEM")),
        Err(error) => Err(SetupError::new(name, path, format_args!("the file cannot be read: {error}"))),
    }
}

/// RFC 7617, section 2.
fn basic(url: &Url) -> String {
    let mut login = percent_decode_str(url.username()).collect::<Vec<u8>>();
    login.push(b':');
    login.extend(percent_decode_str(url.password().unwrap_or_default()));
    format!("Basic {}", BASE64_STANDARD.encode(login))
}

fn is_grpc(env: &Env, protocol: &'static str) -> Result<bool, SetupError> {
    for name in [protocol, ALL_PROTOCOL] {
        match env.get(name).as_deref() {
            None => {}
            Some("grpc") => return Ok(true),
            Some("http/protobuf") => return Ok(false),
            Some(other) => return Err(SetupError::new(name, other, "use grpc or http/protobuf")),
        }
    }
    Ok(false)
}
