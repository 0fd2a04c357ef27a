//! Drives the check endpoints of a running service: is it set up as it should be?
//!
//! ```text
//! cargo run --release -p service --bin validate -- --report report.json
//! ```

use std::{
    io::{self, Write},
    path::PathBuf,
    process::ExitCode,
    time::{Duration, Instant},
};

use clap::Parser;
use reqwest::{Client, Method};
use serde::Serialize;
use serde_json::{Value, json};
use service::address::Address;
use traced_cache::BoxError;

/// Drives the check endpoints of a running service. Ends with 0 if all pass, with 1 if one does not.
#[derive(Debug, Parser)]
#[command(name = "validate")]
struct Options {
    /// The service
    #[arg(long, default_value = "http://127.0.0.1:8080")]
    url: String,

    /// Under whose name; keeps two validations at once apart
    #[arg(long, default_value = "validate")]
    project: String,

    /// The least share of hits
    #[arg(long, default_value_t = 0.8)]
    target_hit_rate: f64,

    /// Writes all answers into this file, as JSON
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,

    /// Shows the answers, too
    #[arg(long, short)]
    verbose: bool,
}

/// One check.
#[derive(Serialize)]
struct Check {
    name: &'static str,
    passed: bool,
    took_ms: f64,
    answer: Value,
}

#[tokio::main]
async fn main() -> ExitCode {
    match validate(&Options::parse()).await {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            // Nobody is left to be told when this fails as well.
            let _ = writeln!(io::stderr(), "error: {error}");
            ExitCode::from(2)
        }
    }
}

async fn validate(options: &Options) -> Result<bool, BoxError> {
    let service = Address::new(&options.url)?;
    let shown = service.shown();
    let client = Client::builder().no_proxy().timeout(Duration::from_secs(60)).build()?;
    let mut out = io::stdout();
    let mut checks = Vec::new();
    for (name, path, body) in plan(options) {
        let started = Instant::now();
        let method = if body.is_some() { Method::POST } else { Method::GET };
        let mut request = client.request(method, service.at(path));
        if let Some(body) = &body {
            request = request.body(body.to_string());
        }
        let response = request.send().await.map_err(|_cause| {
            format!(
                "no answer from {shown}; start it with `cargo run --release -p service`, or name it with --url"
            )
        })?;
        let well = response.status().is_success();
        let answer: Value = serde_json::from_str(&response.text().await?).unwrap_or_default();
        let passed = well && (answer["passed"] == json!(true) || answer["status"] == json!("ok"));
        let took_ms = (started.elapsed().as_secs_f64() * 1e4).round() / 10.0;
        writeln!(out, "{:6} {name} ({took_ms} ms)", if passed { "ok" } else { "FAILED" })?;
        if options.verbose || !passed {
            writeln!(out, "       {answer}")?;
        }
        checks.push(Check { name, passed, took_ms, answer });
    }
    let failed = checks.iter().filter(|check| !check.passed).count();
    if let Some(path) = &options.report {
        let report =
            json!({ "url": shown, "project": options.project, "passed": failed == 0, "checks": checks });
        std::fs::write(path, serde_json::to_vec_pretty(&report)?)
            .map_err(|error| format!("--report {}: {error}", path.display()))?;
    }
    writeln!(out, "{} passed, {failed} failed", checks.len() - failed)?;
    Ok(failed == 0)
}

/// Name, path and, for what is posted, the body.
fn plan(options: &Options) -> Vec<(&'static str, &'static str, Option<Value>)> {
    let Options { project, target_hit_rate, .. } = options;
    let operation = |operation: &str| {
        Some(json!({ "operation": operation, "prefix": "validate", "count": 200, "project": project }))
    };
    let latency = |command: &str| Some(json!({ "command": command, "iterations": 500, "project": project }));
    let performance = Some(json!({ "keys": 500, "target_hit_rate": target_hit_rate, "project": project }));
    vec![
        ("the service and its database answer", "/healthz", None),
        ("levels answer", "/check/connections", None),
        ("values are stored", "/check/operations", operation("set")),
        ("values are found", "/check/operations", operation("get")),
        ("values are removed", "/check/operations", operation("delete")),
        ("the hit rate is what it should be", "/check/performance", performance),
        ("reads are timed", "/check/latency", latency("get")),
        ("writes are timed", "/check/latency", latency("set")),
        ("memory is known", "/check/memory", None),
        ("telemetry sees the caches", "/check/instrumentation", None),
        ("nothing is left behind", "/check/cleanup", Some(json!({ "project": project }))),
    ]
}
