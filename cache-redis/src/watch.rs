//! Watching the store: the server tells which keys have changed (`CLIENT TRACKING` in broadcast mode, by prefix), on the
//! connection that the provider's own commands use.
//!
//! So a reply always comes before the push that says that it is outdated, and of our own plain writes we hear nothing. The
//! task that reads applies each push at once: nothing queues.
//!
//! Whoever may not track has to be told by messages. Whether there is one, each write asks the server behind itself:
//! who listens to the cache's channel by then is counted, and who comes later reads what was written.
//!
//! In a cluster a server knows of its own listeners alone, and elsewhere the user may not ask. There such a node says
//! that it is there once a second, on a channel that everybody else listens to on the same connection: a write that is
//! acknowledged after its first word finds the word already heard. For the server the connection is a subscriber's
//! then, and is cut off where it is sent more at once than those may be, values included (`client-output-buffer-limit
//! pubsub`, 32 MiB).

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use cache_core::{Listener, is_shortened};
use parking_lot::ReentrantMutex;
use redis::{PushInfo, PushKind, Value, cmd, pipe};
use tokio::sync::watch;

use crate::{
    Error, ErrorKind, address::Place, advice::Advice, backplane::PubSub, connection::Link, rights::meant,
    settings::Settings, wire::text,
};

/// How often nodes that cannot watch ask for messages.
pub(crate) const WANTS: Duration = Duration::from_secs(1);
/// For how long one word of theirs counts.
const WANTED: Duration = Duration::from_secs(5);
/// How long it takes to believe that nobody asks, on a new connection.
const UNSURE: Duration = Duration::from_secs(3);
/// So many caches may be gone and watched still, or as many as are there: at the price of a gap the server forgets them.
const GONE: usize = 100;
/// For how long after that it is so many more: where caches come and go all the time, a gap for each hundred would leave nothing
/// in anybody's memory.
const PAUSE: Duration = Duration::from_secs(60);
const MANY_GONE: usize = 500;

/// The channel on which messages are asked for.
pub(crate) fn want(settings: &Settings) -> String {
    format!("{}b:want:{}", settings.prefix, settings.login.database)
}

/// The channel of a cache's messages. Pub/sub knows no databases.
pub(crate) fn channel(settings: &Settings, cache: &str) -> String {
    format!("{}b:{}:{{{cache}}}", settings.prefix, settings.login.database)
}

/// How many listen to a channel, by the reply to `PUBSUB NUMSUB`. `None`: it is none.
fn listeners(reply: &Value) -> Option<i64> {
    let count = match reply {
        Value::Array(parts) => parts.last(),
        Value::Map(pairs) => pairs.last().map(|(_, count)| count),
        _ => None,
    };
    match count? {
        Value::Int(count) => Some(*count),
        count => text(count)?.parse().ok(),
    }
}

pub(crate) struct Watch {
    settings: Arc<Settings>,
    want: String,
    ears: Mutex<Arc<BTreeMap<String, Vec<Ear>>>>,
    /// The number of the ear that came last.
    newest: watch::Sender<u64>,
    /// Held while listeners are called: one call at a time. A call may drop the last of a cache, and with that the backplane,
    /// whose listeners leave then: the thread that holds it may enter again.
    delivery: ReentrantMutex<()>,
    /// When nobody needs messages any more, as far as is known.
    quiet_from: Mutex<Option<Instant>>,
    /// Whether writes ask who needs messages.
    counts: AtomicBool,
    /// When each connection that is up was last known to have lost nothing.
    proven: Mutex<BTreeMap<u64, Instant>>,
    /// The server does not let us.
    refused: Mutex<bool>,
    advice: Arc<Advice>,
}

#[derive(Clone)]
struct Ear {
    number: u64,
    listener: Arc<dyn Listener>,
    /// Where it listens if the server lets nobody watch.
    otherwise: Weak<PubSub>,
}

/// What is watched over one connection. Only the task that keeps the connection changes it.
#[derive(Clone, Default)]
pub(crate) struct Watching {
    caches: BTreeSet<String>,
    /// Whether it is settled how those are heard of who need messages.
    wants: bool,
    newest: u64,
    /// When the server was last made to forget those that were gone.
    anew: Option<Instant>,
}

impl Watching {
    /// Whether the server watches too many that nobody wants any more.
    fn is_stale(&self, wanted: &BTreeMap<String, Vec<Ear>>) -> bool {
        let just_now = self.anew.is_some_and(|at| at.elapsed() < PAUSE);
        let most = if just_now { MANY_GONE } else { GONE };
        self.caches.iter().filter(|cache| !wanted.contains_key(*cache)).count() > most.max(wanted.len())
    }
}

impl Watch {
    pub(crate) fn new(settings: Arc<Settings>, advice: Arc<Advice>) -> Arc<Self> {
        Arc::new(Self {
            want: want(&settings),
            settings,
            ears: Mutex::default(),
            newest: watch::Sender::new(0),
            delivery: ReentrantMutex::default(),
            quiet_from: Mutex::default(),
            counts: AtomicBool::new(false),
            proven: Mutex::default(),
            refused: Mutex::default(),
            advice,
        })
    }

    /// Another listener for a cache. It is told of a gap when it hears.
    pub(crate) fn add(&self, cache: &str, listener: Arc<dyn Listener>, otherwise: Weak<PubSub>) {
        let refused = lock(&self.refused);
        if *refused {
            drop(refused);
            if let Some(otherwise) = otherwise.upgrade() {
                otherwise.subscribe(cache, listener);
            }
            return;
        }
        let mut ears = lock(&self.ears);
        self.newest.send_modify(|newest| {
            *newest += 1;
            let ear = Ear { number: *newest, listener, otherwise };
            Arc::make_mut(&mut ears).entry(cache.to_owned()).or_default().push(ear);
        });
    }

    /// The listeners that came with this one leave. They are told of a gap.
    pub(crate) fn leave(&self, with: &Weak<PubSub>) {
        self.forget(|ear| Weak::ptr_eq(&ear.otherwise, with));
    }

    pub(crate) fn is_empty(&self) -> bool {
        lock(&self.ears).is_empty()
    }

    /// Tells of new listeners.
    pub(crate) fn newest(&self) -> watch::Receiver<u64> {
        let mut newest = self.newest.subscribe();
        newest.mark_changed();
        newest
    }

    /// Whether a write of this cache that the store has acknowledged needs no message.
    pub(crate) fn hears_writes(&self, cache: &str) -> bool {
        // Another listener of the cache on this very connection hears nothing of what the connection writes.
        lock(&self.ears).get(cache).is_some_and(|ears| ears.len() == 1)
            && lock(&self.quiet_from).is_some_and(|from| Instant::now() >= from)
    }

    /// The channel whose listeners a write of this cache is to count behind itself, if it is to.
    pub(crate) fn counted(&self, cache: &str) -> Option<String> {
        let counts = self.counts.load(Ordering::Relaxed) && self.watches(cache);
        counts.then(|| channel(&self.settings, cache))
    }

    /// Takes what such a write was told. Nothing takes it back at once: another one's answer may be older.
    pub(crate) fn count(&self, reply: Option<&Value>) {
        if reply.and_then(listeners) != Some(0) {
            self.is_wanted();
        }
    }

    /// Somebody needs messages.
    fn is_wanted(&self) {
        let until = Instant::now() + WANTED;
        let mut quiet_from = lock(&self.quiet_from);
        *quiet_from = Some(quiet_from.map_or(until, |from| from.max(until)));
    }

    /// Whether writes over this connection may ask who needs messages.
    async fn may_count(&self, link: &Link) -> Result<bool, Error> {
        if matches!(self.settings.place, Place::Cluster { .. }) {
            return Ok(false);
        }
        let mut ask = cmd("PUBSUB");
        ask.arg("NUMSUB").arg(&self.want);
        let reply = link.command(&ask).await.map_err(Error::request)?;
        meant(&reply)?;
        Ok(listeners(&reply).is_some())
    }

    /// Whether messages of this cache go out over the provider's own connection.
    pub(crate) fn watches(&self, cache: &str) -> bool {
        lock(&self.ears).contains_key(cache)
    }

    /// Hands a message of one listener to the others on this connection.
    pub(crate) fn pass_on(&self, cache: &str, message: &[u8]) {
        let _delivery = self.delivery.lock();
        let ears = Arc::clone(&lock(&self.ears));
        for ear in ears.get(cache).into_iter().flatten() {
            ear.listener.message(message);
        }
    }

    /// Whether too many are watched over this connection that nobody wants any more.
    pub(crate) fn is_stale(&self, link: &Link) -> bool {
        self.forget_closed();
        // What is refused is not asked for again.
        !*lock(&self.refused) && link.watching().is_stale(&lock(&self.ears))
    }

    /// Turns tracking on, over this connection, for the caches of listeners that have come since, and off for those that are
    /// gone, if they are many.
    ///
    /// # Errors
    /// The connection broke, or the server says nothing definite.
    pub(crate) async fn follow(&self, link: &Link) -> Result<(), Error> {
        self.forget_closed();
        let newest = *self.newest.borrow();
        let ears = Arc::clone(&lock(&self.ears));
        let mut watching = link.watching();
        // Prefixes cannot be given up one by one, and the server compares each of them at every write of anybody.
        let anew = watching.is_stale(&ears);
        if !anew && (ears.is_empty() || watching.newest == newest) {
            return Ok(());
        }
        let mut tracking = pipe();
        if anew {
            tracking.cmd("CLIENT").arg("TRACKING").arg("OFF");
            watching.caches.clear();
            watching.anew = Some(Instant::now());
        }
        let new: Vec<_> = ears.keys().filter(|cache| !watching.caches.contains(*cache)).cloned().collect();
        // A listener that goes meanwhile goes at once.
        drop(ears);
        if !new.is_empty() {
            tracking.cmd("CLIENT").arg("TRACKING").arg("ON").arg("BCAST").arg("NOLOOP");
            for cache in &new {
                let prefix = &self.settings.prefix;
                tracking.arg("PREFIX").arg(format!("{prefix}v:{{{cache}:"));
                tracking.arg("PREFIX").arg(format!("{prefix}m:{{{cache}}}"));
            }
        }
        if !tracking.is_empty() {
            let replies = link.pipeline(&tracking).await.map_err(Error::request)?;
            replies.iter().try_for_each(meant)?;
            if let Some(Value::ServerError(error)) = replies.last() {
                self.refuse(&Error::reply(error));
                return Ok(());
            }
            watching.caches.extend(new);
        }
        if !watching.wants {
            let counts = self.may_count(link).await?;
            let sure_from = if counts { Instant::now() } else { self.listen(link).await? };
            watching.wants = true;
            // Who has been told of somebody over the connection before may not have looked here so far.
            let mut quiet_from = lock(&self.quiet_from);
            *quiet_from = Some(quiet_from.map_or(sure_from, |from| from.max(sure_from)));
            self.counts.store(counts, Ordering::Relaxed);
        }
        let before = std::mem::replace(&mut watching.newest, newest);
        // What was changed while nothing was watched, nobody has heard of.
        let before = if anew { 0 } else { before };
        link.watches(watching);
        // Who has come meanwhile does not hear so far.
        self.tell(|ear| before < ear.number && ear.number <= newest, |listener| listener.gap());
        Ok(())
    }

    /// Listens to those who need messages. Returns from when on it is known that there are none, if nobody is heard.
    async fn listen(&self, link: &Link) -> Result<Instant, Error> {
        match link.subscribe(&[&self.want]).await {
            Ok(()) => Ok(Instant::now() + UNSURE),
            Err(error) if error.code() != Some("NOPERM") => Err(Error::request(error)),
            Err(_refused) => {
                self.advice.say(format!(
                    "Redis does not let this user SUBSCRIBE to {}: nodes that cannot use CLIENT TRACKING would not hear \
                     of its writes; grant the channel (&{}) or let all nodes use tracking",
                    self.want, self.want
                ));
                Ok(Instant::now())
            }
        }
    }

    /// The connection of this keeper is read, since that moment. Memory is believed from the earliest of such moments on: each
    /// connection may be read by another runtime.
    pub(crate) fn proves(&self, keeper: u64, at: Instant) {
        let mut proven = lock(&self.proven);
        proven.insert(keeper, at);
        let earliest = proven.values().min().copied().unwrap_or(at);
        drop(proven);
        let span = self.settings.trust();
        let left = span.saturating_sub(earliest.elapsed());
        self.tell(|_| true, |listener| listener.believe(left, span));
    }

    /// It has no connection any more, or is not needed.
    pub(crate) fn proves_nothing(&self, keeper: u64) {
        lock(&self.proven).remove(&keeper);
    }

    /// The connection is lost: everybody may miss something.
    pub(crate) fn down(&self) {
        let mut quiet_from = lock(&self.quiet_from);
        *quiet_from = quiet_from.map(|from| from.max(Instant::now() + UNSURE));
        drop(quiet_from);
        let span = self.settings.blind_trust();
        self.tell(
            |_| true,
            |listener| {
                listener.down();
                listener.believe(span, span);
            },
        );
    }

    /// Why there is no connection.
    pub(crate) fn fails(&self, error: &Error) {
        self.tell(|_| true, |listener| listener.fails(error));
    }

    /// The server, or what it lets us do, has no tracking. From now on all listen to messages.
    fn refuse(&self, error: &Error) {
        *lock(&self.refused) = true;
        let fix = match error.kind() {
            ErrorKind::Denied => "grant +client|tracking",
            _ => "use a server that has it",
        };
        self.advice.say(format!(
            "CLIENT TRACKING is refused ({error}): this node hears of changes by messages alone, and not of what other \
             clients write; {fix}"
        ));
        let ears = std::mem::take(&mut *lock(&self.ears));
        for (cache, ears) in &*ears {
            for ear in ears {
                if let Some(otherwise) = ear.otherwise.upgrade() {
                    otherwise.subscribe(cache, Arc::clone(&ear.listener));
                }
            }
        }
    }

    /// What the server sends of its own accord.
    pub(crate) fn push(&self, push: &PushInfo) {
        match (&push.kind, push.data.as_slice()) {
            (PushKind::Invalidate, [Value::Array(keys)]) => {
                let _delivery = self.delivery.lock();
                let ears = Arc::clone(&lock(&self.ears));
                for key in keys {
                    if let Value::BulkString(key) = key {
                        self.changed(&ears, key);
                    }
                }
            }
            // The whole database has been emptied.
            (PushKind::Invalidate, _) => self.tell(|_| true, |listener| listener.gap()),
            (PushKind::Message, [Value::BulkString(channel), _]) if *channel == self.want.as_bytes() => {
                self.is_wanted();
            }
            _ => {}
        }
    }

    fn changed(&self, ears: &BTreeMap<String, Vec<Ear>>, key: &[u8]) {
        // No key of ours is anything else.
        let Ok(key) = std::str::from_utf8(key) else { return };
        let Some(key) = key.strip_prefix(self.settings.prefix.as_str()).and_then(|key| key.strip_suffix('}'))
        else {
            return;
        };
        let (cache, id) = if let Some(joined) = key.strip_prefix("v:{") {
            let Some((cache, id)) = joined.split_once(':') else { return };
            (cache, Some(id).filter(|_| !is_shortened(joined)))
        } else if let Some(cache) = key.strip_prefix("m:{") {
            for ear in ears.get(cache).into_iter().flatten() {
                ear.listener.marker_changed();
            }
            return;
        } else {
            return;
        };
        for ear in ears.get(cache).into_iter().flatten() {
            match id {
                Some(id) => ear.listener.changed(id),
                // Which one it is cannot be told.
                None => ear.listener.gap(),
            }
        }
    }

    fn tell(&self, which: impl Fn(&Ear) -> bool, what: impl Fn(&dyn Listener)) {
        let _delivery = self.delivery.lock();
        let ears = Arc::clone(&lock(&self.ears));
        for ear in ears.values().flatten().filter(|ear| which(ear)) {
            what(&*ear.listener);
        }
    }

    /// Those whose cache is gone.
    fn forget_closed(&self) {
        self.forget(|ear| ear.listener.is_closed());
    }

    fn forget(&self, which: impl Fn(&Ear) -> bool) {
        // Asked without the lock, and of its own piece of memory: a listener that is asked may turn out to hold the last of
        // its cache, and what a cache's end drops comes back here to leave.
        let asked = Arc::clone(&lock(&self.ears));
        let leaving: BTreeSet<u64> =
            asked.values().flatten().filter(|ear| which(ear)).map(|ear| ear.number).collect();
        if leaving.is_empty() {
            return;
        }
        let mut ears = lock(&self.ears);
        let mut gone = Vec::new();
        let all = Arc::make_mut(&mut ears);
        for ears in all.values_mut() {
            gone.extend(ears.extract_if(.., |ear| leaving.contains(&ear.number)));
        }
        all.retain(|_, ears| !ears.is_empty());
        drop(ears);
        let _delivery = self.delivery.lock();
        // A listener's own drop runs outside of the lock.
        gone.iter().for_each(|ear| ear.listener.down());
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::{
        sync::{Arc, Weak},
        time::Duration,
    };

    use cache_core::{Listener, testing::ends_within};

    use super::Watch;
    use crate::RedisProvider;

    /// The last of its cache: when it is called, everything that hears of the store by way of it leaves.
    struct Last(RedisProvider);

    impl Listener for Last {
        fn message(&self, _: &[u8]) {
            self.gap();
        }

        fn gap(&self) {
            self.0.watch().leave(&Weak::new());
        }

        fn is_closed(&self) -> bool {
            self.gap();
            true
        }
    }

    #[test]
    fn a_listener_may_leave_while_it_is_called() {
        ends_within(Duration::from_secs(30), || {
            let provider = RedisProvider::builder("redis://127.0.0.1").build().unwrap();
            let calls: [fn(&Watch); 3] =
                [Watch::down, |watch| watch.pass_on("users", b"gone"), Watch::forget_closed];
            for call in calls {
                provider.watch().add("users", Arc::new(Last(provider.clone())), Weak::new());
                call(provider.watch());
                assert!(provider.watch().is_empty());
            }
        });
    }
}
