//! PostgreSQL: the schema, the one writer, and what readers need. Nobody outside this module writes a table.

pub mod query;

use std::sync::Arc;

use sqlx::PgPool;
use tokio::sync::watch;

/// Handle to the database. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Store {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    readers: PgPool,
    newest_event: watch::Sender<i64>,
    status: watch::Sender<StoreStatus>,
}

/// How the store is doing, for readiness and metrics.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StoreStatus {
    /// Whether the database answered when it was asked last.
    pub database_up: bool,
    /// Why it is not up: one line.
    pub reason: Option<String>,
}

impl Store {
    /// Connections for reading. Read-only, with a statement timeout; the writer has its own.
    pub fn pool(&self) -> &PgPool {
        &self.inner.readers
    }

    /// Highest committed event id, 0 before the first. Ids ascend in the order of commits, also across aggregators,
    /// so a reader that has seen all up to N finds everything newer by `id > N`.
    pub fn newest_event(&self) -> watch::Receiver<i64> {
        self.inner.newest_event.subscribe()
    }

    pub fn status(&self) -> StoreStatus {
        self.inner.status.borrow().clone()
    }
}
