//! A parsed file: the same kind of tree for every format. Each value knows where it came from.

use std::{fmt, sync::Arc};

/// A value and its origin.
#[derive(Clone)]
pub(crate) struct Node {
    pub(crate) what: What,
    pub(crate) place: Place,
}

#[derive(Clone)]
pub(crate) enum What {
    Null,
    Bool(bool),
    Int(i128),
    Float(f64),
    Text(Text),
    List(Vec<Node>),
    Table(Table),
}

/// A text, with its references resolved, and as it was written.
#[derive(Clone)]
pub(crate) struct Text {
    pub(crate) value: String,
    /// What the file says, where it has a reference: errors show that and not what it resolved to.
    pub(crate) written: Option<String>,
    /// It comes from a variable, where every value is a text: it may mean a number, a flag or a list.
    pub(crate) untyped: bool,
}

impl Text {
    pub(crate) fn new(value: impl Into<String>) -> Self {
        Self { value: value.into(), written: None, untyped: false }
    }
}

/// Fields in the order of the file.
#[derive(Clone, Default)]
pub(crate) struct Table(pub(crate) Vec<Field>);

#[derive(Clone)]
pub(crate) struct Field {
    pub(crate) name: String,
    pub(crate) place: Place,
    pub(crate) node: Node,
}

impl Table {
    pub(crate) fn get(&self, name: &str) -> Option<&Field> {
        self.0.iter().find(|field| field.name == name)
    }

    pub(crate) fn get_mut(&mut self, name: &str) -> Option<&mut Field> {
        self.0.iter_mut().find(|field| field.name == name)
    }
}

/// Where something was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// A line of the file; 0 where it is not known.
    Line(usize),
    Variable(Arc<str>),
}

impl Place {
    /// 0 where it has none.
    pub(crate) const fn line(&self) -> usize {
        match self {
            Self::Line(line) => *line,
            Self::Variable(_) => 0,
        }
    }
}

impl Node {
    pub(crate) fn table(&self) -> Option<&Table> {
        match &self.what {
            What::Table(table) => Some(table),
            _ => None,
        }
    }

    /// The node at the end of a path of field names and positions in lists.
    pub(crate) fn at(&self, path: &[Step]) -> Option<&Self> {
        let Some((first, rest)) = path.split_first() else { return Some(self) };
        let next = match (first, &self.what) {
            (Step::Field(name), What::Table(table)) => &table.get(name)?.node,
            (Step::Item(at), What::List(items)) => items.get(*at)?,
            _ => return None,
        };
        next.at(rest)
    }

    /// The place of the node at `path`, or of the nearest one around it: items of a list in a variable have no nodes.
    pub(crate) fn place_of(&self, path: &[Step]) -> Option<Place> {
        let around = (1..=path.len()).rev().find_map(|steps| self.at(path.get(..steps)?));
        around.map(|node| node.place.clone())
    }

    pub(crate) fn at_mut(&mut self, path: &[Step]) -> Option<&mut Self> {
        let Some((first, rest)) = path.split_first() else { return Some(self) };
        let next = match (first, &mut self.what) {
            (Step::Field(name), What::Table(table)) => &mut table.get_mut(name)?.node,
            (Step::Item(at), What::List(items)) => items.get_mut(*at)?,
            _ => return None,
        };
        next.at_mut(rest)
    }

    /// Takes out the field at the end of a path, or the last field on the way that exists, and says which. A list is taken out as
    /// a whole: without one of its items, those behind it would stand at other positions.
    pub(crate) fn take_out(&mut self, path: &[Step]) -> Option<Vec<Step>> {
        let fields = path.iter().take_while(|step| matches!(step, Step::Field(_))).count();
        (1..=fields).rev().find_map(|len| {
            let (name, parents) = path[..len].split_last()?;
            let (Step::Field(name), What::Table(table)) = (name, &mut self.at_mut(parents)?.what) else {
                return None;
            };
            let at = table.0.iter().position(|field| field.name == *name)?;
            table.0.remove(at);
            Some(path[..len].to_vec())
        })
    }

    /// Whether it has a reference in it.
    pub(crate) fn refers(&self) -> bool {
        match &self.what {
            What::Text(text) => text.written.is_some(),
            What::List(items) => items.iter().any(Self::refers),
            What::Table(table) => table.0.iter().any(|field| field.node.refers()),
            _ => false,
        }
    }

    /// For errors: as it was written; lists and tables only as such.
    pub(crate) fn shown(&self) -> String {
        match &self.what {
            What::Null => "null".to_owned(),
            What::Bool(yes) => yes.to_string(),
            What::Int(number) => number.to_string(),
            // `{:?}` keeps the point: 10000.0 is not a whole number.
            What::Float(number) => format!("{number:?}"),
            What::Text(text) => match &text.written {
                Some(written) => format!("{:?}", references(written)),
                None => shown(&text.value),
            },
            What::List(_) => "(a list)".to_owned(),
            What::Table(_) => "(a table)".to_owned(),
        }
    }
}

/// Stands in for a value that must not be shown.
pub(crate) const HIDDEN: &str = "***";

/// A text for errors. What looks like a login or a key is hidden even in a field of another meaning: it may be in the wrong place.
pub(crate) fn shown(text: &str) -> String {
    if may_show(text) { format!("{text:?}") } else { HIDDEN.to_owned() }
}

/// Whether a text looks like neither a login nor a key.
pub(crate) fn may_show(text: &str) -> bool {
    let text = text.trim();
    let login = text.contains('@') && text.contains(':');
    let hex = text.len() == 64 && text.bytes().all(|digit| digit.is_ascii_hexdigit());
    // 32 bytes, the size of every key here.
    let base64 = text.len() == 44 && text.ends_with('=') && !text.contains(char::is_whitespace);
    !(login || hex || base64 || text.contains("-----BEGIN"))
}

/// Only the references of a text: what is written around them, or as their default, may be a secret.
pub(crate) fn references(text: &str) -> String {
    const MORE: &str = "...";
    let mut out = String::new();
    let more = |out: &mut String, is: bool| {
        if is && !out.ends_with(MORE) {
            out.push_str(MORE);
        }
    };
    let mut rest = text;
    while let Some(at) = rest.find("${") {
        let escaped = rest[..at].ends_with('$');
        more(&mut out, at > 0);
        rest = &rest[at + 2..];
        if escaped {
            continue;
        }
        out.push_str("${");
        let Some(end) = rest.find('}') else { break };
        let (name, otherwise) = match rest[..end].split_once(":-") {
            Some((name, otherwise)) if !name.starts_with("file:") => (name, Some(otherwise)),
            _ => (&rest[..end], None),
        };
        let is_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
        match name.starts_with("file:") || name.chars().all(is_name) {
            true => out.push_str(name),
            false => out.push_str(MORE),
        }
        if let Some(otherwise) = otherwise {
            out.push_str(":-");
            more(&mut out, !otherwise.is_empty());
        }
        out.push('}');
        rest = &rest[end + 1..];
    }
    more(&mut out, !rest.is_empty());
    out
}

/// One step into a tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    Field(String),
    Item(usize),
}

impl Step {
    /// A field's name; an item of a list has none.
    pub(crate) fn name(&self) -> &str {
        match self {
            Self::Field(name) => name,
            Self::Item(_) => "",
        }
    }
}

/// Displayed like `caches.users.levels[1].budget`; names with unusual characters are quoted.
pub(crate) struct Path<'a>(pub(crate) &'a [Step]);

impl fmt::Display for Path<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, step) in self.0.iter().enumerate() {
            match step {
                Step::Field(name) => {
                    if at > 0 {
                        f.write_str(".")?;
                    }
                    let bare = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '$');
                    if !name.is_empty() && name.chars().all(bare) {
                        f.write_str(name)?;
                    } else {
                        write!(f, "{name:?}")?;
                    }
                }
                Step::Item(at) => write!(f, "[{at}]")?,
            }
        }
        Ok(())
    }
}

/// `at!["caches", name, "levels", 0]`
macro_rules! at {
    ($($step:expr),* $(,)?) => { Vec::from([$($crate::config::node::Step::from($step)),*]) };
}
pub(crate) use at;

impl From<&str> for Step {
    fn from(name: &str) -> Self {
        Self::Field(name.to_owned())
    }
}

impl From<&String> for Step {
    fn from(name: &String) -> Self {
        Self::Field(name.clone())
    }
}

impl From<usize> for Step {
    fn from(at: usize) -> Self {
        Self::Item(at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_text_its_references_show_and_nothing_else() {
        for (text, shown) in [
            ("${TTL}", "${TTL}"),
            ("redis://shop:secret@${HOST}:${PORT:-6379}/secret", "...${HOST}...${PORT:-...}..."),
            ("${A}${B:-}", "${A}${B:-}"),
            ("secret${file:/run/a.pem}", "...${file:/run/a.pem}"),
            ("secret${secret", "...${..."),
            ("secret$${secret}${A}", "...${A}"),
            ("${the secret!}", "${...}"),
            ("secret", "..."),
        ] {
            assert_eq!(references(text), shown, "{text}");
        }
    }
}
