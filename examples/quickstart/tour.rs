//! The tour: what each way through the cache costs. Every number in its rows is read from the recorded metrics.

use std::{sync::Arc, time::Duration};

use cache_otel::names;
use tokio::sync::Barrier;
use traced_cache::{BoxError, Memory, Policy, TracedCache};

use crate::{
    database::{Character, Database},
    metrics::{Metrics, Reading},
    remote::Remote,
};

const COLD: usize = 200;
const ROUNDS: usize = 500;
const CROWD: usize = 1_000;
/// What the crowd wants, LATIN SMALL LETTER E WITH CIRCUMFLEX AND ACUTE: with words that thousands of names have, a row
/// that takes the database longer than a thousand callers take to arrive.
const WANTED: u32 = 0x1ebf;
const BATCH: usize = 100;
const CHANGED: usize = 50;

/// One line of the table.
#[derive(Debug)]
pub(crate) struct Step {
    pub(crate) what: String,
    /// The mean of what this step is about.
    pub(crate) took: Duration,
    /// What the metrics counted meanwhile.
    pub(crate) seen: Reading,
}

/// The cache of one node: memory, and the second level if there is one.
pub(crate) fn cache(
    metrics: &Metrics,
    remote: Option<&Remote>,
) -> Result<TracedCache<Character>, traced_cache::Error> {
    let mut cache = TracedCache::builder("characters")
        .level(Memory::entries(10_000))
        .policy(Policy::ttl(Duration::from_secs(60)))
        .observer(metrics.telemetry());
    if let Some(remote) = remote {
        cache = cache.level(remote.level());
    }
    cache.build()
}

/// The heart of it: from the cache, or else from the database. A cached value comes as an `Arc`: nothing is copied.
async fn character(
    cache: &TracedCache<Character>,
    database: &Database,
    code: u32,
) -> Result<Option<Arc<Character>>, traced_cache::Error> {
    cache
        .get_or_set_with(code, database, |database, code| async move { database.character(code).await })
        .await
}

pub(crate) struct Tour<'a> {
    pub(crate) metrics: &'a Metrics,
    pub(crate) database: &'a Database,
    pub(crate) node: &'a TracedCache<Character>,
    /// Another node's cache on the same second level.
    pub(crate) other: Option<&'a TracedCache<Character>>,
}

impl Tour<'_> {
    /// Goes through all steps.
    pub(crate) async fn run(&self) -> Result<Vec<Step>, BoxError> {
        let codes = self.database.codes().await?;
        let needed = COLD + BATCH;
        if codes.len() <= needed {
            return Err(
                format!("the database has {} rows; the tour needs more than {needed}", codes.len()).into()
            );
        }
        // From all over the table, each at most once.
        let mut codes = codes.iter().copied().filter(|code| *code != WANTED).step_by(codes.len() / needed);
        let cold: Vec<u32> = codes.by_ref().take(COLD).collect();
        let batch: Vec<u32> = codes.take(BATCH).collect();

        let mut steps = vec![self.cold(&cold).await?, self.warm(&cold).await?];
        if let Some(other) = self.other {
            steps.push(self.other_node(other, &cold).await?);
        }
        steps.push(self.crowd(WANTED).await?);
        steps.push(self.batch(&batch).await?);
        steps.extend(self.change(&cold[..CHANGED]).await?);
        Ok(steps)
    }

    async fn cold(&self, codes: &[u32]) -> Result<Step, BoxError> {
        self.step(
            format!("cold load: {COLD} rows asked for once"),
            (names::OPERATION_DURATION, &single("miss")),
            async {
                for code in codes {
                    self.ask(self.node, *code).await?;
                }
                Ok(())
            },
        )
        .await
    }

    async fn warm(&self, codes: &[u32]) -> Result<Step, BoxError> {
        self.step(
            format!("L1 hit: the same {COLD} rows, {ROUNDS} times"),
            (names::OPERATION_DURATION, &[single("hit"), vec![(names::CACHE_LEVEL, "l1")]].concat()),
            async {
                for _ in 0..ROUNDS {
                    for code in codes {
                        self.ask(self.node, *code).await?;
                    }
                }
                Ok(())
            },
        )
        .await
    }

    async fn other_node(&self, other: &TracedCache<Character>, codes: &[u32]) -> Result<Step, BoxError> {
        self.step(
            format!("L2 hit: another node asks for the same {COLD} rows"),
            (names::OPERATION_DURATION, &[single("hit"), vec![(names::CACHE_LEVEL, "l2")]].concat()),
            async {
                for code in codes {
                    self.ask(other, *code).await?;
                }
                Ok(())
            },
        )
        .await
    }

    async fn crowd(&self, code: u32) -> Result<Step, BoxError> {
        self.step(
            format!("crowd: {CROWD} callers at once want one cold row"),
            // The one that loads and those that wait; a caller who comes after the load is a mere hit.
            (
                names::OPERATION_DURATION,
                &[(names::CACHE_OPERATION, "get_or_set"), (names::CACHE_LEVEL, names::NO_LEVEL)],
            ),
            async {
                let start = Arc::new(Barrier::new(CROWD));
                let callers: Vec<_> = (0..CROWD)
                    .map(|_| {
                        let (node, database) = (self.node.clone(), self.database.clone());
                        let start = Arc::clone(&start);
                        tokio::spawn(async move {
                            start.wait().await;
                            character(&node, &database, code).await
                        })
                    })
                    .collect();
                for caller in callers {
                    right(code, caller.await??.as_deref())?;
                }
                Ok(())
            },
        )
        .await
    }

    async fn batch(&self, codes: &[u32]) -> Result<Step, BoxError> {
        for code in &codes[..BATCH / 2] {
            self.ask(self.node, *code).await?;
        }
        self.step(
            format!("batch: {BATCH} rows in one call, half of them warm"),
            (names::OPERATION_DURATION, &[(names::CACHE_OPERATION, "get_or_set_many")]),
            async {
                let found = self
                    .node
                    .get_or_set_many(codes, self.database, |database, missing| async move {
                        database.characters(missing).await
                    })
                    .await?;
                for (code, character) in codes.iter().zip(found) {
                    right(*code, character.as_deref())?;
                }
                Ok(())
            },
        )
        .await
    }

    async fn change(&self, codes: &[u32]) -> Result<[Step; 2], BoxError> {
        for code in codes {
            self.database.annotate(*code, format!("seen at {code}")).await?;
        }
        let invalidated = self
            .step(
                format!("invalidation: {CHANGED} rows have changed"),
                (names::OPERATION_DURATION, &[(names::CACHE_OPERATION, "invalidate")]),
                async {
                    for code in codes {
                        if !self.node.invalidate(*code).await?.is_confirmed() {
                            return Err("an invalidation could not be delivered to the second level".into());
                        }
                    }
                    Ok(())
                },
            )
            .await?;
        let loaded = self
            .step(
                format!("after it: the {CHANGED} rows are asked for again"),
                (names::OPERATION_DURATION, &single("miss")),
                async {
                    for code in codes {
                        let character = self.ask(self.node, *code).await?;
                        if character.is_none_or(|character| character.note != format!("seen at {code}")) {
                            return Err(format!("U+{code:04X} is stale after its invalidation").into());
                        }
                    }
                    Ok(())
                },
            )
            .await?;
        Ok([invalidated, loaded])
    }

    async fn ask(
        &self,
        node: &TracedCache<Character>,
        code: u32,
    ) -> Result<Option<Arc<Character>>, BoxError> {
        let found = character(node, self.database, code).await?;
        right(code, found.as_deref())?;
        Ok(found)
    }

    /// Does some work, and says what the metrics saw of it: counts, and the mean of the `timed` series.
    async fn step(
        &self,
        what: String,
        timed: (&str, &[(&str, &str)]),
        work: impl Future<Output = Result<(), BoxError>>,
    ) -> Result<Step, BoxError> {
        let before = self.metrics.read()?;
        work.await?;
        let seen = &self.metrics.read()? - &before;
        let (name, having) = timed;
        let took = seen.mean(name, having);
        let took = took.ok_or_else(|| format!("{what}: nothing was recorded under {name} {having:?}"))?;
        Ok(Step { what, took, seen })
    }
}

/// Look-ups of one key with this result.
fn single(result: &'static str) -> Vec<(&'static str, &'static str)> {
    vec![(names::CACHE_OPERATION, "get_or_set"), (names::CACHE_RESULT, result)]
}

fn right(code: u32, found: Option<&Character>) -> Result<(), BoxError> {
    match found {
        Some(character) if character.code == code => Ok(()),
        Some(other) => Err(format!("asked for U+{code:04X}, got U+{:04X}", other.code).into()),
        None => Err(format!("U+{code:04X} is not in the database").into()),
    }
}
