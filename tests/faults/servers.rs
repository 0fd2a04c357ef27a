//! The servers under test, each behind a proxy.

use std::{sync::Arc, time::Duration};

use test_servers::{MemcachedServer, Proxy, RedisServer, eventually};
use traced_cache::{
    Breaker, Builder, CacheProvider, Level, MemcachedProvider, Memory, Policy, RedisProvider, TracedCache,
    testing::Recorder,
};

pub(crate) const BUDGET: Duration = Duration::from_millis(150);
pub(crate) const OPEN_FOR: Duration = Duration::from_millis(200);

pub(crate) enum Server {
    Redis(RedisServer),
    Memcached(MemcachedServer),
}

pub(crate) struct Backend {
    pub(crate) server: Server,
    pub(crate) proxy: Proxy,
}

impl Backend {
    pub(crate) fn redis() -> Option<Self> {
        RedisServer::start().map(Self::of_redis)
    }

    pub(crate) fn of_redis(server: RedisServer) -> Self {
        let proxy = Proxy::start(server.addr());
        Self { server: Server::Redis(server), proxy }
    }

    pub(crate) fn memcached() -> Option<Self> {
        let server = MemcachedServer::start()?;
        let proxy = Proxy::start(server.addr());
        Some(Self { server: Server::Memcached(server), proxy })
    }

    /// A provider of its own: another node.
    pub(crate) fn provider(&self) -> Arc<dyn CacheProvider> {
        let port = self.proxy.port();
        match self.server {
            Server::Redis(_) => {
                Arc::new(RedisProvider::builder(format!("redis://127.0.0.1:{port}")).build().unwrap())
            }
            Server::Memcached(_) => {
                Arc::new(MemcachedProvider::builder(format!("memcached://127.0.0.1:{port}")).build().unwrap())
            }
        }
    }

    fn builder(&self) -> Builder<String> {
        let policy = Policy::ttl(Duration::from_secs(600)).grace(Duration::from_secs(6_000));
        TracedCache::builder("faults").policy(policy)
    }

    fn level(&self) -> Level {
        let breaker = Breaker::default().open_for(OPEN_FOR).window(Duration::from_secs(1));
        Level::new(self.provider()).budget(BUDGET).breaker(Some(breaker))
    }

    /// Memory in front of the server.
    pub(crate) fn node(&self, seen: &Recorder) -> TracedCache<String> {
        let builder = self.builder().observer(seen.clone());
        builder.level(Memory::entries(100_000)).level(self.level()).build().unwrap()
    }

    /// The server alone.
    pub(crate) fn bare(&self) -> TracedCache<String> {
        self.builder().level(self.level()).build().unwrap()
    }

    pub(crate) fn kill(&self) {
        match &self.server {
            Server::Redis(server) => server.kill(),
            Server::Memcached(server) => server.kill(),
        }
    }

    pub(crate) fn restart(&self) {
        match &self.server {
            Server::Redis(server) => server.restart(),
            Server::Memcached(server) => server.restart(),
        }
    }

    pub(crate) fn stop(&self) {
        match &self.server {
            Server::Redis(server) => server.stop(),
            Server::Memcached(server) => server.stop(),
        }
    }

    pub(crate) fn cont(&self) {
        match &self.server {
            Server::Redis(server) => server.cont(),
            Server::Memcached(server) => server.cont(),
        }
    }
}

/// Runs what blocks where it holds up no other task.
pub(crate) fn blocking<R>(work: impl FnOnce() -> R) -> R {
    tokio::task::block_in_place(work)
}

/// Polls with a deadline.
pub(crate) async fn until(what: &str, condition: impl AsyncFnMut() -> bool) {
    eventually(Duration::from_secs(30), what, condition).await;
}
