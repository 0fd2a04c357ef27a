//! Keys and times as the protocol wants them.

use std::{
    borrow::Cow,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use cache_core::{RawKey, shorten};

/// Longest key on the wire, in bytes.
pub(crate) const KEY_MAX: usize = 250;
/// Longest raw key that fits once it is base64: 4 bytes for each 3.
const ENCODED_MAX: usize = KEY_MAX / 4 * 3;

/// `prefix`, namespace, colon, id; marks of a list of servers have its number behind the namespace. At most [`KEY_MAX`]
/// bytes on the wire, whatever the id holds.
///
/// A key without spaces and control characters goes out as it is. Any other is sent as base64 with the `b` flag (the
/// server decodes it, so other clients see the raw bytes): nothing in a key can end a command line, and no two keys
/// become one. Over the limit, [`shorten`] leaves the head and a digest of the whole.
pub(crate) fn wire_key(prefix: &str, key: &RawKey<'_>, list: u64) -> String {
    let mut out = String::with_capacity(prefix.len() + key.joined_len());
    let list = if key.mark && list != 0 { format!("~{list:016x}") } else { String::new() };
    for part in [prefix, key.namespace, &list, key.separator(), key.id] {
        out.push_str(part);
    }
    let limit = if is_plain_text(&out) { KEY_MAX } else { ENCODED_MAX };
    match shorten(&out, limit) {
        Cow::Owned(short) => short,
        Cow::Borrowed(_) => out,
    }
}

/// Bytes that may stand in a key token. Those above 0x7f may: the server splits at spaces and line ends only.
pub(crate) const fn is_plain(byte: u8) -> bool {
    byte > b' ' && byte != 0x7f
}

/// Whether all of it may. Looks at every byte, which takes a fraction of stopping at the first that may not.
pub(crate) fn is_plain_text(text: &str) -> bool {
    text.bytes().fold(true, |plain, byte| plain & is_plain(byte))
}

/// Longest time that is sent as "from now", 30 days; the server takes larger numbers for unix times.
const RELATIVE_MAX: u64 = 30 * 24 * 60 * 60;
/// Latest unix time that 1.6 keeps: it reads later ones as the past and drops the item without a word.
const UNIX_MAX: u64 = i32::MAX as u64;

/// The protocol's `exptime`. Zero means that the item stays until it is evicted, so no TTL is ever rounded to it.
pub(crate) fn exptime(ttl: Duration, now: SystemTime) -> u32 {
    let seconds = ttl.as_secs().saturating_add(u64::from(ttl.subsec_nanos() > 0)).max(1);
    if seconds > RELATIVE_MAX {
        let now = now.duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
        let at = now.saturating_add(seconds);
        // A clock that stands in 1970 would make it a relative time.
        return if (RELATIVE_MAX..=UNIX_MAX).contains(&at) { u32::try_from(at).unwrap_or(0) } else { 0 };
    }
    u32::try_from(seconds).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use cache_core::CacheId;

    use super::*;

    fn wire(prefix: &str, id: &str) -> String {
        wire_key(prefix, &RawKey::new(CacheId(1), "ns", id), 7)
    }

    #[test]
    fn y1_exactly_250_bytes_pass_as_they_are() {
        let id = "k".repeat(250 - "app:ns:".len());
        assert_eq!(wire("app:", &id), format!("app:ns:{id}"));
        let long = wire("app:", &(id + "k"));
        assert_eq!(long.len(), 250);
        assert!(long.starts_with("app:ns:kkk") && long.contains('~'));
    }

    #[test]
    fn y4_encoded_keys_fit_too() {
        for id in ["é ".repeat(300), "\r\n".repeat(200), "x".repeat(300) + " "] {
            let key = wire("", &id);
            let encoded = key.len().div_ceil(3) * 4;
            assert!(key.bytes().all(is_plain) && key.len() <= KEY_MAX || encoded <= KEY_MAX, "{}", key.len());
        }
        assert_eq!(wire("", &"a ".repeat(91)), format!("ns:{}", "a ".repeat(91)));
    }

    #[test]
    fn marks_have_keys() {
        let (marker, tag) = (RawKey::marker(CacheId(1), "ns"), RawKey::tag(CacheId(1), "ns", "t"));
        assert_eq!(wire_key("app:", &marker, 0), "app:ns:");
        assert_eq!(wire_key("app:", &tag, 0), "app:ns~:t");
        assert_eq!(wire_key("app:", &marker, 7), "app:ns~0000000000000007:");
        assert_eq!(wire_key("app:", &tag, 7), "app:ns~0000000000000007~:t");
    }

    #[test]
    fn t13_seconds_are_rounded_up_and_never_zero() {
        let now = UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        for (ttl, expected) in [(0, 1), (1, 1), (300, 1), (1_000, 1), (1_001, 2)] {
            assert_eq!(exptime(Duration::from_millis(ttl), now), expected);
        }
    }

    #[test]
    fn t14_thirty_days_are_relative_and_more_is_absolute() {
        let now = UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        let month = Duration::from_secs(2_592_000);
        assert_eq!(exptime(month, now), 2_592_000);
        assert_eq!(exptime(month - Duration::from_millis(1), now), 2_592_000);
        assert_eq!(exptime(month + Duration::from_secs(1), now), 1_802_592_001);
    }

    #[test]
    fn t16_what_does_not_fit_does_not_expire() {
        let now = UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        assert_eq!(exptime(Duration::from_secs(347_483_647), now), 2_147_483_647);
        assert_eq!(exptime(Duration::from_secs(347_483_648), now), 0);
        assert_eq!(exptime(Duration::from_secs(100 * 365 * 86_400), now), 0);
        assert_eq!(exptime(Duration::MAX, now), 0);
    }
}
