//! One call that sets up the SDK for a service: OTLP, or a `/metrics` page for Prometheus, by the standard variables.
//!
//! ```no_run
//! use std::time::Duration;
//!
//! use cache_otel::setup::Setup;
//!
//! # fn main() -> Result<(), cache_otel::setup::SetupError> {
//! // OTLP to OTEL_EXPORTER_OTLP_ENDPOINT, and a page at 127.0.0.1:9464/metrics.
//! let running = Setup::new("shop").sample(0.1).prometheus(([127, 0, 0, 1], 9464)).start()?;
//! let telemetry = running.telemetry();
//! // ... give it to caches, serve ...
//! running.shutdown(Duration::from_secs(5));
//! # Ok(())
//! # }
//! ```
//!
//! | variable | what it says |
//! | --- | --- |
//! | `OTEL_SDK_DISABLED` | `true`: nothing is set up |
//! | `OTEL_SERVICE_NAME`, `OTEL_RESOURCE_ATTRIBUTES` | who this is; `service.instance.id` is a new UUID for each start unless they, or [`Setup::attribute`], have one |
//! | `OTEL_TRACES_EXPORTER` | `otlp` (default) or `none`: traces go on to other services as they would, and are exported nowhere |
//! | `OTEL_METRICS_EXPORTER` | `otlp`, `prometheus`, both with a comma, or `none`; by default `otlp`, or `prometheus` where [`Setup::prometheus`] asks for it |
//! | `OTEL_EXPORTER_OTLP_[TRACES_\|METRICS_]PROTOCOL` | `grpc` or `http/protobuf` (default) |
//! | `OTEL_EXPORTER_OTLP_[TRACES_\|METRICS_]ENDPOINT` | `http://localhost:4317` for gRPC, `http://localhost:4318` for HTTP by default; over HTTP with user and password before an `@`, where the collector wants some |
//! | `OTEL_EXPORTER_OTLP_[TRACES_\|METRICS_]CERTIFICATE`, `_CLIENT_CERTIFICATE`, `_CLIENT_KEY` | over gRPC and TLS: PEM files with the authority to trust in place of the system's, and with who this is; over HTTP and TLS an error, as its client takes none |
//! | `OTEL_EXPORTER_OTLP_HEADERS`, `_TIMEOUT`, `_COMPRESSION` and those of one signal | as the exporter reads them |
//! | `OTEL_EXPORTER_PROMETHEUS_HOST`, `_PORT` | where the page is: `localhost`, 9464 |
//! | `OTEL_TRACES_SAMPLER`, `OTEL_TRACES_SAMPLER_ARG` | which traces are recorded; all, unless a parent says otherwise |
//! | `OTEL_PROPAGATORS` | how a trace goes on to other services: `tracecontext,baggage` (default), one of them, or `none` |
//! | `OTEL_METRIC_EXPORT_INTERVAL` | milliseconds between exports: 60,000 |
//! | `OTEL_BSP_*` | queue and batches of spans, as the SDK reads them |
//!
//! What is set in code wins over a variable. What a variable says and cannot be is an error that names it, not a default
//! in its place.
//!
//! # What it costs
//! Exporters run on threads of their own, and what they need of tokio on a runtime of their own, so that neither a busy
//! runtime nor one of a single thread can hold them up or be held up. A collector that is away costs its telemetry and
//! nothing else: queues are bounded, and what does not fit is dropped.

mod endpoint;
mod env;
mod page;

use std::{
    fmt,
    net::SocketAddr,
    sync::{
        Mutex, OnceLock, PoisonError,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    time::{Duration, Instant},
};

use opentelemetry::{Key, KeyValue, global};
use opentelemetry_otlp::{MetricExporter, Protocol, SpanExporter, WithExportConfig, WithHttpConfig};
#[cfg(feature = "setup-tls")]
use opentelemetry_otlp::{
    WithTonicConfig,
    tonic_types::transport::{Certificate, ClientTlsConfig, Identity},
};
use opentelemetry_sdk::{
    Resource,
    error::OTelSdkResult,
    metrics::{MeterProviderBuilder, PeriodicReader, SdkMeterProvider},
    resource::TelemetryResourceDetector,
    trace::{Sampler, SdkTracerProvider},
};
use tokio::runtime::Runtime;
use uuid::Uuid;

use self::{endpoint::Signal, env::Env, page::Page};
use crate::{Telemetry, TelemetryBuilder};

/// How long [`Running`] waits for a last export when it is dropped.
const DROP_LIMIT: Duration = Duration::from_secs(5);
const SERVICE_NAME: Key = Key::from_static_str("service.name");

/// Why nothing was set up. Names the variable or the method, and the fix; holds no credential.
#[derive(Debug)]
pub struct SetupError(String);

impl SetupError {
    fn new(field: &str, value: impl fmt::Display, fix: impl fmt::Display) -> Self {
        Self(format!("{field} = {value}: {fix}"))
    }
}

impl fmt::Display for SetupError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for SetupError {}

/// Sets up metrics and traces for a process.
#[must_use]
pub struct Setup {
    service: String,
    attributes: Vec<KeyValue>,
    endpoint: Option<String>,
    grpc: Option<bool>,
    sample: Option<f64>,
    prometheus: Option<SocketAddr>,
    scrape: bool,
    env: Env,
}

impl Setup {
    /// For the service of this name, unless `OTEL_SERVICE_NAME` has another. One of them must not be empty.
    pub fn new(service: impl Into<String>) -> Self {
        Self {
            service: service.into(),
            attributes: Vec::new(),
            endpoint: None,
            grpc: None,
            sample: None,
            prometheus: None,
            scrape: false,
            env: Env::process(),
        }
    }

    /// Something more about the service: its version, its environment.
    pub fn attribute(mut self, attribute: KeyValue) -> Self {
        self.attributes.push(attribute);
        self
    }

    /// Where the collector is, for traces and metrics: `http://collector:4317`.
    pub fn endpoint(mut self, url: impl Into<String>) -> Self {
        self.endpoint = Some(url.into());
        self
    }

    /// Speaks gRPC to it.
    pub fn grpc(mut self) -> Self {
        self.grpc = Some(true);
        self
    }

    /// Speaks protobuf over HTTP to it.
    pub fn http(mut self) -> Self {
        self.grpc = Some(false);
        self
    }

    /// Records this share of the traces that begin here, 0 to 1; those that began elsewhere as it was decided there.
    pub fn sample(mut self, share: f64) -> Self {
        self.sample = Some(share);
        self
    }

    /// Shows metrics to Prometheus at `/metrics` of this address; port 0 takes a free one. The page has no encryption and
    /// asks for no name: keep it to a network that you trust.
    pub fn prometheus(mut self, address: impl Into<SocketAddr>) -> Self {
        self.prometheus = Some(address.into());
        self
    }

    /// Collects metrics for Prometheus and opens no page for it: the service shows [`Running::prometheus_text`] at an address
    /// of its own.
    pub fn scrape(mut self) -> Self {
        self.scrape = true;
        self
    }

    /// Reads variables through `look_up` instead of from the process: for tests, and for services that have them elsewhere.
    /// What the SDK reads by itself (headers, timeouts, batches) stays the process's.
    pub fn variables(mut self, look_up: impl Fn(&str) -> Option<String> + Send + 'static) -> Self {
        self.env = Env::of(look_up);
        self
    }

    /// Checks everything, starts exporting, and makes the providers the global ones.
    ///
    /// # Errors
    /// What a variable or a setting says and cannot be; a page whose address is taken. A collector that is away is none.
    pub fn start(self) -> Result<Running, SetupError> {
        let Self { service, attributes, endpoint, grpc, sample, prometheus, scrape, env } = self;
        if env.is_disabled()? {
            return Ok(Running::idle());
        }
        let targets = env.metrics_to(scrape || prometheus.is_some())?;
        let traced = env.traces()?;
        let sampler = env.sampler(sample)?;
        let propagator = env.propagator()?;
        // Not the SDK's own detectors, which read the process. Copies of a service that send to one collector would be one to it.
        let resource = Resource::builder_empty()
            .with_detector(Box::new(TelemetryResourceDetector))
            .with_service_name(service)
            .with_attribute(KeyValue::new("service.instance.id", Uuid::new_v4().to_string()))
            .with_attributes(env.resource()?)
            .with_attributes(attributes)
            .build();
        if resource.get(&SERVICE_NAME).is_none_or(|name| name.as_str().trim().is_empty()) {
            let fix = "name the service, or set OTEL_SERVICE_NAME: backends tell services apart by it";
            return Err(SetupError::new("Setup::new", "\"\"", fix));
        }
        let to = |signal, wanted: bool| {
            wanted.then(|| endpoint::resolve(&env, signal, endpoint.as_deref(), grpc)).transpose()
        };
        let (traces, metrics) = (to(Signal::Traces, traced)?, to(Signal::Metrics, targets.otlp)?);
        let grpc = traces.iter().chain(&metrics).any(|to| to.grpc);
        let runtime = grpc.then(runtime).transpose()?;

        let mut meters = SdkMeterProvider::builder().with_resource(resource.clone());
        if let Some(to) = metrics {
            let exporter = metric_exporter(&to, runtime.as_ref())?;
            let reader = PeriodicReader::builder(exporter).with_interval(env.interval()?).build();
            meters = meters.with_reader(reader);
        }
        let mut page = None;
        if targets.prometheus {
            let at = if scrape && prometheus.is_none() { None } else { Some(env.page(prometheus)?) };
            let (with_page, open) = page::open(meters, at)?;
            meters = with_page;
            page = Some(open);
        }
        let mut tracers = SdkTracerProvider::builder().with_resource(resource).with_sampler(sampler);
        // Where nothing is exported it is sampled all the same: a trace that passes through goes on as it was decided elsewhere.
        if let Some(to) = traces {
            tracers = tracers.with_batch_exporter(span_exporter(&to, runtime.as_ref())?);
        }
        let (meters, tracers) = (meters.build(), tracers.build());
        global::set_meter_provider(meters.clone());
        global::set_tracer_provider(tracers.clone());
        global::set_text_map_propagator(propagator);
        Ok(Running {
            meters,
            tracers,
            page,
            runtime: Mutex::new(runtime),
            over: AtomicBool::new(false),
            telemetry: OnceLock::new(),
        })
    }
}

/// Without the endpoint, which may hold a password, and what attributes say.
impl fmt::Debug for Setup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Setup")
            .field("service", &self.service)
            .field("has_endpoint", &self.endpoint.is_some())
            .field("grpc", &self.grpc)
            .field("sample", &self.sample)
            .field("prometheus", &self.prometheus)
            .finish_non_exhaustive()
    }
}

/// Where the gRPC client lives: not on the service's runtime, which may be one thread that waits for an export.
fn runtime() -> Result<Runtime, SetupError> {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    let built = builder.worker_threads(1).thread_name("otel-export").enable_all().build();
    built.map_err(|error| SetupError(format!("no runtime for exporters: {error}")))
}

fn failed(to: &endpoint::Target, error: &impl fmt::Display) -> SetupError {
    SetupError::new(to.field, "(not shown)", format_args!("the exporter refuses it: {error}"))
}

/// Over TLS it trusts whom a variable names, else whom the system trusts: of its own accord, nobody.
#[cfg(feature = "setup-tls")]
fn trusting<B: WithTonicConfig>(builder: B, to: &endpoint::Target) -> B {
    if !to.url.starts_with("https:") {
        return builder;
    }
    let mut config = match &to.authority {
        Some(pem) => ClientTlsConfig::new().ca_certificate(Certificate::from_pem(pem)),
        None => ClientTlsConfig::new().with_enabled_roots(),
    };
    if let Some((certificate, key)) = &to.identity {
        config = config.identity(Identity::from_pem(certificate, key));
    }
    builder.with_tls_config(config)
}

#[cfg(not(feature = "setup-tls"))]
const fn trusting<B>(builder: B, _: &endpoint::Target) -> B {
    builder
}

fn span_exporter(to: &endpoint::Target, runtime: Option<&Runtime>) -> Result<SpanExporter, SetupError> {
    if to.grpc {
        let _on = runtime.map(Runtime::enter);
        let exporter = trusting(SpanExporter::builder().with_tonic(), to).with_endpoint(&to.url).build();
        return exporter.map_err(|error| failed(to, &error));
    }
    let builder = SpanExporter::builder().with_http().with_protocol(Protocol::HttpBinary);
    builder
        .with_endpoint(&to.url)
        .with_headers(to.headers.clone())
        .build()
        .map_err(|error| failed(to, &error))
}

fn metric_exporter(to: &endpoint::Target, runtime: Option<&Runtime>) -> Result<MetricExporter, SetupError> {
    if to.grpc {
        let _on = runtime.map(Runtime::enter);
        let exporter = trusting(MetricExporter::builder().with_tonic(), to).with_endpoint(&to.url).build();
        return exporter.map_err(|error| failed(to, &error));
    }
    let builder = MetricExporter::builder().with_http().with_protocol(Protocol::HttpBinary);
    builder
        .with_endpoint(&to.url)
        .with_headers(to.headers.clone())
        .build()
        .map_err(|error| failed(to, &error))
}

/// Telemetry that is being exported. Dropping it exports what is left, for 5 s at most, and ends it.
pub struct Running {
    meters: SdkMeterProvider,
    tracers: SdkTracerProvider,
    page: Option<Page>,
    runtime: Mutex<Option<Runtime>>,
    over: AtomicBool,
    /// The same for all who ask: counts of caches that are gone stay, and nobody reports over another.
    telemetry: OnceLock<Telemetry>,
}

impl Running {
    fn idle() -> Self {
        Self {
            meters: SdkMeterProvider::builder().build(),
            tracers: SdkTracerProvider::builder().with_sampler(Sampler::AlwaysOff).build(),
            page: None,
            runtime: Mutex::new(None),
            over: AtomicBool::new(true),
            telemetry: OnceLock::new(),
        }
    }

    /// An observer for caches that reports here: each time a clone of the same one.
    #[must_use]
    pub fn telemetry(&self) -> Telemetry {
        self.telemetry.get_or_init(|| self.builder().build()).clone()
    }

    /// One that is set up further. Use it instead of [`telemetry`](Self::telemetry), once, and clone it.
    pub fn builder(&self) -> TelemetryBuilder {
        Telemetry::builder().meter_provider(&self.meters).tracer_provider(&self.tracers)
    }

    /// For instruments of your own.
    pub fn meter_provider(&self) -> &SdkMeterProvider {
        &self.meters
    }

    /// For spans of your own.
    pub fn tracer_provider(&self) -> &SdkTracerProvider {
        &self.tracers
    }

    /// Where Prometheus finds the page, if there is one.
    pub fn prometheus_address(&self) -> Option<SocketAddr> {
        self.page.as_ref().and_then(Page::address)
    }

    /// The page itself, as Prometheus would get it: empty where metrics are not collected for it.
    pub fn prometheus_text(&self) -> String {
        self.page.as_ref().map(Page::text).unwrap_or_default()
    }

    /// Exports what there is, and waits for it up to `limit`. Says whether it went out. Blocks this thread, and no other: also
    /// from inside a runtime of one thread it ends.
    pub fn flush(&self, limit: Duration) -> bool {
        let (meters, tracers) = (self.meters.clone(), self.tracers.clone());
        within(limit, move || tracers.force_flush(), move || meters.force_flush())
    }

    /// Exports what is left, and ends. As [`flush`](Self::flush); what did not go out within `limit` is lost.
    pub fn shutdown(self, limit: Duration) -> bool {
        self.end(limit)
    }

    fn end(&self, limit: Duration) -> bool {
        if self.over.swap(true, Ordering::AcqRel) {
            return true;
        }
        let (meters, tracers) = (self.meters.clone(), self.tracers.clone());
        let ended = within(
            limit,
            move || tracers.shutdown_with_timeout(limit),
            move || meters.shutdown_with_timeout(limit),
        );
        let runtime = self.runtime.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(runtime) = runtime {
            // A plain drop would wait, and panics inside another runtime.
            runtime.shutdown_background();
        }
        ended
    }
}

/// Runs work that blocks on threads of its own, for as long as `limit`. Both at once: a collector that takes no traces must not
/// keep metrics from theirs.
fn within(
    limit: Duration,
    traces: impl FnOnce() -> OTelSdkResult + Send + 'static,
    metrics: impl FnOnce() -> OTelSdkResult + Send + 'static,
) -> bool {
    let begun = Instant::now();
    let (traces, metrics) = (begin(traces), begin(metrics));
    let ended = |work: mpsc::Receiver<bool>| {
        work.recv_timeout(limit.saturating_sub(begun.elapsed())).unwrap_or(false)
    };
    let (traces, metrics) = (ended(traces), ended(metrics));
    traces && metrics
}

/// Where there can be no thread, it never says that it has gone well.
fn begin(work: impl FnOnce() -> OTelSdkResult + Send + 'static) -> mpsc::Receiver<bool> {
    let (done, ended) = mpsc::sync_channel(1);
    let _ = std::thread::Builder::new().name("otel-flush".into()).spawn(move || {
        // Nobody may be waiting any more.
        let _ = done.send(work().is_ok());
    });
    ended
}

impl Drop for Running {
    fn drop(&mut self) {
        self.end(DROP_LIMIT);
    }
}

impl fmt::Debug for Running {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Running").field("prometheus", &self.prometheus_address()).finish_non_exhaustive()
    }
}

/// What a page adds to a provider.
pub(crate) type Meters = MeterProviderBuilder;
