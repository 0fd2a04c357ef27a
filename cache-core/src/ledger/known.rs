//! What is known at one time, and what entries are by that.

use std::collections::HashMap;

use bytes::Bytes;

use crate::{
    Moment, Stamp,
    mark::{Mark, TagMark},
    news::{MAX_TAGS, Verdict},
};

/// What is known but for tags.
#[derive(Clone, Copy, Default)]
pub(super) struct Brief {
    pub(super) mark: Option<Mark>,
    pub(super) home: u64,
    pub(super) asked: Option<Moment>,
    pub(super) doubted: bool,
    pub(super) moved: bool,
    pub(super) is_nobodys: bool,
    pub(super) heeded: u64,
}

pub(super) struct Known {
    /// As last read or written, and its bytes in the store: none of one that is in no store.
    pub(super) mark: Option<(Mark, Bytes)>,
    /// The state of the store that it was read from.
    pub(super) home: u64,
    /// When somebody last asked for it. `None`: whoever reads has to, until it has been told.
    pub(super) asked: Option<Moment>,
    /// When the level last said what the mark is.
    pub(super) proven: Moment,
    /// It has not said so for too long: tags may have been invalidated.
    pub(super) doubted: bool,
    /// Another node has said that the mark is another one now, and it has not been read since.
    pub(super) outdated: bool,
    /// The tidings of other levels' marks that have been heeded here.
    pub(super) heeded: u64,
    /// Counts tries to create the mark.
    pub(super) tries: u64,
    /// Counts changes, so that an answer that was under way during one is not believed.
    pub(super) changes: u64,
    /// The last of them that was no mere doubt.
    pub(super) changed_at: u64,
    /// Marks of tags. Right as long as the sequence is.
    pub(super) tags: HashMap<Box<str>, TagCopy>,
    /// The level has been given another store, of which no mark has been read yet.
    pub(super) moved: bool,
    /// Its first mark is about to be taken. What was invalidated by tag in the store before, since that was last looked at, is
    /// not known.
    pub(super) arriving: bool,
}

impl Default for Known {
    fn default() -> Self {
        Self {
            mark: None,
            home: 0,
            asked: None,
            proven: Moment::ORIGIN,
            doubted: false,
            outdated: false,
            heeded: 0,
            tries: 0,
            changes: 0,
            changed_at: 0,
            tags: HashMap::new(),
            moved: false,
            arriving: false,
        }
    }
}

/// A tag's mark, as it was read or written.
#[derive(Clone, Debug)]
pub(crate) struct TagCopy {
    pub(crate) mark: TagMark,
    /// Its bytes in the store; `None` where there is none.
    pub(crate) raw: Option<Bytes>,
    /// Until when the store keeps it at least.
    pub(crate) until: Moment,
}

impl Brief {
    pub(super) fn is_of(&self, home: u64) -> bool {
        self.mark.is_some() && self.home == home && !self.moved
    }

    pub(super) fn stamp(&self) -> Stamp {
        self.mark.map_or_else(Stamp::default, |mark| Stamp { epoch: mark.epoch, sequence: mark.sequence })
    }

    /// How an entry with this stamp stands. `None`: its tags decide. One that carries the number of the last invalidation is
    /// valid whatever they are: all of them came before.
    pub(super) fn judge(&self, stamp: Stamp, tags: &[Box<str>]) -> Option<Verdict> {
        match self.mark {
            Some(mark) if stamp.epoch == mark.epoch => {
                let tags_decide = !tags.is_empty() && (self.doubted || stamp.sequence < mark.sequence);
                (!tags_decide).then(|| mark.judge(stamp))
            }
            _ => Some(Verdict::Void),
        }
    }
}

impl Mark {
    /// How an entry of its epoch stands that has no tags.
    fn judge(&self, stamp: Stamp) -> Verdict {
        if stamp.sequence < self.expired { Verdict::Expired } else { Verdict::Valid }
    }
}

impl Known {
    pub(super) fn brief(&self) -> Brief {
        let Self { home, asked, doubted, moved, heeded, .. } = *self;
        let mark = self.mark.as_ref().map(|(mark, _)| *mark);
        Brief { mark, home, asked, doubted, moved, is_nobodys: self.is_nobodys(), heeded }
    }

    /// Whether no store has the mark.
    pub(super) fn is_nobodys(&self) -> bool {
        self.mark.as_ref().is_some_and(|(_, raw)| raw.is_empty())
    }

    pub(super) fn is_of(&self, home: u64) -> bool {
        self.brief().is_of(home)
    }

    /// From here on, what counts is what has happened in the new store.
    pub(super) fn settle(&mut self, carried: Mark) {
        self.mark = Some((carried, carried.encode()));
        self.tags.clear();
        self.moved = false;
        self.arriving = true;
    }

    /// What was known is of no use any more: no entry is believed until the store has said what mark it has.
    pub(super) fn believe_nobody(&mut self, home: u64) {
        (self.home, self.moved, self.outdated) = (home, false, true);
        self.mark = Some((Mark::new(home), Bytes::new()));
        self.tags.clear();
        self.change();
        self.asked = None;
    }

    /// Something else is known now.
    pub(super) fn change(&mut self) {
        self.changes += 1;
        self.changed_at = self.changes;
    }

    /// Another node has changed the mark.
    pub(super) fn outdate(&mut self) {
        self.asked = None;
        // Also if no mark is known yet: one that is being read may be from before the change.
        self.changes += 1;
        self.outdated = self.mark.is_some();
    }

    pub(super) fn doubt(&mut self) {
        self.asked = None;
        if self.mark.is_some() {
            // Answers that are under way were asked for before this.
            self.changes += 1;
        }
    }

    pub(super) fn stamp(&self) -> Stamp {
        self.brief().stamp()
    }

    pub(super) fn keep(&mut self, tag: Box<str>, copy: TagCopy) {
        if self.tags.len() >= MAX_TAGS && !self.tags.contains_key(&tag) {
            self.tags.clear();
        }
        self.tags.insert(tag, copy);
    }

    pub(super) fn judge(&self, stamp: Stamp, tags: &[Box<str>]) -> Verdict {
        let verdict = self.brief().judge(stamp, tags);
        let (None, Some((mark, _))) = (verdict, &self.mark) else { return verdict.unwrap_or(Verdict::Void) };
        if self.doubted {
            return Verdict::Unsure;
        }
        let mut verdict = mark.judge(stamp);
        let mut unsure = false;
        for tag in tags {
            match self.tags.get(tag).map(|copy| copy.mark) {
                Some(tag) if stamp.sequence < tag.purged => return Verdict::Void,
                Some(tag) if stamp.sequence < tag.expired => verdict = Verdict::Expired,
                Some(_) => {}
                None => unsure = true,
            }
        }
        if unsure { Verdict::Unsure } else { verdict }
    }
}
