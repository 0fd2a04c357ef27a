//! What levels hold of a key, for those who look into a cache.

use std::{any::TypeId, fmt, time::Duration};

use bytes::Bytes;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::{
    CacheKey, Codec, Description, EntryId, Extra, KeyBuf, LevelFault, LevelOutcome, RawKey, Result, Stamp,
    TracedCache, Unreadable, Value, codec,
    envelope::{self, Header},
    inner::{Inner, State},
    mark::{Mark, Reach, TagMark},
    payload::Squeezed,
    tier::{Failure, Tier},
    with_causes,
};

/// What the levels of a cache hold of a key: from [`TracedCache::inspect`].
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Inspection {
    /// One for each level, nearest first.
    pub levels: Vec<Inspected>,
}

impl Inspection {
    /// The level that a look-up would be answered by, if one has the key fresh: an absence that is remembered is an answer.
    pub fn served_by(&self) -> Option<&Inspected> {
        self.levels.iter().find(|at| matches!(at.outcome, LevelOutcome::Hit | LevelOutcome::Negative))
    }
}

/// What one level holds of a key.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Inspected {
    /// The level, 0 being the nearest.
    pub level: usize,
    /// What it stands on.
    pub provider: Description,
    /// Whether it keeps objects of this process.
    pub in_process: bool,
    /// What a look-up at this level would come to now.
    pub outcome: LevelOutcome,
    /// Why what is there cannot be read.
    pub unreadable: Option<Unreadable>,
    /// Why the level has no answer.
    pub error: Option<String>,
    /// What is there, as far as it can be read.
    pub entry: Option<EntryInfo>,
    /// The value, from [`TracedCache::inspect_with_value`] only.
    pub value: Option<Shown>,
}

/// An entry without its value.
#[derive(Clone)]
#[non_exhaustive]
pub struct EntryInfo {
    /// Time since its load started; `None` for a bare value, which does not say.
    pub age: Option<Duration>,
    /// How long it is fresh yet; `Duration::MAX`: until it is evicted or invalidated.
    pub fresh_for: Option<Duration>,
    /// How long it may stand in yet when a load fails, freshness included.
    pub usable_for: Option<Duration>,
    /// What its load took; zero for a value that was set.
    pub cost: Duration,
    /// Whether a `set` made it, and not a load.
    pub by_set: bool,
    /// Its tags.
    pub tags: Vec<Box<str>>,
    /// The source's validator.
    pub etag: Option<Box<str>>,
    /// Bytes that it takes at the level; at a level in process what it weighs, where the store weighs.
    pub bytes: Option<usize>,
    /// Bytes of the value as its codec wrote it, where it could be unpacked.
    pub value_bytes: Option<usize>,
    /// The codec: `json`, `msgpack`, `postcard`, or `None` for an object, an absence, or a codec of another release.
    pub codec: Option<&'static str>,
    /// `lz4` or `zstd`.
    pub compression: Option<&'static str>,
    /// Whether it is encrypted.
    pub encrypted: bool,
    /// The schema id that it was written under; `None` for an object or a bare value.
    pub schema: Option<u32>,
    /// Names this version of the key; `None` for a bare value.
    pub id: Option<EntryId>,
    /// Where it stands on the cache's logical clock.
    pub stamp: Option<Stamp>,
}

/// Its tags and its validator come with the value, and stay out of `Debug` output.
impl fmt::Debug for EntryInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EntryInfo")
            .field("age", &self.age)
            .field("fresh_for", &self.fresh_for)
            .field("usable_for", &self.usable_for)
            .field("cost", &self.cost)
            .field("by_set", &self.by_set)
            .field("tags", &self.tags.len())
            .field("etag", &self.etag.as_ref().map(|etag| etag.len()))
            .field("bytes", &self.bytes)
            .field("value_bytes", &self.value_bytes)
            .field("codec", &self.codec)
            .field("compression", &self.compression)
            .field("encrypted", &self.encrypted)
            .field("schema", &self.schema)
            .field("id", &self.id)
            .field("stamp", &self.stamp)
            .finish()
    }
}

/// A value in a form that people can read.
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Shown {
    /// As JSON.
    Json(String),
    /// What the codec wrote: without the type it cannot be told what it says.
    Bytes(Bytes),
}

/// Values stay out of `Debug` output.
impl fmt::Debug for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Json(_) => "Json(..)",
            Self::Bytes(_) => "Bytes(..)",
        })
    }
}

/// The value of a cache whose type is not known here, for programs that look after other programs' caches. A
/// `TracedCache<Opaque>` inspects, invalidates, expires and clears; there is no value of this type, so it neither reads nor
/// writes any. Schema ids do not matter to it.
#[derive(Debug)]
pub enum Opaque {}

impl Serialize for Opaque {
    fn serialize<S: Serializer>(&self, _: S) -> std::result::Result<S::Ok, S::Error> {
        match *self {}
    }
}

impl<'de> Deserialize<'de> for Opaque {
    fn deserialize<D: Deserializer<'de>>(_: D) -> std::result::Result<Self, D::Error> {
        Err(serde::de::Error::custom("a value of a type that is not known here"))
    }
}

impl<T: Value> TracedCache<T> {
    /// What each level holds of a key, and what a look-up there would come to. For people: it reads, counts no look-up, and
    /// leaves everything as it is. Each remote level is asked within its budget, twice at most, and its breaker counts; one
    /// that fails says so in its place.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Key`] for an empty key; [`crate::ErrorKind::Closed`].
    pub async fn inspect(&self, key: impl CacheKey) -> Result<Inspection> {
        self.inspect_as(&self.render(&key)?, false).await
    }

    /// The same with values, for those who may see them.
    ///
    /// # Errors
    /// As [`inspect`](Self::inspect).
    pub async fn inspect_with_value(&self, key: impl CacheKey) -> Result<Inspection> {
        self.inspect_as(&self.render(&key)?, true).await
    }

    async fn inspect_as(&self, id: &str, values: bool) -> Result<Inspection> {
        let inner = &self.inner;
        inner.check_open()?;
        let key = inner.key(id)?;
        let mut levels = Vec::with_capacity(inner.tiers.len());
        for tier in &inner.tiers {
            let blank = Inspected {
                level: tier.index.into(),
                provider: tier.provider().describe(),
                in_process: tier.store.is_some(),
                outcome: LevelOutcome::Miss,
                unreadable: None,
                error: None,
                entry: None,
                value: None,
            };
            levels.push(match tier.store {
                Some(_) => inner.inspect_near(tier, key, values, blank).await,
                None => inner.inspect_far(tier, key, values, blank).await,
            });
        }
        Ok(Inspection { levels })
    }
}

/// A key that is rendered already, as stores and telemetry show it: `42`, or `(1:7,2:de)` for a tuple.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Rendered(pub String);

/// Keys stay out of `Debug` output.
impl fmt::Debug for Rendered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Rendered").field(&self.0.len()).finish()
    }
}

impl CacheKey for Rendered {
    type Owned = Self;

    fn render<'a>(&'a self, _: &'a mut KeyBuf) -> &'a str {
        &self.0
    }

    fn to_owned_key(&self) -> Self {
        self.clone()
    }
}

impl<T: Value> Inner<T> {
    async fn inspect_near(&self, tier: &Tier, key: RawKey<'_>, values: bool, blank: Inspected) -> Inspected {
        let Some(store) = &tier.store else { return blank };
        let mut peeked = self.peek_quietly(key, &**store, tier.index);
        if peeked.doubtful {
            let tags = peeked.entry.iter().flat_map(|entry| entry.tags().to_vec()).collect::<Vec<_>>();
            self.learn_tags(tags.iter().map(|tag| &**tag)).await;
            peeked = self.peek_quietly(key, &**store, tier.index);
        }
        let now = self.now();
        let entry = peeked.entry.as_ref().map(|entry| EntryInfo {
            age: Some(now.since(entry.timeline.born)),
            fresh_for: Some(entry.timeline.fresh_until.since(now)),
            usable_for: Some(entry.timeline.remaining(now)),
            cost: entry.cost,
            by_set: entry.by_set,
            tags: entry.tags().to_vec(),
            etag: entry.extra.as_ref().and_then(|extra| extra.etag.clone()),
            bytes: store
                .weighs()
                .then(|| store.get(key))
                .flatten()
                .and_then(|o| usize::try_from(o.weight).ok()),
            value_bytes: None,
            codec: None,
            compression: None,
            encrypted: false,
            schema: None,
            id: Some(entry.id),
            stamp: Some(entry.stamp),
        });
        let value = peeked.entry.and_then(|entry| entry.value).filter(|_| values);
        let value = value.and_then(|value| self.coding.json(&value)).map(Shown::Json);
        Inspected { outcome: peeked.outcome, entry, value, ..blank }
    }

    /// Asks the level itself, and judges by the marks that it holds now: what this node knows of them stays as it is.
    async fn inspect_far(&self, tier: &Tier, key: RawKey<'_>, values: bool, blank: Inspected) -> Inspected {
        let around = &self.around;
        let mut keys = vec![key];
        keys.extend(tier.is_marked().then(|| RawKey::marker(around.cache, &around.name)));
        let mut answers = tier.get_raw(around, &keys).await.into_iter();
        let bytes = match answers.next().unwrap_or(Err(Failure::Skipped)) {
            Ok(Some(bytes)) => bytes,
            Ok(None) if tier.masks(key.id) => return blank.failed(tier, Failure::Skipped),
            Ok(None) => return blank,
            Err(failure) => {
                return match failure.unreadable() {
                    Some(reason) => {
                        Inspected { entry: Some(EntryInfo::unknown()), ..blank.unreadable(reason) }
                    }
                    None => blank.failed(tier, failure),
                };
            }
        };
        let Some(mark) = answers.next() else { return self.inspect_plain(tier, &bytes, values, blank) };
        let (header, payload) = match envelope::open(key, &bytes) {
            Ok(opened) => opened,
            Err(reason) => {
                let entry = Some(EntryInfo { bytes: Some(bytes.len()), ..EntryInfo::unknown() });
                return Inspected { entry, ..blank.unreadable(reason) };
            }
        };
        let head = envelope::header_of(&bytes, payload);
        let unpacked = match tier.caps.value_max.is_some_and(|max| bytes.len() > max) {
            true => Err(Unreadable::TooLarge),
            false => tier.packing.unpack(key, head, header.form, payload),
        };
        let mut info = self.info(tier, &header, bytes.len());
        info.value_bytes =
            unpacked.as_ref().ok().filter(|_| header.codec.is_some()).map(|payload| payload.len());
        let read = match (unpacked, header.codec) {
            (Err(reason), _) => Err(reason),
            (Ok(_), None) => Ok(None),
            (Ok(payload), Some(codec)) => {
                self.show(codec, payload.into_owned().into(), header.schema, values)
            }
        };
        let mark = match mark {
            Ok(raw) => {
                let home = tier.incarnation();
                raw.as_deref().and_then(Mark::decode).filter(|mark| mark.is_of(home))
            }
            Err(failure) => return Inspected { entry: Some(info), ..blank.failed(tier, failure) },
        };
        let standing = self.standing(tier, &header, mark).await;
        let outcome = match (&read, standing, tier.masks(key.id)) {
            (Err(_), ..) => LevelOutcome::Unreadable,
            (_, _, true) => LevelOutcome::Skipped,
            (_, Err(failure), _) => return Inspected { entry: Some(info), ..blank.failed(tier, failure) },
            (_, Ok(Some(Reach::Purge)), _) => LevelOutcome::Invalidated,
            (_, Ok(expired), _) => {
                let times = tier.times(&around.clock);
                let (mut timeline, now) = (header.timeline(times), times.now);
                if expired.is_some() {
                    timeline.fresh_until = timeline.fresh_until.min(now);
                    info.fresh_for = Some(timeline.fresh_until.since(now));
                }
                let has_value = header.codec.is_some();
                State::of(&timeline, has_value, now).outcome(has_value)
            }
        };
        let (value, unreadable) = match read {
            Ok(value) => (value, None),
            Err(reason) => (None, Some(reason)),
        };
        Inspected { outcome, unreadable, entry: Some(info), value, ..blank }
    }

    fn inspect_plain(&self, tier: &Tier, bytes: &Bytes, values: bool, blank: Inspected) -> Inspected {
        let codec = self.coding.id(tier.packing.codec);
        let size = Some(bytes.len());
        let entry = EntryInfo {
            bytes: size,
            value_bytes: size,
            codec: codec::name_of(codec),
            ..EntryInfo::unknown()
        };
        // Copied: the caller keeps it, and the buffer that it may be a part of is not to be kept.
        match self.show(codec, Bytes::copy_from_slice(bytes), self.schema, values) {
            Ok(value) => Inspected { outcome: LevelOutcome::Hit, entry: Some(entry), value, ..blank },
            Err(reason) => Inspected { entry: Some(entry), ..blank.unreadable(reason) },
        }
    }

    /// How far an entry has been invalidated as one of its cache or by a tag, going by the marks in the store.
    async fn standing(
        &self,
        tier: &Tier,
        header: &Header,
        mark: Option<Mark>,
    ) -> std::result::Result<Option<Reach>, Failure> {
        let Some(mark) = mark.filter(|mark| mark.epoch == header.stamp.epoch) else {
            return Ok(Some(Reach::Purge));
        };
        let sequence = header.stamp.sequence;
        let tags = header.extra.as_deref().map_or(&[][..], |extra: &Extra| &extra.tags);
        let mut reach = (sequence < mark.expired).then_some(Reach::Expire);
        reach = match tier.reaches(tags) {
            Some(Reach::Purge) => return Ok(Some(Reach::Purge)),
            Some(Reach::Expire) => Some(Reach::Expire),
            None => reach,
        };
        if tags.is_empty() || sequence >= mark.sequence {
            return Ok(reach);
        }
        let around = &self.around;
        let keys: Vec<_> = tags.iter().map(|tag| RawKey::tag(around.cache, &around.name, tag)).collect();
        for raw in tier.get_raw(around, &keys).await {
            let tag = TagMark::read(raw?.as_deref(), &mark);
            if sequence < tag.purged {
                return Ok(Some(Reach::Purge));
            }
            if sequence < tag.expired {
                reach = Some(Reach::Expire);
            }
        }
        Ok(reach)
    }

    fn info(&self, tier: &Tier, header: &Header, bytes: usize) -> EntryInfo {
        let times = tier.times(&self.around.clock);
        let (timeline, now) = (header.timeline(times), times.now);
        let extra = header.extra.as_deref();
        EntryInfo {
            age: Some(now.since(timeline.born)),
            fresh_for: Some(timeline.fresh_until.since(now)),
            usable_for: Some(timeline.remaining(now)),
            cost: Duration::from_micros(header.cost_us.into()),
            by_set: header.by_set,
            tags: extra.map(|extra| extra.tags.clone()).unwrap_or_default(),
            etag: extra.and_then(|extra| extra.etag.clone()),
            bytes: Some(bytes),
            value_bytes: None,
            codec: header.codec.and_then(codec::name_of),
            compression: header.form.squeezed.map(|squeezed| match squeezed {
                Squeezed::Lz4 => "lz4",
                Squeezed::Zstd => "zstd",
            }),
            encrypted: header.form.encrypted,
            schema: Some(header.schema),
            id: Some(header.id),
            stamp: Some(header.stamp),
        }
    }

    /// What a reader would make of a codec's bytes, and, if wished for, the value.
    fn show(
        &self,
        codec: u8,
        payload: Bytes,
        schema: u32,
        values: bool,
    ) -> std::result::Result<Option<Shown>, Unreadable> {
        if TypeId::of::<T>() == TypeId::of::<Opaque>() {
            let known = Codec::from_id(codec);
            if known.is_none() && codec != codec::OWN {
                return Err(Unreadable::Codec);
            }
            let describe = || match known {
                Some(codec) => codec.describe(payload),
                None => Shown::Bytes(payload),
            };
            return Ok(values.then(describe));
        }
        if schema != self.schema {
            return Err(Unreadable::Schema);
        }
        let value = self.coding.decode(codec, &payload)?;
        let json = || self.coding.json(&value).map_or(Shown::Bytes(payload), Shown::Json);
        Ok(values.then(json))
    }
}

impl Codec {
    /// A payload whose type is not known: JSON where the codec says of itself what it holds.
    fn describe(self, payload: Bytes) -> Shown {
        let json = match self {
            Self::Json => std::str::from_utf8(&payload).ok().map(str::to_owned),
            #[cfg(feature = "msgpack")]
            Self::MsgPack => self.decode::<serde_json::Value>(&payload).map(|value| value.to_string()),
            #[cfg(feature = "postcard")]
            Self::Postcard => None,
        };
        let is_json = |text: &String| serde_json::from_str::<serde::de::IgnoredAny>(text).is_ok();
        json.filter(is_json).map_or(Shown::Bytes(payload), Shown::Json)
    }
}

impl EntryInfo {
    const fn unknown() -> Self {
        Self {
            age: None,
            fresh_for: None,
            usable_for: None,
            cost: Duration::ZERO,
            by_set: false,
            tags: Vec::new(),
            etag: None,
            bytes: None,
            value_bytes: None,
            codec: None,
            compression: None,
            encrypted: false,
            schema: None,
            id: None,
            stamp: None,
        }
    }
}

impl Inspected {
    fn failed(self, tier: &Tier, failure: Failure) -> Self {
        let outcome = match &failure {
            Failure::Skipped | Failure::Mute => LevelOutcome::Skipped,
            Failure::Failed(..) => LevelOutcome::Error,
        };
        let error = match failure {
            Failure::Skipped => {
                "not asked: its breaker is open, or an invalidation has not reached it yet".to_owned()
            }
            Failure::Failed(LevelFault::Timeout, None) => "no answer within its budget".to_owned(),
            failure => with_causes(&failure.into_error(tier)),
        };
        Self { outcome, error: Some(error), ..self }
    }

    fn unreadable(self, reason: Unreadable) -> Self {
        Self { outcome: LevelOutcome::Unreadable, unreadable: Some(reason), ..self }
    }
}
