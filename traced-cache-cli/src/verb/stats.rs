//! `stats` and `watch`: how caches and servers do, once or again and again.

use std::{
    io::{self, IsTerminal},
    time::{Duration, Instant, SystemTime},
};

use serde_json::{Map, Value};
use traced_cache::config::CachesBuilder;

use crate::{
    counts::{self, Caches},
    end::{Exit, Failure},
    options::{FileOption, StatsOptions, WatchOptions},
    output::{self, Output},
    series::Address,
    servers::{self, Row},
    session::Session,
    time::FOREVER,
    view,
};

pub(crate) async fn once(
    builder: CachesBuilder,
    out: Output,
    options: StatsOptions,
) -> Result<Exit, Failure> {
    let source = Source::open(builder, options).await?;
    let look = source.look().await;
    // Servers are asked even if the service does not answer: they matter all the more then.
    if let (Some(Err(failure)), None) = (&look.caches, &look.servers) {
        return Err(failure.clone());
    }
    let exit = if look.is_whole() { Exit::Done } else { Exit::Failed };
    out.answer(&Value::from(look.json(None)), look.text(None))?;
    Ok(exit)
}

pub(crate) async fn again(
    builder: CachesBuilder,
    out: Output,
    options: WatchOptions,
) -> Result<Exit, Failure> {
    let WatchOptions { stats, every, count } = options;
    if every < Duration::from_millis(100) {
        return Err(Failure::wrong("--every", humantime::format_duration(every), "100ms is the least"));
    }
    let source = Source::open(builder, stats).await?;
    let live = io::stdout().is_terminal() && !out.is_json();
    let mut before = source.look().await;
    // A failure of the first reading ends the command, as the address may be wrong. Later the service may be away for a while.
    if let Some(Err(failure)) = before.caches {
        return Err(failure);
    }
    // A time beyond the range of the clock is as good as one that nobody lives to see.
    let every = every.min(FOREVER);
    let mut ticks = tokio::time::interval_at(tokio::time::Instant::now() + every, every);
    let mut left = count.unwrap_or(u64::MAX);
    let mut whole = true;
    // Listens all the time: an interrupt may also come while a service keeps a reading waiting.
    let mut interrupted = std::pin::pin!(tokio::signal::ctrl_c());
    while left > 0 {
        let look = async {
            ticks.tick().await;
            source.look().await
        };
        let now = tokio::select! {
            now = look => now,
            _ = &mut interrupted => break,
        };
        whole = now.is_whole();
        let (seen, next) = now.since(before);
        before = next;
        let over = Some(seen.took);
        let is_read = if out.is_json() {
            output::write(&output::word(&Value::from(seen.json(over)).to_string()))?
        } else {
            let clock = humantime::format_rfc3339_seconds(SystemTime::now());
            // Moves the cursor home and clears the screen.
            let wipe = if live { "\x1b[H\x1b[2J" } else { "" };
            output::write(&format!(
                "{wipe}{clock}, over {}\n{}",
                view::time(Some(seen.took.as_secs_f64())),
                output::plain(&seen.text(over))
            ))?
        };
        if !is_read {
            return Ok(Exit::Done);
        }
        left -= 1;
    }
    Ok(if whole { Exit::Done } else { Exit::Failed })
}

/// What is looked at.
struct Source {
    session: Option<Session>,
    address: Option<Address>,
    cache: Option<String>,
}

/// What was seen.
struct Look {
    at: Instant,
    /// Since the reading before.
    took: Duration,
    url: Option<String>,
    /// `None`: no URL was given.
    caches: Option<Result<Caches, Failure>>,
    /// `None`: no file was given.
    servers: Option<Vec<Row>>,
}

impl Source {
    async fn open(builder: CachesBuilder, options: StatsOptions) -> Result<Self, Failure> {
        let StatsOptions { file, url, cache } = options;
        let address = url.as_deref().map(Address::new).transpose()?;
        if file.is_none() && address.is_none() {
            let fix =
                "name a configuration file, for its servers, or a running service with --url, for its caches";
            return Err(Failure::wrong("FILE", "none", fix));
        }
        let session = match file {
            Some(path) => Some(Session::open(builder, &FileOption { path }).await?),
            None => None,
        };
        if let (Some(session), Some(name)) = (&session, &cache) {
            // If it is not one of them, the error says which there are.
            session.cache::<traced_cache::Opaque>(name)?;
        }
        let remote = |session: &Session| servers::asked(session, cache.as_deref()).next().is_some();
        if address.is_none() && session.as_ref().is_some_and(|session| !remote(session)) {
            let fix = "its caches live in the memory of their application only: name its metrics with --url";
            return Err(Failure::wrong("--url", "missing", fix));
        }
        Ok(Self { session, address, cache })
    }

    async fn look(&self) -> Look {
        let caches = async {
            let address = self.address.as_ref()?;
            Some(address.text().await.and_then(|text| self.caches(address, &text)))
        };
        let servers = async {
            let session = self.session.as_ref()?;
            Some(servers::ask(session, self.cache.as_deref()).await)
        };
        let (caches, servers) = futures::join!(caches, servers);
        let url = self.address.as_ref().map(Address::shown);
        Look { at: Instant::now(), took: Duration::ZERO, url, caches, servers }
    }

    fn caches(&self, address: &Address, text: &str) -> Result<Caches, Failure> {
        let mut all = counts::caches(text);
        let wrong = |why: String| Err(Failure::failed(format!("--url = {}: {why}", address.shown())));
        if all.is_empty() {
            return wrong(
                "it answers, but not with metrics of these caches; name where Prometheus reads them \
                 (http://host:port/metrics), of a service with `Telemetry` as an observer, or a page's JSON \
                 (http://host:port/cache/api/caches)"
                    .to_owned(),
            );
        }
        if let Some(wanted) = &self.cache {
            let known = all.keys().cloned().collect::<Vec<_>>().join("`, `");
            all.retain(|name, _| name == wanted);
            if all.is_empty() {
                return wrong(format!("it has no cache `{wanted}`; it has `{known}`"));
            }
        }
        Ok(all)
    }
}

impl Look {
    fn is_whole(&self) -> bool {
        !matches!(self.caches, Some(Err(_))) && self.servers.iter().flatten().all(|row| row.status.is_ok())
    }

    /// What has been counted since an earlier reading, and this reading, with which the next is compared. After a failed reading
    /// there is nothing to compare with, and nothing counted.
    fn since(self, earlier: Self) -> (Self, Self) {
        let took = self.at.duration_since(earlier.at);
        let caches = match (&self.caches, &earlier.caches) {
            (Some(Ok(now)), Some(Ok(then))) => Some(Ok(counts::since(now, then))),
            (Some(Ok(now)), _) => Some(Ok(counts::since(now, now))),
            (Some(Err(failure)), _) => Some(Err(failure.clone())),
            (None, _) => None,
        };
        let then = earlier.servers.as_deref().unwrap_or_default();
        let servers =
            self.servers.as_ref().map(|rows| rows.iter().map(|row| row.clone().since(then)).collect());
        let seen = Self { at: self.at, took, url: self.url.clone(), caches, servers };
        (seen, self)
    }

    fn json(&self, over: Option<Duration>) -> Map<String, Value> {
        let mut fields = Map::new();
        let mut add = |name: &str, value: Value| fields.insert(name.to_owned(), value);
        if let Some(time) = over {
            let unix = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
            add("time", unix.as_secs_f64().into());
            add("over_seconds", time.as_secs_f64().into());
        }
        if let Some(url) = &self.url {
            add("url", url.as_str().into());
        }
        match &self.caches {
            Some(Ok(all)) => {
                add("caches", all.iter().map(|(name, counts)| counts.json(name)).collect());
            }
            Some(Err(failure)) => {
                add("error", failure.message().into());
            }
            None => {}
        }
        if let Some(rows) = &self.servers {
            add("servers", rows.iter().map(Row::json).collect());
        }
        fields
    }

    fn text(&self, over: Option<Duration>) -> String {
        let mut parts = Vec::new();
        match &self.caches {
            Some(Ok(all)) => parts.extend([view::caches(all, over), view::levels(all, over)]),
            Some(Err(failure)) => parts.push(failure.message().to_owned()),
            None => {}
        }
        match self.servers.as_deref() {
            Some([]) | None => {}
            Some(rows) => parts.push(view::servers(rows, over)),
        }
        parts.join("\n")
    }
}
