//! Random use of the spool against a queue in memory, and the same use again with the disk failing, the process ending,
//! or the power going at each of its operations.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

use super::sim::{Fault, Sim};
use super::*;

const DIR: &str = "/spool";
const MAX_BYTES: u64 = 6000;
const SEGMENT_BYTES: u64 = 1000;

#[derive(Clone, Debug)]
enum Op {
    Append {
        lane: Lane,
        len: usize,
        count: u32,
    },
    /// A new stream: the aggregator says what it has of the ones before.
    Connect,
    /// So many batches are handed to the stream.
    Send(usize),
    /// The aggregator stores as many of them.
    Store(usize),
    /// Its ack arrives.
    Ack,
    /// All drops so far are told.
    Told,
    Sync,
    Beat,
    Pods,
    Poison,
    /// The process ends and another begins.
    Reopen,
}

fn op() -> impl Strategy<Value = Op> {
    let lane = prop_oneof![Just(Lane::Rows), Just(Lane::Events), Just(Lane::Gaps)];
    prop_oneof![
        12 => (lane, 0..700usize, 0..5u32).prop_map(|(lane, len, count)| Op::Append { lane, len, count }),
        2 => Just(Op::Connect),
        3 => (1..8usize).prop_map(Op::Send),
        2 => (1..8usize).prop_map(Op::Store),
        2 => Just(Op::Ack),
        1 => Just(Op::Told),
        2 => Just(Op::Sync),
        1 => Just(Op::Beat),
        1 => Just(Op::Pods),
        1 => Just(Op::Poison),
        1 => Just(Op::Reopen),
    ]
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Held {
    lane: Lane,
    contents: Contents,
    payload: Vec<u8>,
}

/// The queue: what the spool must hold, by sequence, and what is known of the rest.
#[derive(Debug, Default)]
struct Model {
    frames: BTreeMap<u64, Held>,
    /// What the spool knows that the aggregator has.
    acked: u64,
    /// What it has, and up to where.
    stored: BTreeSet<u64>,
    durable: u64,
    /// On their way to it.
    sent: VecDeque<u64>,
    /// All that ever were.
    ever_sent: BTreeSet<u64>,
    /// Told by somebody else as missing; whether the next process knows.
    refused: BTreeMap<u64, bool>,
    /// Went, and may have arrived.
    gone: BTreeMap<u64, Held>,
    /// Went, and did not arrive, by lane; of that, what was refused.
    lost: [u64; LANES],
    lost_refused: [u64; LANES],
    /// How much was told as gone, by lane.
    told: [u64; LANES],
    /// Sequences up to here were synced.
    synced: u64,
    /// The highest sequence that was ever given.
    highest: u64,
    /// Of that, what the next process tells again.
    untold: [u64; LANES],
    /// A batch that tells of all that was untold, when the process ended in its middle: it is there or not.
    telling: Option<Vec<u8>>,
    /// Handed over without a sequence coming back, for an error or the end: it may be on the disk all the same.
    tried: Vec<Held>,
    appends: u64,
}

struct World {
    disk: Sim,
    spool: Option<Spool>,
    stream: Option<Reader>,
    boot: u32,
    /// The disk fails: what is on its way may not be noted, and be told as missing although it arrives.
    failing: bool,
    model: Model,
}

impl World {
    fn new(fault: Option<Fault>) -> Self {
        let mut world = Self {
            disk: Sim::default(),
            spool: None,
            stream: None,
            failing: matches!(fault, Some(Fault::Fail { .. })),
            boot: 1,
            model: Model::default(),
        };
        world.disk.fault(fault);
        world.spool = world.open().ok().map(|(spool, _)| spool);
        world
    }

    fn open(&self) -> Result<(Spool, Recovery), SpoolError> {
        let disk = Arc::new(self.disk.clone());
        Spool::open_on(disk, Path::new(DIR), MAX_BYTES, SEGMENT_BYTES, &self.boot.to_string())
    }

    fn spool(&self) -> &Spool {
        self.spool.as_ref().expect("an open spool")
    }

    /// All that the aggregator has not got.
    fn frames(&self) -> BTreeMap<u64, (Contents, Vec<u8>)> {
        let mut reader = self.spool().reader(self.model.acked);
        let mut frames = BTreeMap::new();
        loop {
            match reader.next(self.spool()).expect("a disk that is there") {
                Next::Frame(frame) => {
                    let above = frames.last_key_value().is_none_or(|(last, _)| frame.sequence > *last);
                    assert!(above && frame.sequence > self.model.acked, "in order");
                    frames.insert(frame.sequence, (frame.contents, frame.payload.to_vec()));
                }
                Next::Nothing => return frames,
                Next::Damaged(cut) => panic!("nothing damages it here: {cut:?}"),
            }
        }
    }

    /// Until the end of the operations or of the process.
    fn run(&mut self, ops: &[Op]) {
        for op in ops {
            if self.spool.is_none() || self.disk.has_stopped() {
                return;
            }
            self.apply(op);
        }
    }

    fn apply(&mut self, op: &Op) {
        match op {
            Op::Append { lane, len, count } => self.append(*lane, *len, *count),
            Op::Connect => _ = self.connect(),
            Op::Send(count) => {
                let Some(mut stream) = self.stream.take() else { return };
                for _ in 0..*count {
                    match stream.next(self.spool()) {
                        Ok(Next::Frame(frame)) => {
                            assert_ne!(self.model.refused.get(&frame.sequence), Some(&true));
                            self.model.sent.push_back(frame.sequence);
                            self.model.ever_sent.insert(frame.sequence);
                        }
                        Ok(Next::Nothing) => break,
                        Err(_) if self.disk.has_stopped() => return,
                        other => panic!("nothing damages it here: {other:?}"),
                    }
                }
                self.stream = Some(stream);
            }
            Op::Store(count) => {
                for sequence in self.model.sent.drain(..(*count).min(self.model.sent.len())) {
                    self.model.stored.insert(sequence);
                    self.model.durable = sequence;
                }
            }
            Op::Ack if self.stream.is_some() => {
                self.model.acked = self.model.durable;
                self.spool().acked(self.model.acked).expect("a number that was given");
            }
            Op::Ack => {}
            Op::Told => self.told(),
            Op::Sync => {
                if self.spool().sync().is_ok() {
                    self.model.synced = self.model.highest;
                }
            }
            Op::Beat => {
                let (time_ns, clean) = (7, false);
                let _ = self.spool().beat(Heartbeat { time_ns, clean });
            }
            Op::Pods => _ = self.spool().remember_pods(b"pods"),
            Op::Poison => {
                if let Some((sequence, held)) = self.model.frames.first_key_value() {
                    let (sequence, contents, payload) = (*sequence, held.contents, held.payload.clone().into());
                    if self.model.sent.contains(&sequence) {
                        return;
                    }
                    let frame = Frame {
                        sequence,
                        contents,
                        payload,
                    };
                    let refused = self.spool().refuse(&frame);
                    let told = refused.and_then(|_| self.spool().refusal_told(sequence));
                    self.model.refused.insert(sequence, told.is_ok());
                }
            }
            Op::Reopen => {
                self.spool = None;
                self.end_stream();
                match self.open() {
                    Ok(opened) => self.killed(opened),
                    Err(_) if self.disk.has_stopped() => {}
                    Err(_) => {
                        // A start waits for a disk that works.
                        self.disk.fault(None);
                        let opened = self.open().expect("a disk that works");
                        self.killed(opened);
                    }
                }
            }
        }
    }

    fn append(&mut self, lane: Lane, len: usize, count: u32) {
        let held = self.next_batch(lane, len, count);
        let (result, dropped) = self.spool().append(lane, held.contents, &held.payload);
        if self.disk.has_stopped() {
            // What went in the middle of it is seen after the next start.
            return self.model.tried.push(held);
        }
        self.appended(held, result, &dropped);
    }

    fn next_batch(&mut self, lane: Lane, len: usize, count: u32) -> Held {
        self.model.appends += 1;
        let number = self.model.appends;
        let (from_ns, to_ns) = (number, number);
        Held {
            lane,
            contents: Contents { from_ns, to_ns, count },
            payload: number.to_le_bytes().into_iter().cycle().take(8 + len).collect(),
        }
    }

    /// A batch of gaps tells of all drops so far; what it makes the spool drop is told later.
    fn told(&mut self) {
        let held = self.next_batch(Lane::Gaps, 30, 1);
        let (result, dropped) = self.spool().append_telling(held.contents, &held.payload);
        if self.disk.has_stopped() {
            self.model.telling = Some(held.payload.clone());
            return self.model.tried.push(held);
        }
        if result.is_ok() {
            self.model.untold = [0; LANES];
        }
        self.appended(held, result, &dropped);
    }

    fn appended(&mut self, held: Held, result: io::Result<u64>, dropped: &[Dropped]) {
        self.tell(dropped);
        match result {
            Ok(sequence) => {
                assert!(sequence > self.model.highest.max(self.model.acked), "a new number");
                self.model.highest = sequence;
                self.model.frames.insert(sequence, held);
            }
            Err(_) => self.model.tried.push(held),
        }
        let gone = self.forget_missing();
        self.told_so_far(0);
        if let Some(last) = gone.values().map(|held| held.lane as usize).max() {
            let mut others = self
                .model
                .frames
                .iter()
                .filter(|(sequence, _)| **sequence != self.model.highest);
            let stays = |(_, held): (&u64, &Held)| held.lane as usize >= last;
            assert!(others.all(stays), "rows go first, then events");
        }
    }

    fn tell(&mut self, dropped: &[Dropped]) {
        let more = by_lane(dropped.iter().map(|d| (d.lane, d.contents.count)));
        self.model.told = sum(self.model.told, more);
        self.model.untold = sum(self.model.untold, more);
    }

    /// Whatever was on its way has arrived by now, or never will.
    fn end_stream(&mut self) {
        self.stream = None;
        self.model.sent.clear();
    }

    /// `false` where the disk did not let it.
    fn connect(&mut self) -> bool {
        self.end_stream();
        let Ok(stream) = self.spool().sender(self.model.durable) else {
            return false;
        };
        if self.disk.has_stopped() {
            // While it deleted what is acked, which is no reason to refuse a stream.
            return false;
        }
        self.stream = Some(stream);
        self.model.acked = self.model.durable;
        let lost = self.spool().lost();
        self.tell(&lost);
        self.forget_missing();
        for (sequence, held) in std::mem::take(&mut self.model.gone) {
            if !self.model.stored.contains(&sequence) {
                let into = if self.model.refused.contains_key(&sequence) {
                    &mut self.model.lost_refused
                } else {
                    &mut self.model.lost
                };
                into[held.lane as usize] += u64::from(held.contents.count);
            }
        }
        true
    }

    /// What was told is what went, but for what may still arrive: that is told once it is known.
    fn told_so_far(&self, uncertain: u64) {
        let uncertain = if self.failing { u64::MAX / 2 } else { uncertain };
        let Model { told, lost, .. } = &self.model;
        let of = |arrives: bool| {
            let gone = self.model.gone.iter();
            by_lane(
                gone.filter(|(sequence, _)| !arrives || !self.model.ever_sent.contains(*sequence))
                    .filter(|(sequence, _)| !arrives || !self.model.refused.contains_key(*sequence))
                    .map(|(_, held)| (held.lane, held.contents.count)),
            )
        };
        let (least, most) = (
            sum(*lost, of(true)),
            sum(sum(*lost, of(false)), self.model.lost_refused),
        );
        for lane in 0..LANES {
            assert!(
                (least[lane]..=most[lane] + uncertain).contains(&told[lane]),
                "told {told:?}, expected {least:?} to {most:?}"
            );
        }
    }

    /// Compares, and takes out of the model what is not in the spool any more.
    fn forget_missing(&mut self) -> BTreeMap<u64, Held> {
        let acked = self.model.acked;
        self.model.frames.retain(|sequence, _| *sequence > acked);
        self.model
            .gone
            .retain(|sequence, _| *sequence > acked || !self.model.stored.contains(sequence));
        let there = self.frames();
        for (sequence, (contents, payload)) in &there {
            let is_it = |held: &Held| (held.contents, &held.payload) == (*contents, payload);
            match self.model.frames.get(sequence) {
                Some(held) => assert!(is_it(held), "{sequence} is another one"),
                None => {
                    let place = self.model.tried.iter().position(is_it);
                    let held = self.model.tried.remove(place.expect("one that was handed over"));
                    self.model.frames.insert(*sequence, held);
                    self.model.highest = self.model.highest.max(*sequence);
                }
            }
        }
        let (kept, gone) = std::mem::take(&mut self.model.frames)
            .into_iter()
            .partition(|(sequence, _)| there.contains_key(sequence));
        self.model.frames = kept;
        let gone: BTreeMap<u64, Held> = gone;
        self.model.gone.extend(gone.clone());
        gone
    }

    /// After an end of the process alone.
    fn killed(&mut self, (spool, recovery): (Spool, Recovery)) {
        self.again(spool, &recovery);
        assert!(
            recovery.cuts.is_empty() || !self.model.tried.is_empty(),
            "nothing was torn"
        );
        self.told_so_far(0);
    }

    /// After an end of everything.
    fn rebooted(&mut self, (spool, recovery): (Spool, Recovery)) {
        // What was not synced may be gone without a trace: it is in the gap of the time without a collector.
        let synced = self.model.synced;
        self.again(spool, &recovery);
        self.model.gone.retain(|sequence, _| *sequence <= synced);
        self.told_so_far(u64::MAX / 2);
        // From here on it is exact again.
        (self.model.lost, self.model.lost_refused) = (self.model.told, [0; LANES]);
        self.model.gone.clear();
    }

    /// The next process tells again what the last one did not note as told.
    fn again(&mut self, spool: Spool, recovery: &Recovery) {
        self.spool = Some(spool);
        self.end_stream();
        let untold = std::mem::take(&mut self.model.untold);
        let telling = self.model.telling.take();
        let is_told = telling.is_some_and(|batch| self.frames().values().any(|(_, payload)| *payload == batch));
        if !is_told {
            self.model.told = std::array::from_fn(|lane| self.model.told[lane] - untold[lane]);
        }
        self.tell(&recovery.dropped);
        self.forget_missing();
    }

    /// It goes on as if nothing had been.
    fn works(&mut self) {
        for lane in Lane::ALL {
            let before = self.model.highest;
            self.append(lane, 10, 1);
            assert!(self.model.highest > before, "{}", self.spool().last_error());
        }
        self.spool().sync().expect("a disk that works");
        assert!(self.connect(), "{}", self.spool().last_error());
        self.told_so_far(0);
        assert!(!self.spool().stats().failing);
    }
}

fn by_lane(counts: impl Iterator<Item = (Lane, u32)>) -> [u64; LANES] {
    counts.fold([0; LANES], |mut sums, (lane, count)| {
        sums[lane as usize] += u64::from(count);
        sums
    })
}

fn sum(a: [u64; LANES], b: [u64; LANES]) -> [u64; LANES] {
    std::array::from_fn(|lane| a[lane] + b[lane])
}

/// Always the same inputs: a test that fails now and then is no test. `PROPTEST_CASES` looks further.
fn check(cases: u32, test: impl Fn(Vec<Op>, u64)) {
    let config = Config {
        cases: std::env::var("PROPTEST_CASES").map_or(cases, |n| n.parse().expect("a number")),
        failure_persistence: None,
        ..Config::default()
    };
    let rng = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
    let ops = (prop::collection::vec(op(), 1..25), any::<u64>());
    let run = TestRunner::new_with_rng(config, rng).run(&ops, |(ops, seed)| {
        test(ops, seed);
        Ok(())
    });
    if let Err(error) = run {
        panic!("{error}");
    }
}

#[test]
fn it_is_a_queue() {
    check(300, |ops, _| {
        let mut world = World::new(None);
        world.run(&ops);
        world.works();
    });
}

/// How many operations of the disk these take.
fn operations(ops: &[Op]) -> u64 {
    let mut world = World::new(None);
    world.run(ops);
    world.disk.operations()
}

fn ended_at(ops: &[Op], at: u64, done: u32) -> World {
    let mut world = World::new(Some(Fault::Stop { at, done }));
    world.run(ops);
    assert!(world.disk.has_stopped());
    world.spool = None;
    world
}

#[test]
fn an_end_of_the_process_at_any_operation_loses_nothing() {
    check(12, |ops, _| killed_at_each_operation(&ops));
}

fn killed_at_each_operation(ops: &[Op]) {
    for at in 0..operations(ops) {
        for done in [0, 400, 1000] {
            let mut world = ended_at(ops, at, done);
            world.disk = world.disk.killed();
            let opened = world.open().expect("whatever was left");
            world.killed(opened);
            world.works();
            // Nor does the one after that.
            world.apply(&Op::Reopen);
        }
    }
}

#[test]
fn what_went_is_told_exactly_once_wherever_the_process_ends() {
    let (lane, len, count) = (Lane::Rows, 600, 3);
    let full = vec![Op::Append { lane, len, count }; 15];
    let mut ops = [full.clone(), vec![Op::Told], full, vec![Op::Told, Op::Connect]].concat();
    ops.extend([Op::Send(8), Op::Store(8), Op::Ack]);
    killed_at_each_operation(&ops);
}

#[test]
fn a_power_cut_at_any_operation_loses_nothing_that_was_synced() {
    check(12, |ops, seed| {
        let mut state = seed;
        // splitmix64
        let mut choose = |below: usize| {
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut z = state;
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            ((z ^ (z >> 31)) % below as u64) as usize
        };
        for at in 0..operations(&ops) {
            for _ in 0..3 {
                let mut world = ended_at(&ops, at, 400);
                world.disk = world.disk.power_cut(&mut choose);
                world.boot += 1;
                // The next start may not get far either.
                let at = choose(20) as u64;
                world.disk.fault(Some(Fault::Stop { at, done: 400 }));
                if world.open().is_err() || world.disk.has_stopped() {
                    world.disk = world.disk.killed();
                }
                world.disk.fault(None);
                let opened = world.open().expect("whatever was left");
                world.rebooted(opened);
                world.works();
            }
        }
    });
}

#[test]
fn a_disk_that_fails_for_a_while_costs_what_was_handed_over_then_and_nothing_else() {
    check(12, |ops, _| {
        for at in 0..operations(&ops) {
            for (times, errno, done) in [
                (1, libc::EIO, 400),
                (2, libc::ENOSPC, 1000),
                (5, libc::EROFS, 0),
                (u64::MAX, libc::ENOSPC, 400),
            ] {
                let mut world = World::new(Some(Fault::Fail { at, times, errno, done }));
                if world.spool.is_none() {
                    world.disk.fault(None);
                    world.apply(&Op::Reopen);
                }
                world.run(&ops);
                world.disk.fault(None);
                world.works();
                world.apply(&Op::Reopen);
                world.works();
            }
        }
    });
}

#[test]
fn what_the_disk_does_not_read_is_told_and_the_rest_is_read() {
    let mut world = World::new(None);
    for _ in 0..6 {
        world.append(Lane::Events, 400, 1);
    }
    let files = world.disk.files();
    let second = files
        .iter()
        .filter(|f| f.to_string_lossy().contains("events-"))
        .nth(1)
        .expect("a second segment");
    world.disk.spoil(second, 40..50);
    let mut reader = world.spool().reader(0);
    let mut seen = Vec::new();
    let mut cuts = Vec::new();
    loop {
        match reader.next(world.spool()).expect("no error stops it") {
            Next::Frame(frame) => seen.push(frame.sequence),
            Next::Damaged(cut) => cuts.push(cut.bytes),
            Next::Nothing => break,
        }
    }
    assert_eq!((seen, cuts.len()), (vec![1, 2, 5, 6], 1));
    // Nor does it hold up a start.
    world.spool = None;
    let (spool, recovery) = world.open().expect("a spool with a bad sector");
    assert_eq!(recovery.cuts.len(), 1);
    assert!(spool.append(Lane::Events, Contents::default(), b"x").0.is_ok());
}
