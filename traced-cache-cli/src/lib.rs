//! `traced-cache`: looks into the caches of a configuration file, invalidates, watches, measures.
//!
//! ```sh
//! traced-cache check cache.toml
//! traced-cache inspect cache.toml users 42
//! traced-cache invalidate cache.toml users 42 43 --tag team:7
//! ```
//!
//! `traced-cache --help` lists the verbs, docs/command-line.md of the repository describes them.
//!
//! For a file that uses backends of your own, build a command that knows them. It is one line:
//!
//! ```no_run
//! use std::process::ExitCode;
//!
//! fn main() -> ExitCode {
//!     // .backend("files", |settings: Files| ...)
//!     traced_cache_cli::run(traced_cache::Caches::builder())
//! }
//! ```

mod counts;
mod end;
mod faults;
mod keys;
mod options;
mod output;
mod page;
mod series;
mod servers;
mod session;
mod time;
mod verb;
mod view;

use std::process::ExitCode;

use clap::{
    Parser,
    error::{ContextKind, ContextValue},
};
use traced_cache::config::CachesBuilder;

pub use end::Exit;
use options::{Options, Verb};

/// Runs the command with the arguments of this process, on files that `builder` can read. Returns its exit code: see [`Exit`].
pub fn run(builder: CachesBuilder) -> ExitCode {
    let options = match Options::try_parse() {
        Ok(options) => options,
        Err(error) => return misread(error),
    };
    let json = options.json;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let ended = match runtime {
        Ok(runtime) => {
            let ended = runtime.block_on(dispatch(builder, options));
            // Does not wait for servers that have not answered by now.
            runtime.shutdown_background();
            ended
        }
        Err(error) => Err(end::Failure::failed(format!("no threads to run on: {error}"))),
    };
    let exit = ended.unwrap_or_else(|failure| failure.tell(json));
    ExitCode::from(exit as u8)
}

/// Prints what clap has to say instead of options: help and the version, which end with 0, or what is wrong with the command
/// line, which ends with 2 and is JSON with `--json`.
fn misread(mut error: clap::Error) -> ExitCode {
    // A URL in the wrong place may have a password in it.
    for kind in [ContextKind::InvalidArg, ContextKind::InvalidSubcommand, ContextKind::InvalidValue] {
        if matches!(error.get(kind), Some(ContextValue::String(said)) if said.contains("://")) {
            error.insert(kind, ContextValue::String("***".to_owned()));
        }
    }
    if error.use_stderr() && std::env::args_os().any(|argument| argument == "--json") {
        let text = error.to_string();
        // The lines below the first say what is missing, or what may be written.
        let lines = text.lines().map(str::trim).take_while(|line| !line.starts_with("Usage:"));
        let line = lines.filter(|line| !line.is_empty()).collect::<Vec<_>>().join(" ");
        let line = line.trim_start_matches("error: ");
        return ExitCode::from(end::Failure::misread(line).tell(true) as u8);
    }
    // If this fails, nobody can be told.
    let _ = error.print();
    ExitCode::from(if error.use_stderr() { Exit::Wrong } else { Exit::Done } as u8)
}

async fn dispatch(builder: CachesBuilder, options: Options) -> Result<Exit, end::Failure> {
    let builder = match options.env_prefix.as_deref() {
        None => builder,
        Some("off") => builder.env_prefix(None),
        Some(prefix) => builder.env_prefix(Some(prefix)),
    };
    let out = output::Output::new(options.json);
    match options.verb {
        Verb::Check(options) => verb::check::run(builder, out, options).await,
        Verb::Explain(options) => verb::explain::run(builder, out, options),
        Verb::Get(options) => verb::get::run(builder, out, options).await,
        Verb::Inspect(options) => verb::inspect::run(builder, out, options).await,
        Verb::Invalidate(options) => verb::invalidate::keys(builder, out, options).await,
        Verb::Clear(options) => verb::invalidate::clear(builder, out, options).await,
        Verb::Stats(options) => verb::stats::once(builder, out, options).await,
        Verb::Watch(options) => verb::stats::again(builder, out, options).await,
        Verb::Warm(options) => verb::warm::run(builder, out, options).await,
        Verb::Replay(options) => verb::replay::run(builder, out, options).await,
        Verb::Bench(options) => verb::bench::run(builder, out, options).await,
        Verb::Completions { shell } => verb::completions::run(shell),
    }
}

/// The code in the page about the command is compiled with the tests.
#[cfg(doctest)]
#[doc = include_str!("../../docs/command-line.md")]
mod command_line {}
