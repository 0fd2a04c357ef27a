//! What an operator may want to put right, told to every cache on the provider.

use std::sync::{Mutex, PoisonError, Weak};

use cache_core::Advised;

/// Most findings that are kept for caches which are built later. There are fewer kinds of them.
const MOST: usize = 16;

#[derive(Default)]
pub(crate) struct Advice(Mutex<Inner>);

#[derive(Default)]
struct Inner {
    to: Vec<Weak<dyn Advised>>,
    said: Vec<String>,
}

impl Advice {
    /// Says it once, to those who are there and to those who come.
    pub(crate) fn say(&self, text: String) {
        let mut inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if inner.said.len() >= MOST || inner.said.contains(&text) {
            return;
        }
        inner.to.retain(|to| to.strong_count() > 0);
        let to: Vec<_> = inner.to.iter().filter_map(Weak::upgrade).collect();
        inner.said.push(text.clone());
        drop(inner);
        to.iter().for_each(|to| to.advice(&text));
    }

    pub(crate) fn add(&self, to: Weak<dyn Advised>) {
        let mut inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let said = inner.said.clone();
        inner.to.retain(|to| to.strong_count() > 0);
        inner.to.push(Weak::clone(&to));
        drop(inner);
        if let Some(to) = to.upgrade() {
            said.iter().for_each(|text| to.advice(text));
        }
    }
}
