//! A page on which operators see how the caches of an axum service do: hit rates over time, who serves how much, how long
//! calls take, what goes wrong, and what more memory would bring.
//!
//! ```
//! use std::time::Duration;
//!
//! use axum::{Router, routing::get};
//! use cache_page::Page;
//! use traced_cache::{Memory, Policy, TracedCache};
//!
//! # #[tokio::main]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let page = Page::builder().title("My service").build()?;
//! let users: TracedCache<String> = TracedCache::builder("users")
//!     .level(Memory::entries(10_000))
//!     .policy(Policy::ttl(Duration::from_secs(60)))
//!     .observer(page.clone())
//!     .build()?;
//! page.show(&users)?;
//!
//! let router: Router = Router::new().route("/", get(|| async { "hello" })).merge(page.router());
//! # drop(router);
//! # Ok(())
//! # }
//! ```
//!
//! It is at `/cache` then, and as JSON at `/cache/api/caches`. Caches from a file take it as an observer of all of them.
//!
//! # Who sees what
//! Whoever can reach the page sees counts, settings and the addresses of stores. Nobody sees a key or a value, and nobody can
//! change anything, unless the service's code says so:
//!
//! | call | what it allows | to whom |
//! | --- | --- | --- |
//! | [`PageBuilder::look_up`] | looking a key up: where it lies, age, remaining time, tags, size | whom the [`Guard`] knows |
//! | [`PageBuilder::invalidate`] | invalidating keys and tags | the same |
//! | [`PageBuilder::show_values`] | seeing values | the same |
//! | [`PageBuilder::show_keys`] | seeing the hottest keys | whoever opens the page |
//!
//! A key that is looked up travels in the body of a request, so that it is in no log of addresses. What another site has a
//! browser send is refused. Nothing is loaded from anywhere else: the page works where there is no internet.
//!
//! # What it costs
//! A hit in memory costs about 6 ns more, and allocates nothing: two numbers are compared, and one look-up in 16, and those
//! of the keys that the estimate follows, are noted in a queue that nobody waits for. A thread works that off four times a second.
//! Each cache takes about a quarter of a megabyte, its store half of one for [`estimate`]s.

pub mod estimate;
mod guard;
mod history;
mod hot;
mod html;
mod latency;
mod look;
mod page;
mod report;
mod routes;
mod shown;
mod watched;

pub use guard::Guard;
pub use page::{Page, PageBuilder};

/// Its page's code is compiled with the tests.
#[cfg(doctest)]
#[doc = include_str!("../../docs/page.md")]
struct Docs;
