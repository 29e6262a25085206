//! The stream to the aggregator: Hello, then batches from the spool in order, each again and again until an ack covers
//! it. A batch that the aggregator refuses for its content is set aside and passed over.
//!
//! Of several aggregators on one database any will do: what one has stored, another knows by the cursor that is stored
//! with it. So the stream goes on with the next one where this one ends.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use sonde_common::shutdown::Shutdown;
use sonde_proto::limits::MAX_BATCH_BYTES;
use sonde_proto::v1::ingest_client::IngestClient;
use sonde_proto::v1::{Batch, Down, Hello, Up, down, up};
use sonde_proto::{gap, poison};
use sonde_push::Backoff;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Status, Streaming};

use super::early::{self, Put};
use super::spool::{Frame, Next, Reader, Spool};
use crate::event::{Gap, Subject};
use crate::ship::writer::Shipper;

/// What may be on its way without an ack.
const WINDOW_BATCHES: usize = 64;
const WINDOW_BYTES: usize = 16 << 20;
const BACKOFF_FIRST: Duration = Duration::from_millis(200);
const BACKOFF_AT_MOST: Duration = Duration::from_secs(10);
/// After the last batch is in the spool, how long its ack is waited for.
pub const DRAIN: Duration = Duration::from_secs(3);

/// For metrics and `/status`.
#[derive(Debug, Default)]
pub struct Link {
    pub connected: AtomicBool,
    pub connects: AtomicU64,
    pub sent_batches: AtomicU64,
    pub sent_bytes: AtomicU64,
    pub poison: AtomicU64,
    last_error: Mutex<String>,
    target: Mutex<String>,
}

impl Link {
    /// Why there is no connection, or why there was none before this one.
    pub fn last_error(&self) -> String {
        self.last_error.lock().clone()
    }

    /// The aggregator that is talked to, or was tried last.
    pub fn target(&self) -> String {
        self.target.lock().clone()
    }
}

#[derive(Debug, thiserror::Error)]
enum LinkError {
    #[error("{0}")]
    Status(#[from] Status),
    #[error("{0}")]
    Connect(String),
    #[error("spool: {0}")]
    Spool(#[from] io::Error),
    #[error("the clock of this machine says {0}: nothing is sent until it is set")]
    Clock(String),
    #[error("aggregator ended the stream")]
    Ended,
    #[error("aggregator sent {0} instead of a HelloAck")]
    NoHelloAck(&'static str),
}

impl From<tonic::transport::Error> for LinkError {
    fn from(error: tonic::transport::Error) -> Self {
        // The cause behind "transport error" is what one can act on.
        let mut cause: &dyn std::error::Error = &error;
        while let Some(next) = cause.source() {
            cause = next;
        }
        Self::Connect(cause.to_string())
    }
}

/// The next value; never, where there is nothing to follow.
async fn next(values: &mut Option<watch::Receiver<u64>>) -> u64 {
    if let Some(values) = values
        && values.changed().await.is_ok()
    {
        return *values.borrow_and_update();
    }
    std::future::pending().await
}

#[derive(Debug)]
pub struct Client {
    /// Never empty.
    endpoints: Vec<Endpoint>,
    /// Which of them.
    at: usize,
    hello: Hello,
    spool: Arc<Spool>,
    link: Arc<Link>,
    shipper: Shipper,
    /// How often there are rows, should that change.
    interval_ns: Option<watch::Receiver<u64>>,
}

impl Client {
    /// Each target is `http://HOST:PORT`.
    pub fn new(
        targets: &[String],
        hello: Hello,
        spool: Arc<Spool>,
        link: Arc<Link>,
        shipper: Shipper,
    ) -> Result<Self, String> {
        let endpoints: Vec<_> = targets
            .iter()
            .map(|target| endpoint(target))
            .collect::<Result<_, _>>()?;
        if endpoints.is_empty() {
            return Err("collector.aggregator: no address".to_owned());
        }
        // So that the nodes of a cluster spread over them.
        let at = crc32c::crc32c(hello.node.as_bytes()) as usize % endpoints.len();
        Ok(Self {
            endpoints,
            at,
            hello,
            spool,
            link,
            shipper,
            interval_ns: None,
        })
    }

    /// Says Hello anew when rows come more or less often: the aggregator takes a node for silent by that.
    pub fn following(mut self, interval_ns: watch::Receiver<u64>) -> Self {
        self.interval_ns = Some(interval_ns);
        self
    }

    /// Runs until `end`.
    pub async fn run(mut self, mut end: Shutdown) {
        let mut backoff = Backoff::new(BACKOFF_FIRST, BACKOFF_AT_MOST);
        let mut interval_ns = self.interval_ns.take();
        // Since one that answered.
        let mut tried = 0;
        loop {
            let before = self.spool.stats().acked;
            let error = tokio::select! {
                result = self.talk() => result.err().unwrap_or(LinkError::Ended),
                () = end.recv() => return,
                now = next(&mut interval_ns) => {
                    self.link.connected.store(false, Ordering::Relaxed);
                    self.hello.interval_ns = now;
                    continue;
                }
            };
            self.link.connected.store(false, Ordering::Relaxed);
            let poisoned = matches!(&error, LinkError::Status(status) if poison::sequence(status).is_some());
            if self.link.last_error() != error.to_string() {
                tracing::warn!(%error, target = self.link.target(), "no connection to the aggregator");
            }
            *self.link.last_error.lock() = error.to_string();
            if poisoned || self.spool.stats().acked > before {
                backoff.reset();
                tried = 0;
            }
            if !poisoned {
                self.at = (self.at + 1) % self.endpoints.len();
                tried += 1;
            }
            if !poisoned && tried % self.endpoints.len() != 0 {
                continue;
            }
            tokio::select! {
                () = tokio::time::sleep(backoff.wait()) => {}
                () = end.recv() => return,
            }
        }
    }

    /// One connection, from Hello to its end.
    async fn talk(&mut self) -> Result<(), LinkError> {
        if !early::look(&self.spool) {
            return Err(LinkError::Clock(sonde_common::time::rfc3339(
                sonde_common::time::now_ns(),
            )));
        }
        let endpoint = &self.endpoints[self.at];
        *self.link.target.lock() = endpoint.uri().to_string().trim_end_matches('/').to_owned();
        let channel: Channel = endpoint.connect().await?;
        let mut client = IngestClient::new(channel)
            .max_encoding_message_size(MAX_BATCH_BYTES + 1024)
            .max_decoding_message_size(64 << 10);
        let (outbound, receiver) = mpsc::channel(4);
        let hello = Up {
            message: Some(up::Message::Hello(self.hello.clone())),
        };
        outbound.try_send(hello).map_err(|_| LinkError::Ended)?;
        let mut inbound = client.stream(ReceiverStream::new(receiver)).await?.into_inner();
        let durable = match inbound.message().await?.and_then(|down| down.message) {
            Some(down::Message::HelloAck(ack)) => ack.durable_sequence,
            Some(down::Message::Ack(_)) => return Err(LinkError::NoHelloAck("an Ack")),
            None => return Err(LinkError::NoHelloAck("nothing")),
        };
        tracing::info!(durable, target = self.link.target(), "connected to the aggregator");
        self.link.connected.store(true, Ordering::Relaxed);
        self.link.connects.fetch_add(1, Ordering::Relaxed);
        let appended = self.spool.appended();
        let mut flow = Flow {
            reader: Some(self.spool.sender(durable)?),
            appended,
            window: VecDeque::new(),
            bytes: 0,
            ready: None,
        };
        let result = self.pump(&mut flow, &outbound, &mut inbound).await;
        if let Err(LinkError::Status(status)) = &result {
            self.set_aside(status, &flow);
        }
        result
    }

    async fn pump(
        &mut self,
        flow: &mut Flow,
        outbound: &mpsc::Sender<Up>,
        inbound: &mut Streaming<Down>,
    ) -> Result<(), LinkError> {
        loop {
            if flow.ready.is_none() && flow.has_room() {
                flow.ready = self.next_frame(flow).await?;
            }
            tokio::select! {
                message = inbound.message() => match message?.and_then(|down| down.message) {
                    Some(down::Message::Ack(ack)) => {
                        flow.acked(ack.sequence);
                        self.spool.acked(ack.sequence)?;
                    }
                    Some(down::Message::HelloAck(_)) => return Err(LinkError::NoHelloAck("a second HelloAck")),
                    None => return Err(LinkError::Ended),
                },
                permit = outbound.reserve(), if flow.ready.is_some() => {
                    let Ok(permit) = permit else {
                        // The stream ended; its status comes from the other side of it.
                        let error = inbound.message().await.err();
                        return Err(error.map_or(LinkError::Ended, LinkError::Status));
                    };
                    if let Some(frame) = flow.ready.take() {
                        self.link.sent_batches.fetch_add(1, Ordering::Relaxed);
                        self.link.sent_bytes.fetch_add(frame.payload.len() as u64, Ordering::Relaxed);
                        let batch = Batch { sequence: frame.sequence, body: frame.payload.clone() };
                        permit.send(Up { message: Some(up::Message::Batch(batch)) });
                        flow.sent(frame);
                    }
                }
                changed = flow.appended.changed(), if flow.ready.is_none() && flow.has_room() => {
                    if changed.is_err() {
                        return Err(LinkError::Ended);
                    }
                }
            }
        }
    }

    /// The next frame to send. Off the async threads: the page may have to come from a disk.
    async fn next_frame(&self, flow: &mut Flow) -> Result<Option<Frame>, LinkError> {
        loop {
            flow.appended.mark_unchanged();
            let Some(mut reader) = flow.reader.take() else {
                return Ok(None);
            };
            let spool = Arc::clone(&self.spool);
            let read = tokio::task::spawn_blocking(move || (reader.next(&spool), reader)).await;
            let (next, reader) = read.map_err(io::Error::other)?;
            flow.reader = Some(reader);
            match next? {
                Next::Frame(frame) => match early::put_right(frame, &self.spool) {
                    Put::Sent(frame) => return Ok(Some(frame)),
                    Put::Lost(frame, gap) => self.leave_out(&frame, gap),
                },
                Next::Nothing => return Ok(None),
                Next::Damaged(cut) => {
                    tracing::error!(
                        file = cut.file,
                        bytes = cut.bytes,
                        "spool segment damaged, its rest is lost"
                    );
                    let to_ns = sonde_common::time::now_ns();
                    self.tell(Gap {
                        probe: "",
                        cause: gap::SPOOL_DAMAGED,
                        from_ns: cut.after_ns.min(to_ns),
                        to_ns,
                        count: 0,
                        subject: Subject::Node,
                        detail: format!("{} bytes of {} could not be read back", cut.bytes, cut.file),
                    });
                }
            }
        }
    }

    /// If the status refuses a batch that is on its way, takes it out of the stream.
    fn set_aside(&self, status: &Status, flow: &Flow) {
        let Some(sequence) = poison::sequence(status) else {
            return;
        };
        let Some(frame) = flow.window.iter().find(|frame| frame.sequence == sequence) else {
            tracing::error!(sequence, "aggregator refuses a batch that was not sent");
            return;
        };
        self.link.poison.fetch_add(1, Ordering::Relaxed);
        let gap = Gap {
            probe: "",
            cause: gap::POISON_BATCH,
            from_ns: frame.contents.from_ns,
            to_ns: frame.contents.to_ns,
            count: frame.contents.count.into(),
            subject: Subject::Node,
            detail: status.message().to_owned(),
        };
        self.leave_out(frame, gap);
    }

    /// A batch that is not sent, or not again: set aside, and told.
    fn leave_out(&self, frame: &Frame, gap: Gap) {
        let (sequence, reason) = (frame.sequence, &gap.detail);
        match self.spool.refuse(frame) {
            Ok(path) => tracing::error!(sequence, path = %path.display(), reason, "batch refused, set aside"),
            Err(error) => tracing::error!(sequence, %error, reason, "batch refused, cannot be kept"),
        }
        self.shipper.refused(gap, sequence);
    }

    fn tell(&self, gap: Gap) {
        self.shipper.gaps(vec![gap]);
    }
}

fn endpoint(target: &str) -> Result<Endpoint, String> {
    Ok(Endpoint::from_shared(target.to_owned())
        .map_err(|e| format!("collector.aggregator: `{target}`: {e}"))?
        .connect_timeout(Duration::from_secs(5))
        .tcp_nodelay(true)
        .http2_keep_alive_interval(Duration::from_secs(10))
        .keep_alive_timeout(Duration::from_secs(10))
        .keep_alive_while_idle(true))
}

/// Where one connection stands.
struct Flow {
    /// `None` only while it is lent to a blocking thread.
    reader: Option<Reader>,
    appended: watch::Receiver<u64>,
    window: VecDeque<Frame>,
    bytes: usize,
    ready: Option<Frame>,
}

impl Flow {
    fn has_room(&self) -> bool {
        self.window.len() < WINDOW_BATCHES && self.bytes < WINDOW_BYTES
    }

    fn sent(&mut self, frame: Frame) {
        self.bytes += frame.payload.len();
        self.window.push_back(frame);
    }

    fn acked(&mut self, sequence: u64) {
        while self.window.front().is_some_and(|frame| frame.sequence <= sequence) {
            if let Some(frame) = self.window.pop_front() {
                self.bytes -= frame.payload.len();
            }
        }
    }
}
