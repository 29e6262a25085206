//! Partitions by UTC day: made ahead and for the times of arriving data, dropped by retention. No row is ever deleted.

use std::collections::HashSet;
use std::time::Duration;

use jiff::civil::Date;
use sqlx::{AssertSqlSafe, Connection as _, PgConnection};

use super::event_indexes;
use super::schema::{self, ident};

/// Whole days since 1970-01-01 UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Day(i32);

const DAY_NS: u64 = 86_400_000_000_000;
const EPOCH: Date = Date::constant(1970, 1, 1);

impl Day {
    pub(super) fn of(unix_ns: u64) -> Self {
        Self((unix_ns / DAY_NS) as i32)
    }

    pub(super) fn next(self) -> Self {
        Self(self.0 + 1)
    }

    /// Its first moment, in Unix microseconds.
    pub(super) fn start_us(self) -> i64 {
        i64::from(self.0) * (DAY_NS / 1000) as i64
    }

    /// The first day of the partition of this table that the day is in.
    fn first_of(self, table: &str) -> Self {
        Self(self.0 - self.0.rem_euclid(days_of(table)))
    }

    /// The day after the last one of that partition.
    fn after_last_of(self, table: &str) -> Self {
        Self(self.first_of(table).0 + days_of(table))
    }

    fn date(self) -> Date {
        EPOCH + jiff::Span::new().days(self.0)
    }

    /// `20261122`.
    fn suffix(self) -> String {
        self.date().strftime("%Y%m%d").to_string()
    }

    pub(super) fn parse(suffix: &str) -> Option<Self> {
        let date = Date::strptime("%Y%m%d", suffix).ok().filter(|_| suffix.len() == 8)?;
        Some(Self(EPOCH.until(date).ok()?.get_days()))
    }
}

/// Days of a partition. Rollups of hours are small and kept for long: theirs are weeks, beginning on Thursdays as time did.
fn days_of(table: &str) -> i32 {
    if table.starts_with("r1h_") { 7 } else { 1 }
}

/// Arrays of differences stay in their row, as far as a page goes. Out of line, where PostgreSQL puts them from 2 KB on, each is a
/// look-up of its own for whoever reads the row: of the widest probe that takes seven times as long, and twice the room.
fn storage_options(table: &str) -> &'static str {
    if table.starts_with("delta_") {
        " with (toast_tuple_target = 8160)"
    } else {
        ""
    }
}

/// Name of the partition of a table that a day is in, without its schema `sonde_parts`.
pub(super) fn leaf_name(table: &str, day: Day) -> String {
    format!("{table}_{}", day.first_of(table).suffix())
}

/// Makes those of `wanted` (table in `sonde_store`, day) that are not there yet. One transaction.
pub(super) async fn ensure(connection: &mut PgConnection, wanted: &[(String, Day)]) -> sqlx::Result<()> {
    if wanted.is_empty() {
        return Ok(());
    }
    let mut tx = connection.begin().await?;
    schema::lock(&mut tx).await?;
    ensure_in(&mut tx, wanted).await?;
    tx.commit().await
}

/// The same inside a transaction that holds the schema lock.
pub(super) async fn ensure_in(tx: &mut PgConnection, wanted: &[(String, Day)]) -> sqlx::Result<()> {
    let names: Vec<String> = wanted.iter().map(|(table, day)| leaf_name(table, *day)).collect();
    let there: HashSet<String> = sqlx::query_scalar(
        "select c.relname::text from pg_class c join pg_namespace n on n.oid = c.relnamespace \
         join pg_inherits i on i.inhrelid = c.oid where n.nspname = 'sonde_parts' and c.relname = any($1)",
    )
    .bind(&names)
    .fetch_all(&mut *tx)
    .await?
    .into_iter()
    .collect();
    for ((table, day), name) in wanted.iter().zip(names) {
        if there.contains(&name) {
            continue;
        }
        let (leaf, parent) = (ident(&name), ident(table));
        let options = storage_options(table);
        // Attached, not made as a partition: that needs no lock which excludes readers of the parent. A table that lacks a
        // constraint of the parent cannot be attached.
        let sql = format!(
            "create table if not exists sonde_parts.{leaf} \
             (like sonde_store.{parent} including defaults including constraints){options};\n\
             alter table sonde_store.{parent} attach partition sonde_parts.{leaf} \
             for values from ('{} 00:00:00+00') to ('{} 00:00:00+00')",
            day.first_of(table).date(),
            day.after_last_of(table).date(),
        );
        sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut *tx).await?;
        if table == "events" {
            event_indexes::without_statistics(tx, &name).await?;
        }
    }
    Ok(())
}

/// A partition as the database lists it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Leaf {
    pub(super) table: String,
    pub(super) name: String,
    pub(super) day: Day,
}

pub(super) async fn list(connection: &mut PgConnection) -> sqlx::Result<Vec<Leaf>> {
    let rows: Vec<(String, String)> = sqlx::query_as(
        "select p.relname::text, c.relname::text from pg_inherits i join pg_class c on c.oid = i.inhrelid \
         join pg_namespace n on n.oid = c.relnamespace join pg_class p on p.oid = i.inhparent \
         where n.nspname = 'sonde_parts' and c.relkind = 'r' order by 2",
    )
    .fetch_all(connection)
    .await?;
    let leaf = |(table, name): (String, String)| {
        let day = Day::parse(name.strip_prefix(&table)?.strip_prefix('_')?)?;
        Some(Leaf { table, name, day })
    };
    Ok(rows.into_iter().filter_map(leaf).collect())
}

/// Those that retention drops: their last moment is older than what is kept.
pub(super) fn expired(leaves: Vec<Leaf>, now_ns: u64, keep: impl Fn(&str) -> Duration) -> Vec<Leaf> {
    let oldest = |leaf: &Leaf| now_ns.saturating_sub(keep(&leaf.table).as_nanos() as u64) / 1000;
    let over = |leaf: &Leaf| leaf.day.after_last_of(&leaf.table).start_us() as u64 <= oldest(leaf);
    leaves.into_iter().filter(over).collect()
}

/// Drops one partition; `false` where another aggregator was faster. A reader that holds the table makes this fail soon
/// instead of holding up everybody behind it.
pub(super) async fn drop_leaf(connection: &mut PgConnection, leaf: &Leaf) -> sqlx::Result<bool> {
    let mut tx = connection.begin().await?;
    schema::lock(&mut tx).await?;
    sqlx::query("set local lock_timeout = '1s'").execute(&mut *tx).await?;
    let there: bool = sqlx::query_scalar("select to_regclass('sonde_parts.' || quote_ident($1)) is not null")
        .bind(&leaf.name)
        .fetch_one(&mut *tx)
        .await?;
    if there {
        let sql = format!("drop table sonde_parts.{}", ident(&leaf.name));
        sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut *tx).await?;
    }
    tx.commit().await?;
    Ok(there)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_day_is_utc_and_names_its_partition() {
        let day = Day::of(1_795_344_717_123_456_789);
        assert_eq!(leaf_name("events", day), "events_20261122");
        assert_eq!(Day::parse("20261122"), Some(day));
        assert_eq!(Day::of(1_795_392_000_000_000_000), day.next());
        assert_eq!(Day::of(1_795_391_999_999_999_999), day);
        for bad in ["2026112", "20261132", "202611220", "junk"] {
            assert_eq!(Day::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn rollups_of_hours_have_partitions_of_a_week() {
        let day = |name: &str| Day::parse(name).unwrap();
        for name in ["20261119", "20261122", "20261125"] {
            assert_eq!(leaf_name("r1h_tcp", day(name)), "r1h_tcp_20261119", "{name}");
            assert_eq!(day(name).after_last_of("r1h_tcp"), day("20261126"));
        }
        assert_eq!(leaf_name("r1m_tcp", day("20261122")), "r1m_tcp_20261122");
        let leaf = || Leaf {
            table: "r1h_tcp".into(),
            name: "r1h_tcp_20261119".into(),
            day: day("20261119"),
        };
        let kept = |now: &str| {
            let now = day(now).start_us() as u64 * 1000;
            expired(vec![leaf()], now, |_| Duration::from_secs(86_400)).is_empty()
        };
        assert!(kept("20261126"));
        assert!(!kept("20261127"));
    }

    #[test]
    fn a_partition_goes_when_its_last_moment_is_too_old() {
        let leaf = |name: &str| Leaf {
            table: "events".into(),
            name: format!("events_{name}"),
            day: Day::parse(name).unwrap(),
        };
        let leaves = || vec![leaf("20261118"), leaf("20261119"), leaf("20261120")];
        let keep = |_: &str| Duration::from_secs(2 * 86_400);
        let at = |day: &str, ns: u64| Day::parse(day).unwrap().start_us() as u64 * 1000 + ns;
        let names = |now| {
            expired(leaves(), now, keep)
                .into_iter()
                .map(|l| l.name)
                .collect::<Vec<_>>()
        };
        assert_eq!(names(at("20261122", 0)), ["events_20261118", "events_20261119"]);
        assert_eq!(names(at("20261121", DAY_NS - 1)), ["events_20261118"]);
    }
}
