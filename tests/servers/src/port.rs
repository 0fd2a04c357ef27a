//! Free loopback ports.

use std::{
    collections::HashSet,
    net::TcpListener,
    sync::{Mutex, PoisonError},
};

/// Below the range from which systems hand out local ports of outgoing connections (32768 and up on Linux), so that a
/// server which is down for a moment finds its port free when it comes back. Room above for a cluster bus port.
const RANGE: std::ops::Range<u16> = 10_240..22_000;
/// What Redis adds to a node's port for the cluster bus. A server of its own takes that port for TLS, as memcached does; a
/// node's is as far beyond.
pub(crate) const BUS: u16 = 10_000;

static TAKEN: Mutex<Option<HashSet<u16>>> = Mutex::new(None);

fn is_free(port: u16) -> bool {
    TcpListener::bind(("127.0.0.1", port)).is_ok()
}

/// A port that was free a moment ago, as was its bus port. Not given out twice in this process; another process may
/// still take it, so start-up must cope.
pub fn free() -> u16 {
    for _ in 0..2_000 {
        let port = fastrand::u16(RANGE);
        if is_free(port) && is_free(port + BUS) {
            let mut taken = TAKEN.lock().unwrap_or_else(PoisonError::into_inner);
            if taken.get_or_insert_default().insert(port) {
                return port;
            }
        }
    }
    panic!("no free loopback port in {RANGE:?}");
}
