//! A file of lines that is rotated by size and opened anew on SIGHUP.
//!
//! A line is in it whole or not at all: what a full disk cut off is taken back, and written again when there is room.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use sonde_common::config::FileSink;
use sonde_push::{Outcome, Target};
use tokio::task::spawn_blocking;

use super::Shared;
use super::text::Format;

/// What is written at once, about.
const CHUNK: usize = 256 << 10;

pub(super) struct Rotated {
    log: Arc<Mutex<Log>>,
    format: Format,
}

struct Log {
    settings: FileSink,
    reopen: Arc<AtomicBool>,
    file: Option<File>,
    /// Of `file`, as far as it is known.
    length: u64,
}

impl Rotated {
    /// `reopen` is set by whoever renamed the file.
    pub(super) fn new(settings: &FileSink, format: Format, reopen: Arc<AtomicBool>) -> Self {
        let mut log = Log {
            settings: settings.clone(),
            reopen,
            file: None,
            length: 0,
        };
        // Tried again with the first event; said now, as that may be long in coming.
        if let Err(error) = log.open() {
            tracing::warn!(%error, "events cannot be written yet");
        }
        Self {
            log: Arc::new(Mutex::new(log)),
            format,
        }
    }
}

impl Target for Rotated {
    type Item = Shared;

    async fn send(&mut self, batch: &Arc<[Shared]>, from: usize) -> Outcome {
        let (log, format, batch) = (Arc::clone(&self.log), self.format.clone(), Arc::clone(batch));
        let written = spawn_blocking(move || {
            let lines = batch[from..].iter().map(|event| format.dated_line(&event.0) + "\n");
            match log.lock().write(lines) {
                Ok(()) => Outcome::Sent,
                Err((done, error)) => Outcome::Retry {
                    done,
                    why: error.to_string(),
                    after: None,
                },
            }
        });
        written.await.unwrap_or_else(|error| Outcome::retry(error.to_string()))
    }
}

impl Log {
    /// With the error: how many lines are in the file.
    fn write(&mut self, lines: impl Iterator<Item = String>) -> Result<(), (usize, io::Error)> {
        let mut done = 0;
        self.ready().map_err(|error| (done, error))?;
        let most = self.settings.max_bytes;
        let (mut chunk, mut count) = (Vec::new(), 0);
        for line in lines {
            let length = self.length + chunk.len() as u64;
            let full = most != 0 && length != 0 && length + line.len() as u64 > most;
            if full || chunk.len() >= CHUNK {
                self.append(&mut chunk).map_err(|error| (done, error))?;
                done += std::mem::take(&mut count);
            }
            if full {
                self.rotate().map_err(|error| (done, error))?;
            }
            chunk.extend(line.into_bytes());
            count += 1;
        }
        self.append(&mut chunk).map_err(|error| (done, error))
    }

    fn append(&mut self, chunk: &mut Vec<u8>) -> io::Result<()> {
        let Some(file) = &mut self.file else {
            return Err(io::Error::other("not open"));
        };
        if let Err(error) = file.write_all(chunk) {
            // Part of it may be there.
            let _ = file.set_len(self.length);
            return Err(self.named(error));
        }
        self.length += chunk.len() as u64;
        chunk.clear();
        Ok(())
    }

    /// The file as it is now: others may have cut, renamed or removed it.
    fn ready(&mut self) -> io::Result<()> {
        let asked = self.reopen.swap(false, Ordering::Relaxed);
        let now = self.file.as_ref().map(File::metadata).transpose()?;
        match now {
            // One that was removed is nowhere to be read.
            Some(now) if !asked && now.nlink() > 0 => {
                self.length = now.len();
                Ok(())
            }
            _ => self.open(),
        }
    }

    fn open(&mut self) -> io::Result<()> {
        self.file = None;
        let path = &self.settings.path;
        // To open what is no file may wait for ever.
        match fs::metadata(path) {
            Ok(there) if !there.is_file() => return Err(self.named(io::Error::other("it is no regular file"))),
            _ => {}
        }
        if let Some(dir) = path.parent() {
            fs::create_dir_all(dir).map_err(|error| self.named(error))?;
        }
        let opened = OpenOptions::new().append(true).create(true).mode(0o640).open(path);
        let file = opened.map_err(|error| self.named(error))?;
        self.length = file.metadata()?.len();
        self.file = Some(file);
        Ok(())
    }

    fn rotate(&mut self) -> io::Result<()> {
        let FileSink { path, keep, .. } = &self.settings;
        for number in (1..*keep).rev() {
            rename(&older(path, number), &older(path, number + 1))?;
        }
        rename(path, &older(path, 1))?;
        self.open()
    }

    fn named(&self, error: io::Error) -> io::Error {
        io::Error::new(error.kind(), format!("{}: {error}", self.settings.path.display()))
    }
}

/// `PATH.number`
fn older(path: &Path, number: u32) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{number}"));
    name.into()
}

fn rename(from: &Path, to: &Path) -> io::Result<()> {
    match fs::rename(from, to) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(io::Error::new(
            error.kind(),
            format!("{} cannot be renamed: {error}", from.display()),
        )),
        _ => Ok(()),
    }
}
