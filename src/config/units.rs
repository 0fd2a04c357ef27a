//! Values with a form of their own: times and sizes always say their unit, secrets never show.

use std::{fmt, path::PathBuf, time::Duration};

use serde::{Deserialize, Deserializer, de};

/// A time: `250ms`, `30s`, `1h30m`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timespan(pub Duration);

/// A time, or `forever`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Period(pub Duration);

/// A time, or `off`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Limit(pub Option<Duration>);

/// A number, or `off`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Count(pub Option<usize>);

/// A number of bytes: `512B`, `64KiB`, `1MB`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size(pub u64);

/// A text that is never shown: in no error, no `Debug` output and no explanation.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(pub String);

/// The path of a file; a relative one starts from the folder of the file that names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FilePath(pub PathBuf);

/// Type names by which the deserializer of files recognises these types.
pub(crate) const SECRET: &str = "$secret";
pub(crate) const SECRETS: &str = "$secrets";
pub(crate) const PATH: &str = "$path";

const OFF: &str = "off";
const FOREVER: &str = "forever";
const TIME: Units = Units {
    what: "a time",
    units: ["ms", "s", "m"],
    none: ["0s", "30s"],
    expected: "a time with its unit, such as \"250ms\", \"30s\" or \"1h30m\"",
};
const SIZE: Units = Units {
    what: "a size",
    units: ["B", "KiB", "MiB"],
    none: ["0B", "64KiB"],
    expected: "a size with its unit, such as \"512B\", \"64KiB\" or \"1GB\"",
};

struct Units {
    what: &'static str,
    units: [&'static str; 3],
    /// None, and some.
    none: [&'static str; 2],
    expected: &'static str,
}

impl Units {
    fn bare<E: de::Error>(&self, number: impl fmt::Display) -> E {
        let number = number.to_string();
        if !wants_unit(&number) {
            return self.wrong("");
        }
        // Whether it can be none is for each field to say.
        if number.bytes().all(|digit| matches!(digit, b'0' | b'.')) {
            let [none, some] = self.none;
            return E::custom(format_args!(
                "{} needs its unit: \"{some}\", say, or \"{none}\" where it can be none",
                self.what
            ));
        }
        let [a, b, c] = self.units.map(|unit| format!("\"{number}{unit}\""));
        E::custom(format_args!("{} needs its unit: {a}, {b} or {c}", self.what))
    }

    fn wrong<E: de::Error>(&self, or: &str) -> E {
        E::custom(format_args!("write {}{or}", self.expected))
    }

    /// The text, unless it is only a number.
    fn text<'de, D: Deserializer<'de>>(&self, deserializer: D) -> Result<String, D::Error> {
        let text = deserializer.deserialize_str(Words(self))?;
        if wants_unit(&text) { Err(self.bare(text)) } else { Ok(text) }
    }
}

/// Whether adding a unit would make it right: a number without an exponent, and not below 0.
fn wants_unit(text: &str) -> bool {
    let digits = |part: &str| !part.is_empty() && part.bytes().all(|digit| digit.is_ascii_digit());
    let (whole, share) = text.split_once('.').unwrap_or((text, "0"));
    digits(whole) && digits(share)
}

/// Reads a text; of a number, the error lists the units.
struct Words<'a>(&'a Units);

impl de::Visitor<'_> for Words<'_> {
    type Value = String;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.expected)
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<String, E> {
        Ok(text.trim().to_owned())
    }

    fn visit_i64<E: de::Error>(self, number: i64) -> Result<String, E> {
        Err(self.0.bare(number))
    }

    fn visit_u64<E: de::Error>(self, number: u64) -> Result<String, E> {
        Err(self.0.bare(number))
    }

    fn visit_f64<E: de::Error>(self, number: f64) -> Result<String, E> {
        Err(self.0.bare(number))
    }
}

fn time<'de, D: Deserializer<'de>>(
    deserializer: D,
    word: Option<&str>,
) -> Result<Option<Duration>, D::Error> {
    let text = TIME.text(deserializer)?;
    if word.is_some_and(|word| text == word) {
        return Ok(None);
    }
    let or = match word {
        _ if text == OFF => "; `off` is none, and where a time can be none it is \"0s\"".to_owned(),
        Some(word) => format!(", or \"{word}\""),
        None => String::new(),
    };
    if text.contains('M') {
        return Err(de::Error::custom("`M` stands for months: write `m` for minutes, or \"months\""));
    }
    humantime::parse_duration(&text).map(Some).map_err(|error| match error {
        humantime::DurationError::NumberOverflow => {
            de::Error::custom(format_args!("the time is too long; write a shorter one{or}"))
        }
        _says_less => TIME.wrong(&or),
    })
}

impl<'de> Deserialize<'de> for Timespan {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        time(deserializer, None).map(|time| Self(time.unwrap_or_default()))
    }
}

impl<'de> Deserialize<'de> for Period {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        time(deserializer, Some(FOREVER)).map(|time| Self(time.unwrap_or(Duration::MAX)))
    }
}

impl<'de> Deserialize<'de> for Limit {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        time(deserializer, Some(OFF)).map(Self)
    }
}

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = SIZE.text(deserializer)?;
        match text.parse::<bytesize::ByteSize>() {
            // What is more than that is read as that.
            Ok(size) if size.as_u64() == u64::MAX => {
                Err(de::Error::custom("the size is too large; write a smaller one"))
            }
            Ok(size) => Ok(Self(size.as_u64())),
            Err(_says_less) => Err(SIZE.wrong("")),
        }
    }
}

impl<'de> Deserialize<'de> for Count {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Counted;
        impl de::Visitor<'_> for Counted {
            type Value = Count;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a whole number of 1 or above, or \"off\"")
            }

            fn visit_u64<E: de::Error>(self, number: u64) -> Result<Count, E> {
                Ok(Count(Some(usize::try_from(number).unwrap_or(usize::MAX))))
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Count, E> {
                match text.trim() {
                    OFF => Ok(Count(None)),
                    other => match other.parse() {
                        Ok(number) => Ok(Count(Some(number))),
                        Err(_) => Err(E::invalid_value(de::Unexpected::Str(text), &self)),
                    },
                }
            }
        }
        deserializer.deserialize_any(Counted)
    }
}

/// Reads a text under a type name that the deserializer of files recognises.
struct Named;

impl<'de> de::Visitor<'de> for Named {
    type Value = String;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a text")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<String, E> {
        Ok(text.to_owned())
    }

    fn visit_newtype_struct<D: Deserializer<'de>>(self, deserializer: D) -> Result<String, D::Error> {
        String::deserialize(deserializer)
    }
}

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_newtype_struct(SECRET, Named).map(Self)
    }
}

/// For serde's `deserialize_with`: a list of secret texts. Anything else in its place is kept secret, too.
#[cfg(feature = "memcached")]
pub(crate) fn secrets<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Vec<Secret>>, D::Error> {
    struct Listed;
    impl<'de> de::Visitor<'de> for Listed {
        type Value = Option<Vec<Secret>>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a list")
        }

        fn visit_none<E: de::Error>(self) -> Result<Self::Value, E> {
            Ok(None)
        }

        fn visit_newtype_struct<D: Deserializer<'de>>(
            self,
            deserializer: D,
        ) -> Result<Self::Value, D::Error> {
            Vec::deserialize(deserializer).map(Some)
        }
    }
    deserializer.deserialize_newtype_struct(SECRETS, Listed)
}

impl<'de> Deserialize<'de> for FilePath {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_newtype_struct(PATH, Named).map(|path| Self(path.into()))
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// Writes `90s` as `1m 30s`, and `Duration::MAX` as `forever`.
pub(crate) fn spell(time: Duration) -> String {
    if time == Duration::MAX { FOREVER.to_owned() } else { humantime::format_duration(time).to_string() }
}
