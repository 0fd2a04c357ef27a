//! Parses TOML, JSON and YAML into one kind of tree.

mod json;
mod toml;
mod yaml;

use super::{
    fault::Fault,
    node::{Node, Place, Table, What},
};

/// The languages that a file may be written in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Format {
    /// `.toml`
    Toml,
    /// `.json`
    Json,
    /// `.yaml` or `.yml`
    Yaml,
}

/// The deepest nesting that is read.
pub(super) const DEPTH: usize = 64;

impl Format {
    /// By a file's extension.
    pub fn of(path: &std::path::Path) -> Option<Self> {
        match path.extension()?.to_str()?.to_ascii_lowercase().as_str() {
            "toml" => Some(Self::Toml),
            "json" => Some(Self::Json),
            "yaml" | "yml" => Some(Self::Yaml),
            _ => None,
        }
    }

    /// The tree of a text. An empty one is an empty table.
    pub(crate) fn parse(self, text: &str) -> Result<Node, Fault> {
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        let node = match self {
            Self::Toml => toml::parse(text)?,
            Self::Json => json::parse(text)?,
            Self::Yaml => yaml::parse(text)?,
        };
        match node.what {
            What::Table(_) => Ok(node),
            What::Null => Ok(Node { what: What::Table(Table::default()), ..node }),
            _ => Err(Fault::without_value(Vec::new(), Some(node.place), "write a table at the top")),
        }
    }
}

/// A syntax error, in the parser's own words, but never with a piece of the text: that may be a password.
fn broken(line: usize, why: impl std::fmt::Display) -> Fault {
    Fault::without_value(Vec::new(), Some(Place::Line(line)), why)
}

/// A name that appears twice.
fn twice(line: usize, name: &str, first: &Place) -> Fault {
    let fix = format!("it is there already in line {}; keep one", first.line());
    Fault::without_value(vec![name.into()], Some(Place::Line(line)), fix)
}

/// A text, and where its lines end. They are looked for once: a file has many places.
struct Lines<'a> {
    text: &'a str,
    ends: Vec<usize>,
}

impl<'a> Lines<'a> {
    fn of(text: &'a str) -> Self {
        Self { text, ends: text.match_indices('\n').map(|(at, _)| at).collect() }
    }

    /// The number of the line that has this byte.
    fn at(&self, byte: usize) -> usize {
        1 + self.ends.partition_point(|end| *end < byte)
    }
}
