//! Where a signal goes, and how it is spoken.

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
    pub(crate) url: String,
    pub(crate) grpc: bool,
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
        "https" => return refuse("TLS is not built in; add the feature `setup-tls` of cache-otel"),
        _ => return refuse("use http:// or https://"),
    }
    if url.host_str().is_none_or(str::is_empty) {
        return refuse("it names no host; use http://host:port");
    }
    if !grpc && !whole {
        let path = format!("{}/{}", url.path().trim_end_matches('/'), signal.path());
        url.set_path(&path);
    }
    Ok(Target { url: url.into(), grpc, field })
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
