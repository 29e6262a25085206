//! A file of frames, written at its end only. Its name says its lane and its first sequence.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use super::frame::{Contents, HEADER, Header, LAST_SEQUENCE, encode};
use super::{Frame, Lane};

#[derive(Debug)]
pub(super) struct Segment {
    file: File,
    path: PathBuf,
    /// The sequence in its name: no frame of it is lower.
    pub first: u64,
    /// 0 while it is empty.
    pub last: u64,
    pub len: u64,
    pub frames: u64,
    /// Of all frames together.
    pub contents: Contents,
}

/// What was cut off a segment because it could not be read back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cut {
    pub file: String,
    pub bytes: u64,
    /// Unix time of the last thing before it, 0 if there is none.
    pub after_ns: u64,
}

impl Segment {
    pub(super) fn create(dir: &Path, lane: Lane, first: u64) -> io::Result<Self> {
        let path = dir.join(format!("{}-{first:016x}.log", lane.name()));
        let file = File::options().read(true).write(true).create_new(true).open(&path)?;
        // The name carries the sequence on: it must last longer than the segments before it.
        File::open(dir)?.sync_all()?;
        Ok(Self {
            file,
            path,
            first,
            last: 0,
            len: 0,
            frames: 0,
            contents: Contents::default(),
        })
    }

    /// Lane and first sequence of a file name; `None` if it is no segment.
    pub(super) fn parse_name(name: &str) -> Option<(Lane, u64)> {
        let (lane, first) = name.strip_suffix(".log")?.split_once('-')?;
        let lane = Lane::ALL.into_iter().find(|l| l.name() == lane)?;
        (first.len() == 16).then_some(())?;
        let first = u64::from_str_radix(first, 16).ok()?;
        (first <= LAST_SEQUENCE).then_some((lane, first))
    }

    /// Reads all frames and cuts off what is not one: the end of a write that was cut short, or damage.
    pub(super) fn open(path: &Path, first: u64) -> io::Result<(Self, Option<Cut>)> {
        let file = File::options().read(true).write(true).open(path)?;
        let size = file.metadata()?.len();
        let mut segment = Self {
            file,
            path: path.to_owned(),
            first,
            last: 0,
            len: 0,
            frames: 0,
            contents: Contents::default(),
        };
        let mut floor = first;
        while let Some((header, _)) = segment.frame_at(segment.len, size)? {
            if header.sequence < floor {
                break;
            }
            floor = header.sequence + 1;
            segment.note(&header);
        }
        let cut = (segment.len < size).then(|| Cut {
            file: path
                .file_name()
                .map_or_else(String::new, |n| n.to_string_lossy().into_owned()),
            bytes: size - segment.len,
            after_ns: segment.contents.to_ns,
        });
        if cut.is_some() {
            segment.file.set_len(segment.len)?;
        }
        Ok((segment, cut))
    }

    fn note(&mut self, header: &Header) {
        self.len += header.size();
        self.last = header.sequence;
        self.frames += 1;
        let Contents { from_ns, to_ns, count } = header.contents;
        let all = &mut self.contents;
        all.from_ns = if all.from_ns == 0 {
            from_ns
        } else {
            all.from_ns.min(from_ns)
        };
        all.to_ns = all.to_ns.max(to_ns);
        all.count = all.count.saturating_add(count);
    }

    /// One write. After an error the file is as before.
    pub(super) fn append(&mut self, sequence: u64, contents: Contents, payload: &[u8]) -> io::Result<()> {
        let frame = encode(sequence, contents, payload);
        if let Err(error) = self.file.write_all_at(&frame, self.len) {
            // What is left of it would be cut off at the next start, but not before more is written over it.
            let _ = self.file.set_len(self.len);
            return Err(error);
        }
        let header: [u8; HEADER] = frame[..HEADER].try_into().expect("a frame begins with its header");
        self.note(&Header::decode(&header).expect("a frame just encoded"));
        Ok(())
    }

    /// The header at `offset`, or `None` at the end.
    pub(super) fn header_at(&self, offset: u64) -> io::Result<Option<Header>> {
        if offset + HEADER as u64 > self.len {
            return Ok(None);
        }
        let mut header = [0; HEADER];
        self.file.read_exact_at(&mut header, offset)?;
        Ok(Header::decode(&header))
    }

    /// The whole frame at `offset`, or `None` where there is none that can be read back.
    pub(super) fn read_at(&self, offset: u64) -> io::Result<Option<Frame>> {
        Ok(self.frame_at(offset, self.len)?.map(|(header, payload)| Frame {
            sequence: header.sequence,
            contents: header.contents,
            payload: payload.into(),
        }))
    }

    fn frame_at(&self, offset: u64, end: u64) -> io::Result<Option<(Header, Vec<u8>)>> {
        let mut bytes = [0; HEADER];
        if offset + HEADER as u64 > end {
            return Ok(None);
        }
        self.file.read_exact_at(&mut bytes, offset)?;
        let Some(header) = Header::decode(&bytes).filter(|h| offset + h.size() <= end) else {
            return Ok(None);
        };
        let mut payload = vec![0; header.len];
        self.file.read_exact_at(&mut payload, offset + HEADER as u64)?;
        Ok(header.fits(&bytes, &payload).then_some((header, payload)))
    }

    /// From here on the segment has no more frames; what was behind is gone. `last` is the sequence of the frame before.
    /// How many bytes that are.
    pub(super) fn cut(&mut self, offset: u64, last: u64) -> io::Result<u64> {
        let bytes = self.len.saturating_sub(offset);
        self.file.set_len(offset)?;
        self.len = offset;
        self.last = self.last.min(last);
        Ok(bytes)
    }

    pub(super) fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    pub(super) fn remove(self) -> io::Result<()> {
        std::fs::remove_file(&self.path)
    }
}
