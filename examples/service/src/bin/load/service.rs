//! The service that is asked.

use reqwest::{Client, StatusCode};
use serde_json::Value;
use service::address::Address;
use traced_cache::BoxError;

/// A client of it. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Service {
    client: Client,
    address: Address,
}

impl Service {
    pub(crate) fn new(url: &str) -> Result<Self, BoxError> {
        let address = Address::new(url)?;
        Ok(Self { client: Client::builder().no_proxy().build()?, address })
    }

    /// What it says of its cache of airports.
    pub(crate) async fn airports(&self) -> Result<Value, BoxError> {
        let url = self.address.shown();
        let answer = self.client.get(self.address.at("/cache/stats")).send().await.map_err(|_cause| {
            format!(
                "no answer from {url}; start it with `cargo run --release -p service`, or name it with --url"
            )
        })?;
        let text = answer.error_for_status().map_err(|error| format!("{url}: {error}"))?.text().await?;
        let all: Value =
            serde_json::from_str(&text).map_err(|_other| format!("{url} is not this service's"))?;
        let mut caches = all["caches"].as_array().into_iter().flatten();
        let airports = caches.find(|cache| cache["name"] == "airports").cloned();
        airports.ok_or_else(|| format!("{url} has no cache of airports").into())
    }

    /// Asks for one airport; the whole answer is read.
    pub(crate) async fn airport(&self, code: &str) -> Option<StatusCode> {
        let answer = self.client.get(self.address.at(&format!("/airport/{code}"))).send().await.ok()?;
        let status = answer.status();
        answer.bytes().await.ok().map(|_| status)
    }
}
