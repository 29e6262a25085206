//! How far events were sent to another system: one aggregator sends, the one that holds the advisory lock of that system.

use sqlx::Connection as _;
use sqlx::postgres::PgConnection;

use super::database::{self, describe};
use super::{Store, locks, schema};

/// Where events go. The number is the lock's, the name that of its row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PushTarget {
    Loki = 0,
    Otlp = 1,
}

impl PushTarget {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Loki => "loki",
            Self::Otlp => "otlp",
        }
    }
}

/// The right to send, with the connection that holds it: it is lost with it.
#[derive(Debug)]
pub(crate) struct PushCursor {
    connection: PgConnection,
    target: PushTarget,
    at: i64,
}

impl Store {
    /// `None`: another aggregator has it. A target that is new begins with what comes now.
    pub(crate) async fn push_cursor(&self, target: PushTarget) -> Result<Option<PushCursor>, String> {
        self.try_push_cursor(target).await.map_err(|error| describe(&error))
    }

    async fn try_push_cursor(&self, target: PushTarget) -> sqlx::Result<Option<PushCursor>> {
        let mut connection = database::writer_connection(&self.inner.target).await?;
        let held: bool = sqlx::query_scalar("select pg_try_advisory_lock($1)")
            .bind(locks::push(target))
            .fetch_one(&mut connection)
            .await?;
        if !held {
            let _ = connection.close().await;
            return Ok(None);
        }
        let mut tx = connection.begin().await?;
        schema::hold(&mut tx).await?;
        let at: i64 = sqlx::query_scalar(
            "with new as (insert into sonde_store.push_cursors (target, event_id) \
                 select $1, last from sonde_store.event_ids on conflict do nothing returning event_id) \
             select event_id from new union all select event_id from sonde_store.push_cursors where target = $1",
        )
        .bind(target.name())
        .fetch_one(&mut *tx)
        .await?;
        tx.commit().await?;
        Ok(Some(PushCursor { connection, target, at }))
    }
}

impl PushCursor {
    /// Everything up to this event has been sent, or is counted as lost.
    pub(crate) const fn at(&self) -> i64 {
        self.at
    }

    /// An error where the lock went with its connection.
    pub(crate) async fn still_held(&mut self) -> Result<(), String> {
        self.connection.ping().await.map_err(|error| describe(&error))
    }

    pub(crate) async fn advance(&mut self, to: i64) -> Result<(), String> {
        self.try_advance(to).await.map_err(|error| describe(&error))
    }

    async fn try_advance(&mut self, to: i64) -> sqlx::Result<()> {
        let mut tx = self.connection.begin().await?;
        schema::hold(&mut tx).await?;
        sqlx::query("update sonde_store.push_cursors set event_id = $2, moved = now() where target = $1")
            .bind(self.target.name())
            .bind(to)
            .execute(&mut *tx)
            .await?;
        tx.commit().await?;
        self.at = to;
        Ok(())
    }

    /// Gives the right back at once, and not when the server notices that we are gone.
    pub(crate) async fn resign(self) {
        let _ = self.connection.close().await;
    }
}
