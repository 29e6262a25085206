//! Lines of every type of event, files on real disks, and a server that reads what Loki reads.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use nix::mount::{MsFlags, mount, umount};
use sonde_common::config::FileSink;
use sonde_push::Target as _;
use sonde_push::testing::{Answer, Server};

use super::*;
use crate::event::{Direction, Observation};
use crate::gaps::GapLog;
use crate::pods::{Pod, PodIndex};
use crate::probes;
use crate::ship::spool::Spool;
use crate::ship::writer::Writer;

const AT_NS: u64 = 1_700_000_000_123_456_789;

fn pod(namespace: &str, name: &str, workload: &str) -> Arc<Pod> {
    Arc::new(Pod {
        sandbox: format!("{namespace}/{name}"),
        namespace: namespace.into(),
        name: name.into(),
        workload: workload.into(),
        ..Pod::default()
    })
}

/// An event of that type with what such an event has.
fn event_of(probe: &'static str, kind: &'static str) -> Event {
    let word = |text: &str| Some(Arc::from(text));
    let connection = Observation {
        probe,
        kind,
        protocol: word("TCP"),
        saddr: Some("10.0.0.1".parse().unwrap()),
        sport: Some(40_000),
        daddr: Some("10.0.0.2".parse().unwrap()),
        dport: Some(80),
        direction: Direction::Ingress,
        cpu: Some(1),
        stack: ["kfree_skb+0xa3", "ip_rcv+0xe"].map(Arc::from).into(),
        ..Observation::default()
    };
    let slow = Observation {
        latency_ns: Some(12_345_678),
        ..connection.clone()
    };
    let node_wide = Observation {
        probe,
        kind,
        latency_ns: Some(123_456_789),
        cpu: Some(0),
        pid: Some(7),
        comm: word("a \"task\"=1"),
        ..Observation::default()
    };
    let of_pod = Subject::Pod(pod("shop", "cart-0", "cart"));
    let (subject, observation) = match probe {
        "packetloss" => (
            of_pod,
            Observation {
                reason: word("NO_SOCKET"),
                interface: word("eth0"),
                suppressed: 3,
                attributes: vec![("location", "tcp_v4_rcv+0x1f".into()), ("length", "60".into())],
                ..connection
            },
        ),
        "tcpreset" => (
            of_pod,
            Observation {
                saddr: Some("fd00::1".parse().unwrap()),
                daddr: Some("fd00::2".parse().unwrap()),
                state: word("TCP_ESTABLISHED"),
                reason: word("NOT_SPECIFIED"),
                ..connection
            },
        ),
        "net_softirq" | "virtcmdlatency" => (Subject::Node, node_wide),
        "netiftxlat" => (
            Subject::Unknown,
            Observation {
                interface: word("eth0"),
                ..slow
            },
        ),
        _ => (of_pod, slow),
    };
    let peer = matches!(probe, "packetloss" | "tcpreset").then(|| match probe {
        "packetloss" => Subject::Pod(pod("shop", "web-0", "")),
        _ => Subject::Node,
    });
    Event {
        time_ns: AT_NS,
        subject,
        peer,
        observation,
    }
}

/// One of each type that any probe has.
fn all() -> Vec<Event> {
    let specs = probes::specs();
    let types = specs
        .iter()
        .flat_map(|spec| spec.event_types.iter().map(|kind| (spec.name, kind.name)));
    types.map(|(probe, kind)| event_of(probe, kind)).collect()
}

fn format(form: EventFormat) -> Format {
    Format {
        node: "node-1".into(),
        form,
    }
}

fn assert_golden(name: &str, text: &str) {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures/events")
        .join(name);
    if std::env::var_os("SONDE_GOLDEN").is_some_and(|v| v == "write") {
        fs::create_dir_all(golden.parent().unwrap()).unwrap();
        fs::write(&golden, text).unwrap();
    }
    let expected = fs::read_to_string(&golden).unwrap();
    for (line, (is, should)) in text.lines().zip(expected.lines()).enumerate() {
        assert_eq!(is, should, "{}:{}", golden.display(), line + 1);
    }
    assert_eq!(text.lines().count(), expected.lines().count(), "{}", golden.display());
}

#[test]
fn every_type_of_event_has_its_line() {
    let events = all();
    for kind in [
        "PACKETLOSS",
        "TCPRESET_NOSOCK",
        "TCPRESET_PROCESS",
        "TCPRESET_ACTIVE",
        "TCPRESET_RECEIVE",
        "TCPRETRANS",
        "SOCKETLAT_READSLOW",
        "SOCKETLAT_SENDSLOW",
        "RXKERNEL_SLOW",
        "TXKERNEL_SLOW",
        "NETIFTXLAT_QDISC",
        "NETIFTXLAT_XMIT",
        "NETSOFTIRQ_SCHED_SLOW",
        "NETSOFTIRQ_EXCUTE_SLOW",
        "NETSOFTIRQ_SCHED_100MS",
        "NETSOFTIRQ_EXCUTE_100MS",
        "VIRTCMDEXCUTE",
        "VIRTCMDEXCUTE_100MS",
    ] {
        assert!(events.iter().any(|event| event.observation.kind == kind), "{kind}");
    }
    let lines = |form| -> String {
        let format = format(form);
        events.iter().map(|event| format.line(event) + "\n").collect()
    };
    assert_golden("lines.txt", &lines(EventFormat::Text));
    assert_golden("lines.jsonl", &lines(EventFormat::Json));
}

#[test]
fn a_line_that_stands_alone_has_its_time() {
    let event = event_of("packetloss", "PACKETLOSS");
    let text = format(EventFormat::Text).dated_line(&event);
    assert!(
        text.starts_with("2023-11-14T22:13:20.123456Z type=PACKETLOSS pod=cart-0 "),
        "{text}"
    );
    let json = format(EventFormat::Json);
    assert_eq!(json.dated_line(&event), json.line(&event), "which has it anyway");
}

fn shared(ports: std::ops::Range<u16>) -> Arc<[Shared]> {
    let mut event = event_of("packetloss", "PACKETLOSS");
    ports
        .map(|port| {
            event.observation.sport = Some(port);
            Shared(Arc::new(event.clone()))
        })
        .collect()
}

/// The source ports of a file's lines, each a whole line.
fn ports(path: &Path) -> Vec<u16> {
    let text = fs::read_to_string(path).unwrap_or_default();
    assert!(
        text.is_empty() || text.ends_with('\n'),
        "a torn line in {}",
        path.display()
    );
    let port = |line: &str| {
        serde_json::from_str::<serde_json::Value>(line).unwrap()["sport"]
            .as_u64()
            .unwrap() as u16
    };
    text.lines().map(port).collect()
}

fn sink(path: PathBuf, max_bytes: u64, keep: u32) -> (file::Rotated, Arc<AtomicBool>) {
    let reopen = Arc::new(AtomicBool::new(false));
    let settings = FileSink {
        path,
        max_bytes,
        keep,
        format: EventFormat::Json,
    };
    let sink = file::Rotated::new(&settings, format(EventFormat::Json), Arc::clone(&reopen));
    (sink, reopen)
}

#[tokio::test]
async fn a_file_is_rotated_by_size_and_the_oldest_goes() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("new/events.log");
    let line = format(EventFormat::Json).line(&shared(10_000..10_001)[0].0).len() as u64 + 1;
    // Room for three lines.
    let (mut sink, _) = sink(path.clone(), 3 * line + 1, 2);
    assert_eq!(sink.send(&shared(10_000..10_002), 0).await, sonde_push::Outcome::Sent);
    assert_eq!(ports(&path), [10_000, 10_001]);
    assert_eq!(sink.send(&shared(10_002..10_011), 0).await, sonde_push::Outcome::Sent);
    let older = |number| ports(&file_of(&path, number));
    assert_eq!(ports(&path), [10_009, 10_010]);
    assert_eq!(older(1), [10_006, 10_007, 10_008]);
    assert_eq!(older(2), [10_003, 10_004, 10_005]);
    assert!(!file_of(&path, 3).exists(), "two are kept");
    // A line that is larger than a file may be has one of its own.
    let (mut small, _) = self::sink(path.clone(), line - 1, 1);
    assert_eq!(small.send(&shared(20_000..20_002), 0).await, sonde_push::Outcome::Sent);
    assert_eq!((ports(&path), older(1)), (vec![20_001], vec![20_000]));
}

fn file_of(path: &Path, number: u32) -> PathBuf {
    path.with_file_name(format!("{}.{number}", path.file_name().unwrap().to_str().unwrap()))
}

#[tokio::test]
async fn a_file_that_was_renamed_is_written_until_it_is_said_and_one_that_was_removed_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("events.log");
    let (mut sink, reopen) = sink(path.clone(), 0, 1);
    let rotated = dir.path().join("events.log-1");
    sink.send(&shared(1..2), 0).await;
    fs::rename(&path, &rotated).unwrap();
    sink.send(&shared(2..3), 0).await;
    assert_eq!(ports(&rotated), [1, 2]);
    reopen.store(true, Ordering::Relaxed);
    sink.send(&shared(3..4), 0).await;
    assert_eq!((ports(&rotated), ports(&path)), (vec![1, 2], vec![3]));
    fs::remove_file(&path).unwrap();
    sink.send(&shared(4..5), 0).await;
    assert_eq!(ports(&path), [4]);
    // logrotate's `copytruncate`.
    fs::File::options().write(true).open(&path).unwrap().set_len(0).unwrap();
    sink.send(&shared(5..6), 0).await;
    assert_eq!(ports(&path), [5]);
}

#[tokio::test]
async fn what_is_no_file_is_said_and_not_waited_for() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("pipe");
    nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let (mut sink, _) = sink(path, 0, 1);
    let sonde_push::Outcome::Retry { done: 0, why, .. } = sink.send(&shared(1..2), 0).await else {
        panic!("a pipe was taken for a file");
    };
    assert!(why.ends_with("pipe: it is no regular file"), "{why}");
}

/// A file system with little room, for as long as it lives.
struct Tiny(tempfile::TempDir);

impl Tiny {
    fn new(size: &str) -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let options = format!("size={size}");
        match mount(
            Some("tmpfs"),
            dir.path(),
            Some("tmpfs"),
            MsFlags::empty(),
            Some(options.as_str()),
        ) {
            Ok(()) => Some(Self(dir)),
            Err(error) => {
                println!("SKIPPED: no tmpfs: {error}");
                None
            }
        }
    }
}

impl Drop for Tiny {
    fn drop(&mut self) {
        let _ = umount(self.0.path());
    }
}

#[tokio::test]
async fn a_full_disk_tears_no_line_and_doubles_none() {
    let Some(tiny) = Tiny::new("64k") else { return };
    let path = tiny.0.path().join("events.log");
    let ballast = tiny.0.path().join("ballast");
    fs::write(&ballast, vec![0; 40 << 10]).unwrap();
    let (mut sink, _) = sink(path.clone(), 0, 1);
    let batch = shared(1..61);
    let sonde_push::Outcome::Retry { done, why, .. } = sink.send(&batch, 0).await else {
        panic!("the disk is not full");
    };
    assert!(why.contains("events.log: No space left on device"), "{why}");
    assert_eq!(ports(&path).len(), done, "what is there is what was said to be");
    fs::remove_file(&ballast).unwrap();
    assert_eq!(sink.send(&batch, done).await, sonde_push::Outcome::Sent);
    assert_eq!(ports(&path), (1..61).collect::<Vec<_>>());
}

/// A spool, its writer, and sinks that hand their gaps to it.
struct Site {
    gaps: Arc<GapLog>,
    sinks: Sinks,
    _writer: Writer,
    dir: tempfile::TempDir,
}

fn site(change: impl FnOnce(&Path, &mut config::Sinks)) -> Site {
    let dir = tempfile::tempdir().unwrap();
    let (spool, recovery) = Spool::open(&dir.path().join("spool"), 1 << 20, "boot").unwrap();
    let gaps = Arc::new(GapLog::default());
    let index = Arc::new(PodIndex::default());
    let (writer, shipper) = Writer::start(Arc::new(spool), index, Arc::clone(&gaps), recovery).unwrap();
    let mut settings = config::Sinks::default();
    change(dir.path(), &mut settings);
    Site {
        gaps,
        sinks: Sinks::start(&settings, "node-1", shipper).unwrap(),
        _writer: writer,
        dir,
    }
}

async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let waited = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), waited)
        .await
        .unwrap_or_else(|_| panic!("{what}"));
}

impl Site {
    fn status(&self, name: &str) -> SinkStatus {
        self.sinks.status().into_iter().find(|sink| sink.name == name).unwrap()
    }

    fn sent(&self, name: &str) -> u64 {
        self.status(name).state.sent
    }

    /// What gaps of sinks count.
    fn missing(&self) -> u64 {
        self.sinks.tell_losses();
        let counts = self.gaps.counts();
        counts.iter().find(|(cause, ..)| *cause == gap::SINK_LOST).unwrap().2
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_sink_gets_every_event_and_a_change_loses_none() {
    let server = Server::start([], None).await.unwrap();
    let url = format!("http://{}", server.address);
    let site = site(|dir, settings| {
        settings.file.path = dir.join("a.log");
        settings.loki.url.clone_from(&url);
        settings.loki.linger = sonde_common::time::Span(Duration::from_millis(20));
        settings.loki.tenant = "team".into();
        settings
            .loki
            .labels
            .insert("type".into(), "${type}-${namespace}".into());
    });
    site.sinks.events(&all());
    let count = all().len() as u64;
    until("the file", || site.sent("file") == count).await;
    until("loki", || site.sent("loki") == count).await;
    let received = server.received();
    assert!(received.iter().all(|one| one.header("x-scope-orgid") == "team"));
    let streams: Vec<_> = received.iter().flat_map(|one| one.loki().unwrap().streams).collect();
    let drops = streams
        .iter()
        .find(|stream| stream.labels.contains("PACKETLOSS"))
        .unwrap();
    assert_eq!(
        drops.labels,
        r#"{instance="node-1", job="kubeskoop", type="PACKETLOSS-shop"}"#
    );
    let at = drops.entries[0].timestamp.unwrap();
    assert_eq!(at.seconds as u64 * 1_000_000_000 + at.nanos as u64, AT_NS);
    assert!(
        drops.entries[0]
            .line
            .starts_with("type=PACKETLOSS pod=cart-0 namespace=shop protocol=TCP ")
    );

    let mut settings = site.sinks.settings.lock().clone();
    settings.file.path = site.dir.path().join("b.log");
    site.sinks.apply(&settings).await.unwrap();
    site.sinks.events(&all());
    until("the other file", || site.sent("file") == 2 * count).await;
    for name in ["a.log", "b.log"] {
        let text = fs::read_to_string(site.dir.path().join(name)).unwrap();
        assert_eq!(text.lines().count() as u64, count, "{name}");
    }
    let mut bad = settings.clone();
    bad.loki.url = "nowhere".into();
    bad.file.path = site.dir.path().join("c.log");
    let error = site.sinks.apply(&bad).await.unwrap_err().to_string();
    assert!(error.starts_with("sinks.loki.url: `nowhere`: expected"), "{error}");
    site.sinks.events(&all());
    until("as before", || site.sent("file") == 3 * count).await;
    assert!(!site.dir.path().join("c.log").exists());
    settings.loki.url.clear();
    site.sinks.apply(&settings).await.unwrap();
    let off = site.status("loki");
    assert_eq!((off.on, off.state.sent), (false, 3 * count), "counters stay");
    assert_eq!(site.missing(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_sink_cannot_deliver_becomes_a_gap_and_holds_up_no_other() {
    let server = Server::start([Answer::Http("400 Bad Request\r\n", "too old"), Answer::Hang], None)
        .await
        .unwrap();
    let site = site(|dir, settings| {
        settings.queue = 30;
        settings.file.path = dir.join("a.log");
        settings.loki.url = format!("http://{}", server.address);
        settings.loki.linger = sonde_common::time::Span(Duration::from_millis(1));
    });
    let one = [event_of("packetloss", "PACKETLOSS")];
    site.sinks.events(&one);
    until("the refusal", || site.missing() == 1).await;
    let told = site.gaps.newest();
    let told = told.iter().find(|gap| gap.cause == gap::SINK_LOST).unwrap();
    assert_eq!(told.detail, "sink loki: they were refused: 400 Bad Request: too old");
    assert_eq!(told.from, "2023-11-14T22:13:20.123456Z");
    site.sinks.events(&one);
    until("the request that hangs", || server.received().len() == 2).await;
    for sent in 0..100 {
        until("the file", || site.sent("file") >= sent + 2).await;
        site.sinks.events(&one);
    }
    until("the file", || site.sent("file") == 102).await;
    let loki = site.status("loki");
    assert_eq!((loki.queued, loki.state.dropped[Reason::Full as usize]), (30, 70));
    site.sinks.end().await;
    until("all that was lost", || site.missing() == 102).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn standard_error_gets_whole_lines() {
    let (reader, writer) = std::io::pipe().unwrap();
    let mut sink = stderr::Stderr::to(writer, format(EventFormat::Text));
    let lines = std::thread::spawn(move || {
        let mut lines = BufReader::new(reader).lines().map(Result::unwrap);
        (lines.next().unwrap(), lines.next().unwrap())
    });
    assert_eq!(sink.send(&shared(1..3), 0).await, sonde_push::Outcome::Sent);
    let (first, second) = lines.join().unwrap();
    assert!(
        first.contains(" type=PACKETLOSS ") && first.contains(" sport=1 "),
        "{first}"
    );
    assert!(second.contains(" sport=2 "), "{second}");
    drop(sink);

    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let mut nobody = stderr::Stderr::to(writer, format(EventFormat::Text));
    let sonde_push::Outcome::Retry { done: 0, why, .. } = nobody.send(&shared(1..2), 0).await else {
        panic!("nobody reads it");
    };
    assert!(why.contains("Broken pipe"), "{why}");
}

#[test]
fn what_cannot_be_is_said_with_its_key_and_without_secrets() {
    let error = |change: &dyn Fn(&mut config::LokiSink)| {
        let mut settings = config::Sinks::default();
        settings.loki.url = "http://loki:3100".into();
        change(&mut settings.loki);
        check(&settings).unwrap_err().to_string()
    };
    let url = error(&|loki| loki.url = "http://me:hidden@loki".into());
    assert!(
        url.starts_with("sinks.loki.url: `...@loki`") && !url.contains("hidden"),
        "{url}"
    );
    let ca = error(&|loki| loki.ca_file = "/nonexistent.pem".into());
    assert!(ca.starts_with("sinks.loki.ca_file: `/nonexistent.pem`"), "{ca}");
    let variable = error(&|loki| loki.bearer_token_env = "SONDE_TEST_NO_SUCH".into());
    assert!(
        variable.starts_with("sinks.loki.bearer_token_env: `SONDE_TEST_NO_SUCH`: expected"),
        "{variable}"
    );
    let tenant = error(&|loki| loki.tenant = "a\nb".into());
    assert!(tenant.starts_with("sinks.loki.tenant: "), "{tenant}");
}
