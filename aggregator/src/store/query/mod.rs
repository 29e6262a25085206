//! What the HTTP interface asks of the database. Text of callers is only ever bound; what becomes SQL comes from enums
//! and from the catalogue. Reads go through [`Store::pool`](super::Store::pool): read-only, with a statement timeout.

pub mod changes;
mod cover;
pub mod events;
pub mod filter;
pub mod gaps;
mod hours;
pub mod matches;
mod names;
mod narrow;
pub mod newest;
pub mod nodes;
mod page;
pub mod pods;
pub mod probes;
pub mod rolled;
pub mod rows;
pub mod search;
pub mod services;
pub mod stats;
mod texts;
mod ways;

use sqlx::encode::IsNull;
use sqlx::error::BoxDynError;
use sqlx::postgres::types::Oid;
use sqlx::postgres::{PgArgumentBuffer, PgTypeInfo};
use sqlx::{Postgres, QueryBuilder};

use super::database::{Trouble, classify, describe};

/// Instants in queries and answers are Unix microseconds: what PostgreSQL keeps.
pub type Micros = i64;
/// 2000-01-01 UTC, where PostgreSQL's clock starts.
pub(super) const POSTGRES_EPOCH: Micros = 946_684_800_000_000;
const MINUTE: Micros = 60_000_000;
const HOUR: Micros = 60 * MINUTE;

/// Why an answer could not be had. The caller sees which of these it is; the log has the rest.
#[derive(Debug, thiserror::Error)]
pub enum QueryError {
    #[error("the query took too long and was ended; ask for a shorter time or with more filters")]
    TooSlow,
    #[error("too many searches are under way; ask again in a moment")]
    Busy,
    #[error("the database does not answer: {0}")]
    Unavailable(String),
    #[error("{0}")]
    Sql(sqlx::Error),
}

impl From<sqlx::Error> for QueryError {
    fn from(error: sqlx::Error) -> Self {
        // query_canceled: the statement timeout of our connections.
        if error
            .as_database_error()
            .is_some_and(|e| e.code().as_deref() == Some("57014"))
        {
            return Self::TooSlow;
        }
        let code = error.as_database_error().and_then(|e| e.code()).unwrap_or_default();
        if matches!(&*code, "42P01" | "3F000") {
            return Self::Unavailable(describe(&error));
        }
        match classify(&error) {
            Trouble::Away | Trouble::OtherSchema => Self::Unavailable(describe(&error)),
            Trouble::SchemaLost | Trouble::Data => Self::Sql(error),
        }
    }
}

fn push_time(sql: &mut QueryBuilder<Postgres>, micros: Micros) {
    sql.push_bind(Time(micros));
}

/// `timestamptz`, and no text that is cast to it: what the text means depends on the session, so the server would read it again
/// for each row that it is compared with, and could leave out no partition before the plan starts.
struct Time(Micros);

impl sqlx::Type<Postgres> for Time {
    fn type_info() -> PgTypeInfo {
        const TIMESTAMPTZ: Oid = Oid(1184);
        PgTypeInfo::with_oid(TIMESTAMPTZ)
    }
}

impl sqlx::Encode<'_, Postgres> for Time {
    fn encode_by_ref(&self, buffer: &mut PgArgumentBuffer) -> Result<IsNull, BoxDynError> {
        sqlx::Encode::<Postgres>::encode(self.0.saturating_sub(POSTGRES_EPOCH), buffer)
    }
}

/// Number of the bucket of that length, counted from 1970.
fn bucket(time: Micros, length: Micros) -> i32 {
    i32::try_from(time.div_euclid(length)).unwrap_or(if time < 0 { i32::MIN } else { i32::MAX })
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
pub(super) use micros;

#[cfg(test)]
mod tests {
    use super::bucket;

    #[test]
    fn buckets_are_counted_from_1970_as_far_as_their_numbers_go() {
        assert_eq!((bucket(-1, 10), bucket(0, 10), bucket(10, 10)), (-1, 0, 1));
        assert_eq!((bucket(i64::MAX, 10), bucket(i64::MIN, 10)), (i32::MAX, i32::MIN));
    }
}
