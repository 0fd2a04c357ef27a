//! What the servers of a file say of themselves.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use futures::future::join_all;
use serde_json::{Value, json};
use traced_cache::{CacheProvider, ServerStatus, with_causes};

use crate::session::{ProviderAt, Session};

/// How long a provider may take to ask all of its servers.
const PATIENCE: Duration = Duration::from_secs(5);

/// What a server of a provider said, or why it did not answer.
#[derive(Clone)]
pub(crate) struct Row {
    pub(crate) provider: String,
    pub(crate) backend: String,
    pub(crate) status: Result<ServerStatus, String>,
}

/// The remote providers of the file, or of one cache of it.
pub(crate) fn asked(session: &Session, cache: Option<&str>) -> impl Iterator<Item = ProviderAt> {
    let of_cache: Option<BTreeSet<_>> = cache
        .and_then(|name| session.explained(name))
        .map(|cache| cache.levels.iter().map(|l| &l.provider).collect());
    session.providers().filter(move |provider| {
        provider.provider.in_process().is_none()
            && of_cache.as_ref().is_none_or(|of| of.contains(&provider.name))
    })
}

/// Asks all their servers at once.
pub(crate) async fn ask(session: &Session, cache: Option<&str>) -> Vec<Row> {
    let providers = asked(session, cache);
    let rows = join_all(providers.map(async |at| {
        let statuses = statuses(&at.provider).await;
        statuses.into_iter().map(move |status| Row {
            provider: at.name.clone(),
            backend: at.backend.clone(),
            status,
        })
    }))
    .await;
    rows.into_iter().flatten().collect()
}

async fn statuses(provider: &Arc<dyn CacheProvider>) -> Vec<Result<ServerStatus, String>> {
    match tokio::time::timeout(PATIENCE, provider.servers()).await {
        Ok(all) if all.is_empty() => {
            vec![Err("servers of this backend say nothing of themselves".to_owned())]
        }
        Ok(all) => all.into_iter().map(|status| status.map_err(|error| with_causes(&*error))).collect(),
        Err(_elapsed) => vec![Err("no answer in time".to_owned())],
    }
}

impl Row {
    pub(crate) fn json(&self) -> Value {
        let mut json = json!({ "provider": self.provider, "backend": self.backend });
        let more = match &self.status {
            Ok(status) => json!({
                "address": status.address,
                "version": status.version,
                "uptime_seconds": status.uptime.map(|time| time.as_secs()),
                "memory_used": status.memory_used,
                "memory_max": status.memory_max,
                "items": status.items,
                "hits": status.hits,
                "misses": status.misses,
                "hit_rate": status.hit_rate(),
                "evicted": status.evicted,
                "connections": status.connections,
            }),
            Err(error) => json!({ "error": error }),
        };
        if let (Value::Object(fields), Value::Object(more)) = (&mut json, more) {
            fields.extend(more);
        }
        json
    }

    /// Hits, misses and evictions since an earlier reading of the same server, instead of since its start.
    pub(crate) fn since(mut self, earlier: &[Self]) -> Self {
        if let Ok(status) = &mut self.status
            && let Some(old) = earlier
                .iter()
                .filter(|row| row.provider == self.provider)
                .find_map(|row| row.status.as_ref().ok().filter(|old| old.address == status.address))
        {
            // A server that was restarted counts from zero.
            let less = |now: Option<u64>, then: Option<u64>| Some(now?.checked_sub(then?).unwrap_or(now?));
            status.hits = less(status.hits, old.hits);
            status.misses = less(status.misses, old.misses);
            status.evicted = less(status.evicted, old.evicted);
        }
        self
    }
}
