//! Blocks of code.

use std::{collections::HashSet, fs};

use traced_cache::{Caches, Error, config::Format, testing::MapProvider};

use crate::page::{self, Block, Page, root};

/// Where blocks in Rust are compiled, or run, with the documentation's tests.
fn compiled() -> String {
    ["src/lib.rs", "cache-page/src/lib.rs", "traced-cache-cli/src/lib.rs"]
        .map(|file| fs::read_to_string(root().join(file)).unwrap())
        .concat()
}

fn blocks(language: &str) -> Vec<(Page, Vec<Block>)> {
    let mut found = Vec::new();
    for mut page in page::all() {
        let blocks: Vec<Block> = page.blocks.drain(..).filter(|block| block.is(language)).collect();
        if !blocks.is_empty() {
            found.push((page, blocks));
        }
    }
    assert!(!found.is_empty(), "{language}");
    found
}

#[test]
fn every_block_says_what_it_is_and_is_one_of_those_that_are_checked() {
    for page in page::all() {
        for block in &page.blocks {
            let known = ["rust", "toml", "json", "yaml", "sh", "text"].iter().any(|known| block.is(known));
            assert!(known, "{}: a block of {:?}", page.path.display(), block.info);
        }
    }
}

#[test]
fn every_block_in_rust_is_compiled() {
    let compiled = compiled();
    for (page, blocks) in blocks("rust") {
        let name = page.path.display().to_string();
        assert!(compiled.contains(&format!("/{name}\"")), "{name} is in no list of pages that are compiled");
        for block in blocks {
            assert!(
                matches!(&*block.info, "rust" | "rust,no_run"),
                "{name}: {:?} is not compiled",
                block.info
            );
        }
    }
}

#[test]
fn every_feature_stands_in_the_tables() {
    let manifest = fs::read_to_string(root().join("Cargo.toml")).unwrap().parse::<toml::Table>().unwrap();
    let features = manifest["features"].as_table().unwrap();
    let defaults = features["default"].as_array().unwrap();
    for file in ["README.md", "src/lib.rs"] {
        let text = fs::read_to_string(root().join(file)).unwrap();
        for feature in features.keys().filter(|feature| *feature != "default") {
            let is_default = defaults.iter().any(|default| default.as_str() == Some(feature));
            let says = if is_default { "| yes |" } else { "| no |" };
            let row = text.lines().find(|line| line.contains(&format!("`{feature}`")) && line.contains(says));
            assert!(row.is_some(), "{file}: no row of `{feature}` that says {says}");
        }
    }
}

/// A provider may do more than look up, store and remove: what it is, and what is weaker without it, stands there.
#[test]
fn the_page_on_backends_has_every_method_of_a_provider() {
    let page = fs::read_to_string(root().join("docs/writing-a-backend.md")).unwrap();
    let source = fs::read_to_string(root().join("cache-core/src/provider.rs")).unwrap();
    let (_, body) = source.split_once("pub trait CacheProvider").unwrap();
    let methods = body.lines().take_while(|line| *line != "}").filter_map(|line| {
        let line = line.strip_prefix("    ")?;
        line.strip_prefix("async fn ").or_else(|| line.strip_prefix("fn "))?.split('(').next()
    });
    let methods: Vec<&str> = methods.collect();
    assert!(methods.len() > 15, "{methods:?}");
    for method in methods {
        // Single keys follow from batches.
        let known = ["get", "put", "remove"].contains(&method);
        let written = page.contains(&format!("fn {method}(")) || page.contains(&format!("| `{method}` |"));
        assert!(known || written, "docs/writing-a-backend.md does not have `{method}`");
    }
}

/// Names in `${NAME}`.
fn references(text: &str) -> Vec<String> {
    let inner = text.split("${").skip(1).filter_map(|rest| rest.split_once('}'));
    inner.map(|(name, _)| name.split(":-").next().unwrap().to_owned()).collect()
}

async fn read(format: Format, text: &str) -> Result<Caches, Error> {
    // As an application may have.
    #[derive(serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Settings {
        #[serde(rename = "folder")]
        _folder: traced_cache::config::FilePath,
    }
    let authority = test_servers::Authority::new();
    let variables = references(text).into_iter().map(|name| {
        let value = match &*name {
            "CA_FILE" => authority.ca_file().display().to_string(),
            _ if name.contains("KEY") => "5a".repeat(32),
            _ => "x".to_owned(),
        };
        (name, value)
    });
    let builder = Caches::builder().variables(variables.collect::<Vec<_>>());
    let builder = builder.backend("files", |_: Settings| Ok::<_, Error>(MapProvider::new()));
    builder.from_text(format, text).await
}

#[tokio::test]
async fn every_configuration_is_accepted() {
    let mut count = 0;
    for (language, format) in [("toml", Format::Toml), ("json", Format::Json), ("yaml", Format::Yaml)] {
        let found = if language == "toml" { blocks(language) } else { page_blocks(language) };
        for (page, blocks) in found {
            for block in blocks {
                if language == "json" && !["caches", "providers"].iter().any(|part| block.text.contains(part))
                {
                    // Lines of JSON that something else reads or writes.
                    for line in block.text.lines() {
                        let read = serde_json::from_str::<serde_json::Value>(line);
                        read.unwrap_or_else(|error| panic!("{}: {error}: {line}", page.path.display()));
                    }
                } else if ["dependencies]", "[features]"].iter().any(|part| block.text.contains(part)) {
                    check_manifest(&page, &block.text);
                } else if let Err(error) = read(format, &block.text).await {
                    panic!("{}: {error}\n{}", page.path.display(), block.text);
                }
                count += 1;
            }
        }
    }
    assert!(count > 5, "{count}");
}

fn page_blocks(language: &str) -> Vec<(Page, Vec<Block>)> {
    let has = |page: &Page| page.blocks.iter().any(|block| block.is(language));
    if page::all().iter().any(has) { blocks(language) } else { Vec::new() }
}

/// What a user is told to write into Cargo.toml: our own crates in this version, with features that they have.
fn check_manifest(page: &Page, text: &str) {
    let place = page.path.display();
    let manifest: toml::Table = text.parse().unwrap_or_else(|e| panic!("{place}: {e}"));
    for (_, section) in manifest.iter().filter(|(name, _)| name.ends_with("dependencies")) {
        for (name, dependency) in section.as_table().unwrap() {
            let folder = if name == "traced-cache" { root() } else { root().join(name) };
            let Ok(ours) = fs::read_to_string(folder.join("Cargo.toml")) else { continue };
            let ours: toml::Table = ours.parse().unwrap();
            let version = dependency.as_str().or_else(|| dependency.get("version")?.as_str()).unwrap();
            assert!(env!("CARGO_PKG_VERSION").starts_with(version), "{place}: {name} {version}");
            let features = ours.get("features").and_then(toml::Value::as_table);
            let has: HashSet<&str> =
                features.into_iter().flat_map(toml::Table::keys).map(String::as_str).collect();
            let wanted = dependency.get("features").and_then(toml::Value::as_array).into_iter().flatten();
            for feature in wanted.map(|feature| feature.as_str().unwrap()) {
                assert!(has.contains(feature), "{place}: {name} has no feature {feature}");
            }
        }
    }
}
