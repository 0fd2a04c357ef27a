//! `warm`: fills a cache from a file.

use std::{
    collections::HashMap,
    fs::File,
    io::{self, BufRead, BufReader, Read},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures::{StreamExt, stream};
use serde::Deserialize;
use serde_json::{Value, json};
use traced_cache::{
    Error, ErrorKind, Inspected, LevelOutcome, Loaded, Opaque, Rendered, TracedCache, config::CachesBuilder,
};

use super::check::count;
use crate::{
    end::{Exit, Failure},
    options::WarmOptions,
    output::Output,
    session::{LevelAt, Session},
};

/// Lines of one call.
const CHUNK: usize = 200;
/// Values that are stored at once, each on its own.
const AT_ONCE: usize = 32;
/// Most bytes of a line: without a bound, a file without line ends would be read whole.
const LINE_MAX: u64 = 64 << 20;
/// Keys that are looked at to see whether the schema id is right.
const PROBED: usize = 20;

/// A line.
#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    key: Key,
    value: Value,
    #[serde(default)]
    tags: Vec<String>,
    etag: Option<String>,
    #[serde(default, deserialize_with = "time")]
    ttl: Option<Duration>,
}

/// As it is written in stores, or a number.
#[derive(Clone, Deserialize)]
#[serde(untagged)]
enum Key {
    Text(String),
    Number(serde_json::Number),
}

fn time<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
    let text = Option::<String>::deserialize(deserializer)?;
    text.map(|text| humantime::parse_duration(&text).map_err(serde::de::Error::custom)).transpose()
}

impl Line {
    fn key(&self) -> Rendered {
        Rendered(match &self.key {
            Key::Text(text) => text.clone(),
            Key::Number(number) => number.to_string(),
        })
    }

    fn loaded(&self) -> Loaded<Value> {
        let mut loaded = Loaded::value(self.value.clone()).tags(self.tags.iter().map(String::as_str));
        if let Some(etag) = &self.etag {
            loaded = loaded.etag(etag.as_str());
        }
        match self.ttl {
            Some(ttl) => loaded.ttl(ttl),
            None => loaded,
        }
    }
}

/// What has come of the lines so far.
#[derive(Default)]
struct Tally {
    read: u64,
    stored: u64,
}

pub(crate) async fn run(builder: CachesBuilder, out: Output, options: WarmOptions) -> Result<Exit, Failure> {
    let WarmOptions { file, cache: name, values, replace, schema } = options;
    let session = Session::open(builder, &file).await?;
    // Before the cache is asked for by its type, since it is built once.
    let levels = session.shared_levels(&name)?;
    if let Some(level) =
        levels.iter().find(|at| session.level_setting(&name, at, "codec") == Some("postcard"))
    {
        let fix = "its bytes do not say what they are, so JSON cannot be turned into them; warm it in the application, with \
                   `TracedCache::warm`";
        return Err(Failure::wrong(&format!("{} codec", level.place()), "postcard", fix));
    }
    let cache = session.cache_of::<Value>(&name, schema)?;
    let remote: Vec<_> = levels.iter().filter(|level| level.is_remote()).collect();
    let opaque = session.like::<Opaque>(&name, &name, &remote)?.build()?;
    let mut lines = Lines::open(&values, out)?;
    if let Some((number, fault)) = Session::reach(&levels).await.into_iter().next() {
        let place = levels.get(number - 1).map(LevelAt::place).unwrap_or_default();
        return Err(Failure::failed(format!("{place} does not answer: {fault}")));
    }
    let mut tally = Tally::default();
    let mut ended = Ok(());
    loop {
        let chunk = match lines.next_chunk() {
            Ok(chunk) if chunk.is_empty() => break,
            Ok(chunk) => chunk,
            Err(failure) => {
                ended = Err(failure);
                break;
            }
        };
        if tally.read == 0 {
            let wanted = schema.or_else(|| session.setting(&name, "schema").and_then(|id| id.parse().ok()));
            probe(&opaque, &chunk, wanted.unwrap_or_default()).await?;
        }
        tally.read += chunk.len() as u64;
        tally.stored += match replace {
            true => store(&cache, &chunk).await?,
            false => fill(&cache, chunk).await?,
        };
    }
    lines.bar.finish_and_clear();
    let stats = cache.stats();
    let closed = cache.close(Duration::from_secs(5)).await;
    let failed: u64 = stats.levels.iter().flat_map(|level| &level.faults).map(|(_, count)| count).sum();
    let lost = !closed.undelivered().is_empty();
    if let Err(failure) = ended {
        return Err(failure.after(&format!("{} are stored", count_of(tally.stored))));
    }
    let kept = tally.read.saturating_sub(tally.stored);
    let mut text = format!("{name}: {} stored, {kept} left as they were", count_of(tally.stored));
    for level in &levels {
        let fault = u8::try_from(level.number - 1).ok().and_then(|at| session.faults.of(at));
        if let Some(fault) = fault.filter(|_| failed > 0 || lost) {
            text.push_str(&format!("\n{}: {fault}", level.place()));
        }
    }
    if failed > 0 || lost {
        text.push_str("\nsome may be missing: run it again when the level is well");
    }
    let answer = json!({
        "cache": name,
        "read": tally.read,
        "stored": tally.stored,
        "kept": kept,
        "failed_calls": failed,
        "undelivered": closed.undelivered().len(),
    });
    out.answer(&answer, text)?;
    Ok(if failed > 0 || lost { Exit::Failed } else { Exit::Done })
}

fn count_of(n: u64) -> String {
    count(usize::try_from(n).unwrap_or(usize::MAX), "value", "values")
}

/// Values under another schema id would be stored over those that the application can read, and be read by nobody.
async fn probe(cache: &TracedCache<Opaque>, lines: &[Line], schema: u32) -> Result<(), Failure> {
    for line in lines.iter().take(PROBED) {
        let found = cache.inspect(line.key()).await?;
        let served = |at: &&Inspected| matches!(at.outcome, LevelOutcome::Hit | LevelOutcome::Stale);
        let mut ids = found.levels.iter().filter(served).filter_map(|at| at.entry.as_ref()?.schema);
        let other = ids.find(|id| *id != schema);
        if let Some(id) = other {
            let fix =
                format!("entries of this cache have schema id {id}; say --schema {id}, or clear it first");
            return Err(Failure::wrong("--schema", schema, fix));
        }
    }
    Ok(())
}

/// Stores what no level has fresh. Answers with how many.
async fn fill(cache: &TracedCache<Value>, lines: Vec<Line>) -> Result<u64, Error> {
    let stored = Arc::new(AtomicU64::new(0));
    let keys: Vec<_> = lines.iter().map(Line::key).collect();
    let by_key: HashMap<_, _> = lines.into_iter().map(|line| (line.key(), line)).collect();
    let state = (Arc::new(by_key), Arc::clone(&stored));
    let load = |(by_key, stored): (Arc<HashMap<Rendered, Line>>, Arc<AtomicU64>), wanted: Vec<Rendered>| async move {
        let found = wanted.into_iter().filter_map(|key| {
            let loaded = by_key.get(&key)?.loaded();
            Some((key, loaded))
        });
        let found: Vec<_> = found.collect();
        stored.fetch_add(found.len() as u64, Ordering::Relaxed);
        Ok::<_, std::convert::Infallible>(found)
    };
    cache.get_or_set_many(keys, &state, load).await?;
    Ok(stored.load(Ordering::Relaxed))
}

/// Stores all of them.
async fn store(cache: &TracedCache<Value>, lines: &[Line]) -> Result<u64, Error> {
    let writes = lines.iter().map(|line| cache.set_loaded(line.key(), line.loaded()));
    let mut writes = stream::iter(writes).buffer_unordered(AT_ONCE);
    while let Some(result) = writes.next().await {
        match result {
            // Where a level surfaces its failures: it is pending, all the same.
            Err(error) if error.kind() != ErrorKind::Level => return Err(error),
            _ => {}
        }
    }
    Ok(lines.len() as u64)
}

/// The file, line by line.
struct Lines {
    input: Box<dyn BufRead + Send>,
    name: String,
    number: u64,
    bar: indicatif::ProgressBar,
}

impl Lines {
    fn open(path: &Path, out: Output) -> Result<Self, Failure> {
        if path == Path::new("-") {
            let bar = indicatif::ProgressBar::hidden();
            let input = Box::new(BufReader::new(io::stdin()));
            return Ok(Self { input, name: "standard input".to_owned(), number: 0, bar });
        }
        let name = path.display().to_string();
        let unreadable = |error: io::Error| Failure::failed(format!("{name} cannot be read: {error}"));
        let file = File::open(path).map_err(unreadable)?;
        let bar = out.bytes_bar(file.metadata().map_err(unreadable)?.len());
        Ok(Self { input: Box::new(BufReader::new(bar.wrap_read(file))), name, number: 0, bar })
    }

    fn next_chunk(&mut self) -> Result<Vec<Line>, Failure> {
        let mut lines = Vec::new();
        let mut text = Vec::new();
        while lines.len() < CHUNK {
            text.clear();
            let read = self.input.by_ref().take(LINE_MAX).read_until(b'\n', &mut text);
            let read = read.map_err(|error| Failure::failed(format!("{}: {error}", self.name)))?;
            if read == 0 {
                break;
            }
            self.number += 1;
            if text.trim_ascii().is_empty() {
                continue;
            }
            lines.push(serde_json::from_slice::<Line>(&text).map_err(|error| self.wrong(&error))?);
        }
        Ok(lines)
    }

    /// Without what the line has: its value stays out of messages.
    fn wrong(&self, error: &serde_json::Error) -> Failure {
        let what = match error.classify() {
            serde_json::error::Category::Data => {
                "not an object with a key, a value, and no more than tags, etag, ttl"
            }
            _ => "not a JSON object",
        };
        let fix = "write {\"key\": \"42\", \"value\": {...}}, and, if wanted, \"tags\": [\"a\"], \"etag\": \"v1\", \"ttl\": \"5m\"";
        let place = format!("{} line {}, column {}", self.name, self.number, error.column());
        Failure::wrong(&place, what, fix)
    }
}
