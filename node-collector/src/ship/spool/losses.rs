//! What was dropped to make room and is not yet told: a gap about it is in memory until it is in the spool itself, and a
//! kill in between must not make it forgotten.
//!
//! What was on its way when it was dropped may have arrived. Which of it did is known when the aggregator answers the next
//! Hello, or acknowledges what was sent after it: until then it is *unsure*, and not told.
//!
//! The file `losses` has a fixed length, so that it can be written where the disk has no room left. It is two slots,
//! written in turn: one that a power cut tears leaves the other one.

use std::io;
use std::path::Path;

use super::disk::{Disk, DiskFile, Open};
use super::{Contents, Dropped, LANES, Lane};

/// Long enough for all words of a record with [`MOST_UNSURE`] batches.
const SLOT: usize = 16 << 10;
/// The same of earlier versions.
const OLD_SLOT: usize = 512;
/// More than a client has on its way; what is beyond is told as gone, whether or not it arrived.
const MOST_UNSURE: usize = 128;
/// Where in a record a [`Telling`] begins; not the name of a lane.
const TELLING: &str = "telling";

#[derive(Debug)]
pub(super) struct Losses {
    file: Box<dyn DiskFile>,
    record: Record,
    /// Of what is gone, that of which nobody was told by [`Self::take`].
    untaken: [Contents; LANES],
}

/// A batch that was dropped while it was on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Unsure {
    pub lane: Lane,
    pub sequence: u64,
    pub contents: Contents,
}

/// A segment that is about to go: it is gone if its file is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Going {
    pub lane: Lane,
    /// Of the segment.
    pub first: u64,
    /// What is missing then.
    pub lost: Contents,
    /// What may be.
    pub unsure: Vec<(u64, Contents)>,
}

/// A batch of gaps that is about to be in the spool: what is gone is told if it is there.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Telling {
    sequence: u64,
    /// What is gone and not in it.
    rest: [Contents; LANES],
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Record {
    generation: u64,
    /// By lane.
    gone: [Contents; LANES],
    unsure: Vec<Unsure>,
    telling: Option<Telling>,
    going: Option<Going>,
}

impl Losses {
    pub(super) fn open(disk: &dyn Disk, dir: &Path) -> io::Result<Self> {
        let file = disk.open(&dir.join("losses"), Open::Either)?;
        let len = file.len()?;
        let newest = |read: fn(&dyn DiskFile, u64) -> Option<Record>| {
            let records = [0, 1].into_iter().filter_map(|slot| read(&*file, slot));
            records.max_by_key(|record| record.generation)
        };
        let old = newest(Record::read_old);
        if len < 2 * SLOT as u64 {
            file.write_all_at(&vec![0; 2 * SLOT - len as usize], len)?;
        }
        let record = newest(Record::read).or_else(|| old.clone());
        let mut losses = Self {
            file,
            record: record.unwrap_or_default(),
            untaken: Default::default(),
        };
        if old.is_some_and(|old| old == losses.record) {
            // Its slots are where the first of ours is: the second one is written before that.
            losses.record.generation += losses.record.generation % 2;
            losses.write()?;
            losses.write()?;
        }
        Ok(losses)
    }

    /// What the process before was about to do, and did or not: whether the segment of a lane with that first sequence is
    /// there, and whether a batch of gaps is.
    pub(super) fn settle(
        &mut self,
        is_there: impl Fn(Lane, u64) -> bool,
        is_told: impl Fn(u64) -> bool,
    ) -> io::Result<()> {
        let told = self.record.telling.take().filter(|telling| is_told(telling.sequence));
        if let Some(telling) = &told {
            self.record.gone = telling.rest;
        }
        if let Some(going) = self.record.going.clone()
            && !is_there(going.lane, going.first)
        {
            self.gone(going);
        }
        self.untaken = self.record.gone;
        // The batch may be acked and deleted before the next start.
        if told.is_some() { self.write() } else { Ok(()) }
    }

    /// All that is gone and of which nobody was told.
    pub(super) fn take(&mut self) -> Vec<Dropped> {
        let untaken = std::mem::take(&mut self.untaken);
        let all = Lane::ALL.into_iter().map(|lane| Dropped {
            lane,
            contents: untaken[lane as usize],
        });
        all.filter(|dropped| dropped.contents != Contents::default()).collect()
    }

    /// Whether something is gone, or may be, that is not in the spool as a gap.
    pub(super) fn is_open(&self) -> bool {
        !self.record.unsure.is_empty() || self.record.gone != <[Contents; LANES]>::default()
    }

    /// Before a segment goes.
    pub(super) fn going(&mut self, mut going: Going) -> io::Result<Going> {
        let room = MOST_UNSURE
            .saturating_sub(self.record.unsure.len())
            .min(going.unsure.len());
        for (_, contents) in going.unsure.drain(room..) {
            going.lost.add(contents);
        }
        self.record.going = Some(going.clone());
        self.write()?;
        self.file.sync()?;
        Ok(going)
    }

    /// Before a segment goes that is acked: should it have been about to go unacked once, that is no more so.
    pub(super) fn going_acked(&mut self, lane: Lane, first: u64) -> io::Result<()> {
        match &self.record.going {
            Some(going) if (going.lane, going.first) == (lane, first) => {
                let going = self.record.going.take();
                self.write().inspect_err(|_| self.record.going = going)
            }
            _ => Ok(()),
        }
    }

    /// It went.
    pub(super) fn gone(&mut self, going: Going) {
        let Going { lane, lost, unsure, .. } = going;
        self.lose(lane, lost);
        self.record
            .unsure
            .extend(unsure.into_iter().map(|(sequence, contents)| Unsure {
                lane,
                sequence,
                contents,
            }));
        self.record.going = None;
    }

    fn lose(&mut self, lane: Lane, contents: Contents) {
        for sum in [&mut self.record.gone, &mut self.untaken] {
            sum[lane as usize].add(contents);
        }
    }

    /// Everything up to here has arrived. It is not written: after a start the aggregator says so again.
    pub(super) fn arrived(&mut self, sequence: u64) {
        self.record.unsure.retain(|unsure| unsure.sequence > sequence);
    }

    /// What is unsure did not arrive and never will. On the disk before anything else is sent: the ack for that would
    /// cover these too.
    pub(super) fn none_arrives(&mut self) -> io::Result<()> {
        if self.record.unsure.is_empty() {
            return Ok(());
        }
        let before = (self.record.clone(), self.untaken);
        for Unsure { lane, contents, .. } in std::mem::take(&mut self.record.unsure) {
            self.lose(lane, contents);
        }
        let written = self.write().and_then(|()| self.file.sync());
        written.inspect_err(|_| {
            // The file may say either by now. The next record is a newer one whichever it is.
            (self.record.gone, self.record.unsure, self.untaken) = (before.0.gone, before.0.unsure, before.1);
        })
    }

    /// All of it that was taken is in the batch of gaps that comes next: a kill between that and [`Self::told`] does not make
    /// it told twice.
    pub(super) fn telling(&mut self, sequence: u64) -> io::Result<()> {
        if self.record.gone == self.untaken {
            return Ok(());
        }
        let rest = self.untaken;
        self.record.telling = Some(Telling { sequence, rest });
        self.write()
    }

    /// It could not be written. What is gone from now on is not in it, should it be there all the same.
    pub(super) fn not_told(&mut self) {
        self.record.telling = None;
    }

    /// All of it that was taken is in the spool now, as gaps.
    pub(super) fn told(&mut self) -> io::Result<()> {
        self.record.telling = None;
        if self.record.gone == self.untaken {
            return Ok(());
        }
        let before = std::mem::replace(&mut self.record.gone, self.untaken);
        let going = self.record.going.take();
        self.write().inspect_err(|_| {
            self.record.gone = before;
            self.record.going = going;
        })
    }

    /// Of another epoch.
    pub(super) fn clear(&mut self) -> io::Result<()> {
        let generation = self.record.generation;
        let before = std::mem::take(&mut self.record);
        self.record.generation = generation;
        self.untaken = Default::default();
        if before == self.record { Ok(()) } else { self.write() }
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
        line += &format!(" {}", self.unsure.len());
        for unsure in &self.unsure {
            line += &format!(
                " {} {}{}",
                unsure.lane.name(),
                unsure.sequence,
                contents(unsure.contents)
            );
        }
        if let Some(telling) = &self.telling {
            line += &format!(" {TELLING} {}", telling.sequence);
            telling.rest.iter().for_each(|rest| line += &contents(*rest));
        }
        if let Some(going) = &self.going {
            let unsure = going.unsure.len();
            line += &format!(
                " {} {}{} {unsure}",
                going.lane.name(),
                going.first,
                contents(going.lost)
            );
            for (sequence, of) in &going.unsure {
                line += &format!(" {sequence}{}", contents(*of));
            }
        }
        let sum = crc32c::crc32c(line.as_bytes());
        format!("{:<width$}\n", format!("{sum:08x} {line}"), width = SLOT - 1).into_bytes()
    }

    /// As collectors wrote it that told of everything at once: in short slots, and with nothing that is unsure. The first of
    /// them had no lane of gaps.
    fn read_old(file: &dyn DiskFile, slot: u64) -> Option<Self> {
        let line = line(file, slot, OLD_SLOT)?;
        let lanes = match line.split(' ').count() {
            7 | 12 => LANES - 1,
            10 | 15 => LANES,
            _ => return None,
        };
        let mut words = line.split(' ');
        let mut record = Self {
            generation: words.next()?.parse().ok()?,
            ..Self::default()
        };
        for gone in &mut record.gone[..lanes] {
            *gone = contents(&mut words)?;
        }
        if let Some(name) = words.next() {
            record.going = Some(Going {
                lane: lane(name)?,
                first: words.next()?.parse().ok()?,
                lost: contents(&mut words)?,
                unsure: Vec::new(),
            });
        }
        Some(record)
    }

    fn read(file: &dyn DiskFile, slot: u64) -> Option<Self> {
        let line = line(file, slot, SLOT)?;
        let mut words = line.split(' ');
        let mut record = Self {
            generation: words.next()?.parse().ok()?,
            ..Self::default()
        };
        for lane in Lane::ALL {
            record.gone[lane as usize] = contents(&mut words)?;
        }
        for _ in 0..words.next()?.parse::<usize>().ok()? {
            record.unsure.push(Unsure {
                lane: lane(words.next()?)?,
                sequence: words.next()?.parse().ok()?,
                contents: contents(&mut words)?,
            });
        }
        let mut next = words.next();
        if next == Some(TELLING) {
            let mut telling = Telling {
                sequence: words.next()?.parse().ok()?,
                rest: Default::default(),
            };
            for rest in &mut telling.rest {
                *rest = contents(&mut words)?;
            }
            record.telling = Some(telling);
            next = words.next();
        }
        if let Some(name) = next {
            let mut going = Going {
                lane: lane(name)?,
                first: words.next()?.parse().ok()?,
                lost: contents(&mut words)?,
                unsure: Vec::new(),
            };
            for _ in 0..words.next()?.parse::<usize>().ok()? {
                let sequence = words.next()?.parse().ok()?;
                going.unsure.push((sequence, contents(&mut words)?));
            }
            record.going = Some(going);
        }
        Some(record)
    }
}

/// What a slot says, if it is whole.
fn line(file: &dyn DiskFile, slot: u64, len: usize) -> Option<String> {
    let mut bytes = vec![0; len];
    file.read_exact_at(&mut bytes, slot * len as u64).ok()?;
    let (sum, line) = std::str::from_utf8(&bytes).ok()?.trim_end().split_once(' ')?;
    (u32::from_str_radix(sum, 16).ok()? == crc32c::crc32c(line.as_bytes())).then(|| line.to_owned())
}

fn lane(name: &str) -> Option<Lane> {
    Lane::ALL.into_iter().find(|lane| lane.name() == name)
}

fn contents<'a>(words: &mut impl Iterator<Item = &'a str>) -> Option<Contents> {
    Some(Contents {
        from_ns: words.next()?.parse().ok()?,
        to_ns: words.next()?.parse().ok()?,
        count: words.next()?.parse().ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::super::sim::Sim;
    use super::*;

    #[test]
    fn the_longest_record_has_room_in_its_slot() {
        let most = Contents {
            from_ns: u64::MAX,
            to_ns: u64::MAX,
            count: u32::MAX,
        };
        let record = Record {
            generation: u64::MAX - 1,
            gone: [most; LANES],
            unsure: Vec::new(),
            telling: Some(Telling {
                sequence: u64::MAX,
                rest: [most; LANES],
            }),
            going: Some(Going {
                lane: Lane::Events,
                first: u64::MAX,
                lost: most,
                unsure: vec![(u64::MAX, most); MOST_UNSURE],
            }),
        };
        let unsure = Unsure {
            lane: Lane::Events,
            sequence: u64::MAX,
            contents: most,
        };
        let sure = Record {
            unsure: vec![unsure; MOST_UNSURE],
            going: None,
            ..record.clone()
        };
        let disk = Sim::default();
        let file = disk.open(Path::new("/losses"), Open::Either).unwrap();
        for (slot, record) in [record, sure].into_iter().enumerate() {
            let bytes = record.encode();
            assert_eq!(bytes.len(), SLOT);
            file.write_all_at(&bytes, slot as u64 * SLOT as u64).unwrap();
            assert_eq!(Record::read(&*file, slot as u64), Some(record));
        }
    }

    #[test]
    fn what_an_earlier_version_had_not_told_is_told_once() {
        let file = |lines: [&str; 2]| {
            let disk = Sim::default();
            let file = disk.open(Path::new("/losses"), Open::Either).unwrap();
            for (slot, line) in (0..).zip(lines) {
                let sum = crc32c::crc32c(line.as_bytes());
                let text = format!("{:<511}\n", format!("{sum:08x} {line}"));
                file.write_all_at(text.as_bytes(), slot * OLD_SLOT as u64).unwrap();
            }
            disk
        };
        let told = |disk: &Sim| {
            let mut losses = Losses::open(disk, Path::new("/")).unwrap();
            losses.settle(|_, _| false, |_| false).unwrap();
            let told = losses.take();
            losses.told().unwrap();
            told.iter().map(|d| (d.lane, d.contents.count)).collect::<Vec<_>>()
        };
        let (first, second) = ("4 1 2 30 0 0 0", "5 1 2 31 3 4 9 rows 7 5 6 100");
        let disk = file([first, second]);
        assert_eq!(told(&disk), [(Lane::Rows, 131), (Lane::Events, 9)]);
        assert_eq!(told(&disk), []);
        let disk = file(["8 1 2 30 0 0 0 5 6 2", "7 1 2 3 0 0 0 0 0 0 rows 7 5 6 100"]);
        assert_eq!(told(&disk), [(Lane::Rows, 30), (Lane::Gaps, 2)]);
        assert_eq!(told(&disk), []);
    }
}
