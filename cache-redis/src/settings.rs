//! What a provider is built from.

use std::{fmt, path::PathBuf, time::Duration};

use cache_tls::{Files, Peer, Tls};

use crate::{
    Error, RedisProvider,
    address::{Address, Place, Secret},
    dial::Login,
};

/// The server's own limit on one value.
const VALUE_MAX: usize = 512 * 1024 * 1024;
const PREFIX_MAX: usize = 256;

const REDIS: Peer = Peer {
    name: "Redis",
    scheme: "rediss",
    plain: "use its tls-port, or redis://",
    client_ca: "tls-ca-cert-file",
    versions: "tls-protocols",
};

/// Checked settings.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) place: Place,
    pub(crate) tls: Option<Tls>,
    pub(crate) login: Login,
    pub(crate) sentinel_login: Login,
    /// Whether readers who accept stale answers may get them from replicas.
    pub(crate) read_replicas: bool,
    pub(crate) tracking: bool,
    pub(crate) prefix: String,
    pub(crate) connect_timeout: Duration,
    pub(crate) response_timeout: Duration,
    pub(crate) value_max: usize,
    pub(crate) heartbeat: Duration,
    pub(crate) heartbeat_timeout: Duration,
}

impl Settings {
    /// The longest silence of a backplane that goes unnoticed.
    pub(crate) fn silence(&self) -> Duration {
        self.heartbeat.saturating_add(self.heartbeat_timeout)
    }

    /// For how long memory is believed from the sending of the last heartbeat that was answered, while nobody says that one was
    /// not.
    pub(crate) fn trust(&self) -> Duration {
        self.silence().saturating_mul(2)
    }

    /// How often listeners are told of the gap again while there is no connection: whatever they have kept meanwhile may be
    /// wrong.
    pub(crate) fn blind(&self) -> Duration {
        self.silence().saturating_mul(5)
    }

    /// For how long memory is believed while there is no connection: beyond the time after which that is told again.
    pub(crate) fn blind_trust(&self) -> Duration {
        self.blind().saturating_add(self.trust())
    }
}

/// Builds a [`RedisProvider`]. See the [crate's front page](crate) for a table of the settings.
#[derive(Clone)]
#[must_use]
pub struct RedisProviderBuilder {
    url: String,
    user: Option<Secret>,
    password: Option<Secret>,
    database: Option<u32>,
    sentinel_user: Option<Secret>,
    sentinel_password: Option<Secret>,
    tls: Files,
    read_replicas: bool,
    tracking: bool,
    prefix: String,
    connect_timeout: Duration,
    response_timeout: Duration,
    value_max: usize,
    heartbeat: Duration,
    heartbeat_timeout: Duration,
}

impl RedisProviderBuilder {
    pub(crate) fn new(url: String) -> Self {
        Self {
            url,
            user: None,
            password: None,
            database: None,
            sentinel_user: None,
            sentinel_password: None,
            tls: Files::default(),
            read_replicas: false,
            tracking: true,
            prefix: String::new(),
            connect_timeout: Duration::from_secs(1),
            response_timeout: Duration::from_secs(2),
            value_max: VALUE_MAX,
            heartbeat: Duration::from_secs(1),
            heartbeat_timeout: Duration::from_secs(1),
        }
    }

    /// The ACL user; wins over the URL's.
    pub fn username(mut self, user: impl Into<String>) -> Self {
        self.user = Some(Secret(user.into()));
        self
    }

    /// The password; wins over the URL's. Nothing needs percent-encoding here.
    pub fn password(mut self, password: impl Into<String>) -> Self {
        self.password = Some(Secret(password.into()));
        self
    }

    /// The database's index; wins over the URL's.
    pub fn database(mut self, index: u32) -> Self {
        self.database = Some(index);
        self
    }

    /// The ACL user at the sentinels, which know nothing of the server's. Default: none.
    pub fn sentinel_username(mut self, user: impl Into<String>) -> Self {
        self.sentinel_user = Some(Secret(user.into()));
        self
    }

    /// The password at the sentinels. Default: none, whatever the server's is.
    pub fn sentinel_password(mut self, password: impl Into<String>) -> Self {
        self.sentinel_password = Some(Secret(password.into()));
        self
    }

    /// PEM file with the certificates of the authorities that may vouch for the server, instead of the system's. For
    /// `rediss://` only, like the two below.
    ///
    /// There is no way to leave the check out: a certificate of your own making is its own authority, so name it here.
    pub fn ca_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.tls.ca = Some(path.into());
        self
    }

    /// PEM files of a client certificate, with its chain, and of its key, for servers that want one. All files are read
    /// when the provider is built and again for each connection, so that renewed ones come into use.
    pub fn client_certificate(mut self, certificate: impl Into<PathBuf>, key: impl Into<PathBuf>) -> Self {
        self.tls.client = Some((certificate.into(), key.into()));
        self
    }

    /// The name that the server's certificate must be for. Default: the host that is connected to.
    pub fn tls_server_name(mut self, name: impl Into<String>) -> Self {
        self.tls.server_name = Some(name.into());
        self
    }

    /// Lets replicas answer those who accept stale answers ([`Access::AllowStale`](cache_core::Access::AllowStale)): all of
    /// a cluster, or one behind sentinels. Such an answer counts as stale, whatever its age, and is kept nowhere. Default:
    /// off.
    pub fn read_replicas(mut self, on: bool) -> Self {
        self.read_replicas = on;
        self
    }

    /// Whether a backplane that a configuration names has the server tell what changes ([`RedisProvider::backplane`], the
    /// default), or goes by messages ([`RedisProvider::messages`]).
    pub fn tracking(mut self, on: bool) -> Self {
        self.tracking = on;
        self
    }

    /// Goes in front of every key, to share a database with others. No braces, at most 256 bytes. Default: none.
    pub fn key_prefix(mut self, prefix: impl Into<String>) -> Self {
        self.prefix = prefix.into();
        self
    }

    /// How long one attempt to connect may take, handshake included. Default: 1 s.
    pub fn connect_timeout(mut self, limit: Duration) -> Self {
        self.connect_timeout = limit;
        self
    }

    /// How long the server may be silent while requests wait, before the connection counts as lost. Default: 2 s.
    ///
    /// A safety net, noticed within twice this time: single calls are bounded by the level that makes them. It must be
    /// long enough for the largest value to come over the network.
    pub fn response_timeout(mut self, limit: Duration) -> Self {
        self.response_timeout = limit;
        self
    }

    /// Largest item in bytes. Larger ones are refused and not sent; those that others have stored are misses, and beyond 1 MiB
    /// none of them is held in memory while it comes. Default and most: 512 MiB, the server's own limit.
    pub fn value_max(mut self, bytes: usize) -> Self {
        self.value_max = bytes;
        self
    }

    /// How often a backplane made from this provider sends itself a sign of life, and a connection in use is asked whether its
    /// answers are those to its questions. Default: 1 s.
    pub fn heartbeat(mut self, every: Duration) -> Self {
        self.heartbeat = every;
        self
    }

    /// How long the backplane waits for a heartbeat beyond its time: heartbeat and timeout together are the longest
    /// silence that goes unnoticed. Default: 1 s.
    pub fn heartbeat_timeout(mut self, limit: Duration) -> Self {
        self.heartbeat_timeout = limit;
        self
    }

    /// Checks the settings, and reads the files of TLS. Nothing connects, and no runtime is needed: the first call (or
    /// [`RedisProvider::connect`]) connects.
    ///
    /// # Errors
    /// [`ErrorKind::Config`](crate::ErrorKind::Config), naming field, value and fix.
    pub fn build(self) -> Result<RedisProvider, Error> {
        let address = Address::parse(&self.url)?;
        if self.prefix.contains(['{', '}']) || self.prefix.len() > PREFIX_MAX {
            let fix =
                format!("leave out braces, which name the cluster slot, and stay within {PREFIX_MAX} bytes");
            let value = match self.prefix.len() {
                ..=PREFIX_MAX => format!("{:?}", self.prefix),
                long => format!("({long} bytes)"),
            };
            return Err(Error::config("key_prefix", value, fix));
        }
        let span = Duration::from_millis(1)..=Duration::from_secs(3600);
        for (field, value) in [
            ("connect_timeout", self.connect_timeout),
            ("response_timeout", self.response_timeout),
            ("heartbeat", self.heartbeat),
            ("heartbeat_timeout", self.heartbeat_timeout),
        ] {
            if !span.contains(&value) {
                return Err(Error::config(field, format_args!("{value:?}"), "choose between 1 ms and 1 h"));
            }
        }
        if !(1..=VALUE_MAX).contains(&self.value_max) {
            return Err(Error::config("value_max", self.value_max, "choose between 1 byte and 512 MiB"));
        }
        let login = Login {
            user: self.user.or(address.login.user),
            password: self.password.or(address.login.password),
            database: self.database.map_or(address.login.database, i64::from),
            ..Login::default()
        };
        let sentinel_login = Login {
            at_sentinels: true,
            user: self.sentinel_user,
            password: self.sentinel_password,
            ..Login::default()
        };
        if matches!(address.place, Place::Cluster { .. }) && login.database != 0 {
            return Err(Error::config(
                "database",
                login.database,
                "a cluster has one database: leave it out",
            ));
        }
        for (field, login) in [("password", &login), ("sentinel_password", &sentinel_login)] {
            if login.user.is_some() && login.password.is_none() {
                return Err(Error::config(field, "(none)", "a user is given: set its password, too"));
            }
        }
        if self.read_replicas && matches!(address.place, Place::One(_)) {
            let fix = "one server's URL names no replicas: use redis+sentinel:// or redis+cluster://, or leave it out";
            return Err(Error::config("read_replicas", true, fix));
        }
        if sentinel_login.password.is_some() && !matches!(address.place, Place::Sentinels { .. }) {
            let fix = "the URL names no sentinels: use redis+sentinel://, or leave it out";
            return Err(Error::config("sentinel_password", "***", fix));
        }
        let tls = match address.tls {
            true => Some(Tls::new(REDIS, self.tls)?),
            false => {
                self.tls.refuse(REDIS)?;
                None
            }
        };
        Ok(RedisProvider::new(Settings {
            place: address.place,
            tls,
            login,
            sentinel_login,
            read_replicas: self.read_replicas,
            tracking: self.tracking,
            prefix: self.prefix,
            connect_timeout: self.connect_timeout,
            response_timeout: self.response_timeout,
            value_max: self.value_max,
            heartbeat: self.heartbeat,
            heartbeat_timeout: self.heartbeat_timeout,
        }))
    }
}

/// Neither URL nor credentials are shown.
impl fmt::Debug for RedisProviderBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisProviderBuilder")
            .field("key_prefix", &self.prefix)
            .field("tls", &self.tls)
            .field("read_replicas", &self.read_replicas)
            .field("tracking", &self.tracking)
            .field("connect_timeout", &self.connect_timeout)
            .field("response_timeout", &self.response_timeout)
            .field("value_max", &self.value_max)
            .field("heartbeat", &self.heartbeat)
            .field("heartbeat_timeout", &self.heartbeat_timeout)
            .finish_non_exhaustive()
    }
}
