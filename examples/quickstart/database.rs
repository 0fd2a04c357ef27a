//! The database behind the cache: SQLite in a file, with the names of some thirty thousand Unicode characters.

use std::sync::{Arc, Mutex, PoisonError};

use rusqlite::{Connection, params};
use serde::{Deserialize, Serialize};
use tempfile::TempDir;
use traced_cache::BoxError;

/// Characters up to here go into the database, but for those whose names are mere numbers or spellings.
const LAST: u32 = 0x1ffff;
const LEFT_OUT: [&str; 3] = ["CJK ", "HANGUL SYLLABLE ", "TANGUT "];

const TABLES: &str = "
    CREATE TABLE characters (code INTEGER PRIMARY KEY, name TEXT NOT NULL, note TEXT NOT NULL DEFAULT '');
    CREATE TABLE words (word TEXT NOT NULL, code INTEGER NOT NULL, PRIMARY KEY (word, code)) WITHOUT ROWID;
    CREATE INDEX words_by_code ON words (code);
";

/// Some characters by code, each with the five whose names have the most words in common with its own.
const CHARACTERS: &str = "
    SELECT code, name, note, (
        SELECT json_group_array(name) FROM (
            SELECT other.name
            FROM words AS own
            JOIN words AS shared ON shared.word = own.word AND shared.code <> own.code
            JOIN characters AS other ON other.code = shared.code
            WHERE own.code = characters.code
            GROUP BY other.code
            ORDER BY count(*) DESC, abs(other.code - characters.code)
            LIMIT 5
        )
    )
    FROM json_each(?1) AS wanted
    JOIN characters ON characters.code = wanted.value
";

/// What the cache keeps: an answer that the database has to work for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Character {
    pub(crate) code: u32,
    pub(crate) name: String,
    pub(crate) note: String,
    pub(crate) similar: Vec<String>,
}

/// A handle; clones share one connection. The file goes when the last one does.
#[derive(Clone)]
pub(crate) struct Database(Arc<Inner>);

struct Inner {
    connection: Mutex<Connection>,
    _directory: TempDir,
}

impl Database {
    /// Makes the file and fills it.
    pub(crate) async fn create() -> Result<Self, BoxError> {
        tokio::task::spawn_blocking(|| {
            let directory = tempfile::tempdir()?;
            let mut connection = Connection::open(directory.path().join("characters.db"))?;
            connection.execute_batch(TABLES)?;
            let filling = connection.transaction()?;
            {
                let mut character = filling.prepare("INSERT INTO characters (code, name) VALUES (?1, ?2)")?;
                let mut word = filling.prepare("INSERT OR IGNORE INTO words VALUES (?1, ?2)")?;
                for code in 0..=LAST {
                    let Some(name) = char::from_u32(code).and_then(unicode_names2::name) else { continue };
                    let name = name.to_string();
                    if LEFT_OUT.iter().any(|prefix| name.starts_with(prefix)) {
                        continue;
                    }
                    character.execute(params![code, name])?;
                    for part in name.split([' ', '-']) {
                        word.execute(params![part, code])?;
                    }
                }
            }
            filling.commit()?;
            connection.execute_batch("ANALYZE")?;
            Ok(Self(Arc::new(Inner { connection: Mutex::new(connection), _directory: directory })))
        })
        .await?
    }

    /// SQLite blocks, so it works on a thread for that.
    async fn run<R: Send + 'static>(
        &self,
        work: impl FnOnce(&Connection) -> Result<R, rusqlite::Error> + Send + 'static,
    ) -> Result<R, BoxError> {
        let Self(inner) = self.clone();
        tokio::task::spawn_blocking(move || {
            Ok(work(&inner.connection.lock().unwrap_or_else(PoisonError::into_inner))?)
        })
        .await?
    }

    /// The codes of all characters.
    pub(crate) async fn codes(&self) -> Result<Vec<u32>, BoxError> {
        self.run(|db| {
            db.prepare("SELECT code FROM characters ORDER BY code")?
                .query_map([], |row| row.get(0))?
                .collect()
        })
        .await
    }

    /// One character, if there is one of that code.
    pub(crate) async fn character(&self, code: u32) -> Result<Option<Character>, BoxError> {
        Ok(self.characters(vec![code]).await?.pop().map(|(_, character)| character))
    }

    /// Many characters in one query; those that do not exist are left out.
    pub(crate) async fn characters(&self, codes: Vec<u32>) -> Result<Vec<(u32, Character)>, BoxError> {
        let codes = serde_json::to_string(&codes)?;
        let rows: Vec<(u32, String, String, String)> = self
            .run(|db| {
                db.prepare_cached(CHARACTERS)?
                    .query_map([codes], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?)))?
                    .collect()
            })
            .await?;
        rows.into_iter()
            .map(|(code, name, note, similar)| {
                Ok((code, Character { code, name, note, similar: serde_json::from_str(&similar)? }))
            })
            .collect()
    }

    /// Changes a note.
    pub(crate) async fn annotate(&self, code: u32, note: String) -> Result<(), BoxError> {
        self.run(move |db| {
            db.execute("UPDATE characters SET note = ?2 WHERE code = ?1", params![code, note])
        })
        .await?;
        Ok(())
    }
}
