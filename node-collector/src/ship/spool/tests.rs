use std::os::unix::fs::FileExt as _;

use super::*;

const BOOT: &str = "b00t";

fn open(dir: &Path) -> (Spool, Recovery) {
    Spool::open(dir, 64 << 20, BOOT).unwrap()
}

fn contents(at: u64) -> Contents {
    Contents {
        from_ns: at,
        to_ns: at + 1,
        count: 2,
    }
}

fn append(spool: &Spool, lane: Lane, payload: &[u8]) -> u64 {
    let (result, dropped) = spool.append(lane, contents(1000), payload);
    assert_eq!(dropped, []);
    result.unwrap()
}

fn all(spool: &Spool, after: u64) -> Vec<(u64, Vec<u8>)> {
    let mut reader = spool.reader(after);
    std::iter::from_fn(|| match reader.next(spool).unwrap() {
        Next::Frame(frame) => Some((frame.sequence, frame.payload.to_vec())),
        Next::Nothing => None,
        Next::Damaged(cut) => panic!("{cut:?}"),
    })
    .collect()
}

#[test]
fn both_lanes_are_read_in_one_order_also_while_they_grow() {
    let dir = tempfile::tempdir().unwrap();
    let (spool, recovery) = open(dir.path());
    assert!(!recovery.resumed && recovery.last_seen.is_none());
    let mut reader = spool.reader(0);
    assert!(matches!(reader.next(&spool).unwrap(), Next::Nothing));
    assert_eq!(append(&spool, Lane::Rows, b"r1"), 1);
    assert_eq!(append(&spool, Lane::Events, b"e2"), 2);
    assert_eq!(append(&spool, Lane::Rows, b"r3"), 3);
    let expected = vec![(1, b"r1".to_vec()), (2, b"e2".to_vec()), (3, b"r3".to_vec())];
    assert_eq!(all(&spool, 0), expected);
    assert_eq!(all(&spool, 1), expected[1..]);
    for (sequence, payload) in expected {
        let Next::Frame(frame) = reader.next(&spool).unwrap() else {
            panic!("nothing")
        };
        assert_eq!(
            (frame.sequence, &frame.payload[..], frame.contents),
            (sequence, &payload[..], contents(1000))
        );
    }
    append(&spool, Lane::Events, b"e4");
    assert!(matches!(reader.next(&spool).unwrap(), Next::Frame(frame) if frame.sequence == 4));
    assert!(matches!(reader.next(&spool).unwrap(), Next::Nothing));
}

#[test]
fn what_was_appended_is_there_after_a_kill() {
    let dir = tempfile::tempdir().unwrap();
    let (spool, _) = open(dir.path());
    let epoch = spool.epoch();
    spool
        .beat(Heartbeat {
            time_ns: 77,
            clean: false,
        })
        .unwrap();
    spool.remember_pods(b"pods").unwrap();
    for i in 0..100u8 {
        append(&spool, if i % 3 == 0 { Lane::Events } else { Lane::Rows }, &[i; 300]);
    }
    // A kill leaves no chance to do anything; dropping does nothing but let go of the lock, as the kernel would.
    drop(spool);
    let (spool, recovery) = open(dir.path());
    assert!(recovery.resumed && recovery.cuts.is_empty() && recovery.pods == b"pods");
    assert_eq!(
        recovery.last_seen,
        Some(Heartbeat {
            time_ns: 77,
            clean: false
        })
    );
    assert_eq!(spool.epoch(), epoch);
    let frames = all(&spool, 0);
    assert_eq!(frames.len(), 100);
    assert!(
        frames
            .iter()
            .enumerate()
            .all(|(i, (sequence, payload))| *sequence == i as u64 + 1 && payload[0] == i as u8)
    );
    assert_eq!(append(&spool, Lane::Rows, b"next"), 101);
}

#[test]
fn a_tail_torn_at_any_byte_is_cut_off() {
    let written = tempfile::tempdir().unwrap();
    let (spool, _) = open(written.path());
    append(&spool, Lane::Rows, b"first");
    append(&spool, Lane::Rows, b"second");
    let whole = spool.stats().bytes;
    drop(spool);
    let name = "rows-0000000000000001.log";
    let bytes = std::fs::read(written.path().join(name)).unwrap();
    assert_eq!(bytes.len() as u64, whole);
    let one = frame::HEADER + b"first".len();
    for len in 0..bytes.len() {
        let dir = tempfile::tempdir_in("/dev/shm").unwrap();
        drop(open(dir.path()));
        std::fs::write(dir.path().join(name), &bytes[..len]).unwrap();
        let (spool, recovery) = open(dir.path());
        let kept = if len < one { 0 } else { 1 };
        assert_eq!(all(&spool, 0).len(), kept, "cut at {len}");
        let clean = len == 0 || len == one;
        assert_eq!(recovery.cuts.len(), usize::from(!clean), "cut at {len}");
        // Nobody knows whether what was cut off had been sent.
        let next = append(&spool, Lane::Rows, b"again");
        assert_eq!(next, kept as u64 + 1 + if clean { 0 } else { JUMP }, "cut at {len}");
        assert_eq!(all(&spool, 0).last().unwrap().1, b"again");
    }
}

#[test]
fn a_flipped_bit_in_any_byte_is_seen() {
    let written = tempfile::tempdir().unwrap();
    let (spool, _) = open(written.path());
    append(&spool, Lane::Events, b"first");
    append(&spool, Lane::Events, b"second");
    drop(spool);
    let name = "events-0000000000000001.log";
    let bytes = std::fs::read(written.path().join(name)).unwrap();
    for (byte, bit) in (0..bytes.len()).zip((0..8).cycle()) {
        let dir = tempfile::tempdir_in("/dev/shm").unwrap();
        drop(open(dir.path()));
        let mut broken = bytes.clone();
        broken[byte] ^= 1 << bit;
        std::fs::write(dir.path().join(name), &broken).unwrap();
        let (spool, recovery) = open(dir.path());
        assert_eq!(recovery.cuts.len(), 1, "byte {byte}");
        for (_, payload) in all(&spool, 0) {
            assert_eq!(payload, b"first", "byte {byte}");
        }
    }
}

#[test]
fn damage_under_a_reader_costs_the_rest_of_the_segment_and_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let (spool, _) = open(dir.path());
    for _ in 0..3 {
        append(&spool, Lane::Events, b"0123456789");
    }
    let path = dir.path().join("events-0000000000000001.log");
    let size = (frame::HEADER + 10) as u64;
    std::fs::File::options()
        .write(true)
        .open(path)
        .unwrap()
        .write_all_at(b"X", size + frame::HEADER as u64)
        .unwrap();
    let mut reader = spool.reader(0);
    assert!(matches!(reader.next(&spool).unwrap(), Next::Frame(frame) if frame.sequence == 1));
    let Next::Damaged(cut) = reader.next(&spool).unwrap() else {
        panic!("not seen")
    };
    assert_eq!(cut.bytes, 2 * size);
    assert!(matches!(reader.next(&spool).unwrap(), Next::Nothing));
    assert_eq!(append(&spool, Lane::Events, b"after"), 4);
    assert!(matches!(reader.next(&spool).unwrap(), Next::Frame(frame) if frame.sequence == 4));
    spool.acked(4).unwrap();
    assert!(spool.is_drained());
}

#[test]
fn acks_delete_segments_and_the_sequence_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let (spool, _) = Spool::open(dir.path(), 1 << 20, BOOT).unwrap();
    let payload = vec![7; 20_000];
    for _ in 0..20 {
        append(&spool, Lane::Rows, &payload);
    }
    let full = spool.stats();
    assert_eq!((full.frames, full.next_sequence, full.oldest_ns), (20, 21, 1000));
    spool.acked(19).unwrap();
    assert!(!spool.is_drained() && spool.stats().bytes < full.bytes / 4);
    spool.acked(20).unwrap();
    assert!(spool.is_drained());
    assert_eq!((spool.stats().frames, spool.stats().oldest_ns), (0, 0));
    drop(spool);
    let (spool, _) = Spool::open(dir.path(), 1 << 20, BOOT).unwrap();
    assert_eq!(append(&spool, Lane::Rows, b"x"), 21);
}

#[test]
fn rows_go_before_events_and_what_goes_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let (spool, _) = Spool::open(dir.path(), 1 << 20, BOOT).unwrap();
    let payload = vec![7; 10_000];
    for _ in 0..30 {
        append(&spool, Lane::Events, &payload);
    }
    let mut lost = Vec::new();
    for i in 0..100 {
        let (result, dropped) = spool.append(Lane::Rows, contents(2000 + i), &payload);
        result.unwrap();
        lost.extend(dropped);
    }
    assert!(!lost.is_empty() && lost.iter().all(|d| d.lane == Lane::Rows));
    assert_eq!(lost[0].contents.from_ns, 2000);
    let kept = all(&spool, 0);
    assert_eq!(
        kept.iter().filter(|(sequence, _)| *sequence <= 30).count(),
        30,
        "no event was lost"
    );
    let gone: u32 = lost.iter().map(|d| d.contents.count).sum();
    assert_eq!(gone as usize, 2 * (130 - kept.len()), "every row lost is told");
    assert!(spool.stats().bytes <= 1 << 20);

    // With no rows left, the oldest events go.
    let mut lost = Vec::new();
    for _ in 0..200 {
        lost.extend(spool.append(Lane::Events, contents(3000), &payload).1);
    }
    assert!(lost.iter().any(|d| d.lane == Lane::Events));
    assert!(spool.stats().bytes <= 1 << 20);
    let (result, _) = spool.append(Lane::Rows, contents(1), &vec![0; 1 << 20]);
    assert_eq!(result.unwrap_err().kind(), io::ErrorKind::QuotaExceeded);
}

#[test]
fn a_reader_goes_on_where_segments_were_deleted_under_it() {
    let dir = tempfile::tempdir().unwrap();
    let (spool, _) = Spool::open(dir.path(), 1 << 20, BOOT).unwrap();
    let payload = vec![7; 10_000];
    append(&spool, Lane::Rows, &payload);
    let mut reader = spool.reader(0);
    assert!(matches!(reader.next(&spool).unwrap(), Next::Frame(_)));
    for _ in 0..300 {
        spool.append(Lane::Rows, contents(1), &payload).0.unwrap();
    }
    let Next::Frame(frame) = reader.next(&spool).unwrap() else {
        panic!("nothing")
    };
    assert!(frame.sequence > 2);
    let rest = std::iter::from_fn(|| match reader.next(&spool).unwrap() {
        Next::Frame(frame) => Some(frame.sequence),
        _ => None,
    });
    assert_eq!(rest.last(), Some(301));
}

#[test]
fn two_collectors_never_share_a_spool() {
    let dir = tempfile::tempdir().unwrap();
    let (_spool, _) = open(dir.path());
    let error = Spool::open(dir.path(), 1 << 20, BOOT).unwrap_err().to_string();
    assert!(
        error.ends_with(&format!("in use by another collector (process {})", std::process::id())),
        "{error}"
    );
}

#[test]
fn a_lost_directory_is_a_new_epoch_and_another_version_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let epoch = open(dir.path()).0.epoch();
    std::fs::remove_dir_all(dir.path()).unwrap();
    assert_ne!(open(dir.path()).0.epoch(), epoch);

    std::fs::write(dir.path().join("meta"), "version 2\n").unwrap();
    let error = Spool::open(dir.path(), 1 << 20, BOOT).unwrap_err().to_string();
    assert!(
        error.ends_with("holds a spool of version 2, this collector reads version 1"),
        "{error}"
    );
}

#[test]
fn segments_of_an_unknown_epoch_are_set_aside() {
    let dir = tempfile::tempdir().unwrap();
    let (spool, _) = open(dir.path());
    append(&spool, Lane::Events, b"x");
    let epoch = spool.epoch();
    drop(spool);
    std::fs::write(dir.path().join("meta"), "garbage").unwrap();
    let (spool, recovery) = open(dir.path());
    assert!(!recovery.resumed && spool.epoch() != epoch && all(&spool, 0).is_empty());
    let aside = recovery.set_aside.unwrap();
    assert_eq!(std::fs::read_dir(aside).unwrap().count(), 3);
}

#[test]
fn after_a_boot_no_number_is_given_twice() {
    let dir = tempfile::tempdir().unwrap();
    let (spool, _) = open(dir.path());
    append(&spool, Lane::Events, b"x");
    append(&spool, Lane::Events, b"lost by the power cut");
    drop(spool);
    let path = dir.path().join("events-0000000000000001.log");
    std::fs::File::options()
        .write(true)
        .open(path)
        .unwrap()
        .set_len((frame::HEADER + 1) as u64)
        .unwrap();
    let (spool, _) = Spool::open(dir.path(), 1 << 20, "another").unwrap();
    let sequence = append(&spool, Lane::Events, b"y");
    assert_eq!(sequence, 2 + JUMP);
    drop(spool);
    // The jump is not made again, and not undone.
    let (spool, _) = Spool::open(dir.path(), 1 << 20, "another").unwrap();
    assert_eq!(append(&spool, Lane::Rows, b"z"), 3 + JUMP);
    assert_eq!(all(&spool, 0).len(), 3);
}

#[test]
fn a_spool_put_back_to_an_older_state_goes_on_above_the_aggregator() {
    let dir = tempfile::tempdir().unwrap();
    let (spool, _) = open(dir.path());
    append(&spool, Lane::Rows, b"x");
    spool.acked(50).unwrap();
    assert!(spool.is_drained());
    assert_eq!(append(&spool, Lane::Rows, b"y"), 51);
    drop(spool);
    let (spool, _) = open(dir.path());
    assert_eq!(all(&spool, 50), [(51, b"y".to_vec())]);
}

#[test]
fn only_the_newest_poison_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    let (spool, _) = open(dir.path());
    for sequence in 1..=40 {
        let frame = Frame {
            sequence,
            contents: Contents::default(),
            payload: Bytes::from_static(b"bad"),
        };
        spool.refuse(&frame).unwrap();
        spool.refusal_told(sequence).unwrap();
    }
    let mut names: Vec<_> = std::fs::read_dir(dir.path().join("poison"))
        .unwrap()
        .map(|e| e.unwrap().file_name())
        .collect();
    names.sort();
    assert_eq!(
        (names.len(), names[0].to_str()),
        (POISON_KEPT, Some(poison_name(25, spool.epoch(), TOLD).as_str()))
    );
}

#[test]
fn damage_in_the_last_segment_never_gives_an_acked_number_again() {
    let dir = tempfile::tempdir().unwrap();
    let (spool, _) = open(dir.path());
    for _ in 0..9 {
        append(&spool, Lane::Rows, b"0123456789");
    }
    spool.acked(5).unwrap();
    drop(spool);
    std::fs::OpenOptions::new()
        .write(true)
        .open(dir.path().join("rows-0000000000000001.log"))
        .unwrap()
        .write_all_at(b"X", frame::HEADER as u64)
        .unwrap();
    let (spool, recovery) = open(dir.path());
    assert_eq!(recovery.cuts.len(), 1);
    assert!(append(&spool, Lane::Rows, b"new") > 9);
}

#[test]
fn a_file_cut_short_under_a_reader_is_told_and_does_not_stop_it() {
    let dir = tempfile::tempdir().unwrap();
    let (spool, _) = open(dir.path());
    for _ in 0..3 {
        append(&spool, Lane::Events, b"0123456789");
    }
    let path = dir.path().join("events-0000000000000001.log");
    std::fs::File::options()
        .write(true)
        .open(path)
        .unwrap()
        .set_len(10)
        .unwrap();
    let mut reader = spool.reader(0);
    let Next::Damaged(cut) = reader.next(&spool).unwrap() else {
        panic!("not seen")
    };
    assert_eq!(
        (cut.bytes, cut.file.as_str()),
        (3 * (frame::HEADER as u64 + 10), "events-0000000000000001.log")
    );
    append(&spool, Lane::Events, b"after");
    assert!(matches!(reader.next(&spool).unwrap(), Next::Frame(frame) if frame.sequence == 4));
    drop(spool);
    assert_eq!(all(&open(dir.path()).0, 0), [(4, b"after".to_vec())]);
}

#[test]
fn what_goes_is_told_without_what_the_aggregator_has_also_after_a_start() {
    let dir = tempfile::tempdir().unwrap();
    let (spool, _) = Spool::open(dir.path(), 1 << 20, BOOT).unwrap();
    let payload = vec![7; 10_000];
    for _ in 0..5 {
        append(&spool, Lane::Events, &payload);
    }
    spool.acked(3).unwrap();
    spool
        .beat(Heartbeat {
            time_ns: 5,
            clean: false,
        })
        .unwrap();
    drop(spool);
    let (spool, _) = Spool::open(dir.path(), 1 << 20, BOOT).unwrap();
    let mut told = 0;
    while told == 0 {
        let (result, dropped) = spool.append(Lane::Events, contents(9), &payload);
        result.unwrap();
        told += dropped.iter().map(|d| d.contents.count).sum::<u32>();
    }
    let first = all(&spool, 0)[0].0;
    assert_eq!(u64::from(told), 2 * (first - 4), "all above 3 and below {first}");
}

#[test]
fn an_ack_of_another_epoch_says_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (spool, _) = open(dir.path());
    append(&spool, Lane::Rows, b"x");
    spool.acked(700).unwrap();
    spool
        .beat(Heartbeat {
            time_ns: 5,
            clean: true,
        })
        .unwrap();
    drop(spool);
    std::fs::remove_file(dir.path().join("meta")).unwrap();
    drop(open(dir.path()));
    let (spool, recovery) = open(dir.path());
    assert!(recovery.resumed && recovery.last_seen.is_none());
    assert_eq!(spool.stats().acked, 0);
    assert_eq!(append(&spool, Lane::Rows, b"y"), 1);
}

#[test]
fn no_ack_makes_the_numbers_run_out() {
    let dir = tempfile::tempdir().unwrap();
    let (spool, _) = open(dir.path());
    assert!(spool.acked(frame::LAST_SEQUENCE).is_err());
    spool.acked(frame::LAST_SEQUENCE / 2).unwrap();
    assert_eq!(append(&spool, Lane::Rows, b"y"), frame::LAST_SEQUENCE / 2 + 1);
}

#[test]
fn what_may_be_on_its_way_is_dropped_last() {
    let dir = tempfile::tempdir().unwrap();
    let (spool, _) = Spool::open(dir.path(), 1 << 20, BOOT).unwrap();
    let payload = vec![7; 10_000];
    let rows = |from: u64, count: u64| {
        let mut gone = 0;
        for at in from..from + count {
            let (result, dropped) = spool.append(Lane::Rows, contents(at), &payload);
            result.unwrap();
            gone += dropped.iter().map(|d| d.contents.count).sum::<u32>();
        }
        gone
    };
    assert_eq!(rows(0, 20), 0);
    let mut sender = spool.sender(0).unwrap();
    let mut sent = 0;
    for _ in 0..5 {
        let Next::Frame(frame) = sender.next(&spool).unwrap() else {
            panic!("nothing to send");
        };
        sent = frame.sequence;
    }
    let gone = rows(20, 200);
    assert!(gone > 0);
    let kept: Vec<u64> = all(&spool, 0).into_iter().map(|(sequence, _)| sequence).collect();
    assert_eq!(kept[..sent as usize], (1..=sent).collect::<Vec<_>>());
    assert_eq!(
        gone as usize,
        2 * (220 - kept.len()),
        "all that went is told, and nothing else"
    );

    // The aggregator has none of it: now they are as any other.
    let _ = spool.sender(0).unwrap();
    assert!(rows(220, 200) > 0);
    assert!(all(&spool, sent).len() == all(&spool, 0).len(), "the oldest went");
}

#[test]
fn what_was_dropped_on_its_way_is_told_when_it_is_known_that_it_did_not_arrive() {
    let dir = tempfile::tempdir().unwrap();
    let open = || Spool::open(dir.path(), 1 << 20, BOOT).unwrap().0;
    let spool = open();
    let payload = vec![7; 10_000];
    // Until something on its way had to go, as all of its lane is; how much was told as gone.
    let overflow = |spool: &Spool| {
        let mut sender = spool.sender(0).unwrap();
        let mut told = 0;
        for at in 0..200 {
            let (result, dropped) = spool.append(Lane::Rows, contents(at), &payload);
            result.unwrap();
            told += dropped.iter().map(|d| d.contents.count).sum::<u32>();
            while let Next::Frame(_) = sender.next(spool).unwrap() {}
        }
        told
    };
    let told = overflow(&spool);
    let kept = all(&spool, 0).len() as u64;
    let oldest = all(&spool, 0)[0].0;
    assert!(kept < 200 && told < 2 * (200 - kept as u32) && !spool.is_settled());
    drop(spool);

    // The next process does not know it either, until the aggregator says what it has.
    let spool = open();
    assert!(spool.lost().is_empty() && !spool.is_settled());
    let missing = 3;
    let _sender = spool.sender(oldest - 1 - missing).unwrap();
    let lost: Vec<Dropped> = spool.lost();
    let count: u32 = lost.iter().map(|d| d.contents.count).sum();
    assert_eq!((lost.len(), count), (1, 2 * missing as u32));
    assert!(lost.iter().all(|d| d.lane == Lane::Rows) && !spool.is_settled());
    spool.told().unwrap();
    assert!(spool.is_settled() && spool.lost().is_empty());
}

#[test]
fn an_ack_says_that_what_was_dropped_on_its_way_arrived() {
    let dir = tempfile::tempdir().unwrap();
    let (spool, _) = Spool::open(dir.path(), 1 << 20, BOOT).unwrap();
    let mut sender = spool.sender(0).unwrap();
    let mut last = 0;
    for at in 0..200 {
        let (result, dropped) = spool.append(Lane::Events, contents(at), &[7; 10_000]);
        last = result.unwrap();
        assert!(dropped.is_empty(), "nobody knows yet");
        while sender.next(&spool).unwrap().frame().is_some() {}
    }
    assert!(all(&spool, 0).len() < 200 && !spool.is_settled());
    spool.acked(last).unwrap();
    assert!(spool.is_drained() && spool.is_settled());
    assert_eq!(spool.sender(last).unwrap().next(&spool).unwrap().frame(), None);
    assert!(spool.lost().is_empty());
}

#[test]
fn a_batch_that_was_refused_is_not_sent_again_once_that_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let (spool, _) = open(dir.path());
    for payload in [b"a", b"b", b"c"] {
        append(&spool, Lane::Rows, payload);
    }
    let frames = |spool: &Spool| {
        let mut sender = spool.sender(0).unwrap();
        std::iter::from_fn(|| sender.next(spool).unwrap().frame()).collect::<Vec<_>>()
    };
    let sequences = |spool: &Spool| frames(spool).iter().map(|f| f.sequence).collect::<Vec<_>>();
    spool.refuse(&frames(&spool)[1]).unwrap();
    assert_eq!(sequences(&spool), [1, 3]);
    drop(spool);
    // Nobody was told: it is refused once more, or is not any more.
    let (spool, _) = open(dir.path());
    assert_eq!(sequences(&spool), [1, 2, 3]);
    spool.refuse(&frames(&spool)[1]).unwrap();
    spool.refusal_told(2).unwrap();
    drop(spool);
    let (spool, _) = open(dir.path());
    assert_eq!(sequences(&spool), [1, 3]);
    drop(spool);
    // Numbers of another spool mean nothing.
    std::fs::remove_file(dir.path().join("meta")).unwrap();
    let (spool, _) = open(dir.path());
    for payload in [b"d", b"e"] {
        append(&spool, Lane::Rows, payload);
    }
    assert_eq!(sequences(&spool), [1, 2]);
}

impl Next {
    fn frame(self) -> Option<Frame> {
        match self {
            Self::Frame(frame) => Some(frame),
            Self::Nothing => None,
            Self::Damaged(cut) => panic!("{cut:?}"),
        }
    }
}
