//! What of a key may be seen.

use std::{
    borrow::Cow,
    panic::{AssertUnwindSafe, catch_unwind},
};

use opentelemetry::{Array, KeyValue, StringValue, Value};

use crate::names;

type Mask = dyn Fn(&str) -> Option<String> + Send + Sync;

/// The user's say on what of a key may be seen.
pub(crate) struct ShowKey(Box<Mask>);

impl ShowKey {
    pub(crate) fn by(show: impl Fn(&str) -> Option<String> + Send + Sync + 'static) -> Self {
        Self(Box::new(show))
    }

    /// Keys that have the shape of one of these show as it.
    pub(crate) fn as_patterns(patterns: Vec<String>) -> Self {
        Self::by(move |key| {
            let segments = segments(key);
            patterns.iter().find(|pattern| is_like(&segments, pattern)).cloned()
        })
    }

    /// `None` after a panic, too: the user's function is none of the cache's business.
    pub(crate) fn of(&self, key: &str) -> Option<String> {
        catch_unwind(AssertUnwindSafe(|| (self.0)(key))).ok().flatten()
    }
}

/// A key as spans have it, as far as it may be seen.
pub(crate) fn attribute(shown: String) -> KeyValue {
    KeyValue::new(names::CACHE_KEY, Value::Array(Array::String(vec![StringValue::from(shown)])))
}

/// The shape of a key: `user:123:profile` is `user:*:profile`, `("user", 123)` is `user:*`. Segments, between colons and
/// slashes or the parts of a tuple, are masked when they are a number, a UUID or 16 hex digits and more. The rest stays:
/// use it only where that is harmless.
///
/// ```
/// use cache_otel::key_pattern;
///
/// assert_eq!(key_pattern("user:123:profile"), "user:*:profile");
/// assert_eq!(key_pattern("session/67e55044-10b1-426f-9247-bb680e5fe0c8"), "session:*");
/// assert_eq!(key_pattern("user:ann"), "user:ann");
/// ```
pub fn key_pattern(key: &str) -> String {
    let masked: Vec<_> = segments(key).into_iter().map(|s| if is_id(&s) { "*".into() } else { s }).collect();
    masked.join(":")
}

fn is_id(segment: &str) -> bool {
    let digits = segment.strip_prefix('-').unwrap_or(segment);
    let number = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
    let hex = |at_least| segment.len() >= at_least && segment.bytes().all(|b| b.is_ascii_hexdigit());
    let uuid = segment.len() == 36
        && segment.bytes().enumerate().all(|(at, b)| match at {
            8 | 13 | 18 | 23 => b == b'-',
            _ => b.is_ascii_hexdigit(),
        });
    number || uuid || hex(16)
}

/// Tuples within tuples that are looked into. What is deeper is text: a key may be anybody's input, and each takes stack.
const DEEPEST: usize = 8;

/// The parts of a tuple, in and out of tuples in it, or what is between separators.
fn segments(key: &str) -> Vec<Cow<'_, str>> {
    segments_within(key, DEEPEST)
}

fn segments_within(key: &str, depth: usize) -> Vec<Cow<'_, str>> {
    let mut all = Vec::new();
    if let Some(deeper) = depth.checked_sub(1)
        && let Some(tuple) = key.strip_prefix('(').filter(|rest| !rest.starts_with('('))
        && parts(tuple, deeper, &mut all)
    {
        return all;
    }
    key.split([':', '/']).map(Cow::Borrowed).collect()
}

/// `3:a:b,1:c)`. `false`: it is none.
fn parts<'k>(mut rest: &'k str, depth: usize, all: &mut Vec<Cow<'k, str>>) -> bool {
    loop {
        let Some((length, tail)) = rest.split_once(':') else { return false };
        let Ok(length) = length.parse::<usize>() else { return false };
        let Some((part, tail)) = tail.split_at_checked(length) else { return false };
        all.extend(segments_within(part, depth));
        match tail.strip_prefix(',') {
            Some(next) => rest = next,
            None => return tail == ")",
        }
    }
}

fn is_like(segments: &[Cow<'_, str>], pattern: &str) -> bool {
    let wanted: Vec<&str> = pattern.split([':', '/']).collect();
    wanted.len() == segments.len()
        && segments.iter().zip(wanted).all(|(segment, wanted)| wanted == "*" || segment == wanted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_keep_words_and_lose_ids() {
        for (key, shape) in [
            ("42", "*"),
            ("-42", "*"),
            ("user:42", "user:*"),
            ("user:42:profile", "user:*:profile"),
            ("a/7/b", "a:*:b"),
            ("(4:user,2:42)", "user:*"),
            ("(4:user,3:a:7)", "user:a:*"),
            ("((4:user", "((4:user"),
            ("(9:user)", "(9:user)"),
            ("deadbeefdeadbeef", "*"),
            ("decade", "decade"),
            ("", ""),
        ] {
            assert_eq!(key_pattern(key), shape, "{key}");
        }
    }

    #[test]
    fn a_key_that_nests_without_end_takes_no_more_stack_than_others() {
        let mut key = "7".to_owned();
        while key.len() < 60_000 {
            key = format!("({}:{key})", key.len());
        }
        let shape = std::thread::Builder::new().stack_size(256 << 10).spawn(move || key_pattern(&key));
        assert!(shape.unwrap().join().unwrap().starts_with('('), "what is too deep is text");
        let mut key = "7".to_owned();
        for _ in 0..DEEPEST {
            key = format!("({}:{key})", key.len());
        }
        assert_eq!(key_pattern(&key), "*");
    }

    #[test]
    fn patterns_show_themselves_and_nothing_of_the_key() {
        let show = ShowKey::as_patterns(vec!["user:*:profile".into(), "page:*".into()]);
        assert_eq!(show.of("user:ann:profile").as_deref(), Some("user:*:profile"));
        assert_eq!(show.of("(4:page,3:ann)").as_deref(), Some("page:*"));
        assert_eq!(show.of("user:ann"), None);
        assert_eq!(show.of("ann:user:profile"), None);
    }
}
