//! The command `traced-cache`: see the library of the same package.

use std::process::ExitCode;

fn main() -> ExitCode {
    traced_cache_cli::run(traced_cache::Caches::builder())
}
