//! One look: which hours of which probes are due, and each of them rolled up, some nodes at a time.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::time::{Duration, Instant};

use sqlx::types::Json;
use sqlx::{AssertSqlSafe, Connection as _, PgConnection, Row as _};

use super::fold::{Folded, HOUR, Hour, Key, Part, parts};
use super::late::{LATE, SETTLED};
use super::read::Source;
use super::tables::{self, Length};
use super::write;
use crate::metrics::Metrics;
use crate::store::catalogue::{Definition, Kind};
use crate::store::copy::CopyBuffer;
use crate::store::database::{Trouble, classify, describe};
use crate::store::partitions::{self, Day, leaf_name};
use crate::store::query::{Micros, micros, rfc3339};
use crate::store::schema::{self, ident};
use crate::store::transaction::Keep;

/// Series that are folded at once, about: what they take in memory is some kilobytes each.
const SERIES: usize = 2000;
/// With more than this, fewer nodes are taken at once. One node is always taken whole.
const MOST_SERIES: usize = 4 * SERIES;
/// Series that are sent at once.
const PIECE: usize = 200;
/// What counters stood at before an hour is looked for in so much of the time before it, or two intervals.
const BEFORE: Micros = 5 * 60_000_000;
/// Between two transactions the database has as long for others, at most this.
const LONGEST_REST: Duration = Duration::from_secs(1);

pub(super) struct Round<'a> {
    db: &'a mut PgConnection,
    keep: Keep,
    metrics: &'a Metrics,
    now: Micros,
    gently: bool,
    leaves: HashSet<(String, Day)>,
    /// Hours whose minutes are in their table.
    minutes: HashSet<Micros>,
}

struct Probe {
    name: String,
    definition: Definition,
    parts: Vec<Part>,
    source: Source,
    /// All before this hour is rolled up, and of it the nodes up to this one.
    hour: Micros,
    node: i32,
    /// Nodes that are rolled up at once.
    at_once: i64,
}

impl<'a> Round<'a> {
    pub(super) fn new(db: &'a mut PgConnection, keep: Keep, metrics: &'a Metrics, now_ns: u64, gently: bool) -> Self {
        Self {
            db,
            keep,
            metrics,
            now: (now_ns / 1000) as Micros,
            gently,
            leaves: HashSet::new(),
            minutes: HashSet::new(),
        }
    }

    pub(super) async fn run(&mut self) -> sqlx::Result<()> {
        let mut probes = self.probes().await?;
        let until = self.until().await?;
        let started = Instant::now();
        let (mut rolled, mut again) = (0_u64, 0_u64);
        // All probes of an hour before the next hour.
        while let Some(at) = (0..probes.len())
            .filter(|at| probes[*at].hour < until)
            .min_by_key(|at| probes[*at].hour)
        {
            self.behind(&probes);
            let probe = &mut probes[at];
            match self.roll(probe, until).await {
                Ok(hours) => rolled += hours,
                Err(e) => {
                    self.failed(&e, &probe.name)?;
                    probes.swap_remove(at);
                }
            }
        }
        for probe in &mut probes {
            match self.again(probe).await {
                Ok(hours) => again += hours,
                Err(e) => self.failed(&e, &probe.name)?,
            }
        }
        self.behind(&probes);
        self.forget().await?;
        if rolled + again > 0 {
            let seconds = started.elapsed().as_secs_f64();
            tracing::info!(
                hours = rolled,
                late_hours = again,
                seconds,
                "rolled up readings, hours counted by probe"
            );
        }
        Ok(())
    }

    /// An error of one probe is no reason to leave the others.
    fn failed(&self, error: &sqlx::Error, probe: &str) -> sqlx::Result<()> {
        if classify(error) == Trouble::Away {
            return Err(sqlx::Error::Protocol(format!("probe {probe}: {}", describe(error))));
        }
        self.metrics.rollup.failures.add(1);
        tracing::warn!(probe, error = %describe(error), "this probe cannot be rolled up now");
        Ok(())
    }

    fn behind(&self, probes: &[Probe]) {
        let due = hour_of(self.now - SETTLED);
        let oldest = probes.iter().map(|p| p.hour).min().unwrap_or(due);
        self.metrics
            .rollup
            .hours_behind
            .set(((due - oldest) / HOUR).max(0) as u64);
    }

    /// Hours before this one are over, and every transaction that stored readings of them without a mark has ended.
    async fn until(&mut self) -> sqlx::Result<Micros> {
        let oldest: Option<Micros> = sqlx::query_scalar(concat!(
            "select ",
            micros!("min(xact_start)"),
            " from pg_stat_activity where datname = current_database() and application_name = 'sonde-aggregator writer'"
        ))
        .fetch_one(&mut *self.db)
        .await?;
        let settled = hour_of(self.now - SETTLED);
        Ok(oldest.map_or(settled, |oldest| settled.min(hour_of(oldest - LATE))))
    }

    /// Those whose readings there are, with tables as wide as they are.
    async fn probes(&mut self) -> sqlx::Result<Vec<Probe>> {
        let stored: Vec<(String, Json<Definition>, bool)> = sqlx::query_as(
            "select name, definition, to_regclass('sonde_store.' || quote_ident('readings_' || name)) is not null \
             from sonde_store.probes order by name",
        )
        .fetch_all(&mut *self.db)
        .await?;
        let first = self.first_hour().await?;
        let mut probes = Vec::new();
        for (name, Json(definition), _) in stored.into_iter().filter(|(.., there)| *there) {
            self.widen(&name, &definition).await?;
            let mut tx = schema::begin(self.db).await?;
            let (hour, node): (Micros, i32) = sqlx::query_as(concat!(
                "insert into sonde_store.rollup_progress as p (probe, hour) values ($1, $2::timestamptz) \
                 on conflict (probe) do update set hour = greatest(p.hour, $2::timestamptz), \
                 node_id = case when p.hour < $2::timestamptz then 0 else p.node_id end returning ",
                micros!("hour"),
                ", node_id"
            ))
            .bind(&name)
            .bind(rfc3339(first))
            .fetch_one(&mut *tx)
            .await?;
            tx.commit().await?;
            probes.push(Probe {
                parts: parts(&definition),
                source: Source::new(&name, &definition),
                name,
                definition,
                hour,
                node,
                at_once: 1,
            });
        }
        Ok(probes)
    }

    /// Tables and views are made with the probe; those of a database that is older than they are, here.
    async fn widen(&mut self, probe: &str, definition: &Definition) -> sqlx::Result<()> {
        for length in Length::BOTH {
            let table = format!("sonde_store.{}", ident(&length.table(probe)));
            let there = crate::store::tables::columns_of(self.db, &table).await?;
            if tables::columns(length, definition)
                .iter()
                .all(|name| there.contains(name))
            {
                continue;
            }
            let mut tx = self.db.begin().await?;
            sqlx::query("set local lock_timeout = '10s'").execute(&mut *tx).await?;
            schema::lock(&mut tx).await?;
            tables::apply(&mut tx, probe, definition).await?;
            return tx.commit().await;
        }
        Ok(())
    }

    /// The first hour of which all readings are still there. A partition that is about to go is not looked at.
    async fn first_hour(&mut self) -> sqlx::Result<Micros> {
        let leaf: Option<String> = sqlx::query_scalar(
            "select min(substring(c.relname from '[0-9]{8}$')) from pg_class c join pg_namespace n on n.oid = c.relnamespace \
             where n.nspname = 'sonde_parts' and c.relkind = 'r' and c.relname !~ '^r1[mh]_'",
        )
        .fetch_one(&mut *self.db)
        .await?;
        let kept = self.kept_since(self.keep.rows);
        Ok(leaf
            .and_then(|day| Day::parse(&day))
            .map_or(kept, |day| kept.max(day.start_us())))
    }

    /// Since when there is all, where things are kept so long.
    fn kept_since(&self, keep: Duration) -> Micros {
        let oldest = self.now - keep.as_micros() as Micros + HOUR;
        Day::of(oldest as u64 * 1000).start_us()
    }

    /// Some nodes of the next hour. Gives how many hours were finished.
    async fn roll(&mut self, probe: &mut Probe, until: Micros) -> sqlx::Result<u64> {
        let started = Instant::now();
        let before = probe.hour;
        if probe.node == 0 {
            while probe.hour < until && !probe.source.any(self.db, (probe.hour, probe.hour + HOUR)).await? {
                probe.hour += HOUR;
            }
            if probe.hour != before {
                let mut tx = schema::begin(self.db).await?;
                put_progress(&mut tx, probe).await?;
                tx.commit().await?;
            }
            if probe.hour >= until {
                return Ok(0);
            }
        }
        let nodes: Vec<i32> = sqlx::query_scalar("select id from sonde_store.nodes where id > $1 order by id limit $2")
            .bind(probe.node)
            .bind(probe.at_once)
            .fetch_all(&mut *self.db)
            .await?;
        let last = (nodes.len() as i64) < probe.at_once;
        self.make_leaves(probe, probe.hour).await?;
        let (kept, keeps) = (self.kept_since(self.keep.rows), self.keeps(probe.hour));
        let mut tx = schema::begin(self.db).await?;
        // Marks before readings: what a mark is for is then in what is read. What is committed later has its own.
        let marks: Vec<i64> = sqlx::query_scalar(
            "select id from sonde_store.rollup_late where probe = $1 and hour = $2::timestamptz and node_id = any($3)",
        )
        .bind(&probe.name)
        .bind(rfc3339(probe.hour))
        .bind(&nodes)
        .fetch_all(&mut *tx)
        .await?;
        let Some(hour) = fold(&mut tx, probe, probe.hour, &nodes, kept).await? else {
            tx.rollback().await?;
            probe.at_once = (probe.at_once / 4).max(1);
            probe.source.restart();
            return Ok(((probe.hour - before) / HOUR) as u64);
        };
        let rows = put(&mut tx, probe, &hour, keeps).await?;
        put_minutes(&mut tx, &mut self.minutes, probe.hour).await?;
        remove_marks(&mut tx, &marks).await?;
        match nodes.last() {
            Some(node) if !last => probe.node = *node,
            _ => (probe.hour, probe.node) = (probe.hour + HOUR, 0),
        }
        put_progress(&mut tx, probe).await?;
        tx.commit().await?;
        let each = hour.series.len() / nodes.len().max(1);
        let at_once = ((SERIES / each.max(1)) as i64).clamp(1, 4 * probe.at_once);
        if at_once > probe.at_once {
            probe.source.restart();
        }
        probe.at_once = at_once;
        self.done(started, rows).await;
        Ok(((probe.hour - before) / HOUR) as u64)
    }

    /// Hours for which readings came late, node by node. Gives how many.
    async fn again(&mut self, probe: &mut Probe) -> sqlx::Result<u64> {
        let nodes: Vec<i32> = sqlx::query_scalar(
            "select distinct node_id from sonde_store.rollup_late where probe = $1 and hour < $2::timestamptz order by 1",
        )
        .bind(&probe.name)
        .bind(rfc3339(probe.hour))
        .fetch_all(&mut *self.db)
        .await?;
        let mut hours = 0;
        for node in nodes {
            hours += self.again_of(probe, node).await?;
        }
        Ok(hours)
    }

    /// All of a node, in one transaction. The first increases after such an hour may be others now: so each column of each
    /// series is followed to the next hour in which it has a value.
    async fn again_of(&mut self, probe: &mut Probe, node: i32) -> sqlx::Result<u64> {
        let started = Instant::now();
        let kept = self.kept_since(self.keep.rows);
        let select = concat!(
            "select id, ",
            micros!("hour"),
            " from sonde_store.rollup_late where probe = $1 and node_id = $2 and hour < $3::timestamptz"
        );
        let marks: Vec<(i64, Micros)> = sqlx::query_as(select)
            .bind(&probe.name)
            .bind(node)
            .bind(rfc3339(probe.hour))
            .fetch_all(&mut *self.db)
            .await?;
        let late: BTreeSet<Micros> = marks
            .iter()
            .map(|(_, hour)| *hour)
            .filter(|hour| *hour >= kept)
            .collect();
        let end = probe.hour;
        let first = late.first().copied().unwrap_or(end);
        for hour in (first..end).step_by(HOUR as usize) {
            self.make_leaves(probe, hour).await?;
        }
        let keep = self.kept_hours();
        let mut tx = schema::begin(self.db).await?;
        let mut open: HashMap<Key, Vec<bool>> = HashMap::new();
        let (mut hours, mut rows) = (0, 0);
        let mut at = first;
        while at < end {
            let is_late = late.contains(&at);
            if is_late || !open.is_empty() {
                let hour = fold(&mut tx, probe, at, &[node], kept)
                    .await?
                    .expect("one node is taken whole");
                follow(&mut open, &hour, is_late);
                for length in Length::BOTH {
                    let sql = format!(
                        "delete from sonde_store.{} where node_id = $1 and time = $2::timestamptz",
                        ident(&length.table(&probe.name))
                    );
                    let sql = sqlx::query(AssertSqlSafe(sql)).bind(node).bind(rfc3339(at));
                    sql.execute(&mut *tx).await?;
                }
                rows += put(&mut tx, probe, &hour, keep.map(|oldest| at >= oldest)).await?;
                put_minutes(&mut tx, &mut self.minutes, at).await?;
                hours += 1;
                at += HOUR;
            } else {
                at = late.range(at..).next().copied().unwrap_or(end);
            }
        }
        let marks: Vec<i64> = marks.into_iter().map(|(id, _)| id).collect();
        remove_marks(&mut tx, &marks).await?;
        tx.commit().await?;
        self.metrics.rollup.late_hours.add(hours);
        self.done(started, rows).await;
        Ok(hours)
    }

    async fn make_leaves(&mut self, probe: &Probe, hour: Micros) -> sqlx::Result<()> {
        let day = Day::of(hour as u64 * 1000);
        let wanted: Vec<_> = Length::BOTH
            .into_iter()
            .zip(self.keeps(hour))
            .filter(|(_, keeps)| *keeps)
            .map(|(length, _)| (length.table(&probe.name), day))
            .filter(|leaf| !self.leaves.contains(leaf))
            .collect();
        partitions::ensure(self.db, &wanted).await?;
        self.leaves.extend(wanted);
        Ok(())
    }

    /// Whether minutes and hours are still kept for so long.
    fn keeps(&self, hour: Micros) -> [bool; 2] {
        self.kept_hours().map(|oldest| hour >= oldest)
    }

    /// The oldest minutes and hours that are kept.
    fn kept_hours(&self) -> [Micros; 2] {
        [self.keep.rollups_1m, self.keep.rollups_1h].map(|keep| self.now - keep.as_micros() as Micros)
    }

    async fn done(&self, started: Instant, rows: u64) {
        let took = started.elapsed();
        self.metrics.rollup.rows.add(rows);
        self.metrics.rollup.nanos.add(took.as_nanos() as u64);
        if self.gently {
            tokio::time::sleep(took.min(LONGEST_REST)).await;
        }
    }

    /// Minutes that no rollup has any more. A table of some ten thousand rows, so this is no matter for partitions.
    async fn forget(&mut self) -> sqlx::Result<()> {
        let oldest = self.kept_since(self.keep.rollups_1m) - 24 * HOUR;
        let mut tx = schema::begin(self.db).await?;
        sqlx::query("delete from sonde_store.rollup_minutes where hour < $1::timestamptz")
            .bind(rfc3339(oldest))
            .execute(&mut *tx)
            .await?;
        tx.commit().await
    }
}

fn hour_of(time: Micros) -> Micros {
    time - time.rem_euclid(HOUR)
}

/// Reads and folds an hour of some nodes. None: they are too many.
async fn fold(
    tx: &mut PgConnection,
    probe: &mut Probe,
    start: Micros,
    nodes: &[i32],
    kept: Micros,
) -> sqlx::Result<Option<Hour>> {
    let interval: Option<i64> =
        sqlx::query_scalar("select max(interval_ns) / 1000 from sonde_store.nodes where id = any($1)")
            .bind(nodes)
            .fetch_one(&mut *tx)
            .await?;
    let before = (2 * interval.unwrap_or(0)).clamp(BEFORE, HOUR);
    let mut hour = Hour::new(start, probe.parts.clone());
    let source = &mut probe.source;
    let most = if nodes.len() > 1 { MOST_SERIES } else { usize::MAX };
    for span in [(start - before, start), (start, start + HOUR)] {
        if !source.fold(tx, nodes, span, &mut hour, most).await? {
            return Ok(None);
        }
    }
    settle(tx, probe, &mut hour, kept).await?;
    Ok(Some(hour))
}

/// Counters that had no value for a while: what they stood at is in the last hour of which the rollup says that it had one.
async fn settle(tx: &mut PgConnection, probe: &mut Probe, hour: &mut Hour, kept: Micros) -> sqlx::Result<()> {
    let missing: Vec<&Key> = hour
        .series
        .iter()
        .filter(|s| !s.firsts.is_empty())
        .map(|s| &s.key)
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let labels: String = probe
        .definition
        .labels
        .iter()
        .map(|l| format!(", {}", ident(&l.name)))
        .collect();
    let mut sql = format!("select node_id, pod_id{labels}");
    for column in &probe.definition.columns {
        let name = ident(&column.name);
        sql += &match column.kind {
            Kind::Gauge => ", null::bigint".to_owned(),
            kind => format!(
                ", (extract(epoch from max(time) filter (where {name}{} is distinct from {})) * 1000000)::bigint",
                if kind == Kind::Histogram { "[1]" } else { "" },
                write::ABSENT_MARK
            ),
        };
    }
    let groups: String = (1..=2 + probe.definition.labels.len())
        .map(|n| format!(", {n}"))
        .collect();
    sql += &format!(
        " from sonde_store.{} where node_id = any($1) and pod_id = any($2) and time >= $3::timestamptz and \
         time < $4::timestamptz group by {}",
        ident(&Length::Hour.table(&probe.name)),
        &groups[2..]
    );
    let set = |of: fn(&Key) -> i32| {
        missing
            .iter()
            .map(|k| of(k))
            .collect::<BTreeSet<_>>()
            .into_iter()
            .collect::<Vec<_>>()
    };
    let rows = sqlx::query(AssertSqlSafe(sql))
        .persistent(false)
        .bind(set(|k| k.node))
        .bind(set(|k| k.pod))
        .bind(rfc3339(kept))
        .bind(rfc3339(hour.start))
        .fetch_all(&mut *tx)
        .await?;
    let width = probe.definition.labels.len();
    let mut wanted: BTreeMap<Micros, Vec<(u32, usize)>> = BTreeMap::new();
    for row in rows {
        let key = Key {
            node: row.try_get(0)?,
            pod: row.try_get(1)?,
            labels: (2..2 + width).map(|at| row.try_get(at)).collect::<Result<_, _>>()?,
        };
        if hour.place(&key).is_none() {
            continue;
        }
        let number = hour.number(&key);
        for first in &hour.series[number as usize].firsts {
            if let Some(time) = row.try_get::<Option<Micros>, _>(2 + width + first.column)? {
                wanted.entry(time).or_default().push((number, first.column));
            }
        }
    }
    for (time, columns) in wanted {
        let nodes: BTreeSet<i32> = columns
            .iter()
            .map(|(number, _)| hour.series[*number as usize].key.node)
            .collect();
        let nodes: Vec<i32> = nodes.into_iter().collect();
        let mut then = Hour::before(probe.parts.clone());
        probe
            .source
            .fold(tx, &nodes, (time, time + HOUR), &mut then, usize::MAX)
            .await?;
        for (number, column) in columns {
            let series = &mut hour.series[number as usize];
            if let Some(before) = then.place(&series.key) {
                series.settle(&probe.parts, column, &before.last);
            }
        }
    }
    Ok(())
}

/// Columns whose next increase may be another one.
fn follow(open: &mut HashMap<Key, Vec<bool>>, hour: &Hour, is_late: bool) {
    for series in &hour.series {
        let seen = series
            .columns
            .iter()
            .map(|c| matches!(c, Folded::Counted(counted) if counted.seen != 0));
        if is_late {
            let columns = open
                .entry(series.key.clone())
                .or_insert_with(|| vec![false; series.columns.len()]);
            columns.iter_mut().zip(seen).for_each(|(open, seen)| *open |= seen);
        } else if let Some(columns) = open.get_mut(&series.key) {
            columns.iter_mut().zip(seen).for_each(|(open, seen)| *open &= !seen);
        }
    }
    open.retain(|_, columns| columns.contains(&true));
}

/// Gives how many rows.
async fn put(tx: &mut PgConnection, probe: &Probe, hour: &Hour, keeps: [bool; 2]) -> sqlx::Result<u64> {
    let mut rows = 0;
    let day = Day::of(hour.start as u64 * 1000);
    for (length, _) in Length::BOTH.into_iter().zip(keeps).filter(|(_, keeps)| *keeps) {
        let columns: Vec<String> = tables::columns(length, &probe.definition)
            .iter()
            .map(|c| ident(c))
            .collect();
        let leaf = leaf_name(&length.table(&probe.name), day);
        let mut copy = tx
            .copy_in_raw(&format!(
                "copy sonde_parts.{} ({}) from stdin (format binary)",
                ident(&leaf),
                columns.join(", ")
            ))
            .await?;
        let mut buffer = CopyBuffer::default();
        buffer.begin();
        for piece in hour.series.chunks(PIECE) {
            rows += write::rows(&mut buffer, hour, piece, length);
            copy.send(buffer.as_bytes()).await?;
            buffer.sent();
        }
        buffer.end();
        copy.send(buffer.as_bytes()).await?;
        copy.finish().await?;
    }
    Ok(rows)
}

async fn put_minutes(tx: &mut PgConnection, there: &mut HashSet<Micros>, hour: Micros) -> sqlx::Result<()> {
    if there.insert(hour) {
        sqlx::query(
            "insert into sonde_store.rollup_minutes select $1::timestamptz + (n - 1) * interval '1 minute', $1::timestamptz, n \
             from generate_series(1, 60) n on conflict do nothing",
        )
        .bind(rfc3339(hour))
        .execute(tx)
        .await?;
    }
    Ok(())
}

async fn remove_marks(tx: &mut PgConnection, marks: &[i64]) -> sqlx::Result<()> {
    if !marks.is_empty() {
        sqlx::query("delete from sonde_store.rollup_late where id = any($1)")
            .bind(marks)
            .execute(tx)
            .await?;
    }
    Ok(())
}

async fn put_progress(tx: &mut PgConnection, probe: &Probe) -> sqlx::Result<()> {
    sqlx::query("update sonde_store.rollup_progress set hour = $2::timestamptz, node_id = $3 where probe = $1")
        .bind(&probe.name)
        .bind(rfc3339(probe.hour))
        .bind(probe.node)
        .execute(tx)
        .await?;
    Ok(())
}
