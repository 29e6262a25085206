//! A stream to the aggregator: Hello and its answer, then batches up and acks down.

use anyhow::{Context as _, bail};
use sonde_proto::limits::MAX_BATCH_BYTES;
use sonde_proto::v1::ingest_client::IngestClient;
use sonde_proto::v1::{Down, Hello, Up, down, up};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

pub(crate) struct Stream {
    pub(crate) up: mpsc::Sender<Up>,
    down: Streaming<Down>,
    /// From the answer to the Hello.
    pub(crate) durable: u64,
}

impl Stream {
    pub(crate) async fn open(url: &str, hello: Hello) -> anyhow::Result<Self> {
        let endpoint = tonic::transport::Endpoint::from_shared(url.to_owned()).with_context(|| url.to_owned())?;
        let channel = endpoint
            .tcp_nodelay(true)
            .connect()
            .await
            .with_context(|| format!("connecting to {url}"))?;
        let mut client = IngestClient::new(channel).max_encoding_message_size(MAX_BATCH_BYTES + 1024);
        let (up, receiver) = mpsc::channel(4);
        up.try_send(Up {
            message: Some(up::Message::Hello(hello)),
        })?;
        let mut down = client.stream(ReceiverStream::new(receiver)).await?.into_inner();
        match down.message().await?.and_then(|d| d.message) {
            Some(down::Message::HelloAck(ack)) => Ok(Self {
                up,
                down,
                durable: ack.durable_sequence,
            }),
            other => bail!("expected a HelloAck, got {other:?}"),
        }
    }

    /// The next ack.
    pub(crate) async fn ack(&mut self) -> anyhow::Result<u64> {
        match self.down.message().await?.and_then(|d| d.message) {
            Some(down::Message::Ack(ack)) => Ok(ack.sequence),
            other => bail!("expected an Ack, got {other:?}"),
        }
    }
}
