//! Traces, drawn.

use std::collections::HashMap;

use opentelemetry::trace::{SpanId, TraceId};
use opentelemetry_sdk::trace::SpanData;

/// Attributes that say most; the others are left out of the picture.
const SHOWN: [&str; 8] = [
    "cache.result",
    "cache.miss.reason",
    "cache.level",
    "cache.item_size",
    "db.system.name",
    "server.address",
    "cache.key.count",
    "error.type",
];

/// All traces, each from its root.
pub(crate) fn of(spans: &[SpanData]) -> String {
    let known: HashMap<SpanId, &SpanData> = spans.iter().map(|s| (s.span_context.span_id(), s)).collect();
    let mut roots: Vec<&SpanData> =
        spans.iter().filter(|span| !known.contains_key(&span.parent_span_id)).collect();
    roots.sort_by_key(|span| span.start_time);
    let mut out = String::new();
    let mut trace: Option<TraceId> = None;
    for root in roots {
        let this = root.span_context.trace_id();
        if trace != Some(this) {
            out += &format!("trace {this}\n");
            trace = Some(this);
        }
        draw(root, spans, &known, "", "", &mut out);
    }
    out
}

fn draw(
    span: &SpanData,
    all: &[SpanData],
    known: &HashMap<SpanId, &SpanData>,
    first: &str,
    rest: &str,
    out: &mut String,
) {
    let took = span.end_time.duration_since(span.start_time).unwrap_or_default();
    *out += &format!("{first}{}  [{:?}] {took:.1?}{}\n", span.name, span.span_kind, attributes(span));
    let mut children: Vec<&SpanData> =
        all.iter().filter(|child| child.parent_span_id == span.span_context.span_id()).collect();
    children.sort_by_key(|child| child.start_time);
    for link in span.links.iter() {
        let to = known.get(&link.span_context.span_id()).map_or("a span not shown", |span| &*span.name);
        let why = link.attributes.iter().map(|kv| kv.value.to_string()).collect::<Vec<_>>().join(", ");
        let bar = if children.is_empty() { " " } else { "│" };
        *out += &format!("{rest}{bar} link: {why} {to} of trace {}\n", link.span_context.trace_id());
    }
    let last = children.len().saturating_sub(1);
    for (at, child) in children.into_iter().enumerate() {
        let (branch, stem) = if at == last { ("└─ ", "   ") } else { ("├─ ", "│  ") };
        draw(child, all, known, &format!("{rest}{branch}"), &format!("{rest}{stem}"), out);
    }
}

fn attributes(span: &SpanData) -> String {
    let value = |name| span.attributes.iter().find(|kv| kv.key.as_str() == name);
    let shown = SHOWN.into_iter().filter_map(value);
    shown.map(|kv| format!(" {}={}", kv.key, kv.value)).collect()
}
