//! The [`Backplane`]: the store itself, watched, or messages over pub/sub.

use std::{
    collections::BTreeSet,
    fmt,
    future::{Future, pending},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use cache_core::{Backplane, BoxError, CacheProvider, Listener};
use futures::future::BoxFuture;
use redis::{RedisError, cmd};
use tokio::{
    runtime::Handle,
    time::{Instant, sleep, sleep_until, timeout},
};

use crate::{
    Error, ErrorKind, RedisProvider,
    address::Place,
    backoff::Backoff,
    cluster::{PERIOD, takes_part},
    connection::{Hears, Link, Pushes},
    ears::Ears,
    keeper::Keeper,
    settings::Settings,
    state::State,
    ticks::every,
    watch::{WANTS, channel, want},
    wire,
};

/// A connection that lived this long was a good one.
const STABLE: Duration = Duration::from_secs(1);

/// Tells nodes of each other's changes. Made by [`RedisProvider::backplane`]. Cheap to clone.
///
/// **Tracking**, where the cache keeps its entries in the same provider, as the nearest remote level. The server tells of
/// every key of the cache that somebody else has written, removed, expired or evicted, be it another node or a program in
/// another language. Nothing is published, and of its own writes a node hears nothing.
///
/// - `CLIENT TRACKING` in broadcast mode is turned on over the provider's own connection, as a step of each new one before
///   any command. When the connection breaks, when it is back, and in between every five times the silence below,
///   listeners are told of a gap.
/// - Each heartbeat is a `PING`. When nothing came for the heartbeat and its timeout together (1 s + 1 s unless set
///   otherwise), the connection is given up: a gap.
/// - Where that task stands still, because nobody drives its runtime or the process was stopped, memory is believed for twice
///   that time from the last answer on. The same goes for messages.
/// - Pushes are applied by the task that reads, in order, before any later reply. A key that is too long to go to the server
///   as it is tells only that something has changed: a gap.
/// - Costs: each node hears of every write of the cache, and an entry that the server evicts is dropped from memory, too.
///   For a node that reads more slowly than that the server keeps what it has to say, without limit unless
///   `client-output-buffer-limit normal` sets one; to be cut off by it is a gap.
/// - Needs the permission for `CLIENT TRACKING`. Where it is refused, the cache is told so
///   ([`Event::Advice`](cache_core::Event::Advice)) and messages are used. Each write asks whether there are nodes that
///   go by messages (`PUBSUB NUMSUB`, in the same round trip), and what it has changed is published where there are.
/// - In a cluster, and without the permission for `PUBSUB NUMSUB`, such nodes make themselves heard to the others
///   instead, which publish as long as there are any, and for three seconds after they have connected. For that the
///   provider's own connection subscribes, so that the server cuts it off where it is sent more than a subscriber may
///   be, values included (`client-output-buffer-limit pubsub`, 32 MiB): raise that limit where so much is read from one
///   server at once.
///
/// **Messages** over pub/sub, else, and where asked for ([`RedisProvider::messages`]), over a connection of its own.
///
/// - A message that has been published reaches every node that is connected at that moment. Whoever is not is told of a
///   gap, as above.
/// - It publishes a heartbeat to itself and expects to hear it, within the same time. In a cluster it goes to another node
///   within five seconds when its own has been taken out.
/// - Listeners are called by the task that reads, in order, one at a time. Nothing queues here; a reader that is too slow
///   is cut off by the server (`client-output-buffer-limit pubsub`, 32 MiB), which is a gap.
/// - Needs the permission for `subscribe unsubscribe publish` on channels `b:*` behind the key prefix.
///
/// Nodes of one cache have server, database, key prefix and the cache's name in common.
///
/// The first subscription starts a task on the runtime of its caller. It ends with the last clone, or at
/// [`close`](Self::close).
#[derive(Clone)]
pub struct RedisBackplane(Arc<Owner>);

struct Owner {
    provider: RedisProvider,
    messages: Arc<PubSub>,
    /// Whether to watch the store where that can be done.
    watches: bool,
}

impl Owner {
    fn leave(&self) {
        self.provider.watch().leave(&Arc::downgrade(&self.messages));
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        self.leave();
        self.messages.keeper.close_soon();
    }
}

/// A channel for messages.
pub(crate) struct PubSub {
    keeper: Arc<Keeper>,
    ears: Arc<Ears>,
    running: AtomicBool,
}

impl RedisBackplane {
    pub(crate) fn new(provider: RedisProvider, watches: bool) -> Self {
        let settings = Arc::clone(provider.settings());
        let ears = Arc::new(Ears::new(Arc::clone(&settings)));
        let hears = Arc::clone(&ears);
        let home = provider.fleet().home(&settings);
        let hears: Hears = Arc::new(move |connection, push| hears.push(connection, &push));
        let pushes = Pushes { hears, ..Pushes::unheard(provider.advice()) };
        let keeper = Keeper::new(settings, home, pushes);
        let messages = Arc::new(PubSub { keeper, ears, running: AtomicBool::new(false) });
        Self(Arc::new(Owner { provider, messages, watches }))
    }

    /// Ends it; the provider goes on. What is published after it fails; listeners are told of a gap.
    pub async fn close(&self) {
        self.0.leave();
        self.0.messages.keeper.close().await;
    }
}

#[async_trait]
impl Backplane for RedisBackplane {
    async fn publish(&self, cache: &str, message: Bytes) -> Result<(), BoxError> {
        let Owner { provider, messages, .. } = &*self.0;
        if !provider.watch().watches(cache) {
            return Ok(messages.publish(cache, &message).await?);
        }
        // To those who hear of no writes: on the same connection, and those who cannot watch.
        provider.watch().pass_on(cache, &message);
        let link = provider.fleet().link().await?;
        Ok(publish(&link, &messages.channel(cache), &message).await?)
    }

    fn subscribe(&self, cache: &str, listener: Arc<dyn Listener>) {
        let Owner { provider, messages, watches } = &*self.0;
        if *watches && listener.keeps_in(provider.store_id()) {
            provider.watch().add(cache, listener, Arc::downgrade(messages));
            provider.fleet().wake();
        } else {
            messages.subscribe(cache, listener);
        }
    }

    fn hears_writes(&self, cache: &str) -> bool {
        self.0.provider.watch().hears_writes(cache)
    }
}

async fn publish(link: &Link, channel: &str, message: &[u8]) -> Result<(), Error> {
    let reply = link.command(cmd("PUBLISH").arg(channel).arg(message)).await;
    wire::done(reply.map_err(Error::request)?)
}

impl PubSub {
    async fn publish(self: &Arc<Self>, cache: &str, message: &[u8]) -> Result<(), Error> {
        if !self.ears.is_empty() {
            self.start();
        }
        let link = self.keeper.link().await?;
        publish(&link, &self.channel(cache), message).await
    }

    pub(crate) fn subscribe(self: &Arc<Self>, cache: &str, listener: Arc<dyn Listener>) {
        self.ears.add(self.channel(cache), listener);
        self.start();
    }

    fn channel(&self, cache: &str) -> String {
        channel(&self.keeper.settings, cache)
    }

    fn start(self: &Arc<Self>) {
        let Ok(runtime) = Handle::try_current() else { return };
        if !self.running.swap(true, Ordering::AcqRel) {
            runtime.spawn(run(Running(Arc::clone(self))));
        }
    }
}

/// Notes the end of the task, also by a panic or with its runtime, so that the next call starts another.
struct Running(Arc<PubSub>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.running.store(false, Ordering::Release);
        self.0.ears.down();
    }
}

enum End {
    Lost,
    /// The server refuses it.
    Refused(Error),
    Closed,
}

impl End {
    const fn is_lost(&self) -> bool {
        matches!(self, Self::Lost)
    }
}

async fn run(guard: Running) {
    let PubSub { keeper, ears, .. } = &*guard.0;
    let blind_for = keeper.settings.blind();
    let node = fastrand::u64(..);
    let mut backoff = Backoff::new();
    let mut lost = None;
    loop {
        let mut blind = std::pin::pin!(sleep(blind_for));
        let mut up = std::pin::pin!(keeper.up(lost));
        let link = loop {
            tokio::select! {
                biased;
                link = &mut up => break link,
                error = keeper.failure() => ears.fails(&error),
                () = &mut blind, if !ears.is_empty() => {
                    ears.down();
                    blind.as_mut().reset(Instant::now() + blind_for);
                }
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
            End::Refused(error) => {
                drop(link);
                if error.kind() == ErrorKind::Denied {
                    keeper.advise(format!(
                        "messages between nodes are refused ({error}): changes are not heard, and invalidations stay pending; \
                         grant +subscribe +unsubscribe +publish &{}b:*",
                        keeper.settings.prefix
                    ));
                }
                ears.fails(&error);
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

/// A question that is under way, of which only the failure matters.
type Asked<'a> = BoxFuture<'a, Result<(), End>>;

/// Listens on one connection until it ends.
async fn stay(settings: &Settings, ears: &Ears, link: &Link, node: u64) -> End {
    let silence = settings.silence();
    // A channel that nobody else listens to, so that many nodes do not drown in each other's heartbeats.
    let own = format!("{}b:beat:{:016x}{:016x}", settings.prefix, node, link.generation);
    ears.begin(link.generation);
    if let Err(end) = subscribe(link, &BTreeSet::from([own.clone()]), silence).await {
        return end;
    }
    // A reply that is late because it comes behind a burst of messages is no silence.
    let silent = || ears.heard().is_none_or(|heard| heard.elapsed() >= silence);
    let want = want(settings);
    let mut confirmed = BTreeSet::new();
    let mut beat: Option<Asked<'_>> = None;
    let mut asking: Option<Asked<'_>> = None;
    let is_node = matches!(settings.place, Place::Cluster { .. });
    let mut looking: Option<Asked<'_>> = None;
    let (mut looks, mut asks, mut beats) = (every(PERIOD), every(WANTS), every(settings.heartbeat));
    beats.reset_immediately();
    loop {
        let wanted = ears.wanted();
        if wanted != confirmed {
            if let Err(end) = follow(link, &wanted, &mut confirmed, silence).await {
                return end;
            }
            // Nodes that track publish nothing unless somebody asks for messages: they are asked before listeners here are
            // told that they hear everything.
            if let Err(end) = signal(link, &want).await {
                return end;
            }
        }
        ears.up(link.generation, &confirmed);
        let silent_at = ears.heard().map_or_else(Instant::now, Instant::from_std) + silence;
        tokio::select! {
            biased;
            () = link.ended() => return End::Lost,
            () = ears.changed.notified() => {}
            beaten = ended(&mut beat) => {
                if let Some(end) = beaten.err().filter(|end| !end.is_lost() || silent()) {
                    return end;
                }
                beat = None;
            }
            _ = beats.tick(), if beat.is_none() => beat = Some(Box::pin(signal(link, &own))),
            asked = ended(&mut asking) => {
                if let Some(end) = asked.err().filter(|end| !end.is_lost() || silent()) {
                    return end;
                }
                asking = None;
            }
            _ = asks.tick(), if asking.is_none() && !confirmed.is_empty() => {
                asking = Some(Box::pin(signal(link, &want)));
            }
            looked = ended(&mut looking) => {
                if let Err(end) = looked {
                    return end;
                }
                looking = None;
            }
            _ = looks.tick(), if is_node && looking.is_none() => looking = Some(Box::pin(stays_in(link))),
            () = sleep_until(silent_at) => {
                if silent() {
                    return End::Lost;
                }
            }
        }
    }
}

/// The answer to the question under way; never, if there is none.
async fn ended(asked: &mut Option<Asked<'_>>) -> Result<(), End> {
    match asked {
        Some(asked) => asked.await,
        None => pending().await,
    }
}

/// A node that has been taken out of its cluster still passes on our own heartbeat, but no messages of other nodes: asks
/// whether it is still in.
async fn stays_in(link: &Link) -> Result<(), End> {
    match takes_part(link).await {
        Err(error) if error.kind() == ErrorKind::Unavailable => Err(End::Lost),
        _ => Ok(()),
    }
}

/// Publishes an empty message.
async fn signal(link: &Link, channel: &str) -> Result<(), End> {
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
    result.map_err(|error| if error.is_io_error() { End::Lost } else { End::Refused(Error::request(error)) })
}

/// Shows where the server is and how the connection stands. No credentials, no channels.
impl fmt::Debug for RedisBackplane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let keeper = &self.0.messages.keeper;
        let mut d = f.debug_struct("RedisBackplane");
        d.field("address", &keeper.settings.place).field("watches", &!self.0.provider.watch().is_empty());
        keeper.inspect(|state| {
            d.field("state", &state.as_str());
            if let State::Up(link) = state {
                d.field("connection", &link.generation);
            }
        });
        d.finish_non_exhaustive()
    }
}
