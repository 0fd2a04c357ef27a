//! Environment variables: those that override fields of a file, and references to them (`${NAME}`) in its texts.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsString,
    fmt,
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{
    fault::Fault,
    node::{Field, Node, Place, Step, Table, Text, What, references},
    parse::DEPTH,
    resolve::SECTIONS,
};

/// The default prefix of variables that override a file.
pub(crate) const PREFIX: &str = "TRACED_CACHE";
/// The largest file that a reference may stand for: a device has no end.
const FILE_MAX: u64 = 1 << 20;

/// Variables, and the prefix of those that override a file.
#[derive(Clone)]
pub(crate) struct Environment {
    /// `None`: no variable overrides anything.
    pub(crate) prefix: Option<String>,
    pub(crate) variables: BTreeMap<String, String>,
    /// Variables whose values are not UTF-8: an error where one of them is used.
    pub(crate) garbled: BTreeSet<String>,
}

impl Environment {
    /// Sorts variables by whether they can be read.
    pub(crate) fn of(prefix: Option<String>, all: impl IntoIterator<Item = (OsString, OsString)>) -> Self {
        let mut new = Self { prefix, variables: BTreeMap::new(), garbled: BTreeSet::new() };
        for (name, value) in all {
            // Not UTF-8: no file can name it.
            let Ok(name) = name.into_string() else { continue };
            match value.into_string() {
                Ok(value) => drop(new.variables.insert(name, value)),
                Err(_garbled) => drop(new.garbled.insert(name)),
            }
        }
        new
    }

    /// Puts each variable in its place: `TRACED_CACHE__CACHES__USERS__POLICY__TTL=30s` is `caches.users.policy.ttl`.
    pub(crate) fn apply(&self, tree: &mut Node) -> Result<(), Fault> {
        let Some(prefix) = &self.prefix else { return Ok(()) };
        // Only for our own prefix: other variables may well begin with one that the application chose.
        if prefix == PREFIX
            && let Some(variable) = self.variables.keys().find(|variable| lacks_one(variable))
        {
            let place = Some(Place::Variable(Arc::from(variable.as_str())));
            let meant = variable.replacen(PREFIX, &format!("{PREFIX}_"), 1);
            let fix = format!("there are two underscores behind the prefix; name it {meant}");
            return Err(Fault::without_value(Vec::new(), place, fix));
        }
        let prefix = format!("{prefix}__");
        if let Some(variable) = self.garbled.iter().find(|variable| variable.starts_with(&prefix)) {
            let place = Some(Place::Variable(Arc::from(variable.as_str())));
            return Err(Fault::without_value(
                Vec::new(),
                place,
                "its value is no UTF-8; write it so, or unset it",
            ));
        }
        for (variable, value) in &self.variables {
            let Some(rest) = variable.strip_prefix(&prefix) else { continue };
            let place = Place::Variable(Arc::from(variable.as_str()));
            let text = Text { value: value.clone(), written: None, untyped: true };
            let node = Node { what: What::Text(text), place: place.clone() };
            let steps: Vec<_> = rest.split("__").collect();
            if steps.len() > DEPTH {
                let fix =
                    format!("its name has more than {DEPTH} parts, and no field lies so deep; unset it");
                return Err(Fault::without_value(Vec::new(), Some(place), fix));
            }
            put(tree, &mut Vec::new(), &steps, &place, node)?;
        }
        Ok(())
    }
}

/// Whether a variable names a section of the file with only one underscore before it. It would be ignored silently.
fn lacks_one(variable: &str) -> bool {
    let rest = variable.strip_prefix(PREFIX).and_then(|rest| rest.strip_prefix('_'));
    let first = rest.and_then(|rest| rest.split_once("__")).map(|(first, _)| first);
    first.is_some_and(|first| SECTIONS.iter().any(|section| same_name(section, first)))
}

/// Values stay out of `Debug` output.
impl fmt::Debug for Environment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Environment").field("prefix", &self.prefix).finish_non_exhaustive()
    }
}

fn put(
    tree: &mut Node,
    path: &mut Vec<Step>,
    steps: &[&str],
    place: &Place,
    value: Node,
) -> Result<(), Fault> {
    let Some((first, rest)) = steps.split_first() else {
        *tree = value;
        return Ok(());
    };
    let wrong = |path: &[Step], fix: &str| Err(Fault::without_value(path.to_vec(), Some(place.clone()), fix));
    if first.is_empty() {
        return wrong(
            path,
            "the variable's name has an empty part; put two underscores between parts, and none at the end",
        );
    }
    match &mut tree.what {
        What::Table(table) => {
            let mut same =
                table.0.iter().filter(|field| same_name(&field.name, first)).map(|field| field.name.clone());
            let name = same.next().unwrap_or_else(|| first.to_ascii_lowercase());
            if let Some(other) = same.next() {
                let fix = format!("the variable may mean `{name}` or `{other}`; set it in the file");
                return wrong(path, &fix);
            }
            path.push(Step::from(&name));
            if table.get(&name).is_none() {
                let node = Node { what: What::Table(Table::default()), place: place.clone() };
                table.0.push(Field { name: name.clone(), place: place.clone(), node });
            }
            match table.get_mut(&name) {
                Some(field) => put(&mut field.node, path, rest, place, value),
                None => Ok(()),
            }
        }
        What::List(items) => {
            let at = first.parse().ok().filter(|at| *at < items.len());
            let Some(at) = at else {
                let fix =
                    format!("the variable names item `{first}` of a list of {}; count from 0", items.len());
                return wrong(path, &fix);
            };
            path.push(Step::Item(at));
            put(&mut items[at], path, rest, place, value)
        }
        What::Null => {
            tree.what = What::Table(Table::default());
            put(tree, path, steps, place, value)
        }
        _ => wrong(
            path,
            "the variable means a field of this, but in the file it is a single value; write a table there",
        ),
    }
}

/// Whether a step of a variable means this name: shells allow letters, digits and underscores only.
fn same_name(name: &str, step: &str) -> bool {
    let plain = |text: &str| -> String {
        text.chars().map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '_' }).collect()
    };
    plain(name) == plain(step)
}

/// Resolves `${NAME}`, `${NAME:-otherwise}` and `${file:path}`; `$${` is a literal `${`.
pub(crate) struct References<'a> {
    pub(crate) environment: &'a Environment,
    /// The directory that relative paths start from.
    pub(crate) base: &'a Path,
}

impl References<'_> {
    /// Resolves a whole tree. Each reference that cannot be resolved is handed to `missing`: its error stops the resolution, `Ok`
    /// leaves the text as it is.
    pub(crate) fn resolve(
        &self,
        tree: &mut Node,
        missing: &mut dyn FnMut(Fault) -> Result<(), Fault>,
    ) -> Result<(), Fault> {
        self.resolve_at(tree, &mut Vec::new(), missing)
    }

    fn resolve_at(
        &self,
        node: &mut Node,
        path: &mut Vec<Step>,
        missing: &mut dyn FnMut(Fault) -> Result<(), Fault>,
    ) -> Result<(), Fault> {
        match &mut node.what {
            What::Text(text) if text.value.contains("${") => {
                let written = text.value.clone();
                match self.expand(&written) {
                    Ok(value) => {
                        // A text whose only `${` are escaped refers to nothing.
                        let refers = value != written.replace("$${", "${");
                        *text = Text {
                            value,
                            written: refers.then_some(written),
                            untyped: text.untyped || refers,
                        };
                    }
                    Err(fix) => {
                        // The field's meaning is not known yet; it may be a password, so show references only.
                        let value = Some(format!("{:?}", references(&written)));
                        missing(Fault { path: path.clone(), place: Some(node.place.clone()), value, fix })?;
                    }
                }
                Ok(())
            }
            What::List(items) => {
                for (at, item) in items.iter_mut().enumerate() {
                    path.push(Step::Item(at));
                    self.resolve_at(item, path, missing)?;
                    path.pop();
                }
                Ok(())
            }
            What::Table(table) => {
                for field in &mut table.0 {
                    path.push(Step::from(&field.name));
                    self.resolve_at(&mut field.node, path, missing)?;
                    path.pop();
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// The text with every reference resolved; or, for one that cannot be, what to do about it.
    fn expand(&self, text: &str) -> Result<String, String> {
        let mut out = String::with_capacity(text.len());
        let mut rest = text;
        while let Some(at) = rest.find("${") {
            let escaped = rest[..at].ends_with('$');
            out.push_str(&rest[..at - usize::from(escaped)]);
            rest = &rest[at + 2..];
            if escaped {
                out.push_str("${");
                continue;
            }
            let Some(end) = rest.find('}') else {
                return Err(
                    "a reference has no end; write ${NAME}, or $${ for these two characters".to_owned()
                );
            };
            // Nested references are not supported: the first `}` would end the outer one too early.
            if rest[..end].contains("${") {
                return Err(
                    "a reference stands in another one; give that one a plain text in its place".to_owned()
                );
            }
            out.push_str(&self.look_up(&rest[..end])?);
            rest = &rest[end + 1..];
        }
        out.push_str(rest);
        Ok(out)
    }

    fn look_up(&self, reference: &str) -> Result<String, String> {
        if let Some(path) = reference.strip_prefix("file:") {
            return read_secret(&self.base.join(path));
        }
        let (name, otherwise) = match reference.split_once(":-") {
            Some((name, otherwise)) => (name, Some(otherwise)),
            None => (reference, None),
        };
        let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
        if name.is_empty() || !name.chars().all(is_name) {
            return Err("a reference is ${NAME}, ${NAME:-otherwise} or ${file:path}".to_owned());
        }
        if self.environment.garbled.contains(name) {
            return Err(format!("the environment variable {name} is no UTF-8; write it so"));
        }
        match (self.environment.variables.get(name), otherwise) {
            (Some(value), _) if !value.is_empty() => Ok(value.clone()),
            (_, Some(otherwise)) => Ok(otherwise.to_owned()),
            (Some(_), None) => {
                Err(format!("the environment variable {name} is empty; set it, or write ${{{name}:-}}"))
            }
            (None, None) => Err(format!(
                "the environment variable {name} is not set; set it, or write ${{{name}:-otherwise}}"
            )),
        }
    }
}

/// The text of a file, without the newline that editors put at its end.
fn read_secret(path: &PathBuf) -> Result<String, String> {
    let read = || {
        let mut bytes = Vec::new();
        File::open(path)?.take(FILE_MAX + 1).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > FILE_MAX {
            return Ok(None);
        }
        String::from_utf8(bytes).map(Some).map_err(|_no_text| io::Error::from(io::ErrorKind::InvalidData))
    };
    match read() {
        Ok(Some(text)) => Ok(text.trim_end_matches(['\r', '\n']).to_owned()),
        Ok(None) => Err(format!(
            "the file {} has more than 1 MiB; name one that holds the value only",
            path.display()
        )),
        // Only the kind: for a file that is not UTF-8, the error itself says nothing more.
        Err(error) => Err(format!(
            "cannot read the file {}: {}; check the path and who may read it",
            path.display(),
            error.kind()
        )),
    }
}

#[cfg(all(test, unix))]
mod tests {
    use std::os::unix::ffi::OsStringExt;

    use super::*;

    #[test]
    fn a_variable_that_is_no_text_is_an_error_where_it_is_wanted() {
        let garbled = OsString::from_vec(b"\xff".to_vec());
        let of = |name: &str| {
            let all = [(OsString::from(name), garbled.clone()), (garbled.clone(), garbled.clone())];
            Environment::of(Some("T".to_owned()), all)
        };
        let read = |environment: &Environment| {
            let text = What::Text(Text::new("${NAME:-otherwise}"));
            let mut tree = Node { what: text, place: Place::Line(1) };
            environment.apply(&mut tree)?;
            References { environment, base: Path::new("") }.resolve(&mut tree, &mut Err)
        };
        assert!(read(&of("OTHER")).is_ok());
        let error = read(&of("NAME")).unwrap_err().fix;
        assert!(error.contains("NAME is no UTF-8"), "{error}");
        let error = read(&of("T__CACHES__A__SCHEMA")).unwrap_err().line("f");
        assert_eq!(
            error,
            "environment variable T__CACHES__A__SCHEMA: its value is no UTF-8; write it so, or unset it"
        );
    }

    #[test]
    fn one_underscore_behind_the_prefix_is_told_that_there_are_two() {
        let read = |prefix: &str, name: &str| {
            let all = [(OsString::from(name), OsString::from("30s"))];
            let mut tree = Node { what: What::Table(Table::default()), place: Place::Line(1) };
            Environment::of(Some(prefix.to_owned()), all).apply(&mut tree)
        };
        let error = read(PREFIX, "TRACED_CACHE_CACHES__A__POLICY__TTL").unwrap_err().line("f");
        assert_eq!(
            error,
            "environment variable TRACED_CACHE_CACHES__A__POLICY__TTL: there are two underscores behind the prefix; name \
             it TRACED_CACHE__CACHES__A__POLICY__TTL"
        );
        for other in ["CACHES", "CACHES_FILE", "CONFIG__A"] {
            assert!(read(PREFIX, &format!("TRACED_CACHE_{other}")).is_ok(), "{other}");
        }
        assert!(read("SHOP", "SHOP_CACHES__A").is_ok(), "of the shop itself");
    }
}
