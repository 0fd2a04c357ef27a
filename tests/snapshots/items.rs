//! Reads the files of this folder: see its README.

use std::{fs, path::PathBuf};

pub(crate) fn path(file: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/snapshots").join(file)
}

/// Keys and bytes of a file's items.
pub(crate) fn items(file: &str) -> Vec<(String, Vec<u8>)> {
    let text = fs::read_to_string(path(file)).unwrap();
    text.lines()
        .map(|line| {
            let (key, hex) = line.split_once(' ').unwrap();
            let byte = |at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap();
            (key.to_owned(), (0..hex.len()).step_by(2).map(byte).collect())
        })
        .collect()
}
