//! What was dropped to make room and is not yet told: a gap about it is in memory until it is in the spool itself, and a
//! kill in between must not make it forgotten.
//!
//! The file `losses` has a fixed length, so that it can be written where the disk has no room left. It is two slots,
//! written in turn: one that a power cut tears leaves the other one.

use std::io;
use std::path::Path;

use super::disk::{Disk, DiskFile, Open};
use super::{Contents, Dropped, LANES, Lane};

const SLOT: usize = 512;

#[derive(Debug)]
pub(super) struct Losses {
    file: Box<dyn DiskFile>,
    record: Record,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Record {
    generation: u64,
    /// By lane.
    gone: [Contents; LANES],
    /// A segment that is about to go: it is gone if its file is.
    going: Option<(Dropped, u64)>,
}

impl Losses {
    /// `is_there` says whether the segment of a lane with that first sequence is there.
    pub(super) fn open(disk: &dyn Disk, dir: &Path, is_there: impl Fn(Lane, u64) -> bool) -> io::Result<Self> {
        let file = disk.open(&dir.join("losses"), Open::Either)?;
        let len = file.len()?;
        if len < 2 * SLOT as u64 {
            file.write_all_at(&vec![0; 2 * SLOT - len as usize], len)?;
        }
        let newest = [0, 1]
            .into_iter()
            .filter_map(|slot| Record::read(&*file, slot))
            .max_by_key(|r| r.generation);
        let mut losses = Self {
            file,
            record: newest.unwrap_or_default(),
        };
        if let Some((dropped, first)) = losses.record.going
            && !is_there(dropped.lane, first)
        {
            losses.gone(dropped);
        }
        Ok(losses)
    }

    /// What is gone and not told.
    pub(super) fn untold(&self) -> Vec<Dropped> {
        let all = Lane::ALL.into_iter().map(|lane| Dropped {
            lane,
            contents: self.record.gone[lane as usize],
        });
        all.filter(|dropped| dropped.contents != Contents::default()).collect()
    }

    /// Before the segment with this first sequence goes.
    pub(super) fn going(&mut self, dropped: Dropped, first: u64) -> io::Result<()> {
        self.record.going = Some((dropped, first));
        self.write()?;
        self.file.sync()
    }

    /// Before a segment goes that is acked: should it have been about to go unacked once, that is no more so.
    pub(super) fn going_acked(&mut self, lane: Lane, first: u64) -> io::Result<()> {
        match &self.record.going {
            Some((dropped, of)) if (dropped.lane, *of) == (lane, first) => {
                let going = self.record.going.take();
                self.write().inspect_err(|_| self.record.going = going)
            }
            _ => Ok(()),
        }
    }

    /// It went.
    pub(super) fn gone(&mut self, dropped: Dropped) {
        self.record.gone[dropped.lane as usize].add(dropped.contents);
        self.record.going = None;
    }

    /// All of it is in the spool now, as gaps.
    pub(super) fn told(&mut self) -> io::Result<()> {
        if self.untold().is_empty() {
            return Ok(());
        }
        let before = std::mem::take(&mut self.record.gone);
        self.record.going = None;
        self.write().inspect_err(|_| self.record.gone = before)
    }

    fn write(&mut self) -> io::Result<()> {
        let generation = self.record.generation + 1;
        let record = Record {
            generation,
            ..self.record.clone()
        };
        // Never over the last one that is whole.
        self.file
            .write_all_at(&record.encode(), (generation % 2) * SLOT as u64)?;
        self.record.generation = generation;
        Ok(())
    }
}

impl Record {
    /// One line of words and a check sum, filled up with spaces.
    fn encode(&self) -> Vec<u8> {
        let mut line = format!("{}", self.generation);
        let contents = |c: Contents| format!(" {} {} {}", c.from_ns, c.to_ns, c.count);
        self.gone.iter().for_each(|gone| line += &contents(*gone));
        if let Some((Dropped { lane, contents: of }, first)) = &self.going {
            line += &format!(" {} {first}{}", lane.name(), contents(*of));
        }
        let sum = crc32c::crc32c(line.as_bytes());
        format!("{:<width$}\n", format!("{sum:08x} {line}"), width = SLOT - 1).into_bytes()
    }

    fn read(file: &dyn DiskFile, slot: u64) -> Option<Self> {
        let mut bytes = [0; SLOT];
        file.read_exact_at(&mut bytes, slot * SLOT as u64).ok()?;
        let (sum, line) = std::str::from_utf8(&bytes).ok()?.trim_end().split_once(' ')?;
        (u32::from_str_radix(sum, 16).ok()? == crc32c::crc32c(line.as_bytes())).then_some(())?;
        let mut words = line.split(' ');
        let mut record = Self {
            generation: words.next()?.parse().ok()?,
            ..Self::default()
        };
        for lane in Lane::ALL {
            record.gone[lane as usize] = contents(&mut words)?;
        }
        if let Some(name) = words.next() {
            let lane = Lane::ALL.into_iter().find(|lane| lane.name() == name)?;
            let first = words.next()?.parse().ok()?;
            let contents = contents(&mut words)?;
            record.going = Some((Dropped { lane, contents }, first));
        }
        Some(record)
    }
}

fn contents<'a>(words: &mut impl Iterator<Item = &'a str>) -> Option<Contents> {
    Some(Contents {
        from_ns: words.next()?.parse().ok()?,
        to_ns: words.next()?.parse().ok()?,
        count: words.next()?.parse().ok()?,
    })
}
