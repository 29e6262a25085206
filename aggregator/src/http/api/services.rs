//! `GET /api/v1/services`: services of the cluster and what stands behind them.

use std::collections::BTreeMap;
use std::net::IpAddr;

use axum::Json;
use axum::extract::{RawQuery, State};
use serde::Serialize;
use serde_json::Value;
use utoipa::{IntoParams, ToSchema};

use super::cursor;
use crate::http::AppState;
use crate::http::params::{Params, now_micros};
use crate::http::problem::{ApiResult, Problem};
use crate::store::query::rfc3339;
use crate::store::query::services::{ServiceFilter, ServicePosition, ServiceRow};

/// Endpoints of one service in an answer.
const MOST_ENDPOINTS: u32 = 100;

#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "documents what the handler takes")]
struct ServiceParams {
    /// This and the one below: repeatable, `!` negates.
    namespace: Option<Vec<String>>,
    /// Name of the service.
    service: Option<Vec<String>>,
    /// One of its addresses, such as `10.96.0.10`.
    ip: Option<String>,
    /// As things were at that time: RFC 3339, `now`, or a time ago such as `-15m`. Default: as they are.
    at: Option<String>,
    /// Services in a page, 1 to 1000, by default 100.
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<u32>,
    /// `next_cursor` of the page before, with all other parameters as they were.
    cursor: Option<String>,
}

#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ServicePage {
    services: Vec<Service>,
    /// Null: this was the last page.
    next_cursor: Option<String>,
}

#[derive(Debug, Serialize, ToSchema)]
struct Service {
    namespace: String,
    service: String,
    /// `ClusterIP`, `NodePort`, `LoadBalancer`, `ExternalName`.
    r#type: String,
    /// Cluster addresses, external ones and those of load balancers; none when headless.
    ips: Vec<String>,
    /// `{port, protocol, name, target_port, node_port}` each.
    #[schema(value_type = Vec<Object>)]
    ports: Value,
    #[schema(value_type = std::collections::HashMap<String, String>)]
    selector: Value,
    labels: BTreeMap<String, String>,
    /// Addresses behind it, whether ready or not.
    endpoints_total: i64,
    endpoints_ready: i64,
    /// `{ip, pod, node, ready}` each, the first hundred.
    #[schema(value_type = Vec<Object>)]
    endpoints: Value,
    /// Since when it is or was so.
    #[schema(format = DateTime)]
    valid_from: String,
    /// Null: still so.
    #[schema(format = DateTime)]
    valid_to: Option<String>,
}

/// Services of the cluster and what stands behind them
///
/// From the Kubernetes API; nothing comes where that is not read (`/api/v1/kubernetes` says why).
#[utoipa::path(
    get,
    path = "/api/v1/services",
    tag = "cluster",
    params(ServiceParams),
    responses((status = 200, body = ServicePage), (status = "4XX", body = Problem), (status = "5XX", body = Problem))
)]
pub(crate) async fn list(State(state): State<AppState>, RawQuery(query): RawQuery) -> ApiResult<ServicePage> {
    let params = Params::read::<ServiceParams>(query.as_deref())?;
    let filter = ServiceFilter {
        namespace: params.words("namespace"),
        service: params.words("service"),
        ip: ip(&params)?,
        at: params.time("at", now_micros())?,
    };
    let limit = params.number("limit", 100, 1000)?;
    let digest = cursor::digest("services", &params);
    let after = match cursor::read::<3>(digest, &params)? {
        None => None,
        Some([namespace, service, id]) => Some(ServicePosition {
            namespace,
            service,
            id: id.parse().map_err(|_| cursor::unreadable())?,
        }),
    };
    let mut rows = state
        .store
        .services(&filter, after.as_ref(), (limit + 1, MOST_ENDPOINTS))
        .await?;
    let more = rows.len() > limit as usize;
    rows.truncate(limit as usize);
    let next_cursor = rows
        .last()
        .filter(|_| more)
        .map(|last| cursor::write(digest, &[&last.namespace, &last.service, &last.id.to_string()]));
    Ok(Json(ServicePage {
        services: rows.into_iter().map(Service::from).collect(),
        next_cursor,
    }))
}

fn ip(params: &Params) -> Result<Option<IpAddr>, Problem> {
    let Some(text) = params.one("ip")? else { return Ok(None) };
    let ip = text.parse().map_err(|_| {
        let expected = format!("`ip={text}`: expected an address such as `10.96.0.10`");
        Problem::bad("ip", expected)
    })?;
    Ok(Some(ip))
}

impl From<ServiceRow> for Service {
    fn from(mut row: ServiceRow) -> Self {
        let mut take = |key: &str| row.detail.get_mut(key).map(Value::take).unwrap_or_default();
        let (ports, selector) = (take("ports"), take("selector"));
        Self {
            r#type: take("type").as_str().unwrap_or_default().to_owned(),
            namespace: row.namespace,
            service: row.service,
            ips: row.ips,
            ports,
            selector,
            labels: row.labels.0,
            endpoints_total: row.endpoints_total,
            endpoints_ready: row.endpoints_ready,
            endpoints: row.endpoints,
            valid_from: rfc3339(row.valid_from),
            valid_to: row.valid_to.map(rfc3339),
        }
    }
}
