//! A Prometheus with the rules that this repository ships, and the queries of its dashboard.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use serde_json::Value;
use test_servers::PrometheusServer;

/// A file of examples/observability.
pub(crate) fn shipped(path: &str) -> String {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"));
    // Of the workspace, or of an example beside it.
    let folders = ["examples/observability", "../observability"].map(|at| folder.join(at));
    let folder: &PathBuf = folders.iter().find(|at| at.is_dir()).unwrap();
    fs::read_to_string(folder.join(path)).unwrap()
}

/// The rules in fast motion.
fn hurried(rules: &str) -> String {
    let mut rules = rules.replace("[5m]", "[10s]").replace("[10m]", "[10s]");
    for time in ["for: 1m", "for: 5m", "for: 10m"] {
        rules = rules.replace(time, "for: 1s");
    }
    rules
}

fn encoded(text: &str) -> String {
    text.bytes()
        .map(|byte| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'_' | b'.' => char::from(byte).to_string(),
            other => format!("%{other:02X}"),
        })
        .collect()
}

pub(crate) struct Prometheus(PrometheusServer);

impl Prometheus {
    /// Scrapes processes twice a second.
    pub(crate) fn of(targets: &[String]) -> Option<Self> {
        let config = format!(
            "global: {{ scrape_interval: 500ms, evaluation_interval: 500ms }}\n\
             rule_files: [recording.yml, alerts.yml]\n\
             scrape_configs: [{{ job_name: service, static_configs: [{{ targets: {targets:?} }}] }}]\n"
        );
        let files = [
            ("prometheus.yml".to_owned(), config),
            ("recording.yml".to_owned(), hurried(&shipped("prometheus/recording.yml"))),
            ("alerts.yml".to_owned(), hurried(&shipped("prometheus/alerts.yml"))),
        ];
        PrometheusServer::start(&files).map(Self)
    }

    pub(crate) fn api(&self, path: &str) -> Value {
        let body = self.0.get(&format!("/api/v1/{path}")).unwrap();
        serde_json::from_str(&body).unwrap_or_else(|error| panic!("{path}: {error} in {body}"))
    }

    /// How many series answer, or what is wrong with the query.
    pub(crate) fn answers(&self, query: &str) -> Result<usize, String> {
        let answer = self.api(&format!("query?query={}", encoded(query)));
        match answer["data"]["result"].as_array() {
            Some(series) if answer["status"] == "success" => Ok(series.len()),
            _ => Err(answer["error"].to_string()),
        }
    }

    /// The names of alerts that fire.
    pub(crate) fn firing(&self) -> Vec<String> {
        let answer = self.api("alerts");
        let alerts = answer["data"]["alerts"].as_array().cloned().unwrap_or_default();
        let firing = alerts.into_iter().filter(|alert| alert["state"] == "firing");
        firing.filter_map(|alert| alert["labels"]["alertname"].as_str().map(str::to_owned)).collect()
    }

    pub(crate) fn log(&self) -> String {
        self.0.log()
    }
}

/// Every query of the dashboard, by its panel, as it is asked with all jobs and caches chosen.
pub(crate) fn queries() -> BTreeMap<String, Vec<String>> {
    let dashboard: Value = serde_json::from_str(&shipped("grafana/traced-cache.json")).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    let mut all = BTreeMap::new();
    for panel in panels.iter().filter(|panel| panel["type"] != "row") {
        let targets = panel["targets"].as_array().unwrap().iter();
        let of = targets.map(|target| {
            let query = target["expr"].as_str().unwrap();
            query.replace("$job", ".*").replace("$cache", ".*").replace("$__rate_interval", "10s")
        });
        let title = panel["title"].as_str().unwrap().to_owned();
        assert!(all.insert(title, of.collect()).is_none(), "one title a panel");
    }
    assert!(all.len() > 30);
    all
}
