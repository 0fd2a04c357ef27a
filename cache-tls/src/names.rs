//! The addresses of a name, as the system says.

use std::{
    collections::HashMap,
    io,
    net::{SocketAddr, ToSocketAddrs},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
};

use tokio::sync::watch;

/// Without ports, but with what else an address of IPv6 may have, its zone.
type Said = Result<Vec<SocketAddr>, Arc<io::Error>>;

/// Look-ups, and those that are under way.
///
/// The system may take half a minute for one that its servers do not answer, and there is no way to end it. So it has a thread of
/// its own, which no runtime waits for when it ends; and whoever asks meanwhile waits for the same one, as nobody is given as
/// much time as an answer may take that comes from the second server.
struct Names {
    ask: fn(&str) -> io::Result<Vec<SocketAddr>>,
    under_way: Mutex<HashMap<String, watch::Receiver<Option<Said>>>>,
}

/// Where a host is. It may be an address itself. Bounds no time; who gives up leaves a thread behind, one for each name.
///
/// # Errors
/// What the system says: the name is unknown, or nobody answers who may know it.
pub async fn addresses_of(host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
    static SYSTEM: std::sync::LazyLock<Arc<Names>> = std::sync::LazyLock::new(|| Names::asking(ask_system));
    if let Ok(address) = host.parse() {
        return Ok(vec![SocketAddr::new(address, port)]);
    }
    let mut addresses = SYSTEM.look_up(host).await?;
    addresses.iter_mut().for_each(|address| address.set_port(port));
    Ok(addresses)
}

fn ask_system(host: &str) -> io::Result<Vec<SocketAddr>> {
    Ok((host, 0).to_socket_addrs()?.collect())
}

impl Names {
    fn asking(ask: fn(&str) -> io::Result<Vec<SocketAddr>>) -> Arc<Self> {
        Arc::new(Self { ask, under_way: Mutex::default() })
    }

    async fn look_up(self: &Arc<Self>, host: &str) -> io::Result<Vec<SocketAddr>> {
        let mut said = self.join(host)?;
        let said = said.wait_for(Option::is_some).await.map_err(io::Error::other)?.clone();
        match said {
            Some(Ok(addresses)) => Ok(addresses),
            Some(Err(error)) => Err(io::Error::new(error.kind(), error)),
            None => Err(io::Error::other("no answer")),
        }
    }

    /// The look-up of this name that is under way, or a new one.
    fn join(self: &Arc<Self>, host: &str) -> io::Result<watch::Receiver<Option<Said>>> {
        let mut under_way = self.lock();
        // One whose thread has panicked is none.
        if let Some(said) = under_way.get(host).filter(|said| said.has_changed().is_ok()) {
            return Ok(said.clone());
        }
        let (say, said) = watch::channel(None);
        let (names, host) = (Arc::clone(self), host.to_owned());
        under_way.insert(host.clone(), said.clone());
        let asked = thread::Builder::new().name("look-up".to_owned()).spawn(move || {
            let answer = (names.ask)(&host).map_err(Arc::new);
            // Before it is known, so that nobody takes it for one that is under way.
            names.lock().remove(&host);
            say.send_replace(Some(answer));
        });
        // Without its thread it is none.
        asked.map(|_detached| said)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, watch::Receiver<Option<Said>>>> {
        self.under_way.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::atomic::{AtomicUsize, Ordering},
        time::{Duration, Instant},
    };

    use tokio::{runtime::Builder, time::timeout};

    use super::*;

    const LONG: Duration = Duration::from_millis(600);

    fn here() -> Vec<SocketAddr> {
        vec![SocketAddr::from(([127, 0, 0, 1], 0))]
    }

    /// As where the first of the system's servers does not answer: longer than a connection may take.
    #[tokio::test]
    async fn who_is_given_less_time_than_an_answer_takes_gets_it_in_the_end() {
        static ASKED: AtomicUsize = AtomicUsize::new(0);
        let names = Names::asking(|_| {
            ASKED.fetch_add(1, Ordering::SeqCst);
            thread::sleep(LONG);
            Ok(here())
        });
        let mut tries = 0;
        let found = loop {
            tries += 1;
            match timeout(LONG / 4, names.look_up("name")).await {
                Ok(found) => break found,
                Err(_elapsed) => assert!(tries < 100, "an answer"),
            }
        };
        assert_eq!((found.unwrap(), ASKED.load(Ordering::SeqCst)), (here(), 1));
        assert!(tries > 1);
        assert!(names.lock().is_empty());
        // It is not kept: where a name leads may change.
        names.look_up("name").await.unwrap();
        assert_eq!(ASKED.load(Ordering::SeqCst), 2);
    }

    #[test]
    fn a_runtime_does_not_wait_for_one_when_it_ends() {
        let names = Names::asking(|_| {
            thread::sleep(Duration::from_secs(60));
            Ok(here())
        });
        let runtime = Builder::new_current_thread().enable_all().build().unwrap();
        let given_up = runtime.block_on(async { timeout(LONG, names.look_up("name")).await });
        assert!(given_up.is_err());
        let start = Instant::now();
        drop(runtime);
        assert!(start.elapsed() < Duration::from_secs(30));
    }

    #[tokio::test]
    async fn what_the_system_says_is_passed_on() {
        let names = Names::asking(|host| match host {
            "panics" => std::panic::resume_unwind(Box::new("")),
            _ => Err(io::Error::new(io::ErrorKind::NotFound, "no such name")),
        });
        let error = names.look_up("name").await.unwrap_err();
        assert_eq!((error.kind(), error.to_string().as_str()), (io::ErrorKind::NotFound, "no such name"));
        for _ in 0..2 {
            assert!(names.look_up("panics").await.is_err());
        }
        assert_eq!(addresses_of("127.0.0.1", 7).await.unwrap(), [SocketAddr::from(([127, 0, 0, 1], 7))]);
        assert_eq!(addresses_of("::1", 7).await.unwrap().len(), 1);
        let zone = addresses_of("::1%1", 7).await.unwrap();
        assert!(matches!(zone[..], [SocketAddr::V6(it)] if it.scope_id() == 1 && it.port() == 7), "{zone:?}");
        let named = addresses_of("localhost", 7).await.unwrap();
        assert!(!named.is_empty() && named.iter().all(|it| it.port() == 7), "{named:?}");
    }
}
