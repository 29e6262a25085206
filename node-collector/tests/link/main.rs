//! The spool and the client against an aggregator of this process that does what it is told.

mod disk;
mod several;

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use sonde_collector::event::{Event, Gap, Observation, Subject};
use sonde_collector::gaps::GapLog;
use sonde_collector::pods::PodIndex;
use sonde_collector::ship::client::{Client, Link};
use sonde_collector::ship::spool::{Contents, Lane, Spool};
use sonde_collector::ship::writer::{Shipper, Writer};
use sonde_common::shutdown;
use sonde_common::time::now_ns;
use sonde_proto::v1::ingest_server::{Ingest, IngestServer};
use sonde_proto::v1::{Ack, BatchBody, Down, Hello, HelloAck, Up, down, up};
use sonde_proto::{body, gap, poison};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::{Request, Response, Status, Streaming};

/// What the aggregator does with the next batches; when there is nothing left it acks.
#[derive(Clone, Debug)]
enum Answer {
    Ack,
    /// Takes it and says nothing.
    Keep,
    /// Ends the stream without storing the batch.
    Break,
    Refuse(u64),
}

#[derive(Debug, Default)]
struct Store {
    hellos: Vec<Hello>,
    durable: u64,
    /// Everything that came over the wire.
    seen: Vec<u64>,
    /// What was stored, once each.
    stored: Vec<(u64, BatchBody)>,
    script: VecDeque<Answer>,
}

#[derive(Clone, Default)]
struct Aggregator(Arc<Mutex<Store>>);

#[tonic::async_trait]
impl Ingest for Aggregator {
    type StreamStream = ReceiverStream<Result<Down, Status>>;

    async fn stream(&self, request: Request<Streaming<Up>>) -> Result<Response<Self::StreamStream>, Status> {
        let (sender, receiver) = mpsc::channel(64);
        let store = Arc::clone(&self.0);
        tokio::spawn(async move {
            if let Err(status) = talk(store, request.into_inner(), &sender).await {
                let _ = sender.send(Err(status)).await;
            }
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }
}

async fn talk(
    store: Arc<Mutex<Store>>,
    mut inbound: Streaming<Up>,
    outbound: &mpsc::Sender<Result<Down, Status>>,
) -> Result<(), Status> {
    let say = async |message| {
        outbound
            .send(Ok(Down { message: Some(message) }))
            .await
            .map_err(|_| Status::cancelled("gone"))
    };
    let Some(up::Message::Hello(hello)) = inbound.message().await?.and_then(|up| up.message) else {
        return Err(Status::failed_precondition("hello first"));
    };
    let durable_sequence = {
        let mut store = store.lock();
        store.hellos.push(hello);
        store.durable
    };
    say(down::Message::HelloAck(HelloAck { durable_sequence })).await?;
    while let Some(up) = inbound.message().await? {
        let Some(up::Message::Batch(batch)) = up.message else {
            return Err(Status::failed_precondition("batches only"));
        };
        let answer = {
            let mut store = store.lock();
            store.seen.push(batch.sequence);
            let answer = store.script.pop_front().unwrap_or(Answer::Ack);
            if let Answer::Ack | Answer::Keep = answer
                && batch.sequence > store.durable
            {
                let body = body::decode(&batch.body).map_err(|e| Status::internal(e.to_string()))?;
                store.stored.push((batch.sequence, body));
                store.durable = batch.sequence;
            }
            answer
        };
        match answer {
            Answer::Ack => {
                say(down::Message::Ack(Ack {
                    sequence: batch.sequence,
                }))
                .await?
            }
            Answer::Keep => {}
            Answer::Break => return Err(Status::unavailable("restarting")),
            Answer::Refuse(sequence) => return Err(poison::status(sequence, "I do not like it")),
        }
    }
    Ok(())
}

fn serve(listener: TcpListener, store: &Arc<Mutex<Store>>) -> tokio::task::JoinHandle<()> {
    let service = IngestServer::new(Aggregator(Arc::clone(store)));
    tokio::spawn(async move {
        let server = tonic::transport::Server::builder();
        let incoming = TcpListenerStream::new(listener);
        let _ = server.serve_with_incoming(service, incoming).await;
    })
}

/// A collector without probes, against an aggregator.
struct Rig {
    dir: PathBuf,
    _temporary: Option<tempfile::TempDir>,
    boot: &'static str,
    store: Arc<Mutex<Store>>,
    addresses: Vec<SocketAddr>,
    link: Arc<Link>,
    running: Option<Running>,
}

struct Running {
    spool: Arc<Spool>,
    writer: Writer,
    shipper: Shipper,
    interval_ns: watch::Sender<u64>,
    gaps: Arc<GapLog>,
    end: shutdown::Trigger,
    client: tokio::task::JoinHandle<()>,
}

impl Rig {
    async fn new(script: impl IntoIterator<Item = Answer>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut rig = Self::at(dir.path().to_owned(), script).await;
        rig._temporary = Some(dir);
        rig
    }

    /// With the spool there.
    async fn at(dir: PathBuf, script: impl IntoIterator<Item = Answer>) -> Self {
        let store = Arc::new(Mutex::new(Store::default()));
        store.lock().script = script.into_iter().collect();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        serve(listener, &store);
        Self::with(dir, store, vec![address])
    }

    fn with(dir: PathBuf, store: Arc<Mutex<Store>>, addresses: Vec<SocketAddr>) -> Self {
        let mut rig = Self {
            dir,
            _temporary: None,
            boot: "boot",
            store,
            addresses,
            link: Arc::default(),
            running: None,
        };
        rig.start();
        rig
    }

    fn start(&mut self) {
        let (spool, recovery) = Spool::open(&self.dir, 1 << 20, self.boot).unwrap();
        let spool = Arc::new(spool);
        let gaps = Arc::new(GapLog::default());
        let (writer, shipper) = Writer::start(
            Arc::clone(&spool),
            Arc::new(PodIndex::default()),
            Arc::clone(&gaps),
            recovery,
        )
        .unwrap();
        let hello = Hello {
            node: "n".into(),
            epoch: spool.epoch().as_bytes().to_vec(),
            ..Hello::default()
        };
        let targets: Vec<_> = self
            .addresses
            .iter()
            .map(|address| format!("http://{address}"))
            .collect();
        let client = Client::new(
            &targets,
            hello,
            Arc::clone(&spool),
            Arc::clone(&self.link),
            shipper.clone(),
        )
        .unwrap();
        let interval_ns = watch::Sender::new(5);
        let client = client.following(interval_ns.subscribe());
        let (end, ends) = shutdown::channel();
        let client = tokio::spawn(client.run(ends));
        self.running = Some(Running {
            spool,
            writer,
            shipper,
            interval_ns,
            gaps,
            end,
            client,
        });
    }

    fn running(&self) -> &Running {
        self.running.as_ref().unwrap()
    }

    /// As a kill would: the client is cut off; what the writer was given is on disk or is not.
    async fn kill(&mut self) {
        let running = self.running.take().unwrap();
        running.client.abort();
        let _ = running.client.await;
        tokio::task::spawn_blocking(move || running.writer.stop())
            .await
            .unwrap();
    }

    /// One event with this port, and a batch of its own for it.
    async fn event(&self, port: u16) {
        self.event_with(port, now_ns(), "").await;
    }

    /// With a text to make it long.
    async fn event_with(&self, port: u16, time_ns: u64, text: &str) {
        let turns = |rig: &Self| {
            let stats = rig.running().spool.stats();
            (stats.next_sequence, stats.write_errors)
        };
        let before = turns(self);
        let observation = Observation {
            probe: "packetloss",
            kind: "PACKETLOSS",
            sport: Some(port),
            attributes: vec![("text", text.into())],
            ..Observation::default()
        };
        let event = Event {
            time_ns,
            subject: Subject::Node,
            peer: None,
            observation,
        };
        self.running().shipper.events(vec![event]);
        self.until("batch in the spool, or refused by the disk", |rig| turns(rig) != before)
            .await;
    }

    async fn until(&self, what: &str, condition: impl Fn(&Self) -> bool) {
        let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
        while !condition(self) {
            assert!(
                tokio::time::Instant::now() < deadline,
                "{what}: {} batches stored, {:?}",
                self.store.lock().stored.len(),
                self.running().spool.stats()
            );
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    fn stored_ports(&self) -> Vec<u32> {
        self.store
            .lock()
            .stored
            .iter()
            .flat_map(|(_, body)| &body.events)
            .map(|event| event.sport)
            .collect()
    }

    /// Where a refused batch is once that is told.
    fn aside(&self, sequence: u64) -> PathBuf {
        let epoch = self.running().spool.epoch();
        self.dir
            .join(format!("poison/{sequence:016x}-{}.batch", epoch.simple()))
    }

    fn stored_gaps(&self) -> Vec<String> {
        let store = self.store.lock();
        store
            .stored
            .iter()
            .flat_map(|(_, body)| &body.gaps)
            .map(|gap| gap.cause.clone())
            .collect()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn batches_arrive_once_and_in_order_and_leave_the_spool() {
    let rig = Rig::new([]).await;
    for port in 1..=5 {
        rig.event(port).await;
    }
    rig.until("all stored", |rig| rig.stored_ports().len() == 5).await;
    assert_eq!(rig.stored_ports(), [1, 2, 3, 4, 5]);
    rig.until("all acked", |rig| rig.running().spool.is_drained()).await;
    let store = rig.store.lock();
    assert_eq!(store.seen, (1..=store.seen.len() as u64).collect::<Vec<_>>());
    assert_eq!(store.hellos.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn another_interval_is_told_with_another_hello_and_nothing_is_stored_twice() {
    let rig = Rig::new([Answer::Keep]).await;
    rig.event(1).await;
    rig.until("the first stored", |rig| rig.stored_ports().len() == 1).await;
    rig.running().interval_ns.send_replace(9);
    rig.until("a second hello", |rig| rig.store.lock().hellos.len() == 2)
        .await;
    rig.event(2).await;
    rig.until("both stored", |rig| rig.stored_ports().len() == 2).await;
    assert_eq!(rig.stored_ports(), [1, 2]);
    let told: Vec<_> = rig.store.lock().hellos.iter().map(|hello| hello.interval_ns).collect();
    assert_eq!(told, [0, 9]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_not_acked_is_sent_again_and_stored_once() {
    // The first is stored but its ack is lost with the stream; the second never arrives.
    let rig = Rig::new([Answer::Keep, Answer::Break]).await;
    for port in 1..=3 {
        rig.event(port).await;
    }
    rig.until("all stored", |rig| rig.stored_ports().len() == 3).await;
    assert_eq!(rig.stored_ports(), [1, 2, 3]);
    assert!(rig.store.lock().hellos.len() >= 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_collector_sends_the_rest_after_its_start() {
    let mut rig = Rig::new(std::iter::repeat_n(Answer::Keep, 2)).await;
    rig.event(1).await;
    rig.event(2).await;
    rig.until("both stored", |rig| rig.stored_ports().len() == 2).await;
    rig.kill().await;
    let epoch = rig.store.lock().hellos[0].epoch.clone();
    // While it was away, the aggregator lost the second one with a database put back to an older state.
    let first = {
        let mut store = rig.store.lock();
        store.stored.truncate(1);
        store.durable = store.stored[0].0;
        store.durable
    };
    rig.start();
    rig.event(3).await;
    rig.until("all stored", |rig| rig.stored_ports().len() == 3).await;
    assert_eq!(rig.stored_ports(), [1, 2, 3]);
    assert_eq!(rig.store.lock().hellos.last().unwrap().epoch, epoch);
    assert!(rig.store.lock().stored[1].0 > first);
    rig.until("the time without a collector is told", |rig| {
        rig.stored_gaps().contains(&gap::COLLECTOR_DOWN.into())
    })
    .await;
    rig.until("acked", |rig| rig.running().spool.is_drained()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_batch_is_set_aside_and_the_rest_goes_on() {
    let rig = Rig::new([]).await;
    rig.event(1).await;
    rig.until("first stored", |rig| rig.stored_ports() == [1]).await;
    let refused = rig.running().spool.stats().next_sequence;
    // Refused each time it comes: it must not come again.
    rig.store.lock().script = [Answer::Refuse(refused)].into();
    rig.event(2).await;
    rig.until("refused", |rig| {
        rig.link.poison.load(std::sync::atomic::Ordering::Relaxed) == 1
    })
    .await;
    rig.event(3).await;
    rig.until("gap told", |rig| rig.stored_gaps().contains(&gap::POISON_BATCH.into()))
        .await;
    rig.until("third stored", |rig| rig.stored_ports() == [1, 3]).await;
    let aside = rig.aside(refused);
    rig.until("noted", |_| aside.exists()).await;
    let body = body::decode(&std::fs::read(aside).unwrap()).unwrap();
    assert_eq!(body.events[0].sport, 2);
    let told = rig.running().gaps.newest();
    let told = told.iter().find(|gap| gap.cause == gap::POISON_BATCH).unwrap();
    assert_eq!(
        (told.count, told.detail.as_str()),
        (1, format!("batch {refused}: I do not like it").as_str())
    );
    rig.until("acked", |rig| rig.running().spool.is_drained()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_of_something_never_sent_sets_nothing_aside() {
    let rig = Rig::new([Answer::Refuse(999)]).await;
    rig.event(1).await;
    rig.until("stored after all", |rig| rig.stored_ports() == [1]).await;
    assert!(!rig.dir.join("poison").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn producers_never_wait_for_the_aggregator() {
    // Nothing is acked: the window fills and the rest waits on disk.
    let rig = Rig::new(std::iter::repeat_n(Answer::Keep, 100_000)).await;
    let payload = body::encode(&BatchBody::default());
    for _ in 0..200 {
        rig.running()
            .spool
            .append(Lane::Events, Contents::default(), &payload)
            .0
            .unwrap();
    }
    rig.until("window full", |rig| rig.store.lock().seen.len() >= 64).await;
    let gap = Gap {
        probe: "",
        cause: gap::READ_FAILED,
        from_ns: now_ns(),
        to_ns: now_ns(),
        count: 0,
        subject: Subject::Node,
        detail: String::new(),
    };
    rig.running().shipper.gaps(vec![gap]);
    assert_eq!(rig.store.lock().seen.len(), 64, "no more than the window is on its way");
    assert!(rig.running().spool.stats().frames >= 200);
    rig.running().end.fire();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_that_was_refused_is_not_sent_again_by_the_next_process() {
    let mut rig = Rig::new([]).await;
    rig.event(1).await;
    rig.until("first acked", |rig| {
        rig.stored_ports() == [1] && rig.running().spool.is_drained()
    })
    .await;
    let refused = rig.running().spool.stats().next_sequence;
    // Nothing behind it arrives, so that no ack covers it.
    let script = std::iter::repeat_n(Answer::Break, 1000);
    rig.store.lock().script = std::iter::once(Answer::Refuse(refused)).chain(script).collect();
    rig.event(2).await;
    let aside = rig.aside(refused);
    rig.until("told", |_| aside.exists()).await;
    rig.kill().await;
    rig.store.lock().script.clear();
    rig.start();
    rig.event(3).await;
    rig.until("third stored", |rig| rig.stored_ports() == [1, 3]).await;
    rig.until("acked", |rig| rig.running().spool.is_drained()).await;
    let times = rig.store.lock().seen.iter().filter(|seen| **seen == refused).count();
    assert_eq!(times, 1);
    let gaps = rig.stored_gaps();
    let told = gaps.iter().filter(|cause| *cause == gap::POISON_BATCH).count();
    assert_eq!(told, 1, "{gaps:?}");
}

const SECOND: u64 = 1_000_000_000;

/// The clock of this machine is not set: it says that it has been 1970 for five seconds.
fn unset_clock(rig: &Rig) {
    let since_boot = nix::time::clock_gettime(nix::time::ClockId::CLOCK_BOOTTIME).unwrap();
    let since_boot = Duration::from(since_boot).as_nanos() as i64;
    let offset_ns = 5 * SECOND as i64 - since_boot;
    rig.running().spool.clock_is_unset(offset_ns).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_stamped_before_the_clock_was_set_is_stored_with_the_time_that_it_was() {
    let mut rig = Rig::new(std::iter::repeat_n(Answer::Break, 1000)).await;
    let before = now_ns();
    unset_clock(&rig);
    rig.event_with(1, 3 * SECOND, "").await;
    rig.running().shipper.gaps(vec![Gap {
        probe: "",
        cause: gap::CLOCK_STEP,
        from_ns: 5 * SECOND,
        to_ns: now_ns(),
        count: 0,
        subject: Subject::Node,
        detail: "the clock was set".into(),
    }]);
    // Also by the next process, which has never seen the clock as it was.
    rig.kill().await;
    rig.store.lock().script.clear();
    rig.start();
    rig.event(2).await;
    rig.until("both stored", |rig| rig.stored_ports() == [1, 2]).await;
    rig.until("acked", |rig| rig.running().spool.is_drained()).await;
    let store = rig.store.lock();
    let bodies = || store.stored.iter().map(|(_, body)| body);
    let event = bodies().flat_map(|body| &body.events).next().unwrap();
    // Two seconds before the five.
    assert!(
        (before - 2 * SECOND).abs_diff(event.time_ns) < SECOND / 2,
        "{before} {}",
        event.time_ns
    );
    let mut steps = bodies()
        .flat_map(|body| &body.gaps)
        .filter(|gap| gap.cause == gap::CLOCK_STEP);
    let step = steps.next().unwrap();
    assert!(
        step.from_ns >= before - SECOND && step.from_ns <= step.to_ns,
        "{step:?}"
    );
    assert_eq!((steps.count(), store.seen.len() as u64 > 2), (0, true));
}

#[tokio::test(flavor = "multi_thread")]
async fn of_what_an_earlier_boot_stamped_before_the_clock_was_set_a_gap_tells() {
    let mut rig = Rig::new(std::iter::repeat_n(Answer::Break, 1000)).await;
    unset_clock(&rig);
    rig.event_with(1, 3 * SECOND, "").await;
    rig.kill().await;
    rig.store.lock().script.clear();
    rig.boot = "another";
    rig.start();
    rig.event(2).await;
    rig.until("the second one stored", |rig| rig.stored_ports() == [2])
        .await;
    rig.until("a gap told", |rig| rig.stored_gaps().contains(&gap::CLOCK_STEP.into()))
        .await;
    rig.until("acked", |rig| rig.running().spool.is_drained()).await;
    let store = rig.store.lock();
    let gaps = || store.stored.iter().flat_map(|(_, body)| &body.gaps);
    let told = gaps().find(|gap| gap.cause == gap::CLOCK_STEP).unwrap();
    assert_eq!(told.count, 1, "{told:?}");
    let earliest = sonde_proto::limits::EARLIEST_NS;
    assert!(
        gaps().all(|gap| gap.from_ns >= earliest && gap.from_ns <= gap.to_ns),
        "the aggregator takes no others"
    );
}
