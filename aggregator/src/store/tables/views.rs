//! Views of probes: `sonde.<probe>` for people, `sonde_store.readings_<probe>` for ourselves. Nobody who reads them sees
//! the shape of the tables.

use std::collections::HashSet;

use sqlx::{AssertSqlSafe, PgConnection};

use super::{Cell, bare_view, cells_of, columns_of, delta_table, in_store, key_table, readings_view, wide_table};
use crate::store::catalogue::{Column, Definition, Kind};
use crate::store::frames::{ABSENT_NARROW, ABSENT_WIDE};
use crate::store::schema::{ident, literal};

/// Columns of every view of a probe, with what they are.
const FIXED: [&str; 4] = ["time", "node", "namespace", "pod"];
const FIXED_HELP: [&str; 4] = [
    "When it was read",
    "Node",
    "Namespace of the pod; empty = the node itself",
    "Pod; empty = the node itself",
];
/// The same of every view of readings.
const FIXED_IDS: [&str; 3] = ["time", "node_id", "pod_id"];

/// Relations of a view that are joined; labels beyond them are looked up for each row. With more than eight the planner
/// would join in the order written (join_collapse_limit) and could not start from a filter on a pod or a label.
const JOINED_LABELS: usize = 4;

/// How the views compute their values; a comment on `readings_<probe>` says it of those that are there, and those of an
/// earlier form are made again ([`super::old_views`]). To be raised whenever the same definition gives other views.
pub(super) const FORM: i32 = 2;

/// How the statement begins after which a view has no comments.
const DROP: &str = "drop view";

/// Makes both views what the definition says.
pub(super) async fn apply(tx: &mut PgConnection, probe: &str, help: &str, definition: &Definition) -> sqlx::Result<()> {
    let people = format!("sonde.{}", ident(probe));
    let readings = readings_view(probe);
    let mut sources = vec![frames(probe, definition)];
    let wide = columns_of(tx, &in_store(&wide_table(probe))).await?;
    if !wide.is_empty() {
        sources.push(wide_rows(probe, definition, &wide));
    }
    let mut run = Vec::new();
    let shown = shown(tx, &people, &FIXED, definition, &mut run).await?;
    // Each comment is a row of the catalogue: those that are there already are not written again.
    let said = if run.iter().any(|statement| statement.starts_with(DROP)) {
        HashSet::new()
    } else {
        comments_of(tx, &people).await?
    };
    let statements = view_statements(&people, &sources, help, definition, &shown);
    run.extend(statements.into_iter().filter(|statement| !said.contains(statement)));
    let shown = self::shown(tx, &readings, &FIXED_IDS, definition, &mut run).await?;
    let selects: Vec<String> = sources.iter().map(|source| readings_select(source, &shown)).collect();
    run.push(format!(
        "create or replace view {readings} as {}",
        selects.join(" union all ")
    ));
    run.push(format!("comment on view {readings} is 'Readings, form {FORM}'"));
    // The role may be missing where nobody was allowed to make it; then there is nobody to grant anything to.
    if sqlx::query("select from pg_roles where rolname = 'sonde_reader'")
        .fetch_optional(&mut *tx)
        .await?
        .is_some()
    {
        run.push(format!("grant select on {people} to sonde_reader"));
    }
    sqlx::raw_sql(AssertSqlSafe(run.join(";\n"))).execute(tx).await?;
    Ok(())
}

/// The comments on a view and its columns, as statements that make them.
async fn comments_of(tx: &mut PgConnection, view: &str) -> sqlx::Result<HashSet<String>> {
    let comments: Vec<(String, String)> = sqlx::query_as(
        "select a.attname::text, d.description from pg_description d \
         join pg_attribute a on a.attrelid = d.objoid and a.attnum = d.objsubid \
         where d.classoid = 'pg_class'::regclass and d.objoid = to_regclass($1)",
    )
    .bind(view)
    .fetch_all(tx)
    .await?;
    Ok(comments
        .iter()
        .map(|(column, text)| comment_statement(view, column, text))
        .collect())
}

fn comment_statement(view: &str, column: &str, text: &str) -> String {
    format!("comment on column {view}.{} is {}", ident(column), literal(text))
}

/// Columns of a view: those it has, in their order, then what is new. PostgreSQL replaces a view only so, and other
/// people's views may stand on it. One that shows what is in no definition is dropped first.
async fn shown(
    tx: &mut PgConnection,
    view: &str,
    fixed: &[&str],
    definition: &Definition,
    run: &mut Vec<String>,
) -> sqlx::Result<Vec<String>> {
    let mut names = columns_of(tx, view).await?;
    let labels = definition.labels.iter().map(|l| l.name.clone());
    let columns = definition.columns.iter().map(|c| c.name.clone());
    let fixed = fixed.iter().map(|name| (*name).to_owned());
    let wanted: Vec<String> = fixed.chain(labels).chain(columns).collect();
    if !names.iter().all(|name| wanted.contains(name)) {
        run.push(format!("{DROP} {view}"));
        names.clear();
    }
    let before = names.len();
    for name in wanted {
        if !names.contains(&name) {
            names.push(name);
        }
    }
    if before > 0 && names.len() > before {
        run.push(bare_view(tx, view).await?);
    }
    Ok(names)
}

/// Readings from keyframes and differences.
fn frames(probe: &str, definition: &Definition) -> String {
    let labels = definition
        .labels
        .iter()
        .map(|l| format!(", k.{0} as {0}", ident(&l.name)));
    let columns = definition
        .columns
        .iter()
        .map(|c| format!(", {} as {}", reading_of(c), ident(&c.name)));
    format!(
        "select d.time, k.node_id, k.pod_id{} from {} k join {} d on d.frame = k.frame and d.node_id = k.node_id \
         and k.pos <= d.slots and (d.empty is null or k.pos <> all (d.empty))",
        labels.chain(columns).collect::<String>(),
        in_store(&key_table(probe)),
        in_store(&delta_table(probe)),
    )
}

/// Readings as earlier versions stored them; what came later they do not have.
fn wide_rows(probe: &str, definition: &Definition, existing: &[String]) -> String {
    let or_none = |name: &str, none: &str| {
        let name = ident(name);
        if existing.iter().any(|e| ident(e) == name) {
            format!(", w.{name}")
        } else {
            format!(", {none} as {name}")
        }
    };
    let labels = definition.labels.iter().map(|l| or_none(&l.name, "0"));
    let columns = definition
        .columns
        .iter()
        .map(|c| or_none(&c.name, &format!("null::{}", c.sql_type())));
    format!(
        "select w.time, w.node_id, w.pod_id{} from {} w",
        labels.chain(columns).collect::<String>(),
        in_store(&wide_table(probe)),
    )
}

/// The value of a column as stored, from `k`, its keyframe, and `d`, the reading.
fn reading_of(column: &Column) -> String {
    let cells = cells_of(column);
    let name = ident(&column.name);
    if column.kind != Kind::Histogram {
        return number(&format!("k.{name}"), &cells[0]);
    }
    let arrays = cells.iter().flat_map(|cell| [&cell.narrow, &cell.wide]);
    let still: Vec<String> = arrays.map(|array| format!("d.{} is null", ident(array))).collect();
    let numbers: Vec<String> = (1..)
        .zip(&cells)
        .map(|(at, cell)| number(&format!("k.{name}[{at}]"), cell))
        .collect();
    let none = vec!["null"; cells.len()].join(", ");
    format!(
        "case when {} then k.{name} else nullif(array[{}], array[{none}]::bigint[]) end",
        still.join(" and "),
        numbers.join(", ")
    )
}

/// With one subscript for each value: PostgreSQL copies the array for each of them, which is most of what a value costs.
/// Never both arrays are there.
fn number(key: &str, cell: &Cell) -> String {
    let (narrow, wide) = (ident(&cell.narrow), ident(&cell.wide));
    let moved = |array: &str, absent: &str| format!("{key} + nullif(coalesce(d.{array}[k.pos], 0), {absent})");
    format!(
        "case when d.{narrow} is not null then {} when d.{wide} is null then {key} else {} end",
        moved(&narrow, &ABSENT_NARROW.to_string()),
        moved(&wide, &lowest())
    )
}

/// PostgreSQL reads the digits before the sign, and these would be too many.
fn lowest() -> String {
    format!("({} - 1)", ABSENT_WIDE + 1)
}

fn readings_select(source: &str, shown: &[String]) -> String {
    let names: Vec<String> = shown.iter().map(|name| format!("r.{0}", ident(name))).collect();
    format!("select {} from ({source}) r", names.join(", "))
}

/// The view that people read, and what each of its columns is.
fn view_statements(
    view: &str,
    sources: &[String],
    help: &str,
    definition: &Definition,
    shown: &[String],
) -> Vec<String> {
    let mut statements = vec![String::new()];
    let mut selected = Vec::new();
    let mut joins = String::new();
    for name in shown {
        let (value, comment) = if let Some(at) = FIXED.iter().position(|f| f == name) {
            (
                ["r.time", "n.name", "p.namespace", "p.name"][at].to_owned(),
                FIXED_HELP[at].to_owned(),
            )
        } else if let Some(at) = definition.labels.iter().position(|l| l.name == *name) {
            let value = if at < JOINED_LABELS {
                joins.push_str(&format!(
                    " join sonde_store.strings l{at} on l{at}.id = r.{}",
                    ident(name)
                ));
                format!("l{at}.text")
            } else {
                format!(
                    "(select s.text from sonde_store.strings s where s.id = r.{})",
                    ident(name)
                )
            };
            (value, definition.labels[at].help.clone())
        } else {
            let column = definition.columns.iter().find(|c| c.name == *name);
            let column = column.expect("only names of the definition are shown");
            (value(column), comment(column))
        };
        selected.push(format!("{value} as {}", ident(name)));
        statements.push(comment_statement(view, name, &comment));
    }
    let selected = selected.join(", ");
    let selects: Vec<String> = sources
        .iter()
        .map(|source| {
            format!(
                "select {selected} from ({source}) r join sonde_store.nodes n on n.id = r.node_id \
                 join sonde_store.pods p on p.id = r.pod_id{joins}"
            )
        })
        .collect();
    statements[0] = format!("create or replace view {view} as {}", selects.join(" union all "));
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
    let version = match &column.version_of {
        None => String::new(),
        Some(name) => format!("; a later version of {name}, which meant something else"),
    };
    let text = match column.kind {
        Kind::Counter => format!("{} (counter{unit})", column.help),
        Kind::Gauge => format!("{} (gauge{unit})", column.help),
        Kind::Histogram => format!(
            "{} (histogram{unit}: counts up to {:?} and beyond, each for itself, then the sum times {:e})",
            column.help, column.bounds, column.scale
        ),
    };
    text + &version
}

#[cfg(test)]
mod tests {
    use super::super::tests::definition;
    use super::*;

    #[test]
    fn a_view_keeps_the_order_it_had_and_shows_values_in_their_unit() {
        let shown = [
            "time",
            "node",
            "namespace",
            "pod",
            "bytes",
            "device",
            "wait_seconds",
            "lat",
        ]
        .map(String::from);
        let statements = view_statements("v", &["s".into()], "h", &definition(), &shown);
        assert!(
            statements[0].contains(
                "p.name as \"pod\", r.\"bytes\" as \"bytes\", l0.text as \"device\", \
                 r.\"wait_seconds\" * 1e-9::double precision as \"wait_seconds\", r.\"lat\" as \"lat\" from (s) r"
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

    #[test]
    fn what_earlier_versions_did_not_have_is_null() {
        let existing = ["time", "node_id", "pod_id", "bytes"].map(String::from);
        assert_eq!(
            wide_rows("x", &definition(), &existing),
            "select w.time, w.node_id, w.pod_id, 0 as \"device\", w.\"bytes\", null::bigint as \"wait_seconds\", \
             null::bigint[] as \"lat\" from sonde_store.\"probe_x\" w"
        );
    }
}
