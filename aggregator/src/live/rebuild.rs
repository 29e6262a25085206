//! The table as it was before a restart, from the newest stored rows.

use std::collections::HashMap;
use std::sync::Arc;

use sonde_common::time::now_ns;
use sonde_proto::v1;

use super::{LiveTable, SILENT_INTERVALS, Size, interval};
use crate::store::Store;

/// The newest reading of one probe on one node, as stored.
#[derive(Clone, Debug)]
pub struct LoadedTable {
    pub node: String,
    pub interval_ns: u64,
    pub def: Arc<v1::ProbeDef>,
    pub time_ns: u64,
    pub rows: Vec<LoadedRow>,
}

#[derive(Clone, Debug)]
pub struct LoadedRow {
    /// None: the node itself.
    pub pod: Option<Arc<LoadedPod>>,
    pub labels: Vec<String>,
    /// Those of all columns of the definition, one behind the other.
    pub values: Vec<i64>,
}

/// A pod that has not ended.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct LoadedPod {
    pub sandbox: String,
    pub namespace: String,
    pub name: String,
    pub valid_from_ns: u64,
}

impl LiveTable {
    /// Takes the newest rows of the database. Without them federation only begins with the next readings, so a failure
    /// is no reason not to start.
    pub async fn restore(&self, store: &Store) {
        let now = i64::try_from(now_ns() / 1000).unwrap_or(i64::MAX);
        // As they come: all together take many times what the table takes.
        match store.newest_tables(now, |table| self.load(&[table])).await {
            Ok(()) => {
                let Size { nodes, rows } = self.size();
                tracing::info!(nodes, rows, "took over the newest rows of the database");
            }
            Err(error) => tracing::warn!(%error, "cannot read the newest rows, federation begins with the next ones"),
        }
    }

    /// Takes what the store had. Each series lives as long as it would have lived without the restart.
    pub fn load(&self, tables: &[LoadedTable]) {
        let now = now_ns();
        for table in tables {
            let lifetime = interval(table.interval_ns) * SILENT_INTERVALS;
            let age = std::time::Duration::from_nanos(now.saturating_sub(table.time_ns));
            let Some(left) = lifetime.checked_sub(age) else {
                continue;
            };
            let catalogue = v1::Catalogue {
                probes: vec![(*table.def).clone()],
            };
            let node = {
                let mut state = self.state.write();
                let probes = state.adopt(&table.node, &catalogue);
                let name: Arc<str> = table.node.as_str().into();
                let node = state.nodes.entry(name.clone()).or_default();
                if node.streams > 0 {
                    continue;
                }
                node.interval = interval(table.interval_ns);
                node.probes.extend(probes);
                name
            };
            let (rows, body) = as_message(table);
            let Some((_, meta, _, None)) = self.place_of(&node, &rows.probe) else {
                continue;
            };
            let Some(subjects) = self.subjects_of(&node, &body) else {
                continue;
            };
            let read = super::Read {
                rows: &rows,
                body: &body,
                subjects,
            };
            let tools = (&self.limits, &mut *self.packer.lock());
            match super::Snapshot::from_rows(&node, meta, read, left, None, tools) {
                Ok(snapshot) => self.put(snapshot),
                Err(error) => tracing::error!(node = table.node, %error, "stored rows left out of the live table"),
            }
        }
    }
}

/// Stored rows in the form in which rows come, so that there is one way into the table.
fn as_message(table: &LoadedTable) -> (v1::Rows, v1::BatchBody) {
    let mut body = v1::BatchBody::default();
    let mut pods: HashMap<&LoadedPod, u32> = HashMap::new();
    let mut rows = v1::Rows {
        probe: table.def.name.clone(),
        time_ns: table.time_ns,
        ..Default::default()
    };
    for row in &table.rows {
        let subject = row.pod.as_deref().map_or(0, |pod| {
            *pods.entry(pod).or_insert_with(|| {
                body.pods.push(pod.into());
                body.pods.len() as u32
            })
        });
        rows.subjects.push(subject);
        for label in &row.labels {
            rows.labels.push(body.strings.len() as u32);
            body.strings.push(label.clone());
        }
    }
    let mut at = 0;
    for column in &table.def.columns {
        let width = width(column);
        let values = table.rows.iter().flat_map(|row| &row.values[at..at + width]);
        rows.columns.push(v1::Column {
            values: values.copied().collect(),
        });
        at += width;
    }
    (rows, body)
}

/// How many numbers a row has of a column.
pub fn width(def: &v1::ColumnDef) -> usize {
    match def.kind() {
        v1::Kind::Histogram => def.bounds.len() + 2,
        _ => 1,
    }
}

impl From<&LoadedPod> for v1::Pod {
    fn from(pod: &LoadedPod) -> Self {
        Self {
            sandbox: pod.sandbox.clone(),
            namespace: pod.namespace.clone(),
            name: pod.name.clone(),
            valid_from_ns: pod.valid_from_ns,
            ..Default::default()
        }
    }
}
