use std::path::Path;

use super::*;
use crate::event::Observation;
use crate::ship::spool::Next;
use crate::ship::spool::sim::{Fault, Sim};

fn event(port: u16) -> Event {
    Event {
        time_ns: now_ns(),
        subject: Subject::Node,
        peer: None,
        observation: Observation {
            probe: "packetloss",
            kind: "PACKETLOSS",
            sport: Some(port),
            ..Observation::default()
        },
    }
}

fn open(disk: &Sim) -> (Arc<Spool>, Recovery) {
    let disk = Arc::new(disk.clone());
    let (spool, recovery) = Spool::open_on(disk, Path::new("/spool"), 1 << 20, 64 << 10, "boot").unwrap();
    (Arc::new(spool), recovery)
}

fn start(spool: &Arc<Spool>, recovery: Recovery) -> (Writer, Shipper, Arc<GapLog>) {
    let log = Arc::new(GapLog::default());
    let index = Arc::new(PodIndex::default());
    let (writer, shipper) = Writer::start(Arc::clone(spool), index, Arc::clone(&log), recovery).unwrap();
    (writer, shipper, log)
}

/// Ports of all events, and cause, count and detail of all gaps.
fn told(spool: &Spool) -> (Vec<u32>, Vec<(String, u64, String)>) {
    let mut reader = spool.reader(0);
    let (mut ports, mut gaps) = (Vec::new(), Vec::new());
    while let Next::Frame(frame) = reader.next(spool).unwrap() {
        let body = sonde_proto::body::decode(&frame.payload).unwrap();
        ports.extend(body.events.iter().map(|event| event.sport));
        gaps.extend(body.gaps.into_iter().map(|gap| (gap.cause, gap.count, gap.detail)));
    }
    (ports, gaps)
}

fn until(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !condition() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn missing(log: &GapLog) -> u64 {
    let counts = log.counts();
    counts.iter().find(|(cause, ..)| *cause == gap::SPOOL_FULL).unwrap().2
}

#[test]
fn what_a_disk_does_not_take_is_a_gap_as_soon_as_it_takes_something_again() {
    for (errno, name) in [
        (libc::ENOSPC, "No space left on device"),
        (libc::EIO, "Input/output error"),
        (libc::EROFS, "Read-only file system"),
    ] {
        let disk = Sim::default();
        let (spool, recovery) = open(&disk);
        let (writer, shipper, log) = start(&spool, recovery);
        shipper.events(vec![event(1), event(2)]);
        until("the first two written", || told(&spool).0.len() == 2);
        disk.fault(Some(Fault::Fail {
            at: 0,
            times: u64::MAX,
            errno,
            done: 400,
        }));
        for port in 3..=9 {
            shipper.events(vec![event(port)]);
            until("one more lost", || missing(&log) == u64::from(port) - 2);
        }
        let stats = spool.stats();
        assert!(stats.failing && stats.write_errors > 0 && spool.last_error().starts_with(name));
        disk.fault(None);
        until("the gap told", || !told(&spool).1.is_empty());
        shipper.events(vec![event(10)]);
        writer.stop();
        assert!(!spool.stats().failing);
        let (ports, gaps) = told(&spool);
        assert_eq!(ports, [1, 2, 10]);
        let detail = format!("events: spool cannot be written: {name} (os error {errno})");
        assert_eq!(gaps, [(gap::SPOOL_FULL.to_owned(), 7, detail)]);
    }
}

#[test]
fn gaps_that_wait_for_long_become_fewer_and_count_the_same() {
    let gap = |at: u64| Gap {
        probe: ["packetloss", "tcpreset"][at as usize % 2],
        cause: gap::RATE_LIMITED,
        from_ns: at,
        to_ns: at + 1,
        count: at,
        subject: Subject::Node,
        detail: "x".into(),
    };
    let mut gaps: Vec<Gap> = (0..KEPT_GAPS as u64).map(gap).collect();
    bound(&mut gaps);
    assert_eq!(gaps.len(), KEPT_GAPS);
    gaps.push(gap(5000));
    bound(&mut gaps);
    let told: Vec<_> = gaps.iter().map(|g| (g.probe, g.from_ns, g.to_ns, g.count)).collect();
    let even = (0..1000).filter(|at| at % 2 == 0).sum::<u64>() + 5000;
    let odd = (0..1000).filter(|at| at % 2 == 1).sum::<u64>();
    assert_eq!(told, [("packetloss", 0, 5001, even), ("tcpreset", 1, 1000, odd)]);
}

#[test]
fn a_kill_while_nothing_can_be_written_is_told_from_the_last_good_moment_on() {
    let disk = Sim::default();
    let (spool, recovery) = open(&disk);
    let (writer, shipper, log) = start(&spool, recovery);
    shipper.events(vec![event(1)]);
    until("the first written", || told(&spool).0.len() == 1);
    disk.fault(Some(Fault::Fail {
        at: 0,
        times: u64::MAX,
        errno: libc::ENOSPC,
        done: 0,
    }));
    let before = now_ns();
    shipper.events(vec![event(2)]);
    until("the second lost", || missing(&log) == 1);
    // The end writes no heartbeat either.
    writer.stop();
    drop((spool, shipper));
    disk.fault(None);
    let (_, recovery) = open(&disk);
    assert!(
        recovery
            .last_seen
            .is_none_or(|last| !last.clean && last.time_ns <= before)
    );
}

#[test]
fn what_went_before_a_kill_is_told_after_it() {
    let disk = Sim::default();
    let (spool, _) = open(&disk);
    let payload = vec![7; 10_000];
    let (from_ns, to_ns, count) = (5, 6, 3);
    let mut gone = 0;
    while gone == 0 {
        let (_, dropped) = spool.append(Lane::Rows, Contents { from_ns, to_ns, count }, &payload);
        gone = dropped.iter().map(|d| u64::from(d.contents.count)).sum();
    }
    drop(spool);
    // Told once, and not again after the next start.
    for times in [1, 1] {
        let (spool, recovery) = open(&disk);
        let (writer, ..) = start(&spool, recovery);
        writer.stop();
        let mut reader = spool.reader(0);
        let mut gaps = Vec::new();
        while let Next::Frame(frame) = reader.next(&spool).unwrap() {
            let body = sonde_proto::body::decode(&frame.payload);
            gaps.extend(body.into_iter().flat_map(|body| body.gaps));
        }
        gaps.retain(|g| g.cause == gap::SPOOL_FULL);
        assert_eq!(gaps.len(), times);
        assert_eq!((gaps[0].count, gaps[0].from_ns), (gone, 5));
    }
}

/// Without its thread.
fn work(spool: Arc<Spool>) -> Work {
    Work {
        spool,
        index: Arc::default(),
        gap_log: Arc::default(),
        shared: Arc::default(),
        events: Vec::new(),
        gaps: Vec::new(),
        refused: Vec::new(),
        pods: Vec::new(),
        live: HashMap::new(),
        since: None,
        last_beat: None,
        taken_ns: 0,
        failing: false,
    }
}

#[test]
fn what_was_told_while_the_spool_goes_on_dropping_is_not_told_again_after_a_kill() {
    let disk = Sim::default();
    let mut work = work(open(&disk).0);
    let rows = Batch {
        payload: vec![7; 10_000],
        contents: Contents {
            from_ns: 5,
            to_ns: 6,
            count: 3,
        },
    };
    while work.gaps.is_empty() {
        work.append(Lane::Rows, &rows);
    }
    // So much that the next segment of rows has to go for it.
    let mut random = fastrand::Rng::with_seed(1);
    let mut noisy = event(1);
    noisy.observation.attributes = (0..64)
        .map(|_| ("noise", format!("{:032x}", random.u128(..)).into()))
        .collect();
    let mut another = || {
        noisy.observation.attributes[0].1 = format!("{:032x}", random.u128(..)).into();
        let mut event = noisy.clone();
        event.observation.stack = (0..32).map(|_| format!("{:064x}", random.u128(..)).into()).collect();
        event
    };
    work.events = (0..200).map(|_| another()).collect();
    work.flush();
    let untold: u64 = work.gaps.iter().map(|gap| gap.count).sum();
    assert!(untold > 0, "the events made it drop more");
    drop(work);
    let (_, recovery) = open(&disk);
    let again: u64 = recovery
        .dropped
        .iter()
        .map(|dropped| u64::from(dropped.contents.count))
        .sum();
    assert_eq!(again, untold);
}

#[test]
fn a_heartbeat_is_not_after_what_a_kill_would_take_with_it() {
    let at = |time_ns| Event { time_ns, ..event(1) };
    let mut work = work(open(&Sim::default()).0);
    let before = now_ns();
    assert!(work.reached_ns() >= before, "with nothing in memory it is now");
    // One was taken and is gathered, others wait behind it.
    work.shared.queued_messages.store(2, Ordering::Relaxed);
    work.take(Message::Events(vec![at(7_000), at(6_000)]));
    assert_eq!(work.reached_ns(), 6_000);
    work.flush();
    assert_eq!(work.reached_ns(), 7_000, "what waits came after what was taken");
    work.take(Message::Gaps(Vec::new()));
    assert!(work.reached_ns() >= before);
    let last_seen = Some(Heartbeat {
        time_ns: 5_000,
        clean: false,
    });
    work.tell_of_the_past(&Recovery {
        last_seen,
        ..Recovery::default()
    });
    assert_eq!(work.reached_ns(), 5_000, "killed again before that gap is written");
    work.flush();
    assert!(work.reached_ns() >= before);
}
