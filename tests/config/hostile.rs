//! Files that nobody writes on purpose.

use crate::kit::mistake;

const PROVIDER: &str = "[providers.local]\nbackend = \"memory\"\nentries = 1\n";

#[tokio::test]
async fn a_very_long_name_or_value_is_a_mistake_of_a_few_lines() {
    let long = "x".repeat(1 << 20);
    for text in [
        format!("{long} = 1"),
        format!("[caches.users]\n{long} = 1"),
        format!("{PROVIDER}[caches.{long}]\nlevels = [\"local\"]"),
        format!("{PROVIDER}[caches.users]\nlevels = [\"{long}\"]"),
        format!(
            "[providers.{long}]\nbackend = \"memory\"\nentries = 1\n[caches.users]\nlevels = [\"{long}y\"]"
        ),
        format!("[providers.local]\nbackend = \"{long}\""),
        format!("[providers.local]\nbackend = \"memory\"\nbytes = \"{long}\""),
        format!("[providers.local]\nbackend = \"redis\"\nurl = \"redis://h\"\nkey_prefix = \"{long}\""),
        format!(
            "[providers.local]\nbackend = \"memcached\"\nurl = \"memcached://h\"\nkey_prefix = \"{long}\""
        ),
        format!("{PROVIDER}[caches.users]\nlevels = [\"local\"]\npolicy.ttl = \"{long}\""),
        format!("{long} = 1\n{long} = 2"),
    ] {
        let said = mistake(&text).await;
        assert!(said.len() < 4_000, "{} bytes: {}", said.len(), &said[..1_000]);
    }
}

#[tokio::test]
async fn a_name_cannot_write_to_the_terminal_of_who_reads_the_mistake() {
    let said = mistake("[providers.\"l\\n\\u001b[2J\"]\nbackend = \"memory\"\nentries = 1\n[caches.a]\nlevels = [\"l\\n\\u001b[2\"]").await;
    assert!(said.ends_with(r"did you mean `l\n\u{1b}[2J`?"), "{said}");
    let said =
        mistake("[providers.\"l\\r\"]\nbackend = \"memory\"\nentries = 1\n[caches.a]\nlevels = [\"remote\"]")
            .await;
    assert!(said.ends_with(r"use `l\r`"), "{said}");
}

#[tokio::test]
async fn what_is_nested_too_deep_has_a_line() {
    let deep = "a.".repeat(100);
    for text in [
        format!("\n\na = {}1{}\n", "[".repeat(100), "]".repeat(100)),
        format!("\n\na = {}1{}\n", "{a=".repeat(100), "}".repeat(100)),
        format!("b = 1\n\n{deep}x = 1\n\nc = 2"),
        format!("b = \"\"\"\n\"\"\"\n[{deep}x]"),
    ] {
        let said = mistake(&text).await;
        assert!(said.starts_with("(text):3: "), "{said}");
    }
}
