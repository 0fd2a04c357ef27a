//! `replay`: what a cache of the file would have saved.

use std::{
    collections::BTreeSet,
    fmt::Write as _,
    fs::File,
    io,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use cache_replay::{Form, Keys, Latencies, Report, Trace, TraceError, replay};
use serde::Serialize;
use traced_cache::{Delivery, Rendered, TracedCache, config::CachesBuilder, with_causes};

use super::left::{self, PATIENCE};
use crate::{
    end::{Exit, Failure},
    options::ReplayOptions,
    output::Output,
    session::{Session, own_name},
};

/// What it was run with.
#[derive(Serialize)]
struct Full {
    cache: String,
    callers: u16,
    /// A text that every key which could not be removed has in its name.
    left: Option<String>,
    #[serde(flatten)]
    report: Report,
}

pub(crate) async fn run(
    builder: CachesBuilder,
    out: Output,
    options: ReplayOptions,
) -> Result<Exit, Failure> {
    let ReplayOptions { file, cache: name, trace: path, remote, callers, load_time, format } = options;
    if remote && is_read_once(&path) {
        let fix =
            "what is stored remotely is removed by reading the trace once more; give a file that is no pipe";
        return Err(Failure::wrong("TRACE", path.display(), fix));
    }
    let session = Session::open(builder, &file).await?;
    session.cache::<traced_cache::Opaque>(&name)?;
    let levels = session.measured_levels(&name, remote).await?;
    let latencies = Latencies::default();
    let own = own_name("replay");
    let kept: Vec<_> = levels.iter().collect();
    let cache = session.like::<u64>(&name, &own, &kept)?.observer(latencies.clone()).build()?;
    let (trace, bar) = open(&path, format.form(), out)?;
    let about = format!("{}: {}, {}.\n", path.display(), trace.packing(), trace.form().as_str());
    let keys = Arc::new(AtomicU64::new(0));
    let tell = {
        let (bar, keys) = (bar.clone(), Arc::clone(&keys));
        move |read| {
            keys.store(read, Ordering::Relaxed);
            bar.set_message(format!("{read} requests"));
        }
    };
    let asked = tokio::select! {
        asked = replay(&cache, trace, usize::from(callers), load_time, tell) => Some(asked),
        _ = tokio::signal::ctrl_c() => None,
    };
    bar.finish_and_clear();
    let stats = cache.stats();
    // What loads under way write after the removal would stay.
    let _ = cache.close(PATIENCE).await;
    let remote: Vec<_> = levels.iter().filter(|level| level.is_remote()).collect();
    let is_clean = remote.is_empty() || {
        let stored = session.like::<u64>(&name, &own, &remote)?.build()?;
        let keys = keys.load(Ordering::Relaxed);
        tokio::select! {
            is_clean = async {
                clean(&stored, &path, format.form(), keys, out).await && left::unmarked(&levels, &own).await
            } => is_clean,
            _ = tokio::signal::ctrl_c() => false,
        }
    };
    let left = (!is_clean).then_some(own);
    let note = left.as_deref().map(left::note);
    let failed = |failure| left::noted(failure, note.as_deref());
    let Some(asked) = asked else { return Err(failed(Failure::failed("interrupted"))) };
    let asked = asked.map_err(|error| failed(Failure::failed(with_causes(&*error))))?;
    let systems: Vec<_> = levels.iter().map(|level| level.provider.describe().system).collect();
    let report = Report::new(asked, &stats, &latencies, &systems);
    let report = report.map_err(|error| failed(Failure::failed(with_causes(&error))))?;
    let mut text = about + &report.tables();
    if let Some(note) = &note {
        let _ = write!(text, "\n{note}");
    }
    let exit = if is_clean { Exit::Done } else { Exit::Failed };
    out.answer(&Full { cache: name, callers, left, report }, text)?;
    Ok(exit)
}

/// Whether this is something like a pipe, which cannot be opened and read again. A missing file is reported by whoever opens it.
fn is_read_once(path: &Path) -> bool {
    path == Path::new("-") || path.metadata().is_ok_and(|found| !found.is_file())
}

fn open(path: &Path, form: Option<Form>, out: Output) -> Result<(Trace, indicatif::ProgressBar), Failure> {
    let failed = |error: TraceError| Failure::failed(with_causes(&error));
    if path == Path::new("-") {
        let trace = Trace::read(io::stdin(), Path::new("standard input"), form).map_err(failed)?;
        return Ok((trace, indicatif::ProgressBar::hidden()));
    }
    let unreadable = |error| failed(TraceError::unreadable(path, error));
    let file = File::open(path).map_err(unreadable)?;
    let bar = out.bytes_bar(file.metadata().map_err(unreadable)?.len());
    Ok((Trace::read(bar.wrap_read(file), path, form).map_err(failed)?, bar))
}

/// Removes what the replay of so many keys has left at remote levels. `true` if nothing is left.
async fn clean(cache: &TracedCache<u64>, path: &Path, form: Option<Form>, keys: u64, out: Output) -> bool {
    let mut heard = false;
    // What a level has missed is sent again once it is back. If those are too many keys, it is only told that the whole
    // cache is over, and the entries would stay in the store until their ttl ends.
    for _ in 0..2 {
        heard = match remove(cache, path, form, keys, out).await {
            Ok(heard) => heard,
            Err(_told) => return false,
        };
        left::delivered(cache, PATIENCE).await;
        if heard {
            break;
        }
    }
    left::ends_clean(cache).await && heard
}

/// Reads the same keys again, at least as many, and removes them. `true` if every level has acknowledged all of it.
async fn remove(
    cache: &TracedCache<u64>,
    path: &Path,
    form: Option<Form>,
    replayed: u64,
    out: Output,
) -> Result<bool, Failure> {
    let (mut trace, bar) = open(path, form, out)?;
    bar.set_message("removing what was stored");
    let (mut heard, mut read) = (true, 0);
    // Errors of the trace were reported by the replay; otherwise there are fewer keys than it had.
    while let Ok(Some(keys)) = trace.next() {
        read += keys.len() as u64;
        let ids: BTreeSet<_> = match keys {
            Keys::Integers(all) => all.iter().map(u32::to_string).collect(),
            Keys::Lines(all) => all.iter().map(str::to_owned).collect(),
            _ => continue,
        };
        heard &= cache.invalidate_many(ids.into_iter().map(Rendered)).await.is_ok_and(Delivery::is_confirmed);
    }
    bar.finish_and_clear();
    Ok(heard && read >= replayed)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use traced_cache::{
        Level,
        testing::{Chaos, ChaosOp, Fault, MapProvider},
    };

    use super::*;

    /// More keys than a level is told of one by one.
    #[tokio::test]
    async fn what_an_outage_has_kept_from_being_removed_is_removed_after_it() {
        const KEYS: u64 = 12_000;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("trace");
        let lines = (0..KEYS).fold(String::new(), |mut text, key| {
            let _ = writeln!(text, "page/{key}");
            text
        });
        std::fs::write(&path, lines).unwrap();
        let store = Arc::new(MapProvider::new());
        let level = Arc::new(Chaos::new(Arc::clone(&store)));
        // Each key is to be refused by the store itself.
        let builder = TracedCache::builder("t").level(Level::new(Arc::clone(&level)).breaker(None));
        let cache: TracedCache<u64> = builder.build().unwrap();
        for key in 0..KEYS {
            let _ = cache.set(Rendered(format!("page/{key}")), key).await.unwrap();
        }
        let values = || store.keys().iter().filter(|key| key.contains("page/")).count() as u64;
        assert_eq!(values(), KEYS);
        level.set_all(Fault::Fail);
        let cleaning = clean(&cache, &path, Some(Form::Lines), KEYS, Output::new(true));
        let outage = async {
            while level.keys(ChaosOp::Remove) < KEYS {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            level.set_all(Fault::None);
        };
        let (is_clean, ()) = futures::join!(cleaning, outage);
        assert_eq!((is_clean, values()), (true, 0));
    }

    #[tokio::test]
    async fn a_trace_that_has_fewer_keys_by_now_leaves_some() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "a\nb\n").unwrap();
        for (keys, expected) in [(2, true), (3, false)] {
            let cache: TracedCache<u64> =
                TracedCache::builder("t").level(Level::new(MapProvider::new())).build().unwrap();
            let is_clean = clean(&cache, file.path(), Some(Form::Lines), keys, Output::new(true)).await;
            assert_eq!(is_clean, expected, "{keys}");
        }
    }
}
