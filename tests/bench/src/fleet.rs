//! A simulated collector: real wire traffic, made-up numbers. Sends as fast as acks permit within a window.

use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use sonde_proto::v1::{
    Batch, BatchBody, Catalogue, Column, ColumnDef, Event, EventTypeDef, Hello, Kind, Pod, ProbeDef, Rows, Stack, Up,
    down::Message as DownMessage, ingest_client::IngestClient, up::Message as UpMessage,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

/// Batches that may be on their way without an ack.
const WINDOW: u64 = 8;

/// What one simulated node looks like.
#[derive(Clone, Copy)]
pub(crate) struct Shape {
    pub(crate) pods: usize,
    pub(crate) probes: usize,
    pub(crate) columns: usize,
}

impl Shape {
    pub(crate) fn samples(self) -> u64 {
        (self.pods * self.probes * self.columns) as u64
    }

    fn catalogue(self) -> Catalogue {
        let columns = |_| {
            (0..self.columns)
                .map(|c| ColumnDef {
                    name: format!("metric{c}"),
                    help: "A number of the benchmark".into(),
                    kind: Kind::Counter.into(),
                    ..Default::default()
                })
                .collect()
        };
        let probe = |p| ProbeDef {
            name: format!("bench{p}"),
            help: "A probe of the benchmark".into(),
            columns: columns(p),
            ..Default::default()
        };
        let drops = ProbeDef {
            name: "packetloss".into(),
            help: "Where the events of the benchmark come from".into(),
            event_types: vec![EventTypeDef {
                name: "PACKETLOSS".into(),
                help: "A drop".into(),
            }],
            ..Default::default()
        };
        Catalogue {
            probes: (0..self.probes).map(probe).chain([drops]).collect(),
        }
    }

    fn pod(self, node: &str, number: usize, from_ns: u64) -> Pod {
        Pod {
            sandbox: format!("{node}-{number}"),
            namespace: format!("namespace{}", number % 20),
            name: format!("{node}-pod{number}"),
            workload_kind: "Deployment".into(),
            workload: format!("workload{}", number % 50),
            valid_from_ns: from_ns,
            netns_inode: 4_026_532_000 + number as u64,
            ..Default::default()
        }
    }
}

/// One node's stream.
pub(crate) struct Node {
    name: String,
    shape: Shape,
    up: mpsc::Sender<Up>,
    down: tonic::Streaming<sonde_proto::v1::Down>,
    sequence: u64,
    acked: u64,
    pods: Vec<Pod>,
    round: i64,
}

impl Node {
    pub(crate) async fn connect(url: &str, number: usize, shape: Shape) -> anyhow::Result<Self> {
        let name = format!("bench-{number}");
        let mut client = IngestClient::connect(url.to_owned()).await.context("connecting")?;
        let (up, receiver) = mpsc::channel(4);
        let hello = Hello {
            node: name.clone(),
            boot_id: uuid::Uuid::new_v4().into_bytes().to_vec(),
            epoch: uuid::Uuid::new_v4().into_bytes().to_vec(),
            version: "bench".into(),
            interval_ns: 600_000_000_000,
            catalogue: Some(shape.catalogue()),
            ..Default::default()
        };
        up.send(Up {
            message: Some(UpMessage::Hello(hello)),
        })
        .await?;
        let down = client
            .stream(ReceiverStream::new(receiver))
            .await
            .context("opening the stream")?
            .into_inner();
        let from = sonde_common::time::now_ns();
        let pods = (0..shape.pods).map(|pod| shape.pod(&name, pod, from)).collect();
        let mut node = Self {
            name,
            shape,
            up,
            down,
            sequence: 0,
            acked: 0,
            pods,
            round: 0,
        };
        match node.down.message().await?.and_then(|d| d.message) {
            Some(DownMessage::HelloAck(_)) => Ok(node),
            other => bail!("{}: expected a HelloAck, got {other:?}", node.name),
        }
    }

    /// One reading of every probe for every pod; about a third of the numbers move.
    pub(crate) fn rows(&mut self) -> BatchBody {
        self.round += 1;
        let time_ns = sonde_common::time::now_ns();
        let subjects: Vec<u32> = (1..=self.shape.pods as u32).collect();
        let column = |c: usize| {
            let value = |pod: usize| (pod as i64 * 1000) + if c.is_multiple_of(3) { self.round * 7 } else { 0 };
            Column {
                values: (0..self.shape.pods).map(value).collect(),
            }
        };
        let probe = |p: usize| Rows {
            probe: format!("bench{p}"),
            time_ns,
            subjects: subjects.clone(),
            columns: (0..self.shape.columns).map(column).collect(),
            ..Default::default()
        };
        BatchBody {
            strings: vec![String::new()],
            pods: self.pods.clone(),
            rows: (0..self.shape.probes).map(probe).collect(),
            ..Default::default()
        }
    }

    /// `count` events of the kind that matters: drops with addresses, ports and a stack.
    pub(crate) fn events(&mut self, count: usize) -> BatchBody {
        self.round += 1;
        let strings = [
            "",
            "packetloss",
            "PACKETLOSS",
            "NETFILTER_DROP",
            "TCP",
            "eth0",
            "nft_do_chain+0x4f1",
            "ip_rcv+0x1a2",
        ];
        let now = sonde_common::time::now_ns();
        let event = |i: usize| Event {
            time_ns: now + i as u64 * 1000,
            subject: (i % self.shape.pods) as u32 + 1,
            probe: 1,
            r#type: 2,
            reason: 3,
            protocol: 4,
            saddr: vec![10, 0, (i >> 8) as u8, i as u8],
            sport: 30_000 + (i % 30_000) as u32,
            daddr: vec![10, 1, 0, (self.round % 250) as u8],
            dport: 443,
            direction: 1,
            cpu: Some(1),
            interface: 5,
            stack: 1,
            ..Default::default()
        };
        BatchBody {
            strings: strings.map(String::from).to_vec(),
            stacks: vec![Stack { frames: vec![6, 7] }],
            pods: self.pods.clone(),
            events: (0..count).map(event).collect(),
            ..Default::default()
        }
    }

    /// Sends `bodies` batches made by `make` and waits until all are acked; returns from first send to last ack.
    pub(crate) async fn run(
        &mut self,
        batches: u64,
        mut make: impl FnMut(&mut Self) -> BatchBody,
    ) -> anyhow::Result<Duration> {
        let started = Instant::now();
        for _ in 0..batches {
            self.sequence += 1;
            let body = sonde_proto::body::encode(&make(self));
            let batch = Batch {
                sequence: self.sequence,
                body: body.into(),
            };
            self.up
                .send(Up {
                    message: Some(UpMessage::Batch(batch)),
                })
                .await
                .context("the stream is closed")?;
            while self.sequence - self.acked >= WINDOW {
                self.wait_ack().await?;
            }
        }
        while self.acked < self.sequence {
            self.wait_ack().await?;
        }
        Ok(started.elapsed())
    }

    async fn wait_ack(&mut self) -> anyhow::Result<()> {
        match self.down.message().await?.and_then(|d| d.message) {
            Some(DownMessage::Ack(ack)) => {
                self.acked = ack.sequence;
                Ok(())
            }
            other => bail!("{}: expected an Ack, got {other:?}", self.name),
        }
    }
}
