//! TLS for the backends of a traced-cache: whom they trust, who they are, and what a handshake that failed means; and which of
//! the addresses of a name they speak to.
//!
//! ```no_run
//! use cache_tls::{Files, Peer, Tls};
//! use tokio::net::TcpStream;
//!
//! const REDIS: Peer = Peer {
//!     name: "Redis",
//!     scheme: "rediss",
//!     plain: "use its tls-port, or redis://",
//!     client_ca: "tls-ca-cert-file",
//!     versions: "tls-protocols",
//! };
//!
//! # #[tokio::main]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! // The system's authorities, and no certificate of our own.
//! let tls = Tls::new(REDIS, Files::default())?;
//! let stream = TcpStream::connect(("cache.internal", 6380)).await?;
//! let stream = tls.wrap(stream, "cache.internal").await?;
//! # drop(stream);
//! # Ok(())
//! # }
//! ```
//!
//! Certificates are always checked. Files are read when [`Tls`] is built and again for every connection, so that what has
//! been renewed on disk comes into use. TLS 1.2 and 1.3, by rustls on ring, with the feature `rustls`; without it,
//! [`Tls::new`] is an error, and nothing else of a backend has to know.

#![cfg_attr(docsrs, feature(doc_cfg))]

mod addresses;
mod error;
mod files;
mod names;
#[cfg_attr(not(feature = "rustls"), path = "no_tls.rs")]
mod tls;

pub use addresses::first_of;
pub use error::{Error, ErrorKind};
pub use files::Files;
pub use names::addresses_of;
pub use tls::{Tls, TlsStream};

/// What is spoken to: how messages name it and its settings.
#[derive(Clone, Copy, Debug)]
pub struct Peer {
    /// `Redis`
    pub name: &'static str,
    /// Of a URL that asks for TLS: `rediss`.
    pub scheme: &'static str,
    /// What to do where it does not speak TLS: `use its tls-port, or redis://`.
    pub plain: &'static str,
    /// Its own setting for whom it trusts: `tls-ca-cert-file`.
    pub client_ca: &'static str,
    /// Its own setting for the versions of TLS: `tls-protocols`.
    pub versions: &'static str,
}
