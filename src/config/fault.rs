//! What is wrong with a file: where, which field, its value, and what to do.

use std::{borrow::Cow, fmt};

use cache_core::{Error, ErrorKind};

use super::node::{Node, Path, Place, Step, may_show};

/// One mistake.
#[derive(Clone, Debug)]
pub(crate) struct Fault {
    pub(crate) path: Vec<Step>,
    pub(crate) place: Option<Place>,
    /// The value as it was written; `None` where there is none, or it must not be shown.
    pub(crate) value: Option<String>,
    pub(crate) fix: String,
}

impl Fault {
    /// A fault of the value at `path`.
    pub(crate) fn at(path: Vec<Step>, node: &Node, fix: impl fmt::Display) -> Self {
        Self { path, place: Some(node.place.clone()), value: Some(node.shown()), fix: fix.to_string() }
    }

    /// A fault of something that is missing, or must not be shown.
    pub(crate) fn without_value(path: Vec<Step>, place: Option<Place>, fix: impl fmt::Display) -> Self {
        Self { path, place, value: None, fix: fix.to_string() }
    }

    /// Puts a step in front of the path. A syntax error has no path, only a line, and keeps that.
    pub(crate) fn within(mut self, step: impl Into<Step>) -> Self {
        if !self.path.is_empty() {
            self.path.insert(0, step.into());
        }
        self
    }

    /// As an error that names the file.
    pub(crate) fn into_error(self, file: &str) -> Error {
        Error::new(ErrorKind::Config, self.line(file))
    }

    /// As one line that names the file.
    pub(crate) fn line(&self, file: &str) -> String {
        let Self { path, place, value, fix } = self;
        let from = match place {
            Some(Place::Line(line)) if *line > 0 => format!("{file}:{line}"),
            Some(Place::Variable(name)) => format!("environment variable {name}"),
            Some(Place::Line(_)) | None => file.to_owned(),
        };
        let field = Path(path).to_string();
        let (field, fix) = (cut(&field), cut(fix));
        match (field.is_empty(), value.as_deref().map(cut)) {
            (true, _) => format!("{from}: {fix}"),
            (false, Some(value)) => format!("{from}: {field} = {value}: {fix}"),
            (false, None) => format!("{from}: {field}: {fix}"),
        }
    }
}

/// Of what is longer than anybody reads, how it begins and ends: names and values may be of any length.
fn cut(text: &str) -> Cow<'_, str> {
    const PART: usize = 500;
    if text.len() <= 3 * PART {
        return text.into();
    }
    let begin = (0..=PART).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
    let end = (text.len() - PART..).find(|at| text.is_char_boundary(*at)).unwrap_or(text.len());
    format!("{}...{}", &text[..begin], &text[end..]).into()
}

/// The name that was most likely meant by `word`.
pub(crate) fn nearest<'a>(word: &str, names: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    // To compare two takes time and memory by their lengths multiplied. Nobody means a name that is much longer, or shorter.
    const LONGEST: usize = 100;
    if word.len() > LONGEST {
        return None;
    }
    let word = word.to_ascii_lowercase().replace('-', "_");
    names
        .into_iter()
        .filter(|name| name.len() <= 2 * LONGEST)
        .map(|name| (strsim::damerau_levenshtein(&word, &name.to_ascii_lowercase().replace('-', "_")), name))
        .filter(|(distance, name)| *distance <= (name.len().max(word.len()) / 3).max(1))
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, name)| name)
}

/// What to do about an unknown name.
pub(crate) fn unknown<'a>(word: &str, names: impl IntoIterator<Item = &'a str> + Clone) -> String {
    if let Some(name) = nearest(word, names.clone()) {
        return format!("did you mean `{}`?", name.escape_debug());
    }
    let all: Vec<_> = names.into_iter().map(|name| format!("`{}`", name.escape_debug())).collect();
    match all.split_last() {
        Some((last, [])) => format!("use {last}"),
        Some((last, rest)) => format!("use one of {} or {last}", rest.join(", ")),
        None => "leave it out".to_owned(),
    }
}

/// What to do about something that this build of the program lacks.
pub(crate) fn not_compiled(feature: &str) -> String {
    format!("not compiled in; add the feature `{feature}` of traced-cache")
}

/// What to do about the name of a provider or a keyring (`what`) that is not among `names`.
pub(crate) fn no_such<'a>(
    what: &str,
    name: &str,
    names: impl IntoIterator<Item = &'a str, IntoIter: Clone>,
) -> String {
    let names = names.into_iter();
    let fix = match names.clone().next() {
        Some(_) => unknown(name, names),
        None if may_show(name) => format!("define it: `[{what}s.{name}]`"),
        None => format!("name one of `[{what}s]`"),
    };
    format!("no {what} has this name; {fix}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_name_is_found_and_no_far_one() {
        let names = ["ttl", "grace", "jitter", "hard_limit", "soft_limit"];
        assert_eq!(nearest("tll", names), Some("ttl"));
        assert_eq!(nearest("hard-limit", names), Some("hard_limit"));
        assert_eq!(nearest("Gracce", names), Some("grace"));
        assert_eq!(nearest("timeout", names), None);
        assert_eq!(unknown("timeout", ["a", "b"]), "use one of `a` or `b`");
    }
}
