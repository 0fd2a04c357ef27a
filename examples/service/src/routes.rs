//! Reading, writing and invalidating airports.

use std::sync::Arc;

use axum::{
    Json,
    extract::{Path, State},
    http::StatusCode,
    response::{IntoResponse, Response},
};
use serde::Deserialize;
use serde_json::json;
use traced_cache::Delivery;

use crate::{
    BATCH_MAX, Service,
    airport::{Airport, Size, code},
    answer::{Body, Refusal},
};

type Shared = State<Arc<Service>>;

fn unknown() -> Refusal {
    Refusal::not_found("there is no airport of this code; codes are ICAO's, or IATA's where ICAO has none")
}

/// From the cache, else from the database. That there is none is remembered, too.
pub(crate) async fn airport(
    State(service): Shared,
    Path(asked): Path<String>,
) -> Result<Json<Arc<Airport>>, Refusal> {
    // What can be no code is not worth a place in the cache.
    let code = code(&asked).ok_or_else(unknown)?;
    let found = service.airports.get(code).await?;
    found.map(Json).ok_or_else(unknown)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Batch {
    codes: Vec<String>,
}

/// Many at once, in the asked order, `null` for those that are not: at most one query.
pub(crate) async fn batch(State(service): Shared, Body(batch): Body<Batch>) -> Result<Response, Refusal> {
    let Batch { codes } = batch;
    if codes.len() > BATCH_MAX {
        let error = format!("{} codes; send {BATCH_MAX} at most at once", codes.len());
        return Err(Refusal {
            field: Some("codes".into()),
            ..Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, error)
        });
    }
    let plain: Vec<Option<String>> = codes.iter().map(|asked| code(asked)).collect();
    let mut found = service.airports.get_many(plain.iter().flatten()).await?.into_iter();
    let all: Vec<_> = plain.iter().map(|plain| plain.as_ref().and_then(|_| found.next().flatten())).collect();
    Ok(Json(json!({ "airports": all })).into_response())
}

/// An airport as a client sends it: without its code, which is in the path, and what the database works out.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Draft {
    iata: Option<String>,
    name: String,
    country: String,
    time_zone: String,
    latitude: f64,
    longitude: f64,
    elevation_ft: Option<i32>,
    size: Size,
    runway_ft: Option<u32>,
}

impl Draft {
    fn check(&self) -> Result<(), Refusal> {
        if self.name.trim().is_empty() || self.name.len() > 200 {
            return Err(Refusal::field("name", "give it 1 to 200 bytes"));
        }
        if self.country.len() != 2 || !self.country.bytes().all(|byte| byte.is_ascii_uppercase()) {
            return Err(Refusal::field("country", "two capital letters, such as DE"));
        }
        if !(-90.0..=90.0).contains(&self.latitude) {
            return Err(Refusal::field("latitude", "degrees from -90 to 90"));
        }
        if !(-180.0..=180.0).contains(&self.longitude) {
            return Err(Refusal::field("longitude", "degrees from -180 to 180"));
        }
        Ok(())
    }
}

/// Write-through: the database first, then every level. Once this has answered, nobody gets the old one from a level that
/// could be reached.
pub(crate) async fn save(
    State(service): Shared,
    Path(asked): Path<String>,
    Body(draft): Body<Draft>,
) -> Result<Response, Refusal> {
    let code = code(&asked)
        .ok_or_else(|| Refusal::field("code", "3 to 7 letters and digits, as in the path /airport/EDDF"))?;
    draft.check()?;
    let Draft { iata, name, country, time_zone, latitude, longitude, elevation_ft, size, runway_ft } = draft;
    let airport = Airport {
        code: code.clone(),
        iata,
        name,
        country,
        time_zone,
        latitude,
        longitude,
        elevation_ft,
        size,
        runway_ft,
        near: Vec::new(),
    };
    let airport = service.database.near(airport).await.map_err(|error| unavailable(&*error))?;
    let airport = Arc::new(airport);
    let delivery = service.airports.save(code, Arc::clone(&airport)).await?;
    Ok(Json(json!({ "airport": airport, "delivery": word(delivery) })).into_response())
}

/// Deletes it from the database, then from every level.
pub(crate) async fn remove(State(service): Shared, Path(asked): Path<String>) -> Result<Response, Refusal> {
    let code = code(&asked).ok_or_else(unknown)?;
    let delivery = service.airports.delete(code).await?;
    Ok(Json(json!({ "delivery": word(delivery) })).into_response())
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Invalidate {
    key: Option<String>,
    tag: Option<String>,
}

/// For whoever has changed the database behind the service's back: by the code of one airport, or by the tag of many
/// (`country:DE`).
pub(crate) async fn invalidate(
    State(service): Shared,
    Body(body): Body<Invalidate>,
) -> Result<Response, Refusal> {
    let cache = service.airports.cache();
    let delivery = match body {
        Invalidate { key: Some(key), tag: None } => {
            let code = code(&key).ok_or_else(|| Refusal::field("key", "the code of an airport"))?;
            cache.invalidate(code).await?
        }
        Invalidate { key: None, tag: Some(tag) } => cache.invalidate_tag(tag).await?,
        Invalidate { key: Some(_), tag: Some(_) } => {
            return Err(Refusal::field("tag", "name a key or a tag, not both"));
        }
        Invalidate { key: None, tag: None } => {
            return Err(Refusal::field("key", "name a key, or a tag such as country:DE"));
        }
    };
    Ok(Json(json!({ "delivery": word(delivery) })).into_response())
}

/// `confirmed`: every level has it. `pending`: one could not be reached, and hears of it when it is back.
pub(crate) fn word(delivery: Delivery) -> &'static str {
    if delivery.is_confirmed() { "confirmed" } else { "pending" }
}

fn unavailable(error: &(dyn std::error::Error + Send + Sync)) -> Refusal {
    Refusal::new(StatusCode::SERVICE_UNAVAILABLE, error.to_string())
}
