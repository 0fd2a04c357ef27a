//! `#[cached]`: what it makes of functions, and that it adds nothing of its own.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "helpers of tests fail their test"
)]

mod keys;
mod types;

use std::{
    fmt,
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicUsize, Ordering},
    },
};

use allocation_counter::measure;
use futures::FutureExt;
use serde::{Deserialize, Serialize};
use traced_cache::{BoxError, Caches, ErrorKind, cached, config::Format};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct User {
    id: u64,
    name: String,
}

/// Not `Clone`: what is answered in an `Arc` need not be.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Page(String);

/// Counts what reaches it, and fails on demand.
#[derive(Clone, Default)]
struct Db {
    asked: Arc<AtomicUsize>,
    down: Arc<Mutex<bool>>,
}

#[derive(Debug)]
enum AppError {
    Db(DbError),
    Cache(traced_cache::Error),
}

#[derive(Clone, Debug, PartialEq)]
struct DbError;

impl fmt::Display for AppError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self:?}")
    }
}

impl std::error::Error for AppError {}

impl From<traced_cache::Error> for AppError {
    fn from(error: traced_cache::Error) -> Self {
        match error.load_error::<Self>() {
            Some(Self::Db(error)) => Self::Db(error.clone()),
            _ => Self::Cache(error),
        }
    }
}

impl Db {
    async fn user(&self, id: u64) -> Result<Option<User>, AppError> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        if *self.down.lock().unwrap() {
            return Err(AppError::Db(DbError));
        }
        Ok((id < 100).then(|| User { id, name: format!("user {id}") }))
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }
}

const FILE: &str = "[providers.local]\nbackend = 'memory'\nentries = 1000\n\
    [defaults]\nlevels = ['local']\npolicy = { ttl = '1h', absent_ttl = '1h' }\n\
    [caches.users]\n[caches.shared]\n[caches.found]\n[caches.pages]\n[caches.options]\n[caches.plain]\n[caches.tenants]\n\
    [caches.methods]\n[caches.own]\n[caches.none]\n[caches.mixed]\n[caches.borrowed]\n[caches.panics]\n[caches.hot]\n\
    [caches.profiles]\n[caches.once]\n[caches.names]\n[caches.lints]\n[caches.expected]\n[caches.changed]\n\
    [caches.made]\n[caches.made_optional]\n[caches.lasting]\n[caches.named]\n[caches.named_pair]\n\
    [caches.perhaps]\n[caches.hidden]\n[caches.depth]\n[caches.arc]\n[caches.arc_ref]\n[caches.given]\n[caches.many]\n\
    [caches.rules]\n[caches.patterns]\n";

async fn installed() -> &'static Caches {
    static CACHES: OnceLock<Caches> = OnceLock::new();
    let caches = Caches::builder().variables([("", ""); 0]).from_text(Format::Toml, FILE).await.unwrap();
    // The first test to come installs its own.
    let caches = CACHES.get_or_init(|| caches);
    let _ = caches.install();
    Caches::installed().unwrap()
}

#[cached("users", skip(db))]
async fn user(db: &Db, id: u64) -> Result<User, AppError> {
    Ok(db.user(id).await?.expect("a user"))
}

#[cached("shared")]
async fn shared(#[skip] db: Db, id: u64) -> Result<Arc<User>, AppError> {
    Ok(Arc::new(db.user(id).await?.expect("a user")))
}

#[cached("found")]
async fn found(#[skip] db: &Db, id: u64) -> Result<Option<User>, AppError> {
    db.user(id).await
}

#[cached("pages")]
async fn page(#[skip] db: &Db, path: &str) -> Result<Option<Arc<Page>>, BoxError> {
    let _ = db.user(1).await?;
    Ok((!path.is_empty()).then(|| Arc::new(Page(path.to_owned()))))
}

#[cached("options")]
async fn option(#[skip] db: &Db, id: u64) -> Option<User> {
    db.user(id).await.unwrap()
}

#[cached("plain")]
async fn plain(#[skip] db: &Db, id: u64) -> u64 {
    db.user(id).await.unwrap().map_or(0, |user| user.id)
}

#[tokio::test]
async fn every_kind_of_answer_is_kept_and_comes_as_the_function_says() {
    let caches = installed().await;
    let db = Db::default();
    for _ in 0..3 {
        assert_eq!(user(&db, 1).await.unwrap().name, "user 1");
        assert_eq!(shared(db.clone(), 1).await.unwrap().name, "user 1");
        assert_eq!(found(&db, 1).await.unwrap().unwrap().name, "user 1");
        assert_eq!(page(&db, "/a").await.unwrap().unwrap().0, "/a");
        assert_eq!(option(&db, 1).await.unwrap().name, "user 1");
        assert_eq!(plain(&db, 1).await, 1);
        // What is not there is remembered.
        assert_eq!(found(&db, 100).await.unwrap(), None);
        assert_eq!(page(&db, "a").await.unwrap().unwrap().0, "a");
        assert_eq!(option(&db, 100).await, None);
    }
    assert_eq!(db.asked(), 9);
    // It is the registry's cache, with its type, and its counts.
    let stats = caches.cache::<User>("shared").unwrap().stats();
    assert_eq!((stats.loads, stats.hits()), (1, 2));
    let users = caches.cache::<User>("users").unwrap();
    assert_eq!(users.get(1u64).await.unwrap().unwrap().name, "user 1");
    assert!(users.invalidate(1u64).await.unwrap().is_confirmed());
    user(&db, 1).await.unwrap();
    assert_eq!(db.asked(), 10);
    let one = shared(db.clone(), 1).await.unwrap();
    assert!(Arc::ptr_eq(&one, &shared(db.clone(), 1).await.unwrap()), "not a copy");
}

#[tokio::test]
async fn errors_come_back_and_nothing_is_kept() {
    installed().await;
    let db = Db::default();
    *db.down.lock().unwrap() = true;
    for _ in 0..2 {
        assert!(matches!(user(&db, 50).await, Err(AppError::Db(DbError))));
    }
    assert_eq!(db.asked(), 2);
    *db.down.lock().unwrap() = false;
    assert_eq!(user(&db, 50).await.unwrap().id, 50);
    assert_eq!(db.asked(), 3);
}

#[cached("tenants", key = (tenant, id))]
async fn tenants(db: &Db, tenant: &str, id: u64, _trace: &Trace) -> Result<String, AppError> {
    db.user(id).await?;
    Ok(format!("{tenant}/{id}"))
}

/// No key, and not asked to be one.
#[derive(Clone)]
struct Trace;

#[cached("mixed")]
async fn mixed(#[skip] db: &Db, tenant: &str, id: u64, deep: bool) -> Result<String, AppError> {
    db.user(id).await?;
    Ok(format!("{tenant}/{id}/{deep}"))
}

#[cached("none")]
async fn nothing(#[skip] db: &Db) -> Result<u64, AppError> {
    db.user(0).await?;
    Ok(7)
}

#[cached("borrowed", key = ids.len())]
async fn borrowed(db: &Db, ids: &[u64]) -> Result<Vec<u64>, AppError> {
    db.user(0).await?;
    Ok(ids.to_vec())
}

#[tokio::test]
async fn the_key_is_what_is_said_or_all_that_is_not_skipped() {
    let caches = installed().await;
    let (db, trace) = (Db::default(), Trace);
    for _ in 0..2 {
        assert_eq!(tenants(&db, "a", 1, &trace).await.unwrap(), "a/1");
        assert_eq!(tenants(&db, "b", 1, &trace).await.unwrap(), "b/1");
        assert_eq!(mixed(&db, "a", 1, true).await.unwrap(), "a/1/true");
        assert_eq!(mixed(&db, "a", 1, false).await.unwrap(), "a/1/false");
        assert_eq!(nothing(&db).await.unwrap(), 7);
        assert_eq!(borrowed(&db, &[1, 2]).await.unwrap(), [1, 2]);
        assert_eq!(borrowed(&db, &[3, 4]).await.unwrap(), [1, 2], "the key is how many there are");
    }
    assert_eq!(db.asked(), 6);
    let tenants = caches.cache::<String>("tenants").unwrap();
    assert!(tenants.get(("a", 1u64)).await.unwrap().is_some());
    let mixed = caches.cache::<String>("mixed").unwrap();
    assert!(mixed.get(("a", 1u64, true)).await.unwrap().is_some());
    assert!(caches.cache::<u64>("none").unwrap().get("-").await.unwrap().is_some());
}

/// A service with a registry of its own.
#[derive(Clone)]
struct Service {
    db: Db,
    caches: Caches,
}

impl Service {
    /// Documented, and public in its module.
    #[cached("methods", caches = self.caches)]
    pub(crate) async fn user(&self, id: u64) -> Result<User, AppError> {
        Ok(self.db.user(id).await?.expect("a user"))
    }

    #[cached("own", caches = &self.caches)]
    async fn consumed(self, id: u64) -> Option<u64> {
        self.db.user(id).await.unwrap().map(|user| user.id)
    }
}

#[tokio::test]
async fn methods_have_their_own_registry() {
    let service = || async {
        let caches = Caches::builder().variables([("", ""); 0]).from_text(Format::Toml, FILE).await.unwrap();
        Service { db: Db::default(), caches }
    };
    let (a, b) = (service().await, service().await);
    for _ in 0..2 {
        assert_eq!(a.user(1).await.unwrap().id, 1);
        assert_eq!(a.clone().consumed(2).await, Some(2));
    }
    assert_eq!((a.db.asked(), b.db.asked()), (2, 0));
    assert_eq!(b.user(1).await.unwrap().id, 1);
    assert_eq!(b.db.asked(), 1);
}

#[cached("panics")]
async fn panics_once(#[skip] calls: Arc<AtomicUsize>, id: u64) -> Option<u64> {
    assert!(calls.fetch_add(1, Ordering::SeqCst) > 0, "the first time");
    Some(id)
}

#[cached("no such cache")]
async fn undefined(id: u64) -> Result<u64, AppError> {
    Ok(id)
}

#[cached("users")]
async fn mistyped(id: u64) -> u64 {
    id
}

#[tokio::test]
async fn what_goes_wrong_in_the_cache_is_an_error_where_there_is_room_for_one() {
    let caches = installed().await;
    // Without room: as if there were no cache.
    assert_eq!(panics_once(Arc::default(), 1).await, Some(1));
    let AppError::Cache(error) = undefined(1).await.unwrap_err() else { panic!() };
    assert_eq!(error.kind(), ErrorKind::Config);
    let _ = caches.cache::<User>("users").unwrap();
    let mistake = tokio::spawn(mistyped(1)).await.unwrap_err().into_panic();
    let said = mistake.downcast_ref::<String>().unwrap();
    assert!(said.contains("use one type for a name"), "{said}");
    // A second registry for one process is refused.
    let other = Caches::builder().from_text(Format::Toml, "").await.unwrap();
    assert!(other.install().unwrap_err().to_string().contains("one is installed already"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crowd_loads_once() {
    installed().await;
    let db = Db::default();
    let crowd: Vec<_> = (0..100)
        .map(|_| {
            let db = db.clone();
            tokio::spawn(async move { user(&db, 77).await.unwrap().id })
        })
        .collect();
    for caller in crowd {
        assert_eq!(caller.await.unwrap(), 77);
    }
    assert_eq!(db.asked(), 1);
}

/// Generic functions are as good as others.
#[cached("users", key = "generic")]
async fn generic<D: Fn() -> User + Clone + Send + Sync + 'static>(make: &D) -> Result<User, Never> {
    Ok(make())
}

/// An error that nobody has.
#[derive(Debug)]
struct Never;

impl From<traced_cache::Error> for Never {
    fn from(_: traced_cache::Error) -> Self {
        Self
    }
}

impl From<Never> for BoxError {
    fn from(_: Never) -> Self {
        "never".into()
    }
}

#[tokio::test]
async fn generic_functions_are_cached() {
    installed().await;
    let make = || User { id: 9, name: "made".into() };
    assert_eq!(generic(&make).await.unwrap().name, "made");
}

#[cached("hot")]
async fn hot(#[skip] db: &Db, id: u64) -> Result<Arc<User>, AppError> {
    Ok(Arc::new(db.user(id).await?.expect("a user")))
}

#[tokio::test]
async fn a_hit_allocates_nothing() {
    installed().await;
    let db = Db::default();
    let first = hot(&db, 60).await.unwrap();
    let mut found = 0;
    let info = measure(|| {
        for _ in 0..1000 {
            // Ready at once: a hit never waits.
            let user = hot(&db, 60).now_or_never().unwrap().unwrap();
            found += usize::from(Arc::ptr_eq(&user, &first));
        }
    });
    assert_eq!((found, info.count_total), (1000, 0));
}

#[cached("profiles")]
async fn display_name(user: u64) -> Result<String, AppError> {
    Ok(format!("user {user}"))
}

#[cached("profiles")]
async fn email(user: u64) -> Result<String, AppError> {
    Ok(format!("{user}@example.com"))
}

#[cached("profiles", key = ("phone", user))]
async fn phone(user: u64) -> Result<String, AppError> {
    Ok(format!("+49 {user}"))
}

#[cached("once")]
async fn greeting() -> Option<String> {
    Some("hello".to_owned())
}

#[cached("once")]
async fn secret() -> Option<String> {
    Some("secret".to_owned())
}

/// Of two functions on one cache the arguments would be each other's keys.
#[tokio::test]
async fn a_second_function_does_not_get_the_keys_of_the_first() {
    installed().await;
    for _ in 0..2 {
        assert_eq!(display_name(7).await.unwrap(), "user 7");
        let AppError::Cache(error) = email(7).await.unwrap_err() else { panic!() };
        assert_eq!(error.kind(), ErrorKind::Config);
        let said = error.to_string();
        assert!(said.starts_with("caches.profiles = macros::email (line "), "{said}");
        assert!(
            said.contains(": macros::display_name (line ") && said.ends_with("say `key = (\"email\", ...)`")
        );
        // What its author says is a key of its own.
        assert_eq!(phone(7).await.unwrap(), "+49 7");
        assert_eq!(greeting().await.as_deref(), Some("hello"));
    }
    let mistake = tokio::spawn(secret()).await.unwrap_err().into_panic();
    assert!(mistake.downcast_ref::<String>().unwrap().contains("macros::greeting"));
}

/// Names that the macro has uses for.
#[cached("names")]
async fn names(found: u64, cache: u64, answer: u64, value: u64, caches: u64) -> Option<u64> {
    Some(found + cache + answer + value + caches)
}

/// And names that it could have.
#[cached("hidden", key = cache)]
async fn hidden(cache: u64, this: u64, __cache: u64, __found: u64, __this: u64) -> Result<u64, AppError> {
    Ok(cache + this + __cache + __found + __this)
}

#[cached("changed")]
async fn changed(mut found: u64) -> u64 {
    found += 1;
    found
}

mod lints {
    #![deny(warnings)]
    use super::{AppError, cached};

    #[derive(Clone)]
    pub(super) struct Users;

    impl Users {
        #[allow(non_snake_case, unused_variables, reason = "the point")]
        #[cached("lints")]
        pub(super) async fn allowed(&self, Id: u64, unused: u64) -> Result<u64, AppError> {
            Ok(Id)
        }

        #[cached("expected")]
        #[expect(unused_variables, reason = "the point")]
        pub(super) async fn expected(mut self, mut id: u64, unused: u64) -> Result<u64, AppError> {
            id += 1;
            self = Self;
            let Self = self;
            Ok(id)
        }
    }
}

#[tokio::test]
async fn names_lints_and_mut_are_the_functions_own() {
    installed().await;
    assert_eq!(names(1, 2, 3, 4, 5).await, Some(15));
    assert_eq!(hidden(1, 2, 3, 4, 5).await.unwrap(), 15);
    for _ in 0..2 {
        assert_eq!(changed(1).await, 2);
    }
    assert_eq!(lints::Users.allowed(1, 2).await.unwrap(), 1);
    assert_eq!(lints::Users.expected(1, 2).await.unwrap(), 2);
}

/// As many as a tuple that is a key has.
#[cached("many")]
#[allow(clippy::too_many_arguments, reason = "that is what it is about")]
async fn many(
    a: u8,
    b: &str,
    c: u8,
    d: u8,
    e: u8,
    f: u8,
    g: u8,
    h: u8,
    i: u8,
    j: u8,
    k: u8,
    l: u8,
) -> Result<String, BoxError> {
    Ok(format!("{a}{b}{c}{d}{e}{f}{g}{h}{i}{j}{k}{l}"))
}

#[tokio::test]
async fn a_key_has_as_many_parts_as_the_longest_tuple() {
    let caches = installed().await;
    assert_eq!(many(1, "x", 3, 4, 5, 6, 7, 8, 9, 10, 11, 12).await.unwrap(), "1x3456789101112");
    let kept = caches.cache::<String>("many").unwrap();
    assert!(kept.get((1, "x", 3, 4, 5, 6, 7, 8, 9, 10, 11, 12)).await.unwrap().is_some());
}
