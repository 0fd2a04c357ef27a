//! The page over HTTP.

use std::convert::Infallible;

use axum::{
    Json, Router,
    extract::{
        DefaultBodyLimit, Form, FromRequest, FromRequestParts, Path, Request, State, rejection::JsonRejection,
    },
    http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header, request::Parts},
    middleware::{self, Next},
    response::{Html, IntoResponse, Response},
    routing::{get, post},
};
use cache_core::{Delivery, Error, ErrorKind};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::{
    Page,
    html::{self, Done},
    look::Look,
    report::Cache,
};

/// Most bytes of a body: a key, a tag.
const BODY_MAX: usize = 16 << 10;

/// Most caches that an error names.
const NAMED: usize = 10;

const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = include_str!("page.js");

/// Nothing from anywhere else, nothing inline.
const POLICY: &str = "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; img-src data:; form-action 'self'; \
                      base-uri 'none'; frame-ancestors 'none'";

const HEADERS: [(HeaderName, &str); 5] = [
    (header::CONTENT_SECURITY_POLICY, POLICY),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::X_FRAME_OPTIONS, "DENY"),
    (header::REFERRER_POLICY, "no-referrer"),
    (header::CACHE_CONTROL, "no-store"),
];

impl Page {
    /// The routes of the page, under its [`path`](crate::PageBuilder::path). Merge it into your own router: outside what asks
    /// who is calling, it is open to whoever can reach the service.
    ///
    /// | route | what it answers |
    /// | --- | --- |
    /// | `GET /cache` | all caches |
    /// | `GET /cache/caches/{name}` | one of them, with a form where looking up is allowed |
    /// | `GET /cache/api/caches`, `GET /cache/api/caches/{name}` | the same as JSON |
    /// | `POST /cache/api/look-up` | `{"cache": "users", "key": "42"}`: what levels hold of a key, for whom the guard allows |
    /// | `POST /cache/api/invalidate` | the same, or with a `tag`; where that is allowed, too |
    pub fn router(&self) -> Router {
        let path = &self.0.options.path;
        let at = |rest: &str| format!("{path}{rest}");
        let home = if path.is_empty() { "/".to_owned() } else { path.clone() };
        Router::new()
            .route(&home, get(overview))
            .route(&at("/caches/{*name}"), get(one).post(act))
            .route(&at("/api/caches"), get(all_as_json))
            .route(&at("/api/caches/{*name}"), get(one_as_json))
            .route(&at("/api/look-up"), post(look_up))
            .route(&at("/api/invalidate"), post(invalidate))
            .route(&at("/page.css"), get(|| asset("text/css; charset=utf-8", STYLE)))
            .route(&at("/page.js"), get(|| asset("text/javascript; charset=utf-8", SCRIPT)))
            .layer(DefaultBodyLimit::max(BODY_MAX))
            .layer(middleware::from_fn(with_headers))
            .with_state(self.clone())
    }

    fn one(&self, name: &str) -> Result<Cache, Refusal> {
        let watched = self.watched(name);
        watched.and_then(|watched| Cache::of(&watched, true)).ok_or_else(|| self.absent())
    }

    /// Does not repeat the name: it may be a key in the wrong place.
    fn absent(&self) -> Refusal {
        let all = self.all();
        let names: Vec<_> = all.iter().map(|watched| &*watched.name).take(NAMED).collect();
        let more = if all.len() > NAMED { ", ..." } else { "" };
        let error = match names.is_empty() {
            true => "there is no cache here: give one this page as an observer".to_owned(),
            false => format!("there is no cache of this name here; use one of: {}{more}", names.join(", ")),
        };
        Refusal { status: StatusCode::NOT_FOUND, ..Refusal::field("cache", error) }
    }
}

async fn with_headers(request: Request, next: Next) -> Response {
    let mut response = next.run(request).await;
    response.headers_mut().extend(HEADERS.map(|(name, value)| (name, HeaderValue::from_static(value))));
    response
}

async fn asset(kind: &'static str, text: &'static str) -> Response {
    ([(header::CONTENT_TYPE, kind)], text).into_response()
}

/// What is not done, and why.
#[derive(Debug)]
struct Refusal {
    status: StatusCode,
    field: Option<&'static str>,
    error: String,
    /// A browser may ask for a password.
    asks: bool,
}

impl Refusal {
    fn new(status: StatusCode, error: impl Into<String>) -> Self {
        Self { status, field: None, error: error.into(), asks: false }
    }

    fn field(field: &'static str, error: impl Into<String>) -> Self {
        Self { field: Some(field), ..Self::new(StatusCode::BAD_REQUEST, error) }
    }

    fn with_challenge(self, mut response: Response) -> Response {
        *response.status_mut() = self.status;
        if self.asks {
            let challenge = HeaderValue::from_static("Basic realm=\"the caches' keys\", charset=\"UTF-8\"");
            response.headers_mut().insert(header::WWW_AUTHENTICATE, challenge);
        }
        response
    }
}

impl From<Error> for Refusal {
    /// Such an error holds neither keys nor values.
    fn from(error: Error) -> Self {
        match error.kind() {
            ErrorKind::Key => Self::field("key", error.to_string()),
            ErrorKind::Tag => Self::field("tag", error.to_string()),
            _ => Self::new(StatusCode::SERVICE_UNAVAILABLE, error.to_string()),
        }
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let body = match self.field {
            Some(field) => json!({ "error": self.error, "field": field }),
            None => json!({ "error": self.error }),
        };
        self.with_challenge(Json(body).into_response())
    }
}

/// The name of a cache, as the path has it. What is no text is the name of none.
struct Name(String);

impl<S: Send + Sync> FromRequestParts<S> for Name {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Infallible> {
        let name = Path::<String>::from_request_parts(parts, state).await;
        Ok(Self(name.map_or_else(|_| String::new(), |Path(name)| name)))
    }
}

async fn overview(State(page): State<Page>) -> Html<String> {
    Html(html::overview(&page.0.options, &page.report()))
}

async fn one(State(page): State<Page>, Name(name): Name) -> Response {
    match page.one(&name) {
        Ok(cache) => Html(html::one(&page.0.options, &cache, &Done::Nothing)).into_response(),
        Err(refusal) => {
            let body = Html(html::refused(&page.0.options, &refusal.error)).into_response();
            refusal.with_challenge(body)
        }
    }
}

async fn all_as_json(State(page): State<Page>) -> Response {
    Json(page.report()).into_response()
}

async fn one_as_json(State(page): State<Page>, Name(name): Name) -> Result<Json<Cache>, Refusal> {
    page.one(&name).map(Json)
}

/// What somebody wants to know or to have done.
#[derive(Debug)]
enum Act {
    LookUp { key: String },
    InvalidateKey { key: String },
    InvalidateTag { tag: String },
}

/// What came of it.
#[derive(Debug)]
enum Came {
    Look(Look),
    Delivery(Delivery),
}

impl Page {
    /// Whether whoever sent this may do what it asks for.
    fn may(&self, act: &Act, headers: &HeaderMap) -> Result<(), Refusal> {
        let options = &self.0.options;
        let forbidden = |error: &str| Refusal::new(StatusCode::FORBIDDEN, error);
        let guard = options.look_up.as_ref().ok_or_else(|| {
            forbidden(
                "looking keys up is off here; the service's code turns it on with `look_up` and a guard",
            )
        })?;
        if !is_of_this_page(headers) {
            return Err(forbidden("sent from another site"));
        }
        if !guard.allows(headers) {
            let asks = guard.asks();
            let status = if asks { StatusCode::UNAUTHORIZED } else { StatusCode::FORBIDDEN };
            return Err(Refusal { asks, ..Refusal::new(status, "for those only whom this service knows") });
        }
        if !options.invalidate && !matches!(act, Act::LookUp { .. }) {
            return Err(forbidden(
                "invalidating is off here; the service's code turns it on with `invalidate(true)`",
            ));
        }
        Ok(())
    }

    async fn act(&self, name: &str, act: Act, headers: &HeaderMap) -> Result<Came, Refusal> {
        self.may(&act, headers)?;
        let watched = self.watched(name).ok_or_else(|| self.absent())?;
        let shown = watched.shown().ok_or_else(|| {
            let error =
                "only this cache's counts are known here; the service's code shows it with `Page::show`";
            Refusal::new(StatusCode::CONFLICT, error)
        })?;
        Ok(match act {
            Act::LookUp { key } => Came::Look(Look::of(&shown.inspect(key, self.0.options.values).await?)),
            Act::InvalidateKey { key } => Came::Delivery(shown.invalidate(key).await?),
            Act::InvalidateTag { tag } => Came::Delivery(shown.invalidate_tag(tag).await?),
        })
    }
}

/// A browser says where a form is from. What says nothing is no browser, and brings no cookies or passwords of anybody's.
fn is_of_this_page(headers: &HeaderMap) -> bool {
    let text = |name: HeaderName| headers.get(name).and_then(|value| value.to_str().ok());
    if let Some(site) = text(HeaderName::from_static("sec-fetch-site")) {
        return matches!(site, "same-origin" | "none");
    }
    match (headers.contains_key(header::ORIGIN), text(header::ORIGIN), text(header::HOST)) {
        (false, ..) => true,
        (true, Some(origin), Some(host)) => origin.split_once("://").is_some_and(|(_, from)| from == host),
        _ => false,
    }
}

#[derive(Deserialize)]
struct Filled {
    action: String,
    #[serde(default)]
    key: String,
    #[serde(default)]
    tag: String,
}

/// What the page's forms send. The key is in the body, so that it is in nobody's log of addresses.
async fn act(
    State(page): State<Page>,
    Name(name): Name,
    headers: HeaderMap,
    Form(Filled { action, key, tag }): Form<Filled>,
) -> Response {
    let asked = key.clone();
    let act = match action.as_str() {
        "look-up" => Act::LookUp { key },
        "invalidate" => Act::InvalidateKey { key },
        "invalidate-tag" => Act::InvalidateTag { tag },
        _ => return Refusal::field("action", "look-up, invalidate or invalidate-tag").into_response(),
    };
    let cache = match page.one(&name) {
        Ok(cache) => cache,
        Err(refusal) => return refusal.into_response(),
    };
    let options = &page.0.options;
    match page.act(&name, act, &headers).await {
        Ok(came) => {
            let done = match came {
                Came::Look(look) => Done::Looked { key: asked, look },
                Came::Delivery(delivery) => Done::Invalidated { confirmed: delivery.is_confirmed() },
            };
            Html(html::one(options, &cache, &done)).into_response()
        }
        Err(refusal) => {
            let body = html::one(options, &cache, &Done::Refused { error: &refusal.error });
            let response = Html(body).into_response();
            refusal.with_challenge(response)
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Asked {
    cache: String,
    key: Option<String>,
    tag: Option<String>,
}

/// A body, or in one sentence what is wrong with it.
struct Body(Asked);

impl FromRequest<Page> for Body {
    type Rejection = Refusal;

    async fn from_request(request: Request, page: &Page) -> Result<Self, Refusal> {
        let body = Json::<Asked>::from_request(request, page).await;
        body.map(|Json(asked)| Self(asked)).map_err(|rejection: JsonRejection| {
            // It may quote the body, which has a key.
            let error = match rejection.status() {
                StatusCode::PAYLOAD_TOO_LARGE => "the body is longer than 16 KiB",
                StatusCode::UNSUPPORTED_MEDIA_TYPE => "send `content-type: application/json`",
                _ => "send an object with `cache`, and `key` or `tag`, as strings",
            };
            let status = match rejection.status() {
                StatusCode::UNPROCESSABLE_ENTITY => StatusCode::BAD_REQUEST,
                status => status,
            };
            Refusal { field: Some("(body)"), ..Refusal::new(status, error) }
        })
    }
}

async fn look_up(
    State(page): State<Page>,
    headers: HeaderMap,
    Body(asked): Body,
) -> Result<Response, Refusal> {
    let Asked { cache, key: Some(key), tag: None } = asked else {
        return Err(Refusal::field("key", "name the key"));
    };
    answer(page.act(&cache, Act::LookUp { key }, &headers).await)
}

async fn invalidate(
    State(page): State<Page>,
    headers: HeaderMap,
    Body(asked): Body,
) -> Result<Response, Refusal> {
    let Asked { cache, key, tag } = asked;
    let act = match (key, tag) {
        (Some(key), None) => Act::InvalidateKey { key },
        (None, Some(tag)) => Act::InvalidateTag { tag },
        _ => return Err(Refusal::field("key", "name a key or a tag")),
    };
    answer(page.act(&cache, act, &headers).await)
}

#[derive(Serialize)]
struct Delivered {
    /// `pending`: a level could not be reached, and hears of it when it is back.
    delivery: &'static str,
}

fn answer(came: Result<Came, Refusal>) -> Result<Response, Refusal> {
    Ok(match came? {
        Came::Look(look) => Json(look).into_response(),
        Came::Delivery(delivery) => {
            let delivery = if delivery.is_confirmed() { "confirmed" } else { "pending" };
            Json(Delivered { delivery }).into_response()
        }
    })
}
