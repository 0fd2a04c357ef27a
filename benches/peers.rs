//! Our caches beside the raw parts and the peers: `cargo bench --bench peers [-- --quick]`.
//!
//! Builds and runs the crate in `benches/peers`, which nothing else builds, and leaves `target/bench/peers.json`.
//! docs/performance.md says what the rows are and how they are measured.
#![allow(clippy::print_stderr, missing_docs, reason = "a benchmark for people")]

use std::{
    env,
    ffi::OsString,
    path::Path,
    process::{Command, ExitCode, Stdio},
};

fn main() -> ExitCode {
    // `cargo test --benches` and `cargo nextest` ask benches like this, too.
    if !env::args().any(|argument| argument == "--bench") {
        return ExitCode::SUCCESS;
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let target = env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), |dir| root.join(dir));
    // A directory of its own: its crates have other features than ours.
    let own_target = target.join("peers");
    let cargo = env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo"));
    eprintln!("peers: building; the first time takes minutes");
    let built = Command::new(cargo)
        .args(["build", "--release", "--manifest-path"])
        .arg(root.join("benches/peers/Cargo.toml"))
        .arg("--target-dir")
        .arg(&own_target)
        // Not for this crate's own linter or flags.
        .env_remove("RUSTC_WORKSPACE_WRAPPER")
        .stdin(Stdio::null())
        .status();
    match built {
        Ok(status) if status.success() => {}
        Ok(_) => {
            eprintln!(
                "peers: did not build; if a dependency of ours has moved on: cd benches/peers && cargo update"
            );
            return ExitCode::FAILURE;
        }
        Err(error) => {
            eprintln!("peers: cargo cannot be run: {error}");
            return ExitCode::FAILURE;
        }
    }
    let ran = Command::new(own_target.join("release").join("peers"))
        .arg("--json")
        .arg(target.join("bench").join("peers.json"))
        .args(env::args_os().skip(1).filter(|argument| argument != "--bench"))
        .status();
    match ran {
        Ok(status) if status.success() => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("peers: cannot be run: {error}");
            ExitCode::FAILURE
        }
    }
}
