//! Migrations of the fixed tables, and the lock under which tables change.

use sqlx::migrate::{MigrateError, Migrator};
use sqlx::postgres::{PgConnection, PgPool};

use super::OpenError;
use super::database::describe;

/// Held in transactions that make or change probe tables and partitions, so that several aggregators take turns.
const SCHEMA_LOCK: i64 = 0x736f_6e64_6500_0001;

/// Brings the fixed tables and views up to date. Several may do so at once: an advisory lock lets one go first.
pub(super) async fn migrate(pool: &PgPool) -> Result<(), OpenError> {
    let mut migrator: Migrator = sqlx::migrate!("../migrations");
    migrator.dangerous_set_table_name("sonde_store.migrations");
    migrator.create_schema("sonde_store");
    match migrator.run(pool).await {
        Ok(()) => Ok(()),
        Err(MigrateError::VersionMissing(version)) => Err(OpenError::NewerSchema(version)),
        Err(MigrateError::VersionMismatch(version)) => Err(OpenError::OtherSchema(version)),
        Err(MigrateError::Execute(e) | MigrateError::ExecuteMigration(e, _)) => Err(OpenError::Database(describe(&e))),
        Err(other) => Err(OpenError::Migrate(other)),
    }
}

/// Until the end of the transaction nobody else changes tables.
pub(super) async fn lock(transaction: &mut PgConnection) -> sqlx::Result<()> {
    sqlx::query("select pg_advisory_xact_lock($1)")
        .bind(SCHEMA_LOCK)
        .execute(transaction)
        .await?;
    Ok(())
}

/// `"name"`. Names are checked before they come here; this is the second belt.
pub(super) fn ident(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// `'text'`; relies on `standard_conforming_strings`, on since PostgreSQL 9.1. The text has no NUL.
pub(super) fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}
