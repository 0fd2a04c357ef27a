//! Replays a recorded trace through the real stack: what a cache of that size would have saved, and at what cost.
//!
//! ```text
//! cargo run --release --example replay -- FILE [--capacity 4096] [--engine quick] [--l2 redis://127.0.0.1:6379] [--json]
//! ```

#[path = "../shared/failure.rs"]
mod failure;
mod options;
#[path = "../shared/remote.rs"]
mod remote;
#[cfg(test)]
mod tests;

use std::{
    fs::File,
    io::{self, Write},
    process::ExitCode,
    time::Duration,
};

use cache_replay::{Latencies, Report, Trace, TraceError, replay as ask_all};
use clap::Parser;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use traced_cache::{Memory, Policy, TracedCache};

use crate::{failure::Failure, options::Options, remote::Remote};

fn main() -> ExitCode {
    let options = Options::parse();
    let written = replay(&options).and_then(|text| {
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

/// With what it was run.
#[derive(Serialize)]
struct Full {
    #[serde(flatten)]
    report: Report,
    capacity: u64,
    engine: &'static str,
    threads: usize,
}

fn replay(options: &Options) -> Result<String, Failure> {
    let threads = options.threads();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(threads)
        .enable_all()
        .build()
        .map_err(Failure::run)?;
    let latencies = Latencies::default();
    let mut systems = vec!["memory"];
    let mut cache = TracedCache::<u64>::builder("replay")
        .level(Memory::entries(options.capacity).engine(options.engine))
        // The loader is this program's own and takes as long as it was told to.
        .policy(Policy::ttl(options.ttl).hard_limit(None))
        .observer(latencies.clone());
    let run = format!("replay-{}", uuid::Uuid::new_v4().simple());
    let remote = options.l2.as_deref().map(|url| Remote::new(url, &run)).transpose();
    let remote = remote.map_err(Failure::options)?;
    if let Some(remote) = &remote {
        cache = cache.level(remote.level());
        systems.push(remote.system());
    }
    let cache = cache.build().map_err(Failure::options)?;

    let unreadable = |error| Failure::run(TraceError::unreadable(&options.file, error));
    let file = File::open(&options.file).map_err(unreadable)?;
    let progress = bar(file.metadata().map_err(unreadable)?.len());
    let trace = Trace::read(progress.wrap_read(file), &options.file, options.format.form());
    let trace = trace.map_err(Failure::run)?;
    let about = format!("{}: {}, {}.\n", options.file.display(), trace.packing(), trace.form().as_str());

    let (asked, stats) = runtime.block_on(async {
        if let Some(remote) = &remote {
            remote.reach().await.map_err(Failure::run)?;
        }
        let tell = {
            let progress = progress.clone();
            move |read| progress.set_message(format!("{read} requests"))
        };
        let asked = ask_all(&cache, trace, threads, options.load_time, tell).await;
        progress.finish_and_clear();
        let asked = asked.map_err(Failure::run)?;
        let stats = cache.stats();
        // Writes to the second level may still be under way.
        let _ = cache.close(Duration::from_secs(10)).await;
        Ok((asked, stats))
    })?;
    let report = Report::new(asked, &stats, &latencies, &systems).map_err(Failure::run)?;
    if options.json {
        let full = Full { report, capacity: options.capacity, engine: options.engine.as_str(), threads };
        serde_json::to_string(&full).map(|json| json + "\n").map_err(Failure::run)
    } else {
        Ok(about + &report.tables())
    }
}

/// Shows how far the file has been read; hidden where the error output is not a terminal.
fn bar(bytes: u64) -> ProgressBar {
    let style = ProgressStyle::with_template("{bar:40} {percent:>3} % of the trace, {msg} ({eta} left)")
        .unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(bytes).with_style(style)
}
