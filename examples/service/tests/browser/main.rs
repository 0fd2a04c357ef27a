//! The page in a real browser: it lives, a keyboard is enough, both colour schemes can be read, nothing comes from elsewhere.
//!
//! With `SCREENSHOTS=docs/images` (from the root of the workspace) it also makes the pictures of the documentation.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests fail their test")]

mod chromium;
#[path = "../running/mod.rs"]
mod running;

use std::{env, fs, path::PathBuf};

use serde_json::{Value, json};
use tempfile::TempDir;
use test_servers::{RedisServer, Signal};

use crate::{
    chromium::Chromium,
    running::{Running, program, tool},
};

/// Texts that are too faint on what is behind them: below 4.5 to 1, which WCAG's level AA asks for.
const FAINT: &str = r"(() => {
    const rgb = (text) => (text.match(/[\d.]+/g) ?? []).map(Number);
    const light = (color) => {
        const [r, g, b] = rgb(color).map((part) => part / 255)
            .map((part) => part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4);
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const ground = (of) => {
        for (let at = of; at; at = at.parentElement) {
            const color = getComputedStyle(at).backgroundColor;
            if (rgb(color)[3] !== 0) return color;
        }
        return 'rgb(255, 255, 255)';
    };
    const own = (of) => [...of.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
    return [...document.body.querySelectorAll('*')].filter(own).map((of) => {
        const style = getComputedStyle(of);
        const [a, b] = [of.namespaceURI.endsWith('svg') ? style.fill : style.color, ground(of)].map(light);
        return [(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), of.outerHTML.slice(0, 80)];
    }).filter(([ratio, of]) => ratio < 4.5 && !of.startsWith('<title'));
})()";

fn load(service: &Running, seconds: &str) {
    let mut load = tool(env!("CARGO_BIN_EXE_load"), service);
    let done = load.args(["--seconds", seconds, "--rate", "1000", "--json"]).output().unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
}

#[test]
fn the_page_lives_reads_well_and_needs_no_mouse() {
    let Some(mut browser) = Chromium::start("secret") else { return };
    let Some(redis) = RedisServer::start() else { return };
    let folder = TempDir::new().unwrap();
    let pictures = env::var_os("SCREENSHOTS").map(|to| {
        let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..");
        fs::create_dir_all(root.join(&to)).unwrap();
        root.join(to)
    });
    let pictures = pictures.unwrap_or_else(|| folder.path().to_path_buf());
    let config = folder.path().join("cache.toml");
    let text = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/cache.toml")).unwrap();
    // So small that the second level has something to serve.
    let text = text.replace("entries = 4_000", "entries = 1_500");
    let text = text.replace("levels = [\"local\"]", "levels = [\"local\", \"shared\"]");
    fs::write(
        &config,
        format!("{text}\n[providers.shared]\nbackend = \"redis\"\nurl = \"{}\"\n", redis.url()),
    )
    .unwrap();
    let mut command = program(folder.path());
    command.args(["--page-password", "secret", "--page-invalidate", "--page-keys", "--config"]).arg(&config);
    let service = Running::start(command);
    let home = format!("http://{}/cache", service.at);
    load(&service, "6");

    // It lives: what happens after it was opened is on it without a reload.
    browser.looks("light", 1280, 420);
    browser.open(&home);
    assert_eq!(browser.eval("document.title"), json!("Airports"));
    assert_eq!(browser.eval("document.querySelectorAll('tbody tr').length"), json!(2));
    browser.eval("window.before = document.querySelector('#caches').innerText; window.stayed = true");
    load(&service, "4");
    browser.until("document.querySelector('#caches').innerText !== window.before && window.stayed === true");

    // A keyboard is enough, and the focus stays where it is while figures change.
    browser.tab();
    assert_eq!(browser.eval("document.activeElement.textContent"), json!("Skip to the figures"));
    browser.tab_to("it.id === 'pause'");
    browser.tab_to("it.id === 'to-airports'");
    browser.eval("window.old = document.activeElement");
    browser.until("document.activeElement.id === 'to-airports' && document.activeElement !== window.old");
    browser.picture(&pictures.join("page.png"));
    browser.looks("dark", 1280, 420);
    browser.picture(&pictures.join("page-dark.png"));
    browser.enter();
    browser.until("location.pathname === '/cache/caches/airports' && document.readyState === 'complete'");

    // A key is looked up; the browser is asked for the password, and knows it.
    browser.tab_to("it.id === 'key'");
    browser.call("Input.insertText", json!({ "text": "EDDF" }));
    browser.enter();
    browser.until("document.querySelector('.answer')?.innerText.includes('Key EDDF') ?? false");
    assert!(!browser.eval("location.href").as_str().unwrap().contains("EDDF"), "keys are in no address");
    assert!(service.get("/airport/EDDF").contains("Frankfurt"));
    browser.tab_to("it.value === 'look-up'");
    browser.eval("window.old = true");
    browser.enter();
    browser.until("window.old !== true && document.readyState === 'complete'");
    browser.until("document.querySelector('.answer')?.innerText.includes('answered by l1') ?? false");
    let answer = browser.eval("document.querySelector('.answer').innerText");
    let answer = answer.as_str().unwrap();
    assert!(answer.contains("country:DE") && answer.contains("l2 redis: hit"), "{answer}");
    assert!(!answer.contains("Frankfurt"), "values are not shown: {answer}");
    for scheme in ["light", "dark"] {
        browser.looks(scheme, 1280, 1500);
        let faint = browser.eval(FAINT);
        assert_eq!(faint, json!([]), "{scheme}");
        let name = if scheme == "light" { "page-cache.png" } else { "page-cache-dark.png" };
        browser.picture(&pictures.join(name));
    }
    let grounds = ["light", "dark"].map(|scheme| {
        browser.looks(scheme, 1280, 800);
        browser.eval("getComputedStyle(document.body).backgroundColor")
    });
    assert_ne!(grounds[0], grounds[1]);

    // It is made to go, which the browser confirms.
    browser.tab_to("it.value === 'invalidate'");
    browser.enter();
    browser.until("document.querySelector('.answer')?.innerText.includes('every level has it') ?? false");

    // A small screen scrolls tables, not the page.
    browser.looks("light", 380, 800);
    for at in ["/cache", "/cache/caches/airports"] {
        browser.open(&format!("http://{}{at}", service.at));
        let wide = browser.eval("document.scrollingElement.scrollWidth");
        assert!(wide.as_u64().unwrap() <= 380, "{at} is {wide} wide");
    }

    // A bad night is seen without a reload.
    browser.looks("light", 1280, 800);
    browser.open(&home);
    redis.kill();
    for _ in 0..200 {
        service.get("/airport/XXXX");
        service.get(&format!("/airport/X{}", fastrand::u16(100..999)));
    }
    browser.until("document.querySelector('#caches').innerText.includes('l2 breaker')");

    let away = browser
        .asked
        .iter()
        .find(|url| !url.starts_with(&format!("http://{}/", service.at)) && !url.starts_with("data:"));
    assert_eq!(away, None, "nothing comes from elsewhere");
    // The question for the password is one.
    let troubles: Vec<_> = browser.troubles.iter().filter(|trouble| !trouble.contains("401")).collect();
    assert_eq!(troubles, Vec::<&String>::new());
    assert_ne!(browser.eval("1 + 1"), Value::Null);

    // A service that hangs says nothing at all: the page says so, and goes on when that is over.
    service.signal(Signal::STOP);
    browser.until("document.getElementById('state').textContent.includes('does not answer')");
    service.signal(Signal::CONT);
    browser.until("document.getElementById('state').textContent === ''");
}
