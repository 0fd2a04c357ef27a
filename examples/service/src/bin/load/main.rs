//! Asks a running service for airports, and says how it did.
//!
//! ```text
//! cargo run --release -p service --bin load -- --seconds 10 --rate 2000 --zipf 0.9
//! cargo run --release -p service --bin load -- --trace keys.trace.xz
//! ```

mod keys;
mod report;
mod run;
mod service;

use std::{
    io::{self, Write},
    path::PathBuf,
    process::ExitCode,
    time::Duration,
};

use clap::Parser;
use indicatif::{ProgressBar, ProgressStyle};
use traced_cache::BoxError;

use crate::{keys::Keys, service::Service};

/// Asks a running service for airports, and says how it did.
#[derive(Debug, Parser)]
#[command(name = "load")]
struct Options {
    /// The service
    #[arg(long, default_value = "http://127.0.0.1:8080")]
    url: String,

    /// How long [default: 10; with --trace to its end]
    #[arg(long, value_parser = seconds)]
    seconds: Option<Duration>,

    /// Requests a second, sent on time whether the service keeps up or not; latencies count from when a request was due. As
    /// many as it answers when not given
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    rate: Option<u32>,

    /// How uneven airports are asked for: the one of rank r has the weight 1/r^ZIPF; 0: all alike
    #[arg(long, default_value_t = 0.9, value_parser = exponent, conflicts_with = "trace")]
    zipf: f64,

    /// Asks in the order of a recorded trace (one key a line or big-endian 32-bit integers; plain, gzip or xz): each key of it
    /// stands for an airport
    #[arg(long, value_name = "FILE")]
    trace: Option<PathBuf>,

    /// Requests under way at most
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..=4096))]
    connections: u16,

    /// Another order of the airports, and other draws
    #[arg(long, default_value_t = 1)]
    seed: u64,

    /// Print one JSON object instead of a table
    #[arg(long)]
    json: bool,
}

fn seconds(text: &str) -> Result<Duration, String> {
    let fix = "a number of seconds above zero";
    let seconds: f64 = text.parse().map_err(|_no_number| fix.to_owned())?;
    let time = Duration::try_from_secs_f64(seconds).map_err(|_negative| fix.to_owned())?;
    if time.is_zero() { Err(fix.to_owned()) } else { Ok(time) }
}

fn exponent(text: &str) -> Result<f64, String> {
    let exponent: f64 = text.parse().map_err(|_no_number| "a number from 0 to 5".to_owned())?;
    if (0.0..=5.0).contains(&exponent) { Ok(exponent) } else { Err("a number from 0 to 5".to_owned()) }
}

#[tokio::main]
async fn main() -> ExitCode {
    match load(&Options::parse()).await {
        Ok(text) => {
            // Nobody is left to be told when this fails.
            let _ = write!(io::stdout(), "{text}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            let _ = writeln!(io::stderr(), "error: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn load(options: &Options) -> Result<String, BoxError> {
    let service = Service::new(&options.url)?;
    let before = service.airports().await?;
    let codes = ::service::database::codes_by_popularity(options.seed)?;
    let keys = match &options.trace {
        Some(file) => Keys::traced(file, codes)?,
        None => Keys::zipf(options.zipf, options.seed, codes),
    };
    let limit = match (options.seconds, &options.trace) {
        (None, None) => Some(Duration::from_secs(10)),
        (limit, _) => limit,
    };
    let bar = bar(limit);
    let done = run::run(&service, keys, limit, options.rate, options.connections.into(), &bar).await?;
    bar.finish_and_clear();
    let after = service.airports().await?;
    let report = report::Report::new(&done, &before, &after);
    Ok(if options.json { serde_json::to_string(&report)? + "\n" } else { report.to_string() })
}

/// Hidden where the error output is not a terminal.
fn bar(limit: Option<Duration>) -> ProgressBar {
    let (bar, template) = match limit {
        Some(limit) => {
            let steps = u64::try_from(limit.as_millis()).unwrap_or(u64::MAX);
            (ProgressBar::new(steps), "{bar:40} {percent:>3} %, {msg}")
        }
        None => (ProgressBar::new_spinner(), "{spinner} {elapsed}, {msg}"),
    };
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    bar.with_style(style)
}
