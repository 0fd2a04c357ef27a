//! One list of behaviours that every provider is held to, driven by its declared [`Capabilities`]. **Not covered by
//! semver:** the list grows.
//!
//! ```
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() {
//! use std::sync::Arc;
//! use cache_core::testing::{MapProvider, conformance};
//!
//! let report = conformance::run(Arc::new(MapProvider::new()), conformance::Options::default()).await;
//! assert!(report.checked.contains(&"put_then_get"));
//! # }
//! ```
//!
//! A behaviour is also a function of its own, and panics when the provider does not show it. All of them use namespaces
//! of their own, so the store behind may be shared and need not be empty. They need a tokio runtime with time, and real
//! time passes: virtual time would not pass in a server.

mod batches;
mod concurrency;
mod keys;
pub mod leases;
pub mod marks;
pub mod object_store;
mod room;
mod time;
mod values;

use std::{fmt, panic::AssertUnwindSafe, pin::Pin, sync::Arc, time::Duration};

use futures::FutureExt;

pub use self::{batches::*, concurrency::*, keys::*, time::*, values::*};
use crate::{CacheProvider, Capabilities};

type Check<'a> = Pin<Box<dyn Future<Output = ()> + Send + 'a>>;

/// One thing that a provider does.
#[derive(Clone, Copy)]
pub struct Behaviour {
    name: &'static str,
    applies: fn(&Capabilities) -> bool,
    check: for<'a> fn(&'a dyn CacheProvider) -> Check<'a>,
}

impl Behaviour {
    /// The name of its function.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Whether a provider with these capabilities has to show it.
    pub fn applies(&self, capabilities: &Capabilities) -> bool {
        (self.applies)(capabilities)
    }

    /// Panics if the provider does not show it.
    pub async fn check(&self, provider: &dyn CacheProvider) {
        (self.check)(provider).await;
    }
}

impl fmt::Debug for Behaviour {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Behaviour").field("name", &self.name).finish_non_exhaustive()
    }
}

fn always(_: &Capabilities) -> bool {
    true
}

macro_rules! behaviours {
    ($($name:ident $(if $applies:path)?),+ $(,)?) => {
        [$(Behaviour {
            name: stringify!($name),
            applies: behaviours!(@applies $($applies)?),
            check: |provider| Box::pin($name(provider)),
        }),+]
    };
    (@applies) => { always };
    (@applies $applies:path) => { $applies };
}
use behaviours;

/// All behaviours.
pub fn all() -> impl Iterator<Item = Behaviour> {
    behaviours![
        capabilities_make_sense,
        ping_answers,
        miss_is_none,
        put_then_get,
        overwrite_replaces,
        remove_makes_a_miss,
        remove_what_is_absent,
        every_byte_survives,
        one_byte_value,
        large_value if values::holds_large,
        larger_values_come_whole,
        value_at_the_limit if values::has_a_limit,
        too_large_leaves_nothing if values::has_a_limit,
        refusals_are_discreet if values::has_a_limit,
        keys_are_case_sensitive,
        unicode_forms_are_apart,
        odd_characters_in_keys,
        keys_inject_no_command,
        long_keys_are_apart,
        keys_around_the_limit if keys::has_a_limit,
        a_shortened_key_is_another_key if keys::has_a_limit,
        namespaces_are_apart,
        marks_are_apart,
        other_processes_find_it if keys::is_shared,
        empty_batch,
        batch_keeps_order_and_length,
        duplicates_in_a_batch,
        batch_removes,
        a_thousand_keys_in_a_batch,
        a_refused_item_spoils_no_batch if values::has_a_limit,
        ttl_expires,
        sub_second_ttl if time::is_fine,
        the_smallest_ttl_expires,
        ttl_is_per_item,
        overwrite_replaces_the_ttl,
        unlimited_ttl_is_kept,
        long_ttls_are_kept,
        concurrent_calls_do_not_mix_up,
        concurrent_writers_leave_one_value,
        dropped_calls_leave_it_usable,
        dropped_puts_are_not_late,
    ]
    .into_iter()
}

/// How [`run`] goes about it.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Options {
    /// Behaviours that the provider does not show, each with the reason. Prefer a capability.
    pub except: Vec<(&'static str, &'static str)>,
    /// How long one behaviour may take. A call that hangs is a failure with a name, and the last that is tried: the next
    /// would most likely hang as long.
    pub limit: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self { except: Vec::new(), limit: Duration::from_secs(120) }
    }
}

impl Options {
    /// Leaves a behaviour out.
    #[must_use]
    pub fn except(mut self, name: &'static str, reason: &'static str) -> Self {
        self.except.push((name, reason));
        self
    }
}

/// What [`run`] did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Report {
    /// Behaviours that the provider showed.
    pub checked: Vec<&'static str>,
    /// Behaviours that its capabilities do not ask for.
    pub not_applicable: Vec<&'static str>,
    /// Behaviours left out by [`Options::except`].
    pub excepted: Vec<&'static str>,
}

/// Checks every behaviour that the provider's capabilities ask for, one after another.
///
/// # Panics
/// After the last one, or the first that hangs, if any failed; the message names them all, and each has reported itself
/// before.
pub async fn run(provider: Arc<dyn CacheProvider>, options: Options) -> Report {
    run_all(all().collect(), provider, options).await
}

async fn run_all(list: Vec<Behaviour>, provider: Arc<dyn CacheProvider>, options: Options) -> Report {
    for (name, _) in &options.except {
        let names: Vec<_> = list.iter().map(|behaviour| behaviour.name).collect();
        assert!(
            names.contains(name),
            "except = {name}: there is no such behaviour; use one of {}",
            names.join(", ")
        );
    }
    let excepted = |name: &str| options.except.iter().any(|(except, _)| *except == name);
    let capabilities = provider.capabilities();
    let mut report = Report::default();
    let mut failed = Vec::new();
    let mut left = list.into_iter();
    for behaviour in left.by_ref() {
        let name = behaviour.name;
        if excepted(name) {
            report.excepted.push(name);
        } else if !behaviour.applies(&capabilities) {
            report.not_applicable.push(name);
        } else {
            let check = AssertUnwindSafe(behaviour.check(&*provider)).catch_unwind();
            match tokio::time::timeout(options.limit, check).await {
                Ok(Ok(())) => report.checked.push(name),
                Ok(Err(_)) => failed.push(name.to_owned()),
                Err(_) => {
                    failed.push(format!("{name} (not over after {:?})", options.limit));
                    break;
                }
            }
        }
    }
    let system = provider.describe().system;
    let untried = left.map(|behaviour| behaviour.name).filter(|name| !excepted(name)).count();
    let untried = match untried {
        0 => String::new(),
        untried => format!("; not tried after that: {untried}"),
    };
    assert!(failed.is_empty(), "{system} does not conform: {}{untried}", failed.join(", "));
    report
}

#[cfg(test)]
mod tests;
