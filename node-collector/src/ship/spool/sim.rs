//! A disk in memory on which each operation can fail, stop the process in its middle, or be forgotten by a power cut.
//!
//! It promises as little as POSIX does: content is safe once the file is synced, a name (new, changed or gone) once its
//! directory is, and of what is not safe any part may survive.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;

use super::disk::{Disk, DiskFile, Open};

/// What goes wrong at an operation. Operations that change something or sync are numbered from 0; reads are not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The process ends at this operation; of a write this many per mille are done.
    Stop { at: u64, done: u32 },
    /// Operations fail from this one on, as many as `times`; of a write this many per mille are done before.
    Fail { at: u64, times: u64, errno: i32, done: u32 },
}

#[derive(Clone, Debug, Default)]
struct Content {
    now: Vec<u8>,
    synced: Vec<u8>,
}

#[derive(Clone, Debug, Default)]
struct State {
    files: Vec<Content>,
    names: BTreeMap<PathBuf, usize>,
    synced_names: BTreeMap<PathBuf, usize>,
    operations: u64,
    fault: Option<Fault>,
    stopped: bool,
    /// Reading fails at these bytes of a file.
    bad: BTreeMap<PathBuf, std::ops::Range<u64>>,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Sim(Arc<Mutex<State>>);

#[derive(Debug)]
struct SimFile {
    sim: Sim,
    path: PathBuf,
    file: usize,
}

/// Where nothing works any more.
fn stopped() -> io::Error {
    io::Error::from_raw_os_error(libc::ESHUTDOWN)
}

impl State {
    /// Counts an operation. How much of it is done, in per mille, and how it ends.
    fn operation(&mut self) -> (u32, io::Result<()>) {
        if self.stopped {
            return (0, Err(stopped()));
        }
        let number = self.operations;
        self.operations += 1;
        match self.fault {
            Some(Fault::Stop { at, done }) if number == at => {
                self.stopped = true;
                (done, Err(stopped()))
            }
            Some(Fault::Fail { at, times, errno, done }) if (at..at.saturating_add(times)).contains(&number) => {
                (done, Err(io::Error::from_raw_os_error(errno)))
            }
            _ => (1000, Ok(())),
        }
    }

    fn alive(&self) -> io::Result<()> {
        if self.stopped { Err(stopped()) } else { Ok(()) }
    }
}

impl Sim {
    pub(crate) fn fault(&self, fault: Option<Fault>) {
        self.0.lock().fault = fault;
    }

    pub(crate) fn operations(&self) -> u64 {
        self.0.lock().operations
    }

    pub(crate) fn has_stopped(&self) -> bool {
        self.0.lock().stopped
    }

    /// Bytes of a file that the disk does not read.
    pub(crate) fn spoil(&self, path: &Path, bytes: std::ops::Range<u64>) {
        self.0.lock().bad.insert(path.to_owned(), bytes);
    }

    /// The names of all files.
    pub(crate) fn files(&self) -> Vec<PathBuf> {
        self.0.lock().names.keys().cloned().collect()
    }

    /// What the next process finds after the end of this one: all that was done.
    pub(crate) fn killed(&self) -> Self {
        let mut state = self.0.lock().clone();
        (state.stopped, state.fault, state.operations) = (false, None, 0);
        Self(Arc::new(Mutex::new(state)))
    }

    /// What it finds after a power cut. `choose` decides what became of each thing that was not synced: a number below
    /// its argument.
    pub(crate) fn power_cut(&self, choose: &mut dyn FnMut(usize) -> usize) -> Self {
        let old = self.0.lock().clone();
        let mut names = BTreeMap::new();
        let paths: std::collections::BTreeSet<_> = old.names.keys().chain(old.synced_names.keys()).collect();
        for path in paths {
            let side = if choose(2) == 0 { &old.names } else { &old.synced_names };
            if let Some(file) = side.get(path) {
                names.insert(path.clone(), *file);
            }
        }
        let files = old.files.iter().map(|file| {
            let content = torn(file, choose);
            Content {
                now: content.clone(),
                synced: content,
            }
        });
        Self(Arc::new(Mutex::new(State {
            files: files.collect(),
            synced_names: names.clone(),
            names,
            ..State::default()
        })))
    }
}

/// Of each piece of a file the old bytes, the new ones, or none at all.
fn torn(file: &Content, choose: &mut dyn FnMut(usize) -> usize) -> Vec<u8> {
    const PIECE: usize = 64;
    let Content { now, synced } = file;
    if now == synced {
        return now.clone();
    }
    let (short, long) = (now.len().min(synced.len()), now.len().max(synced.len()));
    let len = match choose(3) {
        0 => now.len(),
        1 => synced.len(),
        _ => short + choose(long - short + 1),
    };
    let mut bytes = vec![0; len];
    for (piece, to) in bytes.chunks_mut(PIECE).enumerate() {
        let from = piece * PIECE;
        let of = |side: &[u8]| -> Vec<u8> { side.iter().skip(from).take(to.len()).copied().collect() };
        let (new, old) = (of(now), of(synced));
        // What both have cannot change.
        let chosen = if new == old || choose(2) == 0 { new } else { old };
        to[..chosen.len()].copy_from_slice(&chosen);
    }
    bytes
}

impl Disk for Sim {
    fn open(&self, path: &Path, how: Open) -> io::Result<Box<dyn DiskFile>> {
        let mut state = self.0.lock();
        let there = state.names.get(path).copied();
        let file = match (there, how) {
            (Some(file), Open::Existing | Open::Either) => {
                state.alive()?;
                file
            }
            (None, Open::Existing) => return Err(io::ErrorKind::NotFound.into()),
            (Some(file), Open::Emptied) => {
                state.operation().1?;
                state.files[file].now.clear();
                file
            }
            (None, Open::Emptied | Open::Either) => {
                state.operation().1?;
                state.files.push(Content::default());
                let file = state.files.len() - 1;
                state.names.insert(path.to_owned(), file);
                file
            }
        };
        Ok(Box::new(SimFile {
            sim: self.clone(),
            path: path.to_owned(),
            file,
        }))
    }

    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        let state = self.0.lock();
        state.alive()?;
        let file = state.names.get(path).ok_or(io::ErrorKind::NotFound)?;
        Ok(state.files[*file].now.clone())
    }

    fn names(&self, dir: &Path) -> io::Result<Vec<OsString>> {
        let state = self.0.lock();
        state.alive()?;
        let inside = state.names.keys().filter(|path| path.parent() == Some(dir));
        Ok(inside.filter_map(|path| Some(path.file_name()?.to_owned())).collect())
    }

    fn create_dir(&self, _: &Path) -> io::Result<()> {
        self.0.lock().operation().1
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.0.lock();
        state.operation().1?;
        let file = state.names.remove(from).ok_or(io::ErrorKind::NotFound)?;
        state.names.insert(to.to_owned(), file);
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut state = self.0.lock();
        state.operation().1?;
        state.names.remove(path).ok_or(io::ErrorKind::NotFound)?;
        Ok(())
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        let mut state = self.0.lock();
        state.operation().1?;
        let State {
            names, synced_names, ..
        } = &mut *state;
        synced_names.retain(|path, _| path.parent() != Some(dir));
        let inside = names.iter().filter(|(path, _)| path.parent() == Some(dir));
        synced_names.extend(inside.map(|(path, file)| (path.clone(), *file)));
        Ok(())
    }
}

impl DiskFile for SimFile {
    fn len(&self) -> io::Result<u64> {
        let state = self.sim.0.lock();
        state.alive()?;
        Ok(state.files[self.file].now.len() as u64)
    }

    fn read_exact_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        let state = self.sim.0.lock();
        state.alive()?;
        let end = offset + bytes.len() as u64;
        if state
            .bad
            .get(&self.path)
            .is_some_and(|bad| offset < bad.end && bad.start < end)
        {
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
        let content = &state.files[self.file].now;
        let there = content.get(offset as usize..end as usize);
        bytes.copy_from_slice(there.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let mut state = self.sim.0.lock();
        let (done, end) = state.operation();
        let bytes = &bytes[..bytes.len() * done as usize / 1000];
        if !bytes.is_empty() {
            let (from, to) = (offset as usize, offset as usize + bytes.len());
            let content = &mut state.files[self.file].now;
            content.resize(content.len().max(to), 0);
            content[from..to].copy_from_slice(bytes);
        }
        end
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut state = self.sim.0.lock();
        state.operation().1?;
        state.files[self.file].now.resize(len as usize, 0);
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        let mut state = self.sim.0.lock();
        state.operation().1?;
        let content = &mut state.files[self.file];
        content.synced.clone_from(&content.now);
        Ok(())
    }
}
