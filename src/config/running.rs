//! Caches that have been asked for, whatever the types of their values.

use std::{
    any::{Any, type_name},
    collections::BTreeMap,
    fmt, ptr,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use cache_core::{Backplane, CacheProvider, Closed, Error, Policy, Result, TracedCache, Value};

use super::{model::Keyring, resolve::Plan};

/// A cache, and the plan that it runs by.
pub(super) struct Running {
    type_name: &'static str,
    cache: Box<dyn Any + Send + Sync>,
    pub(super) controls: Box<dyn Controls>,
    /// `None` for one that was built by hand.
    plan: Option<Mutex<Plan>>,
    /// The keyrings that it was built with: they cannot change.
    pub(super) keyrings: BTreeMap<String, Keyring>,
    /// The `#[cached]` function whose arguments are its keys.
    function: OnceLock<&'static Function>,
}

/// A `#[cached]` function whose key is its arguments.
#[doc(hidden)]
#[derive(Debug)]
pub struct Function {
    module: &'static str,
    name: &'static str,
    line: u32,
}

impl Function {
    /// The macro writes one for each function.
    pub const fn new(module: &'static str, name: &'static str, line: u32) -> Self {
        Self { module, name, line }
    }
}

impl fmt::Display for Function {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { module, name, line } = self;
        write!(f, "{module}::{name} (line {line})")
    }
}

/// What can be done with a cache of any type.
#[async_trait]
pub(super) trait Controls: Send + Sync {
    fn check_policy(&self, policy: &Policy) -> Result<()>;
    fn set_policy(&self, policy: Policy) -> Result<()>;
    fn move_level(&self, level: usize, to: Arc<dyn CacheProvider>) -> Result<()>;
    fn move_backplane(&self, to: Arc<dyn Backplane>) -> Result<()>;
    async fn close(&self, limit: Duration) -> Closed;
}

#[async_trait]
impl<T: Value> Controls for TracedCache<T> {
    fn check_policy(&self, policy: &Policy) -> Result<()> {
        Self::check_policy(self, policy)
    }

    fn set_policy(&self, policy: Policy) -> Result<()> {
        Self::set_policy(self, policy)
    }

    fn move_level(&self, level: usize, to: Arc<dyn CacheProvider>) -> Result<()> {
        Self::move_level(self, level, to)
    }

    fn move_backplane(&self, to: Arc<dyn Backplane>) -> Result<()> {
        Self::move_backplane(self, to)
    }

    async fn close(&self, limit: Duration) -> Closed {
        Self::close(self, limit).await
    }
}

impl Running {
    pub(super) fn new<T: Value>(cache: &TracedCache<T>) -> Self {
        Self {
            type_name: type_name::<T>(),
            cache: Box::new(cache.clone()),
            controls: Box::new(cache.clone()),
            plan: None,
            keyrings: BTreeMap::new(),
            function: OnceLock::new(),
        }
    }

    /// With the plan and the keyrings that it was built by.
    pub(super) fn by(self, plan: Plan, keyrings: BTreeMap<String, Keyring>) -> Self {
        Self { plan: Some(Mutex::new(plan)), keyrings, ..self }
    }

    /// The cache, if its values are of this type.
    pub(super) fn cache<T: Value>(&self, name: &str) -> Result<TracedCache<T>> {
        self.cache.downcast_ref::<TracedCache<T>>().cloned().ok_or_else(|| {
            Error::config(
                &format!("caches.{name}"),
                type_name::<T>(),
                format_args!(
                    "it has been asked for as {}; use one type for a name, or two caches",
                    self.type_name
                ),
            )
        })
    }

    /// The cache for a function whose keys are its arguments. Only the first function to ask gets it: another one could have equal
    /// arguments and other values.
    pub(super) fn cache_of<T: Value>(&self, name: &str, by: &'static Function) -> Result<TracedCache<T>> {
        let cache = self.cache(name)?;
        let first = *self.function.get_or_init(|| by);
        if ptr::eq(first, by) {
            return Ok(cache);
        }
        Err(Error::config(
            &format!("caches.{name}"),
            by,
            format_args!(
                "{first} keeps its answers there under the same keys, its arguments; give each function a cache of its own, \
                 or say `key = (\"{}\", ...)`",
                by.name
            ),
        ))
    }

    pub(super) fn plan(&self) -> Option<MutexGuard<'_, Plan>> {
        self.plan.as_ref().map(|plan| plan.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
