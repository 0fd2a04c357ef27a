//! `backend = "memory"`

use cache_core::{Error, ErrorKind};
use cache_memory::{Engine, Memory};
use serde::Deserialize;

use crate::config::units::Size;

/// Process memory.
#[derive(Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub(crate) struct Settings {
    /// Most entries, whatever their size. Either this or `bytes`.
    #[serde(default)]
    entries: Option<u64>,
    /// Most bytes of all entries together. Either this or `entries`.
    #[serde(default)]
    bytes: Option<Size>,
    /// What holds the entries. Default: quick.
    #[serde(default)]
    engine: Option<EngineName>,
    /// Whether the engine itself lets go of entries whose time is over. Default: true.
    #[serde(default)]
    engine_expiry: Option<bool>,
}

/// `quick` is quick_cache; `moka` keeps strictly what was used last.
#[derive(Clone, Copy, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
enum EngineName {
    Quick,
    Moka,
}

pub(super) fn build(settings: Settings) -> Result<Memory, Error> {
    let Settings { entries, bytes, engine, engine_expiry } = settings;
    let memory = match (entries, bytes) {
        (Some(entries), None) => Memory::entries(entries),
        (None, Some(Size(bytes))) => Memory::bytes(bytes),
        (None, None) => {
            let fix = "say how much it may hold: `entries = 10000` or `bytes = \"64MiB\"`";
            return Err(Error::new(ErrorKind::Config, fix));
        }
        (Some(entries), Some(_)) => {
            return Err(Error::config("entries", entries, "there is `bytes` as well; keep one of the two"));
        }
    };
    let memory = match engine {
        Some(EngineName::Quick) => memory.engine(Engine::Quick),
        Some(EngineName::Moka) => memory.engine(Engine::Moka),
        None => memory,
    };
    Ok(match engine_expiry {
        Some(on) => memory.engine_expiry(on),
        None => memory,
    })
}
