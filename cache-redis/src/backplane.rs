//! Redis pub/sub as a [`Backplane`].

use std::{
    collections::BTreeSet,
    fmt,
    future::{Future, pending},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use cache_core::{Backplane, BoxError, Listener};
use redis::{RedisError, cmd};
use tokio::{
    runtime::Handle,
    time::{Instant, MissedTickBehavior, interval_at, sleep, sleep_until, timeout},
};

use crate::{
    Error,
    backoff::Backoff,
    connection::Link,
    ears::Ears,
    keeper::{Keeper, State},
    settings::Settings,
    wire,
};

/// How often listeners are told again while the channel is down, in silences that would go unnoticed: whatever they have
/// kept meanwhile may be wrong.
const BLIND: u32 = 5;
/// A connection that lived this long was a good one.
const STABLE: Duration = Duration::from_secs(1);

/// Carries invalidations between nodes over Redis pub/sub. Made by
/// [`RedisProvider::backplane`](crate::RedisProvider::backplane). Cheap to clone; clones share one connection, which is
/// not the provider's.
///
/// - A message that has been published reaches every node that is connected at that moment. Whoever is not is told of a
///   gap: when the connection breaks, when it is back, and in between every five times the silence below.
/// - It publishes a heartbeat to itself and expects to hear it. When nothing came for the heartbeat and its timeout
///   together (1 s + 1 s unless set otherwise), the connection is given up: a gap.
/// - Listeners are called by the task that reads, in order, one at a time. Nothing queues here; a reader that is too slow
///   is cut off by the server (`client-output-buffer-limit pubsub`, 32 MiB), which is a gap.
/// - Nodes of one cache have server, database, key prefix and the cache's name in common.
///
/// The first subscription starts a task on the runtime of its caller. It ends with the last clone, or at
/// [`close`](Self::close).
#[derive(Clone)]
pub struct RedisBackplane(Arc<Owner>);

struct Owner(Arc<Shared>);

impl Drop for Owner {
    fn drop(&mut self) {
        self.0.keeper.close_soon();
    }
}

struct Shared {
    keeper: Arc<Keeper>,
    ears: Arc<Ears>,
    running: AtomicBool,
}

impl RedisBackplane {
    pub(crate) fn new(settings: Arc<Settings>) -> Self {
        let ears = Arc::new(Ears::default());
        let hears = Arc::clone(&ears);
        let keeper =
            Keeper::hearing(settings, Arc::new(move |connection, push| hears.push(connection, &push)));
        Self(Arc::new(Owner(Arc::new(Shared { keeper, ears, running: AtomicBool::new(false) }))))
    }

    /// Gives the connection up. What is published after it fails; listeners are told of a gap.
    pub async fn close(&self) {
        self.0.0.keeper.close().await;
    }
}

#[async_trait]
impl Backplane for RedisBackplane {
    async fn publish(&self, cache: &str, message: Bytes) -> Result<(), BoxError> {
        let shared = &self.0.0;
        if !shared.ears.is_empty() {
            shared.start();
        }
        let link = shared.keeper.link().await?;
        let channel = shared.channel(cache);
        let reply = link.command(cmd("PUBLISH").arg(channel).arg(&message[..])).await;
        Ok(wire::done(reply.map_err(Error::request)?)?)
    }

    fn subscribe(&self, cache: &str, listener: Arc<dyn Listener>) {
        let shared = &self.0.0;
        shared.ears.add(shared.channel(cache), listener);
        shared.start();
    }
}

impl Shared {
    /// Pub/sub knows no databases.
    fn channel(&self, cache: &str) -> String {
        let Settings { prefix, login, .. } = &*self.keeper.settings;
        let database = login.database;
        format!("{prefix}b:{database}:{{{cache}}}")
    }

    fn start(self: &Arc<Self>) {
        let Ok(runtime) = Handle::try_current() else { return };
        if !self.running.swap(true, Ordering::AcqRel) {
            runtime.spawn(run(Running(Arc::clone(self))));
        }
    }
}

/// Says so when the task ends, however it does, so that the next call starts another.
struct Running(Arc<Shared>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.running.store(false, Ordering::Release);
        self.0.ears.down();
    }
}

#[derive(PartialEq, Eq)]
enum End {
    Lost,
    /// The server does not let us.
    Refused,
    Closed,
}

async fn run(guard: Running) {
    let Shared { keeper, ears, .. } = &*guard.0;
    let silence = keeper.settings.silence();
    let node = fastrand::u64(..);
    let mut backoff = Backoff::new();
    let mut lost = None;
    loop {
        let link = tokio::select! {
            biased;
            link = keeper.up(lost) => link,
            () = sleep(silence.saturating_mul(BLIND)), if !ears.is_empty() => {
                ears.down();
                continue;
            }
        };
        let Some(link) = link else { return };
        let since = Instant::now();
        let end = tokio::select! {
            biased;
            () = keeper.closed() => End::Closed,
            end = stay(&keeper.settings, ears, &link, node) => end,
        };
        match end {
            End::Closed => return,
            End::Lost => {
                lost = Some(link.generation);
                link.condemn();
                drop(link);
                ears.down();
            }
            // Publishing may still work.
            End::Refused => {
                drop(link);
                ears.down();
                tokio::select! {
                    () = keeper.closed() => return,
                    () = sleep(backoff.after_failure()) => {}
                }
            }
        }
        if since.elapsed() >= STABLE {
            backoff.reset();
        }
    }
}

type Beat<'a> = Pin<Box<dyn Future<Output = Result<(), End>> + Send + 'a>>;

/// Listens on one connection until it ends.
async fn stay(settings: &Settings, ears: &Ears, link: &Link, node: u64) -> End {
    let silence = settings.silence();
    // Nobody else hears it, so that many nodes do not drown in each other's.
    let own = format!("{}b:beat:{:016x}{:016x}", settings.prefix, node, link.generation);
    ears.begin(link.generation);
    if let Err(end) = subscribe(link, &BTreeSet::from([own.clone()]), silence).await {
        return end;
    }
    let mut confirmed = BTreeSet::new();
    let mut beat: Option<Beat<'_>> = None;
    let mut beats = interval_at(Instant::now(), settings.heartbeat);
    beats.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let wanted = ears.wanted();
        if let Err(end) = follow(link, &wanted, &mut confirmed, silence).await {
            return end;
        }
        ears.up(link.generation, &confirmed);
        let silent_at = ears.heard().map_or_else(Instant::now, Instant::from_std) + silence;
        tokio::select! {
            biased;
            () = link.ended() => return End::Lost,
            () = ears.changed.notified() => {}
            sent = sent(&mut beat) => {
                if let Err(end) = sent {
                    return end;
                }
                beat = None;
            }
            _ = beats.tick() => {
                if beat.is_none() {
                    beat = Some(Box::pin(publish(link, &own)));
                }
            }
            () = sleep_until(silent_at) => {
                if ears.heard().is_none_or(|heard| heard.elapsed() >= silence) {
                    return End::Lost;
                }
            }
        }
    }
}

/// Ends with the beat that is under way.
async fn sent(beat: &mut Option<Beat<'_>>) -> Result<(), End> {
    match beat {
        Some(beat) => beat.await,
        None => pending().await,
    }
}

async fn publish(link: &Link, channel: &str) -> Result<(), End> {
    let reply = link.command(cmd("PUBLISH").arg(channel).arg("")).await;
    ended_by(reply.and_then(|reply| reply.extract_error().map(drop)))
}

/// Subscribes to channels that are wanted and unsubscribes from those that are no more.
async fn follow(
    link: &Link,
    wanted: &BTreeSet<String>,
    confirmed: &mut BTreeSet<String>,
    limit: Duration,
) -> Result<(), End> {
    if wanted == confirmed {
        return Ok(());
    }
    let new: BTreeSet<String> = wanted.difference(confirmed).cloned().collect();
    if !new.is_empty() {
        subscribe(link, &new, limit).await?;
    }
    let old: Vec<&String> = confirmed.difference(wanted).collect();
    if !old.is_empty() {
        within(limit, link.unsubscribe(&old)).await?;
    }
    confirmed.clone_from(wanted);
    Ok(())
}

async fn subscribe(link: &Link, channels: &BTreeSet<String>, limit: Duration) -> Result<(), End> {
    let channels: Vec<&String> = channels.iter().collect();
    within(limit, link.subscribe(&channels)).await
}

async fn within(limit: Duration, call: impl Future<Output = Result<(), RedisError>>) -> Result<(), End> {
    timeout(limit, call).await.map_or(Err(End::Lost), ended_by)
}

fn ended_by(result: Result<(), RedisError>) -> Result<(), End> {
    result.map_err(|error| if error.is_io_error() { End::Lost } else { End::Refused })
}

/// Shows where the server is and how the connection stands. No credentials, no channels.
impl fmt::Debug for RedisBackplane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let keeper = &self.0.0.keeper;
        let mut d = f.debug_struct("RedisBackplane");
        d.field("address", &keeper.settings.place);
        keeper.inspect(|state| {
            d.field("state", &state.as_str());
            if let State::Up(link) = state {
                d.field("connection", &link.generation);
            }
        });
        d.finish_non_exhaustive()
    }
}
