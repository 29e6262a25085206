//! `GET /metrics`: the aggregator about itself.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::extract::{MatchedPath, Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use parking_lot::Mutex;
use sonde_common::prom::{CONTENT_TYPE, Page, Type};

use super::AppState;

/// Requests by route and status. Routes are those of the router, so callers cannot make series.
#[derive(Debug, Default)]
pub(crate) struct Requests {
    count: Mutex<BTreeMap<(Arc<str>, u16), u64>>,
}

pub(crate) async fn count(State(state): State<AppState>, request: Request, next: Next) -> Response {
    let route: Arc<str> = request
        .extensions()
        .get::<MatchedPath>()
        .map_or("pages", MatchedPath::as_str)
        .into();
    let response = next.run(request).await;
    *state
        .requests
        .count
        .lock()
        .entry((route, response.status().as_u16()))
        .or_default() += 1;
    response
}

/// The aggregator about itself
#[utoipa::path(
    get,
    path = "/metrics",
    tag = "metrics",
    responses((status = 200, content_type = "text/plain", body = String, description = "Prometheus text format 0.0.4"))
)]
pub(crate) async fn page(State(state): State<AppState>) -> Response {
    let mut page = Page::new();
    state.metrics.render(&mut page);
    let live = state.live.size();
    page.single(
        "sonde_aggregator_live_nodes",
        Type::Gauge,
        "Nodes that have series now",
        live.nodes,
    );
    page.single(
        "sonde_aggregator_live_rows",
        Type::Gauge,
        "Rows in the live table, each with the series of its probe",
        live.rows,
    );
    let folded = "sonde_aggregator_live_folded_rows";
    page.family(
        folded,
        Type::Gauge,
        "Rows of a probe that are added up in overflow rows as the budget of their node is spent",
    );
    for (probe, rows) in state.live.folded() {
        page.sample(folded, &[("probe", &probe)], rows);
    }
    state.kubernetes.render(&mut page);
    state.pushes.render(&mut page);
    let open = super::MAX_STREAMS - state.streams.available_permits();
    page.single(
        "sonde_aggregator_http_event_streams",
        Type::Gauge,
        "Event streams that are open",
        open,
    );
    let name = "sonde_aggregator_http_requests_total";
    page.family(name, Type::Counter, "Requests answered, by route and status");
    for ((route, status), count) in state.requests.count.lock().iter() {
        page.sample(name, &[("route", route), ("status", &status.to_string())], *count);
    }
    (StatusCode::OK, [(header::CONTENT_TYPE, CONTENT_TYPE)], page.finish()).into_response()
}
