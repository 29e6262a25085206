//! The life of one stream: hello, batches up, acks down, an end with a reason.

use std::sync::Arc;
use std::time::Duration;

use sonde_common::time::now_ns;
use sonde_proto::{body, poison, v1};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status, Streaming};

use super::memory::StreamMemory;
use super::newer::Newer;
use super::{Service, check, hello};
use crate::live::LiveTable;
use crate::store::batch::{Batch, Ended, Progress, Stream};
use crate::store::{Newcomer, Place, ProblemKind, RegisterError, StoreStatus};

/// A connection that says nothing is not kept.
const HELLO_WITHIN: Duration = Duration::from_secs(10);
/// Batches of one stream that may be unacknowledged: beyond, it is not read.
const IN_FLIGHT: u64 = 256;
/// How long a stream may take to hear its last acks when the aggregator ends.
const LAST_ACKS: Duration = Duration::from_secs(5);
/// A decoded batch takes about this much more memory than its encoding.
const SWELL: usize = 4;

type Out = mpsc::Sender<Result<v1::Down, Status>>;

/// From the first message to the end.
pub(super) async fn run(service: Service, mut up: Streaming<v1::Up>, out: Out, peer: String) {
    let mut shutdown = service.shutdown.clone();
    let opened = tokio::select! {
        opened = open(&service, &mut up, &peer) => opened,
        () = shutdown.recv() => Err(ending()),
        () = out.closed() => return,
    };
    let status = match opened {
        Ok(session) => {
            let metrics = Arc::clone(&service.metrics);
            metrics.streams.add(1);
            let mut shutdown = service.shutdown.clone();
            let status = tokio::select! {
                status = session.run(&service, up, &out) => status,
                // A collector that does not read its answers cannot hold up the end.
                () = async { shutdown.recv().await; tokio::time::sleep(LAST_ACKS).await; } => None,
            };
            metrics.streams.sub(1);
            status
        }
        Err(status) => Some(status),
    };
    if let Some(status) = status {
        let _ = tokio::time::timeout(LAST_ACKS, out.send(Err(status))).await;
    }
}

/// A stream that has said hello.
struct Session {
    stream: Arc<Stream>,
    place: Place,
    catalogue: v1::Catalogue,
    interval_ns: u64,
    newer: Arc<Newer>,
}

async fn open(service: &Service, up: &mut Streaming<v1::Up>, peer: &str) -> Result<Session, Status> {
    let first = tokio::time::timeout(HELLO_WITHIN, up.message()).await;
    let first = first.map_err(|_| Status::deadline_exceeded("no hello within 10 s"))?;
    let first = first.inspect_err(|status| {
        // Nobody has said yet who it is.
        if is_refusal(status) {
            service.metrics.refused("");
            tracing::warn!(peer, error = status.message(), "refused what came in place of a hello");
        }
    })?;
    let Some(v1::up::Message::Hello(mut hello)) = first.and_then(|up| up.message) else {
        service.metrics.refused("");
        return Err(Status::invalid_argument("expected a hello as the first message"));
    };
    let name = hello.node.clone();
    let newer = Newer::take_from(hello.catalogue.get_or_insert_default());
    let refuse = |status: Status| {
        service.metrics.refused(&name);
        tracing::warn!(node = %name, peer, error = status.message(), "refused a collector");
        status
    };
    let newcomer = hello::check(hello).map_err(|e| {
        let status = Status::invalid_argument(e.to_string());
        if hello::is_node_name(&name) {
            return refuse(status);
        }
        // What is no name must not become a label.
        service.metrics.refused("");
        tracing::warn!(peer, error = status.message(), "refused a collector");
        status
    })?;
    let place = service.store.streams().enter(&newcomer.node, newcomer.epoch);
    let place = place.map_err(|e| refuse(Status::already_exists(e.to_string())))?;
    let registered = service.store.register(&newcomer).await.map_err(|e| match e {
        RegisterError::Conflict(conflict) => refuse(Status::failed_precondition(conflict.to_string())),
        RegisterError::TooMuch(what) => refuse(Status::resource_exhausted(what)),
        RegisterError::Elsewhere(elsewhere) => refuse(Status::already_exists(elsewhere)),
        RegisterError::Database(why) => Status::unavailable(format!("the database does not answer: {why}")),
    })?;
    place.known_as(registered.stream.node_id);
    tracing::info!(node = %newcomer.node, peer, version = %newcomer.version, sequence = registered.stream.durable(), "collector connected");
    let Newcomer {
        catalogue, interval_ns, ..
    } = newcomer;
    Ok(Session {
        stream: registered.stream,
        place,
        catalogue,
        interval_ns,
        newer: Arc::new(newer),
    })
}

/// However the stream ends, the live table knows. What is queued of it is still stored: its cursor will tell.
struct Connected<'a> {
    live: &'a LiveTable,
    stream: &'a Stream,
}

impl Drop for Connected<'_> {
    fn drop(&mut self) {
        self.live.disconnected(&self.stream.node);
    }
}

/// Why reading stopped.
enum Stop {
    /// The collector closed its side: what is in flight is stored and acknowledged, then the stream ends well.
    Done,
    With(Status),
}

impl Session {
    /// `None` where nobody is there to hear how it ended.
    async fn run(mut self, service: &Service, up: Streaming<v1::Up>, out: &Out) -> Option<Status> {
        // Not kept: with its texts it is as large as all that is remembered of the node.
        let catalogue = std::mem::take(&mut self.catalogue);
        service.live.hello(&self.stream.node, &catalogue, self.interval_ns);
        drop(catalogue);
        let _connected = Connected {
            live: &service.live,
            stream: &self.stream,
        };
        let status = self.exchange(service, up, out).await;
        let why = status.as_ref().map_or("it closed the stream", |s| s.message());
        tracing::info!(node = %self.stream.node, why, "collector disconnected");
        status
    }

    async fn exchange(&self, service: &Service, up: Streaming<v1::Up>, out: &Out) -> Option<Status> {
        let superseded = self.place.superseded();
        let hello = v1::HelloAck {
            durable_sequence: self.stream.durable(),
        };
        let hello = v1::Down {
            message: Some(v1::down::Message::HelloAck(hello)),
        };
        out.send(Ok(hello)).await.ok()?;
        let stop_reading = CancellationToken::new();
        let _stop = stop_reading.clone().drop_guard();
        let (report, mut read) = mpsc::channel(1);
        service.tasks.spawn({
            let (service, stream, answers) = (service.clone(), Arc::clone(&self.stream), out.clone());
            let newer = Arc::clone(&self.newer);
            async move {
                tokio::select! {
                    stop = read_batches(&service, &stream, &newer, up, &answers) => { let _ = report.send(stop).await; }
                    () = stop_reading.cancelled() => {}
                }
            }
        });
        let mut progress = self.stream.progress();
        let mut acked = self.stream.durable();
        let mut shutdown = service.shutdown.clone();
        let mut status = service.store.watch_status();
        let ended = loop {
            tokio::select! {
                changed = progress.changed() => {
                    changed.ok()?;
                    let now = progress.borrow_and_update().clone();
                    acked = acknowledge(out, acked, &now).await?;
                    if let Some(why) = now.ended {
                        return Some(end_status(why));
                    }
                }
                stop = read.recv() => match stop {
                    Some((Stop::Done, last)) => break (None, last),
                    Some((Stop::With(status), _)) => return Some(status),
                    None => return None,
                },
                why = other_schema(&mut status) => {
                    // Another aggregator, a newer one, may be able to take it.
                    return Some(Status::unavailable(format!("the database cannot be written: {why}")));
                }
                () = superseded.cancelled() => return Some(taken_over()),
                () = shutdown.recv() => return Some(ending()),
                () = out.closed() => return None,
            }
        };
        let (status, last) = ended;
        let drained = tokio::time::timeout(LAST_ACKS, async {
            while acked < last {
                progress.changed().await.ok()?;
                let now = progress.borrow_and_update().clone();
                acked = acknowledge(out, acked, &now).await?;
                if let Some(why) = now.ended {
                    return Some(end_status(why));
                }
            }
            status
        });
        drained.await.ok().flatten()
    }
}

/// Reads until something stops it. Also the highest sequence that was handed on.
async fn read_batches(
    service: &Service,
    stream: &Arc<Stream>,
    newer: &Arc<Newer>,
    mut up: Streaming<v1::Up>,
    out: &Out,
) -> (Stop, u64) {
    let mut progress = stream.progress();
    let mut last = stream.durable();
    let memory = service.memory.of_stream();
    loop {
        // Not read, not answered: the collector's window fills and it waits.
        let room = |p: &Progress| last < p.durable + IN_FLIGHT || p.ended.is_some();
        if progress.wait_for(room).await.is_err() {
            return (Stop::Done, last);
        }
        let batch = match up.message().await {
            Ok(Some(v1::Up {
                message: Some(v1::up::Message::Batch(batch)),
            })) => batch,
            // Something that only newer versions know.
            Ok(Some(v1::Up { message: None })) => continue,
            Ok(Some(_)) => {
                let status = Status::invalid_argument("a second hello: expected a batch");
                return (Stop::With(refused(service, stream, status)), last);
            }
            Ok(None) => return (Stop::Done, last),
            Err(status) if is_refusal(&status) => return (Stop::With(refused(service, stream, status)), last),
            Err(status) => return (Stop::With(status), last),
        };
        let sequence = batch.sequence;
        match take(service, stream, newer, &memory, batch, last).await {
            Ok(Some(batch)) => {
                last = sequence;
                service.store.submit(batch);
            }
            Ok(None) => {
                service.metrics.resent.add(1);
                let _ = out.send(Ok(ack(stream.durable()))).await;
            }
            Err(status) => return (Stop::With(refused(service, stream, status)), last),
        }
    }
}

/// Counted for the node that sent it.
fn refused(service: &Service, stream: &Stream, status: Status) -> Status {
    service.metrics.refused(&stream.node);
    tracing::warn!(node = %stream.node, error = status.message(), "refused a batch");
    status
}

/// Whether the transport ended a stream for what came on it: too long, or not a message at all.
fn is_refusal(status: &Status) -> bool {
    matches!(status.code(), Code::OutOfRange | Code::InvalidArgument | Code::Internal)
        && std::error::Error::source(status).is_none()
}

/// Decodes and checks; `None` when it is in the tables already.
async fn take(
    service: &Service,
    stream: &Arc<Stream>,
    newer: &Arc<Newer>,
    memory: &StreamMemory,
    batch: v1::Batch,
    last: u64,
) -> Result<Option<Batch>, Status> {
    let sequence = batch.sequence;
    if sequence <= stream.durable() && sequence != 0 {
        return Ok(None);
    }
    if sequence == 0 || i64::try_from(sequence).is_err() || sequence <= last {
        let why = format!("sequence {sequence} after {last}: expected ascending numbers from 1");
        return Err(Status::invalid_argument(why));
    }
    let size = body::plain_size(&batch.body).saturating_mul(SWELL).max(1024);
    let memory = memory.reserve(size, &service.metrics).await;
    let (stream, newer) = (Arc::clone(stream), Arc::clone(newer));
    // Decompressing and decoding takes milliseconds: not on a thread that answers others.
    let decoded = tokio::task::spawn_blocking(move || {
        let mut body = body::decode(&batch.body).map_err(|e| poison::status(sequence, e))?;
        newer.leave_out(&mut body);
        let now_ns = now_ns();
        check::cut_gaps(&mut body, now_ns);
        check::check(&body, &stream.probes, now_ns).map_err(|e| poison::status(sequence, e))?;
        Ok(Batch {
            stream,
            sequence,
            body,
            size,
            memory,
        })
    });
    let decoded = decoded
        .await
        .map_err(|_| poison::status(sequence, "it cannot be decoded"))?;
    decoded.map(Some)
}

/// Tells the collector what is durable; `None` when it is gone.
async fn acknowledge(out: &Out, acked: u64, now: &Progress) -> Option<u64> {
    if now.durable > acked {
        out.send(Ok(ack(now.durable))).await.ok()?;
    }
    Some(now.durable.max(acked))
}

fn ack(sequence: u64) -> v1::Down {
    v1::Down {
        message: Some(v1::down::Message::Ack(v1::Ack { sequence })),
    }
}

fn end_status(why: Ended) -> Status {
    match why {
        Ended::Poison { sequence, why } => poison::status(sequence, format_args!("the database refuses it: {why}")),
        Ended::Elsewhere(why) => Status::unavailable(why),
        Ended::Superseded => taken_over(),
        Ended::StartOver => Status::unavailable("the database is not what it was: connect again"),
    }
}

fn taken_over() -> Status {
    Status::aborted("a newer stream of this spool has taken over")
}

/// Resolves when the schema turns out to be that of another version.
async fn other_schema(status: &mut watch::Receiver<StoreStatus>) -> String {
    let other = |s: &StoreStatus| s.problem.as_ref().is_some_and(|p| p.kind == ProblemKind::OtherSchema);
    let why = status.wait_for(other).await.map(|status| status.problem.clone());
    match why {
        Ok(problem) => problem.map(|p| p.why).unwrap_or_default(),
        Err(_) => std::future::pending().await,
    }
}

fn ending() -> Status {
    Status::unavailable("the aggregator is ending")
}
