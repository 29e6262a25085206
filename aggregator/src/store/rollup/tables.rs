//! The tables and views of rollups, made and widened from the catalogue: `r1m_<probe>` with a row for each series and hour
//! whose columns are arrays over its minutes, and `r1h_<probe>` with a row for each series and hour. How values are kept in
//! them is `write.rs`; that it shows as what it means is here.

use std::collections::HashSet;

use sqlx::{AssertSqlSafe, PgConnection};

use crate::store::catalogue::{Column, Definition, Kind};
use crate::store::schema::{ident, literal};
use crate::store::tables::{add_columns, bare_view, columns_of, create_table};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Length {
    Minute,
    Hour,
}

impl Length {
    pub(crate) const BOTH: [Self; 2] = [Self::Minute, Self::Hour];

    /// Of the table, without its schema. Short, as names of partitions are that of a probe and more.
    pub(crate) fn table(self, probe: &str) -> String {
        match self {
            Self::Minute => format!("r1m_{probe}"),
            Self::Hour => format!("r1h_{probe}"),
        }
    }

    /// Of the view, without its schema.
    pub(crate) fn view(self, probe: &str) -> String {
        match self {
            Self::Minute => format!("{probe}_1m"),
            Self::Hour => format!("{probe}_1h"),
        }
    }

    fn words(self) -> &'static str {
        match self {
            Self::Minute => "minute",
            Self::Hour => "hour",
        }
    }
}

/// Makes tables and views what the definition says. Inside a transaction that holds the schema lock.
pub(crate) async fn apply(tx: &mut PgConnection, probe: &str, definition: &Definition) -> sqlx::Result<()> {
    let reader = sqlx::query("select from pg_roles where rolname = 'sonde_reader'")
        .fetch_optional(&mut *tx)
        .await?
        .is_some();
    for length in Length::BOTH {
        let table = format!("sonde_store.{}", ident(&length.table(probe)));
        let view = format!("sonde.{}", ident(&length.view(probe)));
        let in_table = columns_of(tx, &table).await?;
        let in_view = columns_of(tx, &view).await?;
        let mut run = table_statements(length, &table, definition, &in_table);
        if !in_view.is_empty() && in_view.len() < shown(length, definition).len() {
            run.push(bare_view(tx, &view).await?);
        }
        run.extend(view_statements(length, probe, &view, &table, definition, in_view));
        if reader {
            run.push(format!("grant select on {view} to sonde_reader"));
        }
        sqlx::raw_sql(AssertSqlSafe(run.join(";\n"))).execute(&mut *tx).await?;
    }
    Ok(())
}

/// Columns that the table of a complete definition has.
pub(super) fn columns(length: Length, definition: &Definition) -> Vec<String> {
    let mut names: Vec<String> = ["time", "node_id", "pod_id"].map(String::from).to_vec();
    names.extend(definition.labels.iter().map(|l| l.name.clone()));
    names.push("#readings".into());
    names.extend(
        definition
            .columns
            .iter()
            .flat_map(|c| kept(length, c))
            .map(|(name, _)| name),
    );
    names
}

/// What is kept of a column: names and types. `#` is in no name of a collector.
fn kept(length: Length, column: &Column) -> Vec<(String, &'static str)> {
    let name = &column.name;
    let (minute, of) = match length {
        Length::Minute => (true, ["bigint[]", "bigint[]", "double precision[]"]),
        Length::Hour => (false, ["bigint", "bigint", "double precision"]),
    };
    match column.kind {
        Kind::Gauge => ["min", "max", "avg"]
            .iter()
            .zip(of)
            .map(|(what, of)| (format!("{name}#{what}"), of))
            .collect(),
        // Rows that are older than the column have none: see write.rs.
        Kind::Counter | Kind::Histogram if minute => vec![(name.clone(), "bigint[] default '{}'")],
        Kind::Counter => vec![(name.clone(), "bigint default -1")],
        Kind::Histogram => vec![(name.clone(), "bigint[] default '{-1}'")],
    }
}

fn table_statements(length: Length, table: &str, definition: &Definition, existing: &[String]) -> Vec<String> {
    let readings = if length == Length::Minute {
        "int[] not null"
    } else {
        "int not null"
    };
    let kept: Vec<(String, &str)> = definition.columns.iter().flat_map(|c| kept(length, c)).collect();
    let wanted = definition
        .labels
        .iter()
        .map(|l| (&*l.name, "int not null default 0"))
        .chain([("#readings", readings)])
        .chain(kept.iter().map(|(name, of_type)| (&**name, *of_type)));
    if !existing.is_empty() {
        return add_columns(table, wanted, existing);
    }
    let fixed = "time timestamptz not null, node_id int not null, pod_id int not null";
    vec![
        create_table(table, fixed, wanted),
        format!("create index on {table} (pod_id, node_id, time)"),
        format!("create index on {table} using brin (time) with (pages_per_range = 16, autosummarize = on)"),
        format!("comment on table {table} is 'A row for each series and hour; read the view in schema sonde'"),
    ]
}

/// A column of a view.
struct Shown {
    name: String,
    value: String,
    comment: String,
}

/// What a view shows: what it showed before in the same order, then what is new. PostgreSQL replaces a view only so.
fn view_statements(
    length: Length,
    probe: &str,
    view: &str,
    table: &str,
    definition: &Definition,
    before: Vec<String>,
) -> Vec<String> {
    let mut run = Vec::new();
    let mut columns = shown(length, definition);
    if before.iter().all(|name| columns.iter().any(|c| c.name == *name)) {
        columns.sort_by_key(|c| before.iter().position(|b| *b == c.name).unwrap_or(usize::MAX));
    } else {
        run.push(format!("drop view {view}"));
    }
    let selected: Vec<String> = columns
        .iter()
        .map(|c| format!("{} as {}", c.value, ident(&c.name)))
        .collect();
    let mut from = match length {
        Length::Hour => format!("{table} r"),
        Length::Minute => format!("sonde_store.rollup_minutes m join {table} r on r.time = m.hour"),
    };
    from.push_str(" join sonde_store.nodes n on n.id = r.node_id join sonde_store.pods p on p.id = r.pod_id");
    for (at, label) in definition.labels.iter().enumerate() {
        let name = ident(&label.name);
        from.push_str(&format!(" join sonde_store.strings l{at} on l{at}.id = r.{name}"));
    }
    if length == Length::Minute {
        from.push_str(&format!(" where {} > 0", of_minute("r.\"#readings\"")));
    }
    run.push(format!(
        "create or replace view {view} as select {} from {from}",
        selected.join(", ")
    ));
    let help = format!(
        "{} in spans of one {}: one row for each with readings",
        probe,
        length.words()
    );
    run.push(format!("comment on view {view} is {}", literal(&help)));
    run.extend(
        columns
            .iter()
            .map(|c| format!("comment on column {view}.{} is {}", ident(&c.name), literal(&c.comment))),
    );
    run
}

/// How the view calls the columns of the definition: of a gauge, the average.
pub(crate) fn names(length: Length, definition: &Definition) -> Vec<String> {
    let mut shown = shown(length, definition).into_iter().skip(5 + definition.labels.len());
    let name = |column: &Column| {
        let last = if column.kind == Kind::Gauge { 2 } else { 0 };
        shown.nth(last).expect("shown has them all").name
    };
    definition.columns.iter().map(name).collect()
}

fn shown(length: Length, definition: &Definition) -> Vec<Shown> {
    let span = length.words();
    let minute = length == Length::Minute;
    let mut columns: Vec<Shown> = Vec::new();
    let mut taken = HashSet::new();
    let mut add = |name: &str, value: String, comment: String| {
        // A gauge `a` and a counter `a_min`: the one that comes later has an underscore more.
        let mut name = name.to_owned();
        while !taken.insert(name.clone()) {
            name.push('_');
        }
        columns.push(Shown { name, value, comment });
    };
    let time = if minute { "m.time" } else { "r.time" };
    add("time", time.into(), format!("Start of the {span}"));
    add("node", "n.name".into(), "Node".into());
    for (name, value, what) in [
        ("namespace", "p.namespace", "Namespace of the pod"),
        ("pod", "p.name", "Pod"),
    ] {
        add(name, value.into(), format!("{what}; empty = the node itself"));
    }
    for (at, label) in definition.labels.iter().enumerate() {
        add(&label.name, format!("l{at}.text"), label.help.clone());
    }
    let readings = if minute {
        of_minute("r.\"#readings\"")
    } else {
        "r.\"#readings\"".into()
    };
    add("readings", readings, format!("How often it was read in the {span}"));
    for column in &definition.columns {
        let (help, unit) = (&column.help, if column.unit.is_empty() { "" } else { ", " });
        let unit = format!("{unit}{}", column.unit);
        let kept = |what: &str| format!("r.{}", ident(&format!("{}{what}", column.name)));
        match column.kind {
            Kind::Counter => {
                let value = scaled(counter(minute, &kept("")), column.scale);
                add(&column.name, value, format!("{help} (increase in the {span}{unit})"));
            }
            Kind::Histogram => {
                let value = histogram(minute, &kept(""), column.width());
                let comment = format!(
                    "{help} (increase in the {span} of a histogram{unit}: counts up to {:?} and beyond, each for itself, \
                     then the sum times {:e})",
                    column.bounds, column.scale
                );
                add(&column.name, value, comment);
            }
            Kind::Gauge => {
                let low = if minute { of_minute(&kept("#min")) } else { kept("#min") };
                for (what, word) in [("min", "least"), ("max", "greatest"), ("avg", "average")] {
                    let own = kept(&format!("#{what}"));
                    let value = match (what, minute) {
                        ("min", _) => low.clone(),
                        (_, true) => format!("coalesce({own}[m.minute], {low})"),
                        (_, false) => format!("coalesce({own}, {low})"),
                    };
                    let comment = format!("{help} ({word} in the {span}{unit})");
                    add(&format!("{}_{what}", column.name), scaled(value, column.scale), comment);
                }
            }
        }
    }
    columns
}

/// An array of one element is the same in each minute.
fn of_minute(array: &str) -> String {
    format!("case when cardinality({array}) = 1 then {array}[1] else {array}[m.minute] end")
}

fn counter(minute: bool, kept: &str) -> String {
    if minute {
        format!(
            "case when cardinality({kept}) = 0 or {kept}[m.minute] < 0 then null else coalesce({kept}[m.minute], 0) end"
        )
    } else {
        format!("case when {kept} < 0 then null else coalesce({kept}, 0) end")
    }
}

fn histogram(minute: bool, kept: &str, width: usize) -> String {
    let zero = format!("array_fill(0::bigint, array[{width}])");
    if minute {
        let first = format!("(m.minute - 1) * {width} + 1");
        format!(
            "case when cardinality({kept}) = 0 or {kept}[{first}] < 0 then null \
             else coalesce(array_replace({kept}[{first} : m.minute * {width}], null, 0::bigint), {zero}) end"
        )
    } else {
        format!("case when {kept}[1] < 0 then null else coalesce({kept}, {zero}) end")
    }
}

fn scaled(value: String, scale: f64) -> String {
    if scale == 1.0 {
        value
    } else {
        format!("({value}) * {scale:e}::double precision")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_collide_are_told_apart_in_the_order_of_the_columns() {
        let column = |name: &str, kind| Column {
            name: name.into(),
            version_of: None,
            help: String::new(),
            kind,
            unit: String::new(),
            scale: 1.0,
            bounds: Vec::new(),
        };
        let mut definition = Definition {
            columns: vec![column("a", Kind::Gauge), column("a_min", Kind::Counter)],
            ..Definition::default()
        };
        let names = |definition: &Definition| -> Vec<String> {
            shown(Length::Hour, definition)
                .into_iter()
                .skip(5)
                .map(|c| c.name)
                .collect()
        };
        assert_eq!(names(&definition), ["a_min", "a_max", "a_avg", "a_min_"]);
        assert_eq!(super::names(Length::Hour, &definition), ["a_avg", "a_min_"]);
        definition.columns.swap(0, 1);
        assert_eq!(names(&definition), ["a_min", "a_min_", "a_max", "a_avg"]);
    }
}
