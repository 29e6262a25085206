//! The log on disk between the collector and the aggregator.
//!
//! Three lanes, rows, events and gaps, share one sequence. Each is a chain of segment files that only grow at their end; the
//! aggregator's acks delete segments from the front. When there is no room, the oldest segment of rows goes, then
//! of events, and what goes is told, to become a gap.
//!
//! **What survives.** A batch is written with one write call, so whatever the process did before `kill -9` is read back.
//! Against a power cut, what is not yet acked is synced once a second ([`Spool::sync`]). After a new boot, and after
//! damage, the sequence jumps ahead, so that a number once acked is never given to another batch. docs/spool.md says it
//! for people.
//!
//! **What fails.** An operation that fails leaves the spool as it was, is counted ([`Stats`]), and is tried again when
//! the next batch needs it: nothing has to be restarted when the disk is well again.

mod disk;
mod frame;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
mod inner;
mod losses;
#[cfg(test)]
mod model;
mod reader;
mod segment;
#[cfg(test)]
pub(crate) mod sim;
mod state;
#[cfg(test)]
mod tests;
mod unset;

use std::collections::{BTreeSet, VecDeque};
use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use nix::fcntl::Flock;
use parking_lot::Mutex;
use tokio::sync::watch;
use uuid::Uuid;

pub use frame::Contents;
pub use reader::{Next, Reader};
pub use segment::Cut;
pub use state::Heartbeat;

use disk::{Disk, Host, Open};
use inner::{Errors, Inner};
use losses::Losses;
use segment::Segment;
use state::{Meta, Sent};
use unset::Unset;

pub(crate) const LANES: usize = 3;

/// Rows can be read again in a moment and go first; events happen once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum Lane {
    Rows,
    Events,
    /// What tells of losses is small, and must not be lost with what comes after them.
    Gaps,
}

impl Lane {
    /// In the order in which they make room.
    pub const ALL: [Self; LANES] = [Self::Rows, Self::Events, Self::Gaps];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Rows => "rows",
            Self::Events => "events",
            Self::Gaps => "gaps",
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
    /// The machine was started anew since then: what was not synced may be gone without a trace.
    pub rebooted: bool,
    /// When a collector last ran on it.
    pub last_seen: Option<Heartbeat>,
    pub cuts: Vec<Cut>,
    /// What had to go before that and was not told: [`Spool::told`] was not called since.
    pub dropped: Vec<Dropped>,
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
    /// Batches that could not be written.
    pub write_errors: u64,
    /// Times that what was written could not be brought to the disk, or what is acked not be deleted.
    pub upkeep_errors: u64,
    /// The last batch could not be written, what is there not be brought to the disk, or what is acked not be deleted.
    pub failing: bool,
}

#[derive(Debug)]
pub struct Spool {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    epoch: Uuid,
    max_bytes: u64,
    segment_bytes: u64,
    inner: Mutex<Inner>,
    /// The last sequence appended; wakes the client.
    appended: watch::Sender<u64>,
    lock: Option<Flock<File>>,
}

/// How far the sequence jumps after a boot or damage: more than can be in the segments that were not synced.
const JUMP: u64 = 1 << 20;
/// Refused batches that are kept to be looked at.
const POISON_KEPT: usize = 16;

impl Spool {
    /// `boot` is the machine's boot id.
    pub fn open(dir: &Path, max_bytes: u64, boot: &str) -> Result<(Self, Recovery), SpoolError> {
        let segment_bytes = (max_bytes / 16).clamp(64 << 10, 4 << 20);
        let disk = Arc::new(Host);
        disk.create_dir(dir).map_err(fail(dir))?;
        let lock = state::lock(dir)?;
        let (mut spool, recovery) = Self::open_on(disk, dir, max_bytes, segment_bytes, boot)?;
        spool.lock = Some(lock);
        Ok((spool, recovery))
    }

    pub(super) fn open_on(
        disk: Arc<dyn Disk>,
        dir: &Path,
        max_bytes: u64,
        segment_bytes: u64,
        boot: &str,
    ) -> Result<(Self, Recovery), SpoolError> {
        let old = Meta::read(&*disk, dir)?;
        let names = segment_files(&*disk, dir).map_err(fail(dir))?;
        let heartbeat = Heartbeat::read(&*disk, dir);
        let mut recovery = Recovery {
            resumed: old.is_some(),
            rebooted: old.as_ref().is_some_and(|old| old.boot != boot),
            last_seen: heartbeat.map(|(heartbeat, _)| heartbeat),
            pods: disk.read(&dir.join("pods")).unwrap_or_default(),
            ..Recovery::default()
        };
        let meta = Meta {
            epoch: old.map_or_else(Uuid::new_v4, |old| old.epoch),
            boot: boot.to_owned(),
        };
        let segments: BTreeSet<_> = names.iter().map(|(lane, first, _)| (*lane as usize, *first)).collect();
        let is_there = |lane: Lane, first| segments.contains(&(lane as usize, first));
        let mut losses = Losses::open(&*disk, dir).map_err(fail(&dir.join("losses")))?;
        if !recovery.resumed {
            losses.clear().map_err(fail(&dir.join("losses")))?;
        }
        let (sent, acked, handed_out) = Sent::open(&*disk, dir).map_err(fail(&dir.join("sent")))?;
        let mut inner = Inner {
            lanes: Default::default(),
            next: 1,
            acked: 0,
            handed_out: 0,
            stream: 0,
            sent,
            refused: BTreeSet::new(),
            unset: None,
            unsynced: false,
            losses,
            errors: Errors::default(),
        };
        if recovery.resumed {
            let beat = heartbeat.map_or(0, |(_, acked)| acked);
            inner.acked = beat.max(acked).min(frame::LAST_SEQUENCE);
            inner.handed_out = handed_out;
            inner.refused = refused(&*disk, dir, meta.epoch, inner.acked);
            inner.recover(&*disk, names, &mut recovery)?;
            inner.settle_losses(is_there).map_err(fail(&dir.join("losses")))?;
            recovery.dropped = inner.losses.take();
            inner.begin_lanes(&*disk, dir, &recovery).map_err(fail(dir))?;
            // After the segments whose names keep the jump: with this boot in it, no other jump follows.
            meta.write(&*disk, dir).map_err(fail(dir))?;
        } else {
            if !names.is_empty() {
                recovery.set_aside = Some(set_aside(&*disk, dir, &names).map_err(fail(dir))?);
            }
            // Their numbers are of another epoch.
            if heartbeat.is_some() {
                disk.remove(&dir.join("heartbeat")).map_err(fail(dir))?;
            }
            if (acked, handed_out) != (0, 0) {
                inner.sent.clear();
            }
            // Before the segments: without it they would be of an epoch that nobody knows.
            meta.write(&*disk, dir).map_err(fail(dir))?;
            inner.begin_lanes(&*disk, dir, &recovery).map_err(fail(dir))?;
        }
        inner.unset = Some(Unset::open(&*disk, dir, boot, inner.next));
        let spool = Self {
            disk,
            dir: dir.to_owned(),
            epoch: meta.epoch,
            max_bytes,
            segment_bytes,
            appended: watch::Sender::new(inner.next - 1),
            inner: Mutex::new(inner),
            lock: None,
        };
        Ok((spool, recovery))
    }

    pub fn epoch(&self) -> Uuid {
        self.epoch
    }

    /// Gives the batch its sequence and writes it. Also tells what is gone, to make room or as [`Self::lost`]. After an
    /// error the batch is not in the spool, and no other gets its sequence.
    pub fn append(&self, lane: Lane, contents: Contents, payload: &[u8]) -> (io::Result<u64>, Vec<Dropped>) {
        self.add(payload, |inner, size| inner.append(self, lane, contents, payload, size))
    }

    /// The same for gaps, among which is all that was told as gone until now: that is noted with it.
    pub fn append_telling(&self, contents: Contents, payload: &[u8]) -> (io::Result<u64>, Vec<Dropped>) {
        self.add(payload, |inner, size| {
            inner.append_telling(self, contents, payload, size)
        })
    }

    fn add(
        &self,
        payload: &[u8],
        append: impl FnOnce(&mut Inner, u64) -> io::Result<u64>,
    ) -> (io::Result<u64>, Vec<Dropped>) {
        let mut inner = self.inner.lock();
        let size = (frame::HEADER + payload.len()) as u64;
        if size > self.max_bytes {
            return (Err(io::Error::from(io::ErrorKind::QuotaExceeded)), Vec::new());
        }
        let result = append(&mut inner, size);
        inner.errors.wrote(&result);
        let dropped = inner.losses.take();
        drop(inner);
        if let Ok(sequence) = result {
            self.appended.send_replace(sequence);
        }
        (result, dropped)
    }

    /// What turned out to be gone since it was asked last: it was dropped while it was on its way, and did not arrive.
    pub fn lost(&self) -> Vec<Dropped> {
        self.inner.lock().losses.take()
    }

    /// Whether all that is gone is told, and nothing was dropped of which that is not known yet.
    pub fn is_settled(&self) -> bool {
        !self.inner.lock().losses.is_open()
    }

    /// All that [`Self::append`], [`Self::lost`] and [`Recovery::dropped`] told of as gone is in the spool now, as gaps.
    pub fn told(&self) -> io::Result<()> {
        let mut inner = self.inner.lock();
        let told = inner.losses.told();
        inner.errors.tidied(&told);
        told
    }

    /// Wakes when something was appended.
    pub fn appended(&self) -> watch::Receiver<u64> {
        self.appended.subscribe()
    }

    /// All frames above `after`, in the order of their sequence, those to come included.
    pub fn reader(&self, after: u64) -> Reader {
        Reader::new(after, None)
    }

    /// The same for a stream to an aggregator that has all up to `durable`, and takes nothing of earlier streams any more.
    /// What it is handed is not dropped while there is something else to drop: whether it arrives is known later only.
    pub fn sender(&self, durable: u64) -> io::Result<Reader> {
        let mut inner = self.inner.lock();
        self.take_ack(&mut inner, durable)?;
        inner.losses.none_arrives()?;
        inner.handed_out = durable;
        inner.stream += 1;
        Ok(Reader::new(durable, Some(inner.stream)))
    }

    /// The aggregator has everything up to `sequence` in its tables. A number beyond ours means that this spool was
    /// put back to an older state: then we go on above it.
    pub fn acked(&self, sequence: u64) -> io::Result<()> {
        self.take_ack(&mut self.inner.lock(), sequence)
    }

    fn take_ack(&self, inner: &mut Inner, sequence: u64) -> io::Result<()> {
        if sequence > frame::LAST_SEQUENCE / 2 {
            let why = format!("the aggregator says it has sequence {sequence}, which no batch can have");
            return Err(io::Error::new(io::ErrorKind::InvalidData, why));
        }
        if sequence >= inner.next {
            tracing::warn!(
                acked = sequence,
                next = inner.next,
                "aggregator is ahead of this spool, skipping to it"
            );
            inner.next = sequence + 1;
            for lane in Lane::ALL {
                let fresh = Segment::create(&*self.disk, &self.dir, lane, sequence + 1)?;
                inner.lanes[lane as usize].push_back(fresh);
            }
        }
        inner.acked(sequence);
        let trimmed = inner.trim(self);
        inner.errors.tidied(&trimmed);
        // What cannot be deleted now is deleted with a later ack: that is no reason not to take this one.
        Ok(())
    }

    /// The aggregator refuses this batch: it is not sent again, and put where it can be looked at. It stays in its lane
    /// until an ack passes it.
    pub fn refuse(&self, frame: &Frame) -> io::Result<PathBuf> {
        self.inner.lock().refused.insert(frame.sequence);
        let dir = self.dir.join("poison");
        self.disk.create_dir(&dir)?;
        let path = dir.join(poison_name(frame.sequence, self.epoch, UNTOLD));
        let mut kept = self.disk.names(&dir)?;
        kept.retain(|name| Some(name.as_os_str()) != path.file_name());
        kept.sort_unstable();
        for old in kept.iter().take((kept.len() + 1).saturating_sub(POISON_KEPT)) {
            self.disk.remove(&dir.join(old))?;
        }
        self.disk.open(&path, Open::Emptied)?.write_all_at(&frame.payload, 0)?;
        Ok(path)
    }

    /// A gap about a refused batch is in the spool. The next process needs not hear again that it is refused; without
    /// this it does, and tells it then.
    pub fn refusal_told(&self, sequence: u64) -> io::Result<()> {
        let dir = self.dir.join("poison");
        let path = |kind| dir.join(poison_name(sequence, self.epoch, kind));
        self.disk.rename(&path(UNTOLD), &path(TOLD))
    }

    /// What is appended from now on has times of a clock that was not set; `offset_ns` is what that says minus the time since
    /// the boot.
    pub fn clock_is_unset(&self, offset_ns: i64) -> io::Result<()> {
        let mut inner = self.inner.lock();
        let unset = inner.unset.as_mut();
        unset.map_or(Ok(()), |unset| unset.note(&*self.disk, &self.dir, offset_ns))
    }

    /// What that was for the batch of this sequence; `None` where nobody knows any more.
    pub fn unset_offset_ns(&self, sequence: u64) -> Option<i64> {
        self.inner.lock().unset.as_ref()?.offset_ns(sequence)
    }

    /// Brings what was appended since the last time to the disk, unless it is acked already.
    pub fn sync(&self) -> io::Result<()> {
        let mut inner = self.inner.lock();
        if !inner.unsynced || inner.acked + 1 == inner.next {
            return Ok(());
        }
        // Segments before the last one were synced when it began.
        let last = inner.lanes.iter_mut().filter_map(VecDeque::back_mut);
        let synced = last.map(Segment::sync).fold(Ok(()), io::Result::and);
        inner.unsynced = synced.is_err();
        inner.errors.synced(&synced);
        synced
    }

    /// Notes that a collector runs, and how far the aggregator is.
    pub fn beat(&self, heartbeat: Heartbeat) -> io::Result<()> {
        let acked = self.inner.lock().acked;
        heartbeat.write(&*self.disk, &self.dir, acked)
    }

    /// Remembers the pods that are there, for [`Recovery::pods`].
    pub fn remember_pods(&self, pods: &[u8]) -> io::Result<()> {
        state::replace(&*self.disk, &self.dir, "pods", pods)
    }

    /// The last error of a write, a sync or a deletion, also if all went well since.
    pub fn last_error(&self) -> String {
        self.inner.lock().errors.last.clone()
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
            write_errors: inner.errors.write,
            upkeep_errors: inner.errors.upkeep,
            failing: inner.errors.writing_fails || inner.errors.syncing_fails || inner.errors.tidying_fails,
        }
    }

    /// Whether everything appended is acked.
    pub fn is_drained(&self) -> bool {
        let inner = self.inner.lock();
        inner.lanes.iter().flatten().all(|s| s.last <= inner.acked)
    }
}

/// Kinds of refused batches, by whether the gap about them is in the spool.
const UNTOLD: &str = "untold";
const TOLD: &str = "batch";

fn poison_name(sequence: u64, epoch: Uuid, kind: &str) -> String {
    format!("{sequence:016x}-{}.{kind}", epoch.simple())
}

/// Sequences above `acked` that were refused and told.
fn refused(disk: &dyn Disk, dir: &Path, epoch: Uuid, acked: u64) -> BTreeSet<u64> {
    let names = disk.names(&dir.join("poison")).unwrap_or_default();
    let sequence = |name: &OsString| {
        let sequence = u64::from_str_radix(name.to_str()?.get(..16)?, 16).ok()?;
        (name.to_str() == Some(&poison_name(sequence, epoch, TOLD)) && sequence > acked).then_some(sequence)
    };
    names.iter().filter_map(sequence).collect()
}

fn fail(path: &Path) -> impl FnOnce(io::Error) -> SpoolError {
    let path = path.to_owned();
    move |source| SpoolError::Io { path, source }
}

impl Recovery {
    /// Sequences may have been in use that are not in the segments any more.
    fn has_lost(&self) -> bool {
        self.rebooted || !self.cuts.is_empty()
    }
}

fn segment_files(disk: &dyn Disk, dir: &Path) -> io::Result<Vec<(Lane, u64, PathBuf)>> {
    let segment = |name: OsString| {
        let (lane, first) = name.to_str().and_then(Segment::parse_name)?;
        Some((lane, first, dir.join(name)))
    };
    let mut found: Vec<_> = disk.names(dir)?.into_iter().filter_map(segment).collect();
    found.sort_unstable_by_key(|(_, first, _)| *first);
    Ok(found)
}

/// Segments without a readable `meta` belong to an epoch nobody knows.
fn set_aside(disk: &dyn Disk, dir: &Path, segments: &[(Lane, u64, PathBuf)]) -> io::Result<PathBuf> {
    let to = dir.join(format!("unreadable-{}", sonde_common::time::now_ns()));
    disk.create_dir(&to)?;
    for (_, _, path) in segments {
        disk.rename(path, &to.join(path.file_name().unwrap_or_default()))?;
    }
    Ok(to)
}
