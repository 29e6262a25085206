//! A whole aggregator but for its gRPC side, on a database of its own.

mod batch;
pub(crate) mod client;
pub(crate) mod cluster;

use std::sync::Arc;
use std::time::Duration;

use sonde_aggregator::http::{self, AppState};
use sonde_aggregator::kubernetes::{Kubernetes, Pace, Status};
use sonde_aggregator::live::LiveTable;
use sonde_aggregator::metrics::Metrics;
use sonde_aggregator::store::{self, Store, Tasks};
use sonde_aggregator::testing::Database;
use sonde_common::config::{self, Storage};
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
    pub(crate) kubernetes: Arc<Status>,
    watch: tokio::task::JoinHandle<()>,
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
        let off = config::Kubernetes {
            enabled: config::Enabled::Off,
            ..config::Kubernetes::default()
        };
        Self::start_watching(database, &off).await
    }

    /// With the facts of a cluster.
    pub(crate) async fn start_watching(database: &Database, kubernetes: &config::Kubernetes) -> Self {
        let pace = Pace {
            page: 3,
            first_pause: Duration::from_millis(20),
            longest_pause: Duration::from_millis(100),
            answer: Duration::from_millis(1500),
            flush: Duration::from_millis(20),
            election: Duration::from_millis(50),
            ..Pace::default()
        };
        let kubernetes = Kubernetes::new(kubernetes, pace)
            .await
            .expect("it can be reached or not");
        let status = kubernetes.status.clone();
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
        let state =
            AppState::new(store.clone(), live.clone(), metrics, shutdown.clone()).with_kubernetes(status.clone());
        let watch = tokio::spawn(kubernetes.run(store.clone(), shutdown.clone()));
        tokio::spawn(async move { http::serve(state, listener, shutdown).await.unwrap() });
        Self {
            url,
            db: database.pool(),
            store,
            live,
            kubernetes: status,
            watch,
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

    /// Until all of the cluster was listed and written.
    pub(crate) async fn synced(&self) {
        self.until("the cluster is known", async || {
            self.kubernetes.is_synced().then_some(())
        })
        .await;
    }

    /// Asks until there is an answer.
    pub(crate) async fn until<T>(&self, what: &str, ask: impl AsyncFn() -> Option<T>) -> T {
        let asked = std::time::Instant::now();
        loop {
            if let Some(answer) = ask().await {
                return answer;
            }
            assert!(
                asked.elapsed() < Duration::from_secs(30),
                "not in time: {what}; watching: {:?}",
                self.kubernetes.role()
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Changes of the last day that fit a query, once there are so many; oldest first.
    pub(crate) async fn changes(&self, query: &str, count: usize) -> Vec<serde_json::Value> {
        self.changes_from("-1d", query, count).await
    }

    /// The same since then.
    pub(crate) async fn changes_from(&self, from: &str, query: &str, count: usize) -> Vec<serde_json::Value> {
        let path = format!("/api/v1/changes?from={from}&to=2100-01-01T00:00:00Z&limit=1000&{query}");
        let what = format!("{count} changes of {query}");
        let mut changes = self
            .until(&what, async || {
                let answer = self.get(&path).await.json();
                let changes = answer["changes"].as_array().unwrap().clone();
                (changes.len() >= count).then_some(changes)
            })
            .await;
        assert_eq!(changes.len(), count, "{what}: {changes:#?}");
        changes.reverse();
        changes
    }

    /// Ends it as a program ends, but for its gRPC side.
    pub(crate) async fn stop(mut self) {
        self.trigger.fire();
        let _ = (&mut self.watch).await;
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
