//! The page as an observer of caches.

use std::{
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Mutex, PoisonError, RwLock, Weak},
    thread,
    time::{Duration, Instant},
};

use cache_core::{CacheInfo, Error, Event, Observer, Result, Stats, TracedCache, Traffic, Value};

use crate::{
    Guard,
    history::STEP,
    shown::Shown,
    watched::{Store, Watched, lock},
};

pub(crate) type ShowKey = dyn Fn(&str) -> Option<String> + Send + Sync;

/// How often what has been noted is worked off.
const ROUND: Duration = Duration::from_millis(250);
/// Rounds of a step of the history, and of a turn of the latencies.
const STEP_ROUNDS: u64 = 8;
const TURN_ROUNDS: u64 = 240;
/// What a minute ago counts for, among the hottest keys and in estimates: half after ten minutes.
const FADE: f64 = 0.933;

/// A page that shows how caches do: an observer of them, and a router.
///
/// Give a clone to each cache as an observer, [`show`](Self::show) it the cache, and merge the [`router`](Self::router) into
/// that of your application. Clones are the same page. A thread of its own works off what has been noted, four times a second,
/// until the last clone and the last cache are gone.
#[derive(Clone)]
pub struct Page(pub(crate) Arc<Inner>);

pub(crate) struct Inner {
    pub(crate) options: PageBuilder,
    pub(crate) started: Instant,
    watched: RwLock<Vec<Arc<Watched>>>,
    stores: Mutex<Vec<Arc<Store>>>,
}

impl Page {
    /// What it may show and do. Without more said: counts and settings, no key, no value, and nothing can be changed.
    pub fn builder() -> PageBuilder {
        PageBuilder {
            path: "/cache".to_owned(),
            title: "Caches".to_owned(),
            look_up: None,
            invalidate: false,
            values: false,
            show_key: None,
        }
    }

    /// Has the page show what a cache runs under, and look keys up in it where that is allowed. The cache ends with its last
    /// handle all the same. A cache that is only observed shows its counts.
    ///
    /// # Errors
    /// [`cache_core::ErrorKind::Config`]: the page does not observe the cache. Give it to the cache's builder as an observer.
    pub fn show<T: Value>(&self, cache: &TracedCache<T>) -> Result<()> {
        let watched = self.watched(cache.name()).ok_or_else(|| {
            let fix =
                "the page does not observe this cache: add it to the builder with `.observer(page.clone())`";
            Error::config("Page::show", cache.name(), fix)
        })?;
        let weak = cache.downgrade();
        let find = move || weak.upgrade().map(|cache| Arc::new(cache) as Arc<dyn Shown>);
        *lock(&watched.shown) = Some(Box::new(find));
        Ok(())
    }

    pub(crate) fn watched(&self, name: &str) -> Option<Arc<Watched>> {
        self.all().into_iter().find(|watched| &*watched.name == name)
    }

    /// The caches by name.
    pub(crate) fn all(&self) -> Vec<Arc<Watched>> {
        let mut all = self.0.watched.read().unwrap_or_else(PoisonError::into_inner).clone();
        all.retain(|watched| watched.stats.strong_count() > 0);
        all.sort_by(|a, b| a.name.cmp(&b.name));
        all
    }
}

impl Inner {
    fn round(&self, number: u64) {
        let mut all = self.watched.write().unwrap_or_else(PoisonError::into_inner);
        all.retain(|watched| watched.stats.strong_count() > 0);
        let living = all.clone();
        drop(all);
        lock(&self.stores).retain(|store| store.store.strong_count() > 0);
        living.iter().for_each(|watched| guarded(|| self.round_of(watched, number)));
    }

    fn round_of(&self, watched: &Watched, number: u64) {
        watched.round(self.started.elapsed());
        if number.is_multiple_of(STEP_ROUNDS)
            && let Some(stats) = watched.stats.upgrade()
        {
            lock(&watched.history).step(&stats.snapshot());
        }
        if number.is_multiple_of(TURN_ROUNDS) {
            watched.latencies.turn();
            lock(&watched.hot).fade(FADE);
            lock(&watched.tally).fade(FADE);
        }
    }

    fn store(&self, stats: &Stats) -> Option<Arc<Store>> {
        let store = stats.store()?;
        let mut stores = lock(&self.stores);
        let known = stores.iter().find(|known| known.store.ptr_eq(&Arc::downgrade(store))).cloned();
        Some(known.unwrap_or_else(|| {
            let new = Arc::new(Store::new(store));
            stores.push(Arc::clone(&new));
            new
        }))
    }
}

/// A store is somebody else's code: a panic there ends no other cache's round, nor the thread.
fn guarded(work: impl FnOnce()) {
    let _ = catch_unwind(AssertUnwindSafe(work));
}

fn work(page: &Weak<Inner>) {
    for number in 1.. {
        thread::sleep(ROUND);
        let Some(page) = page.upgrade() else { return };
        page.round(number);
    }
}

impl Observer for Page {
    fn attach(&self, stats: &Arc<Stats>) {
        let store = self.0.store(stats);
        let mut all = self.0.watched.write().unwrap_or_else(PoisonError::into_inner);
        // A cache that is built anew under a name takes the place of the one before.
        all.retain(|watched| watched.name != *stats.info().shared_name());
        // Any number will do that others of the same store do not have.
        let number = fastrand::u32(..);
        all.push(Arc::new(Watched::new(stats, number, store, self.0.options.show_key.clone())));
    }

    fn event(&self, cache: &CacheInfo, event: &Event<'_>) {
        if !matches!(event, Event::Operation { .. }) {
            return;
        }
        let all = self.0.watched.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(watched) = all.iter().find(|watched| &*watched.name == cache.name()) {
            watched.latencies.record(event);
        }
    }

    fn traffic(&self, stats: &Arc<Stats>) -> Option<Arc<dyn Traffic>> {
        Some(Arc::clone(&self.watched(stats.info().name())?.notes) as _)
    }
}

impl fmt::Debug for Page {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Page").field("options", &self.0.options).finish_non_exhaustive()
    }
}

/// Sets up a [`Page`].
#[must_use]
pub struct PageBuilder {
    pub(crate) path: String,
    pub(crate) title: String,
    pub(crate) look_up: Option<Guard>,
    pub(crate) invalidate: bool,
    pub(crate) values: bool,
    pub(crate) show_key: Option<Arc<ShowKey>>,
}

impl PageBuilder {
    /// Where the page is, `/cache` unless said otherwise. As browsers see it: do not nest the router below anything else.
    pub fn path(mut self, path: impl Into<String>) -> Self {
        self.path = path.into();
        self
    }

    /// What it calls itself: the service's name, say.
    pub fn title(mut self, title: impl Into<String>) -> Self {
        self.title = title.into();
        self
    }

    /// Lets those whom the guard allows look keys up: at which level one lies, its age, tags and size.
    pub fn look_up(mut self, guard: Guard) -> Self {
        self.look_up = Some(guard);
        self
    }

    /// Lets the same people invalidate keys and tags. Off by default.
    pub fn invalidate(mut self, yes: bool) -> Self {
        self.invalidate = yes;
        self
    }

    /// Shows the same people values, too. Off by default.
    pub fn show_values(mut self, yes: bool) -> Self {
        self.values = yes;
        self
    }

    /// Shows the hottest keys in the form that `show` gives them, to whoever opens the page; `None` masks one. All are masked by
    /// default. Called for one look-up in 16, inline, and costs an allocation then.
    pub fn show_keys(mut self, show: impl Fn(&str) -> Option<String> + Send + Sync + 'static) -> Self {
        self.show_key = Some(Arc::new(show));
        self
    }

    /// Starts the page's thread.
    ///
    /// # Errors
    /// [`cache_core::ErrorKind::Config`]: a path that is none, or something is allowed without a guard. Or there can be no
    /// thread.
    pub fn build(mut self) -> Result<Page> {
        let asked = self.path.clone();
        while self.path.ends_with('/') {
            self.path.pop();
        }
        let is_path = |c: char| c.is_ascii_alphanumeric() || "/-_.~".contains(c);
        if !asked.starts_with('/') || !self.path.chars().all(is_path) || self.path.contains("//") {
            let fix = "a path such as /cache: a slash, then letters, digits, and -_.~/";
            return Err(Error::config("Page::path", asked, fix));
        }
        if self.look_up.is_none() && (self.invalidate || self.values) {
            let field = if self.invalidate { "Page::invalidate" } else { "Page::show_values" };
            return Err(Error::config(field, true, "say who may, with `look_up` and a guard"));
        }
        let inner = Arc::new(Inner {
            options: self,
            started: Instant::now(),
            watched: RwLock::default(),
            stores: Mutex::default(),
        });
        let page = Arc::downgrade(&inner);
        let started = thread::Builder::new().name("cache-page".to_owned()).spawn(move || work(&page));
        started
            .map_err(|error| Error::config("Page", "a thread", format_args!("there can be none: {error}")))?;
        Ok(Page(inner))
    }
}

impl fmt::Debug for PageBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PageBuilder")
            .field("path", &self.path)
            .field("look_up", &self.look_up.is_some())
            .field("invalidate", &self.invalidate)
            .field("show_values", &self.values)
            .field("shows_keys", &self.show_key.is_some())
            .finish_non_exhaustive()
    }
}

const _: () = assert!(STEP.as_millis() == ROUND.as_millis() * STEP_ROUNDS as u128);

#[cfg(test)]
mod tests {
    use std::sync::{
        OnceLock,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    };

    use cache_core::{
        CacheId, Evictions, Moment, Object, ObjectStore, RawKey,
        testing::{ObjectsOnly, ends_within},
    };
    use cache_memory::Memory;
    use futures::FutureExt;

    use super::*;

    /// A store that cannot always say how much it holds.
    #[derive(Default)]
    struct Moody {
        panics: AtomicBool,
        asked: AtomicUsize,
    }

    impl ObjectStore for Moody {
        fn get(&self, _key: RawKey<'_>) -> Option<Object> {
            None
        }

        fn put(&self, _key: RawKey<'_>, _object: Object, _now: Moment) {}

        fn remove(&self, _key: RawKey<'_>) -> bool {
            false
        }

        fn clear(&self, _cache: CacheId) {}

        fn len(&self) -> u64 {
            self.asked.fetch_add(1, Ordering::Relaxed);
            if self.panics.load(Ordering::Relaxed) {
                std::panic::resume_unwind(Box::new("on purpose"));
            }
            0
        }

        fn weight(&self) -> u64 {
            0
        }

        fn capacity(&self) -> Option<u64> {
            Some(10)
        }

        fn attach(&self, _cache: CacheId, _evictions: Arc<dyn Evictions>) {}

        fn detach(&self, _cache: CacheId) {}
    }

    /// What uses another cache when it goes.
    #[derive(serde::Serialize, serde::Deserialize)]
    struct Nosy;

    static OTHER: OnceLock<TracedCache<u64>> = OnceLock::new();

    impl Drop for Nosy {
        fn drop(&mut self) {
            OTHER.get().and_then(|other| other.invalidate("k").now_or_never().map(drop));
        }
    }

    #[test]
    fn a_cache_may_end_with_the_page_of_another_one_of_its_name() {
        let page = Page::builder().build().unwrap();
        let cache = || -> TracedCache<Nosy> {
            let builder = TracedCache::builder("one").level(Memory::entries(10));
            builder.observer(page.clone()).build().unwrap()
        };
        let other = TracedCache::builder("other").level(Memory::entries(10)).observer(page.clone());
        assert!(OTHER.set(other.build().unwrap()).is_ok());
        let (first, second) = (cache(), cache());
        assert!(first.set("k", Nosy).now_or_never().unwrap().unwrap().is_confirmed());
        page.show(&first).unwrap();
        drop((first, second));
        let left = ends_within(Duration::from_secs(10), move || {
            // A round lets go of both.
            thread::sleep(4 * ROUND);
            page.all().len()
        });
        assert_eq!(left, 1);
    }

    #[test]
    fn a_store_that_panics_does_not_end_the_page() {
        let (page, store) = (Page::builder().build().unwrap(), Arc::new(Moody::default()));
        let builder = TracedCache::<u64>::builder("moody").level(ObjectsOnly(Arc::clone(&store) as _));
        let _cache = builder.observer(page).build().unwrap();
        store.panics.store(true, Ordering::Relaxed);
        let before = store.asked.load(Ordering::Relaxed);
        let end = Instant::now() + Duration::from_secs(10);
        while store.asked.load(Ordering::Relaxed) < before + 3 {
            assert!(Instant::now() < end, "nobody asks it any more");
            thread::sleep(Duration::from_millis(10));
        }
    }
}
