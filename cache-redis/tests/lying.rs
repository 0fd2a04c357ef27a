//! Servers that speak some RESP3, and lie.
#![allow(clippy::unwrap_used, clippy::panic, reason = "in tests, what goes wrong must fail the test")]

mod common;

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use cache_core::CacheProvider;
use cache_redis::{ErrorKind, RedisProvider};
use common::{get, item, key, kind, put};
use futures::future::join_all;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, tcp::OwnedReadHalf},
    time::{sleep, timeout},
};

/// A call that takes this long hangs.
const HANG: Duration = Duration::from_secs(20);

/// What it says to a command, if it does not tell the truth.
type Lie = Arc<dyn Fn(&[String]) -> Option<Vec<u8>> + Send + Sync>;

/// What it says without an end, and how many bytes of that it has said.
type Endless = (String, Arc<AtomicUsize>);

/// A server with a value under every key.
#[derive(Clone)]
struct Liar {
    port: u16,
    lie: Arc<Mutex<Option<Lie>>>,
    accepted: Arc<AtomicUsize>,
    /// The pause behind each answer.
    pause: Arc<Mutex<Duration>>,
    /// What it says then.
    more: Arc<Mutex<Option<Endless>>>,
}

impl Liar {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let liar = Self {
            port: listener.local_addr().unwrap().port(),
            lie: Arc::default(),
            accepted: Arc::default(),
            pause: Arc::default(),
            more: Arc::default(),
        };
        let task = liar.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                task.accepted.fetch_add(1, Ordering::Relaxed);
                let task = task.clone();
                tokio::spawn(async move {
                    let (read, mut write) = stream.into_split();
                    let mut read = BufReader::new(read);
                    while let Some(command) = command(&mut read).await {
                        let lie = task.lie.lock().unwrap().clone();
                        let answer = lie.and_then(|lie| lie(&command)).unwrap_or_else(|| truth(&command));
                        let (pause, more) = (*task.pause.lock().unwrap(), task.more.lock().unwrap().clone());
                        if write.write_all(&answer).await.is_err() {
                            return;
                        }
                        sleep(pause).await;
                        let Some((more, said)) = more else { continue };
                        while write.write_all(more.as_bytes()).await.is_ok() {
                            said.fetch_add(more.len(), Ordering::Relaxed);
                        }
                    }
                });
            }
        });
        liar
    }

    fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    fn provider(&self) -> RedisProvider {
        RedisProvider::builder(self.url())
            .connect_timeout(Duration::from_secs(1))
            .response_timeout(Duration::from_millis(500))
            .build()
            .unwrap()
    }

    fn accepted(&self) -> usize {
        self.accepted.load(Ordering::Relaxed)
    }

    /// From now on to all commands of this name.
    fn answers(&self, name: &'static str, answer: impl Into<Vec<u8>>) {
        let answer = answer.into();
        self.lies(move |command| command[0].eq_ignore_ascii_case(name).then(|| answer.clone()));
    }

    fn lies(&self, lie: impl Fn(&[String]) -> Option<Vec<u8>> + Send + Sync + 'static) {
        *self.lie.lock().unwrap() = Some(Arc::new(lie));
    }

    fn waits(&self, pause: Duration) {
        *self.pause.lock().unwrap() = pause;
    }

    fn goes_on(&self, more: String, said: &Arc<AtomicUsize>) {
        *self.more.lock().unwrap() = Some((more, Arc::clone(said)));
    }

    fn is_honest(&self) {
        *self.lie.lock().unwrap() = None;
        *self.pause.lock().unwrap() = Duration::ZERO;
        *self.more.lock().unwrap() = None;
    }
}

async fn command(read: &mut BufReader<OwnedReadHalf>) -> Option<Vec<String>> {
    let mut number = async || {
        let mut line = String::new();
        read.read_line(&mut line).await.ok()?;
        line.trim_end().get(1..)?.parse::<usize>().ok()
    };
    let count = number().await?;
    let mut arguments = Vec::new();
    for _ in 0..count {
        let mut line = String::new();
        read.read_line(&mut line).await.ok()?;
        let length: usize = line.trim_end().get(1..)?.parse().ok()?;
        let mut text = vec![0; length + 2];
        read.read_exact(&mut text).await.ok()?;
        text.truncate(length);
        arguments.push(String::from_utf8_lossy(&text).into_owned());
    }
    Some(arguments)
}

fn value_of(key: &str) -> String {
    let value = format!("v of {key}");
    format!("${}\r\n{value}\r\n", value.len())
}

fn truth(command: &[String]) -> Vec<u8> {
    match command[0].to_ascii_uppercase().as_str() {
        "HELLO" => "%1\r\n$6\r\nserver\r\n$5\r\nredis\r\n".into(),
        "TIME" => "*2\r\n$10\r\n1700000000\r\n$1\r\n0\r\n".into(),
        "INFO" => "$13\r\nrun_id:abcd\r\n\r\n".into(),
        "CLIENT" if command[1] == "ID" => ":7\r\n".into(),
        "CLIENT" if command[1] == "KILL" => ":0\r\n".into(),
        "ROLE" => "*3\r\n$6\r\nmaster\r\n:0\r\n*0\r\n".into(),
        "EVAL" | "EVALSHA" => ":0\r\n".into(),
        "EXEC" => "*1\r\n+OK\r\n".into(),
        "PING" => "+PONG\r\n".into(),
        "GET" => value_of(&command[1]).into(),
        "MGET" => {
            let values: String = command[1..].iter().map(|key| value_of(key)).collect();
            format!("*{}\r\n{values}", command.len() - 1).into()
        }
        _ => "+OK\r\n".into(),
    }
}

#[tokio::test]
async fn what_is_no_answer_to_a_look_up_ends_the_connection() {
    let liar = Liar::start().await;
    let provider = liar.provider();
    for answer in [
        ":1\r\n",
        "+OK\r\n",
        "*1\r\n$1\r\nv\r\n",
        "~1\r\n>1\r\n$1\r\nv\r\n",
        "|1\r\n$1\r\nv\r\n$1\r\nv\r\n$1\r\nw\r\n",
        ">1\r\n:1\r\n$1\r\nv\r\n",
        "=4\r\ntxt:\r\n",
        "$999999999999\r\nv\r\n",
        "HTTP/1.1 400 Bad Request\r\n",
        "\0\0\0\0\r\n",
        // None: the one to the question whether it is there is taken for it.
        "",
    ] {
        assert_eq!(get(&provider, "k").await.unwrap().as_deref(), Some("v of v:{users:k}"), "{answer:?}");
        let before = liar.accepted();
        liar.answers("GET", answer);
        let lied = timeout(HANG, get(&provider, "k")).await.unwrap();
        assert_eq!(kind(lied), ErrorKind::Protocol, "{answer:?}");
        liar.is_honest();
        assert!(timeout(HANG, get(&provider, "k")).await.unwrap().is_ok(), "{answer:?}");
        assert_eq!(liar.accepted(), before + 1, "{answer:?}");
    }
    liar.answers("MGET", "*1\r\n$1\r\nv\r\n");
    let lied = provider.get_many(&[key("a"), key("b")]).await;
    assert!(lied.into_iter().all(|found| kind(found) == ErrorKind::Protocol));
    let before = liar.accepted();
    assert!(get(&provider, "k").await.is_ok());
    assert_eq!(liar.accepted(), before + 1);
}

/// An answer to a write is missing. On a connection that is never idle each one that follows would go to who asked before.
#[tokio::test]
async fn who_is_given_the_answer_to_another_question_leaves_the_connection() {
    let liar = Liar::start().await;
    let provider = liar.provider();
    put(&provider, "w", "x").await;
    let once = AtomicUsize::new(0);
    liar.lies(move |command| {
        (command[0] == "EXEC" && once.fetch_add(1, Ordering::Relaxed) == 0).then(Vec::new)
    });
    let write = async { kind(provider.put(item("w", b"x")).await) };
    let reads = async {
        let mut wrong = 0;
        for n in 0..100 {
            let id = n.to_string();
            if let Ok(found) = timeout(HANG, get(&provider, &id)).await.unwrap() {
                wrong += u64::from(found != Some(format!("v of v:{{users:{id}}}")));
            }
        }
        wrong
    };
    let all = async { tokio::join!(write, reads) };
    assert_eq!(timeout(HANG, all).await.unwrap(), (ErrorKind::Protocol, 0));
}

/// The same where what is asked has answers of one form, so that none looks wrong.
#[tokio::test]
async fn a_connection_in_use_is_asked_now_and_then_whether_it_is_in_step() {
    let liar = Liar::start().await;
    let builder = RedisProvider::builder(liar.url()).heartbeat(Duration::from_millis(50));
    let provider = builder.build().unwrap();
    assert!(get(&provider, "k").await.is_ok());
    let before = liar.accepted();
    liar.waits(Duration::from_millis(1));
    let (asked, right, wrong) = (AtomicUsize::new(0), AtomicUsize::new(0), Arc::new(AtomicUsize::new(0)));
    let lies = Arc::new(AtomicUsize::new(0));
    let (told, noticed, accepted) = (Arc::clone(&lies), Arc::clone(&wrong), Arc::clone(&liar.accepted));
    liar.lies(move |command| {
        let is_time = command[0] == "MGET" && asked.fetch_add(1, Ordering::Relaxed) % 20 == 19;
        // Once, and on the next connection where nobody was waiting for an answer who could be given another's.
        let is_new = accepted.load(Ordering::Relaxed) == before + told.load(Ordering::Relaxed);
        let lie = is_time && is_new && noticed.load(Ordering::Relaxed) == 0;
        lie.then(|| {
            told.fetch_add(1, Ordering::Relaxed);
            [truth(command), truth(command)].concat()
        })
    });
    let reader = async |n: usize| {
        let id = n.to_string();
        let expected = format!("v of v:{{users:{id}}}");
        while right.load(Ordering::Relaxed) < 200 || wrong.load(Ordering::Relaxed) == 0 {
            let found = timeout(HANG, provider.get_many(&[key(&id), key(&id)])).await.unwrap();
            if found
                .into_iter()
                .all(|found| found.is_ok_and(|found| found.as_deref() == Some(expected.as_bytes())))
            {
                right.fetch_add(1, Ordering::Relaxed);
            } else {
                wrong.fetch_add(1, Ordering::Relaxed);
                right.store(0, Ordering::Relaxed);
            }
        }
    };
    timeout(HANG, join_all((0..4).map(reader))).await.expect("it heals");
    assert!(wrong.load(Ordering::Relaxed) > 0, "nobody has been lied to");
    assert_eq!(liar.accepted(), before + lies.load(Ordering::Relaxed));
}

/// A list has no bound of its own: each of its elements may be as large as a value.
#[tokio::test]
async fn an_answer_without_end_is_not_read_to_its_end() {
    let liar = Liar::start().await;
    let provider = RedisProvider::builder(liar.url()).value_max(1 << 20).build().unwrap();
    let sent = Arc::new(AtomicUsize::new(0));
    assert!(get(&provider, "k").await.is_ok());
    liar.answers("GET", "*1048576\r\n");
    liar.goes_on(format!("$1048576\r\n{}\r\n", "x".repeat(1 << 20)), &sent);
    let lied = timeout(HANG, get(&provider, "k")).await.unwrap();
    assert_eq!(kind(lied), ErrorKind::Protocol);
    assert!(sent.load(Ordering::Relaxed) < 100 << 20, "{sent:?}");
    liar.is_honest();
    assert!(timeout(HANG, get(&provider, "k")).await.unwrap().is_ok());
}
