//! The backplane: how other nodes learn of invalidations, so that their in-process levels let go of old values.

mod hear;
mod message;
mod tell;
mod trust;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::watch;

pub(crate) use self::trust::Trust;
use crate::{BoxError, pending::Pending};

/// A channel between the nodes of a cache.
///
/// # Contract
/// - Messages are opaque bytes, small, and may be lost only with a [`Listener::gap`] for those who lost them.
/// - Listeners are called in the order of arrival, one call at a time per listener, and never block.
/// - A node may or may not hear its own messages.
#[async_trait]
pub trait Backplane: Send + Sync + 'static {
    /// Hands a message to every node of `cache`. `Ok` once the channel has it; it need not have arrived.
    async fn publish(&self, cache: &str, message: Bytes) -> Result<(), BoxError>;

    /// Begins to hear the messages of `cache`. Called once per cache, from inside a runtime; ends when the listener is
    /// dropped elsewhere (keep a `Weak`).
    fn subscribe(&self, cache: &str, listener: Arc<dyn Listener>);

    /// Whether every other node of `cache` hears by itself of what this node has just written to the store: of keys and of
    /// the marker. Asked once the store has acknowledged, and then nothing is published.
    fn hears_writes(&self, cache: &str) -> bool {
        let _ = cache;
        false
    }
}

/// One node's ear.
///
/// Call it, and drop it, without a lock of the backplane's own: it does not keep its cache alive, but a call may turn out to
/// hold the last of it. Then the cache ends in the call, and lets go of its backplane and its providers there.
pub trait Listener: Send + Sync + 'static {
    /// A message has arrived.
    fn message(&self, bytes: &[u8]);

    /// Messages may have been lost: the channel was down or silent, or has just come up for the first time.
    fn gap(&self);

    /// The channel is down, or has not come up so far: messages are lost until a [`gap`](Self::gap) says that it is up. To be
    /// told again while that lasts, as what others change meanwhile is not heard of.
    fn down(&self) {
        self.gap();
    }

    /// How much is left of `span`, the time for which what memory holds is believed although nothing more is heard: from when the
    /// channel was last known to have lost nothing. Once it is over, the next call that would be answered from memory finds
    /// nothing there. To be said again well before that, with each heartbeat: whoever has the channel read may stand still, and
    /// the process as well. Without it what memory holds is believed until a gap is told of.
    fn believe(&self, left: Duration, span: Duration) {
        let _ = (left, span);
    }

    /// Why the channel is down, for an operator, without credentials. Beside [`down`](Self::down), and again while that lasts.
    fn fails(&self, error: &(dyn std::error::Error + 'static)) {
        let _ = error;
    }

    /// Somebody else has written, removed or lost what the watched store holds under this id of the cache.
    fn changed(&self, id: &str) {
        let _ = id;
        self.gap();
    }

    /// Somebody has written, removed or lost the cache's mark there.
    fn marker_changed(&self) {
        self.gap();
    }

    /// Whether the cache keeps its entries in this store ([`CacheProvider::store_id`](crate::CacheProvider::store_id)), at
    /// its nearest remote level: then each of its writes is over once it is there, and to watch the store is to hear of
    /// them all.
    fn keeps_in(&self, store: u64) -> bool {
        let _ = store;
        false
    }

    /// Whether nobody listens any more: the cache is gone.
    fn is_closed(&self) -> bool;
}

/// How long a message may take to be handed to the channel.
pub(crate) const BUDGET: Duration = Duration::from_millis(250);
/// How long a caller waits at most for a channel to come up for the first time.
const FIRST: Duration = Duration::from_secs(2);

/// A cache's end of its backplane.
pub(crate) struct Plane {
    channel: ArcSwap<Channel>,
    /// The youngest channel that has come up.
    up: AtomicU64,
    /// The youngest one that had a gap after that.
    gapped: AtomicU64,
    /// A channel has come up, and what it may have missed before has been dealt with.
    hears: watch::Sender<bool>,
    /// This node, so that it knows its own messages.
    node: u64,
    /// The youngest channel that is listened to, counted from 1.
    subscribed: AtomicU64,
    /// What the channel has not taken yet.
    pub(crate) pending: Pending,
    /// Somebody has been told why it is down.
    fails: AtomicBool,
    /// It did not take the last message in time. As long as something is pending, callers do not wait for it: whoever tells
    /// that again finds out when it answers.
    silent: AtomicBool,
}

/// What a backplane runs over. Where a cache moves to another one, they are numbered in that order, from 1.
#[derive(Clone)]
struct Channel {
    carrier: Arc<dyn Backplane>,
    number: u64,
    /// Listened to until this one has come up.
    before: Option<Arc<dyn Backplane>>,
}

impl Plane {
    pub(crate) fn new(carrier: Arc<dyn Backplane>) -> Self {
        Self {
            channel: ArcSwap::from_pointee(Channel { carrier, number: 1, before: None }),
            up: AtomicU64::new(0),
            gapped: AtomicU64::new(0),
            hears: watch::Sender::new(false),
            node: fastrand::u64(..),
            subscribed: AtomicU64::new(0),
            pending: Pending::default(),
            fails: AtomicBool::new(false),
            silent: AtomicBool::new(false),
        }
    }

    /// Goes on over another channel. The one before is listened to until that has come up.
    pub(crate) fn move_to(&self, carrier: Arc<dyn Backplane>) {
        self.channel.rcu(|channel| Channel {
            carrier: Arc::clone(&carrier),
            number: channel.number + 1,
            // A channel that has not come up says nothing yet: the one before it is still listened to.
            before: (channel.before.clone())
                .filter(|_| self.up.load(Ordering::Acquire) < channel.number)
                .or_else(|| Some(Arc::clone(&channel.carrier))),
        });
        self.silent.store(false, Ordering::Release);
    }

    /// The channel hears, and what it may have missed is dealt with.
    fn heard(&self) {
        self.hears.send_if_modified(|hears| !std::mem::replace(hears, true));
    }

    /// A channel has come up. Says which one had before.
    fn has_come_up(&self, number: u64) -> u64 {
        let before = self.up.fetch_max(number, Ordering::AcqRel);
        if before < number {
            self.leave_before(number);
        }
        before
    }

    /// A channel has a gap, or has just come up. Whether something may have been missed by that.
    fn has_gap(&self, number: u64) -> bool {
        let up = self.has_come_up(number);
        if up == number {
            self.gapped.fetch_max(number, Ordering::AcqRel);
        }
        // Nothing was missed where this channel takes over from the one right before it, if that had come up, was listened
        // to until now, and has had no gap: whether a gap has ended is not known. Nor does the gap of a channel matter that
        // has been left for a later one.
        let takes_over = up > 0 && up + 1 == number && self.gapped.load(Ordering::Acquire) < up;
        up <= number && !takes_over
    }

    /// Whether it has not come up before, nor one that came after it.
    fn is_new(&self, number: u64) -> bool {
        self.up.load(Ordering::Acquire) < number
    }

    /// A channel is down. Whether something may be missed by that.
    fn is_missed(&self, number: u64) -> bool {
        if self.up.load(Ordering::Acquire) == number {
            self.gapped.fetch_max(number, Ordering::AcqRel);
        }
        self.is_listened_to(number)
    }

    /// Whether what is missed on this channel matters: on any until the first has come up, then on the youngest that has.
    fn is_listened_to(&self, number: u64) -> bool {
        let up = self.up.load(Ordering::Acquire);
        up == 0 || up == number
    }

    /// Lets go of the channel before this one.
    fn leave_before(&self, number: u64) {
        self.channel.rcu(|channel| match channel {
            channel if channel.number == number && channel.before.is_some() => {
                Arc::new(Channel { before: None, ..Channel::clone(channel) })
            }
            channel => Arc::clone(channel),
        });
    }

    /// Nothing is to be heard any more.
    pub(crate) fn close(&self) {
        self.leave_before(self.channel.load().number);
    }

    /// Whether the others hear of writes by themselves.
    fn is_heard(&self, cache: &str) -> bool {
        self.channel.load().carrier.hears_writes(cache)
    }

    /// Whether a caller need not wait to find out that it does not answer.
    fn is_silent(&self) -> bool {
        self.silent.load(Ordering::Acquire) && self.pending.len() > 0
    }
}
