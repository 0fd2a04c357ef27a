//! From a URL to where the server is and who we are there.

use std::fmt;

use percent_encoding::percent_decode_str;
use url::Url;

use crate::{Error, dial::Login};

const FORMS: &str = "use redis[s]://[user[:password]@]host[:port][/database], unix:///path/to/socket[?db=0], \
    redis[s]+sentinel://[user[:password]@]host[:port][,host[:port]...]/master-name[/database] or \
    redis[s]+cluster://[user[:password]@]host[:port][,host[:port]...]";

const PORT: u16 = 6379;
const SENTINEL_PORT: u16 = 26379;

/// Where a server listens.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
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

/// Longest name of a host.
pub(crate) const HOST_MAX: usize = 255;

/// Whether a server may be called so: what others say of it is looked up, and told to operators.
pub(crate) fn is_host(host: &str) -> bool {
    (1..=HOST_MAX).contains(&host.len()) && host.bytes().all(|byte| byte.is_ascii_graphic())
}

/// How servers are found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    One(Endpoint),
    /// The master is where sentinels say.
    Sentinels {
        at: Vec<Endpoint>,
        master: String,
    },
    /// These know who else there is.
    Cluster {
        seeds: Vec<Endpoint>,
    },
}

impl Place {
    /// The first address that the URL names.
    pub(crate) fn first(&self) -> &Endpoint {
        match self {
            Self::One(endpoint) => endpoint,
            // Parsing refuses an empty list.
            Self::Sentinels { at, .. } | Self::Cluster { seeds: at } => &at[0],
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
#[derive(Clone, Debug)]
pub(crate) struct Address {
    pub(crate) place: Place,
    pub(crate) tls: bool,
    pub(crate) login: Login,
}

impl Address {
    /// Reads a URL. Errors show no part of it that may belong to a password.
    pub(crate) fn parse(text: &str) -> Result<Self, Error> {
        let (scheme, rest) = text.split_once("://").ok_or_else(|| Error::config("url", "***", FORMS))?;
        // Schemes are the same in any case.
        let scheme = scheme.to_ascii_lowercase();
        let (base, form) = scheme.split_once('+').unwrap_or((&scheme, ""));
        let tls = match base {
            "redis" | "valkey" | "unix" => false,
            "rediss" | "valkeys" => true,
            _ => return Err(Error::config("url", "***", format!("unknown scheme; {FORMS}"))),
        };
        let reading = Reading { scheme: &scheme, tls };
        match (base, form) {
            ("unix", "") | ("redis" | "valkey", "unix") if cfg!(unix) => reading.unix(text),
            ("unix", "") | ("redis" | "valkey", "unix") => {
                Err(reading.bad("this platform has no Unix sockets; use redis://host:port"))
            }
            ("unix", _) => Err(Error::config("url", "***", format!("unknown scheme; {FORMS}"))),
            (_, "") => reading.tcp(text),
            (_, "sentinel") => reading.sentinels(rest),
            (_, "cluster") => reading.cluster(rest),
            _ => Err(Error::config("url", "***", format!("unknown scheme; {FORMS}"))),
        }
    }
}

/// Whether the part with the host ends before the `@` that it should contain.
fn ends_in_login(url: &str) -> bool {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    rest.rsplit_once('@').is_some_and(|(login, _)| login.contains(['/', '?', '#']))
}

struct Reading<'a> {
    scheme: &'a str,
    tls: bool,
}

impl Reading<'_> {
    fn bad(&self, fix: &str) -> Error {
        Error::config("url", format_args!("{}://***", self.scheme), fix)
    }

    fn url(&self, text: &str) -> Result<Url, Error> {
        let url = Url::parse(text).map_err(|e| match ends_in_login(text) {
            // What has been read as the port, or as no host at all, is the beginning of the password.
            true => self.encode(),
            false => self.bad(&format!("{e}; {FORMS}")),
        })?;
        if url.path().contains('@')
            || url.query().is_some_and(|q| q.contains('@'))
            || url.fragment().is_some()
        {
            return Err(self.encode());
        }
        Ok(url)
    }

    fn encode(&self) -> Error {
        self.bad("percent-encode `@ / ? # %` in user and password (%40 %2F %3F %23 %25)")
    }

    fn tcp(&self, text: &str) -> Result<Address, Error> {
        let url = self.url(text)?;
        let endpoint = self.endpoint(&url, PORT)?;
        if url.query().is_some() {
            return Err(self.bad("parameters after `?` are not known here; leave them out: each setting has a field of its own"));
        }
        let database = match url.path().trim_start_matches('/') {
            "" => 0,
            text => self.database(text)?,
        };
        let login = self.login(url.username(), url.password(), database)?;
        Ok(Address { place: Place::One(endpoint), tls: self.tls, login })
    }

    fn endpoint(&self, url: &Url, default: u16) -> Result<Endpoint, Error> {
        let host = url.host_str().filter(|h| !h.is_empty()).ok_or_else(|| self.bad("the host is missing"))?;
        if host.contains(',') {
            return Err(self.bad(&format!("one host is wanted here; {FORMS}")));
        }
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        match url.port().unwrap_or(default) {
            0 => Err(self.bad(&format!("the port is 0; leave it out for {default}"))),
            port => Ok(Endpoint::Tcp { host, port }),
        }
    }

    fn login(&self, user: &str, password: Option<&str>, database: i64) -> Result<Login, Error> {
        let secret = |part: &str| self.decode(part).map(Secret);
        Ok(Login {
            user: Some(user).filter(|u| !u.is_empty()).map(secret).transpose()?,
            password: password.map(secret).transpose()?,
            database,
            ..Login::default()
        })
    }

    fn unix(&self, text: &str) -> Result<Address, Error> {
        let url = self.url(text)?;
        if url.host_str().is_some_and(|h| !h.is_empty()) {
            return Err(self.bad("a socket's path starts with a third slash: unix:///run/redis.sock"));
        }
        let path = self.decode(url.path())?;
        if path.len() < 2 {
            return Err(self.bad("the socket's path is missing: unix:///run/redis.sock"));
        }
        let mut login = Login::default();
        // Not as forms are read: there `+` is a space, in a password it is itself, as in the other URLs.
        for pair in url.query().unwrap_or_default().split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let value = self.decode(value)?;
            match name {
                "db" => login.database = self.database(&value)?,
                "user" => login.user = Some(Secret(value)),
                "pass" => login.password = Some(Secret(value)),
                _ => return Err(self.bad("of parameters, a Unix socket knows `db`, `user` and `pass`")),
            }
        }
        Ok(Address { place: Place::One(Endpoint::Unix { path }), tls: false, login })
    }

    /// Several hosts, which a URL proper does not have, and what comes after them. The database is left to the caller.
    fn hosts<'t>(&self, rest: &'t str, default: u16) -> Result<(Vec<Endpoint>, Login, Vec<&'t str>), Error> {
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        let (login, hosts) = match authority.rsplit_once('@') {
            Some((login, hosts)) => (Some(login), hosts),
            None => (None, authority),
        };
        if login.is_some_and(|login| login.split_once('@').is_some_and(|(_, rest)| rest.contains(','))) {
            return Err(self.bad(
                "user and password stand once, before the first host, and are for all of them; \
                 if they hold `@` or `,` themselves, percent-encode these (%40 %2C)",
            ));
        }
        if path.contains('@') || [rest, login.unwrap_or_default()].iter().any(|t| t.contains(['?', '#'])) {
            return Err(self.encode());
        }
        let (user, password) = match login.map(|login| login.split_once(':').unwrap_or((login, ""))) {
            Some((user, "")) => (user, None),
            Some((user, password)) => (user, Some(password)),
            None => ("", None),
        };
        let at = hosts
            .split(',')
            .map(|host| self.endpoint(&self.url(&format!("redis://{host}"))?, default))
            .collect::<Result<Vec<_>, _>>()?;
        Ok((at, self.login(user, password, 0)?, path.split('/').filter(|part| !part.is_empty()).collect()))
    }

    fn sentinels(&self, rest: &str) -> Result<Address, Error> {
        let (at, mut login, path) = self.hosts(rest, SENTINEL_PORT)?;
        let master = match path.as_slice() {
            [] => return Err(self.bad(&format!("the master's name is missing; {FORMS}"))),
            [master] => master,
            [master, database] => {
                login.database = self.database(database)?;
                master
            }
            _ => return Err(self.bad(FORMS)),
        };
        let master = self.decode(master)?;
        Ok(Address { place: Place::Sentinels { at, master }, tls: self.tls, login })
    }

    fn cluster(&self, rest: &str) -> Result<Address, Error> {
        let (seeds, login, path) = self.hosts(rest, PORT)?;
        if !matches!(path.as_slice(), [] | ["0"]) {
            return Err(self.bad("a cluster has one database, 0: leave out what comes after the hosts"));
        }
        Ok(Address { place: Place::Cluster { seeds }, tls: self.tls, login })
    }

    fn decode(&self, part: &str) -> Result<String, Error> {
        match percent_decode_str(part).decode_utf8() {
            Ok(text) => Ok(text.into_owned()),
            // The cause quotes nothing, but says nothing either.
            Err(_utf8) => Err(self.bad("a percent-encoded part is no UTF-8")),
        }
    }

    fn database(&self, text: &str) -> Result<i64, Error> {
        text.parse::<u32>()
            .map(i64::from)
            .map_err(|e| self.bad(&format!("the database is no number from 0 up ({e})")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ErrorKind;

    fn tcp(host: &str, port: u16) -> Endpoint {
        Endpoint::Tcp { host: host.into(), port }
    }

    #[test]
    fn urls_are_read() {
        let Address { place, login, .. } =
            Address::parse("redis://ann:p%40ss@cache.internal:7000/3").unwrap();
        assert_eq!(place, Place::One(tcp("cache.internal", 7000)));
        assert_eq!(
            (login.user.unwrap().0, login.password.unwrap().0, login.database),
            ("ann".into(), "p@ss".into(), 3)
        );
        let Address { place, login, .. } = Address::parse("redis://:only@[::1]").unwrap();
        assert_eq!((place.first().to_string(), login.user), ("[::1]:6379".into(), None));
        let Address { place, login, .. } = Address::parse("unix:///run/a%20b.sock?db=2&pass=x").unwrap();
        assert_eq!(place, Place::One(Endpoint::Unix { path: "/run/a b.sock".into() }));
        assert_eq!((login.database, login.password), (2, Some(Secret("x".into()))));
        // What a form means by `+` is nothing to a password.
        let login = Address::parse("unix:///run/s?user=a+b&pass=c+d%2B%26=e").unwrap().login;
        assert_eq!(
            (login.user, login.password),
            (Some(Secret("a+b".into())), Some(Secret("c+d+&=e".into())))
        );
        for (url, tls) in [
            ("rediss://host", true),
            ("valkeys://host", true),
            ("valkey://host", false),
            ("REDISS://host", true),
        ] {
            assert_eq!(Address::parse(url).unwrap().tls, tls, "{url}");
        }
    }

    #[test]
    fn several_hosts_are_read() {
        let url = "rediss+sentinel://ann:p%40s:s@a,b:7000,[::1]:7001/my%20master/2";
        let Address { place, tls, login } = Address::parse(url).unwrap();
        let at = vec![tcp("a", 26379), tcp("b", 7000), tcp("::1", 7001)];
        assert_eq!(place, Place::Sentinels { at, master: "my master".into() });
        assert_eq!((tls, login.user.unwrap().0, login.database), (true, "ann".into(), 2));
        assert_eq!(login.password.unwrap().0, "p@s:s");
        let url = "redis+cluster://ann:pw@a,b:7000";
        let Address { place, tls, login } = Address::parse(url).unwrap();
        assert_eq!(place, Place::Cluster { seeds: vec![tcp("a", 6379), tcp("b", 7000)] });
        assert_eq!((tls, login.user.unwrap().0, login.database), (false, "ann".into(), 0));
        let login = Address::parse("redis+cluster://ann:p%40s%2Cs@a,b").unwrap().login;
        assert_eq!(login.password, Some(Secret("p@s,s".into())));
        let login = Address::parse("REDIS+Sentinel://:Only@a/m").unwrap().login;
        assert_eq!((login.user, login.password), (None, Some(Secret("Only".into()))));
        let login = Address::parse("redis+sentinel://:only@a/m").unwrap().login;
        assert_eq!((login.user, login.password), (None, Some(Secret("only".into()))));
    }

    #[test]
    fn bad_urls_are_refused_without_their_secrets() {
        for url in [
            "localhost:6379",
            "",
            "http://:hunter2@host",
            "hunter2://x",
            "redis+hunter2://x",
            "unix+sentinel://:hunter2@x/m",
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
            "redis://:hunter2@a,b",
            "unix://host/path?pass=hunter2",
            "unix:///?pass=hunter2",
            "unix:///a?password=hunter2",
            "unix:///a?pass=hunter2%ff",
            "redis+sentinel://:hunter2@host",
            "redis+sentinel://:hunter2@host/",
            "redis+sentinel://:hunter2@host,/m",
            "redis+sentinel://:hunter2@host:0/m",
            "redis+sentinel://:hunter2@host/m/x",
            "redis+sentinel://:hunter2@host/m/1/hunter2",
            "redis+sentinel://user:12/hunter2@host/m",
            "redis+sentinel://user:12?hunter2@host/m",
            "redis+sentinel://:hunter2%ff@host/m",
            "redis+sentinel://:hunter2@host/m?db=1",
            "redis+sentinel://user:hunter2@a,user:hunter2@b/m",
            "redis+cluster://:hunter2@",
            "redis+cluster://user:hunter2@a,user:hunter2@b",
            "redis+cluster://hunter2@a:7000,b,hunter2@c",
            "redis+cluster://:hunter2@host/1",
            "redis+cluster://:hunter2@host,,host",
            "redis+cluster://user:12/hunter2@host",
            "unix+cluster://:hunter2@host",
        ] {
            let error = Address::parse(url).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Config, "{url}");
            let shown = format!("{error} {error:?}");
            assert!(shown.contains("url = ") && !shown.contains("hunter2"), "{url}: {shown}");
        }
    }

    #[test]
    fn a_password_that_ends_the_url_is_to_be_encoded() {
        for url in [
            // Not: invalid port number.
            "redis://ann:hun#ter2@host:7000",
            "redis://ann:hun/ter2@host",
            "redis://ann:1?ter2@host",
            // Not: empty host.
            "redis://:/ter2@host",
            "redis+sentinel://ann:hun#ter2@a,b/m",
        ] {
            let shown = Address::parse(url).unwrap_err().to_string();
            assert!(shown.contains("percent-encode") && !shown.contains("ter2"), "{url}: {shown}");
        }
        let shown = Address::parse("redis://ann:hunter2@host:port").unwrap_err().to_string();
        assert!(shown.contains("invalid port number"), "{shown}");
    }

    #[test]
    fn debug_is_redacted() {
        let shown = format!("{:?}", Address::parse("redis://ann:hunter2@host").unwrap());
        assert!(!shown.contains("hunter2") && !shown.contains("ann"), "{shown}");
    }
}
