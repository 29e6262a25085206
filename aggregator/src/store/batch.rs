//! What ingest hands to the writer: batches that have been checked, and the streams they came on.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use sonde_proto::v1;
use tokio::sync::{OwnedSemaphorePermit, watch};
use uuid::Uuid;

use super::catalogue::{Column, Definition};
use crate::metrics::Metrics;

/// One collector's stream, as the writer needs it.
#[derive(Debug)]
pub struct Stream {
    pub node: Arc<str>,
    pub node_id: i32,
    pub epoch: Uuid,
    /// Of the spool's cursor, which a newer stream takes away.
    pub(super) claim: i64,
    pub probes: Arc<HashMap<String, StreamProbe>>,
    /// Of the tables that it was registered with.
    pub(super) generation: u64,
    progress: watch::Sender<Progress>,
    /// Nothing more of this stream may be stored.
    closed: AtomicBool,
}

/// A probe as this stream's catalogue has it, and where its parts are in the table.
#[derive(Clone, Debug, PartialEq)]
pub struct StreamProbe {
    /// As this collector said it.
    pub said: Arc<Definition>,
    /// The table, with what all collectors said.
    pub table: Arc<Definition>,
    /// For each label of the table, its place in this stream's rows.
    pub label_at: Vec<Option<usize>>,
    /// For each column of the table, its place in this stream's rows.
    pub column_at: Vec<Option<usize>>,
}

/// How far the stream is, for the task that answers the collector.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// This sequence and all lower ones are in the tables.
    pub durable: u64,
    /// Why the stream must end.
    pub ended: Option<Ended>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ended {
    /// The database refuses this batch, although it passed all checks.
    Poison { sequence: u64, why: String },
    /// Numbers of the tables that this stream holds may be wrong now: it has to say hello again.
    StartOver,
    /// A newer stream of the same spool has begun, here or elsewhere.
    Superseded,
    /// This aggregator cannot write into the database; another one may.
    Elsewhere(String),
}

/// A checked batch.
#[derive(Debug)]
pub struct Batch {
    pub stream: Arc<Stream>,
    pub sequence: u64,
    pub body: v1::BatchBody,
    /// Bytes it takes in memory, estimated.
    pub size: usize,
    pub memory: Room,
}

/// A batch's shares of the memory that batches in flight may take; given back when the batch is dropped.
#[derive(Debug)]
pub struct Room {
    _shares: Vec<OwnedSemaphorePermit>,
    bytes: u64,
    metrics: Arc<Metrics>,
}

impl Room {
    pub fn new(shares: Vec<OwnedSemaphorePermit>, bytes: u64, metrics: &Arc<Metrics>) -> Self {
        metrics.queued_bytes.add(bytes);
        Self {
            _shares: shares,
            bytes,
            metrics: Arc::clone(metrics),
        }
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        self.metrics.queued_bytes.sub(self.bytes);
    }
}

impl StreamProbe {
    pub fn new(said: Arc<Definition>, table: Arc<Definition>) -> Self {
        let label_at = |name: &str| said.labels.iter().position(|l| l.name == name);
        let column_at = |stored: &Column| said.columns.iter().position(|c| stored.means_the_same(c));
        Self {
            label_at: table.labels.iter().map(|l| label_at(&l.name)).collect(),
            column_at: table.columns.iter().map(column_at).collect(),
            said,
            table,
        }
    }
}

impl Stream {
    pub fn new(node: &str, node_id: i32, epoch: Uuid, probes: HashMap<String, StreamProbe>, durable: u64) -> Arc<Self> {
        Self::new_in(0, node, node_id, (epoch, 0), Arc::new(probes), durable)
    }

    pub(super) fn new_in(
        generation: u64,
        node: &str,
        node_id: i32,
        (epoch, claim): (Uuid, i64),
        probes: Arc<HashMap<String, StreamProbe>>,
        durable: u64,
    ) -> Arc<Self> {
        Arc::new(Self {
            generation,
            node: node.into(),
            node_id,
            epoch,
            claim,
            probes,
            progress: watch::Sender::new(Progress { durable, ended: None }),
            closed: AtomicBool::new(false),
        })
    }

    /// What the collector is to hear.
    pub fn progress(&self) -> watch::Receiver<Progress> {
        self.progress.subscribe()
    }

    pub fn durable(&self) -> u64 {
        self.progress.borrow().durable
    }

    pub(super) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// The writer committed up to `sequence`.
    pub(super) fn committed(&self, sequence: u64) {
        self.progress.send_if_modified(|p| {
            let news = sequence > p.durable;
            p.durable = p.durable.max(sequence);
            news
        });
    }

    /// The writer cannot go on with this stream, and skips what it still has of it.
    pub(super) fn end(&self, why: Ended) {
        self.closed.store(true, Ordering::Release);
        self.progress.send_modify(|p| p.ended = Some(why));
    }
}
