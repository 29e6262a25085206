//! What a node did, in a file that outlives it. A line is one write at the end of the file, so after SIGKILL all whole lines are
//! true and at most the last one is torn, which is left out.
//!
//! A node writes that it is about to hand something over *before* it does: what is not in the journal was never handed over.
//! What it then sees in its spool is certain to have reached it; what it does not see may have, if it was acknowledged and
//! trimmed first.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::path::Path;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Line {
    /// A process begins.
    Start { run: u64 },
    /// About to hand over events `first..first + count`, one microsecond after the other.
    Events {
        run: u64,
        first: u64,
        count: u64,
        time_ns: u64,
    },
    /// About to hand over the rows of a round.
    Rows { run: u64, round: u64, time_ns: u64 },
    /// In the spool: a batch with these events (first and last) and rounds.
    Spooled {
        epoch: String,
        sequence: u64,
        events: Option<(u64, u64)>,
        rounds: Option<(u64, u64)>,
    },
    /// Everything that this process handed over was written and acknowledged.
    End { run: u64 },
}

impl Line {
    fn write(&self) -> String {
        let span = |span: &Option<(u64, u64)>| span.map_or("- -".to_owned(), |(a, b)| format!("{a} {b}"));
        match self {
            Self::Start { run } => format!("start {run}\n"),
            Self::Events {
                run,
                first,
                count,
                time_ns,
            } => format!("events {run} {first} {count} {time_ns}\n"),
            Self::Rows { run, round, time_ns } => format!("rows {run} {round} {time_ns}\n"),
            Self::Spooled {
                epoch,
                sequence,
                events,
                rounds,
            } => {
                format!("spooled {epoch} {sequence} {} {}\n", span(events), span(rounds))
            }
            Self::End { run } => format!("end {run}\n"),
        }
    }

    fn read(line: &str) -> Option<Self> {
        let words: Vec<&str> = line.split(' ').collect();
        let number = |at: usize| words.get(at)?.parse::<u64>().ok();
        let span = |at: usize| match words.get(at) {
            Some(&"-") => Some(None),
            _ => Some(Some((number(at)?, number(at + 1)?))),
        };
        Some(match words[0] {
            "start" => Self::Start { run: number(1)? },
            "events" => Self::Events {
                run: number(1)?,
                first: number(2)?,
                count: number(3)?,
                time_ns: number(4)?,
            },
            "rows" => Self::Rows {
                run: number(1)?,
                round: number(2)?,
                time_ns: number(3)?,
            },
            "spooled" => Self::Spooled {
                epoch: (*words.get(1)?).to_owned(),
                sequence: number(2)?,
                events: span(3)?,
                rounds: span(5)?,
            },
            "end" => Self::End { run: number(1)? },
            _ => return None,
        })
    }
}

/// Whole lines only. A line that says nothing we know is an error: then nothing can be told.
pub fn read(path: &Path) -> io::Result<Vec<Line>> {
    let mut text = String::new();
    File::open(path)?.read_to_string(&mut text)?;
    let whole = &text[..text.rfind('\n').map_or(0, |at| at + 1)];
    let line = |line: &str| {
        Line::read(line)
            .ok_or_else(|| io::Error::other(format!("{}: not a line of a journal: {line:?}", path.display())))
    };
    whole.lines().map(line).collect()
}

#[derive(Debug)]
pub struct Journal(File);

impl Journal {
    /// For more lines; a torn one at the end goes.
    pub fn append(path: &Path) -> io::Result<(Self, Vec<Line>)> {
        let file = File::options().create(true).append(true).open(path)?;
        let bytes = std::fs::read(path)?;
        file.set_len(bytes.iter().rposition(|b| *b == b'\n').map_or(0, |at| at as u64 + 1))?;
        Ok((Self(file), read(path)?))
    }

    pub fn write(&self, line: &Line) -> io::Result<()> {
        (&self.0).write_all(line.write().as_bytes())
    }

    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self(self.0.try_clone()?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines() -> Vec<Line> {
        let spooled = |sequence, events, rounds| Line::Spooled {
            epoch: "e".into(),
            sequence,
            events,
            rounds,
        };
        vec![
            Line::Start { run: 1 },
            Line::Events {
                run: 1,
                first: 1,
                count: 20,
                time_ns: 7,
            },
            Line::Rows {
                run: 1,
                round: 4,
                time_ns: 8,
            },
            spooled(1, Some((1, 20)), None),
            spooled(2, None, Some((4, 4))),
            spooled(3, None, None),
            Line::End { run: 1 },
        ]
    }

    #[test]
    fn lines_come_back_and_a_torn_one_is_left_out_and_cut_off() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal");
        let (journal, before) = Journal::append(&path).unwrap();
        assert!(before.is_empty());
        lines().iter().for_each(|line| journal.write(line).unwrap());
        assert_eq!(read(&path).unwrap(), lines());
        let mut torn = std::fs::read(&path).unwrap();
        torn.extend(b"events 1 21 2");
        std::fs::write(&path, torn).unwrap();
        assert_eq!(read(&path).unwrap(), lines());
        let (journal, before) = Journal::append(&path).unwrap();
        assert_eq!(before, lines());
        journal.write(&Line::Start { run: 2 }).unwrap();
        assert_eq!(read(&path).unwrap().last(), Some(&Line::Start { run: 2 }));
    }
}
