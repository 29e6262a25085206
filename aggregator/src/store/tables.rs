//! The tables and views of probes, made and widened from the catalogue. State-based: what is missing is added, so that
//! a table somebody damaged is mended by the next collector that connects.

use sqlx::{AssertSqlSafe, PgConnection};

use super::catalogue::{Column, Definition, Kind};
use super::schema::{ident, literal};

/// `probe_<name>`, without its schema.
pub(super) fn table_name(probe: &str) -> String {
    format!("probe_{probe}")
}

/// Makes the table and view of a probe what its definition says. Inside a transaction that holds the schema lock.
pub(super) async fn apply(tx: &mut PgConnection, probe: &str, help: &str, definition: &Definition) -> sqlx::Result<()> {
    let table = format!("sonde_store.{}", ident(&table_name(probe)));
    let view = format!("sonde.{}", ident(probe));
    let in_table = columns_of(tx, &table).await?;
    let mut in_view = columns_of(tx, &view).await?;
    let mut run = table_statements(&table, definition, &in_table);
    let known = |name: &String| {
        FIXED.contains(&name.as_str())
            || definition.labels.iter().any(|l| l.name == *name)
            || definition.columns.iter().any(|c| c.name == *name)
    };
    if !in_view.iter().all(known) {
        run.push(format!("drop view {view}"));
        in_view.clear();
    }
    run.extend(view_statements(&view, &table, help, definition, &in_view));
    let readings = ident(&format!("readings_{probe}"));
    run.push(format!(
        "create or replace view sonde_store.{readings} as select * from {table}"
    ));
    sqlx::raw_sql(AssertSqlSafe(run.join(";\n"))).execute(&mut *tx).await?;
    let granted = format!("grant select on {view} to sonde_reader");
    // The role may be missing where nobody was allowed to make it; then there is nobody to grant anything to.
    if sqlx::query("select from pg_roles where rolname = 'sonde_reader'")
        .fetch_optional(&mut *tx)
        .await?
        .is_some()
    {
        sqlx::raw_sql(AssertSqlSafe(granted)).execute(&mut *tx).await?;
    }
    Ok(())
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

/// Columns of every view of a probe, with what they are.
const FIXED: [&str; 4] = ["time", "node", "namespace", "pod"];
const FIXED_HELP: [&str; 4] = [
    "When it was read",
    "Node",
    "Namespace of the pod; empty = the node itself",
    "Pod; empty = the node itself",
];

/// From a table with the `existing` columns (none: no table) to one that has all of the definition.
fn table_statements(table: &str, definition: &Definition, existing: &[String]) -> Vec<String> {
    let mut statements = Vec::new();
    if existing.is_empty() {
        statements.push(format!(
            "create table {table} (time timestamptz not null, node_id int not null, pod_id int not null) partition by range (time)"
        ));
        statements.push(format!("create index on {table} (pod_id, time)"));
        statements.push(format!(
            "create index on {table} using brin (time) with (autosummarize = on)"
        ));
    }
    let mut add = |name: &String, of_type: &str| {
        if !existing.contains(name) {
            statements.push(format!("alter table {table} add column {} {of_type}", ident(name)));
        }
    };
    for label in &definition.labels {
        add(&label.name, "int not null default 0");
    }
    for column in &definition.columns {
        add(&column.name, column.sql_type());
    }
    statements
}

/// What the view shows: what it showed before in the same order, then what is new. PostgreSQL replaces a view only so,
/// and other people's views may stand on it.
fn view_statements(view: &str, table: &str, help: &str, definition: &Definition, before: &[String]) -> Vec<String> {
    let mut names: Vec<&str> = before.iter().map(String::as_str).collect();
    let wanted = FIXED
        .into_iter()
        .chain(definition.labels.iter().map(|l| l.name.as_str()))
        .chain(definition.columns.iter().map(|c| c.name.as_str()));
    for name in wanted {
        if !names.contains(&name) {
            names.push(name);
        }
    }
    let mut statements = vec![String::new()];
    let mut selected = Vec::new();
    let mut joins = String::new();
    for name in names {
        let (value, comment) = if let Some(at) = FIXED.iter().position(|f| *f == name) {
            (
                ["r.time", "n.name", "p.namespace", "p.name"][at].to_owned(),
                FIXED_HELP[at].to_owned(),
            )
        } else if let Some(at) = definition.labels.iter().position(|l| l.name == name) {
            joins.push_str(&format!(
                " join sonde_store.strings l{at} on l{at}.id = r.{}",
                ident(name)
            ));
            (format!("l{at}.text"), definition.labels[at].help.clone())
        } else {
            let column = definition
                .columns
                .iter()
                .find(|c| c.name == name)
                .expect("the caller checked the names");
            (value(column), comment(column))
        };
        selected.push(format!("{value} as {}", ident(name)));
        statements.push(format!(
            "comment on column {view}.{} is {}",
            ident(name),
            literal(&comment)
        ));
    }
    statements[0] = format!(
        "create or replace view {view} as select {} from {table} r join sonde_store.nodes n on n.id = r.node_id \
         join sonde_store.pods p on p.id = r.pod_id{joins}",
        selected.join(", ")
    );
    statements.push(format!("comment on view {view} is {}", literal(help)));
    statements
}

/// In its unit where that is not what is stored.
fn value(column: &Column) -> String {
    if column.kind == Kind::Histogram || column.scale == 1.0 {
        format!("r.{}", ident(&column.name))
    } else {
        format!("r.{} * {:e}::double precision", ident(&column.name), column.scale)
    }
}

fn comment(column: &Column) -> String {
    let unit = if column.unit.is_empty() {
        String::new()
    } else {
        format!(", {}", column.unit)
    };
    match column.kind {
        Kind::Counter => format!("{} (counter{unit})", column.help),
        Kind::Gauge => format!("{} (gauge{unit})", column.help),
        Kind::Histogram => format!(
            "{} (histogram{unit}: counts up to {:?} and beyond, each for itself, then the sum times {:e})",
            column.help, column.bounds, column.scale
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn definition() -> Definition {
        serde_json::from_value(serde_json::json!({
            "labels": [{"name": "device", "help": "it's a device"}],
            "columns": [
                {"name": "bytes", "help": "b", "kind": "counter", "unit": "bytes", "scale": 1.0, "bounds": []},
                {"name": "wait_seconds", "help": "w", "kind": "gauge", "unit": "seconds", "scale": 1e-9, "bounds": []}],
            "event_types": []}))
        .unwrap()
    }

    #[test]
    fn only_what_is_missing_is_added() {
        let all = table_statements("t", &definition(), &[]);
        assert_eq!(all.len(), 6, "{all:?}");
        let existing = ["time", "node_id", "pod_id", "device", "bytes"].map(String::from);
        assert_eq!(
            table_statements("t", &definition(), &existing),
            ["alter table t add column \"wait_seconds\" bigint"]
        );
    }

    #[test]
    fn a_view_keeps_the_order_it_had_and_shows_values_in_their_unit() {
        let before = ["time", "node", "namespace", "pod", "bytes"].map(String::from);
        let statements = view_statements("v", "t", "h", &definition(), &before);
        assert!(
            statements[0].contains(
                "p.name as \"pod\", r.\"bytes\" as \"bytes\", l0.text as \"device\", \
                 r.\"wait_seconds\" * 1e-9::double precision as \"wait_seconds\" from t r"
            ),
            "{}",
            statements[0]
        );
        assert!(
            statements
                .iter()
                .any(|s| s == "comment on column v.\"device\" is 'it''s a device'"),
            "{statements:?}"
        );
    }
}
