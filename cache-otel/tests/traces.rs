//! The trace of real calls over two levels.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests")]

use std::{sync::Arc, task::Poll, time::Duration};

use cache_core::{
    BoxError, Early, Level, Loaded, Policy, Source, TracedCache, ok,
    testing::{Chaos, ChaosOp, Fault, Hub, Link, MapProvider},
};
use cache_memory::Memory;
use cache_otel::{Telemetry, TelemetryBuilder, names};
use opentelemetry::{
    Context, Value,
    trace::{FutureExt, SpanId, SpanKind, TraceContextExt, Tracer, TracerProvider},
};
use opentelemetry_sdk::trace::{InMemorySpanExporter, SdkTracerProvider, SpanData};
use tokio::sync::Notify;

struct Traced {
    provider: SdkTracerProvider,
    exporter: InMemorySpanExporter,
    store: Arc<Chaos<MapProvider>>,
    cache: TracedCache<u64>,
}

impl Traced {
    fn new() -> Self {
        Self::with(Policy::ttl(Duration::from_secs(600)), |telemetry| telemetry, None, false)
    }

    fn with(
        policy: Policy,
        telemetry: impl FnOnce(TelemetryBuilder) -> TelemetryBuilder,
        backplane: Option<Link>,
        background: bool,
    ) -> Self {
        let exporter = InMemorySpanExporter::default();
        let provider = SdkTracerProvider::builder().with_simple_exporter(exporter.clone()).build();
        let store = Arc::new(Chaos::new(MapProvider::new()));
        let mut builder = TracedCache::builder("users")
            .level(Memory::entries(100))
            .level(Level::new(Arc::clone(&store)).background(background).breaker(None))
            .policy(policy)
            .observer(telemetry(Telemetry::builder().tracer_provider(&provider)).build());
        if let Some(link) = backplane {
            builder = builder.backplane(link);
        }
        Self { provider, exporter, store, cache: builder.build().unwrap() }
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
        assert!(waited.await.is_ok(), "{what}: {:?}", named(&self.spans()));
        self.spans()
    }
}

fn named(spans: &[SpanData]) -> Vec<&str> {
    spans.iter().map(|span| &*span.name).collect()
}

fn find<'a>(spans: &'a [SpanData], name: &str) -> &'a SpanData {
    spans.iter().find(|span| span.name == name).unwrap()
}

fn id(span: &SpanData) -> SpanId {
    span.span_context.span_id()
}

fn said(span: &SpanData, name: &str) -> Option<Value> {
    span.attributes.iter().find(|kv| kv.key.as_str() == name).map(|kv| kv.value.clone())
}

fn ttl(span: &SpanData) -> f64 {
    match said(span, names::TTL) {
        Some(Value::F64(ttl)) => ttl,
        other => panic!("{other:?}: {span:?}"),
    }
}

/// When the last write began.
fn put_at(spans: &[SpanData]) -> std::time::SystemTime {
    spans.iter().rfind(|span| span.name == "put map.test").unwrap().start_time
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

    let spans = traced
        .until("the write", |spans| named(spans).iter().filter(|n| **n == "put map.test").count() == 2)
        .await;
    let call = find(&spans, "cache.get_or_set users");
    assert_eq!(call.parent_span_id, request.span().span_context().span_id());
    assert_eq!(find(&spans, "get map.test").parent_span_id, id(call));
    let load = find(&spans, "cache.load users");
    assert_eq!(load.parent_span_id, id(call));
    assert_eq!(find(&spans, "SELECT users").parent_span_id, id(load));
    assert!(load.end_time <= put_at(&spans), "the load is over before what it brought is stored");
    // The first to come gives the cache its marker, and the value follows.
    let put = spans.iter().rfind(|span| span.name == "put map.test").unwrap();
    assert_eq!((put.parent_span_id, &put.span_kind), (id(call), &SpanKind::Client));
    assert!(spans.iter().all(|span| span.span_context.trace_id() == call.span_context.trace_id()));

    traced.exporter.reset();
    traced.cache.get(1).with_context(request.clone()).await.unwrap();
    assert_eq!(named(&traced.spans()), Vec::<&str>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn x14_a_call_that_waited_links_to_the_load_of_another() {
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
        .until("both", |spans| named(spans).iter().filter(|n| **n == "cache.get_or_set users").count() == 2)
        .await;
    let load = find(&spans, "cache.load users");
    let led = spans.iter().find(|span| span.name == "cache.get_or_set users" && span.links.is_empty());
    assert_eq!(Some(load.parent_span_id), led.map(id), "under the call that began it");
    let linked: Vec<_> = spans
        .iter()
        .filter(|span| span.name == "cache.get_or_set users" && !span.links.is_empty())
        .map(|span| span.links.iter().map(|link| link.span_context.span_id()).collect::<Vec<_>>())
        .collect();
    assert_eq!(linked, [vec![id(load)]]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_its_caller_gives_up_says_so() {
    let traced = Traced::new();
    traced.store.set(ChaosOp::Get, Fault::Hang);
    {
        let mut call = std::pin::pin!(traced.cache.get(1).with_context(traced.request()));
        assert!(std::future::poll_fn(|cx| Poll::Ready(call.as_mut().poll(cx).is_pending())).await);
    }
    let of = |span: &SpanData| span.attributes.iter().find(|a| a.key.as_str() == names::ERROR_TYPE).cloned();
    let spans = traced.spans();
    for name in ["cache.get users", "get map.test"] {
        let said = of(find(&spans, name)).map(|said| said.value);
        assert_eq!(said, Some(names::CANCELLED.into()), "{name}");
    }

    traced.exporter.reset();
    traced.store.set(ChaosOp::Get, Fault::None);
    let _ = traced.cache.set(2, 7u64).await.unwrap();
    assert_eq!(traced.cache.get_or_set(3, || async { ok(7u64) }).await.map(|value| *value).unwrap(), 7);
    let spans = traced.spans();
    assert!(spans.len() > 4 && spans.iter().all(|span| of(span).is_none()), "{:?}", named(&spans));
}

/// The trace of `span` is its own, and says what set it off.
fn is_caused_by(span: &SpanData, cause: SpanId) {
    assert_eq!(span.parent_span_id, SpanId::INVALID);
    let links: Vec<_> = span.links.iter().map(|link| link.span_context.span_id()).collect();
    assert_eq!(links, [cause]);
    let why = span.links.iter().flat_map(|link| &link.attributes).map(|kv| kv.value.to_string());
    assert_eq!(why.collect::<Vec<_>>(), ["caused_by"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refresh_behind_a_hit_has_a_trace_of_its_own_with_a_link() {
    let policy = Policy::ttl(Duration::from_secs(600)).early(Early::Fraction(0.0001));
    let traced = Traced::with(policy, |telemetry| telemetry, None, false);
    let _ = traced.cache.set(1, 7u64).await.unwrap();
    tokio::time::sleep(Duration::from_millis(80)).await;
    traced.exporter.reset();
    let call = traced.cache.get_or_set(1, || async { ok(8u64) }).with_context(traced.request());
    assert_eq!(*call.await.unwrap(), 7);
    let spans = traced
        .until("the refresh", |spans| {
            named(spans).contains(&"cache.load users") && named(spans).contains(&"cache.get_or_set users")
        })
        .await;
    let (call, load) = (find(&spans, "cache.get_or_set users"), find(&spans, "cache.load users"));
    is_caused_by(load, id(call));
    assert_ne!(load.span_context.trace_id(), call.span_context.trace_id());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_cache_looks_up_for_itself_is_in_no_trace() {
    let traced = Traced::new();
    traced.cache.get_or_set(1, || async { ok(7u64) }).await.unwrap();
    // Once a second, whether anything has been invalidated elsewhere.
    let asked = traced.store.calls(ChaosOp::Get);
    let waited = tokio::time::timeout(Duration::from_secs(30), async {
        while traced.store.calls(ChaosOp::Get) < asked + 2 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    assert!(waited.await.is_ok());
    let spans = traced.spans();
    let roots = spans.iter().filter(|span| span.parent_span_id == SpanId::INVALID);
    assert_eq!(roots.map(|span| &*span.name).collect::<Vec<_>>(), ["cache.get_or_set users"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_written_behind_and_what_is_told_again_have_traces_of_their_own() {
    let policy = Policy::ttl(Duration::from_secs(600));
    let traced = Traced::with(policy, |telemetry| telemetry, None, true);
    let set = traced.cache.set(1, 7u64).with_context(traced.request());
    assert!(!set.await.unwrap().is_confirmed());
    let spans = traced.until("the write", |spans| named(spans).contains(&"cache.write_behind users")).await;
    let behind = find(&spans, "cache.write_behind users");
    is_caused_by(behind, id(find(&spans, "cache.set users")));
    assert!(spans.iter().any(|span| span.name == "put map.test" && span.parent_span_id == id(behind)));

    let traced = Traced::with(policy, |telemetry| telemetry, None, false);
    let _ = traced.cache.set(1, 7u64).await.unwrap();
    traced.store.set_all(Fault::Fail);
    let gone = traced.cache.invalidate(1).with_context(traced.request());
    assert!(!gone.await.unwrap().is_confirmed());
    traced.store.set_all(Fault::None);
    let spans = traced
        .until("the replay", |spans| {
            spans.iter().any(|span| {
                span.name == "cache.replay users"
                    && spans.iter().any(|at| at.parent_span_id == id(span) && at.name == "remove map.test")
            })
        })
        .await;
    is_caused_by(find(&spans, "cache.replay users"), id(find(&spans, "cache.invalidate users")));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writes_say_ttl_and_size_and_a_hit_what_is_left_and_the_marks_count_for_nothing() {
    let traced = Traced::new();
    let _ = traced.cache.set(1, 7u64).with_context(traced.request()).await.unwrap();
    let spans = traced.spans();
    let (set, put) =
        (find(&spans, "cache.set users"), spans.iter().rfind(|s| s.name == "put map.test").unwrap());
    assert_eq!((ttl(set), said(set, names::ITEM_SIZE)), (600.0, Some(1.into())));
    assert!((599.0..=600.0).contains(&ttl(put)), "{put:?}");
    let size = said(put, names::ITEM_SIZE);
    assert!(matches!(size, Some(Value::I64(40..=80))), "{size:?}");
    // The cache's own mark is no item, and lives for ever.
    let marks = spans.iter().filter(|s| s.name == "put map.test" && s.span_context != put.span_context);
    let marked: Vec<_> = marks.map(|s| (said(s, names::TTL), said(s, names::ITEM_SIZE))).collect();
    assert_eq!(marked, [(None, None)]);

    traced.exporter.reset();
    traced.cache.get_or_set(2, || async { ok(7u64) }).with_context(traced.request()).await.unwrap();
    let spans = traced.until("the fill", |spans| named(spans).contains(&"put map.test")).await;
    assert!((599.0..=600.0).contains(&ttl(find(&spans, "put map.test"))));

    // Another node, which has to read the mark along with the first.
    let cache: TracedCache<u64> = TracedCache::builder("users")
        .level(Level::new(Arc::clone(&traced.store)).breaker(None))
        .policy(Policy::ttl(Duration::from_secs(600)))
        .observer(Telemetry::builder().tracer_provider(&traced.provider).build())
        .build()
        .unwrap();
    for _ in 0..2 {
        traced.exporter.reset();
        assert_eq!(cache.get(1).with_context(traced.request()).await.unwrap().as_deref(), Some(&7));
        let spans = traced.spans();
        let (call, read) = (find(&spans, "cache.get users"), find(&spans, "get map.test"));
        assert!((500.0..=600.0).contains(&ttl(call)), "{call:?}");
        assert_eq!(said(call, names::ITEM_SIZE), Some(1.into()));
        assert_eq!((said(read, names::KEY_COUNT), said(read, names::ITEM_SIZE)), (None, size.clone()));
    }
    for (keys, all) in [(vec![1, 2], true), (vec![1, 2, 3], false)] {
        traced.exporter.reset();
        cache.get_many(keys).with_context(traced.request()).await.unwrap();
        let hit = said(find(&traced.spans(), "cache.get_many users"), names::CACHE_HIT);
        assert_eq!(hit, Some(all.into()));
    }
}

struct Table;

impl Source<u64, u64> for Table {
    async fn load(&self, id: &u64) -> Result<Loaded<u64>, BoxError> {
        Ok(Loaded::value(*id))
    }

    async fn save(&self, _: &u64, value: &u64) -> Result<(), BoxError> {
        if *value == 0 { Err("refused".into()) } else { Ok(()) }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_source_that_is_written_has_a_span_within_the_save() {
    let traced = Traced::new();
    let users = traced.cache.clone().with_source(Table);
    assert!(users.save(1u64, 7u64).with_context(traced.request()).await.is_ok());
    assert!(users.save(1u64, 0u64).with_context(traced.request()).await.is_err());
    let spans = traced.spans();
    let saved: Vec<_> = spans.iter().filter(|span| span.name == "cache.source.save users").collect();
    let calls: Vec<_> = spans.iter().filter(|span| span.name == "cache.save users").map(id).collect();
    assert_eq!(saved.iter().map(|span| span.parent_span_id).collect::<Vec<_>>(), calls);
    let errors: Vec<_> = saved.iter().map(|span| said(span, names::ERROR_TYPE)).collect();
    assert_eq!(errors, [None, Some("load".into())]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn other_nodes_are_told_under_the_call() {
    let hub = Hub::new();
    let policy = Policy::ttl(Duration::from_secs(600));
    let traced = Traced::with(policy, |telemetry| telemetry, Some(hub.node()), false);
    let told = traced.cache.invalidate(1).with_context(traced.request()).await;
    assert!(told.unwrap().is_confirmed());
    let spans = traced.spans();
    let publish = find(&spans, "cache.publish users");
    assert_eq!(publish.parent_span_id, id(find(&spans, "cache.invalidate users")));
    assert_eq!(publish.span_kind, SpanKind::Producer);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hits_have_spans_if_asked_for_and_keys_show_their_shape() {
    let policy = Policy::ttl(Duration::from_secs(600));
    let setup =
        |telemetry: TelemetryBuilder| telemetry.trace_hits(true).show_key_patterns(["user:*:profile"]);
    let traced = Traced::with(policy, setup, None, false);
    let _ = traced.cache.set(("user", "ann-secret", "profile"), 7u64).await.unwrap();
    traced.exporter.reset();
    let found = traced.cache.get(("user", "ann-secret", "profile")).with_context(traced.request()).await;
    assert_eq!(found.unwrap().as_deref(), Some(&7));
    let spans = traced.spans();
    let hit = find(&spans, "cache.get users");
    let has = |name: &str, value: Value| {
        assert!(
            hit.attributes.iter().any(|kv| kv.key.as_str() == name && kv.value == value),
            "{name}: {hit:?}"
        );
    };
    has(names::CACHE_HIT, true.into());
    has(names::CACHE_LEVEL, "l1".into());
    has(names::CACHE_KEY, Value::Array(vec![opentelemetry::StringValue::from("user:*:profile")].into()));
    assert!(!format!("{spans:?}").contains("ann-secret"));
    assert_eq!(traced.cache.stats().hits(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_miss_says_why_on_its_span() {
    let traced = Traced::new();
    traced.cache.get(1).with_context(traced.request()).await.unwrap();
    let spans = traced.spans();
    let miss = find(&spans, "cache.get users");
    let reason = miss.attributes.iter().find(|kv| kv.key.as_str() == names::MISS_REASON).unwrap();
    assert_eq!(reason.value, "absent".into());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_warm_up_is_a_call_around_those_of_its_keys() {
    let traced = Traced::new();
    let load =
        |_: (), key: u64| async move { if key == 3 { Err(std::io::Error::other("down")) } else { Ok(key) } };
    let warmed = traced.cache.warm(1..=3u64, 2, &(), load).with_context(traced.request()).await;
    assert_eq!((warmed.warmed, warmed.failed.len()), (2, 1));
    let spans = traced.spans();
    let warm = find(&spans, "cache.warm users");
    let count =
        |name: &str| warm.attributes.iter().find(|kv| kv.key.as_str() == name).map(|kv| kv.value.clone());
    assert_eq!((count(names::KEY_COUNT), count(names::ERROR_COUNT)), (Some(3.into()), Some(1.into())));
    let keys = spans.iter().filter(|span| span.name == "cache.get_or_set users");
    assert_eq!(keys.filter(|span| span.parent_span_id == id(warm)).count(), 3);

    traced.exporter.reset();
    let rows = futures::stream::iter((1..=3u64).map(|key| (key, key * 2)));
    let warmed = traced.cache.warm_from(rows, 2).with_context(traced.request()).await;
    assert_eq!((warmed.warmed, warmed.failed.len()), (3, 0));
    let spans = traced.spans();
    let warm = find(&spans, "cache.warm users");
    assert_eq!(
        (said(warm, names::KEY_COUNT), said(warm, names::ERROR_COUNT)),
        (Some(3.into()), Some(0.into()))
    );
    let keys = spans.iter().filter(|span| span.name == "cache.set users");
    assert_eq!(keys.filter(|span| span.parent_span_id == id(warm)).count(), 3);
}
