//! What TLS is made from.

use std::path::PathBuf;

use crate::{Error, Peer};

/// Where certificates are, and whose the server's must be. Paths are no secrets.
#[derive(Clone, Debug, Default)]
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
        let ca = self.ca.as_ref().map(|path| ("ca_file", path.display().to_string()));
        let client = self.client.as_ref().map(|(path, _)| ("client_certificate", path.display().to_string()));
        let name = self.server_name.clone().map(|name| ("tls_server_name", name));
        match ca.or(client).or(name) {
            Some((field, value)) => {
                let fix = format!("it is for TLS: use a {}:// URL, or leave it out", peer.scheme);
                Err(Error::config(field, value, fix))
            }
            None => Ok(()),
        }
    }
}
