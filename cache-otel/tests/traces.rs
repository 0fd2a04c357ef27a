//! The trace of real calls over two levels.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::{sync::Arc, task::Poll, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use cache_core::{BoxError, CacheProvider, Capabilities, Description, Policy, Put, RawKey, TracedCache, ok};
use cache_memory::Memory;
use cache_otel::Telemetry;
use opentelemetry::{
    Context,
    trace::{FutureExt, SpanId, TraceContextExt, Tracer, TracerProvider},
};
use opentelemetry_sdk::trace::{InMemorySpanExporter, SdkTracerProvider, SpanData};
use tokio::sync::Notify;

/// Memory, reached as bytes only: a second level without a server.
struct BytesOnly(Memory);

#[async_trait]
impl CacheProvider for BytesOnly {
    fn capabilities(&self) -> Capabilities {
        self.0.capabilities()
    }
    fn describe(&self) -> Description {
        self.0.describe()
    }
    async fn get_many(&self, keys: &[RawKey<'_>]) -> Vec<Result<Option<Bytes>, BoxError>> {
        self.0.get_many(keys).await
    }
    async fn put_many(&self, items: &[Put<'_>]) -> Vec<Result<(), BoxError>> {
        self.0.put_many(items).await
    }
    async fn remove_many(&self, keys: &[RawKey<'_>]) -> Vec<Result<(), BoxError>> {
        self.0.remove_many(keys).await
    }
}

struct Traced {
    provider: SdkTracerProvider,
    exporter: InMemorySpanExporter,
    cache: TracedCache<u64>,
}

impl Traced {
    fn new() -> Self {
        let exporter = InMemorySpanExporter::default();
        let provider = SdkTracerProvider::builder().with_simple_exporter(exporter.clone()).build();
        let cache = TracedCache::builder("users")
            .level(Memory::entries(100))
            .level(BytesOnly(Memory::entries(100)))
            .policy(Policy::ttl(Duration::from_secs(600)))
            .observer(Telemetry::builder().tracer_provider(&provider).build())
            .build()
            .unwrap();
        Self { provider, exporter, cache }
    }

    /// A request of the user's, with a span of its own.
    fn request(&self) -> Context {
        Context::new().with_span(self.provider.tracer("user").start_with_context("request", &Context::new()))
    }

    fn spans(&self) -> Vec<SpanData> {
        self.exporter.get_finished_spans().unwrap()
    }

    async fn until(&self, what: &str, done: impl Fn(&[SpanData]) -> bool) -> Vec<SpanData> {
        let waited = tokio::time::timeout(Duration::from_secs(30), async {
            while !done(&self.spans()) {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        });
        assert!(waited.await.is_ok(), "{what}: {:?}", names(&self.spans()));
        self.spans()
    }
}

fn names(spans: &[SpanData]) -> Vec<&str> {
    spans.iter().map(|span| &*span.name).collect()
}

fn find<'a>(spans: &'a [SpanData], name: &str) -> &'a SpanData {
    spans.iter().find(|span| span.name == name).unwrap()
}

fn id(span: &SpanData) -> SpanId {
    span.span_context.span_id()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cold_call_is_one_tree_and_a_hit_in_memory_is_none() {
    let traced = Traced::new();
    let request = traced.request();
    let user = traced.provider.clone();
    let call = traced.cache.get_or_set(1, move || async move {
        drop(user.tracer("user").start("SELECT users"));
        ok(7u64)
    });
    call.with_context(request.clone()).await.unwrap();

    let spans = traced.until("the write", |spans| names(spans).contains(&"cache.put users l2")).await;
    let call = find(&spans, "cache.get_or_set users");
    assert_eq!(call.parent_span_id, request.span().span_context().span_id());
    assert_eq!(find(&spans, "cache.get users l2").parent_span_id, id(call));
    let load = find(&spans, "cache.load users");
    assert_eq!(load.parent_span_id, id(call));
    assert_eq!(find(&spans, "SELECT users").parent_span_id, id(load));
    assert!(spans.iter().all(|span| span.span_context.trace_id() == call.span_context.trace_id()));

    traced.exporter.reset();
    traced.cache.get(1).with_context(request.clone()).await.unwrap();
    assert_eq!(names(&traced.spans()), Vec::<&str>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_that_waited_links_to_the_load_of_another() {
    let traced = Traced::new();
    let (started, go) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let leader = tokio::spawn({
        let (cache, request) = (traced.cache.clone(), traced.request());
        let (started, go) = (Arc::clone(&started), Arc::clone(&go));
        async move {
            let load = || async move {
                started.notify_one();
                go.notified().await;
                ok(7u64)
            };
            cache.get_or_set(1, load).with_context(request).await.unwrap()
        }
    });
    started.notified().await;
    let waiter = traced.cache.get_or_set(1, || async { ok(8u64) }).with_context(traced.request());
    let mut waiter = std::pin::pin!(waiter);
    // The levels answer at once, so one poll takes it to the load.
    assert!(std::future::poll_fn(|cx| Poll::Ready(waiter.as_mut().poll(cx).is_pending())).await);
    go.notify_one();
    assert_eq!((*leader.await.unwrap(), *waiter.await.unwrap()), (7, 7));

    let spans = traced
        .until("both", |spans| names(spans).iter().filter(|n| **n == "cache.get_or_set users").count() == 2)
        .await;
    let load = find(&spans, "cache.load users");
    let linked: Vec<_> = spans
        .iter()
        .filter(|span| span.name == "cache.get_or_set users" && !span.links.is_empty())
        .map(|span| span.links.iter().map(|link| link.span_context.span_id()).collect::<Vec<_>>())
        .collect();
    assert_eq!(linked, [vec![id(load)]]);
}
