//! A parsed file: one tree, whatever the format, of which every value knows where it came from.

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

/// A text, as written and as it reads once its references are resolved.
#[derive(Clone)]
pub(crate) struct Text {
    pub(crate) value: String,
    /// What the file says, where that is a reference: errors show it and not what it stands for.
    pub(crate) written: Option<String>,
    /// It may stand for a number, a flag or a list: it comes from a variable, which knows no other types.
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
    /// In the file; 0 where the line is not known.
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

    /// What is at the end of a path: names of fields and positions in lists.
    pub(crate) fn at(&self, path: &[Step]) -> Option<&Self> {
        let Some((first, rest)) = path.split_first() else { return Some(self) };
        let next = match (first, &self.what) {
            (Step::Field(name), What::Table(table)) => &table.get(name)?.node,
            (Step::Item(at), What::List(items)) => items.get(*at)?,
            _ => return None,
        };
        next.at(rest)
    }

    /// Where that is, or what is around it: the items of a list in a variable are no nodes.
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

    /// Takes out the field that a path leads to, or of those on the way the last one that is there. Lists are taken out as a
    /// whole: what comes behind an item would be found in another's place. Where it was, if there was one.
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

    /// Whether it is, or has in it, what stands elsewhere.
    pub(crate) fn refers(&self) -> bool {
        match &self.what {
            What::Text(text) => text.written.is_some(),
            What::List(items) => items.iter().any(Self::refers),
            What::Table(table) => table.0.iter().any(|field| field.node.refers()),
            _ => false,
        }
    }

    /// For errors: as it was written, lists and tables in a word.
    pub(crate) fn shown(&self) -> String {
        match &self.what {
            What::Null => "null".to_owned(),
            What::Bool(yes) => yes.to_string(),
            What::Int(number) => number.to_string(),
            // With its point: 10000.0 is no whole number.
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

/// In place of a value that must not show.
pub(crate) const HIDDEN: &str = "***";

/// A text for errors. A login and a key stay hidden in a field of another meaning, too, where they were written by mistake.
pub(crate) fn shown(text: &str) -> String {
    if may_show(text) { format!("{text:?}") } else { HIDDEN.to_owned() }
}

/// Whether it looks like no login and no key.
pub(crate) fn may_show(text: &str) -> bool {
    let text = text.trim();
    let login = text.contains('@') && text.contains(':');
    let hex = text.len() == 64 && text.bytes().all(|digit| digit.is_ascii_hexdigit());
    // 32 bytes, the size of every key here.
    let base64 = text.len() == 44 && text.ends_with('=') && !text.contains(char::is_whitespace);
    !(login || hex || base64 || text.contains("-----BEGIN"))
}

/// The references of a text. What is written around them, and in place of a variable that is not set, may be a secret.
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
    /// Of a field; an item has none.
    pub(crate) fn name(&self) -> &str {
        match self {
            Self::Field(name) => name,
            Self::Item(_) => "",
        }
    }
}

/// `caches.users.levels[1].budget`, and names with other characters in quotes.
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
