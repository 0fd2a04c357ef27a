//! Y: what a key may be.

use traced_cache::{Policy, TracedCache};

use crate::{
    kit::{self, Loads, S},
    stacks::{self, Stack, unique},
};

/// Each key keeps its own value, here and on another node, and goes alone.
async fn are_distinct(stack: &Stack, keys: &[String]) {
    let name = unique("y");
    let policy = Policy::ttl(100 * S);
    let writer = stack.named::<u64>(&name, policy);
    for (value, key) in (0_u64..).zip(keys) {
        kit::set(&writer, key, value).await;
    }
    let reader =
        if stack.remote.is_some() { stack.peer().named::<u64>(&name, policy) } else { writer.clone() };
    for (value, key) in (0_u64..).zip(keys) {
        assert_eq!(kit::get(&reader, key).await, Some(value), "{key:?}");
    }
    let together: Vec<_> = reader.get_many(keys).await.unwrap().into_iter().map(|v| v.map(|v| *v)).collect();
    assert_eq!(together, (0..keys.len() as u64).map(Some).collect::<Vec<_>>());
    for (at, key) in keys.iter().enumerate() {
        kit::invalidate(&writer, key).await;
        let fresh =
            if stack.remote.is_some() { stack.peer().named::<u64>(&name, policy) } else { writer.clone() };
        assert_eq!(kit::get(&fresh, key).await, None, "{key:?}");
        if let Some(next) = keys.get(at + 1) {
            assert_eq!(kit::get(&fresh, next).await, Some(at as u64 + 1), "{next:?}");
        }
    }
}

fn texts(keys: &[&str]) -> Vec<String> {
    keys.iter().map(ToString::to_string).collect()
}

#[tokio::test]
async fn y1_memcached_keys_of_250_bytes_pass_and_longer_ones_are_shortened() {
    let Some(stack) = stacks::shared().find(|s| s.name == "memcached") else { return };
    let server = stacks::memcached_server().unwrap();
    let cache = stack.plain::<u64>();
    let fits = "k".repeat(250 - cache.name().len() - 1);
    kit::set(&cache, &fits, 1_u64).await;
    kit::set(&cache, fits.clone() + "k", 2_u64).await;
    assert_eq!(kit::get(&cache, &fits).await, Some(1));
    assert_eq!(kit::get(&cache, fits.clone() + "k").await, Some(2));
    let asked = server.command(&format!("mg {}:{fits} s", cache.name())).unwrap();
    assert!(asked.starts_with("HD"), "under the key itself: {asked}");
}

#[tokio::test]
async fn y2_long_keys_that_differ_in_their_last_byte_are_two() {
    for stack in stacks::all() {
        for length in [100, 250, 1_000, 10_000] {
            let head = "k".repeat(length - 1);
            are_distinct(&stack, &[head.clone() + "a", head + "b"]).await;
        }
    }
}

#[tokio::test]
async fn y4_spaces_and_control_characters_are_ordinary() {
    for stack in stacks::all() {
        let odd =
            ["a b", "a%20b", "a\tb", "a\r\nb", "a\0b", "a\u{7f}b", " ", "\n", "\0", "a\r\nflush_all\r\n"];
        are_distinct(&stack, &texts(&odd)).await;
    }
}

#[tokio::test]
async fn y4_a_line_end_in_a_key_is_not_a_command() {
    let name = unique("y4");
    for stack in stacks::shared() {
        let bystander = stack.named::<u64>(&unique("y4-bystander"), Policy::ttl(100 * S));
        kit::set(&bystander, "k", 1_u64).await;
        let cache = stack.named::<u64>(&name, Policy::ttl(100 * S));
        for command in ["flush_all", "FLUSHALL", "*1\r\n$8\r\nFLUSHALL"] {
            let key = format!("x\r\n{command}\r\n");
            kit::set(&cache, &key, 2_u64).await;
            assert_eq!(kit::get(&cache, &key).await, Some(2));
            kit::invalidate(&cache, &key).await;
        }
        let fresh = stack.peer().named::<u64>(bystander.name(), Policy::ttl(100 * S));
        assert_eq!(kit::get(&fresh, "k").await, Some(1), "still there");
    }
}

#[tokio::test]
async fn y5_y8_bytes_decide() {
    for stack in stacks::all() {
        are_distinct(
            &stack,
            &texts(&["\u{e9}", "e\u{301}", "Foo", "foo", "FOO", "日本", "日本 ", "ß", "SS"]),
        )
        .await;
    }
}

#[tokio::test]
async fn y7_punctuation_is_ordinary() {
    const PUNCTUATION: &str = "#/:*(<+=> )&$%@?;'\"`~-{}()\\";
    for stack in stacks::all() {
        let mut keys = texts(&[
            "*",
            "{a}b",
            "{a}",
            "a",
            "{",
            "}",
            "a}b",
            "?",
            "[a]",
            "(a)",
            "(1:a)",
            "a:",
            ":a",
            PUNCTUATION,
        ]);
        keys.extend(PUNCTUATION.chars().map(|c| format!("x{c}")));
        keys.sort();
        keys.dedup();
        are_distinct(&stack, &keys).await;
    }
}

#[tokio::test]
async fn y10_parts_do_not_run_together() {
    for stack in stacks::all() {
        let cache = stack.plain::<u64>();
        kit::set(&cache, ("a:b", "c"), 1_u64).await;
        kit::set(&cache, ("a", "b:c"), 2_u64).await;
        kit::set(&cache, ("a", "b", "c"), 3_u64).await;
        kit::set(&cache, "a:b:c", 4_u64).await;
        kit::set(&cache, (1, 23), 5_u64).await;
        kit::set(&cache, (12, 3), 6_u64).await;
        let reader = stack
            .remote
            .as_ref()
            .map_or_else(|| cache.clone(), |_| stack.peer().named(cache.name(), cache.policy()));
        assert_eq!(kit::get(&reader, ("a:b", "c")).await, Some(1));
        assert_eq!(kit::get(&reader, ("a", "b:c")).await, Some(2));
        assert_eq!(kit::get(&reader, ("a", "b", "c")).await, Some(3));
        assert_eq!(kit::get(&reader, "a:b:c").await, Some(4));
        assert_eq!(kit::get(&reader, (1, 23)).await, Some(5));
        assert_eq!(kit::get(&reader, (12, 3)).await, Some(6));
    }
}

#[tokio::test]
async fn y11_keys_add_no_counters() {
    let stack = stacks::all().next().unwrap();
    let cache = stack.plain::<u64>();
    let series = |cache: &TracedCache<u64>| {
        let stats = cache.stats();
        (stats.served.len(), stats.operations.len(), stats.levels.len())
    };
    let before = series(&cache);
    for key in 0..50_000_u64 {
        let _ = cache.set(key, key).await.unwrap();
        cache.get(key).await.unwrap();
    }
    kit::load(&cache, "x", &Loads::default(), 1_u64).await;
    assert_eq!(series(&cache), before);
}

#[tokio::test]
async fn an_empty_key_is_refused_by_every_verb() {
    use traced_cache::ErrorKind::Key;
    let stack = stacks::all().next().unwrap();
    let cache = stack.plain::<u64>();
    assert_eq!(cache.get("").await.unwrap_err().kind(), Key);
    assert_eq!(cache.set("", 1_u64).await.unwrap_err().kind(), Key);
    assert_eq!(cache.invalidate("").await.unwrap_err().kind(), Key);
    assert_eq!(cache.get_many(["a", ""]).await.unwrap_err().kind(), Key);
    assert_eq!(cache.get_or_set("", || async { traced_cache::ok(1_u64) }).await.unwrap_err().kind(), Key);
}
