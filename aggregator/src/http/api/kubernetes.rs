//! `GET /api/v1/kubernetes`: whether the Kubernetes API is read, and how its watches are doing.

use axum::Json;
use axum::extract::{RawQuery, State};
use serde::Serialize;
use utoipa::{IntoParams, ToSchema};

use crate::http::AppState;
use crate::http::params::Params;
use crate::http::problem::{ApiResult, Problem};
use crate::kubernetes::Role;
use crate::store::query::rfc3339;

#[derive(IntoParams)]
struct NoParams {}

#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct KubernetesStatus {
    /// `off`: not read; `leader`: this aggregator watches; `follower`: another one on the same database does;
    /// `failed`: it would watch and cannot.
    role: &'static str,
    /// Why it is off or failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    /// Of a leader: everything was listed and nothing is wrong now.
    synced: bool,
    /// Of a leader.
    watches: Vec<Watch>,
}

#[derive(Debug, Serialize, ToSchema)]
struct Watch {
    /// `pods`, or `pods/NAMESPACE`.
    watch: String,
    /// Whether it was listed whole since this aggregator watches.
    synced: bool,
    /// Objects that are known.
    objects: u64,
    /// When the API was heard last. What happened since is not known while there is an `error`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(format = DateTime)]
    heard: Option<String>,
    /// What is wrong now; what was known is kept.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

/// How the watches of the Kubernetes API are doing
#[utoipa::path(
    get,
    path = "/api/v1/kubernetes",
    tag = "cluster",
    responses((status = 200, body = KubernetesStatus), (status = "4XX", body = Problem))
)]
pub(crate) async fn status(State(state): State<AppState>, RawQuery(query): RawQuery) -> ApiResult<KubernetesStatus> {
    Params::read::<NoParams>(query.as_deref())?;
    let role = state.kubernetes.role();
    let scopes = match role {
        Role::Leader => state.kubernetes.scopes(),
        Role::Off(_) | Role::Follower | Role::Failed(_) => Default::default(),
    };
    Ok(Json(KubernetesStatus {
        role: role.word(),
        synced: state.kubernetes.is_synced(),
        reason: match role {
            Role::Off(why) | Role::Failed(why) => Some(why),
            Role::Leader | Role::Follower => None,
        },
        watches: scopes
            .into_iter()
            .map(|(watch, s)| Watch {
                watch,
                synced: s.synced,
                objects: s.objects,
                heard: s.heard.map(rfc3339),
                error: s.trouble,
            })
            .collect(),
    }))
}
