//! Where a server is, from its URL.

use std::fmt;

use url::Url;

use crate::{Error, ErrorKind};

const DEFAULT_PORT: u16 = 11211;

/// One server. Its `Display` form, `host:port`, is also the name that routing hashes.
#[derive(Clone, Debug)]
pub(crate) struct Endpoint {
    /// Whether it is spoken to over TLS.
    pub(crate) tls: bool,
    /// Lower case, an IPv6 address without brackets.
    pub(crate) host: String,
    pub(crate) port: u16,
}

impl Endpoint {
    /// Parses `memcached://host[:port]`, or `memcacheds` for TLS. Messages show the URL without user and password.
    pub(crate) fn parse(field: &str, text: &str) -> Result<Self, Error> {
        let bad = |why: &str| {
            let message = format!("{field} = {:?}: {why}; write memcached://host:port", redacted(text));
            Error::new(ErrorKind::Config, message)
        };
        // Not one in a password, of which there is more to say.
        if text.rsplit('@').next().is_some_and(|hosts| hosts.contains(',')) {
            return Err(bad(
                "one server a URL; of several each has its own: `server` again, or `servers` in a file",
            ));
        }
        let url = match Url::parse(text) {
            Ok(url) => url,
            // The parser's reason never repeats the input.
            Err(reason) => return Err(bad(&reason.to_string())),
        };
        let tls = match url.scheme() {
            "memcached" => false,
            "memcacheds" => true,
            _ => return Err(bad("the scheme is not memcached, nor memcacheds for TLS")),
        };
        if !url.username().is_empty() || url.password().is_some() {
            return Err(bad(
                "user and password stand apart: `login`, or `username` and `password` in a file",
            ));
        }
        if !matches!(url.path(), "" | "/") || url.query().is_some() || url.fragment().is_some() {
            return Err(bad(
                "path, query and fragment have no meaning here: each setting has a field of its own",
            ));
        }
        let host = url.host_str().unwrap_or_default().trim_start_matches('[').trim_end_matches(']');
        let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_' | b':');
        if host.is_empty() || !host.bytes().all(plain) {
            return Err(bad("the host is missing or not a name or address"));
        }
        let port = url.port().unwrap_or(DEFAULT_PORT);
        if port == 0 {
            return Err(bad("the port is 0"));
        }
        Ok(Self { tls, host: host.to_ascii_lowercase(), port })
    }
}

/// The same server, however it is spoken to.
impl PartialEq for Endpoint {
    fn eq(&self, other: &Self) -> bool {
        (&self.host, self.port) == (&other.host, other.port)
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

/// The URL with everything hidden that may be a credential, also where it cannot be parsed.
fn redacted(text: &str) -> String {
    let (scheme, rest) = text.split_once("://").unwrap_or(("", text));
    let rest = match rest.rsplit_once('@') {
        Some((_, host)) => format!("***@{host}"),
        None => rest.to_owned(),
    };
    let rest = rest.split(['?', '#']).next().unwrap_or_default();
    // What stands where a port belongs and is none may be a password whose host is missing.
    let rest = match rest.trim_end_matches('/').rsplit_once(':') {
        Some((_, port)) if !port.is_empty() && port.parse::<u32>().is_err() => "***",
        _ => rest,
    };
    if scheme.is_empty() { rest.to_owned() } else { format!("{scheme}://{rest}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> String {
        Endpoint::parse("server", text).unwrap().to_string()
    }

    #[test]
    fn good_urls() {
        assert_eq!(parsed("memcached://127.0.0.1:11212"), "127.0.0.1:11212");
        assert_eq!(parsed("memcached://Cache-1.Example.com"), "cache-1.example.com:11211");
        assert_eq!(parsed("memcached://[::1]:11212/"), "[::1]:11212");
        assert_eq!(parsed("memcacheds://host"), "host:11211");
    }

    #[test]
    fn bad_urls_name_field_value_and_fix() {
        for text in [
            "",
            "127.0.0.1:11211",
            "redis://127.0.0.1",
            "memcachedss://127.0.0.1",
            "memcached://",
            "memcached://:11211",
            "memcached://host:0",
            "memcached://host:99999",
            "memcached://host:port",
            "memcached://a b:1",
            "memcached://host/3",
            "memcached://host?timeout=1",
            "memcached:///run/memcached.sock",
            "memcached://host:1,host:2",
        ] {
            let error = Endpoint::parse("server", text).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Config, "{text}");
            assert!(error.to_string().starts_with("server = "), "{error}");
            assert!(error.to_string().ends_with("write memcached://host:port"), "{error}");
        }
    }

    #[test]
    fn a_list_in_one_url_is_told_where_lists_go() {
        for text in ["memcached://host:1,host:2", "memcached://host,memcached://other", "host:1,host:2"] {
            let error = Endpoint::parse("server", text).unwrap_err().to_string();
            assert!(error.contains("`servers` in a file"), "{error}");
        }
    }

    #[test]
    fn k_no_credential_in_messages() {
        for text in [
            "memcached://user:hunter2@host:1",
            "memcached://user:hunter2@host:port",
            "memcached://user:hunter2",
            "memcached://user:hunter2/",
            "memcached://user:hunter2/1",
            "user:hunter2",
            "x://h?hunter2",
        ] {
            let error = Endpoint::parse("server", text).unwrap_err();
            assert!(!format!("{error} {error:?}").contains("hunter2"), "{error}");
        }
    }
}
