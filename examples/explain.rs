//! What a file of caches comes to: each setting with its origin, and advice.
//!
//!     cargo run --example explain -- examples/config/production.toml
//!
//! With `--check`, every server is asked for a sign of life. Exits with 0 if the file is right (and, with `--check`, if
//! nothing is missing and every server answers), with 1 if not.
#![allow(clippy::print_stderr, reason = "a program for people at a terminal")]

use std::{
    io::{self, Write},
    path::PathBuf,
    process::ExitCode,
};

use clap::Parser;
use traced_cache::{
    Caches, Error,
    config::{CachesBuilder, Explanation},
};

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
    let options = Options::parse();
    match explained(&Caches::builder(), &options).await {
        Ok(explanation) => {
            // Whoever reads it may stop in the middle.
            let _ = write!(io::stdout(), "{explanation}");
            if is_right(&explanation, &options) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

async fn explained(builder: &CachesBuilder, options: &Options) -> Result<Explanation, Error> {
    match options.check {
        true => builder.explain_and_ping(&options.file).await,
        false => builder.explain(&options.file),
    }
}

/// Without `--check`, what only this machine lacks is no failure.
fn is_right(explanation: &Explanation, options: &Options) -> bool {
    !options.check || explanation.is_fine()
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn right(file: &str, check: bool) -> Result<bool, Error> {
        let file = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("examples/config").join(file);
        let options = Options { file, check };
        let builder = Caches::builder().variables([("", ""); 0]);
        explained(&builder, &options).await.map(|explanation| is_right(&explanation, &options))
    }

    #[tokio::test]
    async fn what_a_machine_lacks_counts_when_checked() {
        assert!(right("production.toml", false).await.unwrap());
        assert!(!right("production.toml", true).await.unwrap());
        assert!(right("laptop.yaml", true).await.unwrap());
        assert!(right("nowhere.toml", false).await.is_err());
    }
}
