//! Texts that stay for as long as the process. What several threads share by counted references costs each of them two
//! writes to one place for each record that it makes, and that is most of what a record costs; static texts cost none.

use std::{
    borrow::Cow,
    cell::RefCell,
    collections::HashSet,
    sync::{Mutex, PoisonError},
};

use opentelemetry::StringValue;

/// Names of caches and of their spans, addresses of servers: few, as series are. What comes beyond is counted or copied as
/// usual.
const MOST: usize = 4_000;
const LONGEST: usize = 256;
/// Texts that a thread finds without asking the others.
const NEAR: usize = 8;

pub(crate) fn lasting(text: &str) -> StringValue {
    thread_local! {
        static RECENT: RefCell<Vec<&'static str>> = const { RefCell::new(Vec::new()) };
    }
    let near = RECENT.try_with(|recent| {
        let mut recent = recent.borrow_mut();
        if let Some(known) = recent.iter().find(|known| **known == text) {
            return Some(*known);
        }
        let kept = keep(text)?;
        if recent.len() == NEAR {
            recent.remove(0);
        }
        recent.push(kept);
        Some(kept)
    });
    match near {
        Ok(Some(text)) => text.into(),
        // Too many, or a thread that ends.
        _ => text.to_owned().into(),
    }
}

/// The same for the name of a span, which would be copied with each that is begun.
pub(crate) fn lasting_name(name: String) -> Cow<'static, str> {
    match keep(&name) {
        Some(kept) => kept.into(),
        None => name.into(),
    }
}

fn keep(text: &str) -> Option<&'static str> {
    static TEXTS: Mutex<Option<HashSet<&'static str>>> = Mutex::new(None);
    let mut texts = TEXTS.lock().unwrap_or_else(PoisonError::into_inner);
    let texts = texts.get_or_insert_with(HashSet::new);
    if let Some(known) = texts.get(text) {
        return Some(known);
    }
    if texts.len() >= MOST || text.len() > LONGEST {
        return None;
    }
    let text: &'static str = Box::leak(text.into());
    texts.insert(text);
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_kept_once_and_within_a_bound() {
        assert_eq!(lasting("users").as_str(), "users");
        assert!(keep("users").is_some_and(|text| std::ptr::eq(text, keep("users").unwrap_or_default())));
        assert_eq!(keep(&"x".repeat(LONGEST + 1)), None);
        let kept = (0..2 * MOST).filter(|n| keep(&format!("server{n}")).is_some()).count();
        assert!(kept < MOST);
        assert_eq!(lasting("one too many").as_str(), "one too many");
    }
}
