//! Replicas of a level: asked for those who accept stale answers, believed no further.

use std::sync::Arc;

use crate::{
    LevelOp, LevelOutcome, RawKey, Value,
    inner::{Inner, Seen, State},
    read::Open,
    tier::{Read, Tier},
    wire::Decoded,
};

impl<T: Value> Inner<T> {
    /// Looks keys up on replicas of a level. What they hold is an answer for this caller, and stale, whatever its age: it may
    /// have been replaced or removed since. What they lack, or will not say, the level itself is asked for.
    pub(crate) async fn read_copies(self: &Arc<Self>, tier: &Tier, open: Open<'_, '_, T>) {
        let keys: Vec<RawKey<'_>> = open.iter().map(|asked| asked.key).collect();
        let answers = tier.read_copies(&self.around, &keys).await;
        let times = tier.times(&self.around.clock);
        let mut sizes = Vec::new();
        for (asked, answer) in open.into_iter().zip(answers) {
            let Read::Bytes(bytes) = answer else { continue };
            // An old absence is worth nothing, and what cannot be read may be readable at the level.
            let Ok(Decoded { mut entry, stamp }) = self.decode_quietly(asked.key, tier, &bytes, times) else {
                continue;
            };
            sizes.push(bytes.len());
            let worth = entry.worth(tier.judge(stamp, entry.tags()), times.now);
            if matches!(worth, LevelOutcome::Hit | LevelOutcome::Stale) {
                tier.count(&self.around, LevelOutcome::Stale);
                asked.take(Seen { entry, level: tier.index }, State::Stale);
                asked.from_copy = true;
            }
        }
        self.observers().items(tier.index, LevelOp::Get, &sizes);
    }
}
