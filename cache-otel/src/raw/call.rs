//! One command under way.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use opentelemetry::{
    Context, KeyValue,
    trace::{SpanBuilder, SpanKind, Status, TraceContextExt, Tracer},
};

use super::{Command, Failed, Inner, OPERATION_CLASS, Outcome, Words, summary::Seen};
use crate::{
    keys, names,
    spans::{client_name, is_usual},
    vocabulary::seeds,
};

/// Longest query text, in arguments; of several commands also in commands.
pub(crate) const TEXT_MAX: usize = 16;

/// A command under way: its span, and its time. Dropped before its end, it counts as cancelled.
pub struct Call {
    of: Arc<Inner>,
    operation: String,
    seen: Arc<Seen>,
    class: &'static str,
    key: Option<String>,
    key_length: usize,
    cx: Context,
    /// Whether the span in it is this call's. One of the caller's is neither written to nor ended.
    own: bool,
    /// For as long as it was told to.
    waits: bool,
    /// The size of what it stores is said: that of an answer would be a second one.
    sized: bool,
    started: Instant,
    over: bool,
}

impl Call {
    pub(crate) fn start(of: Arc<Inner>, command: &Command<'_>) -> Self {
        let (operation, seen, new) = of.summary.named(command.operation());
        if new && !command.waits {
            // There from zero on: a series that begins at one has not gone up.
            of.slow.add(0, &slow_by(&of, &operation, command.class.as_str()));
        }
        let key = command.key.as_deref().zip(of.show_key.as_ref()).and_then(|(key, show)| show.of(key));
        let suppressed = Context::map_current(Context::is_telemetry_suppressed);
        let unsampled = Context::map_current(|cx| {
            let span = cx.span();
            span.span_context().is_valid() && !span.span_context().is_sampled()
        });
        let parent = Context::current();
        // Nothing is built where nothing records.
        let own = !suppressed && !unsampled;
        let cx = if own {
            let span =
                of.tracer.build_with_context(builder(&of, command, &operation, key.as_deref()), &parent);
            parent.with_span(span)
        } else {
            parent
        };
        if !suppressed {
            of.active.add(1, std::slice::from_ref(&of.name));
        }
        Self {
            operation,
            seen,
            class: command.class.as_str(),
            key_length: command.key.as_ref().map_or(0, |key| key.len()),
            key,
            cx,
            own,
            waits: command.waits,
            sized: command.size.is_some(),
            started: Instant::now(),
            over: suppressed,
            of,
        }
    }

    /// The context in which the command's span is the current one.
    pub fn context(&self) -> Context {
        self.cx.clone()
    }

    /// Records how it ended. Only the first end counts.
    pub fn end(&mut self, failed: Option<Failed>, outcome: &Outcome) {
        if std::mem::replace(&mut self.over, true) {
            return;
        }
        let took = self.started.elapsed();
        self.of.active.add(-1, std::slice::from_ref(&self.of.name));
        self.count(took, failed.as_ref(), outcome);
        if self.own {
            let span = self.cx.span();
            if span.is_recording() && span.span_context().is_valid() {
                self.describe(failed.as_ref(), outcome);
            }
            span.end();
        }
        if took >= self.of.slow_after && !self.waits && failed != Some(Failed::CANCELLED) {
            self.slow(took);
        }
    }

    fn count(&self, took: Duration, failed: Option<&Failed>, outcome: &Outcome) {
        let of = &self.of;
        self.seen.record(took, failed.is_some());
        let found = [("hit", outcome.hits), ("miss", outcome.misses)];
        for (result, count) in found.into_iter().filter_map(|(result, count)| Some((result, count?))) {
            let count = u64::try_from(count).unwrap_or(u64::MAX);
            of.lookups.add(count, &[of.name.clone(), KeyValue::new(names::CACHE_RESULT, result)]);
        }
        match &of.words {
            Words::Today { duration } => {
                let mut attributes = vec![
                    KeyValue::new(names::DB_SYSTEM, of.system),
                    KeyValue::new(names::DB_OPERATION, self.operation.clone()),
                    KeyValue::new(OPERATION_CLASS, self.class),
                    of.name.clone(),
                ];
                attributes.extend(server(of));
                attributes.extend(failed.map(|failed| KeyValue::new(names::ERROR_TYPE, failed.class)));
                duration.record(took.as_secs_f64(), &attributes);
            }
            Words::Seeds { commands, duration, errors } => {
                let command = KeyValue::new("command", self.operation.to_lowercase());
                let status = KeyValue::new("status", if failed.is_some() { "error" } else { "success" });
                let both = [of.name.clone(), command.clone()];
                commands.add(1, &[of.name.clone(), command, status]);
                duration.record(took.as_secs_f64(), &both);
                errors.add(u64::from(failed.is_some()), &both);
            }
        }
    }

    fn describe(&self, failed: Option<&Failed>, outcome: &Outcome) {
        let span = self.cx.span();
        let count = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
        match (outcome.hits, outcome.misses) {
            (Some(hits), Some(misses)) if hits + misses == 1 => {
                span.set_attribute(KeyValue::new(names::CACHE_HIT, hits == 1));
            }
            (Some(hits), Some(misses)) => {
                span.set_attribute(KeyValue::new("cache.hit.count", count(hits)));
                span.set_attribute(KeyValue::new("cache.miss.count", count(misses)));
            }
            _ => {}
        }
        for (name, value) in [
            (names::ITEM_SIZE, outcome.size.filter(|_| !self.sized)),
            ("db.response.returned_rows", outcome.items),
            ("cache.deleted.count", outcome.deleted),
        ] {
            if let Some(value) = value {
                span.set_attribute(KeyValue::new(name, count(value)));
            }
        }
        if let Some(Failed { class, code }) = failed {
            span.set_attribute(KeyValue::new(names::ERROR_TYPE, *class));
            if let Some(code) = code {
                span.set_attribute(KeyValue::new("db.response.status_code", code.clone()));
            }
            span.set_status(Status::error(code.clone().unwrap_or_else(|| (*class).to_owned())));
        }
    }

    fn slow(&self, took: Duration) {
        let of = &self.of;
        of.slow.add(1, &slow_by(of, &self.operation, self.class));
        // Inside the command's own context: its line belongs to its trace.
        let _current = self.cx.clone().attach();
        of.slow_lines.write(
            &of.name.value.as_str(),
            &self.operation,
            self.key.as_deref(),
            self.key_length,
            took,
        );
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        self.end(Some(Failed::CANCELLED), &Outcome::default());
    }
}

impl std::fmt::Debug for Call {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Call").field("operation", &self.operation).finish_non_exhaustive()
    }
}

/// `server.address` and `server.port`, where they are known.
pub(crate) fn server(of: &Inner) -> impl Iterator<Item = KeyValue> {
    let address = of.address.clone().map(|address| KeyValue::new(names::SERVER_ADDRESS, address));
    let port = of.port.map(|port| KeyValue::new(names::SERVER_PORT, i64::from(port)));
    address.into_iter().chain(port)
}

/// What slow commands are counted by.
fn slow_by(of: &Inner, operation: &str, class: &'static str) -> [KeyValue; 3] {
    match of.seeds {
        true => [
            of.name.clone(),
            KeyValue::new(seeds::OPERATION, operation.to_lowercase()),
            KeyValue::new(seeds::GROUP, of.name.value.clone()),
        ],
        false => [
            of.name.clone(),
            KeyValue::new(names::DB_OPERATION, operation.to_owned()),
            KeyValue::new(OPERATION_CLASS, class),
        ],
    }
}

/// A command, or each of several, with a `?` for each argument.
fn text(command: &Command<'_>, operation: &str) -> String {
    let mut text = String::new();
    let mut room = TEXT_MAX;
    let one = [(operation.into(), command.arguments)];
    let all = if command.first.is_empty() { &one[..] } else { &command.first };
    for (name, arguments) in all {
        if !text.is_empty() {
            text.push_str("; ");
        }
        if room == 0 {
            text.push_str("...");
            break;
        }
        text.push_str(name);
        text.push_str(&" ?".repeat(room.min(*arguments)));
        if *arguments > room {
            text.push_str(" ...");
        }
        room = room.saturating_sub((*arguments).max(1));
    }
    text
}

fn builder(of: &Inner, command: &Command<'_>, operation: &str, key: Option<&str>) -> SpanBuilder {
    let count = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
    let mut attributes = Vec::with_capacity(16);
    attributes.push(KeyValue::new(names::DB_SYSTEM, of.system));
    attributes.push(KeyValue::new(names::DB_OPERATION, operation.to_owned()));
    attributes.push(KeyValue::new(OPERATION_CLASS, command.class.as_str()));
    attributes.push(of.name.clone());
    let port = !is_usual(of.system, of.port);
    attributes.extend(server(of).filter(|kv| port || kv.key.as_str() != names::SERVER_PORT));
    if let Some(database) = command.database {
        attributes.push(KeyValue::new(names::DB_NAMESPACE, database.to_string()));
    }
    // One command that goes as a batch is none.
    if let Some(batch) = command.batch.filter(|batch| *batch != 1) {
        attributes.push(KeyValue::new("db.operation.batch.size", count(batch)));
        for (name, n) in &command.counts {
            attributes.push(KeyValue::new(format!("db.operation.batch.{}", name.to_lowercase()), count(*n)));
        }
    }
    if let Some(procedure) = &command.procedure {
        attributes.push(KeyValue::new(names::DB_PROCEDURE, procedure.to_string()));
    }
    if command.keys > 1 {
        attributes.push(KeyValue::new(names::KEY_COUNT, count(command.keys)));
    }
    if let Some(size) = command.size {
        attributes.push(KeyValue::new(names::ITEM_SIZE, count(size)));
    }
    if let Some(ttl) = command.ttl {
        attributes.push(KeyValue::new(names::TTL, ttl.as_secs_f64()));
    }
    if let Some(key) = key {
        attributes.push(keys::attribute(key.to_owned()));
    }
    if of.query_text {
        attributes.push(KeyValue::new("db.query.text", text(command, operation)));
    }
    let name = client_name(of.system, operation, of.address.as_deref(), of.port);
    SpanBuilder::from_name(name).with_kind(SpanKind::Client).with_attributes(attributes)
}
