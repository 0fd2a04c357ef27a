//! Spans, driven as a cache drives them.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::sync::Arc;

use cache_core::{
    CacheInfo, Description, LevelInfo, LevelOp, Observer, Outcome, Span, SpanKind, SpanStart, Verb,
};
use cache_otel::{Telemetry, names};
use opentelemetry::{
    Context, KeyValue, Value,
    trace::{SpanId, Status, TraceContextExt, Tracer, TracerProvider},
};
use opentelemetry_sdk::trace::{InMemorySpanExporter, Sampler, SdkTracerProvider, SpanData};

const SECRET: &str = "secret-42";

fn users() -> CacheInfo {
    let level =
        |position: &str, provider, in_process| LevelInfo { position: position.into(), provider, in_process };
    let redis = Description::remote("redis", "cache.internal", Some(6380)).within("3");
    CacheInfo::for_tests(
        "users",
        vec![level("l1", Description::local("memory"), true), level("l2", redis, false)],
    )
}

fn start(kind: SpanKind) -> SpanStart<'static> {
    SpanStart { kind, key: Some(SECRET), keys: 1, root: false }
}

fn tracing(sampler: Sampler) -> (SdkTracerProvider, InMemorySpanExporter) {
    let exporter = InMemorySpanExporter::default();
    let provider =
        SdkTracerProvider::builder().with_sampler(sampler).with_simple_exporter(exporter.clone()).build();
    (provider, exporter)
}

fn always() -> (SdkTracerProvider, InMemorySpanExporter) {
    tracing(Sampler::ParentBased(Box::new(Sampler::AlwaysOn)))
}

fn attribute(span: &SpanData, name: &str) -> Option<Value> {
    span.attributes.iter().find(|kv: &&KeyValue| kv.key.as_str() == name).map(|kv| kv.value.clone())
}

fn named<'a>(spans: &'a [SpanData], name: &str) -> &'a SpanData {
    spans.iter().find(|span| span.name == name).unwrap()
}

#[test]
fn a_look_up_is_a_tree_with_names_that_stay_few() {
    let (provider, exporter) = always();
    let telemetry = Telemetry::builder().tracer_provider(&provider).build();
    let cache = users();
    let operation = telemetry.span(&cache, &start(SpanKind::Operation(Verb::GetOrSet))).unwrap();
    operation.within(&mut || {
        let level = telemetry
            .span(&cache, &start(SpanKind::Level { level: 1, op: LevelOp::Get, command: "GET" }))
            .unwrap();
        level.size(155);
        level.failed("timeout");
        drop(level);
        let load = telemetry.span(&cache, &start(SpanKind::Load)).unwrap();
        load.within(&mut || drop(provider.tracer("user").start("SELECT users")));
    });
    operation.found(Outcome::Loaded, None);
    operation.end();
    assert!(!Context::current().has_active_span());

    let spans = exporter.get_finished_spans().unwrap();
    let operation = named(&spans, "cache.get_or_set users");
    let level = named(&spans, "GET");
    let load = named(&spans, "cache.load users");
    assert_eq!(operation.parent_span_id, SpanId::INVALID);
    assert_eq!(level.parent_span_id, operation.span_context.span_id());
    assert_eq!(load.parent_span_id, operation.span_context.span_id());
    assert_eq!(named(&spans, "SELECT users").parent_span_id, load.span_context.span_id());

    assert_eq!(operation.span_kind, opentelemetry::trace::SpanKind::Internal);
    assert_eq!(attribute(operation, names::CACHE_NAME), Some("users".into()));
    assert_eq!(attribute(operation, names::CACHE_OPERATION), Some("get_or_set".into()));
    assert_eq!(attribute(operation, names::CACHE_RESULT), Some("miss".into()));
    assert_eq!(attribute(operation, names::CACHE_HIT), Some(false.into()));
    assert_eq!(attribute(operation, names::CACHE_LEVEL), None);
    assert_eq!(operation.status, Status::Unset);
    assert_eq!(level.span_kind, opentelemetry::trace::SpanKind::Client);
    for (name, value) in [
        (names::DB_SYSTEM, Value::from("redis")),
        (names::DB_OPERATION, "GET".into()),
        (names::SERVER_ADDRESS, "cache.internal".into()),
        (names::SERVER_PORT, 6380.into()),
        (names::DB_NAMESPACE, "3".into()),
        (names::CACHE_NAME, "users".into()),
        (names::CACHE_LEVEL, "l2".into()),
    ] {
        assert_eq!(attribute(level, name), Some(value), "{name}");
    }
    assert_eq!(attribute(level, names::ITEM_SIZE), Some(155.into()));
    assert_eq!(attribute(level, names::ERROR_TYPE), Some("timeout".into()));
    assert!(matches!(level.status, Status::Error { .. }));
    assert!(!format!("{spans:?}").contains(SECRET), "keys are off by default");
}

/// As the conventions have it.
#[test]
fn a_usual_port_is_not_said_and_a_script_is_called_by_what_it_is_for() {
    let (provider, exporter) = always();
    let telemetry = Telemetry::builder().tracer_provider(&provider).build();
    for (system, usual) in [("redis", 6379), ("memcached", 11211)] {
        let level = LevelInfo {
            position: "l1".into(),
            provider: Description::remote(system, "cache.internal", Some(usual)),
            in_process: false,
        };
        let cache = CacheInfo::for_tests("usual", vec![level]);
        let call = telemetry.span(&cache, &start(SpanKind::Operation(Verb::Get))).unwrap();
        call.within(&mut || {
            for command in ["GET", "EVALSHA"] {
                let kind = SpanKind::Level { level: 0, op: LevelOp::Acquire, command };
                telemetry.span(&cache, &start(kind)).unwrap().end();
            }
        });
    }
    let spans = exporter.get_finished_spans().unwrap();
    let levels = spans.iter().filter(|span| attribute(span, names::DB_SYSTEM).is_some());
    assert_eq!(levels.clone().count(), 4);
    for (span, procedure) in levels.zip([false, true, false, true]) {
        assert_eq!(attribute(span, names::SERVER_ADDRESS), Some("cache.internal".into()));
        assert_eq!(attribute(span, names::SERVER_PORT), None);
        assert_eq!(attribute(span, names::DB_NAMESPACE), None);
        assert_eq!(attribute(span, names::DB_PROCEDURE), procedure.then(|| "acquire".into()));
    }
}

#[test]
fn a_hit_says_which_level() {
    let (provider, exporter) = always();
    let telemetry = Telemetry::builder().tracer_provider(&provider).build();
    let span = telemetry.span(&users(), &start(SpanKind::Operation(Verb::Get))).unwrap();
    span.found(Outcome::Hit, Some(1));
    drop(span);
    let spans = exporter.get_finished_spans().unwrap();
    assert_eq!(attribute(&spans[0], names::CACHE_HIT), Some(true.into()));
    assert_eq!(attribute(&spans[0], names::CACHE_LEVEL), Some("l2".into()));
}

#[test]
fn waiters_link_to_the_load_and_background_work_has_its_own_trace() {
    let (provider, exporter) = always();
    let telemetry = Telemetry::builder().tracer_provider(&provider).build();
    let cache = users();
    let waiter = telemetry.span(&cache, &start(SpanKind::Operation(Verb::Get))).unwrap();
    let mut load: Option<Arc<dyn Span>> = None;
    waiter.within(&mut || {
        load = telemetry.span(&cache, &SpanStart { root: true, ..start(SpanKind::Load) });
    });
    let load = load.unwrap();
    waiter.link(&*load);
    drop((waiter, load));

    let spans = exporter.get_finished_spans().unwrap();
    let (waiter, load) = (named(&spans, "cache.get users"), named(&spans, "cache.load users"));
    assert_ne!(waiter.span_context.trace_id(), load.span_context.trace_id());
    assert_eq!(load.parent_span_id, SpanId::INVALID);
    let linked: Vec<_> = waiter.links.iter().map(|link| link.span_context.span_id()).collect();
    assert_eq!(linked, [load.span_context.span_id()]);
    let set_off_by: Vec<_> = load.links.iter().map(|link| link.span_context.span_id()).collect();
    assert_eq!(set_off_by, [waiter.span_context.span_id()]);
}

#[test]
fn nothing_is_made_where_nothing_records() {
    let cache = users();
    let start = start(SpanKind::Operation(Verb::Get));
    // No tracer at all.
    assert!(Telemetry::global().span(&cache, &start).is_none());

    // A parent that was sampled out.
    let (provider, exporter) = always();
    let (off, _) = tracing(Sampler::AlwaysOff);
    let telemetry = Telemetry::builder().tracer_provider(&provider).build();
    let guard = Context::current_with_span(off.tracer("user").start("request")).attach();
    assert!(telemetry.span(&cache, &start).is_none());
    assert!(telemetry.ambient().is_some(), "a load keeps to the decision of its caller's trace");
    drop(guard);

    // A scope that is kept out of telemetry.
    let guard = Context::enter_telemetry_suppressed_scope();
    assert!(telemetry.span(&cache, &start).is_none());
    drop(guard);
    assert!(telemetry.ambient().is_none());
    assert!(exporter.get_finished_spans().unwrap().is_empty());
}

#[test]
fn a_root_that_is_sampled_out_takes_its_children_along() {
    let (provider, exporter) = tracing(Sampler::ParentBased(Box::new(Sampler::AlwaysOff)));
    let telemetry = Telemetry::builder().tracer_provider(&provider).build();
    let cache = users();
    let operation = telemetry.span(&cache, &start(SpanKind::Operation(Verb::Get))).unwrap();
    operation.within(&mut || {
        assert!(telemetry.span(&cache, &start(SpanKind::Load)).is_none());
    });
    drop(operation);
    assert!(exporter.get_finished_spans().unwrap().is_empty());
}

#[test]
fn keys_are_shown_as_the_user_says() {
    let (provider, exporter) = always();
    let cache = users();
    let telemetry = Telemetry::builder()
        .tracer_provider(&provider)
        .show_keys(|key| match key {
            "panic" => panic!("a broken mask"),
            key => key.split_once('-').map(|(head, _)| format!("{head}-*")),
        })
        .build();
    for key in [SECRET, "panic", "plain"] {
        let start = SpanStart { key: Some(key), ..start(SpanKind::Operation(Verb::Get)) };
        drop(telemetry.span(&cache, &start));
    }
    let keys: Vec<_> = exporter
        .get_finished_spans()
        .unwrap()
        .iter()
        .map(|span| attribute(span, names::CACHE_KEY).map(|key| key.to_string()))
        .collect();
    assert_eq!(keys, [Some(r#"["secret-*"]"#.to_owned()), None, None]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_callers_context_reaches_work_on_another_task() {
    let (provider, exporter) = always();
    let telemetry = Telemetry::builder().tracer_provider(&provider).build();
    let request = Context::current_with_span(provider.tracer("user").start("request"));
    let guard = request.clone().attach();
    let ambient = telemetry.ambient().unwrap();
    drop(guard);
    tokio::spawn(async move {
        ambient.within(&mut || drop(telemetry.span(&users(), &start(SpanKind::Load))));
    })
    .await
    .unwrap();
    let spans = exporter.get_finished_spans().unwrap();
    let load = named(&spans, "cache.load users");
    assert_eq!(load.parent_span_id, request.span().span_context().span_id());
}

#[test]
fn a_span_ends_although_its_context_lives_on() {
    let (provider, exporter) = always();
    let telemetry = Telemetry::builder().tracer_provider(&provider).build();
    let span = telemetry.span(&users(), &start(SpanKind::Load)).unwrap();
    let mut kept = None;
    span.within(&mut || kept = Some(Context::current()));
    drop(span);
    assert_eq!(exporter.get_finished_spans().unwrap().len(), 1);
    assert!(kept.is_some_and(|cx| cx.has_active_span()));
}

#[test]
fn sentry_finds_what_it_goes_by() {
    let (provider, exporter) = always();
    let telemetry = Telemetry::builder().tracer_provider(&provider).sentry(true).build();
    for (verb, fails) in
        [(Verb::GetOrSet, false), (Verb::Set, false), (Verb::SetMany, true), (Verb::Clear, false)]
    {
        let span = telemetry.span(&users(), &start(SpanKind::Operation(verb))).unwrap();
        if fails {
            span.failed("level");
        }
        span.end();
    }
    let spans = exporter.get_finished_spans().unwrap();
    exporter.reset();
    let seen: Vec<_> = spans
        .iter()
        .map(|span| {
            let write = attribute(span, "cache.write").map(|write| write == Value::Bool(true));
            (attribute(span, "sentry.op").unwrap().to_string(), write)
        })
        .collect();
    let expected = [
        ("cache.get", None),
        ("cache.put", Some(true)),
        ("cache.put", Some(false)),
        ("cache.flush", Some(true)),
    ];
    assert_eq!(seen, expected.map(|(op, write)| (op.to_owned(), write)));

    // Each of this op says whether it hit: one that failed or was given up has not, and of several keys all have or it has not.
    let op = |verb, keys, end: &dyn Fn(&dyn Span)| {
        let start = SpanStart { keys, ..start(SpanKind::Operation(verb)) };
        let span = telemetry.span(&users(), &start).unwrap();
        end(&*span);
        drop(span);
    };
    op(Verb::Get, 1, &|span| span.found(Outcome::Hit, Some(1)));
    op(Verb::GetOrSet, 1, &|span| span.failed("load"));
    op(Verb::GetMany, 2, &|span| span.found_all(true));
    op(Verb::GetMany, 2, &|span| span.found_all(false));
    op(Verb::GetOrSetMany, 2, &|_| {});
    let spans = exporter.get_finished_spans().unwrap();
    let hits: Vec<_> = spans.iter().map(|span| attribute(span, names::CACHE_HIT)).collect();
    assert_eq!(hits, [true, false, true, false, false].map(|hit| Some(hit.into())));
    assert!(spans.iter().all(|span| attribute(span, "sentry.op") == Some("cache.get".into())));
}

#[test]
fn hits_have_spans_where_a_trace_wants_them() {
    let (provider, _) = always();
    let off = Telemetry::builder().tracer_provider(&provider).build();
    let on = Telemetry::builder().tracer_provider(&provider).trace_hits(true).build();
    assert!(!off.traces_hits() && !off.traces_hit());
    assert!(on.traces_hits() && on.traces_hit());
    let (unsampled, _) = tracing(Sampler::AlwaysOff);
    let guard = Context::current_with_span(unsampled.tracer("user").start("request")).attach();
    assert!(!on.traces_hit(), "its trace was sampled out");
    drop(guard);
    let nowhere = Telemetry::builder().trace_hits(true).build();
    assert!(nowhere.span(&users(), &start(SpanKind::Load)).is_none());
    assert!(!nowhere.traces_hit(), "no tracer is installed");
}
