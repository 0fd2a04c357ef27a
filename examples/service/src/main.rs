//! The service's program: `cargo run --release -p service`.

use std::{
    env,
    future::{self, IntoFuture},
    io::{self, Write},
    net::SocketAddr,
    path::PathBuf,
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

use clap::Parser;
use service::{Operators, Service, database::Database};
#[cfg(unix)]
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::{net::TcpListener, sync::oneshot};
use traced_cache::BoxError;
use tracing_subscriber::{
    filter::{LevelFilter, Targets},
    layer::SubscriberExt,
    util::SubscriberInitExt,
};

/// How long requests that are under way are waited for, once asked to end.
const PATIENCE: Duration = Duration::from_secs(10);

/// Airports of the world over HTTP, from SQLite, behind caches that a file describes.
#[derive(Parser)]
#[command(name = "service")]
struct Options {
    /// Where to listen. It asks nobody for a name: keep it to this machine, or to a network that you trust
    #[arg(long, default_value = "127.0.0.1:8080", value_name = "ADDRESS")]
    listen: SocketAddr,

    /// The caches [default: cache.toml of this package, or of the working directory]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,

    /// Lets those who know this password look keys up on the page at /cache
    #[arg(long, env = "PAGE_PASSWORD", hide_env_values = true, value_name = "PASSWORD")]
    page_password: Option<String>,

    /// Lets them invalidate there, too
    #[arg(long, requires = "page_password")]
    page_invalidate: bool,

    /// Shows on the page which airports are asked for most
    #[arg(long)]
    page_keys: bool,

    /// The database; made and filled where it is not there [default: airports.db beside cache.toml]
    #[arg(long, value_name = "FILE")]
    database: Option<PathBuf>,
}

/// `cargo run` says where the package is.
fn beside(name: &str) -> PathBuf {
    env::var_os("CARGO_MANIFEST_DIR").map_or_else(PathBuf::new, PathBuf::from).join(name)
}

#[tokio::main]
async fn main() -> ExitCode {
    match serve(Options::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Nobody is left to be told when this fails as well.
            let _ = writeln!(io::stderr(), "error: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn serve(options: Options) -> Result<(), BoxError> {
    // Before anything has advice to give: the alert `CacheAdvice` sends operators to this log.
    // Of caches also what is no warning: that a level which has failed is asked again.
    let lines = Targets::new().with_default(LevelFilter::WARN).with_target("traced_cache", LevelFilter::INFO);
    tracing_subscriber::fmt().with_writer(io::stderr).finish().with(lines).try_init()?;
    let config = options.config.unwrap_or_else(|| beside("cache.toml"));
    let path = options.database.unwrap_or_else(|| beside("airports.db"));
    // First, so that nothing is made or connected to for a service that cannot be reached.
    let listener = TcpListener::bind(options.listen).await.map_err(|error| {
        format!("--listen {}: {error}; end what listens there, or name another address", options.listen)
    })?;
    if !config.is_file() {
        return Err(format!(
            "--config {}: there is no such file; name the file of the caches",
            config.display()
        )
        .into());
    }
    let running = service::telemetry()?;
    let queries = service::queries(&running);
    let (database, made) = tokio::task::spawn_blocking(move || Database::open(&path, queries)).await??;
    let operators = Operators {
        password: options.page_password,
        invalidate: options.page_invalidate,
        keys: options.page_keys,
    };
    let service = Arc::new(Service::new(&config, database, running, operators).await?);
    let at = listener.local_addr()?;
    let about = if made { ", its database new and filled" } else { "" };
    // Before anybody knows that it is there: a signal that nobody asks for ends a program on the spot.
    let mut end = End::new()?;
    // What is not waited for ends with the runtime.
    follow(Arc::clone(&service))?;
    say(&format!("serving http://{at} with the caches of {}{about}", config.display()));
    let (told, asked) = oneshot::channel();
    let serving = axum::serve(listener, service.router()).with_graceful_shutdown(async move {
        end.asked().await;
        let _ = told.send(end);
    });
    // A client that never sends the rest of its request must not keep invalidations from being delivered.
    let late = async {
        let Ok(mut end) = asked.await else { return future::pending().await };
        tokio::select! {
            () = tokio::time::sleep(PATIENCE) => {}
            () = end.asked() => {}
        }
    };
    tokio::select! {
        ended = serving.into_future() => ended?,
        () = late => say("some requests have not ended; going on without them"),
    }
    say("no more requests; draining");
    service.close().await
}

/// Reads the caches' file again at each HUP signal, which would end a program that does not ask for it.
#[cfg(unix)]
fn follow(service: Arc<Service>) -> io::Result<()> {
    let mut hup = signal(SignalKind::hangup())?;
    tokio::spawn(async move {
        while hup.recv().await.is_some() {
            match service.reload().await {
                Ok(reloaded) => say(&format!("read the caches again\n{reloaded}")),
                // In the log, with its time: somebody wants to know from when on the file was not what runs.
                Err(error) => tracing::error!("the caches go on as before: {error}"),
            }
        }
    });
    Ok(())
}

#[cfg(not(unix))]
#[allow(clippy::unnecessary_wraps, reason = "as where there are signals")]
fn follow(_: Arc<Service>) -> io::Result<()> {
    Ok(())
}

fn say(line: &str) {
    // Nobody may be listening.
    let _ = writeln!(io::stdout(), "{line}");
}

/// Ctrl-C, or what supervisors send: heard from when this is made.
#[cfg(unix)]
struct End {
    interrupted: Signal,
    terminated: Signal,
}

#[cfg(unix)]
impl End {
    fn new() -> io::Result<Self> {
        Ok(Self {
            interrupted: signal(SignalKind::interrupt())?,
            terminated: signal(SignalKind::terminate())?,
        })
    }

    /// Once more each time.
    async fn asked(&mut self) {
        tokio::select! {
            _ = self.interrupted.recv() => {}
            _ = self.terminated.recv() => {}
        }
    }
}

#[cfg(not(unix))]
struct End;

#[cfg(not(unix))]
impl End {
    #[allow(clippy::unnecessary_wraps, reason = "as where there are signals")]
    fn new() -> io::Result<Self> {
        Ok(Self)
    }

    async fn asked(&mut self) {
        drop(tokio::signal::ctrl_c().await);
    }
}
