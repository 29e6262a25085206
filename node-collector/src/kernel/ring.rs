//! The thread that empties the rings: records in, observations out.
//!
//! It never waits for the reader of the observations for good: while their channel is full, it leaves the rings alone,
//! and what they then cannot take is counted by the kernel side.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use aya::maps::{MapData, RingBuf};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use sonde_ebpf_common::limit::TYPES;
use sonde_ebpf_common::record::WAKE_EVERY_NS;
use tokio::sync::mpsc::Sender;
use tokio::sync::mpsc::error::TrySendError;

use super::clock::monotonic_ns;
use super::listing::Listing;
use super::probe::{Decoded, Decoder};
use super::record::{self, RecordError};
use crate::event::Observation;

/// What goes to the channel at once, at most.
const BATCH: usize = 512;
/// How long to wait before the full channel is tried again.
const RETRY: Duration = Duration::from_millis(5);

/// Batches that are read at the end, at most, and how often each is offered to a full channel.
const LAST_BATCHES: usize = 64;
const LAST_RETRIES: usize = 200;

/// As often as a CPU wakes us, so that a record that woke nobody waits no longer than one that did.
const LOOK_AGAIN: Duration = Duration::from_nanos(WAKE_EVERY_NS);
/// A record that wakes nobody is at most [`WAKE_EVERY_NS`] younger than one that did; the rest is for a busy machine.
const LINGER: Duration = Duration::from_nanos(20 * WAKE_EVERY_NS);
/// And if it is that much younger, as its CPU was taken away (a hypervisor does) after it had decided to wake nobody: it
/// waits for this long, and not for the next one that wakes us.
const LOOK_ANYWAY: Duration = Duration::from_secs(1);

/// By how much an event may be later than the clock that is read after it. `bpf_ktime_get_ns` is ktime_get_mono_fast_ns
/// (kernel/time/timekeeping.c), which may run ahead of CLOCK_MONOTONIC when its slope is corrected, by some microseconds.
const AHEAD_NS: u64 = 10_000_000;

/// What the thread counts.
#[derive(Debug, Default)]
pub(super) struct RingCounters {
    /// Events given on, by type.
    events: [AtomicU64; TYPES],
    /// Records that could not be read, by probe; those of no known kind under the empty name.
    bad_records: BTreeMap<&'static str, AtomicU64>,
}

impl RingCounters {
    pub(super) fn new(probes: impl IntoIterator<Item = &'static str>) -> Self {
        let names = probes.into_iter().chain([""]);
        Self {
            bad_records: names.map(|name| (name, AtomicU64::default())).collect(),
            ..Self::default()
        }
    }

    pub(super) fn events(&self, bucket: usize) -> u64 {
        self.events[bucket].load(Ordering::Relaxed)
    }

    /// One event of that type was given on.
    pub(super) fn event(&self, bucket: usize) {
        self.events[bucket].fetch_add(1, Ordering::Relaxed);
    }

    /// By probe.
    pub(super) fn bad_records(&self) -> BTreeMap<&'static str, u64> {
        let load = |(name, count): (&&'static str, &AtomicU64)| (*name, count.load(Ordering::Relaxed));
        self.bad_records.iter().map(load).collect()
    }

    fn bad_record(&self, probe: &'static str, error: &dyn std::error::Error) {
        if let Some(count) = self.bad_records.get(probe) {
            count.fetch_add(1, Ordering::Relaxed);
        }
        tracing::debug!(probe, %error, "a record of the kernel side could not be read");
    }
}

/// Decoders and their probes, by kind of record.
pub(super) type Decoders = HashMap<u32, (&'static str, Box<dyn Decoder>)>;

pub(super) struct Rings {
    pub rare: RingBuf<MapData>,
    pub events: RingBuf<MapData>,
}

pub(super) struct RingThread {
    stop: Arc<Stop>,
    thread: Option<std::thread::JoinHandle<()>>,
}

struct Stop {
    event: EventFd,
    asked: AtomicBool,
}

impl RingThread {
    pub(super) fn start(
        rings: Rings,
        decoders: Decoders,
        listing: Arc<Listing>,
        counters: Arc<RingCounters>,
        events: Sender<Vec<Observation>>,
    ) -> std::io::Result<Self> {
        let event = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        let stop = Arc::new(Stop {
            event,
            asked: AtomicBool::new(false),
        });
        let reader = Reader {
            rings,
            decoders,
            listing,
            counters,
            events,
            stop: Arc::clone(&stop),
        };
        let thread = std::thread::Builder::new()
            .name("sonde-ring".into())
            .spawn(move || reader.run())?;
        Ok(Self {
            stop,
            thread: Some(thread),
        })
    }
}

impl Drop for RingThread {
    fn drop(&mut self) {
        self.stop.asked.store(true, Ordering::Release);
        let _ = self.stop.event.write(1);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct Reader {
    rings: Rings,
    decoders: Decoders,
    listing: Arc<Listing>,
    counters: Arc<RingCounters>,
    events: Sender<Vec<Observation>>,
    stop: Arc<Stop>,
}

/// Whether to look at the rings without being woken: the kernel side wakes seldom, see [`WAKE_EVERY_NS`].
#[derive(Default)]
struct Awake {
    found: Option<Instant>,
}

impl Awake {
    fn found(&mut self) {
        self.found = Some(Instant::now());
    }

    /// How long to wait for being woken.
    fn timeout(&mut self) -> PollTimeout {
        match self.found {
            Some(last) if last.elapsed() < LINGER => poll_timeout(LOOK_AGAIN),
            _ => {
                self.found = None;
                poll_timeout(LOOK_ANYWAY)
            }
        }
    }
}

fn poll_timeout(of: Duration) -> PollTimeout {
    PollTimeout::try_from(of).unwrap_or(PollTimeout::ZERO)
}

/// Observations and the positions of their types.
type Batch = Vec<(usize, Observation)>;

impl Reader {
    fn run(mut self) {
        let mut batch = Batch::new();
        let mut awake = Awake::default();
        while !self.stop.asked.load(Ordering::Acquire) {
            // Also what turned out to be no event has woken us, and others behind it do not.
            if self.fill(&mut batch) {
                awake.found();
            }
            if batch.is_empty() {
                self.wait(true, awake.timeout());
                continue;
            }
            self.add_suppressed(&mut batch);
            if !self.send(&mut batch) {
                break;
            }
        }
        self.drain();
    }

    /// What the programs wrote before they were detached; while some are still attached, no more than a ring holds.
    fn drain(&mut self) {
        let mut batch = Batch::new();
        for _ in 0..LAST_BATCHES {
            if !self.fill(&mut batch) {
                return;
            }
            self.add_suppressed(&mut batch);
            if !batch.is_empty() && !self.send(&mut batch) {
                return;
            }
        }
    }

    /// In the order in which things happened: what came into the rare ring before something that is read from the other
    /// one is in the same batch or an earlier one. `false`: the rings were empty.
    fn fill(&mut self, batch: &mut Batch) -> bool {
        let Self {
            rings: Rings { rare, events },
            decoders,
            counters,
            ..
        } = self;
        let mut found = false;
        let mut drain = |ring: &mut RingBuf<MapData>, most: usize| {
            while batch.len() < most {
                let Some(item) = ring.next() else { break };
                found = true;
                batch.extend(decode(&item, decoders, counters));
            }
        };
        drain(rare, BATCH);
        drain(events, BATCH);
        drain(rare, 2 * BATCH);
        batch.sort_by_key(|(_, observation)| observation.ktime_ns);
        found
    }

    /// On the first event of each namespace and type: how many were held back before it.
    fn add_suppressed(&self, batch: &mut Batch) {
        let mut seen = HashSet::new();
        for (bucket, observation) in batch {
            if seen.insert((observation.netns, *bucket)) {
                observation.suppressed = self.listing.held_since_last_event(observation.netns, *bucket);
            }
        }
    }

    /// `false`: nobody reads any more, or the thread shall end.
    fn send(&self, batch: &mut Batch) -> bool {
        let mut counts = [0; TYPES];
        for (bucket, _) in batch.iter() {
            counts[*bucket] += 1;
        }
        let mut events: Vec<Observation> = batch.drain(..).map(|(_, observation)| observation).collect();
        let mut left = LAST_RETRIES;
        loop {
            match self.events.try_send(events) {
                Ok(()) => {
                    for (counter, count) in self.counters.events.iter().zip(counts) {
                        counter.fetch_add(count, Ordering::Relaxed);
                    }
                    return true;
                }
                Err(TrySendError::Closed(_)) => return false,
                Err(TrySendError::Full(back)) => {
                    events = back;
                    if !self.stop.asked.load(Ordering::Acquire) {
                        self.wait(false, poll_timeout(RETRY));
                    } else if left > 0 {
                        left -= 1;
                        std::thread::sleep(RETRY);
                    } else {
                        return false;
                    }
                }
            }
        }
    }

    fn wait(&self, for_rings: bool, timeout: PollTimeout) {
        let mut fds = vec![PollFd::new(self.stop.event.as_fd(), PollFlags::POLLIN)];
        if for_rings {
            let rings = [&self.rings.rare, &self.rings.events];
            fds.extend(rings.map(|ring| PollFd::new(ring.as_fd(), PollFlags::POLLIN)));
        }
        // An interrupted wait is a wait that ended early.
        let _ = poll(&mut fds, timeout);
    }
}

/// `None`: no event, or a record that could not be read, which is counted.
pub(super) fn decode(bytes: &[u8], decoders: &mut Decoders, counters: &RingCounters) -> Option<(usize, Observation)> {
    let kind = match record::kind(bytes) {
        Ok(kind) => kind,
        Err(error) => {
            counters.bad_record("", &error);
            return None;
        }
    };
    let Some((probe, decoder)) = decoders.get_mut(&kind) else {
        let error = RecordError::Value {
            what: "its kind",
            value: kind.into(),
        };
        counters.bad_record("", &error);
        return None;
    };
    match decoder.decode(bytes) {
        Ok(Decoded::Event(bucket, seen)) if bucket < TYPES => match check(&seen, monotonic_ns()) {
            Ok(()) => Some((bucket, *seen)),
            Err(error) => {
                counters.bad_record(probe, &error);
                None
            }
        },
        Ok(_) => None,
        Err(error) => {
            counters.bad_record(probe, &*error);
            None
        }
    }
}

/// What no kernel says. The aggregator would refuse it too, and everything that travels with it.
fn check(seen: &Observation, now_ns: u64) -> Result<(), RecordError> {
    let in_bounds = |what, value: u64, most: u64| {
        if value <= most {
            Ok(())
        } else {
            Err(RecordError::Value { what, value })
        }
    };
    in_bounds("its time", seen.ktime_ns, now_ns.saturating_add(AHEAD_NS))?;
    // Nothing began before the machine did.
    in_bounds("how long it took", seen.latency_ns.unwrap_or(0), seen.ktime_ns)?;
    in_bounds("its CPU", seen.cpu.unwrap_or(0).into(), i32::MAX as u64)?;
    in_bounds("its process", seen.pid.unwrap_or(0).into(), i32::MAX as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use sonde_ebpf_common::record::Start;
    use zerocopy::IntoBytes as _;

    struct Picky;

    impl Decoder for Picky {
        fn decode(&mut self, record: &[u8]) -> Result<Decoded, Box<dyn std::error::Error>> {
            match record.get(8) {
                Some(1) => Ok(Decoded::Event(0, Box::default())),
                Some(2) => Ok(Decoded::Nothing),
                _ => Err("no".into()),
            }
        }
    }

    #[test]
    fn records_go_by_their_kind_and_bad_ones_are_counted_with_their_probe() {
        let mut decoders: Decoders = HashMap::from([(7, ("picky", Box::new(Picky) as Box<dyn Decoder>))]);
        let counters = RingCounters::new(["picky"]);
        let record = |kind: u32, size: u32, rest: &[u8]| [Start { kind, size }.as_bytes(), rest].concat();
        let mut decode = |bytes: &[u8]| decode(bytes, &mut decoders, &counters).is_some();
        assert!(decode(&record(7, 9, &[1])));
        assert!(!decode(&record(7, 9, &[2])), "a record that was none");
        assert_eq!(counters.bad_records(), BTreeMap::from([("", 0), ("picky", 0)]));
        assert!(!decode(&record(7, 9, &[3])));
        assert_eq!(counters.bad_records()["picky"], 1);
        assert!(!decode(&record(8, 9, &[1])), "of no known kind");
        assert!(!decode(&record(7, 10, &[1])), "of another size than it says");
        assert!(!decode(&[7, 0, 0, 0, 9]), "cut off");
        assert_eq!(counters.bad_records(), BTreeMap::from([("", 3), ("picky", 1)]));
    }

    #[test]
    fn what_no_kernel_says_is_refused() {
        let seen = |change: fn(&mut Observation)| {
            let mut seen = Observation {
                ktime_ns: 1000,
                latency_ns: Some(1000),
                cpu: Some(3),
                pid: Some(4_194_304),
                ..Observation::default()
            };
            change(&mut seen);
            check(&seen, 1000).map_err(|error| error.to_string())
        };
        assert_eq!(seen(|_| ()), Ok(()));
        let refused = |what: &str, value: u64| Err(format!("record says {what} is {value}"));
        assert_eq!(seen(|seen| seen.ktime_ns = 1000 + AHEAD_NS), Ok(()));
        assert_eq!(
            seen(|seen| seen.ktime_ns = 1001 + AHEAD_NS),
            refused("its time", 1001 + AHEAD_NS)
        );
        assert_eq!(
            seen(|seen| seen.latency_ns = Some(1001)),
            refused("how long it took", 1001)
        );
        assert_eq!(seen(|seen| seen.cpu = Some(1 << 31)), refused("its CPU", 1 << 31));
        assert_eq!(
            seen(|seen| seen.pid = Some(u32::MAX)),
            refused("its process", u32::MAX.into())
        );
    }
}
