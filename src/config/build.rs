//! From a plan to a builder: the one place where what a file says becomes calls.

use std::{collections::BTreeMap, sync::Arc};

use base64::{Engine, engine::general_purpose::STANDARD};
use cache_core::{
    Backplane, Builder, CacheProvider, Codec, Compression, Encryption, Level, Observer, TracedCache, Value,
};

use super::{
    fault::{self, Fault},
    model::Keyring,
    node::{self, HIDDEN, Node, Place, Step, at},
    resolve::{Known, LevelPlan, Origin, Plan, Resolved},
    units::{Secret, Size},
};

/// Built providers, by name.
pub(crate) type Providers = BTreeMap<String, Arc<dyn CacheProvider>>;
/// Backplanes, by the name of their provider: all caches on a provider share one.
pub(crate) type Backplanes = BTreeMap<String, Arc<dyn Backplane>>;

/// What builders need beside a plan.
pub(crate) struct Parts<'a> {
    pub(crate) tree: &'a Node,
    pub(crate) resolved: &'a Resolved,
    pub(crate) providers: &'a Providers,
    pub(crate) backplanes: &'a Backplanes,
    pub(crate) observers: &'a [Arc<dyn Observer>],
}

impl Parts<'_> {
    /// A builder of that name with everything that the plan says.
    pub(crate) fn complete<T: Value>(
        &self,
        begun: Builder<T>,
        name: &str,
        plan: &Plan,
    ) -> Result<Builder<T>, Fault> {
        let mut builder = begun.policy(plan.policy);
        for (at, level) in plan.levels.iter().enumerate() {
            builder = builder.level(self.level(name, at, level)?);
        }
        if let Some(backplane) = plan.backplane.as_ref() {
            let Some(backplane) = self.backplanes.get(backplane) else {
                let fix = "this backend carries no messages between nodes; name another provider, or \"off\"";
                return Err(said(&plan.known, "backplane", fix).unwrap_or_else(|| of_cache(name, fix)));
            };
            builder = builder.backplane_shared(Arc::clone(backplane));
        }
        if let Some(tags) = plan.tags {
            builder = builder.tags(tags);
        }
        if let Some(schema) = plan.schema {
            builder = builder.schema(schema);
        }
        Ok(self
            .observers
            .iter()
            .fold(builder, |builder, observer| builder.observer_shared(Arc::clone(observer))))
    }

    /// Finds the mistakes that `build` would find, without knowing the value's type, and says where they are in the file.
    pub(crate) fn check(&self, name: &str, plan: &Plan) -> Result<(), Fault> {
        let Err(error) = self.complete(TracedCache::<()>::builder(name), name, plan)?.check() else {
            return Ok(());
        };
        let place = |path: &[Step]| self.tree.at(path).map(|node| node.place.clone());
        let here = at!["caches", name];
        let Some([field, value, fix]) = error.setting() else {
            return Err(Fault { place: place(&here), path: here, value: None, fix: error.to_string() });
        };
        if field == "name" {
            return Err(Fault {
                place: place(&here),
                path: here,
                value: None,
                fix: format!("{value}: {fix}"),
            });
        }
        // Files have another name for it.
        let field = if field == "policy.early.beta" { "policy.early.xfetch" } else { field };
        // `level 2 (redis) ttl_cap`
        let level = field.strip_prefix("level ").and_then(|rest| {
            let (number, rest) = rest.split_once(' ')?;
            let (_, field) = rest.split_once(") ")?;
            Some((number.parse::<usize>().ok()?.checked_sub(1)?, field))
        });
        let known = match level {
            Some((at, field)) => plan.levels.get(at).and_then(|level| find(&level.known, field)),
            None => find(&plan.known, field),
        };
        let (path, place) = match (known, level) {
            (Some((Known { from: Origin::Set { path, place: whole }, .. }, rest)), _) => {
                let path: Vec<_> = path.iter().cloned().chain(rest).collect();
                let place = place(&path).unwrap_or_else(|| whole.clone());
                (path, Some(place))
            }
            (_, Some((at, field))) => {
                let path = at!["caches", name, "levels", at, field];
                (path, place(&here))
            }
            _ => (here.iter().cloned().chain(field.split('.').map(Step::from)).collect(), place(&here)),
        };
        // The mistake is in what is inherited: say which cache it does not suit.
        let fix = match path.starts_with(&here) {
            true => fix.to_owned(),
            false => format!("{fix} (inherited by {})", node::Path(&here)),
        };
        Err(Fault { path, place, value: Some(value.to_owned()), fix })
    }

    fn level(&self, cache: &str, at: usize, plan: &LevelPlan) -> Result<Level, Fault> {
        let missing = |fix: &str| Fault::without_value(at!["caches", cache, "levels", at], None, fix);
        let provider =
            self.providers.get(&plan.provider).ok_or_else(|| missing("its provider could not be built"))?;
        let in_process = provider.in_process().is_some();
        let mut level = Level::shared(Arc::clone(provider));
        if let Some(cap) = plan.ttl_cap {
            level = level.ttl_cap(cap);
        }
        if let Some(budget) = plan.budget {
            level = level.budget(budget);
        }
        if let Some(breaker) = plan.breaker {
            level = level.breaker(breaker);
        }
        if let Some(stance) = plan.stance {
            level = level.stance(stance);
        }
        if let Some(failover) = plan.on_failover {
            level = level.on_failover(failover);
        }
        if plan.background {
            level = level.background(true);
        }
        if plan.plain {
            level = level.plain();
        }
        if let Some(codec) = plan.codec.value {
            let name = codec.as_str();
            let codec = Codec::named(name).ok_or_else(|| not_compiled(&plan.known, "codec", name))?;
            level = level.codec(codec);
        }
        if let Some(table) = plan.compression.value.filter(|_| plan.compression.here || !in_process) {
            let name = table.algorithm.as_str();
            let compression =
                Compression::named(name).ok_or_else(|| not_compiled(&plan.known, "compression", name))?;
            let above = table.above.map(|Size(bytes)| usize::try_from(bytes).unwrap_or(usize::MAX));
            level = level.compression(compression.tuned(above, table.level));
        }
        if let Some(name) = plan.encryption.value.as_ref().filter(|_| plan.encryption.here || !in_process) {
            let keyring =
                self.resolved.keyrings.get(name).ok_or_else(|| missing("its keyring is not there"))?;
            let encryption = encryption(self.tree, name, keyring)?;
            level = level
                .encryption(encryption.ok_or_else(|| not_compiled(&plan.known, "encryption", "encryption"))?);
        }
        Ok(level)
    }
}

/// `Ok(None)`: not compiled in.
pub(crate) fn encryption(tree: &Node, name: &str, keyring: &Keyring) -> Result<Option<Encryption>, Fault> {
    let fault = |steps: &[Step], value: Option<String>, fix: &str| {
        let path: Vec<_> = at!["keyrings", name, "keys"].into_iter().chain(steps.iter().cloned()).collect();
        let place = tree.at(&path).map(|node| node.place.clone());
        Fault { path, place, value, fix: fix.to_owned() }
    };
    if keyring.keys.is_empty() {
        return Err(fault(&[], None, "there is no key; add one"));
    }
    let mut keys: Vec<(u32, [u8; 32])> = Vec::new();
    for (at, key) in keyring.keys.iter().enumerate() {
        if keys.iter().any(|(id, _)| *id == key.id) {
            let fix = "two keys have this id; give each its own";
            return Err(fault(&[Step::Item(at), Step::from("id")], Some(key.id.to_string()), fix));
        }
        match bytes(&key.secret) {
            Some(bytes) => keys.push((key.id, bytes)),
            None => {
                let fix =
                    "a key is 32 bytes, as 64 hexadecimal digits or in base64 (`openssl rand -base64 32`)";
                return Err(fault(&[Step::Item(at), Step::from("secret")], Some(HIDDEN.to_owned()), fix));
            }
        }
    }
    Ok(Encryption::with_keys(keys.iter().map(|(id, key)| (*id, key))))
}

/// The 32 bytes of a key's text.
fn bytes(Secret(text): &Secret) -> Option<[u8; 32]> {
    let text = text.trim();
    if text.len() == 64 && text.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        let mut key = [0; 32];
        for (byte, at) in key.iter_mut().zip((0..64).step_by(2)) {
            *byte = u8::from_str_radix(text.get(at..at + 2)?, 16).ok()?;
        }
        return Some(key);
    }
    STANDARD.decode(text).ok()?.try_into().ok()
}

/// The setting of this name, or the one whose table has a field of it, and the steps to that field.
fn find<'a>(known: &'a [Known], name: &str) -> Option<(&'a Known, Vec<Step>)> {
    let within = known.iter().filter_map(|known| {
        let rest = name.strip_prefix(&known.name)?;
        (rest.is_empty() || rest.starts_with('.')).then_some((known, rest))
    });
    let (known, rest) = within.min_by_key(|(_, rest)| rest.len())?;
    Some((known, rest.split('.').skip(1).map(Step::from).collect()))
}

/// At the place that says it.
fn said(known: &[Known], name: &str, fix: &str) -> Option<Fault> {
    let (Known { value, from, .. }, _) = find(known, name)?;
    let Origin::Set { path, place } = from else { return None };
    Some(Fault {
        path: path.clone(),
        place: Some(place.clone()),
        value: Some(node::shown(value)),
        fix: fix.to_owned(),
    })
}

fn not_compiled(known: &[Known], field: &str, feature: &str) -> Fault {
    let fix = fault::not_compiled(feature);
    said(known, field, &fix).unwrap_or_else(|| Fault::without_value(at![field], None::<Place>, fix))
}

fn of_cache(name: &str, fix: &str) -> Fault {
    Fault::without_value(at!["caches", name], None, fix)
}
