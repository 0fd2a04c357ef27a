//! The service: airports of the world over HTTP, from SQLite, behind caches that a file describes.
//!
//! Begin with `airport.rs` (what is cached, and its source) and `routes.rs` (who asks); the rest is a service's usual
//! surroundings.

pub mod address;
pub mod airport;
mod answer;
mod checks;
pub mod database;
mod routes;
mod status;
mod trace;

use std::{collections::BTreeMap, fmt, path::Path, sync::Arc, time::Duration};

use axum::{
    Router,
    extract::DefaultBodyLimit,
    middleware,
    routing::{delete, get, post, put},
};
use cache_otel::raw::ClientTelemetry;
use cache_page::{Guard, Page};
use traced_cache::{
    BoxError, Caches, Error, Servers, Sourced, Telemetry, TracedCache,
    setup::{Running, Setup, SetupError},
};

use crate::{
    airport::{Airport, Airports},
    database::Database,
    trace::Requests,
};

/// Most codes of one batch.
pub const BATCH_MAX: usize = 500;
/// Most bytes of a body.
const BODY_MAX: usize = 64 << 10;
/// How long the end waits for loads, and for what levels have not heard.
const PATIENCE: Duration = Duration::from_secs(10);

/// How often servers are asked how they do: a command to each.
const SERVERS_EVERY: Duration = Duration::from_secs(10);

/// What the routes work with.
#[derive(Debug)]
pub struct Service {
    database: Database,
    caches: Caches,
    airports: Sourced<String, Airport, Airports>,
    checks: TracedCache<String>,
    telemetry: Telemetry,
    page: Page,
    requests: Requests,
    /// Asks them while it is kept.
    _servers: Servers,
    running: Running,
}

/// What operators may do on the page at `/cache`. Without more said it only shows counts.
#[derive(Clone, Default)]
pub struct Operators {
    /// Lets those who know it look keys up.
    pub password: Option<String>,
    /// Lets them invalidate, too.
    pub invalidate: bool,
    /// Shows whoever opens the page which airports are asked for most. Their codes are no secret.
    pub keys: bool,
}

/// Without the password.
impl fmt::Debug for Operators {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { password, invalidate, keys } = self;
        f.debug_struct("Operators")
            .field("password", &password.is_some())
            .field("invalidate", invalidate)
            .field("keys", keys)
            .finish()
    }
}

impl Operators {
    fn page(self) -> Result<Page, Error> {
        let mut page = Page::builder().title("Airports").invalidate(self.invalidate);
        if let Some(password) = self.password {
            page = page.look_up(Guard::password(password));
        }
        if self.keys {
            page = page.show_keys(|code| Some(code.to_owned()));
        }
        page.build()
    }
}

/// Metrics for `/metrics`, and traces by OTLP where `OTEL_EXPORTER_OTLP_ENDPOINT` says.
///
/// # Errors
/// What a variable says and cannot be.
pub fn telemetry() -> Result<Running, SetupError> {
    let mut setup = Setup::new("service").scrape();
    if std::env::vars_os().all(|(name, _)| !name.to_string_lossy().starts_with("OTEL_EXPORTER_OTLP_")) {
        // Nobody has said that there is a collector.
        setup = setup.variables(|name| match std::env::var(name) {
            Err(_) if name == "OTEL_TRACES_EXPORTER" => Some("none".to_owned()),
            other => other.ok(),
        });
    }
    setup.start()
}

/// What the database's queries are reported to.
#[must_use]
pub fn queries(running: &Running) -> ClientTelemetry {
    ClientTelemetry::builder("sqlite", "airports")
        .meter_provider(running.meter_provider())
        .tracer_provider(running.tracer_provider())
        .build()
}

impl Service {
    /// Builds the caches of a file before a database.
    ///
    /// # Errors
    /// What is wrong with the file, in one sentence.
    pub async fn new(
        file: &Path,
        database: Database,
        running: Running,
        operators: Operators,
    ) -> Result<Self, Error> {
        let (telemetry, page) = (running.telemetry(), operators.page()?);
        let caches =
            Caches::builder().observer(telemetry.clone()).observer(page.clone()).from_file(file).await?;
        let airports = caches.cache("airports")?.with_source(Airports(database.clone()));
        let checks = caches.cache("checks")?;
        page.show(airports.cache())?;
        page.show(&checks)?;
        let requests = Requests::new(&running);
        let watched = caches.clone();
        let servers = telemetry.watch_servers(SERVERS_EVERY, move || watched.providers());
        Ok(Self { database, caches, airports, checks, telemetry, page, requests, _servers: servers, running })
    }

    /// All routes.
    pub fn router(self: &Arc<Self>) -> Router {
        Router::new()
            .route("/airport/{code}", get(routes::airport))
            .route("/airport/{code}", put(routes::save))
            .route("/airport/{code}", delete(routes::remove))
            .route("/airports/batch", post(routes::batch))
            .route("/cache/invalidate", post(routes::invalidate))
            .route("/cache/stats", get(status::stats))
            .route("/check/operations", post(checks::operations))
            .route("/check/performance", post(checks::performance))
            .route("/check/latency", post(checks::latency))
            .route("/check/memory", get(checks::memory))
            .route("/check/connections", get(checks::connections))
            .route("/check/instrumentation", get(checks::instrumentation))
            .route("/check/cleanup", post(checks::clean_up))
            .layer(DefaultBodyLimit::max(BODY_MAX))
            .layer(middleware::from_fn_with_state(Arc::clone(self), trace::traced))
            // Asked by machines all the time: no traces of that.
            .route("/metrics", get(status::metrics))
            .route("/healthz", get(status::health))
            .with_state(Arc::clone(self))
            .merge(self.page.router())
    }

    /// Reads the caches' file again: policies, addresses and credentials change while requests are answered. Says what has
    /// changed, and what will with the next start.
    ///
    /// # Errors
    /// What is wrong with the file, or that a server of it does not answer: nothing has changed then.
    pub async fn reload(&self) -> Result<String, Error> {
        self.caches.reload().await.map(|reloaded| reloaded.to_string())
    }

    /// Ends the caches once no request is under way: waits for loads, and delivers what levels have not heard. Says what
    /// could not be delivered, and exports what telemetry is left.
    ///
    /// # Errors
    /// Invalidations that a level has not heard.
    pub async fn close(&self) -> Result<(), BoxError> {
        // All at once, those as well that somebody adds to the file one day.
        let closed = self.caches.close(PATIENCE).await;
        self.running.flush(Duration::from_secs(5));
        let mut unheard = BTreeMap::<_, usize>::new();
        for (cache, closed) in &closed {
            // An invalidation is one for each level and for the backplane.
            for undelivered in closed.undelivered() {
                *unheard.entry((cache, undelivered.level)).or_default() += 1;
            }
        }
        if unheard.is_empty() {
            return Ok(());
        }
        let unheard: Vec<_> = unheard
            .into_iter()
            .map(|((cache, level), many)| match level {
                Some(level) => format!("level {} of {cache} has not heard of {many}", u16::from(level) + 1),
                None => format!("the backplane of {cache} has not taken {many}"),
            })
            .collect();
        Err(format!(
            "invalidations could not be delivered: {}; once it is back, repeat them (`traced-cache invalidate`, or `clear`), or \
             older values may be served until they end",
            unheard.join(", ")
        )
        .into())
    }
}
