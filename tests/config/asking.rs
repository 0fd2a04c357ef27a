//! Caches that are asked for while another one is being built.

use std::time::Duration;

use cache_core::testing::ends_within;
use traced_cache::TracedCache;

use crate::kit::toml;

const FILE: &str = r#"
[providers.near]
backend = "memory"
entries = 10
[defaults]
levels = ["near"]
policy = { ttl = "1h" }
[caches.users]
[caches.groups]
"#;

#[test]
fn what_sets_a_cache_up_may_ask_for_others_and_for_itself() {
    ends_within(Duration::from_secs(10), move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let caches = runtime.block_on(toml(FILE)).unwrap();
        let _on = runtime.enter();
        let mut inner = None;
        let users: TracedCache<u32> = caches
            .cache_with("users", |builder| {
                let groups = caches.cache::<u32>("groups").unwrap();
                inner = Some(caches.cache::<u32>("users").unwrap());
                builder.weigher(move |_| u32::from(groups.name() == "groups"))
            })
            .unwrap();
        runtime.block_on(async {
            assert!(users.set("k", 1).await.unwrap().is_confirmed());
            assert_eq!(inner.unwrap().get("k").await.unwrap().as_deref(), Some(&1), "they are one");
        });
    });
}
