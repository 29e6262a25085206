//! The interface as OpenAPI 3.1, from the endpoints' own documentation; `openapi/common.rs` adds what all have in common.

mod common;

use axum::Json;
use utoipa::OpenApi;

use common::Common;

use super::{api, federate, health, metrics};

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Sonde aggregator",
        description = "What the network did to every pod of the cluster"
    ),
    servers((url = "/", description = "The aggregator that serves this document")),
    modifiers(&Common),
    paths(
        api::events::list,
        api::events_export::export,
        api::events_stats::stats,
        api::events_stream::stream,
        api::pods::list,
        api::nodes::list,
        api::probes::list,
        api::probe_rows::rows,
        api::gaps::list,
        api::changes::list,
        api::services::list,
        api::kubernetes::status,
        federate::page,
        metrics::page,
        health::healthy,
        health::ready,
    )
)]
struct Interface;

/// The document that `/openapi.json` serves.
pub fn openapi() -> utoipa::openapi::OpenApi {
    Interface::openapi()
}

pub(crate) async fn document() -> Json<utoipa::openapi::OpenApi> {
    Json(openapi())
}
