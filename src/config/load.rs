//! From a file's text to checked providers and plans.

use std::path::Path;

use super::{
    backend::Backends,
    build::{Backplanes, Parts, Providers, encryption},
    environment::{Environment, References},
    fault::Fault,
    mistakes::{self, Mistake},
    node::{Node, Place, Step, What, at},
    parse::Format,
    resolve::Resolved,
};

/// A file and what was made of it.
pub(crate) struct Loaded {
    pub(crate) tree: Node,
    pub(crate) resolved: Resolved,
    pub(crate) providers: Providers,
    pub(crate) backplanes: Backplanes,
}

/// What to do about variables and files that this machine lacks.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lacks {
    /// The first that is missing is an error.
    Refused,
    /// Each is noted, and the rest is read as if the field that needs it were absent.
    Noted,
}

impl Loaded {
    pub(crate) fn read(
        backends: &Backends,
        environment: &Environment,
        (format, text, base): (Format, &str, &Path),
        lacks: Lacks,
    ) -> Result<(Self, Vec<Fault>), Vec<Fault>> {
        let tree = format.parse(text).and_then(|mut tree| environment.apply(&mut tree).map(|()| tree));
        let tree = tree.map_err(|fault| vec![fault])?;
        let read = |tree, lacks| Self::from_tree(tree, backends, environment, base, lacks);
        read(tree.clone(), lacks).map_err(|first| {
            // Report what was only noted as well: whoever mends the file wants all its mistakes, as the application would report
            // them.
            let first = match lacks {
                Lacks::Refused => first,
                Lacks::Noted => read(tree.clone(), Lacks::Refused).err().unwrap_or(first),
            };
            mistakes::all(first, tree, |tree| read(tree, Lacks::Refused).map(drop))
        })
    }

    fn from_tree(
        mut tree: Node,
        backends: &Backends,
        environment: &Environment,
        base: &Path,
        lacks: Lacks,
    ) -> Result<(Self, Vec<Fault>), Mistake> {
        let mut noted = Vec::new();
        let mut note = |fault: Fault| match lacks {
            Lacks::Refused => Err(fault),
            Lacks::Noted => {
                // The field's unresolved reference has been noted already; this fault only follows from it.
                if !noted.iter().any(|noted: &Fault| noted.path == fault.path) {
                    noted.push(fault);
                }
                Ok(())
            }
        };
        let mut unresolved = Vec::new();
        References { environment, base }
            .resolve(&mut tree, &mut |fault: Fault| {
                unresolved.push(fault.path.clone());
                note(fault)
            })
            .map_err(Mistake::Form)?;
        let resolved = resolve(&mut tree, unresolved, backends, base).map_err(Mistake::Form)?;
        let mut providers = Providers::new();
        for (name, provided) in &resolved.providers {
            match backends.build(provided, &at!["providers", name], base) {
                Ok(provider) => drop(providers.insert(name.clone(), provider)),
                Err(fault) => note(fault).map_err(Mistake::Sense)?,
            }
        }
        for (name, keyring) in &resolved.keyrings {
            if let Err(fault) = encryption(&tree, name, keyring) {
                note(fault).map_err(Mistake::Sense)?;
            }
        }
        let backplanes = backplanes(&resolved, &providers);
        let loaded = Self { tree, resolved, providers, backplanes };
        for (name, plan) in &loaded.resolved.caches {
            let mut named = plan.levels.iter().map(|level| &level.provider).chain(&plan.backplane);
            let whole = named.all(|name| loaded.providers.contains_key(name));
            let checked = if whole { loaded.parts(&[]).check(name, plan) } else { Ok(()) };
            match (checked, lacks) {
                (Err(fault), Lacks::Noted) if noted.iter().any(|noted| noted.path == fault.path) => {}
                (Err(fault), Lacks::Noted) if !noted.is_empty() => noted.push(fault),
                (checked, _) => checked.map_err(Mistake::Sense)?,
            }
        }
        noted.sort_by_key(|fault| fault.place.as_ref().map_or(0, Place::line));
        Ok((loaded, noted))
    }

    pub(crate) fn parts<'a>(
        &'a self,
        observers: &'a [std::sync::Arc<dyn cache_core::Observer>],
    ) -> Parts<'a> {
        Parts {
            tree: &self.tree,
            resolved: &self.resolved,
            providers: &self.providers,
            backplanes: &self.backplanes,
            observers,
        }
    }
}

/// Reads the tree. An unresolved text stays as it was written where any text will do; elsewhere its field counts as absent.
fn resolve(
    tree: &mut Node,
    mut unresolved: Vec<Vec<Step>>,
    backends: &Backends,
    base: &Path,
) -> Result<Resolved, Fault> {
    loop {
        let fault = match Resolved::read(tree, backends, base) {
            Ok(resolved) => return Ok(resolved),
            Err(fault) => fault,
        };
        let Some(nth) = unresolved.iter().position(|path| *path == fault.path) else { return Err(fault) };
        if let Some(node) = tree.at_mut(&unresolved.swap_remove(nth)) {
            node.what = What::Null;
        }
    }
}

/// A backplane for each provider that a cache names as its backplane.
fn backplanes(resolved: &Resolved, providers: &Providers) -> Backplanes {
    let named = resolved.caches.values().filter_map(|plan| plan.backplane.as_ref());
    named.filter_map(|name| Some((name.clone(), providers.get(name)?.backplane()?))).collect()
}
