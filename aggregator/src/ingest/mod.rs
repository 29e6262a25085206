//! Where collectors connect: one gRPC stream each. Checks what comes, hands it to the store, answers with acks.
//!
//! A collector is pushed back by not being read: what is in flight is bounded for each stream and for all together, so
//! that one that floods holds up itself, and acks come only from commits.

mod check;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
mod hello;
mod memory;
mod newer;
mod stream;

use std::sync::Arc;
use std::time::Duration;

use futures::stream::BoxStream;
use sonde_common::shutdown::Shutdown;
use sonde_proto::limits::MAX_BATCH_BYTES;
use sonde_proto::v1;
use sonde_proto::v1::ingest_server::{Ingest, IngestServer};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tokio_util::task::TaskTracker;
use tonic::{Request, Response, Status, Streaming};

use crate::live::LiveTable;
use crate::metrics::Metrics;
use crate::store::Store;
use memory::Memory;

/// Streams at the same time; beyond, a newcomer is told to try later.
const MOST_STREAMS: usize = 20_000;
/// A connection that does not answer this is dead; with it goes its stream, within 20 seconds.
const KEEPALIVE: Duration = Duration::from_secs(10);

/// How long connections may take to end.
const GRACE: Duration = Duration::from_secs(7);

/// Everything a stream needs.
#[derive(Clone, Debug)]
pub struct Service {
    store: Store,
    live: Arc<LiveTable>,
    metrics: Arc<Metrics>,
    memory: Memory,
    shutdown: Shutdown,
    tasks: TaskTracker,
}

impl Service {
    pub fn new(store: Store, live: Arc<LiveTable>, metrics: Arc<Metrics>, shutdown: Shutdown) -> Self {
        Self {
            store,
            live,
            metrics,
            memory: Memory::new(),
            shutdown,
            tasks: TaskTracker::new(),
        }
    }

    /// Serves until shutdown; streams have then been told, and nothing more reaches the store.
    pub async fn serve(self, listener: TcpListener) -> Result<(), tonic::transport::Error> {
        let mut shutdown = self.shutdown.clone();
        let mut ending = self.shutdown.clone();
        let tasks = self.tasks.clone();
        let service = IngestServer::new(self)
            // Room for the fields around the body.
            .max_decoding_message_size(MAX_BATCH_BYTES + (64 << 10));
        let server = tonic::transport::Server::builder()
            .http2_keepalive_interval(Some(KEEPALIVE))
            .http2_keepalive_timeout(Some(KEEPALIVE))
            .tcp_nodelay(true)
            .initial_stream_window_size(1 << 20)
            .initial_connection_window_size(4 << 20)
            .max_concurrent_streams(16)
            .serve_with_incoming_shutdown(service, TcpListenerStream::new(listener), async move {
                shutdown.recv().await
            });
        tokio::select! {
            result = server => result?,
            // Connections that do not end by themselves end with the process.
            () = async { ending.recv().await; tokio::time::sleep(GRACE).await; } => {}
        }
        tasks.close();
        let _ = tokio::time::timeout(GRACE, tasks.wait()).await;
        Ok(())
    }
}

#[tonic::async_trait]
impl Ingest for Service {
    type StreamStream = BoxStream<'static, Result<v1::Down, Status>>;

    async fn stream(&self, request: Request<Streaming<v1::Up>>) -> Result<Response<Self::StreamStream>, Status> {
        if self.store.streams().len() >= MOST_STREAMS {
            return Err(Status::resource_exhausted(format!(
                "{MOST_STREAMS} collectors are connected already"
            )));
        }
        let peer = request
            .remote_addr()
            .map_or_else(|| "unknown".to_owned(), |a| a.to_string());
        // Acks coalesce: there is never more than one to send, and one status at the end.
        let (out, answers) = mpsc::channel(2);
        let service = self.clone();
        self.tasks.spawn(stream::run(service, request.into_inner(), out, peer));
        Ok(Response::new(Box::pin(ReceiverStream::new(answers))))
    }
}
