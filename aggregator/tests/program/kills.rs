//! SIGKILL at any moment: nothing that was acknowledged is lost, nothing is there twice.

use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use sonde_common::time::now_ns;
use sonde_proto::v1::ingest_client::IngestClient;
use sonde_proto::{body, v1};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;

use crate::fixture::{PATIENCE, Program, directory, gone};

#[test]
fn a_killed_aggregator_takes_its_database_with_it_and_starts_again_at_once() {
    let dir = directory();
    let program = Program::start(dir.path());
    let first = program.postmaster().unwrap();
    program.kill();
    // Not waited for: the new one has to see to its predecessor itself.
    let program = Program::start(dir.path());
    assert_ne!(program.postmaster(), Some(first));
    gone(first);
    program.stop();
}

#[test]
fn a_killed_database_is_started_again() {
    let dir = directory();
    let program = Program::start(dir.path());
    let first = program.postmaster().unwrap();
    kill(first, Signal::SIGKILL).unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let database = program.database();
        let back = async {
            while sqlx::query("select from sonde.events")
                .execute(&database)
                .await
                .is_err()
                || program.postmaster() == Some(first)
            {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        tokio::time::timeout(PATIENCE, back).await.expect("it comes back");
    });
    program.stop();
}

#[test]
fn both_killed_at_once_come_back() {
    let dir = directory();
    let program = Program::start(dir.path());
    let first = program.postmaster().unwrap();
    kill(first, Signal::SIGKILL).unwrap();
    program.kill();
    let program = Program::start(dir.path());
    assert_eq!(program.get("/-/ready").0, 200);
    program.stop();
}

/// What a collector's spool does: keeps all that is not acknowledged, and sends it again on every connection.
struct Spool {
    /// Sequences 1 to this were made.
    made: u64,
    acked: watch::Sender<u64>,
}

const EVENTS: u64 = 5;

impl Spool {
    fn acked(&self) -> u64 {
        *self.acked.borrow()
    }

    fn batch(sequence: u64) -> v1::Up {
        let events = (0..EVENTS).map(|n| v1::Event {
            time_ns: now_ns(),
            probe: 1,
            r#type: 2,
            // Which event of all this is.
            latency_ns: Some(sequence * EVENTS + n),
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
    async fn stream(&mut self, program: &Program, until: Option<u64>) {
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
                    permit.send(Self::batch(next));
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
}

#[test]
fn kill_9_under_load_leaves_every_event_exactly_once() {
    let dir = directory();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let mut spool = Spool {
        made: 0,
        acked: watch::Sender::new(0),
    };
    for round in 0..5_u64 {
        let program = Program::start(dir.path());
        let mut acked = spool.acked.subscribe();
        runtime.block_on(async {
            let (pid, postmaster) = (program.pid(), program.postmaster().unwrap());
            let goal = *acked.borrow() + 20 * (round + 1);
            let killer = async {
                // In the middle of things: batches are in every place between the wire and the disk.
                acked.wait_for(|acked| *acked >= goal).await.unwrap();
                // Sometimes the database goes first, and the aggregator while it is away.
                if round % 2 == 1 {
                    kill(postmaster, Signal::SIGKILL).unwrap();
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
                kill(pid, Signal::SIGKILL).unwrap();
            };
            let both = async { tokio::join!(spool.stream(&program, None), killer) };
            tokio::time::timeout(PATIENCE, both).await.expect("a round ends");
        });
        program.reap();
    }
    let program = Program::start(dir.path());
    let until = spool.made;
    let (events, distinct, highest) = runtime.block_on(async {
        while spool.acked() < until {
            spool.stream(&program, Some(until)).await;
        }
        let sql = "select count(*), count(distinct latency_ns), max(latency_ns) from sonde.events";
        sqlx::query_as::<_, (i64, i64, i64)>(sql)
            .fetch_one(&program.database())
            .await
            .unwrap()
    });
    let expected = (until * EVENTS) as i64;
    assert_eq!(
        (events, distinct, highest),
        (expected, expected, expected + EVENTS as i64 - 1)
    );
    program.stop();
}
