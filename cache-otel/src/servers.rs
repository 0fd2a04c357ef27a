//! How the servers behind providers do, by their own word.

mod connections;
mod shown;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::Poll,
    time::Duration,
};

use cache_core::{CacheProvider, Description, PoolStatus, ServerStatus};
use opentelemetry::{Context, KeyValue, metrics::Meter, trace::FutureExt};
use tokio::{
    task::{AbortHandle, JoinSet},
    time::timeout,
};

#[cfg(feature = "redis")]
pub(crate) use self::shown::description;
use self::{connections::Connections, shown::Counts};

/// Most servers of one provider that are kept as down: where one never answers, and the others are replaced again and
/// again, each that has gone could be the one.
const MOST_DOWN: usize = 32;

/// The servers behind providers, asked in the background for as long as this lives: see
/// [`Telemetry::watch_servers`](crate::Telemetry::watch_servers).
#[must_use = "it asks until it is dropped"]
pub struct Servers {
    task: AbortHandle,
    /// Callbacks live as long as the meter provider. They report nothing once this is gone.
    _all: Arc<Mutex<All>>,
}

/// Providers by their names.
pub(crate) type Providers = Vec<(String, Arc<dyn CacheProvider>)>;

#[derive(Default)]
struct All {
    /// By the name of the provider and the server's address.
    seen: BTreeMap<(String, String), Seen>,
    /// Systems whose instruments are there.
    registered: BTreeSet<&'static str>,
    /// The connections of those providers that say how they stand, by name.
    pools: BTreeMap<String, PoolStatus>,
}

struct Seen {
    /// `redis`, `memcached`.
    system: &'static str,
    up: bool,
    /// In which round it answered last.
    round: u64,
    /// What it said last. It is not so any more while it is down.
    said: Option<ServerStatus>,
    counts: Counts,
    labels: Vec<KeyValue>,
}

/// The shortest time between two rounds: with less, zero say, the process would do nothing else.
pub(crate) const SHORTEST: Duration = Duration::from_millis(1);

impl Servers {
    pub(crate) fn watch(
        meter: Meter,
        every: Duration,
        providers: impl Fn() -> Providers + Send + 'static,
    ) -> Self {
        let all = Arc::new(Mutex::new(All::default()));
        let seen = Arc::downgrade(&all);
        let every = every.max(SHORTEST);
        let mut connections = Connections::new(&meter, &seen);
        let asking = async move {
            for round in 1.. {
                let list = caught(&providers);
                let answers = match list {
                    Some(list) => Some(ask(list, every).await),
                    None => None,
                };
                let Some(all) = seen.upgrade() else { return };
                let (new, pools) = {
                    let mut all = lock(&all);
                    let new = hear(&mut all, answers, round);
                    (new, all.pools.clone())
                };
                drop(all);
                connections.hear(pools);
                // Not under the lock: the SDK, which has one as well, takes this one when it collects.
                new.into_iter().for_each(|system| shown::register(&meter, system, &seen));
                tokio::time::sleep(every).await;
            }
        };
        // What is asked here is in no trace.
        let quiet = Context::new().with_telemetry_suppressed();
        Self { task: tokio::spawn(asking.with_context(quiet)).abort_handle(), _all: all }
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl fmt::Debug for Servers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Servers").finish_non_exhaustive()
    }
}

fn lock(all: &Mutex<All>) -> MutexGuard<'_, All> {
    all.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What the servers of one provider have said. `None`: one that does not answer.
struct Answer {
    name: String,
    /// `None`: the provider panics.
    about: Option<Description>,
    said: Vec<Option<ServerStatus>>,
    /// Of its own connections. `None`: it does not say.
    pool: Option<PoolStatus>,
}

/// Lists and providers are somebody else's code: a panic there must not end the watch, as what is up would seem so for ever.
fn caught<T>(work: impl FnOnce() -> T) -> Option<T> {
    catch_unwind(AssertUnwindSafe(work)).ok()
}

/// The same for what takes its time.
async fn caught_late<T>(work: impl Future<Output = T>) -> Option<T> {
    let mut work = pin!(work);
    std::future::poll_fn(|cx| match caught(|| work.as_mut().poll(cx)) {
        Some(poll) => poll.map(Some),
        None => Poll::Ready(None),
    })
    .await
}

/// Asks all providers at once.
async fn ask(providers: Providers, limit: Duration) -> Vec<Answer> {
    let mut asked = JoinSet::new();
    for (name, provider) in providers {
        if caught(|| provider.in_process().is_some()) == Some(true) {
            continue;
        }
        let asking = async move {
            // One that hangs, or panics, is as good as down.
            let said = timeout(limit, caught_late(async { provider.servers().await })).await;
            let said = said.ok().flatten().unwrap_or_default();
            let said = said.into_iter().map(Result::ok).collect();
            // Asked last: what was asked before may have been the first call.
            let pool = caught(|| provider.pool()).flatten();
            Answer { name, about: caught(|| provider.describe()), said, pool }
        };
        asked.spawn(asking.with_current_context());
    }
    let mut answers = Vec::new();
    while let Some(answer) = asked.join_next().await {
        answers.extend(answer);
    }
    answers
}

/// Takes what servers have said; `None`: nobody could say whom to ask. Says which systems are new.
fn hear(all: &mut All, answers: Option<Vec<Answer>>, round: u64) -> Vec<&'static str> {
    all.pools.clear();
    let Some(answers) = answers else {
        all.seen.values_mut().for_each(|seen| seen.up = false);
        return Vec::new();
    };
    all.seen.retain(|(name, _), _| answers.iter().any(|answer| answer.name == *name));
    let mut new = Vec::new();
    for answer in answers {
        let system = answer.about.as_ref().map(|about| about.system);
        new.extend(system.filter(|system| all.registered.insert(system)));
        all.take(answer, round);
    }
    new
}

impl All {
    fn take(&mut self, answer: Answer, round: u64) {
        let Answer { name, about, said, pool } = answer;
        self.pools.extend(pool.map(|pool| (name.clone(), pool)));
        let Some(about) = about else {
            self.seen.iter_mut().filter(|(of, _)| of.0 == name).for_each(|(_, seen)| seen.up = false);
            return;
        };
        let silent = said.iter().filter(|said| said.is_none()).count().max(usize::from(said.is_empty()));
        let mine = |of: &(String, String)| of.0 == name;
        for said in said.into_iter().flatten() {
            let seen = self.server(&name, &said.address, about.system);
            seen.counts.hear(&said, about.system);
            (seen.up, seen.round, seen.said) = (true, round, Some(said));
        }
        for (_, seen) in self.seen.iter_mut().filter(|(of, seen)| mine(of) && seen.round < round) {
            seen.up = false;
        }
        // Which server says nothing is not told, so it counts as one of those that answered before. Where all answer,
        // servers that are not among them are gone.
        let down = self.seen.iter().filter(|(of, seen)| mine(of) && !seen.up && seen.round > 0);
        let mut rounds: Vec<u64> = down.map(|(_, seen)| seen.round).collect();
        rounds.sort_unstable_by(|a, b| b.cmp(a));
        let oldest = match rounds.get(MOST_DOWN - 1) {
            _ if silent == 0 => round,
            Some(oldest) => *oldest,
            None => 1,
        };
        self.seen.retain(|of, seen| !mine(of) || seen.up || seen.round >= oldest);
        if rounds.len() < silent {
            let at = about.place().unwrap_or_default();
            self.server(&name, &at, about.system);
        }
    }

    fn server(&mut self, name: &str, at: &str, system: &'static str) -> &mut Seen {
        self.seen.entry((name.to_owned(), at.to_owned())).or_insert_with(|| Seen {
            system,
            up: false,
            round: 0,
            said: None,
            counts: Counts::default(),
            labels: shown::labels(name, at),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_that_says_nothing_is_down_under_the_address_that_it_had() {
        let at = |address: &str| Some(ServerStatus::at(address));
        let (mut all, mut round) = (All::default(), 0);
        let mut hear = |said: Vec<Option<ServerStatus>>| {
            let about = Description::remote("redis", "10.0.0.1", Some(6379));
            round += 1;
            super::hear(
                &mut all,
                Some(vec![Answer { name: "shared".to_owned(), about: Some(about), said, pool: None }]),
                round,
            );
            all.seen.iter().map(|((_, at), seen)| (at.clone(), seen.up)).collect::<Vec<_>>()
        };
        let seen = |at: &str, up| (at.to_owned(), up);
        // Not there from the beginning.
        assert_eq!(hear(vec![]), [seen("10.0.0.1:6379", false)]);
        assert_eq!(hear(vec![]), [seen("10.0.0.1:6379", false)]);
        assert_eq!(hear(vec![at("a:1"), at("b:1")]), [seen("a:1", true), seen("b:1", true)]);
        assert_eq!(hear(vec![at("a:1"), None]), [seen("a:1", true), seen("b:1", false)]);
        assert_eq!(hear(vec![None]), [seen("a:1", false), seen("b:1", false)]);
        // Another master in its place.
        assert_eq!(hear(vec![at("a:1"), at("c:1")]), [seen("a:1", true), seen("c:1", true)]);
        for other in 0..2 * MOST_DOWN {
            hear(vec![None, at(&format!("d:{other}"))]);
        }
        assert!(hear(vec![None]).len() <= MOST_DOWN + 1, "those before the last are forgotten");
    }
}
