//! The command line.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use cache_replay::Form;
use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;

use crate::end::Failure;

/// Looks into the caches of a configuration file, invalidates, watches, measures.
///
/// FILE is the file that your application reads: TOML, JSON or YAML; variables override it here as they do there. Keys are
/// written as stores and telemetry show them: 42, or (1:7,2:de) for a tuple.
#[derive(Debug, Parser)]
#[command(
    name = "traced-cache",
    version,
    propagate_version = true,
    subcommand_required = true,
    arg_required_else_help = true,
    after_help = CODES
)]
pub(crate) struct Options {
    /// Answer with one JSON document; errors too
    #[arg(long, global = true)]
    pub(crate) json: bool,

    /// Prefix of the variables that override the file, or `off` [default: TRACED_CACHE]
    #[arg(long, global = true, value_name = "PREFIX")]
    pub(crate) env_prefix: Option<String>,

    #[command(subcommand)]
    pub(crate) verb: Verb,
}

const CODES: &str = "\
Exit codes:
  0  done: confirmed, found, right
  1  it could not be done, or not all of it: a server does not answer, a file of keys or values cannot be read
  2  the command line or the configuration file is wrong, or that file cannot be read
  3  no level that is seen from here has the key, or what is there may not be served any more
  4  pending: a level has not acknowledged an invalidation, or the backplane not taken it
  5  a level has something of the key that cannot be read";

#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    Check(CheckOptions),
    Explain(ExplainOptions),
    Get(GetOptions),
    Inspect(InspectOptions),
    Invalidate(InvalidateOptions),
    Clear(ClearOptions),
    Stats(StatsOptions),
    Watch(WatchOptions),
    Warm(WarmOptions),
    Replay(ReplayOptions),
    Bench(BenchOptions),
    /// Print completions for a shell
    Completions {
        /// Which one
        shell: Shell,
    },
}

/// Which file.
#[derive(Args, Clone, Debug)]
pub(crate) struct FileOption {
    /// The configuration file: .toml, .json or .yaml
    #[arg(value_name = "FILE")]
    pub(crate) path: PathBuf,
}

impl FileOption {
    /// A URL is not shown: it may have a password.
    pub(crate) fn checked(&self) -> Result<&Path, Failure> {
        match self.path.to_string_lossy().contains("://") {
            true => {
                let fix = "it is a URL; for a running service use --url, of `stats` and `watch`";
                Err(Failure::wrong("FILE", "***", fix))
            }
            false => Ok(&self.path),
        }
    }
}

/// Which keys.
#[derive(Args, Clone, Debug)]
pub(crate) struct KeyOptions {
    /// Keys
    #[arg(value_name = "KEY")]
    pub(crate) keys: Vec<String>,

    /// More of them from a file, one a line, plain or packed with gzip or xz; `-`: from the standard input
    #[arg(long, value_name = "FILE")]
    pub(crate) keys_from: Option<PathBuf>,
}

/// Check a file, and whether its servers answer
///
/// Ends with 0 if all is right, with 2 if the file cannot be understood, and with 1 if there is a problem: this machine lacks
/// something that it names (a variable, a file), a provider cannot be built, or a server does not answer.
#[derive(Args, Debug)]
#[command(after_help = "Example:
  traced-cache check cache.toml && systemctl restart shop")]
pub(crate) struct CheckOptions {
    #[command(flatten)]
    pub(crate) file: FileOption,

    /// Ask no server
    #[arg(long)]
    pub(crate) offline: bool,
}

/// Print each setting of each cache, where it comes from, and advice
///
/// Asks no server. What this machine lacks of what the file names is a problem of the answer, no error.
#[derive(Args, Debug)]
#[command(after_help = "Example:
  traced-cache explain cache.toml")]
pub(crate) struct ExplainOptions {
    #[command(flatten)]
    pub(crate) file: FileOption,
}

/// Say which level would answer for a key, and with what
///
/// Reads remote levels only: what an application holds in its own memory is not seen from here. Loads nothing, stores
/// nothing. Values are not shown unless asked for.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  traced-cache get cache.toml users 42
  traced-cache get cache.toml users 42 --show-value --json | jq .keys[0].value")]
pub(crate) struct GetOptions {
    #[command(flatten)]
    pub(crate) file: FileOption,

    /// The cache
    pub(crate) cache: String,

    #[command(flatten)]
    pub(crate) keys: KeyOptions,

    /// Show values: as JSON where the codec says what they are, else in hexadecimal digits
    #[arg(long)]
    pub(crate) show_value: bool,
}

/// Show what each level holds of a key, and whether it may be served
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  traced-cache inspect cache.toml users 42
  traced-cache inspect cache.toml prices '(1:7,2:de)' --json")]
pub(crate) struct InspectOptions {
    #[command(flatten)]
    pub(crate) file: FileOption,

    /// The cache
    pub(crate) cache: String,

    /// The key
    pub(crate) key: String,

    /// Show the value: as JSON where the codec says what it is, else in hexadecimal digits
    #[arg(long)]
    pub(crate) show_value: bool,
}

/// Make keys or tags gone, at every level and for every process
///
/// Answers `confirmed` once every remote level has acknowledged it; other processes' memory hears of it where the cache has a
/// backplane. `pending` (exit code 4) means that a level has not: nothing delivers it once this command has ended.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  traced-cache invalidate cache.toml users 42 43
  traced-cache invalidate cache.toml users --tag team:7
  psql -Atc 'select id from changed' | traced-cache invalidate cache.toml users --keys-from -")]
pub(crate) struct InvalidateOptions {
    #[command(flatten)]
    pub(crate) file: FileOption,

    /// The cache
    pub(crate) cache: String,

    #[command(flatten)]
    pub(crate) keys: KeyOptions,

    /// Whatever has this tag; may be given several times
    #[arg(long = "tag", value_name = "TAG")]
    pub(crate) tags: Vec<String>,

    #[command(flatten)]
    pub(crate) how: How,
}

/// Make all entries of a cache gone, at every level and for every process
///
/// Logical: nothing is flushed, and other caches on the same servers keep theirs. Asks first.
#[derive(Args, Debug)]
#[command(after_help = "Example:
  traced-cache clear cache.toml users --yes")]
pub(crate) struct ClearOptions {
    #[command(flatten)]
    pub(crate) file: FileOption,

    /// The cache
    pub(crate) cache: String,

    /// Do not ask
    #[arg(long)]
    pub(crate) yes: bool,

    #[command(flatten)]
    pub(crate) how: How,
}

/// How invalidations are made.
#[derive(Args, Clone, Copy, Debug)]
pub(crate) struct How {
    /// End their freshness only: they stay as a fallback should the next load fail
    #[arg(long)]
    pub(crate) expire: bool,

    /// How long to try where a level does not acknowledge
    #[arg(long, default_value = "5s", value_parser = humantime::parse_duration, value_name = "TIME")]
    pub(crate) wait: Duration,
}

/// Show how the caches of a running service do, and the servers of a file
///
/// With --url, what a service's caches have counted since its start: look-ups, hit rate, who served them, loads, times, memory,
/// breakers. With FILE, what its Redis and memcached servers say of themselves. Either or both.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  traced-cache stats --url http://127.0.0.1:8080
  traced-cache stats cache.toml
  traced-cache stats --url http://127.0.0.1:8080 --json | jq '.caches[] | {name, hit_rate}'")]
pub(crate) struct StatsOptions {
    /// The configuration file, for the servers that it names
    #[arg(value_name = "FILE")]
    pub(crate) file: Option<PathBuf>,

    /// A running service, for its caches: where Prometheus reads its metrics (`/metrics` where there is no path), or the JSON
    /// of its page (`/cache/api/caches`). User and password percent-encoded
    #[arg(long)]
    pub(crate) url: Option<String>,

    /// This cache alone, and the servers of its levels
    #[arg(long, value_name = "CACHE")]
    pub(crate) cache: Option<String>,
}

/// Show what `stats` shows again and again: what has come since the last look
///
/// Until it is interrupted. With --json, a line for each look.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  traced-cache watch --url http://127.0.0.1:8080
  traced-cache watch cache.toml --url http://127.0.0.1:8080 --every 10s
  traced-cache watch --url http://127.0.0.1:8080 --count 1 --every 5s --json | jq .caches[].hit_rate")]
pub(crate) struct WatchOptions {
    #[command(flatten)]
    pub(crate) stats: StatsOptions,

    /// Time between two looks
    #[arg(long, default_value = "2s", value_parser = humantime::parse_duration, value_name = "TIME")]
    pub(crate) every: Duration,

    /// End after this many [default: when it is interrupted]
    #[arg(long, value_name = "N")]
    pub(crate) count: Option<u64>,
}

/// Fill a cache from a file of keys and values
///
/// Each line is a JSON object: {"key": "42", "value": {...}}, and, if wanted, "tags": ["team:7"], "etag": "v1", "ttl": "5m"
/// (a millisecond at least). What a remote level has fresh already is left alone, and an invalidation that comes in between
/// wins, as it does over any load. An application's own memory fills itself as it is asked.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  traced-cache warm cache.toml users users.ndjson
  psql -Atc \"select json_build_object('key', id, 'value', row_to_json(users)) from users\" | traced-cache warm cache.toml users -")]
pub(crate) struct WarmOptions {
    #[command(flatten)]
    pub(crate) file: FileOption,

    /// The cache
    pub(crate) cache: String,

    /// Its values, a JSON object a line; `-`: the standard input
    #[arg(value_name = "VALUES")]
    pub(crate) values: PathBuf,

    /// Store them whatever the cache has
    #[arg(long)]
    pub(crate) replace: bool,

    /// The schema id of the application's type, where the file does not say it
    #[arg(long, value_name = "ID")]
    pub(crate) schema: Option<u32>,
}

/// Replay a recorded trace through a cache of the file, and say what it saves
///
/// A trace is a list of keys: one a line, or big-endian 32-bit integers; plain, or packed with xz or gzip. They are asked for
/// as fast as it goes, under a name of their own, and values are small: entries are bounded as in the file, ttls count in
/// real time.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  traced-cache replay cache.toml users keys.trace.xz
  TRACED_CACHE__PROVIDERS__LOCAL__ENTRIES=20000 traced-cache replay cache.toml users keys.trace.xz --json | jq .hit_rate")]
pub(crate) struct ReplayOptions {
    #[command(flatten)]
    pub(crate) file: FileOption,

    /// The cache
    pub(crate) cache: String,

    /// The trace; `-`: the standard input
    #[arg(value_name = "TRACE")]
    pub(crate) trace: PathBuf,

    /// Use the remote levels, too: their servers bear the load and hold the entries until the end
    #[arg(long)]
    pub(crate) remote: bool,

    /// Callers at once; they take turns at pieces of 1,024 keys. 1 replays in the exact order of the trace
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=1024), value_name = "N")]
    pub(crate) callers: u16,

    /// What a load takes, `5ms` say; in steps of a millisecond
    #[arg(long, default_value = "0s", value_parser = humantime::parse_duration, value_name = "TIME")]
    pub(crate) load_time: Duration,

    /// How keys are written, where it is told wrongly
    #[arg(long, value_enum, default_value_t = Format::Auto)]
    pub(crate) format: Format,
}

/// How the keys of a trace are written.
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

/// Measure each level of a cache, with its codec, compression and encryption, from this machine
///
/// Under a name of its own, with values of random words; what it has stored is removed at the end, or named where that
/// fails. An interrupt ends it early, with what has been measured so far.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  traced-cache bench cache.toml users
  traced-cache bench cache.toml users --remote --value-bytes 20000 --callers 32 --json")]
pub(crate) struct BenchOptions {
    #[command(flatten)]
    pub(crate) file: FileOption,

    /// The cache
    pub(crate) cache: String,

    /// Measure the remote levels, too: their servers bear the load
    #[arg(long)]
    pub(crate) remote: bool,

    /// Time for each kind of call
    #[arg(long, default_value = "1s", value_parser = humantime::parse_duration, value_name = "TIME")]
    pub(crate) each: Duration,

    /// Different keys
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u64).range(1..=1_000_000), value_name = "N")]
    pub(crate) keys: u64,

    /// Size of a value before it is written
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..=64_000_000), value_name = "BYTES")]
    pub(crate) value_bytes: u32,

    /// Callers at once
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=1024), value_name = "N")]
    pub(crate) callers: u16,
}
