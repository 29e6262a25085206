//! Rollups: what readings come to in each minute and hour, for ranges too long to read all of them. Made by one aggregator
//! at a time, from the views `sonde_store.readings_<probe>`, some minutes after an hour is over; an hour for which readings
//! came late is made again. How far it is stands in the tables, in the transaction with what was made: so nothing is
//! missing and nothing doubled, wherever it is ended.
//!
//! Not here: how readings are kept, and when partitions go (`keeper.rs`).

mod fold;
pub(super) mod late;
mod read;
mod round;
pub(super) mod tables;
mod write;

use std::time::Duration;

use sonde_common::shutdown::Shutdown;
use sonde_common::time::now_ns;
use sqlx::Connection as _;
use tokio::time::MissedTickBehavior;

use super::Store;
use super::database::{self, describe};
use super::{event_indexes, locks, schema};
use round::Round;

/// How often somebody looks whether something is due.
const LOOK: Duration = Duration::from_secs(60);

/// What came of looking.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rolled {
    /// All that is due is done.
    Up,
    /// Another aggregator is at it.
    Elsewhere,
}

impl Store {
    /// Rolls up all that is due at `now`. May be ended at any point.
    pub async fn roll_up(&self, now_ns: u64) -> Result<Rolled, sqlx::Error> {
        self.roll(now_ns, false).await
    }

    async fn roll(&self, now_ns: u64, gently: bool) -> Result<Rolled, sqlx::Error> {
        let mut connection = database::roller_connection(&self.inner.target).await?;
        schema::check(&mut connection).await?;
        let held: bool = sqlx::query_scalar("select pg_try_advisory_lock($1)")
            .bind(locks::ROLLUP)
            .fetch_one(&mut connection)
            .await?;
        let rolled = if held {
            let mut round = Round::new(&mut connection, self.inner.keep, &self.inner.metrics, now_ns, gently);
            round.run().await?;
            // Also work in the background that one aggregator does: a step of it each time.
            event_indexes::complete(&mut connection).await?;
            Rolled::Up
        } else {
            Rolled::Elsewhere
        };
        if held {
            // Whoever looks next may come before the server notices that the session has ended.
            sqlx::query("select pg_advisory_unlock($1)")
                .bind(locks::ROLLUP)
                .execute(&mut connection)
                .await?;
        }
        let _ = connection.close().await;
        Ok(rolled)
    }
}

/// Looks every minute, until the shutdown.
pub(super) async fn run(store: Store, mut shutdown: Shutdown) {
    let mut tick = tokio::time::interval_at(tokio::time::Instant::now() + LOOK, LOOK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let look = async {
            tick.tick().await;
            store.prepared().await;
            store.roll(now_ns(), true).await
        };
        tokio::select! {
            result = look => {
                if let Err(e) = result {
                    store.inner.metrics.rollup.failures.add(1);
                    tracing::warn!(error = %describe(&e), "rolling up failed, it goes on where it was");
                }
            }
            () = shutdown.recv() => return,
        }
    }
}
