//! Migrations of the fixed tables, and the lock under which tables change.

use std::sync::LazyLock;

use sqlx::migrate::{MigrateError, Migrator};
use sqlx::postgres::{PgConnection, Postgres};
use sqlx::{Connection as _, Transaction};

use super::database::{Trial, describe};
use super::{OpenError, locks};

static MIGRATOR: LazyLock<Migrator> = LazyLock::new(|| {
    let mut migrator: Migrator = sqlx::migrate!("../migrations");
    migrator.dangerous_set_table_name("sonde_store.migrations");
    migrator.create_schema("sonde_store");
    migrator
});

/// The newest migration that we know.
pub(crate) fn newest() -> i64 {
    MIGRATOR.iter().map(|m| m.version).max().unwrap_or(0)
}

/// The newest migration that the database has had; `None` where it has none of ours.
pub(super) async fn version(connection: &mut PgConnection) -> sqlx::Result<Option<i64>> {
    let there: bool = sqlx::query_scalar("select to_regclass('sonde_store.migrations') is not null")
        .fetch_one(&mut *connection)
        .await?;
    if !there {
        return Ok(None);
    }
    sqlx::query_scalar("select max(version) from sonde_store.migrations where success")
        .fetch_one(connection)
        .await
}

/// Brings the fixed tables and views up to date. Several may do so at once: an advisory lock lets one go first.
pub(super) async fn migrate(connection: &mut PgConnection) -> Result<(), OpenError> {
    let failed = |e: sqlx::Error| OpenError::Database(describe(&e));
    // Not where nothing has to be done: writers of other aggregators would wait for no reason.
    let due = version(connection).await.map_err(failed)? < Some(newest());
    let lock = |function: &'static str| sqlx::query(function).bind(locks::VERSION);
    if due {
        let alone = lock("select pg_advisory_lock($1)");
        alone.execute(&mut *connection).await.map_err(failed)?;
    }
    let result = MIGRATOR.run_direct(None, &mut *connection, false).await;
    if due {
        // Where this fails the connection is lost, and the lock with it.
        let _ = lock("select pg_advisory_unlock($1)").execute(&mut *connection).await;
    }
    match result {
        Ok(()) => Ok(()),
        Err(MigrateError::VersionMissing(version)) => Err(OpenError::NewerSchema(version)),
        Err(MigrateError::VersionMismatch(version)) => Err(OpenError::OtherSchema(version)),
        Err(MigrateError::Execute(e) | MigrateError::ExecuteMigration(e, _)) => Err(failed(e)),
        Err(other) => Err(OpenError::Migrate(other)),
    }
}

/// As an aggregator of an earlier version left it: for tests of upgrades.
pub(crate) async fn migrate_to(connection: &mut PgConnection, version: i64) -> Result<(), MigrateError> {
    MIGRATOR.run_direct(Some(version), connection, false).await
}

/// A transaction to write in, which holds the version of the schema. What changes tables takes [`lock`] in place of this.
pub(super) async fn begin(connection: &mut PgConnection) -> sqlx::Result<Transaction<'_, Postgres>> {
    let mut tx = connection.begin().await?;
    hold(&mut tx).await?;
    Ok(tx)
}

/// Until the end of the transaction the schema stays what it is; an error where it is not ours. Every transaction that
/// writes begins with this. Never followed by [`lock`] in the same transaction: who waits for that one while others have
/// it, and these for a migration, which waits for who holds, would wait forever.
pub(super) async fn hold(transaction: &mut PgConnection) -> sqlx::Result<()> {
    sqlx::query("select pg_advisory_xact_lock_shared($1)")
        .bind(locks::VERSION)
        .execute(&mut *transaction)
        .await?;
    // A statement of its own: one that waited for the lock would see what was there before.
    check(transaction).await
}

/// An error where the schema is not ours at this moment.
pub(super) async fn check(connection: &mut PgConnection) -> sqlx::Result<()> {
    let found: Option<i64> = sqlx::query_scalar("select max(version) from sonde_store.migrations where success")
        .fetch_one(connection)
        .await?;
    let (found, expected) = (found.unwrap_or(0), newest());
    match found.cmp(&expected) {
        std::cmp::Ordering::Equal => Ok(()),
        std::cmp::Ordering::Greater => Err(Trial::NewerSchema(found).into()),
        std::cmp::Ordering::Less => Err(Trial::OlderSchema { found, expected }.into()),
    }
}

/// Until the end of the transaction nobody else changes tables.
pub(super) async fn lock(transaction: &mut PgConnection) -> sqlx::Result<()> {
    sqlx::query("select pg_advisory_xact_lock($1)")
        .bind(locks::SCHEMA)
        .execute(&mut *transaction)
        .await?;
    hold(transaction).await
}

/// `"name"`. Names are checked before they come here; this is the second belt.
pub(super) fn ident(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// `'text'`; relies on `standard_conforming_strings`, on since PostgreSQL 9.1. The text has no NUL.
pub(super) fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}
