//! The aggregator as a whole: what starts in which order, and ends in the other.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use sonde_common::config::Config;
use sonde_common::shutdown::{self, Shutdown};
use tokio::net::TcpListener;

use crate::embedded::{self, Cluster, EmbeddedError, user};
use crate::http;
use crate::ingest;
use crate::kubernetes::{Kubernetes, Pace};
use crate::live::LiveTable;
use crate::metrics::Metrics;
use crate::push::Pushes;
use crate::store::{self, BadUrl, Parts, Store, Target};

/// What is queued at the end may take this long to be stored; what is not is sent again by the collectors.
const LAST_WRITES: Duration = Duration::from_secs(15);

/// Doors stay shut so long for what has to be known first; a database that needs longer is waited for behind them.
const FIRST_READY: Duration = Duration::from_secs(10);

/// Between attempts to make the database of a private server that does not run yet.
const DATABASE_AGAIN: Duration = Duration::from_secs(1);

/// Both doors, open before anything else is done: a taken port ends the start at once, and root may use low ones.
#[derive(Debug)]
pub struct Listeners {
    http: std::net::TcpListener,
    grpc: std::net::TcpListener,
}

impl Listeners {
    pub fn bind(config: &Config) -> anyhow::Result<Self> {
        let bind = |key: &str, address: SocketAddr| {
            let listener = std::net::TcpListener::bind(address);
            let listener = listener.with_context(|| format!("{key}: cannot listen on {address}"))?;
            listener.set_nonblocking(true)?;
            anyhow::Ok(listener)
        };
        Ok(Self {
            http: bind("aggregator.http", config.aggregator.http)?,
            grpc: bind("aggregator.grpc", config.aggregator.grpc)?,
        })
    }

    /// Where they really are, when port 0 was asked for: HTTP, gRPC.
    pub fn addresses(&self) -> std::io::Result<(SocketAddr, SocketAddr)> {
        Ok((self.http.local_addr()?, self.grpc.local_addr()?))
    }
}

/// Started by root: hands the data directory over and becomes an unprivileged user. Before any thread is started.
pub fn drop_root(config: &Config) -> anyhow::Result<()> {
    if !user::is_root() {
        return Ok(());
    }
    let user = user::choose(&config.storage.run_as)?;
    if config.storage.database_url.is_empty() {
        embedded::hand_over(&config.aggregator.data_dir, &user)?;
    }
    user::become_user(&user)?;
    tracing::info!(user = %user.name, "gave up root");
    Ok(())
}

/// The database that the configuration names; `None`: a private one.
pub fn target(config: &Config) -> Result<Option<Target>, BadUrl> {
    let url = &config.storage.database_url;
    if url.is_empty() {
        Ok(None)
    } else {
        url.parse().map(Some)
    }
}

/// The database that the configuration names, or a private one that lives as long as the handle.
async fn database(
    config: &Config,
    start: fn(embedded::Options) -> Result<Cluster, EmbeddedError>,
) -> anyhow::Result<(Target, Option<Cluster>)> {
    if let Some(target) = target(config)? {
        return Ok((target, None));
    }
    let options = embedded::Options {
        data_dir: config.aggregator.data_dir.clone(),
        run_as: None,
        settings: Vec::new(),
    };
    let cluster = tokio::task::spawn_blocking(move || start(options)).await??;
    let server = cluster.connect_options("postgres");
    if embedded::ensure_database(server.clone(), embedded::NAME).await.is_err() {
        // The server does not run now, or takes no writes: the store says so, and comes to the database once it is there.
        tokio::spawn(async move {
            while embedded::ensure_database(server.clone(), embedded::NAME).await.is_err() {
                tokio::time::sleep(DATABASE_AGAIN).await;
            }
        });
    }
    let target = Target::from(cluster.connect_options(embedded::NAME)).with_complaint(cluster.complaint());
    Ok((target, Some(cluster)))
}

async fn stop(cluster: Option<Cluster>) -> anyhow::Result<()> {
    if let Some(cluster) = cluster {
        tokio::task::spawn_blocking(move || cluster.stop()).await?;
    }
    Ok(())
}

/// `sonde-aggregator migrate`.
pub async fn migrate(config: &Config) -> anyhow::Result<()> {
    let (target, cluster) = database(config, Cluster::start).await?;
    let result = store::migrate(target).await;
    stop(cluster).await?;
    Ok(result?)
}

/// `sonde-aggregator serve`: until the shutdown fires, or a part fails.
pub async fn serve(config: Config, listeners: Listeners, shutdown: Shutdown) -> anyhow::Result<()> {
    // Before the database: a bad kubeconfig ends the start at once.
    let kubernetes = Kubernetes::new(&config.kubernetes, Pace::default()).await?;
    let pushes = Pushes::new(&config.push)?;
    let (target, cluster) = database(&config, Cluster::start_patiently).await?;
    let result = serve_with(&config, target, listeners, (kubernetes, pushes), shutdown).await;
    stop(cluster).await?;
    result
}

/// Says so when the database is there and what is in it is known.
async fn ready(store: Store, live: Arc<LiveTable>, http: SocketAddr, grpc: SocketAddr) {
    store.prepared().await;
    live.restore(&store).await;
    tracing::info!(%http, %grpc, "aggregator is ready");
}

async fn serve_with(
    config: &Config,
    target: Target,
    listeners: Listeners,
    (kubernetes, pushes): (Kubernetes, Pushes),
    shutdown: Shutdown,
) -> anyhow::Result<()> {
    let (live, metrics) = (
        LiveTable::with_limits(config.metrics.max_series.clone()),
        Metrics::new(),
    );
    let parts = Parts {
        live: live.clone(),
        metrics: metrics.clone(),
    };
    let (store, tasks) = Store::start(target, &config.storage, parts);
    let grpc = TcpListener::from_std(listeners.grpc)?;
    let http = TcpListener::from_std(listeners.http)?;
    let ready = ready(store.clone(), live.clone(), http.local_addr()?, grpc.local_addr()?);
    let mut ready = tokio::spawn(ready);
    // With a database that is there nothing is answered before all is known. Without one we serve what we can.
    tokio::select! {
        _ = &mut ready => {}
        Some(problem) = store.first_answer() => {
            let (http, grpc) = (http.local_addr()?, grpc.local_addr()?);
            tracing::warn!(%http, %grpc, error = %problem.why, "aggregator serves without its database");
        }
        () = tokio::time::sleep(FIRST_READY) => {}
    }

    // One part that fails ends the others too.
    let (trigger, both) = shutdown::channel();
    let ingest = ingest::Service::new(store.clone(), live.clone(), metrics.clone(), both.clone());
    let state = http::AppState::new(store.clone(), live.clone(), metrics, both.clone())
        .with_kubernetes(kubernetes.status.clone())
        .with_pushes(pushes.status.clone());
    let watch = tokio::spawn(kubernetes.run(store.clone(), both.clone()));
    let pushing = tokio::spawn(pushes.run(store.clone(), live.clone(), both.clone()));
    let mut ingest = tokio::spawn(ingest.serve(grpc));
    let mut http = tokio::spawn(http::serve(state, http, both));
    let mut stop = shutdown;
    let (ingest, http) = tokio::select! {
        () = stop.recv() => { trigger.fire(); (ingest.await, http.await) }
        ingest = &mut ingest => { trigger.fire(); (ingest, http.await) }
        http = &mut http => { trigger.fire(); (ingest.await, http) }
    };
    tracing::info!("aggregator is ending");
    ready.abort();
    // It hears the same shutdown; what it has not written is read again from the API.
    let _ = watch.await;
    let _ = pushing.await;
    tasks.finish(LAST_WRITES).await;
    ingest?.context("grpc")?;
    http?.context("http")?;
    Ok(())
}
