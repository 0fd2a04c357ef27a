//! Reads from memcached.

use std::{hint::black_box, sync::Arc};

use crate::ours::{MemcachedProvider, Policy, Telemetry, TracedCache};
use memcache::exp::AsyncMemcache;

use crate::{
    Scale,
    flights::{read_all, runtime},
    memory::HOUR,
    otel::Otel,
    rounds::{Row, Timed},
    work::{User, decode, keys, raw_key, shuffled},
};

pub struct Memcached {
    keys: &'static [String],
    otel: Otel,
    raw: AsyncMemcache,
    provider: MemcachedProvider,
}

fn own(provider: &MemcachedProvider, telemetry: Option<&Telemetry>) -> TracedCache<User> {
    let builder = TracedCache::builder("peers").policy(Policy::ttl(HOUR)).level(provider.clone());
    match telemetry {
        Some(telemetry) => builder.observer(telemetry.clone()),
        None => builder,
    }
    .build()
    .expect("the settings are right")
}

impl Memcached {
    pub fn filled(port: u16, scale: &Scale) -> Self {
        let written = keys("user", scale.reads);
        let keys: &'static [String] = Vec::leak(shuffled(written.clone()));
        runtime().block_on(async {
            // A connection for each that may be in flight.
            let raw = AsyncMemcache::builder().max_idle(64).connect_async([("127.0.0.1", port)]);
            let raw = raw.await.expect("memcached is there");
            let url = format!("memcached://127.0.0.1:{port}");
            let provider = MemcachedProvider::builder(url).build().expect("the url is right");
            let ours = own(&provider, None);
            for chunk in written.chunks(500) {
                let _ = ours
                    .set_many(chunk.iter().map(|key| (key, User::of(key))))
                    .await
                    .expect("memcached takes it");
                for key in chunk {
                    raw.set(raw_key(key), User::of(key).json(), HOUR).await.expect("memcached takes it");
                }
            }
            Self { keys, otel: Otel::new(), raw, provider }
        })
    }

    fn rows(&self, keys: &'static [String], flights: usize) -> Vec<Row> {
        let raw = |name, decoded: bool| {
            let raw = self.raw.clone();
            Row::new(name, move || {
                let raw = raw.clone();
                read_all(keys, flights, move |key| {
                    let raw = raw.clone();
                    async move {
                        let bytes: Vec<u8> =
                            raw.get(raw_key(key)).await.expect("memcached is there").expect("it was set");
                        match decoded {
                            true => drop(black_box(Arc::new(decode(&bytes)))),
                            false => drop(black_box(bytes)),
                        }
                    }
                })
            })
        };
        let typed = |name, telemetry: Option<&Telemetry>| {
            let cache = own(&self.provider, telemetry);
            Row::new(name, move || {
                let cache = cache.clone();
                read_all(keys, flights, move |key| {
                    let cache = cache.clone();
                    async move { assert!(cache.get(key).await.expect("memcached is there").is_some()) }
                })
            })
        };
        vec![
            raw("raw client, bytes", false),
            raw("raw client, decoded", true),
            typed("own, memcached", Some(&self.otel.metrics())),
            typed("own, memcached, no observer", None),
        ]
    }

    pub fn crowded(&self, scale: &Scale) -> Timed {
        let rows = self.rows(self.keys, 64);
        Timed::run("memcached, 64 in flight", "raw client, bytes", scale.remote_rounds, rows)
    }

    pub fn alone(&self, scale: &Scale) -> Timed {
        let rows = self.rows(&self.keys[..self.keys.len() / 10], 1);
        Timed::run("memcached, one in flight", "raw client, bytes", scale.remote_rounds, rows)
    }
}
