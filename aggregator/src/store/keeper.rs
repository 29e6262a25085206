//! Upkeep: is the database there, partitions ahead and behind, who is connected.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use sonde_common::shutdown::Shutdown;
use sonde_common::time::now_ns;
use sqlx::postgres::PgPool;
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior};

use super::StoreStatus;
use super::database::describe;
use super::partitions::{self, Day};
use super::streams::Streams;
use super::tables::table_name;
use super::transaction::{Keep, Tables};
use crate::metrics::Metrics;

const LOOK: Duration = Duration::from_secs(1);
const SEEN: Duration = Duration::from_secs(10);
const TIDY: Duration = Duration::from_secs(60);

pub(super) struct Keeper {
    pub(super) admin: PgPool,
    pub(super) tables: Tables,
    pub(super) keep: Keep,
    pub(super) streams: Streams,
    pub(super) metrics: Arc<Metrics>,
    pub(super) newest_event: watch::Sender<i64>,
    pub(super) status: watch::Sender<StoreStatus>,
}

impl Keeper {
    pub(super) async fn run(self, mut shutdown: Shutdown) {
        let mut tick = tokio::time::interval(LOOK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut seen, mut tidied) = (Instant::now(), None::<Instant>);
        loop {
            tokio::select! {
                _ = tick.tick() => {}
                () = shutdown.recv() => return,
            }
            if let Err(e) = self.look().await {
                super::set_status(&self.status, &self.metrics, Some(describe(&e)));
                continue;
            }
            super::set_status(&self.status, &self.metrics, None);
            let mut result = Ok(());
            if seen.elapsed() >= SEEN {
                seen = Instant::now();
                result = self.note_seen().await;
            }
            if tidied.is_none_or(|at| at.elapsed() >= TIDY) {
                tidied = Some(Instant::now());
                result = result.and(self.tidy(now_ns()).await);
            }
            if let Err(e) = result {
                tracing::warn!(error = %describe(&e), "upkeep failed, it is tried again");
            }
        }
    }

    /// Events of other aggregators on the same database show here.
    pub(super) async fn look(&self) -> sqlx::Result<()> {
        let last: i64 = sqlx::query_scalar("select last from sonde_store.event_ids")
            .fetch_one(&self.admin)
            .await?;
        super::raise(&self.newest_event, last);
        Ok(())
    }

    async fn note_seen(&self) -> sqlx::Result<()> {
        let nodes = self.streams.node_ids();
        if !nodes.is_empty() {
            sqlx::query("update sonde_store.nodes set last_seen = now() where id = any($1)")
                .bind(nodes)
                .execute(&self.admin)
                .await?;
        }
        Ok(())
    }

    /// Partitions of today and tomorrow are made, expired ones dropped.
    pub(super) async fn tidy(&self, now_ns: u64) -> sqlx::Result<()> {
        let today = Day::of(now_ns);
        let leaves = partitions::list(&self.admin).await?;
        let mut tables: Vec<String> = vec!["events".into(), "gaps".into(), "changes".into()];
        tables.extend(self.tables.read().keys().map(|probe| table_name(probe)));
        let wanted = tables
            .into_iter()
            .flat_map(|table| [(table.clone(), today), (table, today.next())]);
        let there = |table: &str, day: Day| leaves.iter().any(|l| l.table == table && l.day == day);
        let wanted: Vec<_> = wanted.filter(|(table, day)| !there(table, *day)).collect();
        let mut connection = self.admin.acquire().await?;
        partitions::ensure(&mut connection, &wanted).await?;
        drop(connection);

        let mut count: HashMap<String, u64> = HashMap::new();
        for table in leaves
            .iter()
            .map(|l| &l.table)
            .chain(wanted.iter().map(|(table, _)| table))
        {
            *count.entry(table.clone()).or_default() += 1;
        }
        for leaf in partitions::expired(leaves, now_ns, |table| self.keep.of(table)) {
            match partitions::drop_leaf(&self.admin, &leaf).await {
                Ok(()) => {
                    tracing::info!(partition = %leaf.name, "dropped a partition that is older than what is kept");
                    self.metrics.dropped_partitions.add(1);
                    if let Some(count) = count.get_mut(&leaf.table) {
                        *count -= 1;
                    }
                }
                Err(e) => {
                    tracing::warn!(partition = %leaf.name, error = %describe(&e), "a partition cannot be dropped now");
                }
            }
        }
        self.metrics.partitions.set(count.values().sum());
        Ok(())
    }
}
