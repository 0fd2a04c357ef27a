//! Backends: what builds the providers that a file names. Those of this crate, and yours.

#[cfg(feature = "memcached")]
pub(crate) mod memcached;
#[cfg(feature = "memory")]
pub(crate) mod memory;
#[cfg(feature = "redis")]
pub(crate) mod redis;

use std::{collections::BTreeMap, path::Path, sync::Arc};

#[cfg(any(feature = "redis", feature = "memcached"))]
use cache_core::Error;
use cache_core::{BoxError, CacheProvider};
use serde::de::DeserializeOwned;

#[cfg(any(feature = "redis", feature = "memcached"))]
use super::units::FilePath;
use super::{
    de,
    fault::{Fault, not_compiled, unknown},
    model::Common,
    node::{HIDDEN, Node, Place, Step, Table, What, at, may_show},
};

/// Builds a provider from its fields.
type Build = dyn Fn(&Node, &[Step], &Path) -> Result<Arc<dyn CacheProvider>, Fault> + Send + Sync;

/// All backends that the program knows, by name.
#[derive(Clone)]
pub(crate) struct Backends(BTreeMap<String, Arc<Build>>);

/// A provider of a file.
#[derive(Clone)]
pub(crate) struct Provided {
    pub(crate) backend: String,
    pub(crate) common: Common,
    /// The fields of its backend.
    pub(crate) settings: Node,
}

/// Fields that every provider has, whatever its backend.
const COMMON: [&str; 2] = ["required", "level"];
const BACKEND: &str = "backend";

/// A client certificate and its key: both, or none.
#[cfg(any(feature = "redis", feature = "memcached"))]
fn client_certificate(
    certificate: Option<FilePath>,
    key: Option<FilePath>,
) -> Result<Option<(FilePath, FilePath)>, Error> {
    both(["client_certificate", "client_key"], certificate, key)
}

/// Two fields that have to be set together.
#[cfg(any(feature = "redis", feature = "memcached"))]
fn both<T>(names: [&str; 2], first: Option<T>, second: Option<T>) -> Result<Option<(T, T)>, Error> {
    let lacks = |field, other| Err(Error::config(field, "set", format_args!("set `{other}` as well")));
    match (first, second) {
        (Some(first), Some(second)) => Ok(Some((first, second))),
        (Some(_), None) => lacks(names[0], names[1]),
        (None, Some(_)) => lacks(names[1], names[0]),
        (None, None) => Ok(None),
    }
}

impl Backends {
    /// Those of this crate's features.
    pub(crate) fn of_this_crate() -> Self {
        #[allow(unused_mut, reason = "without features there is nothing to add")]
        let mut all = Self(BTreeMap::new());
        #[cfg(feature = "memory")]
        all.add("memory", memory::build);
        #[cfg(feature = "redis")]
        all.add("redis", redis::build);
        #[cfg(feature = "memcached")]
        all.add("memcached", memcached::build);
        all
    }

    /// Adds a backend. `false` if the name is taken.
    pub(crate) fn add<S, P, E>(
        &mut self,
        name: &str,
        build: impl Fn(S) -> Result<P, E> + Send + Sync + 'static,
    ) -> bool
    where
        S: DeserializeOwned,
        P: CacheProvider,
        E: Into<BoxError>,
    {
        if self.0.contains_key(name) {
            return false;
        }
        let build = move |settings: &Node, path: &[Step], base: &Path| {
            let read: S = de::read(settings, path, base)?;
            let blame = |error: BoxError| blame(&error.to_string(), settings, path);
            let provider = build(read).map_err(|error| blame(error.into()))?;
            provider.check().map_err(|error| blame(error.into()))?;
            Ok(Arc::new(provider) as Arc<dyn CacheProvider>)
        };
        self.0.insert(name.to_owned(), Arc::new(build));
        true
    }

    /// Splits a provider's table into its backend's name, the fields that every provider has, and those of the backend.
    pub(crate) fn take(&self, node: &Node, path: &[Step], base: &Path) -> Result<Provided, Fault> {
        let Some(table) = node.table() else {
            // No value: it may be an address with a password.
            let fix = "write a table, with a `backend`";
            return Err(Fault::without_value(path.to_vec(), Some(node.place.clone()), fix));
        };
        let names = || self.0.keys().map(String::as_str);
        let backend = match table.get(BACKEND) {
            None => {
                let fix = format!("`backend` is missing; {}", unknown("", names()));
                return Err(Fault::without_value(path.to_vec(), Some(node.place.clone()), fix));
            }
            Some(field) => {
                let path = with(path, BACKEND);
                let backend: String = de::read(&field.node, &path, base)?;
                if !self.0.contains_key(&backend) {
                    return Err(Fault::at(path, &field.node, absent(&backend, names())));
                }
                backend
            }
        };
        let (common, settings): (Vec<_>, Vec<_>) = table
            .0
            .iter()
            .filter(|field| field.name != BACKEND)
            .cloned()
            .partition(|field| COMMON.contains(&field.name.as_str()));
        let part = |fields| Node { what: What::Table(Table(fields)), place: node.place.clone() };
        let common = de::read(&part(common), path, base)?;
        Ok(Provided { backend, common, settings: part(settings) })
    }

    /// Builds a provider. Its only I/O is reading files that the settings name.
    pub(crate) fn build(
        &self,
        provided: &Provided,
        path: &[Step],
        base: &Path,
    ) -> Result<Arc<dyn CacheProvider>, Fault> {
        match self.0.get(&provided.backend) {
            Some(build) => build(&provided.settings, path, base),
            None => Err(Fault::without_value(path.to_vec(), None, "there is no such backend")),
        }
    }
}

/// What to do about an unknown backend: it may be one of ours that is not compiled in.
fn absent<'a>(name: &str, names: impl Iterator<Item = &'a str> + Clone) -> String {
    match name {
        "memory" | "redis" | "memcached" => not_compiled(name),
        _ => format!("there is no such backend; {}", unknown(name, names)),
    }
}

fn with(path: &[Step], name: &str) -> Vec<Step> {
    path.iter().cloned().chain([Step::from(name)]).collect()
}

/// A failed ping as a fault of the field that it is about, if it names one. The file need not have that field: a password may be
/// missing. `path` is the provider's.
pub(super) fn blamed(said: &str, tree: &Node, path: &[Step]) -> Option<Fault> {
    let settings = tree.at(path)?;
    let fault = blame(said, settings, path);
    let (field, rest) = said.split_once(" = ")?;
    if fault.path.len() > path.len() {
        // The value as the provider shows it, masked. Our message then contains the provider's, so that printing an error with its
        // causes does not say the same twice.
        let value = rest.strip_suffix(&fault.fix).and_then(|rest| rest.strip_suffix(": "));
        return Some(Fault { value: value.map(str::to_owned).or(fault.value), ..fault });
    }
    let (value, fix) = rest.split_once(": ")?;
    let is_name = !field.is_empty() && field.chars().all(|c| c.is_ascii_lowercase() || c == '_');
    is_name.then(|| Fault {
        path: with(path, field),
        // A field that the file lacks may be part of the address.
        place: Some(whereabouts(settings).clone()),
        value: Some(value.to_owned()),
        fix: fix.to_owned(),
    })
}

/// The line with a provider's address. Only the line: the address may hold a password.
pub(super) fn whereabouts(settings: &Node) -> &Place {
    let said = ["url", "servers"].iter().find_map(|field| settings.at(&at![*field]));
    &said.unwrap_or(settings).place
}

/// Finds the field that a backend's error is about: such errors begin with `field = value: `.
fn blame(message: &str, settings: &Node, path: &[Step]) -> Fault {
    let whole = || Fault::without_value(path.to_vec(), Some(settings.place.clone()), message);
    let Some((field, rest)) = message.split_once(" = ") else { return whole() };
    // `Memory::entries`
    let field = field.rsplit("::").next().unwrap_or(field);
    let Some(table) = settings.table() else { return whole() };
    let first = field.split('.').next().unwrap_or_default();
    // An error about one item names it in the singular: `server` for `servers`, or for the only server, in `url`.
    let plural = || table.get(&format!("{first}s"));
    let alone = || table.get("url").filter(|_| first == "server");
    let Some(found) = table.get(first).or_else(plural).or_else(alone) else { return whole() };
    let mut steps = with(&[], &found.name);
    steps.extend(field.split('.').skip(1).map(Step::from));
    let node = settings.at(&steps).unwrap_or(&found.node);
    // The value itself may contain a `: `.
    let known = match &node.what {
        What::Text(text) if !text.value.is_empty() => rest.find(&text.value).map(|at| at + text.value.len()),
        _ => None,
    };
    let end = known.filter(|end| rest[*end..].starts_with(": ")).or_else(|| rest.find(": "));
    let Some(end) = end else { return whole() };
    // Show the reference, not what it resolves to: that may be a secret in the wrong place, a key instead of its file's path.
    let value = match &node.what {
        _ if node.refers() => node.shown(),
        // The same of what looks like one. A provider masks what it knows to be one, and shows the rest.
        What::Text(text) if !may_show(&text.value) && !rest[..end].contains(HIDDEN) => HIDDEN.to_owned(),
        _ => rest[..end].to_owned(),
    };
    let path = path.iter().cloned().chain(steps).collect();
    // The place that the value comes from: a variable, perhaps, and not the field's line in the file.
    Fault { path, place: Some(node.place.clone()), value: Some(value), fix: rest[end + 2..].to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_backend_that_is_not_compiled_in_is_told_from_one_that_does_not_exist() {
        let names = ["memory"].into_iter();
        assert_eq!(
            absent("redis", names.clone()),
            "not compiled in; add the feature `redis` of traced-cache"
        );
        assert_eq!(absent("dynamo", names), "there is no such backend; use `memory`");
    }
}
