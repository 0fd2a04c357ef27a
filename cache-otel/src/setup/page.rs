//! The page that Prometheus scrapes.
//!
//! A few threads of its own, so that it answers whatever the service's runtime is busy with.

use std::{
    io::{self, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use opentelemetry::Context;
use prometheus::{Registry, TextEncoder};

use super::{Meters, SetupError};

/// Scrapers at a time. More are turned away.
const AT_ONCE: usize = 4;
/// For one request and its answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// Of a request's head; a scraper's has some hundred bytes.
const HEAD_MAX: usize = 16 * 1024;

/// What Prometheus gets, and where. Ends when dropped.
pub(crate) struct Page {
    /// `None`: the service shows it itself.
    address: Option<SocketAddr>,
    registry: Registry,
    over: Arc<AtomicBool>,
    /// Has the address for as long as it runs.
    listens: Option<JoinHandle<()>>,
}

/// Opens the page at an address, if there is one, for what a provider collects.
pub(crate) fn open(meters: Meters, at: Option<SocketAddr>) -> Result<(Meters, Page), SetupError> {
    let refuse = |error: &dyn std::fmt::Display| {
        let at = at.map_or_else(|| "none".to_owned(), |at| at.to_string());
        SetupError::new("Setup::prometheus (OTEL_EXPORTER_PROMETHEUS_HOST, _PORT)", at, error)
    };
    let registry = Registry::new();
    let exporter = opentelemetry_prometheus::exporter()
        .with_registry(registry.clone())
        // One scope, said in every label: nothing to tell apart.
        .scope_info_enabled(false)
        .build()
        .map_err(|error| refuse(&error))?;
    let over = Arc::new(AtomicBool::new(false));
    let meters = meters.with_reader(exporter);
    let Some(at) = at else { return Ok((meters, Page { address: None, registry, over, listens: None })) };
    let listener = TcpListener::bind(at).map_err(|error| refuse(&error))?;
    let address = listener.local_addr().map_err(|error| refuse(&error))?;
    let (shown, ends) = (registry.clone(), Arc::clone(&over));
    let listens = std::thread::Builder::new()
        .name("otel-page".into())
        .spawn(move || serve(&listener, &shown, &ends))
        .map_err(|error| refuse(&error))?;
    Ok((meters, Page { address: Some(address), registry, over, listens: Some(listens) }))
}

impl Page {
    pub(crate) const fn address(&self) -> Option<SocketAddr> {
        self.address
    }

    pub(crate) fn text(&self) -> String {
        text(&self.registry)
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Release);
        // Wakes it from its wait for a caller.
        let woken = self
            .address
            .is_some_and(|at| TcpStream::connect_timeout(&at, Duration::from_millis(100)).is_ok());
        // Whoever starts anew may want the same address.
        if let Some(listens) = self.listens.take().filter(|_| woken) {
            let _ = listens.join();
        }
    }
}

fn text(registry: &Registry) -> String {
    let _quiet = Context::enter_telemetry_suppressed_scope();
    TextEncoder::new().encode_to_string(&registry.gather()).unwrap_or_default()
}

fn serve(listener: &TcpListener, registry: &Registry, over: &AtomicBool) {
    let busy = Arc::new(AtomicUsize::new(0));
    for caller in listener.incoming() {
        if over.load(Ordering::Acquire) {
            return;
        }
        let Ok(caller) = caller else {
            // Out of descriptors, say: that passes.
            std::thread::sleep(Duration::from_millis(50));
            continue;
        };
        if busy.load(Ordering::Acquire) >= AT_ONCE {
            continue;
        }
        busy.fetch_add(1, Ordering::AcqRel);
        let (registry, done) = (registry.clone(), Done(Arc::clone(&busy)));
        // Where no thread is to be had, the caller is turned away and `done` dropped.
        let _ = std::thread::Builder::new().name("otel-scrape".into()).spawn(move || {
            let _done = done;
            // Whoever has left wants no answer.
            let _ = answer(caller, &registry);
        });
    }
}

struct Done(Arc<AtomicUsize>);

impl Drop for Done {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

fn answer(mut caller: TcpStream, registry: &Registry) -> io::Result<()> {
    let until = Instant::now() + PATIENCE;
    let mut head = Vec::new();
    let mut chunk = [0; 1024];
    while !head.windows(4).any(|end| end == b"\r\n\r\n") {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() || head.len() > HEAD_MAX {
            return Ok(());
        }
        caller.set_read_timeout(Some(left))?;
        match caller.read(&mut chunk)? {
            0 => return Ok(()),
            read => head.extend_from_slice(&chunk[..read]),
        }
    }
    let line = head.split(|byte| *byte == b'\r').next().unwrap_or_default();
    let mut words = line.split(|byte| *byte == b' ');
    let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let path = path.split(|byte| *byte == b'?').next().unwrap_or_default();
    let (status, kind, body) = match (method, path) {
        (b"GET" | b"HEAD", b"/metrics") => {
            ("200 OK", "text/plain; version=0.0.4; charset=utf-8", text(registry))
        }
        (b"GET" | b"HEAD", _) => ("404 Not Found", "text/plain", "see /metrics\n".to_owned()),
        _ => ("405 Method Not Allowed\r\nAllow: GET, HEAD", "text/plain", "GET only\n".to_owned()),
    };
    let length = body.len();
    let mut answer = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n"
    );
    if method != b"HEAD" {
        answer.push_str(&body);
    }
    send(&mut caller, answer.as_bytes(), until)
}

/// Who reads a little now and then must not keep the place of others.
fn send(caller: &mut TcpStream, mut bytes: &[u8], until: Instant) -> io::Result<()> {
    while !bytes.is_empty() {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        caller.set_write_timeout(Some(left))?;
        match caller.write(bytes)? {
            0 => return Err(io::ErrorKind::WriteZero.into()),
            sent => bytes = bytes.get(sent..).unwrap_or_default(),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_reads_slowly_does_not_stay() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut slow = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut caller, _) = listener.accept().unwrap();
        let begun = Instant::now();
        let sending = std::thread::spawn(move || {
            // More than the system takes in advance.
            send(&mut caller, &vec![0; 64 << 20], begun + Duration::from_millis(300))
        });
        let mut some = vec![0; 64 << 10];
        while !sending.is_finished() {
            let _ = slow.read(&mut some);
            std::thread::sleep(Duration::from_millis(50));
        }
        assert!(sending.join().unwrap().is_err());
        assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
    }
}
