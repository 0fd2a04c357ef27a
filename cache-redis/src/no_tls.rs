//! In the place of TLS where it is not compiled in.

use std::error::Error as StdError;

use tokio::net::TcpStream;

use crate::{Error, settings::TlsFiles};

/// There is none.
#[derive(Clone, Debug)]
pub(crate) enum Tls {}

impl Tls {
    pub(crate) fn new(_: TlsFiles) -> Result<Self, Error> {
        Err(Error::config(
            "url",
            "rediss://***",
            "TLS is not compiled in: enable the feature `tls` of the crate",
        ))
    }

    pub(crate) async fn wrap(&self, stream: TcpStream, _: &str) -> Result<TcpStream, Error> {
        // Keeps the signature of the real one.
        std::future::ready(()).await;
        let _ = stream;
        match *self {}
    }

    pub(crate) fn explain(&self, _: &str, _: &(dyn StdError + 'static)) -> Option<Error> {
        match *self {}
    }
}
