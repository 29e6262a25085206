//! Walks all lanes in the order of the sequence, also while they are written to and trimmed.

use std::collections::VecDeque;
use std::io;

use super::inner::Inner;
use super::segment::{Segment, is_unreadable};
use super::{Cut, Frame, LANES, Lane, Spool};

#[derive(Debug)]
pub struct Reader {
    after: u64,
    /// To which stream.
    stream: Option<u64>,
    cursors: [Cursor; LANES],
}

/// A place in a lane.
#[derive(Clone, Copy, Debug, Default)]
struct Cursor {
    /// `first` of the segment.
    segment: u64,
    offset: u64,
}

/// What a reader finds next.
#[derive(Debug)]
pub enum Next {
    Frame(Frame),
    /// A segment could not be read back from there on; what was behind is lost.
    Damaged(Cut),
    Nothing,
}

impl Reader {
    pub(super) fn new(after: u64, stream: Option<u64>) -> Self {
        Self {
            after,
            stream,
            cursors: [Cursor::default(); LANES],
        }
    }

    /// The next frame in the order of the sequence; to a stream none that was refused.
    pub fn next(&mut self, spool: &Spool) -> io::Result<Next> {
        let mut inner = spool.inner.lock();
        loop {
            let next = self.next_of(&mut inner, spool)?;
            if let (Next::Frame(frame), Some(stream)) = (&next, self.stream) {
                if inner.refused.contains(&frame.sequence) {
                    continue;
                }
                // One that is still read for an earlier stream goes nowhere.
                if inner.stream == stream {
                    inner.hand_out(frame.sequence);
                }
            }
            return Ok(next);
        }
    }

    fn next_of(&mut self, inner: &mut Inner, spool: &Spool) -> io::Result<Next> {
        let mut lowest: Option<(u64, Lane)> = None;
        for lane in Lane::ALL {
            let cursor = &mut self.cursors[lane as usize];
            match readable(seek(&inner.lanes[lane as usize], cursor, self.after))? {
                Ok(Some(sequence)) if lowest.is_none_or(|(low, _)| sequence < low) => lowest = Some((sequence, lane)),
                Ok(_) => {}
                Err(damage) => return inner.damaged(spool, lane, *cursor, damage).map(Next::Damaged),
            }
        }
        let Some((_, lane)) = lowest else {
            return Ok(Next::Nothing);
        };
        let cursor = self.cursors[lane as usize];
        let segment = inner.lanes[lane as usize].iter().find(|s| s.first == cursor.segment);
        let read = segment.map_or(Ok(None), |s| s.read_at(cursor.offset));
        match readable(read.map(|frame| frame.ok_or(Damage::Content)))? {
            Ok(frame) => {
                self.after = frame.sequence;
                Ok(Next::Frame(frame))
            }
            Err(damage) => inner.damaged(spool, lane, cursor, damage).map(Next::Damaged),
        }
    }
}

/// Why there is no frame where one was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Damage {
    Content,
    /// The disk does not read it.
    Disk,
}

fn readable<T>(read: io::Result<Result<T, Damage>>) -> io::Result<Result<T, Damage>> {
    match read {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(Err(Damage::Content)),
        Err(error) if is_unreadable(&error) => Ok(Err(Damage::Disk)),
        read => read,
    }
}

/// Moves the cursor to the first frame above `after`. Its sequence; `None` at the end.
fn seek(chain: &VecDeque<Segment>, cursor: &mut Cursor, after: u64) -> io::Result<Result<Option<u64>, Damage>> {
    loop {
        // Its segment may be gone by now.
        let Some(segment) = chain.iter().find(|s| s.first >= cursor.segment) else {
            return Ok(Ok(None));
        };
        if segment.first != cursor.segment {
            *cursor = Cursor {
                segment: segment.first,
                offset: 0,
            };
        }
        if cursor.offset >= segment.len || segment.last <= after {
            let Some(next) = chain.iter().find(|s| s.first > segment.first) else {
                return Ok(Ok(None));
            };
            *cursor = Cursor {
                segment: next.first,
                offset: 0,
            };
            continue;
        }
        match segment.header_at(cursor.offset)? {
            Some(header) if header.sequence > after => return Ok(Ok(Some(header.sequence))),
            Some(header) => cursor.offset += header.size(),
            None => return Ok(Err(Damage::Content)),
        }
    }
}

impl Inner {
    fn hand_out(&mut self, sequence: u64) {
        self.handed_out = self.handed_out.max(sequence);
        self.sent.note(self.acked, self.handed_out);
    }

    fn damaged(&mut self, spool: &Spool, lane: Lane, cursor: Cursor, damage: Damage) -> io::Result<Cut> {
        let chain = &mut self.lanes[lane as usize];
        let is_last = chain.back().is_some_and(|s| s.first == cursor.segment);
        let segment = chain.iter_mut().find(|s| s.first == cursor.segment);
        let Some(segment) = segment else {
            return Err(io::Error::other("a segment went while it was read"));
        };
        let cut = segment.cut(cursor.offset, damage == Damage::Content)?;
        if is_last && segment.first < self.next {
            // Its name keeps the sequence, which the frames that are gone no longer do.
            let rolled = self.roll(spool, lane);
            self.errors.tidied(&rolled);
        }
        Ok(cut)
    }
}
