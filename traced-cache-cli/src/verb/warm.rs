//! `warm`: fills a cache from a file.

use std::{
    collections::HashMap,
    fs::File,
    io::{self, BufRead, BufReader, Read},
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures::{StreamExt, TryStreamExt, future, stream};
use serde::Deserialize;
use serde_json::{Value, json};
use traced_cache::{
    Error, ErrorKind, Inspected, LevelOutcome, Loaded, Opaque, Rendered, TracedCache, config::CachesBuilder,
};

use super::{check::count, numbers};
use crate::{
    end::{Exit, Failure},
    options::WarmOptions,
    output::Output,
    session::Session,
};

/// Lines per call.
const CHUNK: usize = 200;
/// Values that are stored concurrently, each by a call of its own.
const AT_ONCE: usize = 32;
/// Most bytes of a line: a file without line ends must not be read as a whole.
const LINE_MAX: u64 = 64 << 20;
/// The shortest ttl: the library stores nothing with a ttl of zero, and levels count in milliseconds.
const SHORTEST: Duration = Duration::from_millis(1);
/// Keys that are looked at to see whether the schema id is right.
const PROBED: usize = 20;

/// A line.
#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    /// Where it stands, counted from 1.
    #[serde(skip)]
    number: u64,
    key: Key,
    value: Value,
    #[serde(default)]
    tags: Vec<String>,
    etag: Option<String>,
    #[serde(default, deserialize_with = "time")]
    ttl: Option<Duration>,
}

/// A text as stores have it, or a number.
#[derive(Clone, Deserialize)]
#[serde(untagged)]
enum Key {
    Text(String),
    Number(serde_json::Number),
}

const NO_TIME: &str = "ttl is no time";

fn time<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
    let text = Option::<String>::deserialize(deserializer)?;
    let time =
        |text: String| humantime::parse_duration(&text).map_err(|_text| serde::de::Error::custom(NO_TIME));
    text.map(time).transpose()
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

/// What has become of the lines so far.
#[derive(Default)]
struct Tally {
    read: u64,
    stored: u64,
    /// Keys that were to be stored and are not found at the remote levels.
    refused: u64,
}

impl Tally {
    /// Stored keys. Some may not have arrived if a level has failed or an invalidation came in between: then levels are asked.
    async fn take(
        &mut self,
        opaque: &TracedCache<Opaque>,
        keys: &[Rendered],
        failed: bool,
    ) -> Result<(), Error> {
        let there = match failed {
            false => keys.len() as u64,
            true => {
                stream::iter(keys)
                    .map(|key| is_there(opaque, key))
                    .buffer_unordered(AT_ONCE)
                    .try_fold(0, |count, there| future::ready(Ok(count + u64::from(there))))
                    .await?
            }
        };
        self.stored += there;
        self.refused += keys.len() as u64 - there;
        Ok(())
    }
}

pub(crate) async fn run(builder: CachesBuilder, out: Output, options: WarmOptions) -> Result<Exit, Failure> {
    let WarmOptions { file, cache: name, values, replace, schema } = options;
    let session = Session::open(builder, &file).await?;
    // Before the cache is asked for by its type: it can be built only once.
    let levels = session.shared_levels(&name)?;
    if let Some(level) =
        levels.iter().find(|at| session.level_setting(&name, at, "codec") == Some("postcard"))
    {
        let fix = "its bytes do not say what they are, so JSON cannot be turned into them; warm it in the application, with \
                   `TracedCache::warm`";
        return Err(Failure::wrong(&format!("{} codec", level.place()), "postcard", fix));
    }
    let schema = Schema::of(&session, &name, schema)?;
    let cache = session.cache_of::<Value>(&name, schema.id)?;
    let remote: Vec<_> = levels.iter().filter(|level| level.is_remote()).collect();
    let opaque = session.like::<Opaque>(&name, &name, &remote)?.build()?;
    let mut lines = Lines::open(&values, out)?;
    Session::reach(&levels).await?;
    hears(&cache).await;
    let mut tally = Tally::default();
    let poured = pour(&cache, &opaque, &mut lines, &mut tally, replace, &schema).await;
    lines.bar.finish_and_clear();
    let closed = cache.close(Duration::from_secs(5)).await;
    let failed = failures(&cache);
    let late = cache.stats().stored_late.min(tally.refused);
    tally.stored += late;
    tally.refused -= late;
    let lost = !closed.undelivered().is_empty();
    if let Err(failure) = poured {
        return Err(failure.after(&format!("{} are stored", count_of(tally.stored))));
    }
    let kept = tally.read.saturating_sub(tally.stored + tally.refused);
    let mut text = format!("{name}: {} stored, {kept} left as they were", count_of(tally.stored));
    if tally.refused > 0 {
        text.push_str(&format!(", {} not stored", tally.refused));
    }
    for level in &levels {
        if let Some(fault) = session.faults.of(level).filter(|_| failed > 0 || lost) {
            text.push_str(&format!("\n{}: {fault}", level.place()));
        }
    }
    let unsent = unsent(&cache);
    if unsent > 0 {
        text.push_str("\nsome are larger than a level takes (`value_max`), or cannot be encoded");
    }
    if failed > 0 || lost {
        text.push_str("\nsome may be missing: run it again when the level is well");
    } else if tally.refused > 0 && unsent == 0 {
        text.push_str(
            "\nsomething has come between, such as an invalidation: run it again where the values are right",
        );
    }
    let answer = json!({
        "cache": name,
        "read": tally.read,
        "stored": tally.stored,
        "kept": kept,
        "not_stored": tally.refused,
        "failed_calls": failed,
        "undelivered": closed.undelivered().len(),
    });
    out.answer(&answer, text)?;
    Ok(if failed > 0 || lost || tally.refused > 0 || unsent > 0 { Exit::Failed } else { Exit::Done })
}

/// Stores the values of the file, until it ends or something stands in the way.
async fn pour(
    cache: &TracedCache<Value>,
    opaque: &TracedCache<Opaque>,
    lines: &mut Lines,
    tally: &mut Tally,
    replace: bool,
    schema: &Schema,
) -> Result<(), Failure> {
    loop {
        let chunk = lines.next_chunk()?;
        if chunk.is_empty() {
            return Ok(());
        }
        if tally.read == 0 {
            probe(opaque, lines, &chunk, schema).await?;
        }
        let (tried, result) = match replace {
            true => store(cache, &chunk).await,
            false => fill(cache, chunk).await,
        };
        let doubtful = failures(cache) > 0 || unsent(cache) > 0 || cache.stats().overtaken > 0;
        // What has arrived before a failure counts as well.
        let counted = tally.take(opaque, &tried, doubtful).await;
        result.map_err(|(line, error)| lines.at(line, error))?;
        counted?;
        tally.read = lines.read;
    }
}

/// Waits until the backplane is up. A warm-up without keys does just that.
async fn hears(cache: &TracedCache<Value>) {
    let nothing = |(), _| async { Ok::<Option<Value>, std::convert::Infallible>(None) };
    let _ = cache.warm(std::iter::empty::<Rendered>(), 1, &(), nothing).await;
}

fn count_of(n: u64) -> String {
    count(usize::try_from(n).unwrap_or(usize::MAX), "value", "values")
}

/// The schema id of what is stored, and who says so.
struct Schema {
    id: Option<u32>,
    field: String,
    in_file: bool,
}

impl Schema {
    fn of(session: &Session, cache: &str, given: Option<u32>) -> Result<Self, Failure> {
        let told = session.setting(cache, "schema").and_then(|id| id.parse::<u32>().ok());
        let field = format!("caches.{cache}.schema");
        match (given, told) {
            (Some(given), Some(told)) if given != told => {
                let fix = format!("the file says {told} ({field}): leave it out");
                Err(Failure::wrong("--schema", given, fix))
            }
            (_, Some(told)) => Ok(Self { id: Some(told), field, in_file: true }),
            (given, None) => Ok(Self { id: given, field: "--schema".to_owned(), in_file: false }),
        }
    }

    /// Entries have another one.
    fn is_not(&self, theirs: u32) -> Failure {
        let fix = match self.in_file {
            true => "clear it first, or have the file say what the application's type does".to_owned(),
            false => format!("say --schema {theirs}, or clear it first"),
        };
        let fix = format!("entries of this cache have schema id {theirs}; {fix}");
        Failure::wrong(&self.field, self.id.unwrap_or_default(), fix)
    }
}

/// Values with another schema id, or in another codec, would replace those that the application can read, and nobody could
/// read them.
async fn probe(
    cache: &TracedCache<Opaque>,
    lines: &Lines,
    chunk: &[Line],
    schema: &Schema,
) -> Result<(), Failure> {
    for line in chunk.iter().take(PROBED) {
        let found = cache.inspect(line.key()).await.map_err(|error| lines.at(line.number, error))?;
        let served = |at: &&Inspected| matches!(at.outcome, LevelOutcome::Hit | LevelOutcome::Stale);
        let held = || found.levels.iter().filter(served).filter_map(|at| at.entry.as_ref());
        if held().any(|entry| entry.codec == Some("own")) {
            let fix = "the application writes this cache in a codec of its own; warm it there (`TracedCache::warm`)";
            return Err(Failure::wrong("codec", "own", fix));
        }
        let own = schema.id.unwrap_or_default();
        if let Some(id) = held().filter_map(|entry| entry.schema).find(|id| *id != own) {
            return Err(schema.is_not(id));
        }
    }
    Ok(())
}

/// Calls to levels that have failed so far.
fn failures(cache: &TracedCache<Value>) -> u64 {
    cache.stats().levels.iter().flat_map(|level| &level.faults).map(|(_, count)| count).sum()
}

/// Values that could not be sent to a level: too large, or impossible to encode.
fn unsent(cache: &TracedCache<Value>) -> u64 {
    cache.stats().levels.iter().map(|level| level.too_large + level.not_encoded).sum()
}

/// Whether every remote level answers for a key.
async fn is_there(cache: &TracedCache<Opaque>, key: &Rendered) -> Result<bool, Error> {
    let found = cache.inspect(key.clone()).await?;
    Ok(found.levels.iter().all(|at| matches!(at.outcome, LevelOutcome::Hit | LevelOutcome::Negative)))
}

/// Keys that were to be stored; and the line at which the warm-up ended, with the reason.
type Tried = (Vec<Rendered>, Result<(), (u64, Error)>);

/// Stores values for keys that no level has fresh.
async fn fill(cache: &TracedCache<Value>, lines: Vec<Line>) -> Tried {
    let (tried, result) = fill_all(cache, lines.clone()).await;
    if result.is_ok() {
        return (tried, Ok(()));
    }
    // One line is wrong: store those before it, if that has not been done, and name it.
    let mut stored = Vec::new();
    for line in lines {
        let (number, key) = (line.number, line.key());
        let (wanted, result) = fill_all(cache, vec![line]).await;
        if let Err(error) = result {
            return (stored, Err((number, error)));
        }
        if !wanted.is_empty() || tried.contains(&key) {
            stored.push(key);
        }
    }
    (stored, Ok(()))
}

/// Returns the keys that no level had, even if not all of them were stored.
async fn fill_all(cache: &TracedCache<Value>, lines: Vec<Line>) -> (Vec<Rendered>, Result<(), Error>) {
    let tried = Arc::new(Mutex::new(Vec::new()));
    let keys: Vec<_> = lines.iter().map(Line::key).collect();
    let by_key: HashMap<_, _> = lines.into_iter().map(|line| (line.key(), line)).collect();
    let state = (Arc::new(by_key), Arc::clone(&tried));
    type Known = Arc<HashMap<Rendered, Line>>;
    type Told = Arc<Mutex<Vec<Rendered>>>;
    let load = |(by_key, tried): (Known, Told), wanted: Vec<Rendered>| async move {
        let found = wanted.iter().filter_map(|key| Some((key.clone(), by_key.get(key)?.loaded())));
        let found: Vec<_> = found.collect();
        tried.lock().unwrap_or_else(PoisonError::into_inner).extend(wanted);
        Ok::<_, std::convert::Infallible>(found)
    };
    let result = cache.get_or_set_many(keys, &state, load).await;
    let tried = std::mem::take(&mut *tried.lock().unwrap_or_else(PoisonError::into_inner));
    (tried, result.map(drop))
}

/// Stores all of them.
async fn store(cache: &TracedCache<Value>, lines: &[Line]) -> Tried {
    let writes = lines.iter().map(async |line| (line, cache.set_loaded(line.key(), line.loaded()).await));
    let mut writes = stream::iter(writes).buffer_unordered(AT_ONCE);
    let (mut tried, mut ended) = (Vec::new(), Ok(()));
    while let Some((line, result)) = writes.next().await {
        match result {
            Err(error) if error.kind() != ErrorKind::Level => ended = Err((line.number, error)),
            // A level that surfaces its failures: the write is pending all the same.
            _ => tried.push(line.key()),
        }
    }
    (tried, ended)
}

/// The file, line by line.
struct Lines {
    input: Box<dyn BufRead + Send>,
    name: String,
    number: u64,
    /// How many had something.
    read: u64,
    bar: indicatif::ProgressBar,
}

impl Lines {
    fn open(path: &Path, out: Output) -> Result<Self, Failure> {
        if path == Path::new("-") {
            let bar = indicatif::ProgressBar::hidden();
            let input = Box::new(BufReader::new(io::stdin()));
            return Ok(Self { input, name: "standard input".to_owned(), number: 0, read: 0, bar });
        }
        let name = path.display().to_string();
        let unreadable = |error: io::Error| Failure::failed(format!("{name} cannot be read: {error}"));
        let file = File::open(path).map_err(unreadable)?;
        let bar = out.bytes_bar(file.metadata().map_err(unreadable)?.len());
        Ok(Self { input: Box::new(BufReader::new(bar.wrap_read(file))), name, number: 0, read: 0, bar })
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
            let line = serde_json::from_slice::<Line>(&text).map_err(|error| self.wrong(&error))?;
            if let Some(column) = numbers::changed(&text) {
                let place = format!("{} line {}, column {column}", self.name, self.number);
                let fix = "whole numbers have 64 bits at most, others 17 digits; write it as a text, or store it from the application";
                return Err(Failure::wrong(
                    &place,
                    "a number that would not be stored as it is written",
                    fix,
                ));
            }
            if let Some(ttl) = line.ttl.filter(|ttl| *ttl < SHORTEST) {
                let place = format!("{} line {}, ttl", self.name, self.number);
                let fix = "nothing would be stored; give it a millisecond at least, or leave the line out";
                return Err(Failure::wrong(&place, humantime::format_duration(ttl), fix));
            }
            self.read += 1;
            lines.push(Line { number: self.number, ..line });
        }
        Ok(lines)
    }

    /// The library's error about a line.
    fn at(&self, line: u64, error: Error) -> Failure {
        Failure::from(error).of(format!("{} line {line}", self.name))
    }

    /// A message without the line's content: values stay out of messages.
    fn wrong(&self, error: &serde_json::Error) -> Failure {
        let place = format!("{} line {}, column {}", self.name, self.number, error.column());
        if error.to_string().starts_with(NO_TIME) {
            let place = format!("{} line {}, ttl", self.name, self.number);
            return Failure::wrong(&place, "no time", "write a number and its unit: \"ttl\": \"5m\"");
        }
        // Only this distinguishes it from bad syntax.
        if error.to_string().starts_with("recursion limit exceeded") {
            let fix =
                "JSON is read 127 levels deep, of which the line is one; store it flatter, or as a text";
            return Failure::wrong(&place, "a value that is nested too deep", fix);
        }
        let what = match error.classify() {
            serde_json::error::Category::Data => {
                "not an object with a key, a value, and no more than tags, etag, ttl"
            }
            _ => "not a JSON object",
        };
        let fix = "write {\"key\": \"42\", \"value\": {...}}, and, if wanted, \"tags\": [\"a\"], \"etag\": \"v1\", \"ttl\": \"5m\"";
        Failure::wrong(&place, what, fix)
    }
}
