//! What TLS is made from.

use std::{
    fmt,
    path::{Path, PathBuf},
};

use crate::{Error, Peer};

/// Where certificates are, and whose the server's must be. Paths are no secrets.
#[derive(Clone, Default)]
pub struct Files {
    /// PEM file of the authorities that may vouch for the server. `None`: the system's.
    pub ca: Option<PathBuf>,
    /// PEM files of a client certificate with its chain, and of its key.
    pub client: Option<(PathBuf, PathBuf)>,
    /// The name that the server's certificate must be for. `None`: the host that is connected to.
    pub server_name: Option<String>,
}

impl Files {
    /// Where there is no TLS, nothing may be set: it would have no effect.
    ///
    /// # Errors
    /// [`ErrorKind::Config`](crate::ErrorKind::Config), naming the field that is set.
    pub fn refuse(&self, peer: Peer) -> Result<(), Error> {
        let ca = self.ca.as_ref().map(|path| ("ca_file", shown(path)));
        let client = self.client.as_ref().map(|(path, _)| ("client_certificate", shown(path)));
        let name = self.server_name.as_ref().map(|name| ("tls_server_name", shown(Path::new(name))));
        match ca.or(client).or(name) {
            Some((field, value)) => {
                let fix = format!("it is for TLS: use a {}:// URL, or leave it out", peer.scheme);
                Err(Error::config(field, value, fix))
            }
            None => Ok(()),
        }
    }
}

impl fmt::Debug for Files {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Files")
            .field("ca", &self.ca.as_deref().map(shown))
            .field("client", &self.client.as_ref().map(|(own, key)| (shown(own), shown(key))))
            .field("server_name", &self.server_name.as_ref().map(|name| shown(Path::new(name))))
            .finish()
    }
}

/// For people: they may have written a key itself where the path of its file belongs, or the server's URL, with a password.
pub(crate) fn shown(path: &Path) -> String {
    if is_text(path) || is_url(path) { "***".to_owned() } else { path.display().to_string() }
}

pub(crate) fn is_url(path: &Path) -> bool {
    path.to_string_lossy().contains("://")
}

/// Whether it is what belongs into the file.
pub(crate) fn is_text(path: &Path) -> bool {
    let path = path.to_string_lossy();
    path.contains(['\n', '\r']) || path.contains("-----BEGIN")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_key_or_url_in_the_place_of_a_path_nothing_shows() {
        let url = "rediss://:hunter2@cache.internal";
        for text in ["/etc/-----BEGIN PRIVATE KEY-----\\nhunter2", "hunter2\n", "hunter2\r", url] {
            let key = PathBuf::from(text);
            let files = Files {
                ca: Some(key.clone()),
                client: Some((key.clone(), key)),
                server_name: Some(text.to_owned()),
            };
            assert!(!format!("{files:?}").contains("hunter2"), "{files:?}");
        }
        assert_eq!(shown(Path::new("/etc/own-key.pem")), "/etc/own-key.pem");
    }
}
