//! The list over a store that is right, and over ones that are not.

use std::collections::{HashMap, VecDeque};

use super::*;
use crate::Glance;

/// How a store can be wrong.
#[derive(Clone, Copy, PartialEq)]
enum Wrong {
    Nothing,
    MixesCaches,
    TrustsHashes,
    ClearsAll,
    NeverEvicts,
    TellsNobody,
    TellsRemovals,
    KeepsListeners,
    MiscountsWeight,
    CopiesTimelines,
    GlancesAtFreshOnly,
}

type Key = (CacheId, u64, String);

/// First in, first out, weighed in bytes with one for each entry.
struct Fifo {
    capacity: u64,
    wrong: Wrong,
    held: Mutex<Held>,
}

#[derive(Default)]
struct Held {
    objects: HashMap<Key, Object>,
    order: VecDeque<Key>,
    listeners: HashMap<CacheId, Arc<dyn Evictions>>,
}

impl Held {
    fn weight(&self) -> u64 {
        self.objects.values().map(|object| u64::from(object.weight()) + 1).sum()
    }

    fn remove(&mut self, key: &Key) -> bool {
        self.order.retain(|held| held != key);
        self.objects.remove(key).is_some()
    }

    fn tell(&self, key: &Key) {
        if let Some(listener) = self.listeners.get(&key.0) {
            listener.evicted(key.1, EvictionCause::Size);
        }
    }
}

impl Fifo {
    fn make(wrong: Wrong, capacity: u64) -> Arc<dyn ObjectStore> {
        Arc::new(Self { capacity, wrong, held: Mutex::default() })
    }

    fn key(&self, key: RawKey<'_>) -> Key {
        let id = if self.wrong == Wrong::TrustsHashes { String::new() } else { key.id.to_owned() };
        (if self.wrong == Wrong::MixesCaches { CacheId(0) } else { key.cache }, key.hash, id)
    }
}

/// One that is right.
pub(crate) fn fifo(capacity: u64) -> Arc<dyn ObjectStore> {
    Fifo::make(Wrong::Nothing, capacity)
}

impl ObjectStore for Fifo {
    fn get(&self, key: RawKey<'_>) -> Option<Object> {
        self.held.lock().unwrap().objects.get(&self.key(key)).cloned()
    }

    fn glance(&self, key: &RawKey<'_>) -> Option<Glance> {
        let object = self.get(*key)?;
        let quiet = self.wrong == Wrong::GlancesAtFreshOnly && object.timeline().fresh_until <= now();
        (!quiet).then(|| object.glance())
    }

    fn put(&self, key: RawKey<'_>, mut object: Object, _now: Moment) {
        let (key, mut held) = (self.key(key), self.held.lock().unwrap());
        held.remove(&key);
        if self.wrong == Wrong::CopiesTimelines {
            let mut timeline = object.timeline();
            timeline.usable_until = timeline.usable_until.after(Duration::from_secs(1));
            object = Object::for_tests(Arc::clone(&object.value), timeline, object.weight);
        }
        held.objects.insert(key.clone(), object);
        held.order.push_back(key);
        while held.weight() > self.capacity && self.wrong != Wrong::NeverEvicts {
            let Some(oldest) = held.order.pop_front() else { break };
            held.objects.remove(&oldest);
            if self.wrong != Wrong::TellsNobody {
                held.tell(&oldest);
            }
        }
    }

    fn remove(&self, key: RawKey<'_>) -> bool {
        let (key, mut held) = (self.key(key), self.held.lock().unwrap());
        if self.wrong == Wrong::TellsRemovals {
            held.tell(&key);
        }
        held.remove(&key)
    }

    fn clear(&self, cache: CacheId) {
        let all = self.wrong == Wrong::ClearsAll;
        let mut held = self.held.lock().unwrap();
        held.objects.retain(|key, _| key.0 != cache && !all);
        held.order.retain(|key| key.0 != cache && !all);
    }

    fn len(&self) -> u64 {
        self.held.lock().unwrap().objects.len() as u64
    }

    fn weight(&self) -> u64 {
        let held = self.held.lock().unwrap();
        held.weight() * if self.wrong == Wrong::MiscountsWeight { 2 } else { 1 }
    }

    fn weighs(&self) -> bool {
        true
    }

    fn attach(&self, cache: CacheId, evictions: Arc<dyn Evictions>) {
        self.held.lock().unwrap().listeners.insert(cache, evictions);
    }

    fn detach(&self, cache: CacheId) {
        if self.wrong != Wrong::KeepsListeners {
            self.held.lock().unwrap().listeners.remove(&cache);
        }
    }
}

#[test]
fn a_fifo_conforms() {
    run(|capacity| Fifo::make(Wrong::Nothing, capacity));
}

#[test]
fn each_breach_is_found() {
    let breaches = [
        (Wrong::MixesCaches, "caches_are_apart"),
        (Wrong::TrustsHashes, "equal_hashes_are_apart"),
        (Wrong::ClearsAll, "clear_leaves_other_caches"),
        (Wrong::NeverEvicts, "the_bound_holds"),
        (Wrong::TellsNobody, "evictions_are_told"),
        (Wrong::TellsRemovals, "own_doing_is_no_eviction"),
        (Wrong::KeepsListeners, "the_detached_hear_nothing"),
        (Wrong::MiscountsWeight, "weights_add_up"),
        (Wrong::CopiesTimelines, "the_object_itself_comes_back"),
        (Wrong::GlancesAtFreshOnly, "a_glance_sees_what_there_is"),
    ];
    // At once: some wait out their deadline before they are sure.
    thread::scope(|scope| {
        for (wrong, name) in breaches {
            let behaviour = all().find(|behaviour| behaviour.name == name).unwrap();
            scope.spawn(move || {
                let check = || behaviour.check(&|capacity| Fifo::make(wrong, capacity));
                assert!(std::panic::catch_unwind(check).is_err(), "{name} did not notice");
            });
        }
    });
}
