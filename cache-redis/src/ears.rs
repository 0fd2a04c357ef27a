//! Who listens on a backplane, and the delivery to them.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use cache_core::Listener;
use redis::{PushInfo, PushKind, Value};
use tokio::sync::Notify;

use crate::{Error, settings::Settings};

/// Listeners by channel. Messages are handed over in the task that reads the connection, so nothing queues: who is slow
/// slows the reader down, and the server cuts off a reader that is too slow, which is a gap.
pub(crate) struct Ears {
    settings: Arc<Settings>,
    channels: Mutex<BTreeMap<String, Vec<Ear>>>,
    delivery: Mutex<Delivery>,
    /// A listener has come.
    pub(crate) changed: Notify,
}

#[derive(Clone)]
struct Ear {
    listener: Arc<dyn Listener>,
    /// The connection from which it has begun to hear. 0: none so far.
    hears: u64,
}

/// Held while listeners are called: one call at a time.
#[derive(Default)]
struct Delivery {
    /// The connection whose messages count. What an older one still delivers is too late: listeners have been told of a
    /// gap.
    connection: u64,
    heard: Option<Instant>,
    /// When memory was last said to be believed.
    proven: Option<Instant>,
}

impl Ears {
    pub(crate) fn new(settings: Arc<Settings>) -> Self {
        Self { settings, channels: Mutex::default(), delivery: Mutex::default(), changed: Notify::new() }
    }

    pub(crate) fn add(&self, channel: String, listener: Arc<dyn Listener>) {
        lock(&self.channels).entry(channel).or_default().push(Ear { listener, hears: 0 });
        self.changed.notify_one();
    }

    pub(crate) fn is_empty(&self) -> bool {
        lock(&self.channels).is_empty()
    }

    /// Channels with listeners; forgets those who listen no more.
    pub(crate) fn wanted(&self) -> BTreeSet<String> {
        // Asked, and dropped, without the lock: a listener may turn out to hold the last of its cache, and with that of what
        // leaves these channels.
        let asked: Vec<_> =
            lock(&self.channels).values().flatten().map(|ear| Arc::clone(&ear.listener)).collect();
        let gone: Vec<_> = asked.iter().filter(|listener| listener.is_closed()).collect();
        let mut channels = lock(&self.channels);
        if !gone.is_empty() {
            channels.retain(|_, ears| {
                ears.retain(|ear| !gone.iter().any(|listener| Arc::ptr_eq(listener, &ear.listener)));
                !ears.is_empty()
            });
        }
        channels.keys().cloned().collect()
    }

    /// From now on messages count that come over this connection.
    pub(crate) fn begin(&self, connection: u64) {
        let mut delivery = lock(&self.delivery);
        delivery.connection = connection;
        delivery.heard = Some(Instant::now());
        delivery.proven = delivery.heard;
    }

    /// When something came last.
    pub(crate) fn heard(&self) -> Option<Instant> {
        lock(&self.delivery).heard
    }

    /// What came over a connection.
    pub(crate) fn push(&self, connection: u64, push: &PushInfo) {
        let mut delivery = lock(&self.delivery);
        if delivery.connection != connection {
            return;
        }
        let (PushKind::Message, [Value::BulkString(channel), Value::BulkString(message)]) =
            (&push.kind, push.data.as_slice())
        else {
            return;
        };
        let now = Instant::now();
        delivery.heard = Some(now);
        // Said by who reads: as long as that goes on, nobody stands still. Own heartbeats are messages, too.
        let since = now.saturating_duration_since(*delivery.proven.get_or_insert(now));
        if since >= self.settings.heartbeat / 2 {
            delivery.proven = Some(now);
            let span = self.settings.trust();
            let left = span.saturating_sub(since);
            self.tell_in_turn(|_, ear| ear.hears == connection, |listener| listener.believe(left, span));
        }
        let Ok(channel) = std::str::from_utf8(channel) else { return };
        let ears = lock(&self.channels).get(channel).cloned().unwrap_or_default();
        for ear in ears {
            ear.listener.message(message);
        }
    }

    /// The server has confirmed these channels. Who has not heard them over this connection so far may have missed
    /// something.
    pub(crate) fn up(&self, connection: u64, confirmed: &BTreeSet<String>) {
        let begins = |channel: &str, ear: &mut Ear| {
            let begins = ear.hears != connection && confirmed.contains(channel);
            if begins {
                ear.hears = connection;
            }
            begins
        };
        let span = self.settings.trust();
        self.tell(begins, |listener| {
            listener.gap();
            listener.believe(span, span);
        });
    }

    /// The connection is lost: everybody may miss something.
    pub(crate) fn down(&self) {
        let silenced = |_: &str, ear: &mut Ear| {
            // So that it is told of a gap when it hears again, even over the same connection.
            ear.hears = 0;
            true
        };
        let span = self.settings.blind_trust();
        self.tell(silenced, |listener| {
            listener.down();
            listener.believe(span, span);
        });
    }

    /// Why there is no connection, or nothing is heard over it.
    pub(crate) fn fails(&self, error: &Error) {
        self.tell(|_, _| true, |listener| listener.fails(error));
    }

    fn tell(&self, which: impl Fn(&str, &mut Ear) -> bool, what: impl Fn(&dyn Listener)) {
        let _delivery = lock(&self.delivery);
        self.tell_in_turn(which, what);
    }

    /// For whoever has locked the delivery.
    fn tell_in_turn(&self, which: impl Fn(&str, &mut Ear) -> bool, what: impl Fn(&dyn Listener)) {
        let mut told = Vec::new();
        for (channel, ears) in &mut *lock(&self.channels) {
            told.extend(
                ears.iter_mut().filter_map(|ear| which(channel, ear).then(|| Arc::clone(&ear.listener))),
            );
        }
        for listener in told {
            what(&*listener);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
