//! The tables and views of probes, made and widened from the catalogue. State-based: what is missing is added, so that
//! tables somebody damaged are mended by the next collector that connects.
//!
//! A probe has two tables, see [`frames`](super::frames): `key_<probe>` for keyframes and `delta_<probe>` for the readings.
//! Earlier versions had one, `probe_<probe>`, with a row for each series and reading: where there is one it is shown too,
//! until retention has emptied it.

mod views;

use std::collections::HashSet;

use sqlx::types::Json;
use sqlx::{AssertSqlSafe, PgConnection};

use super::catalogue::{Column, Definition, Kind};
use super::schema::ident;

pub(super) fn key_table(probe: &str) -> String {
    format!("key_{probe}")
}

pub(super) fn delta_table(probe: &str) -> String {
    format!("delta_{probe}")
}

/// Of earlier versions.
pub(super) fn wide_table(probe: &str) -> String {
    format!("probe_{probe}")
}

/// One row for each series and reading, as stored: what stands on the tables without knowing their shape reads this.
pub(super) fn readings_view(probe: &str) -> String {
    format!("sonde_store.{}", ident(&format!("readings_{probe}")))
}

/// When each node was read: the same without what was read, and without the join for it.
pub(super) fn reading_times(probe: &str, has_wide_table: bool) -> String {
    let times = |table: &str| format!("select node_id, time from {}", in_store(table));
    let mut sql = times(&delta_table(probe));
    if has_wide_table {
        sql.extend([" union all ", &times(&wide_table(probe))]);
    }
    sql
}

/// What the arrays of a number are called in `delta_<probe>`. No name of a catalogue has a `#`.
struct Cell {
    narrow: String,
    wide: String,
}

fn cells_of(column: &Column) -> Vec<Cell> {
    let name = &column.name;
    let cell = |narrow: String| Cell {
        wide: format!("{narrow}#"),
        narrow,
    };
    match column.kind {
        Kind::Histogram => (0..column.width()).map(|at| cell(format!("{name}#{at}"))).collect(),
        Kind::Counter | Kind::Gauge => vec![cell(name.clone())],
    }
}

/// For COPY, in the order in which [`frames`](super::frames) writes them.
pub(super) fn key_columns(definition: &Definition) -> String {
    let names = definition.labels.iter().map(|l| &l.name);
    let names = names.chain(definition.columns.iter().map(|c| &c.name));
    let mut columns = "time, node_id, frame, pos, pod_id".to_owned();
    names.for_each(|name| columns.extend([", ", &ident(name)]));
    columns
}

/// The same for the differences.
pub(super) fn delta_columns(definition: &Definition) -> String {
    let mut columns = "time, node_id, frame, slots, empty".to_owned();
    for cell in definition.columns.iter().flat_map(cells_of) {
        columns.extend([", ", &ident(&cell.narrow), ", ", &ident(&cell.wide)]);
    }
    columns
}

/// Columns of both tables together, to see whether all are there.
pub(super) fn column_count(definition: &Definition) -> usize {
    5 + definition.labels.len() + definition.columns.len() + 5 + 2 * definition.cells()
}

/// Makes the tables and views of a probe what its definition says. Inside a transaction that holds the schema lock.
pub(super) async fn apply(tx: &mut PgConnection, probe: &str, help: &str, definition: &Definition) -> sqlx::Result<()> {
    let key = columns_of(tx, &in_store(&key_table(probe))).await?;
    let delta = columns_of(tx, &in_store(&delta_table(probe))).await?;
    let mut run = key_statements(&in_store(&key_table(probe)), definition, &key);
    run.extend(delta_statements(&in_store(&delta_table(probe)), definition, &delta));
    sqlx::raw_sql(AssertSqlSafe(run.join(";\n"))).execute(&mut *tx).await?;
    views::apply(tx, probe, help, definition).await
}

/// A probe, its help and its definition.
pub(super) type Described = (String, String, Json<Definition>);

/// The probes whose views an earlier version made, in another way.
pub(super) async fn old_views(connection: &mut PgConnection) -> sqlx::Result<Vec<Described>> {
    sqlx::query_as(
        "select p.name, p.help, p.definition from sonde_store.probes p \
         join pg_class c on c.oid = to_regclass('sonde_store.' || quote_ident('readings_' || p.name)) \
         where coalesce(substring(obj_description(c.oid, 'pg_class') from 'form ([0-9]{1,9})$')::int, 1) < $1",
    )
    .bind(views::FORM)
    .fetch_all(connection)
    .await
}

/// Makes only the views, over tables that are there.
pub(super) async fn apply_views(
    tx: &mut PgConnection,
    probe: &str,
    help: &str,
    definition: &Definition,
) -> sqlx::Result<()> {
    views::apply(tx, probe, help, definition).await
}

/// Drops the table of an earlier version, once it is empty.
pub(super) async fn drop_wide(
    tx: &mut PgConnection,
    probe: &str,
    help: &str,
    definition: &Definition,
) -> sqlx::Result<()> {
    let table = in_store(&wide_table(probe));
    let aside = in_store(&format!("gone_{probe}"));
    // The views are made as if it were not there, then nothing refers to it.
    let rename = format!("alter table {table} rename to {}", ident(&format!("gone_{probe}")));
    sqlx::raw_sql(AssertSqlSafe(rename)).execute(&mut *tx).await?;
    views::apply(tx, probe, help, definition).await?;
    sqlx::raw_sql(AssertSqlSafe(format!("drop table {aside}")))
        .execute(tx)
        .await?;
    Ok(())
}

fn in_store(table: &str) -> String {
    format!("sonde_store.{}", ident(table))
}

/// In their order; empty where there is no such relation.
pub(super) async fn columns_of(tx: &mut PgConnection, relation: &str) -> sqlx::Result<Vec<String>> {
    sqlx::query_scalar(
        "select attname::text from pg_attribute where attrelid = to_regclass($1) and attnum > 0 and not attisdropped order by attnum",
    )
    .bind(relation)
    .fetch_all(tx)
    .await
}

/// A view that shows nothing, with the name and the columns of one that is to get more of them. PostgreSQL reads a view's
/// definition again for each column that it gets, and where it has hundreds that takes seconds, unless it is a short one.
pub(super) async fn bare_view(tx: &mut PgConnection, view: &str) -> sqlx::Result<String> {
    let columns: Vec<(String, String)> = sqlx::query_as(
        "select attname::text, format_type(atttypid, atttypmod) from pg_attribute \
         where attrelid = to_regclass($1) and attnum > 0 and not attisdropped order by attnum",
    )
    .bind(view)
    .fetch_all(tx)
    .await?;
    let columns: Vec<String> = columns
        .iter()
        .map(|(name, of_type)| format!("null::{of_type} as {}", ident(name)))
        .collect();
    Ok(format!(
        "create or replace view {view} as select {}",
        columns.join(", ")
    ))
}

/// From a table with the `existing` columns (none: no table) to one that has all of the definition.
fn key_statements(table: &str, definition: &Definition, existing: &[String]) -> Vec<String> {
    let labels = definition.labels.iter().map(|l| (&*l.name, "int not null default 0"));
    let columns = definition.columns.iter().map(|c| (&*c.name, c.sql_type()));
    let wanted = labels.chain(columns);
    if !existing.is_empty() {
        return add_columns(table, wanted, existing);
    }
    let fixed = "time timestamptz not null, node_id int not null, frame bigint not null, pos smallint not null, \
                 pod_id int not null";
    vec![
        create_table(table, fixed, wanted),
        // Many rows of a pod, and of a frame, are next to each other in their index: it stores each number once.
        format!("create index on {table} (pod_id)"),
        format!("create index on {table} (frame)"),
        format!(
            "comment on table {table} is 'Keyframes: what the differences of a frame start from, a row for each series'"
        ),
    ]
}

fn delta_statements(table: &str, definition: &Definition, existing: &[String]) -> Vec<String> {
    let cells: Vec<Cell> = definition.columns.iter().flat_map(cells_of).collect();
    let wanted = cells
        .iter()
        .flat_map(|c| [(&*c.narrow, "int[]"), (&*c.wide, "bigint[]")]);
    if !existing.is_empty() {
        return add_columns(table, wanted, existing);
    }
    let fixed = "time timestamptz not null, node_id int not null, frame bigint not null, slots smallint not null, \
                 empty smallint[]";
    vec![
        create_table(table, fixed, wanted),
        format!("create index on {table} (frame)"),
        format!("create index on {table} using brin (time) with (pages_per_range = 16, autosummarize = on)"),
        format!(
            "comment on table {table} is 'Readings: a row for each frame and time. An array holds, by position in the frame, \
             how far a value is from its keyframe: 0 beyond its ends, the lowest number for absent; null = nothing moved. \
             Names with # at the end have what does not fit into int'"
        ),
        format!(
            "comment on column {table}.slots is 'Positions that the frame had by then; those in \"empty\" have no reading'"
        ),
    ]
}

/// With all its columns: each that is added to a table later makes PostgreSQL read them all again, so that hundreds take
/// seconds.
pub(super) fn create_table<'a>(table: &str, fixed: &str, wanted: impl Iterator<Item = (&'a str, &'a str)>) -> String {
    let columns: String = wanted
        .map(|(name, of_type)| format!(", {} {of_type}", ident(name)))
        .collect();
    format!("create table {table} ({fixed}{columns}) partition by range (time)")
}

/// In one statement: each would lock and look through all partitions.
pub(super) fn add_columns<'a>(
    table: &str,
    wanted: impl Iterator<Item = (&'a str, &'a str)>,
    existing: &[String],
) -> Vec<String> {
    let existing: HashSet<&str> = existing.iter().map(String::as_str).collect();
    let missing = wanted.filter(|(name, _)| !existing.contains(name));
    let add: Vec<String> = missing
        .map(|(name, of_type)| format!("add column {} {of_type}", ident(name)))
        .collect();
    if add.is_empty() {
        return Vec::new();
    }
    vec![format!("alter table {table} {}", add.join(", "))]
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn definition() -> Definition {
        serde_json::from_value(serde_json::json!({
            "labels": [{"name": "device", "help": "it's a device"}],
            "columns": [
                {"name": "bytes", "help": "b", "kind": "counter", "unit": "bytes", "scale": 1.0, "bounds": []},
                {"name": "wait_seconds", "help": "w", "kind": "gauge", "unit": "seconds", "scale": 1e-9, "bounds": []},
                {"name": "lat", "help": "l", "kind": "histogram", "unit": "seconds", "scale": 1e-9, "bounds": [0.1]}],
            "event_types": []}))
        .unwrap()
    }

    #[test]
    fn only_what_is_missing_is_added() {
        let existing = ["time", "node_id", "frame", "pos", "pod_id", "device", "bytes", "lat"].map(String::from);
        assert_eq!(
            key_statements("t", &definition(), &existing),
            ["alter table t add column \"wait_seconds\" bigint"]
        );
        let existing = [
            "time",
            "node_id",
            "frame",
            "slots",
            "empty",
            "bytes",
            "bytes#",
            "wait_seconds",
        ]
        .map(String::from);
        assert_eq!(
            delta_statements("t", &definition(), &existing),
            [
                "alter table t add column \"wait_seconds#\" bigint[], add column \"lat#0\" int[], \
                 add column \"lat#0#\" bigint[], add column \"lat#1\" int[], add column \"lat#1#\" bigint[], \
                 add column \"lat#2\" int[], add column \"lat#2#\" bigint[]"
            ]
        );
    }

    #[test]
    fn copies_name_all_columns_of_a_new_table() {
        let definition = definition();
        let columns = |create: &str| -> Vec<String> {
            let (_, columns) = create.split_once('(').unwrap();
            let (columns, _) = columns.rsplit_once(") partition").unwrap();
            let names = columns.split(", ").map(|column| column.split(' ').next().unwrap());
            names.map(String::from).collect()
        };
        let keys = columns(&key_statements("t", &definition, &[])[0]);
        let deltas = columns(&delta_statements("t", &definition, &[])[0]);
        assert_eq!(keys.join(", "), key_columns(&definition));
        assert_eq!(deltas.join(", "), delta_columns(&definition));
        assert_eq!(keys.len() + deltas.len(), column_count(&definition));
    }
}
