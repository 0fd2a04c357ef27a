//! Write-through: the source first, and what a cache may show of it.

use std::sync::{Arc, Mutex};

use traced_cache::{
    BoxError, ErrorKind, Loaded, Memory, Policy, Source, Sourced, TracedCache, Verb, ok, testing::MapProvider,
};

use crate::{
    hooks::{At, Gate},
    kit::{self, Down, S},
    stacks::{self, Stack},
};

#[derive(Clone, Copy, PartialEq)]
enum Mood {
    Well,
    /// Refuses, and has not written.
    Fails,
    /// Has written, and says that it failed.
    FailsLate,
    Panics,
    PanicsLate,
    Hangs,
}

/// A table of one row.
#[derive(Clone)]
struct Table {
    row: Arc<Mutex<Option<u64>>>,
    mood: Arc<Mutex<Mood>>,
    saving: Arc<Gate>,
    loading: Arc<Mutex<Option<Arc<Gate>>>>,
}

impl Table {
    fn new(row: u64) -> Self {
        Self {
            row: Arc::new(Mutex::new(Some(row))),
            mood: Arc::new(Mutex::new(Mood::Well)),
            saving: Gate::new(),
            loading: Arc::default(),
        }
    }

    fn is(&self, mood: Mood) {
        *self.mood.lock().unwrap() = mood;
    }

    async fn change(&self, to: Option<u64>) -> Result<(), BoxError> {
        let mood = *self.mood.lock().unwrap();
        match mood {
            Mood::Fails => return Err(Down(1).into()),
            Mood::Panics => panic!("on purpose"),
            _ => *self.row.lock().unwrap() = to,
        }
        match mood {
            Mood::FailsLate => Err(Down(2).into()),
            Mood::PanicsLate => panic!("on purpose"),
            Mood::Hangs => {
                self.saving.pass().await;
                std::future::pending().await
            }
            _ => Ok(()),
        }
    }
}

impl Source<String, u64> for Table {
    async fn load(&self, _: &String) -> Result<Loaded<u64>, BoxError> {
        let row = *self.row.lock().unwrap();
        let gate = self.loading.lock().unwrap().clone();
        if let Some(gate) = gate {
            gate.pass().await;
        }
        Ok(row.into())
    }

    async fn save(&self, _: &String, value: &u64) -> Result<(), BoxError> {
        self.change(Some(*value)).await
    }

    async fn delete(&self, _: &String) -> Result<(), BoxError> {
        self.change(None).await
    }
}

fn users(stack: &Stack) -> (TracedCache<u64>, Table, Sourced<String, u64, Table>) {
    let cache = stack.cache::<u64>(Policy::ttl(100 * S));
    let table = Table::new(1);
    let sourced = cache.with_source(table.clone());
    (cache, table, sourced)
}

async fn read(sourced: &Sourced<String, u64, Table>) -> Option<u64> {
    kit::patient(sourced.get("k")).await.unwrap().map(|v| *v)
}

/// What another node's cache holds.
async fn elsewhere(stack: &Stack, cache: &TracedCache<u64>) -> Option<u64> {
    match &stack.remote {
        Some(_) => kit::get(&stack.peer().named::<u64>(cache.name(), cache.policy()), "k").await,
        None => kit::get(cache, "k").await,
    }
}

fn both() -> impl Iterator<Item = Stack> {
    stacks::all().chain(stacks::local())
}

#[tokio::test]
async fn a_save_is_at_the_source_and_everywhere_when_it_returns() {
    for stack in both() {
        let (cache, table, sourced) = users(&stack);
        assert_eq!(read(&sourced).await, Some(1));
        assert!(kit::patient(sourced.save("k", 2_u64)).await.unwrap().is_confirmed());
        assert_eq!(*table.row.lock().unwrap(), Some(2));
        assert_eq!((kit::get(&cache, "k").await, elsewhere(&stack, &cache).await), (Some(2), Some(2)));
        assert!(kit::patient(sourced.delete("k")).await.unwrap().is_confirmed());
        assert_eq!(*table.row.lock().unwrap(), None);
        assert_eq!((kit::get(&cache, "k").await, elsewhere(&stack, &cache).await), (None, None));
        assert_eq!(read(&sourced).await, None);
        assert_eq!(sourced.get_many(["k", "l"]).await.unwrap(), [None, None]);
        let calls = cache.stats().operations;
        let writes =
            calls.into_iter().filter(|(verb, n)| *n > 0 && matches!(verb, Verb::Save | Verb::Delete));
        assert_eq!(writes.collect::<Vec<_>>(), [(Verb::Save, 1), (Verb::Delete, 1)]);
    }
}

#[tokio::test]
async fn when_the_source_fails_the_new_value_is_never_visible() {
    for stack in both() {
        for mood in [Mood::Fails, Mood::FailsLate, Mood::Panics, Mood::PanicsLate] {
            for delete in [false, true] {
                let (cache, table, sourced) = users(&stack);
                assert_eq!(read(&sourced).await, Some(1));
                table.is(mood);
                let error = match delete {
                    false => kit::patient(sourced.save("k", 2_u64)).await.unwrap_err(),
                    true => kit::patient(sourced.delete("k")).await.unwrap_err(),
                };
                match mood {
                    Mood::Fails => assert_eq!(error.load_error::<Down>(), Some(&Down(1))),
                    Mood::FailsLate => assert_eq!(error.load_error::<Down>(), Some(&Down(2))),
                    _ => assert_eq!(error.kind(), ErrorKind::LoadPanicked),
                }
                // Unknown to the cache which it is: it holds neither, and the source decides.
                assert_eq!((kit::get(&cache, "k").await, elsewhere(&stack, &cache).await), (None, None));
                let row = *table.row.lock().unwrap();
                assert_eq!(read(&sourced).await, row);
                table.is(Mood::Well);
                assert!(kit::patient(sourced.save("k", 3_u64)).await.unwrap().is_confirmed());
                assert_eq!(elsewhere(&stack, &cache).await, Some(3));
            }
        }
    }
}

#[tokio::test]
async fn when_the_source_hangs_the_hard_limit_ends_it() {
    for stack in both() {
        let cache = stack.cache::<u64>(Policy::ttl(100 * S).hard_limit(Some(5 * S)));
        let table = Table::new(1);
        let sourced = cache.with_source::<String, _>(table.clone());
        assert_eq!(read(&sourced).await, Some(1));
        table.is(Mood::Hangs);
        let saving = tokio::spawn({
            let sourced = sourced.clone();
            async move { sourced.save("k", 2_u64).await }
        });
        table.saving.reached().await;
        let seen = kit::get(&cache, "k").await;
        assert_ne!(seen, Some(2), "not before the source has said so");
        // Opened, the source hangs on: only the limit can end it.
        table.saving.open();
        kit::settle().await;
        stack.time.advance(5 * S);
        let error = kit::patient(saving).await.unwrap().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::LoadTimeout);
        assert_eq!((kit::get(&cache, "k").await, elsewhere(&stack, &cache).await), (None, None));
        assert_eq!(read(&sourced).await, Some(2), "the source had taken it");
    }
}

#[tokio::test]
async fn a_load_that_overlaps_a_save_is_not_kept() {
    for stack in both() {
        // It has read the old row before the save, and ends after it.
        let (cache, table, sourced) = users(&stack);
        let gate = Gate::new();
        *table.loading.lock().unwrap() = Some(Arc::clone(&gate));
        let reader = tokio::spawn({
            let sourced = sourced.clone();
            async move { read(&sourced).await }
        });
        gate.reached().await;
        assert!(kit::patient(sourced.save("k", 2_u64)).await.unwrap().is_confirmed());
        gate.open();
        assert_eq!(kit::patient(reader).await.unwrap(), Some(1));
        assert_eq!((kit::get(&cache, "k").await, elsewhere(&stack, &cache).await), (Some(2), Some(2)));
    }
}

#[tokio::test]
async fn a_load_that_begins_while_the_source_is_written_is_not_kept() {
    for stack in both() {
        let cache = stack.cache::<u64>(Policy::ttl(100 * S).hard_limit(Some(5 * S)));
        let table = Table::new(1);
        let sourced = cache.with_source::<String, _>(table.clone());
        table.is(Mood::Hangs);
        let saving = tokio::spawn({
            let sourced = sourced.clone();
            async move { sourced.save("k", 2_u64).await }
        });
        table.saving.reached().await;
        // As a source with another isolation may answer: the old row.
        *table.row.lock().unwrap() = Some(1);
        let gate = Gate::new();
        *table.loading.lock().unwrap() = Some(Arc::clone(&gate));
        let reader = tokio::spawn({
            let sourced = sourced.clone();
            async move { read(&sourced).await }
        });
        gate.reached().await;
        *table.row.lock().unwrap() = Some(2);
        table.saving.open();
        kit::settle().await;
        stack.time.advance(4 * S);
        gate.open();
        assert_eq!(kit::patient(reader).await.unwrap(), Some(1));
        stack.time.advance(S);
        assert_eq!(kit::patient(saving).await.unwrap().unwrap_err().kind(), ErrorKind::LoadTimeout);
        assert_eq!((kit::get(&cache, "k").await, elsewhere(&stack, &cache).await), (None, None));
    }
}

#[tokio::test]
async fn a_save_while_the_second_level_is_down_leaves_no_old_value_in_reach() {
    for stack in both().filter(|s| s.remote.is_some()) {
        let (cache, table, sourced) = users(&stack);
        assert_eq!(read(&sourced).await, Some(1));
        stack.hooks().down(true);
        let answer = kit::patient(sourced.save("k", 2_u64)).await;
        if stack.far() == 1 {
            assert!(!answer.unwrap().is_confirmed(), "pending");
        } else {
            assert_eq!(answer.unwrap_err().kind(), ErrorKind::Level, "the only level surfaces its failures");
            assert_eq!(*table.row.lock().unwrap(), Some(1), "and nothing was written behind it");
            *table.row.lock().unwrap() = Some(2);
        }
        assert_eq!(*table.row.lock().unwrap(), Some(2));
        assert_eq!(read(&sourced).await, Some(2));
        // The level is back with the old value in it, and has not heard: this node must not read it.
        stack.hooks().down(false);
        let held = stack.hooks().hold(At::BeforeRemove);
        assert_eq!(read(&sourced).await, Some(2));
        if stack.far() == 0 {
            assert_eq!(kit::get(&cache, "k").await, None);
        }
        held.open_wide();
        kit::patient(async {
            while cache.stats().pending > 0 {
                stack.time.advance(S / 100);
                tokio::task::yield_now().await;
            }
        })
        .await;
        assert_ne!(elsewhere(&stack, &cache).await, Some(1), "nor does another node, once it is told");
        stack.time.advance(100 * S);
        assert_eq!(read(&sourced).await, Some(2));
        assert_eq!(elsewhere(&stack, &cache).await, Some(2));
    }
}

#[tokio::test]
async fn saves_of_one_key_take_turns() {
    for stack in both() {
        let (cache, table, sourced) = users(&stack);
        let saves: Vec<_> = (10..30_u64)
            .map(|value| {
                let sourced = sourced.clone();
                tokio::spawn(async move { sourced.save("k", value).await })
            })
            .collect();
        for save in saves {
            assert!(kit::patient(save).await.unwrap().unwrap().is_confirmed());
        }
        let row = *table.row.lock().unwrap();
        // Overlapping writes may leave nothing at a level, but never another value than the source has.
        for seen in [kit::get(&cache, "k").await, elsewhere(&stack, &cache).await] {
            assert!(seen.is_none() || seen == row, "{seen:?} but {row:?}");
        }
        assert_eq!(read(&sourced).await, row);
    }
}

/// Loads only.
struct ReadOnly;

impl Source<String, u64> for ReadOnly {
    async fn load(&self, _: &String) -> Result<Loaded<u64>, BoxError> {
        Ok(Loaded::value(1_u64))
    }
}

#[tokio::test]
async fn a_source_that_only_loads_refuses_writes() {
    for stack in stacks::local() {
        let cache = stack.plain::<u64>();
        let sourced = cache.with_source::<String, _>(ReadOnly);
        assert_eq!(*kit::patient(sourced.get("k")).await.unwrap().unwrap(), 1);
        assert_eq!(sourced.save("k", 2_u64).await.unwrap_err().kind(), ErrorKind::Load);
        assert_eq!(sourced.delete("k").await.unwrap_err().kind(), ErrorKind::Load);
        assert_eq!(*kit::patient(sourced.get("k")).await.unwrap().unwrap(), 1);
        let many = kit::patient(sourced.get_many(["a", "b"])).await.unwrap();
        assert_eq!(many, [Some(1.into()), Some(1.into())]);
    }
}

#[tokio::test]
async fn a_write_of_the_source_that_closing_cuts_short_is_told_so() {
    for stack in both() {
        for delete in [false, true] {
            let (cache, table, sourced) = users(&stack);
            table.is(Mood::Hangs);
            let writing = tokio::spawn(async move {
                match delete {
                    false => sourced.save("k", 2_u64).await,
                    true => sourced.delete("k").await,
                }
            });
            table.saving.reached().await;
            assert!(!kit::close_under(&stack.time, &cache).await.is_drained());
            assert_eq!(kit::patient(writing).await.unwrap().unwrap_err().kind(), ErrorKind::Closed);
            assert!(cache.stats().errors.contains(&(ErrorKind::Closed, 1)), "and it is counted");
        }
    }
}

/// Teams' members, which are tagged by team: `load` says so, and `tags` if it is to.
struct Members {
    tells: bool,
}

impl Source<u64, String> for Members {
    async fn load(&self, _id: &u64) -> Result<Loaded<String>, BoxError> {
        Ok(Loaded::value("loaded".to_owned()).tag("team:7"))
    }

    async fn save(&self, _id: &u64, _name: &String) -> Result<(), BoxError> {
        Ok(())
    }

    fn tags(&self, _id: &u64, name: &String) -> Vec<Box<str>> {
        match (self.tells, name.as_str()) {
            (false, _) => Vec::new(),
            (true, "bad") => vec!["".into()],
            (true, _) => vec!["team:8".into()],
        }
    }
}

/// What is written over an entry is reached by the invalidations that reached the entry.
#[tokio::test]
async fn what_is_written_has_the_tags_of_what_was_loaded() {
    for remote in [false, true] {
        let mut builder = TracedCache::<String>::builder("members").level(Memory::entries(1_000));
        if remote {
            builder = builder.level(MapProvider::new().leasing().marking());
        }
        let cache = builder.build().unwrap();
        let gone = async |tag: &str| {
            assert!(cache.invalidate_tag(tag).await.unwrap().is_confirmed());
            cache.get(1).await.unwrap().is_none()
        };
        let members = cache.with_source(Members { tells: false });
        members.get(1_u64).await.unwrap();
        assert!(members.save(1_u64, "saved".to_owned()).await.unwrap().is_confirmed());
        assert!(gone("team:7").await, "those of the entry that was replaced");

        members.get(1_u64).await.unwrap();
        let change =
            |(): (), _: u64, held: Option<Arc<String>>| async move { ok(format!("{held:?} and more")) };
        assert!(cache.update(1_u64, &(), change).await.unwrap().delivery.is_confirmed());
        assert!(gone("team:7").await, "those of the value that was changed");

        let members = cache.with_source(Members { tells: true });
        assert!(members.save(1_u64, "saved".to_owned()).await.unwrap().is_confirmed());
        assert!(!gone("team:7").await);
        assert!(gone("team:8").await, "those that the source gives it");
        let refused = members.save(1_u64, "bad".to_owned()).await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Tag);
    }
}
