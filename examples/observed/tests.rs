//! The example shows what it says, and its check can fail.

use std::time::Duration;

use crate::traffic::{Traffic, check};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_shows_both_traces_and_adds_up() {
    let shown = super::observed(Duration::from_millis(300)).await.map_err(|e| e.report().0).unwrap();
    let text = &shown.text;
    assert!(shown.adds_up, "{text}");
    let cold = text.split("The traces of two calls").next().unwrap();
    for line in ["GET /users/42", "└─ cache.get_or_set users", "cache.load users", "└─ SELECT users"]
    {
        assert!(cold.contains(line), "{line} in {cold}");
    }
    if text.contains("a Redis that this example has started") {
        assert!(cold.contains("├─ GET  [Client]"), "{cold}");
    }
    assert!(text.contains("link: waited_for cache.load users of trace "), "{text}");
    assert!(text.contains("\ncache_hits_total{"), "{text}");
}

#[test]
fn one_look_up_too_many_is_noticed() {
    let page = "cache_requests_total{cache_result=\"hit\"} 2\ncache_requests_total{cache_result=\"miss\"} 1\n\
                cache_misses_total{} 1\ncache_miss_reasons_total{cache_miss_reason=\"absent\"} 1\n";
    assert!(check(page, &Traffic { look_ups: 3 }).1);
    assert!(!check(page, &Traffic { look_ups: 4 }).1);
    let unexplained = page.replace("reason=\"absent\"} 1", "reason=\"absent\"} 0");
    assert!(!check(&unexplained, &Traffic { look_ups: 3 }).1);
}
