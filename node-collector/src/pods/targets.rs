//! The network namespaces that a round reads.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use arc_swap::ArcSwap;

use crate::event::Subject;
use crate::handles::Handles;

/// One of them. Dropping it lets go of the namespace, so nobody may keep one from round to round.
#[derive(Debug)]
pub struct Target {
    pub subject: Subject,
    pub handles: Handles,
    /// To be entered where handles are not kept; `None` for the node's own.
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
