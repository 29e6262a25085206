//! `GET /api/v1/pods`: pods that are there, or were.

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::{RawQuery, State};
use serde::Serialize;
use sonde_common::time::Span;
use utoipa::{IntoParams, ToSchema};

use super::cursor;
use crate::http::AppState;
use crate::http::params::{Params, now_micros};
use crate::http::problem::{ApiResult, Problem};
use crate::store::query::pods::{PodFilter, PodPosition, PodRow, When};
use crate::store::query::rfc3339;

#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "documents what the handler takes")]
struct PodParams {
    /// Node it runs or ran on. This and the three below: repeatable, `!` negates.
    node: Option<Vec<String>>,
    namespace: Option<Vec<String>>,
    pod: Option<Vec<String>>,
    workload: Option<Vec<String>>,
    /// Pods that were there at that time: RFC 3339, `now`, or a time ago such as `-15m`.
    at: Option<String>,
    /// Pods that were there at some time since then.
    from: Option<String>,
    /// End of that span, by default now.
    to: Option<String>,
    /// `true`: all pods ever seen. Without this, `at`, `from` and `to`: the pods that are there now.
    all: Option<bool>,
    /// Pods in an answer, 1 to 10000, by default 1000.
    #[param(minimum = 1, maximum = 10000)]
    limit: Option<u32>,
    /// `next_cursor` of the page before, with all other parameters as they were.
    cursor: Option<String>,
}

#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct PodPage {
    pods: Vec<Pod>,
    /// Null: this was the last page.
    next_cursor: Option<String>,
}

/// One sandbox.
#[derive(Debug, Serialize, ToSchema)]
struct Pod {
    node: String,
    /// `netns`: a network namespace without Kubernetes.
    namespace: String,
    pod: String,
    /// Empty without Kubernetes.
    uid: String,
    /// What made the pod; empty if nothing did.
    workload: String,
    workload_kind: String,
    /// Unique on the node, also over time.
    sandbox: String,
    ips: Vec<String>,
    labels: BTreeMap<String, String>,
    host_network: bool,
    netns_inode: i64,
    #[schema(format = DateTime)]
    valid_from: String,
    /// Null: still there.
    #[schema(format = DateTime)]
    valid_to: Option<String>,
}

/// Pods that are there, or were
#[utoipa::path(
    get,
    path = "/api/v1/pods",
    tag = "pods and nodes",
    params(PodParams),
    responses((status = 200, body = PodPage), (status = "4XX", body = Problem), (status = "5XX", body = Problem))
)]
pub(crate) async fn list(State(state): State<AppState>, RawQuery(query): RawQuery) -> ApiResult<PodPage> {
    let params = Params::read::<PodParams>(query.as_deref())?;
    let filter = PodFilter {
        node: params.words("node"),
        namespace: params.words("namespace"),
        pod: params.words("pod"),
        workload: params.words("workload"),
        when: when(&params)?,
    };
    let limit = params.number("limit", 1000, 10_000)?;
    let digest = cursor::digest("pods", &params);
    let after = match cursor::read::<3>(digest, &params)? {
        None => None,
        Some([namespace, pod, id]) => Some(PodPosition {
            namespace,
            pod,
            id: id.parse().map_err(|_| cursor::unreadable())?,
        }),
    };
    let mut rows = state.store.pods(&filter, after.as_ref(), limit + 1).await?;
    let more = rows.len() > limit as usize;
    rows.truncate(limit as usize);
    let next_cursor = rows
        .last()
        .filter(|_| more)
        .map(|last| cursor::write(digest, &[&last.namespace, &last.pod, &last.id.to_string()]));
    Ok(Json(PodPage {
        pods: rows.into_iter().map(Pod::from).collect(),
        next_cursor,
    }))
}

fn when(params: &Params) -> Result<When, Problem> {
    let at = params.time("at", now_micros())?;
    let span = params.one("from")?.is_some() || params.one("to")?.is_some();
    match (params.flag("all")?, at, span) {
        (false, None, false) => Ok(When::Now),
        (true, None, false) => Ok(When::Ever),
        (false, Some(at), false) => Ok(When::At(at)),
        (false, None, true) => {
            let (from, to) = params.range(Span::from_secs(3600))?;
            Ok(When::Within(from, to))
        }
        _ => Err(Problem::bad(
            "at",
            "expected one of `at`, `from` with `to`, and `all`, not several",
        )),
    }
}

impl From<PodRow> for Pod {
    fn from(row: PodRow) -> Self {
        Self {
            node: row.node,
            namespace: row.namespace,
            pod: row.pod,
            uid: row.uid,
            workload: row.workload,
            workload_kind: row.workload_kind,
            sandbox: row.sandbox,
            ips: row.ips,
            labels: row.labels.0,
            host_network: row.host_network,
            netns_inode: row.netns_inode,
            valid_from: rfc3339(row.valid_from),
            valid_to: row.valid_to.map(rfc3339),
        }
    }
}
