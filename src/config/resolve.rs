//! Inheritance: what a cache gets from the several places of a file, and where each setting came from.

use std::{collections::BTreeMap, fmt, path::Path, time::Duration};

use cache_core::{Breaker, Early, Failover, Policy, Stance};

use super::{
    backend::{Backends, Provided},
    de,
    fault::{Fault, no_such, unknown},
    model::{self, Cache, Codec, Compression, Defaults, File, Keyring, LevelSettings},
    node::{self, Node, Place, Step, Table, What, at},
    units::{Count, Limit, Period, Timespan, spell},
};

/// The top-level sections of a file.
pub(crate) const SECTIONS: [&str; 4] = ["defaults", "providers", "keyrings", "caches"];

/// A file that has been read and whose names have been checked. Nothing is built yet.
#[derive(Clone)]
pub(crate) struct Resolved {
    pub(crate) providers: BTreeMap<String, Provided>,
    pub(crate) keyrings: BTreeMap<String, Keyring>,
    pub(crate) caches: BTreeMap<String, Plan>,
}

/// What one cache gets.
#[derive(Clone)]
pub(crate) struct Plan {
    pub(crate) policy: Policy,
    pub(crate) levels: Vec<LevelPlan>,
    /// The name of a provider.
    pub(crate) backplane: Option<String>,
    pub(crate) tags: Option<bool>,
    pub(crate) schema: Option<u32>,
    /// Its own settings, as they can be shown.
    pub(crate) known: Vec<Known>,
}

/// What one level gets.
#[derive(Clone)]
pub(crate) struct LevelPlan {
    pub(crate) provider: String,
    pub(crate) ttl_cap: Option<Duration>,
    pub(crate) budget: Option<Duration>,
    /// `None`: not set, so the default; `Some(None)`: no breaker.
    pub(crate) breaker: Option<Option<Breaker>>,
    pub(crate) stance: Option<Stance>,
    pub(crate) on_failover: Option<Failover>,
    pub(crate) background: bool,
    pub(crate) plain: bool,
    pub(crate) codec: Said<Codec>,
    pub(crate) compression: Said<model::CompressionTable>,
    /// The name of a keyring.
    pub(crate) encryption: Said<String>,
    pub(crate) known: Vec<Known>,
}

/// A setting that only remote levels have, and whether the level itself says it: if it is merely inherited, a level in this
/// process ignores it.
#[derive(Clone)]
pub(crate) struct Said<T> {
    pub(crate) value: Option<T>,
    pub(crate) here: bool,
}

/// A setting: its name, its value, and where that came from.
#[derive(Clone, Debug)]
pub(crate) struct Known {
    /// The name that the core's errors use: `policy.ttl`, `ttl_cap`.
    pub(crate) name: String,
    pub(crate) value: String,
    pub(crate) from: Origin,
}

impl Known {
    /// Whether a level of the cache's list sets it.
    pub(crate) fn is_of_a_level(&self) -> bool {
        let Origin::Set { path, .. } = &self.from else { return false };
        path.iter().any(|step| matches!(step, Step::Item(_)))
    }
}

/// Where a setting came from.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Origin {
    Default,
    Set { path: Vec<Step>, place: Place },
}

impl Resolved {
    /// Reads a tree.
    pub(crate) fn read(tree: &Node, backends: &Backends, base: &Path) -> Result<Self, Fault> {
        let empty = Table::default();
        let table = tree.table().unwrap_or(&empty);
        for field in &table.0 {
            let name = field.name.as_str();
            // `$schema` is for editors.
            if name != "$schema" && !SECTIONS.contains(&name) {
                let fix = format!("there is no such section; {}", unknown(name, SECTIONS));
                return Err(Fault::without_value(at![name], Some(field.place.clone()), fix));
            }
        }
        let section = |name: &str| {
            table.get(name).map(|field| &field.node).filter(|node| !matches!(node.what, What::Null))
        };
        let file = File {
            defaults: match section("defaults") {
                Some(node) => de::read(node, &at!["defaults"], base)?,
                None => Defaults::default(),
            },
            keyrings: read_each(section("keyrings"), "keyrings", base)?,
            caches: read_each(section("caches"), "caches", base)?,
        };
        let mut providers = BTreeMap::new();
        for field in fields(section("providers"), "providers")? {
            let path = at!["providers", &field.name];
            named_off(&field.name, &path, &field.place)?;
            providers.insert(field.name.clone(), backends.take(&field.node, &path, base)?);
        }
        let mut caches = BTreeMap::new();
        check_defaults(tree, &file.defaults, &providers)?;
        for (name, cache) in &file.caches {
            let resolver = Resolver { tree, name, cache, defaults: &file.defaults, providers: &providers };
            caches.insert(name.clone(), resolver.plan(&file.keyrings)?);
        }
        Ok(Self { providers, keyrings: file.keyrings, caches })
    }
}

/// Refuses `off` as a name: it means that there is none.
fn named_off(name: &str, path: &[Step], place: &Place) -> Result<(), Fault> {
    match name {
        "off" => {
            let fix = "`off` stands for none; give it another name";
            Err(Fault::without_value(path.to_vec(), Some(place.clone()), fix))
        }
        _ => Ok(()),
    }
}

fn fields<'a>(section: Option<&'a Node>, name: &str) -> Result<&'a [super::node::Field], Fault> {
    match section {
        None => Ok(&[]),
        Some(node) => match node.table() {
            Some(table) => Ok(&table.0),
            // No value: it may be a secret.
            None => Err(Fault::without_value(at![name], Some(node.place.clone()), "write a table of names")),
        },
    }
}

fn read_each<T: serde::de::DeserializeOwned>(
    section: Option<&Node>,
    name: &str,
    base: &Path,
) -> Result<BTreeMap<String, T>, Fault> {
    let mut all = BTreeMap::new();
    for field in fields(section, name)? {
        let path = at![name, &field.name];
        named_off(&field.name, &path, &field.place)?;
        all.insert(field.name.clone(), de::read(&field.node, &path, base)?);
    }
    Ok(all)
}

/// Checks the providers that `defaults` names, even if no cache inherits them.
fn check_defaults(
    tree: &Node,
    defaults: &Defaults,
    providers: &BTreeMap<String, Provided>,
) -> Result<(), Fault> {
    for (nth, level) in defaults.levels.iter().flatten().enumerate() {
        is_provider(tree, providers, &level.provider, &at!["defaults", "levels", nth])?;
    }
    match defaults.backplane.as_deref() {
        None | Some("off") => Ok(()),
        Some(name) => is_provider(tree, providers, name, &at!["defaults", "backplane"]),
    }
}

fn is_provider(
    tree: &Node,
    providers: &BTreeMap<String, Provided>,
    name: &str,
    path: &[Step],
) -> Result<(), Fault> {
    if providers.contains_key(name) {
        return Ok(());
    }
    let fix = no_such("provider", name, providers.keys().map(String::as_str));
    Err(fault_of(tree, path, name, fix))
}

/// A fault of a name that is written at this path, or in a table there.
fn fault_of(tree: &Node, path: &[Step], name: &str, fix: impl fmt::Display) -> Fault {
    let value = match tree.at(path) {
        // Shows a reference as it was written.
        Some(node @ Node { what: What::Text(_), .. }) => node.shown(),
        _ => node::shown(name),
    };
    Fault { path: path.to_vec(), place: tree.place_of(path), value: Some(value), fix: fix.to_string() }
}

struct Resolver<'a> {
    tree: &'a Node,
    name: &'a str,
    cache: &'a Cache,
    defaults: &'a Defaults,
    providers: &'a BTreeMap<String, Provided>,
}

/// A place that may set a value, and the value if it does.
type Layer<T> = (Vec<Step>, Option<T>);

impl Resolver<'_> {
    /// Takes the value of the first layer that has one, and notes it in `known`.
    fn pick<T>(
        &self,
        known: &mut Vec<Known>,
        name: &str,
        layers: impl IntoIterator<Item = Layer<T>>,
        default: impl fmt::Display,
        shown: impl Fn(&T) -> String,
    ) -> Option<T> {
        let said = layers.into_iter().find_map(|(path, value)| Some((path, value?)));
        let (value, from, picked) = match said {
            Some((path, value)) => {
                let place = self.tree.place_of(&path).unwrap_or(Place::Line(0));
                (shown(&value), Origin::Set { path, place }, Some(value))
            }
            None => (default.to_string(), Origin::Default, None),
        };
        known.push(Known { name: name.to_owned(), value, from });
        picked
    }

    fn plan(&self, keyrings: &BTreeMap<String, Keyring>) -> Result<Plan, Fault> {
        let mut known = Vec::new();
        let policy = self.policy(&mut known);
        let (levels, from) = self.levels()?;
        let levels = levels
            .iter()
            .enumerate()
            .map(|(at, level)| {
                let here: Vec<_> = from.iter().cloned().chain([Step::Item(at)]).collect();
                self.level(level, &here, keyrings)
            })
            .collect::<Result<_, _>>()?;
        let both =
            [(at!["caches", self.name], &self.cache.backplane), (at!["defaults"], &self.defaults.backplane)];
        let backplane = self.pick(
            &mut known,
            "backplane",
            both.map(|(path, value)| (under(path, "backplane"), value.clone())),
            "off",
            Clone::clone,
        );
        let backplane = backplane.filter(|name| name != "off");
        if let (Some(name), Some(Known { from: Origin::Set { path, .. }, .. })) = (&backplane, known.last()) {
            self.is_provider(name, path)?;
        }
        let both = [
            (at!["caches", self.name, "tags"], self.cache.tags),
            (at!["defaults", "tags"], self.defaults.tags),
        ];
        let tags = self.pick(&mut known, "tags", both, "true", ToString::to_string);
        let at = (at!["caches", self.name, "schema"], self.cache.schema);
        let schema = self.pick(&mut known, "schema", [at], "of the type, or 0", ToString::to_string);
        Ok(Plan { policy, levels, backplane, tags, schema, known })
    }

    fn policy(&self, known: &mut Vec<Known>) -> Policy {
        let (own, inherited) = (&self.cache.policy, &self.defaults.policy);
        macro_rules! pick {
            ($field:ident, $default:expr, $shown:expr) => {{
                let layers = [
                    (at!["caches", self.name, "policy", stringify!($field)], own.$field),
                    (at!["defaults", "policy", stringify!($field)], inherited.$field),
                ];
                self.pick(known, concat!("policy.", stringify!($field)), layers, $default, $shown)
            }};
        }
        let period = |Period(time): &Period| spell(*time);
        let time = |Timespan(time): &Timespan| spell(*time);
        let limit = |Limit(limit): &Limit| limit.map_or_else(|| "off".to_owned(), spell);
        let mut policy =
            Policy::ttl(pick!(ttl, "1m", period).map_or(Duration::from_secs(60), |Period(time)| time));
        if let Some(Period(age)) = pick!(grace, "0s", period) {
            policy = policy.grace(age);
        }
        if let Some(Timespan(window)) = pick!(revalidate, "0s", time) {
            policy = policy.revalidate(window);
        }
        if let Some(Timespan(pause)) = pick!(throttle, "1s", time) {
            policy = policy.throttle(pause);
        }
        match pick!(early, "off", early) {
            Some(model::Early::Fraction(share)) => policy = policy.early(Early::Fraction(share)),
            Some(model::Early::XFetch(model::XFetch { xfetch: beta })) => {
                policy = policy.early(Early::XFetch { beta });
            }
            Some(model::Early::Off) | None => {}
        }
        if let Some(Timespan(jitter)) = pick!(jitter, "0s", time) {
            policy = policy.jitter(jitter);
        }
        if let Some(Period(ttl)) = pick!(absent_ttl, "0s", period) {
            policy = policy.absent_ttl(ttl);
        }
        if let Some(Limit(Some(limit))) = pick!(soft_limit, "off", limit) {
            policy = policy.soft_limit(limit);
        }
        if let Some(Limit(limit)) = pick!(hard_limit, "30s", limit) {
            policy = policy.hard_limit(limit);
        }
        if let Some(complete) = pick!(complete_in_background, "true", ToString::to_string) {
            policy = policy.complete_in_background(complete);
        }
        if let Some(Limit(Some(budget))) = pick!(wait, "off", limit) {
            policy = policy.wait(budget);
        }
        let count = |Count(count): &Count| count.map_or_else(|| "off".to_owned(), |count| count.to_string());
        if let Some(Count(Some(at_once))) = pick!(loads, "off", count) {
            policy = policy.loads(at_once);
        }
        policy
    }

    /// The levels, and the path of their list.
    fn levels(&self) -> Result<(&[model::Level], Vec<Step>), Fault> {
        let own = at!["caches", self.name, "levels"];
        let (levels, at) = match (&self.cache.levels, &self.defaults.levels) {
            (Some(levels), _) => (levels, own),
            (None, Some(levels)) => (levels, at!["defaults", "levels"]),
            (None, None) => {
                let place = self.tree.at(&at!["caches", self.name]).map(|node| node.place.clone());
                let fix = "`levels` is missing, here and in `defaults`; name at least one provider: `levels = [\"...\"]`";
                return Err(Fault::without_value(at!["caches", self.name], place, fix));
            }
        };
        if levels.is_empty() {
            let place = self.tree.at(&at).map(|node| node.place.clone());
            let fix = "a cache needs at least one level; name a provider";
            return Err(Fault { path: at, place, value: Some("[]".to_owned()), fix: fix.to_owned() });
        }
        for (nth, level) in levels.iter().enumerate() {
            let path: Vec<_> = at.iter().cloned().chain([Step::Item(nth)]).collect();
            self.is_provider(&level.provider, &path)?;
            if let Some(first) = levels[..nth].iter().position(|nearer| nearer.provider == level.provider) {
                let fix = format!(
                    "levels[{first}] is on this provider already, and both would use the same keys; leave one of them out"
                );
                return Err(self.fault(&path, &level.provider, fix));
            }
        }
        Ok((levels, at))
    }

    fn is_provider(&self, name: &str, path: &[Step]) -> Result<(), Fault> {
        is_provider(self.tree, self.providers, name, path)
    }

    fn fault(&self, path: &[Step], name: &str, fix: impl fmt::Display) -> Fault {
        fault_of(self.tree, path, name, fix)
    }

    fn level(
        &self,
        level: &model::Level,
        here: &[Step],
        keyrings: &BTreeMap<String, Keyring>,
    ) -> Result<LevelPlan, Fault> {
        let mut known = Vec::new();
        let none = LevelSettings::default();
        let own = &level.settings;
        let shared = self.providers.get(&level.provider).map_or(&none, |provided| &provided.common.level);
        let provider = at!["providers", &level.provider, "level"];
        macro_rules! pick {
            ($field:ident, $default:expr, $shown:expr) => {{
                let layers = [
                    (under(here.to_vec(), stringify!($field)), own.$field.clone()),
                    (under(provider.clone(), stringify!($field)), shared.$field.clone()),
                ];
                self.pick(&mut known, stringify!($field), layers, $default, $shown)
            }};
        }
        macro_rules! pick_payload {
            ($field:ident, $default:expr, $shown:expr) => {{
                let name = stringify!($field);
                let layers = [
                    (under(here.to_vec(), name), own.$field.clone()),
                    (at!["caches", self.name, name], self.cache.$field.clone()),
                    (under(provider.clone(), name), shared.$field.clone()),
                    (at!["defaults", name], self.defaults.$field.clone()),
                ];
                let value = self.pick(&mut known, name, layers, $default, $shown);
                (value, own.$field.is_some() || (self.cache.$field.is_none() && shared.$field.is_some()))
            }};
        }
        let time = |Timespan(time): &Timespan| spell(*time);
        let limit = |Limit(limit): &Limit| limit.map_or_else(|| "off".to_owned(), spell);
        let ttl_cap = pick!(ttl_cap, "off", limit).and_then(|Limit(cap)| cap);
        let budget = pick!(budget, "250ms", time).map(|Timespan(budget)| budget);
        let breaker =
            pick!(breaker, "half of at least 5 calls within 10s; open for 1s", breaker).map(|b| match b {
                model::Breaker::Off => None,
                model::Breaker::On(table) => Some(from_table(table)),
            });
        let stance = pick!(stance, "absorb; surface where it is the only level and remote", |stance| {
            format!("{stance:?}").to_lowercase()
        });
        let on_failover = pick!(on_failover, "clear", |failover| format!("{failover:?}").to_lowercase());
        let background = pick!(background, "false", ToString::to_string);
        let plain = pick!(plain, "false", ToString::to_string);
        let (codec, codec_here) = pick_payload!(codec, "json", |codec: &Codec| codec.as_str().to_owned());
        let (compression, compression_here) = pick_payload!(compression, "off", compression);
        let (encryption, encryption_here) = pick_payload!(encryption, "off", Clone::clone);
        let encryption = encryption.filter(|name| name != "off");
        if let (Some(name), Some(Known { from: Origin::Set { path, .. }, .. })) = (&encryption, known.last())
            && !keyrings.contains_key(name)
        {
            let fix = no_such("keyring", name, keyrings.keys().map(String::as_str));
            return Err(self.fault(path, name, fix));
        }
        Ok(LevelPlan {
            provider: level.provider.clone(),
            ttl_cap,
            budget,
            breaker,
            stance: stance.map(|stance| match stance {
                model::Stance::Absorb => Stance::Absorb,
                model::Stance::Surface => Stance::Surface,
            }),
            on_failover: on_failover.map(|failover| match failover {
                model::Failover::Clear => Failover::Clear,
                model::Failover::Keep => Failover::Keep,
            }),
            background: background.unwrap_or(false),
            plain: plain.unwrap_or(false),
            codec: Said { value: codec, here: codec_here },
            compression: Said {
                value: match compression {
                    Some(Compression::On(table)) => Some(table),
                    Some(Compression::Off) | None => None,
                },
                here: compression_here,
            },
            encryption: Said { value: encryption, here: encryption_here },
            known,
        })
    }
}

fn under(mut path: Vec<Step>, name: &str) -> Vec<Step> {
    path.push(Step::from(name));
    path
}

fn early(early: &model::Early) -> String {
    match early {
        model::Early::Off => "off".to_owned(),
        model::Early::Fraction(share) => share.to_string(),
        model::Early::XFetch(model::XFetch { xfetch }) => format!("xfetch {xfetch}"),
    }
}

fn from_table(table: model::BreakerTable) -> Breaker {
    let mut breaker = Breaker::default();
    if let Some(rate) = table.failure_rate {
        breaker = breaker.failure_rate(rate);
    }
    if let Some(calls) = table.min_calls {
        breaker = breaker.min_calls(calls);
    }
    if let Some(Timespan(window)) = table.window {
        breaker = breaker.window(window);
    }
    if let Some(Timespan(pause)) = table.open_for {
        breaker = breaker.open_for(pause);
    }
    breaker
}

fn breaker(breaker: &model::Breaker) -> String {
    let model::Breaker::On(table) = breaker else { return "off".to_owned() };
    let time = |time: Option<Timespan>, default| time.map_or(default, |Timespan(time)| spell(time));
    format!(
        "{} of at least {} calls within {}; open for {}",
        table.failure_rate.unwrap_or(0.5),
        table.min_calls.unwrap_or(5),
        time(table.window, "10s".to_owned()),
        time(table.open_for, "1s".to_owned()),
    )
}

fn compression(compression: &Compression) -> String {
    match compression {
        Compression::Off => "off".to_owned(),
        Compression::On(table) => {
            let above = table.above.map_or(1024, |size| size.0);
            let level = table.level.map(|level| format!(" level {level}")).unwrap_or_default();
            format!("{}{level} above {above}B", table.algorithm.as_str())
        }
    }
}
