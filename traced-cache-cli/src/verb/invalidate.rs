//! `invalidate` and `clear`.

use std::{
    fmt::Write as _,
    io::{self, BufRead, IsTerminal, Write as _},
    time::Duration,
};

use futures::{StreamExt, stream};
use serde_json::{Value, json};
use traced_cache::{
    Delivery, Error, ErrorKind, Opaque, Rendered, Result as CacheResult, Scope, TracedCache,
    config::CachesBuilder,
};

use super::{check::count, left};
use crate::{
    end::{Exit, Failure},
    keys,
    options::{ClearOptions, How, InvalidateOptions},
    output::Output,
    session::{LevelAt, Session},
};

/// Keys of one call.
const CHUNK: usize = 500;
const UNTOLD: &str = "the backplane has not taken it: other processes' memory may serve what it holds";
/// Keys that are expired at once, each on its own.
const AT_ONCE: usize = 32;

pub(crate) async fn keys(
    builder: CachesBuilder,
    out: Output,
    options: InvalidateOptions,
) -> Result<Exit, Failure> {
    let keys = keys::all(&options.keys)?;
    let tags = &options.tags;
    if keys.is_empty() && tags.is_empty() && options.keys.keys_from.is_none() {
        let fix = "name a key, a tag with --tag, or a file of keys with --keys-from; `clear` is for the whole cache";
        return Err(Failure::wrong("KEY", "none", fix));
    }
    let work = Work::begin(builder, &options.file, &options.cache).await?;
    let (cache, expire) = (&work.cache, options.how.expire);
    let bar = out.bar(keys.len() as u64, "keys");
    let mut answer = Answer::default();
    for chunk in keys.chunks(CHUNK) {
        let rendered = chunk.iter().cloned().map(Rendered);
        if expire {
            let mut all = stream::iter(rendered).map(|key| cache.expire(key)).buffer_unordered(AT_ONCE);
            while let Some(result) = all.next().await {
                answer.take(result)?;
                bar.inc(1);
            }
        } else {
            answer.take(cache.invalidate_many(rendered).await)?;
            bar.inc(chunk.len() as u64);
        }
    }
    bar.finish_and_clear();
    if !tags.is_empty() {
        answer.take(match expire {
            true => cache.expire_tags(tags.iter().map(String::as_str)).await,
            false => cache.invalidate_tags(tags.iter().map(String::as_str)).await,
        })?;
    }
    let parts =
        [(keys.len(), count(keys.len(), "key", "keys")), (tags.len(), count(tags.len(), "tag", "tags"))];
    let mut what: Vec<_> = parts.into_iter().filter(|(n, _)| *n > 0).map(|(_, text)| text).collect();
    if what.is_empty() {
        what.push(count(0, "key", "keys"));
    }
    let verb = if expire { "expire" } else { "invalidate" };
    let named = json!({ "verb": verb, "keys": keys.len(), "tags": tags.len() });
    work.end(out, answer, options.how, &what.join(" and "), named).await
}

pub(crate) async fn clear(
    builder: CachesBuilder,
    out: Output,
    options: ClearOptions,
) -> Result<Exit, Failure> {
    let work = Work::begin(builder, &options.file, &options.cache).await?;
    let verb = if options.how.expire { "expire" } else { "clear" };
    if !options.yes {
        let places: Vec<_> = work.levels.iter().filter(|at| at.is_remote()).map(LevelAt::place).collect();
        confirm(&format!("{verb} all of cache `{}` at {}?", work.name, places.join(", ")))?;
    }
    let mut answer = Answer::default();
    answer.take(match options.how.expire {
        true => work.cache.expire_all().await,
        false => work.cache.clear().await,
    })?;
    work.end(out, answer, options.how, "the whole cache", json!({ "verb": verb })).await
}

/// Asks somebody at the terminal.
pub(crate) fn confirm(question: &str) -> Result<(), Failure> {
    if !io::stdin().is_terminal() || !io::stderr().is_terminal() {
        return Err(Failure::wrong("--yes", "missing", format!("nobody is there to be asked: {question}")));
    }
    let mut line = String::new();
    let _ = write!(io::stderr(), "{question} [y/N] ");
    let _ = io::stderr().flush();
    let _ = io::stdin().lock().read_line(&mut line);
    match line.trim() {
        "y" | "Y" | "yes" => Ok(()),
        _ => Err(Failure::failed("nothing was done")),
    }
}

/// A cache whose entries are to go.
struct Work {
    session: Session,
    name: String,
    cache: TracedCache<Opaque>,
    levels: Vec<LevelAt>,
}

/// What the calls have achieved.
#[derive(Default)]
struct Answer {
    pending: bool,
}

impl Answer {
    fn take(&mut self, result: CacheResult<Delivery>) -> Result<(), Error> {
        match result {
            Ok(delivery) => self.pending |= delivery == Delivery::Pending,
            // A level that surfaces its failures: the invalidation is pending all the same.
            Err(error) if error.kind() == ErrorKind::Level => self.pending = true,
            Err(error) => return Err(error),
        }
        Ok(())
    }
}

impl Work {
    async fn begin(
        builder: CachesBuilder,
        file: &crate::options::FileOption,
        name: &str,
    ) -> Result<Self, Failure> {
        let session = Session::open(builder, file).await?;
        let cache = session.cache(name)?;
        let levels = session.shared_levels(name)?;
        // The call itself says what cannot be used.
        let _ = Session::reach(&levels).await;
        Ok(Self { session, name: name.to_owned(), cache, levels })
    }

    /// Waits for what is pending, and answers.
    async fn end(
        self,
        out: Output,
        answer: Answer,
        how: How,
        what: &str,
        mut json: Value,
    ) -> Result<Exit, Failure> {
        if answer.pending {
            left::delivered(&self.cache, how.wait).await;
        }
        let closed = self.cache.close(Duration::from_secs(1)).await;
        let undelivered = closed.undelivered();
        let pending = !undelivered.is_empty();
        let (exit, word) = if pending { (Exit::Pending, "pending") } else { (Exit::Done, "confirmed") };
        let notes = self.notes();
        let mut text = format!("{word}: {what} of {}", self.name);
        for level in &self.levels {
            let Ok(at) = u8::try_from(level.number - 1) else { continue };
            if !undelivered.iter().any(|left| left.level == Some(at)) {
                continue;
            }
            let fault = self.session.faults.of(level);
            let _ = write!(
                text,
                "\n{}: {}",
                level.place(),
                fault.as_deref().unwrap_or("has not acknowledged it")
            );
        }
        if undelivered.iter().any(|left| left.level.is_none()) {
            let _ = write!(text, "\n{UNTOLD}");
        }
        if pending {
            text.push_str(
                "\nnothing delivers it once this command has ended: run it again when all of them are back",
            );
        }
        for note in &notes {
            let _ = write!(text, "\nnote: {note}");
        }
        if let Value::Object(fields) = &mut json {
            let left = undelivered.iter().map(|left| {
                let scope = match left.scope {
                    Scope::Key => "key",
                    Scope::Tag => "tag",
                    _ => "cache",
                };
                let level = left.level.map(|level| u16::from(level) + 1);
                let fault = match left.level {
                    Some(at) => {
                        self.levels.get(usize::from(at)).and_then(|level| self.session.faults.of(level))
                    }
                    None => Some(UNTOLD.to_owned()),
                };
                json!({ "level": level, "scope": scope, "name": left.name, "error": fault })
            });
            fields.insert("cache".to_owned(), self.name.as_str().into());
            fields.insert("delivery".to_owned(), word.into());
            fields.insert("undelivered".to_owned(), left.collect());
            fields.insert("notes".to_owned(), notes.into());
        }
        out.answer(&json, text)?;
        Ok(exit)
    }

    /// What else an operator should know.
    fn notes(&self) -> Vec<String> {
        let mut notes = self.session.faults.advice();
        let near: Vec<_> = self.levels.iter().filter(|at| !at.is_remote()).collect();
        let told = self.session.setting(&self.name, "backplane").is_some_and(|name| name != "off");
        for level in near.iter().filter(|_| !told) {
            let cap = self.session.level_setting(&self.name, level, "ttl_cap").filter(|cap| *cap != "off");
            let ttl = cap.or_else(|| self.session.setting(&self.name, "policy.ttl")).unwrap_or("their ttl");
            notes.push(format!(
                "without a `backplane`, other processes' memory (level {}, {}) may serve what they hold for up to {ttl}",
                level.number, level.name
            ));
        }
        notes
    }
}
