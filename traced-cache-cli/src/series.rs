//! Metrics as Prometheus writes them: reading the text, and getting it from a running service.

use std::{collections::BTreeMap, time::Duration};

use traced_cache::with_causes;

use crate::end::Failure;

/// What a service may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// Most bytes of an answer. A name takes some fifty kilobytes.
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

/// All that can be read. Comments and what is no series are passed over.
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
    // A time of its own may follow.
    let value = rest.split_ascii_whitespace().next()?.parse().ok()?;
    (!name.is_empty()).then_some(Series { name, labels, value })
}

/// `name="value",`: also what follows it.
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

/// Where a service tells its metrics.
#[derive(Clone, Debug)]
pub(crate) struct Address(String);

impl Address {
    /// `/metrics` where the URL has no path.
    pub(crate) fn new(url: &str) -> Result<Self, Failure> {
        let fix = "write http://host:port, or the whole URL of the metrics";
        let wrong = |fix| Err(Failure::wrong("--url", shown(url), fix));
        let Some((scheme @ ("http" | "https"), rest)) = url.split_once("://") else { return wrong(fix) };
        if scheme == "https" && cfg!(not(feature = "tls")) {
            return wrong("this command was built without TLS; add its feature `tls`");
        }
        match rest.split_once('/') {
            Some(("", _)) => wrong(fix),
            Some((host, "")) => Ok(Self(format!("{scheme}://{host}/metrics"))),
            Some(_) => Ok(Self(url.to_owned())),
            None if rest.is_empty() || rest.contains(['?', '#']) => wrong(fix),
            None => Ok(Self(format!("{url}/metrics"))),
        }
    }

    /// Without user and password.
    pub(crate) fn shown(&self) -> String {
        shown(&self.0)
    }

    /// Asks once. Does not block the threads of the caller.
    pub(crate) async fn text(&self) -> Result<String, Failure> {
        let url = self.0.clone();
        let asked = tokio::task::spawn_blocking(move || {
            let agent: ureq::Agent =
                ureq::Agent::config_builder().timeout_global(Some(PATIENCE)).build().into();
            agent.get(&url).call()?.body_mut().with_config().limit(ANSWER_MAX).read_to_string()
        });
        let failed = |why: String| Failure::failed(format!("--url = {}: {why}", self.shown()));
        match asked.await {
            Ok(Ok(text)) => Ok(text),
            Ok(Err(error)) => Err(failed(format!("no metrics from there: {}", with_causes(&error)))),
            Err(ended) => Err(failed(ended.to_string())),
        }
    }
}

fn shown(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else { return "(no URL)".to_owned() };
    let host_end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (host, path) = rest.split_at(host_end);
    let host = host.rsplit_once('@').map_or(host, |(_, host)| host);
    format!("{scheme}://{host}{}", path.split(['?', '#']).next().unwrap_or_default())
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
    fn an_address_needs_no_path_and_shows_no_password() {
        let of = |url: &str| Address::new(url).unwrap().0;
        assert_eq!(of("http://host:8080"), "http://host:8080/metrics");
        assert_eq!(of("http://host/"), "http://host/metrics");
        assert_eq!(of("http://host/internal/prometheus"), "http://host/internal/prometheus");
        assert_eq!(Address::new("http://u:p@host/m?token=x").unwrap().shown(), "http://host/m");
        for wrong in ["host:8080", "ftp://host", "http://", "http:///x", "http://host?x"] {
            assert!(Address::new(wrong).is_err(), "{wrong}");
        }
    }
}
