//! The stacks that cases run on. Servers are shared by the whole test binary; names of caches are not.

use std::{
    sync::{
        Arc, OnceLock,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use test_servers::{MemcachedServer, RedisServer};
use traced_cache::{
    Builder, CacheProvider, Clock, Compression, Encryption, Level, MemcachedProvider, Memory, Policy,
    RedisProvider, SerdeValue, Time, TracedCache,
};

use crate::{
    hooks::{Hooked, Hooks},
    kit::S,
    stores::MapProvider,
};

/// Nothing in these tests may run into a limit of a provider or a level because the machine is slow.
const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) fn redis_server() -> Option<&'static RedisServer> {
    static SERVER: OnceLock<Option<RedisServer>> = OnceLock::new();
    SERVER.get_or_init(RedisServer::start).as_ref()
}

pub(crate) fn memcached_server() -> Option<&'static MemcachedServer> {
    static SERVER: OnceLock<Option<MemcachedServer>> = OnceLock::new();
    SERVER.get_or_init(MemcachedServer::start).as_ref()
}

pub(crate) fn redis() -> Option<RedisProvider> {
    let server = redis_server()?;
    let provider = RedisProvider::builder(server.url()).connect_timeout(PATIENCE).response_timeout(PATIENCE);
    Some(provider.build().unwrap())
}

pub(crate) fn memcached() -> Option<MemcachedProvider> {
    let server = memcached_server()?;
    let provider =
        MemcachedProvider::builder(server.url()).connect_timeout(PATIENCE).response_timeout(PATIENCE);
    Some(provider.build().unwrap())
}

/// A name that no other test has.
pub(crate) fn unique(what: &str) -> String {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    format!("{what}-{}", NEXT.fetch_add(1, Ordering::Relaxed))
}

/// A level for tests: a patient budget, and no breaker that would hide what follows a fault.
pub(crate) fn level(provider: impl CacheProvider) -> Level {
    Level::new(provider).budget(10 * S).breaker(None)
}

/// The same, with everything small squeezed, and encrypted.
pub(crate) fn packed(provider: impl CacheProvider) -> Level {
    level(provider).compression(Compression::lz4().above(0)).encryption(Encryption::new(1, &[7; 32]))
}

/// One node: its levels and its clock.
#[derive(Clone)]
pub(crate) struct Stack {
    pub(crate) name: &'static str,
    pub(crate) memory: Option<Memory>,
    pub(crate) remote: Option<Hooked>,
    pub(crate) packed: bool,
    pub(crate) clock: Clock,
    pub(crate) time: Time,
}

impl Stack {
    fn new(name: &'static str, memory: bool, remote: Option<Arc<dyn CacheProvider>>) -> Self {
        let (clock, time) = Clock::manual();
        let (memory, remote) = (memory.then(memory_level), remote.map(Hooked::new));
        Self { name, memory, remote, packed: false, clock, time }
    }

    fn packed(self) -> Self {
        Self { packed: true, ..self }
    }

    /// Another node with the same remote level and time, and memory of its own.
    pub(crate) fn peer(&self) -> Self {
        Self {
            memory: self.memory.as_ref().map(|_| memory_level()),
            remote: self.remote.as_ref().map(Hooked::again),
            ..self.clone()
        }
    }

    pub(crate) fn builder<T: SerdeValue>(&self, name: &str) -> Builder<T> {
        let mut builder = TracedCache::builder(name).clock(self.clock.clone());
        if let Some(memory) = &self.memory {
            builder = builder.level(memory.clone());
        }
        if let Some(remote) = &self.remote {
            let level = if self.packed { packed } else { level };
            builder = builder.level(level(remote.clone()));
        }
        builder
    }

    pub(crate) fn named<T: SerdeValue>(&self, name: &str, policy: Policy) -> TracedCache<T> {
        self.builder(name).policy(policy).build().unwrap()
    }

    /// A cache of its own name.
    pub(crate) fn cache<T: SerdeValue>(&self, policy: Policy) -> TracedCache<T> {
        self.named(&unique("case"), policy)
    }

    /// With a ttl of 100 s.
    pub(crate) fn plain<T: SerdeValue>(&self) -> TracedCache<T> {
        self.cache(Policy::ttl(100 * S))
    }

    pub(crate) fn hooks(&self) -> &Hooks {
        &self.remote.as_ref().expect("a stack with a remote level").hooks
    }

    /// The remote level's position.
    pub(crate) fn far(&self) -> usize {
        usize::from(self.memory.is_some())
    }
}

/// Off: the engine's timer runs in real time, the tests' clock does not.
fn memory_level() -> Memory {
    Memory::entries(100_000).engine_expiry(false)
}

fn named(stacks: Vec<Option<Stack>>) -> impl Iterator<Item = Stack> {
    stacks.into_iter().flatten().inspect(|stack| eprintln!("on {}", stack.name))
}

fn on<P: CacheProvider>(name: &'static str, memory: bool, provider: Option<P>) -> Option<Stack> {
    provider.map(|provider| Stack::new(name, memory, Some(Arc::new(provider))))
}

/// Memory alone, and both servers with memory before them and without.
pub(crate) fn all() -> impl Iterator<Item = Stack> {
    named(vec![
        Some(Stack::new("memory", true, None)),
        on("memory and redis", true, redis()),
        on("redis", false, redis()),
        on("redis, compressed and encrypted", false, redis()).map(Stack::packed),
        on("memory and memcached", true, memcached()),
        on("memcached", false, memcached()),
    ])
}

/// Those with a level that nodes share.
pub(crate) fn shared() -> impl Iterator<Item = Stack> {
    named(vec![
        on("memory and redis", true, redis()),
        on("redis", false, redis()),
        on("memory and redis, compressed and encrypted", true, redis()).map(Stack::packed),
        on("memory and memcached", true, memcached()),
        on("memcached", false, memcached()),
    ])
}

/// Memory before bytes in a map, and each alone: nothing here depends on a runtime or on another process.
pub(crate) fn local() -> impl Iterator<Item = Stack> {
    named(vec![
        Some(Stack::new("memory", true, None)),
        on("memory and map", true, Some(MapProvider::new())),
        on("map", false, Some(MapProvider::new())),
        on("memory and map, compressed and encrypted", true, Some(MapProvider::new())).map(Stack::packed),
    ])
}

/// Memory before bytes in a map.
pub(crate) fn mapped() -> Stack {
    Stack::new("memory and map", true, Some(Arc::new(MapProvider::new())))
}

/// Memory before a server.
pub(crate) fn layered() -> impl Iterator<Item = Stack> {
    named(vec![on("memory and redis", true, redis()), on("memory and memcached", true, memcached())])
}
