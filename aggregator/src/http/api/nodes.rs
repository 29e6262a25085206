//! `GET /api/v1/nodes`: nodes that ever sent something.

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::{RawQuery, State};
use serde::Serialize;
use utoipa::{IntoParams, ToSchema};

use crate::http::AppState;
use crate::http::params::{Params, now_micros};
use crate::http::problem::{ApiResult, Problem};
use crate::store::query::nodes::NodeRow;
use crate::store::query::{Micros, rfc3339};

/// A node that another aggregator serves counts as connected while it was seen this lately: that is noted every ten
/// seconds.
const SEEN_LATELY: Micros = 30_000_000;

#[derive(IntoParams)]
struct NoParams {}

#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct NodeList {
    nodes: Vec<Node>,
}

#[derive(Debug, Serialize, ToSchema)]
struct Node {
    node: String,
    /// Of its collector.
    version: String,
    /// `uname -r`.
    kernel: String,
    boot_id: Option<String>,
    #[schema(format = DateTime)]
    first_seen: String,
    #[schema(format = DateTime)]
    last_seen: String,
    /// Whether its collector holds a connection.
    connected: bool,
    /// How often its metrics are read.
    interval_s: f64,
    /// Pods that are there now.
    pods: i64,
    /// From the Kubernetes API, as the two below: left out where that is not read or does not know the node.
    #[serde(skip_serializing_if = "Option::is_none")]
    labels: Option<BTreeMap<String, String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ips: Option<Vec<String>>,
    /// `ready`, `not ready` or `unknown`.
    #[serde(skip_serializing_if = "Option::is_none")]
    ready: Option<String>,
}

/// Nodes that ever sent something
#[utoipa::path(
    get,
    path = "/api/v1/nodes",
    tag = "pods and nodes",
    responses((status = 200, body = NodeList), (status = "4XX", body = Problem), (status = "5XX", body = Problem))
)]
pub(crate) async fn list(State(state): State<AppState>, RawQuery(query): RawQuery) -> ApiResult<NodeList> {
    Params::read::<NoParams>(query.as_deref())?;
    let rows = state.store.nodes().await?;
    let nodes = rows.into_iter().map(|row| node(row, &state)).collect();
    Ok(Json(NodeList { nodes }))
}

fn node(row: NodeRow, state: &AppState) -> Node {
    let lately = || now_micros() - row.last_seen <= SEEN_LATELY;
    Node {
        connected: state.live.is_connected(&row.node).unwrap_or_else(lately),
        node: row.node,
        version: row.version,
        kernel: row.kernel,
        boot_id: row.boot_id,
        first_seen: rfc3339(row.first_seen),
        last_seen: rfc3339(row.last_seen),
        interval_s: row.interval_ns as f64 / 1e9,
        pods: row.pods,
        ips: row.labels.as_ref().and(row.ips),
        labels: row.labels.map(|labels| labels.0),
        ready: row.ready,
    }
}
