//! The rules, by their own unit tests.

use std::{fs, path::PathBuf};

use test_servers::promtool;

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("examples/observability/prometheus")
}

#[test]
fn rules_and_configurations_are_right() {
    for arguments in [
        &["check", "rules", "recording.yml", "alerts.yml"][..],
        &["check", "config", "prometheus.yml"],
        &["check", "config", "compose.yml"],
        &["test", "rules", "alerts_test.yml"],
    ] {
        let Some(output) = promtool(&folder(), arguments) else { return };
        assert!(output.status.success(), "{arguments:?}: {output:?}");
    }
}

/// Each alert has a test, and the tests fail by mistakes such as these.
#[test]
fn a_rule_that_is_wrong_fails_its_test() {
    let read = |name: &str| fs::read_to_string(folder().join(name)).unwrap();
    let (alerts, tests) = (read("alerts.yml"), read("alerts_test.yml"));
    for alert in alerts.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")) {
        assert!(tests.contains(&format!("- alertname: {alert}\n")), "{alert} has no test");
    }
    let mistakes = [
        ("rate5m < 0.8", "rate5m < 0.75"),
        ("cache:lookups:rate5m > 1\n", "cache:lookups:rate5m > 0.3\n"),
        (r#"p99_5m{cache_operation!="warm"} > 0.05"#, r#"p99_5m{cache_operation!="warm"} > 0.1"#),
        (r#"{cache_operation!="warm"}"#, ""),
        (r#"cache_breaker_state!="closed""#, r#"cache_breaker_state="half_open""#),
        ("          ) > 0.05\n", "          ) > 0.08\n"),
        ("rate(cache_level_errors_total[5m]) or rate", "rate"),
        (" and on (job, db_client_name, server_address, server_port) redis:keyspace_lookups:rate5m > 1", ""),
        ("> 524288", "> 1048576"),
        ("cache_journal_depth[3m]) > 0", "cache_journal_depth[3m]) > 5"),
        ("(cache_journal_depth and min_over_time(cache_journal_depth[3m]) > 0)", "(cache_journal_depth) > 0"),
        ("rate5m > 0.1", "rate5m > 0.2"),
        ("(cache:lookups:rate5m > 0) > 0.05", "(cache:lookups:rate5m > 0) > 0.08"),
        ("gaps_total[10m])) > 5", "gaps_total[10m])) > 2"),
        (
            "max by (job, cache_name) (increase(cache_backplane",
            "sum by (job, cache_name) (increase(cache_backplane",
        ),
        ("max by (job, cache_name, cache_level)", "sum by (job, cache_name, cache_level)"),
        ("pending_requests) > 0", "pending_requests) > 5"),
        ("          > 0.1\n", "          > 0.05\n"),
        ("openings_total[5m])) > 3", "openings_total[5m])) > 6"),
        ("redis_up == 0\n        for: 5m", "redis_up == 0\n        for: 1m"),
        ("rate5m < 0.75", "rate5m < 0.8"),
        ("> 0.9\n", "> 0.95\n"),
        (r#"redis_policy!="noeviction""#, r#"redis_policy="never""#),
    ];
    // Each run of promtool takes seconds of one processor.
    let at_once = std::thread::available_parallelism().map_or(1, usize::from);
    let noticed = |(right, wrong): &(&str, &str)| {
        assert!(alerts.contains(right), "{right}");
        let temporary = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(temporary.path().join(name), text).unwrap();
        write("alerts.yml", &alerts.replacen(right, wrong, 1));
        write("recording.yml", &read("recording.yml"));
        write("alerts_test.yml", &tests);
        let Some(output) = promtool(temporary.path(), &["test", "rules", "alerts_test.yml"]) else { return };
        assert!(!output.status.success(), "nobody noticed `{wrong}` in place of `{right}`");
    };
    std::thread::scope(|scope| {
        for mistakes in mistakes.chunks(mistakes.len().div_ceil(at_once)) {
            scope.spawn(|| mistakes.iter().for_each(noticed));
        }
    });
}
