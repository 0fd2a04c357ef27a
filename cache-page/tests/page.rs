//! What the page says and does, and to whom.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests fail their test")]

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    Router,
    body::{Body, to_bytes},
    http::{HeaderMap, Request, StatusCode},
};
use cache_core::{
    Level, Loaded, Policy, TracedCache, ok,
    testing::{Chaos, Fault, MapProvider, Recorder},
};
use cache_memory::Memory;
use cache_page::{Guard, Page, PageBuilder};
use serde_json::{Value, json};
use tower::ServiceExt;

/// `Basic anyone:secret`.
const SECRET: (&str, &str) = ("authorization", "Basic YW55b25lOnNlY3JldA==");
const KEY: &str = "<script>key</script>";

struct World {
    page: Page,
    cache: TracedCache<String>,
    router: Router,
}

impl World {
    fn new(builder: PageBuilder) -> Self {
        let page = builder.build().unwrap();
        let cache: TracedCache<String> = TracedCache::builder("users")
            .level(Memory::entries(100))
            .level(Level::new(MapProvider::new()))
            .policy(Policy::ttl(Duration::from_secs(300)).absent_ttl(Duration::from_secs(60)))
            .observer(page.clone())
            .build()
            .unwrap();
        page.show(&cache).unwrap();
        let router = page.router();
        Self { page, cache, router }
    }

    /// Of what a look-up finds: one value, loaded and tagged.
    async fn with_a_value(self) -> Self {
        let load = || async { ok::<_>(Loaded::value("a secret value".to_owned()).tag("country:DE")) };
        self.cache.get_or_set(KEY, load).await.unwrap();
        self
    }

    async fn send(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Body>,
    ) -> (StatusCode, HeaderMap, String) {
        let mut request = Request::builder().method(method).uri(path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let response = self.router.clone().oneshot(request.body(body.into()).unwrap()).await.unwrap();
        let (parts, body) = response.into_parts();
        let bytes = to_bytes(body, 8 << 20).await.unwrap();
        (parts.status, parts.headers, String::from_utf8(bytes.to_vec()).unwrap())
    }

    async fn get(&self, path: &str) -> (StatusCode, String) {
        let (status, _, text) = self.send("GET", path, &[], Body::empty()).await;
        (status, text)
    }

    async fn json(&self, path: &str) -> Value {
        serde_json::from_str(&self.get(path).await.1).unwrap()
    }

    async fn post(&self, path: &str, headers: &[(&str, &str)], body: Value) -> (StatusCode, Value) {
        let headers = [headers, &[("content-type", "application/json")]].concat();
        let (status, _, text) = self.send("POST", path, &headers, body.to_string()).await;
        (status, serde_json::from_str(&text).unwrap())
    }

    async fn form(&self, headers: &[(&str, &str)], body: &str) -> (StatusCode, HeaderMap, String) {
        let headers = [headers, &[("content-type", "application/x-www-form-urlencoded")]].concat();
        self.send("POST", "/cache/caches/users", &headers, body.to_owned()).await
    }
}

fn open() -> PageBuilder {
    Page::builder().look_up(Guard::password("secret"))
}

/// A key as the page's thread will have taken note of it.
async fn until(what: &str, mut done: impl AsyncFnMut() -> bool) {
    let started = Instant::now();
    while !done().await {
        assert!(started.elapsed() < Duration::from_secs(20), "{what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn it_shows_what_the_cache_counts() {
    let world = World::new(Page::builder().title("Unit <tests>"));
    for n in 0..50u32 {
        world.cache.get_or_set(n % 10, || async { ok("v".to_owned()) }).await.unwrap();
    }
    assert!(world.cache.get("nobody").await.unwrap().is_none());
    let _ = world.cache.set(3u32, "new".to_owned()).await.unwrap();
    let stats = world.cache.stats();
    let all = world.json("/cache/api/caches").await;
    let one = world.json("/cache/api/caches/users").await;
    for cache in [&all["caches"][0], &one] {
        assert_eq!(cache["name"], "users");
        assert_eq!((&cache["lookups"], &cache["hits"]), (&json!(stats.lookups()), &json!(stats.hits())));
        assert_eq!((&cache["misses"], &cache["loads"]), (&json!(stats.misses()), &json!(10)));
        assert_eq!(cache["operations"], json!({ "get": 1, "get_or_set": 50, "set": 1 }));
        let served: u64 =
            cache["served"].as_array().unwrap().iter().map(|by| by["lookups"].as_u64().unwrap()).sum();
        assert_eq!(served, stats.lookups(), "{cache}");
        assert_eq!(cache["levels"][0]["entries"], json!(10));
        assert_eq!(
            (&cache["levels"][0]["capacity"], &cache["levels"][0]["breaker"]),
            (&json!(100), &Value::Null)
        );
        assert_eq!(cache["levels"][1]["breaker"], "closed");
        assert_eq!(cache["journal"], json!({ "pending": 0, "values_stored": 0, "values_lost": 0 }));
    }
    let ttl = one["details"]["policy"].as_array().unwrap().iter().find(|setting| setting["name"] == "ttl");
    assert_eq!(ttl.unwrap()["value"], "5m");
    assert!(one["latency"].as_array().unwrap().iter().any(|row| row["outcome"] == "loaded"), "{one}");
    until("look-ups are in the history", async || {
        let points = world.json("/cache/api/caches/users").await["history"]["points"].clone();
        points.as_array().unwrap().iter().map(|point| point["lookups"].as_u64().unwrap()).sum::<u64>()
            == stats.lookups()
    })
    .await;
    let (status, html) = world.get("/cache").await;
    assert_eq!(status, StatusCode::OK);
    assert!(
        html.contains("<title>Unit &lt;tests&gt;</title>") && html.contains("href=\"/cache/caches/users\""),
        "{html}"
    );
    let (status, html) = world.get("/cache/caches/users").await;
    assert!(status == StatusCode::OK && html.contains("<dt>ttl</dt><dd>5m</dd>"), "{html}");
    let (status, html) = world.get("/cache/caches/none").await;
    assert!(status == StatusCode::NOT_FOUND && html.contains("use one of: users"), "{html}");
}

#[tokio::test]
async fn nothing_comes_from_elsewhere_and_nothing_is_kept() {
    let world = World::new(open().invalidate(true)).with_a_value().await;
    for path in ["/cache", "/cache/caches/users", "/cache/caches/none", "/cache/api/caches", "/cache/page.js"]
    {
        let (_, headers, text) = world.send("GET", path, &[], Body::empty()).await;
        let policy = headers["content-security-policy"].to_str().unwrap();
        assert!(policy.starts_with("default-src 'none';") && !policy.contains("unsafe"), "{policy}");
        assert_eq!(headers["cache-control"], "no-store");
        assert_eq!(headers["x-content-type-options"], "nosniff");
        assert!(
            !text.contains("http://") && !text.contains("https://") && !text.contains("style=\""),
            "{path}"
        );
        assert!(!text.contains("secret") && !text.contains("onclick"), "{path}");
    }
}

#[tokio::test]
async fn it_only_reads_unless_told_otherwise() {
    let world = World::new(Page::builder()).with_a_value().await;
    let about = json!({ "cache": "users", "key": KEY });
    for path in ["/cache/api/look-up", "/cache/api/invalidate"] {
        let (status, answer) = world.post(path, &[SECRET], about.clone()).await;
        assert_eq!(status, StatusCode::FORBIDDEN, "{answer}");
    }
    let (_, html) = world.get("/cache/caches/users").await;
    assert!(!html.contains("<form"), "{html}");
    assert_eq!(world.form(&[SECRET], "action=invalidate&key=x").await.0, StatusCode::FORBIDDEN);

    let world = World::new(open()).with_a_value().await;
    let (status, _) = world.post("/cache/api/look-up", &[SECRET], about.clone()).await;
    assert_eq!(status, StatusCode::OK);
    let (status, answer) = world.post("/cache/api/invalidate", &[SECRET], about).await;
    assert!(
        status == StatusCode::FORBIDDEN && answer["error"].as_str().unwrap().contains("invalidate(true)"),
        "{answer}"
    );
    assert_eq!(world.form(&[SECRET], "action=invalidate-tag&tag=country:DE").await.0, StatusCode::FORBIDDEN);
    let (_, html) = world.get("/cache/caches/users").await;
    assert!(html.contains("value=\"look-up\"") && !html.contains("value=\"invalidate"), "{html}");
    assert!(world.cache.get(KEY).await.unwrap().is_some());
}

#[tokio::test]
async fn only_whom_the_guard_knows_may_look_a_key_up() {
    let world = World::new(open().invalidate(true)).with_a_value().await;
    let about = json!({ "cache": "users", "key": KEY });
    let wrong = ("authorization", "Basic YW55b25lOndyb25n");
    for headers in [&[][..], &[wrong]] {
        for path in ["/cache/api/look-up", "/cache/api/invalidate"] {
            assert_eq!(world.post(path, headers, about.clone()).await.0, StatusCode::UNAUTHORIZED);
        }
        let (status, said, html) = world.form(headers, "action=look-up&key=x").await;
        assert_eq!(status, StatusCode::UNAUTHORIZED);
        assert!(
            said["www-authenticate"].to_str().unwrap().starts_with("Basic ")
                && html.contains("role=\"alert\"")
        );
    }
    // A browser that knows the password sends it along with what another site has it send.
    for from in [
        [("sec-fetch-site", "cross-site"), ("host", "here")],
        [("sec-fetch-site", "same-site"), ("host", "here")],
        [("origin", "http://elsewhere"), ("host", "here")],
        [("origin", "null"), ("host", "here")],
    ] {
        let headers = [&[SECRET][..], &from].concat();
        assert_eq!(
            world.form(&headers, "action=invalidate&key=x").await.0,
            StatusCode::FORBIDDEN,
            "{from:?}"
        );
    }
    assert!(world.cache.get(KEY).await.unwrap().is_some());
    for from in
        [[("sec-fetch-site", "same-origin"), ("host", "here")], [("origin", "http://here"), ("host", "here")]]
    {
        let headers = [&[SECRET][..], &from].concat();
        assert_eq!(world.form(&headers, "action=look-up&key=x").await.0, StatusCode::OK, "{from:?}");
    }

    let by_header = Guard::by(|headers| headers.contains_key("x-operator"));
    let world = World::new(Page::builder().look_up(by_header)).with_a_value().await;
    assert_eq!(world.post("/cache/api/look-up", &[SECRET], about.clone()).await.0, StatusCode::FORBIDDEN);
    assert_eq!(
        world.post("/cache/api/look-up", &[("x-operator", "ann")], about.clone()).await.0,
        StatusCode::OK
    );
    let world = World::new(Page::builder().look_up(Guard::by(|_| panic!("a guard that fails"))));
    assert_eq!(world.post("/cache/api/look-up", &[], about).await.0, StatusCode::FORBIDDEN);
}

#[tokio::test]
async fn a_key_is_shown_with_its_levels_and_made_to_go() {
    let world = World::new(open().invalidate(true)).with_a_value().await;
    let about = json!({ "cache": "users", "key": KEY });
    let (_, look) = world.post("/cache/api/look-up", &[SECRET], about.clone()).await;
    assert_eq!(look["served_by"], "l1", "{look}");
    for level in look["levels"].as_array().unwrap() {
        assert_eq!(
            (&level["outcome"], &level["entry"]["tags"]),
            (&json!("hit"), &json!(["country:DE"])),
            "{look}"
        );
        let left = level["entry"]["fresh_for_s"].as_f64().unwrap();
        assert!(
            (250.0..=300.0).contains(&left) && level["entry"]["age_s"].as_f64().unwrap() < 50.0,
            "{look}"
        );
        assert_eq!(level.get("value"), None, "values are shown only where that is wished for");
    }
    assert!(look["levels"][1]["entry"]["bytes"].as_u64().unwrap() > 14, "{look}");
    let before = world.cache.stats().lookups();
    let (status, _, html) = world.form(&[SECRET], "action=look-up&key=%3Cscript%3Ekey%3C/script%3E").await;
    assert_eq!(status, StatusCode::OK);
    assert!(html.contains("&lt;script&gt;key&lt;/script&gt;") && !html.contains("<script>key"), "{html}");
    assert!(html.contains("answered by l1") && html.contains("country:DE"), "{html}");
    assert!(!html.contains("secret value"), "{html}");
    assert_eq!(world.cache.stats().lookups(), before, "looking is not counted");

    let (status, answer) = world.post("/cache/api/invalidate", &[SECRET], about.clone()).await;
    assert_eq!((status, answer), (StatusCode::OK, json!({ "delivery": "confirmed" })));
    let (_, look) = world.post("/cache/api/look-up", &[SECRET], about).await;
    assert_eq!(look["served_by"], Value::Null, "{look}");

    let world = world.with_a_value().await;
    let (status, _, html) = world.form(&[SECRET], "action=invalidate-tag&tag=country:DE").await;
    assert!(status == StatusCode::OK && html.contains("every level has it"), "{html}");
    assert!(world.cache.get(KEY).await.unwrap().is_none());
}

/// It was not loaded in no time.
#[tokio::test]
async fn an_entry_that_cannot_be_read_does_not_say_what_made_it() {
    let (page, store) = (open().build().unwrap(), Arc::new(Chaos::new(MapProvider::new())));
    let builder = TracedCache::builder("users").level(Level::new(Arc::clone(&store)));
    let cache: TracedCache<String> = builder.observer(page.clone()).build().unwrap();
    page.show(&cache).unwrap();
    let world = World { router: page.router(), page, cache };
    assert!(world.cache.set("42", "Ada".to_owned()).await.unwrap().is_confirmed());
    store.set_all(Fault::Truncate);
    let about = json!({ "cache": "users", "key": "42" });
    let (_, look) = world.post("/cache/api/look-up", &[SECRET], about).await;
    let entry = &look["levels"][0]["entry"];
    assert!(entry["bytes"].as_u64().unwrap() > 0, "{look}");
    assert_eq!((&entry["load_us"], &entry["by_set"]), (&Value::Null, &Value::Null), "{look}");
    let (_, _, html) = world.form(&[SECRET], "action=look-up&key=42").await;
    assert!(html.contains("<dt>made by</dt><dd>not known</dd>"), "{html}");
}

#[tokio::test]
async fn values_are_shown_to_those_who_may_where_that_is_wished_for() {
    let world = World::new(open().show_values(true)).with_a_value().await;
    let about = json!({ "cache": "users", "key": KEY });
    let (_, look) = world.post("/cache/api/look-up", &[SECRET], about).await;
    assert!(
        look["levels"].as_array().unwrap().iter().all(|level| level["value"] == "\"a secret value\""),
        "{look}"
    );
    let (_, _, html) = world.form(&[SECRET], "action=look-up&key=%3Cscript%3Ekey%3C/script%3E").await;
    assert!(html.contains("&quot;a secret value&quot;"), "{html}");
    assert_eq!(world.form(&[], "action=look-up&key=x").await.0, StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn what_is_wrong_is_said_without_the_key() {
    let world = World::new(open().invalidate(true));
    for (body, status, field) in [
        (json!({ "cache": "users" }), StatusCode::BAD_REQUEST, "key"),
        (json!({ "cache": "users", "key": "" }), StatusCode::BAD_REQUEST, "key"),
        (json!({ "cache": "none", "key": "a-key" }), StatusCode::NOT_FOUND, "cache"),
        (json!({ "cache": "users", "key": ["a-key"] }), StatusCode::BAD_REQUEST, "(body)"),
        (json!({ "cache": "users", "key": "a-key", "a-field": 1 }), StatusCode::BAD_REQUEST, "(body)"),
        (json!(["a-key"]), StatusCode::BAD_REQUEST, "(body)"),
        (json!({ "cache": "users", "key": "k".repeat(20_000) }), StatusCode::PAYLOAD_TOO_LARGE, "(body)"),
    ] {
        let (got, answer) = world.post("/cache/api/look-up", &[SECRET], body.clone()).await;
        assert_eq!((got, &answer["field"]), (status, &json!(field)), "{answer}");
        assert!(!answer.to_string().contains("a-key"), "{answer}");
    }
    // But which caches there are.
    let (_, answer) =
        world.post("/cache/api/look-up", &[SECRET], json!({ "cache": "none", "key": "a-key" })).await;
    assert!(answer["error"].as_str().unwrap().ends_with("use one of: users"), "{answer}");
    let (status, answer) = world.get("/cache/api/caches/%ff").await;
    assert_eq!((status, answer.contains("\"field\":\"cache\"")), (StatusCode::NOT_FOUND, true), "{answer}");
    assert_eq!(world.get("/cache/caches/%ff").await.0, StatusCode::NOT_FOUND);
    let both = json!({ "cache": "users", "key": "a", "tag": "b" });
    assert_eq!(world.post("/cache/api/invalidate", &[SECRET], both).await.0, StatusCode::BAD_REQUEST);
    assert_eq!(world.form(&[SECRET], "action=fly&key=x").await.0, StatusCode::BAD_REQUEST);

    for (builder, word) in [
        (Page::builder().invalidate(true), "Page::invalidate"),
        (Page::builder().show_values(true), "Page::show_values"),
        (Page::builder().path("cache"), "Page::path"),
        (Page::builder().path("/a b"), "Page::path"),
        (Page::builder().path("/{name}"), "Page::path"),
    ] {
        let error = builder.build().unwrap_err().to_string();
        assert!(error.starts_with(word), "{error}");
    }
    let unseen: TracedCache<u8> = TracedCache::builder("unseen")
        .level(Memory::entries(1))
        .policy(Policy::ttl(Duration::MAX))
        .build()
        .unwrap();
    let error = world.page.show(&unseen).unwrap_err().to_string();
    assert!(error.contains("unseen") && error.contains(".observer(page.clone())"), "{error}");
}

#[tokio::test]
async fn the_hottest_keys_are_masked_unless_somebody_says_otherwise() {
    for shows in [false, true] {
        let page = Page::builder();
        let world = World::new(match shows {
            true => page.show_keys(|key| (!key.starts_with("private")).then(|| key.to_uppercase())),
            false => page,
        });
        let _ = world.cache.set("hot-one", "v".to_owned()).await.unwrap();
        let _ = world.cache.set("private-one", "v".to_owned()).await.unwrap();
        until("a hot key is seen", async || {
            for _ in 0..400 {
                world.cache.get("hot-one").await.unwrap();
                world.cache.get("private-one").await.unwrap();
            }
            let one = world.json("/cache/api/caches/users").await;
            one["details"]["hot_keys"].as_array().unwrap().len() == 2
        })
        .await;
        let (one, (_, html)) =
            (world.json("/cache/api/caches/users").await, world.get("/cache/caches/users").await);
        let both = format!("{one}{html}");
        assert!(
            !both.contains("hot-one") && !both.contains("rivate-one") && !both.contains("PRIVATE"),
            "{both}"
        );
        assert_eq!(both.contains("HOT-ONE"), shows, "{both}");
        assert!(html.contains("masked"), "{html}");
        let share: f64 = one["details"]["hot_keys"]
            .as_array()
            .unwrap()
            .iter()
            .map(|key| key["share"].as_f64().unwrap())
            .sum();
        assert!(share > 0.9, "{one}");
    }
}

#[tokio::test]
async fn memory_of_another_size_is_estimated() {
    let world = World::new(Page::builder());
    // Twice as many keys as there is room for, in turn: half of it would do worse, double well.
    until("an estimate", async || {
        for n in 0..200u32 {
            world.cache.get_or_set(n, || async { ok("v".to_owned()) }).await.unwrap();
        }
        let one = world.json("/cache/api/caches/users").await;
        let sizes = one["details"]["estimate"]["sizes"].as_array().cloned().unwrap_or_default();
        let rate = |at: usize| sizes.get(at).and_then(|size| size["hit_rate"].as_f64());
        rate(0) < rate(2) && rate(2) > Some(0.5) && rate(1) < Some(0.9)
    })
    .await;
}

#[tokio::test]
async fn a_cache_that_is_gone_is_not_shown_and_a_new_one_takes_its_name() {
    let World { page, cache, router } = World::new(Page::builder());
    let world = World { page: page.clone(), cache, router };
    assert_eq!(world.json("/cache/api/caches").await["caches"].as_array().unwrap().len(), 1);
    let again: TracedCache<u8> = TracedCache::builder("users")
        .level(Memory::entries(7))
        .policy(Policy::ttl(Duration::MAX))
        .observer(page.clone())
        .build()
        .unwrap();
    let all = world.json("/cache/api/caches").await;
    assert_eq!(
        (all["caches"].as_array().unwrap().len(), &all["caches"][0]["levels"][0]["capacity"]),
        (1, &json!(7))
    );
    drop(again);
    until("the new one is gone", async || {
        world.json("/cache/api/caches").await["caches"].as_array().unwrap().is_empty()
    })
    .await;
    assert!(world.get("/cache").await.1.contains("No cache has been built"));
}

#[tokio::test]
async fn a_cache_that_is_shown_ends_with_its_last_handle() {
    let (page, recorder) = (Page::builder().build().unwrap(), Recorder::new());
    let builder = TracedCache::<u64>::builder("shown").level(Memory::entries(10));
    let cache = builder.observer(page.clone()).observer(recorder.clone()).build().unwrap();
    page.show(&cache).unwrap();
    drop((page, cache));
    until("it is over", async || recorder.stats().iter().all(|stats| stats.is_over())).await;
}

#[tokio::test]
async fn it_lies_where_it_is_told() {
    let world = World::new(open().path("/internal/caches/"));
    assert_eq!(world.get("/cache").await.0, StatusCode::NOT_FOUND);
    let (status, html) = world.get("/internal/caches").await;
    assert!(status == StatusCode::OK && html.contains("href=\"/internal/caches/page.css\""), "{html}");
    let (_, html) = world.get("/internal/caches/caches/users").await;
    assert!(html.contains("action=\"/internal/caches/caches/users\""), "{html}");
    assert!(World::new(Page::builder().path("/")).get("/").await.1.contains("href=\"/page.css\""));
}
