//! Two processes race for keys whose source changes all the time, and every single read is checked: may it see what it saw?
//!
//! ```text
//! cargo run --release --example race -- --l2 redis --seconds 20
//! ```
//!
//! Each process has a cache of memory in front of the second level and one without memory; readers load slowly, writers
//! change the source and then invalidate, set or update a key, or all of theirs by a tag or a clear, or write through the
//! cache. The same is done to a cache written by hand, without leases and tickets, which must fail: a check that finds
//! nothing there would find nothing anywhere.
//!
//! With `--fault kill`, `dump`, `stop`, `failover`, `replace`, `meddle` or `reshard` the server suffers meanwhile, once in a
//! few seconds; nothing may be seen that was not promised, and once it is well again all must be up to date within the bound. While sentinels
//! replace a master that is alive, one process may have left it and the other one not yet: what either has confirmed the other
//! one sees late, which is counted apart.
//!
//! With `--hasty` callers leave in the middle of whatever they call, and loads are late, fail and panic: what stands in is
//! checked as well, and nobody may wait for what those have left behind. `--levels` has the second level written in the
//! background, or bare, or its errors come out, or one of the processes or both without a backplane; with `--l3`
//! that is said of a third level behind it.
//!
//! Exit code 0 if the cache has no violation and the one by hand has some, 2 if the options make no sense or the server
//! is not installed, else 1.

#[path = "../shared/failure.rs"]
mod failure;
mod faults;
mod naive;
mod node;
mod operator;
mod options;
mod parent;
#[path = "../shared/remote.rs"]
mod remote;
mod report;
mod source;
mod subject;
#[path = "../shared/table.rs"]
mod table;
#[cfg(test)]
mod tests;
mod through;

use std::{
    io::{self, Write},
    process::ExitCode,
};

use clap::Parser;

use crate::{
    failure::Failure,
    options::{Command, Options},
    parent::Spawn,
};

fn main() -> ExitCode {
    let options = Options::parse();
    let done = match &options.command {
        Some(Command::Node(settings)) => node::run(settings).map(|()| (String::new(), true)),
        None => {
            parent::race(&options, Spawn::Processes).map(|report| (report.text(options.json), report.good()))
        }
    };
    let written = done.and_then(|(text, good)| {
        let mut out = io::stdout().lock();
        out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(Failure::run)?;
        Ok(good)
    });
    match written {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(failure) => {
            let (line, code) = failure.report();
            // Nobody is left to be told when this fails as well.
            let _ = writeln!(io::stderr(), "{line}");
            code
        }
    }
}
