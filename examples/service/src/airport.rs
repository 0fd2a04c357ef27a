//! What the service is about, and where it comes from.

use serde::{Deserialize, Serialize};
use traced_cache::{BoxError, Loaded, Source};

use crate::database::Database;

/// An airport.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Airport {
    /// ICAO code, else IATA.
    pub code: String,
    /// IATA code.
    pub iata: Option<String>,
    /// Its name.
    pub name: String,
    /// Two letters.
    pub country: String,
    /// `Europe/Berlin`.
    pub time_zone: String,
    /// Degrees.
    pub latitude: f64,
    /// Degrees.
    pub longitude: f64,
    /// Feet above the sea.
    pub elevation_ft: Option<i32>,
    /// How large it is.
    pub size: Size,
    /// The longest runway, in feet.
    pub runway_ft: Option<u32>,
    /// Codes of the five nearest, nearest first.
    pub near: Vec<String>,
}

/// How large an airport is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs, reason = "they say it")]
pub enum Size {
    Small,
    Medium,
    Large,
    Seaplane,
    Heliport,
}

impl Size {
    const ALL: [Self; 5] = [Self::Small, Self::Medium, Self::Large, Self::Seaplane, Self::Heliport];

    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Small => "small",
            Self::Medium => "medium",
            Self::Large => "large",
            Self::Seaplane => "seaplane",
            Self::Heliport => "heliport",
        }
    }

    pub(crate) fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|size| size.as_str() == name)
    }
}

impl Airport {
    /// What its cache entry can be invalidated by, beside its code.
    #[must_use]
    pub fn tag(&self) -> String {
        format!("country:{}", self.country)
    }

    /// From a line of `data/airports.tsv.xz`.
    pub(crate) fn from_line(line: &str) -> Option<Self> {
        let mut fields = line.split('\t');
        let mut next = || fields.next();
        let text = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        Some(Self {
            code: text(next()?)?,
            iata: text(next()?),
            name: text(next()?)?,
            country: text(next()?)?,
            time_zone: text(next()?)?,
            latitude: next()?.parse().ok()?,
            longitude: next()?.parse().ok()?,
            elevation_ft: number(next()?)?,
            size: Size::named(next()?)?,
            runway_ft: number(next()?)?,
            near: Vec::new(),
        })
    }
}

/// A number, or nothing where nothing is known; `None`: neither.
#[allow(clippy::option_option, reason = "the outer one is for `?`")]
fn number<N: std::str::FromStr>(text: &str) -> Option<Option<N>> {
    match text {
        "" => Some(None),
        text => text.parse().ok().map(Some),
    }
}

/// A code as the database has it; `None` for what can be none.
#[must_use]
pub fn code(text: &str) -> Option<String> {
    let plain = text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
    ((3..=7).contains(&text.len()) && plain).then(|| text.to_ascii_uppercase())
}

/// The table behind the cache.
#[derive(Clone, Debug)]
pub struct Airports(pub Database);

impl Source<String, Airport> for Airports {
    async fn load(&self, code: &String) -> Result<Loaded<Airport>, BoxError> {
        Ok(self.0.airport(code).await?.map_or_else(Loaded::absent, tagged))
    }

    async fn load_many(&self, codes: &[String]) -> Result<Vec<(String, Loaded<Airport>)>, BoxError> {
        let found = self.0.airports(codes).await?;
        Ok(found.into_iter().map(|airport| (airport.code.clone(), tagged(airport))).collect())
    }

    async fn save(&self, _code: &String, airport: &Airport) -> Result<(), BoxError> {
        self.0.save(airport.clone()).await
    }

    /// As `load` gives them: what is saved is invalidated with its country, too.
    fn tags(&self, _code: &String, airport: &Airport) -> Vec<Box<str>> {
        vec![airport.tag().into()]
    }

    async fn delete(&self, code: &String) -> Result<(), BoxError> {
        self.0.delete(code).await
    }
}

fn tagged(airport: Airport) -> Loaded<Airport> {
    let tag = airport.tag();
    Loaded::value(airport).tag(tag)
}
