//! Entries as bytes at a remote level.

use std::{sync::Arc, time::Duration};

use crate::{
    Entry, Event, Extra, RawKey, Result, Stamp, Unreadable, Value,
    clock::Times,
    envelope::{self, Header},
    inner::{Inner, micros},
    payload::Form,
    tier::Tier,
};

/// An entry out of bytes, and the stamp that it carried there.
pub(crate) struct Decoded<T> {
    pub(crate) entry: Entry<T>,
    pub(crate) stamp: Stamp,
}

impl<T: Value> Inner<T> {
    pub(crate) fn unreadable(&self, level: u8, reason: Unreadable) {
        self.stats().unreadable(level, reason);
        self.observers().event(&Event::Unreadable { level, reason });
    }

    /// The entry in what a level has answered. Counts nothing.
    pub(crate) fn decode_quietly(
        &self,
        key: RawKey<'_>,
        tier: &Tier,
        bytes: &[u8],
        times: Times,
    ) -> Result<Decoded<T>, Unreadable> {
        if tier.caps.value_max.is_some_and(|max| bytes.len() > max) {
            return Err(Unreadable::TooLarge);
        }
        if tier.packing.plain {
            return self.decode_plain(tier, bytes, times.now);
        }
        let (header, payload) = envelope::open(key, bytes)?;
        if header.schema != self.schema {
            return Err(Unreadable::Schema);
        }
        let head = envelope::header_of(bytes, payload);
        let payload = tier.packing.unpack(key, head, header.form, payload)?;
        let value = match header.codec {
            None => None,
            Some(id) => Some(Arc::new(self.coding.decode(id, &payload)?)),
        };
        let entry = Entry {
            value,
            timeline: header.timeline(times),
            id: header.id,
            stamp: Stamp::default(),
            seen: 0,
            cost: Duration::from_micros(header.cost_us.into()),
            by_set: header.by_set,
            extra: header.extra,
            quiet_until: None,
            encoded: u32::try_from(payload.len()).ok(),
        };
        Ok(Decoded { entry, stamp: header.stamp })
    }

    /// The header under which an entry goes to a remote level, and the physical life there. `None`: nothing is left of
    /// its life.
    pub(crate) fn header(&self, entry: &Entry<T>, tier: &Tier, stamp: Stamp) -> Option<(Header, Duration)> {
        let now = self.now();
        let mut timeline = entry.timeline;
        if let Some(cap) = tier.ttl_cap {
            timeline = timeline.capped(now.after(cap));
        }
        let ttl = timeline.remaining(now);
        if ttl.is_zero() {
            return None;
        }
        let age = i64::try_from(now.since(timeline.born).as_millis()).unwrap_or(i64::MAX);
        let store_now = self.around.clock.wall_ms().saturating_add(tier.time_offset_ms());
        let header = Header {
            codec: entry.value.is_some().then(|| self.coding.id(tier.packing.codec)),
            form: Form::default(),
            by_set: entry.by_set,
            expired: false,
            id: entry.id,
            schema: self.schema,
            born_ms: u64::try_from(store_now.saturating_sub(age)).unwrap_or(0),
            fresh_for: timeline.fresh_until.since(timeline.born),
            usable_for: timeline.usable_until.since(timeline.born),
            cost_us: micros(entry.cost),
            stamp,
            extra: Extra::for_wire(entry.extra.as_ref()),
        };
        Some((header, ttl))
    }
}

impl Extra {
    /// Without what concerns only this node.
    fn for_wire(this: Option<&Arc<Self>>) -> Option<Arc<Self>> {
        match this {
            Some(extra) if extra.retry_at.is_some() || extra.stamp != Stamp::default() => {
                Self { retry_at: None, stamp: Stamp::default(), ..(**extra).clone() }.boxed()
            }
            other => other.cloned(),
        }
    }
}
