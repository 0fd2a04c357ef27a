//! TOML.

use std::ops::Range;

use ::toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::{Lines, broken, twice};
use crate::config::{
    fault::Fault,
    node::{Field, Node, Place, Table, Text, What},
};

pub(super) fn parse(text: &str) -> Result<Node, Fault> {
    let lines = Lines::of(text);
    let table = DeTable::parse(text).map_err(|error| {
        let message = without_quotes(error.message());
        let line =
            error.span().map_or_else(|| first_with(error.message(), &lines), |span| lines.at(span.start));
        let name = error.span().filter(|_| message == "duplicate key");
        name.and_then(|name| again(text, line, name)).unwrap_or_else(|| broken(line, message))
    })?;
    let place = Place::Line(1);
    Ok(Node { what: What::Table(fields(&lines, table.into_inner())?), place })
}

/// The first line with a mistake of which the parser does not say where it is, as of a name that has very many parts.
fn first_with(message: &str, lines: &Lines<'_>) -> usize {
    let has_none = |end: &usize| {
        let error = lines.text.get(..*end).and_then(|text| DeTable::parse(text).err());
        error.is_none_or(|error| error.span().is_some() || error.message() != message)
    };
    1 + lines.ends.partition_point(has_none)
}

/// What the parser points to is the name, which is no secret, but not in which table. Under another name it is in the tree,
/// beside the first one.
fn again(text: &str, line: usize, at: Range<usize>) -> Option<Fault> {
    let name = text.get(at.clone())?.trim_matches(['"', '\'']);
    let mut other = "twice".to_owned();
    while text.contains(&other) {
        other.push('_');
    }
    let renamed = [text.get(..at.start)?, &other, text.get(at.end..)?].concat();
    let (table, _more_mistakes) = DeTable::parse_recoverable(&renamed);
    let tree = What::Table(fields(&Lines::of(&renamed), table.into_inner()).ok()?);
    beside(&tree, &other, &|table| Some(twice(line, name, &table.get(name)?.place)))
}

/// What `found` makes of the table that has this name in it, with the path that leads there.
fn beside(tree: &What, name: &str, found: &impl Fn(&Table) -> Option<Fault>) -> Option<Fault> {
    match tree {
        What::Table(table) if table.get(name).is_some() => found(table),
        What::Table(table) => table
            .0
            .iter()
            .find_map(|field| beside(&field.node.what, name, found).map(|fault| fault.within(&field.name))),
        What::List(items) => items
            .iter()
            .enumerate()
            .find_map(|(at, item)| beside(&item.what, name, found).map(|fault| fault.within(at))),
        _ => None,
    }
}

/// The parser's message without what it quotes of the file.
fn without_quotes(message: &str) -> String {
    message.lines().next().unwrap_or_default().to_owned()
}

fn fields(lines: &Lines<'_>, table: DeTable<'_>) -> Result<Table, Fault> {
    let fields = table.into_iter().map(|(name, value)| {
        let place = Place::Line(lines.at(name.span().start));
        Ok(Field { name: name.into_inner().into_owned(), place, node: node(lines, value)? })
    });
    fields.collect::<Result<_, _>>().map(Table)
}

fn node(lines: &Lines<'_>, value: Spanned<DeValue<'_>>) -> Result<Node, Fault> {
    let line = lines.at(value.span().start);
    let what = match value.into_inner() {
        DeValue::String(text) => What::Text(Text::new(text)),
        DeValue::Boolean(yes) => What::Bool(yes),
        DeValue::Integer(number) => match i128::from_str_radix(number.as_str(), number.radix()) {
            Ok(number) => What::Int(number),
            Err(_) => return Err(broken(line, "the number is too large")),
        },
        DeValue::Float(number) => match number.as_str().parse() {
            Ok(number) => What::Float(number),
            Err(_) => return Err(broken(line, "no number")),
        },
        // No field is one, and says so with its name.
        DeValue::Datetime(date) => What::Text(Text::new(date.to_string())),
        DeValue::Array(items) => {
            What::List(items.into_iter().map(|item| node(lines, item)).collect::<Result<_, _>>()?)
        }
        DeValue::Table(table) => What::Table(fields(lines, table)?),
    };
    Ok(Node { what, place: Place::Line(line) })
}
