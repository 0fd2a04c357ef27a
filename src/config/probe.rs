//! Checks whether a backplane comes up, by listening to it as a cache would.

use std::{sync::Arc, time::Duration};

use cache_core::{Backplane, Listener, with_causes};
use tokio::{sync::watch, time::timeout};

/// Longer than any backplane of this crate takes to come up, or to report why it does not.
const LIMIT: Duration = Duration::from_secs(10);

/// A listener that only waits for its first news.
struct Probe {
    heard: watch::Sender<Option<Result<(), String>>>,
    /// Whether the cache keeps its entries on the backplane's server, which then watches them.
    keeps: bool,
}

impl Probe {
    /// Only the first news counts.
    fn hear(&self, said: impl FnOnce() -> Result<(), String>) {
        self.heard.send_if_modified(|heard| {
            let first = heard.is_none();
            if first {
                *heard = Some(said());
            }
            first
        });
    }
}

impl Listener for Probe {
    fn message(&self, _: &[u8]) {}

    fn gap(&self) {
        self.hear(|| Ok(()));
    }

    /// No news: it has not come up yet, and may still, or report why not.
    fn down(&self) {}

    fn fails(&self, error: &(dyn std::error::Error + 'static)) {
        self.hear(|| Err(with_causes(error)));
    }

    fn keeps_in(&self, _: u64) -> bool {
        self.keeps
    }

    /// Nobody waits for it any more.
    fn is_closed(&self) -> bool {
        self.heard.is_closed()
    }
}

/// Whether a cache of this name would hear other nodes. Sends them nothing.
pub(crate) async fn comes_up(backplane: &dyn Backplane, cache: &str, keeps: bool) -> Result<(), String> {
    let heard = watch::Sender::new(None);
    let mut said = heard.subscribe();
    backplane.subscribe(cache, Arc::new(Probe { heard, keeps }));
    match timeout(LIMIT, said.wait_for(Option::is_some)).await {
        Ok(Ok(said)) => said.clone().unwrap_or(Ok(())),
        _ => Err(format!("has not come up within {LIMIT:?}, and does not say why")),
    }
}
