//! In the place of TLS where it is not compiled in.

use std::error::Error as StdError;

use tokio::net::TcpStream;

use crate::{Error, Files, Peer};

/// Never made.
pub type TlsStream = TcpStream;

/// There is none.
#[derive(Clone, Debug)]
pub enum Tls {}

impl Tls {
    /// # Errors
    /// Always: [`ErrorKind::Config`](crate::ErrorKind::Config).
    pub fn new(peer: Peer, _: Files) -> Result<Self, Error> {
        let value = format_args!("{}://***", peer.scheme);
        Err(Error::config("url", value, "TLS is not compiled in: enable the feature `tls` of the crate"))
    }

    /// Not reached.
    ///
    /// # Errors
    /// None.
    pub async fn wrap(&self, stream: TcpStream, _: &str) -> Result<TlsStream, Error> {
        // Keeps the signature of the real one.
        std::future::ready(()).await;
        let _ = stream;
        match *self {}
    }

    /// Not reached.
    pub fn explain(&self, _: &str, _: &(dyn StdError + 'static)) -> Option<Error> {
        match *self {}
    }
}
