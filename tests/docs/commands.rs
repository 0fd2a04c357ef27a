//! Commands in blocks of shell: what they start exists. `scripts/readme` runs those of README.md.

use std::fs;

use crate::page::{self, root};

fn lines() -> Vec<(String, String)> {
    let mut lines = Vec::new();
    for page in page::all() {
        let name = page.path.display().to_string();
        for block in page.blocks.iter().filter(|block| block.is("sh")) {
            let whole = block.text.replace("\\\n", " ");
            let said = whole.lines().map(|line| line.split(" #").next().unwrap_or_default().trim());
            lines.extend(said.filter(|line| !line.is_empty()).map(|line| (name.clone(), line.to_owned())));
        }
    }
    assert!(lines.len() > 10, "{}", lines.len());
    lines
}

fn after<'a>(words: &[&'a str], option: &str) -> Option<&'a str> {
    words.windows(2).find(|pair| pair[0] == option).map(|pair| pair[1])
}

fn packages() -> Vec<String> {
    let workspace = fs::read_to_string(root().join("Cargo.toml")).unwrap().parse::<toml::Table>().unwrap();
    let members = workspace["workspace"]["members"].as_array().unwrap();
    let folders = members.iter().map(|member| member.as_str().unwrap());
    let name = |folder: &str| {
        let manifest = fs::read_to_string(root().join(folder).join("Cargo.toml")).unwrap();
        manifest.parse::<toml::Table>().unwrap()["package"]["name"].as_str().unwrap().to_owned()
    };
    folders.chain(["."]).map(name).collect()
}

/// Of the command, from its options.
fn verbs() -> Vec<String> {
    let options = fs::read_to_string(root().join("traced-cache-cli/src/options.rs")).unwrap();
    let (_, after) = options.split_once("enum Verb {").unwrap();
    let variants = after.lines().take_while(|line| *line != "}").filter_map(|line| line.strip_prefix("    "));
    let is_variant = |line: &&str| line.starts_with(|first: char| first.is_ascii_uppercase());
    let name = |line: &str| line.split(['(', ' ', ',']).next().unwrap().to_lowercase();
    variants.filter(is_variant).map(name).collect()
}

#[test]
fn every_command_starts_something_that_exists() {
    let (packages, verbs) = (packages(), verbs());
    for (page, line) in lines() {
        // Variables come before the command.
        let is_variable = |word: &&str| word.split_once('=').is_some_and(|(name, _)| !name.starts_with('-'));
        let words: Vec<&str> = line.split_whitespace().skip_while(is_variable).collect();
        // A page of a crate of its own is about that, a command about the one it names.
        let mut homes = vec![root(), root().join(&page).parent().unwrap().to_owned()];
        homes.extend(after(&words, "-p").map(|package| root().join(package)));
        let is = |folder: &str, name: &str| {
            let at = homes.iter().map(|home| home.join(folder).join(name));
            at.into_iter().any(|at| at.is_dir() || at.with_extension("rs").is_file())
        };
        let known = match words[0] {
            "cargo" => {
                let target = [("--example", "examples"), ("--bench", "benches"), ("--test", "tests")];
                let target = target
                    .iter()
                    .all(|(option, folder)| after(&words, option).is_none_or(|name| is(folder, name)));
                let package = |name: &str| packages.iter().any(|known| known == name);
                let paths = ["--path", "--manifest-path"];
                let paths = paths
                    .iter()
                    .all(|option| after(&words, option).is_none_or(|path| root().join(path).exists()));
                target && paths && after(&words, "-p").is_none_or(package)
            }
            "traced-cache" => verbs.iter().any(|verb| verb == words[1]),
            script if script.contains('/') => root().join(script).is_file(),
            // Of other programs we know nothing, but which ones a reader needs.
            other => ["curl", "docker", "git", "redis-server", "memcached", "cd"].contains(&other),
        };
        assert!(known, "{page}: {line}");
        // Files of the repository that are arguments.
        let file = |word: &&&str| word.starts_with("examples/") || word.starts_with("docs/");
        for word in words.iter().filter(file) {
            assert!(root().join(word).exists(), "{page}: there is no {word}");
        }
    }
}
