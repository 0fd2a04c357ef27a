//! Values of sets that a level has not taken, to be stored there later unless something has come between.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use bytes::Bytes;

use crate::{EntryId, Moment, Stamp};

/// Most values kept per level, and most bytes of them. Documented in docs/semantics.md.
const MAX_VALUES: usize = 1_000;
const MAX_BYTES: usize = 16 << 20;
/// Most entries of before that are known by id.
const MAX_BEFORE: usize = 8;

/// A value that a level has not taken, as it was sent.
#[derive(Clone, Debug)]
pub(crate) struct Unsaved {
    pub(crate) bytes: Bytes,
    pub(crate) id: EntryId,
    pub(crate) stamp: Stamp,
    pub(crate) until: Moment,
    /// What was known to be there before the set, and what earlier sets may have put there: as long as the level holds one
    /// of these, nobody else has written the key since.
    pub(crate) before: Vec<EntryId>,
}

/// The values of one level, those first to go that expire first.
#[derive(Default)]
pub(crate) struct Values {
    values: HashMap<Box<str>, Arc<Unsaved>>,
    by_end: BTreeSet<(Moment, Box<str>)>,
    bytes: usize,
}

impl Values {
    pub(crate) fn len(&self) -> usize {
        self.values.len()
    }

    pub(crate) fn get(&self, id: &str) -> Option<Arc<Unsaved>> {
        self.values.get(id).cloned()
    }

    pub(crate) fn take(&mut self, id: &str) -> Option<Arc<Unsaved>> {
        let (id, value) = self.values.remove_entry(id)?;
        self.bytes -= value.bytes.len();
        self.by_end.remove(&(value.until, id));
        Some(value)
    }

    /// Keeps a value. Says how many, this one or others, had to go for want of room.
    pub(crate) fn put(&mut self, id: &str, mut value: Unsaved, now: Moment) -> usize {
        if let Some(old) = self.take(id) {
            // It may have arrived after all.
            let mut known = old.before.clone();
            known.push(old.id);
            known.extend(value.before.iter().filter(|id| !old.before.contains(id) && **id != old.id));
            known.truncate(MAX_BEFORE);
            value.before = known;
        }
        if value.before.is_empty() || value.bytes.len() > MAX_BYTES || value.until <= now {
            return 1;
        }
        let mut lost = 0;
        while self.values.len() >= MAX_VALUES || self.bytes + value.bytes.len() > MAX_BYTES {
            let Some((_, first)) = self.by_end.first().cloned() else { break };
            self.take(&first);
            lost += 1;
        }
        self.bytes += value.bytes.len();
        self.by_end.insert((value.until, id.into()));
        self.values.insert(id.into(), Arc::new(value));
        lost
    }

    pub(crate) fn clear(&mut self) -> usize {
        let all = self.values.len();
        *self = Self::default();
        all
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::time::Duration;

    use super::*;

    fn at(seconds: u64) -> Moment {
        Moment::ORIGIN.after(Duration::from_secs(seconds))
    }

    pub(crate) fn value(id: u64, until: u64, bytes: usize) -> Unsaved {
        Unsaved {
            bytes: vec![0; bytes].into(),
            id: EntryId(id),
            stamp: Stamp::default(),
            until: at(until),
            before: vec![EntryId(0)],
        }
    }

    #[test]
    fn r13_the_one_that_expires_first_makes_room() {
        let mut values = Values::default();
        for n in 0..MAX_VALUES as u64 {
            // The 501st expires first.
            assert_eq!(values.put(&n.to_string(), value(n, 100 + n.abs_diff(500), 1), at(0)), 0);
        }
        assert_eq!(values.put("new", value(9, 1_000, 1), at(0)), 1);
        assert_eq!(
            (values.len(), values.get("500").is_none(), values.get("new").is_some()),
            (MAX_VALUES, true, true)
        );
    }

    #[test]
    fn bytes_are_bounded_too() {
        let mut values = Values::default();
        let third = MAX_BYTES / 3;
        assert_eq!(values.put("huge", value(1, 10, MAX_BYTES + 1), at(0)), 1);
        for id in ["c", "b", "a"] {
            assert_eq!(values.put(id, value(1, u64::from(id.as_bytes()[0]), third), at(0)), 0);
        }
        assert_eq!(values.put("d", value(1, 200, third), at(0)), 1);
        assert!(values.get("a").is_none() && values.get("d").is_some());
        assert_eq!(values.clear(), 3);
        assert_eq!(values.put("d", value(1, 200, MAX_BYTES), at(0)), 0, "nothing is counted twice");
    }

    #[test]
    fn what_was_known_before_is_known_after_a_second_set() {
        let mut values = Values::default();
        values.put("k", value(1, 10, 1), at(0));
        let second = Unsaved { before: vec![EntryId(1)], ..value(2, 10, 1) };
        assert_eq!(values.put("k", second, at(0)), 0);
        assert_eq!(values.take("k").unwrap().before, [EntryId(0), EntryId(1)]);
        assert_eq!(values.put("k", value(3, 10, 1), at(10)), 1, "it is over already");
        let blind = Unsaved { before: Vec::new(), ..value(4, 10, 1) };
        assert_eq!(values.put("k", blind, at(0)), 1, "nobody could tell whether it may be stored");
    }
}
