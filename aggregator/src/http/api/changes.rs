//! `GET /api/v1/changes`: what changed in the cluster: deletes, rollouts, restarts, readiness.

use axum::Json;
use axum::extract::{RawQuery, State};
use serde::Serialize;
use utoipa::{IntoParams, ToSchema};

use super::cursor;
use super::events::DEFAULT_RANGE;
use crate::http::AppState;
use crate::http::params::Params;
use crate::http::problem::{ApiResult, Problem};
use crate::store::query::changes::{ChangeFilter, ChangeRow};
use crate::store::query::events::Position;
use crate::store::query::rfc3339;

#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "documents what the handler takes")]
struct ChangeParams {
    /// Changes that can have happened since: RFC 3339, `now`, or a time ago such as `-15m`. Default: an hour before the end.
    from: Option<String>,
    /// Changes that can have happened before this. Default: now.
    to: Option<String>,
    /// Such as `rollout`. This and all below: repeatable, `!` negates.
    kind: Option<Vec<String>>,
    /// Node it is about, or that the pod ran on.
    node: Option<Vec<String>>,
    namespace: Option<Vec<String>>,
    pod: Option<Vec<String>>,
    workload: Option<Vec<String>>,
    /// Service it is about.
    service: Option<Vec<String>>,
    /// Changes in a page, 1 to 1000, by default 100.
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<u32>,
    /// `next_cursor` of the page before, with all other parameters as they were.
    cursor: Option<String>,
}

#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ChangePage {
    /// Newest first.
    changes: Vec<Change>,
    /// Null: this was the last page.
    next_cursor: Option<String>,
}

/// What does not apply is left out.
#[derive(Debug, Serialize, ToSchema)]
struct Change {
    id: i64,
    /// When it happened; with `since`: the last moment at which it can have happened.
    #[schema(format = DateTime)]
    time: String,
    /// It was not seen as it happened: not before this.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(format = DateTime)]
    since: Option<String>,
    /// `pod_created`, `pod_deleted`, `pod_restarted`, `readiness_changed`, `rollout`, `node_added`, `node_removed`,
    /// `node_ready_changed`, `node_restarted`, `node_cordoned`, `service_created`, `service_deleted`,
    /// `service_changed`, `endpoints_changed`.
    kind: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    node: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    namespace: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pod: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    workload_kind: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    workload: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    service: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    before: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    after: Option<String>,
    /// Why, in the words of Kubernetes, or what else is known.
    #[serde(skip_serializing_if = "String::is_empty")]
    detail: String,
}

/// What changed in the cluster
///
/// From the Kubernetes API; nothing comes where that is not read (`/api/v1/kubernetes` says why).
#[utoipa::path(
    get,
    path = "/api/v1/changes",
    tag = "cluster",
    params(ChangeParams),
    responses((status = 200, body = ChangePage), (status = "4XX", body = Problem), (status = "5XX", body = Problem))
)]
pub(crate) async fn list(State(state): State<AppState>, RawQuery(query): RawQuery) -> ApiResult<ChangePage> {
    let params = Params::read::<ChangeParams>(query.as_deref())?;
    let filter = ChangeFilter {
        kind: params.words("kind"),
        node: params.words("node"),
        namespace: params.words("namespace"),
        pod: params.words("pod"),
        workload: params.words("workload"),
        service: params.words("service"),
    };
    let known = |kind: &&String| !crate::kubernetes::KINDS.iter().any(|(name, _)| name == kind);
    if let Some(bad) = filter.kind.any.iter().chain(&filter.kind.none).find(known) {
        let kinds: Vec<&str> = crate::kubernetes::KINDS.iter().map(|(name, _)| *name).collect();
        return Err(Problem::bad(
            "kind",
            format!("`kind={bad}`: expected one of {}", kinds.join(", ")),
        ));
    }
    let limit = params.number("limit", 100, 1000)?;
    let digest = cursor::digest("changes", &params);
    // The span of the first page is the span of all: `-1h` and `now` must not move from page to page.
    let mut range = params.range(DEFAULT_RANGE)?;
    let mut after = None;
    if let Some(fields) = cursor::read::<4>(digest, &params)? {
        let [from, to, time, id] = cursor::numbers(&fields).ok_or_else(cursor::unreadable)?;
        range = (from, to);
        after = Some(Position { time, id });
    }
    let mut rows = state.store.changes(&filter, range, after, limit + 1).await?;
    let more = rows.len() > limit as usize;
    rows.truncate(limit as usize);
    let next_cursor = rows.last().filter(|_| more).map(|last| {
        let fields = [range.0, range.1, last.time, last.id].map(|n| n.to_string());
        cursor::write(digest, &fields.each_ref().map(String::as_str))
    });
    Ok(Json(ChangePage {
        changes: rows.into_iter().map(Change::from).collect(),
        next_cursor,
    }))
}

impl From<ChangeRow> for Change {
    fn from(row: ChangeRow) -> Self {
        Self {
            id: row.id,
            time: rfc3339(row.time),
            since: (row.since != row.time).then(|| rfc3339(row.since)),
            kind: row.kind,
            node: row.node,
            namespace: row.namespace,
            pod: row.pod,
            workload_kind: row.workload_kind,
            workload: row.workload,
            service: row.service,
            before: row.before,
            after: row.after,
            detail: row.detail,
        }
    }
}
