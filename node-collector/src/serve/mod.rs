//! The collector's HTTP side. A request formats what is there and reads nothing.

mod gzip;
pub mod metrics;
mod own;
mod scrape;
mod status;

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Instant;

use axum::Router;
use axum::http::StatusCode;
use axum::response::{Html, IntoResponse, Json};
use axum::routing::get;
use parking_lot::Mutex;
use sonde_common::shutdown::Shutdown;
use tokio::net::TcpListener;
use tower_http::catch_panic::CatchPanicLayer;

use crate::gaps::GapLog;
use crate::missing::Missing;
use crate::netfilter;
use crate::pipeline::EventStats;
use crate::pods::PodIndex;
use crate::reading::RoundLog;
use crate::reload::Settings;
use crate::round::ProbeStats;
use crate::ship::client::Link;
use crate::ship::spool::Spool;
use crate::sinks::Sinks;
use metrics::Exposition;
pub use scrape::Pages;

/// What there is to be shown.
#[derive(Debug)]
pub struct State {
    pub node: String,
    pub targets: Vec<String>,
    pub started: Instant,
    pub settings: Arc<Settings>,
    pub spool_max_bytes: u64,
    pub exposition: Exposition,
    /// How often series were rendered.
    pub renderings: AtomicU64,
    pub index: Arc<PodIndex>,
    pub rounds: Arc<RoundLog>,
    /// Of each kind of probe.
    pub probes: Vec<Arc<Mutex<Vec<ProbeStats>>>>,
    pub events: Arc<EventStats>,
    pub netfilter: Arc<netfilter::Stats>,
    pub gaps: Arc<GapLog>,
    pub missing: Arc<Missing>,
    pub spool: Arc<Spool>,
    pub link: Arc<Link>,
    pub sinks: Arc<Sinks>,
}

impl State {
    /// Of all kinds of probes that read `/proc`.
    fn probe_stats(&self) -> Vec<ProbeStats> {
        self.probes.iter().flat_map(|kind| kind.lock().clone()).collect()
    }
}

/// Serves until the end is asked for; open requests are finished.
pub async fn serve(listener: TcpListener, state: Arc<State>, mut end: Shutdown) -> std::io::Result<()> {
    axum::serve(listener, router(state))
        .with_graceful_shutdown(async move { end.recv().await })
        .await
}

pub fn router(state: Arc<State>) -> Router {
    Router::new()
        .route("/", get(index))
        .route("/metrics", get(scrape::metrics))
        .route("/status", get(status_page))
        .route("/-/healthy", get(async || "ok\n"))
        .route("/-/ready", get(ready))
        .layer(CatchPanicLayer::new())
        .with_state(state)
}

type Shared = axum::extract::State<Arc<State>>;

async fn status_page(state: Shared) -> impl IntoResponse {
    Json(status::status(&state))
}

/// Ready once the first round is done.
async fn ready(state: Shared) -> (StatusCode, &'static str) {
    match state.rounds.snapshot() {
        Some(_) => (StatusCode::OK, "ready\n"),
        None => (StatusCode::SERVICE_UNAVAILABLE, "first round not done\n"),
    }
}

async fn index() -> Html<&'static str> {
    Html(
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><title>Sonde collector</title>\
         <h1>Sonde collector</h1><ul>\
         <li><a href=\"/metrics\">/metrics</a> of this node's pods and of the collector\
         <li><a href=\"/status\">/status</a> probes, what they run on, gaps\
         <li><a href=\"/-/healthy\">/-/healthy</a>\
         <li><a href=\"/-/ready\">/-/ready</a></ul></html>\n",
    )
}
