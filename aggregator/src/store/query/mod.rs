//! What the HTTP interface asks of the database. Text of callers is only ever bound; what becomes SQL comes from enums
//! and from the catalogue. Reads go through [`Store::pool`](super::Store::pool): read-only, with a statement timeout.

pub mod events;
pub mod filter;
pub mod gaps;
pub mod nodes;
pub mod pods;
pub mod probes;
pub mod rows;
pub mod stats;

use sqlx::{Postgres, QueryBuilder};

/// Instants in queries and answers are Unix microseconds: what PostgreSQL keeps.
pub type Micros = i64;

/// Why an answer could not be had. The caller sees which of these it is; the log has the rest.
#[derive(Debug, thiserror::Error)]
pub enum QueryError {
    #[error("the query took too long and was ended; ask for a shorter time or with more filters")]
    TooSlow,
    #[error("the database does not answer: {0}")]
    Unavailable(String),
    #[error("{0}")]
    Sql(sqlx::Error),
}

impl From<sqlx::Error> for QueryError {
    fn from(error: sqlx::Error) -> Self {
        use sqlx::Error as E;
        match &error {
            E::PoolTimedOut => Self::Unavailable("all connections for reading are busy".into()),
            E::Io(_) | E::Tls(_) | E::PoolClosed | E::WorkerCrashed | E::Protocol(_) => {
                Self::Unavailable(error.to_string())
            }
            E::Database(database) => match database.code().as_deref() {
                // query_canceled: our statement timeout.
                Some("57014") => Self::TooSlow,
                // Shutting down, starting up, crashed, too many connections, connection exceptions.
                Some("57P01" | "57P02" | "57P03" | "53300") => Self::Unavailable(database.message().into()),
                Some(code) if code.starts_with("08") => Self::Unavailable(database.message().into()),
                _ => Self::Sql(error),
            },
            _ => Self::Sql(error),
        }
    }
}

/// `$n::timestamptz`. Sent as text: every digit arrives, and partitions are pruned when the plan starts.
fn push_time(sql: &mut QueryBuilder<Postgres>, micros: Micros) {
    sql.push_bind(rfc3339(micros)).push("::timestamptz");
}

/// RFC 3339 in UTC with microseconds.
pub fn rfc3339(micros: Micros) -> String {
    match jiff::Timestamp::from_microsecond(micros) {
        Ok(time) => format!("{time:.6}"),
        Err(_) => String::new(),
    }
}

/// A timestamptz as Unix microseconds, exactly.
macro_rules! micros {
    ($column:literal) => {
        concat!("(extract(epoch from ", $column, ") * 1000000)::bigint")
    };
}
use micros;
