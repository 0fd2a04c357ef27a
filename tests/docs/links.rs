//! Links.

use std::{
    fs,
    path::{Component, PathBuf},
};

use crate::page::{self, root};

/// The target from the root, without `..`.
fn plain(path: PathBuf) -> PathBuf {
    let mut out = PathBuf::new();
    for part in path.components() {
        match part {
            Component::ParentDir => assert!(out.pop(), "{} leads out of the repository", path.display()),
            Component::CurDir => {}
            part => out.push(part),
        }
    }
    out
}

#[test]
fn every_link_within_the_repository_leads_somewhere() {
    let pages = page::all();
    let mut wrong = Vec::new();
    let mut count = 0;
    for page in &pages {
        for link in page.links.iter().filter(|link| !link.contains("://") && !link.starts_with("mailto:")) {
            count += 1;
            let (path, anchor) = link.split_once('#').map_or((link.as_str(), None), |(p, a)| (p, Some(a)));
            let target = match path {
                "" => page.path.clone(),
                path => plain(page.path.parent().unwrap().join(path)),
            };
            let known = anchor.is_none_or(|anchor| {
                let page = pages.iter().find(|page| page.path == target);
                page.is_some_and(|page| page.anchors.iter().any(|known| known == anchor))
            });
            if !root().join(&target).exists() || !known {
                wrong.push(format!("{}: {link}", page.path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "these lead nowhere:\n{}", wrong.join("\n"));
    assert!(count > 60, "{count}");
}

/// The front page on docs.rs names files of the repository by their whole address.
#[test]
fn every_address_of_this_repository_is_that_of_a_file() {
    const HERE: &str = concat!(env!("CARGO_PKG_REPOSITORY"), "/blob/main/");
    let source = fs::read_to_string(root().join("src/lib.rs")).unwrap();
    let files: Vec<&str> = source.split(HERE).skip(1).map(|rest| rest.split(')').next().unwrap()).collect();
    assert!(files.len() > 3, "{files:?}");
    for file in files {
        assert!(root().join(file).is_file(), "src/lib.rs: {HERE}{file}");
    }
}

/// A page that nobody links to is not read.
#[test]
fn every_page_of_docs_is_linked_from_the_readme() {
    let pages = page::all();
    let readme = pages.iter().find(|page| page.path.as_os_str() == "README.md").unwrap();
    for page in pages.iter().filter(|page| page.path.starts_with("docs")) {
        let name = page.path.display().to_string();
        assert!(readme.links.contains(&name), "README.md does not link to {name}");
    }
}
