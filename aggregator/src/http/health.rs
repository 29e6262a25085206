//! Whether the process lives, and whether it can do its work.

use axum::extract::State;
use axum::http::StatusCode;

use super::AppState;

/// The process lives
#[utoipa::path(get, path = "/-/healthy", tag = "health", responses((status = 200, body = String)))]
pub(crate) async fn healthy() -> &'static str {
    "the aggregator is alive\n"
}

/// The database is reachable and has the right schema
#[utoipa::path(
    get,
    path = "/-/ready",
    tag = "health",
    responses((status = 200, body = String), (status = 503, body = String, description = "What is missing"))
)]
pub(crate) async fn ready(State(state): State<AppState>) -> (StatusCode, String) {
    let status = state.store.status();
    if status.database_up {
        (StatusCode::OK, "the aggregator is ready\n".into())
    } else {
        let reason = status.reason.unwrap_or_else(|| "the database was not asked yet".into());
        (StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {reason}\n"))
    }
}
