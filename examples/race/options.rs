//! The command line.

use std::net::SocketAddr;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::faults::Fault;

/// Races two processes for keys that change, and checks every read.
#[derive(Debug, Parser)]
#[command(name = "race")]
pub(crate) struct Options {
    /// `redis` or `memcached`, started for this run, or the URL of a server: redis://host:port, memcached://host:port
    #[arg(long, default_value = "redis", value_name = "SERVER")]
    pub(crate) l2: String,

    /// A deeper level behind that one, as there; `kill` and `stop` befall the two in turn
    #[arg(long, value_name = "SERVER")]
    pub(crate) l3: Option<String>,

    /// How long to race
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub(crate) seconds: u64,

    /// What befalls the server meanwhile, again and again
    #[arg(long)]
    pub(crate) fault: Option<Fault>,

    /// Callers leave in the middle of their calls, and loads fail, panic, or take too long
    #[arg(long)]
    pub(crate) hasty: bool,

    /// How the two processes use the deepest level
    #[arg(long, default_value = "told", value_name = "HOW")]
    pub(crate) levels: Levels,

    /// Print one JSON object instead of a table
    #[arg(long)]
    pub(crate) json: bool,

    #[command(subcommand)]
    pub(crate) command: Option<Command>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// One of the two processes; the race starts them
    #[command(hide = true)]
    Node(Settings),
}

/// What a node is told.
#[derive(Clone, Debug, Args)]
pub(crate) struct Settings {
    /// Where the source is
    #[arg(long)]
    pub(crate) source: SocketAddr,
    /// URL of the second level
    #[arg(long)]
    pub(crate) l2: String,
    /// URL of the level behind it
    #[arg(long)]
    pub(crate) l3: Option<String>,
    /// Key prefix of this run
    #[arg(long)]
    pub(crate) run: String,
    /// Which node this is: 0 or 1
    #[arg(long)]
    pub(crate) node: usize,
    #[arg(long)]
    pub(crate) kind: Kind,
    #[arg(long)]
    pub(crate) seconds: u64,
    /// The server is disturbed, so that a level may be away for a while
    #[arg(long)]
    pub(crate) disturbed: bool,
    #[arg(long)]
    pub(crate) hasty: bool,
    #[arg(long)]
    pub(crate) levels: Levels,
}

/// How the processes use the second level, and hear of each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Levels {
    /// Memory hears of changes where the server tells of them (Redis), and keeps entries for a second where not
    Told,
    /// The first process hears of changes, the second one does not (Redis)
    Mixed,
    /// Neither does
    Untold,
    /// Values are written to the second level in the background
    Behind,
    /// The second level has bare values: no leases, no tags, no clear. A process reads its own keys only
    Plain,
    /// Errors of the second level come out instead of being hidden
    Surface,
}

impl Levels {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Told => "told",
            Self::Mixed => "mixed",
            Self::Untold => "untold",
            Self::Behind => "behind",
            Self::Plain => "plain",
            Self::Surface => "surface",
        }
    }

    /// Whether memory of a process hears what others change, if the server can tell.
    pub(crate) fn hears(self, node: usize) -> bool {
        match self {
            Self::Told | Self::Behind | Self::Surface => true,
            Self::Mixed => node == 0,
            Self::Untold | Self::Plain => false,
        }
    }
}

/// What is raced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Kind {
    /// The cache of this crate
    Traced,
    /// One written by hand, without leases and tickets
    Naive,
}

impl Kind {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Traced => "traced",
            Self::Naive => "naive",
        }
    }
}
