//! Small file systems that can be filled, in a mount namespace of this process alone: they go with it.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::statvfs::statvfs;

/// Before the first thread: others would not see what is mounted.
pub fn apart() -> anyhow::Result<()> {
    unshare(CloneFlags::CLONE_NEWNS).context("a mount namespace of its own")?;
    mount(
        None::<&str>,
        "/",
        None::<&str>,
        MsFlags::MS_REC | MsFlags::MS_PRIVATE,
        None::<&str>,
    )?;
    Ok(())
}

/// A tmpfs: what is not used takes no memory.
#[derive(Debug)]
pub struct Disk {
    path: PathBuf,
    bytes: u64,
}

impl Disk {
    pub fn new(path: &Path, mebibytes: u64) -> anyhow::Result<Self> {
        std::fs::create_dir_all(path)?;
        let bytes = mebibytes << 20;
        let options = format!("size={bytes},mode=755");
        mount(
            Some("chaos"),
            path,
            Some("tmpfs"),
            MsFlags::empty(),
            Some(options.as_str()),
        )
        .with_context(|| format!("tmpfs on {}", path.display()))?;
        Ok(Self {
            path: path.to_owned(),
            bytes,
        })
    }

    /// Nothing is free any more: it is as large as what is in it. Also takes what became free since.
    pub fn fill(&self) -> anyhow::Result<()> {
        loop {
            let now = statvfs(&self.path)?;
            let used = (now.blocks() - now.blocks_free()) * now.fragment_size();
            match self.resize(used.max(1)) {
                // More was written in between.
                Err(Errno::EINVAL) => {}
                result => return Ok(result?),
            }
        }
    }

    pub fn free(&self) -> anyhow::Result<()> {
        Ok(self.resize(self.bytes)?)
    }

    fn resize(&self, bytes: u64) -> nix::Result<()> {
        let options = format!("size={bytes}");
        mount(
            None::<&str>,
            &self.path,
            None::<&str>,
            MsFlags::MS_REMOUNT,
            Some(options.as_str()),
        )
    }
}
