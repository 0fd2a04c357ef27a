//! Reloads a file that has changed. Running caches take over what they can, and keep what memory holds.

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    sync::Arc,
};

use cache_core::{Backplane, CacheProvider, Error, ErrorKind, Result};
use serde::Serialize;

use super::{
    Caches,
    backend::Provided,
    fault::Fault,
    load::{Lacks, Loaded},
    model::Keyring,
    node::{Node, Path, What, at},
    resolve::{Known, LevelPlan, Plan},
    running::Running,
    setup::{Source, answers},
};

/// What a reload has changed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Reloaded {
    /// What has been applied, by field, with the values before and after. Secrets are not shown.
    pub applied: Vec<String>,
    /// Changed fields that running caches cannot take over: they go on with the old values until a restart.
    pub after_restart: Vec<String>,
}

/// What a reload will do, once all of it has been found possible.
#[derive(Default)]
struct Steps {
    report: Reloaded,
    /// Changed providers that levels move to.
    moves: BTreeMap<String, Arc<dyn CacheProvider>>,
    /// Changed providers that cannot be replaced, and stay as they are.
    stay: Vec<String>,
    backplanes: BTreeMap<String, Arc<dyn Backplane>>,
    policies: Vec<(Arc<Running>, Plan)>,
}

impl Caches {
    /// Reads the file again. Running caches take over changed policies and changed settings of providers (addresses, credentials,
    /// timeouts), and keep what memory holds; [`TracedCache::move_level`](crate::TracedCache::move_level) says what happens where
    /// a provider is another store now. All other changes need a restart, and are reported. Caches that have not been asked for
    /// yet are built as the file says now.
    ///
    /// A provider that has changed must answer before caches move to it, and so must one that has become `required`. If the future
    /// is dropped, either nothing or everything has changed.
    ///
    /// # Errors
    /// As [`CachesBuilder::from_file`](super::CachesBuilder::from_file), also for a cache that does not go with a provider which
    /// needs a restart to change; [`ErrorKind::Level`](crate::ErrorKind::Level) for a provider that does not answer;
    /// [`ErrorKind::Closed`](crate::ErrorKind::Closed). On any error nothing has changed.
    pub async fn reload(&self) -> Result<Reloaded> {
        let inner = &self.0;
        let _one = inner.reloading.lock().await;
        if inner.is_closed() {
            return Err(Error::new(
                ErrorKind::Closed,
                format!("{}: its caches have been closed", inner.file),
            ));
        }
        let path = inner.path.as_ref().ok_or_else(|| {
            Error::config("file", &inner.file, "it was no file that the caches were made of; make them anew")
        })?;
        let source = Source::open(path)?;
        let (mut new, _) = inner.setup.read(&source, Lacks::Refused)?;
        let old = inner.loaded.load_full();
        let mut steps = Steps::default();
        steps.providers(&old, &mut new);
        for (name, provider) in &steps.moves {
            answers(&source.file, &new, name, &**provider, "it has changed, and").await?;
        }
        for (name, provider) in &new.providers {
            let required = |of: &Loaded| of.resolved.providers.get(name).is_some_and(|it| it.common.required);
            if required(&new) && !required(&old) && !steps.moves.contains_key(name) {
                answers(&source.file, &new, name, &**provider, "it is required and").await?;
            }
        }
        // No await from here on, so that a dropped future has changed nothing or everything.
        let _changing = inner.change();
        steps.gone(&old, &mut new, &inner.built());
        steps.later(&new, &inner.built()).map_err(|fault| fault.into_error(&source.file))?;
        for (name, running) in inner.built().iter() {
            steps.cache(&source.file, name, running, &new)?;
        }
        steps.apply(&inner.built())?;
        inner.loaded.store(Arc::new(new));
        let mut report = steps.report;
        for lines in [&mut report.applied, &mut report.after_restart] {
            lines.sort();
            lines.dedup();
        }
        Ok(report)
    }
}

impl Loaded {
    /// The backplane at this provider; made if there is none yet.
    fn backplane(&mut self, name: &str, provider: &Arc<dyn CacheProvider>) -> Option<Arc<dyn Backplane>> {
        if let Some(backplane) = self.backplanes.get(name) {
            return Some(Arc::clone(backplane));
        }
        let backplane = provider.backplane()?;
        self.backplanes.insert(name.to_owned(), Arc::clone(&backplane));
        Some(backplane)
    }
}

impl Steps {
    /// Sorts providers into those that levels move to and those that stay, because nothing has changed or it cannot be applied.
    fn providers(&mut self, old: &Loaded, new: &mut Loaded) {
        for (name, before) in &old.resolved.providers {
            let (Some(running), Some(next)) = (old.providers.get(name), new.providers.get(name).cloned())
            else {
                continue;
            };
            let Some(after) = new.resolved.providers.get(name) else { continue };
            let same_kind = before.backend == after.backend;
            let fields = match same_kind {
                true => differing(&before.settings, &after.settings),
                false => vec!["backend".to_owned()],
            };
            let is_remote = running.in_process().is_none() && next.in_process().is_none();
            let moves = same_kind && is_remote && running.capabilities() == next.capabilities();
            let into = if moves { &mut self.report.applied } else { &mut self.report.after_restart };
            into.extend(fields.iter().map(|field| format!("{}.{field}", Path(&at!["providers", name]))));
            // A running cache may have its backplane here even if the file gives it none any more. That one moves with its
            // level.
            let carries = new.backplanes.contains_key(name) || old.backplanes.contains_key(name);
            if moves && !fields.is_empty() {
                if let Some(backplane) = carries.then(|| new.backplane(name, &next)).flatten() {
                    self.backplanes.insert(name.clone(), backplane);
                }
                self.moves.insert(name.clone(), next);
                continue;
            }
            if !fields.is_empty() {
                self.stay.push(format!("`{name}`"));
            }
            new.providers.insert(name.clone(), Arc::clone(running));
            // Fields that every provider has (`required`) are taken over all the same.
            let kept = Provided { common: after.common.clone(), ..before.clone() };
            new.resolved.providers.insert(name.clone(), kept);
            new.backplanes.remove(name);
            if carries {
                let kept = old.backplanes.get(name).cloned().or_else(|| running.backplane());
                new.backplanes.extend(kept.map(|backplane| (name.clone(), backplane)));
            }
        }
    }

    /// Keeps providers that are gone from the file while caches run on them, so that `close` ends them, and so that a file which
    /// has them again is compared with what runs.
    fn gone(&mut self, old: &Loaded, new: &mut Loaded, built: &HashMap<String, Arc<Running>>) {
        for running in built.values() {
            let Some(plan) = running.plan() else { continue };
            for name in plan.levels.iter().map(|level| &level.provider).chain(&plan.backplane) {
                let (false, Some(provider), Some(provided)) = (
                    new.providers.contains_key(name),
                    old.providers.get(name),
                    old.resolved.providers.get(name),
                ) else {
                    continue;
                };
                new.providers.insert(name.clone(), Arc::clone(provider));
                new.resolved.providers.insert(name.clone(), provided.clone());
                let backplane = old.backplanes.get(name).cloned();
                new.backplanes.extend(backplane.map(|backplane| (name.clone(), backplane)));
                let path = at!["providers", name];
                self.report.after_restart.push(format!("{} is gone from the file", Path(&path)));
            }
        }
    }

    /// Checks caches that nobody has asked for yet: they will be built as the file says now, but on providers that may have stayed
    /// as they were.
    fn later(&self, new: &Loaded, built: &HashMap<String, Arc<Running>>) -> Result<(), Fault> {
        if self.stay.is_empty() {
            return Ok(());
        }
        for (name, plan) in new.resolved.caches.iter().filter(|(name, _)| !built.contains_key(*name)) {
            new.parts(&[]).check(name, plan).map_err(|mut fault| {
                let stay = self.stay.join(", ");
                fault.fix.push_str(&format!(
                    "; before a restart, what has changed of provider {stay} does not count"
                ));
                fault
            })?;
        }
        Ok(())
    }

    /// Sorts the changes of a running cache into what it takes over and what needs a restart.
    fn cache(&mut self, file: &str, name: &str, running: &Arc<Running>, new: &Loaded) -> Result<()> {
        let Some(plan) = running.plan() else { return Ok(()) };
        let field = |field: &str| format!("{}.{field}", Path(&at!["caches", name]));
        let Some(next) = new.resolved.caches.get(name) else {
            self.report.after_restart.push(format!("{} is gone from the file", Path(&at!["caches", name])));
            return Ok(());
        };
        for (before, after) in changes(&plan.known, &next.known) {
            match before.name.starts_with("policy.") {
                true => self.report.applied.push(format!(
                    "{}: {} is {} now",
                    field(&before.name),
                    before.value,
                    after.value
                )),
                false => self.report.after_restart.push(field(&before.name)),
            }
        }
        if plan.levels.len() != next.levels.len() {
            self.report.after_restart.push(field("levels"));
        }
        for (at, (before, after)) in plan.levels.iter().zip(&next.levels).enumerate() {
            let field = |name: &str| field(&format!("levels[{at}].{name}"));
            if before.provider != after.provider {
                self.report.after_restart.push(field("provider"));
            }
            let changed = changes(&before.known, &after.known);
            self.report.after_restart.extend(changed.map(|(before, _)| field(&before.name)));
            if let Some(ring) = changed_keyring(before, after, &running.keyrings, &new.resolved.keyrings) {
                self.report.after_restart.push(Path(&at!["keyrings", ring, "keys"]).to_string());
            }
        }
        if plan.policy != next.policy {
            // Checked against the running levels, which may differ from those of the file.
            running.controls.check_policy(&next.policy).map_err(|error| {
                let fix = format!("its levels cannot change before a restart, and {error}");
                Fault::without_value(at!["caches", name, "policy"], None, fix).into_error(file)
            })?;
            self.policies.push((Arc::clone(running), next.clone()));
        }
        Ok(())
    }

    fn apply(&self, built: &HashMap<String, Arc<Running>>) -> Result<()> {
        for (running, next) in &self.policies {
            running.controls.set_policy(next.policy)?;
            if let Some(mut plan) = running.plan() {
                plan.policy = next.policy;
                let of_policy = |known: &&Known| known.name.starts_with("policy.");
                plan.known.retain(|known| !of_policy(&known));
                plan.known.splice(0..0, next.known.iter().filter(of_policy).cloned());
            }
        }
        for running in built.values() {
            let Some(plan) = running.plan() else { continue };
            for (at, level) in plan.levels.iter().enumerate() {
                if let Some(provider) = self.moves.get(&level.provider) {
                    running.controls.move_level(at, Arc::clone(provider))?;
                }
            }
            if let Some(backplane) = plan.backplane.as_ref().and_then(|name| self.backplanes.get(name)) {
                running.controls.move_backplane(Arc::clone(backplane))?;
            }
        }
        Ok(())
    }
}

/// Settings whose values differ.
fn changes<'a>(before: &'a [Known], after: &'a [Known]) -> impl Iterator<Item = (&'a Known, &'a Known)> {
    before.iter().filter_map(|before| {
        let after = after.iter().find(|after| after.name == before.name)?;
        (after.value != before.value).then_some((before, after))
    })
}

/// Names of fields that have been changed, removed or added.
fn differing(before: &Node, after: &Node) -> Vec<String> {
    let (Some(before), Some(after)) = (before.table(), after.table()) else { return Vec::new() };
    let gone = before.0.iter().filter(|field| after.get(&field.name).is_none());
    let other = after
        .0
        .iter()
        .filter(|field| before.get(&field.name).is_none_or(|old| !same(&old.node, &field.node)));
    gone.chain(other).map(|field| field.name.clone()).collect()
}

/// Whether two values are equal, wherever they come from.
fn same(a: &Node, b: &Node) -> bool {
    match (&a.what, &b.what) {
        (What::Null, What::Null) => true,
        (What::Bool(a), What::Bool(b)) => a == b,
        (What::Int(a), What::Int(b)) => a == b,
        (What::Float(a), What::Float(b)) => a == b,
        (What::Text(a), What::Text(b)) => a.value == b.value,
        (What::List(a), What::List(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(a, b)),
        (What::Table(a), What::Table(b)) => {
            a.0.len() == b.0.len()
                && a.0
                    .iter()
                    .all(|field| b.get(&field.name).is_some_and(|other| same(&field.node, &other.node)))
        }
        _ => false,
    }
}

/// The keyring of a level, if its keys differ.
fn changed_keyring<'a>(
    before: &'a LevelPlan,
    after: &LevelPlan,
    running: &BTreeMap<String, Keyring>,
    new: &BTreeMap<String, Keyring>,
) -> Option<&'a String> {
    let name =
        before.encryption.value.as_ref().filter(|name| after.encryption.value.as_ref() == Some(name))?;
    let keys = |of: &BTreeMap<String, Keyring>| -> Option<Vec<(u32, String)>> {
        Some(of.get(name)?.keys.iter().map(|key| (key.id, key.secret.0.clone())).collect())
    };
    (keys(running) != keys(new)).then_some(name)
}

impl fmt::Display for Reloaded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (word, lines) in [("changed", &self.applied), ("after a restart", &self.after_restart)] {
            for line in lines {
                writeln!(f, "{word}: {line}")?;
            }
        }
        Ok(())
    }
}
