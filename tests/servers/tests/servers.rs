//! Servers start, answer, die and come back.

use std::{
    io::{BufRead, BufReader},
    net::TcpStream,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use test_servers::{MemcachedServer, RedisServer, until};

const SOON: Duration = Duration::from_secs(20);

#[test]
fn redis_starts_and_is_gone_on_drop() {
    let Some(server) = RedisServer::start() else { return };
    let (addr, dir) = (server.addr(), PathBuf::from(server.dir()));
    let info: String = server.command(&["INFO", "server"]).unwrap();
    assert!(info.contains(&format!("process_id:{}\r\n", server.pid().unwrap())));
    assert_eq!(server.url(), format!("redis://127.0.0.1:{}", server.port()));
    assert!(dir.is_dir());
    drop(server);
    assert!(TcpStream::connect(addr).is_err());
    assert!(!dir.exists());
}

#[test]
fn redis_settings_reach_the_server() {
    let builder = RedisServer::builder().password("pass").config("maxmemory", "3mb").unix_socket();
    let Some(server) = builder.start() else { return };
    let (_, max): (String, u64) = server.command(&["CONFIG", "GET", "maxmemory"]).unwrap();
    assert_eq!(max, 3 << 20);
    assert!(server.url().starts_with("redis://:pass@127.0.0.1:"));
    let bare = redis::Client::open(format!("redis://{}", server.addr())).unwrap();
    let mut bare = bare.get_connection().unwrap();
    assert!(redis::cmd("PING").query::<String>(&mut bare).is_err());
    std::os::unix::net::UnixStream::connect(server.socket().unwrap()).unwrap();
}

#[test]
fn redis_with_an_acl_that_keeps_the_default_user_out() {
    let lines = "user default off\nuser alice on >secret ~* &* +@all\n";
    let Some(server) = RedisServer::builder().acl(lines).start() else { return };
    let url = format!("redis://alice:secret@{}", server.addr());
    let mut alice = redis::Client::open(url).unwrap().get_connection().unwrap();
    assert_eq!(redis::cmd("ACL").arg("WHOAMI").query::<String>(&mut alice).unwrap(), "alice");
    assert!(server.command::<String>(&["PING"]).is_err());
}

#[test]
fn redis_restarts_on_its_port_empty_or_with_its_data() {
    let Some(volatile) = RedisServer::start() else { return };
    let kept = RedisServer::builder().append_only().start().unwrap();
    for (server, expect) in [(&volatile, None), (&kept, Some("v"))] {
        let (port, pid) = (server.port(), server.pid());
        server.command::<()>(&["SET", "k", "v"]).unwrap();
        server.kill();
        assert_eq!(server.pid(), None);
        assert!(TcpStream::connect(server.addr()).is_err());
        server.restart();
        assert_eq!(server.port(), port);
        assert_ne!(server.pid(), pid);
        assert_eq!(server.command::<Option<String>>(&["GET", "k"]).unwrap().as_deref(), expect);
    }
}

#[test]
fn redis_saves_on_shutdown_when_it_has_save_points() {
    let Some(server) = RedisServer::builder().args(["--save", "3600 1"]).start() else { return };
    server.command::<()>(&["SET", "k", "v"]).unwrap();
    server.shutdown();
    assert_eq!(server.pid(), None);
    server.restart();
    assert_eq!(server.command::<String>(&["GET", "k"]).unwrap(), "v");
}

#[test]
fn a_stopped_server_is_silent_until_it_goes_on() {
    let Some(server) = RedisServer::start() else { return };
    let mut connection = server.connection().unwrap();
    connection.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    server.stop();
    assert!(redis::cmd("PING").query::<String>(&mut connection).is_err());
    server.cont();
    assert!(until(SOON, || server.command::<String>(&["PING"]).is_ok()));
    server.stop();
    drop(server);
}

#[test]
fn a_failed_start_shows_the_log() {
    if test_servers::require(test_servers::Server::Redis).is_none() {
        return;
    }
    let start = || RedisServer::builder().config("no-such-directive", "1").start();
    let panic = std::panic::catch_unwind(start).unwrap_err();
    let message = panic.downcast_ref::<String>().unwrap();
    assert!(message.contains("ended with") && message.contains("no-such-directive"), "{message}");
}

/// Runs this very test in another process, which holds a server, and kills that process.
#[test]
fn the_server_dies_with_the_test_process() {
    const HOLD: &str = "TEST_SERVERS_HOLD";
    let Some(server) = RedisServer::start() else { return };
    if std::env::var_os(HOLD).is_some() {
        println!("holds {} {}", server.port(), server.dir().display());
        std::thread::sleep(Duration::from_secs(600));
    }
    let mut holder = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "the_server_dies_with_the_test_process", "--nocapture"])
        .env(HOLD, "1")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(holder.stdout.take().unwrap()).lines();
    let line = lines.map(Result::unwrap).find(|line| line.contains("holds ")).unwrap();
    let words: Vec<&str> = line.split_whitespace().collect();
    let [.., "holds", port, dir] = words.as_slice() else { panic!("{line}") };
    let port: u16 = port.parse().unwrap();
    TcpStream::connect(("127.0.0.1", port)).unwrap();
    holder.kill().unwrap();
    holder.wait().unwrap();
    assert!(until(SOON, || TcpStream::connect(("127.0.0.1", port)).is_err() && !Path::new(dir).exists()));
}

#[test]
fn memcached_starts_and_is_gone_on_drop() {
    let Some(server) = MemcachedServer::start() else { return };
    let addr = server.addr();
    assert!(server.command("version").unwrap().starts_with("VERSION "));
    assert_eq!(server.stat("pid").unwrap(), server.pid().map(|pid| pid.to_string()));
    assert_eq!(server.stat("no_such_stat").unwrap(), None);
    assert_eq!(server.url(), format!("memcached://127.0.0.1:{}", server.port()));
    drop(server);
    assert!(TcpStream::connect(addr).is_err());
}

#[test]
fn memcached_settings_reach_the_server_and_survive_a_restart() {
    let Some(server) = MemcachedServer::builder().args(["-m", "8", "-I", "2m"]).start() else { return };
    assert_eq!(server.stat("limit_maxbytes").unwrap().as_deref(), Some("8388608"));
    assert_eq!(server.command("set k 0 0 1\r\nv").unwrap(), "STORED");
    assert_eq!(server.stat("curr_items").unwrap().as_deref(), Some("1"));
    let port = server.port();
    server.stop();
    server.cont();
    server.restart();
    assert_eq!(server.port(), port);
    assert_eq!(server.stat("curr_items").unwrap().as_deref(), Some("0"));
    assert_eq!(server.stat("limit_maxbytes").unwrap().as_deref(), Some("8388608"));
}

#[test]
fn servers_of_one_moment_do_not_meet() {
    if test_servers::require(test_servers::Server::Redis).is_none() {
        return;
    }
    let threads: Vec<_> = (0..6).map(|_| std::thread::spawn(RedisServer::start)).collect();
    let servers: Vec<_> = threads.into_iter().filter_map(|thread| thread.join().unwrap()).collect();
    for server in &servers {
        server.command::<()>(&["SET", "who", &server.port().to_string()]).unwrap();
    }
    for server in &servers {
        assert_eq!(server.command::<u16>(&["GET", "who"]).unwrap(), server.port());
    }
}
