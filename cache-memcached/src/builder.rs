//! Settings, checked before any I/O.

use std::{
    fmt,
    path::PathBuf,
    sync::{Arc, Mutex},
    time::Duration,
};

use cache_tls::{Files, Tls};
use xxhash_rust::xxh3::xxh3_64;

use crate::{
    Error, ErrorKind, MemcachedProvider,
    breaker::Breaker,
    dial::{Dial, MEMCACHED},
    endpoint::Endpoint,
    item::HEAD,
    life::{Knowledge, Polling},
    login::Login,
    pipeline::{Made, Pipeline},
    provider::Inner,
    route::Placement,
    server::Server,
    transport::{Limits, Transport, Wire},
    wire::is_plain,
};

/// 1 MiB, the server's default item limit, less room for its item header, the key, and the headers of a chunked item
/// (together under 330 bytes on 1.6.18).
const VALUE_MAX: usize = (1 << 20) - (1 << 10);
/// The server's own ceiling for `-I`.
const VALUE_CEILING: usize = 1 << 30;
/// Leaves room for a namespace and a digest.
const PREFIX_MAX: usize = 100;

/// Builds a [`MemcachedProvider`]; see the table in the [crate docs](crate#settings).
#[must_use]
#[derive(Clone)]
pub struct Builder {
    urls: Vec<String>,
    retiring: Vec<String>,
    login: Option<(String, String)>,
    tls: Files,
    key_prefix: String,
    connect_timeout: Duration,
    response_timeout: Duration,
    value_max: usize,
    #[cfg(feature = "client")]
    pool: Option<usize>,
    failures: u32,
    cool_down: Duration,
}

impl Builder {
    pub(crate) fn new(url: String) -> Self {
        Self {
            urls: vec![url],
            retiring: Vec::new(),
            login: None,
            tls: Files::default(),
            key_prefix: String::new(),
            connect_timeout: Duration::from_secs(1),
            response_timeout: Duration::from_millis(500),
            value_max: VALUE_MAX,
            #[cfg(feature = "client")]
            pool: None,
            failures: 5,
            cool_down: Duration::from_millis(500),
        }
    }

    /// Adds a server: `memcached://host[:port]`, port 11211 by default; `memcacheds://` for TLS. Every process must name the
    /// servers alike (order does not matter), since the name decides which keys live there.
    pub fn server(mut self, url: impl Into<String>) -> Self {
        self.urls.push(url.into());
        self
    }

    /// Adds several servers.
    pub fn servers<S: Into<String>>(mut self, urls: impl IntoIterator<Item = S>) -> Self {
        self.urls.extend(urls.into_iter().map(Into::into));
        self
    }

    /// The servers of another list that is in use as well while processes move from one to the other: what this provider
    /// sets, removes and clears is taken from there, too, at the price of a round trip. See
    /// [A list that changes](crate#a-list-that-changes). A server of it that cannot be reached makes invalidations
    /// `Pending`, so name none that has been switched off.
    pub fn retiring<S: Into<String>>(mut self, urls: impl IntoIterator<Item = S>) -> Self {
        self.retiring.extend(urls.into_iter().map(Into::into));
        self
    }

    /// User and password at every server: the login of the text protocol, which servers want that were started with
    /// `-Y FILE`. Without TLS it crosses the network in the clear, as does all else; and SASL (`-S`) is something else, which
    /// no server offers together with the meta protocol.
    /// A server that asks for none is not told.
    pub fn login(mut self, username: impl Into<String>, password: impl Into<String>) -> Self {
        self.login = Some((username.into(), password.into()));
        self
    }

    /// PEM file with the certificates of the authorities that may vouch for the servers, instead of the system's. For
    /// `memcacheds://` only, like the two below, and for all servers alike.
    ///
    /// There is no way to leave the check out: a certificate of your own making is its own authority, so name it here.
    pub fn ca_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.tls.ca = Some(path.into());
        self
    }

    /// PEM files of a client certificate, with its chain, and of its key, for servers that want one (`ssl_verify_mode`).
    /// All files are read when the provider is built and again for each connection, so that renewed ones come into use.
    pub fn client_certificate(mut self, certificate: impl Into<PathBuf>, key: impl Into<PathBuf>) -> Self {
        self.tls.client = Some((certificate.into(), key.into()));
        self
    }

    /// The name that the servers' certificates must be for. Default: the host that is connected to.
    pub fn tls_server_name(mut self, name: impl Into<String>) -> Self {
        self.tls.server_name = Some(name.into());
        self
    }

    /// Goes in front of every key, so that applications can share a server. Printable, no spaces, at most 100 bytes.
    pub fn key_prefix(mut self, prefix: impl Into<String>) -> Self {
        self.key_prefix = prefix.into();
        self
    }

    /// How long a look-up, a connect and a handshake of TLS may take together; where pooled, waiting for a free connection
    /// counts, too. Default 1 s; 1 ms to 1 h.
    pub fn connect_timeout(mut self, limit: Duration) -> Self {
        self.connect_timeout = limit;
        self
    }

    /// How long one exchange may take on an established connection. Default 500 ms; 1 ms to 1 h. Short budgets of single
    /// callers belong elsewhere (they may drop a call at any time): when this passes, the connection is given up.
    pub fn response_timeout(mut self, limit: Duration) -> Self {
        self.response_timeout = limit;
        self
    }

    /// Largest item in bytes; larger ones are refused with [`ErrorKind::TooLarge`] and not sent. Default 1 MiB less 1 KiB,
    /// which fits the server's default `-I 1m`; stay 1 KiB below the server's own limit.
    pub fn value_max(mut self, bytes: usize) -> Self {
        self.value_max = bytes;
        self
    }

    /// After `failures` in a row a server is left alone for `cool_down`, then one request finds out. Default 5 and 500 ms.
    pub fn breaker(mut self, failures: u32, cool_down: Duration) -> Self {
        self.failures = failures;
        self.cool_down = cool_down;
        self
    }

    /// Uses a pool of connections with one exchange at a time on each, up to so many per server (whose own limit, `-c`, is
    /// 1024 for all clients together), instead of one pipelined connection. A pool costs more than twice the processor time
    /// under load, and keeps no leases: it does not say which connection a command ran on, and so not whether the server
    /// is still the same. It may help where items are so large that one connection is full.
    #[cfg(feature = "client")]
    pub fn pooled(mut self, connections: usize) -> Self {
        self.pool = Some(connections);
        self
    }

    /// Checks the settings. Connects nothing: a server that is down now may be up when it is needed.
    ///
    /// # Errors
    /// [`ErrorKind::Config`], naming field, value and fix.
    pub fn build(self) -> Result<MemcachedProvider, Error> {
        let mut endpoints = parsed("server", &self.urls)?;
        let retiring = parsed("retiring", &self.retiring)?;
        self.check(&endpoints, &retiring)?;
        let places = |list: &[Endpoint], all: &[Endpoint]| {
            let at = |endpoint| all.iter().position(|one| one == endpoint).unwrap_or_default();
            let names: Vec<String> = list.iter().map(ToString::to_string).collect();
            Placement::new(&names, list.iter().map(at).collect())
        };
        let current = endpoints.len();
        let placement = places(&endpoints, &endpoints);
        let others = retiring.iter().filter(|endpoint| !endpoints.contains(endpoint)).cloned();
        let others: Vec<Endpoint> = others.collect();
        endpoints.extend(others);
        let login = match self.login {
            Some((user, password)) => Some(Login::new(user, password).map_err(config)?),
            None => None,
        };
        let tls = match endpoints.iter().any(|endpoint| endpoint.tls) {
            true => Some(Tls::new(MEMCACHED, self.tls)?),
            false => {
                self.tls.refuse(MEMCACHED)?;
                None
            }
        };
        let retiring = (!retiring.is_empty()).then(|| places(&retiring, &endpoints));
        let life_key = match placement.list {
            0 => format!("{}~life", self.key_prefix),
            list => format!("{}~life-{list:016x}", self.key_prefix),
        };
        let limits =
            Limits { connect_timeout: self.connect_timeout, response_timeout: self.response_timeout };
        let made = Made::default();
        let pipeline = |dial: &Dial| {
            let most = self.value_max + HEAD;
            Wire::Pipeline(Pipeline::new(dial.clone(), limits, most, Arc::clone(&made)))
        };
        #[cfg(not(feature = "client"))]
        let transport = pipeline;
        #[cfg(feature = "client")]
        let transport = |dial: &Dial| match self.pool {
            Some(most) => Wire::Pool(crate::exp::Pool::new(dial.endpoint.clone(), limits, most)),
            None => pipeline(dial),
        };
        let servers = endpoints.into_iter().map(|endpoint| {
            let tls = tls.clone().filter(|_| endpoint.tls);
            let dial = Dial { endpoint, tls, login: login.clone() };
            Server {
                number: xxh3_64(dial.endpoint.to_string().as_bytes()),
                transport: transport(&dial),
                dial,
                breaker: Breaker::new(self.failures, self.cool_down),
                last: Mutex::default(),
                life_key: life_key.clone(),
                life: Knowledge::default(),
                response_timeout: self.response_timeout,
            }
        });
        let servers: Vec<Server> = servers.collect();
        Ok(MemcachedProvider(Arc::new(Inner {
            leases: servers.iter().all(|server| server.transport.is_linked()),
            servers,
            made,
            current,
            placement,
            retiring,
            prefix: self.key_prefix,
            value_max: self.value_max,
            closed: false.into(),
            polling: Polling::default(),
        })))
    }

    /// What can be seen to be wrong without the machine: no file is read.
    fn check(&self, endpoints: &[Endpoint], retiring: &[Endpoint]) -> Result<(), Error> {
        if endpoints.is_empty() {
            return Err(config("server: none is given; name at least one as memcached://host:port"));
        }
        // What has no end cannot be added to a moment.
        let span = Duration::from_millis(1)..=Duration::from_secs(3600);
        for (field, limit) in
            [("connect_timeout", self.connect_timeout), ("response_timeout", self.response_timeout)]
        {
            if !span.contains(&limit) {
                return Err(config(format!("{field} = {limit:?}: choose between 1 ms and 1 h")));
            }
        }
        if self.cool_down.is_zero() {
            return Err(config("breaker.cool_down = 0: no call could succeed; give it a time above zero"));
        }
        if !(1..=VALUE_CEILING).contains(&self.value_max) {
            let value = self.value_max;
            return Err(config(format!("value_max = {value}: choose 1 to {VALUE_CEILING} bytes (1 GiB)")));
        }
        if self.failures == 0 {
            return Err(config("breaker.failures = 0: it would never be closed; allow at least 1"));
        }
        if self.key_prefix.len() > PREFIX_MAX || !self.key_prefix.bytes().all(is_plain) {
            let value = &self.key_prefix;
            let fix = format!("use at most {PREFIX_MAX} bytes without spaces and control characters");
            return Err(config(format!("key_prefix = {value:?}: {fix}")));
        }
        let listed = endpoints.len();
        if retiring.len() == listed && retiring.iter().all(|endpoint| endpoints.contains(endpoint)) {
            let fix = "name those of the list that is being left, or leave it out";
            return Err(config(format!("retiring = {listed} servers: the same as the list itself; {fix}")));
        }
        #[cfg(feature = "client")]
        self.check_pool(endpoints, retiring)?;
        Ok(())
    }

    /// What the pool's client cannot do.
    #[cfg(feature = "client")]
    fn check_pool(&self, endpoints: &[Endpoint], retiring: &[Endpoint]) -> Result<(), Error> {
        match self.pool {
            None => Ok(()),
            Some(0) => Err(config("pooled = 0: no call could succeed; allow at least 1 connection")),
            Some(_) if self.login.is_some() => {
                Err(config("login: not with `pooled`, whose client cannot log in; drop one"))
            }
            Some(_) if !retiring.is_empty() => {
                Err(config("retiring: not with `pooled`, which has no compare-and-swap for marks; drop one"))
            }
            Some(_) if endpoints.iter().any(|endpoint| endpoint.tls) => {
                Err(config("server: memcacheds:// is not with `pooled`, whose client has no TLS; drop one"))
            }
            Some(_) => Ok(()),
        }
    }
}

fn parsed(field: &str, urls: &[String]) -> Result<Vec<Endpoint>, Error> {
    let mut endpoints: Vec<Endpoint> = Vec::with_capacity(urls.len());
    for url in urls {
        let endpoint = Endpoint::parse(field, url)?;
        if endpoints.contains(&endpoint) {
            return Err(config(format!("{field} = \"{endpoint}\": named twice; name each server once")));
        }
        endpoints.push(endpoint);
    }
    Ok(endpoints)
}

fn config(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::Config, message)
}

/// URLs are not shown: before they are checked, they may hold a password.
impl fmt::Debug for Builder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Builder")
            .field("servers", &self.urls.len())
            .field("retiring", &self.retiring.len())
            .field("key_prefix", &self.key_prefix)
            .field("tls", &self.tls)
            .field("connect_timeout", &self.connect_timeout)
            .field("response_timeout", &self.response_timeout)
            .field("value_max", &self.value_max)
            .finish_non_exhaustive()
    }
}
