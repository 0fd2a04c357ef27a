//! The caches of a file, and where their levels are.

use std::sync::Arc;

use futures::future::join_all;
use traced_cache::{
    Builder, CacheProvider, Caches, SerdeValue, TracedCache,
    config::{CachesBuilder, ExplainedCache, Explanation},
    with_causes,
};

use crate::{end::Failure, faults::Faults, options::FileOption};

pub(crate) struct Session {
    caches: Caches,
    explanation: Explanation,
    pub(crate) faults: Faults,
}

/// A provider of the file.
pub(crate) struct ProviderAt {
    pub(crate) name: String,
    pub(crate) backend: String,
    pub(crate) provider: Arc<dyn CacheProvider>,
}

/// A level of a cache of the file.
pub(crate) struct LevelAt {
    /// Counted from 1, the nearest.
    pub(crate) number: usize,
    /// The name of its provider.
    pub(crate) name: String,
    pub(crate) backend: String,
    pub(crate) address: Option<String>,
    pub(crate) provider: Arc<dyn CacheProvider>,
}

impl LevelAt {
    pub(crate) fn is_remote(&self) -> bool {
        self.provider.in_process().is_none()
    }

    /// `level 2, shared (redis at 127.0.0.1:6379)`
    pub(crate) fn place(&self) -> String {
        let Self { number, name, backend, address, .. } = self;
        match address {
            Some(address) => format!("level {number}, {name} ({backend} at {address})"),
            None => format!("level {number}, {name} ({backend})"),
        }
    }
}

/// A cache name that nobody else uses, so that measurements do not touch anybody's entries.
pub(crate) fn own_name(verb: &str) -> String {
    format!("{verb}-{:016x}", fastrand::u64(..))
}

impl Session {
    /// Reads the file; connects only to servers that it marks as `required`.
    pub(crate) async fn open(builder: CachesBuilder, file: &FileOption) -> Result<Self, Failure> {
        let faults = Faults::default();
        let caches = builder.observer(faults.clone()).from_file(file.checked()?).await?;
        let explanation = caches.explain();
        Ok(Self { caches, explanation, faults })
    }

    pub(crate) fn cache<T: SerdeValue>(&self, name: &str) -> Result<TracedCache<T>, Failure> {
        Ok(self.caches.cache(name)?)
    }

    /// With a schema id of its own, where one is given.
    pub(crate) fn cache_of<T: SerdeValue>(
        &self,
        name: &str,
        schema: Option<u32>,
    ) -> Result<TracedCache<T>, Failure> {
        let more = |builder: Builder<T>| match schema {
            Some(id) => builder.schema(id),
            None => builder,
        };
        Ok(self.caches.cache_with(name, more)?)
    }

    /// A cache like one of the file, under a name that nobody else has, at these levels of it.
    pub(crate) fn like<T: SerdeValue>(
        &self,
        name: &str,
        own_name: &str,
        levels: &[&LevelAt],
    ) -> Result<Builder<T>, Failure> {
        Ok(self.caches.like(name, own_name, |at| levels.iter().any(|level| level.number == at + 1))?)
    }

    /// The levels of a cache that may be measured: its remote ones if they were asked for, and answer.
    pub(crate) async fn measured_levels(&self, cache: &str, remote: bool) -> Result<Vec<LevelAt>, Failure> {
        let mut levels = self.levels(cache);
        if remote {
            Self::reach(&levels).await?;
        } else {
            levels.retain(|level| !level.is_remote());
        }
        match levels.is_empty() {
            false => Ok(levels),
            true => {
                let fix = "this cache has remote levels only; --remote uses them, under a name of its own";
                Err(Failure::wrong("--remote", "missing", fix))
            }
        }
    }

    pub(crate) fn explained(&self, cache: &str) -> Option<&ExplainedCache> {
        self.explanation.caches.iter().find(|explained| explained.name == cache)
    }

    /// All providers of the file, in order of their names.
    pub(crate) fn providers(&self) -> impl Iterator<Item = ProviderAt> {
        self.explanation.providers.iter().filter_map(|explained| {
            let provider = self.caches.provider(&explained.name)?;
            Some(ProviderAt { name: explained.name.clone(), backend: explained.backend.clone(), provider })
        })
    }

    /// The levels of a cache, nearest first.
    pub(crate) fn levels(&self, cache: &str) -> Vec<LevelAt> {
        let levels = self.explained(cache).map_or(&[][..], |cache| &cache.levels);
        let all = levels.iter().enumerate().filter_map(|(at, level)| {
            let provider = self.caches.provider(&level.provider)?;
            let explained = self.explanation.providers.iter().find(|known| known.name == level.provider);
            Some(LevelAt {
                number: at + 1,
                name: level.provider.clone(),
                backend: level.backend.clone(),
                address: explained.and_then(|provider| provider.address.clone()),
                provider,
            })
        });
        all.collect()
    }

    /// The levels of a cache that can be seen from outside of its application.
    pub(crate) fn shared_levels(&self, cache: &str) -> Result<Vec<LevelAt>, Failure> {
        let levels = self.levels(cache);
        if levels.iter().any(LevelAt::is_remote) {
            return Ok(levels);
        }
        let fix = "it lives in the memory of its application only, which is not seen from here; use the application's own page, \
                   or add a remote level";
        Err(Failure::wrong("CACHE", cache, fix))
    }

    /// Connects to the remote levels of a cache, all at once, so that later calls do not wait for connecting. Fails by the
    /// first that cannot be used.
    pub(crate) async fn reach(levels: &[LevelAt]) -> Result<(), Failure> {
        let remote = levels.iter().filter(|level| level.is_remote());
        let pinged = join_all(remote.map(async |level| (level, level.provider.ping().await))).await;
        for (level, answer) in pinged {
            answer.map_err(|error| {
                Failure::failed(format!("{} cannot be used: {}", level.place(), with_causes(&*error)))
            })?;
        }
        Ok(())
    }

    /// The value of a setting of a cache, as `explain` shows it.
    pub(crate) fn setting(&self, cache: &str, name: &str) -> Option<&str> {
        let settings = &self.explained(cache)?.settings;
        settings.iter().find(|setting| setting.name == name).map(|setting| setting.value.as_str())
    }

    /// The value of a setting of a level of it.
    pub(crate) fn level_setting(&self, cache: &str, level: &LevelAt, name: &str) -> Option<&str> {
        let settings = &self.explained(cache)?.levels.get(level.number - 1)?.settings;
        settings.iter().find(|setting| setting.name == name).map(|setting| setting.value.as_str())
    }
}
