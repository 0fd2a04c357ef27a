//! The command line.

use std::{num::NonZeroUsize, path::PathBuf, time::Duration};

use cache_replay::Form;
use clap::{Parser, ValueEnum};
use traced_cache::Engine;

/// Replays a recorded trace through a cache and says what it would have saved.
///
/// FILE is a list of keys: one a line, or big-endian 32-bit integers; plain, or packed with xz or gzip.
#[derive(Debug, Parser)]
#[command(name = "replay")]
pub(crate) struct Options {
    /// The trace
    pub(crate) file: PathBuf,

    /// Entries that memory may hold
    #[arg(long, default_value_t = 4096, value_name = "ENTRIES")]
    pub(crate) capacity: u64,

    /// What keeps them: quick or moka
    #[arg(long, default_value_t = Engine::default(), value_name = "ENGINE")]
    pub(crate) engine: Engine,

    /// How long entries live, in real time: `90s`, `1h`
    #[arg(long, default_value = "1h", value_parser = humantime::parse_duration, value_name = "TIME")]
    pub(crate) ttl: Duration,

    /// A second level: redis://host:port or memcached://host:port
    #[arg(long, value_name = "URL")]
    pub(crate) l2: Option<String>,

    /// Callers at once, each on a thread; they take turns at pieces of 1,024 keys. 1 replays in the exact order of the
    /// trace. [default: number of cores]
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub(crate) threads: Option<u16>,

    /// What a load takes, `5ms` say; in steps of a millisecond
    #[arg(long, default_value = "0s", value_parser = humantime::parse_duration, value_name = "TIME")]
    pub(crate) load_time: Duration,

    /// How keys are written, where it is told wrongly
    #[arg(long, value_enum, default_value_t = Format::Auto)]
    pub(crate) format: Format,

    /// Print one JSON object instead of tables
    #[arg(long)]
    pub(crate) json: bool,
}

impl Options {
    pub(crate) fn threads(&self) -> usize {
        let cores = || std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
        self.threads.map_or_else(cores, usize::from)
    }
}

/// `--format`.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum Format {
    /// Told by the content
    Auto,
    /// One key a line
    Lines,
    /// Big-endian 32-bit integers
    Integers,
}

impl Format {
    pub(crate) fn form(self) -> Option<Form> {
        match self {
            Self::Auto => None,
            Self::Lines => Some(Form::Lines),
            Self::Integers => Some(Form::Integers),
        }
    }
}
