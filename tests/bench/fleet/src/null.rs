//! An aggregator that acknowledges everything and keeps nothing: what the load itself costs is measured against it.

use std::net::SocketAddr;

use sonde_proto::limits::MAX_BATCH_BYTES;
use sonde_proto::v1::ingest_server::{Ingest, IngestServer};
use sonde_proto::v1::{Ack, Down, HelloAck, Up, down, up};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::{Request, Response, Status, Streaming};

#[derive(Clone, Copy, Debug)]
struct Null;

#[tonic::async_trait]
impl Ingest for Null {
    type StreamStream = ReceiverStream<Result<Down, Status>>;

    async fn stream(&self, request: Request<Streaming<Up>>) -> Result<Response<Self::StreamStream>, Status> {
        let (sender, receiver) = mpsc::channel(64);
        let mut inbound = request.into_inner();
        tokio::spawn(async move {
            while let Ok(Some(message)) = inbound.message().await {
                let answer = match message.message {
                    Some(up::Message::Hello(_)) => down::Message::HelloAck(HelloAck { durable_sequence: 0 }),
                    Some(up::Message::Batch(batch)) => down::Message::Ack(Ack {
                        sequence: batch.sequence,
                    }),
                    None => return,
                };
                if sender.send(Ok(Down { message: Some(answer) })).await.is_err() {
                    return;
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }
}

/// Serves on a thread of its own until the process ends, so that the caller's CPU time is the load's alone.
pub fn start() -> anyhow::Result<SocketAddr> {
    let listener = std::net::TcpListener::bind(("127.0.0.1", 0))?;
    listener.set_nonblocking(true)?;
    let address = listener.local_addr()?;
    std::thread::Builder::new()
        .name("null-receiver".into())
        .spawn(move || {
            if let Err(error) = serve(listener) {
                eprintln!("null receiver: {error}");
            }
        })?;
    Ok(address)
}

fn serve(listener: std::net::TcpListener) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let incoming = TcpListenerStream::new(TcpListener::from_std(listener)?);
        let service = IngestServer::new(Null).max_decoding_message_size(MAX_BATCH_BYTES + 1024);
        let server = tonic::transport::Server::builder();
        Ok(server.serve_with_incoming(service, incoming).await?)
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::start;
    use crate::{Options, Pace, Shape, Until, run};

    fn options() -> Options {
        Options {
            url: format!("http://{}", start().unwrap()),
            nodes: 3,
            shape: Shape {
                pods: 5,
                ..Shape::default()
            },
            ..Options::default()
        }
    }

    #[tokio::test]
    async fn what_is_sent_as_fast_as_it_goes_is_acknowledged_whole() {
        let report = run(Options {
            pace: Pace::Readings,
            until: Until::Batches(20),
            window: 4,
            ..options()
        })
        .await
        .unwrap();
        assert_eq!((report.batches, report.events, report.reconnects), (60, 0, 0));
        assert_eq!(report.latencies.len(), 60);
        assert!(
            report.samples > 60 * 5 * 15 && report.numbers > report.samples,
            "{report}"
        );
    }

    #[tokio::test]
    async fn a_paced_run_has_readings_and_the_events_that_were_asked_for() {
        let report = run(Options {
            pace: Pace::Every(Duration::from_millis(200)),
            until: Until::Passed(Duration::from_secs(2)),
            events: 40.0,
            flood: 400.0,
            ..options()
        })
        .await
        .unwrap();
        // How many is a matter of time; none may be missing from what was made.
        assert!(report.samples > 0 && report.events >= 400, "{report}");
        assert_eq!(report.latencies.len() as u64, report.batches);
    }
}
