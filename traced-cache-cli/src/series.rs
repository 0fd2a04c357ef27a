//! Metrics as Prometheus writes them: reading the text, and getting it from a running service.

use std::{collections::BTreeMap, time::Duration};

use base64::{Engine, prelude::BASE64_STANDARD};
use percent_encoding::percent_decode_str;
use traced_cache::with_causes;
use url::{Host, Url};

use crate::end::Failure;

/// How long a service may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// Most bytes of an answer. A cache takes some fifty kilobytes.
const ANSWER_MAX: u64 = 64 << 20;

/// One line: a name, its labels, a number.
#[derive(Debug, PartialEq)]
pub(crate) struct Series<'a> {
    pub(crate) name: &'a str,
    pub(crate) labels: BTreeMap<&'a str, String>,
    pub(crate) value: f64,
}

impl Series<'_> {
    pub(crate) fn label(&self, name: &str) -> &str {
        self.labels.get(name).map_or("", String::as_str)
    }
}

/// All series of a text. Skips comments, and lines that are no series.
pub(crate) fn read(text: &str) -> impl Iterator<Item = Series<'_>> {
    text.lines().filter_map(|line| series(line.trim()))
}

fn series(line: &str) -> Option<Series<'_>> {
    let end = line.find(|c: char| !(c.is_ascii_alphanumeric() || "_:".contains(c)))?;
    let (name, mut rest) = line.split_at(end);
    let mut labels = BTreeMap::new();
    if let Some(inside) = rest.strip_prefix('{') {
        rest = inside;
        while let Some((label, value, after)) = label(rest) {
            labels.insert(label, value);
            rest = after;
        }
        rest = rest.trim_start().strip_prefix('}')?;
    }
    // A timestamp may follow.
    let value = rest.split_ascii_whitespace().next()?.parse().ok()?;
    (!name.is_empty()).then_some(Series { name, labels, value })
}

/// Reads one label, `name="value",`, and returns the rest as well.
fn label(text: &str) -> Option<(&str, String, &str)> {
    let (name, rest) = text.split_once("=\"")?;
    let mut value = String::new();
    let mut escaped = false;
    for (at, c) in rest.char_indices() {
        match c {
            _ if escaped => {
                value.push(if c == 'n' { '\n' } else { c });
                escaped = false;
            }
            '\\' => escaped = true,
            '"' => {
                let after = rest.get(at + 1..)?.trim_start();
                let name = name.trim();
                return (!name.contains(['}', '"']))
                    .then(|| (name, value, after.strip_prefix(',').unwrap_or(after)));
            }
            _ => value.push(c),
        }
    }
    None
}

/// Where a service serves its metrics.
#[derive(Clone)]
pub(crate) struct Address {
    /// The URL without user and password.
    url: Url,
    /// User and password, as the header has them.
    login: Option<String>,
}

impl Address {
    /// `/metrics` where the URL has no path.
    pub(crate) fn new(text: &str) -> Result<Self, Failure> {
        const FIX: &str = "write http://host:port, or the whole URL of the metrics";
        // What stands before a second scheme may be a user and a password.
        let Some((scheme, rest)) = text.split_once("://").filter(|(scheme, _)| !scheme.contains('@')) else {
            return Err(Failure::wrong("--url", "(no URL)", FIX));
        };
        let (host, path) = rest.split_at(rest.find(['/', '\\', '?', '#']).unwrap_or(rest.len()));
        if path.contains('@') {
            // What looks like a path may be the rest of a password.
            let fix = "percent-encode / ? # @ (%2F %3F %23 %40) but for those that part user, host and path";
            return Err(Failure::wrong("--url", "***", fix));
        }
        let wrong = |fix: &str| {
            let host = host.rsplit_once('@').map_or(host, |(_, host)| host);
            let path = path.split(['?', '#']).next().unwrap_or_default();
            Failure::wrong("--url", format_args!("{scheme}://{host}{path}"), fix)
        };
        let is_path = path.is_empty() || path.starts_with('/');
        if !matches!(scheme, "http" | "https") || host.is_empty() || !is_path {
            return Err(wrong(FIX));
        }
        if scheme == "https" && cfg!(not(feature = "tls")) {
            return Err(wrong("this command was built without TLS; add its feature `tls`"));
        }
        let mut url = Url::parse(text).map_err(|error| wrong(&format!("{error}; {FIX}")))?;
        let login = login(&url);
        let _ = url.set_username("");
        let _ = url.set_password(None);
        if matches!(path, "" | "/") {
            url.set_path("/metrics");
        }
        Ok(Self { url, login })
    }

    pub(crate) fn shown(&self) -> String {
        let mut url = self.url.clone();
        url.set_query(None);
        url.set_fragment(None);
        url.into()
    }

    /// Asks once, on a thread for blocking calls.
    pub(crate) async fn text(&self) -> Result<String, Failure> {
        let Self { url, login } = self.clone();
        let asked = tokio::task::spawn_blocking(move || {
            let mut config = ureq::Agent::config_builder().timeout_global(Some(PATIENCE));
            if is_here(&url) {
                config = config.proxy(None);
            }
            let agent: ureq::Agent = config.build().into();
            let mut request = agent.get(url.as_str());
            if let Some(login) = login {
                request = request.header("Authorization", login);
            }
            request.call()?.body_mut().with_config().limit(ANSWER_MAX).read_to_string()
        });
        let failed = |why: String| Failure::failed(format!("--url = {}: {why}", self.shown()));
        match asked.await {
            Ok(Ok(text)) => Ok(text),
            Ok(Err(error)) => Err(failed(format!("no metrics from there: {}", why(&error)))),
            Err(ended) => Err(failed(ended.to_string())),
        }
    }
}

/// Errors in words that say what to check: the client's own are about its internals.
fn why(error: &ureq::Error) -> String {
    match error {
        ureq::Error::Timeout(_) => {
            format!("no answer within {} seconds; is that a service?", PATIENCE.as_secs())
        }
        ureq::Error::Io(error) => format!("{error}; is the service running, and on that port?"),
        error => with_causes(error),
    }
}

/// Whether a URL means this machine. A proxy from the environment would take that to mean itself, so it is not used.
fn is_here(url: &Url) -> bool {
    match url.host() {
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        Some(Host::Domain(name)) => name == "localhost",
        None => false,
    }
}

/// Percent-decodes a user or a password, which the client does not do.
fn login(url: &Url) -> Option<String> {
    let (user, password) = (url.username(), url.password().unwrap_or_default());
    if user.is_empty() && password.is_empty() {
        return None;
    }
    let decoded = |part| percent_decode_str(part).collect::<Vec<u8>>();
    let both = [decoded(user), decoded(password)].join(&b':');
    Some(format!("Basic {}", BASE64_STANDARD.encode(both)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_every_form_are_read() {
        let text = "# HELP x y\n# TYPE x counter\nx 1\nx_total{a=\"1\",b=\"say \\\"hi\\\", {you}\\\\\\n\"} 2.5 1700000000\n\
            up{} NaN\nbroken{a=\"1\nhuge +Inf\r\nlast{a=\"}\",} 3\n nonsense\n{a=\"1\"} 4\n";
        let all: Vec<_> = read(text).collect();
        let names: Vec<_> = all.iter().map(|series| series.name).collect();
        assert_eq!(names, ["x", "x_total", "up", "huge", "last"]);
        assert_eq!(all[1].label("b"), "say \"hi\", {you}\\\n");
        assert_eq!((all[1].label("a"), all[1].label("c"), all[1].value), ("1", "", 2.5));
        assert!(all[2].value.is_nan() && all[3].value.is_infinite());
        assert_eq!((all[4].label("a"), all[4].value), ("}", 3.0));
    }

    #[test]
    fn this_machine_is_known_by_all_its_names() {
        let is_here = |url: &str| is_here(&Url::parse(url).unwrap());
        for here in ["http://localhost:1", "http://LOCALHOST", "http://127.9.9.9:1", "https://[::1]/m"] {
            assert!(is_here(here), "{here}");
        }
        for other in ["http://localhost.example", "http://10.0.0.1", "http://[::2]", "http://0.0.0.0"] {
            assert!(!is_here(other), "{other}");
        }
    }

    #[test]
    fn an_address_needs_no_path_and_shows_no_password() {
        let of = |url: &str| String::from(Address::new(url).unwrap().url);
        assert_eq!(of("http://host:8080"), "http://host:8080/metrics");
        assert_eq!(of("http://host/"), "http://host/metrics");
        assert_eq!(of("http://host/internal/prometheus"), "http://host/internal/prometheus");
        assert_eq!(of("http://[::1]:8080/"), "http://[::1]:8080/metrics");
        let address = Address::new("http://u:p%3A@host/m?token=x").unwrap();
        assert_eq!(
            (address.shown().as_str(), address.login.as_deref()),
            ("http://host/m", Some("Basic dTpwOg=="))
        );
        assert_eq!(Address::new("http://host").unwrap().login, None);
        for wrong in [
            "host:8080",
            "ftp://host",
            "http://",
            "http:///x",
            "http://host?x",
            "http://u:p@",
            "http://host:65536",
            "http://ho st",
            "http://[::1",
        ] {
            assert!(Address::new(wrong).is_err(), "{wrong}");
        }
    }
}
