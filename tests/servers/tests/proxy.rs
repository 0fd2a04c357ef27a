//! Each fault of the proxy, as a client sees it.
#![allow(clippy::unwrap_used, reason = "clippy exempts test functions, not their helpers")]

use std::{
    io::{self, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    thread,
    time::{Duration, Instant},
};

use test_servers::{Proxy, until};

const SOON: Duration = Duration::from_secs(10);
const SILENCE: Duration = Duration::from_millis(80);

/// Answers each byte with itself, for as long as the test process lives.
fn echo() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            thread::spawn(move || {
                let mut writer = stream.try_clone().unwrap();
                io::copy(&mut stream, &mut writer).ok();
            });
        }
    });
    addr
}

fn connect(proxy: &Proxy) -> TcpStream {
    let stream = TcpStream::connect(proxy.addr()).unwrap();
    stream.set_read_timeout(Some(SOON)).unwrap();
    stream
}

fn exchange(stream: &mut TcpStream, text: &str) -> io::Result<String> {
    stream.write_all(text.as_bytes())?;
    let mut answer = vec![0; text.len()];
    stream.read_exact(&mut answer)?;
    Ok(String::from_utf8(answer).unwrap())
}

fn is_silent(stream: &mut TcpStream) -> bool {
    stream.set_read_timeout(Some(SILENCE)).unwrap();
    let silent = matches!(
        stream.read(&mut [0]).map_err(|error| error.kind()),
        Err(io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
    );
    stream.set_read_timeout(Some(SOON)).unwrap();
    silent
}

fn is_reset(result: io::Result<impl Sized>) -> bool {
    result.is_err_and(|error| {
        matches!(error.kind(), io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe)
    })
}

#[test]
fn passes_and_ends_well() {
    let proxy = Proxy::start(echo());
    let mut stream = connect(&proxy);
    assert_eq!(exchange(&mut stream, "hello").unwrap(), "hello");
    let large = "x".repeat(300_000);
    let mut writer = stream.try_clone().unwrap();
    let sender = thread::spawn({
        let large = large.clone();
        move || {
            writer.write_all(large.as_bytes()).unwrap();
            writer.shutdown(std::net::Shutdown::Write).unwrap();
        }
    });
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    sender.join().unwrap();
    assert_eq!(answer, large);
    assert_eq!(proxy.accepted(), 1);
    assert!(until(SOON, || proxy.open() == 0));
}

#[test]
fn delays_replies() {
    let proxy = Proxy::start(echo());
    let mut stream = connect(&proxy);
    exchange(&mut stream, "warm").unwrap();
    proxy.delay(Duration::from_millis(150));
    let start = Instant::now();
    exchange(&mut stream, "slow").unwrap();
    assert!(start.elapsed() >= Duration::from_millis(150));
    proxy.delay(Duration::from_secs(3600));
    stream.write_all(b"a").unwrap();
    assert!(is_silent(&mut stream));
    proxy.pass();
    stream.read_exact(&mut [0]).unwrap();
}

#[test]
fn cuts_what_is_open_and_takes_new_connections() {
    let proxy = Proxy::start(echo());
    let mut streams = [connect(&proxy), connect(&proxy)];
    for stream in &mut streams {
        exchange(stream, "up").unwrap();
    }
    proxy.cut();
    assert_eq!(proxy.open(), 0);
    for stream in &mut streams {
        assert!(is_reset(stream.read(&mut [0])));
    }
    assert_eq!(exchange(&mut connect(&proxy), "again").unwrap(), "again");
}

#[test]
fn refuses_and_comes_back_on_the_same_port() {
    let proxy = Proxy::start(echo());
    let mut stream = connect(&proxy);
    exchange(&mut stream, "up").unwrap();
    for _ in 0..3 {
        proxy.refuse();
        let refused = TcpStream::connect(proxy.addr()).map_err(|error| error.kind());
        assert_eq!(refused.err(), Some(io::ErrorKind::ConnectionRefused));
        proxy.pass();
        assert_eq!(exchange(&mut connect(&proxy), "back").unwrap(), "back");
    }
    assert!(is_reset(stream.read(&mut [0])));
}

#[test]
fn blackhole_holds_everything_and_lets_it_go() {
    let proxy = Proxy::start(echo());
    let mut old = connect(&proxy);
    exchange(&mut old, "up").unwrap();
    proxy.blackhole();
    let mut new = connect(&proxy);
    for stream in [&mut old, &mut new] {
        stream.write_all(b"held").unwrap();
        assert!(is_silent(stream));
    }
    proxy.pass();
    for stream in [&mut old, &mut new] {
        let mut answer = [0; 4];
        stream.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"held");
    }
}

#[test]
fn mute_loses_replies_only() {
    let proxy = Proxy::start(echo());
    let mut stream = connect(&proxy);
    exchange(&mut stream, "up").unwrap();
    proxy.mute();
    stream.write_all(b"lost").unwrap();
    assert!(is_silent(&mut stream));
    proxy.pass();
    assert_eq!(exchange(&mut stream, "kept").unwrap(), "kept");
}

#[test]
fn slow_keeps_every_byte() {
    let proxy = Proxy::start(echo());
    let mut stream = connect(&proxy);
    proxy.slow(Duration::from_millis(5));
    let start = Instant::now();
    assert_eq!(exchange(&mut stream, "drop by drop").unwrap(), "drop by drop");
    assert!(start.elapsed() >= Duration::from_millis(5 * 11));
}

#[test]
fn truncates_the_reply_then_resets() {
    let proxy = Proxy::start(echo());
    let mut stream = connect(&proxy);
    exchange(&mut stream, "not counted").unwrap();
    for _ in 0..2 {
        proxy.truncate(3);
        let mut stream = connect(&proxy);
        stream.write_all(b"abcdef").unwrap();
        let mut answer = [0; 3];
        stream.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"abc");
        assert!(is_reset(stream.read(&mut [0])));
    }
    proxy.pass();
    assert_eq!(exchange(&mut stream, "untouched").unwrap(), "untouched");
}

#[test]
fn a_dead_target_is_a_reset() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    drop(listener);
    let proxy = Proxy::start(addr);
    let mut stream = connect(&proxy);
    assert!(is_reset(stream.read(&mut [0])));
}

#[tokio::test]
async fn runs_while_the_tests_runtime_is_blocked() {
    let proxy = Proxy::start(echo());
    let mut stream = connect(&proxy);
    assert_eq!(exchange(&mut stream, "blocking").unwrap(), "blocking");
    let addr = proxy.addr();
    drop(proxy);
    assert!(TcpStream::connect(addr).is_err());
}
