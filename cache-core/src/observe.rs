//! Watching a cache: events for what leaves the nearest level, spans for those who trace.

use std::{fmt, sync::Arc, time::Duration};

use crate::{
    BreakerState, Description, Error, ErrorKind, EvictionCause, LevelFault, LevelOp, LoadEnd, MissReason,
    Outcome, RawKey, Unreadable, Verb, stats::Stats,
};

/// Something that happened. Never carries a value; keys only as hashes.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Event<'a> {
    /// A call ended. Look-ups that the nearest level served are sampled: each such event stands for `weight` calls.
    Operation {
        /// Which verb.
        verb: Verb,
        /// For single look-ups, how it ended.
        outcome: Option<Outcome>,
        /// The level that served it.
        level: Option<u8>,
        /// Time from call to answer.
        elapsed: Duration,
        /// Number of keys.
        keys: usize,
        /// How many calls this event stands for.
        weight: u32,
        /// The error it ended with.
        error: Option<ErrorKind>,
    },
    /// A level was asked, and answered or failed. Of several servers each is asked, and told of, on its own.
    Level {
        /// Which level, 0 being the nearest.
        level: u8,
        /// What it was asked.
        op: LevelOp,
        /// What its provider calls that: `db.operation.name`.
        command: &'static str,
        /// Number of keys, without the cache's own marks.
        keys: usize,
        /// Time it took.
        elapsed: Duration,
        /// How it failed, if it did.
        fault: Option<LevelFault>,
        /// The provider's error.
        error: Option<&'a (dyn std::error::Error + 'static)>,
    },
    /// A load ended.
    Load {
        /// Time from start to end.
        elapsed: Duration,
        /// How it ended.
        end: LoadEnd,
        /// Nobody waited for it when it was started.
        background: bool,
        /// Number of keys.
        keys: usize,
        /// Why it failed. Its words are the loader's: callers whom a stale value has been given hear nothing of them.
        error: Option<&'a Error>,
    },
    /// A caller waited for another caller's load.
    Coalesced {
        /// How long.
        waited: Duration,
    },
    /// An entry of a level could not be read and counts as a miss.
    Unreadable {
        /// Which level.
        level: u8,
        /// Why.
        reason: Unreadable,
    },
    /// A value was not sent to a level because it is over the level's limit; what the level held of the key is removed.
    TooLarge {
        /// Which level.
        level: u8,
        /// Bytes of the item.
        size: usize,
        /// The level's limit in bytes.
        limit: usize,
    },
    /// A value could not be encoded and was not sent to a level.
    NotEncoded {
        /// Which level.
        level: u8,
    },
    /// Items were encoded for or decoded from a level: those of one call.
    Items {
        /// Which level.
        level: u8,
        /// Read or written.
        op: LevelOp,
        /// Bytes of each item.
        bytes: &'a [usize],
    },
    /// A fill was refused because an invalidation or a set had overtaken it.
    Overtaken,
    /// An in-process level let an entry go.
    Evicted {
        /// Which level.
        level: u8,
        /// Why.
        cause: EvictionCause,
    },
    /// A level's breaker changed. Of several servers one that opens is no change while others are asked.
    Breaker {
        /// Which level.
        level: u8,
        /// Its new state.
        state: BreakerState,
    },
    /// A message about an invalidation has been handed to the backplane.
    BackplaneSent,
    /// A message of another node, or a change that the backplane has seen in the store, has been applied.
    BackplaneReceived {
        /// Time since a message was sent, by the clocks of a remote level's store where they are measured, else by the two
        /// nodes' own. Zero where those disagree. Of a change in the store it is not known.
        lag: Option<Duration>,
    },
    /// Something on the backplane is not a message of this release: dropped.
    BackplaneNoise,
    /// Messages may have been lost: in-process entries of before are not believed any more.
    BackplaneGap,
    /// The backplane is down: what other nodes change is not heard. Again with each try to reach it.
    BackplaneDown {
        /// Why, in the words of whoever carries it.
        error: &'a (dyn std::error::Error + 'static),
    },
    /// A backplane that was down is up.
    BackplaneUp,
    /// Something that an operator may want to put right. A sentence, without keys or values.
    Advice(&'a str),
}

/// A cache, as telemetry knows it.
#[derive(Clone, Debug)]
pub struct CacheInfo {
    pub(crate) name: Arc<str>,
    pub(crate) levels: Arc<[LevelInfo]>,
}

impl CacheInfo {
    /// Without a cache around it, for testing an observer.
    pub fn for_tests(name: &str, levels: Vec<LevelInfo>) -> Self {
        Self { name: name.into(), levels: levels.into() }
    }

    /// `cache.name`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The name, to be kept without copying it.
    pub const fn shared_name(&self) -> &Arc<str> {
        &self.name
    }

    /// Its levels, nearest first.
    pub fn levels(&self) -> &[LevelInfo] {
        &self.levels
    }
}

/// A level, as telemetry knows it.
#[derive(Clone, Debug)]
pub struct LevelInfo {
    /// `l1`, `l2`, ... by position.
    pub position: Arc<str>,
    /// What the provider is.
    pub provider: Description,
    /// Whether it keeps objects rather than bytes.
    pub in_process: bool,
}

/// Receives what happens in caches. OpenTelemetry is one observer, a test's recorder another.
///
/// Called inline, so it must be quick, and must not write to the cache that it is told of, nor to one that shares its memory:
/// an eviction is told of while the level in memory makes room for a value. A panic in it is caught and dropped. L1 hits
/// produce no call but for the sampled [`Event::Operation`]: their counts are in [`Stats`].
pub trait Observer: Send + Sync + 'static {
    /// A cache was built. Its statistics are there for as long as anybody keeps them; [`Stats::is_over`] tells its end.
    fn attach(&self, stats: &Arc<Stats>) {
        let _ = stats;
    }

    /// Something happened in a cache.
    fn event(&self, cache: &CacheInfo, event: &Event<'_>) {
        let _ = (cache, event);
    }

    /// A piece of work begins. `None`: it is not recorded, and costs nothing more.
    fn span(&self, cache: &CacheInfo, start: &SpanStart<'_>) -> Option<Arc<dyn Span>> {
        let _ = (cache, start);
        None
    }

    /// Whether the hit at the nearest level that may come next on this thread should have a span. Asked for each look-up of
    /// one key if [`traces_hits`](Self::traces_hits) said so: must be quick. A traced hit takes the way of other calls, which
    /// allocates.
    fn traces_hit(&self) -> bool {
        false
    }

    /// Whether hits at the nearest level may have spans at all. Asked once, when a cache is built.
    fn traces_hits(&self) -> bool {
        false
    }

    /// What surrounds the caller on this thread (a trace context, a task-local), to be put around its load, which runs in
    /// a task of its own. Asked once for each load or save, in the task of the caller that starts it: callers who wait
    /// for that load lend it nothing. What runs in the background gets what surrounds the caller who caused it.
    ///
    /// ```
    /// use std::{sync::Arc, time::Duration};
    /// use cache_core::{Ambient, Observer, TracedCache, ok, testing::MapProvider};
    ///
    /// tokio::task_local! { static TENANT: u32; }
    ///
    /// struct Tenant(u32);
    /// impl Ambient for Tenant {
    ///     fn within(&self, work: &mut dyn FnMut()) {
    ///         TENANT.sync_scope(self.0, work);
    ///     }
    /// }
    ///
    /// struct CarryTenant;
    /// impl Observer for CarryTenant {
    ///     fn ambient(&self) -> Option<Arc<dyn Ambient>> {
    ///         TENANT.try_with(|tenant| Arc::new(Tenant(*tenant)) as _).ok()
    ///     }
    /// }
    ///
    /// # #[tokio::main]
    /// # async fn main() -> Result<(), cache_core::Error> {
    /// let cache: TracedCache<u32> =
    ///     TracedCache::builder("tenants").level(MapProvider::new()).observer(CarryTenant).build()?;
    /// let call = cache.get_or_set("k", || async { ok(TENANT.get()) });
    /// assert_eq!(*TENANT.scope(7, call).await?, 7);
    /// # Ok(())
    /// # }
    /// ```
    fn ambient(&self) -> Option<Arc<dyn Ambient>> {
        None
    }

    /// Something that hears of every key which is looked up in this cache: for what depends on which keys are asked for, such
    /// as the hottest of them. Asked once, when the cache is built.
    fn traffic(&self, stats: &Arc<Stats>) -> Option<Arc<dyn Traffic>> {
        let _ = stats;
        None
    }
}

/// Hears of every key that is looked up, alone or in a batch, also of hits at the nearest level: those cost a call more.
///
/// Called inline, before the answer is known for whatever leaves the nearest level: it must be quick and must not block.
pub trait Traffic: Send + Sync + 'static {
    /// A key is looked up.
    fn asked(&self, key: &RawKey<'_>);
}

/// A piece of work that may become a span.
#[derive(Clone)]
pub struct SpanStart<'a> {
    /// Its kind.
    pub kind: SpanKind,
    /// The key, for observers that were told to show some. Mask it.
    pub key: Option<&'a str>,
    /// Number of keys, without the cache's own marks.
    pub keys: usize,
    /// Starts a trace of its own: background work.
    pub root: bool,
}

/// Keys stay out of `Debug` output.
impl fmt::Debug for SpanStart<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kind, key: _, keys, root } = self;
        let mut all = f.debug_struct("SpanStart");
        all.field("kind", kind).field("keys", keys).field("root", root).finish_non_exhaustive()
    }
}

/// Kinds of work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum SpanKind {
    /// A call that leaves the nearest level, or a hit there that an observer [wants to trace](Observer::traces_hit).
    Operation(Verb),
    /// One level's part in it.
    Level {
        /// Which level.
        level: u8,
        /// What it is asked.
        op: LevelOp,
        /// What its provider calls that: `db.operation.name`.
        command: &'static str,
    },
    /// The loader.
    Load,
    /// A source that is written: [`Verb::Save`] or [`Verb::Delete`].
    Source(Verb),
    /// A message to the other nodes.
    Publish,
    /// Values on their way to levels that are written behind the caller's back.
    WriteBehind,
    /// One round of telling a level what it has not heard.
    Replay,
}

/// A span under way. Ends when [told](Self::end). One that is dropped without has been given up: its caller has left, or its
/// runtime ended.
pub trait Span: Send + Sync + 'static {
    /// Runs `work` with this span as the current one. Called around every poll.
    fn within(&self, work: &mut dyn FnMut());

    /// How the look-up ended.
    fn found(&self, outcome: Outcome, level: Option<u8>) {
        let _ = (outcome, level);
    }

    /// Size of the item in bytes: at a level as it is there, of a call the value as it is encoded.
    fn size(&self, bytes: usize) {
        let _ = bytes;
    }

    /// How long what is stored is to live: at a level as it is told, of a call until it is no longer fresh. Of a hit what is
    /// left of that.
    fn ttl(&self, time: Duration) {
        let _ = time;
    }

    /// Whether a call for several keys found all of them at levels.
    fn found_all(&self, yes: bool) {
        let _ = yes;
    }

    /// How many keys a warm-up took, and how many of them failed.
    fn done(&self, keys: usize, failed: usize) {
        let _ = (keys, failed);
    }

    /// Why the look-up found nothing.
    fn missed(&self, reason: MissReason) {
        let _ = reason;
    }

    /// It failed; a low-cardinality word for `error.type`.
    fn failed(&self, error: &str) {
        let _ = error;
    }

    /// This work waited for, or came from, that other span.
    fn link(&self, other: &dyn Span) {
        let _ = other;
    }

    /// The work is over, although others may still hold the span to link to it.
    fn end(&self) {}

    /// For [`Span::link`] of the same observer.
    fn as_any(&self) -> &dyn std::any::Any;
}

/// Puts something of the caller's around work that runs elsewhere: a trace context, a task-local.
pub trait Ambient: Send + Sync + 'static {
    /// Runs `work` inside. Called around every poll.
    fn within(&self, work: &mut dyn FnMut());
}
