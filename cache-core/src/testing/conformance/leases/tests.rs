use std::{panic::AssertUnwindSafe, time::Duration};

use async_trait::async_trait;
use futures::FutureExt;

use super::*;
use crate::{
    BoxError, Capabilities, Description, Leases, Put, RawKey,
    testing::{Chaos, MapProvider},
};

#[tokio::test]
async fn the_map_conforms() {
    let report = run(Arc::new(MapProvider::new().leasing()), Options::default()).await;
    assert_eq!(report.not_applicable, ["a_fill_too_large_leaves_nothing"]);
    let narrow = Capabilities::remote().value_max(1 << 16).key_max(250);
    let report = run(Arc::new(MapProvider::with(narrow).leasing()), Options::default()).await;
    assert!(report.not_applicable.is_empty());
}

#[tokio::test]
async fn the_map_conforms_with_coarse_steps() {
    let coarse = Capabilities::remote().ttl_step(Duration::from_secs(1));
    run(Arc::new(MapProvider::with(coarse).leasing()), Options::default()).await;
}

#[tokio::test]
async fn a_decorator_without_faults_conforms() {
    let chaos = Chaos::new(MapProvider::new().leasing());
    run(Arc::new(chaos), Options::default()).await;
}

#[tokio::test]
async fn a_map_that_leases_still_conforms_to_the_list_for_all() {
    super::super::run(Arc::new(MapProvider::new().leasing()), Options::default()).await;
}

#[tokio::test]
#[should_panic(expected = "the provider gives leases")]
async fn a_provider_without_leases_does_not_pass() {
    run(Arc::new(MapProvider::new()), Options::default()).await;
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Wrong {
    GrantsAll,
    FillsAlways,
    PutsOnFillError,
    KeepsLeaseOnPut,
    KeepsLeaseOnRemove,
    KeepsLeaseOnRemoveOfAbsent,
    KeepsLeaseAfterFill,
    NeverEnds,
    SeesNoEntry,
    AnswersWithWhatIsHeld,
    GrantsWhatIsGone,
    HidesEntries,
    RenewsNothing,
    RenewGrants,
    ReleasesNothing,
    ReleasesOthers,
    Reverses,
    HoldsNothing,
    HoldsBesideLeases,
    HoldsBesideEntries,
    HoldsEndOnRemove,
    FirstHoldFills,
    HoldsForEver,
}

/// A map with one thing wrong.
struct Broken {
    map: MapProvider,
    wrong: Wrong,
}

impl Broken {
    /// Writes to the map behind the back of its leases.
    fn plant(&self, item: &Put<'_>) {
        self.map.plant(&item.key.joined(), item.bytes.clone());
    }
}

#[async_trait]
impl CacheProvider for Broken {
    fn capabilities(&self) -> Capabilities {
        self.map.capabilities()
    }

    fn describe(&self) -> Description {
        self.map.describe()
    }

    async fn get_many(&self, keys: &[RawKey<'_>]) -> Vec<Result<Option<Bytes>, BoxError>> {
        let mut found = self.map.get_many(keys).await;
        for (key, found) in keys.iter().zip(&mut found) {
            if self.wrong == Wrong::HidesEntries && self.map.is_leased(&key.joined()) {
                *found = Ok(None);
            }
        }
        found
    }

    async fn put_many(&self, items: &[Put<'_>]) -> Vec<Result<(), BoxError>> {
        if self.wrong == Wrong::KeepsLeaseOnPut {
            items.iter().for_each(|item| self.plant(item));
            return items.iter().map(|_| Ok(())).collect();
        }
        self.map.put_many(items).await
    }

    async fn remove_many(&self, keys: &[RawKey<'_>]) -> Vec<Result<(), BoxError>> {
        for key in keys {
            let absent = self.map.peek(&key.joined()).is_none();
            match self.wrong {
                Wrong::KeepsLeaseOnRemove => self.map.evict(&key.joined()),
                Wrong::KeepsLeaseOnRemoveOfAbsent if absent => {}
                Wrong::HoldsEndOnRemove => {
                    self.map.unhold(&key.joined());
                    drop(self.map.remove(*key).await);
                }
                _ => drop(self.map.remove(*key).await),
            }
        }
        keys.iter().map(|_| Ok(())).collect()
    }

    fn leases(&self) -> Option<&dyn Leases> {
        Some(self)
    }
}

#[async_trait]
impl Leases for Broken {
    async fn acquire_many(&self, wanted: &[Acquire<'_>], life: Duration) -> Vec<Result<Acquired, BoxError>> {
        let life = if self.wrong == Wrong::NeverEnds { Duration::MAX } else { life };
        let mut wanted = wanted.to_vec();
        for wish in &mut wanted {
            match self.wrong {
                Wrong::SeesNoEntry => wish.holding = Holding::Unreadable,
                Wrong::AnswersWithWhatIsHeld => wish.holding = Holding::Nothing,
                Wrong::GrantsWhatIsGone => {
                    if let Holding::Still(id) = wish.holding {
                        wish.holding = Holding::Entry(id);
                    }
                }
                _ => {}
            }
        }
        let mut answers = self.map.acquire_many(&wanted, life).await;
        if self.wrong == Wrong::GrantsAll {
            for answer in answers.iter_mut().filter(|answer| matches!(answer, Ok(Acquired::Held))) {
                *answer = Ok(Acquired::Granted(Lease(Bytes::from_static(b"another"))));
            }
        }
        if self.wrong == Wrong::Reverses {
            answers.reverse();
        }
        answers
    }

    async fn fill_many(&self, fills: &[Fill<'_>]) -> Vec<Result<bool, BoxError>> {
        if self.wrong == Wrong::FillsAlways {
            fills.iter().for_each(|fill| self.plant(&fill.put));
            return fills.iter().map(|_| Ok(true)).collect();
        }
        if self.wrong == Wrong::KeepsLeaseAfterFill {
            let results = self.map.fill_many(fills).await;
            for fill in fills {
                self.map.lend(&fill.put.key.joined(), fill.lease.clone(), LONG);
            }
            return results;
        }
        let results = self.map.fill_many(fills).await;
        for (fill, result) in fills.iter().zip(&results) {
            if self.wrong == Wrong::PutsOnFillError && result.is_err() {
                self.map.plant(&fill.put.key.joined(), "old");
            }
        }
        results
    }

    async fn hold_many(&self, keys: &[RawKey<'_>], life: Duration) -> Vec<Result<Lease, BoxError>> {
        let mut results = Vec::new();
        for key in keys {
            let (item, lease) = (self.map.peek(&key.joined()), self.map.leased(&key.joined()));
            let life = if self.wrong == Wrong::HoldsForEver { Duration::MAX } else { life };
            let held = self.map.hold_many(&[*key], life).await.remove(0);
            match (self.wrong, lease, item) {
                (Wrong::HoldsNothing, ..) => self.map.unhold(&key.joined()),
                (Wrong::HoldsBesideLeases, Some(lease), _) => self.map.lend(&key.joined(), lease, LONG),
                (Wrong::HoldsBesideEntries, _, Some(item)) => self.map.plant(&key.joined(), item),
                (Wrong::FirstHoldFills, Some(lease), _) => self.map.lend(&key.joined(), lease, LONG),
                _ => {}
            }
            results.push(held);
        }
        results
    }

    async fn renew_many(&self, leases: &[(RawKey<'_>, Lease)], life: Duration) -> Vec<Result<(), BoxError>> {
        match self.wrong {
            Wrong::RenewsNothing => leases.iter().map(|_| Ok(())).collect(),
            Wrong::RenewGrants => {
                for (key, lease) in leases {
                    self.map.lend(&key.joined(), lease.clone(), life);
                }
                leases.iter().map(|_| Ok(())).collect()
            }
            _ => self.map.renew_many(leases, life).await,
        }
    }

    async fn release_many(&self, leases: &[(RawKey<'_>, Lease)]) -> Vec<Result<(), BoxError>> {
        match self.wrong {
            Wrong::ReleasesNothing => leases.iter().map(|_| Ok(())).collect(),
            Wrong::ReleasesOthers => {
                for (key, _) in leases {
                    self.map.revoke(&key.joined());
                }
                leases.iter().map(|_| Ok(())).collect()
            }
            _ => self.map.release_many(leases).await,
        }
    }
}

/// A list that nothing can fail would be worth nothing.
#[tokio::test]
async fn each_breach_is_found() {
    let breaches = [
        (Wrong::GrantsAll, "one_of_many_is_granted"),
        (Wrong::GrantsAll, "what_the_asker_holds_is_no_answer"),
        (Wrong::FillsAlways, "leases_are_per_key"),
        (Wrong::FillsAlways, "a_lease_fills_once"),
        (Wrong::FillsAlways, "no_lease_no_fill"),
        (Wrong::FillsAlways, "a_fill_under_anothers_lease_is_refused"),
        (Wrong::FillsAlways, "a_fill_after_its_life_is_refused"),
        (Wrong::PutsOnFillError, "a_fill_too_large_leaves_nothing"),
        (Wrong::KeepsLeaseOnPut, "a_fill_after_put_is_refused"),
        (Wrong::KeepsLeaseOnRemove, "a_fill_after_remove_is_refused"),
        (Wrong::KeepsLeaseOnRemove, "a_fill_after_remove_of_what_was_there_is_refused"),
        (Wrong::KeepsLeaseOnRemove, "renewal_brings_no_lease_back"),
        (Wrong::KeepsLeaseOnRemoveOfAbsent, "a_fill_after_remove_is_refused"),
        (Wrong::KeepsLeaseAfterFill, "a_lease_fills_once"),
        (Wrong::KeepsLeaseAfterFill, "fill_stores_and_ends_the_lease"),
        (Wrong::SeesNoEntry, "an_entry_is_an_answer"),
        (Wrong::AnswersWithWhatIsHeld, "what_the_asker_holds_is_no_answer"),
        (Wrong::AnswersWithWhatIsHeld, "what_cannot_be_read_is_replaced"),
        (Wrong::GrantsWhatIsGone, "what_is_still_there_is_replaced_and_nothing_else"),
        (Wrong::HidesEntries, "what_the_asker_holds_is_no_answer"),
        (Wrong::RenewsNothing, "renewal_outlives_the_first_life"),
        (Wrong::RenewGrants, "renewal_brings_no_lease_back"),
        (Wrong::ReleasesNothing, "release_lets_the_next_in"),
        (Wrong::ReleasesOthers, "release_of_a_lost_lease_harms_nobody"),
        (Wrong::Reverses, "batches_of_leases_answer_per_item"),
        (Wrong::HoldsNothing, "a_hold_makes_a_miss_and_keeps_others_out"),
        (Wrong::HoldsBesideLeases, "a_hold_makes_a_miss_and_keeps_others_out"),
        (Wrong::HoldsBesideEntries, "a_hold_makes_a_miss_and_keeps_others_out"),
        (Wrong::KeepsLeaseAfterFill, "a_fill_ends_its_hold"),
        (Wrong::HoldsEndOnRemove, "a_hold_outlives_an_invalidation"),
        (Wrong::FirstHoldFills, "holds_that_meet_fill_nothing"),
        (Wrong::KeepsLeaseOnPut, "a_put_stands_against_a_hold"),
        (Wrong::FillsAlways, "batches_of_holds_answer_per_item"),
    ];
    for (wrong, name) in breaches {
        assert!(fails(wrong, name).await, "{name} did not notice");
    }
}

#[tokio::test]
async fn a_hold_without_end_is_found() {
    assert!(fails(Wrong::HoldsForEver, "a_hold_ends_by_time_or_when_it_is_given_back").await);
}

#[tokio::test]
async fn a_lease_without_end_is_found() {
    assert!(fails(Wrong::NeverEnds, "a_fill_after_its_life_is_refused").await);
}

async fn fails(wrong: Wrong, name: &str) -> bool {
    let map = MapProvider::with(Capabilities::remote().value_max(1 << 16)).leasing();
    let broken = Broken { map, wrong };
    let behaviour = all().find(|behaviour| behaviour.name == name).unwrap();
    assert!(behaviour.applies(&broken.capabilities()));
    AssertUnwindSafe(behaviour.check(&broken)).catch_unwind().await.is_err()
}
