//! What a spool holds, behind its lock: the segments of all lanes, their sequence, and what went wrong with them.

use std::collections::{BTreeSet, VecDeque};
use std::io;
use std::path::{Path, PathBuf};

use super::disk::Disk;
use super::losses::{Going, Losses};
use super::segment::Segment;
use super::state::Sent;
use super::unset::Unset;
use super::{Contents, Heartbeat, JUMP, LANES, Lane, Recovery, Spool, SpoolError, fail, frame};

#[derive(Debug)]
pub(super) struct Inner {
    /// By [`Lane`]; never empty, the last one is written to.
    pub lanes: [VecDeque<Segment>; LANES],
    pub next: u64,
    pub acked: u64,
    /// Up to here batches were handed to a stream: until that says what of it arrived, nobody knows.
    pub handed_out: u64,
    /// Which stream that is, and where it is noted for the next process.
    pub stream: u64,
    pub sent: Sent,
    /// Batches that the aggregator refused and will not get again. They are told already, so they are not missing when they go.
    pub refused: BTreeSet<u64>,
    /// `None` only until it is read.
    pub unset: Option<Unset>,
    pub unsynced: bool,
    pub losses: Losses,
    pub errors: Errors,
}

#[derive(Debug, Default)]
pub(super) struct Errors {
    pub write: u64,
    pub upkeep: u64,
    pub writing_fails: bool,
    pub syncing_fails: bool,
    pub tidying_fails: bool,
    pub last: String,
}

impl Errors {
    pub(super) fn wrote(&mut self, result: &io::Result<u64>) {
        self.writing_fails = result.is_err();
        if let Err(error) = result {
            self.write += 1;
            self.last = error.to_string();
        }
    }

    pub(super) fn synced(&mut self, result: &io::Result<()>) {
        self.syncing_fails = result.is_err();
        self.upkeep(result);
    }

    /// What is not needed any more is gone.
    pub(super) fn tidied(&mut self, result: &io::Result<()>) {
        self.tidying_fails = result.is_err();
        self.upkeep(result);
    }

    fn upkeep(&mut self, result: &io::Result<()>) {
        if let Err(error) = result {
            self.upkeep += 1;
            self.last = error.to_string();
        }
    }
}

impl Inner {
    /// Reads the segments of an earlier run.
    pub(super) fn recover(
        &mut self,
        disk: &dyn Disk,
        names: Vec<(Lane, u64, PathBuf)>,
        recovery: &mut Recovery,
    ) -> Result<(), SpoolError> {
        let mut newest_ns = 0;
        self.next = self.acked + 1;
        for (lane, first, path) in names {
            let (mut segment, cut) = Segment::open(disk, &path, first).map_err(fail(&path))?;
            segment.sync().map_err(fail(&path))?;
            recovery.cuts.extend(cut);
            newest_ns = newest_ns.max(segment.contents.to_ns);
            self.next = self.next.max(first).max(segment.last + 1);
            self.lanes[lane as usize].push_back(segment);
        }
        if newest_ns != 0 && recovery.last_seen.is_none() {
            recovery.last_seen = Some(Heartbeat {
                time_ns: newest_ns,
                clean: false,
            });
        }
        if recovery.has_lost() {
            self.next += JUMP;
        }
        Ok(())
    }

    /// Gives each lane a segment to write to: after a jump one of its own, whose name keeps the jump.
    pub(super) fn begin_lanes(&mut self, disk: &dyn Disk, dir: &Path, recovery: &Recovery) -> io::Result<()> {
        for lane in Lane::ALL {
            let chain = &mut self.lanes[lane as usize];
            if chain.is_empty() || recovery.has_lost() {
                chain.push_back(Segment::create(disk, dir, lane, self.next)?);
            }
        }
        Ok(())
    }

    /// What the process before dropped and told, by what is there.
    pub(super) fn settle_losses(&mut self, is_there: impl Fn(Lane, u64) -> bool) -> io::Result<()> {
        let (losses, gaps) = (&mut self.losses, &self.lanes[Lane::Gaps as usize]);
        losses.settle(is_there, |sequence| {
            let from = gaps
                .iter()
                .filter_map(|segment| segment.frames_above(sequence.saturating_sub(1)));
            from.flatten().any(|(found, _)| found == sequence)
        })
    }

    pub(super) fn bytes(&self) -> u64 {
        self.lanes.iter().flatten().map(|s| s.len).sum()
    }

    pub(super) fn append(
        &mut self,
        spool: &Spool,
        lane: Lane,
        contents: Contents,
        payload: &[u8],
        size: u64,
    ) -> io::Result<u64> {
        self.make_room(spool, lane, size)?;
        self.write(lane, contents, payload)
    }

    /// A batch of gaps that tells of all that was taken as gone.
    pub(super) fn append_telling(
        &mut self,
        spool: &Spool,
        contents: Contents,
        payload: &[u8],
        size: u64,
    ) -> io::Result<u64> {
        self.make_room(spool, Lane::Gaps, size)?;
        let telling = self.losses.telling(self.next);
        self.errors.tidied(&telling);
        let written = self.write(Lane::Gaps, contents, payload);
        if written.is_ok() {
            let told = self.losses.told();
            self.errors.tidied(&told);
        } else {
            self.losses.not_told();
        }
        written
    }

    fn make_room(&mut self, spool: &Spool, lane: Lane, size: u64) -> io::Result<()> {
        while self.bytes() + size > spool.max_bytes {
            self.evict(spool)?;
        }
        if self.next > frame::LAST_SEQUENCE {
            return Err(io::Error::other("no sequence is left"));
        }
        if self.active(lane).len > 0 && self.active(lane).len + size > spool.segment_bytes {
            self.roll(spool, lane)?;
        }
        Ok(())
    }

    fn write(&mut self, lane: Lane, contents: Contents, payload: &[u8]) -> io::Result<u64> {
        let sequence = self.next;
        // Also where it fails: what cannot be taken back from the file must not be there under a number of another.
        self.next += 1;
        self.unsynced = true;
        self.active(lane).append(sequence, contents, payload)?;
        Ok(sequence)
    }

    fn active(&mut self, lane: Lane) -> &mut Segment {
        self.lanes[lane as usize]
            .back_mut()
            .expect("a lane has a segment to write to")
    }

    pub(super) fn roll(&mut self, spool: &Spool, lane: Lane) -> io::Result<()> {
        self.active(lane).sync()?;
        let fresh = Segment::create(&*spool.disk, &spool.dir, lane, self.next)?;
        self.lanes[lane as usize].push_back(fresh);
        Ok(())
    }

    /// The segment that goes first: of rows, then of events, then of gaps the oldest. What was handed out may have arrived, and
    /// would be told as missing although it is not: that is kept while its lane has something else.
    fn victim(&self) -> (Lane, usize) {
        let is_filled = |lane: &Lane| self.lanes[*lane as usize].iter().any(|s| s.len > 0);
        let lane = Lane::ALL.into_iter().find(is_filled).unwrap_or(Lane::Gaps);
        let certain = |s: &Segment| s.len > 0 && s.first > self.handed_out;
        (lane, self.lanes[lane as usize].iter().position(certain).unwrap_or(0))
    }

    /// Drops a segment.
    fn evict(&mut self, spool: &Spool) -> io::Result<()> {
        let (lane, at) = self.victim();
        if at + 1 == self.lanes[lane as usize].len() {
            // It is the one that is written to.
            let first = self.next;
            if self.active(lane).first == first {
                return Err(io::Error::from(io::ErrorKind::QuotaExceeded));
            }
            self.roll(spool, lane)?;
        }
        let chain = &mut self.lanes[lane as usize];
        let Some(oldest) = chain.get(at) else {
            return Ok(());
        };
        let mut going = None;
        if oldest.last > self.acked {
            let goes = goes_with(oldest, lane, self.acked, self.handed_out, &self.refused);
            going = Some(self.losses.going(goes)?);
        } else {
            self.losses.going_acked(lane, oldest.first)?;
        }
        // What is still there is not told as gone.
        oldest.remove(&*spool.disk)?;
        chain.remove(at);
        if let Some(going) = going {
            self.losses.gone(going);
            // Else a power cut might bring back what was told as gone.
            let _ = spool.disk.sync_dir(&spool.dir);
        }
        Ok(())
    }

    /// The aggregator has everything up to `sequence`.
    pub(super) fn acked(&mut self, sequence: u64) {
        self.acked = self.acked.max(sequence);
        self.losses.arrived(sequence);
        self.refused = self.refused.split_off(&(self.acked + 1));
    }

    /// Deletes segments that are acked as a whole.
    pub(super) fn trim(&mut self, spool: &Spool) -> io::Result<()> {
        for lane in Lane::ALL {
            let active = self.active(lane);
            let worth_it = active.len > spool.segment_bytes / 4 && active.last <= self.acked;
            if worth_it {
                self.roll(spool, lane)?;
            }
            let chain = &mut self.lanes[lane as usize];
            while let Some(done) = chain.front().filter(|s| chain.len() > 1 && s.last <= self.acked) {
                self.losses.going_acked(lane, done.first)?;
                done.remove(&*spool.disk)?;
                chain.pop_front();
            }
        }
        Ok(())
    }
}

/// What is missing, and what may be, when a segment goes that is not acked as a whole.
fn goes_with(segment: &Segment, lane: Lane, acked: u64, handed_out: u64, refused: &BTreeSet<u64>) -> Going {
    let mut going = Going {
        lane,
        first: segment.first,
        lost: Contents::default(),
        unsure: Vec::new(),
    };
    match segment.frames_above(acked) {
        Some(frames) => {
            for (sequence, contents) in frames.into_iter().filter(|(sequence, _)| !refused.contains(sequence)) {
                if sequence <= handed_out {
                    going.unsure.push((sequence, contents));
                } else {
                    going.lost.add(contents);
                }
            }
        }
        // Rather too much than too little is told of what cannot be read any more.
        None => going.lost = segment.contents,
    }
    going
}
