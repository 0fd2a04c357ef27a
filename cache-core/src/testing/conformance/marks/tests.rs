//! The list over a map, and over maps that break it.

use std::panic::AssertUnwindSafe;

use async_trait::async_trait;
use futures::FutureExt;

use super::*;
use crate::{BoxError, Capabilities, Description, Put, testing::MapProvider};

#[tokio::test]
async fn the_map_conforms() {
    let report = run(Arc::new(MapProvider::new().marking()), Options::default()).await;
    assert_eq!(report.checked.len(), all().count());
}

/// How a provider can be wrong.
#[derive(Clone, Copy, PartialEq)]
enum Wrong {
    AlwaysSwaps,
    NeverSwaps,
    TellsNothing,
    GoesOn,
    LooksAndThenPuts,
    NeverEnds,
    Shortens,
}

struct Broken(MapProvider, Wrong);

#[async_trait]
impl CacheProvider for Broken {
    fn capabilities(&self) -> Capabilities {
        self.0.capabilities()
    }

    fn describe(&self) -> Description {
        self.0.describe()
    }

    async fn get_many(&self, keys: &[RawKey<'_>]) -> Vec<Result<Option<Bytes>, BoxError>> {
        self.0.get_many(keys).await
    }

    async fn put_many(&self, items: &[Put<'_>]) -> Vec<Result<(), BoxError>> {
        self.0.put_many(items).await
    }

    async fn remove_many(&self, keys: &[RawKey<'_>]) -> Vec<Result<(), BoxError>> {
        self.0.remove_many(keys).await
    }

    fn marks(&self) -> Option<&dyn Marks> {
        Some(self)
    }
}

#[async_trait]
impl Marks for Broken {
    async fn swap(&self, marks: &[Swap<'_>]) -> Result<Swapped, BoxError> {
        let put = |mark: &Swap<'_>| self.0.plant(&mark.key.joined(), mark.bytes.clone());
        match self.1 {
            Wrong::AlwaysSwaps => marks.iter().for_each(put),
            Wrong::NeverSwaps if !marks.is_empty() => {
                return Ok(Swapped::Other { at: 0, now: self.0.get(marks[0].key).await? });
            }
            Wrong::NeverSwaps => {}
            Wrong::TellsNothing => {
                return Ok(match self.0.swap(marks).await? {
                    Swapped::Other { at, .. } => Swapped::Other { at, now: None },
                    done => done,
                });
            }
            Wrong::GoesOn => {
                let mut first = Swapped::Done;
                for (place, mark) in marks.iter().enumerate() {
                    let swapped = self.0.swap(std::slice::from_ref(mark)).await?;
                    if let (Swapped::Done, Swapped::Other { now, .. }) = (&first, swapped) {
                        first = Swapped::Other { at: place, now };
                    }
                }
                return Ok(first);
            }
            Wrong::LooksAndThenPuts => {
                for (at, mark) in marks.iter().enumerate() {
                    let now = self.0.get(mark.key).await?;
                    tokio::task::yield_now().await;
                    if now != mark.seen {
                        return Ok(Swapped::Other { at, now });
                    }
                    put(mark);
                }
            }
            Wrong::NeverEnds => {
                let mut marks = marks.to_vec();
                marks.iter_mut().for_each(|mark| mark.ttl = Duration::MAX);
                return self.0.swap(&marks).await;
            }
            Wrong::Shortens => {
                let mut marks = marks.to_vec();
                for mark in &mut marks {
                    if self.0.get(mark.key).await? == mark.seen {
                        self.0.remove(mark.key).await?;
                        mark.seen = None;
                    }
                }
                return self.0.swap(&marks).await;
            }
        }
        Ok(Swapped::Done)
    }
}

/// A list that nothing can fail would be worth nothing.
#[tokio::test(start_paused = true)]
async fn each_breach_is_found() {
    let breaches = [
        (Wrong::AlwaysSwaps, "a_swap_of_something_else_changes_nothing"),
        (Wrong::AlwaysSwaps, "a_removed_mark_is_nothing"),
        (Wrong::AlwaysSwaps, "a_put_stands_against_a_swap"),
        (Wrong::NeverSwaps, "a_swap_begins_with_nothing"),
        (Wrong::NeverSwaps, "a_swap_replaces_what_was_seen"),
        (Wrong::TellsNothing, "a_swap_of_something_else_changes_nothing"),
        (Wrong::TellsNothing, "one_of_many_swaps"),
        (Wrong::GoesOn, "swaps_stop_at_the_first_that_differs"),
        (Wrong::LooksAndThenPuts, "one_of_many_swaps"),
        (Wrong::LooksAndThenPuts, "no_swap_is_lost"),
    ];
    for (wrong, name) in breaches {
        assert!(fails(wrong, name).await, "{name} did not notice");
    }
}

#[tokio::test]
async fn a_mark_with_another_life_is_found() {
    assert!(fails(Wrong::NeverEnds, "a_swapped_mark_has_a_life").await);
    assert!(fails(Wrong::Shortens, "a_swap_shortens_no_life").await);
}

async fn fails(wrong: Wrong, name: &str) -> bool {
    let broken = Broken(MapProvider::new().marking(), wrong);
    let behaviour = all().find(|behaviour| behaviour.name == name).unwrap();
    AssertUnwindSafe(behaviour.check(&broken)).catch_unwind().await.is_err()
}
