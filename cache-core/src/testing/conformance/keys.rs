//! Keys: bytes decide.

use std::time::Duration;

use super::room::{Room, ok, own};
use crate::{CacheProvider, Capabilities, Put, RawKey, shorten};

pub(super) fn has_a_limit(capabilities: &Capabilities) -> bool {
    capabilities.key_max.is_some()
}

/// Whether other processes may share the store.
pub(super) fn is_shared(capabilities: &Capabilities) -> bool {
    capabilities.remote
}

/// Y8: `Foo` is not `foo`.
pub async fn keys_are_case_sensitive(provider: &dyn CacheProvider) {
    distinct(provider, &["Foo", "foo", "FOO", "fOO"]).await;
}

/// Y5: composed and decomposed forms are different keys.
pub async fn unicode_forms_are_apart(provider: &dyn CacheProvider) {
    distinct(
        provider,
        &["caf\u{e9}", "cafe\u{301}", "cafe", "\u{212b}", "\u{c5}", "A\u{30a}", "\u{1f980}", "\u{202e}x"],
    )
    .await;
}

/// Y4, Y7: whatever a protocol, a pattern or an escaping could trip over.
pub async fn odd_characters_in_keys(provider: &dyn CacheProvider) {
    let absurd = "#/:*(<+=> )&$%@?;'\"`~-{}()\\";
    let mut ids: Vec<String> = [
        "a b",
        "a%20b",
        "a+b",
        " a",
        "a ",
        "a",
        "a\tb",
        "a\\tb",
        "a\r\nb",
        "a\nb",
        "a\0b",
        "a\0",
        "a\u{7f}b",
        "*",
        "?",
        "[a]",
        "a*",
        "{x}y",
        "{x}z",
        "{}",
        "%",
        "%25",
        "~",
        "a:b",
        "a::b",
        ":",
        ":a",
        "/",
        "..",
        "..%2F",
        "'",
        "\"",
        "\\",
        "\\\\",
        "1",
        "01",
        "1.0",
        "-1",
        "(1:a,1:b)",
        "((",
        "=",
        "YQ==",
        "b",
        "END",
        "\u{80}",
    ]
    .map(str::to_owned)
    .to_vec();
    ids.push(absurd.to_owned());
    ids.extend((0..=127u8).map(|byte| format!("byte{}", char::from(byte))));
    distinct(provider, &ids).await;
}

/// Y4: a line break in a key or a value carries no command to the server.
pub async fn keys_inject_no_command(provider: &dyn CacheProvider) {
    let room = Room::new();
    let victim = room.key("victim").joined();
    let ids = [
        format!("k 0 0 1\r\nx\r\nset {victim} 0 0 1\r\nx\r\n"),
        format!("k\r\nset {victim} 0 0 1\r\nx\r\nget k"),
        format!("k\r\nms {victim} 1\r\nx\r\nmg k"),
        format!("k\r\n*3\r\n$3\r\nSET\r\n${}\r\n{victim}\r\n$1\r\nx\r\n", victim.len()),
        format!("k\r\nSET {victim} x\r\n"),
        format!("k\nSET {victim} x\n"),
    ];
    room.fill(provider, &ids).await;
    for id in &ids {
        room.put(provider, "carrier", id.clone()).await;
        room.expect_own(provider, &[id]).await;
        room.remove(provider, &format!("{id}!")).await;
    }
    assert!(!room.has(provider, "victim").await, "a key or a value was taken for a command");
    room.expect_own(provider, &ids).await;
}

/// Y2: keys of 1,000 bytes that differ in one place only, and longer ones, where stores cut or count in 16 bits.
pub async fn long_keys_are_apart(provider: &dyn CacheProvider) {
    let long = "k".repeat(998);
    let mut ids =
        vec![format!("{long}aa"), format!("{long}ab"), format!("ba{long}"), "k".repeat(1_000), long];
    for len in [5_000, 70_000] {
        let longer = "k".repeat(len);
        ids.extend([format!("{longer}a"), format!("{longer}b"), longer]);
    }
    distinct(provider, &ids).await;
}

/// Y1: keys one byte shorter than the limit, as long, and longer, also where a cut would split a character.
pub async fn keys_around_the_limit(provider: &dyn CacheProvider) {
    let room = Room::new();
    let max = provider.capabilities().key_max.expect("applies to providers with a limit");
    let room_for_id = max - room.key("").joined_len();
    let mut ids = Vec::new();
    for len in room_for_id.saturating_sub(2)..=room_for_id + 2 {
        ids.push("x".repeat(len));
        ids.push("x".repeat(len - 1) + "y");
        ids.push("\u{e9}".repeat(len / 2) + &"z".repeat(len % 2));
        // Three bytes a character where they are escaped.
        ids.push(" ".repeat(len));
        ids.push(" ".repeat(len - 1) + "\n");
    }
    check_distinct(&room, provider, &ids).await;
}

/// The shortened form of a long key, used as a key, does not find the long one: whoever picks keys cannot aim at others.
pub async fn a_shortened_key_is_another_key(provider: &dyn CacheProvider) {
    let room = Room::new();
    let max = provider.capabilities().key_max.expect("applies to providers with a limit");
    for long in ["x".repeat(max + 10), "\u{e9}".repeat(max), "\u{1f980}".repeat(max)] {
        let joined = room.key(&long).joined();
        // A provider may put something of its own in front, which leaves less room.
        for limit in max.saturating_sub(8)..=max {
            let shortened = shorten(&joined, limit);
            let forged = &shortened[room.key("").joined_len()..];
            room.put(provider, &long, own(&long)).await;
            assert!(!room.has(provider, forged).await, "the shortened form finds the long key");
            room.put(provider, forged, "forged").await;
            assert!(
                room.get(provider, &long).await == Some(own(&long)),
                "the shortened form overwrote the long key"
            );
            room.remove(provider, forged).await;
            assert!(room.has(provider, &long).await, "the shortened form removed the long key");
        }
    }
}

/// Equal ids in namespaces of which one begins like another, or differs in case or punctuation.
pub async fn namespaces_are_apart(provider: &dyn CacheProvider) {
    let first = Room::named("users");
    let prefix = first.namespace.trim_end_matches("users").to_owned();
    let names = ["usersAbc", "Users", "users.a", "users-a", "users_a", "users/a", "user"];
    let mut rooms = vec![first];
    rooms.extend(names.iter().map(|name| Room::beside(&prefix, name)));
    let ids = ["1", "a", "Abc:1", ":1"];
    for (n, room) in rooms.iter().enumerate() {
        for id in ids {
            room.put(provider, id, format!("{n} {id}")).await;
        }
    }
    for id in ids {
        rooms[0].remove(provider, id).await;
    }
    for (n, room) in rooms.iter().enumerate() {
        for id in ids {
            let expected = (n > 0).then(|| format!("{n} {id}").into());
            assert!(room.get(provider, id).await == expected, "namespace {n}, id {id:?}");
        }
    }
}

/// The marks of a cache and of its tags are no id's item, and can be put, read and removed.
pub async fn marks_are_apart(provider: &dyn CacheProvider) {
    let room = Room::new();
    let ids = [" ", ":", "\0", "0", "%", "marker", "~:", "~:a", "a"];
    room.fill(provider, &ids).await;
    let marks = [room.marker(), room.tag("a"), room.tag("~"), room.tag(" ")];
    for mark in marks {
        assert!(ok(provider.get(mark).await).is_none(), "a mark is no id's item");
        let bytes = room.own_mark(mark);
        ok(provider.put(Put { key: mark, bytes, ttl: Duration::from_secs(600) }).await);
    }
    room.expect_own(provider, &ids).await;
    for mark in marks {
        assert_eq!(ok(provider.get(mark).await), Some(room.own_mark(mark)));
        ok(provider.remove(mark).await);
        assert!(ok(provider.get(mark).await).is_none(), "a mark can be removed");
    }
    room.expect_own(provider, &ids).await;
}

/// What one process has put another one finds and removes. There the cache has another number, and ids another hash; its name
/// and the id are the same.
pub async fn other_processes_find_it(provider: &dyn CacheProvider) {
    let (here, there) = Room::twins();
    let pairs =
        [(here.key("a"), there.key("a")), (here.marker(), there.marker()), (here.tag("a"), there.tag("a"))];
    for (ours, theirs) in pairs {
        let theirs = RawKey { hash: !ours.hash, ..theirs };
        let item = Put { key: ours, bytes: own("shared"), ttl: Duration::from_secs(600) };
        ok(provider.put(item).await);
        assert!(
            ok(provider.get(theirs).await) == Some(own("shared")),
            "another process does not find it: what tells keys apart is `joined()`, not `cache` or `hash`"
        );
        ok(provider.remove(theirs).await);
        assert!(ok(provider.get(ours).await).is_none(), "another process has not removed it");
    }
}

async fn distinct(provider: &dyn CacheProvider, ids: &[impl AsRef<str>]) {
    check_distinct(&Room::new(), provider, ids).await;
}

/// Each id round-trips beside all others, alone and in batches, and can be removed without the others.
async fn check_distinct(room: &Room, provider: &dyn CacheProvider, ids: &[impl AsRef<str>]) {
    let ids: Vec<&str> = ids.iter().map(AsRef::as_ref).collect();
    for id in &ids {
        assert!(!room.has(provider, id).await, "{id:?} was there before");
    }
    for id in &ids {
        room.put(provider, id, own(id)).await;
    }
    room.expect_own(provider, &ids).await;
    let (gone, kept) = ids.split_at(ids.len() / 2);
    for id in gone {
        room.remove(provider, id).await;
        assert!(!room.has(provider, id).await, "{id:?} was not removed");
    }
    room.expect_own(provider, kept).await;
    room.fill(provider, gone).await;
    room.expect_own(provider, &ids).await;
}
