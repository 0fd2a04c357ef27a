//! `check`, `explain`, and command lines that are wrong.

use test_servers::Authority;

use crate::kit::{Place, Servers, command, layered, run, utf8};

#[test]
fn check_tells_what_is_right_and_what_does_not_answer() {
    let servers = Servers::start();
    for url in servers.urls() {
        let place = Place::new(&layered(&url, ""));
        let (code, json) = place.json("check", &[]);
        assert_eq!((code, &json["fine"]), (0, &true.into()), "{json}");
        assert_eq!(json["caches"], serde_json::json!(["users"]));
        let shared = &json["providers"][1];
        assert_eq!((&shared["name"], &shared["answers"]), (&"shared".into(), &true.into()));
        let text = place.run("check", &[]);
        assert!(text.out.contains(": right; 1 cache") && text.out.contains(", answers"), "{text:?}");
        assert!(text.err.is_empty());
    }
    let place = Place::new(&layered("redis://127.0.0.1:1", ""));
    let (code, json) = place.json("check", &[]);
    assert_eq!((code, &json["fine"], &json["providers"][1]["answers"]), (1, &false.into(), &false.into()));
    // Who reads that the file is not right looks for a mistake in it.
    let text = place.run("check", &[]).out;
    assert!(text.contains(": right, but a server cannot be used; 1 cache\n"), "{text}");
    let (code, json) = place.json("check", &["--offline"]);
    assert_eq!((code, &json["providers"][1]["answers"]), (0, &serde_json::Value::Null));
}

/// A program that reads the answer hears of the same as who reads the text.
#[test]
fn check_has_the_advice_of_each_cache_in_json_too() {
    let place = Place::new(&layered("redis://127.0.0.1:1", ""));
    let text = place.run("check", &["--offline"]).out;
    let said: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("advice: ")).collect();
    assert!(said.iter().any(|line| line.starts_with("users: ")), "{text}");
    assert_eq!(place.json("check", &["--offline"]).1["advice"], serde_json::json!(said));
}

/// The server answers, and the caches' memory would hear nothing.
#[test]
fn check_tries_the_backplane() {
    let Some(server) = Servers::start().redis else { return };
    let user = ["ACL", "SETUSER", "ann", "on", ">hunter2", "~*", "&*", "+@all", "-subscribe"];
    server.command::<()>(&user).unwrap();
    let anns = format!("redis://ann:hunter2@{}", server.addr());
    let file = |url: &str, tracking: bool| {
        let text = layered(url, "backplane = 'shared'\n");
        text.replace("[caches.", &format!("tracking = {tracking}\n[caches."))
    };
    for (url, tracking) in [(&server.url(), true), (&server.url(), false), (&anns, true)] {
        let place = Place::new(&file(url, tracking));
        let (code, json) = place.json("check", &[]);
        let shared = &json["providers"][1];
        assert_eq!((code, &shared["backplane_up"]), (0, &true.into()), "{json}");
        assert_eq!(json["providers"][0]["backplane_up"], serde_json::Value::Null);
        let text = place.run("check", &[]).out;
        assert!(text.contains(", answers, its backplane is up\n") || text.ends_with("is up\n"), "{text}");
    }
    let place = Place::new(&file(&anns, false));
    let (code, json) = place.json("check", &[]);
    let shared = &json["providers"][1];
    assert_eq!((code, &json["fine"], &shared["answers"]), (1, &false.into(), &true.into()));
    assert_eq!(shared["backplane_up"], false);
    let text = place.run("check", &[]).out;
    assert!(text.contains(": right, but a backplane is down; 1 cache\n"), "{text}");
    let says = |what: &str| text.contains(what);
    assert!(says(", answers, BACKPLANE IS DOWN: ") && says("NOPERM") && says("grant +subscribe"), "{text}");
    assert!(!says("hunter2"), "{text}");
    let (_, json) = place.json("check", &["--offline"]);
    assert_eq!(json["providers"][1]["backplane_up"], serde_json::Value::Null);
    // Of what does not answer that is said, and not twice.
    let (code, json) = Place::new(&file("redis://127.0.0.1:1", true)).json("check", &[]);
    let shared = &json["providers"][1];
    assert_eq!(
        (code, &shared["answers"], &shared["backplane_up"]),
        (1, &false.into(), &serde_json::Value::Null)
    );
}

/// As many as the application would tell of, also of what is no error of `explain` where it stands alone.
#[test]
fn all_mistakes_of_a_file_are_told_at_once() {
    let text = "[providers.local]\nbackend = 'memory'\nentries = 0\n\
                [providers.far]\nbackend = 'redis'\nurl = 'redis://h'\npasswort = '${NOBODY_SAYS_IT}'\n\
                [caches.users]\nlevels = ['local']\npolicy = { ttl = 5 }\n";
    let place = Place::new(text);
    for verb in ["check", "explain"] {
        let ended = place.run(verb, &[]);
        assert_eq!((ended.code, ended.out.as_str()), (2, ""));
        let told: Vec<_> = ended.err.lines().filter_map(|line| line.split("cache.toml:").nth(1)).collect();
        let starts = told.iter().map(|line| line.split([':', ' ']).nth(2).unwrap_or_default());
        assert_eq!(
            starts.collect::<Vec<_>>(),
            ["providers.local.entries", "providers.far.passwort", "caches.users.policy.ttl"],
            "{ended:?}"
        );
    }
}

#[test]
fn a_file_that_is_wrong_is_one_line_with_field_value_and_fix() {
    let text = "[providers.local]\nbackend = 'memory'\nentries = 9\n\
                [caches.users]\nlevels = ['local']\npolicy = { ttl = 5 }\n";
    let place = Place::new(text);
    for verb in ["check", "explain"] {
        let ended = place.run(verb, &[]);
        assert_eq!((ended.code, ended.out.as_str()), (2, ""));
        let error = ended.error();
        assert!(error.starts_with("error: ") && error.contains("cache.toml:6"), "{error}");
        assert!(error.contains("caches.users.policy.ttl = 5"), "{error}");
    }
    let ended = place.run("get", &["users", "1", "--json"]);
    let error: serde_json::Value = serde_json::from_str(ended.error()).unwrap();
    assert_eq!((ended.code, &error["exit"]), (2, &2.into()));
    assert!(error["error"].as_str().unwrap().contains("policy.ttl = 5"));
    // What cannot be built here is a problem of `check`, and of `explain` a part of the answer.
    let place = Place::new(
        "[providers.local]\nbackend = 'memory'\nentries = 0\n[caches.users]\nlevels = ['local']\n",
    );
    let (code, json) = place.json("check", &[]);
    assert!(
        code == 1 && json["problems"][0].as_str().unwrap().contains("providers.local.entries = 0"),
        "{json}"
    );
    assert_eq!(place.json("explain", &[]).0, 0);
    let ended = run(["check", "nowhere.toml"]);
    assert_eq!(ended.code, 2);
    assert!(ended.error().contains("nowhere.toml: cannot be read"), "{ended:?}");
}

#[test]
fn explain_shows_each_setting_with_its_origin_and_no_secret() {
    let text = "[providers.shared]\nbackend = 'redis'\nurl = 'redis://:hunter2@127.0.0.1:1'\npassword = 'hunter2'\n\
                [caches.users]\nlevels = ['shared']\npolicy = { ttl = '90s' }\n";
    let place = Place::new(text);
    let (code, json) = place.json("explain", &[]);
    let settings = json["caches"][0]["settings"].as_array().unwrap();
    let ttl = settings.iter().find(|setting| setting["name"] == "policy.ttl").unwrap();
    assert_eq!((code, &ttl["value"]), (0, &"1m 30s".into()), "{ttl}");
    assert!(ttl["origin"].as_str().unwrap().starts_with("cache.toml:7"), "{ttl}");
    for (verb, rest) in
        [("explain", &[][..]), ("check", &[]), ("get", &["users", "1"]), ("inspect", &["users", "1"])]
    {
        for json in [&[][..], &["--json"]] {
            let ended = place.run(verb, &[rest, json].concat());
            assert!(!format!("{ended:?}").contains("hunter2"), "{verb}: {ended:?}");
        }
    }
}

/// The text of a key where the path of its file belongs.
#[test]
fn a_key_in_the_place_of_a_path_is_not_shown() {
    let authority = Authority::new();
    let own = authority.issue(&["localhost"]);
    let certificate = utf8(&own.certificate);
    let pem = std::fs::read_to_string(&own.key).unwrap();
    let one_line = pem.replace('\n', " ");
    let secrets: Vec<_> = pem.lines().filter(|line| !line.starts_with("-----")).collect();
    assert!(!secrets.is_empty());
    let text = "it is the text of a key or certificate: write the path of its file";
    for (backend, scheme, plain) in [("redis", "rediss", "redis"), ("memcached", "memcacheds", "memcached")] {
        for (scheme, fields, says) in [
            (
                scheme,
                format!("client_certificate = '{certificate}'\nclient_key = '''{pem}'''\n"),
                format!(":5: providers.shared.client_key = ***: {text}"),
            ),
            (
                scheme,
                format!("client_certificate = '{certificate}'\nclient_key = '{one_line}'\n"),
                format!("client_key = ***: {text}"),
            ),
            (
                scheme,
                format!("client_certificate = '''{pem}'''\nclient_key = '''{pem}'''\n"),
                format!("client_certificate = ***: {text}"),
            ),
            (scheme, format!("ca_file = '''{pem}'''\n"), format!("ca_file = ***: {text}")),
            (
                scheme,
                format!("tls_server_name = '''{pem}'''\n"),
                "tls_server_name = ***: give a host name".to_owned(),
            ),
            (plain, format!("ca_file = '''{pem}'''\n"), "ca_file = ***: it is for TLS".to_owned()),
        ] {
            let place = Place::new(&format!(
                "[providers.shared]\nbackend = '{backend}'\nurl = '{scheme}://127.0.0.1:1'\n{fields}\
                 [caches.users]\nlevels = ['shared']\n"
            ));
            for (verb, rest) in [("check", &["--offline"][..]), ("explain", &[]), ("get", &["users", "1"])] {
                for json in [&[][..], &["--json"]] {
                    let ended = place.run(verb, &[rest, json].concat());
                    let all = [ended.out.as_str(), &ended.err].concat();
                    assert!(all.contains(&says), "{verb}: {all}");
                    assert!(!secrets.iter().any(|line| all.contains(line)), "{verb}: {all}");
                }
            }
        }
    }
}

#[test]
fn variables_override_as_they_do_in_the_application() {
    let place = Place::new(&layered("redis://127.0.0.1:1", ""));
    let ttl = |variable: &str, more: &[&str]| {
        let mut command = command();
        command.arg("explain").arg(&place.file).args(more).env(variable, "7s");
        let out = String::from_utf8(command.output().unwrap().stdout).unwrap();
        let line = out.lines().find(|line| line.contains("policy.ttl ")).unwrap();
        line.contains("7s")
    };
    assert!(ttl("TRACED_CACHE__CACHES__USERS__POLICY__TTL", &[]));
    assert!(ttl("SHOP__CACHES__USERS__POLICY__TTL", &["--env-prefix", "SHOP"]));
    assert!(!ttl("TRACED_CACHE__CACHES__USERS__POLICY__TTL", &["--env-prefix", "off"]));
}

#[test]
fn command_lines_that_are_wrong_end_with_two() {
    let place = Place::new(&layered("redis://127.0.0.1:1", ""));
    let file = place.file.to_str().unwrap();
    for (arguments, says) in [
        (&["frobnicate"][..], "unrecognized subcommand"),
        (&["get", file], "<CACHE>"),
        (&["get", file, "users"], "KEY = none"),
        (&["get", file, "users", ""], "a key has at least one character"),
        (&["inspect", file, "users"], "<KEY>"),
        (&["get", file, "nobody", "1"], "has no such cache; use `users`"),
        (&["inspect", file, "user", "1"], "users"),
        (&["invalidate", file, "users"], "name a key, a tag with --tag"),
        (&["invalidate", file, "users", "1", "--wait", "5"], "--wait"),
        (&["invalidate", file, "users", "--tag", ""], "a tag of 0 bytes"),
        (&["clear", file, "users"], "--yes = missing"),
        (&["completions", "teash"], "teash"),
    ] {
        let ended = run(arguments.iter().copied());
        assert_eq!(ended.code, 2, "{arguments:?}: {ended:?}");
        assert!(ended.err.contains(says), "{arguments:?}: {ended:?}");
        assert!(ended.out.is_empty());
    }
}

/// A URL in the place of a file: somebody has left out `--url`.
#[test]
fn a_password_where_none_belongs_is_not_shown() {
    let place = Place::new(&layered("redis://127.0.0.1:1", ""));
    let (file, url) = (utf8(&place.file), "http://ann:hunter2@127.0.0.1:1/metrics");
    for (arguments, says) in [
        (&["watch", url][..], "use --url"),
        (&["stats", url], "use --url"),
        (&["check", url], "use --url"),
        (&["explain", url], "use --url"),
        (&["get", url, "users", "1"], "use --url"),
        (&["watch", file, url], "unexpected argument"),
    ] {
        for json in [&[][..], &["--json"]] {
            let ended = run([arguments, json].concat());
            assert!(ended.code == 2 && ended.err.contains(says), "{ended:?}");
            assert!(!format!("{ended:?}").contains("hunter2"), "{ended:?}");
        }
    }
}

#[test]
fn errors_are_json_where_answers_are() {
    for arguments in [
        &["frobnicate", "--json"][..],
        &["get", "--json"],
        &["get", "no-such\u{9b}.toml", "users", "1", "--json"],
    ] {
        let ended = run(arguments.iter().copied());
        let error: serde_json::Value = serde_json::from_str(ended.error()).unwrap();
        assert_eq!((ended.code, &error["exit"]), (2, &2.into()), "{ended:?}");
        assert!(!error["error"].as_str().unwrap().is_empty() && ended.out.is_empty());
        assert!(!ended.error().contains(char::is_control), "{ended:?}");
    }
}

#[test]
fn what_lives_in_an_applications_memory_is_not_seen_from_here() {
    let text = "[providers.local]\nbackend = 'memory'\nentries = 10\n[caches.users]\nlevels = ['local']\n";
    let place = Place::new(text);
    for (verb, rest) in
        [("get", &["users", "1"][..]), ("invalidate", &["users", "1"]), ("clear", &["users", "--yes"])]
    {
        let ended = place.run(verb, rest);
        assert_eq!(ended.code, 2, "{ended:?}");
        assert!(ended.error().contains("CACHE = users: it lives in the memory of its application only"));
    }
    let (code, seen) = place.json("inspect", &["users", "1"]);
    assert_eq!((code, &seen["levels"][0]["state"]), (3, &"elsewhere".into()));
    let text = place.run("inspect", &["users", "1"]).out;
    assert!(text.contains("which is not seen from here") && text.contains("ask the application"), "{text}");
}

#[test]
fn help_names_every_verb_with_an_example() {
    let help = run(["--help"]);
    assert_eq!(help.code, 0);
    assert!(help.out.contains("Exit codes:"));
    for verb in [
        "check",
        "explain",
        "get",
        "inspect",
        "invalidate",
        "clear",
        "warm",
        "stats",
        "watch",
        "replay",
        "bench",
    ] {
        assert!(help.out.contains(verb));
        let of_verb = run([verb, "--help"]);
        assert!(of_verb.out.contains("Example") && of_verb.out.contains("--json"), "{of_verb:?}");
    }
    for shell in ["bash", "zsh", "fish"] {
        let script = run(["completions", shell]);
        assert!(script.code == 0 && script.out.contains("invalidate"), "{shell}");
    }
}
