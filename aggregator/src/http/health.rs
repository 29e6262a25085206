//! Whether the process lives, and whether it can do its work.

use axum::extract::State;
use axum::http::StatusCode;

use super::AppState;

/// The process lives
#[utoipa::path(get, path = "/-/healthy", tag = "health", responses((status = 200, body = String)))]
pub(crate) async fn healthy() -> &'static str {
    "the aggregator is alive\n"
}

/// The database takes batches: it is there, writable, not full, and has the right schema
#[utoipa::path(
    get,
    path = "/-/ready",
    tag = "health",
    responses((status = 200, body = String), (status = 503, body = String, description = "What is missing"))
)]
pub(crate) async fn ready(State(state): State<AppState>) -> (StatusCode, String) {
    match state.store.status().problem {
        None => (StatusCode::OK, "the aggregator is ready\n".into()),
        Some(problem) => (StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {}\n", problem.why)),
    }
}
