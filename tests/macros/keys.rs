//! `#[derive(CacheKey)]`: the keys of structs and enums, and what their loaders get.

use serde::{Deserialize, Serialize};
use traced_cache::{CacheKey, KeyBuf, Memory, TracedCache, ok};

fn text(key: impl CacheKey) -> String {
    key.render(&mut KeyBuf::new()).to_owned()
}

#[derive(CacheKey, Clone, Debug, PartialEq, Eq, Hash)]
struct Page {
    shop: u32,
    slug: String,
}

#[derive(CacheKey, Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct UserId(u64);

#[derive(CacheKey)]
struct Borrowed<'a> {
    shop: u32,
    slug: &'a str,
}

#[derive(CacheKey)]
struct Slug<'a>(&'a str);

#[derive(CacheKey, Clone, Debug, PartialEq, Eq, Hash)]
struct Scoped<T> {
    tenant: u16,
    of: T,
}

#[derive(CacheKey, Clone, Debug, PartialEq, Eq, Hash)]
enum Report {
    Daily,
    r#Weekly(),
    Of { r#type: u8, page: Page },
    Between(u32, u32),
}

#[derive(CacheKey, Clone, Debug, PartialEq, Eq, Hash)]
struct Twelve(u8, u8, u8, u8, u8, u8, u8, u8, u8, u8, u8, u8);

/// Names that the macro has uses for.
#[derive(CacheKey, Clone, Debug, PartialEq, Eq, Hash)]
struct Names {
    buf: u8,
    key: u8,
}

#[test]
fn a_type_is_the_tuple_of_its_parts() {
    let page = || Page { shop: 7, slug: "a:b".to_owned() };
    assert_eq!(text(page()), text((7, "a:b")));
    assert_eq!(text(UserId(42)), "42");
    assert_eq!(text(Borrowed { shop: 7, slug: "a:b" }), text(page()));
    assert_eq!(text(Slug("(x")), text("(x"));
    assert_eq!(text(Scoped { tenant: 1, of: UserId(2) }), text((1, 2)));
    assert_eq!(text(Scoped { tenant: 1, of: page() }), text((1, (7, "a:b"))));
    assert_eq!(text(Report::Daily), "Daily");
    assert_eq!(text(Report::Weekly()), "Weekly");
    assert_eq!(text(Report::Of { r#type: 3, page: page() }), text(("Of", 3, (7, "a:b"))));
    assert_ne!(text(Report::Between(1, 2)), text(Report::Between(2, 1)));
    assert_eq!(text(Twelve(1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12)).matches(':').count(), 12);
    assert_eq!(text(Names { buf: 1, key: 2 }), text((1, 2)));

    assert_eq!(page().to_owned_key(), page());
    assert_eq!(Borrowed { shop: 7, slug: "a" }.to_owned_key(), (7, "a".to_owned()));
    assert_eq!(Slug("a").to_owned_key(), "a");
    assert_eq!(text(Borrowed { shop: 7, slug: "a" }.to_owned_key()), text(Borrowed { shop: 7, slug: "a" }));
}

/// A hit asks with what it has borrowed, and a batch of loads is asked for with the application's own type.
#[tokio::test]
async fn loaders_get_the_owned_form() {
    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Html(String);

    let pages = TracedCache::<Html>::builder("pages").level(Memory::entries(100)).build().unwrap();
    let keys = ["about", "jobs"].map(|slug| Page { shop: 7, slug: slug.to_owned() });
    let all = pages
        .get_or_set_many(&keys, &(), |(), missing: Vec<Page>| async move {
            ok(missing.into_iter().map(|page| (page.clone(), Html(page.slug))).collect::<Vec<_>>())
        })
        .await
        .unwrap();
    assert_eq!(all.len(), 2);
    let hit = pages.get(Borrowed { shop: 7, slug: "jobs" }).await.unwrap();
    assert_eq!(hit.as_deref(), Some(&Html("jobs".to_owned())));
}
