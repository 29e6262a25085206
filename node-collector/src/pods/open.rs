//! Going into a network namespace, and what is opened there to be kept.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use nix::sched::{CloneFlags, setns};
use sonde_common::paths::HostPaths;

use crate::handles::{self, Handles, Wanted};
use crate::netlink::route::RouteSocket;

/// What is kept of a network namespace. Each handle answers for its namespace from any thread, and keeps it alive.
#[derive(Debug)]
pub(super) struct Opened {
    /// What the probes read.
    pub(super) handles: Handles,
    /// Answers about addresses and devices. `None`: cannot be had here.
    pub(super) route: Option<RouteSocket>,
}

impl Opened {
    /// In the network namespace that the calling thread is in now. `keep`: whether there are descriptors enough.
    pub(super) fn here(paths: &HostPaths, wanted: &Wanted, keep: bool) -> Self {
        Self {
            handles: handles::open(paths, wanted, keep),
            route: RouteSocket::open().ok(),
        }
    }

    /// Of a namespace that cannot be entered: each reading says why.
    pub(super) fn failed(paths: &HostPaths, error: io::Error) -> Self {
        Self {
            handles: Handles::failed(paths, error),
            route: None,
        }
    }
}

/// The namespace that a thread comes home to.
#[derive(Debug)]
pub(super) struct Home(pub(super) File);

impl Home {
    /// Does something inside another namespace and comes home.
    pub(super) fn leave_for<T>(&self, netns: BorrowedFd<'_>, job: impl FnOnce() -> T) -> io::Result<T> {
        enter(netns)?;
        let result = job();
        // A thread that cannot come home would tell one namespace's facts as another's.
        enter(self.0.as_fd()).expect("the own network namespace can be entered again");
        Ok(result)
    }
}

/// Makes the calling thread, and no other, see this network namespace.
pub fn enter(netns: BorrowedFd<'_>) -> io::Result<()> {
    Ok(setns(netns, CloneFlags::CLONE_NEWNET)?)
}

/// Opens the file of a network namespace, which must be one: a name may be there without its namespace, as a plain file.
pub(super) fn open_netns(path: &Path) -> io::Result<File> {
    // Not to hang on a FIFO that somebody put there meanwhile.
    let file = File::options()
        .read(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(path)?;
    let fs = nix::sys::statfs::fstatfs(&file)?;
    if fs.filesystem_type() != nix::sys::statfs::NSFS_MAGIC {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    Ok(file)
}
