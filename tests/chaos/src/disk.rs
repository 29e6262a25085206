//! Small file systems that can be filled, in a mount namespace of this process alone: they go with it.

use std::fs::File;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

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

#[derive(Debug)]
pub struct Disk {
    path: PathBuf,
}

impl Disk {
    pub fn new(path: &Path, mebibytes: u64) -> anyhow::Result<Self> {
        std::fs::create_dir_all(path)?;
        let options = format!("size={mebibytes}m,mode=755");
        mount(
            Some("chaos"),
            path,
            Some("tmpfs"),
            MsFlags::empty(),
            Some(options.as_str()),
        )
        .with_context(|| format!("tmpfs on {}", path.display()))?;
        Ok(Self { path: path.to_owned() })
    }

    fn ballast(&self) -> PathBuf {
        self.path.join("ballast")
    }

    /// Takes all that is free; also what became free since.
    pub fn fill(&self) -> anyhow::Result<()> {
        use std::os::unix::fs::FileExt as _;
        let file = File::options()
            .create(true)
            .append(false)
            .write(true)
            .truncate(false)
            .open(self.ballast())?;
        let mut at = file.metadata()?.len();
        for size in [1 << 20, 4096] {
            let zeros = vec![0; size];
            while let Ok(written) = file.write_at(&zeros, at) {
                at += written as u64;
            }
        }
        Ok(())
    }

    pub fn free(&self) -> anyhow::Result<()> {
        match std::fs::remove_file(self.ballast()) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
            _ => Ok(()),
        }
    }
}
