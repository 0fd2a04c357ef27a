//! Levels of bare values, shared with programs that know nothing of this one: what a cache with such a level cannot do
//! is refused when it is built, or named at [`Level::plain`](crate::Level::plain).

use std::{sync::Arc, time::Duration};

use crate::{
    Early, Entry, EntryId, Error, ErrorKind, Moment, Policy, Result, Stamp, Unreadable, Value,
    inner::Inner,
    rules::Shape,
    tier::{PLAIN, Tier},
    wire::Decoded,
};

/// Refuses settings that no level could keep to.
pub(crate) fn check(levels: &[Shape], policy: &Policy) -> Result<()> {
    let Some(deepest) = levels.iter().rposition(|level| level.plain) else { return Ok(()) };
    if let Some(at) = levels[..deepest].iter().position(|level| level.ttl_cap.is_none()) {
        return Err(Error::config(
            &levels[at].field(at, "ttl_cap"),
            "none",
            format_args!(
                "level {} is plain: its values do not say how long they have left, and other programs change them; \
                 say how long this level may keep a copy",
                deepest + 1
            ),
        ));
    }
    if levels.iter().all(|level| level.plain) {
        let fix = "every level is plain, and a bare value lives for its ttl and no longer; leave it out, or add a level \
                   in memory";
        let times =
            [("grace", policy.grace), ("revalidate", policy.revalidate), ("absent_ttl", policy.absent_ttl)];
        if let Some((field, time)) = times.into_iter().find(|(_, time)| !time.is_zero()) {
            return Err(Error::config(&format!("policy.{field}"), format_args!("{time:?}"), fix));
        }
        if policy.early != Early::Off {
            return Err(Error::config("policy.early", format_args!("{:?}", policy.early), fix));
        }
    }
    Ok(())
}

impl<T: Value> Inner<T> {
    /// Reads a bare value. It counts as born now.
    pub(crate) fn decode_plain(
        &self,
        tier: &Tier,
        bytes: &[u8],
        now: Moment,
    ) -> Result<Decoded<T>, Unreadable> {
        let value = self.coding.decode(self.coding.id(tier.packing.codec), bytes)?;
        let mut timeline = self.timeline(now, false, None, Some(Duration::ZERO));
        if let Some(cap) = tier.ttl_cap {
            timeline = timeline.capped(now.after(cap));
        }
        let entry = Entry {
            value: Some(Arc::new(value)),
            timeline,
            id: EntryId::random(),
            stamp: Stamp::default(),
            seen: 0,
            cost: Duration::ZERO,
            by_set: false,
            extra: None,
            quiet_until: None,
            encoded: u32::try_from(bytes.len()).ok(),
        };
        Ok(Decoded { entry, stamp: PLAIN })
    }

    /// How long a bare value lives in the store: for its freshness. `None`: it has none left.
    pub(crate) fn plain_ttl(&self, entry: &Entry<T>, tier: &Tier) -> Option<Duration> {
        let left = entry.timeline.fresh_until.since(self.now());
        let ttl = tier.ttl_cap.map_or(left, |cap| cap.min(left));
        (!ttl.is_zero()).then_some(ttl)
    }

    /// Refuses what takes an epoch or tags, where a level has bare values.
    pub(crate) fn check_scopes(&self, verb: &str) -> Result<()> {
        match self.tiers.iter().find(|tier| tier.packing.plain) {
            Some(tier) => Err(Error::new(
                ErrorKind::Unsupported,
                format!(
                    "{verb}: level {} is plain, and bare values carry neither tags nor an epoch; invalidate by key",
                    tier.number()
                ),
            )),
            None => Ok(()),
        }
    }
}
