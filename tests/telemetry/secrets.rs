//! Promise 11: a key, a value and a password are planted, and nothing that can be read has them.

use std::{
    fmt::Debug,
    io::Write,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use cache_otel::{
    raw::{ClientTelemetry, Command, redis::Traced},
    setup::Setup,
};
use opentelemetry_sdk::trace::{InMemorySpanExporter, SdkTracerProvider};
use redis::AsyncCommands;
use test_servers::RedisServer;
use traced_cache::{
    Acquired, CacheId, Fill, Lease, Level, Loaded, Memory, Policy, Put, RawKey, RedisProvider, Rendered,
    SpanKind, SpanStart, Stance, Swap, Swapped, Telemetry, TracedCache, Verb, ok,
};
use tracing_subscriber::util::SubscriberInitExt;

const KEY: &str = "planted-key-7f3a";
const VALUE: &str = "planted-value-9c1d";
const PASSWORD: &str = "planted-password-2e8b";

/// All that anybody could read.
#[derive(Clone, Default)]
struct Seen(Arc<Mutex<Vec<u8>>>);

impl Seen {
    fn add(&self, shown: &dyn Debug) {
        self.0.lock().unwrap().extend_from_slice(format!("{shown:?}\n{shown:#?}\n").as_bytes());
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().unwrap()).into_owned()
    }
}

impl Write for Seen {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// What backends and observers are handed, and may log.
fn handed(seen: &Seen) {
    let key = RawKey::new(CacheId(1), "users", KEY);
    let (bytes, ttl) = (Bytes::from(VALUE), Duration::from_secs(1));
    let put = Put { key, bytes: bytes.clone(), ttl };
    seen.add(&put);
    seen.add(&Fill { put, lease: Lease(bytes.clone()) });
    seen.add(&[Acquired::Found(bytes.clone()), Acquired::Granted(Lease(bytes.clone()))]);
    seen.add(&Swap { key, seen: Some(bytes.clone()), bytes: bytes.clone(), ttl });
    seen.add(&Swapped::Other { at: 0, now: Some(bytes) });
    seen.add(&SpanStart { kind: SpanKind::Operation(Verb::Get), key: Some(KEY), keys: 1, root: false });
    seen.add(&Rendered(KEY.to_owned()));
}

fn error(seen: &Seen, error: &(dyn std::error::Error + 'static)) {
    seen.add(&error.to_string());
    seen.add(&error);
    let mut cause = error.source();
    while let Some(next) = cause {
        seen.add(&next.to_string());
        seen.add(&next);
        cause = next.source();
    }
}

#[tokio::test(flavor = "current_thread")]
async fn p11_nothing_leaks() {
    let Some(server) = RedisServer::builder().password(PASSWORD).start() else { return };
    let seen = Seen::default();
    let writer = seen.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing_subscriber::filter::LevelFilter::TRACE)
        .with_writer(move || writer.clone())
        .finish();
    // Were there one subscriber only, a thread without one could silence a line for all.
    let _other = tracing_subscriber::fmt().with_writer(std::io::sink).finish().set_default();
    let _heard = subscriber.set_default();

    let spans = InMemorySpanExporter::default();
    let tracers = SdkTracerProvider::builder().with_simple_exporter(spans.clone()).build();
    let running = Setup::new("shop")
        .variables(|name| (name == "OTEL_TRACES_EXPORTER").then(|| "none".to_owned()))
        .prometheus(([127, 0, 0, 1], 0))
        .start()
        .unwrap();
    let telemetry = running.builder().tracer_provider(&tracers).trace_hits(true).build();
    let url = format!("redis://:{PASSWORD}@127.0.0.1:{}", server.port());
    let builder = RedisProvider::builder(&url).connect_timeout(Duration::from_secs(5));
    seen.add(&builder);
    let redis = builder.build().unwrap();
    seen.add(&redis);
    let level = Level::new(redis.clone()).stance(Stance::Surface).breaker(None);
    seen.add(&level);
    let builder = TracedCache::<String>::builder("users")
        .level(Memory::entries(100))
        .level(level)
        .policy(Policy::ttl(Duration::from_secs(60)))
        .observer(telemetry.clone());
    seen.add(&builder);
    let cache = builder.build().unwrap();
    seen.add(&cache);

    let load = || async { ok(VALUE.to_owned()) };
    assert_eq!(*cache.get_or_set(KEY, load).await.unwrap(), VALUE);
    assert_eq!(cache.get(KEY).await.unwrap().as_deref().map(String::as_str), Some(VALUE));
    seen.add(&cache.look(KEY).await.unwrap());
    seen.add(&cache.set((KEY, 7), VALUE.to_owned()).await.unwrap());
    seen.add(&cache.invalidate(KEY).await.unwrap());
    let tagged = || async { ok(Loaded::value(VALUE.to_owned()).tags([KEY]).etag(VALUE)) };
    cache.get_or_set("tagged", tagged).await.unwrap();
    seen.add(&cache.inspect("tagged").await.unwrap());
    seen.add(&cache.inspect_with_value("tagged").await.unwrap());
    handed(&seen);
    cache.get_many([KEY, "other"]).await.unwrap();

    let client = ClientTelemetry::builder("redis", "raw")
        .slow_after(Duration::ZERO)
        .query_text(true)
        .meter_provider(running.meter_provider())
        .tracer_provider(&tracers)
        .build();
    seen.add(&client);
    seen.add(&Command::named("GET").key(KEY));
    let connection = redis::Client::open(&*url).unwrap().get_multiplexed_async_connection().await.unwrap();
    let mut raw = Traced::new(connection, client);
    raw.set::<_, _, ()>(KEY, VALUE).await.unwrap();
    let _: String = raw.get(KEY).await.unwrap();
    let mut pipe = redis::pipe();
    pipe.atomic().cmd("SET").arg(KEY).arg(VALUE).cmd("AUTH").arg(PASSWORD);
    // It may not be allowed; what is seen of it counts.
    let _ = pipe.query_async::<()>(&mut raw).await;
    assert!(raw.lpush::<_, _, ()>(KEY, VALUE).await.is_err());

    server.kill();
    error(&seen, &cache.get(KEY).await.unwrap_err());
    error(&seen, &cache.set(KEY, VALUE.to_owned()).await.unwrap_err());
    let _ = cache.get_or_set(KEY, load).await;
    let wrong = RedisProvider::builder(format!("redis://:{PASSWORD}@127.0.0.1:notaport")).build();
    error(&seen, &wrong.unwrap_err());
    seen.add(&Setup::new("shop").endpoint(format!("http://u:{PASSWORD}@collector:4318")));
    let refused = Setup::new("shop").endpoint(format!("gopher://u:{PASSWORD}@h")).start();
    error(&seen, &refused.unwrap_err());
    seen.add(&cache.close(Duration::from_millis(500)).await);

    seen.add(&cache.stats());
    seen.add(&telemetry.stats());
    seen.add(&telemetry);
    seen.add(&running);
    seen.add(&Telemetry::builder().show_keys(|_| Some(KEY.to_owned())));
    seen.add(&spans.get_finished_spans().unwrap());
    let page = running.prometheus_text();
    assert!(page.contains("cache_hits_total{") && page.contains("db_client_slow_commands_total{"));
    seen.add(&page);

    let text = seen.text();
    assert!(
        text.contains("a slow command") && text.contains("SELECT") | text.contains("GET"),
        "it has been listening"
    );
    for planted in [KEY, VALUE, PASSWORD] {
        if let Some(at) = text.find(planted) {
            let from = text[..at].char_indices().rev().nth(200).map_or(0, |(at, _)| at);
            panic!("{planted} leaks: ...{}", &text[from..at + planted.len()]);
        }
    }
}
