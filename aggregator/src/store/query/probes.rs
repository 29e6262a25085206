//! What each probe says of itself, as the newest collector that spoke of it said it.

use sonde_proto::v1;
use sqlx::types::Json;

use super::QueryError;
use crate::store::Store;
use crate::store::catalogue::{Column, Definition, Kind};

#[derive(Clone, Debug)]
pub struct ProbeRow {
    pub name: String,
    pub help: String,
    pub definition: Definition,
}

impl Column {
    pub(crate) fn proto(&self) -> v1::ColumnDef {
        let kind = match self.kind {
            Kind::Counter => v1::Kind::Counter,
            Kind::Gauge => v1::Kind::Gauge,
            Kind::Histogram => v1::Kind::Histogram,
        };
        v1::ColumnDef {
            name: self.said_name().to_owned(),
            help: self.help.clone(),
            kind: kind.into(),
            unit: self.unit.clone(),
            scale: self.scale,
            bounds: self.bounds.clone(),
        }
    }

    /// The metric's family in Prometheus.
    pub(crate) fn metric(&self, probe: &str) -> String {
        sonde_proto::names::metric(probe, &self.proto())
    }
}

impl ProbeRow {
    /// As the newest collector would say it.
    pub fn proto(&self) -> v1::ProbeDef {
        let Definition {
            labels, event_types, ..
        } = &self.definition;
        v1::ProbeDef {
            name: self.name.clone(),
            help: self.help.clone(),
            labels: labels
                .iter()
                .map(|l| v1::LabelDef {
                    name: l.name.clone(),
                    help: l.help.clone(),
                })
                .collect(),
            columns: self.definition.newest_columns().map(Column::proto).collect(),
            event_types: event_types
                .iter()
                .map(|t| v1::EventTypeDef {
                    name: t.name.clone(),
                    help: t.help.clone(),
                })
                .collect(),
        }
    }
}

impl Store {
    pub async fn probes(&self) -> Result<Vec<ProbeRow>, QueryError> {
        let rows: Vec<(String, String, Json<Definition>)> =
            sqlx::query_as("select name, help, definition from sonde_store.probes order by name")
                .fetch_all(self.pool())
                .await?;
        let row = |(name, help, Json(definition))| ProbeRow { name, help, definition };
        Ok(rows.into_iter().map(row).collect())
    }

    pub async fn probe(&self, name: &str) -> Result<Option<ProbeRow>, QueryError> {
        let row: Option<(String, String, Json<Definition>)> =
            sqlx::query_as("select name, help, definition from sonde_store.probes where name = $1")
                .bind(name)
                .fetch_optional(self.pool())
                .await?;
        Ok(row.map(|(name, help, Json(definition))| ProbeRow { name, help, definition }))
    }
}
