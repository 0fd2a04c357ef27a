//! Keys: what a caller may ask for, and the form in which levels see it.

use std::{
    borrow::Cow,
    fmt,
    hash::{BuildHasher, Hash, Hasher},
    sync::{Arc, OnceLock},
};

use arrayvec::ArrayString;
use foldhash::fast::FixedState;

/// Something that names an entry of one cache: `&str`, `String` and other owners of text, integers, `bool`, `char`, UUIDs, and
/// tuples of up to twelve of them, and `Option`s. `#[derive(CacheKey)]` makes one of a struct or an enum (`traced-cache`,
/// feature `macros`).
///
/// A single part renders as itself (`42`, `abc`), so that an operator finds it in `redis-cli`. A tuple renders
/// as `(3:a:b,1:c)`: every part carries its length in bytes, so `("a:b", "c")` and `("a", "b:c")` are
/// different keys. `Some` is a tuple of one, `None` is `()`. A string that starts with `(` gets that bracket doubled, which
/// keeps strings and tuples apart.
/// `42u64` and `"42"` are the same key: types do not take part. Bytes decide: `Foo` is not `foo`, and the composed
/// and decomposed forms of one letter are two keys.
///
/// By hand, delegate:
///
/// ```
/// use cache_core::{CacheKey, KeyBuf};
/// struct UserId(u64);
/// impl CacheKey for UserId {
///     type Owned = u64;
///     fn render<'a>(&'a self, buf: &'a mut KeyBuf) -> &'a str {
///         self.0.render(buf)
///     }
///     fn to_owned_key(&self) -> u64 {
///         self.0
///     }
/// }
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a cache key",
    note = "keys are strings, integers, UUIDs, tuples and `Option`s of keys and references to them; derive `CacheKey` (feature `macros` of traced-cache), or implement it by delegating to a field"
)]
pub trait CacheKey: Sync {
    /// The form handed to loaders: `String` for `&str`, itself for integers.
    type Owned: CacheKey<Owned = Self::Owned> + Clone + Eq + Hash + Send + Sync + 'static;

    /// Writes the key into `buf` or returns it in place. Allocates only beyond [`KeyBuf::INLINE`] bytes.
    fn render<'a>(&'a self, buf: &'a mut KeyBuf) -> &'a str;

    /// Called on a miss only.
    fn to_owned_key(&self) -> Self::Owned;
}

/// A stack buffer for rendering keys; longer ones spill to the heap.
pub struct KeyBuf {
    inline: ArrayString<{ Self::INLINE }>,
    spill: Option<String>,
}

impl KeyBuf {
    /// Bytes that fit without an allocation.
    pub const INLINE: usize = 64;

    /// An empty buffer.
    pub const fn new() -> Self {
        Self { inline: ArrayString::new_const(), spill: None }
    }

    /// Appends text.
    pub fn push_str(&mut self, text: &str) {
        if let Some(spill) = &mut self.spill {
            spill.push_str(text);
        } else if self.inline.try_push_str(text).is_err() {
            let mut spill = String::with_capacity((self.inline.len() + text.len()) * 2);
            spill.push_str(&self.inline);
            spill.push_str(text);
            self.spill = Some(spill);
        }
    }

    /// Appends a part with its length in front.
    fn push_part(&mut self, part: &str) {
        self.push_str(itoa::Buffer::new().format(part.len()));
        self.push_str(":");
        self.push_str(part);
    }

    /// What has been written so far.
    pub fn as_str(&self) -> &str {
        self.spill.as_deref().unwrap_or(&self.inline)
    }
}

impl Default for KeyBuf {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for KeyBuf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyBuf").finish_non_exhaustive()
    }
}

impl CacheKey for str {
    type Owned = String;
    #[inline]
    fn render<'a>(&'a self, buf: &'a mut KeyBuf) -> &'a str {
        if self.as_bytes().first() == Some(&b'(') {
            buf.push_str("(");
            buf.push_str(self);
            return buf.as_str();
        }
        self
    }
    fn to_owned_key(&self) -> String {
        self.to_owned()
    }
}

macro_rules! text_keys {
    ($($t:ty => $owned:ty),*) => {$(
        impl CacheKey for $t {
            type Owned = $owned;
            #[inline]
            fn render<'a>(&'a self, buf: &'a mut KeyBuf) -> &'a str {
                (**self).render(buf)
            }
            fn to_owned_key(&self) -> $owned {
                self.clone().into()
            }
        }
    )*};
}
text_keys!(String => Self, Box<str> => Self, Arc<str> => Self, Cow<'_, str> => String);

impl<K: CacheKey + ?Sized> CacheKey for &K {
    type Owned = K::Owned;
    #[inline]
    fn render<'a>(&'a self, buf: &'a mut KeyBuf) -> &'a str {
        (**self).render(buf)
    }
    fn to_owned_key(&self) -> K::Owned {
        (**self).to_owned_key()
    }
}

macro_rules! integer_keys {
    ($($t:ty),*) => {$(
        impl CacheKey for $t {
            type Owned = $t;
            fn render<'a>(&'a self, buf: &'a mut KeyBuf) -> &'a str {
                buf.push_str(itoa::Buffer::new().format(*self));
                buf.as_str()
            }
            fn to_owned_key(&self) -> $t {
                *self
            }
        }
    )*};
}
integer_keys!(u8, u16, u32, u64, u128, usize, i8, i16, i32, i64, i128, isize);

macro_rules! display_keys {
    ($($t:ty),*) => {$(
        impl CacheKey for $t {
            type Owned = $t;
            fn render<'a>(&'a self, buf: &'a mut KeyBuf) -> &'a str {
                use fmt::Write;
                // Writing to a buffer that grows cannot fail.
                let _ = write!(buf, "{self}");
                buf.as_str()
            }
            fn to_owned_key(&self) -> $t {
                *self
            }
        }
    )*};
}
display_keys!(bool, char);
#[cfg(feature = "uuid")]
display_keys!(uuid::Uuid);

impl fmt::Write for KeyBuf {
    fn write_str(&mut self, s: &str) -> fmt::Result {
        self.push_str(s);
        Ok(())
    }
}

macro_rules! tuple_keys {
    ($($name:ident : $index:tt),+) => {
        impl<$($name: CacheKey),+> CacheKey for ($($name,)+) {
            type Owned = ($($name::Owned,)+);
            fn render<'a>(&'a self, buf: &'a mut KeyBuf) -> &'a str {
                $(
                    buf.push_str(if $index == 0 { "(" } else { "," });
                    let mut part = KeyBuf::new();
                    let part = self.$index.render(&mut part);
                    buf.push_part(part);
                )+
                buf.push_str(")");
                buf.as_str()
            }
            fn to_owned_key(&self) -> Self::Owned {
                ($(self.$index.to_owned_key(),)+)
            }
        }
    };
}
tuple_keys!(A: 0);
tuple_keys!(A: 0, B: 1);
tuple_keys!(A: 0, B: 1, C: 2);
tuple_keys!(A: 0, B: 1, C: 2, D: 3);
tuple_keys!(A: 0, B: 1, C: 2, D: 3, E: 4);
tuple_keys!(A: 0, B: 1, C: 2, D: 3, E: 4, F: 5);
tuple_keys!(A: 0, B: 1, C: 2, D: 3, E: 4, F: 5, G: 6);
tuple_keys!(A: 0, B: 1, C: 2, D: 3, E: 4, F: 5, G: 6, H: 7);
tuple_keys!(A: 0, B: 1, C: 2, D: 3, E: 4, F: 5, G: 6, H: 7, I: 8);
tuple_keys!(A: 0, B: 1, C: 2, D: 3, E: 4, F: 5, G: 6, H: 7, I: 8, J: 9);
tuple_keys!(A: 0, B: 1, C: 2, D: 3, E: 4, F: 5, G: 6, H: 7, I: 8, J: 9, K: 10);
tuple_keys!(A: 0, B: 1, C: 2, D: 3, E: 4, F: 5, G: 6, H: 7, I: 8, J: 9, K: 10, L: 11);

/// What is there is a tuple of one: no text is either.
impl<K: CacheKey> CacheKey for Option<K> {
    type Owned = Option<K::Owned>;
    fn render<'a>(&'a self, buf: &'a mut KeyBuf) -> &'a str {
        match self {
            Some(key) => _ = (key,).render(buf),
            None => buf.push_str("()"),
        }
        buf.as_str()
    }
    fn to_owned_key(&self) -> Self::Owned {
        self.as_ref().map(K::to_owned_key)
    }
}

/// Identifies one `TracedCache` within this process. Two caches never share in-process entries, even when they
/// have one name and one provider, so a type clash between them cannot happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CacheId(pub u32);

/// A key as providers see it: borrowed, hashed once.
#[derive(Clone, Copy)]
pub struct RawKey<'a> {
    /// Which cache of this process asks. In-process stores keep entries apart by it.
    pub cache: CacheId,
    /// The cache's name: letters, digits, `.`, `_`, `-`, `/`; never empty. Remote stores keep entries apart by it.
    pub namespace: &'a str,
    /// The rendered id: any text. Empty only for the cache's own mark, see [`RawKey::marker`]; of a tag's mark, the tag.
    pub id: &'a str,
    /// Hash of `id` under one process-wide seed. Differs between processes and runs of a build: never store it.
    pub hash: u64,
    /// It names no entry but a mark, by which entries are invalidated: [`RawKey::marker`], [`RawKey::tag`].
    pub mark: bool,
}

impl<'a> RawKey<'a> {
    /// Hashes `id`.
    #[inline]
    pub fn new(cache: CacheId, namespace: &'a str, id: &'a str) -> Self {
        Self { cache, namespace, id, hash: hash_id(id), mark: false }
    }

    /// The key under which a cache keeps its own mark at a level. Ids of users are never empty.
    pub fn marker(cache: CacheId, namespace: &'a str) -> Self {
        Self { mark: true, ..Self::new(cache, namespace, "") }
    }

    /// The key under which a cache keeps the mark of one of its tags at a level.
    pub fn tag(cache: CacheId, namespace: &'a str, tag: &'a str) -> Self {
        Self { mark: true, ..Self::new(cache, namespace, tag) }
    }

    /// What stands between namespace and id.
    pub const fn separator(&self) -> &'static str {
        if self.mark && !self.id.is_empty() { "~:" } else { ":" }
    }

    /// `namespace:id`, and `namespace~:tag` for the mark of a tag: injective, because a namespace holds neither colon nor
    /// tilde.
    pub fn joined(&self) -> String {
        [self.namespace, self.separator(), self.id].concat()
    }

    /// Length of [`RawKey::joined`] in bytes.
    pub fn joined_len(&self) -> usize {
        self.namespace.len() + self.separator().len() + self.id.len()
    }
}

/// Keys stay out of `Debug` output: they may hold personal data.
impl fmt::Debug for RawKey<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RawKey").field("namespace", &self.namespace).finish_non_exhaustive()
    }
}

#[inline]
fn hash_id(id: &str) -> u64 {
    static STATE: OnceLock<FixedState> = OnceLock::new();
    // Seeded per process, so that a client who picks keys cannot aim at one bucket.
    let mut hasher = STATE.get_or_init(|| FixedState::with_seed(fastrand::u64(..))).build_hasher();
    // Without the byte that `str` adds: one text is all that is hashed.
    hasher.write(id.as_bytes());
    hasher.finish()
}

/// Shortens a key that is over a backend's limit: head of the text, `~`, and 128 bits of XXH3 in hex over the whole.
///
/// Distinct long keys stay distinct (up to a 128-bit collision) and the head still tells an operator what it is.
/// Stable across processes and releases. The cut never splits a character.
///
/// A key that already looks like a shortened one is shortened too, whatever its length: else whoever may choose a key
/// could choose the one under which another's long key is kept.
pub fn shorten(key: &str, limit: usize) -> std::borrow::Cow<'_, str> {
    if key.len() <= limit && !is_shortened(key) {
        return key.into();
    }
    let digest = format!("~{:032x}", xxhash_rust::xxh3::xxh3_128(key.as_bytes()));
    let mut head = limit.saturating_sub(digest.len()).min(key.len());
    while !key.is_char_boundary(head) {
        head -= 1;
    }
    format!("{}{digest}", &key[..head]).into()
}

/// Whether a key is one that [`shorten`] has shortened: then its whole text is not known. None that it leaves as it is
/// looks so.
pub fn is_shortened(key: &str) -> bool {
    let tail = key.len().checked_sub(33).map(|at| &key.as_bytes()[at..]);
    matches!(tail, Some([b'~', hex @ ..]) if hex.iter().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(key: impl CacheKey) -> String {
        key.render(&mut KeyBuf::new()).to_owned()
    }

    #[test]
    fn y10_composites_are_injective() {
        assert_ne!(text(("a:b", "c")), text(("a", "b:c")));
        assert_ne!(text(("a", "b")), text("(1:a,1:b)"));
        assert_ne!(text((("a", "b"), "c")), text(("a", ("b", "c"))));
        assert_eq!(text("(1:a,1:b)"), "((1:a,1:b)");
    }

    #[test]
    fn whoever_owns_a_text_has_its_key() {
        for key in ["abc", "(a", ""] {
            let all = [
                text(String::from(key)),
                text(Box::<str>::from(key)),
                text(Arc::<str>::from(key)),
                text(Cow::from(key)),
            ];
            assert_eq!(all, [(); 4].map(|()| text(key)));
        }
        assert_eq!((Cow::from("a"), 1).to_owned_key(), ("a".to_owned(), 1));
    }

    #[cfg(feature = "uuid")]
    #[test]
    fn uuids_are_keys() {
        let id = uuid::Uuid::from_u128(42);
        assert_eq!(text(id), "00000000-0000-0000-0000-00000000002a");
        assert_eq!(text((id, 1)), format!("(36:{id},1:1)"));
        assert_eq!(id.to_owned_key(), id);
    }

    #[test]
    fn what_is_not_there_is_no_text() {
        let keys =
            [text(None::<&str>), text(Some("")), text("()"), text(""), text(Some(None::<u8>)), text("None")];
        assert_eq!(keys, ["()", "(0:)", "(()", "", "(2:())", "None"]);
        assert_ne!(text((None::<&str>, Some("a"))), text((Some("a"), None::<&str>)));
        assert_eq!((1, Some("a")).to_owned_key(), (1, Some("a".to_owned())));
    }

    #[test]
    fn integers_render_like_display() {
        for n in [0i64, -1, 7, i64::MIN, i64::MAX] {
            assert_eq!(text(n), n.to_string());
        }
        assert_eq!(text(u128::MAX), u128::MAX.to_string());
        assert_eq!(text(i128::MIN), i128::MIN.to_string());
    }

    #[test]
    fn long_keys_spill_and_stay_whole() {
        let long = "x".repeat(200);
        assert_eq!(text((long.as_str(), 1)), format!("(200:{long},1:1)"));
    }

    #[test]
    fn y2_shortened_keys_stay_distinct() {
        let a = "k".repeat(999) + "a";
        let b = "k".repeat(999) + "b";
        let (a, b) = (shorten(&a, 250), shorten(&b, 250));
        assert_ne!(a, b);
        assert!(a.len() <= 250);
        assert_eq!(shorten("short", 250), "short");
        assert!(shorten(&"é".repeat(300), 250).len() <= 250);
        // Nobody can name the place of another's key.
        assert_ne!(shorten(&a, 250), a);
        assert!(shorten(&a, 250).len() <= 250);
        let brief = format!("k~{:032x}", 7);
        assert_ne!(shorten(&brief, 250), brief);
    }

    #[test]
    fn debug_shows_no_key() {
        let key = RawKey::new(CacheId(1), "users", "secret-42");
        assert!(!format!("{key:?}").contains("secret"));
    }
}
