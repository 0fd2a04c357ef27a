//! TLS: whom we trust, and who we are.

use std::{
    error::Error as StdError,
    fmt, io,
    path::Path,
    sync::{Arc, LazyLock},
};

use tokio::{net::TcpStream, task::spawn_blocking};
use tokio_rustls::{
    TlsConnector,
    rustls::{
        AlertDescription, CertificateError, ClientConfig, Error as TlsError, RootCertStore,
        crypto::ring,
        pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
    },
};

use crate::{
    Error, ErrorKind, Files, Peer,
    files::{is_text, is_url, shown},
};

/// A connection that is encrypted.
pub type TlsStream = tokio_rustls::client::TlsStream<TcpStream>;

/// Shakes hands. Cheap to clone.
#[derive(Clone)]
pub struct Tls {
    peer: Peer,
    files: Arc<Files>,
}

/// The system's authorities: read once, as that may take a while.
static SYSTEM: LazyLock<(RootCertStore, usize)> = LazyLock::new(|| {
    let found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    // Systems carry some that no verifier understands.
    let (added, _) = roots.add_parsable_certificates(found.certs);
    (roots, added)
});

impl Tls {
    /// Reads the files, to see that they can be.
    ///
    /// # Errors
    /// [`ErrorKind::Config`], naming field, value and fix.
    pub fn new(peer: Peer, files: Files) -> Result<Self, Error> {
        let tls = Self { peer, files: Arc::new(files) };
        if let Some(name) = &tls.files.server_name {
            server_name(name)?;
        }
        tls.config()?;
        Ok(tls)
    }

    fn config(&self) -> Result<ClientConfig, Error> {
        let files = &*self.files;
        let roots = match &files.ca {
            Some(path) => authorities(path)?,
            None if SYSTEM.1 == 0 => {
                let fix =
                    "this system has no certificates of authorities: name a PEM file with those to trust";
                return Err(Error::config("ca_file", "(none)", fix));
            }
            None => SYSTEM.0.clone(),
        };
        let provider = Arc::new(ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|_none| Error::new(ErrorKind::Tls, "no version of TLS is compiled in"))?
            .with_root_certificates(roots);
        let Some((certificate, key)) = &files.client else { return Ok(config.with_no_client_auth()) };
        let chain = certificates("client_certificate", certificate)?;
        // The cause may quote what it has read.
        let secret = PrivateKeyDer::from_pem_file(key)
            .map_err(|error| unreadable("client_key", key, &error, "a private key in PEM form"))?;
        config.with_client_auth_cert(chain, secret).map_err(|error| match error {
            TlsError::InvalidCertificate(_) => {
                let fix = "its first certificate cannot be read as one of X.509 version 3";
                Error::config("client_certificate", certificate.display(), fix)
            }
            TlsError::InconsistentKeys(_) => {
                Error::config("client_key", key.display(), "it does not belong to client_certificate")
            }
            _ => {
                let fix = "it is of a kind that is not known here: use RSA of 2048 bits or more, P-256, P-384 or Ed25519";
                Error::config("client_key", key.display(), fix)
            }
        })
    }

    /// Shakes hands with the server that `host` names. Bounds no time. Dropped midway, it closes the connection.
    ///
    /// # Errors
    /// Of any kind: what was in the files may have changed since they were read first.
    pub async fn wrap(&self, stream: TcpStream, host: &str) -> Result<TlsStream, Error> {
        let name = server_name(self.files.server_name.as_deref().unwrap_or(host))?;
        let files = self.clone();
        let config = spawn_blocking(move || files.config())
            .await
            .map_err(|_gone| Error::new(ErrorKind::NoRuntime, "the runtime ended while connecting"))??;
        TlsConnector::from(Arc::new(config)).connect(name, stream).await.map_err(|error| {
            self.explain(host, &error).unwrap_or_else(|| {
                let who = self.peer.name;
                let what =
                    format!("{who} at {host} hung up during the TLS handshake: is TLS on at that port?");
                Error::new(ErrorKind::Connect, what)
            })
        })
    }

    /// What TLS has against a connection, if it is that which broke it. The server's verdict on our certificate may come
    /// as late as with the first answer.
    pub fn explain(&self, host: &str, error: &(dyn StdError + 'static)) -> Option<Error> {
        let Peer { name: who, plain, client_ca, versions, .. } = self.peer;
        let name = self.named();
        let message = match cause(error)? {
            TlsError::InvalidCertificate(reason) => self.distrust(host, reason),
            TlsError::AlertReceived(
                AlertDescription::CertificateRequired | AlertDescription::AccessDenied,
            ) if self.files.client.is_none() => format!(
                "client_certificate = (none): {who} at {host} wants a client certificate: set client_certificate"
            ),
            // Up to TLS 1.2 it is all that is said of a certificate that is wanted, too.
            TlsError::AlertReceived(AlertDescription::HandshakeFailure) => {
                let ciphers = "allow it one of ECDHE with AES-GCM or ChaCha20";
                match &self.files.client {
                    None => format!(
                        "client_certificate = (none): {who} at {host} wants a client certificate, or has no cipher in \
                         common with us: set client_certificate, or {ciphers}"
                    ),
                    Some((own, _)) => format!(
                        "client_certificate = {}: {who} at {host} does not accept it, or has no cipher in common with us: \
                         set another, or {ciphers}",
                        own.display()
                    ),
                }
            }
            TlsError::AlertReceived(AlertDescription::UnrecognisedName) => format!(
                "tls_server_name = {name}: {who} at {host} goes by another name: set tls_server_name to one that its \
                 certificate is for, or connect by that name"
            ),
            TlsError::AlertReceived(
                alert @ (AlertDescription::UnknownCA
                | AlertDescription::BadCertificate
                | AlertDescription::UnsupportedCertificate
                | AlertDescription::CertificateExpired
                | AlertDescription::CertificateRevoked
                | AlertDescription::CertificateUnknown
                | AlertDescription::DecryptError
                | AlertDescription::AccessDenied),
            ) => {
                let own =
                    self.files.client.as_ref().map_or_else(String::new, |(own, _)| own.display().to_string());
                format!(
                    "client_certificate = {own}: {who} at {host} does not accept it ({alert:?}): use a valid one \
                     that the server's {client_ca} has signed"
                )
            }
            TlsError::InvalidMessage(_) => {
                format!("{who} at {host} does not speak TLS at that port: {plain}")
            }
            TlsError::AlertReceived(AlertDescription::ProtocolVersion) | TlsError::PeerIncompatible(_) => {
                format!("{who} at {host} speaks no TLS 1.2 or 1.3 in common with us: see its {versions}")
            }
            TlsError::AlertReceived(alert) => format!("{who} at {host} broke TLS off ({alert:?})"),
            _ => format!("TLS with {who} at {host} failed"),
        };
        Some(Error::new(ErrorKind::Tls, message))
    }

    /// The name that was asked for in the place of the host.
    fn named(&self) -> &str {
        self.files.server_name.as_deref().unwrap_or("(none)")
    }

    fn distrust(&self, host: &str, reason: &CertificateError) -> String {
        let who = self.peer.name;
        let name = self.named();
        let ca =
            self.files.ca.as_ref().map_or_else(|| "(none)".to_owned(), |path| path.display().to_string());
        match reason {
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => format!(
                "tls_server_name = {name}: the certificate of {who} at {host} is for another name: set \
                 tls_server_name to the one that it is for, or connect by that name"
            ),
            CertificateError::UnknownIssuer | CertificateError::BadSignature => format!(
                "ca_file = {ca}: the certificate of {who} at {host} is signed by no authority that is trusted here: \
                 set ca_file to the PEM file of the one that has signed it"
            ),
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => format!(
                "the certificate of {who} at {host} has expired: renew it at the server (or check this machine's clock)"
            ),
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => format!(
                "the certificate of {who} at {host} is not valid yet: check this machine's clock and the certificate"
            ),
            CertificateError::Revoked => format!("the certificate of {who} at {host} has been revoked"),
            _ => format!(
                "the certificate of {who} at {host} cannot be used: it is no usable server certificate"
            ),
        }
    }
}

/// Paths are no secrets; what is in the files is not shown.
impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.files.fmt(f)
    }
}

fn cause<'a>(error: &'a (dyn StdError + 'static)) -> Option<&'a TlsError> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(tls) = error.downcast_ref::<TlsError>() {
            return Some(tls);
        }
        // An I/O error's own source is that of what it wraps.
        let wrapped = error.downcast_ref::<io::Error>().or_else(|| {
            let shared = error.downcast_ref::<Arc<dyn StdError + Send + Sync>>()?;
            shared.downcast_ref()
        });
        if let Some(wrapped) = wrapped.and_then(io::Error::get_ref) {
            next = Some(wrapped);
            continue;
        }
        next = error.source();
    }
    None
}

fn server_name(name: &str) -> Result<ServerName<'static>, Error> {
    ServerName::try_from(name.to_owned()).map_err(|_invalid| {
        Error::config("tls_server_name", shown(Path::new(name)), "give a host name or an IP address")
    })
}

fn authorities(path: &Path) -> Result<RootCertStore, Error> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates("ca_file", path)? {
        roots.add(certificate).map_err(|_error| {
            Error::config("ca_file", path.display(), "it holds a certificate that cannot be read as one")
        })?;
    }
    Ok(roots)
}

fn certificates(field: &str, path: &Path) -> Result<Vec<CertificateDer<'static>>, Error> {
    let what = "certificates in PEM form";
    let all: Vec<_> = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect)
        .map_err(|error| unreadable(field, path, &error, what))?;
    if all.is_empty() {
        return Err(Error::config(field, path.display(), format!("it holds none: give a file of {what}")));
    }
    Ok(all)
}

fn unreadable(
    field: &str,
    path: &Path,
    error: &tokio_rustls::rustls::pki_types::pem::Error,
    what: &str,
) -> Error {
    use tokio_rustls::rustls::pki_types::pem::Error as PemError;
    match error {
        PemError::Io(_) if is_text(path) => {
            let fix = "it is the text of a key or certificate: write the path of its file";
            Error::config(field, shown(path), fix)
        }
        PemError::Io(_) if is_url(path) => {
            Error::config(field, shown(path), format!("it is a URL: give the path of a file of {what}"))
        }
        PemError::Io(error) => Error::config(
            field,
            path.display(),
            format!("cannot be read ({}): give a file of {what}", error.kind()),
        ),
        _ => Error::config(field, path.display(), format!("cannot be understood: give a file of {what}")),
    }
}
