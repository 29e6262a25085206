//! Words and stacks by number. What is new is stored in a transaction of its own before the data that refers to it, so a
//! number in a cache is always one in the table; an entry that nothing refers to in the end does no harm.

use std::collections::HashMap;

use sha2::{Digest as _, Sha256};
use sqlx::PgConnection;

use super::cache::Cache;
use super::schema;

/// SHA-256 of the frames, each ended by a line feed: also what `sonde_store.stacks.digest` holds.
pub(super) type StackDigest = [u8; 32];

/// Entries kept in memory: about 20 MB at the usual lengths.
const WORDS: usize = 200_000;
const STACKS: usize = 100_000;

#[derive(Debug)]
pub(super) struct Dictionary {
    words: Cache<Box<str>, i32>,
    stacks: Cache<StackDigest, i32>,
}

impl Dictionary {
    pub(super) fn new() -> Self {
        Self {
            words: Cache::new(WORDS),
            stacks: Cache::new(STACKS),
        }
    }

    /// After the connection was lost: the database may be another one, or an older state of it.
    pub(super) fn clear(&mut self) {
        self.words.clear();
        self.stacks.clear();
    }

    /// Adds the numbers of all words in `wanted` (as keys) as values.
    pub(super) async fn words(
        &mut self,
        connection: &mut PgConnection,
        wanted: &mut HashMap<&str, i32>,
    ) -> sqlx::Result<()> {
        let mut missing: Vec<&str> = Vec::new();
        for (word, id) in wanted.iter_mut() {
            match self.words.get(*word) {
                Some(known) => *id = known,
                None => missing.push(word),
            }
        }
        // One order for everybody, so that two aggregators cannot wait for each other.
        missing.sort_unstable();
        let known = self.select_words(connection, &missing, wanted).await?;
        if known == missing.len() {
            return Ok(());
        }
        missing.retain(|word| wanted[word] == UNKNOWN);
        let mut tx = schema::begin(connection).await?;
        sqlx::query("insert into sonde_store.strings (text) select unnest($1::text[]) on conflict do nothing")
            .bind(&missing)
            .execute(&mut *tx)
            .await?;
        tx.commit().await?;
        // A second statement, because the first does not see what others insert at the same time.
        self.select_words(connection, &missing, wanted).await?;
        Ok(())
    }

    async fn select_words(
        &mut self,
        connection: &mut PgConnection,
        missing: &[&str],
        wanted: &mut HashMap<&str, i32>,
    ) -> sqlx::Result<usize> {
        if missing.is_empty() {
            return Ok(0);
        }
        let rows: Vec<(i32, String)> = sqlx::query_as("select id, text from sonde_store.strings where text = any($1)")
            .bind(missing)
            .fetch_all(connection)
            .await?;
        for (id, text) in &rows {
            if let Some(slot) = wanted.get_mut(text.as_str()) {
                *slot = *id;
            }
            self.words.insert(text.as_str().into(), *id);
        }
        Ok(rows.len())
    }

    /// Adds the numbers of all stacks in `wanted`; the frames are those of the key.
    pub(super) async fn stacks(
        &mut self,
        connection: &mut PgConnection,
        wanted: &mut HashMap<StackDigest, (Vec<&str>, i32)>,
    ) -> sqlx::Result<()> {
        let mut missing: Vec<StackDigest> = Vec::new();
        for (digest, (_, id)) in wanted.iter_mut() {
            match self.stacks.get(digest) {
                Some(known) => *id = known,
                None => missing.push(*digest),
            }
        }
        missing.sort_unstable();
        let known = self.select_stacks(connection, &missing, wanted).await?;
        if known == missing.len() {
            return Ok(());
        }
        missing.retain(|digest| wanted[digest].1 == UNKNOWN);
        let mut tx = schema::begin(connection).await?;
        for digest in &missing {
            sqlx::query("insert into sonde_store.stacks (digest, frames) values ($1, $2) on conflict do nothing")
                .bind(digest.as_slice())
                .bind(&wanted[digest].0)
                .execute(&mut *tx)
                .await?;
        }
        tx.commit().await?;
        self.select_stacks(connection, &missing, wanted).await?;
        Ok(())
    }

    async fn select_stacks(
        &mut self,
        connection: &mut PgConnection,
        missing: &[StackDigest],
        wanted: &mut HashMap<StackDigest, (Vec<&str>, i32)>,
    ) -> sqlx::Result<usize> {
        if missing.is_empty() {
            return Ok(0);
        }
        let digests: Vec<&[u8]> = missing.iter().map(<[u8; 32]>::as_slice).collect();
        let rows: Vec<(i32, Vec<u8>)> =
            sqlx::query_as("select id, digest from sonde_store.stacks where digest = any($1)")
                .bind(&digests)
                .fetch_all(connection)
                .await?;
        for (id, digest) in &rows {
            let digest = StackDigest::try_from(digest.as_slice()).map_err(|e| sqlx::Error::Decode(Box::new(e)))?;
            if let Some((_, slot)) = wanted.get_mut(&digest) {
                *slot = *id;
            }
            self.stacks.insert(digest, *id);
        }
        Ok(rows.len())
    }
}

/// Not looked up yet. Numbers in the tables are 0 and up.
pub(super) const UNKNOWN: i32 = -1;

pub(super) fn digest(frames: &[&str]) -> StackDigest {
    let mut hash = Sha256::new();
    for frame in frames {
        hash.update(frame.as_bytes());
        hash.update(b"\n");
    }
    hash.finalize().into()
}
