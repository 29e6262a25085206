//! Connections for searches of events: so many and no more, none waited for without end, and none that goes on for somebody
//! who has left.

use sqlx::pool::PoolConnection;
use sqlx::{PgConnection, Postgres};

use super::QueryError;
use crate::store::Store;

/// Who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asker {
    Search,
    Stream,
}

/// A connection for the queries of one answer. Dropped before [`Running::done`], which is in the middle of a query, it is
/// closed, and that ends the query.
pub(super) struct Running {
    connection: Option<PoolConnection<Postgres>>,
}

impl Store {
    pub(super) async fn begin_search(&self, asker: Asker) -> Result<Running, QueryError> {
        let pools = &self.inner.pools;
        let pool = match asker {
            Asker::Search => &pools.searches,
            Asker::Stream => &pools.streams,
        };
        let connection = match pool.acquire().await {
            // All are in use; else it is the database that does not answer.
            Err(sqlx::Error::PoolTimedOut) if pool.size() >= pool.options().get_max_connections() => {
                return Err(QueryError::Busy);
            }
            connection => connection?,
        };
        Ok(Running {
            connection: Some(connection),
        })
    }
}

impl Running {
    pub(super) fn db(&mut self) -> &mut PgConnection {
        self.connection.as_mut().expect("it is there until it is done")
    }

    /// The connection can be used by the next one.
    pub(super) fn done(mut self) {
        self.connection = None;
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(connection) = &mut self.connection {
            connection.close_on_drop();
        }
    }
}
