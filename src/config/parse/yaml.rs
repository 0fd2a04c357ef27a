//! YAML 1.2, one document. The parser gives events; the core schema decides what a plain scalar is.

use std::collections::HashMap;

use saphyr_parser::{Event, Marker, Parser, ScalarStyle, ScanError, Span};

use super::{DEPTH, broken, twice};
use crate::config::{
    fault::Fault,
    node::{Field, Node, Place, Table, Text, What},
};

/// Most values of a file, those that aliases repeat included.
const NODES: usize = 100_000;

pub(super) fn parse(text: &str) -> Result<Node, Fault> {
    let mut events = Parser::new_from_str(text);
    let mut builder = Builder { anchors: HashMap::new(), nodes: 0 };
    let mut document = None;
    loop {
        let (event, span) = next(&mut events)?;
        match event {
            Event::StreamEnd => break,
            Event::DocumentStart(_) if document.is_some() => {
                return Err(broken(span.start.line(), "a second document; write one"));
            }
            Event::StreamStart | Event::DocumentStart(_) | Event::DocumentEnd | Event::Nothing => {}
            event => document = Some(builder.node(&mut events, event, &span, 0)?),
        }
    }
    Ok(document.unwrap_or(Node { what: What::Null, place: Place::Line(1) }))
}

type Events<'a> = Parser<'a, saphyr_parser::StrInput<'a>>;

fn next<'a>(events: &mut Events<'a>) -> Result<(Event<'a>, Span), Fault> {
    match events.next_event() {
        Some(Ok(event)) => Ok(event),
        Some(Err(error)) => Err(unreadable(&error)),
        None => Ok((Event::StreamEnd, Span::empty(Marker::default()))),
    }
}

fn unreadable(error: &ScanError) -> Fault {
    broken(error.marker().line(), error.info())
}

struct Builder {
    anchors: HashMap<usize, Node>,
    nodes: usize,
}

impl Builder {
    fn node(
        &mut self,
        events: &mut Events<'_>,
        event: Event<'_>,
        span: &Span,
        depth: usize,
    ) -> Result<Node, Fault> {
        let line = span.start.line();
        self.nodes += 1;
        if depth > DEPTH || self.nodes > NODES {
            return Err(broken(line, "too deep or too large"));
        }
        let (what, anchor) = match event {
            Event::Scalar(text, style, anchor, tag) => {
                let is_text = tag.is_some_and(|tag| tag.suffix == "str");
                let plain = style == ScalarStyle::Plain && !is_text;
                (if plain { scalar(&text) } else { What::Text(Text::new(text)) }, anchor)
            }
            Event::SequenceStart(anchor, _) => {
                let mut items = Vec::new();
                loop {
                    match next(events)? {
                        (Event::SequenceEnd, _) => break,
                        (event, span) => {
                            let item = self.node(events, event, &span, depth + 1);
                            items.push(item.map_err(|fault| fault.within(items.len()))?);
                        }
                    }
                }
                (What::List(items), anchor)
            }
            Event::MappingStart(anchor, _) => (What::Table(self.fields(events, depth)?), anchor),
            Event::Alias(anchor) => {
                let Some(node) = self.anchors.get(&anchor) else {
                    return Err(broken(line, "an alias of what is not complete"));
                };
                let node = node.clone();
                self.nodes += size(&node);
                if self.nodes > NODES {
                    return Err(broken(line, "too deep or too large"));
                }
                // It is written where it is repeated from: that is where to mend it.
                return Ok(node);
            }
            _ => return Err(broken(line, "the document ends too early")),
        };
        let node = Node { what, place: Place::Line(line) };
        if anchor > 0 {
            self.anchors.insert(anchor, node.clone());
        }
        Ok(node)
    }

    fn fields(&mut self, events: &mut Events<'_>, depth: usize) -> Result<Table, Fault> {
        let mut table = Table::default();
        let mut merged = Vec::new();
        loop {
            let (name, line) = match next(events)? {
                (Event::MappingEnd, _) => break,
                (Event::Scalar(name, ..), span) => (name.into_owned(), span.start.line()),
                (_, span) => return Err(broken(span.start.line(), "a field's name is a text")),
            };
            let (event, span) = next(events)?;
            let node = self.node(events, event, &span, depth + 1).map_err(|fault| fault.within(&name))?;
            if name == "<<" {
                merged.push(node);
                continue;
            }
            if let Some(first) = table.get(&name) {
                return Err(twice(line, &name, &first.place));
            }
            table.0.push(Field { name, place: Place::Line(line), node });
        }
        for node in merged {
            merge(&mut table, node)?;
        }
        Ok(table)
    }
}

/// `<<`: fields that are not there come from another table, or from the first of several that has them.
fn merge(table: &mut Table, node: Node) -> Result<(), Fault> {
    let line = node.place.line();
    match node.what {
        What::Table(other) => {
            for field in other.0 {
                if table.get(&field.name).is_none() {
                    table.0.push(field);
                }
            }
            Ok(())
        }
        What::List(items) => items.into_iter().try_for_each(|item| merge(table, item)),
        _ => Err(broken(line, "`<<` takes a table, or a list of them")),
    }
}

fn size(node: &Node) -> usize {
    1 + match &node.what {
        What::List(items) => items.iter().map(size).sum(),
        What::Table(table) => table.0.iter().map(|field| size(&field.node)).sum(),
        _ => 0,
    }
}

/// The core schema of YAML 1.2.
fn scalar(text: &str) -> What {
    let number =
        |text: &str, prefix: &str, radix| i128::from_str_radix(text.strip_prefix(prefix)?, radix).ok();
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return What::Null,
        "true" | "True" | "TRUE" => return What::Bool(true),
        "false" | "False" | "FALSE" => return What::Bool(false),
        _ => {}
    }
    if let Some(number) =
        number(text, "", 10).or_else(|| number(text, "0x", 16)).or_else(|| number(text, "0o", 8))
    {
        return What::Int(number);
    }
    let numeric = text.starts_with(|c: char| c.is_ascii_digit() || matches!(c, '-' | '+' | '.'));
    match text.parse() {
        Ok(number) if numeric => What::Float(number),
        _ => What::Text(Text::new(text)),
    }
}
