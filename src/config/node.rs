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

    pub(crate) fn at_mut(&mut self, path: &[Step]) -> Option<&mut Self> {
        let Some((first, rest)) = path.split_first() else { return Some(self) };
        let next = match (first, &mut self.what) {
            (Step::Field(name), What::Table(table)) => &mut table.get_mut(name)?.node,
            (Step::Item(at), What::List(items)) => items.get_mut(*at)?,
            _ => return None,
        };
        next.at_mut(rest)
    }

    /// For errors: as it was written, lists and tables in a word.
    pub(crate) fn shown(&self) -> String {
        match &self.what {
            What::Null => "null".to_owned(),
            What::Bool(yes) => yes.to_string(),
            What::Int(number) => number.to_string(),
            What::Float(number) => number.to_string(),
            What::Text(text) => format!("{:?}", text.written.as_ref().unwrap_or(&text.value)),
            What::List(_) => "(a list)".to_owned(),
            What::Table(_) => "(a table)".to_owned(),
        }
    }
}

/// One step into a tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    Field(String),
    Item(usize),
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
