//! `GET /api/v1/gaps`: spans in which something could not be seen. Silence must never look like health.

use axum::Json;
use axum::extract::{RawQuery, State};
use serde::Serialize;
use utoipa::{IntoParams, ToSchema};

use super::events::DEFAULT_RANGE;
use crate::http::AppState;
use crate::http::params::Params;
use crate::http::problem::{ApiResult, Problem};
use crate::store::query::gaps::{GapFilter, GapRow};
use crate::store::query::rfc3339;

#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "documents what the handler takes")]
struct GapParams {
    /// Gaps that reach beyond this: RFC 3339, `now`, or a time ago such as `-15m`. Default: an hour before the end.
    from: Option<String>,
    /// Gaps that began before this. Default: now.
    to: Option<String>,
    /// This and the two below: repeatable, `!` negates.
    node: Option<Vec<String>>,
    /// A gap of all probes belongs to each of them.
    probe: Option<Vec<String>>,
    /// Such as `rate_limited`.
    cause: Option<Vec<String>>,
    /// Gaps in an answer, 1 to 10000, by default 1000.
    #[param(minimum = 1, maximum = 10000)]
    limit: Option<u32>,
}

#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct GapList {
    /// Newest first.
    gaps: Vec<Gap>,
    /// There are more than the limit: older ones are left out.
    truncated: bool,
}

#[derive(Debug, Serialize, ToSchema)]
struct Gap {
    node: String,
    /// Empty: the whole node. Left out: a network namespace of no known pod.
    #[serde(skip_serializing_if = "Option::is_none")]
    namespace: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pod: Option<String>,
    /// Empty: all.
    probe: String,
    cause: String,
    #[schema(format = DateTime)]
    from: String,
    #[schema(format = DateTime)]
    to: String,
    /// Events, rows or hits that are missing; 0: not countable.
    count: i64,
    detail: String,
}

/// Spans in which something could not be seen
#[utoipa::path(
    get,
    path = "/api/v1/gaps",
    tag = "events",
    params(GapParams),
    responses((status = 200, body = GapList), (status = "4XX", body = Problem), (status = "5XX", body = Problem))
)]
pub(crate) async fn list(State(state): State<AppState>, RawQuery(query): RawQuery) -> ApiResult<GapList> {
    let params = Params::read::<GapParams>(query.as_deref())?;
    let filter = GapFilter {
        node: params.words("node"),
        probe: params.words("probe"),
        cause: params.words("cause"),
    };
    let limit = params.number("limit", 1000, 10_000)?;
    let range = params.range(DEFAULT_RANGE)?;
    let mut rows = state.store.gaps(&filter, range, limit + 1).await?;
    let truncated = rows.len() > limit as usize;
    rows.truncate(limit as usize);
    Ok(Json(GapList {
        gaps: rows.into_iter().map(Gap::from).collect(),
        truncated,
    }))
}

impl From<GapRow> for Gap {
    fn from(row: GapRow) -> Self {
        Self {
            node: row.node,
            namespace: row.namespace,
            pod: row.pod,
            probe: row.probe,
            cause: row.cause,
            from: rfc3339(row.from_time),
            to: rfc3339(row.to_time),
            count: row.count,
            detail: row.detail,
        }
    }
}
