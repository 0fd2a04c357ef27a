//! Every backend, and one decorator, held to the one list of behaviours.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail their test")]

use std::sync::Arc;

use test_servers::{MemcachedServer, RedisServer};
use traced_cache::{
    CacheProvider, Engine, MemcachedProvider, Memory, RedisProvider,
    testing::{
        Chaos, MapProvider,
        conformance::{self, Options, object_store},
    },
};

async fn held(provider: impl CacheProvider) {
    conformance::run(Arc::new(provider), Options::default()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory_as_a_provider_of_bytes() {
    for engine in Engine::ALL {
        held(Memory::entries(100_000).engine(engine)).await;
        held(Memory::bytes(64 << 20).engine(engine)).await;
    }
}

#[test]
fn memory_as_a_store_of_objects() {
    for engine in Engine::ALL {
        object_store::run(|entries| Memory::entries(entries).engine(engine).in_process().unwrap());
        object_store::run(|entries| {
            Memory::entries(entries).engine(engine).engine_expiry(false).in_process().unwrap()
        });
        let weight = u64::from(engine.entry_overhead()) + 10;
        object_store::run(|entries| Memory::bytes(entries * weight).engine(engine).in_process().unwrap());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis() {
    let Some(server) = RedisServer::start() else { return };
    held(RedisProvider::builder(server.url()).build().unwrap()).await;
    held(RedisProvider::builder(server.url()).key_prefix("app:").build().unwrap()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_behind_a_decorator() {
    let Some(server) = RedisServer::start() else { return };
    held(Chaos::new(RedisProvider::builder(server.url()).build().unwrap())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memcached() {
    let Some(server) = MemcachedServer::start() else { return };
    held(MemcachedProvider::builder(server.url()).build().unwrap()).await;
    held(MemcachedProvider::builder(server.url()).key_prefix("app:").build().unwrap()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn plain_redis() {
    let Some(server) = RedisServer::start() else { return };
    for prefix in ["", "app:"] {
        let redis = RedisProvider::builder(server.url()).key_prefix(prefix).build().unwrap();
        held(redis.plain().unwrap()).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn plain_memcached() {
    let (Some(a), Some(b)) = (MemcachedServer::start(), MemcachedServer::start()) else { return };
    held(MemcachedProvider::builder(a.url()).build().unwrap().plain().unwrap()).await;
    let two = MemcachedProvider::builder(a.url()).server(b.url()).key_prefix("app:").build().unwrap();
    held(two.plain().unwrap()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leases_of_memcached() {
    let (Some(a), Some(b)) = (MemcachedServer::start(), MemcachedServer::start()) else { return };
    let provider = MemcachedProvider::builder(a.url()).key_prefix("app:").build().unwrap();
    conformance::leases::run(Arc::new(provider), Options::default()).await;
    let provider = MemcachedProvider::builder(a.url()).server(b.url()).build().unwrap();
    conformance::leases::run(Arc::new(provider), Options::default()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn marks() {
    let swaps = async |provider: Arc<dyn CacheProvider>| {
        conformance::marks::run(provider, Options::default()).await;
    };
    swaps(Arc::new(Chaos::new(MapProvider::new().marking()))).await;
    if let Some(server) = RedisServer::start() {
        swaps(Arc::new(RedisProvider::builder(server.url()).build().unwrap())).await;
        swaps(Arc::new(RedisProvider::builder(server.url()).key_prefix("app:").build().unwrap())).await;
    }
    if let (Some(a), Some(b)) = (MemcachedServer::start(), MemcachedServer::start()) {
        swaps(Arc::new(MemcachedProvider::builder(a.url()).key_prefix("app:").build().unwrap())).await;
        swaps(Arc::new(MemcachedProvider::builder(a.url()).server(b.url()).build().unwrap())).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_memcached_servers() {
    let (Some(a), Some(b), Some(c)) =
        (MemcachedServer::start(), MemcachedServer::start(), MemcachedServer::start())
    else {
        return;
    };
    held(MemcachedProvider::builder(a.url()).server(b.url()).server(c.url()).build().unwrap()).await;
}
