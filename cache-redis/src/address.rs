//! From a URL to where the server is and who we are there.

use std::fmt;

use percent_encoding::percent_decode_str;
use url::Url;

use crate::Error;

const FORMS: &str =
    "use redis[s]://[user[:password]@]host[:port][/database] or unix:///path/to/socket[?db=0]";

/// Where the server listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Endpoint {
    Tcp { host: String, port: u16 },
    Unix { path: String },
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { host, port } if host.contains(':') => write!(f, "[{host}]:{port}"),
            Self::Tcp { host, port } => write!(f, "{host}:{port}"),
            Self::Unix { path } => f.write_str(path),
        }
    }
}

/// A text that never shows.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Secret(pub(crate) String);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// All that a URL says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Address {
    pub(crate) endpoint: Endpoint,
    pub(crate) tls: bool,
    pub(crate) user: Option<Secret>,
    pub(crate) password: Option<Secret>,
    pub(crate) database: i64,
}

impl Address {
    /// Reads a URL. Errors show no part of it that may belong to a password.
    pub(crate) fn parse(text: &str) -> Result<Self, Error> {
        let (scheme, _) = text.split_once("://").ok_or_else(|| Error::config("url", "***", FORMS))?;
        let hidden = match scheme {
            "redis" | "rediss" | "valkey" | "valkeys" | "unix" | "redis+unix" | "valkey+unix" => {
                format!("{scheme}://***")
            }
            _ => return Err(Error::config("url", "***", format!("unknown scheme; {FORMS}"))),
        };
        let bad = |fix: &str| Error::config("url", &hidden, fix);
        let url = Url::parse(text).map_err(|e| bad(&format!("{e}; {FORMS}")))?;
        if url.path().contains('@')
            || url.query().is_some_and(|q| q.contains('@'))
            || url.fragment().is_some()
        {
            return Err(bad("percent-encode `@ / ? # %` in user and password (%40 %2F %3F %23 %25)"));
        }
        match scheme {
            "redis" | "valkey" => Self::tcp(&url, false, bad),
            "rediss" | "valkeys" => Self::tcp(&url, true, bad),
            _ if cfg!(unix) => Self::unix(&url, bad),
            _ => Err(bad("this platform has no Unix sockets; use redis://host:port")),
        }
    }

    fn tcp(url: &Url, tls: bool, bad: impl Fn(&str) -> Error) -> Result<Self, Error> {
        let host = url.host_str().filter(|h| !h.is_empty()).ok_or_else(|| bad("the host is missing"))?;
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        let port = url.port().unwrap_or(6379);
        if port == 0 {
            return Err(bad("the port is 0; leave it out for 6379"));
        }
        if url.query().is_some() {
            return Err(bad("parameters after `?` are not known here; set them on the builder"));
        }
        let database = match url.path().trim_start_matches('/') {
            "" => 0,
            text => database(text, &bad)?,
        };
        let secret = |part: &str| decode(part, &bad).map(Secret);
        Ok(Self {
            endpoint: Endpoint::Tcp { host, port },
            tls,
            user: Some(url.username()).filter(|u| !u.is_empty()).map(secret).transpose()?,
            password: url.password().map(secret).transpose()?,
            database,
        })
    }

    fn unix(url: &Url, bad: impl Fn(&str) -> Error) -> Result<Self, Error> {
        if url.host_str().is_some_and(|h| !h.is_empty()) {
            return Err(bad("a socket's path starts with a third slash: unix:///run/redis.sock"));
        }
        let path = decode(url.path(), &bad)?;
        if path.len() < 2 {
            return Err(bad("the socket's path is missing: unix:///run/redis.sock"));
        }
        let endpoint = Endpoint::Unix { path };
        let mut address = Self { endpoint, tls: false, user: None, password: None, database: 0 };
        for (name, value) in url.query_pairs() {
            match &*name {
                "db" => address.database = database(&value, &bad)?,
                "user" => address.user = Some(Secret(value.into_owned())),
                "pass" => address.password = Some(Secret(value.into_owned())),
                _ => return Err(bad("of parameters, a Unix socket knows `db`, `user` and `pass`")),
            }
        }
        Ok(address)
    }
}

fn decode(part: &str, bad: impl Fn(&str) -> Error) -> Result<String, Error> {
    match percent_decode_str(part).decode_utf8() {
        Ok(text) => Ok(text.into_owned()),
        // The cause quotes nothing, but says nothing either.
        Err(_utf8) => Err(bad("a percent-encoded part is no UTF-8")),
    }
}

fn database(text: &str, bad: impl Fn(&str) -> Error) -> Result<i64, Error> {
    text.parse::<u32>().map(i64::from).map_err(|e| bad(&format!("the database is no number from 0 up ({e})")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ErrorKind;

    #[test]
    fn urls_are_read() {
        let a = Address::parse("redis://ann:p%40ss@cache.internal:7000/3").unwrap();
        assert_eq!(a.endpoint, Endpoint::Tcp { host: "cache.internal".into(), port: 7000 });
        assert_eq!((a.user.unwrap().0, a.password.unwrap().0, a.database), ("ann".into(), "p@ss".into(), 3));
        let a = Address::parse("redis://:only@[::1]").unwrap();
        assert_eq!((a.endpoint.to_string(), a.user), ("[::1]:6379".into(), None));
        let a = Address::parse("unix:///run/a%20b.sock?db=2&pass=x").unwrap();
        assert_eq!(a.endpoint, Endpoint::Unix { path: "/run/a b.sock".into() });
        assert_eq!((a.database, a.password), (2, Some(Secret("x".into()))));
    }

    #[test]
    fn bad_urls_are_refused_without_their_secrets() {
        for url in [
            "localhost:6379",
            "",
            "http://:hunter2@host",
            "hunter2://x",
            "redis://",
            "redis://:hunter2",
            "redis://:hunter2@",
            "redis://:hunter2@host:0",
            "redis://:hunter2@host:99999",
            "redis://:hunter2@host/abc",
            "redis://:hunter2@host/-1",
            "redis://user:12/hunter2@host",
            "redis://user:12?hunter2@host",
            "redis://:hunter2@host?protocol=resp2",
            "redis://:hunter2%ff@host",
            "unix://host/path?pass=hunter2",
            "unix:///?pass=hunter2",
            "unix:///a?password=hunter2",
        ] {
            let error = Address::parse(url).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Config, "{url}");
            let shown = format!("{error} {error:?}");
            assert!(shown.contains("url = ") && !shown.contains("hunter2"), "{url}: {shown}");
        }
        for (url, tls) in [("rediss://host", true), ("valkeys://host", true), ("valkey://host", false)] {
            assert_eq!(Address::parse(url).unwrap().tls, tls, "{url}");
        }
    }

    #[test]
    fn debug_is_redacted() {
        let shown = format!("{:?}", Address::parse("redis://ann:hunter2@host").unwrap());
        assert!(!shown.contains("hunter2") && !shown.contains("ann"), "{shown}");
    }
}
