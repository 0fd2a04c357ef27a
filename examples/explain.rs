//! What a file of caches comes to: each setting with its origin, and advice.
//!
//!     cargo run --example explain -- examples/config/production.toml
//!
//! With `--check`, every server is asked for a sign of life. Exits with 0 if the file is right (and, with `--check`, if
//! nothing is missing and every server answers), with 1 if not.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a program for people at a terminal")]

use std::{path::PathBuf, process::ExitCode};

use clap::Parser;
use traced_cache::Caches;

/// Explains a file of caches.
#[derive(Parser)]
struct Options {
    /// The file: .toml, .json or .yaml.
    file: PathBuf,
    /// Also asks every server, and fails if one does not answer or if this machine lacks what the file names.
    #[arg(long)]
    check: bool,
}

#[tokio::main]
async fn main() -> ExitCode {
    let Options { file, check } = Options::parse();
    let builder = Caches::builder();
    let explained = if check { builder.explain_and_ping(&file).await } else { builder.explain(&file) };
    match explained {
        Ok(explanation) => {
            print!("{explanation}");
            if check && !explanation.is_fine() { ExitCode::FAILURE } else { ExitCode::SUCCESS }
        }
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}
