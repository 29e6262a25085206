//! What a probe has, as stored: the union of what all collectors said of it. Columns are only ever added. A column whose
//! kind, unit, scale or bounds change would make stored values lie: it gets a new version, a column of its own beside the
//! old one, and every collector writes to the one that means what it says.

use serde::{Deserialize, Serialize};
use sonde_proto::limits::MAX_CELLS;
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
    /// In tables and views. The metric's name, and behind it `_v2` and so on where it is a later version.
    pub name: String,
    /// The metric's name where that is another.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version_of: Option<String>,
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
    /// As collectors call it.
    pub fn said_name(&self) -> &str {
        self.version_of.as_deref().unwrap_or(&self.name)
    }

    /// Whether values of one can stand in the place of the other.
    pub fn means_the_same(&self, other: &Self) -> bool {
        self.said_name() == other.said_name()
            && self.kind == other.kind
            && self.unit == other.unit
            && self.scale == other.scale
            && self.bounds == other.bounds
    }

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

/// What a collector says cannot be stored beside what others said.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Conflict {
    #[error(
        "probe {probe}: {name} is stored as a {stored}, and this collector says it is a {said}: it needs a new name"
    )]
    Role {
        probe: String,
        name: String,
        stored: &'static str,
        said: &'static str,
    },
    #[error("probe {probe}: {count} {what} with those of other collectors, expected at most {most}")]
    TooMany {
        probe: String,
        what: &'static str,
        count: usize,
        most: usize,
    },
}

/// Labels that all collectors together may give a probe.
const MOST_LABELS: usize = 64;

impl Definition {
    /// A column that nothing here means the same as, under a name that is free.
    fn version(&self, column: &Column) -> Column {
        let taken =
            |name: &str| self.columns.iter().any(|c| c.name == name) || self.labels.iter().any(|l| l.name == name);
        if !taken(&column.name) {
            return column.clone();
        }
        let name = (2..)
            .map(|version| format!("{}_v{version}", column.name))
            .find(|name| !taken(name));
        Column {
            name: name.expect("a number is free"),
            version_of: Some(column.name.clone()),
            ..column.clone()
        }
    }

    /// Without columns of which there is a later version.
    pub fn newest_columns(&self) -> impl Iterator<Item = &Column> {
        let later = |at: usize, column: &Column| {
            self.columns[at + 1..]
                .iter()
                .any(|c| c.said_name() == column.said_name())
        };
        self.columns
            .iter()
            .enumerate()
            .filter(move |(at, c)| !later(*at, c))
            .map(|(_, c)| c)
    }

    /// Numbers that a row has: one for each counter and gauge, those of its histograms.
    pub fn cells(&self) -> usize {
        self.columns.iter().map(Column::width).sum()
    }

    /// The probe must have been checked: see `ingest::hello`.
    pub fn from_proto(probe: &v1::ProbeDef) -> Self {
        let column = |c: &v1::ColumnDef| Column {
            name: c.name.clone(),
            version_of: None,
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
        let role = |name: &str, stored, said| Conflict::Role {
            probe: probe.to_owned(),
            name: name.to_owned(),
            stored,
            said,
        };
        for label in &said.labels {
            if self.columns.iter().any(|c| c.name == label.name) {
                return Err(role(&label.name, "column", "label"));
            }
            match merged.labels.iter_mut().find(|l| l.name == label.name) {
                Some(known) => known.help.clone_from(&label.help),
                None => merged.labels.push(label.clone()),
            }
        }
        for column in &said.columns {
            if self.labels.iter().any(|l| l.name == column.name) {
                return Err(role(&column.name, "label", "column"));
            }
            match merged.columns.iter_mut().find(|c| c.means_the_same(column)) {
                Some(known) => known.help.clone_from(&column.help),
                None => {
                    let column = merged.version(column);
                    merged.columns.push(column);
                }
            }
        }
        for (what, count, most) in [
            ("numbers in a row", merged.cells(), MAX_CELLS),
            ("labels", merged.labels.len(), MOST_LABELS),
        ] {
            if count > most {
                return Err(Conflict::TooMany {
                    probe: probe.to_owned(),
                    what,
                    count,
                    most,
                });
            }
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
            version_of: None,
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
    fn a_changed_meaning_is_a_new_version_and_an_old_one_stays() {
        let stored = definition(&[("a", Kind::Counter, 1.0), ("a_v2", Kind::Gauge, 1.0)]);
        let gauge = definition(&[("a", Kind::Gauge, 1.0)]);
        let merged = stored.merged("p", &gauge).unwrap();
        let names = |d: &Definition| -> Vec<(String, String)> {
            d.columns
                .iter()
                .map(|c| (c.name.clone(), c.said_name().to_owned()))
                .collect()
        };
        let expected = [("a", "a"), ("a_v2", "a_v2"), ("a_v3", "a")].map(|(a, b)| (a.to_owned(), b.to_owned()));
        assert_eq!(names(&merged), expected);
        // Whoever says the one or the other again changes nothing.
        assert_eq!(merged.merged("p", &gauge).unwrap(), merged);
        assert_eq!(merged.merged("p", &stored).unwrap(), merged);
        let again = merged.merged("p", &definition(&[("a", Kind::Counter, 1e-9)])).unwrap();
        assert_eq!(again.columns[3].name, "a_v4");
        let newest: Vec<_> = again.newest_columns().map(|c| c.name.as_str()).collect();
        assert_eq!(newest, ["a_v2", "a_v4"]);
        let read: Definition = serde_json::from_str(&serde_json::to_string(&again).unwrap()).unwrap();
        assert_eq!(read, again);
    }

    #[test]
    fn what_has_no_place_is_refused_by_name() {
        let stored = definition(&[("a", Kind::Counter, 1.0)]);
        let mut label = Definition::default();
        label.labels.push(Label {
            name: "a".into(),
            help: String::new(),
        });
        let error = stored.merged("p", &label).unwrap_err().to_string();
        assert!(
            error.starts_with("probe p: a is stored as a column, and this collector says it is a label"),
            "{error}"
        );
        let error = label.merged("p", &stored).unwrap_err().to_string();
        assert!(error.starts_with("probe p: a is stored as a label"), "{error}");
        let names: Vec<String> = (0..MAX_CELLS + 1).map(|n| format!("c{n}")).collect();
        let many: Vec<_> = names.iter().map(|n| (n.as_str(), Kind::Gauge, 1.0)).collect();
        let most = stored.merged("p", &definition(&many[..MAX_CELLS - 1]));
        assert_eq!(most.unwrap().cells(), MAX_CELLS);
        let error = stored
            .merged("p", &definition(&many[..MAX_CELLS]))
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("481 numbers in a row with those of other collectors, expected at most 480"),
            "{error}"
        );
    }
}
