//! `GET /api/v1/probes`: what is measured, in the words of the probes themselves.

use axum::Json;
use axum::extract::{RawQuery, State};
use serde::Serialize;
use utoipa::{IntoParams, ToSchema};

use crate::http::AppState;
use crate::http::params::Params;
use crate::http::problem::{ApiResult, Problem};
use crate::store::catalogue::Kind;
use crate::store::query::probes::ProbeRow;

#[derive(IntoParams)]
struct NoParams {}

#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ProbeList {
    probes: Vec<Probe>,
}

#[derive(Debug, Serialize, ToSchema)]
struct Probe {
    name: String,
    help: String,
    labels: Vec<Word>,
    columns: Vec<Column>,
    event_types: Vec<Word>,
}

#[derive(Debug, Serialize, ToSchema)]
struct Word {
    name: String,
    help: String,
}

#[derive(Debug, Serialize, ToSchema)]
struct Column {
    name: String,
    /// Its family in `/federate`.
    metric: String,
    help: String,
    /// `counter`, `gauge` or `histogram`.
    #[schema(value_type = String)]
    kind: Kind,
    unit: String,
    /// Upper bounds of a histogram's buckets in the unit, without infinity.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    bounds: Vec<f64>,
}

/// What is measured
#[utoipa::path(
    get,
    path = "/api/v1/probes",
    tag = "probes",
    responses((status = 200, body = ProbeList), (status = "4XX", body = Problem), (status = "5XX", body = Problem))
)]
pub(crate) async fn list(State(state): State<AppState>, RawQuery(query): RawQuery) -> ApiResult<ProbeList> {
    Params::read::<NoParams>(query.as_deref())?;
    let rows = state.store.probes().await?;
    Ok(Json(ProbeList {
        probes: rows.into_iter().map(Probe::from).collect(),
    }))
}

impl From<ProbeRow> for Probe {
    fn from(row: ProbeRow) -> Self {
        let word = |(name, help)| Word { name, help };
        let columns = row.definition.columns.into_iter().map(|column| Column {
            metric: column.metric(&row.name),
            name: column.name,
            help: column.help,
            kind: column.kind,
            unit: column.unit,
            bounds: column.bounds,
        });
        Self {
            columns: columns.collect(),
            labels: row
                .definition
                .labels
                .into_iter()
                .map(|l| (l.name, l.help))
                .map(word)
                .collect(),
            event_types: row
                .definition
                .event_types
                .into_iter()
                .map(|t| (t.name, t.help))
                .map(word)
                .collect(),
            help: row.help,
            name: row.name,
        }
    }
}
