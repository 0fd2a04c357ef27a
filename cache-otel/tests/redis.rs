//! Raw redis-rs connections against real servers.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests")]

mod common;

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use cache_otel::{
    Vocabulary,
    raw::{Class, ClientTelemetry, ClientTelemetryBuilder, Command, PoolState, ServerWatch, redis::Traced},
};
use common::{Reader, heard::Heard, of, sum};
use opentelemetry::{
    Context, Value,
    trace::{FutureExt, SpanKind, Status, TraceContextExt, Tracer, TracerProvider},
};
use opentelemetry_sdk::{
    metrics::Temporality,
    trace::{InMemorySpanExporter, SdkTracerProvider, SpanData},
};
use redis::{AsyncCommands, Commands, RedisError, RedisResult, Script, aio::MultiplexedConnection};
use test_servers::{RedisCluster, RedisServer};

const SECRET: &str = "ann@example.org";

struct Watched {
    reader: Reader,
    tracers: SdkTracerProvider,
    spans: InMemorySpanExporter,
}

impl Watched {
    fn new() -> Self {
        let spans = InMemorySpanExporter::default();
        let tracers = SdkTracerProvider::builder().with_simple_exporter(spans.clone()).build();
        Self { reader: Reader::new(Temporality::Cumulative), tracers, spans }
    }

    fn client(&self) -> ClientTelemetryBuilder {
        ClientTelemetry::builder("redis", "sessions")
            .server("cache.internal", 6380)
            .meter_provider(&self.reader.provider)
            .tracer_provider(&self.tracers)
    }

    fn take(&self) -> Vec<SpanData> {
        let spans = self.spans.get_finished_spans().unwrap();
        self.spans.reset();
        spans
    }

    fn only(&self) -> SpanData {
        let [span] = self.take().try_into().unwrap();
        span
    }
}

fn attribute(span: &SpanData, name: &str) -> Option<Value> {
    span.attributes.iter().find(|kv| kv.key.as_str() == name).map(|kv| kv.value.clone())
}

async fn connect(server: &RedisServer) -> MultiplexedConnection {
    let client = redis::Client::open(server.url()).unwrap();
    client.get_multiplexed_async_connection().await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_command_is_a_client_span_with_what_it_was_about() {
    let Some(server) = RedisServer::start() else { return };
    let watched = Watched::new();
    let mut redis = Traced::new(connect(&server).await, watched.client().query_text(true).build());
    let request = Context::new().with_span(watched.tracers.tracer("shop").start("request"));

    let set = redis.set_ex::<_, _, ()>(SECRET, "12345", 60).with_context(request.clone());
    set.await.unwrap();
    let span = watched.only();
    assert_eq!((&*span.name, &span.span_kind, &span.status), ("SETEX", &SpanKind::Client, &Status::Unset));
    assert_eq!(span.parent_span_id, request.span().span_context().span_id());
    for (name, value) in [
        ("db.system.name", Value::from("redis")),
        ("db.operation.name", "SETEX".into()),
        ("db.operation.class", "write".into()),
        ("db.client.name", "sessions".into()),
        ("db.namespace", "0".into()),
        ("db.query.text", "SETEX ? ? ?".into()),
        ("server.address", "cache.internal".into()),
        ("server.port", 6380.into()),
        ("cache.item_size", 5.into()),
        ("cache.ttl", 60.0.into()),
    ] {
        assert_eq!(attribute(&span, name), Some(value), "{name}");
    }

    let found: Option<String> = redis.get(SECRET).await.unwrap();
    assert_eq!(found.as_deref(), Some("12345"));
    let span = watched.only();
    assert_eq!(attribute(&span, "cache.hit"), Some(true.into()));
    assert_eq!(attribute(&span, "cache.item_size"), Some(5.into()));
    let missing: Option<String> = redis.get("missing").await.unwrap();
    let span = watched.only();
    assert_eq!(
        (missing, attribute(&span, "cache.hit"), span.status),
        (None, Some(false.into()), Status::Unset)
    );

    let all: Vec<Option<String>> = redis.mget(&[SECRET, "missing", "other"]).await.unwrap();
    assert_eq!(all.iter().flatten().count(), 1);
    let span = watched.only();
    assert_eq!((&*span.name, attribute(&span, "cache.key.count")), ("MGET", Some(3.into())));
    assert_eq!(attribute(&span, "cache.hit.count"), Some(1.into()));
    assert_eq!(attribute(&span, "cache.miss.count"), Some(2.into()));
    assert_eq!(attribute(&span, "db.operation.batch.size"), None, "one command is no batch");

    redis.hset_multiple::<_, _, _, ()>("h", &[("a", 1), ("b", 2)]).await.unwrap();
    let fields: std::collections::HashMap<String, u32> = redis.hgetall("h").await.unwrap();
    let spans = watched.take();
    assert_eq!(fields.len(), 2);
    assert_eq!(attribute(&spans[1], "db.response.returned_rows"), Some(2.into()));
    let deleted: u32 = redis.del(&["h", "missing"]).await.unwrap();
    let span = watched.only();
    assert_eq!((deleted, attribute(&span, "cache.deleted.count")), (1, Some(1.into())));
    assert_eq!(attribute(&span, "db.operation.class"), Some("delete".into()));
    let shown = format!("{:?} {spans:?} {span:?}", watched.client());
    assert!(!shown.contains(SECRET) && !format!("{:?}", watched.reader.collect()).contains(SECRET));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pipelines_transactions_and_scripts_are_one_span() {
    let Some(server) = RedisServer::start() else { return };
    let watched = Watched::new();
    let mut redis = Traced::new(connect(&server).await, watched.client().build());

    let mut pipe = redis::pipe();
    pipe.cmd("SET").arg("a").arg(1).ignore().cmd("GET").arg("a").cmd("GET").arg("b");
    let (a, b): (u32, Option<u32>) = pipe.query_async(&mut redis).await.unwrap();
    assert_eq!((a, b), (1, None));
    let span = watched.only();
    assert_eq!((&*span.name, attribute(&span, "db.operation.batch.size")), ("PIPELINE", Some(3.into())));
    assert_eq!(attribute(&span, "db.operation.batch.get"), Some(2.into()));

    let mut pipe = redis::pipe();
    pipe.atomic().cmd("INCR").arg("n").cmd("INCR").arg("n");
    let (_, n): (u32, u32) = pipe.query_async(&mut redis).await.unwrap();
    let span = watched.only();
    assert_eq!((n, &*span.name), (2, "MULTI INCR"));
    assert_eq!(attribute(&span, "db.operation.class"), Some("transaction".into()));

    let script = Script::new("return redis.call('GET', KEYS[1])");
    let found: u32 = script.key("a").invoke_async(&mut redis).await.unwrap();
    let spans = watched.take();
    let last = spans.last().unwrap();
    assert_eq!((found, &*last.name), (1, "EVALSHA"));
    assert_eq!(attribute(last, "db.stored_procedure.name"), Some(script.get_hash().to_owned().into()));
}

/// How often each result of a look-up has been counted: hits, misses.
fn lookups(watched: &Watched) -> (f64, f64) {
    let series = watched.reader.collect();
    let of = |result| {
        let name = format!("db.client.lookups{{cache.result={result},db.client.name=sessions}}");
        series.get(&name).copied().unwrap_or_default()
    };
    (of("hit"), of("miss"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn texts_of_several_are_theirs_without_their_arguments() {
    let Some(server) = RedisServer::start() else { return };
    let watched = Watched::new();
    let client = watched.client().server("cache.internal", 6379).query_text(true).build();
    let mut redis = Traced::new(connect(&server).await, client.clone());
    let text = |span: &SpanData| attribute(span, "db.query.text").unwrap().to_string();

    let mut pipe = redis::pipe();
    pipe.cmd("SET").arg(SECRET).arg(1).ignore().cmd("GET").arg(SECRET).cmd("PING").ignore();
    let _: (u32,) = pipe.query_async(&mut redis).await.unwrap();
    let span = watched.only();
    assert_eq!(text(&span), "SET ? ?; GET ?; PING");
    assert_eq!(attribute(&span, "server.port"), None, "the usual one");
    pipe.atomic();
    let _: (u32,) = pipe.query_async(&mut redis).await.unwrap();
    assert_eq!(text(&watched.only()), "SET ? ?; GET ?; PING");

    let mut many = redis::pipe();
    for n in 0..100 {
        many.cmd("GET").arg(n).ignore();
    }
    let _: () = many.query_async(&mut redis).await.unwrap();
    assert_eq!(text(&watched.only()), format!("{}...", "GET ?; ".repeat(16)));
    let mut long = redis::pipe();
    long.cmd("SET").arg(1).arg(1).ignore().cmd("DEL").arg((0..20).collect::<Vec<_>>()).ignore();
    let _: () = long.query_async(&mut redis).await.unwrap();
    assert_eq!(text(&watched.only()), format!("SET ? ?; DEL{} ...", " ?".repeat(14)));

    // The same of a connection that blocks, which hands on bytes.
    let sync = redis::Client::open(server.url()).unwrap().get_connection().unwrap();
    let mut redis = Traced::new(sync, client);
    let _: (u32,) = pipe.query(&mut redis).unwrap();
    assert_eq!(text(&watched.only()), "SET ? ?; GET ?; PING");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn look_ups_that_go_together_are_counted_like_single_ones() {
    let Some(server) = RedisServer::start() else { return };
    let watched = Watched::new();
    let client = redis::Client::open(server.url()).unwrap();
    let mut redis = Traced::new(connect(&server).await, watched.client().build());
    let mut blocking = Traced::new(client.get_connection().unwrap(), watched.client().build());

    let mut pipe = redis::pipe();
    pipe.cmd("SET").arg("a").arg(1).ignore().cmd("GET").arg("a").cmd("get").arg("b");
    pipe.cmd("MGET").arg("a").arg("b").arg("c").cmd("DEL").arg("b").arg("c");
    pipe.query_async::<()>(&mut redis).await.unwrap();
    assert_eq!(lookups(&watched), (2.0, 3.0));
    let span = watched.only();
    assert_eq!(attribute(&span, "cache.hit.count"), Some(2.into()));
    assert_eq!(attribute(&span, "cache.deleted.count"), Some(0.into()));
    pipe.query::<()>(&mut blocking).unwrap();
    assert_eq!(lookups(&watched), (4.0, 6.0));
    pipe.atomic().query_async::<()>(&mut redis).await.unwrap();
    assert_eq!(lookups(&watched), (6.0, 9.0));
    pipe.query::<()>(&mut blocking).unwrap();
    assert_eq!(lookups(&watched), (8.0, 12.0));
    watched.take();

    // Given up, because somebody else has written: nothing was looked up, and nothing has failed.
    redis::cmd("WATCH").arg("a").query_async::<()>(&mut redis).await.unwrap();
    blocking.set::<_, _, ()>("a", 2).unwrap();
    let given_up: Option<Vec<u32>> =
        redis::pipe().atomic().cmd("GET").arg("a").query_async(&mut redis).await.unwrap();
    assert_eq!((given_up, lookups(&watched)), (None, (8.0, 12.0)));
    assert!(watched.take().iter().all(|span| span.status == Status::Unset));

    // By hand, it is counted nowhere yet that the server only took note of it.
    for command in ["MULTI", "GET", "EXEC"] {
        let mut command = redis::cmd(command);
        if command.args_iter().next() == Some(redis::Arg::Simple(b"GET")) {
            command.arg("a");
        }
        command.query::<redis::Value>(&mut blocking).unwrap();
    }
    assert_eq!(lookups(&watched), (8.0, 12.0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transaction_has_failed_where_one_of_its_commands_has() {
    let Some(server) = RedisServer::start() else { return };
    let watched = Watched::new();
    let client = redis::Client::open(server.url()).unwrap();
    let telemetry = watched.client().build();
    let mut redis = Traced::new(connect(&server).await, telemetry.clone());
    let mut blocking = Traced::new(client.get_connection().unwrap(), telemetry.clone());
    let wrong = || {
        let mut pipe = redis::pipe();
        pipe.cmd("SET").arg("text").arg("x").cmd("LPUSH").arg("text").arg(SECRET).cmd("GET").arg("text");
        pipe
    };
    let by_hand = || {
        let mut pipe = redis::pipe();
        pipe.cmd("MULTI").cmd("LPUSH").arg("text").arg(SECRET).cmd("EXEC");
        pipe
    };
    assert!(wrong().query_async::<()>(&mut redis).await.is_err());
    assert!(wrong().atomic().query_async::<()>(&mut redis).await.is_err());
    assert!(wrong().atomic().query::<()>(&mut blocking).is_err());
    assert!(by_hand().query_async::<()>(&mut redis).await.is_err());
    assert!(by_hand().query::<()>(&mut blocking).is_err());
    let spans = watched.take();
    assert_eq!(spans.len(), 5);
    for span in spans {
        assert_eq!(span.status, Status::error("WRONGTYPE"), "{}", span.name);
    }
    assert!(telemetry.stats().iter().all(|one| one.calls == one.failed), "{:?}", telemetry.stats());
    // What went well with it is counted all the same.
    assert_eq!(lookups(&watched), (3.0, 0.0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_script_has_failed_where_an_error_is_in_its_answer() {
    let Some(server) = RedisServer::start() else { return };
    let watched = Watched::new();
    let mut redis = Traced::new(connect(&server).await, watched.client().build());
    let script = "return {1, {redis.error_reply('LATE as ever')}}";
    assert!(redis::cmd("EVAL").arg(script).arg(0).query_async::<redis::Value>(&mut redis).await.is_err());
    let span = watched.only();
    assert_eq!((span.status, span.name.as_ref()), (Status::error("LATE"), "EVAL"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_that_answers_with_what_there_was_has_one_size() {
    let Some(server) = RedisServer::start() else { return };
    let watched = Watched::new();
    let mut redis = Traced::new(connect(&server).await, watched.client().build());
    for (stored, before) in [("four", None), ("twelve", Some("four".to_owned()))] {
        let set = redis::cmd("SET").arg("k").arg(stored).arg("GET").to_owned();
        assert_eq!(set.query_async::<Option<String>>(&mut redis).await.unwrap(), before);
        let span = watched.only();
        let sizes: Vec<_> =
            span.attributes.iter().filter(|kv| kv.key.as_str() == "cache.item_size").collect();
        assert!(sizes.len() == 1 && sizes[0].value == (stored.len() as i64).into(), "{sizes:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn failures_have_a_class_and_a_code() {
    let Some(server) = RedisServer::start() else { return };
    let watched = Watched::new();
    let mut redis = Traced::new(connect(&server).await, watched.client().build());
    redis.set::<_, _, ()>("text", "not a list").await.unwrap();
    watched.take();

    assert!(redis.lpush::<_, _, ()>("text", SECRET).await.is_err());
    let span = watched.only();
    assert_eq!(attribute(&span, "error.type"), Some("command".into()));
    assert_eq!(attribute(&span, "db.response.status_code"), Some("WRONGTYPE".into()));
    assert_eq!(span.status, Status::error("WRONGTYPE"));

    let stalled = redis::cmd("BLPOP").arg("nothing").arg(60).to_owned();
    let left = tokio::time::timeout(Duration::from_millis(50), stalled.query_async::<()>(&mut redis)).await;
    assert!(left.is_err());
    assert_eq!(attribute(&watched.only(), "error.type"), Some("cancelled".into()));

    server.kill();
    let lost: RedisResult<()> = redis.get("text").await;
    assert!(lost.is_err());
    assert_eq!(attribute(&watched.take()[0], "error.type"), Some("connection".into()));
    let series = watched.reader.collect();
    let errors: Vec<_> = of(&series, "db.client.operation.duration_count")
        .filter(|(name, _)| name.contains("error.type="))
        .map(|(name, _)| name.clone())
        .collect();
    assert_eq!(errors.len(), 3, "{series:#?}");
    assert_eq!(series["db.client.operation.active{db.client.name=sessions}"], 0.0);
}

#[test]
fn a_blocking_connection_is_the_same() {
    let Some(server) = RedisServer::start() else { return };
    let watched = Watched::new();
    let connection = redis::Client::open(server.url()).unwrap().get_connection().unwrap();
    let client = watched.client().build();
    let mut redis = Traced::new(connection, client.clone());
    redis.set::<_, _, ()>("a", 7).unwrap();
    let a: u32 = redis.get("a").unwrap();
    let missing: Option<u32> = redis.get("b").unwrap();
    assert_eq!((a, missing), (7, None));
    let mut pipe = redis::pipe();
    let (n,): (u32,) = pipe.atomic().cmd("INCR").arg("n").query(&mut redis).unwrap();
    let mut pipe = redis::pipe();
    let both: Vec<u32> = pipe.cmd("GET").arg("a").cmd("GET").arg("n").query(&mut redis).unwrap();
    assert_eq!((n, both), (1, vec![7, 1]));
    let names: Vec<_> = watched.take().iter().map(|span| span.name.to_string()).collect();
    assert_eq!(names, ["SET", "GET", "GET", "MULTI INCR", "PIPELINE GET"]);
    let get = client.stats().into_iter().find(|status| status.operation == "GET").unwrap();
    assert_eq!((get.calls, get.failed), (2, 0));
    assert!(get.latency.is_some_and(|latency| latency.count == 2 && latency.p50 <= latency.p99));
    let series = watched.reader.collect();
    assert_eq!(lookups(&watched), (3.0, 1.0));
    assert_eq!(sum(&series, "db.client.operation.duration_count"), 5.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_connection_is_the_same() {
    let Some(cluster) = RedisCluster::start(3, 0) else { return };
    let watched = Watched::new();
    let client = redis::cluster::ClusterClient::new(cluster.urls()).unwrap();
    let connection = client.get_async_connection().await.unwrap();
    let mut redis = Traced::new(connection, watched.client().build());
    for n in 0..20u32 {
        redis.set::<_, _, ()>(n, n).await.unwrap();
    }
    let seven: u32 = redis.get(7).await.unwrap();
    assert_eq!(seven, 7);
    let spans = watched.take();
    assert_eq!((spans.len(), &*spans[20].name), (21, "GET"));
}

#[tokio::test(flavor = "current_thread")]
async fn a_slow_command_is_counted_and_one_line_that_hides_the_key() {
    let Some(server) = RedisServer::start() else { return };
    let heard = Heard::begin();
    let watched = Watched::new();
    let client = watched.client().slow_after(Duration::from_millis(200));
    let mut redis = Traced::new(connect(&server).await, client.build());
    let mut other = connect(&server).await;
    let mut pause = async || {
        redis::cmd("CLIENT").arg("PAUSE").arg(300).arg("ALL").query_async::<()>(&mut other).await.unwrap();
    };
    pause().await;
    assert_eq!(redis.get::<_, Option<String>>(SECRET).await.unwrap(), None);
    redis.set::<_, _, ()>("quick", 1).await.unwrap();
    pause().await;
    redis::cmd("DBSIZE").query_async::<u64>(&mut redis).await.unwrap();
    // What is told to wait is as fast as it can be.
    let waits = redis::cmd("BLPOP").arg("nothing").arg(0.3).to_owned();
    waits.query_async::<Option<(String, String)>>(&mut redis).await.unwrap();
    redis::cmd("WAIT").arg(1).arg(300).query_async::<()>(&mut redis).await.unwrap();
    let series = watched.reader.collect();
    let counted: Vec<_> = of(&series, "db.client.slow_commands").collect();
    let of = |class, name| {
        format!(
            "db.client.slow_commands{{db.client.name=sessions,db.operation.class={class},db.operation.name={name}}}"
        )
    };
    // Each that may be slow is there from zero on.
    let expected = [(of("admin", "DBSIZE"), 1.0), (of("read", "GET"), 1.0), (of("write", "SET"), 0.0)];
    assert_eq!(counted, expected.each_ref().map(|(name, count)| (name, *count)));
    let text = heard.text();
    let lines: Vec<&str> = text.lines().collect();
    let [keyed, keyless] = lines[..] else { panic!("two lines: {text}") };
    assert!(keyed.contains("a slow command") && keyed.contains("GET"), "{keyed}");
    assert!(keyed.contains("key=\"***\"") && keyed.contains("key_length=15"), "{keyed}");
    assert!(keyless.contains("DBSIZE") && !keyless.contains("key"), "{keyless}");
    let took = keyless.split_once("took_ms=").unwrap().1;
    assert!(took.split_once('.').is_none_or(|(_, decimals)| decimals.trim_end().len() <= 3), "{took}");
    assert!(!text.contains(SECRET), "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn older_dashboards_get_their_names() {
    let Some(server) = RedisServer::start() else { return };
    let watched = Watched::new();
    let telemetry = watched.client().vocabulary(Vocabulary::Seeds).build();
    let pool = telemetry.pool("main").observe(|| Some(PoolState { used: 1, idle: 2, max: 10, pending: 3 }));
    pool.acquired(Duration::from_millis(2));
    let mut redis = Traced::new(connect(&server).await, telemetry.clone());
    redis.set::<_, _, ()>("text", 1).await.unwrap();
    assert!(redis.lpush::<_, _, ()>("text", 1).await.is_err());
    let client = redis::Client::open(server.url()).unwrap();
    let watch = ServerWatch::open(&telemetry, client, Duration::from_millis(50));
    for _ in 0..500 {
        if watch.is_up() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let series = watched.reader.collect();
    for (name, value) in [
        ("redis_commands{command=set,name=sessions,status=success}", 1.0),
        ("redis_commands{command=lpush,name=sessions,status=error}", 1.0),
        ("redis_command_errors{command=lpush,name=sessions}", 1.0),
        ("redis_command_errors{command=set,name=sessions}", 0.0),
        ("redis_command_duration_count{command=set,name=sessions}", 1.0),
        ("redis.active_operations{name=sessions}", 0.0),
        ("redis.pool.size{name=main}", 3.0),
        ("redis.pool.available{name=main}", 2.0),
        ("redis.pool.pending{name=main}", 3.0),
        ("redis_pool_connections{name=main,state=in_use}", 1.0),
        ("redis.pool.acquire_time_count{name=main}", 1.0),
        ("redis.connection_pool.size{name=main}", 3.0),
        ("redis.connection_pool.available{name=main}", 2.0),
        ("redis.connection_pool.in_use{name=main}", 1.0),
        ("redis.slow_queries{cache_group=sessions,name=sessions,operation=set}", 0.0),
        ("redis.connection_errors{error_type=timeout,name=main}", 0.0),
    ] {
        assert_eq!(series.get(name), Some(&value), "{name}: {series:#?}");
    }
    for name in ["redis_memory_max_bytes", "redis_keyspace_read_hits", "redis_keyspace_read_misses"] {
        assert_eq!(of(&series, name).map(|(_, value)| value).collect::<Vec<_>>(), [0.0], "{name}");
    }
    let bounds = watched.reader.bounds("redis.pool.acquire_time");
    let bucket = |ms: f64| bounds.iter().position(|bound| ms <= *bound);
    assert!(bucket(0.3) < bucket(2.0), "in milliseconds: {bounds:?}");
}

#[test]
fn pools_are_reported_by_the_conventions_and_silent_when_unreadable() {
    let watched = Watched::new();
    let telemetry = watched.client().build();
    let state = Arc::new(Mutex::new(Some(PoolState { used: 3, idle: 1, max: 4, pending: 2 })));
    let read = Arc::clone(&state);
    let pool = telemetry.pool("main").observe(move || *read.lock().unwrap());
    pool.acquired(Duration::from_millis(2));
    pool.created(Duration::from_millis(3));
    pool.released(Duration::from_millis(4));
    pool.timed_out();
    let series = watched.reader.collect();
    let name = "db.client.connection.pool.name=main";
    for (metric, value) in [
        (format!("db.client.connection.count{{{name},db.client.connection.state=used}}"), 3.0),
        (format!("db.client.connection.count{{{name},db.client.connection.state=idle}}"), 1.0),
        (format!("db.client.connection.max{{{name}}}"), 4.0),
        (format!("db.client.connection.pending_requests{{{name}}}"), 2.0),
        (format!("db.client.connection.wait_time_count{{{name}}}"), 1.0),
        (format!("db.client.connection.create_time_count{{{name}}}"), 1.0),
        (format!("db.client.connection.use_time_count{{{name}}}"), 1.0),
        (format!("db.client.connection.timeouts{{{name}}}"), 1.0),
        ("db.client.connection.pools{db.client.name=sessions}".to_owned(), 1.0),
    ] {
        let sorted = series.iter().find(|(seen, _)| {
            let parts = |text: &str| {
                let (head, rest) = text.split_once('{').unwrap();
                let mut all: Vec<_> = rest.trim_end_matches('}').split(',').map(str::to_owned).collect();
                all.sort();
                (head.to_owned(), all)
            };
            parts(seen) == parts(&metric)
        });
        assert_eq!(sorted.map(|(_, value)| *value), Some(value), "{metric}: {series:#?}");
    }
    *state.lock().unwrap() = None;
    assert_eq!(of(&watched.reader.collect(), "db.client.connection.max").count(), 0);
    let bad = telemetry.pool("bad").observe(|| panic!("a broken pool"));
    watched.reader.collect();
    assert_eq!(sum(&watched.reader.collect(), "db.client.connection.timeouts"), 1.0, "the reader lives on");
    drop(bad);
}

/// S33: the spans of the seeds, with what they have around a pool.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pools_making_and_its_end_are_spans_with_the_ping_under_the_first() {
    let Some(server) = RedisServer::start() else { return };
    let watched = Watched::new();
    let telemetry = watched.client().build();
    let admin = |name| {
        let mut command = Command::named(name);
        command.class = Class::Admin;
        command
    };
    let made = telemetry.run(admin("pool.create"), async {
        let mut first = Traced::new(connect(&server).await, telemetry.clone());
        redis::cmd("PING").query_async::<String>(&mut first).await?;
        Ok::<_, RedisError>(first)
    });
    let pool = made.await.unwrap();
    let end = async {
        drop(pool);
        Ok::<_, RedisError>(())
    };
    telemetry.run(admin("pool.destroy"), end).await.unwrap();
    let [ping, create, destroy] = watched.take().try_into().unwrap();
    assert_eq!([&*ping.name, &*create.name, &*destroy.name], ["PING", "pool.create", "pool.destroy"]);
    assert_eq!(ping.parent_span_id, create.span_context.span_id());
    assert_eq!((create.status, destroy.status), (Status::Unset, Status::Unset));
    let failed = async { Err::<(), _>(std::io::Error::other("nobody listens")) };
    assert!(telemetry.run(admin("pool.create"), failed).await.is_err());
    assert!(matches!(watched.only().status, Status::Error { .. }));
}

#[test]
fn a_pool_may_count_anything() {
    let watched = Watched::new();
    let client = watched.client().vocabulary(Vocabulary::Seeds).build();
    let many = PoolState { used: u32::MAX, idle: 1, max: 0, pending: 0 };
    let _pool = client.pool("main").observe(move || Some(many));
    assert_eq!(watched.reader.collect()["redis.pool.size{name=main}"], 4_294_967_296.0);
}

#[test]
fn a_pool_that_is_gone_is_let_go_and_not_reported() {
    let watched = Watched::new();
    let telemetry = watched.client().build();
    let state = Arc::new(PoolState { used: 1, idle: 0, max: 1, pending: 7 });
    let read = Arc::clone(&state);
    let pool = telemetry.pool("main").observe(move || Some(*read));
    let clone = pool.clone();
    drop(pool);
    let pending = "db.client.connection.pending_requests";
    assert_eq!(sum(&watched.reader.collect(), pending), 7.0);
    drop(clone);
    assert_eq!(Arc::strong_count(&state), 1);
    assert_eq!(of(&watched.reader.collect(), pending).count(), 0);
    let _next = telemetry.pool("main").observe(|| Some(PoolState { used: 0, idle: 3, max: 3, pending: 0 }));
    assert_eq!(of(&watched.reader.collect(), pending).map(|(_, value)| value).collect::<Vec<_>>(), [0.0]);
}

/// Records every span and samples none.
#[derive(Clone, Debug)]
struct RecordOnly;

impl opentelemetry_sdk::trace::ShouldSample for RecordOnly {
    fn should_sample(
        &self,
        _: Option<&Context>,
        _: opentelemetry::TraceId,
        _: &str,
        _: &SpanKind,
        _: &[opentelemetry::KeyValue],
        _: &[opentelemetry::trace::Link],
    ) -> opentelemetry_sdk::trace::SamplingResult {
        opentelemetry_sdk::trace::SamplingResult {
            decision: opentelemetry_sdk::trace::SamplingDecision::RecordOnly,
            attributes: Vec::new(),
            trace_state: opentelemetry::trace::TraceState::default(),
        }
    }
}

#[test]
fn a_parent_that_records_and_is_not_sampled_stays_its_owners() {
    let tracers = SdkTracerProvider::builder().with_sampler(RecordOnly).build();
    let client = ClientTelemetry::builder("redis", "sessions").tracer_provider(&tracers).build();
    let request = Context::new().with_span(tracers.tracer("shop").start("request"));
    let current = request.clone().attach();
    let failed = client
        .run_blocking(cache_otel::raw::Command::named("GET"), || Err::<(), _>(std::io::Error::other("down")));
    assert!(failed.is_err());
    assert!(request.span().is_recording(), "the command has ended its caller's span");
    drop(current);
}

/// A server whose answers to `INFO` come from the test; `None` is silence.
struct Scripted(tokio::sync::mpsc::UnboundedReceiver<Option<String>>);

impl redis::aio::ConnectionLike for Scripted {
    fn req_packed_command<'a>(&'a mut self, _: &'a redis::Cmd) -> redis::RedisFuture<'a, redis::Value> {
        Box::pin(async move {
            match self.0.recv().await.flatten() {
                Some(text) => Ok(redis::Value::BulkString(text.into_bytes())),
                None => Err(redis::RedisError::from(std::io::Error::other("silent"))),
            }
        })
    }

    fn req_packed_commands<'a>(
        &'a mut self,
        _: &'a redis::Pipeline,
        _: usize,
        _: usize,
    ) -> redis::RedisFuture<'a, Vec<redis::Value>> {
        Box::pin(async { Ok(Vec::new()) })
    }

    fn get_db(&self) -> i64 {
        0
    }
}

struct Server {
    say: tokio::sync::mpsc::UnboundedSender<Option<String>>,
    watch: ServerWatch,
    said: u64,
}

impl Server {
    fn watched(telemetry: &ClientTelemetry) -> Self {
        let (say, hears) = tokio::sync::mpsc::unbounded_channel();
        let watch = ServerWatch::start(telemetry, Scripted(hears), Duration::from_secs(1));
        Self { say, watch, said: 0 }
    }

    /// Has the server say so, and waits until the watch knows.
    async fn misses(&mut self, misses: Option<u64>) {
        self.said += 1;
        let said = self.said;
        let text = misses.map(|misses| format!("keyspace_misses:{misses}\r\nsaid:{said}\r\n"));
        let heard = |info: cache_otel::raw::ServerInfo| match misses {
            Some(_) => info.number("said") == Some(said),
            None => !info.is_up(),
        };
        self.say.send(text).unwrap();
        while !heard(self.watch.info()) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

const MISSES: &str = "redis.keyspace.misses";

#[tokio::test(flavor = "current_thread", start_paused = true)]
async fn counts_of_a_server_never_go_back_and_are_counted_once() {
    for temporality in [Temporality::Cumulative, Temporality::Delta] {
        let reader = Reader::new(temporality);
        let telemetry =
            ClientTelemetry::builder("redis", "sessions").meter_provider(&reader.provider).build();
        let mut server = Server::watched(&telemetry);
        // What the server says, and what has been counted since the start, and since the collection before.
        for (says, all, since) in [
            (Some(100), 100.0, 100.0),
            (Some(100), 100.0, 0.0),
            (None, 100.0, 0.0),
            (Some(130), 130.0, 30.0),
            // It has begun anew.
            (Some(7), 137.0, 7.0),
            (Some(9), 139.0, 2.0),
        ] {
            server.misses(says).await;
            let expected = if temporality == Temporality::Delta { since } else { all };
            assert_eq!(sum(&reader.collect(), MISSES), expected, "{temporality:?}: {says:?}");
        }
        // The watch after it goes on where it was.
        drop(server);
        let mut server = Server::watched(&telemetry);
        server.misses(Some(10)).await;
        let expected = if temporality == Temporality::Delta { 1.0 } else { 140.0 };
        assert_eq!(sum(&reader.collect(), MISSES), expected);
    }
}

#[tokio::test(flavor = "current_thread", start_paused = true)]
async fn a_server_that_is_down_shows_beside_one_that_is_up() {
    let watched = Watched::new();
    let node = |port| watched.client().server("cache.internal", port).build();
    let (one, two) = (node(1), node(2));
    let (mut first, mut second) = (Server::watched(&one), Server::watched(&two));
    first.misses(None).await;
    second.misses(Some(3)).await;
    let up = |port: u16| {
        format!("redis.up{{db.client.name=sessions,server.address=cache.internal,server.port={port}}}")
    };
    let series = watched.reader.collect();
    assert_eq!((series.get(&up(1)), series.get(&up(2))), (Some(&0.0), Some(&1.0)), "{series:#?}");

    // Two of one client have one series, which hides neither.
    let mut third = Server::watched(&one);
    third.misses(Some(5)).await;
    let series = watched.reader.collect();
    assert_eq!(series.get(&up(1)), Some(&0.0));
    drop(first);
    let series = watched.reader.collect();
    assert_eq!(series.get(&up(1)), Some(&1.0), "{series:#?}");
    drop((second, third));
    assert_eq!(of(&watched.reader.collect(), "redis.up").count(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_is_watched_without_a_trace() {
    let Some(server) = RedisServer::start() else { return };
    let watched = Watched::new();
    let telemetry = watched.client().build();
    // Also where the connection that it asks over is itself reported.
    let connection = Traced::new(connect(&server).await, telemetry.clone());
    let watch = ServerWatch::start(&telemetry, connection, Duration::from_millis(100));
    let up = || async {
        for _ in 0..500 {
            if watch.is_up() {
                return true;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        false
    };
    assert!(up().await);
    let info = watch.info();
    assert!(info.number("used_memory").unwrap() > 0 && info.fragmentation().is_some());
    assert_eq!(info.policy(), Some("noeviction"));
    let series = watched.reader.collect();
    for metric in [
        "redis.up",
        "redis.memory.used",
        "redis.memory.rss",
        "redis.memory.peak",
        "redis.memory.fragmentation_ratio",
        "redis.memory.allocator.allocated",
        "redis.maxmemory",
        "redis.keyspace.hits",
        "redis.keyspace.misses",
        "redis.clients.connected",
        "redis.commands.processed",
        "redis.keys.evicted",
    ] {
        assert_eq!(of(&series, metric).count(), 1, "{metric}: {series:#?}");
    }
    assert_eq!(
        series["redis.maxmemory.policy{db.client.name=sessions,redis.policy=noeviction,server.address=cache.internal,server.port=6380}"],
        1.0
    );
    server.kill();
    for _ in 0..500 {
        if !watch.is_up() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let series = watched.reader.collect();
    assert_eq!(
        series["redis.up{db.client.name=sessions,server.address=cache.internal,server.port=6380}"],
        0.0
    );
    assert_eq!(of(&series, "redis.memory.used").count(), 0, "what it said before is not true any more");
    assert!(watched.take().is_empty(), "it keeps out of the traces");
    assert_eq!(of(&series, "db.client.operation.duration_count").count(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_finds_back_to_a_server_that_was_restarted() {
    let Some(server) = RedisServer::start() else { return };
    let watched = Watched::new();
    let client = redis::Client::open(server.url()).unwrap();
    // It need not be there yet.
    server.kill();
    let watch = ServerWatch::open(&watched.client().build(), client, Duration::from_millis(50));
    let becomes = async |up: bool| {
        for _ in 0..1000 {
            if watch.is_up() == up {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("it is not said to be {}", if up { "up" } else { "down" });
    };
    for _ in 0..2 {
        server.restart();
        becomes(true).await;
        server.kill();
        becomes(false).await;
    }
    assert!(watched.take().is_empty(), "it keeps out of the traces");
}
