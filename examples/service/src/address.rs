//! Where tools find the service.

use reqwest::Url;

/// What `--url` says.
#[derive(Clone, Debug)]
pub struct Address {
    url: Url,
    shown: String,
}

impl Address {
    /// # Errors
    /// In words: it is no URL of a service. No password is in them.
    pub fn new(text: &str) -> Result<Self, String> {
        let shown = shown(text);
        let url = Url::parse(text).ok().filter(|url| url.scheme() == "http" && url.has_host());
        // What is shown as no URL may be read as one that has part of a password for its port or its path.
        match url.filter(|_| shown.starts_with("http://")) {
            Some(url) => Ok(Self { url, shown }),
            None => Err(format!("--url {shown}: use http://host:port")),
        }
    }

    /// The URL of a path there.
    pub fn at(&self, path: &str) -> Url {
        let mut url = self.url.clone();
        url.set_path(path);
        url
    }

    /// Without user, password and query.
    pub fn shown(&self) -> &str {
        &self.shown
    }
}

fn shown(text: &str) -> String {
    let Some((scheme, rest)) = text.split_once("://").filter(|(scheme, _)| !scheme.contains('@')) else {
        return "(no URL)".to_owned();
    };
    let (host, path) = rest.split_at(rest.find(['/', '\\', '?', '#']).unwrap_or(rest.len()));
    if path.contains('@') {
        // What looks like a path may be the rest of a password.
        return "***".to_owned();
    }
    let host = host.rsplit_once('@').map_or(host, |(_, host)| host);
    let path = path.split(['?', '#']).next().unwrap_or_default();
    format!("{}://{host}{path}", scheme.to_ascii_lowercase())
}
