//! The set-up helper, seen from outside: a scraper, and collectors that speak OTLP.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests")]

mod common;

use std::{
    collections::HashMap,
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    time::{Duration, Instant},
};

use cache_core::{TracedCache, ok, testing::MapProvider};
use cache_memory::Memory;
use cache_otel::setup::{Running, Setup};
use mock_collector::{MockServer, Protocol};
use opentelemetry::{KeyValue, trace::TraceContextExt, trace::Tracer, trace::TracerProvider};

const LIMIT: Duration = Duration::from_secs(20);

/// A set-up that sees these variables and no others.
fn with<const N: usize>(variables: [(&'static str, &'static str); N]) -> Setup {
    let variables = HashMap::from(variables);
    Setup::new("shop").variables(move |name| variables.get(name).map(|value| (*value).to_owned()))
}

fn users(running: &Running) -> TracedCache<u64> {
    TracedCache::builder("users")
        .level(Memory::entries(100))
        .level(MapProvider::new())
        .observer(running.telemetry())
        .build()
        .unwrap()
}

fn get(at: SocketAddr, request: &str) -> String {
    let mut page = TcpStream::connect(at).unwrap();
    page.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    page.read_to_string(&mut answer).unwrap();
    answer
}

#[test]
fn what_a_variable_cannot_say_is_an_error_that_names_it() {
    for (name, value) in [
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "carrier-pigeon"),
        ("OTEL_EXPORTER_OTLP_METRICS_PROTOCOL", "http/json"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "collector"),
        ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "ftp://collector:4317"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://"),
        ("OTEL_TRACES_EXPORTER", "jaeger"),
        ("OTEL_METRICS_EXPORTER", "otlp,statsd"),
        ("OTEL_TRACES_SAMPLER", "sometimes"),
        ("OTEL_METRIC_EXPORT_INTERVAL", "soon"),
        ("OTEL_METRIC_EXPORT_INTERVAL", "0"),
        ("OTEL_SDK_DISABLED", "perhaps"),
        ("OTEL_RESOURCE_ATTRIBUTES", "env=prod,team"),
        ("OTEL_RESOURCE_ATTRIBUTES", "team=%FF"),
        ("OTEL_RESOURCE_ATTRIBUTES", "=prod"),
        ("OTEL_PROPAGATORS", "b3"),
        ("OTEL_PROPAGATORS", "none,baggage"),
    ] {
        let error = with([(name, value)]).start().unwrap_err().to_string();
        assert!(error.starts_with(&format!("{name} = ")), "{name}={value}: {error}");
    }
    let ratio = [("OTEL_TRACES_SAMPLER", "traceidratio"), ("OTEL_TRACES_SAMPLER_ARG", "1.5")];
    assert!(with(ratio).start().unwrap_err().to_string().starts_with("OTEL_TRACES_SAMPLER_ARG = 1.5"));
    let nameless = Setup::new(" ").variables(|_| None).start().unwrap_err().to_string();
    assert!(nameless.starts_with("Setup::new = \"\": name the service"), "{nameless}");
    assert!(with([]).sample(-0.1).start().unwrap_err().to_string().starts_with("Setup::sample = -0.1"));
    let page = [("OTEL_METRICS_EXPORTER", "prometheus"), ("OTEL_EXPORTER_PROMETHEUS_PORT", "many")];
    assert!(with(page).start().unwrap_err().to_string().starts_with("OTEL_EXPORTER_PROMETHEUS_PORT = many"));
    let secret = with([("OTEL_EXPORTER_OTLP_ENDPOINT", "gopher://user:hunter2@collector")]);
    let error = secret.start().unwrap_err();
    assert!(!format!("{error} {error:?}").contains("hunter2"));
    let (grpc, url) = ("OTEL_EXPORTER_OTLP_PROTOCOL", "OTEL_EXPORTER_OTLP_ENDPOINT");
    let error =
        with([(grpc, "grpc"), (url, "http://ann:hunter2@collector")]).start().unwrap_err().to_string();
    assert!(error.starts_with(url) && error.contains("_HEADERS") && !error.contains("hunter2"), "{error}");
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let at = taken.local_addr().unwrap();
    let error = with([("OTEL_TRACES_EXPORTER", "none")]).prometheus(at).start().unwrap_err();
    assert!(error.to_string().contains(&at.to_string()), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn prometheus_reads_the_page_under_the_names_that_it_expects() {
    let running = with([("OTEL_TRACES_EXPORTER", "none")]).prometheus(([127, 0, 0, 1], 0)).start().unwrap();
    let cache = users(&running);
    for _ in 0..3 {
        cache.get_or_set(1, || async { ok(7u64) }).await.unwrap();
    }
    let at = running.prometheus_address().unwrap();
    let page = tokio::task::spawn_blocking(move || get(at, "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"));
    let page = page.await.unwrap();
    assert!(page.starts_with("HTTP/1.1 200 OK\r\n"), "{page}");
    for line in [
        r#"cache_hits_total{cache_name="users",cache_operation="get_or_set"} 2"#,
        r#"cache_misses_total{cache_name="users",cache_operation="get_or_set"} 1"#,
        r#"cache_hit_rate{cache_name="users"} 0.6666666666666666"#,
        r#"cache_requests_total{cache_level="l1",cache_name="users",cache_result="hit"} 2"#,
        r#"cache_breaker_count{cache_breaker_state="closed",cache_level="l2",cache_name="users"} 1"#,
        r#"cache_load_duration_seconds_count{cache_load_result="value",cache_name="users"} 1"#,
        r#"cache_journal_depth{cache_name="users"} 0"#,
        r#"cache_entry_count{cache_level="l1",cache_name="users"} 1"#,
    ] {
        assert!(page.lines().any(|seen| seen == line), "{line} in {page}");
    }
    for name in [
        "cache_operation_duration_seconds_bucket{",
        "cache_item_size_bytes_bucket{",
        "cache_time_saved_seconds_total{",
        "db_client_operation_duration_seconds_sum{",
        r#"target_info{"#,
    ] {
        assert!(page.contains(name), "{name} in {page}");
    }
    assert!(!page.contains("_ratio"), "a unit of 1 would say so");
    assert!(!page.contains("otel_scope"));
    let (missing, posted) = tokio::task::spawn_blocking(move || {
        (get(at, "GET / HTTP/1.1\r\n\r\n"), get(at, "POST /metrics HTTP/1.1\r\n\r\n"))
    })
    .await
    .unwrap();
    assert!(missing.starts_with("HTTP/1.1 404"), "{missing}");
    assert!(posted.starts_with("HTTP/1.1 405") && posted.contains("\r\nAllow: GET, HEAD\r\n"), "{posted}");
    let head = tokio::task::spawn_blocking(move || get(at, "HEAD /metrics HTTP/1.1\r\n\r\n")).await.unwrap();
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n") && head.ends_with("\r\n\r\n"), "{head}");
    drop(running);
    let gone = tokio::task::spawn_blocking(move || {
        let until = Instant::now() + LIMIT;
        while TcpStream::connect(at).is_ok_and(|page| page.peer_addr().is_ok()) && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(20));
        }
        TcpStream::connect(at).is_err()
    });
    assert!(gone.await.unwrap(), "the page closes with what it belongs to");
}

#[test]
fn the_address_of_a_page_that_is_over_is_free() {
    let at = |at: SocketAddr| with([("OTEL_TRACES_EXPORTER", "none")]).prometheus(at).start();
    let first = at(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
    let same = first.prometheus_address().unwrap();
    drop(first);
    for _ in 0..50 {
        drop(at(same).unwrap());
    }
}

#[test]
fn a_trace_that_passes_through_stays_sampled_where_none_are_exported() {
    use opentelemetry::trace::{SpanContext, SpanId, TraceFlags, TraceId, TraceState};
    let none = [("OTEL_TRACES_EXPORTER", "none"), ("OTEL_METRICS_EXPORTER", "none")];
    let running = with(none).sample(0.0).start().unwrap();
    let goes_on = |flags| {
        let (trace, span) = (TraceId::from(1u128), SpanId::from(2u64));
        let came = SpanContext::new(trace, span, flags, true, TraceState::default());
        let came = opentelemetry::Context::new().with_remote_span_context(came);
        let span = running.tracer_provider().tracer("shop").start_with_context("request", &came);
        opentelemetry::Context::new().with_span(span).span().span_context().is_sampled()
    };
    assert!(goes_on(TraceFlags::SAMPLED));
    assert!(!goes_on(TraceFlags::default()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_asks_twice_reports_nothing_over_another() {
    let running = with([("OTEL_TRACES_EXPORTER", "none")]).scrape().start().unwrap();
    for _ in 0..2 {
        users(&running).get(1).await.unwrap();
    }
    let page = running.prometheus_text();
    let misses = r#"cache_misses_total{cache_name="users",cache_operation="get"} 2"#;
    assert!(page.contains(misses), "{page}");
}

#[test]
fn who_this_is_comes_from_the_variables_that_were_given() {
    let info = |setup: Setup| {
        let text = setup.scrape().start().unwrap().prometheus_text();
        text.lines().find(|line| line.starts_with("target_info{")).unwrap().to_owned()
    };
    let none = ("OTEL_TRACES_EXPORTER", "none");
    let attributes = ("OTEL_RESOURCE_ATTRIBUTES", "service.name=orders, team = cash ,");
    let said = info(with([none, attributes]));
    assert!(said.contains(r#"service_name="orders""#) && said.contains(r#"team="cash""#), "{said}");
    let said = info(with([none, attributes, ("OTEL_SERVICE_NAME", "billing")]));
    assert!(said.contains(r#"service_name="billing""#), "{said}");
    let said = info(with([none, attributes]).attribute(KeyValue::new("team", "core")));
    assert!(said.contains(r#"team="core""#) && !said.contains("cash"), "{said}");
    assert!(info(with([none])).contains(r#"service_name="shop""#));
    let nameless = Setup::new("").variables(|name| match name {
        "OTEL_SERVICE_NAME" => Some("orders".to_owned()),
        "OTEL_TRACES_EXPORTER" => Some("none".to_owned()),
        _ => None,
    });
    assert!(info(nameless).contains(r#"service_name="orders""#));
    let said = info(with([none, ("OTEL_RESOURCE_ATTRIBUTES", "team=a%2Cb%3Dc,share=5%,place=K%C3%B6ln")]));
    for as_meant in [r#"team="a,b=c""#, r#"share="5%""#, r#"place="Köln""#] {
        assert!(said.contains(as_meant), "{said}");
    }
}

#[test]
fn each_start_is_an_instance_of_its_own_unless_told_which() {
    let instance = |setup: Setup| {
        let running = setup.scrape().start().unwrap();
        let text = running.prometheus_text();
        let info = text.lines().find(|line| line.starts_with("target_info{")).unwrap().to_owned();
        let (_, rest) = info.split_once("service_instance_id=\"").unwrap();
        rest.split('"').next().unwrap().to_owned()
    };
    let none = ("OTEL_TRACES_EXPORTER", "none");
    let (one, two) = (instance(with([none])), instance(with([none])));
    assert_ne!(one, two);
    assert!(one.len() == 36 && one.as_bytes()[14] == b'4', "{one} is no UUID of version 4");
    let named = with([none, ("OTEL_RESOURCE_ATTRIBUTES", "service.version=1, service.instance.id=pod-7")]);
    assert_eq!(instance(named), "pod-7");
    let set = with([none]).attribute(KeyValue::new("service.instance.id", "pod-8"));
    assert_eq!(instance(set), "pod-8");
}

/// On a runtime of one thread, where a flush that needs that thread would hang.
async fn arrives(protocol: Protocol, setup: impl FnOnce(Setup, String) -> Setup) {
    let collector = MockServer::builder().protocol(protocol).start().await.unwrap();
    let url = format!("http://{}", collector.addr());
    let running = setup(with([]), url).attribute(KeyValue::new("service.version", "1.2.3")).start().unwrap();
    let cache = users(&running);
    let request = running.tracer_provider().tracer("shop").start("request");
    let request = opentelemetry::Context::new().with_span(request);
    let call = cache.get_or_set(1, || async { ok(7u64) });
    opentelemetry::trace::FutureExt::with_context(call, request.clone()).await.unwrap();
    drop(request);
    // The collector is on this thread, too.
    let running = std::sync::Arc::new(running);
    let flushed = tokio::task::spawn_blocking({
        let running = std::sync::Arc::clone(&running);
        move || running.flush(LIMIT)
    });
    assert!(flushed.await.unwrap(), "{protocol:?}");
    collector
        .with_collector(|seen| {
            seen.expect_span_with_name("cache.get_or_set users")
                .with_attributes([("cache.name", "users"), ("cache.result", "miss")])
                .with_resource_attributes([("service.name", "shop"), ("service.version", "1.2.3")])
                .assert_exists();
            seen.expect_span_with_name("cache.load users").assert_exists();
            seen.expect_metric_with_name("cache.misses").assert_exists();
            seen.expect_metric_with_name("cache.operation.duration").assert_exists();
        })
        .await;
    let ended = tokio::task::spawn_blocking(move || {
        std::sync::Arc::into_inner(running).is_some_and(|running| running.shutdown(LIMIT))
    });
    assert!(ended.await.unwrap());
}

#[tokio::test(flavor = "current_thread")]
async fn otlp_arrives_over_grpc() {
    arrives(Protocol::Grpc, |setup, url| setup.grpc().endpoint(url)).await;
}

#[tokio::test(flavor = "current_thread")]
async fn otlp_arrives_over_http() {
    arrives(Protocol::HttpBinary, |setup, url| setup.http().endpoint(url)).await;
}

#[tokio::test(flavor = "current_thread")]
async fn a_flush_on_the_only_thread_of_a_runtime_ends() {
    // The collector lives elsewhere: this thread is blocked while it answers.
    let elsewhere =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let (started, collector) = std::sync::mpsc::channel();
    let server = std::thread::spawn(move || {
        elsewhere.block_on(async move {
            let collector = MockServer::builder().protocol(Protocol::Grpc).start().await.unwrap();
            started.send(collector.addr()).unwrap();
            collector.with_collector(|_| ()).await;
            tokio::time::sleep(LIMIT).await;
        });
    });
    let at = collector.recv().unwrap();
    let running = with([]).grpc().endpoint(format!("http://{at}")).start().unwrap();
    users(&running).get(1).await.unwrap();
    let started = Instant::now();
    assert!(running.flush(LIMIT), "called right on the runtime's own thread");
    assert!(running.shutdown(LIMIT));
    assert!(started.elapsed() < LIMIT);
    drop(server);
}

#[tokio::test(flavor = "current_thread")]
async fn a_collector_that_is_away_costs_its_telemetry_only() {
    for url in ["http://127.0.0.1:1", "http://127.0.0.1:1/"] {
        for grpc in [true, false] {
            let setup = with([]).endpoint(url);
            let running = if grpc { setup.grpc() } else { setup.http() }.start().unwrap();
            let cache = users(&running);
            for n in 0..100u64 {
                cache.get_or_set(n, || async { ok(7u64) }).await.unwrap();
            }
            assert_eq!(cache.stats().misses(), 100);
            let started = Instant::now();
            running.shutdown(Duration::from_secs(1));
            assert!(started.elapsed() < Duration::from_secs(10), "the limit holds");
        }
    }
    let off = with([("OTEL_SDK_DISABLED", "true"), ("OTEL_EXPORTER_OTLP_PROTOCOL", "nonsense")]);
    let off = off.start().unwrap();
    users(&off).get(1).await.unwrap();
    assert!(off.flush(LIMIT) && off.prometheus_address().is_none() && off.prometheus_text().is_empty());
}

/// Exporters have threads of their own: what the whole program says is heard.
#[cfg(feature = "tracing")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_takes_no_traces_does_not_keep_metrics_back() {
    // It takes connections, and says nothing.
    let hangs = TcpListener::bind("127.0.0.1:0").unwrap();
    let collector = MockServer::builder().protocol(Protocol::HttpBinary).start().await.unwrap();
    let (traces, metrics) = (
        format!("http://{}/v1/traces", hangs.local_addr().unwrap()),
        format!("http://{}/v1/metrics", collector.addr()),
    );
    let setup = Setup::new("shop").variables(move |name| match name {
        "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT" => Some(traces.clone()),
        "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT" => Some(metrics.clone()),
        _ => None,
    });
    let running = setup.start().unwrap();
    users(&running).get(1).await.unwrap();
    let ended = tokio::task::spawn_blocking(move || running.shutdown(Duration::from_secs(2)));
    assert!(!ended.await.unwrap(), "the traces are lost");
    collector.with_collector(|seen| seen.expect_metric_with_name("cache.misses").assert_exists()).await;
}

#[test]
fn a_collector_that_is_not_there_is_a_line_without_its_password() {
    let log = common::heard::Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt().with_ansi(false).with_max_level(tracing::Level::DEBUG);
    subscriber.with_writer(move || writer.clone()).init();
    for (protocol, endpoint, client) in [
        ("grpc", "http://127.0.0.1:1", "TonicTracesClient"),
        ("http/protobuf", "http://ann:hunter2@127.0.0.1:1", "HttpTracesClient"),
    ] {
        let running = with([
            ("OTEL_EXPORTER_OTLP_PROTOCOL", protocol),
            ("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint),
            ("OTEL_METRICS_EXPORTER", "none"),
        ]);
        let running = running.start().unwrap();
        running.tracer_provider().tracer("shop").in_span("request", |_| ());
        assert!(!running.flush(LIMIT));
        let said = log.text();
        let names = |line: &str| line.contains(" WARN ") && line.contains(client);
        assert!(said.lines().any(names), "{protocol}: {said}");
        assert!(said.contains("ERROR opentelemetry_sdk: name=\"BatchSpanProcessor.ExportError\""), "{said}");
        assert!(!said.contains("hunter2"), "{said}");
    }
}

/// What comes with the first export over HTTP.
#[test]
fn user_and_password_of_a_url_are_a_header() {
    let collector = TcpListener::bind("127.0.0.1:0").unwrap();
    let url: &'static str = format!("http://ann:hun%20ter2@{}", collector.local_addr().unwrap()).leak();
    let none = ("OTEL_METRICS_EXPORTER", "none");
    let running = with([("OTEL_EXPORTER_OTLP_ENDPOINT", url), none]).start().unwrap();
    running.tracer_provider().tracer("shop").in_span("request", |_| ());
    let asked = std::thread::spawn(move || {
        let (mut stream, _) = collector.accept().unwrap();
        let mut head = Vec::new();
        while !head.windows(4).any(|end| end == b"\r\n\r\n") {
            let mut some = [0; 1024];
            let read = stream.read(&mut some).unwrap();
            assert!(read > 0);
            head.extend_from_slice(&some[..read]);
        }
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n").unwrap();
        String::from_utf8_lossy(&head).into_owned()
    });
    running.flush(LIMIT);
    let head = asked.join().unwrap();
    // ann:hun ter2
    assert!(head.contains("authorization: Basic YW5uOmh1biB0ZXIy\r\n"), "{head}");
}

/// What a collector over TLS hears first, or why there was no handshake. It is one for a single caller.
#[cfg(feature = "setup-tls")]
async fn heard_over_tls(
    listener: tokio::net::TcpListener,
    with: &test_servers::Certificate,
) -> std::io::Result<Vec<u8>> {
    use tokio::io::AsyncReadExt;
    use tokio_rustls::{
        TlsAcceptor,
        rustls::{
            ServerConfig,
            crypto::ring,
            pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
        },
    };
    let chain = CertificateDer::pem_file_iter(&with.certificate).unwrap().map(Result::unwrap).collect();
    let key = PrivateKeyDer::from_pem_file(&with.key).unwrap();
    let config = ServerConfig::builder_with_provider(ring::default_provider().into())
        .with_safe_default_protocol_versions()
        .unwrap();
    let mut config = config.with_no_client_auth().with_single_cert(chain, key).unwrap();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let (stream, _) = listener.accept().await?;
    let mut stream = TlsAcceptor::from(std::sync::Arc::new(config)).accept(stream).await?;
    let mut first = vec![0; 14];
    stream.read_exact(&mut first).await?;
    Ok(first)
}

/// The export is in a program of its own, as whom a system trusts stands in a variable of its process.
#[cfg(feature = "setup-tls")]
#[tokio::test(flavor = "multi_thread")]
async fn grpc_over_tls_trusts_whom_the_system_trusts() {
    const COLLECTOR: &str = "COLLECTOR_OF_THIS_TEST";
    if let Ok(collector) = std::env::var(COLLECTOR) {
        let running = with([("OTEL_METRICS_EXPORTER", "none")]).endpoint(collector).grpc().start().unwrap();
        running.tracer_provider().tracer("shop").start("a span");
        running.flush(LIMIT);
        return;
    }
    let authority = test_servers::Authority::new();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut exporting = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "grpc_over_tls_trusts_whom_the_system_trusts"])
        .env(COLLECTOR, format!("https://{}", listener.local_addr().unwrap()))
        .env("SSL_CERT_FILE", authority.ca_file())
        // Its report is none of this program's.
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let certificate = authority.issue(&["127.0.0.1"]);
    let heard = tokio::time::timeout(LIMIT, heard_over_tls(listener, &certificate)).await;
    let _ = exporting.kill();
    let _ = exporting.wait();
    assert_eq!(heard.unwrap().unwrap(), b"PRI * HTTP/2.0");
}

#[cfg(feature = "setup-tls")]
#[tokio::test(flavor = "multi_thread")]
async fn grpc_over_tls_trusts_whom_a_variable_names() {
    let authority = test_servers::Authority::new();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let collector = format!("https://{}", listener.local_addr().unwrap());
    let trusted: &str = authority.ca_file().to_str().unwrap().to_owned().leak();
    let name = "OTEL_EXPORTER_OTLP_CERTIFICATE";
    let exporting = tokio::task::spawn_blocking({
        let collector = collector.clone();
        move || {
            let setup = with([("OTEL_METRICS_EXPORTER", "none"), (name, trusted)]);
            let running = setup.endpoint(collector).grpc().start().unwrap();
            running.tracer_provider().tracer("shop").start("a span");
            running.flush(Duration::from_secs(2));
        }
    });
    let certificate = authority.issue(&["127.0.0.1"]);
    let heard = tokio::time::timeout(LIMIT, heard_over_tls(listener, &certificate)).await;
    assert_eq!(heard.unwrap().unwrap(), b"PRI * HTTP/2.0");
    exporting.await.unwrap();

    let refused = |name: &'static str, file: &'static str, grpc: bool| {
        let setup = with([(name, file)]).endpoint(collector.clone());
        let setup = if grpc { setup.grpc() } else { setup.http() };
        let error = setup.start().unwrap_err().to_string();
        assert!(error.starts_with(&format!("{name} = ")), "{error}");
        error
    };
    assert!(refused(name, trusted, false).contains("use gRPC"));
    assert!(refused(name, "/nowhere/ca.pem", true).contains("cannot be read"));
    assert!(refused("OTEL_EXPORTER_OTLP_CLIENT_KEY", trusted, true).contains("set both"));
}
