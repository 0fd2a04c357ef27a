//! What every in-process [`ObjectStore`] is held to.
//!
//! Stores may work behind: bounds and counts are waited for, with a deadline.

use std::{
    fmt,
    panic::AssertUnwindSafe,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use crate::{CacheId, Clock, EvictionCause, Evictions, Moment, Object, ObjectStore, RawKey, Timeline};

/// A store that is large enough for everything but the tests of its bound.
const ROOMY: u64 = 10_000;
/// Entries that the tests of the bound leave room for.
const TIGHT: u64 = 64;
const SOON: Duration = Duration::from_secs(10);

/// Makes an empty store for (about) this many entries whose own weight is nothing.
pub type Make<'a> = &'a dyn Fn(u64) -> Arc<dyn ObjectStore>;

/// One thing that a store does.
#[derive(Clone, Copy)]
pub struct Behaviour {
    name: &'static str,
    check: fn(Make<'_>),
}

impl Behaviour {
    /// The name of its function.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Panics if the store does not show it.
    pub fn check(&self, make: Make<'_>) {
        (self.check)(make);
    }
}

impl fmt::Debug for Behaviour {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Behaviour").field("name", &self.name).finish_non_exhaustive()
    }
}

macro_rules! behaviours {
    ($($name:ident),+ $(,)?) => { [$(Behaviour { name: stringify!($name), check: $name }),+] };
}

/// All behaviours.
pub fn all() -> impl Iterator<Item = Behaviour> {
    behaviours![
        the_object_itself_comes_back,
        put_replaces,
        remove_says_whether_it_was_there,
        caches_are_apart,
        equal_hashes_are_apart,
        odd_ids_are_apart,
        clear_leaves_other_caches,
        counts_its_entries,
        the_bound_holds,
        evictions_are_told,
        own_doing_is_no_eviction,
        the_detached_hear_nothing,
        weights_add_up,
        ends_of_time,
        a_glance_sees_what_there_is,
        threads_do_not_mix_up,
    ]
    .into_iter()
}

/// Checks every behaviour on stores made by `make`, which gets the number of entries to leave room for.
///
/// # Panics
/// After the last one, if any failed; the message names them all, and each has reported itself before.
pub fn run(make: impl Fn(u64) -> Arc<dyn ObjectStore>) {
    let failed: Vec<_> = all()
        .filter(|behaviour| std::panic::catch_unwind(AssertUnwindSafe(|| behaviour.check(&make))).is_err())
        .map(|behaviour| behaviour.name)
        .collect();
    assert!(failed.is_empty(), "the store does not conform: {}", failed.join(", "));
}

fn cache() -> CacheId {
    static NEXT: AtomicU32 = AtomicU32::new(0xC0DE_0000);
    CacheId(NEXT.fetch_add(1, Ordering::Relaxed))
}

fn now() -> Moment {
    Clock::system().now()
}

fn weighing(value: &Arc<String>, weight: u32) -> Object {
    let hour = Duration::from_secs(3600);
    Object::for_tests(Arc::clone(value) as _, Timeline::new(now(), hour, hour), weight)
}

fn put(store: &dyn ObjectStore, cache: CacheId, id: &str, text: &str) {
    store.put(RawKey::new(cache, "users", id), weighing(&Arc::new(text.to_owned()), 0), now());
}

fn get(store: &dyn ObjectStore, cache: CacheId, id: &str) -> Option<String> {
    held(store, RawKey::new(cache, "users", id)).map(|text| text.to_string())
}

fn held(store: &dyn ObjectStore, key: RawKey<'_>) -> Option<Arc<String>> {
    store.get(key).map(|object| object.value().expect("a string was put"))
}

fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + SOON;
    while !condition() {
        assert!(Instant::now() < deadline, "{what}: not within {SOON:?}");
        thread::sleep(Duration::from_millis(2));
    }
}

#[derive(Default)]
struct Heard(Mutex<Vec<(u64, EvictionCause)>>);

impl Heard {
    fn all(&self) -> Vec<(u64, EvictionCause)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Evictions for Heard {
    fn evicted(&self, key_hash: u64, cause: EvictionCause) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push((key_hash, cause));
    }
}

fn attach(store: &dyn ObjectStore, cache: CacheId) -> Arc<Heard> {
    let heard = Arc::new(Heard::default());
    store.attach(cache, Arc::clone(&heard) as _);
    heard
}

/// Not a copy: the very `Arc` that was put, with its timeline.
pub fn the_object_itself_comes_back(make: Make<'_>) {
    let store = make(ROOMY);
    let (key, value) = (RawKey::new(cache(), "users", "42"), Arc::new("value".to_owned()));
    assert!(store.get(key).is_none());
    let object = weighing(&value, 7);
    let until = object.usable_until();
    store.put(key, object, now());
    for _ in 0..3 {
        let found = store.get(key).expect("it was put");
        assert_eq!((found.usable_until(), found.weight()), (until, 7));
        assert!(found.value::<String>().is_some_and(|found| Arc::ptr_eq(&found, &value)));
    }
    store.remove(key);
    eventually("a removed object is let go", || {
        let _ = store.len();
        Arc::strong_count(&value) == 1
    });
}

/// The last put counts.
pub fn put_replaces(make: Make<'_>) {
    let (store, cache) = (make(ROOMY), cache());
    for text in ["first", "second", "third"] {
        put(&*store, cache, "k", text);
        assert_eq!(get(&*store, cache, "k").as_deref(), Some(text));
    }
    eventually("one entry", || store.len() == 1);
}

/// Removing says whether there was something, and makes it a miss.
pub fn remove_says_whether_it_was_there(make: Make<'_>) {
    let (store, cache) = (make(ROOMY), cache());
    let key = RawKey::new(cache, "users", "k");
    assert!(!store.remove(key));
    put(&*store, cache, "k", "v");
    assert!(store.remove(key));
    assert!(!store.remove(key));
    assert!(store.get(key).is_none());
}

/// One id in two caches of one name is two entries.
pub fn caches_are_apart(make: Make<'_>) {
    let (store, one, two) = (make(ROOMY), cache(), cache());
    put(&*store, one, "42", "one");
    assert_eq!(get(&*store, two, "42"), None);
    put(&*store, two, "42", "two");
    assert_eq!(get(&*store, one, "42").as_deref(), Some("one"));
    assert!(store.remove(RawKey::new(one, "users", "42")));
    assert_eq!(get(&*store, two, "42").as_deref(), Some("two"));
}

/// A hash is no name: ids that share one are apart.
pub fn equal_hashes_are_apart(make: Make<'_>) {
    let (store, cache) = (make(ROOMY), cache());
    for hash in [0, 1, 0x1234_5678_9abc_def0, u64::MAX] {
        let ids: Vec<String> = (0..20).map(|n| format!("{hash}-{n}")).collect();
        let key = |id| RawKey { hash, ..RawKey::new(cache, "users", id) };
        for id in &ids {
            store.put(key(id), weighing(&Arc::new(id.clone()), 0), now());
        }
        for id in &ids {
            assert_eq!(held(&*store, key(id)).as_ref(), Some(&Arc::new(id.clone())));
        }
        assert!(store.remove(key(&ids[0])) && store.get(key(&ids[0])).is_none());
        assert!(store.get(key(&ids[1])).is_some());
    }
}

/// Bytes decide.
pub fn odd_ids_are_apart(make: Make<'_>) {
    let (store, cache) = (make(ROOMY), cache());
    let long = "k".repeat(999);
    let (a, b) = (format!("{long}a"), format!("{long}b"));
    let ids = ["Foo", "foo", " foo", "foo ", "caf\u{e9}", "cafe\u{301}", "a\0", "a", "\r\n", "", &a, &b];
    for id in ids {
        put(&*store, cache, id, id);
    }
    for id in ids {
        assert_eq!(get(&*store, cache, id).as_deref(), Some(id));
    }
}

/// Clearing one cache takes nothing from another.
pub fn clear_leaves_other_caches(make: Make<'_>) {
    let (store, one, two) = (make(ROOMY), cache(), cache());
    let _heard = (attach(&*store, one), attach(&*store, two));
    for n in 0..20 {
        put(&*store, one, &n.to_string(), "one");
        put(&*store, two, &n.to_string(), "two");
    }
    store.clear(one);
    for n in 0..20 {
        assert_eq!(get(&*store, two, &n.to_string()).as_deref(), Some("two"));
    }
    put(&*store, one, "0", "again");
    assert_eq!(get(&*store, one, "0").as_deref(), Some("again"), "what is put after a clear is there");
}

/// `len` follows puts and removals.
pub fn counts_its_entries(make: Make<'_>) {
    let (store, cache) = (make(ROOMY), cache());
    assert!(store.is_empty());
    for n in 0..50 {
        put(&*store, cache, &n.to_string(), "v");
    }
    eventually("50 entries", || store.len() == 50);
    for n in 0..20 {
        store.remove(RawKey::new(cache, "users", &n.to_string()));
    }
    eventually("30 entries", || store.len() == 30);
}

/// Z4: ten times the capacity in entries leaves the total under the bound.
pub fn the_bound_holds(make: Make<'_>) {
    let (store, cache) = (make(TIGHT), cache());
    for n in 0..10 * TIGHT {
        put(&*store, cache, &n.to_string(), "v");
    }
    // Twice: where capacity is in bytes, `make` knows the weight of an entry only roughly.
    eventually("the bound", || store.len() <= 2 * TIGHT);
    assert!(!store.is_empty(), "a full store keeps something");
}

/// Entries that leave a full store are told to their own cache, with the hash of their key.
pub fn evictions_are_told(make: Make<'_>) {
    let (store, one, two) = (make(TIGHT), cache(), cache());
    let (heard, silent) = (attach(&*store, one), attach(&*store, two));
    let ids: Vec<String> = (0..10 * TIGHT).map(|n| n.to_string()).collect();
    for id in &ids {
        put(&*store, one, id, "v");
    }
    eventually("each entry is held, or its eviction told", || {
        u64::try_from(heard.all().len()).unwrap_or(0) + store.len() == 10 * TIGHT
    });
    let hashes: Vec<u64> = ids.iter().map(|id| RawKey::new(one, "users", id).hash).collect();
    assert!(heard.all().iter().all(|(hash, cause)| *cause == EvictionCause::Size && hashes.contains(hash)));
    assert!(silent.all().is_empty(), "another cache hears nothing of it");
}

/// Replacing, removing and clearing are no evictions.
pub fn own_doing_is_no_eviction(make: Make<'_>) {
    let (store, cache) = (make(ROOMY), cache());
    let heard = attach(&*store, cache);
    for n in 0..20 {
        put(&*store, cache, &n.to_string(), "first");
        put(&*store, cache, &n.to_string(), "second");
    }
    for n in 0..10 {
        store.remove(RawKey::new(cache, "users", &n.to_string()));
    }
    eventually("10 entries", || store.len() == 10);
    store.clear(cache);
    let _ = store.len();
    assert_eq!(heard.all(), []);
}

/// Nobody is told, or kept alive, after detaching.
pub fn the_detached_hear_nothing(make: Make<'_>) {
    let (store, cache) = (make(TIGHT), cache());
    let heard = attach(&*store, cache);
    store.detach(cache);
    for n in 0..10 * TIGHT {
        put(&*store, cache, &n.to_string(), "v");
    }
    eventually("the bound", || store.len() <= 2 * TIGHT);
    assert_eq!(heard.all(), []);
    eventually("the listener is let go", || Arc::strong_count(&heard) == 1);
}

/// The total follows the objects' weights, where the store weighs; an object over the bound is not kept.
pub fn weights_add_up(make: Make<'_>) {
    let store = make(ROOMY);
    if !store.weighs() {
        return;
    }
    let cache = cache();
    let value = Arc::new("v".to_owned());
    let key = |id| RawKey::new(cache, "users", id);
    let put = |id, weight| store.put(key(id), weighing(&value, weight), now());
    put("a", 0);
    eventually("one entry", || store.len() == 1);
    let bare = store.weight();
    put("a", 1_000);
    eventually("a replaced weight", || store.weight() == bare + 1_000);
    put("b", 500);
    eventually("two weights", || store.weight() == 2 * bare + 1_500);
    put("a", 10);
    eventually("a smaller weight", || store.weight() == 2 * bare + 510);
    store.remove(key("b"));
    eventually("a removed weight", || store.weight() == bare + 10);
    for (before, after) in [(5_000, 50), (50, 5_000)] {
        put("c", before);
        eventually("a third weight", || store.weight() == 2 * bare + 10 + u64::from(before));
        put("c", after);
        store.remove(key("c"));
        eventually("a weight that changed and was removed at once", || store.weight() == bare + 10);
    }
    store.remove(key("a"));
    put("c", 5_000);
    eventually("a weight that is to be cleared", || store.weight() == bare + 5_000);
    store.clear(cache);
    put("c", 50);
    store.remove(key("c"));
    eventually("a weight that was put where all was cleared, and removed at once", || store.weight() == 0);
    put("a", u32::MAX);
    eventually("what is too heavy leaves", || store.weight() <= bare + 10);
}

/// The first moment and the last overflow nothing; what never ends is kept.
pub fn ends_of_time(make: Make<'_>) {
    let (store, cache) = (make(ROOMY), cache());
    let value: Arc<String> = Arc::new("v".to_owned());
    let key = |id| RawKey::new(cache, "users", id);
    let never = Timeline { born: now(), fresh_until: Moment::NEVER, usable_until: Moment::NEVER };
    store.put(key("never"), Object::for_tests(Arc::clone(&value) as _, never, 0), now());
    let century = Timeline::new(now(), Duration::ZERO, Duration::from_secs(100 * 365 * 86_400));
    store.put(key("century"), Object::for_tests(Arc::clone(&value) as _, century, 0), now());
    let over = Timeline { born: Moment::ORIGIN, fresh_until: Moment::ORIGIN, usable_until: Moment::ORIGIN };
    store.put(key("over"), Object::for_tests(value, over, 0), now());
    assert!(held(&*store, key("never")).is_some() && held(&*store, key("century")).is_some());
    // Whether an object that nobody can use is kept is the store's affair.
    assert!(store.get(key("over")).is_none_or(|object| object.usable_until() == Moment::ORIGIN));
}

/// A glance has an object exactly where there is one, a stale one included.
pub fn a_glance_sees_what_there_is(make: Make<'_>) {
    let (store, cache) = (make(ROOMY), cache());
    let key = |id| RawKey::new(cache, "users", id);
    put(&*store, cache, "fresh", "v");
    let stale = Timeline::new(now(), Duration::ZERO, Duration::from_secs(3_600));
    store.put(key("stale"), Object::for_tests(Arc::new("v".to_owned()), stale, 0), now());
    for (id, there) in [("fresh", true), ("stale", true), ("never", false)] {
        assert_eq!((store.get(key(id)).is_some(), store.glance(&key(id)).is_some()), (there, there), "{id}");
    }
}

/// Threads that put, get and remove at once: each finds what it put, and of what was removed no weight is left.
pub fn threads_do_not_mix_up(make: Make<'_>) {
    let (store, cache) = (make(ROOMY), cache());
    thread::scope(|scope| {
        for thread in 0..4 {
            let store = &*store;
            scope.spawn(move || {
                for n in 0..500 {
                    let id = format!("{thread}-{}", n % 50);
                    let text = format!("{id} {n}");
                    let key = RawKey::new(cache, "users", &id);
                    store.put(key, weighing(&Arc::new(text.clone()), n * 7 % 10), now());
                    assert_eq!(get(store, cache, &id), Some(text));
                    if n % 7 == 0 {
                        assert!(store.remove(key));
                        assert_eq!(get(store, cache, &id), None);
                    }
                }
                for n in 0..50 {
                    store.remove(RawKey::new(cache, "users", &format!("{thread}-{n}")));
                }
            });
        }
    });
    eventually("nothing is left, and weighs nothing", || (store.len(), store.weight()) == (0, 0));
}

#[cfg(test)]
pub(crate) mod tests;
