//! A typed cache in front of a real SQLite database: what each way through it costs.
//!
//! ```text
//! cargo run --release --example quickstart
//! cargo run --release --example quickstart -- --l2 redis://127.0.0.1:6379
//! cargo run --release --example quickstart -- --l2 memcached://127.0.0.1:11211
//! ```
//!
//! Start reading at `cache` and `character` in tour.rs: all that an application would write is in these two.

mod database;
#[path = "../shared/failure.rs"]
mod failure;
mod metrics;
mod print;
#[path = "../shared/remote.rs"]
mod remote;
#[path = "../shared/table.rs"]
mod table;
#[cfg(test)]
mod tests;
mod tour;

use std::{
    io::{self, Write},
    process::ExitCode,
    time::Duration,
};

use clap::Parser;

use crate::{database::Database, failure::Failure, metrics::Metrics, remote::Remote, tour::Tour};

/// A typed cache in front of a real SQLite database: what each way through it costs.
#[derive(Debug, Parser)]
#[command(name = "quickstart")]
struct Options {
    /// A second level: redis://host:port or memcached://host:port
    #[arg(long, value_name = "URL")]
    l2: Option<String>,
}

#[tokio::main]
async fn main() -> ExitCode {
    let written = quickstart(Options::parse().l2.as_deref()).await.and_then(|text| {
        let mut out = io::stdout().lock();
        out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(Failure::run)
    });
    match written {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            let (line, code) = failure.report();
            // Nobody is left to be told when this fails as well.
            let _ = writeln!(io::stderr(), "{line}");
            code
        }
    }
}

async fn quickstart(l2: Option<&str>) -> Result<String, Failure> {
    let run = format!("quickstart-{}", uuid::Uuid::new_v4().simple());
    let remote = l2.map(|url| Remote::new(url, &run)).transpose().map_err(Failure::options)?;
    let metrics = Metrics::new();
    let node = tour::cache(&metrics, remote.as_ref()).map_err(Failure::options)?;
    let other = match &remote {
        Some(remote) => {
            remote.reach().await.map_err(Failure::run)?;
            Some(tour::cache(&metrics, Some(remote)).map_err(Failure::options)?)
        }
        None => None,
    };
    let database = Database::create().await.map_err(Failure::run)?;
    let tour = Tour { metrics: &metrics, database: &database, node: &node, other: other.as_ref() };
    let steps = tour.run().await.map_err(Failure::run)?;
    let reading = metrics.read().map_err(Failure::run)?;
    let rows = database.codes().await.map_err(Failure::run)?.len();
    for cache in [Some(&node), other.as_ref()].into_iter().flatten() {
        let _ = cache.close(Duration::from_secs(5)).await;
    }
    Ok(print::tables(rows, remote.as_ref().map(Remote::system), &steps, &reading))
}
