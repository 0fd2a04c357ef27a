use std::{
    net::Ipv4Addr,
    sync::{Arc, Mutex},
    time::Duration,
};

use futures::{
    FutureExt,
    future::{LocalBoxFuture, join_all},
    poll,
};
use redis::cmd;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::timeout,
};

use super::*;

const HANG: Duration = Duration::from_secs(20);

/// A connection, what runs it, and its other end.
async fn connected(hears: Option<Hears>) -> (Mux, Running, TcpStream) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let (mux, running) =
        Mux::new(Stream::Tcp(stream), hears.map(|hears| (7, hears)), First::default(), 512 << 20);
    (mux, running, listener.accept().await.unwrap().0)
}

/// A connection whose task runs, and its other end.
async fn pair(hears: Option<Hears>) -> (Mux, TcpStream) {
    let (mux, running, server) = connected(hears).await;
    tokio::spawn(running);
    (mux, server)
}

async fn expect(server: &mut TcpStream, request: &str) {
    let mut got = vec![0; request.len()];
    timeout(HANG, server.read_exact(&mut got)).await.unwrap().unwrap();
    assert_eq!(String::from_utf8(got).unwrap(), request);
}

fn request(arguments: &[&str]) -> String {
    let each = arguments.iter().map(|argument| format!("${}\r\n{argument}\r\n", argument.len()));
    format!("*{}\r\n{}", arguments.len(), each.collect::<String>())
}

fn text(reply: Result<Reply, RedisError>) -> Option<String> {
    match reply.unwrap() {
        Reply::Text(text) => Some(String::from_utf8(text.to_vec()).unwrap()),
        Reply::Nil => None,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn look_ups_under_way_are_gathered_in_their_order_with_other_requests() {
    let (mux, mut server) = pair(None).await;
    let mut first = Box::pin(mux.get("a", true));
    assert!(poll!(&mut first).is_pending());
    let ask = async |key: &'static str| text(mux.get(key, true).await);
    let mut before = Box::pin(join_all(["b", "c", "b"].map(ask)));
    assert!(poll!(&mut before).is_pending());
    let set = cmd("SET").arg("b").arg("2").to_owned();
    let mut set = Box::pin(mux.command(&set));
    assert!(poll!(&mut set).is_pending());
    let mut behind = Box::pin(join_all(["b", "d"].map(ask)));
    assert!(poll!(&mut behind).is_pending());
    let mut alone = Box::pin(mux.get("e", false));
    assert!(poll!(&mut alone).is_pending());

    expect(&mut server, &request(&["GET", "a"])).await;
    expect(&mut server, &request(&["MGET", "b", "c"])).await;
    expect(&mut server, &request(&["SET", "b", "2"])).await;
    expect(&mut server, &request(&["MGET", "b", "d"])).await;
    expect(&mut server, &request(&["GET", "e"])).await;
    let replies = "$1\r\nA\r\n*2\r\n$1\r\n1\r\n_\r\n+OK\r\n*2\r\n$1\r\n2\r\n$1\r\nD\r\n_\r\n";
    server.write_all(replies.as_bytes()).await.unwrap();
    let some = |text: &str| Some(text.to_owned());
    assert_eq!(text(first.await), some("A"));
    assert_eq!(before.await, [some("1"), None, some("1")]);
    assert_eq!(set.await.unwrap(), Value::Okay);
    assert_eq!(behind.await, [some("2"), some("D")]);
    assert_eq!(text(alone.await), None);
}

/// A proxy asks several servers, and one of them may be away.
#[tokio::test]
async fn what_one_key_of_several_is_refused_is_told_to_who_asked_for_it() {
    let (mux, mut server) = pair(None).await;
    let mut first = Box::pin(mux.get("a", true));
    assert!(poll!(&mut first).is_pending());
    let ask = async |key: &'static str| mux.get(key, true).await;
    let mut several = Box::pin(join_all(["b", "c", "d", "c"].map(ask)));
    assert!(poll!(&mut several).is_pending());
    expect(&mut server, &(request(&["GET", "a"]) + &request(&["MGET", "b", "c", "d"]))).await;
    server.write_all(b"$1\r\nA\r\n*3\r\n$1\r\n1\r\n-ERR backend away\r\n_\r\n").await.unwrap();
    assert_eq!(text(first.await).as_deref(), Some("A"));
    let several = several.await.into_iter().map(|reply| match reply.unwrap().into_value() {
        Value::ServerError(error) => Err(error.details().unwrap().to_owned()),
        value => Ok(value),
    });
    let (value, away) = (Ok(Value::BulkString(b"1".to_vec())), Err("backend away".to_owned()));
    assert_eq!(several.collect::<Vec<_>>(), [value, away.clone(), Ok(Value::Nil), away]);

    // The connection goes on.
    let mut next = Box::pin(mux.get("e", true));
    assert!(poll!(&mut next).is_pending());
    expect(&mut server, &request(&["GET", "e"])).await;
    server.write_all(b"$1\r\nE\r\n").await.unwrap();
    assert_eq!(text(next.await).as_deref(), Some("E"));
}

/// Asks for `a`, then for so many more, and has all of that sent.
async fn ask<'m>(
    mux: &'m Mux,
    running: &mut Running,
    server: &mut TcpStream,
    more: usize,
) -> LocalBoxFuture<'m, Vec<Option<String>>> {
    let keys: Vec<String> = (0..more).map(|n| format!("{n:02}")).collect();
    let sent: Vec<&str> = ["MGET"].into_iter().chain(keys.iter().map(String::as_str)).collect();
    let sent = request(&["GET", "a"]) + &request(&sent);
    let each = ["a".to_owned()].into_iter().chain(keys);
    let asked: Vec<_> = each.map(|key| async move { text(mux.get(&key, true).await) }).collect();
    let mut all = join_all(asked).boxed_local();
    assert!(poll!(&mut all).is_pending());
    assert!(poll!(running).is_pending());
    expect(server, &sent).await;
    all
}

/// Answers what `ask` has asked, and runs the connection until somebody has been told.
async fn answer(
    running: &mut Running,
    server: &mut TcpStream,
    mut all: LocalBoxFuture<'_, Vec<Option<String>>>,
    more: usize,
) {
    let replies = format!("$1\r\nA\r\n*{more}\r\n") + &"_\r\n".repeat(more);
    server.write_all(replies.as_bytes()).await.unwrap();
    let all = async {
        while poll!(&mut all).is_pending() {
            assert!(poll!(&mut *running).is_pending());
            tokio::task::yield_now().await;
        }
    };
    timeout(HANG, all).await.unwrap();
}

#[tokio::test]
async fn the_first_of_a_crowd_that_was_answered_waits_for_the_others() {
    let (mux, mut running, mut server) = connected(None).await;
    let all = ask(&mux, &mut running, &mut server, 8).await;
    answer(&mut running, &mut server, all, 8).await;
    let [mut x, mut y] = ["x", "y"].map(|key| Box::pin(mux.get(key, true)));
    assert!(poll!(&mut x).is_pending());
    assert!(poll!(&mut y).is_pending());
    assert!(poll!(&mut running).is_pending());
    expect(&mut server, &request(&["MGET", "x", "y"])).await;

    // Fewer are no crowd: what the next one asks goes out at once, though the task does not run.
    let (mux, mut running, mut server) = connected(None).await;
    let all = ask(&mux, &mut running, &mut server, 7).await;
    answer(&mut running, &mut server, all, 7).await;
    let mut x = Box::pin(mux.get("x", true));
    assert!(poll!(&mut x).is_pending());
    expect(&mut server, &request(&["GET", "x"])).await;
}

#[tokio::test]
async fn what_is_asked_first_while_many_wait_lets_others_join() {
    let (mux, mut running, mut server) = connected(None).await;
    let _all = ask(&mux, &mut running, &mut server, 8).await;
    let [mut x, mut y] = ["x", "y"].map(|key| Box::pin(mux.get(key, true)));
    assert!(poll!(&mut x).is_pending());
    assert!(poll!(&mut running).is_pending());
    assert!(poll!(&mut y).is_pending());
    assert!(poll!(&mut running).is_pending());
    expect(&mut server, &request(&["MGET", "x", "y"])).await;
}

#[tokio::test]
async fn one_look_up_that_fails_them_all_has_each_ask_alone() {
    let (mux, mut server) = pair(None).await;
    let mut all = Box::pin(join_all(["a", "b", "c"].map(async |key| mux.get(key, true).await)));
    assert!(poll!(&mut all).is_pending());
    expect(&mut server, &(request(&["GET", "a"]) + &request(&["MGET", "b", "c"]))).await;
    server.write_all(b"$1\r\nA\r\n-NOPERM no\r\n").await.unwrap();
    assert!(timeout(Duration::from_millis(1), &mut all).await.is_err());
    expect(&mut server, &(request(&["GET", "b"]) + &request(&["GET", "c"]))).await;
    server.write_all(b"$1\r\nB\r\n-NOPERM no\r\n").await.unwrap();
    let [a, b, c] = all.await.try_into().unwrap();
    assert_eq!((text(a).as_deref(), text(b).as_deref()), (Some("A"), Some("B")));
    assert!(matches!(c, Ok(Reply::Other(Value::ServerError(_)))));
}

#[tokio::test]
async fn what_the_server_says_of_its_own_accord_comes_before_any_later_reply() {
    let heard: Arc<Mutex<Vec<String>>> = Arc::default();
    let hears: Hears = Arc::new({
        let heard = Arc::clone(&heard);
        move |generation, push| heard.lock().unwrap().push(format!("{generation} {}", push.kind))
    });
    let (mux, mut server) = pair(Some(hears)).await;
    let mut calls = Box::pin(async { (text(mux.get("a", true).await), heard.lock().unwrap().clone()) });
    assert!(poll!(&mut calls).is_pending());
    expect(&mut server, &request(&["GET", "a"])).await;
    let push = ">2\r\n$10\r\ninvalidate\r\n*1\r\n$1\r\na\r\n";
    server.write_all(format!("{push}$1\r\nA\r\n{push}").as_bytes()).await.unwrap();
    let (found, before) = calls.await;
    assert_eq!(found.as_deref(), Some("A"));
    assert!(!before.is_empty(), "told before the reply");
    timeout(HANG, async {
        while heard.lock().unwrap().len() < 2 {
            tokio::task::yield_now().await;
        }
    })
    .await
    .unwrap();
    assert_eq!(*heard.lock().unwrap(), ["7 invalidate", "7 invalidate"]);
}

#[tokio::test]
async fn each_channel_is_confirmed_and_an_error_ends_it_at_once() {
    let (mux, mut server) = pair(None).await;
    let subscribe = cmd("SUBSCRIBE").arg(&["x", "y"]).to_owned();
    let confirm = |channel: &str| format!(">3\r\n$9\r\nsubscribe\r\n$1\r\n{channel}\r\n:1\r\n");
    let mut call = Box::pin(mux.confirmed(&subscribe, 2));
    assert!(poll!(&mut call).is_pending());
    expect(&mut server, &request(&["SUBSCRIBE", "x", "y"])).await;
    // A message in between is none of its confirmations.
    let message = ">3\r\n$7\r\nmessage\r\n$1\r\nx\r\n$1\r\nm\r\n";
    server.write_all((confirm("x") + message).as_bytes()).await.unwrap();
    assert!(timeout(Duration::from_millis(50), &mut call).await.is_err());
    server.write_all(confirm("y").as_bytes()).await.unwrap();
    assert!(matches!(call.await.unwrap(), Value::Push { .. }));

    let mut refused = Box::pin(mux.confirmed(&subscribe, 2));
    assert!(poll!(&mut refused).is_pending());
    server.write_all(b"-NOPERM no\r\n").await.unwrap();
    assert!(matches!(refused.await.unwrap(), Value::ServerError(_)));
    let mut next = Box::pin(mux.get("a", true));
    assert!(poll!(&mut next).is_pending());
    server.write_all(b"$1\r\nA\r\n").await.unwrap();
    assert_eq!(text(next.await).as_deref(), Some("A"));
}

#[tokio::test]
async fn an_answer_that_makes_no_sense_ends_the_connection() {
    for nonsense in ["*1\r\n$1\r\nB\r\n", "+OK\r\n", "HTTP/1.1 400\r\n", "$1\r\nBB\r\n", ":1\r\n:1\r\n:1\r\n"]
    {
        let (mux, mut server) = pair(None).await;
        let mut all = Box::pin(join_all(["a", "b", "c"].map(async |key| mux.get(key, true).await)));
        assert!(poll!(&mut all).is_pending());
        let ping = cmd("PING");
        let mut last = Box::pin(mux.command(&ping));
        assert!(poll!(&mut last).is_pending());
        server.write_all(format!("$1\r\nA\r\n{nonsense}").as_bytes()).await.unwrap();
        let [a, b, c] = timeout(HANG, all).await.unwrap().try_into().unwrap();
        assert_eq!(text(a).as_deref(), Some("A"));
        for gathered in [b, c] {
            assert_eq!(gathered.unwrap_err().kind(), redis::ErrorKind::Parse, "{nonsense:?}");
        }
        // What was asked behind it can be asked again elsewhere.
        assert!(last.await.unwrap_err().is_io_error(), "{nonsense:?}");
        timeout(HANG, mux.ended()).await.unwrap();
        assert!(mux.get("a", true).await.unwrap_err().is_io_error());
    }
}

#[tokio::test]
async fn what_waits_to_be_written_is_bounded() {
    let (mux, mut server) = pair(None).await;
    let value = vec![b'v'; 4 << 20];
    let set = cmd("SET").arg("k").arg(&value).to_owned();
    let mut calls: Vec<_> = (0..24).map(|_| Box::pin(mux.command(&set))).collect();
    for call in &mut calls {
        assert!(poll!(call).is_pending());
        tokio::task::yield_now().await;
    }
    assert!(mux.0.crowded.load(Ordering::SeqCst));
    assert!(mux.0.lock().out.len() <= UNSENT_MAX + value.len() + 100);
    let waiting = mux.0.lock().waiting.len();
    assert!(waiting < calls.len(), "{waiting} have been taken");
    // Who leaves while he waits for room asks for nothing.
    drop(calls.pop());
    let (mut read, mut write) = server.split();
    let drain = async {
        let mut bytes = vec![0; 1 << 20];
        let mut left = 23 * set.get_packed_command().len();
        while left > 0 {
            left -= read.read(&mut bytes).await.unwrap();
        }
        write.write_all("+OK\r\n".repeat(23).as_bytes()).await.unwrap();
    };
    let (all, ()) = timeout(HANG, futures::future::join(join_all(calls), drain)).await.unwrap();
    assert!(all.into_iter().all(|reply| reply.unwrap() == Value::Okay));
    assert!(mux.get("k", true).now_or_never().is_none());
}

/// However it ends, nobody goes on waiting.
#[tokio::test]
async fn everybody_is_answered_at_the_end() {
    for how in 0..3 {
        let (mux, running, server) = connected(None).await;
        let task = tokio::spawn(running);
        let mut calls = Box::pin(join_all(["a", "b"].map(async |key| mux.get(key, true).await)));
        assert!(poll!(&mut calls).is_pending());
        match how {
            0 => drop(server),
            1 => task.abort(),
            _ => mux.end(),
        }
        for reply in timeout(HANG, calls).await.unwrap() {
            assert!(reply.unwrap_err().is_io_error());
        }
        timeout(HANG, mux.ended()).await.unwrap();
    }
    // Also by a task that never ran.
    let (mux, running, _server) = connected(None).await;
    let mut call = Box::pin(mux.get("a", true));
    assert!(poll!(&mut call).is_pending());
    drop(running);
    assert!(call.await.unwrap_err().is_io_error());
}

/// What the server has answered before it hung up counts, also where a request can no longer be written.
#[tokio::test]
async fn answers_are_read_when_a_write_has_failed() {
    let (mux, mut running, mut server) = connected(None).await;
    let ask = |key| Box::pin(mux.get(key, false));
    let [mut a, mut b, mut c, mut d] = ["a", "b", "c", "d"].map(ask);
    for call in [&mut a, &mut b, &mut c] {
        assert!(poll!(call).is_pending());
    }
    assert!(poll!(&mut running).is_pending());
    expect(&mut server, &["a", "b", "c"].map(|key| request(&["GET", key])).concat()).await;
    server.write_all(b"$1\r\nA\r\n$1\r\nB\r\n").await.unwrap();
    // After two answers the task lets callers run, and writes before it reads again.
    loop {
        assert!(poll!(&mut running).is_pending());
        if let Poll::Ready(found) = poll!(&mut a) {
            assert_eq!(text(found).as_deref(), Some("A"));
            break;
        }
        tokio::task::yield_now().await;
    }
    server.write_all(b"$1\r\nC\r\n").await.unwrap();
    server.set_zero_linger().unwrap();
    drop(server);
    assert!(poll!(&mut d).is_pending());
    tokio::task::yield_now().await;
    assert!(poll!(&mut running).is_ready());
    assert_eq!(text(b.await).as_deref(), Some("B"));
    assert_eq!(text(c.await).as_deref(), Some("C"));
    assert!(d.await.unwrap_err().is_io_error());
}

/// The peer hangs up together with its answer: that counts, and what ran the connection is not polled past its end.
#[tokio::test]
async fn a_connection_that_ends_with_its_first_answer_is_not_run_again() {
    let (mux, mut running, mut server) = connected(None).await;
    let answers = async {
        expect(&mut server, &request(&["PING"])).await;
        server.write_all(b"+PONG\r\n").await.unwrap();
        drop(server);
    };
    let ping = cmd("PING");
    let (said, ()) = tokio::join!(alongside(&mut running, mux.command(&ping)), answers);
    assert_eq!(said.unwrap(), Value::SimpleString("PONG".into()));
    for _ in 0..2 {
        let silence = timeout(HANG, alongside(&mut running, mux.command(&ping))).await.unwrap();
        assert!(silence.unwrap_err().is_io_error());
    }
}
