//! Times of a clock that was not set: a machine without a clock of its own begins in 1970, and learns later what time it is.
//! What is written until then has such times. What they were can be told as long as the machine runs: this remembers what
//! the clock said then, and which batches are of this boot.

use std::io;
use std::path::Path;

use super::disk::Disk;
use super::state::replace;

const FILE: &str = "clock";

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Unset {
    boot: String,
    /// Batches below are of earlier boots.
    first: u64,
    /// UTC minus the time since the boot, by the clock that was not set.
    offset_ns: Option<i64>,
}

impl Unset {
    /// `next`: the sequence that this process begins with.
    pub(super) fn open(disk: &dyn Disk, dir: &Path, boot: &str, next: u64) -> Self {
        let said = disk.read(&dir.join(FILE)).ok();
        if let Some(before) = said
            .and_then(|said| Self::parse(&said))
            .filter(|said| said.boot == boot)
        {
            return before;
        }
        let unset = Self {
            boot: boot.to_owned(),
            first: next,
            offset_ns: None,
        };
        if let Err(error) = unset.write(disk, dir) {
            tracing::debug!(%error, "which batches are of this boot cannot be noted");
        }
        unset
    }

    /// The clock says a time that cannot be.
    pub(super) fn note(&mut self, disk: &dyn Disk, dir: &Path, offset_ns: i64) -> io::Result<()> {
        if self.offset_ns.is_none() {
            self.offset_ns = Some(offset_ns);
            self.write(disk, dir)?;
        }
        Ok(())
    }

    /// What the clock was behind the time since the boot when this batch was written; `None` where nobody knows.
    pub(super) fn offset_ns(&self, sequence: u64) -> Option<i64> {
        self.offset_ns.filter(|_| sequence >= self.first)
    }

    fn write(&self, disk: &dyn Disk, dir: &Path) -> io::Result<()> {
        let offset = self
            .offset_ns
            .map_or_else(|| "-".to_owned(), |offset| offset.to_string());
        let text = format!("boot {}\nfirst {}\noffset {offset}\n", self.boot, self.first);
        replace(disk, dir, FILE, text.as_bytes())
    }

    fn parse(said: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(said).ok()?;
        let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        let offset_ns = match field("offset")? {
            "-" => None,
            offset => Some(offset.parse().ok()?),
        };
        Some(Self {
            boot: field("boot")?.to_owned(),
            first: field("first")?.parse().ok()?,
            offset_ns,
        })
    }
}
