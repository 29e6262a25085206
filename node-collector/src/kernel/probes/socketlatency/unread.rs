//! What only a look at the maps finds: data that nobody reads, for then nothing happens; and UDP sockets that are gone.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use sonde_ebpf_common::limit;
use sonde_ebpf_common::socklat::{self, MARKS, Reads};

use super::{READSLOW, SPEC};
use crate::event::{Direction, NetnsKey, Observation};
use crate::kernel::clock::monotonic_ns;
use crate::kernel::connection;
use crate::kernel::probe::Live;
use crate::kernel::sys::{BatchBuffer, RawMap};

/// Whoever reads within this time tells of it by reading.
const PATIENCE: Duration = Duration::from_secs(1);
/// Told in one round of one namespace. The turn of the others comes in later rounds.
const AT_ONCE: usize = 64;

/// Sockets in which data waits.
pub(super) struct Unread {
    reads: RawMap<u64, Reads>,
    buffer: BatchBuffer<u64, Reads>,
    told: Told,
    live: Arc<Live>,
}

/// The oldest mark of each socket of which it was told that nobody reads.
pub(super) type Told = HashMap<u64, u64>;

impl Unread {
    pub(super) fn new(reads: RawMap<u64, Reads>, live: Arc<Live>) -> Self {
        Self {
            reads,
            buffer: BatchBuffer::default(),
            told: Told::new(),
            live,
        }
    }

    pub(super) fn look(&mut self) -> io::Result<Vec<(usize, Observation)>> {
        if !self.live.events() {
            return Ok(Vec::new());
        }
        let mut waiting = Vec::new();
        self.reads.for_each(&mut self.buffer, |socket, copies| {
            waiting.extend(
                copies
                    .first()
                    .filter(|reads| reads.count != 0)
                    .map(|reads| (*socket, *reads)),
            );
        })?;
        let limit = self.live.threshold().max(PATIENCE);
        let limit_ns = u64::try_from(limit.as_nanos()).unwrap_or(u64::MAX);
        let found = find(&waiting, &mut self.told, monotonic_ns(), limit_ns);
        Ok(found
            .into_iter()
            .map(|seen| (limit::SOCKETLAT_READSLOW, seen))
            .collect())
    }
}

/// Of sockets in which something waits: those that have waited too long and were not told of yet. One event a mark.
pub(super) fn find(waiting: &[(u64, Reads)], told: &mut Told, now: u64, limit_ns: u64) -> Vec<Observation> {
    let mut found = Vec::new();
    let mut still = Told::new();
    let mut of_netns: HashMap<u32, usize> = HashMap::new();
    for (socket, reads) in waiting {
        let oldest = reads.marks[0].ktime_ns;
        let age = now.saturating_sub(oldest);
        if oldest == 0 || age <= limit_ns || reads.count as usize > MARKS {
            continue;
        }
        if told.get(socket) == Some(&oldest) {
            still.insert(*socket, oldest);
            continue;
        }
        let count = of_netns.entry(reads.netns).or_default();
        if *count < AT_ONCE {
            *count += 1;
            still.insert(*socket, oldest);
            found.push(observe(reads, now, age));
        }
    }
    *told = still;
    found
}

fn observe(reads: &Reads, now: u64, age: u64) -> Observation {
    let last = reads.marks[(reads.count as usize).clamp(1, MARKS) - 1];
    let unread = last.seq.wrapping_sub(reads.copied);
    let mut seen = Observation {
        ktime_ns: now,
        probe: SPEC.name,
        kind: READSLOW,
        netns: (reads.netns != 0).then_some(NetnsKey {
            inode: reads.netns,
            cookie: reads.cookie,
        }),
        of_socket: true,
        direction: Direction::Ingress,
        latency_ns: Some(age),
        attributes: vec![("unread", unread.to_string().into())],
        ..Observation::default()
    };
    connection::fill(&mut seen, &reads.connection);
    // It is the one that the socket had when data came first.
    seen.state = None;
    seen
}

/// UDP sockets that data came to. Their end shows nowhere.
pub(super) struct Datagrams {
    sockets: RawMap<u64, socklat::Datagrams>,
    buffer: BatchBuffer<u64, socklat::Datagrams>,
}

/// A socket that has seen nothing for so long is begun anew when it does.
const FORGET: Duration = Duration::from_secs(60);

impl Datagrams {
    pub(super) fn new(sockets: RawMap<u64, socklat::Datagrams>) -> Self {
        Self {
            sockets,
            buffer: BatchBuffer::default(),
        }
    }

    pub(super) fn forget(&mut self) -> io::Result<()> {
        let now = monotonic_ns();
        let long_ago = now.saturating_sub(FORGET.as_nanos() as u64);
        let mut old = Vec::new();
        self.sockets.for_each(&mut self.buffer, |socket, copies| {
            old.extend(
                copies
                    .first()
                    .filter(|datagrams| datagrams.seen_ns < long_ago)
                    .map(|_| *socket),
            );
        })?;
        for socket in old {
            self.sockets.delete(&socket)?;
        }
        Ok(())
    }
}
