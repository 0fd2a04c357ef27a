//! Keys from the command line, a file, or the standard input.

use std::{io, path::Path};

use cache_replay::{Fault, Form, Keys, Trace};

use crate::{end::Failure, options::KeyOptions};

/// All keys that were named, in their order, each once.
pub(crate) fn all(options: &KeyOptions) -> Result<Vec<String>, Failure> {
    let mut keys = options.keys.clone();
    if let Some(file) = &options.keys_from {
        keys.extend(lines(file)?);
    }
    let mut seen = std::collections::HashSet::new();
    keys.retain(|key| seen.insert(key.clone()));
    match keys.iter().any(String::is_empty) {
        true => Err(Failure::wrong("KEY", "\"\"", "a key has at least one character")),
        false => Ok(keys),
    }
}

/// The lines of a file, or of the standard input for `-`.
pub(crate) fn lines(file: &Path) -> Result<Vec<String>, Failure> {
    let failed = |error: cache_replay::TraceError| Failure::failed(traced_cache::with_causes(&error));
    let mut trace = match file == Path::new("-") {
        true => Trace::read(io::stdin(), Path::new("standard input"), Some(Form::Lines)),
        false => Trace::open(file, Some(Form::Lines)),
    }
    .map_err(failed)?;
    let mut all = Vec::new();
    loop {
        let keys = match trace.next() {
            // A query may well have found no keys.
            Err(error) if error.fault() == Fault::Empty => None,
            keys => keys.map_err(failed)?,
        };
        let Some(keys) = keys else { break };
        if let Keys::Lines(lines) = keys {
            all.extend(lines.iter().map(str::to_owned));
        }
    }
    Ok(all)
}
