//! Writes the entries that a fuzzer may start from into the folder given.

use std::{env, fs, io, path::PathBuf};

fn main() -> io::Result<()> {
    let folder = PathBuf::from(env::args_os().nth(1).unwrap_or_else(|| "corpus/envelope".into()));
    fs::create_dir_all(&folder)?;
    for (at, entry) in cache_core::testing::readable_entries().iter().enumerate() {
        fs::write(folder.join(format!("entry-{at}")), entry)?;
    }
    Ok(())
}
