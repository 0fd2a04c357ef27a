//! A hit in memory allocates nothing, page or no page.
#![allow(clippy::unwrap_used, reason = "helpers of tests fail their test")]

use std::time::Duration;

use allocation_counter::measure;
use cache_core::{Policy, TracedCache};
use cache_memory::Memory;
use cache_page::Page;
use futures::FutureExt;

#[tokio::test]
async fn a_hit_that_the_page_notes_allocates_nothing() {
    const HITS: u64 = 200_000;
    let page = Page::builder().build().unwrap();
    let cache: TracedCache<String> = TracedCache::builder("hot")
        .level(Memory::entries(1000))
        .policy(Policy::ttl(Duration::MAX))
        .observer(page.clone())
        .build()
        .unwrap();
    for id in 0..100u64 {
        let _ = cache.set(id, id.to_string()).await.unwrap();
    }
    let hits = || (0..HITS).filter(|n| cache.get(n % 100).now_or_never().unwrap().unwrap().is_some()).count();
    // The row of latencies is made with the first that is timed, more than any queue holds is noted.
    assert_eq!(hits() as u64, HITS);
    let mut found = 0;
    let info = measure(|| found = hits());
    assert_eq!((found as u64, info.count_total), (HITS, 0));
}
