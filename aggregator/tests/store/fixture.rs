//! An aggregator without HTTP in this process, and a collector that can be made to misbehave.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use sonde_aggregator::ingest::Service;
use sonde_aggregator::live::LiveTable;
use sonde_aggregator::metrics::Metrics;
use sonde_aggregator::store::{Parts, ProblemKind, Store, StoreStatus, Target, Tasks};
use sonde_aggregator::testing::Database;
use sonde_common::config::Storage;
use sonde_common::shutdown::{self, Trigger};
use sonde_common::time::now_ns;
use sonde_proto::v1::ingest_client::IngestClient;
use sonde_proto::{body, v1};
use sqlx::PgPool;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

/// Long enough for any machine; a test that waits so long has failed.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) struct Aggregator {
    pub(crate) address: SocketAddr,
    pub(crate) store: Store,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) db: PgPool,
    trigger: Trigger,
    tasks: Tasks,
    server: tokio::task::JoinHandle<()>,
}

impl Aggregator {
    pub(crate) async fn start() -> Self {
        Self::on(&Database::migrated().await, Storage::default()).await
    }

    pub(crate) async fn on(database: &Database, storage: Storage) -> Self {
        let aggregator = Self::at(database.options.clone(), database.pool(), storage).await;
        let problem = aggregator.store.first_answer().await;
        assert_eq!(problem, None);
        aggregator
    }

    /// Whether or not the database is there. `db` is for what a test does to it.
    pub(crate) async fn at(target: impl Into<Target>, db: PgPool, storage: Storage) -> Self {
        let (live, metrics) = (LiveTable::new(), Metrics::new());
        let parts = Parts {
            live: live.clone(),
            metrics: metrics.clone(),
        };
        let (store, tasks) = Store::start(target, &storage, parts);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (trigger, shutdown) = shutdown::channel();
        let service = Service::new(store.clone(), live, metrics.clone(), shutdown);
        let server = tokio::spawn(async move { service.serve(listener).await.unwrap() });
        Self {
            address,
            store,
            metrics,
            db,
            trigger,
            tasks,
            server,
        }
    }

    /// In order, as the program does it.
    pub(crate) async fn stop(self) {
        self.trigger.fire();
        self.server.await.unwrap();
        self.tasks.finish(PATIENCE).await;
    }

    /// Until this keeps batches from being stored; what is said of it.
    pub(crate) async fn problem(&self, kind: ProblemKind) -> String {
        let mut status = self.store.watch_status();
        let is_there = |s: &StoreStatus| s.problem.as_ref().is_some_and(|p| p.kind == kind);
        let seen = tokio::time::timeout(PATIENCE, status.wait_for(is_there)).await;
        let seen = seen.unwrap_or_else(|_| panic!("expected {kind:?}, it is {:?}", self.store.status()));
        let (why, up) = seen.map(|s| (s.problem.clone().unwrap().why, s.database_up)).unwrap();
        assert!(!up);
        let (_, label) = ProblemKind::ALL.into_iter().find(|(k, _)| *k == kind).unwrap();
        let expected = format!("sonde_aggregator_database_problem{{problem=\"{label}\"}} 1");
        assert!(self.page().lines().any(|line| line == expected), "{expected}");
        why
    }

    /// Until batches are stored.
    pub(crate) async fn up(&self) {
        let mut status = self.store.watch_status();
        let up = tokio::time::timeout(PATIENCE, status.wait_for(|s| s.database_up)).await;
        assert!(up.is_ok(), "{:?}", self.store.status());
    }

    /// Its own metrics.
    pub(crate) fn page(&self) -> String {
        let mut page = sonde_common::prom::Page::new();
        self.metrics.render(&mut page);
        page.finish()
    }

    /// Until the writer waits for a lock that the test holds.
    pub(crate) async fn writer_waits(&self) {
        self.waits("writer").await;
    }

    /// The same of another of its connections.
    pub(crate) async fn waits(&self, who: &str) {
        let waiting = "select count(*) from pg_stat_activity where datname = current_database() \
                       and application_name = 'sonde-aggregator ' || $1 and wait_event_type = 'Lock'";
        let waits = async {
            let waiting = || sqlx::query_scalar::<_, i64>(waiting).bind(who).fetch_one(&self.db);
            while waiting().await.unwrap() == 0 {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(PATIENCE, waits)
            .await
            .unwrap_or_else(|_| panic!("the {who} waits"));
    }

    /// Until at least so many batches wait for the writer.
    pub(crate) async fn queued(&self, least: u64) -> u64 {
        let queued = async {
            while self.metrics.queued_batches.get() < least {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            self.metrics.queued_batches.get()
        };
        let queued = tokio::time::timeout(PATIENCE, queued).await;
        queued.unwrap_or_else(|_| panic!("{} batches wait", self.metrics.queued_batches.get()))
    }

    pub(crate) async fn execute(&self, sql: &str) {
        let sql = sqlx::AssertSqlSafe(sql.to_owned());
        sqlx::raw_sql(sql).execute(&self.db).await.unwrap();
    }

    pub(crate) async fn count(&self, from: &'static str) -> i64 {
        sqlx::query_scalar(sqlx::AssertSqlSafe(format!("select count(*) from {from}")))
            .fetch_one(&self.db)
            .await
            .unwrap()
    }
}

/// A stream of one collector.
pub(crate) struct Collector {
    up: Option<mpsc::Sender<v1::Up>>,
    pub(crate) down: Streaming<v1::Down>,
    /// From the hello.
    pub(crate) durable: u64,
}

impl Collector {
    pub(crate) async fn connect(aggregator: &Aggregator, hello: v1::Hello) -> Result<Self, Status> {
        Self::connect_to(aggregator.address, hello).await
    }

    pub(crate) async fn connect_to(address: SocketAddr, hello: v1::Hello) -> Result<Self, Status> {
        let mut client = IngestClient::connect(format!("http://{address}")).await.unwrap();
        let (up, outgoing) = mpsc::channel(64);
        up.send(v1::Up {
            message: Some(v1::up::Message::Hello(hello)),
        })
        .await
        .unwrap();
        let mut down = client.stream(ReceiverStream::new(outgoing)).await?.into_inner();
        let first = tokio::time::timeout(PATIENCE, down.message())
            .await
            .expect("an answer to the hello")?;
        let Some(v1::Down {
            message: Some(v1::down::Message::HelloAck(ack)),
        }) = first
        else {
            panic!("expected a hello ack, got {first:?}");
        };
        Ok(Self {
            up: Some(up),
            down,
            durable: ack.durable_sequence,
        })
    }

    pub(crate) async fn send(&self, sequence: u64, body: &v1::BatchBody) {
        self.send_bytes(sequence, body::encode(body)).await;
    }

    pub(crate) async fn send_bytes(&self, sequence: u64, body: Vec<u8>) {
        let batch = v1::Batch {
            sequence,
            body: body.into(),
        };
        self.send_message(v1::Up {
            message: Some(v1::up::Message::Batch(batch)),
        })
        .await;
    }

    pub(crate) async fn send_message(&self, message: v1::Up) {
        // An error means that the stream is over; the test will hear why from `down`.
        let _ = self.up.as_ref().expect("not closed").send(message).await;
    }

    /// Nothing more will be sent.
    pub(crate) fn close(&mut self) {
        self.up = None;
    }

    /// Whether there is an answer by now, without waiting for one.
    pub(crate) fn has_news(&mut self) -> bool {
        use futures::FutureExt as _;
        self.down.message().now_or_never().is_some()
    }

    /// The next ack, or how the stream ended.
    pub(crate) async fn next(&mut self) -> Result<u64, Status> {
        let message = tokio::time::timeout(PATIENCE, self.down.message())
            .await
            .expect("an answer in time")?;
        match message.and_then(|m| m.message) {
            Some(v1::down::Message::Ack(ack)) => Ok(ack.sequence),
            None => Err(Status::ok("the stream ended")),
            other => panic!("expected an ack, got {other:?}"),
        }
    }

    /// Until everything up to `sequence` is durable.
    pub(crate) async fn acked(&mut self, sequence: u64) {
        while self
            .next()
            .await
            .unwrap_or_else(|e| panic!("acks up to {sequence}: {e}"))
            < sequence
        {}
    }

    pub(crate) async fn refused(&mut self) -> Status {
        loop {
            if let Err(status) = self.next().await {
                return status;
            }
        }
    }
}

pub(crate) fn column(name: &str, kind: v1::Kind, unit: &str, scale: f64, bounds: &[f64]) -> v1::ColumnDef {
    v1::ColumnDef {
        name: name.into(),
        help: format!("help of {name}"),
        kind: kind.into(),
        unit: unit.into(),
        scale,
        bounds: bounds.to_vec(),
    }
}

/// A probe with a label and a column of each kind.
pub(crate) fn probe() -> v1::ProbeDef {
    v1::ProbeDef {
        name: "netdev".into(),
        help: "devices".into(),
        labels: vec![v1::LabelDef {
            name: "device".into(),
            help: "the device".into(),
        }],
        columns: vec![
            column("receive_bytes", v1::Kind::Counter, "bytes", 0.0, &[]),
            column("wait_seconds", v1::Kind::Gauge, "seconds", 1e-9, &[]),
            column("latency_seconds", v1::Kind::Histogram, "seconds", 1e-9, &[0.001, 0.01]),
        ],
        event_types: vec![v1::EventTypeDef {
            name: "PACKETLOSS".into(),
            help: "a loss".into(),
        }],
    }
}

pub(crate) fn hello(node: &str, epoch: u8) -> v1::Hello {
    v1::Hello {
        node: node.into(),
        boot_id: vec![9; 16],
        epoch: vec![epoch; 16],
        version: "1.2.3".into(),
        kernel: "6.18".into(),
        interval_ns: 5_000_000_000,
        catalogue: Some(v1::Catalogue { probes: vec![probe()] }),
    }
}

pub(crate) fn pod(sandbox: &str, namespace: &str, name: &str, ip: &[u8]) -> v1::Pod {
    v1::Pod {
        sandbox: sandbox.into(),
        namespace: namespace.into(),
        name: name.into(),
        ips: vec![ip.to_vec()],
        valid_from_ns: now_ns() - 60_000_000_000,
        ..Default::default()
    }
}

/// One pod, `rows` rows of it and of the node, `events` events of it.
pub(crate) fn batch(rows: usize, events: usize) -> v1::BatchBody {
    let strings = ["", "netdev", "PACKETLOSS", "NETFILTER_DROP", "TCP", "eth0"]
        .map(String::from)
        .to_vec();
    let now = now_ns();
    v1::BatchBody {
        strings,
        pods: vec![pod("sandbox-1", "demo", "server", &[10, 0, 0, 2])],
        rows: vec![v1::Rows {
            probe: "netdev".into(),
            time_ns: now,
            subjects: (0..rows as u32).map(|n| n % 2).collect(),
            labels: vec![5; rows],
            columns: vec![
                v1::Column {
                    values: (0..rows as i64).collect(),
                },
                v1::Column {
                    values: vec![1_500_000_000; rows],
                },
                v1::Column {
                    values: [3, 2, 1, 7].repeat(rows),
                },
            ],
        }],
        events: (0..events)
            .map(|n| v1::Event {
                time_ns: now - n as u64 * 1_000,
                subject: 1,
                probe: 1,
                r#type: 2,
                reason: 3,
                protocol: 4,
                saddr: vec![10, 0, 0, 1],
                daddr: vec![10, 0, 0, 2],
                dport: 80,
                ..Default::default()
            })
            .collect(),
        ..Default::default()
    }
}
