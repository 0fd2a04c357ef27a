//! What goes wrong, as callers see it, and bodies that are read so that it can be said which field is wrong.

use axum::{
    Extension, Json,
    body::Bytes,
    extract::{FromRequest, Request},
    http::StatusCode,
    response::{IntoResponse, Response},
};
use serde::de::DeserializeOwned;
use serde_json::json;
use traced_cache::{Error, ErrorKind, with_causes};

/// An answer that is no success.
#[derive(Debug)]
pub(crate) struct Refusal {
    pub(crate) status: StatusCode,
    pub(crate) field: Option<String>,
    pub(crate) error: String,
    /// The same with what caused it, for the log alone: callers need not know where servers are.
    pub(crate) why: Option<String>,
}

impl Refusal {
    pub(crate) fn new(status: StatusCode, error: impl Into<String>) -> Self {
        Self { status, field: None, error: error.into(), why: None }
    }

    /// A field of the request is not as it must be.
    pub(crate) fn field(field: &str, error: impl Into<String>) -> Self {
        Self { field: Some(field.to_owned()), ..Self::new(StatusCode::BAD_REQUEST, error) }
    }

    pub(crate) fn not_found(error: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, error)
    }
}

impl From<Error> for Refusal {
    /// What the cache could not help: the source's failure, mostly. The error holds neither keys nor values.
    fn from(error: Error) -> Self {
        let status = match error.kind() {
            ErrorKind::Key | ErrorKind::Tag => StatusCode::BAD_REQUEST,
            ErrorKind::LoadTimeout => StatusCode::GATEWAY_TIMEOUT,
            ErrorKind::Load | ErrorKind::Level | ErrorKind::Closed => StatusCode::SERVICE_UNAVAILABLE,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Self { why: Some(with_causes(&error)), ..Self::new(status, error.to_string()) }
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let body = match &self.field {
            Some(field) => json!({ "error": self.error, "field": field }),
            None => json!({ "error": self.error }),
        };
        (self.status, Extension(Why(self.why.unwrap_or(self.error))), Json(body)).into_response()
    }
}

/// What was wrong, for the log of whoever sees the response.
#[derive(Clone)]
pub(crate) struct Why(pub(crate) String);

/// A JSON body.
pub(crate) struct Body<T>(pub(crate) T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Body<T> {
    type Rejection = Refusal;

    async fn from_request(request: Request, state: &S) -> Result<Self, Refusal> {
        let bytes = Bytes::from_request(request, state).await.map_err(|rejection| {
            Refusal::new(rejection.status(), "the body could not be read, or is longer than 64 KiB")
        })?;
        let mut reader = serde_json::Deserializer::from_slice(&bytes);
        let value: T = serde_path_to_error::deserialize(&mut reader).map_err(|error| {
            let (path, error) = (error.path().to_string(), error.inner().to_string());
            // Of a field that is missing or not known, serde only says it in words.
            let named = error.split('`').nth(1).filter(|_| error.contains(" field `"));
            match (named, path.as_str()) {
                (Some(name), "." | "") => Refusal::field(name, &*error),
                // The path may have it already.
                (Some(name), path) if path == name || path.ends_with(&format!(".{name}")) => {
                    Refusal::field(path, &*error)
                }
                (Some(name), path) => Refusal::field(&format!("{path}.{name}"), &*error),
                (None, "." | "" | "?") => Refusal::field("(body)", &*error),
                (None, path) => Refusal::field(path, &*error),
            }
        })?;
        reader.end().map_err(|error| Refusal::field("(body)", error.to_string()))?;
        Ok(Self(value))
    }
}
