//! Watching a cache: events for what leaves the nearest level, spans for those who trace.

use std::{fmt, sync::Arc, time::Duration};

use smallvec::SmallVec;

use crate::{
    Description, Error, ErrorKind, EvictionCause, MissReason, Outcome, RawKey, Unreadable,
    stats::Stats,
    within::{Surroundings, Within, within},
};

/// The verbs of a cache, as telemetry names them (`cache.operation`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Verb {
    /// `get` and `look`.
    Get,
    /// `get_or_set` in all its forms.
    GetOrSet,
    /// `get_many`.
    GetMany,
    /// `get_or_set_many`.
    GetOrSetMany,
    /// `set`.
    Set,
    /// `set_many`.
    SetMany,
    /// `invalidate`.
    Invalidate,
    /// `invalidate_many`.
    InvalidateMany,
    /// `invalidate_tag` and `invalidate_tags`.
    InvalidateTag,
    /// `expire`.
    Expire,
    /// `expire_tag` and `expire_tags`.
    ExpireTag,
    /// `expire_all`.
    ExpireAll,
    /// `clear`.
    Clear,
    /// `refresh`. Refreshes in the background are nobody's call.
    Refresh,
    /// `update`.
    Update,
    /// `save` of a cache with a source.
    Save,
    /// `delete` of a cache with a source.
    Delete,
    /// `warm`.
    Warm,
}

impl Verb {
    /// All verbs.
    pub const ALL: [Self; 18] = [
        Self::Get,
        Self::GetOrSet,
        Self::GetMany,
        Self::GetOrSetMany,
        Self::Set,
        Self::SetMany,
        Self::Invalidate,
        Self::InvalidateMany,
        Self::InvalidateTag,
        Self::Expire,
        Self::ExpireTag,
        Self::ExpireAll,
        Self::Clear,
        Self::Refresh,
        Self::Update,
        Self::Save,
        Self::Delete,
        Self::Warm,
    ];

    /// A low-cardinality word for telemetry.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Get => "get",
            Self::GetOrSet => "get_or_set",
            Self::GetMany => "get_many",
            Self::GetOrSetMany => "get_or_set_many",
            Self::Set => "set",
            Self::SetMany => "set_many",
            Self::Invalidate => "invalidate",
            Self::InvalidateMany => "invalidate_many",
            Self::InvalidateTag => "invalidate_tag",
            Self::Expire => "expire",
            Self::ExpireTag => "expire_tag",
            Self::ExpireAll => "expire_all",
            Self::Clear => "clear",
            Self::Refresh => "refresh",
            Self::Update => "update",
            Self::Save => "save",
            Self::Delete => "delete",
            Self::Warm => "warm",
        }
    }
}

/// What is done at one level.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum LevelOp {
    /// A read.
    Get,
    /// The right to fill: taken or renewed.
    Acquire,
    /// A write.
    Put,
    /// A removal.
    Remove,
    /// Marks are replaced: an invalidation of more than a key.
    Swap,
}

impl LevelOp {
    /// A low-cardinality word for telemetry.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Get => "get",
            Self::Acquire => "acquire",
            Self::Put => "put",
            Self::Remove => "remove",
            Self::Swap => "swap",
        }
    }
}

/// Why a level did not do what it was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum LevelFault {
    /// The provider answered with an error.
    Error,
    /// It did not answer within the level's budget.
    Timeout,
    /// It panicked.
    Panic,
}

impl LevelFault {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Error, Self::Timeout, Self::Panic];

    /// A low-cardinality word for telemetry (`error.type`).
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Timeout => "timeout",
            Self::Panic => "panic",
        }
    }
}

/// What an invalidation names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Scope {
    /// A key.
    Key,
    /// A tag.
    Tag,
    /// The whole cache.
    Cache,
}

impl Scope {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Key, Self::Tag, Self::Cache];

    /// A low-cardinality word for telemetry.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Key => "key",
            Self::Tag => "tag",
            Self::Cache => "clear",
        }
    }
}

/// State of a level's breaker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum BreakerState {
    /// Requests go through.
    Closed,
    /// One request is on its way to find out.
    HalfOpen,
    /// Requests are not sent.
    Open,
}

impl BreakerState {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Closed, Self::HalfOpen, Self::Open];

    /// A low-cardinality word for telemetry.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::HalfOpen => "half_open",
            Self::Open => "open",
        }
    }
}

/// How a load ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum LoadEnd {
    /// With a value.
    Value,
    /// The source does not have the key.
    Absent,
    /// The held value is still right.
    Unchanged,
    /// An answer that is not stored.
    NotStored,
    /// It failed.
    Failed(ErrorKind),
}

impl LoadEnd {
    /// A low-cardinality word for telemetry.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Value => "value",
            Self::Absent => "absent",
            Self::Unchanged => "unchanged",
            Self::NotStored => "not_stored",
            Self::Failed(kind) => kind.as_str(),
        }
    }
}

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
        /// Number of keys.
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
/// Called inline, so it must be quick, and must not write to the cache that it is told of: an eviction is told of while the
/// level in memory makes room for a value. A panic in it is caught and dropped. L1 hits produce no call but for the sampled
/// [`Event::Operation`]: their counts are in [`Stats`].
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
    /// Number of keys.
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
    /// A message to the other nodes.
    Publish,
    /// Values on their way to levels that are written behind the caller's back.
    WriteBehind,
    /// One round of telling a level what it has not heard.
    Replay,
}

/// A span under way. Ends when [told](Self::end), at the latest when dropped.
pub trait Span: Send + Sync + 'static {
    /// Runs `work` with this span as the current one. Called around every poll.
    fn within(&self, work: &mut dyn FnMut());

    /// How the look-up ended.
    fn found(&self, outcome: Outcome, level: Option<u8>) {
        let _ = (outcome, level);
    }

    /// Size of the item in bytes.
    fn size(&self, bytes: usize) {
        let _ = bytes;
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

/// The observers of one cache. Empty costs a length check.
#[derive(Clone)]
pub(crate) struct Observers {
    pub(crate) info: CacheInfo,
    all: Arc<[Arc<dyn Observer>]>,
    traffic: Arc<[Arc<dyn Traffic>]>,
    traces_hits: bool,
}

impl Observers {
    pub(crate) fn new(info: CacheInfo, all: Vec<Arc<dyn Observer>>) -> Self {
        let traces_hits = all.iter().any(|o| guard(|| o.traces_hits()) == Some(true));
        Self { info, all: all.into(), traffic: Arc::default(), traces_hits }
    }

    pub(crate) fn attach(&self, stats: &Arc<Stats>) {
        for observer in self.all.iter() {
            guard(|| observer.attach(stats));
        }
    }

    /// The same observers, once they have said whether they want to hear of keys.
    pub(crate) fn hearing(mut self, stats: &Arc<Stats>) -> Self {
        self.traffic = self.all.iter().filter_map(|o| guard(|| o.traffic(stats)).flatten()).collect();
        self
    }

    #[inline]
    pub(crate) fn asked(&self, key: &RawKey<'_>) {
        if !self.traffic.is_empty() {
            self.tell(key);
        }
    }

    /// Apart, so that a hit that nobody hears of is as short as it was.
    #[inline(never)]
    fn tell(&self, key: &RawKey<'_>) {
        for traffic in self.traffic.iter() {
            guard(|| traffic.asked(key));
        }
    }

    /// Tells of items, if there are any.
    pub(crate) fn items(&self, level: u8, op: LevelOp, bytes: &[usize]) {
        if !bytes.is_empty() {
            self.event(&Event::Items { level, op, bytes });
        }
    }

    pub(crate) fn event(&self, event: &Event<'_>) {
        for observer in self.all.iter() {
            guard(|| observer.event(&self.info, event));
        }
    }

    /// Whether the next hit should take the way that has spans.
    #[inline]
    pub(crate) fn traces_hit(&self) -> bool {
        self.traces_hits && self.all.iter().any(|o| guard(|| o.traces_hit()) == Some(true))
    }

    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// Starts a span with every observer that records.
    pub(crate) fn span(&self, start: &SpanStart<'_>) -> Spans {
        let mut spans = Spans::default();
        for observer in self.all.iter() {
            if let Some(Some(span)) = guard(|| observer.span(&self.info, start)) {
                spans.0.push(span);
            }
        }
        spans
    }

    pub(crate) fn ambient(&self) -> Vec<Arc<dyn Ambient>> {
        self.all.iter().filter_map(|o| guard(|| o.ambient()).flatten()).collect()
    }
}

impl fmt::Debug for Observers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Observers").field("cache", &self.info.name).finish_non_exhaustive()
    }
}

/// A broken observer must not break the cache.
fn guard<R>(call: impl FnOnce() -> R) -> Option<R> {
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(call)).ok()
}

/// One piece of work, as every recording observer sees it.
#[derive(Clone, Default)]
pub(crate) struct Spans(SmallVec<[Arc<dyn Span>; 1]>);

impl Spans {
    pub(crate) fn found(&self, outcome: Outcome, level: Option<u8>) {
        self.each(|s| s.found(outcome, level));
    }

    pub(crate) fn done(&self, keys: usize, failed: usize) {
        self.each(|s| s.done(keys, failed));
    }

    pub(crate) fn missed(&self, reason: MissReason) {
        self.each(|s| s.missed(reason));
    }

    pub(crate) fn size(&self, bytes: usize) {
        self.each(|s| s.size(bytes));
    }

    pub(crate) fn failed(&self, error: &str) {
        self.each(|s| s.failed(error));
    }

    pub(crate) fn end(&self) {
        self.each(|s| s.end());
    }

    /// Links span by span; a span of another observer's kind is for `link` to ignore.
    pub(crate) fn link(&self, other: &Self) {
        self.each(|s| other.0.iter().for_each(|o| s.link(&**o)));
    }

    fn each(&self, call: impl Fn(&dyn Span)) {
        for span in &self.0 {
            guard(|| call(&**span));
        }
    }

    /// Runs `future` with these spans current.
    pub(crate) fn around<F: Future>(&self, future: F) -> Within<&Self, F> {
        within(self, future)
    }
}

impl Surroundings for Spans {
    type One = dyn Span;

    fn all(&self) -> &[Arc<dyn Span>] {
        &self.0
    }

    fn within(one: &dyn Span, work: &mut dyn FnMut()) {
        one.within(work);
    }
}
