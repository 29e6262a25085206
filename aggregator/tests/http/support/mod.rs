//! A whole aggregator but for its gRPC side, on a database of its own.

mod batch;
mod client;

use std::sync::Arc;

use sonde_aggregator::http::{self, AppState};
use sonde_aggregator::live::LiveTable;
use sonde_aggregator::metrics::Metrics;
use sonde_aggregator::store::{self, Store, Tasks};
use sonde_aggregator::testing::Database;
use sonde_common::config::Storage;
use sonde_common::shutdown::{self, Trigger};
use sqlx::PgPool;
use tokio::net::TcpListener;

pub(crate) use batch::{Batch, Collector, EventSpec};
pub(crate) use client::{Answer, Stream};

/// Nanoseconds of a second.
pub(crate) const SECOND: u64 = 1_000_000_000;

pub(crate) struct App {
    pub(crate) url: String,
    /// May write.
    pub(crate) db: PgPool,
    pub(crate) store: Store,
    pub(crate) live: Arc<LiveTable>,
    trigger: Trigger,
    /// Upkeep ends when nobody holds this.
    _tasks: Tasks,
}

impl App {
    pub(crate) async fn start() -> Self {
        Self::start_on(&Database::migrated().await).await
    }

    pub(crate) async fn start_with_database() -> (Self, Database) {
        let database = Database::migrated().await;
        (Self::start_on(&database).await, database)
    }

    pub(crate) async fn start_on(database: &Database) -> Self {
        let (live, metrics) = (LiveTable::new(), Metrics::new());
        let parts = store::Parts {
            live: live.clone(),
            metrics: metrics.clone(),
        };
        let (store, tasks) = Store::open(database.options.clone(), &Storage::default(), parts)
            .await
            .expect("it opens");
        let (trigger, shutdown) = shutdown::channel();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let state = AppState::new(store.clone(), live.clone(), metrics, shutdown.clone());
        tokio::spawn(async move { http::serve(state, listener, shutdown).await.unwrap() });
        Self {
            url,
            db: database.pool(),
            store,
            live,
            trigger,
            _tasks: tasks,
        }
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        client::get(&format!("{}{path}", self.url), &[]).await
    }

    pub(crate) async fn get_with(&self, path: &str, headers: &[(&str, &str)]) -> Answer {
        client::get(&format!("{}{path}", self.url), headers).await
    }

    pub(crate) async fn send(&self, method: &str, path: &str, headers: &[(&str, &str)]) -> Answer {
        client::send(method, &format!("{}{path}", self.url), headers).await
    }

    pub(crate) async fn stream(&self, path: &str, headers: &[(&str, &str)]) -> Stream {
        Stream::open(&format!("{}{path}", self.url), headers).await
    }

    /// A query string with values encoded: `path("/api/v1/events", &[("ip", "10.0.0.0/8")])`.
    pub(crate) fn path(path: &str, params: &[(&str, &str)]) -> String {
        let query = form_urlencoded::Serializer::new(String::new())
            .extend_pairs(params)
            .finish();
        format!("{path}?{query}")
    }

    pub(crate) async fn collector(&self, node: &str) -> Collector {
        Collector::connect(self, node).await
    }

    pub(crate) fn shut_down(&self) {
        self.trigger.fire();
    }
}

impl Drop for App {
    fn drop(&mut self) {
        self.trigger.fire();
    }
}
