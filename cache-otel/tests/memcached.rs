//! The raw memcached client against a real server.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod common;

use std::time::Duration;

use cache_otel::raw::{ClientTelemetry, Command, memcached::Traced};
use common::{Reader, sum};
use memcache::exp::AsyncMemcache;
use opentelemetry::Value;
use opentelemetry_sdk::{
    metrics::Temporality,
    trace::{InMemorySpanExporter, SdkTracerProvider},
};
use test_servers::MemcachedServer;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commands_are_client_spans() {
    let Some(server) = MemcachedServer::start() else { return };
    let (reader, spans) = (Reader::new(Temporality::Cumulative), InMemorySpanExporter::default());
    let tracers = SdkTracerProvider::builder().with_simple_exporter(spans.clone()).build();
    let telemetry = ClientTelemetry::builder("memcached", "pages")
        .server("127.0.0.1", server.port())
        .meter_provider(&reader.provider)
        .tracer_provider(&tracers)
        .build();
    let client = AsyncMemcache::connect([format!("127.0.0.1:{}", server.port())]).await.unwrap();
    let client = Traced::new(client, telemetry);
    client.set("ann@example.org", "hello", Duration::from_secs(60)).await.unwrap();
    assert_eq!(client.get::<String>("ann@example.org").await.unwrap().as_deref(), Some("hello"));
    assert_eq!(client.get::<String>("missing").await.unwrap(), None);
    client.delete("ann@example.org").await.unwrap();
    let many = Command::named("get").keys(2);
    let found = client.command(many, async |client| client.get_many::<String, _>(["a", "b"]).await).await;
    assert!(found.unwrap().is_empty());

    let seen = spans.get_finished_spans().unwrap();
    let at = format!("127.0.0.1:{}", server.port());
    let names: Vec<_> = seen.iter().map(|span| span.name.to_string()).collect();
    assert_eq!(names, ["set", "get", "get", "delete", "get"].map(|name| format!("{name} {at}")));
    let hit =
        |n: usize| seen[n].attributes.iter().find(|kv| kv.key.as_str() == "cache.hit").map(|kv| &kv.value);
    assert_eq!((hit(1), hit(2)), (Some(&Value::Bool(true)), Some(&Value::Bool(false))));
    let size = |n: usize| {
        seen[n].attributes.iter().find(|kv| kv.key.as_str() == "cache.item_size").map(|kv| kv.value.clone())
    };
    assert_eq!([size(0), size(1), size(2), size(3)], [Some(5.into()), Some(5.into()), None, None]);
    assert!(!format!("{seen:?}").contains("ann@"));
    let series = reader.collect();
    assert_eq!(sum(&series, "db.client.operation.duration_count"), 5.0);
    assert_eq!(series["db.client.lookups{cache.result=hit,db.client.name=pages}"], 1.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_key_of_a_batch_is_a_look_up() {
    let Some(server) = MemcachedServer::start() else { return };
    let reader = Reader::new(Temporality::Cumulative);
    let telemetry = ClientTelemetry::builder("memcached", "pages").meter_provider(&reader.provider).build();
    let client = AsyncMemcache::connect([format!("127.0.0.1:{}", server.port())]).await.unwrap();
    let client = Traced::new(client, telemetry);
    client.set("a", "hello", Duration::from_secs(60)).await.unwrap();
    let found = client.clone().get_many::<String, _>(["a", "b", "a", "c"]).await.unwrap();
    assert_eq!(found.into_iter().collect::<Vec<_>>(), [("a", "hello".to_owned())]);
    let series = reader.collect();
    let lookups =
        |result| series[&format!("db.client.lookups{{cache.result={result},db.client.name=pages}}")];
    assert_eq!((lookups("hit"), lookups("miss")), (1.0, 2.0));
}
