//! The `memcache` crate's asynchronous client, wrapped.
//!
//! ```no_run
//! use std::time::Duration;
//!
//! use cache_otel::raw::{ClientTelemetry, Command, memcached::Traced};
//! use memcache::exp::AsyncMemcache;
//!
//! # async fn example() -> memcache::exp::Result<()> {
//! let telemetry = ClientTelemetry::builder("memcached", "pages").server("127.0.0.1", 11211).build();
//! let pages = Traced::new(AsyncMemcache::connect(["127.0.0.1:11211"]).await?, telemetry);
//! pages.set("index", "<h1>", Duration::from_secs(60)).await?;
//! let found = pages.get_many::<String, _>(["index", "about"]).await?;
//! # drop(found);
//! // What has no method here goes by the name that it has on the wire.
//! pages.command(Command::named("decr").key("stock"), async |client| client.decr("stock", 1, Duration::ZERO).await).await?;
//! # Ok(())
//! # }
//! ```
//!
//! Its clients have no trait that commands go through, so the usual commands are wrapped one by one; for the rest there is
//! [`Traced::command`]. Of its blocking client each command goes through [`ClientTelemetry::run_blocking`].
//!
//! Sizes are those of values as they are stored. How long they are to live is not reported, as the client's `Ttl` does not say;
//! [`Command::ttl`] of a [`Traced::command`] does.
//!
//! What is reported is what the client answers. One that was built with `degrade(true)` answers for a server that is dead as if
//! a look-up had found nothing and a `set` or `touch` were done: misses and successes, and no error. Its `on_error` hears of them.

use std::{
    collections::{HashMap, HashSet},
    hash::Hash,
    sync::atomic::{AtomicUsize, Ordering},
};

use memcache::exp::{AsyncMemcache, Decode, DecodeError, Encode, EncodeError, Encoded, Error, Result, Ttl};
use opentelemetry::trace::FutureExt;

use super::{ClientTelemetry, Command, Failed, Failure, Outcome};

/// A memcached client whose commands are reported. Cheap to clone, as the client is.
#[derive(Clone, Debug)]
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

/// A value that has not been encoded.
const UNKNOWN: usize = usize::MAX;

/// A value that says how large it was when it is encoded.
struct Measuring<'a, V> {
    value: V,
    bytes: &'a AtomicUsize,
}

impl<V: Encode> Encode for Measuring<'_, V> {
    fn encode(&self) -> std::result::Result<Encoded, EncodeError> {
        let encoded = self.value.encode()?;
        self.bytes.store(encoded.bytes.len(), Ordering::Relaxed);
        Ok(encoded)
    }
}

/// A value with the number of bytes that it was.
struct Measured<T> {
    value: T,
    bytes: usize,
}

impl<T: Decode> Decode for Measured<T> {
    fn decode(stored: Vec<u8>, flags: u32) -> std::result::Result<Self, DecodeError> {
        let bytes = stored.len();
        Ok(Self { value: T::decode(stored, flags)?, bytes })
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

    /// A command that stores a value, which is measured while it is encoded.
    async fn store<R>(
        &self,
        name: &'static str,
        key: &[u8],
        bytes: &AtomicUsize,
        work: impl Future<Output = Result<R>>,
    ) -> Result<R> {
        let mut call = self.telemetry.start(&Command::named(name).key(text(key)));
        let stored = work.with_context(call.context()).await;
        let size = Some(bytes.load(Ordering::Relaxed)).filter(|bytes| *bytes != UNKNOWN);
        call.end(stored.as_ref().err().map(Failure::describe), &Outcome { size, ..Outcome::default() });
        stored
    }

    /// A command that reads; `outcome` says of its answer what was found.
    async fn look_up<R>(
        &self,
        command: &Command<'_>,
        work: impl Future<Output = Result<R>>,
        outcome: impl FnOnce(&R) -> Outcome,
    ) -> Result<R> {
        let mut call = self.telemetry.start(command);
        let found = work.with_context(call.context()).await;
        match &found {
            Ok(found) => call.end(None, &outcome(found)),
            Err(error) => call.end(Some(error.describe()), &Outcome::default()),
        }
        found
    }

    /// [`AsyncMemcache::get`].
    ///
    /// # Errors
    /// The client's.
    pub async fn get<T: Decode>(&self, key: impl AsRef<[u8]>) -> Result<Option<T>> {
        let command = Command::named("get").key(text(key.as_ref()));
        let work = self.inner.get::<Measured<T>>(key.as_ref());
        let outcome = |found: &Option<Measured<T>>| {
            let size = found.as_ref().map(|found| found.bytes);
            Outcome { size, ..Outcome::found(found.is_some()) }
        };
        Ok(self.look_up(&command, work, outcome).await?.map(|found| found.value))
    }

    /// [`AsyncMemcache::get_many`]: a look-up for each key, and one for a key that comes twice.
    ///
    /// # Errors
    /// The client's.
    pub async fn get_many<T, K>(&self, keys: impl IntoIterator<Item = K>) -> Result<HashMap<K, T>>
    where
        T: Decode,
        K: AsRef<[u8]> + Hash + Eq,
    {
        let keys: HashSet<K> = keys.into_iter().collect();
        let asked = keys.len();
        let outcome = |found: &HashMap<K, T>| {
            let (hits, misses) = (Some(found.len()), Some(asked - found.len()));
            Outcome { hits, misses, ..Outcome::default() }
        };
        self.look_up(&Command::named("get").keys(asked), self.inner.get_many(keys), outcome).await
    }

    /// [`AsyncMemcache::set`].
    ///
    /// # Errors
    /// The client's.
    pub async fn set(&self, key: impl AsRef<[u8]>, value: impl Encode, ttl: impl Into<Ttl>) -> Result<()> {
        let (key, bytes) = (key.as_ref(), AtomicUsize::new(UNKNOWN));
        let value = Measuring { value, bytes: &bytes };
        self.store("set", key, &bytes, self.inner.set(key, value, ttl)).await
    }

    /// [`AsyncMemcache::add`].
    ///
    /// # Errors
    /// The client's.
    pub async fn add(&self, key: impl AsRef<[u8]>, value: impl Encode, ttl: impl Into<Ttl>) -> Result<bool> {
        let (key, bytes) = (key.as_ref(), AtomicUsize::new(UNKNOWN));
        let value = Measuring { value, bytes: &bytes };
        self.store("add", key, &bytes, self.inner.add(key, value, ttl)).await
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
