//! From an endpoint to a connection that takes commands: the socket, TLS, the login.

use std::{io, net::SocketAddr, time::Duration};

use cache_tls::{Peer, Tls, TlsStream, addresses_of, first_of};
use tokio::net::TcpStream;
use tokio_util::either::Either;

use crate::{
    ErrorKind,
    endpoint::Endpoint,
    error::Fault,
    login::{self, Login},
};

pub(crate) const MEMCACHED: Peer = Peer {
    name: "memcached",
    scheme: "memcacheds",
    plain: "start it with -Z, or use memcached://",
    client_ca: "ssl_ca_cert",
    versions: "ssl_min_version",
};

/// How a server answers to what is no TLS, if it wants that and does not just hang up (RFC 8446, section 5.1).
const ALERT: u8 = 21;

pub(crate) type Stream = Either<TcpStream, Box<TlsStream>>;

/// How a server is reached.
#[derive(Clone, Debug)]
pub(crate) struct Dial {
    pub(crate) endpoint: Endpoint,
    pub(crate) tls: Option<Tls>,
    pub(crate) login: Option<Login>,
}

fn broken(error: io::Error) -> Fault {
    Fault::caused(ErrorKind::Connect, "no connection", error)
}

impl Dial {
    /// Connects. The caller gives it so much time.
    pub(crate) async fn connect(&self, limit: Duration) -> Result<Stream, Fault> {
        let Endpoint { host, port, .. } = &self.endpoint;
        self.connect_any(addresses_of(host, *port).await.map_err(broken)?, limit).await
    }

    /// Connects to one of the addresses of the host.
    async fn connect_any(&self, addresses: Vec<SocketAddr>, limit: Duration) -> Result<Stream, Fault> {
        let is_there = |fault: &Fault| fault.kind != ErrorKind::Connect;
        let connected = first_of(addresses, limit, |address| self.connect_to(address), is_there).await;
        connected.unwrap_or_else(|| Err(broken(io::Error::other("the name has no address"))))
    }

    async fn connect_to(&self, address: SocketAddr) -> Result<Stream, Fault> {
        let stream = TcpStream::connect(address).await.map_err(broken)?;
        // Requests are small and each caller waits for one: Nagle's algorithm only adds to their latency.
        stream.set_nodelay(true).map_err(broken)?;
        let Some(tls) = &self.tls else {
            let mut stream = stream;
            if let Some(login) = &self.login {
                login.give(&mut stream).await.map_err(|fault| match fault.kind {
                    ErrorKind::Connect => self.unheard(None, fault),
                    _ => fault,
                })?;
            }
            return Ok(Either::Left(stream));
        };
        let mut stream = tls.wrap(stream, &self.endpoint.host).await?;
        let greeted = match &self.login {
            Some(login) => login.give(&mut stream).await,
            // What the server has against our certificate comes with its first answer, in TLS 1.3.
            None => login::greet(&mut stream).await,
        };
        match greeted {
            Ok(()) => Ok(Either::Right(Box::new(stream))),
            Err(fault) => Err(self.explained(fault)),
        }
    }

    /// A connection that was lost, and on which this was the `first` to be heard: where that is nothing, or an alert, with
    /// what to do if the server wants TLS.
    pub(crate) fn unheard(&self, first: Option<u8>, fault: Fault) -> Fault {
        if self.tls.is_some() || first.is_some_and(|byte| byte != ALERT) {
            return fault;
        }
        let what = "it hung up without an answer; if it wants TLS, begin its url with `memcacheds`";
        Fault { kind: ErrorKind::Connect, what: what.into(), ..fault }
    }

    /// A connection that broke, with what TLS has against it, if that is why.
    fn explained(&self, fault: Fault) -> Fault {
        let why = |tls: &Tls| tls.explain(&self.endpoint.host, fault.source.as_ref()?);
        self.tls.as_ref().and_then(why).map_or(fault, Fault::from)
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use test_servers::MemcachedServer;

    use super::*;

    #[tokio::test]
    async fn of_the_addresses_of_a_name_one_that_answers_is_enough() {
        let Some(server) = MemcachedServer::start() else { return };
        let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let endpoint = Endpoint { tls: false, host: "name".to_owned(), port: 1 };
        let dial = Dial { endpoint, tls: None, login: None };
        let there = SocketAddr::from(([127, 0, 0, 1], server.port()));
        let connected = async |addresses: &[SocketAddr]| {
            dial.connect_any(addresses.to_vec(), Duration::from_secs(20)).await
        };
        assert!(connected(&[closed, there]).await.is_ok());
        assert_eq!(connected(&[closed, closed]).await.unwrap_err().kind, ErrorKind::Connect);
        assert_eq!(connected(&[]).await.unwrap_err().kind, ErrorKind::Connect);
    }
}
