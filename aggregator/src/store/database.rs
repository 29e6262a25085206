//! Connections, and what a database error means for us.

use sqlx::ConnectOptions as _;
use sqlx::postgres::{PgConnectOptions, PgConnection, PgPool, PgPoolOptions};
use std::time::Duration;

/// What to do about an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Trouble {
    /// The database is away, full, restarting or busy: the same again later.
    Away,
    /// Tables are missing that were there: somebody dropped or restored something. Start over from the streams.
    SchemaLost,
    /// This very data is refused, and would be again.
    Data,
}

/// Sorted by SQLSTATE class. What is not known to be about data is taken to pass: data must not be lost by a guess.
pub(super) fn classify(error: &sqlx::Error) -> Trouble {
    let sqlx::Error::Database(error) = error else {
        return match error {
            // Our own mistake in binding or reading a value: not better the next time.
            sqlx::Error::Encode(_) | sqlx::Error::Decode(_) | sqlx::Error::ColumnDecode { .. } => Trouble::Data,
            _ => Trouble::Away,
        };
    };
    let code = error.code().unwrap_or_default();
    match code.get(..2).unwrap_or_default() {
        "42" if code == "42501" => Trouble::Away, // insufficient privilege: an administrator's to mend
        "42" | "3F" => Trouble::SchemaLost,
        // A number of ours refers to nothing any more: the only foreign keys are those of nodes.
        _ if code == "23503" => Trouble::SchemaLost,
        "22" | "23" | "54" | "0A" | "21" => Trouble::Data,
        _ => Trouble::Away,
    }
}

/// One line for people: the server's own words without the chain around them.
pub(super) fn describe(error: &sqlx::Error) -> String {
    match error {
        sqlx::Error::Database(e) => match e.code() {
            Some(code) => format!("{} (SQLSTATE {code})", e.message()),
            None => e.message().to_owned(),
        },
        sqlx::Error::PoolTimedOut => "no connection became free in time".into(),
        other => other.to_string().replace('\n', " "),
    }
}

/// Session settings that all our connections share.
fn session(options: PgConnectOptions, role: &str) -> PgConnectOptions {
    options
        .application_name(&format!("sonde-aggregator {role}"))
        .options([("client_min_messages", "warning")])
        .disable_statement_logging()
}

/// For readers: read-only, and no statement runs for ever.
pub(super) fn reader_pool(options: PgConnectOptions) -> PgPool {
    let options =
        session(options, "reader").options([("default_transaction_read_only", "on"), ("statement_timeout", "30000")]);
    pool(options, 8)
}

/// For tables, hellos and upkeep.
pub(super) fn admin_pool(options: PgConnectOptions) -> PgPool {
    pool(session(options, "admin"), 7)
}

fn pool(options: PgConnectOptions, connections: u32) -> PgPool {
    PgPoolOptions::new()
        .max_connections(connections)
        .min_connections(0)
        .acquire_timeout(Duration::from_secs(5))
        .idle_timeout(Duration::from_secs(300))
        .connect_lazy_with(options)
}

/// The writer's own connection.
pub(super) async fn writer_connection(options: &PgConnectOptions) -> sqlx::Result<PgConnection> {
    connection(options, "writer").await
}

/// The one that rolls up. Its transactions must not be taken for those of a writer.
pub(super) async fn roller_connection(options: &PgConnectOptions) -> sqlx::Result<PgConnection> {
    connection(options, "roller").await
}

async fn connection(options: &PgConnectOptions, role: &str) -> sqlx::Result<PgConnection> {
    let options = session(options.clone(), role);
    match tokio::time::timeout(Duration::from_secs(10), options.connect()).await {
        Ok(connection) => connection,
        Err(_) => Err(sqlx::Error::PoolTimedOut),
    }
}
