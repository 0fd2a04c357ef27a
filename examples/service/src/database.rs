//! The database: SQLite in a file, made and filled on the first start.

use std::{
    fmt, io,
    path::Path,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use cache_otel::raw::{Class, ClientTelemetry, Command, Failed, Failure, PoolState, PoolTelemetry};
use liblzma::bufread::XzDecoder;
use opentelemetry::Context;
use rusqlite::{Connection, OptionalExtension, Row, Transaction, params};
use tokio::sync::Semaphore;
use traced_cache::BoxError;

use crate::airport::{Airport, Size};

/// See `data/README.md`: where it is from, and under which licence.
const AIRPORTS: &[u8] = include_bytes!("../data/airports.tsv.xz");
/// Of the tables below, kept in the file.
const VERSION: i64 = 1;
/// At once: SQLite reads in parallel and writes one at a time.
const CONNECTIONS: usize = 4;

const TABLES: &str = "
    CREATE TABLE airports (
        code TEXT PRIMARY KEY,
        iata TEXT,
        name TEXT NOT NULL,
        country TEXT NOT NULL,
        time_zone TEXT NOT NULL,
        latitude REAL NOT NULL,
        longitude REAL NOT NULL,
        elevation_ft INTEGER,
        size TEXT NOT NULL,
        runway_ft INTEGER
    ) WITHOUT ROWID;
    CREATE INDEX airports_by_place ON airports (latitude, longitude);
";

const COLUMNS: &str =
    "code, iata, name, country, time_zone, latitude, longitude, elevation_ft, size, runway_ft";

/// The nearest of those within about two degrees; the earth is flat enough for that.
const NEAR: &str = "
    SELECT code FROM airports
    WHERE latitude BETWEEN ?1 - 2 AND ?1 + 2 AND longitude BETWEEN ?2 - 4 AND ?2 + 4 AND code <> ?3
    ORDER BY (latitude - ?1) * (latitude - ?1) + (longitude - ?2) * (longitude - ?2) * ?4
    LIMIT 5
";

/// A handle; clones share one pool of connections.
#[derive(Clone)]
pub struct Database(Arc<Inner>);

struct Inner {
    idle: Mutex<Vec<Connection>>,
    turns: Arc<Semaphore>,
    /// Callers without a turn.
    waiting: Arc<AtomicU32>,
    telemetry: ClientTelemetry,
    /// Reports how the pool stands, for as long as this is kept.
    pool: PoolTelemetry,
}

/// Who waits is counted until he has a turn, or leaves.
struct Waits<'a>(&'a AtomicU32);

impl<'a> Waits<'a> {
    fn begin(waiting: &'a AtomicU32) -> Self {
        waiting.fetch_add(1, Ordering::Relaxed);
        Self(waiting)
    }
}

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Of the telemetry, which counts in so many bits.
fn many(connections: usize) -> u32 {
    u32::try_from(connections).unwrap_or(u32::MAX)
}

/// What SQLite says is wrong, without the statement or its values.
#[derive(Debug)]
pub struct DatabaseError(rusqlite::Error);

impl fmt::Display for DatabaseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            rusqlite::Error::SqliteFailure(error, _) => write!(f, "the database: {error}"),
            rusqlite::Error::SqlInputError { error, .. } => write!(f, "the database: {error}"),
            _ => f.write_str("the database has given an answer of another form"),
        }
    }
}

impl std::error::Error for DatabaseError {}

impl From<rusqlite::Error> for DatabaseError {
    fn from(error: rusqlite::Error) -> Self {
        Self(error)
    }
}

impl Failure for DatabaseError {
    fn describe(&self) -> Failed {
        match self.0.sqlite_error_code() {
            Some(rusqlite::ErrorCode::DatabaseBusy | rusqlite::ErrorCode::DatabaseLocked) => Failed::TIMEOUT,
            Some(rusqlite::ErrorCode::CannotOpen | rusqlite::ErrorCode::NotADatabase) => Failed::CONNECTION,
            _ => Failed::command(None),
        }
    }
}

impl Database {
    /// Opens the file; makes and fills it, if it is not there. Says whether it did. Blocks. Queries are reported to `telemetry`.
    ///
    /// # Errors
    /// It cannot be opened or is something else; in a sentence that says what to do.
    pub fn open(path: &Path, telemetry: ClientTelemetry) -> Result<(Self, bool), BoxError> {
        let cannot = |error: &dyn fmt::Display, fix: &str| -> BoxError {
            format!("database {}: {error}; {fix}", path.display()).into()
        };
        let open = || {
            let connection = Connection::open(path)?;
            connection.busy_timeout(Duration::from_secs(1))?;
            connection.pragma_update(None, "journal_mode", "wal")?;
            connection.pragma_update(None, "synchronous", "normal")?;
            Ok::<_, DatabaseError>(connection)
        };
        let fix = "name a file in a folder that may be written to with --database";
        let mut first = open().map_err(|error| cannot(&error, fix))?;
        let made = fill(&mut first).map_err(|error| cannot(&error, "delete the file, or name another"))?;
        let mut idle = vec![first];
        while idle.len() < CONNECTIONS {
            idle.push(open().map_err(|error| cannot(&error, fix))?);
        }
        let (turns, waiting) = (Arc::new(Semaphore::new(CONNECTIONS)), Arc::new(AtomicU32::new(0)));
        let (free, wait) = (Arc::clone(&turns), Arc::clone(&waiting));
        let pool = telemetry.pool("airports").observe(move || {
            let idle = free.available_permits();
            let used = many(CONNECTIONS - idle);
            let pending = wait.load(Ordering::Relaxed);
            Some(PoolState { used, idle: many(idle), max: many(CONNECTIONS), pending })
        });
        let inner = Inner { idle: Mutex::new(idle), turns, waiting, telemetry, pool };
        Ok((Self(Arc::new(inner)), made))
    }

    /// SQLite blocks, so it works on a thread for that; the query's span is a child of the caller's.
    async fn run<R: Send + 'static>(
        &self,
        statement: &'static str,
        class: Class,
        work: impl FnOnce(&mut Connection) -> Result<R, rusqlite::Error> + Send + 'static,
    ) -> Result<R, BoxError> {
        let Self(inner) = self.clone();
        let context = Context::current();
        let asked = Instant::now();
        let waits = Waits::begin(&inner.waiting);
        let turn = Arc::clone(&inner.turns).acquire_owned().await?;
        drop(waits);
        inner.pool.acquired(asked.elapsed());
        let ended = tokio::task::spawn_blocking(move || {
            // Until its connection is given back: a caller who leaves, or runs into a limit, does not end the query.
            let _turn = turn;
            let _within = context.attach();
            let mut command = Command::named(statement);
            command.class = class;
            let mut borrowed = Borrowed::from(&inner);
            inner.telemetry.run_blocking(command, || Ok::<_, DatabaseError>(work(borrowed.connection()?)?))
        });
        Ok(ended.await??)
    }

    /// One airport, if there is one of that code.
    ///
    /// # Errors
    /// The database's.
    pub async fn airport(&self, code: &str) -> Result<Option<Airport>, BoxError> {
        let code = code.to_owned();
        self.run("SELECT", Class::Read, move |db| {
            let query = format!("SELECT {COLUMNS} FROM airports WHERE code = ?1");
            let found = db.prepare_cached(&query)?.query_row([code], read).optional()?;
            found.map(|airport| with_near(db, airport)).transpose()
        })
        .await
    }

    /// Many airports in one query; those that do not exist are left out.
    ///
    /// # Errors
    /// The database's.
    pub async fn airports(&self, codes: &[String]) -> Result<Vec<Airport>, BoxError> {
        let codes = serde_json::to_string(codes)?;
        self.run("SELECT", Class::Read, move |db| {
            let query = format!(
                "SELECT {COLUMNS} FROM json_each(?1) AS wanted JOIN airports ON airports.code = wanted.value"
            );
            let found: Vec<Airport> =
                db.prepare_cached(&query)?.query_map([codes], read)?.collect::<Result<_, _>>()?;
            found.into_iter().map(|airport| with_near(db, airport)).collect()
        })
        .await
    }

    /// The codes of the nearest others.
    ///
    /// # Errors
    /// The database's.
    pub async fn near(&self, airport: Airport) -> Result<Airport, BoxError> {
        self.run("SELECT", Class::Read, move |db| with_near(db, airport)).await
    }

    /// Stores an airport, new or not.
    ///
    /// # Errors
    /// The database's.
    pub async fn save(&self, airport: Airport) -> Result<(), BoxError> {
        self.run("INSERT", Class::Write, move |db| {
            insert(db, &airport, "INSERT OR REPLACE")?;
            Ok(())
        })
        .await
    }

    /// Deletes an airport.
    ///
    /// # Errors
    /// The database's.
    pub async fn delete(&self, code: &str) -> Result<(), BoxError> {
        let code = code.to_owned();
        self.run("DELETE", Class::Delete, move |db| {
            db.execute("DELETE FROM airports WHERE code = ?1", [code])?;
            Ok(())
        })
        .await
    }

    /// All codes in order.
    ///
    /// # Errors
    /// The database's.
    pub async fn codes(&self) -> Result<Vec<String>, BoxError> {
        self.run("SELECT", Class::Read, |db| {
            db.prepare("SELECT code FROM airports ORDER BY code")?.query_map([], |row| row.get(0))?.collect()
        })
        .await
    }

    /// A sign of life.
    ///
    /// # Errors
    /// The database's.
    pub async fn ping(&self) -> Result<(), BoxError> {
        self.run("SELECT", Class::Read, |db| {
            db.query_row("SELECT 1 FROM airports LIMIT 1", [], |_| Ok(())).optional().map(|_| ())
        })
        .await
    }

    /// Connections in use, and in all.
    #[must_use]
    pub fn connections(&self) -> (usize, usize) {
        (CONNECTIONS - self.0.turns.available_permits(), CONNECTIONS)
    }
}

impl fmt::Debug for Database {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Database").finish_non_exhaustive()
    }
}

/// A connection that goes back when dropped, also by a panic.
struct Borrowed<'a> {
    from: &'a Inner,
    connection: Option<Connection>,
}

impl<'a> From<&'a Arc<Inner>> for Borrowed<'a> {
    fn from(from: &'a Arc<Inner>) -> Self {
        let connection = from.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        Self { from, connection }
    }
}

impl Borrowed<'_> {
    fn connection(&mut self) -> Result<&mut Connection, rusqlite::Error> {
        // Whoever has a turn finds one: there are as many.
        self.connection.as_mut().ok_or(rusqlite::Error::InvalidQuery)
    }
}

impl Drop for Borrowed<'_> {
    fn drop(&mut self) {
        if let Some(connection) = self.connection.take() {
            self.from.idle.lock().unwrap_or_else(PoisonError::into_inner).push(connection);
        }
    }
}

fn read(row: &Row<'_>) -> Result<Airport, rusqlite::Error> {
    let size: String = row.get(8)?;
    Ok(Airport {
        code: row.get(0)?,
        iata: row.get(1)?,
        name: row.get(2)?,
        country: row.get(3)?,
        time_zone: row.get(4)?,
        latitude: row.get(5)?,
        longitude: row.get(6)?,
        elevation_ft: row.get(7)?,
        size: Size::named(&size).ok_or(rusqlite::Error::InvalidQuery)?,
        runway_ft: row.get(9)?,
        near: Vec::new(),
    })
}

fn with_near(db: &Connection, mut airport: Airport) -> Result<Airport, rusqlite::Error> {
    let narrowing = airport.latitude.to_radians().cos().powi(2);
    let place = params![airport.latitude, airport.longitude, airport.code, narrowing];
    airport.near = db.prepare_cached(NEAR)?.query_map(place, |row| row.get(0))?.collect::<Result<_, _>>()?;
    Ok(airport)
}

fn insert(db: &Connection, airport: &Airport, verb: &str) -> Result<(), rusqlite::Error> {
    db.prepare_cached(&format!("{verb} INTO airports VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)"))?
        .execute(params![
            airport.code,
            airport.iata,
            airport.name,
            airport.country,
            airport.time_zone,
            airport.latitude,
            airport.longitude,
            airport.elevation_ft,
            airport.size.as_str(),
            airport.runway_ft,
        ])?;
    Ok(())
}

/// Makes tables and rows in one transaction, unless they are there: a start that is cut short leaves nothing behind.
fn fill(db: &mut Connection) -> Result<bool, BoxError> {
    let version: i64 =
        db.query_row("PRAGMA user_version", [], |row| row.get(0)).map_err(DatabaseError::from)?;
    match version {
        VERSION => return Ok(false),
        0 => {}
        other => return Err(format!("its tables are of version {other}, {VERSION} is wanted").into()),
    }
    let filling = db.transaction().map_err(DatabaseError::from)?;
    fill_within(&filling)?;
    filling.commit().map_err(DatabaseError::from)?;
    Ok(true)
}

fn reference() -> Result<Vec<Airport>, BoxError> {
    let text = io::read_to_string(XzDecoder::new(AIRPORTS))?;
    let all: Option<Vec<Airport>> = text.lines().map(Airport::from_line).collect();
    all.ok_or_else(|| "the data of this program is damaged: build it again".into())
}

/// The codes of the reference data, large airports first, otherwise in an order of chance that `seed` decides: what a load
/// driver may take for the most popular first.
///
/// # Errors
/// The program is damaged.
pub fn codes_by_popularity(seed: u64) -> Result<Vec<Arc<str>>, BoxError> {
    let mut all = reference()?;
    fastrand::Rng::with_seed(seed).shuffle(&mut all);
    let rank = |size| match size {
        Size::Large => 0,
        Size::Medium => 1,
        Size::Small | Size::Seaplane | Size::Heliport => 2,
    };
    all.sort_by_key(|airport| rank(airport.size));
    Ok(all.into_iter().map(|airport| airport.code.into()).collect())
}

fn fill_within(filling: &Transaction<'_>) -> Result<(), BoxError> {
    filling.execute_batch(TABLES).map_err(DatabaseError::from)?;
    for airport in reference()? {
        insert(filling, &airport, "INSERT").map_err(DatabaseError::from)?;
    }
    filling.pragma_update(None, "user_version", VERSION).map_err(DatabaseError::from)?;
    filling.execute_batch("ANALYZE").map_err(DatabaseError::from)?;
    Ok(())
}
