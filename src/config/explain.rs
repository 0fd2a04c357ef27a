//! What a file amounts to: each setting of each provider and cache with its origin, and advice.

use std::{
    collections::BTreeSet,
    fmt,
    path::Path,
    sync::{Arc, Mutex, PoisonError, Weak},
    time::Duration,
};

use cache_core::{Advised, CacheProvider, Error, Failover, with_causes};
use futures::future::join_all;
use serde::Serialize;

use super::{
    backend::blamed,
    fault::{Fault, nearest},
    load::{Lacks, Loaded},
    node::{HIDDEN, Node, Path as Steps, Place, Step, Text, What, at, may_show, references},
    probe,
    resolve::{Known, LevelPlan, Origin, Plan},
    setup::Source,
    units::spell,
};

/// What a file amounts to. `Display` prints it for people. Holds no secret.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct Explanation {
    /// The file.
    pub file: String,
    /// Providers, in order of their names.
    pub providers: Vec<ExplainedProvider>,
    /// Caches, in order of their names.
    pub caches: Vec<ExplainedCache>,
    /// Variables and files that the file names and this machine lacks, and what follows from that.
    pub problems: Vec<String>,
    /// Advice about the file as a whole.
    pub advice: Vec<String>,
}

/// A provider of the file.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct ExplainedProvider {
    /// Its name.
    pub name: String,
    /// The name of its backend.
    pub backend: String,
    /// Its server's address, if it could be built and is not in this process.
    pub address: Option<String>,
    /// The settings that the file or a variable gives it: `entries`, `connect_timeout`. Logins, addresses and all settings of
    /// backends of your own are shown as `***`.
    pub settings: Vec<Setting>,
    /// The caches with a level in it, in order of their names.
    pub caches: Vec<String>,
    /// Whether it answered when it was asked; `None`: it was not asked.
    pub answered: Option<Result<(), String>>,
    /// Whether its backplane came up when it was asked to; `None`: no cache names it as one, or it was not asked.
    pub backplane: Option<Result<(), String>>,
}

/// A cache of the file.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct ExplainedCache {
    /// Its name.
    pub name: String,
    /// Its policy, and its other settings that are not of one level.
    pub settings: Vec<Setting>,
    /// Its levels, nearest first.
    pub levels: Vec<ExplainedLevel>,
    /// Advice about this cache.
    pub advice: Vec<String>,
}

/// A level of a cache.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct ExplainedLevel {
    /// The name of its provider.
    pub provider: String,
    /// The name of its provider's backend.
    pub backend: String,
    /// Its settings. A level in this process has only those that mean something there.
    pub settings: Vec<Setting>,
}

/// A setting and why it is what it is.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct Setting {
    /// `policy.ttl`, `ttl_cap`.
    pub name: String,
    /// The value as a file would have it.
    pub value: String,
    /// `cache.toml:12 defaults.policy.ttl`, `environment variable ...`, or `default`. The file's name without its path.
    pub origin: String,
}

impl Explanation {
    /// Whether nothing is wrong: this machine lacks nothing that the file names, and every provider that was asked has answered,
    /// and so has its backplane.
    pub fn is_fine(&self) -> bool {
        let fails = |asked: &Option<Result<(), String>>| matches!(asked, Some(Err(_)));
        let fine = |one: &ExplainedProvider| !fails(&one.answered) && !fails(&one.backplane);
        self.problems.is_empty() && self.providers.iter().all(fine)
    }

    pub(crate) fn of(file: &str, loaded: &Loaded, noted: Vec<Fault>) -> Self {
        let providers = loaded.resolved.providers.iter().map(|(name, provided)| ExplainedProvider {
            name: name.clone(),
            backend: provided.backend.clone(),
            address: loaded.providers.get(name).and_then(|provider| provider.describe().place()),
            settings: given(&provided.settings, &at!["providers", name])
                .into_iter()
                .map(|known| setting(file, &known))
                .collect(),
            caches: users(name, loaded).map(str::to_owned).collect(),
            answered: None,
            backplane: None,
        });
        let caches =
            loaded.resolved.caches.iter().map(|(name, plan)| explain(file, name, plan, loaded)).collect();
        Self {
            file: file.to_owned(),
            providers: providers.collect(),
            caches,
            problems: noted.iter().map(|fault| fault.line(file)).collect(),
            advice: of_file(file, loaded),
        }
    }

    fn provider(&mut self, name: &str) -> Option<&mut ExplainedProvider> {
        self.providers.iter_mut().find(|provider| provider.name == name)
    }
}

/// Fields of providers whose values are never secret.
const SHOWN: [&str; 19] = [
    "bytes",
    "ca_file",
    "client_certificate",
    "client_key",
    "connect_timeout",
    "cool_down",
    "database",
    "engine",
    "engine_expiry",
    "entries",
    "failures",
    "heartbeat",
    "heartbeat_timeout",
    "key_prefix",
    "read_replicas",
    "response_timeout",
    "tls_server_name",
    "tracking",
    "value_max",
];

/// The fields of a table and of the tables in it.
fn given(node: &Node, path: &[Step]) -> Vec<Known> {
    let fields = node.table().map_or(&[][..], |table| &table.0);
    let each = fields.iter().flat_map(|field| {
        let path: Vec<_> = path.iter().cloned().chain([Step::from(&field.name)]).collect();
        if field.node.table().is_some() {
            return given(&field.node, &path);
        }
        let value = match &field.node.what {
            What::Text(Text { written: Some(written), .. }) => references(written),
            _ if !SHOWN.contains(&field.name.as_str()) => HIDDEN.to_owned(),
            What::Text(text) if may_show(&text.value) => text.value.clone(),
            _ => field.node.shown(),
        };
        let name = Steps(path.get(2..).unwrap_or_default()).to_string();
        vec![Known { name, value, from: Origin::Set { path, place: field.node.place.clone() } }]
    });
    each.collect()
}

/// The caches that use a provider.
fn users<'a>(provider: &'a str, loaded: &'a Loaded) -> impl Iterator<Item = &'a str> {
    let uses = move |plan: &Plan| plan.levels.iter().any(|level| level.provider == provider);
    loaded.resolved.caches.iter().filter(move |(_, plan)| uses(plan)).map(|(name, _)| name.as_str())
}

fn setting(file: &str, known: &Known) -> Setting {
    let file = Path::new(file).file_name().and_then(|name| name.to_str()).unwrap_or(file);
    let origin = match &known.from {
        Origin::Default => "default".to_owned(),
        Origin::Set { path, place: Place::Line(0) } => format!("{file} {}", Steps(path)),
        Origin::Set { path, place: Place::Line(line) } => format!("{file}:{line} {}", Steps(path)),
        Origin::Set { place: Place::Variable(name), .. } => format!("environment variable {name}"),
    };
    Setting { name: known.name.clone(), value: known.value.clone(), origin }
}

/// Whether a level keeps its entries in this process. A provider that could not be built is judged by its backend's name.
fn in_process(level: &LevelPlan, loaded: &Loaded) -> bool {
    match loaded.providers.get(&level.provider) {
        Some(provider) => provider.in_process().is_some(),
        None => loaded.resolved.providers.get(&level.provider).is_some_and(|p| p.backend == "memory"),
    }
}

fn explain(file: &str, name: &str, plan: &Plan, loaded: &Loaded) -> ExplainedCache {
    // Settings about bytes, budgets and failures mean nothing to a level in this process.
    let counts = |level: &LevelPlan, known: &&Known| !in_process(level, loaded) || known.name == "ttl_cap";
    // Where nobody says it, as the core has it.
    let stance = if plan.levels.len() == 1 { "surface" } else { "absorb" };
    let shown = |known: &Known| {
        let unsaid = known.name == "stance" && known.from == Origin::Default;
        let mut setting = setting(file, known);
        if unsaid {
            stance.clone_into(&mut setting.value);
        }
        setting
    };
    let level = |level: &LevelPlan| ExplainedLevel {
        provider: level.provider.clone(),
        backend: loaded
            .resolved
            .providers
            .get(&level.provider)
            .map(|p| p.backend.clone())
            .unwrap_or_default(),
        settings: level.known.iter().filter(|known| counts(level, known)).map(shown).collect(),
    };
    ExplainedCache {
        name: name.to_owned(),
        settings: plan.known.iter().map(|known| setting(file, known)).collect(),
        levels: plan.levels.iter().map(level).collect(),
        advice: advice(plan, loaded),
    }
}

/// The value that a plan has for a setting.
fn value<'a>(plan: &'a Plan, name: &str) -> &'a str {
    plan.known.iter().find(|known| known.name == name).map_or("", |known| &known.value)
}

fn time(text: &str) -> Duration {
    match text {
        "forever" => Duration::MAX,
        "off" => Duration::ZERO,
        text => humantime::parse_duration(text).unwrap_or_default(),
    }
}

fn advice(plan: &Plan, loaded: &Loaded) -> Vec<String> {
    let levels = plan.levels.iter().enumerate();
    let near: Vec<_> = levels.clone().filter(|(_, level)| in_process(level, loaded)).collect();
    let mut advice = Vec::new();
    if let Some((at, level)) = near.first()
        && near.len() < plan.levels.len()
        && plan.backplane.is_none()
    {
        advice.push(untold(plan, *at, level));
    }
    advice.extend(patience(plan));
    for (at, level) in near {
        let behind = plan.levels[..at].iter().any(|nearer| !in_process(nearer, loaded));
        advice.extend(of_near(level, behind).map(|what| of_level(at, level, &what)));
    }
    for (at, level) in levels {
        if let Some(provider) = loaded.providers.get(&level.provider) {
            advice.extend(of_provider(plan, level, provider).map(|what| of_level(at, level, &what)));
        }
    }
    advice
}

fn of_level(at: usize, level: &LevelPlan, what: &str) -> String {
    format!("level {} ({}) {what}", at + 1, level.provider)
}

/// How long memory that nothing tells may be wrong.
fn untold(plan: &Plan, at: usize, level: &LevelPlan) -> String {
    let [ttl, grace, jitter] =
        ["policy.ttl", "policy.grace", "policy.jitter"].map(|name| time(value(plan, name)));
    let most = level.ttl_cap.unwrap_or(Duration::MAX);
    let fresh = most.min(ttl.saturating_add(jitter));
    let usable = most.min(grace);
    let stale = match usable > fresh {
        true => format!(", and let it stand in, as a stale value, for up to {}", spell(usable)),
        false => String::new(),
    };
    let cap = if level.ttl_cap.is_some() { "lower the `ttl_cap` of" } else { "set a `ttl_cap` on" };
    let what = format!(
        "may serve what another node has changed for up to {}{stale}: nothing tells it. Name a `backplane`, or {cap} that \
         level",
        spell(fresh),
    );
    format!("on several nodes, {}", of_level(at, level, &what))
}

/// What callers may have to wait for.
fn patience(plan: &Plan) -> Vec<String> {
    let mut advice = Vec::new();
    let hard_limit = value(plan, "policy.hard_limit");
    if !time(value(plan, "policy.grace")).is_zero() && value(plan, "policy.soft_limit") == "off" {
        advice.push(format!(
            "`grace` without `soft_limit`: with a stale value at hand, callers wait for a slow load all the same, {}",
            match hard_limit {
                "off" => "for ever".to_owned(),
                limit => format!("up to {limit}"),
            }
        ));
    }
    if hard_limit == "off" {
        advice.push("`hard_limit` is off: a loader that hangs keeps its callers waiting for ever".to_owned());
    }
    advice
}

/// `behind`: one that is not in the process comes before it.
fn of_near(level: &LevelPlan, behind: bool) -> impl Iterator<Item = String> {
    let behind = behind.then(|| {
        "is in this process, behind one that is not, which is asked first: name it before that".to_owned()
    });
    // Only what the level itself says: inherited settings are meant for other levels.
    let idle = level.known.iter().filter(|known| known.name != "ttl_cap" && known.is_of_a_level());
    let idle =
        idle.map(|known| format!("is in this process, where `{}` means nothing: leave it out", known.name));
    behind.into_iter().chain(idle)
}

fn of_provider(
    plan: &Plan,
    level: &LevelPlan,
    provider: &Arc<dyn CacheProvider>,
) -> impl Iterator<Item = String> {
    let [ttl, grace] = ["policy.ttl", "policy.grace"].map(|name| time(value(plan, name)));
    let kept = level.ttl_cap.unwrap_or(Duration::MAX).min(ttl.max(grace));
    let short = provider
        .capabilities()
        .ttl_max
        .filter(|most| *most < kept)
        .map(|most| format!("cannot hold an entry for {}: {} at most", spell(kept), spell(most)));
    let plain = level.plain.then(|| {
        "is plain: no leases, so two processes may load one key at once, and a load that another node's invalidation \
         overtakes may still be stored; no `clear`, no tags, nothing stale, no absences; what other programs write is \
         believed"
            .to_owned()
    });
    short.into_iter().chain(weaker(provider, level).into_iter().map(str::to_owned)).chain(plain)
}

/// The promises that a remote level cannot keep.
fn weaker(provider: &Arc<dyn CacheProvider>, level: &LevelPlan) -> Vec<&'static str> {
    let mut all = Vec::new();
    if provider.in_process().is_some() {
        return all;
    }
    if !level.plain && provider.leases().is_none() {
        all.push(
            "keeps no leases: two processes may load one key at once, and a load that another node's invalidation overtakes \
             may still be stored",
        );
    }
    if !level.plain && provider.marks().is_none() {
        all.push("cannot swap marks: an invalidation of a tag clears the cache");
    }
    if provider.replicas().is_some() {
        all.push(
            "has replicas answer who accepts stale answers: those are as old as a replica is behind, whatever has been \
             invalidated by another node",
        );
    }
    if level.on_failover == Some(Failover::Keep) {
        all.push(
            "keeps its entries over a failover: what the new store has not heard of and no node has said in the last minute \
             is believed",
        );
    }
    all
}

/// Fields that hold secrets in the backends of this crate.
const SECRETS: [&str; 3] = ["password", "sentinel_password", "secret"];

fn of_file(file: &str, loaded: &Loaded) -> Vec<String> {
    let mut advice = Vec::new();
    secrets(&loaded.tree, &mut Vec::new(), &mut |path, place| {
        let line = match place {
            Place::Line(line) => format!("{file}:{line}: "),
            Place::Variable(_) => return,
        };
        advice.push(format!(
            "{line}{} is written out; let it come from outside: `${{NAME}}` or `${{file:path}}`",
            Steps(path)
        ));
    });
    let used: BTreeSet<_> = loaded
        .resolved
        .caches
        .values()
        .flat_map(|plan| plan.levels.iter().map(|level| &level.provider).chain(&plan.backplane))
        .collect();
    for name in loaded.resolved.providers.keys().filter(|name| !used.contains(name)) {
        let path = at!["providers", name];
        // A reload keeps providers of running caches that are gone from the file.
        if loaded.tree.at(&path).is_some() {
            advice.push(format!("{} is used by no cache", Steps(&path)));
        }
    }
    advice.extend(made_by_variables(&loaded.tree));
    advice
}

/// Advice about caches that only variables name: a mistyped name makes such a cache, and nothing else tells of it.
fn made_by_variables(tree: &Node) -> Vec<String> {
    let caches = tree.at(&at!["caches"]).and_then(Node::table).map_or(&[][..], |table| &table.0);
    let (made, written): (Vec<_>, Vec<_>) =
        caches.iter().partition(|cache| matches!(cache.place, Place::Variable(_)));
    let told = made.into_iter().filter_map(|cache| {
        let Place::Variable(variable) = &cache.place else { return None };
        let path = at!["caches", &cache.name];
        let meant = nearest(&cache.name, written.iter().map(|cache| cache.name.as_str()));
        let meant = meant.map_or_else(String::new, |name| format!("; did you mean `{name}`?"));
        Some(format!(
            "environment variable {variable}: {} is not in the file, so the variable makes this cache{meant}",
            Steps(&path)
        ))
    });
    told.collect()
}

fn secrets(node: &Node, path: &mut Vec<Step>, found: &mut dyn FnMut(&[Step], &Place)) {
    let fields: Vec<(Step, &Node)> = match &node.what {
        What::Table(table) => table.0.iter().map(|f| (Step::from(&f.name), &f.node)).collect(),
        What::List(items) => items.iter().enumerate().map(|(at, item)| (Step::from(at), item)).collect(),
        _ => return,
    };
    for (step, node) in fields {
        let names_one = matches!(&step, Step::Field(name) if SECRETS.contains(&name.as_str()));
        let is_secret = names_one || matches!(&node.what, What::Text(text) if has_password(&text.value));
        path.push(step);
        match &node.what {
            What::Text(Text { written: None, value, .. }) if is_secret && !value.contains("${") => {
                found(path, &node.place);
            }
            _ => secrets(node, path, found),
        }
        path.pop();
    }
}

/// Whether a text is a URL with a password in it.
fn has_password(text: &str) -> bool {
    let user =
        text.split_once("://").and_then(|(_, rest)| rest.split(['/', '?', '#']).next()?.rsplit_once('@'));
    user.and_then(|(user, _)| user.split_once(':')).is_some_and(|(_, password)| !password.is_empty())
}

impl super::CachesBuilder {
    /// Explains a file. A variable or a file that it names and that is missing here is not an error but one of the explanation's
    /// problems, so that production's file can be explained on another machine.
    ///
    /// # Errors
    /// [`ErrorKind::Config`](cache_core::ErrorKind::Config): the file has mistakes that do not depend on the machine.
    pub fn explain(&self, path: impl AsRef<Path>) -> Result<Explanation, Error> {
        let source = Source::open(path.as_ref())?;
        let (loaded, noted) = self.read(&source, Lacks::Noted)?;
        Ok(Explanation::of(&source.file, &loaded, noted))
    }

    /// The same, and pings each provider that lacks nothing; where caches have their backplane on it, also checks that this comes
    /// up. What a provider finds wrong with its server (commands that are refused, say) is among the advice.
    ///
    /// # Errors
    /// As [`explain`](Self::explain).
    pub async fn explain_and_ping(&self, path: impl AsRef<Path>) -> Result<Explanation, Error> {
        let source = Source::open(path.as_ref())?;
        let (loaded, noted) = self.read(&source, Lacks::Noted)?;
        let lacking: Vec<_> = noted.iter().map(|fault| fault.path.clone()).collect();
        let mut explanation = Explanation::of(&source.file, &loaded, noted);
        // It would log in with the unresolved reference, and blame the password.
        let lacks = |name: &str| lacking.iter().any(|path| path.starts_with(&at!["providers", name]));
        let asked = loaded.providers.iter().filter(|(name, _)| !lacks(name)).map(async |(name, provider)| {
            let heard = Arc::new(Heard::default());
            let listener: Weak<Heard> = Arc::downgrade(&heard);
            provider.advise(listener);
            let answer = provider.ping().await.map_err(|error| {
                let said = with_causes(&*error);
                let fault = blamed(&said, &loaded.tree, &at!["providers", name]);
                fault.map_or(said, |fault| fault.line(&source.file))
            });
            // Where the provider does not answer, its backplane has no reason of its own.
            let backplane = match &answer {
                Ok(()) => comes_up(name, &loaded).await,
                Err(_) => None,
            };
            (name, answer, backplane, heard)
        });
        // All at once: each that is down takes its whole timeout.
        for (name, answer, backplane, heard) in join_all(asked).await {
            if let Some(provider) = explanation.provider(name) {
                (provider.answered, provider.backplane) = (Some(answer), backplane);
            }
            let texts = heard.0.lock().unwrap_or_else(PoisonError::into_inner);
            explanation.advice.extend(texts.iter().map(|text| format!("{name}: {text}")));
        }
        Ok(explanation)
    }
}

/// Whether the backplane on a provider comes up, for every cache that has its backplane there. `None`: no cache has.
async fn comes_up(provider: &str, loaded: &Loaded) -> Option<Result<(), String>> {
    let backplane = loaded.backplanes.get(provider)?;
    let keeps = |plan: &Plan| {
        plan.levels
            .iter()
            .find(|level| !in_process(level, loaded))
            .is_some_and(|level| level.provider == provider)
    };
    let of = loaded.resolved.caches.iter().filter(|(_, plan)| plan.backplane.as_deref() == Some(provider));
    // All at once: each that hears nothing takes its whole timeout.
    let asked = of.map(|(name, plan)| probe::comes_up(&**backplane, name, keeps(plan)));
    Some(join_all(asked).await.into_iter().collect())
}

/// Collects a provider's advice.
#[derive(Default)]
struct Heard(Mutex<Vec<String>>);

impl Advised for Heard {
    fn advice(&self, text: &str) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(text.to_owned());
    }
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { file, providers, caches, problems, advice } = self;
        writeln!(f, "{file}")?;
        for ExplainedProvider { name, backend, address, settings, caches, answered, backplane } in providers {
            write!(f, "\nprovider {name}: {backend}")?;
            if let Some(address) = address {
                write!(f, " at {address}")?;
            }
            match answered {
                Some(Ok(())) => f.write_str(", answers")?,
                Some(Err(error)) => write!(f, ", CANNOT BE USED: {error}")?,
                None => {}
            }
            if let Some(Err(error)) = backplane {
                write!(f, ", BACKPLANE IS DOWN: {error}")?;
            }
            writeln!(f)?;
            table(f, "  ", settings)?;
            if !caches.is_empty() {
                writeln!(f, "  used by {}", caches.join(", "))?;
            }
        }
        for cache in caches {
            writeln!(f, "\ncache {}", cache.name)?;
            table(f, "  ", &cache.settings)?;
            for (at, level) in cache.levels.iter().enumerate() {
                writeln!(f, "  level {}: {} ({})", at + 1, level.provider, level.backend)?;
                table(f, "    ", &level.settings)?;
            }
            for line in &cache.advice {
                writeln!(f, "  advice: {line}")?;
            }
        }
        for (word, lines) in [("problem", problems), ("advice", advice)] {
            for (at, line) in lines.iter().enumerate() {
                writeln!(f, "{}{word}: {line}", if at == 0 { "\n" } else { "" })?;
            }
        }
        Ok(())
    }
}

fn table(f: &mut fmt::Formatter<'_>, indent: &str, settings: &[Setting]) -> fmt::Result {
    let wide = |of: fn(&Setting) -> &str| settings.iter().map(|s| of(s).len()).max().unwrap_or(0);
    let (names, values) = (wide(|s| &s.name), wide(|s| &s.value));
    for Setting { name, value, origin } in settings {
        writeln!(f, "{indent}{name:names$}  {value:values$}  {origin}")?;
    }
    Ok(())
}

#[cfg(all(test, feature = "schema"))]
mod tests {
    use serde_json::Value;

    use super::*;

    /// Names of fields, with whether they are secret.
    fn fields(schema: &Value, found: &mut Vec<(String, bool)>) {
        if let Some(properties) = schema["properties"].as_object() {
            found.extend(
                properties.iter().map(|(name, of)| (name.clone(), of.to_string().contains("/Secret"))),
            );
        }
        for one in schema["oneOf"].as_array().into_iter().flatten() {
            fields(one, found);
        }
    }

    #[test]
    fn a_providers_fields_are_shown_unless_they_are_secret() {
        let schema = crate::config::schema();
        let mut found = Vec::new();
        for name in ["Provider", "MemcachedBreaker"] {
            fields(&schema["$defs"][name], &mut found);
        }
        let own = |name: &str| !["backend", "breaker", "level", "required"].contains(&name);
        found.retain(|(name, _)| own(name));
        assert!(found.len() > 30, "{found:?}");
        for (name, secret) in &found {
            assert_ne!(SHOWN.contains(&name.as_str()), *secret, "{name}");
        }
        assert!(SHOWN.iter().all(|name| found.iter().any(|(found, _)| found == name)));
    }
}
