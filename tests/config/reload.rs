//! A file that changes while its caches run.

use std::{fs, path::PathBuf, sync::Arc, time::Duration};

use test_servers::{MemcachedServer, RedisServer, eventually};
use traced_cache::{Caches, ErrorKind, Outcome, Policy, TracedCache, config::Format, ok};

use crate::kit::{sealed, toml};

/// A file that is written anew.
struct File {
    _folder: tempfile::TempDir,
    path: PathBuf,
}

impl File {
    fn new(text: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let file = Self { path: folder.path().join("cache.toml"), _folder: folder };
        file.write(text);
        file
    }

    fn write(&self, text: &str) {
        fs::write(&self.path, text).unwrap();
    }

    async fn load(&self) -> Caches {
        sealed().from_file(&self.path).await.unwrap()
    }
}

async fn fill(cache: &TracedCache<String>, key: &str) {
    cache.get_or_set(key, || async { ok("1".to_owned()) }).await.unwrap();
}

async fn seen(cache: &TracedCache<String>, key: &str) -> (Outcome, Option<usize>) {
    let found = cache.look(key).await.unwrap();
    (found.outcome(), found.level())
}

const IN_MEMORY: (Outcome, Option<usize>) = (Outcome::Hit, Some(0));
const IN_STORE: (Outcome, Option<usize>) = (Outcome::Hit, Some(1));
const MISS: (Outcome, Option<usize>) = (Outcome::Miss, None);

fn memory(policy: &str) -> String {
    format!(
        "[providers.local]\nbackend = \"memory\"\nentries = 100\n[defaults]\nlevels = [\"local\"]\npolicy = {{ {policy} }}\n[caches.a]\n[caches.b]\npolicy = {{ ttl = \"7m\" }}\n[caches.later]\n"
    )
}

#[tokio::test]
async fn a_policy_follows_and_memory_stays() {
    let file = File::new(&memory("ttl = \"5m\", jitter = \"10s\""));
    let caches = file.load().await;
    let (a, b): (TracedCache<String>, TracedCache<String>) =
        (caches.cache("a").unwrap(), caches.cache("b").unwrap());
    fill(&a, "k").await;
    assert_eq!(caches.reload().await.unwrap(), Default::default(), "nothing has changed");

    file.write(&memory("ttl = \"1h\", grace = \"2h\", soft_limit = \"1s\""));
    let done = caches.reload().await.unwrap();
    assert_eq!(
        done.applied,
        [
            "caches.a.policy.grace: 0s is 2h now",
            "caches.a.policy.jitter: 10s is 0s now",
            "caches.a.policy.soft_limit: off is 1s now",
            "caches.a.policy.ttl: 5m is 1h now",
            "caches.b.policy.grace: 0s is 2h now",
            "caches.b.policy.jitter: 10s is 0s now",
            "caches.b.policy.soft_limit: off is 1s now",
        ]
    );
    assert_eq!(done.after_restart, [""; 0]);
    let hour = Duration::from_secs(3600);
    assert_eq!(a.policy(), Policy::ttl(hour).grace(2 * hour).soft_limit(Duration::from_secs(1)));
    assert_eq!(
        b.policy().grace(Duration::ZERO),
        Policy::ttl(Duration::from_secs(420)).soft_limit(Duration::from_secs(1))
    );
    assert_eq!(seen(&a, "k").await, IN_MEMORY);
    // Who asks later gets what the file says now.
    assert_eq!(caches.cache::<u64>("later").unwrap().policy(), a.policy());
    assert_eq!(caches.explain().caches[0].settings[0].value, "1h");
    assert_eq!(caches.reload().await.unwrap(), Default::default(), "once");
}

#[tokio::test]
async fn an_invalid_file_changes_nothing_and_says_why() {
    let file = File::new(&memory("ttl = \"5m\""));
    let caches = file.load().await;
    let a: TracedCache<String> = caches.cache("a").unwrap();
    fill(&a, "k").await;
    for (text, says) in [
        (
            memory("ttl = \"1h\", grace = \"1m\""),
            "cache.toml:6: defaults.policy.grace = 60s: below policy.ttl",
        ),
        (memory("tll = \"1h\""), "did you mean `ttl`?"),
        (memory("ttl = \"${TTL}\""), "the environment variable TTL is not set"),
        ("[caches".to_owned(), "cache.toml:1: "),
    ] {
        file.write(&text);
        let error = caches.reload().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Config);
        assert!(error.to_string().contains(says), "{error}");
        assert_eq!(a.policy(), Policy::ttl(Duration::from_secs(300)));
        assert_eq!(seen(&a, "k").await, IN_MEMORY);
        assert_eq!(caches.cache::<String>("b").unwrap().policy(), Policy::ttl(Duration::from_secs(420)));
    }
    fs::remove_file(&file.path).unwrap();
    assert!(caches.reload().await.unwrap_err().to_string().contains("cannot be read"));
    let text = toml(&memory("ttl = \"5m\"")).await.unwrap();
    assert!(text.reload().await.unwrap_err().to_string().contains("it was no file"));
}

fn two(url: &str, more: &str) -> String {
    format!(
        "[providers.local]\nbackend = \"memory\"\nentries = 100\n[providers.shared]\nbackend = \"redis\"\nurl = \"{url}\"\n{more}\nlevel = {{ budget = \"5s\" }}\n[caches.a]\nlevels = [\"local\", \"shared\"]\nbackplane = \"shared\"\npolicy.ttl = \"1h\"\n"
    )
}

async fn until(what: &str, check: impl AsyncFnMut() -> bool) {
    eventually(Duration::from_secs(60), what, check).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_provider_moves_to_another_server_and_memory_stays() {
    let (Some(first), Some(second)) = (RedisServer::start(), RedisServer::start()) else { return };
    let file = File::new(&two(&first.url(), ""));
    let (here, there) = (file.load().await, file.load().await);
    let (a, b): (TracedCache<String>, TracedCache<String>) =
        (here.cache("a").unwrap(), there.cache("a").unwrap());
    fill(&a, "k").await;
    assert_eq!(seen(&b, "k").await, IN_STORE);
    until("the channel is up", async || {
        fill(&a, "k").await;
        seen(&a, "k").await == IN_MEMORY
    })
    .await;

    // A server that does not answer: nothing changes.
    file.write(&two("redis://:hunter2@127.0.0.1:1", ""));
    let error = here.reload().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Level);
    let shown = error.to_string();
    assert!(
        shown.contains("cache.toml:6: providers.shared: it has changed, and cannot be used: "),
        "{shown}"
    );
    assert!(!format!("{error:?}").contains("hunter2"));
    assert!(a.set("still", "1".to_owned()).await.unwrap().is_confirmed());
    assert!(first.command::<bool>(&["EXISTS", "v:{a:still}"]).unwrap());

    file.write(&two(&second.url(), ""));
    for (caches, cache) in [(&here, &a), (&there, &b)] {
        fill(cache, "k").await;
        let done = caches.reload().await.unwrap();
        assert_eq!((done.applied, done.after_restart), (vec!["providers.shared.url".to_owned()], vec![]));
        assert_eq!(seen(cache, "k").await, IN_MEMORY, "memory stays");
        assert_eq!(seen(cache, "elsewhere").await, MISS);
        assert_eq!(seen(cache, "k").await, IN_MEMORY, "also when the new store has been met");
    }
    // The old server is not needed any more.
    first.kill();
    assert!(a.set("new", "1".to_owned()).await.unwrap().is_confirmed());
    assert!(second.command::<bool>(&["EXISTS", "v:{a:new}"]).unwrap());
    assert_eq!(seen(&b, "new").await, IN_STORE);
    // And they hear of each other over the new one.
    until("memory hears over the new channel", async || {
        fill(&a, "heard").await;
        fill(&b, "heard").await;
        assert!(a.invalidate("heard").await.unwrap().is_confirmed());
        tokio::time::sleep(Duration::from_millis(50)).await;
        seen(&b, "heard").await == MISS
    })
    .await;
}

/// The file gives caches no backplane at the provider any more, in the same edit that moves it: those that run go on with
/// theirs where their level goes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backplane_that_the_file_takes_back_moves_with_its_level() {
    let (Some(first), Some(second), Some(third)) =
        (RedisServer::start(), RedisServer::start(), RedisServer::start())
    else {
        return;
    };
    let off = |url: &str| two(url, "").replace("backplane = \"shared\"", "backplane = \"off\"");
    let dropped = |url: &str| {
        two(url, "").replace("[caches.a]", "[caches.other]").replace("backplane = \"shared\"", "")
    };
    for change in [&off as &dyn Fn(&str) -> String, &dropped] {
        let file = File::new(&two(&first.url(), ""));
        let (here, there) = (file.load().await, file.load().await);
        let (a, b): (TracedCache<String>, TracedCache<String>) =
            (here.cache("a").unwrap(), there.cache("a").unwrap());
        // At once, and one after the other.
        for (url, applied) in [(second.url(), 1), (second.url(), 0), (third.url(), 1)] {
            file.write(&change(&url));
            for caches in [&here, &there] {
                assert_eq!(caches.reload().await.unwrap().applied.len(), applied);
            }
        }
        until("memory hears over the new channel", async || {
            fill(&a, "heard").await;
            fill(&b, "heard").await;
            assert!(a.invalidate("heard").await.unwrap().is_confirmed());
            tokio::time::sleep(Duration::from_millis(50)).await;
            seen(&b, "heard").await == MISS
        })
        .await;
    }
}

/// Half of the keys stay on their server, and are not believed there all the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_list_of_memcached_servers_is_another_store_and_memory_stays() {
    let servers: Vec<_> = (0..3).filter_map(|_| MemcachedServer::start()).collect();
    let [first, second, third] = &*servers else { return };
    let text = |servers: &[&MemcachedServer], more: &str| {
        let urls: Vec<String> = servers.iter().map(|server| format!("\"{}\"", server.url())).collect();
        let urls = urls.join(", ");
        format!(
            "[providers.local]\nbackend = \"memory\"\nentries = 100\n[providers.shared]\nbackend = \"memcached\"\nservers = [{urls}]\n{more}\nlevel = {{ budget = \"5s\" }}\n[caches.a]\nlevels = [\"local\", \"shared\"]\npolicy.ttl = \"1h\"\n"
        )
    };
    let file = File::new(&text(&[first, second], ""));
    let (here, there) = (file.load().await, file.load().await);
    let (a, b): (TracedCache<String>, TracedCache<String>) =
        (here.cache("a").unwrap(), there.cache("a").unwrap());
    for key in ["k", "l", "m", "n", "o", "p"] {
        fill(&a, key).await;
        assert_eq!(seen(&b, key).await, IN_STORE);
    }
    file.write(&text(&[third, second, first], ""));
    assert_eq!(here.reload().await.unwrap().applied, ["providers.shared.servers"]);
    assert_eq!(seen(&a, "elsewhere").await, MISS);
    let new: TracedCache<String> = file.load().await.cache("a").unwrap();
    for key in ["k", "l", "m", "n", "o", "p"] {
        assert_eq!(seen(&new, key).await, MISS);
        assert_eq!(seen(&a, key).await, IN_MEMORY);
    }
    fill(&new, "new").await;
    assert_eq!(seen(&a, "new").await, IN_STORE);
    // The other list goes on to be used, and its nodes hear of what is invalidated on the new one.
    let old = format!("retiring = [\"{}\", \"{}\"]", first.url(), second.url());
    file.write(&text(&[first, second, third], &old));
    assert_eq!(
        here.reload().await.unwrap().applied,
        ["providers.shared.retiring", "providers.shared.servers"]
    );
    file.write(&text(&[first, second], ""));
    for key in ["k", "l", "m", "n", "o", "p"] {
        assert!(a.invalidate(key).await.unwrap().is_confirmed());
        let fresh: TracedCache<String> = file.load().await.cache("a").unwrap();
        assert_eq!(seen(&fresh, key).await, MISS);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn new_credentials_for_the_same_server_lose_nothing() {
    let acl = "user default off\nuser old on >one ~* &* +@all\nuser new on >two ~* &* +@all\n";
    let Some(server) = RedisServer::builder().acl(acl).start() else { return };
    let url = format!("redis://127.0.0.1:{}", server.port());
    let user =
        |name: &str, password: &str| two(&url, &format!("username = \"{name}\"\npassword = \"{password}\""));
    let file = File::new(&user("old", "one"));
    let caches = file.load().await;
    let a: TracedCache<String> = caches.cache("a").unwrap();
    fill(&a, "k").await;
    file.write(&user("new", "two"));
    let done = caches.reload().await.unwrap();
    assert_eq!(done.applied, ["providers.shared.password", "providers.shared.username"]);
    assert!(!format!("{done:?} {done}").contains("two"));
    assert_eq!(seen(&a, "other").await, MISS);
    assert_eq!(seen(&a, "k").await, IN_MEMORY);
    let node: TracedCache<String> = file.load().await.cache("a").unwrap();
    assert_eq!(seen(&node, "k").await, IN_STORE, "nor is the store empty");
}

#[tokio::test]
async fn what_cannot_follow_is_reported_and_goes_on_as_before() {
    let file = File::new(
        "[providers.local]\nbackend = \"memory\"\nentries = 100\n\
         [providers.far]\nbackend = \"memcached\"\nurl = \"memcached://127.0.0.1:1\"\n\
         [keyrings.k]\nkeys = [{ id = 1, secret = \"5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a\" }]\n\
         [caches.a]\nlevels = [\"local\", \"far\"]\nencryption = \"k\"\npolicy.ttl = \"1h\"\n[caches.b]\nlevels = [\"local\"]\n[caches.gone]\nlevels = [\"local\"]\n",
    );
    let caches = file.load().await;
    let [a, _, _] = ["a", "b", "gone"].map(|name| caches.cache::<String>(name).unwrap());
    file.write(
        "[providers.local]\nbackend = \"memory\"\nentries = 200\n\
         [providers.far]\nbackend = \"memcached\"\nurl = \"memcached://127.0.0.1:1\"\nvalue_max = \"1KiB\"\n\
         [keyrings.k]\nkeys = [{ id = 1, secret = \"5b5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a\" }]\n\
         [caches.a]\nlevels = [\"local\", { provider = \"far\", budget = \"5ms\", codec = \"postcard\" }]\nencryption = \"k\"\npolicy.ttl = \"2h\"\nschema = 3\n\
         [caches.b]\nlevels = [\"local\", \"far\"]\n",
    );
    let done = caches.reload().await.unwrap();
    assert_eq!(done.applied, ["caches.a.policy.ttl: 1h is 2h now"]);
    assert_eq!(
        done.after_restart,
        [
            "caches.a.levels[1].budget",
            "caches.a.levels[1].codec",
            "caches.a.schema",
            "caches.b.levels",
            "caches.gone is gone from the file",
            "keyrings.k.keys",
            "providers.far.value_max",
            "providers.local.entries",
        ]
    );
    let again = caches.reload().await.unwrap();
    assert_eq!((again.applied, again.after_restart), (vec![], done.after_restart), "until it is restarted");
    assert_eq!(a.policy(), Policy::ttl(Duration::from_secs(7200)));
    assert_eq!(caches.provider("far").unwrap().capabilities().value_max, Some((1 << 20) - 1024));
}

#[tokio::test]
async fn a_policy_that_the_levels_of_before_cannot_hold_changes_nothing() {
    let text = |cap: &str, ttl: &str| {
        format!(
            "[providers.local]\nbackend = \"memory\"\nentries = 100\n[caches.a]\nlevels = [{{ provider = \"local\", ttl_cap = \"{cap}\" }}]\npolicy.ttl = \"{ttl}\"\n"
        )
    };
    let file = File::new(&text("1h", "2h"));
    let caches = file.load().await;
    let a: TracedCache<String> = caches.cache("a").unwrap();
    // Right in itself, but a cap cannot change before a restart.
    file.write(&text("1m", "2m"));
    let error = caches.reload().await.unwrap_err().to_string();
    assert!(
        error.contains(
            "caches.a.policy: its levels cannot change before a restart, and level 1 (memory) ttl_cap = 3600s"
        ),
        "{error}"
    );
    assert_eq!(a.policy(), Policy::ttl(Duration::from_secs(7200)));
}

#[tokio::test]
async fn what_is_right_only_after_a_restart_changes_nothing() {
    let text = |backend: &str, more: &str| {
        format!("[providers.local]\n{backend}\n[caches.a]\nlevels = [\"local\"]\n{more}")
    };
    let file = File::new(&text("backend = \"memory\"\nentries = 100", ""));
    let caches = file.load().await;
    let a: TracedCache<String> = caches.cache("a").unwrap();
    // Right in the file, but the provider is the memory of before, which carries no messages.
    let redis = "backend = \"redis\"\nurl = \"redis://127.0.0.1:1\"";
    file.write(&text(redis, "[caches.later]\nlevels = [\"local\"]\nbackplane = \"local\"\n"));
    let error = caches.reload().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Config);
    let shown = error.to_string();
    assert!(
        shown.contains("caches.later.backplane")
            && shown.ends_with("before a restart, what has changed of provider `local` does not count"),
        "{shown}"
    );
    assert_eq!(caches.cache::<u64>("later").unwrap_err().kind(), ErrorKind::Config);
    // A cache that runs is not built again, and one that memory will do for is.
    file.write(&text(redis, "backplane = \"local\"\n[caches.later]\nlevels = [\"local\"]\n"));
    let done = caches.reload().await.unwrap();
    assert_eq!(done.after_restart, ["caches.a.backplane", "providers.local.backend"]);
    assert!(caches.cache::<u64>("later").is_ok());
    fill(&a, "k").await;

    // A provider that must be there is asked.
    let far = "[providers.far]\nbackend = \"redis\"\nurl = \"redis://127.0.0.1:1\"\n";
    file.write(&text(redis, &format!("{far}required = true\n")));
    let error = caches.reload().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Level);
    assert!(error.to_string().contains("providers.far: it is required and cannot be used"), "{error}");
    file.write(&text(redis, far));
    caches.reload().await.unwrap();
    assert!(caches.provider("far").is_some());
}

#[tokio::test]
async fn a_running_provider_that_must_be_there_now_is_asked() {
    let far = |required: &str| {
        format!(
            "[providers.far]\nbackend = \"redis\"\nurl = \"redis://127.0.0.1:1\"\n{required}\n[caches.a]\nlevels = [\"far\"]\n"
        )
    };
    let file = File::new(&far(""));
    let caches = file.load().await;
    let _a: TracedCache<String> = caches.cache("a").unwrap();
    file.write(&far("required = true"));
    for time in ["at once", "and again"] {
        let error = caches.reload().await.expect_err(time);
        assert_eq!(error.kind(), ErrorKind::Level);
        assert!(error.to_string().contains("providers.far: it is required and cannot be used"), "{error}");
    }
    file.write(&far("required = false"));
    assert_eq!(caches.reload().await.unwrap(), Default::default());
}

/// A file that is empty for a moment, say: while another program writes it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_provider_that_is_gone_for_a_while_is_still_that_of_running_caches() {
    let (Some(first), Some(second)) = (RedisServer::start(), RedisServer::start()) else { return };
    let file = File::new(&two(&first.url(), ""));
    let caches = file.load().await;
    let a: TracedCache<String> = caches.cache("a").unwrap();
    fill(&a, "k").await;
    let shared = || caches.provider("shared").unwrap();
    let before = shared();
    let empty = async || {
        file.write("");
        let gone = ["caches.a", "providers.local", "providers.shared"];
        let gone = gone.map(|name| format!("{name} is gone from the file"));
        for _ in 0..2 {
            let done = caches.reload().await.unwrap();
            assert_eq!((done.applied, done.after_restart), (vec![], gone.to_vec()));
        }
        assert_eq!(caches.explain().advice, [""; 0]);
    };

    // Back as it was: no other connection.
    empty().await;
    file.write(&two(&first.url(), ""));
    assert_eq!(caches.reload().await.unwrap(), Default::default());
    assert!(Arc::ptr_eq(&before, &shared()));

    // Back elsewhere: running caches follow.
    empty().await;
    file.write(&two(&second.url(), ""));
    let done = caches.reload().await.unwrap();
    assert_eq!((done.applied, done.after_restart), (vec!["providers.shared.url".to_owned()], vec![]));
    assert!(a.set("new", "1".to_owned()).await.unwrap().is_confirmed());
    assert!(second.command::<bool>(&["EXISTS", "v:{a:new}"]).unwrap());

    // Gone for good: closed like the others.
    empty().await;
    let last = shared();
    last.ping().await.unwrap();
    caches.close(Duration::from_secs(5)).await;
    last.ping().await.unwrap_err();
}

#[tokio::test]
async fn a_provider_that_no_running_cache_is_on_goes_with_the_file() {
    let file = File::new(&two("redis://127.0.0.1:1", ""));
    let caches = file.load().await;
    file.write("");
    assert_eq!(caches.reload().await.unwrap(), Default::default());
    assert_eq!(caches.provider_names(), [""; 0]);
}

#[tokio::test]
async fn closing_ends_every_cache() {
    let caches = sealed().from_text(Format::Toml, &memory("ttl = \"5m\"")).await.unwrap();
    let (a, b) = (caches.cache::<String>("a").unwrap(), caches.cache::<u64>("b").unwrap());
    let closed = caches.close(Duration::from_secs(5)).await;
    assert_eq!(closed.keys().collect::<Vec<_>>(), ["a", "b"]);
    assert!(closed.values().all(|closed| closed.is_drained() && closed.undelivered().is_empty()));
    assert_eq!(a.get(1).await.unwrap_err().kind(), ErrorKind::Closed);
    assert_eq!(b.get(1).await.unwrap_err().kind(), ErrorKind::Closed);
}

/// By a function that is called for the first time while the service ends, say.
#[tokio::test]
async fn what_is_asked_for_after_the_end_has_ended() {
    let file = File::new(&memory("ttl = \"5m\""));
    let caches = file.load().await;
    assert!(caches.close(Duration::from_secs(5)).await.is_empty());
    let late = caches.cache::<String>("a").unwrap();
    assert_eq!(late.set("k", "v".to_owned()).await.unwrap_err().kind(), ErrorKind::Closed);
    let load = || async { traced_cache::ok("v".to_owned()) };
    assert_eq!(late.get_or_set("k", load).await.unwrap_err().kind(), ErrorKind::Closed);
    assert_eq!(caches.reload().await.unwrap_err().kind(), ErrorKind::Closed);
}
