//! What a probe has, as stored: the union of what all collectors said of it. Columns are only ever added; a column whose
//! meaning changes would make stored values lie, so that is refused, and a new meaning needs a new name.

use serde::{Deserialize, Serialize};
use sonde_proto::v1;

/// `sonde_store.probes.definition`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Definition {
    pub labels: Vec<Label>,
    pub columns: Vec<Column>,
    pub event_types: Vec<EventType>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Label {
    pub name: String,
    pub help: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventType {
    pub name: String,
    pub help: String,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Column {
    pub name: String,
    pub help: String,
    pub kind: Kind,
    pub unit: String,
    /// The stored integer times this is in `unit`.
    pub scale: f64,
    /// Of histograms, in `unit`.
    pub bounds: Vec<f64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    Counter,
    Gauge,
    Histogram,
}

impl Column {
    /// Integers a row holds for this column on the wire.
    pub fn width(&self) -> usize {
        match self.kind {
            Kind::Histogram => self.bounds.len() + 2,
            Kind::Counter | Kind::Gauge => 1,
        }
    }

    /// Type in the table: stored as the kernel counted.
    pub fn sql_type(&self) -> &'static str {
        match self.kind {
            Kind::Histogram => "bigint[]",
            Kind::Counter | Kind::Gauge => "bigint",
        }
    }
}

/// A column that is not what it was.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "probe {probe}: column {column} is stored with {what} {stored}, and this collector says {said}: a changed meaning needs a new column name"
)]
pub struct Conflict {
    pub probe: String,
    pub column: String,
    pub what: &'static str,
    pub stored: String,
    pub said: String,
}

impl Definition {
    /// Numbers that a row has: one for each counter and gauge, those of its histograms.
    pub fn cells(&self) -> usize {
        self.columns.iter().map(Column::width).sum()
    }

    /// The probe must have been checked: see `ingest::hello`.
    pub fn from_proto(probe: &v1::ProbeDef) -> Self {
        let column = |c: &v1::ColumnDef| Column {
            name: c.name.clone(),
            help: c.help.clone(),
            kind: match c.kind() {
                v1::Kind::Histogram => Kind::Histogram,
                v1::Kind::Counter => Kind::Counter,
                v1::Kind::Gauge | v1::Kind::Unspecified => Kind::Gauge,
            },
            unit: c.unit.clone(),
            scale: if c.scale == 0.0 { 1.0 } else { c.scale },
            bounds: c.bounds.clone(),
        };
        Self {
            labels: probe
                .labels
                .iter()
                .map(|l| Label {
                    name: l.name.clone(),
                    help: l.help.clone(),
                })
                .collect(),
            columns: probe.columns.iter().map(column).collect(),
            event_types: probe
                .event_types
                .iter()
                .map(|t| EventType {
                    name: t.name.clone(),
                    help: t.help.clone(),
                })
                .collect(),
        }
    }

    /// What is stored, widened by what a collector says; its help texts win.
    pub fn merged(&self, probe: &str, said: &Self) -> Result<Self, Conflict> {
        let mut merged = self.clone();
        let conflict = |column: &str, what, stored: String, said: String| Conflict {
            probe: probe.to_owned(),
            column: column.to_owned(),
            what,
            stored,
            said,
        };
        for label in &said.labels {
            if self.columns.iter().any(|c| c.name == label.name) {
                return Err(conflict(&label.name, "kind", "column".into(), "label".into()));
            }
            match merged.labels.iter_mut().find(|l| l.name == label.name) {
                Some(known) => known.help.clone_from(&label.help),
                None => merged.labels.push(label.clone()),
            }
        }
        for column in &said.columns {
            if self.labels.iter().any(|l| l.name == column.name) {
                return Err(conflict(&column.name, "kind", "label".into(), "column".into()));
            }
            let Some(known) = merged.columns.iter_mut().find(|c| c.name == column.name) else {
                merged.columns.push(column.clone());
                continue;
            };
            for (what, stored, said) in [
                (
                    "kind",
                    format!("{:?}", known.kind).to_lowercase(),
                    format!("{:?}", column.kind).to_lowercase(),
                ),
                ("unit", format!("{:?}", known.unit), format!("{:?}", column.unit)),
                ("scale", known.scale.to_string(), column.scale.to_string()),
                ("bounds", format!("{:?}", known.bounds), format!("{:?}", column.bounds)),
            ] {
                if stored != said {
                    return Err(conflict(&column.name, what, stored, said));
                }
            }
            known.help.clone_from(&column.help);
        }
        for event_type in &said.event_types {
            match merged.event_types.iter_mut().find(|t| t.name == event_type.name) {
                Some(known) => known.help.clone_from(&event_type.help),
                None => merged.event_types.push(event_type.clone()),
            }
        }
        Ok(merged)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn definition(columns: &[(&str, Kind, f64)]) -> Definition {
        let column = |(name, kind, scale): &(&str, Kind, f64)| Column {
            name: (*name).into(),
            help: "h".into(),
            kind: *kind,
            unit: "seconds".into(),
            scale: *scale,
            bounds: if *kind == Kind::Histogram {
                vec![0.1, 1.0]
            } else {
                vec![]
            },
        };
        Definition {
            columns: columns.iter().map(column).collect(),
            ..Default::default()
        }
    }

    #[test]
    fn a_newer_collector_adds_columns_and_an_older_one_takes_none_away() {
        let old = definition(&[("a", Kind::Counter, 1.0), ("b", Kind::Gauge, 1.0)]);
        let new = definition(&[("c", Kind::Histogram, 1e-9), ("b", Kind::Gauge, 1.0)]);
        let merged = old.merged("p", &new).unwrap();
        let names: Vec<_> = merged.columns.iter().map(|c| c.name.as_str()).collect();
        assert_eq!(names, ["a", "b", "c"]);
        assert_eq!(merged.merged("p", &old).unwrap(), merged);
    }

    #[test]
    fn a_changed_meaning_is_refused_by_name() {
        let stored = definition(&[("a", Kind::Counter, 1.0)]);
        let error = stored
            .merged("p", &definition(&[("a", Kind::Gauge, 1.0)]))
            .unwrap_err()
            .to_string();
        assert!(
            error.starts_with("probe p: column a is stored with kind counter, and this collector says gauge"),
            "{error}"
        );
        let error = stored
            .merged("p", &definition(&[("a", Kind::Counter, 1e-9)]))
            .unwrap_err();
        assert_eq!((error.what, error.said.as_str()), ("scale", "0.000000001"));
        let mut label = Definition::default();
        label.labels.push(Label {
            name: "a".into(),
            help: String::new(),
        });
        assert_eq!(stored.merged("p", &label).unwrap_err().said, "label");
    }
}
