//! A segment file as a crash, a bad disk or somebody else left it.

use sonde_mutate::Target;

use super::frame::{Contents, HEADER, Header, LAST_SEQUENCE, encode};
use super::{Lane, Next, Spool};

pub(crate) const TARGET: Target = Target {
    name: "spool_segment",
    seeds: || {
        let contents = Contents {
            from_ns: 1,
            to_ns: 2,
            count: 3,
        };
        let frames = [
            encode(1, contents, b"one"),
            encode(2, contents, b""),
            encode(9, contents, &[7; 300]),
        ];
        [0, 1].map(|mend| [&[mend][..], &frames.concat()].concat()).into()
    },
    run,
};

/// With 1 as the first byte, check sums are put right, so that what they guard is looked at.
fn run(input: &[u8]) {
    let Some((mend, file)) = input.split_first() else {
        return;
    };
    let mut file = file.to_vec();
    if *mend == 1 {
        mend_sums(&mut file);
    }
    // In memory, where nothing waits for a disk.
    let dir = tempfile::tempdir_in("/dev/shm").expect("a directory");
    let (spool, _) = Spool::open(dir.path(), 1 << 20, "boot").expect("an empty spool");
    let epoch = spool.epoch();
    drop(spool);
    let segment = |lane: Lane| dir.path().join(format!("{}-{:016x}.log", lane.name(), 1));
    std::fs::write(segment(Lane::Events), &file).expect("a segment");
    let (spool, found) = Spool::open(dir.path(), 1 << 20, "boot").expect("whatever is in a segment");
    assert_eq!(spool.epoch(), epoch);
    let cut: u64 = found.cuts.iter().map(|cut| cut.bytes).sum();
    let mut frames = 0;
    let mut bytes = 0;
    let mut last = 0;
    let mut reader = spool.reader(0);
    loop {
        match reader.next(&spool).expect("a file that is there") {
            Next::Frame(frame) => {
                assert!(frame.sequence > last, "ascending");
                last = frame.sequence;
                frames += 1;
                bytes += (HEADER + frame.payload.len()) as u64;
            }
            Next::Damaged(cut) => panic!("what opening cut off needs no second cut: {cut:?}"),
            Next::Nothing => break,
        }
    }
    assert_eq!(
        bytes + cut,
        file.len() as u64,
        "each byte is of a frame, or told as cut off"
    );
    assert_eq!(spool.stats().frames, frames);
    let (appended, _) = spool.append(Lane::Events, Contents::default(), b"new");
    let Ok(sequence) = appended else {
        assert!(last > LAST_SEQUENCE / 2, "there is room");
        return;
    };
    assert!(sequence > last);
    match reader.next(&spool).expect("a file that is there") {
        Next::Frame(frame) => assert_eq!((frame.sequence, &frame.payload[..]), (sequence, &b"new"[..])),
        other => panic!("{other:?}"),
    }
}

fn mend_sums(file: &mut [u8]) {
    let mut at = 0;
    while let Some(header) = file.get(at..).and_then(|rest| rest.first_chunk::<HEADER>()) {
        let Some(len) = Header::decode(header).map(|header| header.size() as usize) else {
            return;
        };
        let Some(frame) = file.get_mut(at..at + len) else {
            return;
        };
        let sum = crc32c::crc32c(&frame[8..]);
        frame[4..8].copy_from_slice(&sum.to_le_bytes());
        at += len;
    }
}
