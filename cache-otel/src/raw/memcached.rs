//! The `memcache` crate's asynchronous client, wrapped.
//!
//! Its clients have no trait that commands go through, so the usual commands are wrapped one by one; for the rest there is
//! [`Traced::command`].
//!
//! What is reported is what the client answers. One that was built with `degrade(true)` answers for a server that is dead as if
//! a look-up had found nothing and a `set` or `touch` were done: misses and successes, and no error. Its `on_error` hears of them.

use memcache::exp::{AsyncMemcache, Decode, Encode, Error, Result, Ttl};

use super::{ClientTelemetry, Command, Failed, Failure, Outcome};

/// A memcached client whose commands are reported.
#[derive(Debug)]
pub struct Traced {
    inner: AsyncMemcache,
    telemetry: ClientTelemetry,
}

impl Failure for Error {
    fn describe(&self) -> Failed {
        match self {
            Self::Io(_) => Failed::CONNECTION,
            Self::Timeout { .. } => Failed::TIMEOUT,
            Self::Ambiguous { source, .. } => source.describe(),
            _ => Failed::command(None),
        }
    }
}

fn text(key: &[u8]) -> &str {
    std::str::from_utf8(key).unwrap_or_default()
}

impl Traced {
    /// Wraps a client.
    pub const fn new(client: AsyncMemcache, telemetry: ClientTelemetry) -> Self {
        Self { inner: client, telemetry }
    }

    /// The client itself: what is done with it is not reported, but for what [`command`](Self::command) runs.
    pub const fn inner(&self) -> &AsyncMemcache {
        &self.inner
    }

    /// Reports any other command, by the name that it has on the wire.
    ///
    /// # Errors
    /// What `work` ends with.
    pub async fn command<R>(
        &self,
        command: Command<'_>,
        work: impl AsyncFnOnce(&AsyncMemcache) -> Result<R>,
    ) -> Result<R> {
        self.telemetry.run(command, work(&self.inner)).await
    }

    /// [`AsyncMemcache::get`].
    ///
    /// # Errors
    /// The client's.
    pub async fn get<T: Decode>(&self, key: impl AsRef<[u8]>) -> Result<Option<T>> {
        let mut call = self.telemetry.start(&Command::named("get").key(text(key.as_ref())));
        let work = self.inner.get(key.as_ref());
        let found = opentelemetry::trace::FutureExt::with_context(work, call.context()).await;
        match &found {
            Ok(value) => call.end(None, &Outcome::found(value.is_some())),
            Err(error) => call.end(Some(error.describe()), &Outcome::default()),
        }
        found
    }

    /// [`AsyncMemcache::set`].
    ///
    /// # Errors
    /// The client's.
    pub async fn set(&self, key: impl AsRef<[u8]>, value: impl Encode, ttl: impl Into<Ttl>) -> Result<()> {
        let command = Command::named("set").key(text(key.as_ref()));
        self.telemetry.run(command, self.inner.set(key.as_ref(), value, ttl)).await
    }

    /// [`AsyncMemcache::add`].
    ///
    /// # Errors
    /// The client's.
    pub async fn add(&self, key: impl AsRef<[u8]>, value: impl Encode, ttl: impl Into<Ttl>) -> Result<bool> {
        let command = Command::named("add").key(text(key.as_ref()));
        self.telemetry.run(command, self.inner.add(key.as_ref(), value, ttl)).await
    }

    /// [`AsyncMemcache::delete`].
    ///
    /// # Errors
    /// The client's.
    pub async fn delete(&self, key: impl AsRef<[u8]>) -> Result<()> {
        let command = Command::named("delete").key(text(key.as_ref()));
        self.telemetry.run(command, self.inner.delete(key.as_ref())).await
    }

    /// [`AsyncMemcache::touch`].
    ///
    /// # Errors
    /// The client's.
    pub async fn touch(&self, key: impl AsRef<[u8]>, ttl: impl Into<Ttl>) -> Result<()> {
        let command = Command::named("touch").key(text(key.as_ref()));
        self.telemetry.run(command, self.inner.touch(key.as_ref(), ttl)).await
    }

    /// [`AsyncMemcache::incr`].
    ///
    /// # Errors
    /// The client's.
    pub async fn incr(&self, key: impl AsRef<[u8]>, delta: u64, ttl: impl Into<Ttl>) -> Result<u64> {
        let command = Command::named("incr").key(text(key.as_ref()));
        self.telemetry.run(command, self.inner.incr(key.as_ref(), delta, ttl)).await
    }
}
