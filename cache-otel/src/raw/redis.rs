//! Raw redis-rs connections, asynchronous and blocking, of a server or a cluster, wrapped by one line.
//!
//! ```no_run
//! use cache_otel::raw::{ClientTelemetry, redis::Traced};
//! use redis::AsyncCommands;
//!
//! # async fn example() -> redis::RedisResult<()> {
//! let telemetry = ClientTelemetry::builder("redis", "sessions").server("127.0.0.1", 6379).build();
//! let connection = redis::Client::open("redis://127.0.0.1")?.get_multiplexed_async_connection().await?;
//! let mut connection = Traced::new(connection, telemetry);
//! // Nothing else changes: commands, pipelines, transactions and scripts.
//! let _: () = connection.set("greeting", "hello").await?;
//! # Ok(())
//! # }
//! ```
//!
//! What a connection does beside commands (subscriptions, say) is reached through [`Traced::get_mut`] and is not reported.

mod key;

use std::{borrow::Cow, collections::BTreeMap, ops::Deref, time::Duration};

use ::redis::{
    Arg, Cmd, ConnectionLike, ErrorKind, Pipeline, RedisError, RedisFuture, RedisResult, Value, aio,
};
use opentelemetry::trace::FutureExt;

use super::{Class, ClientTelemetry, Command, Failed, Failure, Outcome, call::TEXT_MAX, command::waits};

/// A connection whose commands are reported.
#[derive(Clone, Debug)]
pub struct Traced<C> {
    inner: C,
    telemetry: ClientTelemetry,
}

impl<C> Traced<C> {
    /// Wraps a connection of redis-rs: whatever implements its `ConnectionLike`, asynchronous or blocking.
    pub const fn new(connection: C, telemetry: ClientTelemetry) -> Self {
        Self { inner: connection, telemetry }
    }

    /// The connection itself: what is done with it is not reported.
    pub const fn get_mut(&mut self) -> &mut C {
        &mut self.inner
    }

    /// The connection, taken out.
    pub fn into_inner(self) -> C {
        self.inner
    }
}

impl<C> Deref for Traced<C> {
    type Target = C;
    fn deref(&self) -> &C {
        &self.inner
    }
}

impl Failure for RedisError {
    fn describe(&self) -> Failed {
        if self.is_timeout() {
            Failed::TIMEOUT
        } else if self.is_io_error() || self.kind() == ErrorKind::ClusterConnectionNotFound {
            Failed::CONNECTION
        } else {
            Failed::command(self.code())
        }
    }
}

impl<C: aio::ConnectionLike + Send> aio::ConnectionLike for Traced<C> {
    fn req_packed_command<'a>(&'a mut self, cmd: &'a Cmd) -> RedisFuture<'a, Value> {
        let mut call = self.telemetry.start(&one(cmd, self.inner.get_db()));
        let work = self.inner.req_packed_command(cmd).with_context(call.context());
        Box::pin(async move {
            let reply = work.await;
            end(&mut call, &name(cmd), &reply);
            reply
        })
    }

    fn req_packed_commands<'a>(
        &'a mut self,
        pipeline: &'a Pipeline,
        offset: usize,
        count: usize,
    ) -> RedisFuture<'a, Vec<Value>> {
        let text = self.telemetry.0.query_text;
        let commands =
            pipeline.cmd_iter().map(|cmd| (name(cmd), if text { cmd.args_iter().count() } else { 0 }));
        let command = several(commands, text, pipeline.is_transaction(), self.inner.get_db());
        let mut call = self.telemetry.start(&command);
        let work = self.inner.req_packed_commands(pipeline, offset, count).with_context(call.context());
        Box::pin(async move {
            let replies = work.await;
            let names = pipeline.cmd_iter().map(|cmd| name(cmd));
            end_several(&mut call, names, pipeline.is_transaction(), &replies);
            replies
        })
    }

    fn get_db(&self) -> i64 {
        self.inner.get_db()
    }
}

impl<C: ConnectionLike> ConnectionLike for Traced<C> {
    fn req_packed_command(&mut self, cmd: &[u8]) -> RedisResult<Value> {
        let commands = packed(cmd);
        let arguments = commands.into_iter().next().unwrap_or_default();
        let name = arguments.first().map_or(Cow::Borrowed("other"), |name| plain(name));
        let command = described(&arguments, name.clone(), self.inner.get_db());
        let mut call = self.telemetry.start(&command);
        let current = call.context().attach();
        let reply = self.inner.req_packed_command(cmd);
        drop(current);
        end(&mut call, &name, &reply);
        reply
    }

    fn req_packed_commands(&mut self, cmd: &[u8], offset: usize, count: usize) -> RedisResult<Vec<Value>> {
        let commands = packed(cmd);
        let mut sent: Vec<_> =
            commands.iter().filter_map(|cmd| Some((plain(cmd.first()?), cmd.len()))).collect();
        // A transaction comes with what wraps it.
        let is = |(name, _): &(Cow<'_, str>, usize), what| name == what;
        let transaction = sent.first().is_some_and(|cmd| is(cmd, "MULTI"))
            && sent.last().is_some_and(|cmd| is(cmd, "EXEC"));
        if transaction {
            sent.pop();
            sent.remove(0);
        }
        let text = self.telemetry.0.query_text;
        let command = several(sent.iter().cloned(), text, transaction, self.inner.get_db());
        let mut call = self.telemetry.start(&command);
        let current = call.context().attach();
        let replies = self.inner.req_packed_commands(cmd, offset, count);
        drop(current);
        end_several(&mut call, sent.into_iter().map(|(name, _)| name), transaction, &replies);
        replies
    }

    fn req_command(&mut self, cmd: &Cmd) -> RedisResult<Value> {
        let mut call = self.telemetry.start(&one(cmd, self.inner.get_db()));
        let current = call.context().attach();
        let reply = self.inner.req_command(cmd);
        drop(current);
        end(&mut call, &name(cmd), &reply);
        reply
    }

    fn get_db(&self) -> i64 {
        self.inner.get_db()
    }

    fn supports_pipelining(&self) -> bool {
        self.inner.supports_pipelining()
    }

    fn check_connection(&mut self) -> bool {
        self.inner.check_connection()
    }

    fn is_open(&self) -> bool {
        self.inner.is_open()
    }
}

/// A name that is one: what a program sends by mistake must not become a label.
fn plain(name: &[u8]) -> Cow<'_, str> {
    let fits = (1..=64).contains(&name.len())
        && name.iter().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-' | b'|'));
    match std::str::from_utf8(name) {
        Ok(name) if fits => name.into(),
        _ => "other".into(),
    }
}

fn arguments(cmd: &Cmd) -> Vec<&[u8]> {
    cmd.args_iter().map(|arg| if let Arg::Simple(bytes) = arg { bytes } else { &b""[..] }).collect()
}

fn name(cmd: &Cmd) -> Cow<'_, str> {
    match cmd.args_iter().next() {
        Some(Arg::Simple(name)) => plain(name),
        _ => "other".into(),
    }
}

fn one(cmd: &Cmd, database: i64) -> Command<'_> {
    described(&arguments(cmd), name(cmd), database)
}

fn described<'a>(arguments: &[&'a [u8]], name: Cow<'a, str>, database: i64) -> Command<'a> {
    let mut command = Command::named(name);
    command.database = Some(database);
    command.arguments = arguments.len().saturating_sub(1);
    let rest = arguments.get(1..).unwrap_or_default();
    let upper = command.name.to_ascii_uppercase();
    let text = |bytes: &'a [u8]| std::str::from_utf8(bytes).ok().map(Cow::Borrowed);
    match upper.as_str() {
        "EVAL" | "EVAL_RO" => return command,
        "EVALSHA" | "EVALSHA_RO" | "FCALL" | "FCALL_RO" => {
            // A digest, or a name that somebody has given to a function.
            command.procedure = rest.first().map(|name| plain(name));
            return command;
        }
        "DEL" | "UNLINK" | "EXISTS" | "TOUCH" | "MGET" => command.keys = rest.len(),
        "MSET" | "MSETNX" => command.keys = rest.len() / 2,
        "SET" => {
            command.size = rest.get(1).map(|value| value.len());
            command.ttl = ttl(rest.get(2..).unwrap_or_default());
        }
        "SETEX" | "PSETEX" => {
            command.size = rest.get(2).map(|value| value.len());
            let unit = if upper == "SETEX" { 1000 } else { 1 };
            command.ttl = rest.get(1).and_then(|time| number(time)).map(|n| ms(n, unit));
        }
        "XREAD" | "XREADGROUP" => command.waits = key::blocks(&upper, rest),
        _ => {}
    }
    if !matches!(command.class, Class::Admin | Class::PubSub) {
        command.key = key::first(&upper, rest).and_then(text);
        command.keys = command.keys.max(usize::from(command.key.is_some()));
    }
    command
}

fn number(text: &[u8]) -> Option<u64> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

fn ms(n: u64, unit: u64) -> Duration {
    Duration::from_millis(n.saturating_mul(unit))
}

/// `EX seconds` or `PX milliseconds` among a `SET`'s options.
fn ttl(options: &[&[u8]]) -> Option<Duration> {
    options.windows(2).find_map(|pair| match pair[0].to_ascii_uppercase().as_slice() {
        b"EX" => Some(ms(number(pair[1])?, 1000)),
        b"PX" => Some(ms(number(pair[1])?, 1)),
        _ => None,
    })
}

/// `commands`: each by its name, with how many words it is, which counts only where their `text` is wanted.
fn several<'a>(
    commands: impl Iterator<Item = (Cow<'a, str>, usize)>,
    text: bool,
    transaction: bool,
    database: i64,
) -> Command<'a> {
    let mut counts: BTreeMap<Cow<'a, str>, usize> = BTreeMap::new();
    let mut first = Vec::new();
    for (name, words) in commands {
        if text && first.len() <= TEXT_MAX {
            first.push((name.clone(), words.saturating_sub(1)));
        }
        *counts.entry(name).or_default() += 1;
    }
    let mut command = Command::named(if transaction { "MULTI" } else { "PIPELINE" });
    // Within a transaction nothing waits.
    command.waits = !transaction && counts.keys().any(|name| waits(name));
    command.batch = Some(counts.values().sum());
    command.database = Some(database);
    let alike = if counts.len() == 1 { counts.keys().next() } else { None };
    command.class = match alike {
        Some(name) if !transaction => Class::of(name),
        _ => Class::Transaction,
    };
    command.inner = alike.cloned();
    // More kinds than anybody would read are not told apart.
    command.counts = counts.into_iter().take(16).collect();
    command.first = first;
    command
}

fn end(call: &mut super::Call, name: &str, reply: &RedisResult<Value>) {
    match reply {
        Err(error) => call.end(Some(error.describe()), &Outcome::default()),
        Ok(value) => match failure(value) {
            None => call.end(None, &outcome(name, value)),
            failed => call.end(failed, &Outcome::default()),
        },
    }
}

/// `names`: of the commands, without what wraps a transaction.
fn end_several<'a>(
    call: &mut super::Call,
    names: impl Iterator<Item = Cow<'a, str>>,
    transaction: bool,
    replies: &RedisResult<Vec<Value>>,
) {
    let values = match replies {
        Err(error) => return call.end(Some(error.describe()), &Outcome::default()),
        Ok(values) => values,
    };
    // The replies to a transaction's commands come within the one to its `EXEC`, which is the last.
    let (mut failed, values) = match values.last() {
        Some(exec) if transaction => match exec {
            Value::Array(values) => (None, values.as_slice()),
            // Refused, or given up because of what was watched.
            _ => (failure(exec), Default::default()),
        },
        _ => (None, values.as_slice()),
    };
    let mut seen = Outcome { items: Some(values.len()), ..Outcome::default() };
    for (name, value) in names.zip(values) {
        // All have failed where one has.
        failed = failed.or_else(|| failure(value));
        let one = outcome(&name, value);
        add(&mut seen.hits, one.hits);
        add(&mut seen.misses, one.misses);
        add(&mut seen.deleted, one.deleted);
    }
    call.end(failed, &seen);
}

fn add(sum: &mut Option<usize>, more: Option<usize>) {
    if let Some(more) = more {
        *sum = Some(sum.unwrap_or_default() + more);
    }
}

/// Why a command has failed, if it has: to its caller an error anywhere in the reply is one, within that to a transaction or a
/// script as well.
fn failure(value: &Value) -> Option<Failed> {
    match value {
        Value::ServerError(error) => Some(Failed::command(Some(error.code()))),
        Value::Array(values) | Value::Set(values) | Value::Push { data: values, .. } => {
            values.iter().find_map(failure)
        }
        Value::Map(pairs) => pairs.iter().find_map(|(name, value)| failure(name).or_else(|| failure(value))),
        Value::Attribute { data, .. } => failure(data),
        _ => None,
    }
}

fn outcome(name: &str, value: &Value) -> Outcome {
    let mut seen = Outcome::default();
    match value {
        Value::BulkString(bytes) => seen.size = Some(bytes.len()),
        Value::Array(items) | Value::Set(items) => seen.items = Some(items.len()),
        Value::Map(pairs) => seen.items = Some(pairs.len()),
        _ => {}
    }
    match (name.to_ascii_uppercase().as_str(), value) {
        // Errors, and `QUEUED`, say nothing of the key.
        ("GET" | "GETEX" | "GETDEL" | "HGET", Value::Nil | Value::BulkString(_)) => {
            let found = Outcome::found(!matches!(value, Value::Nil));
            (seen.hits, seen.misses) = (found.hits, found.misses);
        }
        ("MGET" | "HMGET", Value::Array(items)) => {
            let hits = items.iter().filter(|item| !matches!(item, Value::Nil)).count();
            (seen.hits, seen.misses) = (Some(hits), Some(items.len() - hits));
        }
        // A flat list of fields and values, as older protocols have it.
        ("HGETALL", Value::Array(items)) => seen.items = Some(items.len() / 2),
        ("DEL" | "UNLINK" | "HDEL", Value::Int(count)) => seen.deleted = usize::try_from(*count).ok(),
        _ => {}
    }
    seen
}

/// The commands in bytes as they go to the server. What makes no sense ends the list.
fn packed(mut bytes: &[u8]) -> Vec<Vec<&[u8]>> {
    fn line(bytes: &mut &[u8], sign: u8) -> Option<usize> {
        let end = bytes.windows(2).position(|pair| pair == b"\r\n")?;
        let line = bytes.get(..end)?.strip_prefix(&[sign])?;
        *bytes = &bytes[end + 2..];
        usize::try_from(number(line)?).ok()
    }
    fn next<'a>(bytes: &mut &'a [u8]) -> Option<Vec<&'a [u8]>> {
        let count = line(bytes, b'*')?;
        let mut arguments = Vec::with_capacity(count.min(64));
        for _ in 0..count {
            let length = line(bytes, b'$')?;
            arguments.push(bytes.get(..length)?);
            *bytes = bytes.get(length + 2..)?;
        }
        Some(arguments)
    }
    let mut all = Vec::new();
    while let Some(command) = next(&mut bytes) {
        all.push(command);
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packed_commands_are_read_back() {
        let mut pipe = ::redis::pipe();
        pipe.atomic().cmd("SET").arg("k").arg("v\r\n*1").cmd("GET").arg("k");
        let bytes = pipe.get_packed_pipeline();
        let names: Vec<_> = packed(&bytes).iter().map(|cmd| plain(cmd[0]).into_owned()).collect();
        assert_eq!(names, ["MULTI", "SET", "GET", "EXEC"]);
        for cut in 0..bytes.len() {
            assert!(packed(&bytes[..cut]).len() < 4);
        }
        assert!(packed(b"*9999999999999999999\r\n").is_empty());
    }

    #[test]
    fn commands_say_what_they_are_about() {
        let set = ::redis::cmd("SET").arg("user:1").arg("12345").arg("NX").arg("PX").arg(1500).to_owned();
        let command = one(&set, 3);
        assert_eq!((command.size, command.ttl), (Some(5), Some(Duration::from_millis(1500))));
        assert_eq!((command.key.as_deref(), command.database), (Some("user:1"), Some(3)));
        let script = ::redis::cmd("EVALSHA").arg("ab12").arg(1).arg("user:1").to_owned();
        let command = one(&script, 0);
        assert_eq!((command.procedure.as_deref(), command.class), (Some("ab12"), Class::Transaction));
        assert_eq!(one(&::redis::cmd("a secret sentence"), 0).name, "other");
        for name in ["slaveof", "SENTINEL", "REPLCONF", "PSYNC", "FAILOVER", "JSON.DEBUG"] {
            assert_eq!(Class::of(name), Class::Admin, "{name}");
        }
        let names = || ["GET", "GET"].into_iter().map(|name| (name.into(), 2));
        assert_eq!(several(names(), true, false, 0).operation(), "PIPELINE GET");
        assert_eq!(several(names().chain([("SET".into(), 3)]), true, true, 0).operation(), "MULTI");
    }

    #[test]
    fn what_is_to_wait_is_known() {
        let of = |words: &str| {
            let mut words = words.split(' ');
            let mut cmd = ::redis::cmd(words.next().unwrap());
            words.for_each(|word| _ = cmd.arg(word));
            one(&cmd, 0).waits
        };
        for words in
            ["blpop k 5", "WAIT 1 0", "XREAD BLOCK 0 STREAMS k $", "XREADGROUP GROUP g c block 9 STREAMS k >"]
        {
            assert!(of(words), "{words}");
        }
        for words in
            ["LPOP k", "XREAD COUNT 1 STREAMS BLOCK 0", "XREADGROUP GROUP BLOCK c STREAMS k >", "XREAD"]
        {
            assert!(!of(words), "{words}");
        }
        let names = || ["GET", "BLPOP"].into_iter().map(|name| (name.into(), 2));
        assert!(several(names(), true, false, 0).waits && !several(names(), true, true, 0).waits);
    }

    #[test]
    fn only_keys_are_taken_for_keys() {
        for (words, key) in [
            ("get k", Some("k")),
            ("OBJECT ENCODING k", Some("k")),
            ("XGROUP CREATE k group 0 MKSTREAM", Some("k")),
            ("XINFO STREAM k", Some("k")),
            ("BITOP AND k other", Some("k")),
            ("SINTERCARD 1 k", Some("k")),
            ("ZUNION 2 k other", Some("k")),
            ("LMPOP 1 k LEFT", Some("k")),
            ("BLMPOP 0 1 k LEFT", Some("k")),
            ("XREAD COUNT 1 streams k 0", Some("k")),
            ("XREADGROUP GROUP STREAMS me STREAMS k >", Some("k")),
            ("XREAD COUNT 1", None),
            ("SCAN 0 MATCH user:*", None),
            ("KEYS user:*", None),
            ("RANDOMKEY", None),
            ("SCRIPT LOAD text", None),
            ("FUNCTION LIST", None),
            ("EVAL text 1 k", None),
            ("MIGRATE host 6379 k 0 1000", None),
            ("FT.SEARCH index query", None),
            ("AUTH password", None),
            ("FAILOVER TO host 6379", None),
            ("SLAVEOF host 6379", None),
            ("SENTINEL get-master-addr-by-name name", None),
            ("REPLCONF listening-port 6379", None),
            ("JSON.DEBUG MEMORY k", None),
        ] {
            let mut words = words.split(' ');
            let mut cmd = ::redis::cmd(words.next().unwrap());
            words.for_each(|word| _ = cmd.arg(word));
            let command = one(&cmd, 0);
            assert_eq!(command.key.as_deref(), key, "{}", command.name);
        }
    }
}
