//! A real browser, driven by its own protocol.

use std::{
    collections::HashSet,
    io::{BufRead, BufReader},
    net::TcpStream,
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::{Value, json};
use tempfile::TempDir;
use test_servers::{Server, require};
use tungstenite::{Message, WebSocket};

const PATIENCE: Duration = Duration::from_secs(30);

/// One tab of a headless browser. It accepts what a page asks to have confirmed, and knows a password.
pub(crate) struct Chromium {
    child: Child,
    socket: WebSocket<TcpStream>,
    last: u64,
    session: String,
    password: &'static str,
    /// What went wrong in pages.
    pub(crate) troubles: Vec<String>,
    /// Where requests went.
    pub(crate) asked: HashSet<String>,
    _profile: TempDir,
}

impl Chromium {
    /// `None`: not installed.
    pub(crate) fn start(password: &'static str) -> Option<Self> {
        let program = require(Server::Chromium)?;
        let profile = TempDir::new().unwrap();
        let mut command = Command::new(program);
        command
            .args(["--headless=new", "--remote-debugging-port=0", "--no-first-run", "--disable-gpu"])
            // Containers have a small /dev/shm.
            .args([
                "--disable-dev-shm-usage",
                "--disable-background-networking",
                "--disable-component-update",
            ])
            .arg(format!("--user-data-dir={}", profile.path().display()))
            .env("HOME", profile.path());
        if is_root() {
            // It will not run as root otherwise. The pages are our own.
            command.arg("--no-sandbox");
        }
        let mut child = command.arg("about:blank").stderr(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let at = lines
            .by_ref()
            .find_map(|line| Some(line.unwrap().split_once("DevTools listening on ")?.1.to_owned()));
        let at = at.unwrap_or_else(|| panic!("chromium did not start: {:?}", child.wait()));
        // Whoever is not read is stopped at last.
        std::thread::spawn(move || lines.for_each(drop));
        let stream = TcpStream::connect(at.trim_start_matches("ws://").split('/').next().unwrap()).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let (socket, _) = tungstenite::client(at.as_str(), stream).unwrap();
        let (troubles, asked) = (Vec::new(), HashSet::new());
        let session = String::new();
        let mut browser =
            Self { child, socket, last: 0, session, password, troubles, asked, _profile: profile };
        let targets = browser.call("Target.getTargets", json!({}));
        let tab = targets["targetInfos"]
            .as_array()
            .unwrap()
            .iter()
            .find(|target| target["type"] == "page")
            .unwrap();
        let tab = json!({ "targetId": tab["targetId"], "flatten": true });
        let attached = browser.call("Target.attachToTarget", tab);
        browser.session = attached["sessionId"].as_str().unwrap().to_owned();
        for domain in ["Page", "Runtime", "Log"] {
            browser.call(&format!("{domain}.enable"), json!({}));
        }
        browser.call("Fetch.enable", json!({ "handleAuthRequests": true }));
        Some(browser)
    }

    fn send(&mut self, method: &str, parameters: Value) -> u64 {
        self.last += 1;
        let mut message = json!({ "id": self.last, "method": method, "params": parameters });
        if !self.session.is_empty() {
            message["sessionId"] = json!(self.session);
        }
        self.socket.send(Message::text(message.to_string())).unwrap();
        self.last
    }

    /// The answer; what happens meanwhile is seen to.
    pub(crate) fn call(&mut self, method: &str, parameters: Value) -> Value {
        let asked = parameters.to_string();
        let id = self.send(method, parameters);
        let started = Instant::now();
        loop {
            // Other news may come all the time.
            assert!(started.elapsed() < PATIENCE, "no answer to {method} {asked}; {:?}", self.troubles);
            let text = self.socket.read().unwrap_or_else(|error| panic!("{method}: {error}"));
            let Message::Text(text) = text else { continue };
            let mut message: Value = serde_json::from_str(&text).unwrap();
            if message["id"] == json!(id) {
                return message["result"].take();
            }
            if message.get("method").is_some() {
                self.event(&message);
            }
        }
    }

    fn event(&mut self, message: &Value) {
        let about = &message["params"];
        match message["method"].as_str().unwrap() {
            "Fetch.requestPaused" => {
                self.asked.insert(about["request"]["url"].as_str().unwrap().to_owned());
                self.send("Fetch.continueRequest", json!({ "requestId": about["requestId"] }));
            }
            "Fetch.authRequired" => {
                let answer =
                    json!({ "response": "ProvideCredentials", "username": "", "password": self.password });
                let answer = json!({ "requestId": about["requestId"], "authChallengeResponse": answer });
                self.send("Fetch.continueWithAuth", answer);
            }
            "Page.javascriptDialogOpening" => {
                self.send("Page.handleJavaScriptDialog", json!({ "accept": true }));
            }
            "Runtime.exceptionThrown" => self.troubles.push(about.to_string()),
            "Log.entryAdded" => self.troubles.push(about["entry"]["text"].to_string()),
            _ => {}
        }
    }

    pub(crate) fn open(&mut self, url: &str) {
        self.call("Page.navigate", json!({ "url": url }));
        self.until(&format!("location.href === {url:?} && document.readyState === 'complete'"));
    }

    /// What an expression comes to; nothing while a page is on its way.
    pub(crate) fn eval(&mut self, expression: &str) -> Value {
        let asked = json!({ "expression": expression, "returnByValue": true, "awaitPromise": true });
        let mut answer = self.call("Runtime.evaluate", asked);
        let failed = answer["exceptionDetails"]["exception"]["description"].take();
        assert_eq!(failed, Value::Null, "{expression}");
        answer["result"]["value"].take()
    }

    pub(crate) fn until(&mut self, expression: &str) {
        let started = Instant::now();
        while self.eval(expression) != json!(true) {
            let page = || self.eval("location.href + '\\n' + document.body.innerText");
            assert!(
                started.elapsed() < PATIENCE,
                "{expression}\nin {}",
                { page }().as_str().unwrap_or_default()
            );
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    pub(crate) fn press(&mut self, key: &str, code: u32, text: &str) {
        for kind in ["keyDown", "keyUp"] {
            let text = if kind == "keyDown" { text } else { "" };
            let key = json!({
                "type": kind, "key": key, "code": key, "windowsVirtualKeyCode": code, "text": text,
            });
            self.call("Input.dispatchKeyEvent", key);
        }
    }

    pub(crate) fn tab(&mut self) {
        self.press("Tab", 9, "");
    }

    pub(crate) fn enter(&mut self) {
        self.press("Enter", 13, "\r");
    }

    /// Tabs on until an expression about the element that has the focus, `it`, is true.
    pub(crate) fn tab_to(&mut self, wanted: &str) {
        for _ in 0..40 {
            self.tab();
            if self.eval(&format!("(it => Boolean({wanted}))(document.activeElement)")) == json!(true) {
                return;
            }
        }
        panic!("cannot be reached with the keyboard: {wanted}");
    }

    pub(crate) fn looks(&mut self, scheme: &str, width: u32, height: u32) {
        let features = json!([{ "name": "prefers-color-scheme", "value": scheme }]);
        self.call("Emulation.setEmulatedMedia", json!({ "features": features }));
        let size = json!({ "width": width, "height": height, "deviceScaleFactor": 1, "mobile": false });
        self.call("Emulation.setDeviceMetricsOverride", size);
        self.call("Emulation.setScrollbarsHidden", json!({ "hidden": true }));
    }

    pub(crate) fn picture(&mut self, file: &Path) {
        let data = self.call("Page.captureScreenshot", json!({ "format": "png" }));
        let png = STANDARD.decode(data["data"].as_str().unwrap()).unwrap();
        assert!(png.starts_with(b"\x89PNG") && png.len() > 10_000, "{} bytes", png.len());
        std::fs::write(file, png).unwrap();
    }
}

impl Drop for Chromium {
    fn drop(&mut self) {
        // It ends its own helpers.
        self.send_quietly();
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

impl Chromium {
    fn send_quietly(&mut self) {
        let message = json!({ "id": 0, "method": "Browser.close", "params": {} });
        if self.socket.send(Message::text(message.to_string())).is_err() {
            return;
        }
        for _ in 0..100 {
            if self.child.try_wait().is_ok_and(|ended| ended.is_some()) {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

fn is_root() -> bool {
    let id = Command::new("id").arg("-u").output().unwrap();
    id.stdout.trim_ascii() == b"0"
}
