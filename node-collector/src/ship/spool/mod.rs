//! The log on disk between the collector and the aggregator.
//!
//! Two lanes, rows and events, share one sequence. Each is a chain of segment files that only grow at their end; the
//! aggregator's acks delete segments from the front. When there is no room, the oldest segment of rows goes, then
//! of events, and what goes is told, to become a gap.
//!
//! **What survives.** A batch is written with one write call, so whatever the process did before `kill -9` is read back.
//! Against a power cut, what is not yet acked is synced once a second ([`Spool::sync`]); after a new boot the
//! sequence jumps ahead, so that a number once acked is never given to another batch.

mod frame;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
mod reader;
mod segment;
mod state;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use nix::fcntl::Flock;
use parking_lot::Mutex;
use tokio::sync::watch;
use uuid::Uuid;

pub use frame::Contents;
pub use reader::{Next, Reader};
pub use segment::Cut;
pub use state::Heartbeat;

use segment::Segment;
use state::Meta;

/// Rows can be read again in a moment and go first; events happen once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum Lane {
    Rows,
    Events,
}

impl Lane {
    pub const ALL: [Self; 2] = [Self::Rows, Self::Events];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Rows => "rows",
            Self::Events => "events",
        }
    }
}

/// Why a spool cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum SpoolError {
    #[error("collector.data_dir: `{}`: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("collector.data_dir: `{}`: in use by another collector (process {holder})", dir.display())]
    Locked { dir: PathBuf, holder: String },
    #[error("collector.data_dir: `{}`: holds a spool of version {version}, this collector reads version {ours}", dir.display())]
    Version { dir: PathBuf, version: u32, ours: u32 },
}

/// A batch as it was appended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    pub sequence: u64,
    pub contents: Contents,
    pub payload: Bytes,
}

/// What had to go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dropped {
    pub lane: Lane,
    pub contents: Contents,
}

/// What was found when the spool was opened.
#[derive(Debug, Default)]
pub struct Recovery {
    /// It was there before; false: a new epoch.
    pub resumed: bool,
    /// When a collector last ran on it.
    pub last_seen: Option<Heartbeat>,
    pub cuts: Vec<Cut>,
    /// The pods of the last collector, as it wrote them.
    pub pods: Vec<u8>,
    /// The spool before was unreadable as a whole and lies here now.
    pub set_aside: Option<PathBuf>,
}

/// For metrics and `/status`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    pub bytes: u64,
    pub frames: u64,
    /// Unix time of the oldest thing that is not acked, 0 = none.
    pub oldest_ns: u64,
    pub next_sequence: u64,
    pub acked: u64,
}

#[derive(Debug)]
pub struct Spool {
    dir: PathBuf,
    epoch: Uuid,
    max_bytes: u64,
    segment_bytes: u64,
    inner: Mutex<Inner>,
    /// The last sequence appended; wakes the client.
    appended: watch::Sender<u64>,
    _lock: Flock<File>,
}

#[derive(Debug)]
struct Inner {
    /// By [`Lane`]; never empty, the last one is written to.
    lanes: [VecDeque<Segment>; 2],
    next: u64,
    acked: u64,
    unsynced: bool,
}

/// How far the sequence jumps after a boot: more than can be in the segments that were not synced.
const JUMP: u64 = 1 << 20;
/// Refused batches that are kept to be looked at.
const POISON_KEPT: usize = 16;

impl Spool {
    /// `boot` is the machine's boot id.
    pub fn open(dir: &Path, max_bytes: u64, boot: &str) -> Result<(Self, Recovery), SpoolError> {
        let fail = |path: &Path| {
            let path = path.to_owned();
            move |source| SpoolError::Io { path, source }
        };
        std::fs::create_dir_all(dir).map_err(fail(dir))?;
        let lock = state::lock(dir)?;
        let mut recovery = Recovery {
            last_seen: Heartbeat::read(dir),
            pods: std::fs::read(dir.join("pods")).unwrap_or_default(),
            ..Recovery::default()
        };
        let old = Meta::read(dir)?;
        let names = segment_files(dir).map_err(fail(dir))?;
        let mut meta = Meta {
            epoch: Uuid::new_v4(),
            boot: boot.to_owned(),
        };
        let mut lanes = [VecDeque::new(), VecDeque::new()];
        let mut next = 1;
        let mut rebooted = false;
        if let Some(old) = old {
            meta.epoch = old.epoch;
            recovery.resumed = true;
            for (lane, first, path) in names {
                let (segment, cut) = Segment::open(&path, first).map_err(fail(&path))?;
                segment.sync().map_err(fail(&path))?;
                recovery.cuts.extend(cut);
                next = next.max(first).max(segment.last + 1);
                lanes[lane as usize].push_back(segment);
            }
            rebooted = old.boot != boot;
            if rebooted {
                next += JUMP;
            }
        } else if !names.is_empty() {
            recovery.set_aside = Some(set_aside(dir, &names).map_err(fail(dir))?);
        }
        meta.write(dir).map_err(fail(dir))?;
        for lane in Lane::ALL {
            let chain: &mut VecDeque<Segment> = &mut lanes[lane as usize];
            // After a jump a segment of its own, whose name keeps the jump.
            if chain.is_empty() || rebooted {
                chain.push_back(Segment::create(dir, lane, next).map_err(fail(dir))?);
            }
        }
        let spool = Self {
            dir: dir.to_owned(),
            epoch: meta.epoch,
            max_bytes,
            segment_bytes: (max_bytes / 16).clamp(64 << 10, 4 << 20),
            inner: Mutex::new(Inner {
                lanes,
                next,
                acked: 0,
                unsynced: false,
            }),
            appended: watch::Sender::new(next - 1),
            _lock: lock,
        };
        Ok((spool, recovery))
    }

    pub fn epoch(&self) -> Uuid {
        self.epoch
    }

    /// Gives the batch its sequence and writes it. Also tells what had to go to make room. After an error nothing is
    /// written and the sequence is not used.
    pub fn append(&self, lane: Lane, contents: Contents, payload: &[u8]) -> (io::Result<u64>, Vec<Dropped>) {
        let mut inner = self.inner.lock();
        let size = (frame::HEADER + payload.len()) as u64;
        let mut dropped = Vec::new();
        if size > self.max_bytes {
            return (Err(io::Error::from(io::ErrorKind::QuotaExceeded)), dropped);
        }
        let result = inner.append(self, lane, contents, payload, size, &mut dropped);
        drop(inner);
        if let Ok(sequence) = result {
            self.appended.send_replace(sequence);
        }
        (result, dropped)
    }

    /// Wakes when something was appended.
    pub fn appended(&self) -> watch::Receiver<u64> {
        self.appended.subscribe()
    }

    /// All frames above `after`, in the order of their sequence, those to come included.
    pub fn reader(&self, after: u64) -> Reader {
        Reader::new(after)
    }

    /// The aggregator has everything up to `sequence` in its tables. A number beyond ours means that this spool was
    /// put back to an older state: then we go on above it.
    pub fn acked(&self, sequence: u64) -> io::Result<()> {
        if sequence > frame::LAST_SEQUENCE {
            let why = format!("the aggregator says it has sequence {sequence}, which no batch can have");
            return Err(io::Error::new(io::ErrorKind::InvalidData, why));
        }
        let mut inner = self.inner.lock();
        if sequence >= inner.next {
            tracing::warn!(
                acked = sequence,
                next = inner.next,
                "aggregator is ahead of this spool, skipping to it"
            );
            inner.next = sequence + 1;
            for lane in Lane::ALL {
                let fresh = Segment::create(&self.dir, lane, sequence + 1)?;
                inner.lanes[lane as usize].push_back(fresh);
            }
        }
        inner.acked = inner.acked.max(sequence);
        inner.trim(self)
    }

    /// Puts a refused batch where it can be looked at. It stays in its lane until an ack passes it.
    pub fn set_poison_aside(&self, frame: &Frame) -> io::Result<PathBuf> {
        let dir = self.dir.join("poison");
        std::fs::create_dir_all(&dir)?;
        let mut kept: Vec<PathBuf> = std::fs::read_dir(&dir)?.filter_map(|e| Some(e.ok()?.path())).collect();
        kept.sort_unstable();
        for old in kept.iter().take((kept.len() + 1).saturating_sub(POISON_KEPT)) {
            std::fs::remove_file(old)?;
        }
        let path = dir.join(format!("{:016x}.batch", frame.sequence));
        std::fs::write(&path, &frame.payload)?;
        Ok(path)
    }

    /// Brings what was appended since the last time to the disk, unless it is acked already.
    pub fn sync(&self) -> io::Result<()> {
        let mut inner = self.inner.lock();
        if !std::mem::take(&mut inner.unsynced) || inner.acked + 1 == inner.next {
            return Ok(());
        }
        // Segments before the last one were synced when it began.
        inner
            .lanes
            .iter()
            .filter_map(VecDeque::back)
            .try_for_each(Segment::sync)
    }

    pub fn beat(&self, heartbeat: Heartbeat) -> io::Result<()> {
        heartbeat.write(&self.dir)
    }

    /// Remembers the pods that are there, for [`Recovery::pods`].
    pub fn remember_pods(&self, pods: &[u8]) -> io::Result<()> {
        state::replace(&self.dir, "pods", pods)
    }

    pub fn stats(&self) -> Stats {
        let inner = self.inner.lock();
        let unacked = inner
            .lanes
            .iter()
            .flatten()
            .filter(|s| s.frames > 0 && s.last > inner.acked);
        Stats {
            bytes: inner.bytes(),
            frames: inner.lanes.iter().flatten().map(|s| s.frames).sum(),
            oldest_ns: unacked
                .map(|s| s.contents.from_ns)
                .filter(|at| *at != 0)
                .min()
                .unwrap_or(0),
            next_sequence: inner.next,
            acked: inner.acked,
        }
    }

    /// Whether everything appended is acked.
    pub fn is_drained(&self) -> bool {
        let inner = self.inner.lock();
        inner.lanes.iter().flatten().all(|s| s.last <= inner.acked)
    }
}

impl Inner {
    fn bytes(&self) -> u64 {
        self.lanes.iter().flatten().map(|s| s.len).sum()
    }

    fn append(
        &mut self,
        spool: &Spool,
        lane: Lane,
        contents: Contents,
        payload: &[u8],
        size: u64,
        dropped: &mut Vec<Dropped>,
    ) -> io::Result<u64> {
        while self.bytes() + size > spool.max_bytes {
            dropped.extend(self.evict(spool)?);
        }
        let sequence = self.next;
        if self.active(lane).len > 0 && self.active(lane).len + size > spool.segment_bytes {
            self.roll(spool, lane)?;
        }
        self.active(lane).append(sequence, contents, payload)?;
        self.next += 1;
        self.unsynced = true;
        Ok(sequence)
    }

    fn active(&mut self, lane: Lane) -> &mut Segment {
        self.lanes[lane as usize]
            .back_mut()
            .expect("a lane has a segment to write to")
    }

    fn roll(&mut self, spool: &Spool, lane: Lane) -> io::Result<()> {
        self.active(lane).sync()?;
        let fresh = Segment::create(&spool.dir, lane, self.next)?;
        self.lanes[lane as usize].push_back(fresh);
        Ok(())
    }

    /// Drops the oldest segment of rows, or of events where no rows are left. `None` when it was acked anyway.
    fn evict(&mut self, spool: &Spool) -> io::Result<Option<Dropped>> {
        let lane = if self.lanes[Lane::Rows as usize].iter().any(|s| s.len > 0) {
            Lane::Rows
        } else {
            Lane::Events
        };
        if self.lanes[lane as usize].len() == 1 {
            // The only one is also the one that is written to.
            let first = self.next;
            if self.active(lane).first == first {
                return Err(io::Error::from(io::ErrorKind::QuotaExceeded));
            }
            self.roll(spool, lane)?;
        }
        let Some(oldest) = self.lanes[lane as usize].pop_front() else {
            return Ok(None);
        };
        let lost = (oldest.last > self.acked).then_some(Dropped {
            lane,
            contents: oldest.contents,
        });
        oldest.remove()?;
        Ok(lost)
    }

    /// Deletes segments that are acked as a whole.
    fn trim(&mut self, spool: &Spool) -> io::Result<()> {
        for lane in Lane::ALL {
            let active = self.active(lane);
            let worth_it = active.len > spool.segment_bytes / 4 && active.last <= self.acked;
            if worth_it {
                self.roll(spool, lane)?;
            }
            let chain = &mut self.lanes[lane as usize];
            while chain.len() > 1 && chain.front().is_some_and(|s| s.last <= self.acked) {
                if let Some(done) = chain.pop_front() {
                    done.remove()?;
                }
            }
        }
        Ok(())
    }
}

fn segment_files(dir: &Path) -> io::Result<Vec<(Lane, u64, PathBuf)>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        if let Some((lane, first)) = entry.file_name().to_str().and_then(Segment::parse_name) {
            found.push((lane, first, entry.path()));
        }
    }
    found.sort_unstable_by_key(|(_, first, _)| *first);
    Ok(found)
}

/// Segments without a readable `meta` belong to an epoch nobody knows.
fn set_aside(dir: &Path, segments: &[(Lane, u64, PathBuf)]) -> io::Result<PathBuf> {
    let to = dir.join(format!("unreadable-{}", sonde_common::time::now_ns()));
    std::fs::create_dir(&to)?;
    for (_, _, path) in segments {
        std::fs::rename(path, to.join(path.file_name().unwrap_or_default()))?;
    }
    Ok(to)
}
