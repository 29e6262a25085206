//! A collector that outlives every kill.

use sonde_common::time::now_ns;
use sonde_proto::v1::ingest_client::IngestClient;
use sonde_proto::{body, v1};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;

use crate::fixture::Program;

/// What a collector's spool does: keeps all that is not acknowledged, and sends it again on every connection.
pub(crate) struct Spool {
    /// Of a batch.
    events: u64,
    /// Sequences 1 to this were made.
    made: u64,
    pub(crate) acked: watch::Sender<u64>,
}

impl Spool {
    pub(crate) fn of(events: u64) -> Self {
        let (made, acked) = (0, watch::Sender::new(0));
        Self { events, made, acked }
    }

    fn acked(&self) -> u64 {
        *self.acked.borrow()
    }

    fn batch(&self, sequence: u64) -> v1::Up {
        let events = (0..self.events).map(|n| v1::Event {
            time_ns: now_ns(),
            probe: 1,
            r#type: 2,
            // Which event of all this is.
            latency_ns: Some(sequence * self.events + n),
            ..Default::default()
        });
        let body = v1::BatchBody {
            strings: ["", "packetloss", "PACKETLOSS"].map(String::from).to_vec(),
            events: events.collect(),
            ..Default::default()
        };
        let batch = v1::Batch {
            sequence,
            body: body::encode(&body).into(),
        };
        v1::Up {
            message: Some(v1::up::Message::Batch(batch)),
        }
    }

    fn hello() -> v1::Up {
        let probe = v1::ProbeDef {
            name: "packetloss".into(),
            ..Default::default()
        };
        let hello = v1::Hello {
            node: "n1".into(),
            boot_id: vec![1; 16],
            epoch: vec![7; 16],
            interval_ns: 1_000_000_000,
            catalogue: Some(v1::Catalogue { probes: vec![probe] }),
            ..Default::default()
        };
        v1::Up {
            message: Some(v1::up::Message::Hello(hello)),
        }
    }

    /// Sends until the connection breaks, or until all is acknowledged when nothing more is `made` than `until`.
    pub(crate) async fn stream(&mut self, program: &Program, until: Option<u64>) {
        let Ok(mut client) = IngestClient::connect(format!("http://{}", program.grpc)).await else {
            return;
        };
        let (up, outgoing) = mpsc::channel(8);
        let _ = up.send(Self::hello()).await;
        let Ok(down) = client.stream(ReceiverStream::new(outgoing)).await else {
            return;
        };
        let mut down = down.into_inner();
        let Ok(Some(v1::Down {
            message: Some(v1::down::Message::HelloAck(hello)),
        })) = down.message().await
        else {
            return;
        };
        assert!(hello.durable_sequence >= self.acked(), "acknowledged, and now gone");
        self.acked.send_replace(hello.durable_sequence);
        let mut next = self.acked() + 1;
        while until.is_none_or(|until| self.acked() < until) {
            let ready = until.is_none_or(|until| next <= until);
            tokio::select! {
                permit = up.reserve(), if ready => {
                    let Ok(permit) = permit else { return };
                    permit.send(self.batch(next));
                    self.made = self.made.max(next);
                    next += 1;
                }
                answer = down.message() => match answer {
                    Ok(Some(v1::Down { message: Some(v1::down::Message::Ack(ack)) })) => { self.acked.send_replace(ack.sequence); }
                    _ => return,
                }
            }
        }
    }

    /// Sends what is left, and looks: every event that was ever made is there, and none twice.
    pub(crate) async fn is_stored_once(&mut self, program: &Program) {
        let until = self.made;
        while self.acked() < until {
            self.stream(program, Some(until)).await;
        }
        let sql = "select count(*), count(distinct latency_ns), max(latency_ns) from sonde.events";
        let stored: (i64, i64, i64) = sqlx::query_as(sql).fetch_one(&program.database()).await.unwrap();
        let expected = (until * self.events) as i64;
        assert_eq!(stored, (expected, expected, expected + self.events as i64 - 1));
    }
}
