//! A file of frames, written at its end only. Its name says its lane and its first sequence.

use std::io;
use std::path::{Path, PathBuf};

use super::disk::{Disk, DiskFile, Open};
use super::frame::{Contents, HEADER, Header, LAST_SEQUENCE, encode};
use super::{Frame, Lane};

#[derive(Debug)]
pub(super) struct Segment {
    file: Box<dyn DiskFile>,
    path: PathBuf,
    /// The sequence in its name: no frame of it is lower.
    pub first: u64,
    /// 0 while it is empty.
    pub last: u64,
    pub len: u64,
    pub frames: u64,
    /// Of all frames together.
    pub contents: Contents,
    /// Bytes of a write that failed may lie behind `len`.
    ragged: bool,
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
    /// `first` is above all sequences in use, so a file of that name is what a creation that failed has left.
    pub(super) fn create(disk: &dyn Disk, dir: &Path, lane: Lane, first: u64) -> io::Result<Self> {
        let path = dir.join(format!("{}-{first:016x}.log", lane.name()));
        let file = disk.open(&path, Open::Emptied)?;
        // The name carries the sequence on: it must last longer than the segments before it.
        disk.sync_dir(dir)?;
        Ok(Self::empty(file, path, first))
    }

    fn empty(file: Box<dyn DiskFile>, path: PathBuf, first: u64) -> Self {
        Self {
            file,
            path,
            first,
            last: 0,
            len: 0,
            frames: 0,
            contents: Contents::default(),
            ragged: false,
        }
    }

    /// Lane and first sequence of a file name; `None` if it is no segment.
    pub(super) fn parse_name(name: &str) -> Option<(Lane, u64)> {
        let (lane, first) = name.strip_suffix(".log")?.split_once('-')?;
        let lane = Lane::ALL.into_iter().find(|l| l.name() == lane)?;
        (first.len() == 16).then_some(())?;
        let first = u64::from_str_radix(first, 16).ok()?;
        (first <= LAST_SEQUENCE).then_some((lane, first))
    }

    /// Reads all frames and cuts off what is not one: the end of a write that was cut short, or damage. What the disk
    /// does not read is left where it is: it may the next time.
    pub(super) fn open(disk: &dyn Disk, path: &Path, first: u64) -> io::Result<(Self, Option<Cut>)> {
        let file = disk.open(path, Open::Existing)?;
        let size = file.len()?;
        let mut segment = Self::empty(file, path.to_owned(), first);
        let mut floor = first;
        let mut unread = false;
        loop {
            match segment.frame_at(segment.len, size) {
                Ok(Some((header, _))) if header.sequence >= floor => {
                    floor = header.sequence + 1;
                    segment.note(&header);
                }
                Ok(_) => break,
                Err(error) if is_unreadable(&error) => {
                    unread = true;
                    break;
                }
                Err(error) => return Err(error),
            }
        }
        if segment.len == size {
            return Ok((segment, None));
        }
        if !unread {
            segment.file.set_len(segment.len)?;
        }
        let cut = segment.cut_off(size - segment.len);
        Ok((segment, Some(cut)))
    }

    fn cut_off(&self, bytes: u64) -> Cut {
        let name = self.path.file_name();
        Cut {
            file: name.map_or_else(String::new, |n| n.to_string_lossy().into_owned()),
            bytes,
            after_ns: self.contents.to_ns,
        }
    }

    fn note(&mut self, header: &Header) {
        self.len += header.size();
        self.last = header.sequence;
        self.frames += 1;
        self.contents.add(header.contents);
    }

    /// One write. After an error the file is as before, or `ragged`.
    pub(super) fn append(&mut self, sequence: u64, contents: Contents, payload: &[u8]) -> io::Result<()> {
        self.smooth()?;
        let frame = encode(sequence, contents, payload);
        if let Err(error) = self.file.write_all_at(&frame, self.len) {
            self.ragged = true;
            let _ = self.smooth();
            return Err(error);
        }
        let header: [u8; HEADER] = frame[..HEADER].try_into().expect("a frame begins with its header");
        self.note(&Header::decode(&header).expect("a frame just encoded"));
        Ok(())
    }

    /// Cuts off what a write that failed has left.
    fn smooth(&mut self) -> io::Result<()> {
        if self.ragged {
            self.file.set_len(self.len)?;
            self.ragged = false;
        }
        Ok(())
    }

    /// The header at `offset`, or `None` where there is none that can be read back.
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

    /// Sequence and contents of the frames above `acked`; `None` where not all of them can be read any more.
    pub(super) fn frames_above(&self, acked: u64) -> Option<Vec<(u64, Contents)>> {
        let mut above = Vec::new();
        let mut offset = 0;
        while let Ok(Some(header)) = self.header_at(offset) {
            if header.sequence > acked {
                above.push((header.sequence, header.contents));
            }
            offset += header.size();
        }
        (offset == self.len).then_some(above)
    }

    /// From here on the segment has no more frames; what was behind is gone. Where the disk `answers`, also from the
    /// file, so that it is told once.
    pub(super) fn cut(&mut self, offset: u64, answers: bool) -> io::Result<Cut> {
        let before = std::mem::take(&mut self.len);
        (self.last, self.frames, self.contents) = (0, 0, Contents::default());
        let mut bytes = [0; HEADER];
        while self.len < offset && self.file.read_exact_at(&mut bytes, self.len).is_ok() {
            match Header::decode(&bytes) {
                Some(header) if header.sequence >= self.first => self.note(&header),
                _ => break,
            }
        }
        self.ragged = true;
        if answers {
            self.smooth()?;
        }
        Ok(self.cut_off(before.saturating_sub(self.len)))
    }

    pub(super) fn sync(&mut self) -> io::Result<()> {
        self.smooth()?;
        self.file.sync()
    }

    pub(super) fn remove(&self, disk: &dyn Disk) -> io::Result<()> {
        match disk.remove(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            done => done,
        }
    }
}

/// The disk has lost the bytes, as opposed to: it could not be asked.
pub(super) fn is_unreadable(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::UnexpectedEof
        || [libc::EIO, libc::EBADMSG, libc::EUCLEAN]
            .map(Some)
            .contains(&error.raw_os_error())
}
