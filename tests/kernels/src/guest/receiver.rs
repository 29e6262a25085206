//! An aggregator that only listens: what a collector ships, kept in memory.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Context as _, Result};
use sonde_proto::body;
use sonde_proto::v1::ingest_server::{Ingest, IngestServer};
use sonde_proto::v1::{Ack, BatchBody, Down, HelloAck, Up, down, up};
use tokio::sync::mpsc;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::{Request, Response, Status, Streaming};

/// An event as it came, with the words it refers to.
#[derive(Clone, Debug, Default)]
pub(super) struct Event {
    /// Name of the pod; empty: the node, where the collector itself talks with this receiver.
    pub pod: String,
    pub kind: String,
    pub reason: String,
    pub protocol: String,
    pub from: Option<SocketAddr>,
    pub to: Option<SocketAddr>,
    pub latency_ns: Option<u64>,
    pub state: String,
    pub stack: Vec<String>,
    pub attributes: HashMap<String, String>,
}

impl Event {
    /// Or of nobody knows whom.
    pub(super) fn is_of_pod(&self) -> bool {
        !self.pod.is_empty()
    }
}

#[derive(Clone, Default)]
pub(super) struct Receiver {
    store: Arc<Mutex<Store>>,
}

#[derive(Default)]
struct Store {
    events: Vec<Event>,
    /// By epoch: a collector that starts anew begins at 1 again.
    durable: HashMap<Vec<u8>, u64>,
    broken: Option<String>,
}

impl Receiver {
    /// Listens until the process ends.
    pub(super) fn start(address: SocketAddr) -> Result<Self> {
        let receiver = Self::default();
        let service = IngestServer::new(receiver.clone());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let listener = runtime.block_on(tokio::net::TcpListener::bind(address))?;
        std::thread::Builder::new().name("receiver".into()).spawn(move || {
            let server = tonic::transport::Server::builder();
            let served = server.serve_with_incoming(service, TcpListenerStream::new(listener));
            if let Err(error) = runtime.block_on(served) {
                println!("guest: receiver: {error}");
            }
        })?;
        Ok(receiver)
    }

    fn lock(&self) -> MutexGuard<'_, Store> {
        self.store.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Everything since `position`.
    pub(super) fn events(&self, position: usize) -> Result<Vec<Event>> {
        let store = self.lock();
        if let Some(why) = &store.broken {
            anyhow::bail!("what the collector ships cannot be read: {why}");
        }
        Ok(store.events.get(position..).unwrap_or_default().to_vec())
    }

    pub(super) fn position(&self) -> usize {
        self.lock().events.len()
    }

    fn take(&self, epoch: &[u8], sequence: u64, bytes: &[u8]) {
        let mut store = self.lock();
        let durable = store.durable.entry(epoch.to_vec()).or_default();
        if sequence <= *durable {
            return;
        }
        *durable = sequence;
        match body::decode(bytes)
            .map_err(anyhow::Error::from)
            .and_then(|body| read(&body))
        {
            Ok(events) => store.events.extend(events),
            Err(error) => store.broken = Some(format!("{error:#}")),
        }
    }
}

#[tonic::async_trait]
impl Ingest for Receiver {
    type StreamStream = ReceiverStream<Result<Down, Status>>;

    async fn stream(&self, request: Request<Streaming<Up>>) -> Result<Response<Self::StreamStream>, Status> {
        let (sender, answers) = mpsc::channel(64);
        let receiver = self.clone();
        tokio::spawn(async move {
            if let Err(status) = talk(&receiver, request.into_inner(), &sender).await {
                let _ = sender.send(Err(status)).await;
            }
        });
        Ok(Response::new(ReceiverStream::new(answers)))
    }
}

async fn talk(
    receiver: &Receiver,
    mut inbound: Streaming<Up>,
    outbound: &mpsc::Sender<Result<Down, Status>>,
) -> Result<(), Status> {
    let say = async |message| {
        let sent = outbound.send(Ok(Down { message: Some(message) })).await;
        sent.map_err(|_| Status::cancelled("gone"))
    };
    let Some(up::Message::Hello(hello)) = inbound.message().await?.and_then(|up| up.message) else {
        return Err(Status::failed_precondition("hello first"));
    };
    let durable_sequence = receiver.lock().durable.get(&hello.epoch).copied().unwrap_or(0);
    say(down::Message::HelloAck(HelloAck { durable_sequence })).await?;
    while let Some(up) = inbound.message().await? {
        if let Some(up::Message::Batch(batch)) = up.message {
            receiver.take(&hello.epoch, batch.sequence, &batch.body);
            let sequence = batch.sequence;
            say(down::Message::Ack(Ack { sequence })).await?;
        }
    }
    Ok(())
}

fn read(body: &BatchBody) -> Result<Vec<Event>> {
    let word = |index: u32| {
        body.strings
            .get(index as usize)
            .cloned()
            .context("a string that is not there")
    };
    body.events
        .iter()
        .map(|event| {
            let pod = match (event.subject_unknown, event.subject) {
                (true, _) => "unknown".to_owned(),
                (false, 0) => String::new(),
                (false, n) => body
                    .pods
                    .get(n as usize - 1)
                    .context("a pod that is not there")?
                    .name
                    .clone(),
            };
            let stack = match event.stack {
                0 => Vec::new(),
                n => {
                    let stack = body.stacks.get(n as usize - 1).context("a stack that is not there")?;
                    stack.frames.iter().map(|frame| word(*frame)).collect::<Result<_>>()?
                }
            };
            let attributes = event
                .attributes
                .iter()
                .map(|one| Ok((word(one.key)?, word(one.value)?)));
            Ok(Event {
                pod,
                kind: word(event.r#type)?,
                reason: word(event.reason)?,
                protocol: word(event.protocol)?,
                from: end(&event.saddr, event.sport)?,
                to: end(&event.daddr, event.dport)?,
                latency_ns: event.latency_ns,
                state: word(event.state)?,
                stack,
                attributes: attributes.collect::<Result<_>>()?,
            })
        })
        .collect()
}

fn end(address: &[u8], port: u32) -> Result<Option<SocketAddr>> {
    let ip: IpAddr = match address.len() {
        0 => return Ok(None),
        4 => <[u8; 4]>::try_from(address)?.into(),
        16 => <[u8; 16]>::try_from(address)?.into(),
        other => anyhow::bail!("an address of {other} bytes"),
    };
    Ok(Some(SocketAddr::new(ip, u16::try_from(port)?)))
}
