//! The network namespaces that a round reads.

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;

use arc_swap::ArcSwap;

use crate::event::Subject;
use crate::procfs::NetFiles;

/// One of them. Dropping it lets go of the namespace, so nobody may keep one from round to round.
#[derive(Debug)]
pub struct Target {
    pub subject: Subject,
    pub files: NetFiles,
    /// Where files that are not kept are opened.
    pub dir: PathBuf,
    /// To be entered for that; `None` for the node's own.
    pub netns: Option<OwnedFd>,
}

/// Written by the sources of pods, read by rounds.
#[derive(Debug, Default)]
pub struct Targets(ArcSwap<Vec<Arc<Target>>>);

impl Targets {
    pub fn load(&self) -> Arc<Vec<Arc<Target>>> {
        self.0.load_full()
    }

    pub fn store(&self, targets: Vec<Arc<Target>>) {
        self.0.store(Arc::new(targets));
    }
}
