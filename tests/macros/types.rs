//! Types of arguments and answers, however they are written.

use std::pin::Pin;

use super::*;

macro_rules! cached_as {
    ($cache:literal, $name:ident, $argument:ty => $answer:ty) => {
        #[cached($cache)]
        async fn $name(#[skip] db: &Db, text: $argument) -> $answer {
            let _ = db.user(1).await?;
            Ok(text.to_owned().into())
        }
    };
}

cached_as!("made", made, &str => Result<String, AppError>);
cached_as!("made_optional", made_optional, &str => Result<Option<String>, AppError>);

#[tokio::test]
async fn a_type_from_another_macro_is_what_it_says() {
    let caches = installed().await;
    let db = Db::default();
    *db.down.lock().unwrap() = true;
    assert!(matches!(made(&db, "a").await, Err(AppError::Db(DbError))));
    assert!(matches!(made_optional(&db, "a").await, Err(AppError::Db(DbError))));
    *db.down.lock().unwrap() = false;
    for _ in 0..2 {
        assert_eq!(made(&db, "a").await.unwrap(), "a");
        assert_eq!(made_optional(&db, "a").await.unwrap().as_deref(), Some("a"));
    }
    assert_eq!(db.asked(), 4, "an error is not kept, and a value is");
    assert_eq!(*caches.cache::<String>("made").unwrap().get("a").await.unwrap().unwrap(), "a");
    assert_eq!(*caches.cache::<String>("made_optional").unwrap().get("a").await.unwrap().unwrap(), "a");
}

#[cached("lasting")]
async fn lasting(#[skip] db: &'static Db, text: &'static str, deep: bool) -> Result<String, AppError> {
    db.user(1).await?;
    let kept: &'static str = tokio::spawn(async move { text }).await.unwrap();
    Ok(format!("{kept}/{deep}"))
}

#[tokio::test]
async fn what_lasts_for_ever_is_handed_on_as_it_is() {
    installed().await;
    let db: &'static Db = Box::leak(Box::default());
    for _ in 0..2 {
        assert_eq!(lasting(db, "a", true).await.unwrap(), "a/true");
    }
    assert_eq!(db.asked(), 1);
}

#[cached("named", key = id)]
async fn named(id: String, _trace: Trace) -> Result<String, AppError> {
    Ok(id)
}

#[cached("named_pair", key = ("pair", (tenant, id), id.len()))]
async fn named_pair(tenant: String, id: String, _trace: Trace) -> Option<String> {
    Some(tenant + &id)
}

#[tokio::test]
async fn a_key_takes_no_argument_away() {
    let caches = installed().await;
    for _ in 0..2 {
        assert_eq!(named("a".to_owned(), Trace).await.unwrap(), "a");
        assert_eq!(named_pair("t".to_owned(), "a".to_owned(), Trace).await.as_deref(), Some("ta"));
    }
    assert!(caches.cache::<String>("named").unwrap().get("a").await.unwrap().is_some());
    let pairs = caches.cache::<String>("named_pair").unwrap();
    assert!(pairs.get(("pair", ("t", "a"), 1usize)).await.unwrap().is_some());
}

#[cached("perhaps")]
async fn perhaps(
    #[skip] db: &Db,
    text: Option<&str>,
    trace: Option<&u64>,
    #[skip] call: Arc<dyn Fn(&str) -> usize + Send + Sync>,
) -> Result<String, AppError> {
    db.user(1).await?;
    Ok(format!("{}/{trace:?}/{}", text.unwrap_or("-"), call("four")))
}

#[tokio::test]
async fn an_argument_may_be_perhaps_a_reference() {
    let caches = installed().await;
    let db = Db::default();
    let call: Arc<dyn Fn(&str) -> usize + Send + Sync> = Arc::new(str::len);
    for _ in 0..2 {
        let text = "a".to_owned();
        assert_eq!(perhaps(&db, Some(&text), None, Arc::clone(&call)).await.unwrap(), "a/None/4");
        assert_eq!(perhaps(&db, None, Some(&7), Arc::clone(&call)).await.unwrap(), "-/Some(7)/4");
    }
    assert_eq!(db.asked(), 2);
    let kept = caches.cache::<String>("perhaps").unwrap();
    assert!(kept.get((Some("a"), None::<u64>)).await.unwrap().is_some());
}

/// Not `Clone`, as most services are: they are shared.
struct Shared(Db);

impl Shared {
    #[cached("arc")]
    async fn by_arc(self: Arc<Self>, id: u64) -> Result<u64, AppError> {
        Ok(self.0.user(id).await?.map_or(0, |user| user.id))
    }

    #[cached("arc_ref")]
    async fn by_reference(self: &Arc<Self>, id: u64) -> Option<u64> {
        self.0.user(id).await.ok()?.map(|user| user.id)
    }
}

#[tokio::test]
async fn a_method_of_what_is_shared_needs_no_clone_of_it() {
    installed().await;
    let shared = Arc::new(Shared(Db::default()));
    for _ in 0..2 {
        assert_eq!(Arc::clone(&shared).by_arc(3).await.unwrap(), 3);
        assert_eq!(shared.by_reference(4).await, Some(4));
    }
    assert_eq!(shared.0.asked(), 2);
}

/// Puts the attribute on a method that it has been given.
macro_rules! cached_methods {
    ($of:ty, $cache:literal, $($method:tt)*) => {
        impl $of {
            #[cached($cache)]
            $($method)*
        }
    };
}

cached_methods! { Db, "given", async fn given(&self, id: u64) -> Option<u64> {
    self.user(id).await.ok()?.map(|user| user.id)
} }

#[tokio::test]
async fn a_method_may_come_from_what_a_macro_was_given() {
    installed().await;
    let db = Db::default();
    for _ in 0..2 {
        assert_eq!(db.given(5).await, Some(5));
    }
    assert_eq!(db.asked(), 1);
}

#[cached("depth")]
async fn depth(id: u64) -> Result<u64, BoxError> {
    match id {
        0 => Ok(0),
        // For its own arguments: a cycle.
        u64::MAX => above(id).await,
        _ => Ok(above(id - 1).await? + 1),
    }
}

/// Has a type that is known before that of `depth`.
fn above(id: u64) -> Pin<Box<dyn Future<Output = Result<u64, BoxError>> + Send>> {
    Box::pin(depth(id))
}

#[tokio::test]
async fn a_function_may_ask_itself() {
    let caches = installed().await;
    assert_eq!(depth(20).await.unwrap(), 20);
    assert_eq!(depth(10).await.unwrap(), 10);
    assert_eq!(caches.cache::<u64>("depth").unwrap().stats().loads, 21);
    let error = depth(u64::MAX).await.unwrap_err();
    assert!(error.to_string().contains("the key that it is loading"), "{error}");
}

/// Nothing that serde could write.
struct Rule(Box<dyn Fn(u64) -> bool + Send + Sync>);

#[cached("rules", in_memory)]
async fn rule(#[skip] db: &Db, least: u64) -> Result<Arc<Rule>, AppError> {
    db.user(1).await?;
    Ok(Arc::new(Rule(Box::new(move |n| n > least))))
}

#[cached("patterns", key = least, in_memory)]
async fn pattern(db: &Db, least: u64) -> Result<Option<Arc<Rule>>, AppError> {
    Ok(Some(rule(db, least).await?))
}

#[tokio::test]
async fn what_stays_in_memory_is_of_any_type() {
    let caches = installed().await;
    let db = Db::default();
    for _ in 0..2 {
        assert!((rule(&db, 5).await.unwrap().0)(6));
        assert!(!(pattern(&db, 5).await.unwrap().unwrap().0)(5));
    }
    assert_eq!(db.asked(), 1);
    assert_eq!(caches.in_memory::<Rule>("patterns").unwrap().stats().loads, 1);
}
