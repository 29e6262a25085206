//! The small files beside the segments: who we are (`meta`), when we were last seen (`heartbeat`), what was on its way
//! (`sent`), which pods we last had (`pods`), and the lock.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::path::Path;

use nix::fcntl::{Flock, FlockArg};
use uuid::Uuid;

use super::SpoolError;
use super::disk::{Disk, DiskFile, Open};

/// Of the format of everything below the spool's directory.
const VERSION: u32 = 1;

/// Which stream of sequences this is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Meta {
    pub epoch: Uuid,
    /// Of the machine when the spool was opened last: what was written since then is on disk only if synced.
    pub boot: String,
}

impl Meta {
    /// `Ok(None)`: there is none that can be read.
    pub(super) fn read(disk: &dyn Disk, dir: &Path) -> Result<Option<Self>, SpoolError> {
        let Some(text) = text(disk, &dir.join("meta")) else {
            return Ok(None);
        };
        let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        match field("version").and_then(|v| v.parse::<u32>().ok()) {
            Some(VERSION) => {}
            Some(version) => {
                return Err(SpoolError::Version {
                    dir: dir.to_owned(),
                    version,
                    ours: VERSION,
                });
            }
            None => return Ok(None),
        }
        let epoch = field("epoch").and_then(|e| Uuid::parse_str(e).ok());
        Ok(epoch.map(|epoch| Self {
            epoch,
            boot: field("boot").unwrap_or_default().to_owned(),
        }))
    }

    pub(super) fn write(&self, disk: &dyn Disk, dir: &Path) -> io::Result<()> {
        let text = format!("version {VERSION}\nepoch {}\nboot {}\n", self.epoch, self.boot);
        replace(disk, dir, "meta", text.as_bytes())
    }
}

/// When a collector last ran on this spool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heartbeat {
    pub time_ns: u64,
    /// It ended in order.
    pub clean: bool,
}

impl Heartbeat {
    /// And up to which sequence the aggregator had everything.
    pub(super) fn read(disk: &dyn Disk, dir: &Path) -> Option<(Self, u64)> {
        let text = text(disk, &dir.join("heartbeat"))?;
        let mut words = text.split_whitespace();
        let heartbeat = Self {
            time_ns: words.next()?.parse().ok()?,
            clean: words.next() == Some("stopped"),
        };
        Some((
            heartbeat,
            words.next().and_then(|acked| acked.parse().ok()).unwrap_or(0),
        ))
    }

    /// Written in place and not synced: it has to outlive the process, not the machine.
    pub(super) fn write(self, disk: &dyn Disk, dir: &Path, acked: u64) -> io::Result<()> {
        let word = if self.clean { "stopped" } else { "running" };
        let file = disk.open(&dir.join("heartbeat"), Open::Either)?;
        // Always of one length, so that an older one never shows behind a newer one.
        file.write_all_at(format!("{:020} {word} {acked:020}\n", self.time_ns).as_bytes(), 0)
    }
}

/// How far batches were handed to a stream, and how far the aggregator was then: what lies between may have arrived or not,
/// also for the next process.
///
/// Written with each batch and not synced, as it has to outlive the process alone. Where it does not get to the disk, the
/// next process tells what it drops as missing, also where it arrived.
#[derive(Debug)]
pub(super) struct Sent {
    file: Box<dyn DiskFile>,
    /// Written in turn: one that is torn leaves the other one.
    slot: u64,
}

const SENT: usize = 64;

impl Sent {
    /// And what it says.
    pub(super) fn open(disk: &dyn Disk, dir: &Path) -> io::Result<(Self, u64, u64)> {
        let file = disk.open(&dir.join("sent"), Open::Either)?;
        let (mut acked, mut handed_out) = (0, 0);
        for slot in 0..2 {
            let mut bytes = [0; SENT];
            if file.read_exact_at(&mut bytes, slot * SENT as u64).is_ok()
                && let Some(said) = parse_sent(&bytes)
            {
                acked = acked.max(said.0);
                handed_out = handed_out.max(said.1);
            }
        }
        Ok((Self { file, slot: 0 }, acked, handed_out))
    }

    pub(super) fn note(&mut self, acked: u64, handed_out: u64) {
        self.slot = 1 - self.slot;
        let line = format!("{acked:020} {handed_out:020} ");
        let line = format!("{line}{:021}\n", crc32c::crc32c(line.as_bytes()));
        let _ = self.file.write_all_at(line.as_bytes(), self.slot * SENT as u64);
    }

    /// Of another epoch.
    pub(super) fn clear(&mut self) {
        self.note(0, 0);
        self.note(0, 0);
    }
}

fn parse_sent(bytes: &[u8; SENT]) -> Option<(u64, u64)> {
    let text = std::str::from_utf8(bytes).ok()?;
    let (line, sum) = text.split_at_checked(42)?;
    (sum.trim_end().parse::<u32>().ok()? == crc32c::crc32c(line.as_bytes())).then_some(())?;
    let (acked, handed_out) = line.trim_end().split_once(' ')?;
    Some((acked.parse().ok()?, handed_out.parse().ok()?))
}

fn text(disk: &dyn Disk, path: &Path) -> Option<String> {
    String::from_utf8(disk.read(path).ok()?).ok()
}

/// A file replaced as a whole: the old content or the new, never a part.
pub(super) fn replace(disk: &dyn Disk, dir: &Path, name: &str, content: &[u8]) -> io::Result<()> {
    let temporary = dir.join(format!("{name}.new"));
    let file = disk.open(&temporary, Open::Emptied)?;
    file.write_all_at(content, 0)?;
    file.sync()?;
    disk.rename(&temporary, &dir.join(name))?;
    disk.sync_dir(dir)
}

/// Held as long as the spool is open. The kernel lets go of it however the process ends.
pub(super) fn lock(dir: &Path) -> Result<Flock<File>, SpoolError> {
    let path = dir.join("lock");
    let open = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path);
    let file = open.map_err(|source| SpoolError::Io {
        path: path.clone(),
        source,
    })?;
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(mut lock) => {
            let _ = lock.set_len(0);
            let _ = lock.write_all(std::process::id().to_string().as_bytes());
            Ok(lock)
        }
        Err((mut file, nix::errno::Errno::EWOULDBLOCK)) => {
            let mut holder = String::new();
            let _ = file.read_to_string(&mut holder);
            Err(SpoolError::Locked {
                dir: dir.to_owned(),
                holder,
            })
        }
        Err((_, error)) => Err(SpoolError::Io {
            path,
            source: error.into(),
        }),
    }
}
