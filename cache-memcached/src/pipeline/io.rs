//! The two ends of a connection, with and without TLS.

use std::{
    io,
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::BytesMut;
use cache_tls::TlsStream;
use tokio::{
    io::{AsyncReadExt, AsyncWrite},
    net::tcp::{OwnedReadHalf, OwnedWriteHalf},
};
use tokio_util::either::Either;

use super::records::Records;
use crate::dial::Stream;

pub(super) enum Io {
    /// Callers write, too, where nothing is under way.
    Plain { reader: OwnedReadHalf, writer: Arc<OwnedWriteHalf> },
    /// What is written and what is read go through one state of the encryption, so the task alone does both.
    Tls { stream: Box<TlsStream>, records: Records },
}

impl Io {
    pub(super) fn new(stream: Stream) -> Self {
        match stream {
            Either::Left(stream) => {
                let (reader, writer) = stream.into_split();
                Self::Plain { reader, writer: Arc::new(writer) }
            }
            Either::Right(stream) => Self::Tls { stream, records: Records::default() },
        }
    }

    /// For callers who write.
    pub(super) fn writer(&self) -> Option<Arc<OwnedWriteHalf>> {
        match self {
            Self::Plain { writer, .. } => Some(Arc::clone(writer)),
            Self::Tls { .. } => None,
        }
    }

    pub(super) fn poll_read(&mut self, room: &mut BytesMut, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        match self {
            // Not `try_read`: this one remembers that a short read has emptied the socket.
            Self::Plain { reader, .. } => pin!(reader.read_buf(room)).poll(cx),
            Self::Tls { stream, .. } => pin!(stream.read_buf(room)).poll(cx),
        }
    }

    /// Takes some of the requests, which are whole but for what has been taken of the first.
    pub(super) fn poll_write(&mut self, requests: &[u8], cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        match self {
            Self::Plain { writer, .. } => loop {
                match writer.try_write(requests) {
                    Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                        ready!(writer.as_ref().as_ref().poll_write_ready(cx))?;
                    }
                    Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                    done => return Poll::Ready(done),
                }
            },
            Self::Tls { stream, records } => {
                // With nothing before it, a record is taken whole.
                ready!(Pin::new(&mut *stream).poll_flush(cx))?;
                let length = records.next(requests);
                let record = requests.get(..length).unwrap_or(requests);
                let taken = ready!(Pin::new(stream).poll_write(cx, record))?;
                records.taken(taken, requests);
                Poll::Ready(Ok(taken))
            }
        }
    }

    /// Sends what TLS has taken and not sent. The next poll goes on with it.
    pub(super) fn flush(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        match self {
            Self::Plain { .. } => Ok(()),
            Self::Tls { stream, .. } => match Pin::new(stream).poll_flush(cx) {
                Poll::Ready(done) => done,
                Poll::Pending => Ok(()),
            },
        }
    }
}

#[cfg(all(test, feature = "tls"))]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use std::{future::poll_fn, net::Ipv4Addr};

    use cache_tls::{Files, Tls};
    use test_servers::Authority;
    use tokio::net::{TcpListener, TcpStream};
    use tokio_rustls::{
        TlsAcceptor,
        rustls::{
            ServerConfig,
            crypto::ring,
            pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
        },
    };

    use super::*;
    use crate::dial::MEMCACHED;

    fn acceptor(authority: &Authority) -> TlsAcceptor {
        let own = authority.issue(&["127.0.0.1"]);
        let chain = CertificateDer::pem_file_iter(own.certificate).unwrap().map(Result::unwrap).collect();
        let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(chain, PrivateKeyDer::from_pem_file(own.key).unwrap())
            .unwrap();
        Arc::new(config).into()
    }

    #[tokio::test]
    async fn what_a_full_socket_has_not_taken_is_sent_when_it_has_room() {
        let authority = Authority::new();
        let acceptor = acceptor(&authority);
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let server = tokio::spawn(async move { acceptor.accept(listener.accept().await.unwrap().0).await });
        let tls = Tls::new(MEMCACHED, Files { ca: Some(authority.ca_file()), ..Files::default() }).unwrap();
        let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.unwrap();
        let mut io = Io::new(Either::Right(Box::new(tls.wrap(stream, "127.0.0.1").await.unwrap())));
        let mut server = server.await.unwrap().unwrap();

        // Nobody reads, so at some time no more is taken; of what was, TLS keeps the end back.
        let mut taken = 0;
        let full = poll_fn(|cx| {
            Poll::Ready(loop {
                match io.poll_write(&[b'v'; 1 << 16], cx) {
                    Poll::Ready(written) => taken += written?,
                    Poll::Pending => break Ok::<(), io::Error>(()),
                }
            })
        });
        full.await.unwrap();
        // It all arrives, without a further write.
        let sent = poll_fn(|cx| match io.flush(cx) {
            Ok(()) => Poll::<io::Result<()>>::Pending,
            Err(e) => Poll::Ready(Err(e)),
        });
        let arrived = async {
            let mut arrived = 0;
            let mut room = vec![0; 1 << 16];
            while arrived < taken {
                arrived += server.read(&mut room).await.unwrap();
            }
        };
        tokio::select! {
            broken = sent => panic!("{broken:?}"),
            () = arrived => {}
            () = tokio::time::sleep(std::time::Duration::from_secs(20)) => panic!("a part is missing"),
        }
    }
}
