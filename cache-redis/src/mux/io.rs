//! The two ends of a connection: TCP, a Unix socket, TLS.

use std::{
    io,
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::BytesMut;
use cache_tls::TlsStream;
#[cfg(unix)]
use tokio::net::{UnixStream, unix};
use tokio::{
    io::{AsyncReadExt, AsyncWrite},
    net::{TcpStream, tcp},
};

/// What has been connected.
pub(crate) enum Stream {
    Tcp(TcpStream),
    #[cfg(unix)]
    Unix(UnixStream),
    Tls(Box<TlsStream>),
}

pub(super) enum Io {
    /// Callers write, too, where nothing is under way.
    Plain { reader: Reader, writer: Writer },
    /// What is written and what is read go through one state of the encryption, so the task alone does both.
    Tls(Box<TlsStream>),
}

pub(super) enum Reader {
    Tcp(tcp::OwnedReadHalf),
    #[cfg(unix)]
    Unix(unix::OwnedReadHalf),
}

#[derive(Clone)]
pub(super) enum Writer {
    Tcp(Arc<tcp::OwnedWriteHalf>),
    #[cfg(unix)]
    Unix(Arc<unix::OwnedWriteHalf>),
}

impl Writer {
    /// Takes some, or would block.
    pub(super) fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(writer) => writer.try_write(bytes),
            #[cfg(unix)]
            Self::Unix(writer) => writer.try_write(bytes),
        }
    }

    fn poll_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Tcp(writer) => writer.as_ref().as_ref().poll_write_ready(cx),
            #[cfg(unix)]
            Self::Unix(writer) => writer.as_ref().as_ref().poll_write_ready(cx),
        }
    }
}

impl Io {
    pub(super) fn new(stream: Stream) -> Self {
        match stream {
            Stream::Tcp(stream) => {
                let (reader, writer) = stream.into_split();
                Self::Plain { reader: Reader::Tcp(reader), writer: Writer::Tcp(Arc::new(writer)) }
            }
            #[cfg(unix)]
            Stream::Unix(stream) => {
                let (reader, writer) = stream.into_split();
                Self::Plain { reader: Reader::Unix(reader), writer: Writer::Unix(Arc::new(writer)) }
            }
            Stream::Tls(stream) => Self::Tls(stream),
        }
    }

    /// For callers who write.
    pub(super) fn writer(&self) -> Option<Writer> {
        match self {
            Self::Plain { writer, .. } => Some(writer.clone()),
            Self::Tls(_) => None,
        }
    }

    pub(super) fn poll_read(&mut self, room: &mut BytesMut, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        match self {
            // Not `try_read`: this one remembers that a short read has emptied the socket.
            Self::Plain { reader: Reader::Tcp(reader), .. } => pin!(reader.read_buf(room)).poll(cx),
            #[cfg(unix)]
            Self::Plain { reader: Reader::Unix(reader), .. } => pin!(reader.read_buf(room)).poll(cx),
            Self::Tls(stream) => pin!(stream.read_buf(room)).poll(cx),
        }
    }

    pub(super) fn poll_write(&mut self, requests: &[u8], cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        match self {
            Self::Plain { writer, .. } => loop {
                match writer.try_write(requests) {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => ready!(writer.poll_ready(cx))?,
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    done => return Poll::Ready(done),
                }
            },
            Self::Tls(stream) => Pin::new(stream).poll_write(cx, requests),
        }
    }

    /// Sends what TLS has taken and not sent. The next poll goes on with it.
    pub(super) fn flush(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        match self {
            Self::Plain { .. } => Ok(()),
            Self::Tls(stream) => match Pin::new(stream).poll_flush(cx) {
                Poll::Ready(done) => done,
                Poll::Pending => Ok(()),
            },
        }
    }
}
