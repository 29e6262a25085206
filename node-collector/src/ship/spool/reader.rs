//! Walks both lanes in the order of the sequence, also while they are written to and trimmed.

use std::collections::VecDeque;
use std::io;

use super::segment::Segment;
use super::{Cut, Frame, Lane, Spool};

#[derive(Debug)]
pub struct Reader {
    after: u64,
    cursors: [Cursor; 2],
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
    pub(super) fn new(after: u64) -> Self {
        Self {
            after,
            cursors: [Cursor::default(); 2],
        }
    }

    /// The next frame in the order of the sequence.
    pub fn next(&mut self, spool: &Spool) -> io::Result<Next> {
        let mut inner = spool.inner.lock();
        let mut lowest: Option<(u64, Lane)> = None;
        for lane in Lane::ALL {
            let cursor = &mut self.cursors[lane as usize];
            match seek(&inner.lanes[lane as usize], cursor, self.after)? {
                Seek::At(sequence) if lowest.is_none_or(|(low, _)| sequence < low) => lowest = Some((sequence, lane)),
                Seek::Unreadable => return damaged(&mut inner.lanes[lane as usize], *cursor, self.after),
                Seek::At(_) | Seek::End => {}
            }
        }
        let Some((_, lane)) = lowest else {
            return Ok(Next::Nothing);
        };
        let chain = &mut inner.lanes[lane as usize];
        let cursor = &mut self.cursors[lane as usize];
        let segment = chain.iter().find(|s| s.first == cursor.segment);
        match segment.map(|s| s.read_at(cursor.offset)).transpose()?.flatten() {
            Some(frame) => {
                self.after = frame.sequence;
                Ok(Next::Frame(frame))
            }
            None => damaged(chain, *cursor, self.after),
        }
    }
}

enum Seek {
    At(u64),
    End,
    Unreadable,
}

/// Moves the cursor to the first frame above `after`.
fn seek(chain: &VecDeque<Segment>, cursor: &mut Cursor, after: u64) -> io::Result<Seek> {
    loop {
        // Its segment may be gone by now.
        let Some(segment) = chain.iter().find(|s| s.first >= cursor.segment) else {
            return Ok(Seek::End);
        };
        if segment.first != cursor.segment {
            *cursor = Cursor {
                segment: segment.first,
                offset: 0,
            };
        }
        if cursor.offset >= segment.len || segment.last <= after {
            let Some(next) = chain.iter().find(|s| s.first > segment.first) else {
                return Ok(Seek::End);
            };
            *cursor = Cursor {
                segment: next.first,
                offset: 0,
            };
            continue;
        }
        match segment.header_at(cursor.offset)? {
            Some(header) if header.sequence > after => return Ok(Seek::At(header.sequence)),
            Some(header) => cursor.offset += header.size(),
            None => return Ok(Seek::Unreadable),
        }
    }
}

fn damaged(chain: &mut VecDeque<Segment>, cursor: Cursor, after: u64) -> io::Result<Next> {
    let Some(segment) = chain.iter_mut().find(|s| s.first == cursor.segment) else {
        return Ok(Next::Nothing);
    };
    let cut = Cut {
        file: format!("{:016x}.log", segment.first),
        bytes: segment.cut(cursor.offset, after)?,
        after_ns: segment.contents.from_ns,
    };
    Ok(Next::Damaged(cut))
}
