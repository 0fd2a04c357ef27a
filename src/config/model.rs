//! What a file may say. Every field is optional where another place may say it: what a cache does not say it inherits.
//!
//! The comments here are the descriptions in the JSON Schema and in docs/configuration.md.

use std::{collections::BTreeMap, fmt, marker::PhantomData};

use serde::{
    Deserialize, Deserializer,
    de::{self, value::MapAccessDeserializer},
};

use super::units::{Count, Limit, Period, Secret, Size, Timespan};

/// A table with fields of its own and all of a list that others have, too: serde's `flatten` would let unknown fields pass.
macro_rules! table {
    ($(#[$meta:meta])* $name:ident { $($own:tt)* } inherited { $($inherited:tt)* }) => {
        $(#[$meta])*
        #[derive(Clone, Debug, Default, Deserialize)]
        #[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
        #[serde(deny_unknown_fields, default)]
        pub(crate) struct $name { $($own)* $($inherited)* }
    };
}

/// What `defaults` and a cache may say alike.
macro_rules! cache_tables {
    ($($(#[$meta:meta])* $name:ident { $($own:tt)* })*) => {$(
        table! { $(#[$meta])* $name { $($own)* } inherited {
            /// How long entries live and how loads are held.
            pub(crate) policy: Policy,
            /// The levels, nearest first: names of providers, or tables that say more.
            pub(crate) levels: Option<Vec<Level>>,
            /// The provider over which nodes tell each other what has changed, or `off`.
            pub(crate) backplane: Option<String>,
            /// How values are written at remote levels.
            pub(crate) codec: Option<Codec>,
            /// How values are made smaller at remote levels.
            pub(crate) compression: Option<Compression>,
            /// The keyring that encrypts values at remote levels, or `off`.
            pub(crate) encryption: Option<String>,
            /// Whether entries may carry tags.
            pub(crate) tags: Option<bool>,
        } }
    )*};
}

cache_tables! {
    /// What every cache inherits, field by field, unless it says otherwise.
    Defaults {}

    /// One cache. What it does not say comes from `defaults`.
    Cache {
        /// Names the shape of the values on the wire: raise it when the type changes in a way that the codec would misread.
        /// Leave it out where the program's type says it.
        pub(crate) schema: Option<u32>,
    }
}

/// How long entries live, and how loads are held.
#[derive(Clone, Debug, Default, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Policy {
    /// Entries are fresh for this long from the start of their load; `forever`: until evicted or invalidated.
    pub(crate) ttl: Option<Period>,
    /// The maximum age up to which an entry may stand in when its load fails or is late. Not below the ttl; `0s`: never.
    pub(crate) grace: Option<Period>,
    /// For this long after its freshness a stale entry is answered at once while one load refreshes it. Within `grace`.
    pub(crate) revalidate: Option<Timespan>,
    /// After a failed refresh, the stale entry is served without another load for this long.
    pub(crate) throttle: Option<Timespan>,
    /// When a hit refreshes an entry ahead of its end.
    pub(crate) early: Option<Early>,
    /// Up to this much, drawn per entry, is added to the ttl, so that entries loaded together do not end together.
    pub(crate) jitter: Option<Timespan>,
    /// How long it is remembered that the source does not have a key; `0s`: not at all.
    pub(crate) absent_ttl: Option<Period>,
    /// With a stale value at hand, a caller waits at most this long for a load. Wants `grace`.
    pub(crate) soft_limit: Option<Limit>,
    /// A load is ended after this long.
    pub(crate) hard_limit: Option<Limit>,
    /// Whether a load that ran into the soft limit goes on in the background.
    pub(crate) complete_in_background: Option<bool>,
    /// How long a caller waits for another caller's load before it loads for itself.
    pub(crate) wait: Option<Limit>,
    /// Most loads of this cache at once; more queue.
    pub(crate) loads: Option<Count>,
}

/// `off`, a fraction of the ttl, or a table.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Early {
    Off,
    Fraction(f64),
    XFetch(XFetch),
}

/// With a chance that grows towards the end and with the measured cost of the load.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub(crate) struct XFetch {
    /// 1 is usual; above refreshes earlier, below later.
    pub(crate) xfetch: f64,
}

/// A level: the name of a provider, or a table that says more.
#[derive(Clone, Debug, Default)]
pub(crate) struct Level {
    pub(crate) provider: String,
    pub(crate) settings: LevelSettings,
}

/// What a level and a provider's `level` may say alike.
macro_rules! level_tables {
    ($($(#[$meta:meta])* $name:ident { $($own:tt)* })*) => {$(
        table! { $(#[$meta])* $name { $($own)* } inherited {
            /// Keeps entries here no longer than this.
            pub(crate) ttl_cap: Option<Limit>,
            /// The most that one call here may cost a caller. Remote levels only.
            pub(crate) budget: Option<Timespan>,
            /// When the level stops being asked. Remote levels only.
            pub(crate) breaker: Option<Breaker>,
            /// What a failure means to callers: `absorb` makes it a miss, `surface` an error.
            pub(crate) stance: Option<Stance>,
            /// What becomes of entries when the store is found to be another one, or to have been restarted: `clear` believes
            /// none, `keep` goes on with them. Remote levels only.
            pub(crate) on_failover: Option<Failover>,
            /// Values are written after the caller has been answered.
            pub(crate) background: Option<bool>,
            /// Values are stored bare, for programs in other languages.
            pub(crate) plain: Option<bool>,
            /// How values are written here.
            pub(crate) codec: Option<Codec>,
            /// How values are made smaller here.
            pub(crate) compression: Option<Compression>,
            /// The keyring that encrypts values here, or `off`.
            pub(crate) encryption: Option<String>,
        } }
    )*};
}

level_tables! {
    /// A level that says more than its provider.
    LevelTable {
        /// The name of the provider.
        pub(crate) provider: Option<String>,
    }

    /// Settings of every level on a provider, unless the level itself says otherwise.
    LevelSettings {}
}

/// `off`, or a table of when it opens.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Breaker {
    Off,
    On(BreakerTable),
}

/// When a level stops being asked. What is not said is as without the table.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
pub(crate) struct BreakerTable {
    /// Share of failures, above 0 up to 1, at which it opens.
    pub(crate) failure_rate: Option<f64>,
    /// Calls that must have ended within the window before the rate counts.
    pub(crate) min_calls: Option<u32>,
    /// How far back calls are counted.
    pub(crate) window: Option<Timespan>,
    /// The pause before one call finds out. It also opens when `min_calls` have failed and none ended well for as long.
    pub(crate) open_for: Option<Timespan>,
}

/// How values are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub(crate) enum Codec {
    Json,
    MsgPack,
    Postcard,
}

impl Codec {
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Json => "json",
            Self::MsgPack => "msgpack",
            Self::Postcard => "postcard",
        }
    }
}

/// `off`, the name of an algorithm, or a table.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Compression {
    Off,
    On(CompressionTable),
}

/// How values are made smaller.
#[derive(Clone, Copy, Debug, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub(crate) struct CompressionTable {
    pub(crate) algorithm: Algorithm,
    /// Only values of more than this are compressed.
    #[serde(default)]
    pub(crate) above: Option<Size>,
    /// Of zstd: 1, the fastest, to 22.
    #[serde(default)]
    pub(crate) level: Option<i32>,
}

/// `lz4` is fast; `zstd` smaller.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub(crate) enum Algorithm {
    Lz4,
    Zstd,
}

impl Algorithm {
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Lz4 => "lz4",
            Self::Zstd => "zstd",
        }
    }
}

/// What a failure of a level means to callers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub(crate) enum Stance {
    Absorb,
    Surface,
}

/// What becomes of entries when their store is another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub(crate) enum Failover {
    Clear,
    Keep,
}

/// Keys that encrypt values: the first one writes, all of them read.
#[derive(Clone, Debug, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub(crate) struct Keyring {
    pub(crate) keys: Vec<Key>,
}

/// One key.
#[derive(Clone, Debug, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub(crate) struct Key {
    /// Names the key on the wire. Never give an id to another key.
    pub(crate) id: u32,
    /// 32 bytes as 64 hexadecimal digits or in base64, best by reference: `${NAME}` or `${file:path}`.
    pub(crate) secret: Secret,
}

/// What every provider has beside the settings of its backend.
#[derive(Clone, Debug, Default, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Common {
    /// The server must answer when the file is loaded. Otherwise one that is down then is used once it is up.
    pub(crate) required: bool,
    /// Settings of every level on this provider, unless the level itself says otherwise.
    pub(crate) level: LevelSettings,
}

/// All sections of a file but `providers`, whose fields are their backends'.
#[derive(Clone, Debug, Default)]
pub(crate) struct File {
    pub(crate) defaults: Defaults,
    pub(crate) keyrings: BTreeMap<String, Keyring>,
    pub(crate) caches: BTreeMap<String, Cache>,
}

/// Reads a word by `word`, which says what to write instead, or a table.
fn either<'de, D, R, T, F>(deserializer: D, expected: &'static str, word: F) -> Result<R, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de> + Into<R>,
    F: Fn(&str) -> Result<R, String>,
{
    struct Reader<R, T, F> {
        expected: &'static str,
        word: F,
        types: PhantomData<(R, T)>,
    }
    impl<'de, R, T, F> de::Visitor<'de> for Reader<R, T, F>
    where
        T: Deserialize<'de> + Into<R>,
        F: Fn(&str) -> Result<R, String>,
    {
        type Value = R;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str(self.expected)
        }

        fn visit_str<E: de::Error>(self, text: &str) -> Result<R, E> {
            (self.word)(text).map_err(E::custom)
        }

        fn visit_map<A: de::MapAccess<'de>>(self, map: A) -> Result<R, A::Error> {
            T::deserialize(MapAccessDeserializer::new(map)).map(Into::into)
        }
    }
    deserializer.deserialize_any(Reader { expected, word, types: PhantomData::<(R, T)> })
}

impl<'de> Deserialize<'de> for Level {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        const EXPECTED: &str = "the name of a provider, or a table with one";
        let table = either::<_, LevelTable, LevelTable, _>(deserializer, EXPECTED, |name| {
            Ok(LevelTable { provider: Some(name.to_owned()), ..LevelTable::default() })
        })?;
        let LevelTable {
            provider,
            ttl_cap,
            budget,
            breaker,
            stance,
            on_failover,
            background,
            plain,
            codec,
            compression,
            encryption,
        } = table;
        let provider = provider.ok_or_else(|| de::Error::missing_field("provider"))?;
        let settings = LevelSettings {
            ttl_cap,
            budget,
            breaker,
            stance,
            on_failover,
            background,
            plain,
            codec,
            compression,
            encryption,
        };
        Ok(Self { provider, settings })
    }
}

impl<'de> Deserialize<'de> for Breaker {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        either::<_, _, BreakerTable, _>(deserializer, "\"off\", or a table", |word| match word {
            "off" => Ok(Self::Off),
            _ => Err("write \"off\", or a table".to_owned()),
        })
    }
}

impl From<BreakerTable> for Breaker {
    fn from(table: BreakerTable) -> Self {
        Self::On(table)
    }
}

impl<'de> Deserialize<'de> for Compression {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let on = |algorithm| Ok(Self::On(CompressionTable { algorithm, above: None, level: None }));
        const EXPECTED: &str = "\"off\", \"lz4\", \"zstd\", or a table";
        let read = either::<_, _, CompressionTable, _>(deserializer, EXPECTED, |word| match word {
            "off" => Ok(Self::Off),
            "lz4" => on(Algorithm::Lz4),
            "zstd" => on(Algorithm::Zstd),
            other => Err(super::fault::unknown(other, ["off", "lz4", "zstd"])),
        })?;
        match read {
            // Who asks for it believes that it does something.
            Self::On(CompressionTable { algorithm: Algorithm::Lz4, level: Some(level), .. }) => {
                Err(de::Error::custom(format_args!(
                    "`level = {level}` is of zstd; leave it out, or write `algorithm = \"zstd\"`"
                )))
            }
            read => Ok(read),
        }
    }
}

impl From<CompressionTable> for Compression {
    fn from(table: CompressionTable) -> Self {
        Self::On(table)
    }
}

impl<'de> Deserialize<'de> for Early {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        const EXPECTED: &str = "\"off\", a fraction of the ttl such as 0.8, or { xfetch = 1.0 }";
        struct Reader;
        impl<'de> de::Visitor<'de> for Reader {
            type Value = Early;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(EXPECTED)
            }

            fn visit_f64<E: de::Error>(self, share: f64) -> Result<Early, E> {
                Ok(Early::Fraction(share))
            }

            fn visit_u64<E: de::Error>(self, share: u64) -> Result<Early, E> {
                #[allow(
                    clippy::cast_precision_loss,
                    reason = "0 and 1 are refused as fractions, and so are all others"
                )]
                Ok(Early::Fraction(share as f64))
            }

            fn visit_str<E: de::Error>(self, word: &str) -> Result<Early, E> {
                match (word, word.parse()) {
                    ("off", _) => Ok(Early::Off),
                    (_, Ok(share)) => Ok(Early::Fraction(share)),
                    _ => Err(E::custom(format_args!("write {EXPECTED}"))),
                }
            }

            fn visit_map<A: de::MapAccess<'de>>(self, map: A) -> Result<Early, A::Error> {
                XFetch::deserialize(MapAccessDeserializer::new(map)).map(Early::XFetch)
            }
        }
        deserializer.deserialize_any(Reader)
    }
}
