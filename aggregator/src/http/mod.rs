//! The aggregator over HTTP: federation, the REST interface, health, and the web pages.

mod api;
mod federate;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
mod health;
mod host;
mod metrics;
mod openapi;
mod pages;
mod params;
mod pieces;
mod problem;
mod tail;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::http::StatusCode;
use axum::middleware::{from_fn, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get};
use sonde_common::shutdown::Shutdown;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::compression::{CompressionLayer, CompressionLevel};

pub(crate) use api::events::Event;
pub use openapi::openapi;

use crate::kubernetes;
use crate::live::LiveTable;
use crate::metrics::Metrics;
use crate::push;
use crate::store::Store;
use metrics::Requests;
use problem::Problem;

/// Event streams that may be open at once: all look at what is new, each with its filter.
const MAX_STREAMS: usize = 500;

/// Exports at the same time: each asks for page after page, and searches are to come between them.
const MAX_EXPORTS: usize = 3;

/// How long answers may take to end after the shutdown.
const LAST_ANSWERS: Duration = Duration::from_secs(5);

/// What handlers work with. Cheap to clone.
#[derive(Clone, Debug)]
pub struct AppState {
    store: Store,
    live: Arc<LiveTable>,
    metrics: Arc<Metrics>,
    requests: Arc<Requests>,
    streams: Arc<Semaphore>,
    exports: Arc<Semaphore>,
    tail: tail::Tail,
    pages: Arc<Semaphore>,
    shutdown: Shutdown,
    kubernetes: Arc<kubernetes::Status>,
    pushes: Arc<push::Status>,
}

impl AppState {
    pub fn new(store: Store, live: Arc<LiveTable>, metrics: Arc<Metrics>, shutdown: Shutdown) -> Self {
        Self {
            store,
            live,
            metrics,
            requests: Arc::default(),
            streams: Arc::new(Semaphore::new(MAX_STREAMS)),
            exports: Arc::new(Semaphore::new(MAX_EXPORTS)),
            tail: tail::Tail::default(),
            pages: Arc::new(Semaphore::new(federate::MAX_PAGES)),
            shutdown,
            kubernetes: kubernetes::Status::new(kubernetes::Role::Off("it was not started".into())),
            pushes: Arc::default(),
        }
    }

    /// How the watches of the Kubernetes API are doing.
    #[must_use]
    pub fn with_kubernetes(self, kubernetes: Arc<kubernetes::Status>) -> Self {
        Self { kubernetes, ..self }
    }

    /// How sending on to other systems is doing.
    #[must_use]
    pub fn with_pushes(self, pushes: Arc<push::Status>) -> Self {
        Self { pushes, ..self }
    }
}

/// Serves until shutdown; answers that are under way are finished, if their readers keep reading.
pub async fn serve(state: AppState, listener: TcpListener, shutdown: Shutdown) -> std::io::Result<()> {
    let bound = listener.local_addr()?;
    let app = router(state).layer(from_fn_with_state(bound, host::check));
    let mut begun = shutdown.clone();
    let server = axum::serve(listener, app).with_graceful_shutdown(async move { begun.recv().await });
    let mut over = shutdown;
    let late = async move {
        over.recv().await;
        tokio::time::sleep(LAST_ANSWERS).await;
    };
    tokio::select! {
        ended = server => ended,
        () = late => Ok(()),
    }
}

fn router(state: AppState) -> Router {
    let routes = Router::new()
        .route("/api/v1/events", get(api::events::list))
        .route("/api/v1/events/export", get(api::events_export::export))
        .route("/api/v1/events/stats", get(api::events_stats::stats))
        .route("/api/v1/events/stream", get(api::events_stream::stream))
        .route("/api/v1/pods", get(api::pods::list))
        .route("/api/v1/nodes", get(api::nodes::list))
        .route("/api/v1/probes", get(api::probes::list))
        .route("/api/v1/probes/{probe}/rows", get(api::probe_rows::rows))
        .route("/api/v1/gaps", get(api::gaps::list))
        .route("/api/v1/changes", get(api::changes::list))
        .route("/api/v1/services", get(api::services::list))
        .route("/api/v1/kubernetes", get(api::kubernetes::status))
        .route("/federate", get(federate::page))
        .route("/metrics", get(metrics::page))
        .route("/openapi.json", get(openapi::document))
        .route("/-/healthy", get(health::healthy))
        .route("/-/ready", get(health::ready))
        .route("/api", any(unknown))
        .route("/api/", any(unknown))
        .route("/api/{*path}", any(unknown))
        .method_not_allowed_fallback(wrong_method)
        .fallback(pages::serve);
    routes
        .layer(
            CompressionLayer::new()
                .gzip(true)
                .zstd(true)
                .quality(CompressionLevel::Fastest),
        )
        .layer(CatchPanicLayer::custom(panicked))
        .layer(from_fn_with_state(state.clone(), metrics::count))
        .layer(from_fn(pages::guard))
        .with_state(state)
}

async fn unknown() -> Problem {
    Problem::new(
        StatusCode::NOT_FOUND,
        "there is no such path; /openapi.json has those that there are",
    )
}

async fn wrong_method() -> Problem {
    Problem::new(
        StatusCode::METHOD_NOT_ALLOWED,
        "this path does not take that method; /openapi.json has what it takes",
    )
}

fn panicked(cause: Box<dyn std::any::Any + Send>) -> Response {
    let cause = cause
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| cause.downcast_ref::<&str>().copied());
    tracing::error!(cause = cause.unwrap_or("?"), "a handler panicked");
    Problem::new(
        StatusCode::INTERNAL_SERVER_ERROR,
        "this is a fault of the aggregator; its log has the reason",
    )
    .into_response()
}
