//! What a server says first. One that wants no more clients says so without being asked and closes the connection, which is
//! all that the client tells of it.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    sync::{Arc, OnceLock},
    task::{Context, Poll},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Enough for the line that is told on.
const MOST: usize = 512;

/// The first bytes that came over a connection.
#[derive(Clone, Default)]
pub(crate) struct First(Arc<OnceLock<Vec<u8>>>);

impl First {
    /// Whether that may be a server that waits for TLS: it hangs up on anything else without a word, or with an alert.
    pub(crate) fn may_want_tls(&self) -> bool {
        const ALERT: u8 = 21; // RFC 8446, section 5.1
        self.0.get().is_none_or(|bytes| bytes.first() == Some(&ALERT))
    }

    /// The error that they are, without its sign. Not fit to be shown as it is.
    pub(crate) fn error(&self) -> Option<&str> {
        let text = self.0.get()?.strip_prefix(b"-")?;
        let end = text.iter().position(|byte| *byte == b'\r')?;
        std::str::from_utf8(&text[..end]).ok()
    }
}

/// A stream whose first bytes are kept.
pub(crate) struct Overheard<S> {
    stream: S,
    /// Until they have come.
    first: Option<First>,
}

impl<S> Overheard<S> {
    pub(crate) fn new(stream: S) -> (Self, First) {
        let first = First::default();
        (Self { stream, first: Some(first.clone()) }, first)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Overheard<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(cx, buffer);
        let came = buffer.filled().get(before..).unwrap_or_default();
        if !came.is_empty()
            && let Some(first) = self.first.take()
        {
            // It is set here alone, and once.
            let _ = first.0.set(came[..came.len().min(MOST)].to_vec());
        }
        read
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Overheard<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
