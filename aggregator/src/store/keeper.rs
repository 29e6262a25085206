//! Upkeep: is the database there, partitions ahead and behind, who is connected.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use sonde_common::config::Distribution;
use sonde_common::shutdown::Shutdown;
use sonde_common::time::now_ns;
use sqlx::Connection as _;
use sqlx::postgres::PgConnection;
use sqlx::types::Json;
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior};
use uuid::Uuid;

use super::attribution;
use super::database::{self, Pools, Trial, describe};
use super::partitions::{self, Day};
use super::status::{Health, Problem, ProblemKind};
use super::streams::Streams;
use super::tables::{self, Described, delta_table, key_table};
use super::target::{self, Found, Target};
use super::transaction::{Keep, Tables};
use super::{OpenError, distribution, register, schema};
use crate::metrics::Metrics;

const LOOK: Duration = Duration::from_secs(1);
const SEEN: Duration = Duration::from_secs(10);
const TIDY: Duration = Duration::from_secs(60);
/// A look that takes longer finds nobody.
const ANSWER: Duration = Duration::from_secs(10);
const UPKEEP: Duration = Duration::from_secs(60);

pub(super) struct Keeper {
    pub(super) target: Target,
    pub(super) pools: Arc<Pools>,
    pub(super) connection: Option<PgConnection>,
    /// Where the pools lead.
    pub(super) host: usize,
    /// What was said of all hosts when none took writes.
    pub(super) said: Option<String>,
    pub(super) distribution: Distribution,
    pub(super) tables: Tables,
    pub(super) keep: Keep,
    pub(super) streams: Streams,
    pub(super) metrics: Arc<Metrics>,
    pub(super) newest_event: watch::Sender<i64>,
    pub(super) health: Arc<Health>,
}

/// What a look at the database shows.
struct Seen {
    version: Option<i64>,
    read_only: Option<String>,
    last_event: Option<i64>,
}

impl Keeper {
    pub(super) async fn run(mut self, mut shutdown: Shutdown) {
        let mut tick = tokio::time::interval(LOOK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut seen, mut tidied) = (Instant::now(), None::<Instant>);
        loop {
            let round = async {
                tick.tick().await;
                self.round(&mut seen, &mut tidied).await
            };
            let problem = tokio::select! {
                result = round => result.err(),
                () = shutdown.recv() => break,
            };
            if problem.is_some() {
                // Also where it is only read-only: another host may have become the right one.
                self.connection = None;
            }
            self.health.seen(problem);
        }
        if let Some(connection) = self.connection {
            let _ = connection.close().await;
        }
    }

    /// Looks, and does what is due.
    async fn round(&mut self, noted: &mut Instant, tidied: &mut Option<Instant>) -> Result<(), Problem> {
        // It has times of its own, for each host.
        self.connection().await.map_err(|e| Problem::from(&e))?;
        let looked = tokio::time::timeout(ANSWER, self.look()).await;
        let seen = looked
            .map_err(|_| {
                let why = format!("the database does not answer within {} s", ANSWER.as_secs());
                Problem::new(ProblemKind::Away, why)
            })?
            .map_err(|e| Problem::from(&e))?;
        match seen.version.cmp(&Some(schema::newest())) {
            std::cmp::Ordering::Greater => {
                let newer = Trial::NewerSchema(seen.version.unwrap_or_default());
                return Err(Problem::from(&newer.into()));
            }
            std::cmp::Ordering::Less => {
                self.migrate(seen.read_only.as_deref()).await?;
                self.spread().await.map_err(|e| Problem::from(&e))?;
                self.health.start_over(&self.tables);
            }
            std::cmp::Ordering::Equal => {}
        }
        if !self.health.status().prepared {
            self.prepare(seen.read_only.is_none())
                .await
                .map_err(|e| Problem::from(&e))?;
        }
        if let Some(last) = seen.last_event {
            super::raise(&self.newest_event, last);
        }
        if let Some(why) = seen.read_only {
            return Err(Problem::new(
                ProblemKind::ReadOnly,
                format!("the database takes no writes: {why}"),
            ));
        }
        self.look_after_the_writer().await;
        let upkeep = tokio::time::timeout(UPKEEP, self.upkeep(noted, tidied)).await;
        upkeep.map_err(|_| {
            let why = format!("upkeep of the database was not done within {} s", UPKEEP.as_secs());
            Problem::new(ProblemKind::Slow, why)
        })
    }

    async fn upkeep(&mut self, noted: &mut Instant, tidied: &mut Option<Instant>) {
        let mut result = Ok(());
        if noted.elapsed() >= SEEN {
            *noted = Instant::now();
            result = self.note_seen().await;
            result = result.and(self.repair_peers().await);
        }
        if tidied.is_none_or(|at| at.elapsed() >= TIDY) {
            *tidied = Some(Instant::now());
            result = result.and(self.tidy(now_ns()).await);
        }
        if let Err(e) = result {
            tracing::warn!(error = %describe(&e), "upkeep failed, it is tried again");
        }
    }

    /// The connection to where the database is now. Pools follow it.
    async fn connection(&mut self) -> sqlx::Result<&mut PgConnection> {
        if self.connection.is_none() {
            let found = database::find(&self.target, "keeper").await?;
            let Found { connection, host, .. } = found;
            self.said = found.read_only;
            if host != self.host {
                tracing::info!(database = %self.target.name(), host, "the database is on another host now");
                self.pools.move_to(self.target.host(host));
                self.host = host;
            }
            self.connection = Some(connection);
        }
        Ok(self.connection.as_mut().expect("just made"))
    }

    /// Events of other aggregators on the same database show here.
    async fn look(&mut self) -> sqlx::Result<Seen> {
        let connection = self.connection().await?;
        let (standby, read_only) = target::session_state(connection).await?;
        let version = schema::version(connection).await?;
        let last_event = if version == Some(schema::newest()) {
            sqlx::query_scalar("select last from sonde_store.event_ids")
                .fetch_optional(&mut *connection)
                .await?
        } else {
            None
        };
        Ok(Seen {
            version,
            read_only: target::why_read_only(standby, read_only).map(|why| self.said.clone().unwrap_or(why)),
            last_event,
        })
    }

    /// The schema is not there, or is that of an older version.
    async fn migrate(&mut self, read_only: Option<&str>) -> Result<(), Problem> {
        if let Some(why) = read_only {
            let why = format!("its schema has to be brought up to date, and {why}");
            return Err(Problem::new(ProblemKind::ReadOnly, why));
        }
        let connection = self.connection().await.map_err(|e| Problem::from(&e))?;
        schema::migrate(connection).await.map_err(|e| match e {
            OpenError::NewerSchema(_) | OpenError::OtherSchema(_) => {
                Problem::new(ProblemKind::OtherSchema, e.to_string())
            }
            e => Problem::new(ProblemKind::Away, e.to_string()),
        })
    }

    /// What a migration made may have to be on other machines.
    async fn spread(&mut self) -> sqlx::Result<()> {
        let distribution = self.distribution;
        let mut tx = self.connection().await?.begin().await?;
        schema::lock(&mut tx).await?;
        distribution::spread(&mut tx, distribution).await?;
        tx.commit().await
    }

    /// What has to be known before the first batch, and today's partitions.
    async fn prepare(&mut self, may_write: bool) -> sqlx::Result<()> {
        let tables = register::load_tables(self.connection().await?).await?;
        self.tables.write().extend(tables);
        if may_write {
            self.spread().await?;
            self.tidy(now_ns()).await?;
        }
        self.health.prepared();
        Ok(())
    }

    /// Says so when a transaction takes long, and who is in its way.
    async fn look_after_the_writer(&mut self) {
        let Some((since, pid)) = self.health.late() else { return };
        let mut why = format!(
            "a transaction of the writer has not been finished for {} s",
            since.as_secs()
        );
        let blocking = "select a.pid, a.application_name from unnest(pg_blocking_pids($1)) b(pid) \
                        join pg_stat_activity a on a.pid = b.pid limit 1";
        if let (Some(pid), Some(connection)) = (pid, self.connection.as_mut())
            && let Ok(Some((pid, name))) = sqlx::query_as::<_, (i32, String)>(blocking)
                .bind(pid)
                .fetch_optional(connection)
                .await
        {
            why += &format!("; it waits for a lock that process {pid} of the server holds ({name:?})");
        }
        self.health.slow(why);
    }

    async fn note_seen(&mut self) -> sqlx::Result<()> {
        let (nodes, epochs): (Vec<i32>, Vec<Uuid>) = self.streams.known().into_iter().unzip();
        if nodes.is_empty() {
            return Ok(());
        }
        let mut tx = schema::begin(self.connection().await?).await?;
        sqlx::query("update sonde_store.nodes set last_seen = now() where id = any($1)")
            .bind(&nodes)
            .execute(&mut *tx)
            .await?;
        // So that other aggregators know of streams that have nothing to send. The writer has just touched those it
        // holds, and is not to wait.
        sqlx::query(
            "update sonde_store.cursors set updated = now() where (node_id, epoch) in \
             (select node_id, epoch from sonde_store.cursors where (node_id, epoch) in \
              (select * from unnest($1::int[], $2::uuid[])) for update skip locked)",
        )
        .bind(&nodes)
        .bind(&epochs)
        .execute(&mut *tx)
        .await?;
        tx.commit().await
    }

    async fn repair_peers(&mut self) -> sqlx::Result<()> {
        let repaired = attribution::repair(self.connection().await?).await?;
        self.metrics.repaired_peers.add(repaired);
        Ok(())
    }

    /// Partitions of today and tomorrow are made, expired ones dropped.
    async fn tidy(&mut self, now_ns: u64) -> sqlx::Result<()> {
        let today = Day::of(now_ns);
        let leaves = partitions::list(self.connection().await?).await?;
        let mut tables: Vec<String> = vec!["events".into(), "gaps".into(), "changes".into()];
        tables.extend(
            self.tables
                .read()
                .keys()
                .flat_map(|probe| [key_table(probe), delta_table(probe)]),
        );
        let wanted = tables
            .into_iter()
            .flat_map(|table| [(table.clone(), today), (table, today.next())]);
        let there = |table: &str, day: Day| leaves.iter().any(|l| l.table == table && l.day == day);
        let wanted: Vec<_> = wanted.filter(|(table, day)| !there(table, *day)).collect();
        partitions::ensure(self.connection().await?, &wanted).await?;

        let mut count: HashMap<String, u64> = HashMap::new();
        for table in leaves
            .iter()
            .map(|l| &l.table)
            .chain(wanted.iter().map(|(table, _)| table))
        {
            *count.entry(table.clone()).or_default() += 1;
        }
        let keep = self.keep;
        for leaf in partitions::expired(leaves, now_ns, |table| keep.of(table)) {
            match partitions::drop_leaf(self.connection().await?, &leaf).await {
                Ok(ours) => {
                    if ours {
                        tracing::info!(partition = %leaf.name, "dropped a partition that is older than what is kept");
                        self.metrics.dropped_partitions.add(1);
                    }
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
        self.drop_wide_tables().await?;
        self.renew_views().await
    }

    /// Views that an earlier version made in another way show the same, only slower: where somebody reads one at the
    /// moment, this waits for another time, not everybody behind it.
    async fn renew_views(&mut self) -> sqlx::Result<()> {
        let connection = self.connection().await?;
        for described in tables::old_views(connection).await? {
            let probe = described.0.clone();
            match renew(connection, described).await {
                Ok(()) => tracing::info!(probe, "made the views anew that an earlier version made"),
                Err(sqlx::Error::Database(e)) => {
                    tracing::warn!(probe, error = %e, "its views stay as an earlier version made them for now");
                    return Ok(());
                }
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    /// Tables in the shape of earlier versions go when retention has emptied them.
    async fn drop_wide_tables(&mut self) -> sqlx::Result<()> {
        let connection = self.connection().await?;
        let empty: Vec<Described> = sqlx::query_as(
            "select p.name, p.help, p.definition from sonde_store.probes p \
             join pg_class c on c.oid = to_regclass('sonde_store.' || quote_ident('probe_' || p.name)) \
             where not exists (select from pg_inherits i where i.inhparent = c.oid)",
        )
        .fetch_all(&mut *connection)
        .await?;
        for (probe, help, Json(definition)) in empty {
            let mut tx = connection.begin().await?;
            sqlx::query("set local lock_timeout = '1s'").execute(&mut *tx).await?;
            schema::lock(&mut tx).await?;
            tables::drop_wide(&mut tx, &probe, &help, &definition).await?;
            tx.commit().await?;
            tracing::info!(probe, "dropped the empty table that an earlier version kept it in");
        }
        Ok(())
    }
}

async fn renew(connection: &mut PgConnection, (probe, help, Json(definition)): Described) -> sqlx::Result<()> {
    let mut tx = connection.begin().await?;
    sqlx::query("set local lock_timeout = '1s'").execute(&mut *tx).await?;
    schema::lock(&mut tx).await?;
    tables::apply_views(&mut tx, &probe, &help, &definition).await?;
    tx.commit().await
}
